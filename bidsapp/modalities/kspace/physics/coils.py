"""Several coils: whitened, compressed, and the maps of what each of them sees.

Maps are made from calibration samples alone, a block about the origin of k-space: whatever else is
measured, or is not, changes none of them. Their squares sum to 1 in every voxel, where there is
signal and where there is none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bidsapp.modalities.kspace.physics.fourier import (
    ALONG_READOUT,
    BOTH,
    PHASE,
    READOUT,
    around,
    hann,
    hybrid,
)
from bidsapp.modalities.kspace.physics.sampling import symmetric

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Coils are compressed to the fewest that hold this share of the calibration samples' energy. What
#: is lost of it is an error of the model: with 99 % kept of 8 simulated coils at R = 4 total
#: variation erred by 11.0 % and what it leaves of left-out lines was 1.7 times their noise; with
#: 99.9 % 7.5 % and 1.5, with 99.99 % 7.1 % and 1.3, with all 7.3 % and 1.2.
KEPT, MOST = 0.9999, 16
#: Calibration lines below which windowed images make better maps than ESPIRiT. Of one simulated
#: object, 8 coils, noise 1 %: total variation erred by 4.7 % with ESPIRiT and 5.0 % with windowed
#: images from 11 lines, by 12.4 % and 8.4 % from 7.
TOO_FEW = 10
#: Calibration lines from which the kernel of ESPIRiT is the larger one; both in samples.
ENOUGH, KERNEL, SMALL_KERNEL = 20, 6, 5
#: Share of the largest singular value from which a kernel counts as signal.
SIGNAL = 0.02
#: Every readout position.
ALL = slice(None)
#: Power iterations for the first eigenvector of every voxel, and columns worked on at a time.
ITERATIONS, AT_ONCE = 30, 16


def whitening(noise: Tensor) -> Tensor:
    """(C, C) W, so that the noise W n of all coils is independent and has σ = 1.

    ``noise`` (C, N) complex samples without signal, N ≥ C. (Pruessmann et al., 2001; W = L⁻¹ with
    L Lᴴ the covariance.) Raises ValueError where a coil has no noise or two have the same.
    """
    wide = noise.to(torch.complex128)
    covariance = wide @ wide.mH / noise.shape[1]
    lower, failed = torch.linalg.cholesky_ex(covariance)
    if int(failed) or not torch.isfinite(lower).all():
        raise ValueError('the covariance of the noise is singular')
    unit = torch.eye(len(lower), dtype=lower.dtype)
    return torch.linalg.solve_triangular(lower, unit, upper=False).to(torch.complex64)


def mixed(matrix: Tensor, kspace: Tensor) -> Tensor:
    """(V, C) or one a readout position, (X, V, C), times the coils of (…, C, X, Y)."""
    if matrix.ndim == 2:
        return torch.einsum('vc,...cxy->...vxy', matrix, kspace)
    return torch.einsum('xvc,...cxy->...vxy', matrix, kspace)


def compression(calibration: Tensor, kept: float = KEPT, most: int = MOST) -> tuple[Tensor, float]:
    """(V, C) with orthonormal rows, and the share of energy that V coils hold of (C, X, Y).

    The first virtual coils of a principal component analysis (Buehrer et al., MRM 57:1131, 2007;
    Huang et al., MRI 26:133, 2008).
    """
    flat = calibration.flatten(1).to(torch.complex128)
    energy, vectors = _principal(flat @ flat.mH)
    n, share = _enough(energy, kept, most)
    return vectors[:, :n].mH.to(torch.complex64), share


def compression_along_readout(
    calibration: Tensor, kept: float = KEPT, most: int = MOST
) -> tuple[Tensor, float]:
    """(X, V, C), a compression for each readout position, and the energy's share that V coils hold.

    ``calibration`` (C, X, Y) is in hybrid space, Y calibration lines. Matrices of neighbours are
    turned towards each other, so that virtual coils stay smooth (Zhang et al., MRM 69:571, 2013).
    """
    columns = calibration.permute(1, 0, 2).to(torch.complex128)
    energy, vectors = _principal(columns @ columns.mH)
    n, share = _enough(energy.sum(0), kept, most)
    found = [vectors[0, :, :n].mH]
    for here in vectors[1:, :, :n].mH:
        left, _, right = torch.linalg.svd(found[-1] @ here.mH)
        found.append(left @ right @ here)
    return torch.stack(found).to(torch.complex64), share


def _principal(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, the largest first, and their vectors, each with its largest entry positive."""
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(-1).clamp_min(0), vectors.flip(-1)
    largest = vectors.gather(-2, vectors.abs().argmax(-2, keepdim=True))
    return values, vectors * (largest.conj() / largest.abs().clamp_min(1e-30))


