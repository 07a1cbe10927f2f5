"""How near susceptibility by a network comes to the truth, beside what tuned classical maps reach.

    python benchmarks/gre.py [--model FOLDER] [--lines alone unseen told cost heads] [--blocks 8]
                             [--voxel 2] [--seed 1]

Held-out blocks of `simulate/susceptibility.py`, of a seed that no training has, and a simulated
head (`benchmarks/susceptibility.py`), whose anatomy and vessels no training has. NRMSE (%) and XSIM
in a mask eroded by 3 mm, both maps demeaned there. ``TV rule`` has the λ that a user gets, ``TV
best`` and ``Tikhonov best`` the best of several by XSIM for each field, chosen afterwards with the
truth at hand; ``start`` is where the network starts; ``nothing`` is a map of zeros. Lines:

alone   inversion of a clean local field with its noise, of phantoms and of fields of which χ does
        not explain a part (0.15 of χ's spread), all seen kinds of voxels and tilts
unseen  the same blocks at 1 mm axial and at voxels and tilts that training leaves out: error over
        that at 1 mm axial, divided by the same of TV rule; 1.05 is the most it may be
told    the network where it is told a wrong voxel size or a wrong direction of B0
cost    seconds of one processor, for 160 x 160 x 120 voxels
heads   a head: axial, and tilted by 28°
"""

from __future__ import annotations

import argparse
import math
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from susceptibility import scanned

from bidsapp.core import Sample
from bidsapp.learn.cards import bundled_model
from bidsapp.learn.checkpoint import load
from bidsapp.learn.predict import network_of, predict_tta, turns_of
from bidsapp.modalities.gre.learn.head import HEAD
from bidsapp.modalities.gre.learn.input import turned
from bidsapp.modalities.gre.physics import background, maps
from bidsapp.modalities.gre.physics.agreement import nrmse, slope, xsim
from bidsapp.modalities.gre.physics.seen import seen
from bidsapp.modalities.gre.simulate import susceptibility
from bidsapp.modalities.gre.simulate.geometry import Geometry, draw_geometry
from bidsapp.physics.geometry import voxel_sizes
from bidsapp.physics.streams import stream

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bidsapp.modalities.gre.simulate.susceptibility import Block, Measured

#: Of λ of total variation by the rule; λ of Tikhonov.
FACTORS, STRENGTHS = (0.5, 0.7, 1.0, 1.4, 2.0, 4.0), (0.005, 0.02, 0.05, 0.1)
#: Of the unexplained part: its spread over that of χ, by the kind of a field.
KINDS = {'phantom': 0.0, 'in vivo': 0.15}
#: A seed of blocks that no training has, and voxels along the edge of one.
SEED, SIDE = 10_000, 48
AXIAL = Geometry((1.0, 1.0, 1.0), (0.0, 0.0, 1.0))
UNSEEN = {
    '1.5 mm': Geometry((1.5, 1.5, 1.5), (0.0, 0.0, 1.0)),
    '1 x 1 x 2.75 mm': Geometry((1.0, 1.0, 2.75), (0.0, 0.0, 1.0)),
    'tilted 35°': Geometry(
        (1.0, 1.0, 1.0), (0.0, math.sin(math.radians(35)), math.cos(math.radians(35)))
    ),
}


