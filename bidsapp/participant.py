"""The participant story: find runs → see what is missing → run the graph → draw pages → conclude.

The exit code follows from the files that were promised, never from a scheduler's word.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bidsapp import registry
from bidsapp.bids.dataset import select, subjects_of
from bidsapp.bids.derivatives import write_dataset
from bidsapp.bids.filters import read_filters
from bidsapp.bids.search import find_runs, say_what_is_not_used, without_run
from bidsapp.bids.write import write_text
from bidsapp.learn.cards import bundled_models, load_card, newest_model, training_participants
from bidsapp.problems import MissingInput, NothingSelected, Problem, TryAgain
from bidsapp.workflows.execution import (
    clear_problems,
    configure,
    engine,
    log_memory,
    problems_left,
    run_graph,
)
from bidsapp.workflows.participant import (
    clear_participant,
    clear_runs,
    init_participant_wf,
    run_folder,
)
from bidsapp.workflows.plan import (
    Models,
    RunPlan,
    plan_run,
    predicted_files,
    predictions_of,
    stale,
)
from bidsapp.workflows.preparation import Place

if TYPE_CHECKING:
    from bidsapp.bids.runs import Run
    from bidsapp.settings import Settings

log = logging.getLogger('transfermri')


def run(settings: Settings, log_file: Path) -> int:
    """Tell the story; returns the exit code."""
    device = chosen_device(settings)
    models = models_to_apply(settings)
    wanted = selected_tasks(settings)
    plans = [
        plan_run(found, settings.output_dir, wanted, models) for found in select_runs(settings)
    ]
    describe(plans, settings, models)
    if settings.dry_run:
        return conclude_dry_run(plans)
    write_dataset(settings.output_dir, settings.bids_dir, dict(settings.derivatives))
    write_citation(settings.output_dir)
    if not settings.reports_only:
        execute(plans, settings, device)
        log_warnings(plans, settings, models)
    draw_pages(plans, settings)
    code = conclude(plans, settings, log_file)
    if settings.clean_workdir:
        clean(plans, settings)
    return code


def select_runs(settings: Settings) -> list[Run]:
    """The runs that the labels and filters select, and a problem for each label without one.

    Raises NothingSelected if nobody who was asked for is there, or nothing is left of anybody.
    """
    root, asked = settings.bids_dir, settings.participants
    present = subjects_of(root)
    wanted = tuple(s for s in asked or present if s in present)
    if not wanted:
        shown = ', '.join(present[:8]) + (' …' if len(present) > 8 else '')
        raise NothingSelected(f'No participant {", ".join(asked)} in {root}; it has {shown}.')
    filters = read_filters(settings.filter_file)
    chosen = replace(select(root, wanted, settings.sessions, filters), options=settings.options)
    modalities = modalities_of(selected_tasks(settings))
    say_what_is_not_used(chosen, modalities)
    runs = find_runs(chosen, modalities, dict(settings.derivatives))
    return runs + without_run(chosen, asked, modalities, runs)


def modalities_of(tasks: list[str]) -> list[str]:
    """The modalities of these tasks, in alphabetical order."""
    return sorted({registry.tasks()[name] for name in tasks})


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
    return list(settings.tasks) or list(registry.tasks())


def models_to_apply(settings: Settings) -> Models:
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
        heads = load_card(folder)['heads']
        folders = {task: folder for task in wanted if task in heads}
        if not folders:
            raise MissingInput(
                f'The model in {folder} was made for {", ".join(heads)}; this call is about '
                f'{", ".join(wanted)}.'
            )
    here = {t: f.resolve().is_relative_to(settings.models.resolve()) for t, f in folders.items()}
    return {
        t: (f, dict(load_card(f)), training_participants(f) if here[t] else None)
        for t, f in folders.items()
    }


def describe(plans: list[RunPlan], settings: Settings, models: Models) -> None:
    """Say what was found, which labels can be derived, and what will run."""
    people = len({p.run.case.subject for p in plans})
    log.info('%s of %d participants', counted(plans), people)
    for made in plans:
        if made.survey is None:
            log.error('%s: %s', made.run.name, made.problem)
            continue
        log.info('%s: %s', made.run.name, made.survey.acquisition.words)
        for text in (*made.run.notes, *made.warnings, *made.survey.will):
            log.info('  %s', text)
        for name in selected_tasks(settings):
            if name in made.unavailable:
                log.info('  %s: no reference label: %s', name, made.unavailable[name])
            if name in made.inapplicable:
                log.info('  %s: no prediction: %s', name, made.inapplicable[name])
        steps = ['preprocessing'] * made.todo.preproc
        steps += [f'{name} label ({source})' for name, source in made.todo.references.items()]
        steps += [f'{name} prediction' for name in made.todo.predictions]
        log.info('  to do: %s', ', '.join(steps) or 'nothing, all is there')
    without = [name for name in selected_tasks(settings) if name not in models]
    if never := [name for name in without if registry.task(name).label is None]:
        log.info('No model for %s, which `pretrain` alone can make.', ', '.join(never))
    if without := [name for name in without if name not in never]:
        log.info(
            'No model for %s: this run makes reference outputs only for that. Run `group`, then '
            '`participant` again.', ', '.join(without),
        )  # fmt: skip


def counted(plans: list[RunPlan]) -> str:
    """How many runs there are of each modality: '8 dMRI runs'."""
    found = [p.run.modality for p in plans]
    words = {m: registry.files(m).words for m in dict.fromkeys(found)}
    return ' and '.join(f'{found.count(m)} {name} runs' for m, name in words.items())


def conclude_dry_run(plans: list[RunPlan]) -> int:
    """Nothing was written; problems that were seen already decide the code."""
    problems = [p.problem for p in plans if p.problem is not None]
    return common_code(len(plans) - len(problems), problems)


def execute(plans: list[RunPlan], settings: Settings, device: str) -> None:
    """Build one graph of all that is missing, run it, and collect what went wrong."""
    active = [p for p in plans if p.problem is None and p.todo]
    if not active:
        return
    work = settings.work_dir
    plugin = engine(settings.plugin_file, settings.nprocs, settings.memory)
    logs = settings.output_dir / 'logs'
    configure(work / 'cache' / 'nipype', logs, settings.stop_on_first_crash)
    place = Place(
        roots={'raw': settings.bids_dir, **dict(settings.derivatives)},
        out_root=settings.output_dir,
        seed=settings.seed,
        device=device,
        omp_nthreads=settings.omp_nthreads or max(1, min(8, settings.nprocs // len(active))),
    )
    known = [(p.run, p.todo, p.survey) for p in active if p.survey is not None]
    graph = init_participant_wf(known, work, place)
    for made in active:  # another call may be at work on other runs in the same place
        clear_problems(run_folder(work, made.run))
    log.info('Working on %d runs in %s', len(active), work)
    log_memory(graph.largest_need(), plugin)
    failure = run_graph(graph, plugin)
    for made in active:
        if not made.missing(settings.output_dir) and not stale(made, settings.output_dir):
            continue
        found = problems_left(run_folder(work, made.run))
        made.problem = found or failure or Problem('it was not finished; the log says more')


def log_warnings(plans: list[RunPlan], settings: Settings, models: Models) -> None:
    """What the sidecars of predictions warn of and could not be known before, such as the noise."""
    from bidsapp.reports.written import sidecar

    for made in plans:
        said = {
            str(text): None
            for name in predictions_of(made, models)
            for path in predicted_files(made.run.case.entities, name)
            if path.name.endswith('.nii.gz')
            for text in sidecar(settings.output_dir / path).get('Warnings', [])
        }  # fmt: skip
        for text in said:
            if text not in made.warnings:
                log.warning('%s: %s', made.run.name, text)


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


def clean(plans: list[RunPlan], settings: Settings) -> None:
    """Remove what participants left in the work folder; one of whom a run failed goes on there."""
    failed = {p.run.case.subject for p in plans if p.problem is not None}
    finished = [p.run for p in plans if p.run.case.subject not in failed]
    if settings.sessions or settings.filter_file:  # another call may be at work on their other runs
        clear_runs(settings.work_dir, finished)
    else:
        for subject in {run.case.subject for run in finished}:
            clear_participant(settings.work_dir, subject)


def write_citation(root: Path) -> None:
    """Text for a methods section, with references."""
    from bidsapp.reports.citation import citation

    write_text(root / 'logs' / 'CITATION.md', citation())
