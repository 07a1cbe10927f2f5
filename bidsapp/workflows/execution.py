"""Running a Nipype graph: the plugin, the progress on the screen, and what went wrong."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

from bidsapp.bids.write import write_text
from bidsapp.interfaces.base import ABSENT, PROBLEM
from bidsapp.problems import (
    MAKE_ROOM,
    BadData,
    CannotCreate,
    InputOutputError,
    MissingInput,
    Problem,
    TryAgain,
    WrongUsage,
    is_full,
)
from bidsapp.resources import Limit
from bidsapp.stopping import Stopped, heard, look

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from nipype import Workflow

log = logging.getLogger('transfermri')

#: Exit code of a note → the problem it stands for.
KINDS = {p.exit_code: p for p in (BadData, MissingInput, CannotCreate, InputOutputError, TryAgain)}


@dataclass(frozen=True, slots=True)
class Engine:
    """What runs a graph: a Nipype plugin, its arguments, and the memory that steps may take."""

    plugin: str
    args: Mapping[str, Any]
    limit: Limit

    def told(self, watch: Watch) -> dict[str, Any]:
        """The arguments of Nipype's ``Workflow.run``; ``watch`` hears of each step."""
        if self.plugin not in ('MultiProc', 'Linear'):
            return {'plugin': self.plugin, 'plugin_args': dict(self.args)}
        args = {**self.args, 'status_callback': watch}
        if self.plugin == 'MultiProc':
            from bidsapp.workflows.workers import WorkersPlugin

            return {'plugin': WorkersPlugin(args, self.limit)}
        return {'plugin': self.plugin, 'plugin_args': args}


def engine(plugin_file: Path | None, nprocs: int, memory: Limit) -> Engine:
    """MultiProc, or what a plugin file says. Raises WrongUsage for a file that is no such thing."""
    defaults = {
        'n_procs': nprocs,
        'memory_gb': memory.amount,
        'n_gpu_procs': 1,  # a call computes on one card
        'raise_insufficient': False,
        'mp_context': 'forkserver',
    }
    if plugin_file is None:
        return Engine('MultiProc', defaults, memory)
    import yaml
    from nipype.pipeline import plugins

    try:
        content = yaml.safe_load(plugin_file.read_text(encoding='utf-8'))
    except yaml.YAMLError as error:
        raise WrongUsage(f'{plugin_file} is not valid YAML: {error}') from error
    if not isinstance(content, dict) or 'plugin' not in content:
        raise WrongUsage(f'{plugin_file} must name a plugin, such as "plugin: MultiProc".')
    name, args = str(content['plugin']), content.get('plugin_args') or {}
    if not hasattr(plugins, f'{name}Plugin'):
        raise WrongUsage(f'{plugin_file}: Nipype has no plugin {name}; it has MultiProc, SLURM, …')
    if name.endswith('Graph'):
        raise WrongUsage(
            f'{plugin_file}: {name} does not wait for what it submits, so this call could not tell '
            f'what became of it. Use {name.removesuffix("Graph")}.'
        )
    if name == 'MultiProc':
        if 'memory_gb' in args:
            memory = Limit(float(args['memory_gb']), f'memory_gb in {plugin_file.name}')
        args = {**defaults, **args}
    return Engine(name, args, memory)


def log_memory(need: float, plugin: Engine) -> None:
    """What the steps may take of the memory, and whether the largest of them, in GB, fits."""
    text = (
        f'The largest step needs about {need:.1f} GB; steps may take {plugin.limit.amount:.1f} GB '
    )
    text += f'together ({plugin.limit.source}).'
    if plugin.plugin in ('MultiProc', 'Linear') and need > plugin.limit.amount:
        log.warning('%s It will run alone, and may be killed: give the job more memory.', text)
    else:
        log.info(text)


def configure(folder: Path, crash_folder: Path, stop_on_first_crash: bool) -> None:
    """Set Nipype up before a graph is made: here, and by the file that its workers read."""
    from nipype import config
    from nipype import logging as nipype_logging

    crash_folder.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    sections = {
        'execution': {
            'crashdump_dir': str(crash_folder),
            'crashfile_format': 'txt',
            'stop_on_first_crash': str(stop_on_first_crash).lower(),
            'poll_sleep_duration': '0.2',
            'remove_unnecessary_outputs': 'false',
            'check_version': 'false',
        },
        'logging': {f'{part}_level': 'CRITICAL' for part in ('workflow', 'interface', 'utils')},
        'monitoring': {'enabled': 'false'},
    }
    config.update_config(sections)
    nipype_logging.update_logging(config)
    lines = [
        line
        for name, section in sections.items()
        for line in (f'[{name}]', *(f'{key} = {value}' for key, value in section.items()))
    ]
    write_text(folder / 'nipype.cfg', '\n'.join(lines) + '\n')
    os.environ['NIPYPE_CONFIG_DIR'] = str(folder)


