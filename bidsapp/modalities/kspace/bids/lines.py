"""Samples of one slice from an ISMRMRD file: turned, placed, averaged, whitened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bidsapp.modalities.kspace.bids import layout
from bidsapp.modalities.kspace.bids.layout import flagged
from bidsapp.modalities.kspace.bids.raw import RawFile, RawImage, line_numbers
from bidsapp.modalities.kspace.physics import measured
from bidsapp.modalities.kspace.physics.coils import whitening
from bidsapp.modalities.kspace.physics.measured import Measured
from bidsapp.modalities.kspace.physics.sampling import FEWEST
from bidsapp.problems import BadData

if TYPE_CHECKING:
    import h5py

#: Lines that are read at once.
AT_ONCE = 512
AXES = ('readout', 'phase encoding', 'the second phase encoding')


@dataclass(frozen=True, slots=True, eq=False)
class Whitening:
    """The noise scan of a file."""

    matrix: Tensor | None  #: (C, C), of the bandwidth of the image's lines
    said: str


def whitening_of(group: h5py.Group, raw: RawFile, image: RawImage, name: str) -> Whitening:
    """Whitens by the noise scan, scaled to the bandwidth of the image: a sample's dwell time.

    The receiver lets through a share of a noise scan's bandwidth, its flat middle, and all of an
    image's (Kellman & McVeigh, MRM 54:1439, 2005).
    """
    if not len(raw.noise):
        return Whitening(None, 'not done, the file has no noise scan')
    heads = raw.heads
    coils = np.unique(heads['active_channels'][raw.noise])
    if len(coils) > 1 or coils[0] != image.coils:
        raise BadData(
            f'{name}: its noise scan has {coils[0]} coils and its image {image.coils}. Convert the '
            'scan again.'
        )
    lines = [layout.samples_of(group, heads, np.array([n]), name)[0] for n in raw.noise]
    samples = torch.from_numpy(np.concatenate(lines, 1))
    try:
        matrix = whitening(samples)
    except ValueError as error:
        return Whitening(None, f'not done, {error}')
    here, there = (float(heads['sample_time_us'][n]) for n in (image.slices[0][0], raw.noise[0]))
    ratio = here / there if here > 0 and there > 0 else 1.0
    share = raw.header.noise_bandwidth
    said = (
        f'by {samples.shape[1]} noise samples a coil; dwell times {there:g} and {here:g} µs, '
        f'noise bandwidth {share:g}'
    )
    return Whitening(matrix * (share * ratio) ** 0.5, said)


def read_slice(
    group: h5py.Group, raw: RawFile, image: RawImage, number: int, white: Whitening, name: str
) -> Measured:
    """Slice (or slab) ``number`` of ``image``. Raises BadData."""
    own = image.slices[number]
    heads = raw.heads[own]
    only = flagged(heads, layout.CALIBRATION) & ~flagged(heads, layout.CALIBRATION_TOO)
    both = flagged(heads, layout.CALIBRATION_TOO)
    whole = _all_whole(heads, image)
    imaging = _summed(group, raw, image, own[~only], white.matrix, whole, name)
    kspace, weights, factor = measured.averaged(*imaging)
    if not kspace.any():
        raise BadData(f'{name}: all samples of slice {number + 1} are 0. Convert the scan again.')
    if only.any():
        separate = _summed(group, raw, image, own[only | both], white.matrix, whole, name)
        block = measured.block_about_origin(*measured.averaged(*separate)[:2])
    else:
        block = measured.block_about_origin(kspace, weights)
    require_calibration(block, image, name)
    steps = _steps(heads, only, (weights[weights > 0] / factor).square(), image, whole)
    steps['Whitening'] = white.said
    if white.matrix is None:
        sigma = measured.corner_noise(kspace, weights)
        steps['Noise'] = f'{sigma:.4g}, from the outer corners of k-space'
    else:
        sigma = factor
        steps['Noise'] = f'{sigma:.4g} after whitening'
    warnings = measured.beside_origin(kspace, weights, AXES[: 2 + image.three_dimensional])
    return Measured(kspace, weights, block, sigma, steps, tuple(warnings))


def _all_whole(heads: np.ndarray, image: RawImage) -> bool:
    """Whether every line has a sample at every place along readout."""
    kept = heads['number_of_samples'].astype(int) - heads['discard_pre'] - heads['discard_post']
    return bool((kept == image.encoding.encoded.matrix[0]).all())


def require_calibration(block: Tensor, image: RawImage, name: str) -> None:
    """Raises BadData where ``block`` (C, x, y, z) about the origin makes no maps."""
    lines = min(block.shape[2 : 4 if image.three_dimensional else 3])
    if image.coils > 1 and lines < FEWEST:
        raise BadData(
            f'{name}: {lines} lines about the centre of k-space were measured without a gap; maps '
            f'of {image.coils} coils need at least {FEWEST}. Scan with calibration lines.'
        )


def _steps(
    heads: np.ndarray, only: np.ndarray, averages: Tensor, image: RawImage, whole: bool
) -> dict[str, str]:
    turned = int(flagged(heads, layout.REVERSED).sum())
    x = image.encoding.encoded.matrix[0]
    least, most = float(averages.min()), float(averages.max())
    return {
        'Averages': f'{least:.3g} to {most:.3g} of a sample',
        'Calibration': f'{int(only.sum())} separate lines' if only.any() else 'lines of the image',
        'ReversedLines': f'{turned} turned' if turned else 'none',
        'ReadoutOversampling': cropped_words(x, image.shape[0], whole),
        'LeftOut': ', '.join(image.notes) or 'no lines',
    }  # fmt: skip


def cropped_words(sampled: int, wanted: int, whole: bool) -> str:
    """What becomes of ``sampled`` places along readout."""
    if sampled == wanted:
        return 'none'
    how = 'by a transform along readout' if whole else 'in the image, for readouts are not whole'
    return f'{sampled} to {wanted} voxels {how}'


def _summed(
    group: h5py.Group,
    raw: RawFile,
    image: RawImage,
    which: np.ndarray,
    matrix: Tensor | None,
    whole: bool,
    name: str,
) -> tuple[Tensor, Tensor]:
    """Sums (C, X, Y, Z) of the lines ``which``, and how often each sample was measured."""
    x, y, z = image.encoding.encoded.matrix
    n = image.shape[0] if whole else x
    total = torch.zeros((y * z, image.coils, n), dtype=torch.complex64)
    count = torch.zeros((y * z, 1 if whole else n))
    for some in _alike(raw.heads, which):
        heads = raw.heads[some]
        lines = torch.from_numpy(layout.samples_of(group, raw.heads, some, name))
        placed, known = _along_readout(lines, heads, x, name)
        if whole:
            # The origin of a line is placed, so that lines can be cropped one by one.
            placed = measured.without_oversampling(placed[..., None], n)[..., 0]
            known = known[:, :1]
        if matrix is not None:
            placed = torch.einsum('wc,ncx->nwx', matrix, placed)
        rows, columns = line_numbers(heads, image.encoding, name)
        where = torch.from_numpy(rows * z + columns)
        total.index_add_(0, where, placed)
        count.index_add_(0, where, known.float())
    kspace = total.reshape(y, z, image.coils, n).permute(2, 3, 0, 1).contiguous()
    return kspace, count.reshape(y, z, -1).permute(2, 0, 1).contiguous()


def _alike(heads: np.ndarray, which: np.ndarray) -> list[np.ndarray]:
    """``which`` in parts of lines that are as long, and not too many to read at once."""
    found = []
    for samples in np.unique(heads['number_of_samples'][which]):
        own = which[heads['number_of_samples'][which] == samples]
        found += [own[first : first + AT_ONCE] for first in range(0, len(own), AT_ONCE)]
    return found


def _along_readout(lines: Tensor, heads: np.ndarray, n: int, name: str) -> tuple[Tensor, Tensor]:
    """(N, C, n) lines with the origin at n // 2, and (N, n) which samples there are.

    ``center_sample`` counts in a line as it is stored, turned ones too.
    """
    length = lines.shape[-1]
    placed = lines.new_zeros((*lines.shape[:2], n))
    known = torch.zeros((len(lines), n), dtype=torch.bool)
    turned = flagged(heads, layout.REVERSED)
    for row, (line, head) in enumerate(zip(lines, heads, strict=True)):
        first, last = int(head['discard_pre']), length - int(head['discard_post'])
        centre = int(head['center_sample'])
        if turned[row]:
            line = line.flip(-1)
            first, last, centre = length - last, length - first, length - 1 - centre
        place = n // 2 - centre
        if first >= last or place + first < 0 or place + last > n:
            raise BadData(
                f'{name}: a line of {length} samples about its sample {centre} does not fit a '
                f'matrix of {n}. Convert the scan again.'
            )
        placed[row, :, place + first : place + last] = line[:, first:last]
        known[row, place + first : place + last] = True
    return placed, known
