"""One task of the group story: its start, its fit unless that was done before, its model.

A task that was trained by this plan on these data is known by what its card says, so a call that is
started again goes on where it was stopped and makes no model twice.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace
from os.path import relpath
from typing import TYPE_CHECKING, Any

from bidsapp import __version__, registry
from bidsapp.bids.identity import raw_scans, scans_of_person
from bidsapp.bids.write import write_json, write_text
from bidsapp.core import Plan
from bidsapp.learn import cards
from bidsapp.learn.finetune import gather, make_card, ranges_of, scored, scored_classical
from bidsapp.learn.inputs import states, with_network_of
from bidsapp.learn.processors import nondeterminism
from bidsapp.learn.published import as_published, recipe_of
from bidsapp.learn.seen import FLAG, FLAG_WORDS, about_seen, flagged, flags, was_seen
from bidsapp.learn.splits import SPLITS
from bidsapp.learn.tables import COLUMNS, explained, tsv
from bidsapp.problems import WrongUsage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from bidsapp.bids.identity import Scan
    from bidsapp.core import Case, Checkpoint, Task
    from bidsapp.learn.finetune import Material
    from bidsapp.learn.inputs import Input
    from bidsapp.learn.state import State
    from bidsapp.learn.tables import Row
    from bidsapp.networks.base import Network
    from bidsapp.settings import Settings
    from bidsapp.standins import StandIns

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
    'published': {},  # the modality's own: `learn.published`
}


def start_card(settings: Settings, task: str) -> Mapping[str, Any] | None:
    """The card of the weights to start from, if any."""
    folder = cards.start_folder(settings.init, registry.tasks()[task])
    return cards.load_card(folder) if folder else None


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
    standing: StandIns,
) -> Path:
    """Fit one task and save its model, unless it is there; returns the model's folder.

    ``standing``: what is seen in the place of runs.
    """
    from bidsapp.learn.checkpoint import checkpoint_of, start_model
    from bidsapp.learn.predict import network_of

    start = start_model(settings.init, task.modality)
    plan = plan_of(task, start, settings, device)
    if settings.freeze == 'published':
        count = sum(split.get(case.subject) == 'train' for case in cases)
        plan = as_published(plan, recipe_of(task), start, count, settings.steps)
    others = other_starts(settings, start, task.modality)
    starts = [start, *others.values()]
    key = identity(task, cases, split, plan, starts, settings, standing.asked)
    if (folder := trained_before(settings, task.name, key)) is not None:
        log.info('%s: %s was trained by this plan on these data: not again', task.name, folder)
    else:
        kept = settings.work_dir / f'inputs-{__version__}'
        instead = standing.of(task, cases)
        material = gather(task, cases, split, settings.options, kept, instead)
        scans = raw_scans(task.modality, material.groups, settings.output_dir, settings.roots)
        arm = 'scratch' if start is None else 'finetuned'
        states_at = settings.work_dir / 'group' / key
        own = with_network_of(registry.input(task.modality), start)
        network, state, rows = fit_arm(task, own, arm, start, plan, material, scans, states_at)
        for arm, other in others.items():
            log.info('%s: the same from %s, to compare', task.name, arm)
            free = replace(
                plan, rates={}, rest=1.0, lr=LEARNING_RATE if other is None else FINE_RATE
            )
            rows += fit_arm(task, own, arm, other, free, material, scans, states_at)[2]
        if start is not None and task.name in start.heads and settings.init in ('auto', 'bundled'):
            heads = [name for name in (task.name, *task.uses) if name in start.heads]
            rows += scored(task, 'bundled', network_of(start, heads), material, device)
        rows += scored_classical(task, material)
        files = {s: [f and f[0] for _, f in found] for s, found in scans.items()}
        seen = {
            **about_seen(files, None if start is None else start.card), 'fitted': key,
            **standing.described, **(ranges_of(task, material) if standing.asked else {}),
        }  # fmt: skip
        best, freeze = state.best_step, settings.freeze
        if start is not None and not best:
            log.warning('%s: no step was better than the start, whose weights are kept', task.name)
        card = make_card(task, plan, start, material, best, rows, split, freeze, seen)
        folder = save_model(checkpoint_of(network, card), task, rows, state.log, split, settings)
        log_result(task, rows)
    for state_file in (settings.work_dir / 'group').glob(f'{key}-*.safetensors'):
        state_file.unlink(missing_ok=True)
    publish(settings.output_dir, task.name, folder)
    return folder


def plan_of(task: Task[Any], start: Checkpoint | None, settings: Settings, device: str) -> Plan:
    """How a task is fitted from its start."""
    own = with_network_of(registry.input(task.modality), start)
    steps = settings.steps or STEPS
    return Plan(
        steps=steps, patch=own.network.patch, batch=own.network.batch or BATCH,
        lr=LEARNING_RATE if start is None else FINE_RATE,
        rates=FREEZE[settings.freeze], seed=settings.seed, device=device,
        validate_every=max(1, min(100, steps // 6)),
    )  # fmt: skip


def fit_arm(
    task: Task[Any],
    own: Input,
    arm: str,
    start: Checkpoint | None,
    plan: Plan,
    material: Material,
    scans: Mapping[str, Sequence[Scan]],
    states_at: Path,
) -> tuple[Network, State, list[Row]]:
    """Fit from one start; the network at its best step, how it went, and its rows of the table."""
    from bidsapp.learn.fit import fit
    from bidsapp.learn.patches import PatchSource

    judges = [one.sample for one in material.seen('val')]
    with nondeterminism(plan.device) as found:
        network, state = fit(
            own, task.head, PatchSource(material.learnt_from, plan.patch),
            judges, start, plan, states_at.with_name(f'{states_at.name}-{arm}.safetensors'),
            log.info, material.written(task),
        )  # fmt: skip
    if found:
        log.warning(
            '%s, %s: %s on %s: fitted again, the weights will differ a little', task.name, arm,
            ', '.join(found), plan.device,
        )  # fmt: skip
    rows = scored(task, arm, network, material, plan.device)
    people = {c.subject: scans_of_person(*f) for c, f in scans['test'] if f is not None}
    return network, state, rows + flags(arm, None if start is None else start.card, people)


def identity(
    task: Task[Any],
    cases: Sequence[Case],
    split: Mapping[str, str],
    plan: Plan,
    starts: Sequence[Checkpoint | None],
    settings: Settings,
    asked: Mapping[str, Any] | None = None,
) -> str:
    """What exactly this plan, these starts and data are called, on whatever device.

    ``asked``: what inputs are like, in the place of the option that says where that is to be found.
    """
    root = settings.output_dir
    files = {
        s: [
            {relpath(path, root): state for path, state in states(own).items()}
            for own in ([*case.files.values()] for case in cases if split.get(case.subject) == s)
        ]
        for s in SPLITS
    }
    said = json.dumps([
        __version__, cards.described(replace(plan, device='any'), settings.freeze),
        [start and start.card['sha256'] for start in starts], settings.compare,
        {**settings.options, **(asked or {})}, files,
    ])  # fmt: skip
    return f'{task.name}-{hashlib.sha256(said.encode()).hexdigest()[:16]}'


def trained_before(settings: Settings, task: str, key: str) -> Path | None:
    """The newest model of a task, if it is of this very plan and data."""
    return cards.fitted_before(settings.models, task, key)


def refuse_seen(
    by_task: Mapping[str, Sequence[Case]], split: Mapping[str, str], settings: Settings
) -> None:
    """Raises WrongUsage where the split file holds out whom the start has learnt from."""
    if settings.split_file is None:
        return
    for name, cases in by_task.items():
        if (card := start_card(settings, name)) is None:
            continue
        test = {'test': [c for c in cases if split.get(c.subject) == 'test']}
        found = raw_scans(registry.task(name).modality, test, settings.output_dir, settings.roots)[
            'test'
        ]
        known = {c.subject for c, f in found if f and was_seen(card, scans_of_person(*f))}
        if known:
            raise WrongUsage(
                f'{settings.split_file} holds out {", ".join(f"sub-{s}" for s in sorted(known))} '
                f'as test, but {card["name"]} {card["version"]}, from which {name} starts, has '
                'learnt from them or was chosen by them. Put them into train or val, or choose '
                'another --init.'
            )


def save_model(
    checkpoint: Checkpoint,
    task: Task[Any],
    rows: Sequence[Row],
    steps: Sequence[Mapping[str, float]],
    split: Mapping[str, str],
    settings: Settings,
) -> Path:
    """The next version's folder, complete at once."""
    from bidsapp.learn.checkpoint import save_next
    from bidsapp.reports.group import learning_curve

    def add(staging: Path) -> None:
        (staging / 'metrics.tsv').write_text(tsv(COLUMNS, rows))
        people = [(f'sub-{s}', v) for s, v in sorted(split.items())]
        (staging / cards.SPLIT).write_text(tsv(('participant_id', 'split'), people))
        log_rows = [(r['step'], r['loss'], r.get('validation', '')) for r in steps]
        (staging / 'log.tsv').write_text(tsv(('step', 'loss', 'validation'), log_rows))
        learning_curve(staging / 'log.tsv', staging / 'curve.png', task.head.score)

    return save_next(checkpoint, settings.models, task.name, add)


