"""Matrix-free linear operators with exact adjoints: the forward models A of image reconstruction.

A model is y = A x with A composed of factors, and every method that solves for x (least squares,
primal-dual, unrolled networks) asks for two things only, A x and the adjoint Aᴴ y:

    ⟨A x, y⟩ = ⟨x, Aᴴ y⟩,    ⟨x, y⟩ = Σ conj(x)·y

(Fessler, IEEE SPM 27(4), 2010, doi:10.1109/MSP.2010.936726). Spaces of real tensors, and maps
between a real and a complex one, have the real inner product Re ⟨x, y⟩.

Operators act on the last axes of torch tensors; leading axes are a batch, so axes count from the
end (negative). Range and domain have one precision and one device, those of the tensor passed in.
All is differentiable, and torch's vector-Jacobian product of A is Aᴴ. A tensor that is not of the
domain is a ValueError where the adjoint would otherwise be another's: `tests/laws.py` holds every
operator to these laws.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable


class LinearOperator(ABC):
    """A linear map of tensors: A x by ``forward``, or by calling it, and Aᴴ y by ``adjoint``."""

    __slots__ = ()

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A x, of the range, for ``x`` of the domain."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """Aᴴ y, of the domain, for ``y`` of the range."""

    def __call__(self, x: Tensor) -> Tensor:
        """A x."""
        return self.forward(x)

    @property
    def H(self) -> LinearOperator:  # noqa: N802 (as the field writes it)
        """Aᴴ as an operator; ``A.H.H`` is A."""
        return Adjoint(self)

    @property
    def gram(self) -> LinearOperator:
        """Aᴴ A, Hermitian and positive semidefinite: the operator of the normal equations."""
        return self.H @ self

    def __matmul__(self, inner: LinearOperator) -> LinearOperator:
        """The composition: (A @ B) x = A (B x)."""
        return Composition(self, inner)

    def __add__(self, other: LinearOperator) -> LinearOperator:
        """The sum: (A + B) x = A x + B x. Aᴴ A + λ 1 is ``A.gram + Diagonal(λ)``."""
        return Sum(self, other)

    def __rmul__(self, scalar: complex) -> LinearOperator:
        """The multiple: (c * A) x = c · (A x). With c a tensor it is ``Diagonal(c) @ A``."""
        return Diagonal(scalar) @ self


@dataclass(frozen=True, slots=True, eq=False)
class Adjoint(LinearOperator):
    """Aᴴ, from the range of A to its domain."""

    of: LinearOperator

    def forward(self, x: Tensor) -> Tensor:
        """Aᴴ x."""
        return self.of.adjoint(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """A y."""
        return self.of.forward(y)

    @property
    def H(self) -> LinearOperator:  # noqa: N802
        """A itself."""
        return self.of


@dataclass(frozen=True, slots=True, eq=False)
class Composition(LinearOperator):
    """A B, from the domain of B to the range of A; the adjoint is Bᴴ Aᴴ."""

    outer: LinearOperator
    inner: LinearOperator

    def forward(self, x: Tensor) -> Tensor:
        """A (B x)."""
        return self.outer.forward(self.inner.forward(x))

    def adjoint(self, y: Tensor) -> Tensor:
        """Bᴴ (Aᴴ y)."""
        return self.inner.adjoint(self.outer.adjoint(y))


@dataclass(frozen=True, slots=True, eq=False)
class Sum(LinearOperator):
    """A + B, of one domain and one range."""

    one: LinearOperator
    other: LinearOperator

    def forward(self, x: Tensor) -> Tensor:
        """A x + B x."""
        return self.one.forward(x) + self.other.forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Aᴴ y + Bᴴ y."""
        return self.one.adjoint(y) + self.other.adjoint(y)


@dataclass(frozen=True, slots=True, eq=False)
class Diagonal(LinearOperator):
    """Multiplication by ``values``: masks, weights, coil sensitivities, filters of k-space.

    Domain and range: (…, *shape), to which ``values``, a number or tensor, broadcast and whose
    type they leave as it is. Complex values need a complex domain (`RealToComplex`), an axis that
    only they have needs `Repeated`.
    """

    values: Tensor | complex

    def forward(self, x: Tensor) -> Tensor:
        """``values`` · x."""
        return self._times(self.values, x)

    def adjoint(self, y: Tensor) -> Tensor:
        """conj(``values``) · y."""
        values = self.values
        conjugate = values.conj() if isinstance(values, Tensor) else values.conjugate()
        return self._times(conjugate, y)

    @staticmethod
    def _times(values: Tensor | complex, x: Tensor) -> Tensor:
        product = values * x
        _require(product.shape == x.shape, f'the values give {tuple(x.shape)} another shape')
        _require(product.dtype == x.dtype, f'the values make {product.dtype} of {x.dtype}')
        return product


