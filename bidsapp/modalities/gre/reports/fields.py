"""Figures of a gradient-echo run before its inversion: masks, phase, fields, decay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp.bids.identity import roots_of
from bidsapp.bids.names import parse
from bidsapp.modalities.gre.bids.prepared import NOISE_FIELD
from bidsapp.problems import BadData
from bidsapp.reports import canvas
from bidsapp.reports.maps import comparing_cuts
from bidsapp.reports.page import Drawn
from bidsapp.reports.planes import View, grey, mapped, overlaid, window
from bidsapp.reports.written import number_of, sidecar

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bidsapp.reports.canvas import Key, Row
    from bidsapp.reports.planes import Cut, Panel
    from bidsapp.reports.written import WrittenRun

#: Colour of what is left out.
LOST = '#ff9f1c'
#: 1/s that are drawn white.
FAST = 60.0


def beside(run: WrittenRun, **entities: str) -> Path | None:
    """The image of a run that is called so; None where there is none."""
    for path in run.files():
        named = parse(path.name)
        if path.name.endswith('.nii.gz') and all(named.get(k) == v for k, v in entities.items()):
            return path
    return None


def bright(view: View, cuts: Sequence[Cut], volume: np.ndarray) -> list[Panel]:
    """Panels of an image in grey, its brightest tissue white."""
    high = window(volume, view.brain)
    return view.panels(cuts, lambda at: grey(at(volume), high))


def signed(view: View, cuts: Sequence[Cut], volume: np.ndarray, high: float, name: str) -> Row:
    """A row of a map in grey from -``high`` to ``high``."""
    return name, view.panels(cuts, lambda at: grey(at(volume), high, -high))


def draw_masks(run: WrittenRun, view: View) -> Drawn | None:
    """The brain's outline, and in it where the phase cannot be believed."""
    path = beside(run, desc='brain', suffix='mask')
    if path is None:
        return None
    brain = view.load(path) > 0
    high, lost = window(view.background, view.brain), brain & ~view.brain
    axial = view.cuts(2, 8, 0.06, 0.94)
    others = [*view.cuts(0, 2, 0.35, 0.53), *view.cuts(1, 2, 0.35, 0.6)]
    rows = [
        ('', view.panels(cuts, lambda at: overlaid(grey(at(view.background), high), at(lost),
                                                   {1: LOST}, 0.6), view.head_box, brain))
        for cuts in (axial[:4], axial[4:], others)
    ]  # fmt: skip
    volume = brain.sum() * abs(np.linalg.det(view.affine[:3, :3])) / 1e3
    keys = canvas.swatches([('#ff4d4d', 'outline of the brain mask'), (LOST, 'phase not believed')])
    share = view.brain.sum() / max(int(brain.sum()), 1)
    return Drawn(
        'Brain mask and quality of the phase',
        canvas.draw_rows(run.figure(desc='brain', suffix='mask'), rows, [keys]),
        f'Brain mask on the {view.background_words}; {volume:.0f} ml. The phase is believed in '
        f'{share:.1%} of it; nothing is known of susceptibility in the rest. '
        + quality_words(sidecar(run.main).get('FieldFit', {})),
    )


def quality_words(fit: Any) -> str:
    """What the fit of the field says of the phase."""
    found = fit if isinstance(fit, dict) else {}
    words = []
    if (residues := number_of(found.get('PhaseResidues'))) is not None:
        words.append(f'{residues:.0f} open loops in the wrapped phase')
    if (misfit := number_of(found.get('ResidualOverNoise'))) is not None:
        words.append(f'the line over the echoes leaves {misfit:.2f} times the noise (median)')
    if (noise := number_of(found.get('NoiseMedian'))) is not None:
        words.append(f'the noise of the field is {noise:.2g} Hz (median)')
    return '; '.join(words)[:1].upper() + '; '.join(words)[1:] + '.' if words else ''


def raw_phases(run: WrittenRun) -> list[Path]:
    """Phase images that the run was made from, as far as they still are where links say."""
    roots, found = roots_of(run.root, {}), []
    for uri in sidecar(run.main).get('Sources') or []:
        name, _, below = str(uri).removeprefix('bids:').partition(':')
        path = roots[name] / below if name in roots else None
        if path is not None and parse(path.name).get('part') == 'phase' and path.is_file():
            found.append(path)
    return found


