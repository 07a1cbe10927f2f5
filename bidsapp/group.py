"""The group story: gather samples → split → fit → evaluate → save the model.

One split for all tasks of a call: the same seed gives the same split, and a participant that is
held out of one task is held out of all.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from bidsapp import registry
from bidsapp.bids.derivatives import write_dataset
from bidsapp.bids.filters import read_filters
from bidsapp.bids.prepared import choose_prepared, with_references
from bidsapp.learn import cards
from bidsapp.learn.processors import use_processors
from bidsapp.learn.published import recipe_of
from bidsapp.learn.splits import MIN_PARTICIPANTS, SPLITS, make_split, read_split
from bidsapp.problems import BadData, MissingInput, Problem, WrongUsage
from bidsapp.standins import asked_of, stand_ins
from bidsapp.stopping import look
from bidsapp.training import refuse_seen, train

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from bidsapp.core import Case
    from bidsapp.settings import Settings
    from bidsapp.standins import StandIns

log = logging.getLogger('transfermri')


def run(settings: Settings, log_file: Path | None) -> int:
    """Tell the story; returns the exit code."""
    wanted = list(settings.tasks) or [
        name for name in registry.tasks() if registry.task(name).label is not None
    ]
    refuse_what_is_not_there(settings, wanted)
    by_task = labelled(settings, wanted)
    trained, skipped = trainable(by_task, bool(settings.tasks))
    subjects = {c.subject for found in by_task.values() for c in found}
    if settings.split_file is None:
        split = make_split(sorted(subjects), settings.seed)
    else:
        split = read_split(settings.split_file)
    for name in trained:
        count = {s: sum(split.get(c.subject) == s for c in by_task[name]) for s in SPLITS}
        log.info('%s: %d train, %d val, %d test runs', name, *(count[s] for s in SPLITS))
    refuse_seen({name: by_task[name] for name in trained}, split, settings)
    if settings.dry_run:
        return MissingInput.exit_code if skipped and settings.tasks else 0
    if settings.reports_only:
        return draw_pages(trained, settings)
    from bidsapp.learn.predict import resolve_device

    device = resolve_device(settings.device)
    use_processors(settings.nprocs, device)
    write_dataset(settings.output_dir, settings.bids_dir)
    failures: list[Problem] = []
    made = []
    standing = standing_for({name: by_task[name] for name in trained}, settings, device)
    for name in trained:
        look()
        task = registry.task(name)
        try:
            own = standing[task.modality]
            made.append(train(task, by_task[name], split, settings, device, own))
        except (BadData, MissingInput) as problem:
            log.error('FAILED %s: %s', name, problem)
            failures.append(problem)
    for folder in made:
        log.info('model: %s', folder)
    log.info('%d of %d tasks trained; log: %s', len(made), len(wanted), log_file)
    if failures:
        return 1 if made else failures[0].exit_code
    if skipped and settings.tasks:
        return MissingInput.exit_code if not made else 1
    return 0


def standing_for(
    by_task: Mapping[str, Sequence[Case]], settings: Settings, device: str
) -> dict[str, StandIns]:
    """By modality, what is seen in the place of the runs of all tasks; made once for all."""
    runs: dict[str, dict[tuple[Path, ...], Case]] = {}
    for name, cases in by_task.items():
        task = registry.task(name)
        kinds = registry.files(task.modality).prepared.names
        own = runs.setdefault(task.modality, {})
        own |= {tuple(case.files[kind] for kind in kinds): case for case in cases}
    return {m: stand_ins(m, [*own.values()], settings, device) for m, own in runs.items()}


def draw_pages(names: Sequence[str], settings: Settings) -> int:
    """The pages again, from the files of the newest models."""
    from bidsapp.reports.group import group_page

    for name in names:
        if cards.newest_model(settings.models, name) is not None:
            log.info('page: %s', group_page(settings.output_dir, name))
    return 0


def refuse_what_is_not_there(settings: Settings, wanted: Sequence[str]) -> None:
    """Raises Problem for weights, a recipe, or a scan to be like, that are asked for in vain."""
    modalities = {registry.tasks()[name] for name in wanted}
    for modality in modalities:
        for like in asked_of(modality, settings.options).values():
            log.info('what networks see is made like a scan of: %s', like['words'])
    if 'autoencoder' in settings.compare and not any(
        cards.autoencoder(settings.models, m) for m in modalities
    ):
        raise WrongUsage(
            '--compare autoencoder needs a pretrained autoencoder; the package has none, nor has '
            f'{settings.models}. Make one with `pretrain --objective autoencoder`; '
            '--compare scratch works.'
        )
    if settings.freeze == 'published':
        for name in wanted:
            recipe_of(registry.task(name))
    if settings.init == 'bundled' and not any(cards.bundled_model(m) for m in modalities):
        raise MissingInput('--init bundled: this version bundles no model. Use --init scratch.')


def labelled(settings: Settings, wanted: Sequence[str]) -> dict[str, list[Case]]:
    """Task → the selected runs that have its reference label, with that among their files.

    None for a task that is learnt by pretraining only. Raises MissingInput or NothingSelected where
    no modality of the tasks has a prepared run.
    """
    filters = read_filters(settings.filter_file)
    problems: list[Problem] = []
    cases: dict[str, list[Case]] = {}
    for modality in sorted({registry.tasks()[name] for name in wanted}):
        try:
            cases[modality] = choose_prepared(
                settings.output_dir, modality, settings.participants, settings.sessions, filters
            )
        except Problem as problem:
            problems.append(problem)
    if problems and not cases:
        raise problems[0]
    own = {name: registry.task(name) for name in wanted}
    return {
        name: with_references(
            settings.output_dir, cases.get(task.modality, []), task, dict(settings.derivatives)
        )
        if task.label
        else []
        for name, task in own.items()
    }


def trainable(by_task: Mapping[str, Sequence[Case]], named: bool) -> tuple[list[str], list[str]]:
    """Tasks with enough participants, and the others. Raises MissingInput if none has."""
    trained, skipped = [], []
    for name, found in by_task.items():
        n = len({case.subject for case in found})
        if n >= MIN_PARTICIPANTS:
            trained.append(name)
            continue
        skipped.append(name)
        log.warning(
            '%s: %d participants have a reference label; at least %d are needed, one each to '
            'learn from, to choose by and to hold out. The task is %s.',
            name, n, MIN_PARTICIPANTS, 'refused' if named else 'skipped',
        )  # fmt: skip
    if not trained:
        raise MissingInput(
            'No task can be trained: fewer than three participants have its labels. Run the '
            'participant level on more participants, or see its log for why labels are missing.'
        )
    return trained, skipped
