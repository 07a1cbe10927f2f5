"""What a network sees in the place of a run where `group` is to learn for a poorer scan.

Each run is made like that scan and prepared as any run is, below the work folder and once for all
tasks and calls; the label of the whole run is averaged over the longer voxels. A run that cannot be
made so is named and left out.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp import __version__, registry
from bidsapp.bids.identity import raw_scans
from bidsapp.bids.images import load_volume, write_volume
from bidsapp.bids.prepared import find_prepared
from bidsapp.bids.write import write_json
from bidsapp.hidden import hidden
from bidsapp.learn.finetune import name_of
from bidsapp.learn.inputs import states
from bidsapp.physics.longer_voxels import commonest, mean_map
from bidsapp.problems import MissingInput, Problem, problem_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from bidsapp.bids.runs import Run
    from bidsapp.core import Arrays, Case, LongerVoxels, Task
    from bidsapp.settings import Settings
    from bidsapp.workflows.preparation import Likeness, Preparation

log = logging.getLogger('transfermri')


@dataclass(frozen=True, slots=True)
class StandIn:
    """What stands for one run."""

    case: Case
    folder: Path
    source: str  #: 'raw' or 'prepared': what was made poorer
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StandIns:
    """What stands for the runs of a modality, by their names; empty where nothing is asked."""

    asked: Mapping[str, Any] = field(default_factory=dict)  #: what inputs are like, for cards
    options: Mapping[str, Any] = field(default_factory=dict)  #: of the modality, that ask for it
    runs: Mapping[str, StandIn] = field(default_factory=dict)

    def of(self, task: Task[Any], cases: Sequence[Case]) -> dict[str, Case] | None:
        """Name of a run → what stands for it, with the task's label; None: the runs themselves."""
        if not self.asked:
            return None
        found = {}
        for case in cases:
            if (run := self.runs.get(name := name_of(task, case))) is not None:
                label = averaged_label(task, case, run, self.options)
                found[name] = run.case.with_files(**label)
        return found

    @property
    def described(self) -> dict[str, Any]:
        """For a card: what inputs are like, and from what they were made."""
        if not self.asked:
            return {}
        found = [run.source for run in self.runs.values()]
        return {
            **self.asked,
            'input_made_from': {s: found.count(s) for s in dict.fromkeys(sorted(found))},
        }


def likeness_of(modality: str) -> Likeness | None:
    """How runs of a modality are made like another scan, if they can be."""
    preparation: Preparation = registry.preparation(modality)
    return preparation.likeness