def phase_row(view: View, path: Path) -> Row:
    """A row of phase as it was written, from its lowest to its highest value. Raises BadData."""
    volume = view.load(path)
    low, high = float(np.nanmin(volume)), float(np.nanmax(volume))
    if volume.ndim != 3 or not low < high:
        raise BadData(f'{path.name} holds no phase that could be drawn')
    echo = parse(path.name).get('echo')
    panels = view.panels(
        comparing_cuts(view), lambda at: grey(at(volume), high, low), view.head_box
    )
    return f'Phase of echo {echo}' if echo else 'Phase', panels


def draw_phase(run: WrittenRun, view: View) -> Drawn | None:
    """The phase of the first and the last echo as they were written, and the field's noise."""
    cuts = comparing_cuts(view)
    phases = raw_phases(run)
    rows: list[Row] = [phase_row(view, path) for path in dict.fromkeys(phases[:1] + phases[-1:])]
    keys: list[Key] = []
    factor = number_of(sidecar(run.main).get(NOISE_FIELD))
    if factor:
        noise = np.where(view.brain, factor / np.maximum(view.background, 1e-9), 0)
        high = window(noise, view.brain, 98)
        rows.append(('Noise of the field', view.panels(
            cuts, lambda at: mapped(0 * grey(at(noise), high), at(noise), at(view.brain), high,
                                    'inferno'), view.head_box)))  # fmt: skip
        keys.append(canvas.scale_bar('noise of the field', 'inferno', high, ' Hz'))
    if not rows:
        return None
    path = canvas.draw_rows(run.figure(desc='phase', suffix='fieldmap'), rows, keys)
    return Drawn(
        'Phase', path,
        'Phase as it was written, black to white its whole range; and the standard deviation of '
        'the field that follows from the magnitude.',
    )  # fmt: skip


def draw_fields(run: WrittenRun, view: View) -> Drawn:
    """Total and local field."""
    cuts = comparing_cuts(view)
    rows: list[Row] = []
    keys: list[Key] = []
    for kind in ('total', 'local'):
        path = beside(run, desc=kind, suffix='fieldmap')
        if path is None:
            continue
        volume = view.load(path)
        middle = np.median(volume[view.brain]) if kind == 'total' else 0
        volume = np.where(view.brain, volume - middle, 0)
        high = window(np.abs(volume), view.brain, 98)
        rows.append(signed(view, cuts, volume, high, f'{kind.capitalize()} field'))
        keys.append(canvas.scale_bar(f'{kind} field', 'gray', high, ' Hz', -high))
    return Drawn(
        'Fields', canvas.draw_rows(run.figure(desc='both', suffix='fieldmap'), rows, keys),
        'Field in Hz, less its median; total: of all sources; local: of those in the brain. Veins '
        'and iron are bright in the local field where they run along B0.',
    )  # fmt: skip


def draw_decay(run: WrittenRun, view: View) -> Drawn | None:
    """R2*."""
    path = beside(run, suffix='R2starmap')
    if path is None:
        return None
    rate = view.load(path)
    rows = [('', view.panels(comparing_cuts(view), lambda at: grey(at(rate), FAST)))]
    path = canvas.draw_rows(
        run.figure(suffix='R2starmap'), rows, [canvas.scale_bar('R2*', 'gray', FAST, ' 1/s')]
    )
    return Drawn('Transverse relaxation', path, 'R2* in the brain.')


def draw_weighted(run: WrittenRun, view: View) -> Drawn | None:
    """Susceptibility-weighted image and its minimum projection."""
    named = {'swi': 'Susceptibility-weighted image', 'minip': 'Minimum over 14 mm'}
    found = {words: beside(run, desc=k, suffix='T2starw') for k, words in named.items()}
    maps = {words: view.load(path) for words, path in found.items() if path is not None}
    if not maps:
        return None
    cuts = comparing_cuts(view)
    rows = [(words, bright(view, cuts, volume)) for words, volume in maps.items()]
    path = canvas.draw_rows(run.figure(desc='swi', suffix='T2starw'), rows)
    return Drawn(
        'Susceptibility weighting', path,
        'Magnitude darkened by the phase of paramagnetic matter, such as veins.',
    )  # fmt: skip
