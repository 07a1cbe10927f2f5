"""Laws of a linear operator: dot-product test, linearity, norm, unitarity, autograd.

The dot-product test (Claerbout, Earth Soundings Analysis, 1992) compares ⟨y, A x⟩ with ⟨Aᴴ y, x⟩ on
random vectors. Where domain and range are both complex it is exact in the complex numbers, so that
a missing conjugate shows; between a real and a complex space it is of real parts.

``dtype`` is the domain's, ``range_dtype`` the range's if that is another. Vectors are drawn from
``generator``, on its device. Shapes should be small, odd and different along each axis: an even
cube hides wrong shifts and swapped axes.
"""

from __future__ import annotations

import torch

from bidsapp.physics.solvers import norm

#: Rounding that is let pass, in units of the precision's epsilon and of the vectors' lengths.
ROUNDING = 1000


def draw(shape, generator, dtype):
    """Standard normal vectors; complex ones have variance 1."""
    return torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)


def assert_same(found, wanted, what):
    """Equal in shape and type, and in value to rounding relative to the length of the vector."""
    assert found.shape == wanted.shape, f'{what}: {tuple(found.shape)}, not {tuple(wanted.shape)}'
    assert found.dtype == wanted.dtype, f'{what}: {found.dtype}, not {wanted.dtype}'
    scale = float(wanted.norm())
    error = float((found - wanted).norm())
    allowed = ROUNDING * torch.finfo(wanted.dtype).eps * scale
    assert error <= allowed, f'{what}: off by {error:.3g} of {scale:.3g}'


def matrix(op, domain_shape, dtype):
    """The operator as a dense matrix (numbers in the range, numbers in the domain)."""
    n = torch.Size(domain_shape).numel()
    units = torch.eye(n, dtype=dtype).reshape(n, *domain_shape)
    return torch.stack([op(unit).flatten() for unit in units], 1)


def assert_adjoint(op, domain_shape, range_shape, generator, dtype, range_dtype=None):
    """⟨y, A x⟩ = ⟨Aᴴ y, x⟩, between the spaces that are named; Aᴴᴴ is A."""
    x = draw(domain_shape, generator, dtype)
    y = draw(range_shape, generator, range_dtype or dtype)
    image, back = op(x), op.H(y)
    assert (image.shape, image.dtype) == (y.shape, y.dtype), 'A x is not of the range'
    assert (back.shape, back.dtype) == (x.shape, x.dtype), 'Aᴴ y is not of the domain'
    there = torch.vdot(y.flatten(), image.flatten())
    here = torch.vdot(back.flatten(), x.flatten())
    if not (x.is_complex() and y.is_complex()):
        there, here = there.real, here.real
    scale = sum(float(a.norm() * b.norm()) for a, b in ((y, image), (back, x)))
    allowed = ROUNDING * torch.finfo(dtype).eps * scale
    error = float((there - here).abs())
    assert error <= allowed, f'⟨y, A x⟩ = {there:.6g}, ⟨Aᴴ y, x⟩ = {here:.6g}'
    assert_same(op.H.H(x), image, 'Aᴴᴴ x')


def assert_linear(op, domain_shape, generator, dtype):
    """A(αx + βy) = αA(x) + βA(y) and A(0) = 0; complex α, β where domain and range are complex."""
    x, y = (draw(domain_shape, generator, dtype) for _ in range(2))
    both_complex = dtype.is_complex and op(x).is_complex()
    scalars = dtype if both_complex else dtype.to_real()
    α, β = draw((2,), generator, scalars)
    assert_same(op(α * x + β * y), α * op(x) + β * op(y), 'A(αx + βy)')
    if both_complex:
        assert_same(op(1j * x), 1j * op(x), 'A(ix)')
    assert not op(torch.zeros_like(x)).any(), 'A(0) is not 0'


def assert_batched(op, domain_shape, generator, dtype):
    """A of a stack is the stack of A: a leading axis is a batch."""
    x = draw((3, *domain_shape), generator, dtype)
    assert_same(op(x), torch.stack([op(one) for one in x]), 'A of a batch')


def assert_norm_at_most(op, bound, domain_shape, generator, dtype, steps=100):
    """‖A‖ ≤ bound, as far as power iteration finds it."""
    found = norm(op, domain_shape, generator, dtype=dtype, steps=steps)
    allowed = bound * (1 + ROUNDING * torch.finfo(dtype).eps)
    assert found <= allowed, f'the norm is at least {found:.6g}, not at most {bound:.6g}'


def assert_unitary(op, domain_shape, generator, dtype):
    """‖A x‖ = ‖x‖, Aᴴ A = 1 and A Aᴴ = 1."""
    x = draw(domain_shape, generator, dtype)
    y = op(x)
    assert_same(y.norm(), x.norm(), '‖A x‖')
    assert_same(op.H(y), x, 'Aᴴ A x')
    y = draw(y.shape, generator, y.dtype)
    assert_same(op(op.H(y)), y, 'A Aᴴ y')


def assert_autograd_is_adjoint(op, domain_shape, range_shape, generator, dtype, range_dtype=None):
    """Torch's vector-Jacobian product of A is Aᴴ y, and that of Aᴴ is A x."""
    x = draw(domain_shape, generator, dtype).requires_grad_()
    y = draw(range_shape, generator, range_dtype or dtype).requires_grad_()
    (of_forward,) = torch.autograd.grad(op(x), x, y.detach())
    (of_adjoint,) = torch.autograd.grad(op.H(y), y, x.detach())
    assert_same(of_forward, op.H(y).detach(), "A's vector-Jacobian product")
    assert_same(of_adjoint, op(x).detach(), "Aᴴ's vector-Jacobian product")


def assert_operator(op, domain_shape, range_shape, generator, dtype, range_dtype=None):
    """All that any operator keeps: adjoint, linearity and batches of both, autograd."""
    assert_adjoint(op, domain_shape, range_shape, generator, dtype, range_dtype)
    assert_linear(op, domain_shape, generator, dtype)
    assert_batched(op, domain_shape, generator, dtype)
    assert_linear(op.H, range_shape, generator, range_dtype or dtype)
    assert_batched(op.H, range_shape, generator, range_dtype or dtype)
    assert_autograd_is_adjoint(op, domain_shape, range_shape, generator, dtype, range_dtype)
