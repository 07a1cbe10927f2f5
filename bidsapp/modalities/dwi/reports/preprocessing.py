"""What is drawn and said of a run's correction: head motion and susceptibility distortion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp.bids.images import open_image
from bidsapp.modalities.dwi.bids.tables import b0_threshold_of, read_numbers
from bidsapp.problems import BadData, Problem
from bidsapp.reports import canvas, charts
from bidsapp.reports.page import Drawn
from bidsapp.reports.planes import grey, mean_of, window
from bidsapp.reports.titles import begun
from bidsapp.reports.written import WrittenRun, number_of, raw_image, sidecar

if TYPE_CHECKING:
    from bidsapp.reports.charts import Curves
    from bidsapp.reports.planes import Cut, View

#: Columns of the confounds table that are drawn below the displacement, and their unit there.
MOVEMENTS = {'trans': ('translation (mm)', 1.0), 'rot': ('rotation (°)', 180 / np.pi)}
#: World axes are right, front and up.
AXES = {'x': 'x, to the right', 'y': 'y, to the front', 'z': 'z, up'}


def read_confounds(run: WrittenRun) -> dict[str, np.ndarray]:
    """Columns (N,) of a run's table of confounds, 'n/a' as NaN; empty if there is none.

    Raises BadData for a table that is none.
    """
    path = run.main.with_name(f'{run.name}_desc-confounds_timeseries.tsv')
    if not path.is_file():
        return {}
    header, *rows = [x.split('\t') for x in path.read_text(encoding='utf-8').splitlines()] or [[]]
    try:
        values = [[float('nan' if x == 'n/a' else x) for x in row] for row in rows]
        return dict(zip(header, np.array(values).reshape(-1, len(header)).T, strict=True))
    except ValueError as error:
        raise BadData(f'{path.name} is no table of numbers: {error}') from error


def draw_ingested(run: WrittenRun) -> Drawn | None:
    """Who has corrected a run that was not corrected here."""
    other = sidecar(run.main).get('CorrectedBy')
    if other is None:
        return None
    return Drawn(
        'Head motion and distortion', None,
        f'Whatever was corrected in this run was corrected by {other}, from which it was taken; '
        'see the reports of that pipeline.',
    )  # fmt: skip


def draw_motion(run: WrittenRun) -> Drawn | None:
    """Displacement, translation and rotation by volume, and which volumes had slices replaced.

    From the table of confounds; without one, what the sidecar holds of it.
    """
    content = sidecar(run.main)
    said = content.get('MotionCorrection')
    said = said if isinstance(said, Mapping) else {}
    if 'CorrectedBy' in content:
        return None
    table = read_confounds(run) or _confounds_of(said)
    moved = table.get('framewise_displacement')
    if moved is None or not moved.size:
        return None
    counts = table.get('outlier_slices')
    groups: dict[str, Curves] = {
        words: {name: factor * table[f'{kind}_{axis}'] for axis, name in AXES.items()}
        for kind, (words, factor) in MOVEMENTS.items()
        if all(f'{kind}_{axis}' in table for axis in AXES)
    }
    marked = [] if counts is None else [int(n) for n in np.flatnonzero(counts > 0)]
    path = charts.motion_chart(run.figure(desc='motion', suffix='dwi'), moved, groups, marked)
    return Drawn('Head motion', path, _motion_words(moved, said, marked, bool(groups), counts))


def _confounds_of(said: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What a sidecar holds of the confounds; the first volume has no displacement.

    It names the volumes with replaced slices, not how many slices each: they count as one.
    """
    values = said.get('FramewiseDisplacement')
    if not isinstance(values, list) or not values or any(number_of(x) is None for x in values):
        return {}
    table = {'framewise_displacement': np.array([np.nan, *values[1:]], float)}
    volumes = said.get('VolumesWithOutlierSlices')
    if isinstance(volumes, list):
        table['outlier_slices'] = np.isin(np.arange(len(values)), volumes).astype(float)
    return table


