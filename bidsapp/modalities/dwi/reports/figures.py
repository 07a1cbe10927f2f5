"""Figures of a dMRI run: anisotropy and fibre directions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bidsapp.bids.images import load_volume, to_ras
from bidsapp.modalities.dwi.bids.tables import load_table
from bidsapp.modalities.dwi.physics.diffusion import FREE_WATER
from bidsapp.reports import canvas
from bidsapp.reports.maps import comparing_cuts, seen, source_rows
from bidsapp.reports.page import Drawn
from bidsapp.reports.planes import View, grey, mapped, window
from bidsapp.reports.titles import title_of
from bidsapp.reports.uncertainty import Beside, predicted_map, row
from bidsapp.reports.written import PREDICTED, WrittenRun

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bidsapp.reports.canvas import Key, Row
    from bidsapp.reports.planes import At, Cut, View

#: Degrees; axes at random are 57° apart on average.
LARGEST_ANGLE = 90.0


def tensor_maps(run: WrittenRun, view: View) -> tuple[np.ndarray, np.ndarray]:
    """(FA, direction) turned to RAS, where they are not on disk."""
    from bidsapp.modalities.dwi.physics.diffusion import fit_tensor

    mask = load_volume(run.case.files['mask']) > 0
    tensor = fit_tensor(load_volume(run.main), load_table(run.case), mask)
    affine = view.run_affine
    return to_ras(tensor.fa, affine)[0], to_ras(tensor.direction, affine)[0]


def draw_anisotropy(run: WrittenRun, view: View) -> Drawn:
    """FA in grey, FA coloured by direction, and mean diffusivity."""
    fa_files = run.images(suffix='FA')
    adc_files = run.images(suffix='ADC')
    direction_files = run.images(param='direction', suffix='dwimap')
    source = next((s for s in direction_files if s != PREDICTED), '')
    if fa_files and source:
        fa = view.load(next(iter(fa_files.values())))
        direction = view.load(direction_files[source])
    else:
        source, (fa, direction) = 'tensor', tensor_maps(run, view)
    cuts = comparing_cuts(view)

    def paint(at: At) -> np.ndarray:
        here = at(direction)[..., :3]
        none = ~here.any(-1, keepdims=True)
        return np.where(none, 0.5 * grey(at(fa), 1), coloured_directions(here, at(fa)))

    rows: list[Row] = [
        ('Fractional anisotropy', view.panels(cuts, lambda at: grey(at(fa), 1))),
        (f'Fractional anisotropy by direction ({title_of(source)})', view.panels(cuts, paint)),
    ]
    keys: list[Key] = [canvas.scale_bar('FA', 'gray', 1), canvas.direction_ball]
    if adc_files:
        adc = view.load(next(iter(adc_files.values())))
        panels = view.panels(cuts, lambda at: grey(at(adc), FREE_WATER))
        rows.append(('Mean diffusivity', panels))
        keys.append(canvas.scale_bar('diffusivity', 'gray', FREE_WATER * 1e3, ' · 10⁻³ mm²/s'))
    caption = 'Anisotropy, the main direction of diffusion weighted by it, and mean diffusivity.'
    if not direction[view.brain].any(-1).all():
        caption += ' Where the direction map holds none, anisotropy is in dim grey.'
    path = canvas.draw_rows(run.figure(desc='colour', suffix='FA'), rows, keys)
    return Drawn('Anisotropy', path, caption)


def draw_directions(run: WrittenRun, view: View) -> Drawn | None:
    """First fibre of reference and network in colour, and the angle between them."""
    files = run.images(param='direction', suffix='dwimap')
    if PREDICTED not in files:
        return None
    maps = {source: view.load(path)[..., :3] for source, path in files.items()}
    cuts, high = comparing_cuts(view), window(view.background, view.brain)
    fa_files = run.images(suffix='FA')
    fa = view.load(next(iter(fa_files.values()))) if fa_files else None

    def paint(direction: np.ndarray, at: At) -> np.ndarray:
        here = at(direction)
        weight = np.sqrt(at(fa)) if fa is not None else np.ones(here.shape[:2])
        return coloured_directions(here, weight)

    more_rows, more_keys, words = of_directions(run, view, cuts)
    rows = [*source_rows(view, cuts, maps, paint), *more_rows]
    keys: list[Key] = [canvas.direction_ball, *more_keys]
    caption = 'Direction of the first fibre; brightness is the square root of anisotropy.' + words
    if len(maps) > 1:
        first = next(source for source in maps if source != PREDICTED)
        angle, where = angles(maps[first], maps[PREDICTED])
        rows.append(('Angle between them', view.panels(
            cuts, lambda at: mapped(0.5 * grey(at(view.background), high), at(angle), at(where),
                                    LARGEST_ANGLE, 'inferno'))))  # fmt: skip
        keys.append(canvas.scale_bar('angle', 'inferno', LARGEST_ANGLE, '°'))
        if where.any():
            caption += (f' Median angle in white matter {np.median(angle[where]):.1f}° '
                        f'({int(where.sum())} voxels).' + seen(files[PREDICTED]))  # fmt: skip
    path = run.figure(param='direction', desc='comparison', suffix='dwimap')
    return Drawn('Fibre directions', canvas.draw_rows(path, rows, keys), caption)


def angles(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Degrees (X, Y, Z) between axes (X, Y, Z, 3), 0 to 90, and where both have one."""
    where = one.any(-1) & other.any(-1)
    length = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    cosine = np.abs((one * other).sum(-1)) / np.where(where, length, 1)
    degrees = np.degrees(np.arccos(np.clip(cosine, 0, 1)))
    return np.where(where, degrees, 0), np.asarray(where)


def coloured_directions(direction: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """World-axes vectors (H, W, 3) → red left-right, green front-back, blue up-down; by weight."""
    return np.clip(np.abs(direction[..., :3]) * np.clip(weight, 0, 1)[..., None], 0, 1)


#: Degrees; what an axis about which nothing is known differs by, root mean square.
NO_DIRECTION = 54.7


def of_directions(run: WrittenRun, view: View, cuts: Sequence[Cut]) -> Beside:
    """A row with the expected angular error of the predicted first fibre."""
    words = (f'Expected angle: how far from its direction the network expects the true one; '
             f'{NO_DIRECTION}° where it does not know.')  # fmt: skip
    path = predicted_map(run, 'direction')
    return row(view, cuts, path, NO_DIRECTION, 'expected angle', '°', words)
