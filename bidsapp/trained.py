"""What `group` leaves behind: a model with its card, tables, curve and page, complete at once."""

from __future__ import annotations

import logging
import platform
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp import __version__
from bidsapp.bids.write import write_json, write_text
from bidsapp.learn import cards
from bidsapp.learn.splits import SPLITS
from bidsapp.learn.tables import COLUMNS, EXPLAINED, tsv
from bidsapp.modalities.dwi.physics.qspace import SLOTS, slots_in_use

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from bidsapp.core import Checkpoint, Plan, Sample, Task
    from bidsapp.learn.tables import Row
    from bidsapp.settings import Settings

log = logging.getLogger('transfermri')


def make_card(
    task: Task,
    plan: Plan,
    start: Checkpoint | None,
    samples: Sequence[Sample],
    best_step: int,
    rows: Sequence[Row],
    split: Mapping[str, str],
) -> dict[str, Any]:
    """Everything about a model but its weights; the version and hash are added on saving."""
    import torch

    from bidsapp.learn.predict import averaged_turns

    channels = samples[0].image.shape[0]
    options = dict(task.options if start is None else start.card['network']['options'])
    arm = rows[0][2]
    test = [row for row in rows if row[1:4] == ('test', arm, task.score)]
    slots = sorted({slot for sample in samples for slot in slots_in_use(sample.image)})
    return {
        'name': f'transfermri-{task.name}',
        'task': task.name,
        'description': f'3D U-Net for {task.name} from diffusion MRI.',
        'intended_use': 'Research. Not for clinical use.',
        'network': {
            'name': task.network,
            'channels_in': channels,
            'options': options,
        },
        'heads': dict(task.heads),
        'averaged_turns': averaged_turns(task),
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
    rows: Sequence[Row],
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


def say_result(task: Task, rows: Sequence[Row]) -> None:
    """The deciding metric on each split, in the log."""
    for arm in dict.fromkeys(row[2] for row in rows):
        for split in SPLITS:
            values = [row[5] for row in rows if row[1:4] == (split, arm, task.score)]
            mean = float(np.mean(values))
            log.info('%s, %s: %s on %s %.4g', task.name, arm, task.score, split, mean)