class Solver:
    """Maps of one field by every method."""

    def __init__(self, model: Path | None) -> None:
        self.network, self.turns = None, ()
        if model is not None:
            checkpoint = load(model)
            self.network = network_of(checkpoint, ['susceptibility'])
            self.turns = turns_of(checkpoint.card)

    def by_network(
        self, found: Measured, told: Geometry, saw: Geometry
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Where it starts and χ by the network; ``told`` one geometry of what ``saw`` another."""
        inputs = (found.field, found.noise, found.mask)
        image, context = seen(*inputs, saw.voxel_mm, saw.b, found.radius)
        if self.network is None:
            return image[1].numpy(), None
        context |= {'voxel_mm': torch.tensor(told.voxel_mm), 'b': torch.tensor(told.b)}
        inside = torch.from_numpy(found.mask)[None]
        sample = Sample(image, inside, np.eye(4), context=context)
        said = predict_tta(self.network, sample, [HEAD], self.turns, turned)
        return image[1].numpy(), said[0].numpy()

    def maps_of(
        self, found: Measured, geometry: Geometry, score: Callable[[np.ndarray], float]
    ) -> dict[str, np.ndarray]:
        """Method → χ; the best of several is told by ``score``."""
        affine = np.diag([*geometry.voxel_mm, 1.0])
        inputs = (found.field, found.noise, found.mask, affine)

        def classical(method: str, strength: float) -> np.ndarray:
            return maps.susceptibility(*inputs, method, strength, b=geometry.b)

        rule = maps.inverted(*inputs, 'tv', b=geometry.b)
        tv = {q: classical('tv', q * rule.strength) for q in FACTORS if q != 1.0} | {1.0: rule.chi}
        tikhonov = {s: classical('tikhonov', s) for s in STRENGTHS}
        result = {
            'nothing': np.zeros_like(tv[1.0]),
            'Tikhonov best': max(tikhonov.values(), key=score),
            'TV rule': tv[1.0],
            'TV best': max(tv.values(), key=score),
        }
        result['start'], said = self.by_network(found, geometry, geometry)
        return result if said is None else {**result, 'network': said}


def core_of(mask: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The mask less 3 mm."""
    return background.depth(mask, geometry.voxel_mm) > 3.0


def block_of(number: int, geometry: Geometry, unexplained: float) -> tuple[Block, Measured]:
    """A held-out block, whose content follows from its number, and its clean local field."""
    generator = stream(SEED, number)
    block = susceptibility.draw_block(geometry, SIDE, generator, unexplained)
    return block, susceptibility.clean(block, generator)


class Table:
    """Figures by method, printed as means."""

    def __init__(self) -> None:
        self.rows: dict[str, list[tuple[float, float, float]]] = defaultdict(list)

    def add(self, name: str, chi: np.ndarray, truth: np.ndarray, core: np.ndarray) -> None:
        """One more field."""
        pair = chi, truth, core
        self.rows[name].append((nrmse(*pair), xsim(*pair), slope(*pair)))

    def mean(self, name: str) -> np.ndarray:
        """NRMSE, XSIM, slope."""
        return np.mean(self.rows[name], axis=0)

    def show(self, title: str) -> None:
        """A line a method."""
        for name, rows in self.rows.items():
            error, alike, steep = self.mean(name)
            print(f'{title:28s} {name:14s} {error:6.1f} % {alike:.3f} {steep:.2f} ({len(rows)})')
        if 'network' in self.rows:
            rule, own = (np.array(self.rows[name]) for name in ('TV rule', 'network'))
            gain, share = own[:, 1] - rule[:, 1], own[:, 0] / rule[:, 0]
            print(f'{title:28s} network less TV rule: XSIM {gain.mean():+.3f} (least '
                  f'{gain.min():+.3f}), NRMSE x {share.mean():.2f}', flush=True)  # fmt: skip


def scored(
    solver: Solver, table: Table, found: Measured, geometry: Geometry, truth: np.ndarray
) -> None:
    """Every method on one field."""
    core = core_of(found.mask, geometry)
    maps_ = solver.maps_of(found, geometry, lambda chi: xsim(chi, truth, core))
    for name, chi in maps_.items():
        table.add(name, chi, truth, core)


def alone(solver: Solver, options: argparse.Namespace) -> None:
    """Inversion alone."""
    for kind, unexplained in KINDS.items():
        table = Table()
        for number in range(options.blocks):
            geometry = draw_geometry(stream(SEED, number, of='geometry'))
            block, found = block_of(number, geometry, unexplained)
            scored(solver, table, found, geometry, block.chi)
        table.show(f'alone, {kind}')


def unseen(solver: Solver, options: argparse.Namespace) -> None:
    """Unseen voxels and tilts."""
    errors: dict[str, Mapping[str, float]] = {}
    for place, geometry in {'1 mm axial': AXIAL, **UNSEEN}.items():
        table = Table()
        for number in range(options.blocks):
            block, found = block_of(number, geometry, KINDS['phantom'])
            scored(solver, table, found, geometry, block.chi)
        table.show(f'unseen, {place}')
        errors[place] = {name: float(table.mean(name)[0]) for name in table.rows}
        if solver.network is not None:
            grown = {n: errors[place][n] / errors['1 mm axial'][n] for n in ('TV rule', 'network')}
            print(f'unseen, {place}: growth over that of TV '
                  f'{grown["network"] / grown["TV rule"]:.3f}', flush=True)  # fmt: skip


def told(solver: Solver, options: argparse.Namespace) -> None:
    """Wrong side information."""
    if solver.network is None:
        return
    right = Geometry((1.0, 1.0, 2.0), (0.0, math.sin(0.35), math.cos(0.35)))
    wrong = {
        'right': right,
        'voxels of 1 mm': replace(right, voxel_mm=(1.0, 1.0, 1.0)),
        'axial': replace(right, b=(0.0, 0.0, 1.0)),
    }
    table = Table()
    for number in range(options.blocks):
        block, found = block_of(number, right, KINDS['phantom'])
        for name, geometry in wrong.items():
            _, chi = solver.by_network(found, geometry, right)
            table.add(name, chi, block.chi, core_of(found.mask, right))
    table.show('told')


def cost(solver: Solver, options: argparse.Namespace) -> None:
    """Seconds of one processor, whatever it shares."""
    shape = (160, 160, 120)
    rng = np.random.default_rng(0)
    places = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing='ij'))
    mask = (places**2).sum(0) < 1
    mask[:, 80, 60] = mask[80, :, 60] = mask[80, 80, :] = True  # the box is the whole grid
    field = np.where(mask, 0.01 * rng.normal(size=shape), 0)
    found = susceptibility.Measured(field, np.full(shape, 1e-3), mask, 0.0)
    start = time.process_time()
    maps.susceptibility(field, found.noise, mask, np.eye(4), 'tv')
    print(f'cost: total variation {time.process_time() - start:.0f} s')
    if solver.network is not None:
        start = time.process_time()
        solver.by_network(found, AXIAL, AXIAL)
        print(f'cost: network with its start {time.process_time() - start:.0f} s', flush=True)


