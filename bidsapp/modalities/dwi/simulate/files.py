"""Files of a simulated participant: scans with their sidecars, and the truth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp.bids.images import scanner_units, write_volume
from bidsapp.bids.write import write_json, write_table, write_text
from bidsapp.core import TISSUES
from bidsapp.modalities.dwi.physics.gradients import GradientTable, to_fsl
from bidsapp.modalities.dwi.physics.peaks import FIBRES
from bidsapp.physics.geometry import grid_axes
from bidsapp.simulate.material import SCANNER

if TYPE_CHECKING:
    from pathlib import Path

    from bidsapp.modalities.dwi.simulate.artefacts import Artefacts
    from bidsapp.modalities.dwi.simulate.scan import DiffusionScan

#: Links a run with the pair that tells its field.
FIELD = 'pepolar'
OFF_RESONANCE = {
    'Description': 'Off-resonance by susceptibility, at the places of an image without distortion',
    'Units': 'Hz',
}


def write_dwi(folder: Path, label: str, run: DiffusionScan) -> None:
    """``dwi/`` of the participant's ``folder``: the run, its table and its sidecar."""
    stem = folder / 'dwi' / f'{label}_dwi'
    write_volume(
        stem.with_suffix('.nii.gz'), scanner_units(run.signal.movedim(0, -1)), run.grid.affine
    )
    affine = run.grid.affine.double().numpy()
    table = GradientTable(run.bvecs.double().numpy(), run.bvals.double().numpy())
    rows = [' '.join(f'{value:.6f}' for value in row) for row in to_fsl(table, affine)]
    write_text(stem.with_suffix('.bvec'), '\n'.join(rows) + '\n')
    write_text(stem.with_suffix('.bval'), ' '.join(f'{b:g}' for b in table.bvals) + '\n')
    field = {'B0FieldSource': FIELD, 'B0FieldIdentifier': FIELD} if run.opposite else {}
    write_json(stem.with_suffix('.json'), _echo_planar(run.artefacts) | field)


def write_fieldmap(folder: Path, label: str, run: DiffusionScan) -> None:
    """``fmap/``: the b=0 volumes of the opposite polarity; nothing where a run has none."""
    if run.opposite is None:
        return
    artefacts = run.opposite.artefacts
    stem = folder / 'fmap' / f'{label}_dir-{_direction(artefacts)}_epi'
    write_volume(
        stem.with_suffix('.nii.gz'),
        scanner_units(run.opposite.signal.movedim(0, -1)),
        run.grid.affine,
    )
    links = {'IntendedFor': [f'bids::{label}/dwi/{label}_dwi.nii.gz'], 'B0FieldIdentifier': FIELD}
    write_json(stem.with_suffix('.json'), _echo_planar(artefacts) | links)


def _echo_planar(artefacts: Artefacts) -> dict[str, Any]:
    lines = artefacts.grid.shape[artefacts.phase_axis]
    seconds = abs(artefacts.seconds)
    return {
        **SCANNER,
        'EchoTime': 0.085,
        'RepetitionTime': 6.0,
        'FlipAngle': 90,
        'PhaseEncodingDirection': 'ijk'[artefacts.phase_axis] + '-' * (artefacts.seconds < 0),
        'TotalReadoutTime': seconds,
        'EffectiveEchoSpacing': round(seconds / (lines - 1), 8),
        'PartialFourier': 1,
        'MRAcquisitionType': '2D',
        'PulseSequenceType': 'Spin echo EPI',
    }


def _direction(artefacts: Artefacts) -> str:
    """From where to where k-space lines run, as in 'AP': the direction of phase encoding."""
    axes = grid_axes(artefacts.grid.affine.double().numpy())
    along = axes[:, artefacts.phase_axis] * np.sign(artefacts.seconds)
    world = int(np.abs(along).argmax())
    ends = ('LR', 'PA', 'IS')[world]
    return ends if along[world] > 0 else ends[::-1]


def write_truth(folder: Path, label: str, run: DiffusionScan) -> None:
    """The truth as derivatives, on the grid of the run."""
    from bidsapp.modalities.dwi.simulate.truth import named_maps

    for name, (array, sidecar) in named_maps(run.truth).items():
        stem = folder / 'dwi' / f'{label}_{name}'
        write_volume(stem.with_suffix('.nii.gz'), array, run.grid.affine)
        write_json(stem.with_suffix('.json'), sidecar)
    if run.artefacts.hz is not None:
        stem = folder / 'dwi' / f'{label}_model-truth_param-offresonance_dwimap'
        write_volume(
            stem.with_suffix('.nii.gz'), run.artefacts.off_resonance.numpy(), run.grid.affine
        )
        write_json(stem.with_suffix('.json'), OFF_RESONANCE)
    for seg, rows in (('tissue', TISSUES), ('nfib', FIBRES)):
        name = f'{label}_seg-{seg}_desc-truth_dseg.tsv'
        write_table(
            folder / 'dwi' / name, ['index', 'name', 'abbreviation'], [list(row) for row in rows]
        )
