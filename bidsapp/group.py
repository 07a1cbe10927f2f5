"""The group story: gather samples → split → fit → evaluate → save the model.

One split for all tasks of a call: the same seed gives the same split, and a participant that is
held out of one task is held out of all.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp import __version__, registry
from bidsapp.bids.derivatives import write_dataset
from bidsapp.bids.filters import read_filters
from bidsapp.bids.prepared import choose_prepared, with_references
from bidsapp.bids.write import write_json, write_text
from bidsapp.core import Plan
from bidsapp.learn import cards
from bidsapp.learn.finetune import gather, make_card, scored
from bidsapp.learn.processors import use_processors
from bidsapp.learn.splits import MIN_PARTICIPANTS, SPLITS, make_split, read_split
from bidsapp.learn.tables import COLUMNS, explained, tsv
from bidsapp.problems import BadData, MissingInput, Problem, WrongUsage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bidsapp.core import Case, Checkpoint, Task
    from bidsapp.learn.finetune import Material
    from bidsapp.learn.inputs import Input
    from bidsapp.learn.state import State
    from bidsapp.learn.tables import Row
    from bidsapp.networks.base import Network
    from bidsapp.settings import Settings

log = logging.getLogger('transfermri')

#: Steps where --steps is not given, and the size of a batch.
STEPS, BATCH = 1000, 2
#: From random weights, and from weights that know something already.
LEARNING_RATE, FINE_RATE = 4e-3, 1e-3
#: What --freeze keeps as it was: rates of the network's parts.
FREEZE: Mapping[str, Mapping[str, float]] = {
    'none': {},
    'encoder': {'encoder': 0.0},
    'body': {'body': 0.0},
}


def run(settings: Settings, log_file: Path) -> int:
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
    for name in trained:
        try:
            made.append(train(registry.task(name), by_task[name], split, settings, device))
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


def draw_pages(names: Sequence[str], settings: Settings) -> int:
    """The pages again, from the files of the newest models."""
    from bidsapp.reports.group import group_page

    for name in names:
        if cards.newest_model(settings.models, name) is not None:
            log.info('page: %s', group_page(settings.output_dir, name))
    return 0


def refuse_what_is_not_there(settings: Settings, wanted: Sequence[str]) -> None:
    """Raises WrongUsage or MissingInput for weights that were asked for and do not exist."""
    modalities = {registry.tasks()[name] for name in wanted}
    if 'autoencoder' in settings.compare and not any(
        cards.autoencoder(settings.models, m) for m in modalities
    ):
        raise WrongUsage(
            '--compare autoencoder needs a pretrained autoencoder; the package has none, nor has '
            f'{settings.models}. Make one with `pretrain --objective autoencoder`; '
            '--compare scratch works.'
        )
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
        name: with_references(settings.output_dir, cases.get(task.modality, []), task.learnt)
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


def start_model(settings: Settings, task: str) -> Checkpoint | None:
    """The weights to start from: bundled where there are any, a folder, or none."""
    from bidsapp.learn.checkpoint import load

    if settings.init in ('auto', 'bundled'):
        folder = cards.bundled_model(registry.tasks()[task])
        return load(folder) if folder else None
    return None if settings.init == 'scratch' else load(Path(settings.init).absolute())


def other_starts(
    settings: Settings, start: Checkpoint | None, modality: str
) -> dict[str, Checkpoint | None]:
    """Arm → the weights it starts from, for each that --compare asks for."""
    from bidsapp.learn.checkpoint import load

    arms: dict[str, Checkpoint | None] = {}
    if 'scratch' in settings.compare and start is not None:
        arms['scratch'] = None
    folder = cards.autoencoder(settings.models, modality)
    if 'autoencoder' in settings.compare and folder is not None:
        arms['autoencoder'] = load(folder)
    return arms


def train(
    task: Task[Any],
    cases: Sequence[Case],
    split: Mapping[str, str],
    settings: Settings,
    device: str,
) -> Path:
    """Fit one task and save its model; returns the model's folder."""
    from bidsapp.learn.checkpoint import checkpoint_of

    own: Input = registry.input(task.modality)
    material = gather(
        task, cases, split, settings.options, settings.work_dir / f'inputs-{__version__}'
    )
    steps = settings.steps or STEPS
    plan = Plan(
        steps=steps, patch=own.network.patch, batch=BATCH, lr=FINE_RATE,
        rates=FREEZE[settings.freeze], seed=settings.seed, device=device,
        validate_every=max(1, min(100, steps // 6)),
    )  # fmt: skip
    start = start_model(settings, task.name)
    state_files = []

    def fitted(arm: str, start: Checkpoint | None, plan: Plan) -> tuple[Network, State, list[Row]]:
        from bidsapp.learn.fit import fit
        from bidsapp.learn.patches import PatchSource

        if start is None:
            plan = replace(plan, lr=LEARNING_RATE)
        state_files.append(state_path(task, plan, start, material, settings))
        source = PatchSource(material.learnt_from, plan.patch)
        network, state = fit(
            own, task.head, source, material.samples['val'], start, plan, state_files[-1], log.info
        )
        return network, state, scored(task, arm, network, material, device)

    network, state, rows = fitted('scratch' if start is None else 'finetuned', start, plan)
    for arm, other in other_starts(settings, start, task.modality).items():
        log.info('%s: the same from %s, to compare', task.name, arm)
        rows = rows + fitted(arm, other, replace(plan, rates={}))[2]
    if start is not None and task.name in start.heads and settings.init in ('auto', 'bundled'):
        from bidsapp.learn.predict import network_of

        as_it_comes = network_of(start, [task.name])
        rows = rows + scored(task, 'bundled', as_it_comes, material, device)
    card = make_card(task, plan, start, material, state.best_step, rows, split, settings.freeze)
    folder = save_model(checkpoint_of(network, card), task, rows, state.log, split, settings)
    for state_file in state_files:
        state_file.unlink(missing_ok=True)
    log_result(task, rows)
    return folder


def state_path(
    task: Task[Any], plan: Plan, start: Checkpoint | None, material: Material, settings: Settings
) -> Path:
    """Where a stopped fit of exactly this plan, start and data is kept."""
    main = registry.files(task.modality).prepared.main
    files = {s: [str(c.files[main]) for c in g] for s, g in material.groups.items()}
    identity = json.dumps([
        __version__, task.name, cards.described(plan, settings.freeze),
        start and start.card['sha256'], dict(settings.options), files,
    ])  # fmt: skip
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return settings.work_dir / 'group' / f'{task.name}-{digest}.safetensors'


def save_model(
    checkpoint: Checkpoint,
    task: Task[Any],
    rows: Sequence[Row],
    steps: Sequence[Mapping[str, float]],
    split: Mapping[str, str],
    settings: Settings,
) -> Path:
    """The next version's folder, complete at once; then the group files at the root."""
    from bidsapp.learn.checkpoint import save_next
    from bidsapp.reports.group import group_page, learning_curve

    def add(staging: Path) -> None:
        (staging / 'metrics.tsv').write_text(tsv(COLUMNS, rows))
        (staging / cards.SPLIT).write_text(
            tsv(('participant_id', 'split'), [(f'sub-{s}', v) for s, v in sorted(split.items())])
        )
        log_rows = [(r['step'], f'{r["loss"]:.6g}', r.get('validation', '')) for r in steps]
        (staging / 'log.tsv').write_text(tsv(('step', 'loss', 'validation'), log_rows))
        learning_curve(staging / 'log.tsv', staging / 'curve.png', task.head.score)

    folder = save_next(checkpoint, settings.models, task.name, add)
    words = {m: w for own in registry.tasks_of(task.modality) for m, w in own.head.words.items()}
    write_text(settings.output_dir / f'group_{task.name}.tsv', tsv(COLUMNS, rows))
    write_json(settings.output_dir / f'group_{task.name}.json', explained(words))
    log.info('page: %s', group_page(settings.output_dir, task.name))
    return folder


def log_result(task: Task[Any], rows: Sequence[Row]) -> None:
    """The deciding metric on each split, in the log."""
    score = task.head.score
    for arm in dict.fromkeys(row[2] for row in rows):
        for split in SPLITS:
            mean = np.mean([row[5] for row in rows if row[1:4] == (split, arm, score)])
            log.info('%s, %s: %s on %s %.4g', task.name, arm, score, split, mean)
