"""What can be drawn of a run of any modality: its mask, labels, parameter maps."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from bidsapp.bids.classes import classes_of
from bidsapp.bids.names import parse
from bidsapp.reports import canvas, uncertainty
from bidsapp.reports.page import Drawn
from bidsapp.reports.planes import View, grey, overlaid, window
from bidsapp.reports.titles import begun, heading_of, output_named, title_of
from bidsapp.reports.written import PREDICTED, WrittenRun, outputs_of, sidecar

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from bidsapp.reports.canvas import Row
    from bidsapp.reports.page import Figure
    from bidsapp.reports.planes import At, Cut

#: Colours of labels 1, 2, …: apart from each other, from grey, and for colour-blind eyes.
LABEL_COLOURS = ('#e69f00', '#2ec4b6', '#3f6fff', '#cc79a7', '#f0e442')
DIFFERENT = '#ff3b30'
#: How much of their colour is laid over the image: their brightness must be seen.
COUNTED = 0.75


def comparing_cuts(view: View) -> list[Cut]:
    """The planes at which maps are compared: four axial, one coronal, one sagittal."""
    sagittal = view.cuts(0, 1, 0.4, 0.4)
    return [*view.cuts(2, 4, 0.3, 0.8), *view.cuts(1, 1, 0.45, 0.45), *sagittal]


def source_rows(
    view: View,
    cuts: Sequence[Cut],
    maps: Mapping[str, np.ndarray],
    paint: Callable[[np.ndarray, At], np.ndarray],
) -> list[Row]:
    """The same cuts of the map of every source, a row each."""
    return [
        (begun(title_of(source)), view.panels(cuts, partial(paint, volume)))
        for source, volume in maps.items()
    ]


def draw_mask(run: WrittenRun, view: View) -> Drawn:
    """The mask's outline on the mean b=0 of the whole head."""
    high = window(view.background, view.brain)
    axial = view.cuts(2, 8, 0.06, 0.94)
    others = [*view.cuts(0, 2, 0.35, 0.53), *view.cuts(1, 2, 0.35, 0.6)]

    def paint(at: At) -> np.ndarray:
        return grey(at(view.background), high)

    rows = [('', view.panels(cuts, paint, view.head_box, view.brain))
            for cuts in (axial[:4], axial[4:], others)]  # fmt: skip
    volume = view.brain.sum() * abs(np.linalg.det(view.affine[:3, :3])) / 1e3
    path = run.figure(desc='brain', suffix='mask')
    canvas.draw_rows(path, rows, [canvas.swatches([('#ff4d4d', 'outline of the brain mask')])])
    return Drawn(
        'Brain mask', path,
        f'Brain mask on the {view.background_words}; {volume:.0f} ml. '
        'The line should follow the edge of the brain everywhere.',
    )  # fmt: skip


def seen(path: Path) -> str:
    """What must be said of a comparison with the prediction ``path``."""
    if sidecar(path).get('SeenInTraining') is True:
        return (' The network was trained or chosen with this participant: this agreement says '
                'nothing about new participants.')  # fmt: skip
    return ''


def draw_labels(run: WrittenRun, view: View, segmentation: str) -> Drawn | None:
    """A segmentation of every source over b=0, and where reference and network differ."""
    files = run.images(segmentation=segmentation, suffix='dseg')
    if not files:
        return None
    maps = {source: view.load(path) for source, path in files.items()}
    names = classes_of(next(iter(files.values())))
    indices = sorted({int(i) for m in maps.values() for i in np.unique(m)} - {0})
    output = output_named(run.modality, segmentation)
    counting = output.palette if output else ()
    palette, strength = (counting, COUNTED) if counting else (LABEL_COLOURS, 0.45)
    colours = {i: palette[(i - 1) % len(palette)] for i in indices}
    cuts, high = comparing_cuts(view), window(view.background, view.brain, 98)

    def paint(labels: np.ndarray, at: At) -> np.ndarray:
        return overlaid(grey(at(view.background), high), at(labels), colours, strength)

    rows = source_rows(view, cuts, maps, paint)
    more_rows, more_keys, words = uncertainty.of_labels(run, view, cuts, segmentation)
    rows += more_rows
    pairs = [(colours[i], names.get(i, f'label {i}')) for i in indices]
    caption = f'Labels “{segmentation}” over the {view.background_name}.{words}'
    if PREDICTED in maps and len(maps) > 1:
        first = next(source for source in maps if source != PREDICTED)
        one, other = maps[first], maps[PREDICTED]
        wrong = (one > 0) & (other > 0) & (one != other)
        panels = view.panels(
            cuts,
            lambda at: overlaid(
                0.8 * grey(at(view.background), high), at(wrong), {1: DIFFERENT}, 0.9
            ),
        )
        rows.append(('Differences', panels))
        pairs.append((DIFFERENT, 'different'))
        caption += ' ' + agreement(one, other, names) + seen(files[PREDICTED])
    path = run.figure(segmentation=segmentation, desc='comparison', suffix='dseg')
    canvas.draw_rows(path, rows, [canvas.swatches(pairs), *more_keys])
    return Drawn(heading_of(run.modality, 'Labels', segmentation), path, caption)


