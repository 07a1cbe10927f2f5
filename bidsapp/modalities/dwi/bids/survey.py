"""What can be known of a dMRI run from header, table and metadata; `transfermri-check`."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from bidsapp.bids.images import load_volume, open_image
from bidsapp.bids.runs import Size, Survey
from bidsapp.core import Finding
from bidsapp.modalities.dwi.bids.encoding import check_linear
from bidsapp.modalities.dwi.bids.fieldmaps import choose_distortion
from bidsapp.modalities.dwi.bids.tables import (
    check_lengths,
    examine_table,
    examine_volumes,
    load_table,
    read_numbers,
)
from bidsapp.modalities.dwi.physics.acquisition import acquisition
from bidsapp.modalities.dwi.physics.gradients import from_fsl
from bidsapp.physics.geometry import voxel_sizes
from bidsapp.problems import BadData, MissingInput

if TYPE_CHECKING:
    from pathlib import Path

    from bidsapp.core import Case
    from bidsapp.modalities.dwi.bids.runs import DwiRun
    from bidsapp.modalities.dwi.physics.acquisition import Acquisition
    from bidsapp.modalities.dwi.physics.tables import Examined


def examine_run(run: DwiRun) -> list[Finding]:
    """What is wrong with one run's files, table and metadata, and with table and data together."""
    if run.problem is not None:
        code = 'MISSING_FILE' if isinstance(run.problem, MissingInput) else 'UNREADABLE'
        return [Finding('error', code, str(run.problem))]
    try:
        table = table_of(run)
    except (BadData, MissingInput) as problem:
        return [Finding('error', 'UNREADABLE', str(problem))]
    voxels = [] if table.errors else examine_voxels(run.case.files['dwi'], table)
    return [*table.findings, *voxels, *examine_metadata(run)]


def table_of(run: DwiRun) -> Examined:
    """The table of a run, examined, with what its image's header gives to say. Raises Problem."""
    files = run.case.files
    bvecs, bvals = read_numbers(files['bvec']), read_numbers(files['bval'])
    check_linear(run.case, run.metadata, bvals.ravel())
    return examine_table(files['dwi'], bvecs, bvals, run.b0_threshold, run.excluded)


def examine_voxels(path: Path, table: Examined) -> list[Finding]:
    """Whether the image can be read to its end and its table, free of errors, fits it."""
    # Here, because it needs SciPy, which pretraining does without.
    from bidsapp.modalities.dwi.physics.gradient_check import check_table, finding

    try:
        data = load_volume(path)
    except BadData as problem:
        return [Finding('error', 'UNREADABLE', str(problem))]
    known = len(table.findings)
    table = examine_volumes(path, data, table)
    left_out = list(table.findings[known:])
    if table.errors:
        return left_out
    try:
        check_lengths(data, table)
    except BadData as problem:
        return [*left_out, Finding('error', 'B_IN_LENGTHS', str(problem))]
    affine = open_image(path).affine
    gtab = from_fsl(table.bvecs, table.bvals, affine, table.b0_threshold)
    result = check_table(data[..., table.kept], gtab, affine)
    if not result.decided:
        return [*left_out, Finding('warning', 'TABLE_NOT_TESTED', result.statement)]
    wrong = finding(result)
    return left_out if wrong is None else [*left_out, wrong]


def examine_metadata(run: DwiRun) -> list[Finding]:
    """What is odd in the metadata, and what the corrections would use and is missing."""
    consequences = {
        'PhaseEncodingDirection': 'neither a reversed pair nor a field map can be used'
        if 'PhaseEncodingAxis' in run.metadata
        else 'no way to correct susceptibility distortion can be used, and eddy currents are '
        'corrected without assuming a direction',
        'TotalReadoutTime': 'a field map could not be turned into a displacement',
    }
    odd = [Finding('warning', 'METADATA', doubt) for doubt in run.doubts]
    return odd + [
        Finding('warning', 'MISSING_METADATA', f'{name} is not in the metadata: {consequence}')
        for name, consequence in consequences.items()
        if name not in run.metadata
    ]


def survey(run: DwiRun) -> Survey[Acquisition]:
    """Read header and table: cheap, and enough to know what can be promised. Raises Problem."""
    if run.parts:
        return _survey_of_parts(run)
    files = run.case.files
    image, table = open_image(files['dwi']), table_of(run)
    if table.errors:
        raise BadData(f'{files["dwi"].name}: ' + '; '.join(table.errors) + '.')
    volumes = len(table.kept)
    will = corrections(run, volumes) if run.taken_from is None else []
    gtab = from_fsl(table.bvecs, table.bvals, image.affine, table.b0_threshold)
    return Survey(
        acquisition(gtab, 't1w' in files, voxel_sizes(image.affine)),
        Size(prod(image.shape[:3]), image.shape[3]),
        (*run.doubts, *(f.message for f in table.findings)),
        tuple(will),
    )


def _survey_of_parts(run: DwiRun) -> Survey[Acquisition]:
    """The joined run has the volumes of all parts on the first one's grid."""
    image = open_image(run.path)
    several = [survey(part) for part in run.parts]
    tables = [table_of(part) for part in run.parts]
    gtab = from_fsl(
        np.concatenate([t.bvecs for t in tables], axis=1),
        np.concatenate([t.bvals for t in tables]), image.affine,
        max(t.b0_threshold for t in tables),
    )  # fmt: skip
    each = list(zip(run.parts, several, strict=True))
    return Survey(
        acquisition(gtab, 't1w' in run.case.files, voxel_sizes(image.affine)),
        Size(prod(image.shape[:3]), sum(s.size.volumes for s in several)),
        tuple(f'{part.name}: {text}' for part, s in each for text in s.warnings),
        tuple(f'{part.name}: {text}' for part, s in each for text in s.will),
    )


def acquisition_of(case: Case) -> Acquisition:
    """The acquisition of a preprocessed run."""
    return acquisition(load_table(case), voxel_mm=voxel_sizes(open_image(case.files['dwi']).affine))


def corrections(run: DwiRun, volumes: int) -> list[str]:
    """What will be corrected, and what not and why, before anything is computed."""
    # Both load torch, and what a modality promises is asked for by --bids-exec-spec too.
    from bidsapp.physics.denoising import MIN_VOLUMES
    from bidsapp.physics.ringing import interpolated, may_unring

    lines = []
    if volumes < MIN_VOLUMES:
        lines.append(f'denoising: none, {volumes} volumes; at least {MIN_VOLUMES} are needed')
    elif (finer := interpolated(run.metadata)) is not None:
        lines.append(f'denoising: none, {finer}: the noise of neighbours is not independent')
    if (reason := may_unring(run.metadata)) is not None:
        lines.append(f'Gibbs unringing: none, {reason}')
    if not {'PhaseEncodingDirection', 'PhaseEncodingAxis'} & run.metadata.keys():
        lines.append(
            'eddy currents: the metadata do not say the phase-encoding direction; corrected '
            'without assuming one'
        )
    return [*lines, choose_distortion(run).words]
