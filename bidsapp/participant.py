"""The participant story: find runs → see what is missing → run the graph → draw pages → conclude.

The exit code follows from the files that were promised, never from a scheduler's word.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidsapp import __version__, tasks
from bidsapp.bids.query import Run, find_runs, read_filters, subjects_of
from bidsapp.bids.samples import open_image, read_numbers
from bidsapp.bids.write import files_of, write_dataset, write_text
from bidsapp.core import (
    Acquisition,
    BadData,
    MissingInput,
    NothingSelected,
    Problem,
    TryAgain,
    Unavailable,
)
from bidsapp.interfaces.outputs import promised_by_preprocessing
from bidsapp.learn.cards import bundled_models, load_card, newest_model, training_participants
from bidsapp.physics import gradients
from bidsapp.workflows.execution import clear_problems, configure, engine, problems_left, run_graph
from bidsapp.workflows.run import Model, Todo

if TYPE_CHECKING:
    from bidsapp.settings import Settings

log = logging.getLogger('transfermri')


@dataclass(slots=True)
class RunPlan:
    """One run, what it can give, what is promised and what is missing."""

    run: Run
    acquisition: Acquisition | None = None
    problem: Problem | None = None
    warnings: list[str] = field(default_factory=list)
    unavailable: dict[str, str] = field(default_factory=dict)  #: task → why it has no reference
    promised: list[Path] = field(default_factory=list)
    todo: Todo = field(default_factory=Todo)
    size_gb: float = 0.0

    def missing(self, root: Path) -> list[Path]:
        """Promised files, below ``root``, that are not there."""
        return [path for path in self.promised if not (root / path).is_file()]


def run(settings: Settings, log_file: Path) -> int:
    """Tell the story; returns the exit code."""
    device = chosen_device(settings)
    models = models_to_apply(settings)
    plans = [plan(found, settings, models) for found in select_runs(settings)]
    describe(plans, settings, models)
    if settings.dry_run:
        return conclude_dry_run(plans)
    write_dataset(settings.output_dir, settings.bids_dir)
    write_citation(settings.output_dir)
    if not settings.reports_only:
        execute(plans, settings, device)
    draw_pages(plans, settings)
    code = conclude(plans, settings, log_file)
    if code == 0 and settings.clean_workdir:
        shutil.rmtree(settings.work_dir, ignore_errors=True)
    return code


def select_runs(settings: Settings) -> list[Run]:
    """The runs that the labels and filters select. Raises NothingSelected."""
    present = subjects_of(settings.bids_dir)
    wanted = [s for s in settings.participants if s in present] or (
        [] if settings.participants else present
    )
    if absent := [s for s in settings.participants if s not in present]:
        shown = ', '.join(present[:8]) + (' …' if len(present) > 8 else '')
        message = f'No participant {", ".join(absent)} in {settings.bids_dir}; it has {shown}.'
        if not wanted:
            raise NothingSelected(message)
        log.warning(message)
    filters = read_filters(settings.filter_file)
    return find_runs(settings.bids_dir, wanted, settings.sessions, filters, settings.database_dir)


def chosen_device(settings: Settings) -> str:
    """The device to compute on; torch is only asked when CUDA is in question."""
    if settings.device == 'cpu':
        return 'cpu'
    from bidsapp.learn.predict import resolve_device

    device = resolve_device(settings.device)
    if settings.device == 'auto' and device == 'cpu':
        log.warning('No CUDA device is visible: computing on the CPU (--device cpu says so).')
    return device


def selected_tasks(settings: Settings) -> list[str]:
    """The tasks that were named, else all."""
    return list(settings.tasks) or tasks.names()


def models_to_apply(settings: Settings) -> dict[str, tuple[Path, dict[str, Any], set[str]]]:
    """Task → (folder, card, participants it has learnt from). Raises MissingInput.

    A model that was asked for and is not there is missing; with 'auto' a task without a model
    simply gets no prediction.
    """
    wanted = selected_tasks(settings)
    folders: dict[str, Path] = {}
    if settings.model in ('auto', 'bundled'):
        bundled = bundled_models()
        for task in wanted:
            newest = newest_model(settings.models, task) if settings.model == 'auto' else None
            if folder := newest or bundled.get(task):
                folders[task] = folder
        if settings.model == 'bundled' and not folders:
            raise MissingInput(
                'This version bundles no model for ' + ', '.join(wanted) + '. Fine-tune one with '
                '`group`, or give --model a folder with weights.safetensors and card.json.'
            )
    else:
        folder = Path(settings.model).absolute()
        card = load_card(folder)
        if card['task'] not in wanted:
            raise MissingInput(
                f'The model in {folder} was made for task {card["task"]}, which is not among '
                f'the tasks of this call ({", ".join(wanted)}).'
            )
        folders[card['task']] = folder
    return {t: (f, dict(load_card(f)), training_participants(f)) for t, f in folders.items()}


def plan(found: Run, settings: Settings, models: dict[str, Any]) -> RunPlan:
    """See what one run can give and what of it is not there yet."""
    made = RunPlan(found, problem=found.problem)
    if made.problem is None:
        try:
            look(made)
        except Problem as problem:
            made.problem = problem
    if made.problem is not None or made.acquisition is None:
        made.promised = promised_by_preprocessing(found.case.entities)
        return made
    promise(made, settings, models)
    return made


def look(made: RunPlan) -> None:
    """Read header and table: cheap, and enough to know what can be promised. Raises Problem."""
    files = made.run.case.files
    image = open_image(files['dwi'])
    volumes = image.shape[3] if len(image.shape) == 4 else 1
    bvecs, bvals, findings = gradients.examine(
        read_numbers(files['bvec']), read_numbers(files['bval']), volumes
    )
    if errors := [f.message for f in findings if f.severity == 'error']:
        raise BadData(f'{files["dwi"].name}: ' + '; '.join(errors) + '.')
    made.warnings += [f.message for f in findings]
    if 'PhaseEncodingDirection' not in made.run.metadata:
        made.warnings.append(
            'the metadata do not say the phase-encoding direction; eddy currents are corrected '
            'without assuming one'
        )
    table = gradients.from_fsl(bvecs, bvals, image.affine)
    made.acquisition = gradients.acquisition(table, 't1w' in files)
    voxels = float(image.shape[0]) * image.shape[1] * image.shape[2] * volumes
    made.size_gb = 4 * voxels / 2**30


def promise(made: RunPlan, settings: Settings, models: dict[str, Any]) -> None:
    """Fill in what this run promises, and what of it has to be made."""
    root, entities = settings.output_dir, made.run.case.entities
    assert made.acquisition is not None
    preprocessing = promised_by_preprocessing(entities)
    references: dict[str, str] = {}
    predictions: dict[str, Model] = {}
    made.promised = list(preprocessing)
    redo = not all((root / path).is_file() for path in preprocessing)
    for name in selected_tasks(settings):
        task = tasks.get(name)
        if task.derive is not None:
            try:
                source = task.reference(made.acquisition)
                files = files_of(entities, task.writes[0], source)
                made.promised += files
                if redo or not all((root / path).is_file() for path in files):
                    references[name] = source
            except Unavailable as reason:
                made.unavailable[name] = str(reason)
        if name in models:
            folder, card, learnt_from = models[name]
            files = [p for output in task.writes for p in files_of(entities, output, 'unet')]
            made.promised += files
            if redo or not all(written_by(root / p, card['sha256']) for p in files):
                seen = made.run.case.subject in learnt_from
                predictions[name] = Model(folder, card['sha256'], seen)
    made.todo = Todo(redo, references, predictions)


def written_by(path: Path, sha256: str) -> bool:
    """Is the file there and, as far as it can tell, made by this model?"""
    if not path.is_file():
        return False
    if path.suffix != '.json':
        return True
    try:
        sidecar: dict[str, Any] = json.loads(path.read_text(encoding='utf-8'))
    except ValueError:
        return False
    return sidecar.get('ModelSHA256') == sha256


def describe(plans: list[RunPlan], settings: Settings, models: dict[str, Any]) -> None:
    """Say what was found, which labels can be derived, and what will run."""
    log.info(
        '%d dMRI runs of %d participants', len(plans), len({p.run.case.subject for p in plans})
    )
    for made in plans:
        if made.problem is not None:
            log.error('%s: %s', made.run.name, made.problem)
            continue
        facts = made.acquisition
        assert facts is not None
        shells = ', '.join(f'{n} directions at b={b:.0f}' for b, n in facts.shells)
        log.info('%s: %s%s', made.run.name, shells, ', T1w' if facts.has_t1w else ', no T1w')
        for text in (*made.run.notes, *made.warnings):
            log.info('  %s', text)
        for name in selected_tasks(settings):
            if name in made.unavailable:
                log.info('  %s: no reference label: %s', name, made.unavailable[name])
        steps = ['preprocessing'] * made.todo.preproc
        steps += [f'{name} label ({source})' for name, source in made.todo.references.items()]
        steps += [f'{name} prediction' for name in made.todo.predictions]
        log.info('  to do: %s', ', '.join(steps) or 'nothing, all is there')
    without = [name for name in selected_tasks(settings) if name not in models]
    if without:
        log.info(
            'No model for %s: this run makes reference outputs only for that. Run `group`, then '
            '`participant` again.', ', '.join(without),
        )  # fmt: skip


def conclude_dry_run(plans: list[RunPlan]) -> int:
    """Nothing was written; problems that were seen already decide the code."""
    problems = [p.problem for p in plans if p.problem is not None]
    return common_code(len(plans) - len(problems), problems)


def execute(plans: list[RunPlan], settings: Settings, device: str) -> None:
    """Build one graph of all that is missing, run it, and collect what went wrong."""
    from bidsapp.workflows.participant import init_participant_wf

    active = [p for p in plans if p.problem is None and p.todo]
    if not active:
        return
    base = settings.work_dir / f'participant-{__version__}'
    plugin = engine(settings.plugin_file, settings.nprocs, settings.memory_gb)
    logs = settings.output_dir / 'logs'
    configure(settings.work_dir / 'cache' / 'nipype', logs, settings.stop_on_first_crash)
    graph = init_participant_wf(
        [(p.run, p.todo, p.size_gb) for p in active],
        settings.bids_dir,
        settings.output_dir,
        base,
        settings.seed,
        device,
        settings.omp_nthreads,
    )
    clear_problems(base)
    log.info('Working on %d runs in %s', len(active), base)
    failure = run_graph(graph, plugin)
    for made in active:
        if not made.missing(settings.output_dir) and not stale(made, settings.output_dir):
            continue
        found = problems_left(base / graph.name / graph.node_name(made.run.name))
        made.problem = found or failure or Problem('it was not finished; the log says more')


def stale(made: RunPlan, root: Path) -> bool:
    """Is a prediction still that of another model?"""
    for name, model in made.todo.predictions.items():
        for output in tasks.get(name).writes:
            sidecar = root / files_of(made.run.case.entities, output, 'unet')[0]
            if not written_by(sidecar, model.sha256):
                return True
    return False


def draw_pages(plans: list[RunPlan], settings: Settings) -> None:
    """A page a participant, from the files that are there; a page that fails stops nothing."""
    from bidsapp.reports.participant import participant_page

    for subject in sorted({p.run.case.subject for p in plans}):
        own = [p for p in plans if p.run.case.subject == subject]
        problems = {p.run.name: str(p.problem) for p in own if p.problem is not None}
        try:
            page = participant_page(settings.output_dir, subject, problems)
            log.info('page: %s', page)
        except Exception as error:  # a picture is not worth a participant
            log.error('sub-%s: the page could not be drawn: %s', subject, error)
            log.debug('', exc_info=True)
            for made in own:
                made.problem = made.problem or Problem(f'the page could not be drawn: {error}')


def common_code(n_finished: int, problems: list[Problem]) -> int:
    """Some finished and some failed → 1; none finished → their common code, or 1."""
    codes = {problem.exit_code for problem in problems}
    if not codes:
        return 0
    return codes.pop() if not n_finished and len(codes) == 1 else 1


def conclude(plans: list[RunPlan], settings: Settings, log_file: Path) -> int:
    """Compare what is there with what was promised, and say it in the last lines."""
    for made in plans:
        if made.problem is None and (gone := made.missing(settings.output_dir)):
            made.problem = MissingInput(f'{len(gone)} promised files are not there: {gone[0]} …')
    failed = [p for p in plans if p.problem is not None]
    for made in failed:
        log.error('FAILED %s: %s', made.run.name, made.problem)
    files = sum(len(p.promised) for p in plans if p.problem is None)
    log.info(
        '%d of %d runs finished, %d files in %s; log: %s',
        len(plans) - len(failed), len(plans), files, settings.output_dir, log_file,
    )  # fmt: skip
    if any(isinstance(p.problem, TryAgain) for p in failed):
        print('Start the same command again to go on.', file=sys.stderr)
    return common_code(len(plans) - len(failed), [p.problem for p in failed if p.problem])


def write_citation(root: Path) -> None:
    """Text for a methods section, with references."""
    from bidsapp.reports.citation import citation

    write_text(root / 'logs' / 'CITATION.md', citation())
