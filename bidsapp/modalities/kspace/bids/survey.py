"""What headers tell of a raw scan, and what `transfermri-check` says of its samples."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from bidsapp.bids.runs import Size, Survey
from bidsapp.core import Finding
from bidsapp.modalities.kspace.bids.prepared import (
    Afterwards,
    acquisition_of_raw,
    opened,
)
from bidsapp.problems import BadData, MissingInput, Problem

if TYPE_CHECKING:
    from bidsapp.modalities.kspace.bids.raw import RawImage
    from bidsapp.modalities.kspace.bids.runs import KspaceRun
    from bidsapp.modalities.kspace.physics.acquisition import Acquisition


def survey(run: KspaceRun) -> Survey[Acquisition]:
    """By headers alone. Raises Problem."""
    from bidsapp.modalities.kspace.physics.sampling import FEWEST

    image = run.image
    if image is None:
        raise BadData(f'{run.name}: nothing is known of it')
    mask = afterwards.mask(image, run.path.name) if (afterwards := left_out(run)) else None
    found = acquisition_of_raw(image, mask)
    if image.coils > 1 and min(found.calibration) < FEWEST:
        raise BadData(
            f'{run.path.name}: {min(found.calibration)} lines about the centre of k-space were '
            f'measured without a gap; maps of {image.coils} coils need at least {FEWEST}. Scan '
            'with calibration lines.'
        )
    return Survey(found, Size(voxels_at_once(image), image.coils), (), tuple(will(run, image)))


def left_out(run: KspaceRun, seed: int = 0) -> Afterwards | None:
    """Which lines of a full scan are left out afterwards; how many does not rest on the seed."""
    return Afterwards(run.undersample, seed) if run.undersample else None


def voxels_at_once(image: RawImage) -> int:
    """Samples of a coil that are in memory at one time: of a slice, or of the slab."""
    return prod(image.encoding.encoded.matrix)


def will(run: KspaceRun, image: RawImage) -> list[str]:
    """What will be done, and what not, before anything is computed."""
    lines = []
    if not image.geometry_known:
        lines.append('geometry: the file does not say where slices lie; left and right are unknown')
    if image.acceleration > 1:
        lines.append('reconstruction: every classical method, beside a network where there is one')
    elif run.undersample:
        lines.append(f'reconstruction: lines are left out afterwards, to R = {run.undersample:g}')
    else:
        lines.append('reconstruction: none, every line was measured; its image is the reference')
    return lines


def examine_run(run: KspaceRun) -> list[Finding]:
    """What is wrong with one scan: headers, and every sample of every slice.

    What it is stands in a note.
    """
    try:
        if run.problem is not None:
            raise run.problem
        found = survey(run)
        warnings = list(found.warnings)
        with opened(run.path, run.number, None) as samples:
            for number in range(samples.count):
                warnings += samples.read(number).warnings
    except Problem as problem:
        code = 'MISSING_FILE' if isinstance(problem, MissingInput) else 'UNREADABLE'
        return [Finding('error', code, str(problem))]
    told = [Finding('warning', 'SAMPLES', text) for text in dict.fromkeys(warnings)]
    return [Finding('note', 'SCAN', found.acquisition.words), *told]