def publish(root: Path, task: str, folder: Path) -> None:
    """The group files at the root are those of the model in ``folder``."""
    from bidsapp.reports.group import group_page

    own = registry.tasks_of(registry.task(task).modality)
    words = {m: w for other in own for m, w in other.head.words.items()}
    table = (folder / 'metrics.tsv').read_text(encoding='utf-8')
    if f'\t{FLAG}\t' in table:
        words[FLAG] = FLAG_WORDS
    write_text(root / f'group_{task}.tsv', table)
    write_json(root / f'group_{task}.json', explained(words))
    log.info('page: %s', group_page(root, task))


def log_result(task: Task[Any], rows: Sequence[Row]) -> None:
    """The deciding metric on each split, in the log, and whose figures are none."""
    from bidsapp.learn.evaluate import mean

    score = task.head.score
    for arm in dict.fromkeys(row[2] for row in rows):
        for split in SPLITS:
            own = [row[5] for row in rows if row[1:4] == (split, arm, score)]
            if own:  # what does without a network is not judged by what it may learn from
                log.info('%s, %s: %s on %s %.4g', task.name, arm, score, split, mean(own))
    for arm, (known, unknown) in flagged(rows).items():
        if known:
            log.warning(
                '%s, %s: its start had seen %s in training: as test participants they say nothing '
                'of new people', task.name, arm, ', '.join(known),
            )  # fmt: skip
        if unknown:
            log.warning(
                '%s, %s: its start does not say whom it saw in training; the test participants may '
                'be among them', task.name, arm,
            )  # fmt: skip
