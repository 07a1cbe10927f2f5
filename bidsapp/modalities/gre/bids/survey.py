"""What can be known of a gradient-echo run from headers and metadata; `transfermri-check`."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from bidsapp.bids.images import check_grid, doubts_of, load_volume, open_image
from bidsapp.bids.runs import Size, Survey
from bidsapp.bids.scans import number, said_beside, sidecar_of
from bidsapp.core import Finding
from bidsapp.modalities.gre.bids.direction import FIELD, direction_of
from bidsapp.modalities.gre.bids.runs import several
from bidsapp.modalities.gre.physics.acquisition import Acquisition
from bidsapp.physics.geometry import voxel_sizes
from bidsapp.problems import BadData, MissingInput, Problem

if TYPE_CHECKING:
    from bidsapp.core import Case
    from bidsapp.modalities.gre.bids.runs import GreRun

#: Voxels along an axis below which there is no volume to invert.
FEWEST = 8


def survey(run: GreRun) -> Survey[Acquisition]:
    """Read headers: cheap, and enough to know what can be promised. Raises Problem."""
    if run.facts is None:
        raise BadData(f'{run.name}: nothing is known of it')
    path = run.path
    image = open_image(path)
    if len(image.shape) != 3:
        raise BadData(
            f'{path.name} has the shape {image.shape}; expected one volume, of one echo. Write '
            'each echo to a file of its own, with echo- in its name.'
        )
    if min(image.shape) < FEWEST:
        raise BadData(
            f'{path.name} has the shape {image.shape}; expected a volume of {FEWEST} voxels and '
            'more along each axis: a field is not known from single slices.'
        )
    for other in list(run.case.files.values())[1:]:
        check_grid(other, path, 'All images of a run lie on one grid: convert them again.')
    direction, doubts = direction_of(path, run.facts.said)
    found = [*dict.fromkeys(finding.message for finding in (*doubts_of(path), *doubts))]
    facts = run.facts
    acquisition = Acquisition(
        facts.echo_times, facts.imaging_mhz, tuple(float(x) for x in voxel_sizes(image.affine)),
        direction,
    )  # fmt: skip
    size = Size(prod(image.shape), 2 * max(len(facts.echo_times), 1))
    return Survey(acquisition, size, (*run.doubts, *found), tuple(corrections(run)))


def corrections(run: GreRun) -> list[str]:
    """What will be done to the phase, and what cannot be, before anything is computed."""
    assert run.facts is not None
    if run.given:
        background = [] if run.given == 'local' else ['background field: removed by V-SHARP']
        return [f'field: the {run.given} field as it was given', *background]
    echoes = len(run.facts.echo_times)
    lines = ['phase: turned, as --phase-sign has it'] if run.turned else []
    if echoes == 1:
        lines.append(
            'phase offset: none is removed, there is one echo; no R2*, which needs two echoes'
        )
    else:
        lines.append(f'field: by {echoes} echoes, less the phase offset of the coils')
    if echoes == 2:
        lines.append(
            'bipolar readout: cannot be told from two echoes, and is taken not to be; R2* is the '
            'ratio of the echoes'
        )
    if run.facts.frequency_from != 'ImagingFrequency':
        lines.append(
            f'ppm: by {run.facts.frequency_from}, for ImagingFrequency is not in the metadata; a '
            'nominal field strength may be off by some per cent, and so is susceptibility'
        )
    return [*lines, 'background field: removed by V-SHARP']


def acquisition_of(case: Case) -> Acquisition:
    """The acquisition of a prepared run, by the sidecar of its field. Raises Problem."""
    path = case.files['field']
    said = said_beside(path)
    mhz = number(said, 'ImagingFrequency')
    if mhz is None:
        raise MissingInput(f'{sidecar_of(path)} does not say the ImagingFrequency of its run.')
    times = said.get('EchoTimes', [])
    image = open_image(path)
    direction, _ = direction_of(path, {k: said[k] for k in (FIELD,) if k in said})
    edges = tuple(float(x) for x in voxel_sizes(image.affine))
    return Acquisition(tuple(float(t) for t in times), mhz, edges, direction)


def examine_run(run: GreRun) -> list[Finding]:
    """What is wrong with one run's files: metadata, headers, and every voxel of the phase."""
    try:
        if run.problem is not None:
            raise run.problem
        found = survey(run)
        examine_voxels(run)
    except Problem as problem:
        code = 'MISSING_FILE' if isinstance(problem, MissingInput) else 'UNREADABLE'
        return [Finding('error', code, str(problem))]
    return [Finding('warning', 'METADATA', doubt) for doubt in found.warnings]


def examine_voxels(run: GreRun) -> None:
    """Raises BadData for images that end too early, and for phase that is none."""
    from bidsapp.modalities.gre.physics.echoes import phase_radians

    read = {path: load_volume(path) for path in run.case.files.values()}
    if phases := [read[path] for path in several(run.case.files, 'phase')]:
        phase_radians(np.stack(phases))
