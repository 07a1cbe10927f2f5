"""What a page shows of a raw scan: verdict, every method, errors, a profile, coils, noise."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from bidsapp.modalities.kspace.bids.prepared import acquisition_of
from bidsapp.modalities.kspace.interfaces.reconstruction import page_file
from bidsapp.modalities.kspace.reports.verdict import draw_verdict, methods_of
from bidsapp.reports import canvas
from bidsapp.reports.charts import profile_chart
from bidsapp.reports.page import Drawn
from bidsapp.reports.planes import Panel, View, grey, mapped, window
from bidsapp.reports.titles import begun, title_of
from bidsapp.reports.written import sidecar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bidsapp.reports.page import Figure
    from bidsapp.reports.planes import At, Cut
    from bidsapp.reports.written import WrittenRun

#: Share of the brightest signal that is drawn brightest in maps of errors.
ERROR = 0.1
#: Planes that are shown, and coils.
SHOWN, COILS = 4, 8
UNKNOWN = ' The file does not say where slices lie: nobody knows left from right.'


def facts(run: WrittenRun) -> dict[str, Any]:
    """The acquisition in words."""
    return {'Acquisition': acquisition_of(run.case).words}


def drawn(run: WrittenRun, view: View) -> list[Figure]:
    """Every figure that a run may have, in their order on the page."""
    return [
        partial(draw_verdict, run),
        partial(draw_methods, run, view),
        partial(draw_errors, run, view),
        partial(draw_profile, run, view),
        partial(draw_coils, run, view),
        partial(draw_noise, run, view),
    ]


def cuts_of(view: View) -> list[Cut]:
    """Planes as they were measured: across the slices, or across the third axis of a slab."""
    axis = int(nib.orientations.io_orientation(view.run_affine)[2, 0])
    count = view.background.shape[axis]
    return view.cuts(axis, SHOWN, 0.3, 0.7) if count > SHOWN else view.cuts(axis, count, 0, 1)


def panels(
    run: WrittenRun, view: View, cuts: Sequence[Cut], paint: Callable[[At], np.ndarray]
) -> list[Panel]:
    """A panel for each cut, without letters where nobody knows left from right."""
    found = view.panels(cuts, paint)
    if sidecar(run.main).get('GeometryKnown') is not False:
        return found
    return [replace(panel, letters=('', ''), place='') for panel in found]


def draw_methods(run: WrittenRun, view: View) -> Drawn:
    """The image by every method, each in its own grey scale."""
    cuts, rows = cuts_of(view), []
    for source, path in methods_of(run).items():
        volume = view.load(path)
        high = window(volume, view.brain, 99.5)
        rows.append((
            begun(title_of(source)),
            panels(run, view, cuts, partial(_plain, volume, high)),
        ))  # fmt: skip
    path = canvas.draw_rows(_figure(run, 'comparison'), rows)
    unknown = '' if sidecar(run.main).get('GeometryKnown', True) else UNKNOWN
    return Drawn('Every method', path, 'Magnitudes, the brightest of each white.' + unknown)


def _plain(volume: np.ndarray, high: float, at: At) -> np.ndarray:
    return grey(at(volume), high)


def _figure(run: WrittenRun, desc: str) -> Any:
    suffix = run.entities['suffix']
    return run.figure(desc=desc, suffix=suffix)


def _scaled(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """An image times the factor that brings it closest to the truth."""
    return np.asarray(found * (found * truth).sum() / max((found * found).sum(), 1e-30))


def draw_errors(run: WrittenRun, view: View) -> Drawn | None:
    """What each method differs in from the image of all lines."""
    files = methods_of(run)
    if 'full' not in files or len(files) < 2:
        return None
    truth, cuts, rows, words = view.load(files.pop('full')), cuts_of(view), [], []
    high = ERROR * window(truth, view.brain, 99.5)
    for source, path in files.items():
        error = np.abs(_scaled(view.load(path), truth) - truth)
        words.append(
            f'{title_of(source)} {100 * np.linalg.norm(error) / np.linalg.norm(truth):.1f}'
        )
        rows.append((
            begun(title_of(source)), panels(run, view, cuts, partial(_hot, error, high)),
        ))  # fmt: skip
    figure = canvas.draw_rows(
        _figure(run, 'errors'), rows, [canvas.scale_bar('error', 'inferno', 100 * ERROR, ' %')]
    )
    return Drawn(
        'Errors', figure,
        'Difference from the image of all lines, of the brightest signal, each image first times '
        f'the factor that brings it closest. Root mean square over the image, per cent of it: '
        f'{", ".join(words)}.',
    )  # fmt: skip


def _hot(error: np.ndarray, high: float, at: At) -> np.ndarray:
    plane = at(error)
    return mapped(0 * grey(plane, high), plane, np.ones(plane.shape, bool), high, 'inferno')


def draw_profile(run: WrittenRun, view: View) -> Drawn | None:
    """The line through the middle across phase encoding."""
    import matplotlib as mpl

    files = methods_of(run)
    if len(files) < 2:
        return None
    from bidsapp.bids.images import load_volume

    lines = {}
    for source, path in files.items():
        volume = load_volume(path)
        lines[title_of(source)] = volume[volume.shape[0] // 2, :, volume.shape[2] // 2]
    with mpl.rc_context():
        path = profile_chart(
            _figure(run, 'profile'), lines, 'voxel along phase encoding', 'magnitude'
        )
    return Drawn(
        'Profile', path,
        'The central line across the phase-encoding direction, in the middle of the readout and of '
        'the slices. What folds over, and what was smoothed away, shows here.',
    )  # fmt: skip


def _kept(run: WrittenRun) -> dict[str, np.ndarray]:
    """What the middle plane was reconstructed with; nothing where that is gone."""
    path = page_file(run.root, run.case)
    if not path.is_file():
        return {}
    with np.load(path) as found:
        return {name: np.asarray(found[name], np.float32) for name in found.files}


def _plane(picture: np.ndarray, name: str, mm: tuple[float, float] = (1.0, 1.0)) -> Panel:
    """A plane (X, Y) as it was measured: phase encoding upwards."""
    x, y = picture.shape[:2]
    return Panel(np.swapaxes(picture, 0, 1), (x * mm[0], y * mm[1]), ('', ''), name)


def draw_coils(run: WrittenRun, view: View) -> Drawn | None:
    """What each coil sees, and which samples were measured."""
    found = _kept(run)
    if not found:
        return None
    maps, mask = found['maps'][:COILS], found['mask']
    across = maps.shape[1] if mask.ndim == 1 else len(mask)
    picture = np.broadcast_to(mask, (across, mask.shape[-1]))
    rows = [
        ('Coil maps', [_plane(grey(m, 1.0), f'coil {n}') for n, m in enumerate(maps, 1)]),
        ('Measured samples', [_plane(grey(picture, 1.0), 'k-space')]),
    ]
    more = f' The first {COILS} of {len(found["maps"])} coils.' * (len(found['maps']) > COILS)
    return Drawn(
        'Coils and sampling', canvas.draw_rows(_figure(run, 'coils'), rows),
        'Magnitudes of the coil maps of the middle plane, whose squares sum to 1, after the coils '
        f'were compressed; phase encoding upwards.{more} White samples were measured.',
    )  # fmt: skip


def draw_noise(run: WrittenRun, view: View) -> Drawn | None:
    """How much more noise the linear reconstruction has than all of k-space would give."""
    found = _kept(run)
    if not found:
        return None
    noise = found['noise']
    high = max(float(np.percentile(noise, 99)), 1e-6)
    picture = mapped(0 * grey(noise, high), noise, np.ones(noise.shape, bool), high, 'viridis')
    path = canvas.draw_rows(
        _figure(run, 'noise'), [('', [_plane(picture, 'middle plane')])],
        [canvas.scale_bar('noise', 'viridis', high)],
    )  # fmt: skip
    return Drawn(
        'Noise of the linear reconstruction', path,
        'Standard deviation of CG-SENSE over that of a sample: 1 where all of k-space would give '
        'it, √R g with g the geometry factor; what its penalty takes away is less than that.',
    )  # fmt: skip