def asked_of(modality: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """What inputs of a modality shall be like; nothing where nothing is asked. Raises Problem."""
    if not options or (likeness := likeness_of(modality)) is None:
        return {}
    return likeness.asked(options)


def stand_ins(
    modality: str, cases: Sequence[Case], settings: Settings, device: str
) -> StandIns:  # fmt: skip
    """Make, where they are not there, what stands for prepared runs of one modality.

    Raises MissingInput where none can be made.
    """
    asked = asked_of(modality, settings.options)
    if not asked or (likeness := likeness_of(modality)) is None:
        return StandIns()
    root = settings.work_dir / f'like-{__version__}'
    scans = raw_scans(modality, {'': cases}, settings.output_dir, settings.roots)['']
    found: dict[str, StandIn] = {}
    waiting: dict[str, tuple[Path, Run]] = {}
    for case, scan in scans:
        name = _name(modality, case)
        folder = root / _key(modality, case, scan, asked, settings.seed)
        if (there := _opened(modality, folder)) is not None:
            found[name] = there
            continue
        shutil.rmtree(folder, ignore_errors=True)
        try:
            made = likeness.poorer(case, scan, folder, settings.options)
        except Exception as error:
            _say_left_out(name, problem_of(error, name))
            continue
        for text in made.notes:
            log.warning('%s: %s', name, text)
        write_json(folder / 'made.json', {'source': made.source, 'figures': dict(made.figures)})
        if made.raw is not None:
            waiting[name] = (folder, made.raw)
        elif (there := _opened(modality, folder)) is not None:
            found[name] = there
    for name, folder in _prepare(waiting, settings, device).items():
        if (there := _opened(modality, folder)) is not None:
            found[name] = there
    if not found:
        raise MissingInput('No run can be made like the scan that was asked for; see the log.')
    return StandIns(asked, settings.options, found)


def _name(modality: str, case: Case) -> str:
    return name_of(registry.tasks_of(modality)[0], case)


def _say_left_out(name: str, problem: Problem) -> None:
    log.warning('%s is left out: %s', name, problem)


def _key(
    modality: str,
    case: Case,
    scan: tuple[Path, Path] | None,
    asked: Mapping[str, Any],
    seed: int,
) -> str:
    """What a stand-in is called: by the run, the raw scan, and what it is made like."""
    prepared = registry.files(modality).prepared
    own = [case.files[kind] for kind in prepared.names]
    files = [*own, *([scan[0]] if scan else [])]
    known = [[path.name, *state] for path, state in states(files).items()]
    said = json.dumps([__version__, seed, _name(modality, case), known, asked])
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _opened(modality: str, folder: Path) -> StandIn | None:
    """A stand-in that is whole: its prepared files are there."""
    note = folder / 'made.json'
    if not note.is_file() or not (folder / 'out').is_dir():
        return None
    cases = find_prepared(folder / 'out', modality)
    if len(cases) != 1:
        return None
    made = json.loads(note.read_text(encoding='utf-8'))
    return StandIn(cases[0], folder, made['source'], made['figures'])


def _prepare(
    waiting: Mapping[str, tuple[Path, Run]], settings: Settings, device: str
) -> dict[str, Path]:
    """Prepare raw stand-ins, each below its own folder; those that failed are named."""
    if not waiting:
        return {}
    from bidsapp.workflows.execution import (
        clear_problems,
        configure,
        engine,
        hand_over,
        problems_left,
        run_graph,
    )
    from bidsapp.workflows.participant import clear_runs, node_name, run_folder
    from bidsapp.workflows.plan import Todo
    from bidsapp.workflows.preparation import Place

    work = settings.work_dir / f'like-{__version__}' / 'steps'
    crashes = hidden(settings.work_dir / 'crashes')
    configure(settings.work_dir / 'cache' / 'nipype', crashes, settings.stop_on_first_crash)
    from bidsapp.workflows.participant import ParticipantWorkflow

    graph = ParticipantWorkflow(work)
    threads = settings.omp_nthreads or max(1, min(8, settings.nprocs // len(waiting)))
    runs: dict[str, Run] = {}
    for folder, run in waiting.values():
        place = Place({'raw': folder / 'raw'}, folder / 'out', settings.seed, device, threads)
        survey = registry.files(run.modality).survey(run)
        graph.add(run, Todo(preproc=True), survey, place)
        clear_problems(run_folder(work, run))
        runs[node_name(run)] = run
    log.info('Preparing %d runs that were made like the scan asked for', len(waiting))
    plugin = engine(settings.plugin_file, settings.nprocs, settings.memory)
    failure = run_graph(graph, plugin, lambda name: clear_runs(work, [runs[name]]))
    for report in hand_over(crashes, settings.output_dir / 'logs', settings.without_places):
        log.info('what a step said when it failed: %s', report)
    done = {}
    for name, (folder, run) in waiting.items():
        problem = problems_left(run_folder(work, run))
        if problem is None and len(find_prepared(folder / 'out', run.modality)) != 1:
            problem = failure or Problem('its preparation was not finished; the log says more')
        if problem is not None:
            _say_left_out(name, problem)
        else:
            done[name] = folder
    clear_runs(work, [run for _, run in waiting.values()])
    return done


def averaged_label(
    task: Task[Any], case: Case, run: StandIn, options: Mapping[str, Any]
) -> dict[str, Path]:
    """Output.name → the label of ``case`` on the voxels of what stands for it, written once.

    On the run's own voxels it is the label as it is.
    """
    import torch

    assert task.label is not None
    likeness = likeness_of(task.modality)
    assert likeness is not None
    own = {output.name: case.files[output.name] for output in task.learnt}
    grid = likeness.grid(case, options)
    if grid.same:
        return own
    known = [[path.name, *state] for path, state in states([*own.values()]).items()]
    said = json.dumps([known, task.label.version])
    folder = run.folder / 'labels' / hashlib.sha256(said.encode()).hexdigest()[:16]
    paths = {name: folder / path.name for name, path in own.items()}
    if not all(path.is_file() for path in paths.values()):
        arrays = (task.label.averaged or averaged_outputs(task))(case, grid)
        for name, path in paths.items():
            array = np.asarray(arrays[name], np.float32)
            write_volume(path, array, torch.from_numpy(np.asarray(grid.affine)))
    return paths


def averaged_outputs(task: Task[Any]) -> Callable[[Case, LongerVoxels], Arrays]:
    """The commonest of labels, or the mean of maps in the mask, by Output.name."""

    def averaged(case: Case, grid: LongerVoxels) -> Arrays:
        mask = load_volume(case.files['mask']) > 0
        found = {}
        for output in task.learnt:
            values = load_volume(case.files[output.name])
            if output.labels:
                indices = [index for index, *_ in output.labels]
                found[output.name] = commonest(values, indices, mask, grid)
            else:
                found[output.name] = mean_map(values, mask, grid)
        return found

    return averaged
