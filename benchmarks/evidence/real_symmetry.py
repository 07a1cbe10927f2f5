"""A real scan that is mirrored or turned by right angles gives mirrored or turned maps.

    python benchmarks/evidence/real_symmetry.py [--model FOLDER]

Voxels are permuted, gradients turned with them; nothing is interpolated, so all that differs is the
network's. Directions: median and 90th percentile of the angle in white matter (FA of the input's
tensor > 0.25) between the map of the turned scan, turned back, and the map of the scan. Other maps:
mean absolute difference in the brain, and as a share of the map's own standard deviation there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from applied import Applied, arguments, canonical, written
from comparators import tensor
from people import admit
from realscans import Scan, load_done
from scores import degrees, table

from bidsapp.modalities.dwi.physics.gradients import GradientTable, in_grid
from bidsapp.physics.geometry import turned_voxels, voxel_sizes

if TYPE_CHECKING:
    from bidsapp.core import Turn

TURNS: dict[str, Turn] = {
    'mirror, left-right': ((-1, 0, 0), (0, 1, 0), (0, 0, 1)),
    'mirror, front-back': ((1, 0, 0), (0, -1, 0), (0, 0, 1)),
    'mirror, up-down': ((1, 0, 0), (0, 1, 0), (0, 0, -1)),
    '90° about x': ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    '90° about y': ((0, 0, 1), (0, 1, 0), (-1, 0, 0)),
    '90° about z': ((0, -1, 0), (1, 0, 0), (0, 0, 1)),
}
SCAN = 'sub-prisma_dir-AP'
#: Degrees.
WANTED = 2.0


def upright(scan: Scan) -> Scan:
    """With the grid's own axes as world axes: only then is a turned scan one with RAS axes too."""
    affine = np.diag([*voxel_sizes(scan.affine), 1.0])
    return replace(scan, gtab=in_grid(scan.gtab, scan.affine), affine=affine)


def turned(scan: Scan, turn: Turn) -> Scan:
    """``scan``, upright, with its voxels and gradients turned."""
    volumes = turned_voxels(torch.from_numpy(scan.data).movedim(-1, 0), turn)
    size = np.abs(np.array(turn)) @ voxel_sizes(scan.affine)
    return Scan(
        np.ascontiguousarray(volumes.movedim(0, -1).numpy()),
        GradientTable(scan.gtab.bvecs @ np.array(turn).T, scan.gtab.bvals),
        np.diag([*size, 1.0]),
        turned_voxels(torch.from_numpy(scan.mask), turn).numpy().copy(),
    )


def maps_of(applied: Applied, scan: Scan) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(X, Y, Z, 3) directions, and scalar maps (X, Y, Z)."""
    sample = canonical(scan)
    output = applied(sample)
    directions, doubt = np.zeros((*scan.mask.shape, 3)), np.zeros(scan.mask.shape)
    directions[scan.mask], doubt[scan.mask] = written(scan, sample, output, scan.mask)
    shares = output['tissue'].softmax(0).numpy()
    fibres = output['crossings'].softmax(0).numpy()
    maps = {f'share of {name}': shares[k] for k, name in enumerate(('GM', 'WM', 'CSF'))}
    maps['chance of two or three fibres'] = fibres[2:].sum(0)
    maps['uncertainty of direction'] = doubt
    return directions, maps


def main() -> None:
    """A row a turn."""
    applied = Applied(arguments(__doc__).model)
    print(f'Network: {applied.name}\nScan: {SCAN}, as preprocessed\n')
    admit(applied.card, SCAN)
    scan = upright(load_done(SCAN))
    white = scan.mask & (tensor(scan, scan.mask).fa > 0.25)
    plain, maps = maps_of(applied, scan)
    rows, differences = [], []
    for name, turn in TURNS.items():
        inverse = tuple(tuple(int(x) for x in row) for row in np.array(turn).T)
        vectors, others = maps_of(applied, turned(scan, turn))
        back = turned_voxels(torch.from_numpy(vectors).movedim(-1, 0), inverse).movedim(0, -1)
        angle = degrees(back.numpy()[white] @ np.array(inverse).T, plain[white])
        fine = 'reached' if np.median(angle) <= WANTED else 'NOT reached'
        rows.append([name, float(np.median(angle)), float(np.quantile(angle, 0.9)), fine])
        for label, values in others.items():
            again = turned_voxels(torch.from_numpy(values), inverse).numpy()[scan.mask]
            gap = float(np.abs(again - maps[label][scan.mask]).mean())
            differences.append([name, label, gap, gap / float(maps[label][scan.mask].std())])
    table(['turn', 'median degrees', '90 %', f'at most {WANTED:g}'], rows)
    table(['turn', 'map', 'mean |difference|', 'share of s.d.'], differences)


if __name__ == '__main__':
    main()
