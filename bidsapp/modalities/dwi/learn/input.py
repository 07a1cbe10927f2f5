"""The canonical q-space input of a dMRI run, and what is read beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from bidsapp.bids.images import crop_to, load_volume, onto_sample, open_image, to_ras
from bidsapp.core import Case, Sample
from bidsapp.modalities.dwi.bids.replaced import replaced_slices
from bidsapp.modalities.dwi.bids.tables import load_table
from bidsapp.modalities.dwi.physics import qspace
from bidsapp.modalities.dwi.physics.acquisition import acquisition, determines_tensor
from bidsapp.modalities.dwi.physics.gradients import GradientTable, in_grid
from bidsapp.modalities.dwi.physics.noise import map_noise
from bidsapp.modalities.dwi.physics.peaks import MAX_FIBRES
from bidsapp.modalities.dwi.physics.subsets import halves, well_spread
from bidsapp.modalities.dwi.physics.turns import turned_channels
from bidsapp.modalities.dwi.physics.unweighted import signal_at_zero
from bidsapp.physics.geometry import grid_axes, voxel_sizes
from bidsapp.problems import BadData

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from torch import Tensor

    from bidsapp.core import Turn
    from bidsapp.learn.inputs import Part, Use

#: Share of the brain without predicted slices from which the noise is estimated there alone.
QUIET = 0.25


def brain_of(case: Case) -> tuple[np.ndarray, np.ndarray, GradientTable, np.ndarray]:
    """(signals (X, Y, Z, N), brain (X, Y, Z), world table, affine) of a preprocessed run.

    The grid's axes are turned to the nearest RAS and cropped to the brain; no voxel is
    interpolated. Raises BadData if there is no brain.
    """
    image = open_image(case.files['dwi'])
    brain = load_volume(case.files['mask']) > 0
    if not brain.any():
        raise BadData(f'{case.files["mask"]} is empty: there is no brain to look at')
    gtab = load_table(case)
    data, affine = to_ras(load_volume(case.files['dwi']), image.affine)
    brain, _ = to_ras(brain, image.affine)
    box = crop_to(brain)
    corner = np.block([[np.eye(3), np.array([[s.start] for s in box])], [0, 0, 0, 1]])
    return data[box], brain[box], gtab, affine @ corner


def parts(case: Case, use: Use) -> list[Part]:
    """Which volumes make an input: N directions if asked for, halves to learn from, else all.

    To learn from, a run enters twice, each time with half of its directions: its label was
    derived from all of them, and a network that sees exactly the volumes of the label learns to
    repeat their noise (measured on simulated scans; docs/architecture.md). What was made like a
    poorer scan enters with all that it has left.
    """
    gtab = load_table(case)
    if use.options.get('input_like') is not None:
        chosen = [np.arange(len(gtab))]
    elif (wanted := use.options.get('input_directions')) is not None:
        chosen = [well_spread(gtab, wanted)]
    else:
        chosen = (halves(gtab) if use.training else []) or [np.arange(len(gtab))]
    return [{'volumes': keep.tolist()} for keep in chosen]


def sample_of(case: Case, part: Part) -> Sample:
    """The canonical input of a preprocessed run, from the volumes of ``part``."""
    return canonical_sample(case, np.array(part['volumes']) if 'volumes' in part else None)


def about(samples: Sequence[Sample]) -> dict[str, Any]:
    """What a card says of the input of models that learnt from ``samples``."""
    used = sorted({slot for sample in samples for slot in qspace.slots_in_use(sample.image)})
    return {
        'input': 'canonical q-space channels (docs/architecture.md)',
        'learnt_b_ranges': [list(qspace.SLOTS[slot]) for slot in used],
    }


def turned(
    image: Tensor, context: Mapping[str, Tensor], turn: Turn
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Image and context of a scan whose axes are turned: voxels, directions and edges together."""
    moved = dict(context)
    if 'voxel_mm' in moved:
        order = np.abs(np.array(turn)).argmax(1).tolist()
        moved['voxel_mm'] = moved['voxel_mm'][..., order]
    return turned_channels(image, turn), moved


def canonical_sample(case: Case, keep: np.ndarray | None = None) -> Sample:
    """The canonical input of a preprocessed run, from its volumes ``keep`` (default all).

    Slices that were predicted from other volumes have no part in it. Where of ``keep`` too few are
    left, the sample's mask leaves the voxel out.
    """
    import torch

    data, brain, gtab, affine = brain_of(case)
    lost = unmeasured(case, Sample(torch.zeros(0), torch.from_numpy(brain.copy())[None], affine))
    if keep is not None:
        data, gtab = data[..., keep], gtab[keep]
        lost = None if lost is None else lost[keep]
    local = in_grid(gtab, affine)
    s0 = signal_at_zero(data, gtab)
    floor = 1e-3 * float(np.median(s0[brain])) + 1e-12
    relative = np.moveaxis(data, -1, 0) / np.maximum(s0, floor)
    attenuation = np.clip(relative[~gtab.b0], 0, 1.5)
    quiet = brain if lost is None else brain & ~lost.any(0)
    if quiet.sum() < QUIET * brain.sum():
        quiet = brain
    variance = map_noise(attenuation, quiet, local[~local.b0], relative[gtab.b0])
    size = voxel_sizes(affine)
    channels = qspace.canonical_channels(attenuation, s0, brain, local, variance, size)
    untold = np.zeros_like(brain)
    if lost is not None:
        signals = np.moveaxis(data, -1, 0)
        untold = from_measured(channels, signals, lost, brain, local, variance, size)
    return Sample(
        torch.from_numpy(channels),
        torch.from_numpy(brain & ~untold if keep is not None else brain.copy())[None],
        affine,
        context={
            'voxel_mm': torch.tensor(size, dtype=torch.float32),
            'noise_variance': torch.tensor(variance, dtype=torch.float32),
        },
    )


