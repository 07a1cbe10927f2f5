"""What comparators are fitted to: the very draws that the network is pretrained on.

Blocks of the `Simulator` (heads, tissues, faults, noise, voxels, all as in pretraining), each of
another person; only the table is not drawn but that of the scheme in question, which favours who is
fitted to it. Features of a voxel: FA and MD of each shell by itself, ln S0 (z-scored in the mask),
and all of these again after a blur of BLUR voxels.
"""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from comparators import blurred
from realscans import KEPT, Scan

from bidsapp.modalities.dwi import simulate
from bidsapp.modalities.dwi.physics.diffusion import fit_tensor
from bidsapp.modalities.dwi.physics.gradients import GradientTable
from bidsapp.modalities.dwi.physics.unweighted import signal_at_zero
from bidsapp.modalities.dwi.simulate.blocks import fractions_of
from bidsapp.modalities.dwi.simulate.scanned import acquired
from bidsapp.modalities.dwi.simulate.simulator import Simulator, scan_of_person
from bidsapp.modalities.dwi.simulate.tissue_parameters import parameters
from bidsapp.physics.geometry import voxel_sizes
from bidsapp.simulate import template_head

if TYPE_CHECKING:
    from foreign import Scheme

#: Voxels along the edge of a block; people; voxels of each that count.
SIDE, PEOPLE, VOXELS = 24, 60, 1500
SEED = 20_261_130
#: Voxels, full width at half maximum.
BLUR = 1.7


def tensors(scan: Scan, where: np.ndarray) -> list[np.ndarray]:
    """FA and MD (µm²/ms), each (V,) in ``where``, of each shell with the b = 0 volumes."""
    found = []
    for _, members in scan.gtab.shells():
        own = scan.of(np.sort(np.concatenate([np.flatnonzero(scan.gtab.b0), members])))
        maps = fit_tensor(own.data, own.gtab, where)
        found += [maps.fa[where], maps.md[where] * 1e3]
    return found


def brightness(scan: Scan, where: np.ndarray) -> np.ndarray:
    """(V,) ln S0, mean 0 and deviation 1."""
    s0 = signal_at_zero(scan.data[where], scan.gtab)
    values = np.log(np.maximum(s0, 1e-3 * np.median(s0) + 1e-12))
    return np.asarray((values - values.mean()) / max(float(values.std()), 1e-6))


def features(scan: Scan) -> np.ndarray:
    """(V, F) in the mask; the first three are FA and MD of the lowest shell, and ln S0."""
    wide = blurred(scan, BLUR * float(voxel_sizes(scan.affine).mean()))
    parts = []
    for one in (scan, wide):
        first, *others = np.split(np.array(tensors(one, scan.mask)), len(scan.gtab.shells()))
        parts += [*first, brightness(one, scan.mask), *(m for two in others for m in two)]
    return np.nan_to_num(np.column_stack(parts))


def squared(x: np.ndarray) -> np.ndarray:
    """With all squares and products, (V, F) → (V, F + F (F + 1) / 2)."""
    count = x.shape[1]
    products = [x[:, i] * x[:, j] for i in range(count) for j in range(i, count)]
    return np.column_stack([x, *products])


@cache
def made_by() -> str:
    """Of the simulator's code and this file: it names what they made."""
    sources = sorted([*Path(str(simulate.__file__)).parent.glob('*.py'), Path(__file__)])
    return sha256(b''.join(path.read_bytes() for path in sources)).hexdigest()[:12]


@cache
def simulator(scheme: Scheme) -> Simulator:
    """That of pretraining, with a table of its own."""
    head = template_head.kept_template(KEPT)
    return Simulator(head, SEED, SIDE, draw=scheme.table)


def drawn(scheme: Scheme, person: int) -> tuple[Scan, np.ndarray, np.ndarray]:
    """A block scanned by a scheme, its tissues (3, X, Y, Z), and icvf, od, isovf (3, X, Y, Z)."""
    one = simulator(scheme).drawn(scan_of_person(person))
    shells = {float(b): one.signal(float(b)) for b in one.table.bvals.unique() if b > 0}
    volumes = acquired(one, shells)
    block, table = one.block, one.table
    gtab = GradientTable(table.bvecs.double().numpy(), table.bvals.double().numpy())
    affine = np.diag([*block.grid.spacing, 1.0])
    data = volumes.movedim(0, -1).contiguous().numpy()
    fractions = fractions_of(block.tissues)
    fractions = fractions / fractions.sum(0).clamp_min(1e-6)
    structure = parameters(block, one.tissue_parameters)
    return Scan(data, gtab, affine, block.mask.numpy()), fractions.numpy(), structure.numpy()


def taught(scheme: Scheme, people: int = PEOPLE) -> dict[str, np.ndarray]:
    """Features (V, F), tissue (V, 3) and parameters (V, 3) of voxels of many draws; kept."""
    kept = KEPT / f'draws-{scheme.name}-{people}-{made_by()}.npz'
    if not kept.is_file():
        rng, found = np.random.default_rng(0), []
        for person in range(people):
            scan, tissue, structure = drawn(scheme, person)
            some = rng.permutation(int(scan.mask.sum()))[:VOXELS]
            own = (features(scan), tissue[:, scan.mask].T, structure[:, scan.mask].T)
            found.append([part[some] for part in own])
        KEPT.mkdir(exist_ok=True)
        names = ('features', 'tissue', 'parameters')
        columns = [np.concatenate(part).astype(np.float32) for part in zip(*found, strict=True)]
        np.savez(kept, **dict(zip(names, columns, strict=True)))
    with np.load(kept) as arrays:
        return dict(arrays)
