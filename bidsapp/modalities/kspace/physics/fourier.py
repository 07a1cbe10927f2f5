"""Between image, hybrid space and k-space, centred and orthonormal.

Where whole readouts are measured or left out, a transform along readout leaves columns that have
nothing to do with each other: hybrid space, image along X and k-space along Y. A crop of columns is
then exact for the forward model and for every solve whose penalty does not join columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bidsapp.physics.operators import Fourier, Padded

#: Axes of readout and of phase encoding.
READOUT, PHASE = -2, -1
#: Image → hybrid space.
ALONG_PHASE = Fourier((PHASE,))
#: Hybrid space → k-space.
ALONG_READOUT = Fourier((READOUT,))
#: Image → k-space.
BOTH = Fourier((READOUT, PHASE))


def hybrid(kspace: Tensor) -> Tensor:
    """K-space (…, X, Y) → image along X, k-space along Y; unitary, so noise keeps its σ."""
    return ALONG_READOUT.H(kspace)


def middle(x: Tensor, n: int, axis: int) -> Tensor:
    """The ``n`` in the middle along ``axis``; the origin stays the origin."""
    whole = x.movedim(axis, -1)
    return Padded((n,), (whole.shape[-1],)).H(whole).movedim(-1, axis)


def around(x: Tensor, n: int, axis: int) -> Tensor:
    """Zeros around ``x`` to a length of ``n`` along ``axis``; the origin stays the origin."""
    part = x.movedim(axis, -1)
    return Padded((part.shape[-1],), (n,))(part).movedim(-1, axis)


def hann(n: int, width: int) -> Tensor:
    """(n,) a Hann window of ``width`` samples about n // 2, 0 beyond them."""
    offset = torch.arange(n, dtype=torch.float32) - n // 2
    # The middle of an even number of samples lies half a sample before n // 2.
    offset = offset + (0.5 if width % 2 == 0 else 0.0)
    inside = offset.abs() < (width + 1) / 2
    return torch.where(inside, torch.cos(torch.pi * offset / (width + 1)) ** 2, 0.0)
