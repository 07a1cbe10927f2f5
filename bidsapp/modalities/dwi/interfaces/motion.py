"""Motion and eddy currents: estimated in one step, applied with the distortion in another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from nipype.interfaces.base import File, TraitedSpec, isdefined, traits

from bidsapp.bids.images import load_volume, open_image
from bidsapp.interfaces.base import ComputingInput, Step
from bidsapp.interfaces.files import load_mask, save_like
from bidsapp.modalities.dwi.bids.replaced import REPLACED, SLICE_AXIS
from bidsapp.modalities.dwi.interfaces.files import MaskedScanInput, read_table, save_table
from bidsapp.modalities.dwi.physics.gradients import GradientTable
from bidsapp.problems import BadData

if TYPE_CHECKING:
    from bidsapp.modalities.dwi.physics.motion import Motion
    from bidsapp.modalities.dwi.physics.placement import Placement

#: mm from one volume to the next that are said.
_JUMP = 15.0


class _MotionInput(MaskedScanInput, ComputingInput):
    phase_encoding = traits.Str(desc="'i', 'j-', …; undefined where it is not known")
    slice_axis = traits.Int(2, usedefault=True)
    kept = traits.List(traits.Int, desc='number of each volume in the run as it came')
    left_out = traits.Dict(desc='numbers of those that are not in this one, and why')


class _MotionOutput(TraitedSpec):
    dwi = File(
        exists=True,
        desc='the run as it came, outlier slices replaced, without volumes that cannot be placed',
    )
    motion = File(exists=True)
    b0 = File(exists=True, desc='mean b=0, motion corrected')
    bval = File(exists=True)
    bvec = File(exists=True, desc='turned with the head')
    confounds = File(exists=True)
    quality = traits.Dict()
    left_out = traits.Dict(desc='number of each volume left out, and why')
    warnings = traits.List(traits.Str)


class EstimateMotion(Step):
    """Every volume registered to its prediction from the others; nothing is moved yet."""

    version: ClassVar[int] = 2  # weighted volumes are placed against b = 0
    input_spec = _MotionInput
    output_spec = _MotionOutput

    def step(self, folder: Path) -> dict[str, Any]:
        """Only outlier slices are replaced, where they are."""
        from bidsapp.modalities.dwi.physics import outliers
        from bidsapp.modalities.dwi.physics.motion import apply_motion, impossible, replaced_slices

        path = Path(self.inputs.dwi)
        affine, data = open_image(path).affine, load_volume(path)
        table = read_table(
            path, Path(self.inputs.bval), Path(self.inputs.bvec), self.inputs.b0_threshold
        )
        kept = np.array(self.inputs.kept or range(len(table)))
        left_out = dict(self.inputs.left_out or {})
        motion = self.estimated(data, affine, table)
        warnings = []
        while lost := impossible(motion):
            left_out |= {str(kept[v]): why for v, why in lost.items()}
            warnings += [
                f'volume {kept[v]} (counted from 0), left out: {why}' for v, why in lost.items()
            ]
            stay = np.setdiff1d(np.arange(len(table)), list(lost))
            data, table, kept = data[..., stay], table[stay], kept[stay]
            _check_left(path, table)
            path = save_like(folder / 'dwi.nii', data, path)
            motion = self.estimated(data, affine, table)
        for n in np.unique(motion.outliers.slices[:, 0]):
            data[..., n] = motion.outliers.replaced(data[..., n], int(n))
            path = folder / 'dwi.nii'
        if path.parent == folder:
            save_like(path, data, Path(self.inputs.dwi))
        nothing = outliers.none(len(table), self.inputs.slice_axis)
        still = replace(motion, outliers=nothing)
        save_motion(folder / 'motion.npz', still)
        b0 = apply_motion(
            data[..., table.b0], affine, replace(still, parameters=motion.parameters[table.b0])
        ).mean(-1)
        write_confounds(folder / 'confounds.tsv', motion)
        quality = said_of(motion, self.axis)
        quality[REPLACED] = replaced_slices(motion, affine, data.shape).tolist()
        quality[SLICE_AXIS] = 'ijk'[self.inputs.slice_axis]
        return {
            'dwi': str(path),
            'motion': str(folder / 'motion.npz'),
            'b0': str(save_like(folder / 'b0.nii', b0, Path(self.inputs.dwi))),
            **save_table(folder, motion.gtab, affine),
            'confounds': str(folder / 'confounds.tsv'),
            'quality': quality,
            'left_out': left_out,
            'warnings': [*warnings, *doubts(motion, kept)],
        }

    @property
    def axis(self) -> str | None:
        """The phase-encoding axis, if it is known."""
        return self.inputs.phase_encoding if isdefined(self.inputs.phase_encoding) else None

    def estimated(self, data: np.ndarray, affine: np.ndarray, table: GradientTable) -> Motion:
        """Where the head was."""
        from bidsapp.modalities.dwi.physics.motion import estimate_motion

        return estimate_motion(
            data, affine, table, load_mask(Path(self.inputs.mask)), self.axis,
            self.inputs.slice_axis, device=self.inputs.device,
        )  # fmt: skip


def _check_left(path: Path, table: GradientTable) -> None:
    """Raises BadData where what is left of a run is no diffusion run."""
    from bidsapp.modalities.dwi.physics.acquisition import acquisition, determines_tensor

    if not table.b0.any() or table.b0.all() or not determines_tensor(acquisition(table)):
        raise BadData(
            f'{path.name}: its volumes fit together only where no head can be, and the others do '
            'not determine a tensor. Look at the images, and leave out those that show no head '
            '(--exclude-volumes).'
        )


def doubts(motion: Motion, kept: np.ndarray) -> list[str]:
    """What is odd in how a head moved; volumes are named by ``kept``, their numbers as they came.

    From one volume to the next a head may jump by a centimetre, hardly by more.
    """
    far = np.flatnonzero(motion.framewise_displacement > _JUMP)
    if not far.size:
        return []
    named = ', '.join(str(kept[v]) for v in far[:6]) + ' …' * (far.size > 6)
    return [
        f'the head is said to have moved by up to {motion.framewise_displacement.max():.0f} mm '
        f'from one volume to the next (to volumes {named}): look at them, and leave out those that '
        'cannot be used (--exclude-volumes)'
    ]


def said_of(motion: Motion, axis: str | None) -> dict[str, Any]:
    """The motion of a run in the words of a sidecar."""
    moved = np.asarray(motion.framewise_displacement)[1:]
    volumes = sorted({int(n) for n in motion.outliers.slices[:, 0]})
    return {
        'Method': 'each volume registered to its prediction from the others',
        'EddyCurrentModel': f'affine along {axis}' if axis else 'affine, no axis assumed',
        'FramewiseDisplacementMean': round(float(moved.mean()), 3) if moved.size else 0.0,
        'FramewiseDisplacementMax': round(float(moved.max()), 3) if moved.size else 0.0,
        'FramewiseDisplacement': [0.0, *(round(float(x), 3) for x in moved)],
        'ResidualBefore': round(float(np.mean(motion.residual_before)), 4),
        'ResidualAfter': round(float(np.mean(motion.residual_after)), 4),
        'OutlierSlices': len(motion.outliers.slices),
        'VolumesWithOutlierSlices': volumes,
        **_placement(motion.placement),
        'Units': 'mm; residuals are relative to the signal',
    }


def _placement(found: Placement) -> dict[str, Any]:
    """Where the weighted volumes lie against b = 0, as far as it was found."""
    if not np.isfinite(found.doubt):
        return {'Placement': 'not found', 'PlacementDoubt': None}
    return {
        'Placement': 'corrected' if found.moved else 'kept: found to be off by less than the doubt',
        'PlacementShift': round(found.shift, 3),
        'PlacementDoubt': round(found.doubt, 3),
    }


def write_confounds(path: Path, motion: Motion) -> None:
    """Tab-separated columns, a row a volume; what is not defined is n/a."""
    from bidsapp.modalities.dwi.physics.motion import confounds

    columns = confounds(motion)
    rows = ['\t'.join(columns)]
    for values in zip(*columns.values(), strict=True):
        rows.append('\t'.join('n/a' if np.isnan(v) else f'{v:.6g}' for v in values))
    path.write_text('\n'.join(rows) + '\n', encoding='utf-8')


def save_motion(path: Path, motion: Motion) -> None:
    """Keep an estimate, without replaced slices, as plain arrays."""
    np.savez(
        path,
        parameters=motion.parameters,
        centre=motion.warp.centre,
        generators=motion.warp.generators,
        bvecs=motion.gtab.bvecs,
        bvals=motion.gtab.bvals,
        b0_threshold=motion.gtab.b0_threshold,
        framewise_displacement=motion.framewise_displacement,
        residual_before=motion.residual_before,
        residual_after=motion.residual_after,
    )


def load_motion(path: Path, slice_axis: int = 2) -> Motion:
    """What `save_motion` has kept."""
    from bidsapp.modalities.dwi.physics import outliers
    from bidsapp.modalities.dwi.physics.motion import Motion
    from bidsapp.physics.resampling import Warp

    with np.load(path) as kept:
        arrays = {key: kept[key] for key in kept.files}
    return Motion(
        warp=Warp(arrays.pop('centre'), arrays.pop('generators')),
        gtab=GradientTable(
            arrays.pop('bvecs'), arrays.pop('bvals'), float(arrays.pop('b0_threshold'))
        ),
        outliers=outliers.none(len(arrays['parameters']), slice_axis),
        **arrays,
    )


class _CorrectInput(ComputingInput):
    dwi = File(exists=True, mandatory=True)
    motion = File(exists=True, mandatory=True)
    displacement = File(exists=True, desc='of susceptibility, in voxels')
    axis = traits.Int(desc='along which')


class _Corrected(TraitedSpec):
    dwi = File(exists=True)


class ApplyCorrections(Step):
    """The one interpolation: motion, eddy currents and susceptibility together."""

    input_spec = _CorrectInput
    output_spec = _Corrected

    def step(self, folder: Path) -> dict[str, Any]:
        """Every volume where the head was in the first b=0 volume."""
        from bidsapp.modalities.dwi.physics.motion import apply_motion

        path = Path(self.inputs.dwi)
        shift, axis = None, None
        if isdefined(self.inputs.displacement):
            shift, axis = load_volume(Path(self.inputs.displacement)), self.inputs.axis
        motion = load_motion(Path(self.inputs.motion))
        result = apply_motion(load_volume(path), open_image(path).affine, motion, shift, axis)
        return {'dwi': str(save_like(folder / 'dwi.nii', result, path))}
