"""The pretrain story: simulated or auxiliary brains → fit → one body with its heads, and a card.

BIDS_DIR `-` means simulated brains. An auxiliary dataset enters by its preprocessed runs in
OUTPUT_DIR, as in `group`. A run that was stopped goes on with --resume, under the same plan only.
"""

from __future__ import annotations

import json
import logging
import platform
import shlex
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from bidsapp import __version__, registry
from bidsapp.bids.dataset import read_filters
from bidsapp.bids.prepared import choose_preprocessed, with_references
from bidsapp.bids.write import write_json
from bidsapp.core import Plan
from bidsapp.learn import cards
from bidsapp.learn.processors import use_processors
from bidsapp.learn.splits import SPLITS, make_split
from bidsapp.learn.tables import tsv
from bidsapp.modalities.dwi.physics import qspace
from bidsapp.modalities.dwi.simulate import objectives
from bidsapp.problems import MissingInput, WrongUsage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from bidsapp.core import Case, Sample, Task
    from bidsapp.learn.state import State
    from bidsapp.modalities.dwi.networks.qspace_unet import UNet3d
    from bidsapp.settings import Settings
    from bidsapp.simulate.material import Material

log = logging.getLogger('transfermri')

#: Steps where --steps is not given; shape of a batch; decay of the average of the weights.
STEPS, PATCH, BATCH, LEARNING_RATE, AVERAGE = 3_200, 32, 2, 2e-3, 0.995
#: Voxels along the edge of a block, and scans kept at hand from which batches are cut.
SIDE, WINDOW = 48, 32
#: Whole blocks that choose the best step, others after them by which uncertainty is calibrated, and
#: those that make the card's figures.
VALIDATION, CALIBRATION, TEST = 8, 12, 24
#: Steps between two looks at the validation blocks, at most.
VALIDATE_EVERY = 250
#: Fewer participants than this cannot be divided into train, val and test.
MIN_PARTICIPANTS = 3
#: Share of each task in the joint loss.
WEIGHTS = {'tissue': 1.0, 'orientation': 1.0, 'crossings': 0.5, 'microstructure': 0.3,
           'restore': 2.0, 'autoencoder': 2.0}  # fmt: skip


