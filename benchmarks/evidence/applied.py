"""The network on arrays in memory: canonical input, prediction, and what it means.

--model FOLDER    a model with weights.safetensors and card.json; without it random weights
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bidsapp import registry
from bidsapp.core import Sample
from bidsapp.learn.checkpoint import load as load_checkpoint
from bidsapp.learn.predict import TTA_FLIPS, network_of, predict_tta, split_heads, turns_of
from bidsapp.modalities.dwi.physics import qspace
from bidsapp.modalities.dwi.physics.diffusion import fit_tensor
from bidsapp.modalities.dwi.physics.gradients import in_grid
from bidsapp.modalities.dwi.physics.harmonics import basis
from bidsapp.modalities.dwi.physics.noise import map_noise
from bidsapp.modalities.dwi.physics.restored import attenuation_at, restored_scan
from bidsapp.modalities.dwi.physics.unweighted import signal_at_zero
from bidsapp.modalities.dwi.tasks import orientation
from bidsapp.networks.registry import build
from bidsapp.physics.geometry import grid_axes, voxel_sizes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from realscans import Scan
    from torch import Tensor

    from bidsapp.modalities.dwi.physics.gradients import GradientTable

#: Task → channels of a network with all heads.
HEADS = {'tissue': 3, 'orientation': 51, 'crossings': 4, 'microstructure': 6, 'restore': 84}


class Applied:
    """A network with all its heads."""

    def __init__(self, folder: Path | None) -> None:
        if folder is None:
            torch.manual_seed(0)
            self.heads: Mapping[str, int] = HEADS
            self.network = build('dwi', 'unet3d', qspace.N_CHANNELS, HEADS, **qspace.LAYOUT).eval()
            self.turns = TTA_FLIPS
            self.name = self.label = 'random weights'
            self.card: Mapping[str, Any] = {}
        else:
            checkpoint = load_checkpoint(folder)
            self.card = checkpoint.card
            self.heads, self.turns = checkpoint.card['heads'], turns_of(checkpoint.card)
            self.network = network_of(checkpoint, list(self.heads))
            steps = checkpoint.card.get('best_step', '?')
            self.label = f'{folder.name} {self.card["sha256"][:8]}'
            self.name = f'{folder} (step {steps}, {checkpoint.card["sha256"][:8]})'

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """Canonical input → each head's channels."""
        served = [registry.task(name).head for name in self.heads]
        turned = registry.input('dwi').turned
        output = predict_tta(self.network, sample, served, self.turns, turned)
        return split_heads(output, self.heads)

    def of(self, scan: Scan) -> dict[str, Tensor]:
        """The same of a scan."""
        return self(canonical(scan))


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """With ``--model``; one thread, so that figures do not depend on the machine's number."""
    parser = argparse.ArgumentParser(description=(description or '').partition('\n')[0])
    parser.add_argument('--model', type=Path, help='a folder; without it random weights')
    torch.set_num_threads(1)
    return parser


def arguments(description: str | None) -> argparse.Namespace:
    """``--model`` and nothing else."""
    return parser_of(description).parse_args()


def attenuation_of(scan: Scan) -> tuple[np.ndarray, np.ndarray, GradientTable, float]:
    """S/S0 (N, X, Y, Z) of weighted volumes, S0, table in grid axes, σ²: `canonical_sample`."""
    local = in_grid(scan.gtab, scan.affine)
    s0 = signal_at_zero(scan.data, scan.gtab)
    floor = 1e-3 * float(np.median(s0[scan.mask])) + 1e-12
    relative = np.moveaxis(scan.data, -1, 0) / np.maximum(s0, floor)
    attenuation = np.clip(relative[~local.b0], 0, 1.5)
    variance = map_noise(attenuation, scan.mask, local[~local.b0], relative[local.b0])
    return attenuation, s0, local, variance


def canonical(scan: Scan, variance: float | None = None) -> Sample:
    """What `dwi.learn.input.canonical_sample` makes of the files of a scan; axes must be RAS."""
    attenuation, s0, local, own = attenuation_of(scan)
    variance = own if variance is None else variance
    size = voxel_sizes(scan.affine)
    channels = qspace.canonical_channels(attenuation, s0, scan.mask, local, variance, size)
    return Sample(
        torch.from_numpy(channels),
        torch.from_numpy(scan.mask.copy())[None],
        scan.affine,
        context={
            'voxel_mm': torch.tensor(size, dtype=torch.float32),
            'noise_variance': torch.tensor(variance, dtype=torch.float32),
        },
    )