def agreement(one: np.ndarray, other: np.ndarray, names: Mapping[int, str]) -> str:
    """How many labelled voxels differ, and the Dice coefficient of each class, in words."""
    both = (one > 0) & (other > 0)
    differing = int((one[both] != other[both]).sum())
    share = 100 * differing / max(int(both.sum()), 1)
    text = f'{differing} of {int(both.sum())} voxels labelled by both differ ({share:.1f} %).'
    dice = []
    for index, name in names.items():
        a, b = one[both] == index, other[both] == index
        if size := int(a.sum() + b.sum()):
            dice.append(f'{name} {2 * int((a & b).sum()) / size:.3f}')
    return text + (f' Dice: {", ".join(dice)}.' if dice else '')


def segmentations(run: WrittenRun) -> list[str]:
    """Names of the segmentations that a run has."""
    named = (parse(path.name) for path in run.files())
    found = {n.get('segmentation', '') for n in named if n['suffix'] == 'dseg'}
    return sorted(found - {''})


def parameters(run: WrittenRun, but: Collection[str] = ()) -> list[str]:
    """Names of the parameter maps that a run has, ``but`` some; those with a scale come first."""
    named = (parse(path.name) for path in run.files())
    found = {n['param'] for n in named if 'param' in n} - set(but)
    scaled = {str(o.entities.get('param')): None for o in outputs_of(run.modality) if o.white}
    first = [name for name in scaled if name in found]
    return [*first, *sorted(found - scaled.keys())]


def usual_figures(run: WrittenRun, view: View) -> list[Figure]:
    """What can be drawn of any modality: mask, every segmentation, every parameter map."""
    return [
        partial(draw_mask, run, view),
        *(partial(draw_labels, run, view, name) for name in segmentations(run)),
        *(partial(draw_parameter, run, view, name) for name in parameters(run)),
    ]


def draw_parameter(run: WrittenRun, view: View, param: str) -> Drawn | None:
    """A parameter map of every source, all in one grey scale."""
    suffix = run.suffix_of(param)
    files = run.images(param=param, suffix=suffix)
    maps = {source: view.load(path) for source, path in files.items()}
    maps = {source: m for source, m in maps.items() if m.ndim == 3}
    if not maps:
        return None
    output = output_named(run.modality, param)
    if output is not None and output.white:
        high, factor, unit = output.white
    else:
        high, factor = max(window(m, view.brain & (m != 0)) for m in maps.values()), 1.0
        unit = f' {sidecar(next(iter(files.values()))).get("Units", "")}'
    cuts = comparing_cuts(view)
    more_rows, more_keys, words = uncertainty.of_parameter(run, view, cuts, param)
    rows = [*source_rows(view, cuts, maps, lambda m, at: grey(at(m), high)), *more_rows]
    path = run.figure(param=param, desc='comparison', suffix=suffix)
    keys = [canvas.scale_bar(param, 'gray', high * factor, unit), *more_keys]
    canvas.draw_rows(path, rows, keys)
    description = str(sidecar(next(iter(files.values()))).get('Description', ''))
    caption = ' '.join([description, *['Every source in the same grey scale.'] * (len(maps) > 1)])
    caption += words
    if PREDICTED in files:
        caption += seen(files[PREDICTED])
    return Drawn(heading_of(run.modality, 'Parameter', param), path, caption)
