"""What is drawn of the restored dMRI, and of what it does not explain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp.bids.images import open_image
from bidsapp.bids.names import build
from bidsapp.modalities.dwi.bids.tables import read_numbers
from bidsapp.problems import BadData
from bidsapp.reports import canvas, charts
from bidsapp.reports.maps import comparing_cuts
from bidsapp.reports.page import Drawn
from bidsapp.reports.planes import grey, mapped, mean_of, window
from bidsapp.reports.written import PREDICTED, WrittenRun, number_of, sidecar

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bidsapp.reports.canvas import Row
    from bidsapp.reports.planes import At, View

#: Standard deviations of the noise that are drawn brightest.
HIGH_RESIDUAL = 4.0


def restored_file(run: WrittenRun) -> Path:
    """Where the restored dMRI of a run stands."""
    name = build({**run.entities, 'desc': 'restored', 'suffix': 'dwi', 'extension': '.nii.gz'}).name
    return run.main.with_name(name)


def draw_restored(run: WrittenRun, view: View) -> Drawn | None:
    """A volume before and after, what was taken away, and the anisotropy of both."""
    path = restored_file(run)
    volumes = sidecar(path).get('RestoredVolumes')
    if not path.is_file() or not isinstance(volumes, list) or not volumes:
        return None
    if open_image(path).shape != open_image(run.main).shape:
        raise BadData(f'{path.name} has another shape than {run.main.name}')
    chosen = int(volumes[len(volumes) // 2])
    before, after = (view.turned(mean_of(p, np.array([chosen]))) for p in (run.main, path))
    before = before * view.brain
    cuts, high = comparing_cuts(view), window(before, view.brain, 99.5)
    b = b_values(run)[chosen]
    taken = before - after
    span = max(window(np.abs(taken), view.brain, 99), 1e-6 * high)
    rows: list[Row] = [
        (f'Preprocessed, volume {chosen} (b = {b:.0f} s/mm²)',
         view.panels(cuts, lambda at: grey(at(before), high))),
        ('Restored by the network', view.panels(cuts, lambda at: grey(at(after), high))),
        ('What was taken away; grey is nothing',
         view.panels(cuts, lambda at: grey(at(taken), span, -span) * at(view.brain)[..., None])),
    ]  # fmt: skip
    files = run.images(suffix='FA')
    for source, words in (('reference', 'preprocessed'), (PREDICTED, 'restored')):
        if source in files and PREDICTED in files:
            panels = view.panels(cuts, _grey_of(view.load(files[source])))
            rows.append((f'Fractional anisotropy, {words}', panels))
    keys = [canvas.scale_bar('signal', 'gray', high)]
    path = canvas.draw_rows(run.figure(desc='restored', suffix='dwi'), rows, keys)
    return Drawn(
        'Restored diffusion MRI', path,
        f'{len(volumes)} of {len(b_values(run))} volumes were restored; one of them is shown. What '
        f'was taken away (black and white: {span / high:.0%} of the brightest signal) should look '
        'like noise or an artefact, not like a brain.',
    )  # fmt: skip


def _grey_of(volume: np.ndarray) -> Callable[[At], np.ndarray]:
    """Paints a map from 0 to 1."""
    return lambda at: grey(at(volume), 1)


def b_values(run: WrittenRun) -> np.ndarray:
    """(N,) s/mm²."""
    return read_numbers(run.case.files['bval']).ravel()


def residual_file(run: WrittenRun) -> Path | None:
    """The map of what the restored dMRI does not explain."""
    return run.images(param='residual', suffix='dwimap').get(PREDICTED)


def draw_residual(run: WrittenRun, view: View) -> Drawn | None:
    """Where the data are not what the network takes them to be, in units of the noise."""
    path = residual_file(run)
    if path is None:
        return None
    values, bright = view.load(path), window(view.background, view.brain)
    panels = view.panels(
        comparing_cuts(view),
        lambda at: mapped(0.4 * grey(at(view.background), bright), at(values), at(view.brain),
                          HIGH_RESIDUAL, 'inferno'),
    )  # fmt: skip
    keys = [canvas.scale_bar('residual over noise', 'inferno', HIGH_RESIDUAL)]
    figure = run.figure(param='residual', desc='map', suffix='dwimap')
    canvas.draw_rows(figure, [('', panels)], keys)
    return Drawn('Residual', figure, _residual_words(sidecar(path), values[view.brain]))


def _residual_words(said: Any, values: np.ndarray) -> str:
    text = (f'What the restored volumes leave of the preprocessed ones, root mean square over '
            f'volumes, in standard deviations of the noise: median {np.median(values):.2f} in the '
            f'brain, above 3 in {np.mean(values > 3):.1%} of it.')  # fmt: skip
    low = number_of(said.get('ExpectedLow'))
    right = 'About 1 is right' if low is None else (
        f'From {low:.2f}, if the prediction follows the noise as the scan itself does, to 1, if it '
        'follows none, is right'
    )  # fmt: skip
    return f'{text} {right}. Where it is high the prediction does not explain the data: look there.'


def draw_residual_by_volume(run: WrittenRun) -> Drawn | None:
    """The same for each volume: one that stands out is broken, or not like those of training."""
    path = residual_file(run)
    said = sidecar(path) if path is not None else {}
    values = said.get('ByVolume')
    if not isinstance(values, list) or not any(number_of(v) is not None for v in values):
        return None
    known = np.array([np.nan if number_of(v) is None else v for v in values], float)
    figure = run.figure(param='residual', desc='volumes', suffix='dwimap')
    charts.residual_chart(figure, known, number_of(said.get('ExpectedLow')))
    worst = int(np.nanargmax(known))
    return Drawn(
        'Residual by volume', figure,
        f'Root mean square over the brain. Largest: {known[worst]:.2f} in volume {worst}, counted '
        f'from 0; half of the volumes are below {np.nanmedian(known):.2f}.',
    )  # fmt: skip
