"""The group story: gather samples → split → fit → evaluate → save the model.

One split for all tasks of a call: the same seed gives the same split, and a participant that is
held out of one task is held out of all.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import os
import platform
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp import __version__, tasks
from bidsapp.bids.query import find_preprocessed, find_reference, read_filters
from bidsapp.bids.samples import canonical_sample, load_table, save_canonical
from bidsapp.bids.write import write_dataset, write_json, write_text
from bidsapp.core import (
    BadData,
    Checkpoint,
    MissingInput,
    NothingSelected,
    Plan,
    Problem,
    WrongUsage,
)
from bidsapp.learn import cards
from bidsapp.physics.gradients import halves, well_spread
from bidsapp.physics.qspace import SLOTS, slots_in_use

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bidsapp.core import Case, GradientTable, Sample, Task
    from bidsapp.settings import Settings

log = logging.getLogger('transfermri')

#: Fewer participants than this cannot be divided into train, val and test.
MIN_PARTICIPANTS = 3
#: Shares of val and test; at least one participant each.
VAL_SHARE, TEST_SHARE = 0.2, 0.2
#: Steps where --steps is not given, and the shape of a batch.
STEPS, PATCH, BATCH, LEARNING_RATE = 1000, 32, 2, 4e-3

COLUMNS = ('participant_id', 'split', 'model', 'metric', 'label', 'value')
EXPLAINED = {
    'participant_id': {'Description': 'Participant; one with several runs has several rows'},
    'split': {'Levels': {'train': 'learnt from', 'val': 'chose the best step', 'test': 'held out'}},
    'model': {'Levels': {
        'bundled': 'the model of the package, not fine-tuned',
        'finetuned': 'started from other weights and learnt from train',
        'scratch': 'started from random weights and learnt from train',
        'autoencoder': 'started from an autoencoder and learnt from train',
    }},
    'metric': {'Levels': {
        'f1_macro': 'mean over classes of F1, in labelled brain voxels',
        'accuracy': 'share of labelled brain voxels with the right class',
        'dice': 'Dice overlap of one class, in labelled brain voxels',
        'angular_error_median': 'median angle to the reference direction in white matter, degrees',
        'angular_error_mean': 'mean angle to the reference direction in white matter, degrees',
    }},
    'label': {'Description': 'Class or region that the value is about'},
    'value': {'Description': 'The figure, against the reference label of the participant level'},
}  # fmt: skip


def run(settings: Settings, log_file: Path) -> int:
    """Tell the story; returns the exit code."""
    refuse_what_is_not_there(settings)
    cases = find_cases(settings)
    wanted = list(settings.tasks) or tasks.names()
    by_task = {name: labelled(settings.output_dir, cases, name) for name in wanted}
    trained, skipped = trainable(by_task, bool(settings.tasks))
    split = make_split(sorted({c.subject for found in by_task.values() for c in found}), settings)
    for name in trained:
        count = {s: sum(split.get(c.subject) == s for c in by_task[name]) for s in SPLITS}
        log.info('%s: %d train, %d val, %d test runs', name, *(count[s] for s in SPLITS))
    if settings.dry_run:
        return 66 if skipped and settings.tasks else 0
    from bidsapp.learn.predict import resolve_device

    device = resolve_device(settings.device)
    use_threads(settings, device)
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


SPLITS = ('train', 'val', 'test')


def refuse_what_is_not_there(settings: Settings) -> None:
    """Options of the contract that this version cannot serve."""
    if settings.compare:
        raise WrongUsage('--compare is not part of this version; leave it out.')
    if settings.init == 'bundled' and not cards.bundled_models():
        raise MissingInput('--init bundled: this version bundles no model. Use --init scratch.')


def find_cases(settings: Settings) -> list[Case]:
    """The preprocessed runs that are selected. Raises MissingInput or NothingSelected."""
    subjects = list(settings.participants) or None
    cases = find_preprocessed(settings.output_dir, subjects)
    if settings.sessions:
        cases = [c for c in cases if c.entities.get('session') in settings.sessions]
    wanted = read_filters(settings.filter_file).get('dwi', {})
    cases = [c for c in cases if all(c.entities.get(k) == v for k, v in wanted.items()
                                     if k not in ('suffix', 'datatype'))]  # fmt: skip
    if cases:
        return cases
    if find_preprocessed(settings.output_dir):
        raise NothingSelected('The labels and filters select none of the preprocessed runs.')
    raise MissingInput(
        f'{settings.output_dir} holds no preprocessed dMRI (*_desc-preproc_dwi.nii.gz with mask '
        'and gradients). Run the participant level into it first.'
    )


def labelled(root: Path, cases: Sequence[Case], name: str) -> list[Case]:
    """The runs that have a reference label for a task, with the label among their files."""
    output = tasks.get(name).writes[0]
    found = []
    for case in cases:
        reference = find_reference(root, case, output)
        if reference is not None:
            found.append(case.with_files(**{output.name: reference[1]}))
    return found


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


def make_split(subjects: Sequence[str], settings: Settings) -> dict[str, str]:
    """Participant → train, val or test: from the file that was given, else by the seed."""
    if settings.split_file is not None:
        return read_split(settings.split_file)
    shuffled = list(np.random.default_rng(settings.seed).permutation(sorted(subjects)))
    n_test = max(1, round(TEST_SHARE * len(shuffled)))
    n_val = max(1, round(VAL_SHARE * len(shuffled)))
    names = ['test'] * n_test + ['val'] * n_val + ['train'] * (len(shuffled) - n_test - n_val)
    return {str(s): name for s, name in zip(shuffled, names, strict=True)}


def read_split(path: Path) -> dict[str, str]:
    """A split file: tab-separated participant_id and split. Raises MissingInput or BadData."""
    if not path.is_file():
        raise MissingInput(f'The split file {path} does not exist.')
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding='utf-8')), delimiter='\t'))
    try:
        split = {row['participant_id'].removeprefix('sub-'): row['split'] for row in rows}
    except (KeyError, AttributeError) as error:
        raise BadData(f'{path} needs the columns participant_id and split, by tabs.') from error
    if unknown := set(split.values()) - set(SPLITS):
        raise BadData(
            f'{path}: split is {", ".join(map(str, unknown))}; expected train, val, test.'
        )
    return split


def use_threads(settings: Settings, device: str) -> None:
    """All processors for one network; deterministic kernels on CUDA."""
    import torch

    torch.set_num_threads(settings.nprocs)
    if device.startswith('cuda'):
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True


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


def train(
    name: str, cases: Sequence[Case], split: Mapping[str, str], settings: Settings, device: str
) -> Path:
    """Fit one task and save its model; returns the model's folder."""
    from bidsapp.learn.evaluate import evaluate
    from bidsapp.learn.fit import fit

    task = tasks.get(name)
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
    start = start_model(settings, name)
    plan = Plan(
        steps=settings.steps or STEPS, patch=PATCH, batch=BATCH, lr=LEARNING_RATE,
        freeze=settings.freeze, seed=settings.seed, device=device,
        validate_every=max(1, min(100, (settings.steps or STEPS) // 6)),
    )  # fmt: skip
    state_file = state_path(task, plan, start, groups, settings)
    network, state = fit(task, learnt_from, samples['val'], start, plan, state_file, log.info)
    arm = 'scratch' if start is None else 'finetuned'
    rows = [
        (f'sub-{case.subject}', s, arm, metric, label, value)
        for s in SPLITS
        for case, figures in zip(
            groups[s], evaluate(task, network, samples[s], device), strict=True
        )
        for metric, label, value in figures
    ]
    card = make_card(task, plan, start, learnt_from, state.best_step, rows, split)
    checkpoint = Checkpoint(
        card,
        {k: v.cpu() for k, v in network.body.state_dict().items()},
        {k: v.cpu() for k, v in network.head.state_dict().items()},
    )
    folder = save_model(checkpoint, task, rows, state.log, split, settings)
    state_file.unlink(missing_ok=True)
    say_result(task, rows)
    return folder


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


def make_card(
    task: Task,
    plan: Plan,
    start: Checkpoint | None,
    samples: Sequence[Sample],
    best_step: int,
    rows: Sequence[tuple[Any, ...]],
    split: Mapping[str, str],
) -> dict[str, Any]:
    """Everything about a model but its weights; the version and hash are added on saving."""
    import torch

    channels = samples[0].image.shape[0]
    options = dict(task.options if start is None else start.card['network']['options'])
    test = [row for row in rows if row[1] == 'test' and row[3] == task.score]
    slots = sorted({slot for sample in samples for slot in slots_in_use(sample.image)})
    return {
        'name': f'transfermri-{task.name}',
        'task': task.name,
        'description': f'3D U-Net for {task.name} from diffusion MRI.',
        'intended_use': 'Research. Not for clinical use.',
        'network': {
            'name': task.network,
            'channels_in': channels,
            'channels_out': task.channels,
            'options': options,
        },
        'input': 'canonical q-space channels (docs/architecture.md)',
        'learnt_b_ranges': [list(SLOTS[slot]) for slot in slots],
        'started_from': None if start is None else
            {k: start.card[k] for k in ('name', 'version', 'sha256')},
        'plan': asdict(plan),
        'best_step': best_step,
        'participants': {s: sum(v == s for v in split.values()) for s in SPLITS},
        'test': {task.score: float(np.mean([row[5] for row in test]))},
        'software': {'transfermri': __version__, 'torch': torch.__version__,
                     'python': platform.python_version()},
        'license': "the user's own",
    }  # fmt: skip


def save_model(
    checkpoint: Checkpoint,
    task: Task,
    rows: Sequence[tuple[Any, ...]],
    steps: Sequence[Mapping[str, float]],
    split: Mapping[str, str],
    settings: Settings,
) -> Path:
    """The next version's folder, complete at once; then the group files at the root."""
    from bidsapp.learn.checkpoint import save
    from bidsapp.reports.group import group_page, learning_curve

    folder = cards.next_version(settings.models, task.name)
    versioned = replace(checkpoint, card={**checkpoint.card, 'version': folder.name})

    def add(staging: Path) -> None:
        (staging / 'metrics.tsv').write_text(tsv(COLUMNS, rows))
        (staging / cards.SPLIT).write_text(
            tsv(('participant_id', 'split'), [(f'sub-{s}', v) for s, v in sorted(split.items())])
        )
        log_rows = [(r['step'], f'{r["loss"]:.6g}', r.get('validation', '')) for r in steps]
        (staging / 'log.tsv').write_text(tsv(('step', 'loss', 'validation'), log_rows))
        learning_curve(staging / 'log.tsv', staging / 'curve.png', task.score)

    save(versioned, folder, add)
    write_text(settings.output_dir / f'group_{task.name}.tsv', tsv(COLUMNS, rows))
    write_json(settings.output_dir / f'group_{task.name}.json', EXPLAINED)
    page = group_page(settings.output_dir, task.name)
    log.info('page: %s', page)
    return folder


def tsv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Rows as a tab-separated table; numbers with six digits, missing ones as n/a."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return 'n/a' if np.isnan(value) else f'{value:.6g}'
        return str(value)

    lines = ['\t'.join(columns), *('\t'.join(cell(v) for v in row) for row in rows)]
    return '\n'.join(lines) + '\n'


def say_result(task: Task, rows: Sequence[tuple[Any, ...]]) -> None:
    """The deciding metric on each split, in the log."""
    for split in SPLITS:
        values = [row[5] for row in rows if row[1] == split and row[3] == task.score]
        log.info('%s: %s on %s %.4g', task.name, task.score, split, float(np.mean(values)))