def _enough(energy: Tensor, kept: float, most: int) -> tuple[int, float]:
    share = energy.cumsum(0) / energy.sum().clamp_min(1e-30)
    n = min(int((share < kept).sum()) + 1, most, len(share))
    return n, float(share[n - 1])


def coil_maps(
    calibration: Tensor, shape: Sequence[int], columns: slice = ALL
) -> tuple[Tensor, str]:
    """(C, X, Y) maps from calibration samples (C, x, y) by the better method, and its name.

    Of the readout positions in ``columns`` alone.
    """
    if min(calibration.shape[1:]) < TOO_FEW:
        return low_resolution_maps(calibration, shape)[:, columns], 'low-resolution images'
    return espirit(calibration, shape, columns=columns), 'ESPIRiT'


def low_resolution_maps(calibration: Tensor, shape: Sequence[int]) -> Tensor:
    """(C, X, Y) coil images of windowed calibration samples over their root sum of squares.

    ``calibration`` (C, x, y), a block about the origin at x // 2, y // 2. (McKenzie et al., MRM
    47:529, 2002.)
    """
    return _unit(_low_resolution(calibration, shape), calibration)


def low_resolution_phase(
    calibration: Tensor, maps: Tensor, readout: int = 0, columns: slice = ALL
) -> Tensor:
    """(X, Y) of modulus 1: the phase of the image that the middle of k-space shows.

    Where ``maps`` are of some ``columns`` only, ``readout`` is how many there are.
    """
    shape = (readout or maps.shape[-2], maps.shape[-1])
    image = (maps.conj() * _low_resolution(calibration, shape)[..., columns, :]).sum(-3)
    return _turn(image)


def _low_resolution(calibration: Tensor, shape: Sequence[int]) -> Tensor:
    """Coil images of the samples whose mirror images in the origin are there too, windowed."""
    for axis, n in zip((READOUT, PHASE), shape, strict=True):
        whole = around_origin(calibration, n, axis)
        block = symmetric(slice(0, calibration.shape[axis]), calibration.shape[axis])
        width = block.stop - block.start
        window = hann(n, width) if width < n - 1 else torch.ones(n)
        window = window.to(calibration.device)
        calibration = whole * (window[:, None] if axis == READOUT else window)
    return BOTH.H(calibration)


def around_origin(part: Tensor, n: int, axis: int) -> Tensor:
    """Zeros around ``part`` to the length ``n``, unless it has it."""
    return part if part.shape[axis] == n else around(part, n, axis)