def _motion_words(
    moved: np.ndarray,
    said: Mapping[str, Any],
    marked: list[int],
    curves: bool,
    counts: np.ndarray | None,
) -> str:
    text = 'Framewise displacement of the head'
    if np.isfinite(moved).any():
        text += (f': mean {np.nanmean(moved):.2f} mm, largest {np.nanmax(moved):.2f} mm '
                 f'(volume {np.nanargmax(moved)}, counted from 0)')  # fmt: skip
    text += '.'
    if counts is not None:
        total = number_of(said.get('OutlierSlices'))
        number = int(counts.sum() if total is None else total)
        text += (
            f' {_counted(number, "slice")} in {_counted(len(marked), "volume")} (orange) had lost '
            'signal and were replaced by their prediction.'
            if marked else ' No slice had lost signal and had to be replaced.'
        )  # fmt: skip
    if curves:
        text += (' Below: how the head moved, in world axes, without the shift by eddy currents '
                 'where the phase-encoding axis is known.')  # fmt: skip
    return text


def _counted(number: int, what: str) -> str:
    return f'{number} {what}{"" if number == 1 else "s"}'


def draw_distortion(run: WrittenRun, view: View) -> Drawn | None:
    """The run before and after: mean b=0 as it was recorded, and as it was corrected.

    Without the raw dataset, or where nothing was corrected, only what there is to say.
    """
    said = sidecar(run.main).get('DistortionCorrection')
    if not isinstance(said, Mapping) or not said.get('Method'):
        return None
    text = _distortion_words(said)
    raw = None if said['Method'] == 'none' else _raw_b0(run)
    if raw is None:
        return Drawn('Susceptibility distortion', None, text)
    volume = view.turned(raw)
    high = float(np.mean([window(image, view.brain) for image in (volume, view.background)]))
    cuts = poles(view)

    def row(title: str, image: np.ndarray) -> canvas.Row:
        panels = view.panels(cuts, lambda at: grey(at(image), high), view.head_box, view.brain)
        return title, panels

    rows = [row('As recorded', volume), row('Corrected', view.background)]
    keys = [canvas.swatches([('#ff4d4d', 'outline of the brain mask after correction')])]
    path = canvas.draw_rows(run.figure(desc='distortion', suffix='dwi'), rows, keys)
    text += (
        ' Mean image without diffusion weighting before and after all corrections, that of '
        'receive bias too, in one grey scale. The corrected brain should fill the outline.'
    )
    return Drawn('Susceptibility distortion', path, text)


def poles(view: View) -> list[Cut]:
    """Where the air of sinuses and ears distorts most: frontal and temporal poles."""
    return [*view.cuts(0, 2, 0.22, 0.47), *view.cuts(2, 3, 0.22, 0.42)]


def _raw_b0(run: WrittenRun) -> np.ndarray | None:
    """Mean b=0 (X, Y, Z) of the raw run, on the voxel grid of the preprocessed one.

    None where the raw image is not there any more or is another one by now.
    """
    path = raw_image(run)
    if path is None:
        return None
    try:
        raw, own = open_image(path), open_image(run.main)
        b = read_numbers(run.case.files['bval']).ravel()
        chosen = np.flatnonzero(b <= b0_threshold_of(run.main))
        same = raw.shape == own.shape == (*raw.shape[:3], len(b))
        if not same or not chosen.size or not np.allclose(raw.affine, own.affine, atol=1e-3):
            return None
        return np.nan_to_num(mean_of(path, chosen))
    except (Problem, OSError):
        return None


def _distortion_words(said: Mapping[str, Any]) -> str:
    reasons = said.get('NotUsed') or []
    reasons = '; '.join(map(str, [reasons] if isinstance(reasons, str) else reasons))
    if said['Method'] == 'none':
        return 'Not corrected' + (f': {reasons}.' if reasons else '.')
    text = f'Corrected by {said["Method"]}.'
    before, after = (number_of(said.get(f'Similarity{when}')) for when in ('Before', 'After'))
    if before is not None and after is not None:
        measure = begun(str(said.get('Similarity', 'similarity')))
        text += f' {measure}: {before:.3f} before, {after:.3f} after.'
    median, most = (number_of(said.get(f'Displacement{k}Millimetres')) for k in ('Median', 'Max'))
    if median is not None and most is not None:
        text += f' Displacement in the brain: median {median:.2f} mm, largest {most:.2f} mm.'
    return text + (f' Not used: {reasons}.' if reasons else '')