def run_graph(
    graph: Workflow, engine: Engine, finished: Callable[[str], None] = lambda name: None
) -> Problem | None:
    """Run; a failure that is not a step's own note comes back as a Problem.

    ``finished`` hears the name of each run's workflow of which every step has succeeded.
    Steps that fail do not stop steps that do not depend on them. Raises Stopped on SIGTERM,
    which Nipype does not take for a step's failure; what it raised is looked for after each step.
    """
    if engine.plugin == 'SLURM':
        ask_slurm(graph, str(engine.args.get('sbatch_args', '')))
    try:
        with heard():
            graph.run(**engine.told(Watch(graph, finished)))
            look()
    except Stopped:
        end_workers()
        raise
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        log.debug('Nipype: %s', error)
        return failure_of(error.__cause__ or error, str(graph.base_dir))
    return None


def failure_of(cause: BaseException, work: str) -> Problem:
    """What ended a graph; Nipype's own exception only counts the steps that failed."""
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    full = [line for line in lines if os.strerror(errno.ENOSPC) in line]
    if full or is_full(cause):
        return InputOutputError(f'{work}: its disk is full ({(full or lines)[-1]}). {MAKE_ROOM}')
    said = lines[-1] if lines else type(cause).__name__
    return Problem(f'a step failed: {said}')


def ask_slurm(graph: Workflow, said: str) -> None:
    """Each step asks SLURM for its own memory and processors, unless the plugin file says them."""
    os.environ.setdefault('LOGNAME', 'transfermri')  # Nipype names its jobs after it
    graph.config['execution'] = {'poll_sleep_duration': '3'}  # s between looks at the queue
    for name in graph.list_node_names():
        node = graph.get_node(name)
        needs = {'--mem': f'{ceil(1024 * node.mem_gb)}M', '--cpus-per-task': node.n_procs}
        wanted = [f'{option}={value}' for option, value in needs.items() if option not in said]
        node.plugin_args = {'sbatch_args': ' '.join(wanted)}


def end_workers() -> None:
    """End the processes that compute steps, so that the end does not wait for them."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.terminate()


class Watch:
    """Says each step that ends, with how many are done of how many."""

    def __init__(self, graph: Workflow, finished: Callable[[str], None]) -> None:
        self.left = Counter(run_of(node) for node in steps_of(graph))
        self.total = self.left.total()
        self.done = 0
        self.finished = finished

    def __call__(self, node: Any, status: str) -> None:
        """Nipype calls this with 'start', 'end' or 'exception'."""
        look()
        if status == 'start':
            log.debug('start %s', node.fullname)
            return
        self.done += 1
        where = node.fullname.split('.', 1)[-1].replace('_wf', '')
        if status == 'exception':
            log.error('[%d/%d] %s failed', self.done, self.total, where)
            return
        log.info('[%d/%d] %s', self.done, self.total, where)
        self.left[run_of(node)] -= 1
        if not self.left[run_of(node)]:
            self.finished(run_of(node))


def steps_of(graph: Workflow) -> list[Any]:
    """The nodes that are run: Nipype takes those away that only hand on what they are given."""
    from nipype.interfaces.utility import IdentityInterface

    every = graph._create_flat_graph().nodes()
    return [node for node in every if not isinstance(node.interface, IdentityInterface)]


def run_of(node: Any) -> str:
    """The name of the workflow of one run that a node belongs to."""
    return str(node.fullname.split('.')[1])


def hand_over(crashes: Path, logs: Path, without_places: Callable[[str], str]) -> list[Path]:
    """Move Nipype's reports of steps that failed to ``logs``, without places, login and host."""
    found = []
    for report in sorted(crashes.glob('*.txt')):
        text = without_places(report.read_text(encoding='utf-8', errors='replace'))
        step = re.sub(r'\W', '_', text.partition('\n')[0].removeprefix('Node: '))
        step = step.removeprefix('transfermri_wf_').replace('_wf', '')
        found.append(write_text(logs / f'crash-{step}-{report.stem[-8:]}.txt', text))
    shutil.rmtree(crashes, ignore_errors=True)
    return found


def problems_left(folder: Path) -> Problem | None:
    """The problem that a step under ``folder`` noted, the first if several: it may be the cause."""
    notes = sorted(folder.rglob(PROBLEM), key=lambda path: path.stat().st_mtime)
    if not notes:
        return None
    note = json.loads(notes[0].read_text(encoding='utf-8'))
    return KINDS.get(note['exit_code'], Problem)(note['message'])


def absences_left(folder: Path) -> list[dict[str, Any]]:
    """Labels that a step under ``folder`` found the scan cannot give: task, source, reason."""
    notes = sorted(folder.rglob(ABSENT))
    return [json.loads(note.read_text(encoding='utf-8')) for note in notes]


def clear_problems(folder: Path) -> None:
    """Take away the notes of an earlier attempt."""
    for name in (PROBLEM, ABSENT):
        for note in folder.rglob(name):
            note.unlink()
