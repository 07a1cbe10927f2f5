"""What can be known of a dMRI run from header, table and metadata; `transfermri-check`."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from bidsapp.bids.images import load_volume, not_numbers, open_image
from bidsapp.bids.runs import Size, Survey
from bidsapp.core import Finding
from bidsapp.modalities.dwi.bids.fieldmaps import choose_distortion
from bidsapp.modalities.dwi.bids.tables import load_table, read_numbers
from bidsapp.modalities.dwi.physics.acquisition import acquisition
from bidsapp.modalities.dwi.physics.gradients import from_fsl
from bidsapp.modalities.dwi.physics.tables import examine
from bidsapp.physics.geometry import voxel_sizes
from bidsapp.problems import BadData, MissingInput

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from bidsapp.core import Case
    from bidsapp.modalities.dwi.bids.runs import DwiRun
    from bidsapp.modalities.dwi.physics.acquisition import Acquisition


def examine_run(run: DwiRun) -> list[Finding]:
    """What is wrong with one run's files, table and metadata, and with table and data together."""
    if run.problem is not None:
        code = 'MISSING_FILE' if isinstance(run.problem, MissingInput) else 'UNREADABLE'
        return [Finding('error', code, str(run.problem))]
    files = run.case.files
    try:
        shape = open_image(files['dwi']).shape
        volumes = shape[3] if len(shape) == 4 else 1
        bvecs, bvals = read_numbers(files['bvec']), read_numbers(files['bval'])
    except (BadData, MissingInput) as problem:
        return [Finding('error', 'UNREADABLE', str(problem))]
    bvecs, bvals, findings = examine(bvecs, bvals, volumes)
    if not any(f.severity == 'error' for f in findings):
        findings += examine_voxels(files['dwi'], bvecs, bvals)
    return [*findings, *examine_metadata(run)]


def examine_voxels(path: Path, bvecs: np.ndarray, bvals: np.ndarray) -> list[Finding]:
    """Whether the image can be read to its end and its table, free of errors, fits it."""
    # Here, because it needs SciPy, which pretraining does without.
    from bidsapp.modalities.dwi.physics.gradient_check import check_table, finding

    try:
        data = load_volume(path)
    except BadData as problem:
        return [Finding('error', 'UNREADABLE', str(problem))]
    if bad := not_numbers(data):
        message = f'{bad} voxels are not numbers (NaN or infinite); convert the image again'
        return [Finding('error', 'IMAGE_NAN', message)]
    affine = open_image(path).affine
    result = check_table(data, from_fsl(bvecs, bvals, affine), affine)
    if not result.decided:
        return [Finding('warning', 'TABLE_NOT_TESTED', result.statement)]
    wrong = finding(result)
    return [] if wrong is None else [wrong]


def examine_metadata(run: DwiRun) -> list[Finding]:
    """Metadata that the corrections would use."""
    consequences = {
        'PhaseEncodingDirection': 'neither a reversed pair nor a field map can be used'
        if 'PhaseEncodingAxis' in run.metadata
        else 'no way to correct susceptibility distortion can be used, and eddy currents are '
        'corrected without assuming a direction',
        'TotalReadoutTime': 'a field map could not be turned into a displacement',
    }
    return [
        Finding('warning', 'MISSING_METADATA', f'{name} is not in the metadata: {consequence}')
        for name, consequence in consequences.items()
        if name not in run.metadata
    ]


def survey(run: DwiRun) -> Survey[Acquisition]:
    """Read header and table: cheap, and enough to know what can be promised. Raises Problem."""
    files = run.case.files
    image = open_image(files['dwi'])
    volumes = image.shape[3] if len(image.shape) == 4 else 1
    bvecs, bvals, findings = examine(
        read_numbers(files['bvec']), read_numbers(files['bval']), volumes
    )
    if errors := [f.message for f in findings if f.severity == 'error']:
        raise BadData(f'{files["dwi"].name}: ' + '; '.join(errors) + '.')
    will = corrections(run, volumes) if run.taken_from is None else []
    table = from_fsl(bvecs, bvals, image.affine)
    return Survey(
        acquisition(table, 't1w' in files, voxel_sizes(image.affine)),
        Size(prod(image.shape[:3]), volumes),
        tuple(f.message for f in findings),
        tuple(will),
    )


def acquisition_of(case: Case) -> Acquisition:
    """The acquisition of a preprocessed run."""
    return acquisition(load_table(case), voxel_mm=voxel_sizes(open_image(case.files['dwi']).affine))


def corrections(run: DwiRun, volumes: int) -> list[str]:
    """What will be corrected, and what not and why, before anything is computed."""
    # Both load torch, and what a modality promises is asked for by --bids-exec-spec too.
    from bidsapp.physics.denoising import MIN_VOLUMES
    from bidsapp.physics.ringing import may_unring

    lines = []
    if volumes < MIN_VOLUMES:
        lines.append(f'denoising: none, {volumes} volumes; at least {MIN_VOLUMES} are needed')
    if (reason := may_unring(run.metadata)) is not None:
        lines.append(f'Gibbs unringing: none, {reason}')
    if not {'PhaseEncodingDirection', 'PhaseEncodingAxis'} & run.metadata.keys():
        lines.append(
            'eddy currents: the metadata do not say the phase-encoding direction; corrected '
            'without assuming one'
        )
    return [*lines, choose_distortion(run).words]
