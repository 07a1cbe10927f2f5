"""What a NIfTI header may say: read as it was meant where that is clear, else refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp.core import Finding
from bidsapp.problems import BadData

if TYPE_CHECKING:
    from pathlib import Path

    import nibabel as nib

#: An affine whose columns span less than this share of the box of their lengths spans none.
FLAT = 1e-6
#: Cosine between the axes of sform and qform below which they do not mean the same voxels.
ALIKE = 0.7


def mended(image: nib.Nifti1Image, path: Path) -> tuple[nib.Nifti1Image, list[Finding]]:
    """``image`` of ``path``, of at most four dimensions, its axes such as can be used; its doubts.

    No voxel is read. Raises BadData for voxels that are no plain numbers, for more dimensions than
    four, and where nothing says how the voxels lie.
    """
    import nibabel as nib

    if not isinstance(image, nib.Nifti1Pair):
        raise BadData(f'{path} is no NIfTI image but {type(image).__name__}. Convert it to NIfTI.')
    kind = image.get_data_dtype()
    if kind.fields is not None or kind.kind == 'c':
        what = 'complex numbers' if kind.kind == 'c' else 'colours (RGB)'
        raise BadData(f'{path} holds {what}; expected a magnitude image, one number a voxel.')
    doubts: list[Finding] = []
    shape = _four_dimensions(image.shape, path, doubts)
    header = image.header.copy()
    affine = _placed(header, path, doubts)
    if not doubts:
        return image, []
    voxels: Any = image.dataobj
    if shape != image.shape:
        voxels = voxels.reshape(shape)
    header.set_data_shape(shape)
    return type(image)(voxels, affine, header), doubts


def _four_dimensions(shape: tuple[int, ...], path: Path, doubts: list[Finding]) -> tuple[int, ...]:
    """``shape`` without dimensions of length 1 beyond the third, where it has more than four."""
    if len(shape) <= 4:
        return shape
    more = tuple(n for n in shape[3:] if n != 1)
    if len(more) > 1:
        raise BadData(
            f'{path} has shape {shape}: {len(more)} dimensions beyond the three of space; expected '
            'one, of volumes. Convert it again.'
        )
    where = 'has no volumes' if not more else f'is read as {more[0]} volumes'
    doubts.append(Finding(
        'warning', 'DIMENSIONS',
        f'the image has {len(shape)} dimensions, {shape}; it {where}, dimensions of length 1 are '
        'dropped',
    ))  # fmt: skip
    return (*shape[:3], *more)


def _placed(header: nib.Nifti1Header, path: Path, doubts: list[Finding]) -> np.ndarray:
    """The affine (4, 4): sform, else qform, else what the voxel sizes alone say.

    An unusable sform in ``header`` is replaced by the qform.
    """

    def doubt(code: str, message: str) -> None:
        doubts.append(Finding('warning', code, message))

    (sform, s_code), (qform, q_code) = header.get_sform(coded=True), _qform(header)
    if s_code and not usable(sform):
        if not (q_code and usable(qform)):
            raise BadData(
                f'{path}: the sform of its header (code {s_code}) is no affine, and there is no '
                'qform: nothing says how the voxels lie. Convert it again from the scanner files.'
            )
        doubt('SFORM', f'the sform of the header (code {s_code}) is no affine (zeros, or not '
              'numbers): the qform is used')  # fmt: skip
        header.set_sform(qform, int(q_code))
    elif q_code and not s_code and not usable(qform):
        raise BadData(
            f'{path}: the qform of its header (code {q_code}) is no affine, and there is no sform: '
            'nothing says how the voxels lie. Convert it again from the scanner files.'
        )
    elif s_code and q_code and usable(qform) and _opposed(sform, qform):
        doubt('ORIENTATION', 'sform and qform of the header contradict each other on how the '
              'voxels lie: the sform is used, and the bvec file is read by it; left and right may '
              'be exchanged')  # fmt: skip
    elif not s_code and not q_code:
        if not usable(header.get_base_affine()):
            raise BadData(f'{path}: its header gives voxels of no size. Convert it again.')
        doubt('ORIENTATION', 'sform_code and qform_code of the header are both 0: it does not say '
              'how the voxels lie. The first axis is taken to run to the left, the second to the '
              'front, the third upwards; left and right are not known')  # fmt: skip
    return np.asarray(header.get_best_affine())


def _qform(header: nib.Nifti1Header) -> tuple[np.ndarray | None, int]:
    """The qform, None where its numbers make no rotation, and its code."""
    import nibabel as nib

    try:
        matrix, code = header.get_qform(coded=True)
        return matrix, int(code)
    except (ValueError, np.linalg.LinAlgError, nib.spatialimages.HeaderDataError):
        return None, int(header['qform_code'])


def usable(affine: np.ndarray | None) -> bool:
    """Whether an affine (4, 4) holds numbers only and its axes span a volume."""
    if affine is None or not np.isfinite(affine).all():
        return False
    axes = affine[:3, :3]
    box = float(np.prod(np.linalg.norm(axes, axis=0)))
    return box > 0 and abs(float(np.linalg.det(axes))) > FLAT * box


def _opposed(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    """Whether an axis of one usable affine points elsewhere in another."""
    if one is None or other is None:
        return False
    a, b = (m[:3, :3] / np.linalg.norm(m[:3, :3], axis=0) for m in (one, other))
    return bool(((a * b).sum(0) < ALIKE).any())
