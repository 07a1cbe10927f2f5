"""Source paper 1 as published, for the study of pretraining: input, network, optimiser.

    python benchmarks/evidence/published.py MODELS [--steps 600]  # MODELS/published.safetensors

Attenuation on 64 directions by harmonics of order 8 (`qspace.sh64_channels`); levels of 16, 32 and
64 channels and a bridge of 128; convolution, instance norm without scale and shift, ReLU, in pairs;
Adam at 1e-3, constant. Pretraining: mean absolute error between what the network makes of corrupted
scans and the clean ones, simulated here with two b = 0 and 64 directions at b = 1000. Written from
the paper (section 2.2) and the notes on it; what is measured later uses a new head and our losses.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from realscans import KEPT
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from bidsapp.core import Sample
from bidsapp.learn.patches import PatchSource, seeded
from bidsapp.modalities.dwi.physics.gradients import GradientTable
from bidsapp.modalities.dwi.physics.harmonics import basis, fibonacci_hemisphere
from bidsapp.modalities.dwi.physics.qspace import sh64_channels
from bidsapp.modalities.dwi.simulate.corruption import Table
from bidsapp.modalities.dwi.simulate.scanned import acquired
from bidsapp.modalities.dwi.simulate.simulator import Simulator
from bidsapp.simulate import template_head

if TYPE_CHECKING:
    from collections.abc import Callable

    from bidsapp.core import Batch

CHANNELS, WIDTHS, BRIDGE, RATE = 64, (16, 32, 64), 128, 1e-3
#: Voxels of a patch and along the edge of a block, as in `arms.py`.
PATCH, SIDE = (24, 24, 24), 32


class Pair(nn.Sequential):
    """Twice: convolution, instance norm, ReLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        layers: list[nn.Module] = []
        for n in (channels_in, channels_out):
            layers += [nn.Conv3d(n, channels_out, 3, padding=1), nn.InstanceNorm3d(channels_out),
                       nn.ReLU()]  # fmt: skip
        super().__init__(*layers)


class Published(nn.Module):
    """(B, 64, X, Y, Z) → (B, channels_out, X, Y, Z); sides are multiples of 8."""

    def __init__(self, channels_out: int) -> None:
        super().__init__()
        ins = (CHANNELS, *WIDTHS)
        self.down = nn.ModuleList(Pair(i, o) for i, o in zip(ins, WIDTHS, strict=False))
        self.bridge = Pair(WIDTHS[-1], BRIDGE)
        self.grow, self.up = nn.ModuleList(), nn.ModuleList()
        for below, width in zip((BRIDGE, *WIDTHS[:0:-1]), WIDTHS[::-1], strict=True):
            self.grow.append(nn.Sequential(
                nn.ConvTranspose3d(below, below, 3, 2, 1, 1), nn.InstanceNorm3d(below), nn.ReLU()
            ))  # fmt: skip
            self.up.append(Pair(below + width, width))
        self.head = nn.Conv3d(WIDTHS[0], channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Down, across and up, as every U-Net."""
        skips = []
        for level in self.down:
            skips.append(level(x))
            x = F.max_pool3d(skips[-1], 2)
        x = self.bridge(x)
        for grow, level, skip in zip(self.grow, self.up, skips[::-1], strict=True):
            x = level(torch.cat([grow(x), skip], dim=1))
        out: Tensor = self.head(x)
        return out


def sample_of(simulator: Simulator, number: int, target: Callable[[int], Tensor] | None) -> Sample:
    """A scan of one shell as the paper enters it; target: the clean 64, or ``target`` (number)."""
    drawn = simulator.drawn(number)
    (b,) = (float(b) for b in drawn.table.bvals.unique() if b > 0)
    harmonics = drawn.signal(b)
    volumes = acquired(drawn, {b: harmonics})
    mask = drawn.block.mask[None]
    weighted = drawn.table.bvals > 0
    s0 = volumes[~weighted].mean(0)
    attenuation = volumes[weighted] / s0.clamp_min(1e-3 * float(s0[mask[0]].median()))
    gtab = GradientTable(
        drawn.table.bvecs[weighted].double().numpy(), drawn.table.bvals[weighted].double().numpy()
    )
    image = sh64_channels(attenuation.clamp(0, 1.5).numpy(), gtab) * mask.numpy()
    if target is None:
        values = torch.from_numpy(basis(fibonacci_hemisphere(CHANNELS), 8)).float()
        clean = torch.einsum('dk,kxyz->dxyz', values, harmonics) / drawn.s0.clamp_min(1e-6)
        wanted = clean.clamp(0, 1) * mask
    else:
        wanted = target(number)
    affine = np.diag([*drawn.block.grid.spacing, 1.0])
    return Sample(torch.from_numpy(image).float(), mask, affine, wanted)


def fitted(
    network: Published,
    source: PatchSource,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    steps: int,
    seed: int,
    look: Callable[[Published], float] | None = None,
    looks: int = 6,
) -> Published:
    """Adam at a constant rate; where ``look`` (lower is better) is given its best step is kept."""
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    best, kept = np.inf, None
    for step in range(steps):
        network.train()
        batch = source.batch(2, seed, step)
        loss(network(batch.image), batch.target, batch.mask).backward()
        optimizer.step()
        optimizer.zero_grad()
        if look is not None and (step + 1) % max(1, steps // looks) == 0:
            network.eval()
            if (score := look(network)) < best:
                best = score
                kept = {k: v.clone() for k, v in network.state_dict().items()}
    if kept is not None:
        network.load_state_dict(kept)
    return network.eval()


def body_of(network: Published) -> dict[str, Tensor]:
    """Weights but those of the head."""
    return {k: v for k, v in network.state_dict().items() if not k.startswith('head.')}


def protocol64(generator: torch.Generator) -> Table:
    """2 b=0 and 64 directions at b = 1000, the same in every scan."""
    directions = torch.from_numpy(fibonacci_hemisphere(64)).float()
    return Table(
        torch.cat([torch.zeros(2, 3), directions]), torch.tensor([0.0] * 2 + [1000.0] * 64)
    )


def absolute(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Over the whole crop, background too, as published."""
    return (prediction - target).abs().mean()


class Refreshed:
    """Patches of 16 scans, all replaced by others every 64 steps."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator, self._round, self._source = simulator, -1, None

    def batch(self, size: int, seed: int, step: int) -> Batch:
        """Batch ``step``."""
        if (which := step // 64) != self._round:
            numbers = range(16 * which, 16 * which + 16)
            scans = [sample_of(self._simulator, number, None) for number in numbers]
            self._round, self._source = which, PatchSource(scans, PATCH)
        return self._source.batch(size, seed, step)  # type: ignore[attr-defined, no-any-return]


def main() -> None:
    """Pretrain and save the body."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('models', type=Path)
    parser.add_argument('--steps', type=int, default=600)
    given = parser.parse_args()
    simulator = Simulator(template_head.kept_template(KEPT), 3, SIDE, draw=protocol64)
    with seeded(1):
        network = Published(CHANNELS)
    fitted(network, Refreshed(simulator), absolute, given.steps, 1)  # type: ignore[arg-type]
    given.models.mkdir(parents=True, exist_ok=True)
    path = given.models / 'published.safetensors'
    save_file({k: v.contiguous() for k, v in body_of(network).items()}, path)
    print(f'{path}: {given.steps} steps')


if __name__ == '__main__':
    main()