def written(
    scan: Scan, sample: Sample, outputs: Mapping[str, Tensor], where: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """First fibres (V, 3), world axes, and their degrees (V,) as `participant` writes them.

    In ``where``, in the mask.
    """
    volumes = np.moveaxis(scan.data[scan.mask], -1, 0), in_grid(scan.gtab, scan.affine)
    fibres, degrees = orientation.named_fibres(outputs, sample, volumes)
    at = where[scan.mask]
    return np.asarray(fibres[at, 0] @ grid_axes(scan.affine).T), degrees[at]


def shell_signal(image: Tensor, slot: int, where: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """(N, V) attenuation along grid ``directions`` (N, 3) that the harmonics of a slot stand for.

    ``image`` is a canonical input, or one with corrections added.
    """
    first = slot * qspace.SLOT_CHANNELS
    part = image[:, torch.from_numpy(where)].double().numpy()
    b = 1000 * float(np.exp(np.median(part[first + qspace.N_SH + 2])))
    harmonics = qspace.of_signal(part[first : first + qspace.N_SH], b)
    return np.asarray(basis(directions, qspace.ORDER) @ harmonics)


def harmonics_of(scan: Scan) -> np.ndarray:
    """(84, V) harmonics of the canonical input in the mask, by the closed-form map alone."""
    attenuation, _, local, variance = attenuation_of(scan)
    found = np.zeros((len(qspace.SLOTS), qspace.N_SH, int(scan.mask.sum())), np.float32)
    for slot, linear in qspace.canonical_map(local, variance).matrices.items():
        found[slot] = linear(attenuation[:, scan.mask])
    return found.reshape(-1, found.shape[-1])


def corrected_harmonics(
    image: Tensor, outputs: Mapping[str, Tensor], mask: np.ndarray
) -> np.ndarray:
    """(84, V) harmonics that the network says, in the mask."""
    inside = torch.from_numpy(mask)
    said = qspace.input_harmonics(image)[:, inside] + outputs['restore'][:, inside]
    return np.asarray(said.numpy())


def said_signal(scan: Scan, harmonics: np.ndarray, table: GradientTable) -> np.ndarray:
    """(N', V) the volumes of ``table`` (world axes) that harmonics (84, V) say, by the scan's S0.

    Those that have a slot; in the mask.
    """
    s0 = signal_at_zero(scan.data[scan.mask], scan.gtab)
    return np.asarray(s0 * attenuation_at(harmonics, in_grid(table, scan.affine)))


def in_estimator(scan: Scan, predicted: np.ndarray) -> np.ndarray:
    """(N, V) volumes in the mask as `participant` restores them from a prediction (N', V)."""
    local, noise = in_grid(scan.gtab, scan.affine), float(np.sqrt(attenuation_of(scan)[3]))
    signal = np.moveaxis(scan.data[scan.mask], -1, 0)
    return restored_scan(signal, predicted, local, scan.mask, voxel_sizes(scan.affine), noise)[0]


def restored_signal(
    scan: Scan, image: Tensor, outputs: Mapping[str, Tensor]
) -> tuple[np.ndarray, GradientTable]:
    """(N, V) volumes in the mask as `participant` restores them, and their table in grid axes."""
    local = in_grid(scan.gtab, scan.affine)
    said = corrected_harmonics(image, outputs, scan.mask)
    return in_estimator(scan, said_signal(scan, said, scan.gtab)), local


def named(
    scan: Scan, image: Tensor, outputs: Mapping[str, Tensor], where: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """First fibres as `participant` writes them, main axes of restored volumes.

    (V, 3) world axes each, in ``where``, in the mask. `tasks.orientation.finish` on arrays: they
    differ where fibres cross.
    """
    volumes, local = restored_signal(scan, image, outputs)
    inside, world = torch.from_numpy(where), grid_axes(scan.affine).T
    axes = fit_tensor(volumes[:, where[scan.mask]], local).direction
    density = outputs['orientation'][orientation.N_DYAD :][:, inside].numpy()
    density *= orientation.shows_crossings(local)
    seen = image[qspace.DENSITY_CHANNELS][:, inside].numpy()
    first = orientation.fibres_of(density, axes, seen)[:, 0]
    return np.asarray(first @ world), np.asarray(axes @ world)


def restored(image: Tensor, outputs: Mapping[str, Tensor]) -> Tensor:
    """The canonical input with the restore head's corrections, in the slots that are filled."""
    result = image.clone()
    n, step = qspace.N_SH, qspace.SLOT_CHANNELS
    for slot in qspace.slots_in_use(image):
        part = outputs['restore'][slot * n : (slot + 1) * n]
        result[slot * step : slot * step + n] += part * (image[slot * step + n] > 0)
    return result