def unmeasured(case: Case, sample: Sample) -> np.ndarray | None:
    """(N, X, Y, Z) bool on the sample's grid: where the run's volumes hold predictions.

    Of slices that had lost their signal; they were predicted from all other volumes, those that
    are held back among them. None where every value was measured.
    """
    places = replaced_slices(case.files['dwi'])
    if not places:
        return None
    image = open_image(case.files['dwi'])
    lost = np.zeros(image.shape, bool)
    for place in places:
        lost[place] = True
    return onto_sample(lost, image.affine, sample)


def from_measured(
    channels: np.ndarray,
    signals: np.ndarray,
    lost: np.ndarray,
    brain: np.ndarray,
    gtab: GradientTable,
    variance: float,
    size: np.ndarray,
) -> np.ndarray:
    """Replace in ``channels`` what was made of predictions by what the measured volumes say.

    ``signals`` and ``lost`` (N, X, Y, Z), ``gtab`` in the axes of the grid. Returns (X, Y, Z) bool,
    where the volumes that were measured do not determine a tensor: nothing is replaced there.
    """
    values, gaps = signals[:, brain], lost[:, brain]
    inside, untold = channels[:, brain], np.zeros(gaps.shape[1], bool)
    floor = 1e-3 * float(np.median(values[gtab.b0].mean(0))) + 1e-12
    packed = np.ascontiguousarray(np.packbits(gaps, axis=0).T)
    _, first, which = np.unique(packed, axis=0, return_index=True, return_inverse=True)
    for number, example in enumerate(first):
        measured, at = ~gaps[:, example], which.ravel() == number
        if measured.all():
            continue
        table, own = gtab[measured], values[measured][:, at]
        if not (table.b0.any() and determines_tensor(acquisition(table))):
            untold |= at
            continue
        s0 = own[table.b0].mean(0)
        attenuation = np.clip(own[~table.b0] / np.maximum(s0, floor), 0, 1.5)
        one = (*attenuation.shape, 1, 1)
        part = qspace.canonical_channels(
            attenuation.reshape(one), s0.reshape(one[1:]), np.ones(one[1:], bool), table, variance,
            size,
        )[..., 0, 0]  # fmt: skip
        part[qspace.S0_CHANNEL] = inside[qspace.S0_CHANNEL, at]
        inside[:, at] = part
    channels[:, brain] = inside
    where = np.zeros_like(brain)
    where[brain] = untold
    return where


def with_directions(sample: Sample, label: Path | None) -> Sample:
    """``sample`` with the fibres of a direction map as target, in its own axes.

    (3 MAX_FIBRES, X, Y, Z) unit vectors, strongest first; zeros where there is none.
    """
    import torch

    if label is None:
        return sample
    world = onto_sample(load_volume(label), open_image(label).affine, sample)
    fibres = world[: 3 * MAX_FIBRES].reshape(-1, 3, *world.shape[1:])
    local = np.zeros((MAX_FIBRES, *fibres.shape[1:]), np.float32)
    local[: len(fibres)] = np.einsum('wg,nwxyz->ngxyz', grid_axes(sample.affine), fibres)
    return replace(sample, target=torch.from_numpy(local.reshape(-1, *world.shape[1:])))


def volumes_of(case: Case, sample: Sample) -> tuple[np.ndarray, GradientTable]:
    """(N, X, Y, Z) volumes of the run, or of its part, on the sample's grid; the table in its axes.

    So what is estimated from them beside a network sees what the network has seen.
    """
    affine = open_image(case.files['dwi']).affine
    data, gtab = load_volume(case.files['dwi']), load_table(case)
    if (keep := case.part.get('volumes')) is not None and len(keep) < len(gtab):
        data, gtab = data[..., keep], gtab[keep]
    return onto_sample(data, affine, sample), in_grid(gtab, sample.affine)


def brain_signal(case: Case, sample: Sample) -> tuple[np.ndarray, GradientTable]:
    """(N, V) signals in the brain of `volumes_of`, and their table in the sample's axes."""
    volumes, gtab = volumes_of(case, sample)
    return volumes[:, sample.mask[0].numpy()], gtab


def noise_variance_of(sample: Sample) -> float:
    """Of S/S0, as the canonical map has estimated it. Raises ValueError if nobody kept it."""
    if 'noise_variance' not in sample.context:
        raise ValueError('the sample does not say how noisy its scan is')
    return float(sample.context['noise_variance'])