def espirit(
    calibration: Tensor, shape: Sequence[int], kernel: int | None = None, columns: slice = ALL
) -> Tensor:
    """(C, X, Y) maps by ESPIRiT (Uecker et al., MRM 71:990, 2014), one set, masked nowhere.

    ``calibration`` (C, x, y) k-space, a block about the origin, as long along readout as was
    measured. Where a patch of k-space is Σ s(q) exp(-2πi u·q / N) over voxels q, s(q) is the first
    eigenvector of Σ_d K(d) exp(2πi d·q / N), K(d) the sum over pairs of samples at a distance d
    in the projection onto the patches' row space.
    """
    coils = len(calibration)
    if coils == 1:
        alone = torch.ones((1, *shape), dtype=calibration.dtype, device=calibration.device)
        return alone[:, columns]
    if kernel is None:
        kernel = KERNEL if min(calibration.shape[1:]) >= ENOUGH else SMALL_KERNEL
    size = [min(kernel, n) for n in calibration.shape[1:]]
    correlation = _correlation(_projection(calibration, size), coils, size)
    readout, phase = (
        torch.exp(
            2j * torch.pi / n * (torch.arange(n) - n // 2)[:, None] * torch.arange(1 - k, k)
        ).to(calibration)
        for n, k in zip(shape, size, strict=True)
    )
    along = torch.einsum('xi,ijcd->xjcd', readout[columns], correlation)
    guess = _low_resolution(calibration, shape).permute(1, 2, 0)[columns]
    found = []
    for first in range(0, len(along), AT_ONCE):
        part = torch.einsum('yj,xjcd->xycd', phase, along[first : first + AT_ONCE])
        found.append(_first_eigenvector(part, guess[first : first + AT_ONCE]))
    return _unit(torch.cat(found).permute(2, 0, 1), calibration)


def _projection(calibration: Tensor, size: Sequence[int]) -> Tensor:
    """(C·k·k, C·k·k) onto the space of the patches of ``size`` that the calibration is made of."""
    patches = calibration.unfold(1, size[0], 1).unfold(2, size[1], 1)
    flat = patches.permute(0, 3, 4, 1, 2).flatten(3).flatten(0, 2)  # a column a patch
    # Squares of singular values down to SIGNAL² are beyond single precision.
    flat = flat.to(torch.complex128)
    values, vectors = torch.linalg.eigh(flat @ flat.mH)
    signal = vectors[:, values > SIGNAL**2 * values[-1]]
    return (signal @ signal.mH).to(calibration)


def _correlation(projection: Tensor, coils: int, size: Sequence[int]) -> Tensor:
    """(2k-1, 2k-1, C, C): sums over pairs of places u, u' of a patch with u - u' = d."""
    kx, ky = size
    pairs = projection.reshape(coils, kx, ky, coils, kx, ky).permute(1, 4, 2, 5, 0, 3)
    found = projection.new_zeros(2 * kx - 1, 2 * ky - 1, coils, coils)
    for i in range(kx):
        for j in range(kx):
            for k in range(ky):
                # u' runs downwards as d = u - u' runs upwards.
                first = k
                found[i - j + kx - 1, first : first + ky] += pairs[i, j, k].flip(0)
    return found / (kx * ky)


def _first_eigenvector(matrices: Tensor, guess: Tensor) -> Tensor:
    """(x, y, C) of Hermitian (x, y, C, C), by power iteration from ``guess`` (x, y, C)."""
    # A guess of nothing would stay nothing.
    vector = guess + 1e-6 * guess.abs().max().clamp_min(1e-30)
    vector = vector[..., None]
    for iteration in range(ITERATIONS):
        vector = matrices @ vector
        if iteration % 5 == 4:  # before it leaves single precision
            length = torch.view_as_real(vector).square().sum((-1, -2, -3), keepdim=True).sqrt()
            vector = vector / length[..., 0].clamp_min(1e-30)
    return vector[..., 0]


def _unit(maps: Tensor, calibration: Tensor) -> Tensor:
    """Maps whose squares sum to 1, and in which the coil that sees most has no phase.

    That coil is the first principal one of the calibration samples: a phase common to all of
    k-space stays in the image.
    """
    flat = calibration.flatten(1).to(torch.complex128)
    _, vectors = _principal(flat @ flat.mH)
    first = vectors[:, 0].to(maps)
    reference = torch.einsum('c,cxy->xy', first.conj(), maps)
    length = torch.linalg.vector_norm(maps, dim=0)
    # Where nothing is known all coils see alike.
    alike = torch.full_like(maps, len(maps) ** -0.5)
    unit = torch.where(length > 0, maps / length.clamp_min(1e-30), alike)
    return unit * _turn(reference).conj()


def _turn(x: Tensor) -> Tensor:
    """X over its modulus; 1 where it is 0."""
    size = x.abs()
    return torch.where(size > 0, x / size.clamp_min(1e-30), torch.ones_like(x))


def compressed(
    kspace: Tensor, calibration: Tensor, along_readout: bool
) -> tuple[Tensor, Tensor, float]:
    """K-space and calibration samples (C, X, Y) of fewer coils, and the share of energy kept.

    ``along_readout`` where both are of whole readouts.
    """
    if not along_readout:
        matrix, share = compression(calibration)
        return mixed(matrix, kspace), mixed(matrix, calibration), share
    columns = hybrid(calibration)
    matrix, share = compression_along_readout(columns)
    return (
        ALONG_READOUT(mixed(matrix, hybrid(kspace))),
        ALONG_READOUT(mixed(matrix, columns)),
        share,
    )