@dataclass(frozen=True, slots=True, eq=False)
class Fourier(LinearOperator):
    """The centred orthonormal discrete Fourier transform over ``axes``; unitary.

    Domain and range: complex (…, *shape), any other axes being a batch. In image and k-space alike
    the origin is index n // 2, for even n and odd:

        X[k] = n^(-1/2) Σ_j x[j] exp(-2πi (k - n//2) (j - n//2) / n)    along each axis.
    """

    axes: tuple[int, ...]

    def forward(self, x: Tensor) -> Tensor:
        """Image to k-space."""
        return self._centred(torch.fft.fftn, x)

    def adjoint(self, y: Tensor) -> Tensor:
        """K-space to image; it is the inverse."""
        return self._centred(torch.fft.ifftn, y)

    def _centred(self, transform: Callable[..., Tensor], x: Tensor) -> Tensor:
        _require(x.is_complex(), f'a Fourier transform of {x.dtype} needs RealToComplex before it')
        at_zero = torch.fft.ifftshift(x, self.axes)
        return torch.fft.fftshift(transform(at_zero, dim=self.axes, norm='ortho'), self.axes)


@dataclass(frozen=True, slots=True, eq=False)
class Padded(LinearOperator):
    """Zeros around an image; the adjoint, ``Padded(…).H``, crops it again.

    Domain: (…, *``shape``); range: (…, *``padded``). Origins coincide: n // 2 becomes N // 2.
    """

    shape: tuple[int, ...]
    padded: tuple[int, ...]

    def __post_init__(self) -> None:
        fits = len(self.shape) == len(self.padded)
        fits = fits and all(n <= m for n, m in zip(self.shape, self.padded, strict=True))
        _require(fits, f'{self.padded} does not hold {self.shape}')

    @property
    def _before(self) -> list[int]:
        return [m // 2 - n // 2 for n, m in zip(self.shape, self.padded, strict=True)]

    def forward(self, x: Tensor) -> Tensor:
        """The image in the middle of zeros."""
        _require_ends(x, self.shape)
        widths: list[int] = []  # of the last axis first
        for n, m, before in zip(self.shape, self.padded, self._before, strict=True):
            widths = [before, m - n - before, *widths]
        return functional.pad(x, widths)

    def adjoint(self, y: Tensor) -> Tensor:
        """The middle of an image."""
        _require_ends(y, self.padded)
        for axis, (n, before) in enumerate(zip(self.shape, self._before, strict=True)):
            y = y.narrow(axis - len(self.shape), before, n)
        return y


@dataclass(frozen=True, slots=True, eq=False)
class Repeated(LinearOperator):
    """An image seen ``times`` over along a new axis (coils, echoes); the adjoint is its sum.

    Domain: (…, *shape); range: (…, ``times``, *shape), where ``axis``, negative, is the new one.
    With coil sensitivities (C, X, Y, Z): ``Diagonal(sensitivities) @ Repeated(C, axis=-4)``.
    """

    times: int
    axis: int

    def __post_init__(self) -> None:
        _require(self.axis < 0, f'axis {self.axis} does not count from the end')

    def forward(self, x: Tensor) -> Tensor:
        """The image again and again; a view."""
        y = x.unsqueeze(self.axis)
        sizes = [-1] * y.ndim
        sizes[self.axis] = self.times
        return y.expand(sizes)

    def adjoint(self, y: Tensor) -> Tensor:
        """The sum along the axis."""
        _require(y.shape[self.axis] == self.times, f'{tuple(y.shape)} is not {self.times} images')
        return y.sum(self.axis)


@dataclass(frozen=True, slots=True, eq=False)
class RealToComplex(LinearOperator):
    """Real images as complex ones; the adjoint takes the real part.

    Domain: real (…); range: complex (…), under the real inner product: Re ⟨x + 0i, y⟩ = ⟨x, Re y⟩.
    With E this operator, a real filter of real images is Eᴴ Fᴴ diag(filter) F E.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x + 0i."""
        _require(not x.is_complex(), f'{x.dtype} is not real')
        return x.to(x.dtype.to_complex())

    def adjoint(self, y: Tensor) -> Tensor:
        """Re y."""
        _require(y.is_complex(), f'{y.dtype} is not complex')
        return y.real


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)


def _require_ends(x: Tensor, shape: tuple[int, ...]) -> None:
    _require(x.shape[-len(shape) :] == shape, f'{tuple(x.shape)} does not end in {shape}')
