"""Research runs made like a routine scan, for a network to learn from (``--input-like SCAN``).

A raw run is made poorer as a scanner would have given it, and then prepared as any run is: no
denoising, no motion estimate and no outlier replacement of the input has seen a volume that the
short scan would not have. That can be done where measured volumes serve for all that is asked for
and the raw run is there. Elsewhere the prepared volumes are made poorer: they were denoised and
placed together with all the others, by which the input is better than that of a real short scan.
What inputs were made from is counted in the card.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bidsapp.bids.dataset import select
from bidsapp.bids.images import load_volume, open_image, write_volume
from bidsapp.bids.prepared import main_sidecar, prepared_files
from bidsapp.bids.scans import phase_encoding, said_beside
from bidsapp.bids.write import write_json
from bidsapp.core import Case
from bidsapp.modalities.dwi.bids.prepared import PREPARED
from bidsapp.modalities.dwi.bids.protocol import brain_in, protocol_of
from bidsapp.modalities.dwi.bids.replaced import replaced_slices
from bidsapp.modalities.dwi.bids.runs import runs_of
from bidsapp.modalities.dwi.bids.survey import table_of
from bidsapp.modalities.dwi.bids.tables import B0_FIELD, b0_threshold_of, load_table
from bidsapp.modalities.dwi.physics.acquisition import VOXEL_SLACK
from bidsapp.modalities.dwi.physics.downsampling import MOSTLY
from bidsapp.modalities.dwi.physics.gradients import from_fsl, to_fsl
from bidsapp.modalities.dwi.physics.likeness import (
    NEAR,
    coarse_grid,
    interpolated,
    nearest_volumes,
    noise_of,
    noisier,
    out_of_reach,
    world_order,
)
from bidsapp.physics.geometry import voxel_sizes
from bidsapp.problems import BadData, Unavailable, WrongUsage
from bidsapp.workflows.preparation import Likeness, Poorer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bidsapp.core import FloatArray
    from bidsapp.modalities.dwi.bids.protocol import Protocol
    from bidsapp.modalities.dwi.bids.runs import DwiRun
    from bidsapp.modalities.dwi.physics.gradients import GradientTable
    from bidsapp.modalities.dwi.physics.likeness import CoarseGrid, Noisy

#: Metadata that are a displacement per Hz in voxels along the phase encoding: longer voxels, less.
READOUT = ('TotalReadoutTime', 'EstimatedTotalReadoutTime', 'EffectiveEchoSpacing')
#: Metadata that speak of the ringing of the raw voxels, which longer ones have not.
RINGING = ('PartialFourier', 'PartialFourierEnabled')
#: Degrees; where the directions that stand for those of the scan are further off, it is said.
FAR = 15.0


def asked(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """What inputs shall be like, for cards; nothing where nothing is asked. Raises Problem."""
    if options.get('input_like') is None:
        return {}
    if options.get('input_directions') is not None:
        raise WrongUsage(
            '--input-directions with --input-like: the scan says the directions. Leave one out.'
        )
    return {'input_like': protocol_of(Path(options['input_like'])).described}


def poorer(
    case: Case, raw: tuple[Path, Path] | None, folder: Path, options: Mapping[str, Any]
) -> Poorer:
    """A prepared run made like the scan of ``options``, written below ``folder``.

    ``raw`` is (image, root of its dataset) of the scan behind it, if that is there. Raises BadData
    where the run has nothing of what is asked for.
    """
    protocol = protocol_of(Path(options['input_like']))
    if beyond := out_of_reach(load_table(case), protocol.gtab):
        raise BadData(
            f'it has nothing near b={", ".join(f"{b:.0f}" for b in beyond)}, which the scan of '
            '--input-like has; nothing is extrapolated in b'
        )
    if protocol.prepared:
        why = 'the scan of --input-like is a preprocessed one'
    elif raw is None:
        why = 'its raw run is not there'
    else:
        try:
            return _poorer_raw(_raw_run(case, *raw), case, raw[1], protocol, folder)
        except Unavailable as reason:
            why = str(reason)
    return _poorer_prepared(case, protocol, folder, why)


def grid_of(case: Case, options: Mapping[str, Any]) -> CoarseGrid:
    """The grid of the poorer run, over that of the run itself."""
    image = open_image(case.files['dwi'])
    return coarse_grid(image.shape, image.affine, protocol_of(Path(options['input_like'])).world_mm)


LIKENESS = Likeness(asked, poorer, grid_of)


def _raw_run(case: Case, scan: Path, root: Path) -> DwiRun:
    """The raw run behind ``case``, as `participant` sees it. Raises Unavailable."""
    threshold = b0_threshold_of(case.files['dwi'])
    chosen = replace(select(root, [case.subject]), options={'b0_threshold': threshold})
    for run in runs_of(chosen):
        if run.case.files['dwi'] != scan:
            continue
        if run.problem is not None:
            raise Unavailable(f'its raw run has a problem: {run.problem}')
        if dict(run.case.entities) != dict(case.entities):
            raise Unavailable('it was joined from several raw runs')
        return run
    raise Unavailable('its raw run is not there')


def _poorer_raw(run: DwiRun, case: Case, root: Path, protocol: Protocol, folder: Path) -> Poorer:
    """A raw run made poorer, to be prepared; what preparation has left out of it is not chosen."""
    files, table = run.case.files, table_of(run)
    if table.errors:
        raise Unavailable('its gradient table has errors')
    image = open_image(files['dwi'])
    gtab = from_fsl(table.bvecs, table.bvals, image.affine, table.b0_threshold)
    gone = {int(v) for v in said_beside(case.files['dwi']).get('VolumesLeftOut', {})}
    chosen = nearest_volumes(
        gtab, protocol.gtab, np.array([int(v) not in gone for v in table.kept])
    )
    if chosen.missing:
        raise Unavailable(f'no measured volumes for {" and ".join(chosen.missing)}')
    gtab = gtab[chosen.volumes]
    grid = coarse_grid(image.shape, image.affine, protocol.world_mm)
    data = load_volume(files['dwi'])[..., table.kept[chosen.volumes]]
    data, _ = grid(data, np.ones(image.shape[:3], np.float32))
    brain = brain_in(data, gtab, grid.affine)
    if not brain.any():
        raise BadData('no brain is found in it once it is made like the scan of --input-like')
    made = noisier(data, gtab, brain, protocol.variance, run.name)
    below = files['dwi'].relative_to(root)
    target = folder / 'raw' / below.with_name(below.name.partition('.')[0] + '.nii.gz')
    written = _write(target, made.data, gtab, grid)
    axis, _ = phase_encoding(run.metadata)
    ratio = 1.0 if axis is None else grid.ratios[axis]
    metadata = _metadata(run.metadata, ratio)
    if not grid.same:
        metadata = {k: v for k, v in metadata.items() if k not in RINGING}
    write_json(target.with_name(target.name.removesuffix('.nii.gz') + '.json'), metadata)
    maps = [
        replace(one, metadata={**one.metadata, 'run': _metadata(one.metadata['run'], ratio)})
        if one.kind == 'gre' else one
        for one in run.fieldmaps
    ]  # fmt: skip
    others = {k: v for k, v in files.items() if k not in (*written, 'mask')}
    poor = replace(
        run, case=Case(run.case.entities, {**written, **others}), metadata=metadata, excluded=(),
        fieldmaps=tuple(maps),
    )  # fmt: skip
    notes = _notes(gtab, protocol, grid, made, chosen.degrees)
    return Poorer('raw', notes, _figures(made, chosen.degrees), raw=poor)


def _metadata(known: Mapping[str, Any], ratio: float) -> dict[str, Any]:
    """Metadata of a run whose voxels along the phase encoding are ``ratio`` times as long."""
    scaled = {k: known[k] / ratio for k in READOUT if isinstance(known.get(k), int | float)}
    return {**known, **scaled}


def _poorer_prepared(case: Case, protocol: Protocol, folder: Path, why: str) -> Poorer:
    """The prepared volumes made poorer, where ``why`` says that the raw ones cannot be."""
    image, gtab = open_image(case.files['dwi']), load_table(case)
    data, brain = load_volume(case.files['dwi']), load_volume(case.files['mask']) > 0
    measured = np.ones(len(gtab), bool)
    for *_, volume in replaced_slices(case.files['dwi']):
        measured[volume] = False
    chosen = nearest_volumes(gtab, protocol.gtab, measured)
    notes = [f'made from the preprocessed volumes, because {why}: they were denoised and placed '
             'together with all the others']  # fmt: skip
    if chosen.missing:
        notes.append(
            f'interpolated in q-space: no measured volumes for {" and ".join(chosen.missing)}'
        )
        usable = measured if measured[gtab.b0].any() else np.ones(len(gtab), bool)
        data, gtab = data[..., usable], gtab[usable]
        data, gtab = interpolated(data, gtab, protocol.gtab, noise_of(data, gtab, brain))
    else:
        data, gtab = data[..., chosen.volumes], gtab[chosen.volumes]
    if not protocol.prepared:
        notes.append('its noise is that of the raw scan, not what denoising would leave of it')
    grid = coarse_grid(image.shape, image.affine, protocol.world_mm)
    data, share = grid(data, brain.astype(np.float32))
    inside = share >= MOSTLY
    made = noisier(data, gtab, inside, protocol.variance, case.files['dwi'].name)
    paths = {k: folder / 'out' / p for k, p in prepared_files(PREPARED, case.entities).items()}
    write_json(folder / 'out' / main_sidecar(PREPARED, case.entities), {
        'Description': 'Preprocessed diffusion MRI made like another scan.',
        B0_FIELD: gtab.b0_threshold, 'Notes': notes,
    })  # fmt: skip
    affine = torch.from_numpy(grid.affine)
    write_volume(paths['mask'], inside.astype(np.uint8), affine)
    _write(paths['dwi'], made.data, gtab, grid)
    notes += _notes(gtab, protocol, grid, made, chosen.degrees)
    poor = Case(case.entities, paths)
    return Poorer('prepared', notes, _figures(made, chosen.degrees), prepared=poor)


def _write(
    target: Path, data: FloatArray, gtab: GradientTable, grid: CoarseGrid
) -> dict[str, Path]:
    """Tables and image, that last; by kind."""
    target.parent.mkdir(parents=True, exist_ok=True)
    stem = target.name.removesuffix('.nii.gz')
    paths = {'dwi': target, **{k: target.with_name(f'{stem}.{k}') for k in ('bval', 'bvec')}}
    np.savetxt(paths['bval'], gtab.bvals[None], '%g')
    np.savetxt(paths['bvec'], to_fsl(gtab, grid.affine), '%.8f')
    write_volume(target, np.asarray(data, np.float32), torch.from_numpy(grid.affine))
    return paths


def _figures(made: Noisy, degrees: FloatArray) -> dict[str, float]:
    """What was reached, in numbers."""
    return {
        'noise': float(np.sqrt(made.after)),
        'noise_before': float(np.sqrt(made.before)),
        'degrees': float(degrees.mean()) if len(degrees) else 0.0,
    }


def _notes(
    gtab: GradientTable, protocol: Protocol, grid: CoarseGrid, made: Noisy, degrees: FloatArray
) -> list[str]:
    """What of the scan was not reached, in words."""
    found = []
    own, wanted = voxel_sizes(grid.affine), protocol.world_mm
    longer = [
        f'{own[axis]:.3g} for {wanted[world]:.3g} mm'
        for world, axis in enumerate(world_order(grid.affine))
        if own[axis] > wanted[world] * (1 + VOXEL_SLACK)
    ]
    if longer:
        found.append(f'its voxels are longer than those of the scan ({", ".join(longer)}) and stay')
    if made.after > protocol.variance * (1 + 2 * NEAR):
        found.append(
            f'it is noisier than the scan as it is: {np.sqrt(made.after):.4f} of S0 for '
            f'{np.sqrt(protocol.variance):.4f}; no noise is added'
        )
    if (there := int(gtab.b0.sum())) < (asked_for := int(protocol.gtab.b0.sum())):
        found.append(f'it has {there} b=0 volumes for {asked_for}')
    if len(degrees) and degrees.max() > FAR:
        found.append(
            f'its directions lie {degrees.mean():.0f} degrees from those of the scan in the mean, '
            f'at most {degrees.max():.0f}'
        )
    return found
