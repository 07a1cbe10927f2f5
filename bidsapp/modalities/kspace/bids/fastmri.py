"""The layout of fastMRI (Zbontar et al., arXiv:1811.08839): k-space whole, header as of ISMRMRD.

``kspace`` is (slices, C, X, Y), or (slices, X, Y) of one coil; test files have a ``mask`` (Y,)
instead of lines that were left out. Nothing is said of where slices lie.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from bidsapp.modalities.kspace.bids import places
from bidsapp.modalities.kspace.bids.header import Encoding, parse_header
from bidsapp.modalities.kspace.bids.lines import cropped_words, require_calibration
from bidsapp.modalities.kspace.bids.raw import RawImage, centred, middle_size
from bidsapp.modalities.kspace.physics import measured
from bidsapp.modalities.kspace.physics.measured import Measured
from bidsapp.problems import BadData

if TYPE_CHECKING:
    import h5py


def survey_fastmri(file: h5py.File, name: str) -> RawImage:
    """Reads the header and the mask. Raises BadData."""
    text = file['ismrmrd_header'][()]
    header = parse_header(text.encode() if isinstance(text, str) else bytes(text), name)
    encoding = header.encodings[0]
    shape = file['kspace'].shape
    if len(shape) not in (3, 4) or shape[-2:] != encoding.encoded.matrix[:2] or 0 in shape:
        raise BadData(
            f'{name}: its k-space has the shape {shape}; expected slices, coils, and the matrix of '
            f'the header, {encoding.encoded.matrix[:2]}. Convert the scan again.'
        )
    if encoding.encoded.matrix[2] > 1:
        raise BadData(f'{name}: this layout is of 2-D slices. Convert the scan to ISMRMRD.')
    lines = _lines(file, encoding, name)
    affine = places.affine_of(
        encoding, np.zeros((3, 3)), centred(encoding, shape[0]), encoding.recon.fov_mm[2]
    )
    x, y, _ = encoding.shape
    return RawImage(
        encoding, affine, False, (x, y, shape[0]), 0, tuple(np.array([n]) for n in range(shape[0])),
        shape[1] if len(shape) == 4 else 1, lines[:, None], middle_size(lines[:, None]),
    )  # fmt: skip


def _lines(file: h5py.File, encoding: Encoding, name: str) -> np.ndarray:
    """(Y,) bool: lines within the limits of the header, and in the mask."""
    n = encoding.encoded.matrix[1]
    counter = np.arange(n) - n // 2 + encoding.centre[0]
    measured = (counter >= 0) & (counter <= encoding.last[0])
    if 'mask' in file:
        mask = np.asarray(file['mask'][()]).astype(bool).ravel()
        if mask.shape != (n,):
            raise BadData(f'{name}: its mask is of {len(mask)} lines and its k-space of {n}.')
        measured &= mask
    if not measured.any():
        raise BadData(f'{name}: no line was measured.')
    return np.asarray(measured)


def read_slice(file: h5py.File, image: RawImage, number: int, name: str) -> Measured:
    """Slice ``number``. Raises BadData."""
    whole = np.asarray(file['kspace'][number], np.complex64)
    kspace = torch.from_numpy(whole.reshape(image.coils, *whole.shape[-2:]))
    if not torch.isfinite(torch.view_as_real(kspace)).all():
        raise BadData(f'{name}: samples are not finite numbers. Convert the scan again.')
    if not kspace.any():
        raise BadData(f'{name}: all samples of slice {number + 1} are 0. Convert the scan again.')
    weights = torch.from_numpy(image.measured.astype(np.float32))[None]
    kspace = measured.without_oversampling(kspace, image.shape[0])[..., None] * weights
    block = measured.block_about_origin(kspace, weights)
    require_calibration(block, image, name)
    sigma = measured.corner_noise(kspace, weights)
    steps = {
        'Whitening': 'not done, the file has no noise scan',
        'Noise': f'{sigma:.4g}, from the outer corners of k-space',
        'ReadoutOversampling': cropped_words(whole.shape[-2], image.shape[0], True),
        'Calibration': 'lines of the image',
    }
    warnings = measured.beside_origin(kspace, weights, ('readout', 'phase encoding'))
    return Measured(kspace, weights, block, sigma, steps, tuple(warnings))
