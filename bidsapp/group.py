"""The group story: gather samples → split → fit → evaluate → save the model.

One split for all tasks of a call: the same seed gives the same split, and a participant that is
held out of one task is held out of all.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bidsapp import __version__, registry
from bidsapp.bids.dataset import read_filters
from bidsapp.bids.derivatives import write_dataset
from bidsapp.bids.prepared import choose_preprocessed, with_references
from bidsapp.core import Checkpoint, Plan
from bidsapp.learn import cards
from bidsapp.learn.inputs import save_canonical
from bidsapp.learn.processors import use_processors
from bidsapp.learn.splits import SPLITS, make_split, read_split
from bidsapp.modalities.dwi.bids.tables import load_table
from bidsapp.modalities.dwi.learn.input import canonical_sample
from bidsapp.modalities.dwi.physics.subsets import halves, well_spread
from bidsapp.problems import BadData, MissingInput, Problem, WrongUsage
from bidsapp.trained import make_card, save_model, say_result

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bidsapp.core import Case, Sample, Task
    from bidsapp.learn.state import State
    from bidsapp.learn.tables import Row
    from bidsapp.modalities.dwi.networks.qspace_unet import UNet3d
    from bidsapp.modalities.dwi.physics.gradients import GradientTable
    from bidsapp.settings import Settings

log = logging.getLogger('transfermri')

#: Fewer participants than this cannot be divided into train, val and test.
MIN_PARTICIPANTS = 3
#: Steps where --steps is not given, and the shape of a batch.
STEPS, PATCH, BATCH = 1000, 32, 2
#: From random weights, and from weights that know something already.
LEARNING_RATE, FINE_RATE = 4e-3, 1e-3


def run(settings: Settings, log_file: Path) -> int:
    """Tell the story; returns the exit code."""
    refuse_what_is_not_there(settings)
    cases = choose_preprocessed(
        settings.output_dir, settings.participants, settings.sessions,
        read_filters(settings.filter_file),
    )  # fmt: skip
    wanted = list(settings.tasks) or [
        n for n in registry.names() if registry.get(n).derive is not None
    ]
    by_task = {name: labelled(settings.output_dir, cases, name) for name in wanted}
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
            made.append(train(name, by_task[name], split, settings, device))
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


def refuse_what_is_not_there(settings: Settings) -> None:
    """Options of the contract that this version cannot serve."""
    if 'autoencoder' in settings.compare and cards.autoencoder(settings.models) is None:
        raise WrongUsage(
            '--compare autoencoder needs a pretrained autoencoder; the package has none, nor has '
            f'{settings.models}. Make one with `pretrain --objective autoencoder`; '
            '--compare scratch works.'
        )
    if settings.init == 'bundled' and not cards.bundled_models():
        raise MissingInput('--init bundled: this version bundles no model. Use --init scratch.')


def labelled(root: Path, cases: Sequence[Case], name: str) -> list[Case]:
    """The runs that have a reference label for a task, with the label among their files.

    None for a task that is learnt by pretraining only.
    """
    task = registry.get(name)
    if task.derive is None:
        return []
    return with_references(root, cases, task.writes[: task.learns])


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


def kept_inputs(cases: Sequence[Case], settings: Settings, training: bool) -> list[Case]:
    """Each run's canonical input, computed once for all tasks and calls.

    To learn from, a run enters twice, each time with half of its directions: its label was
    derived from all of them, and a network that sees exactly the volumes of the label learns to
    repeat their noise (measured on simulated scans; docs/architecture.md).
    """
    folder = settings.work_dir / f'canonical-{__version__}'
    done = []
    for case in cases:
        for keep in used_volumes(load_table(case), settings, training):
            stat = case.files['dwi'].stat()
            identity = json.dumps(
                [str(case.files['dwi']), stat.st_mtime_ns, stat.st_size, keep.tolist()]
            )
            kept = folder / hashlib.sha256(identity.encode()).hexdigest()[:16]
            if not kept.is_dir():
                save_canonical(canonical_sample(case, keep), kept)
            done.append(case.with_files(canonical=kept))
    return done


def used_volumes(gtab: GradientTable, settings: Settings, training: bool) -> list[np.ndarray]:
    """Which volumes make an input: N directions if asked for, halves to learn from, else all."""
    if settings.input_directions is not None:
        return [well_spread(gtab, settings.input_directions)]
    if training and (parts := halves(gtab)):
        return parts
    return [np.arange(len(gtab))]


def start_model(settings: Settings, task: str) -> Checkpoint | None:
    """The weights to start from: bundled where there are any, a folder, or none."""
    from bidsapp.learn.checkpoint import load

    if settings.init in ('auto', 'bundled'):
        bundled = cards.bundled_models()
        folder = bundled.get(task) or next(iter(bundled.values()), None)
        return load(folder) if folder else None
    return None if settings.init == 'scratch' else load(Path(settings.init).absolute())


def other_starts(settings: Settings, start: Checkpoint | None) -> dict[str, Checkpoint | None]:
    """Arm → the weights it starts from, for each that --compare asks for."""
    from bidsapp.learn.checkpoint import load

    arms: dict[str, Checkpoint | None] = {}
    if 'scratch' in settings.compare and start is not None:
        arms['scratch'] = None
    if 'autoencoder' in settings.compare and (folder := cards.autoencoder(settings.models)):
        arms['autoencoder'] = load(folder)
    return arms


def train(
    name: str, cases: Sequence[Case], split: Mapping[str, str], settings: Settings, device: str
) -> Path:
    """Fit one task and save its model; returns the model's folder."""
    from bidsapp.learn.checkpoint import checkpoint_of

    task = registry.get(name)
    used = [case for case in cases if case.subject in split]
    groups = {s: [c for c in used if split[c.subject] == s] for s in SPLITS}
    if empty := [s for s in SPLITS if not groups[s]]:
        raise MissingInput(
            f'{name}: no labelled participant is in {", ".join(empty)} of the split. Label more '
            'participants, give --split-file, or another --random-seed.'
        )
    log.info('%s: reading %d runs', name, len(used))
    samples = {
        s: [task.load(c) for c in kept_inputs(groups[s], settings, training=False)] for s in SPLITS
    }
    learnt_from = [task.load(c) for c in kept_inputs(groups['train'], settings, training=True)]
    steps = settings.steps or STEPS
    plan = Plan(
        steps=steps, patch=PATCH, batch=BATCH, lr=FINE_RATE, freeze=settings.freeze,
        seed=settings.seed, device=device, validate_every=max(1, min(100, steps // 6)),
    )  # fmt: skip
    start = start_model(settings, name)
    state_files = []

    def fitted(arm: str, start: Checkpoint | None, plan: Plan) -> tuple[UNet3d, State, list[Row]]:
        from bidsapp.learn.fit import fit
        from bidsapp.learn.patches import PatchSource

        if start is None:
            plan = replace(plan, lr=LEARNING_RATE)
        state_files.append(state_path(task, plan, start, groups, settings))
        data = (PatchSource(learnt_from, plan.patch), samples['val'])
        network, state = fit(task, *data, start, plan, state_files[-1], log.info)
        return network, state, scored(task, arm, network, groups, samples, device)

    network, state, rows = fitted('scratch' if start is None else 'finetuned', start, plan)
    for arm, other in other_starts(settings, start).items():
        log.info('%s: the same from %s, to compare', name, arm)
        rows = rows + fitted(arm, other, replace(plan, freeze='none'))[2]
    if start is not None and name in start.heads and settings.init in ('auto', 'bundled'):
        from bidsapp.learn.predict import network_of

        as_it_comes = network_of(start, [name])
        rows = rows + scored(task, 'bundled', as_it_comes, groups, samples, device)
    card = make_card(task, plan, start, learnt_from, state.best_step, rows, split)
    folder = save_model(checkpoint_of(network, card), task, rows, state.log, split, settings)
    for state_file in state_files:
        state_file.unlink(missing_ok=True)
    say_result(task, rows)
    return folder


def scored(
    task: Task,
    arm: str,
    network: UNet3d,
    groups: Mapping[str, Sequence[Case]],
    samples: Mapping[str, Sequence[Sample]],
    device: str,
) -> list[Row]:
    """Rows of the metrics table for one network on every split."""
    from bidsapp.learn.evaluate import evaluate

    return [
        (f'sub-{case.subject}', split, arm, metric, label, value)
        for split in SPLITS
        for case, figures in zip(
            groups[split], evaluate(task, network, samples[split], device), strict=True
        )
        for metric, label, value in figures
    ]


def state_path(
    task: Task,
    plan: Plan,
    start: Checkpoint | None,
    groups: Mapping[str, Sequence[Case]],
    settings: Settings,
) -> Path:
    """Where a stopped fit of exactly this plan, start and data is kept."""
    identity = json.dumps([
        __version__, task.name, asdict(plan), start and start.card['sha256'],
        settings.input_directions, {s: [str(c.files['dwi']) for c in g] for s, g in groups.items()},
    ])  # fmt: skip
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return settings.work_dir / 'group' / f'{task.name}-{digest}.safetensors'
