"""The participant story: find runs → see what is missing → run the graph → draw pages → conclude.

The exit code follows from the files that were promised, never from a scheduler's word.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

from bidsapp import registry
from bidsapp.bids.derivatives import write_dataset
from bidsapp.bids.provenance import UNKNOWN
from bidsapp.bids.write import write_text
from bidsapp.choice import chosen_device, models_to_apply, select_runs, selected_tasks
from bidsapp.core import PARTS
from bidsapp.hidden import hidden
from bidsapp.problems import MissingInput, Problem, TryAgain
from bidsapp.workflows.basis import Asked
from bidsapp.workflows.disk import look_at_disks
from bidsapp.workflows.execution import (
    absences_left,
    clear_problems,
    configure,
    engine,
    hand_over,
    log_memory,
    problems_left,
    run_graph,
)
from bidsapp.workflows.participant import (
    clear_participant,
    clear_runs,
    init_participant_wf,
    make_room,
    node_name,
    run_folder,
)
from bidsapp.workflows.plan import (
    Models,
    RunPlan,
    labelled_files,
    plan_run,
    predicted_files,
    predictions_of,
)
from bidsapp.workflows.preparation import Place

if TYPE_CHECKING:
    from pathlib import Path

    from bidsapp.bids.runs import Run
    from bidsapp.settings import Settings

log = logging.getLogger('transfermri')


def run(settings: Settings, log_file: Path | None) -> int:
    """Tell the story; returns the exit code."""
    device = chosen_device(settings)
    models = models_to_apply(settings)
    redo = frozenset(PARTS if settings.force else settings.redo)
    wanted = selected_tasks(settings)
    asked = Asked(settings.output_dir, wanted, settings.roots, settings.seed, redo)
    plans = [plan_run(found, asked, models) for found in select_runs(settings)]
    describe(plans, settings, models)
    if not settings.reports_only:
        at_once = max(1, settings.nprocs // threads(plans, settings))
        look_at_disks(plans, settings.work_dir, settings.output_dir, at_once)
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
        for part, why in made.todo.again.items():
            if why != UNKNOWN:
                log.info('  %s again: %s', part, why)
        log.info('  to do: %s', ', '.join(made.todo.parts) or 'nothing, all is there')
    if old := sum(UNKNOWN in made.todo.again.values() for made in plans):
        log.info(
            'Outputs of %d runs do not say what they were made from, as those of earlier versions '
            'do not: they are made again.', old,
        )  # fmt: skip
    found = {made.run.modality for made in plans}
    own = (name for name in selected_tasks(settings) if registry.tasks()[name] in found)
    without = [name for name in own if name not in models]
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


def threads(plans: list[RunPlan], settings: Settings) -> int:
    """Threads of one step: what was asked for, else what ``--nprocs`` leaves for each run."""
    active = sum(p.problem is None and bool(p.todo) for p in plans)
    return settings.omp_nthreads or max(1, min(8, settings.nprocs // max(1, active)))


def execute(plans: list[RunPlan], settings: Settings, device: str) -> None:
    """Build one graph of all that is missing, run it, and collect what went wrong."""
    active = [p for p in plans if p.problem is None and p.todo]
    if not active:
        return
    work = settings.work_dir
    plugin = engine(settings.plugin_file, settings.nprocs, settings.memory)
    logs = settings.output_dir / 'logs'
    crashes = hidden(work / 'crashes')
    configure(work / 'cache' / 'nipype', crashes, settings.stop_on_first_crash)
    place = Place(
        roots=settings.roots,
        out_root=settings.output_dir,
        seed=settings.seed,
        device=device,
        omp_nthreads=threads(plans, settings),
    )
    known = [(p.run, p.todo, p.survey) for p in active if p.survey is not None]
    graph = init_participant_wf(known, work, place)
    for made in active:  # another call may be at work on other runs in the same place
        clear_problems(run_folder(work, made.run))
        make_room(settings.output_dir, made.run, made.todo, made.promised)
    if settings.force or 'preprocessing' in settings.redo:
        clear_runs(work, [made.run for made in active])
    log.info('Working on %d runs in %s', len(active), work)
    log_memory(graph.largest_need(), plugin)
    runs = {node_name(made.run): made.run for made in active}
    failure = run_graph(graph, plugin, lambda name: clear_finished(work, runs[name]))
    for report in hand_over(crashes, logs, settings.without_places):
        log.info('what a step said when it failed: %s', report)
    for made in active:
        made.problem = problems_left(run_folder(work, made.run))
        for absent in absences_left(run_folder(work, made.run)):
            log.warning('%s: %s', made.run.name, made.settle(**absent))
    if settings.stop_on_first_crash and (first := [p for p in active if p.problem is not None]):
        failure = Problem(f'not finished: --stop-on-first-crash, and {first[0].run.name} failed')
    for made in active:
        if made.problem is None and made.missing(settings.output_dir):
            made.problem = failure or Problem('it was not finished; the log says more')
    clear_runs(work, [made.run for made in active if made.problem is None])


def clear_finished(work: Path, run: Run) -> None:
    """Take away what a run's steps left, unless they have noted something still to be read."""
    folder = run_folder(work, run)
    if problems_left(folder) is None and not absences_left(folder):
        clear_runs(work, [run])


def log_warnings(plans: list[RunPlan], settings: Settings, models: Models) -> None:
    """What the sidecars of labels and predictions warn of and could not be known before."""
    from bidsapp.reports.written import sidecar

    for made in plans:
        case = made.run.case
        files = labelled_files(case, made.todo.references)
        for name in predictions_of(made, models):
            files += predicted_files(case.entities, name)
        said = {
            str(text): None
            for path in files
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
        problems = {
            p.run.name: settings.without_places(str(p.problem))
            for p in own if p.problem is not None
        }  # fmt: skip
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


def conclude(plans: list[RunPlan], settings: Settings, log_file: Path | None) -> int:
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