def heads(solver: Solver, options: argparse.Namespace) -> None:
    """A simulated head, by its true local field and the noise of its scan."""
    for tilt in (0.0, 28.0):
        scan = scanned(argparse.Namespace(
            voxel=options.voxel, tilt=tilt, echoes=5, unexplained=0.0, seed=options.seed
        ))  # fmt: skip
        times = torch.tensor(scan.protocol.echo_times)[:, None, None, None]
        weight = (scan.signal.abs() * times).square().sum(0).sqrt().numpy()
        mhz, inside = scan.protocol.imaging_mhz, scan.brain.numpy()
        noise = scan.sigma / (2 * math.pi * mhz * np.maximum(weight, 1e-3 * np.median(weight)))
        affine = scan.grid.affine.double().numpy()
        x, y, z = voxel_sizes(affine).tolist()
        i, j, k = maps.b0_direction(affine).tolist()
        field = scan.local.numpy() + noise * np.random.default_rng(0).normal(size=noise.shape)
        found = susceptibility.Measured(np.where(inside, field, 0), noise, inside, 0.0)
        table = Table()
        scored(solver, table, found, Geometry((x, y, z), (i, j, k)), scan.chi.numpy())
        table.show(f'head, {options.voxel:g} mm, {tilt:g}°')


LINES = {'alone': alone, 'unseen': unseen, 'told': told, 'cost': cost, 'heads': heads}


if __name__ == '__main__':
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--model', type=Path, metavar='FOLDER', help='default: the bundled one')
    parser.add_argument('--lines', nargs='+', choices=list(LINES), default=list(LINES))
    parser.add_argument('--blocks', type=int, default=8)
    parser.add_argument('--voxel', type=float, default=2.0, metavar='MM', help='of the head')
    parser.add_argument('--seed', type=int, default=1, help='of the head')
    options = parser.parse_args()
    solver = Solver(options.model or bundled_model('gre'))
    with torch.inference_mode():
        for line in options.lines:
            LINES[line](solver, options)