def run(settings: Settings, log_file: Path) -> int:
    """Tell the story; returns the exit code."""
    objective = refuse_what_makes_no_sense(settings)
    log.info('pretrain %s: %s', objective, objectives.OBJECTIVES[objective])
    if settings.simulated:
        cases: dict[str, list[Case]] = {}
    else:
        cases = auxiliary_cases(settings, objective)
        log.info('%d train, %d val, %d test runs', *(len(cases[s]) for s in SPLITS))
    if settings.dry_run:
        return 0
    from bidsapp.learn.predict import resolve_device

    device = resolve_device(settings.device)
    use_processors(settings.nprocs, device)
    steps = settings.steps or STEPS
    plan = Plan(
        steps=steps, patch=PATCH, batch=BATCH, lr=LEARNING_RATE, seed=settings.seed, device=device,
        validate_every=max(1, min(VALIDATE_EVERY, steps // 4)), average=AVERAGE,
    )  # fmt: skip
    state_file = claim(settings, objective, plan, cases)
    kept = settings.work_dir / 'pretrain'
    if settings.simulated:
        made = objectives.simulated(objective, settings.tasks, settings.seed, SIDE, kept)
    else:
        made = objectives.auxiliary(objective, cases, settings.seed, SIDE, kept / 'auxiliary')
    network, state, task = learnt(made, plan, state_file)
    calibrate(task, made, network, device)
    figures = tested(task, made, network, device)
    card = make_card(objective, made, task, plan, state, figures, settings)
    folder = save_model(objective, card, network, state, task, settings)
    state_file.unlink(missing_ok=True)
    for row in figures:
        log.info('%(task)s: %(metric)s %(label)s %(mean).4g ± %(sd).2g on %(n)d test blocks', row)
    log.info('model: %s; log: %s', folder, log_file)
    return 0


def refuse_what_makes_no_sense(settings: Settings) -> str:
    """The objective. Raises WrongUsage where it does not fit what it shall be learnt from."""
    objective = settings.objective
    if objective is None:
        raise WrongUsage(
            f'pretrain on {settings.bids_dir} needs --objective: restore, autoencoder or '
            'auxiliary. (supervised is for simulated brains, BIDS_DIR -.)'
        )
    if settings.simulated and objective == 'auxiliary':
        raise WrongUsage(
            '--objective auxiliary learns from the labels of an auxiliary dataset, and BIDS_DIR - '
            'means simulated brains. Give the dataset, or --objective supervised.'
        )
    if not settings.simulated and objective == 'supervised':
        raise WrongUsage(
            '--objective supervised learns from the truth of simulated brains: give - for '
            'BIDS_DIR, or --objective auxiliary for the labels of this dataset.'
        )
    if settings.tasks and objective != 'supervised':
        raise WrongUsage(f'--tasks: the objective {objective} has a head of its own. Leave it out.')
    return objective


def auxiliary_cases(settings: Settings, objective: str) -> dict[str, list[Case]]:
    """Preprocessed runs by split, whole participants each. Raises MissingInput for too few."""
    try:
        cases = choose_preprocessed(
            settings.output_dir, settings.participants, settings.sessions,
            read_filters(settings.filter_file),
        )  # fmt: skip
    except MissingInput as problem:
        raise MissingInput(
            f'{problem} Pretraining on an auxiliary dataset begins with: transfermri '
            f'{settings.bids_dir} {settings.output_dir} participant'
        ) from problem
    why = 'preprocessed dMRI'
    if objective == 'auxiliary':
        task = registry.get('microstructure')
        cases = with_references(settings.output_dir, cases, task.writes[: task.learns])
        why = 'NODDI maps (two shells or more; the participant level makes them)'
    subjects = sorted({case.subject for case in cases})
    if len(subjects) < MIN_PARTICIPANTS:
        raise MissingInput(
            f'{len(subjects)} participants in {settings.output_dir} have {why}; at least '
            f'{MIN_PARTICIPANTS} are needed, one each to learn from, to choose by and to hold out.'
        )
    split = make_split(subjects, settings.seed)
    return {name: [c for c in cases if split[c.subject] == name] for name in SPLITS}


def claim(
    settings: Settings, objective: str, plan: Plan, cases: Mapping[str, Sequence[Case]]
) -> Path:
    """The state file of this plan. Raises WrongUsage if a stopped run stands there unasked."""
    folder = settings.work_dir / 'pretrain' / objective
    state, written = folder / 'state.safetensors', folder / 'plan.json'
    wanted = json.loads(json.dumps({
        'version': __version__, 'data': str(settings.bids_dir), 'tasks': settings.tasks,
        **asdict(replace(plan, device='any')), 'side': SIDE,
        'runs': {name: [str(c.files['dwi']) for c in part] for name, part in cases.items()},
    }))  # fmt: skip
    if not state.is_file():
        if settings.resume:
            log.info('Nothing to resume in %s: beginning.', folder)
        write_json(written, wanted)
        return state
    if not settings.resume:
        raise WrongUsage(
            f'A stopped run of this objective stands in {folder}. Go on with --resume, or remove '
            'that folder to begin anew, or give another work folder (-w).'
        )
    found = json.loads(written.read_text(encoding='utf-8')) if written.is_file() else {}
    if other := [key for key in wanted if found.get(key) != wanted[key]]:
        said = '; '.join(f'{key} was {found.get(key)}, is {wanted[key]}' for key in other)
        raise WrongUsage(
            f'--resume: the stopped run in {folder} has another plan ({said}). Give the same '
            'options, or remove that folder to begin anew.'
        )
    return state


def learnt(made: Material, plan: Plan, state_file: Path) -> tuple[UNet3d, State, Task]:
    """Fit all heads together; returns the network at its best step, how it went, the joint task."""
    from bidsapp.learn.fit import fit
    from bidsapp.learn.joint import joint
    from bidsapp.simulate.stream import SimulatedStream

    names = [task.name for task in made.tasks]
    scanner = made.scanners['train']
    source = SimulatedStream(scanner, names, plan.patch, WINDOW)
    validation = [made.sample('val', index) for index in range(VALIDATION)]
    task = joint(made.tasks, {name: WEIGHTS[name] for name in names})
    network, state = fit(task, source, validation, None, plan, state_file, log.info)
    return network, state, task


def calibrate(task: Task, made: Material, network: UNet3d, device: str) -> None:
    """Set the heads' biases so that stated uncertainty is the error found on validation blocks."""
    import torch

    for own in made.tasks:
        if own.calibrate is None:
            continue
        blocks = range(VALIDATION, VALIDATION + CALIBRATION)
        pairs = [on_block(task, made, network, 'val', k, device)[own.name] for k in blocks]
        shift = own.calibrate(*zip(*pairs, strict=True))
        with torch.no_grad():
            cast('Tensor', network.heads[own.name].bias).add_(shift.to(device))
        log.info('%s: uncertainty calibrated by %s', own.name, shift.tolist())


def on_block(
    task: Task, made: Material, network: UNet3d, split: str, index: int, device: str
) -> dict[str, tuple[Tensor, Sample]]:
    """Task → what the network says of a block, and the block with that task's truth."""
    from bidsapp.learn.predict import averaged_turns, predict_turned, split_heads

    sample = made.sample(split, index)
    assert sample.target is not None
    output = predict_turned(network, sample.image, [task], averaged_turns(task), device)
    outputs = split_heads(output, task.heads)
    targets = sample.target.split([own.targets for own in made.tasks])
    return {
        own.name: (outputs[own.name], replace(sample, target=target))
        for own, target in zip(made.tasks, targets, strict=True)
    }


def tested(task: Task, made: Material, network: UNet3d, device: str) -> list[dict[str, Any]]:
    """Every metric of every task over test blocks: mean, standard deviation and their number."""
    values: dict[tuple[str, str, str], list[float]] = {}
    for index in range(TEST):
        said = on_block(task, made, network, 'test', index, device)
        for own in made.tasks:
            for metric, label, value in own.metrics(*said[own.name]):
                values.setdefault((own.name, metric, label), []).append(value)
    return [
        {'task': name, 'metric': metric, 'label': label, 'mean': float(np.nanmean(found)),
         'sd': float(np.nanstd(found)), 'n': int(np.isfinite(found).sum())}
        for (name, metric, label), found in values.items() if np.isfinite(found).any()
    ]  # fmt: skip


def make_card(
    objective: str,
    made: Material,
    task: Task,
    plan: Plan,
    state: State,
    figures: Sequence[Mapping[str, Any]],
    settings: Settings,
) -> dict[str, Any]:
    """Everything about a pretrained model but its weights, version and hash."""
    import torch

    from bidsapp.learn.predict import averaged_turns

    weights = {own.name: WEIGHTS[own.name] for own in made.tasks}
    return {
        'name': f'transfermri-{objective}',
        'description': f'3D U-Net pretrained to {objectives.OBJECTIVES[objective]}.',
        'intended_use': 'Research. Not for clinical use.',
        'objective': objective,
        'network': {'name': task.network, 'channels_in': qspace.N_CHANNELS,
                    'options': dict(task.options)},
        'heads': dict(task.heads),
        'averaged_turns': averaged_turns(task),
        'input': {'description': 'canonical q-space channels (docs/architecture.md)',
                  'slots_of_b': [list(b) for b in qspace.SLOTS], 'order': qspace.ORDER},
        'learnt_b_ranges': [list(qspace.SLOTS[slot]) for slot in made.slots],
        'training': {**made.about, 'weights_of_tasks': weights},
        'tested_ranges': dict(made.ranges),
        'metrics': list(figures),
        'metrics_over': f'{TEST} held-out blocks, {SIDE} voxels along the edge',
        'plan': asdict(plan),
        'best_step': state.best_step,
        'command': shlex.join(['transfermri', *settings.argv]),
        'seed': settings.seed,
        'software': {'transfermri': __version__, 'torch': torch.__version__,
                     'python': platform.python_version()},
        'license': made.license,
    }  # fmt: skip


def save_model(
    objective: str,
    card: Mapping[str, Any],
    network: UNet3d,
    state: State,
    task: Task,
    settings: Settings,
) -> Path:
    """The next version's folder: weights, card and log, complete at once."""
    from bidsapp.learn.checkpoint import checkpoint_of, save

    folder = cards.next_version(cards.pretrained(settings.models), objective)
    checkpoint = checkpoint_of(network, {**card, 'version': folder.name})
    columns = ['step', 'loss', 'validation', *task.parts]

    def add(staging: Path) -> None:
        rows = [
            (row['step'], f'{row["loss"]:.6g}', *(row.get(key, '') for key in columns[2:]))
            for row in state.log
        ]
        (staging / 'log.tsv').write_text(tsv(columns, rows))

    return save(checkpoint, folder, add)
