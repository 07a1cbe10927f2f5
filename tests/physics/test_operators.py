"""Operators: every primitive and composition keeps the laws, a wrong one does not; closed forms."""

from __future__ import annotations

from dataclasses import dataclass
from math import pi, prod, sqrt

import pytest
import torch

from bidsapp.physics.operators import (
    Diagonal,
    Fourier,
    LinearOperator,
    Padded,
    RealToComplex,
    Repeated,
)
from tests.laws import (
    assert_adjoint,
    assert_autograd_is_adjoint,
    assert_batched,
    assert_linear,
    assert_norm_at_most,
    assert_operator,
    assert_same,
    assert_unitary,
    draw,
    matrix,
)

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
COMPLEX = DTYPES[2:]
#: Odd, even and different along each axis; the first also in three dimensions.
SHAPES = [(5, 4, 7), (8, 6), (9,), (1, 2)]


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(20261121)


def last(n):
    return tuple(range(-n, 0))


class TestDiagonal:
    @pytest.mark.parametrize('dtype', DTYPES)
    @pytest.mark.parametrize('values_shape', [(), (3, 4), (4,), (3, 1), (2, 3, 4)])
    def test_laws(self, values_shape, dtype, generator):
        values = draw(values_shape, generator, dtype)
        assert_operator(Diagonal(values), (2, 3, 4), (2, 3, 4), generator, dtype)

    @pytest.mark.parametrize('dtype', DTYPES)
    def test_masks_and_numbers(self, dtype, generator):
        mask = torch.rand(3, 4, generator=generator) < 0.5
        for values in (mask, 0.3, 2, -1j if dtype.is_complex else -1.0):
            assert_operator(Diagonal(values), (2, 3, 4), (2, 3, 4), generator, dtype)
        assert_same(Diagonal(mask).gram(mask.to(dtype)), mask.to(dtype), 'a mask is a projection')

    def test_a_number_is_not_rounded_to_single_precision(self):
        assert Diagonal(0.1)(torch.ones(1, dtype=torch.float64)).item() == 0.1

    def test_its_matrix(self, generator):
        values = draw((3,), generator, torch.complex128)
        assert torch.equal(matrix(Diagonal(values), (3,), torch.complex128), torch.diag(values))

    def test_the_norm_is_the_largest_value(self, generator):
        values = torch.tensor([1.0, -3j, 2.0], dtype=torch.complex128)
        assert_norm_at_most(Diagonal(values), 3, (3,), generator, torch.complex128)
        with pytest.raises(AssertionError, match='norm'):
            assert_norm_at_most(Diagonal(values), 2.999, (3,), generator, torch.complex128)

    @pytest.mark.parametrize(
        ('values', 'x'),
        [
            (torch.ones(4, 3), torch.ones(3)),  # would see three numbers four times over
            (torch.ones(3), torch.ones(1)),
            (torch.ones(3) * 1j, torch.ones(3)),  # would leave the real numbers
            (1j, torch.ones(3)),
            (torch.ones(3, dtype=torch.float64), torch.ones(3)),
        ],
    )
    def test_values_that_are_no_diagonal_of_the_domain(self, values, x):
        for apply in (Diagonal(values), Diagonal(values).H):
            with pytest.raises(ValueError, match='the values'):
                apply(x)

    def test_gradients_reach_the_values(self, generator):
        values = draw((3,), generator, torch.complex128).requires_grad_()
        x = draw((2, 3), generator, torch.complex128)
        assert torch.autograd.gradcheck(lambda v: Diagonal(v).gram(x), (values,))


class TestFourier:
    @pytest.mark.parametrize('dtype', COMPLEX)
    @pytest.mark.parametrize('shape', SHAPES)
    def test_laws(self, shape, dtype, generator):
        for domain in (shape, (2, 3, *shape)):
            fourier = Fourier(last(len(shape)))
            assert_operator(fourier, domain, domain, generator, dtype)
            assert_unitary(fourier, domain, generator, dtype)
            assert_norm_at_most(fourier, 1, domain, generator, dtype, steps=5)

    @pytest.mark.parametrize('axes', [(-1,), (-2,), (-3, -1), (-1, -3)])
    def test_some_axes(self, axes, generator):
        assert_operator(Fourier(axes), (5, 4, 3), (5, 4, 3), generator, torch.complex128)
        assert_unitary(Fourier(axes), (5, 4, 3), generator, torch.complex128)
        x = draw((5, 4, 3), generator, torch.complex128)
        found = Fourier(axes)(x)
        for axis in axes:
            x = Fourier((axis,))(x)
        assert_same(found, x, 'axis after axis')

    @pytest.mark.parametrize('n', [1, 2, 3, 8, 9])
    def test_it_is_the_sum_that_the_docstring_states(self, n):
        index = torch.arange(n, dtype=torch.float64) - n // 2
        wanted = torch.exp(-2j * pi / n * torch.outer(index, index)) / sqrt(n)
        assert_same(matrix(Fourier((-1,)), (n,), torch.complex128), wanted, 'matrix')
        assert_same(matrix(Fourier((-1,)).H, (n,), torch.complex128), wanted.mH, 'of the adjoint')

    @pytest.mark.parametrize('shape', SHAPES)
    def test_a_point_at_the_origin_is_flat_real_and_positive(self, shape):
        point = torch.zeros(shape, dtype=torch.complex128)
        point[tuple(n // 2 for n in shape)] = 1
        flat = torch.full(shape, prod(shape) ** -0.5, dtype=torch.complex128)
        assert_same(Fourier(last(len(shape)))(point), flat, 'of a point')
        assert_same(Fourier(last(len(shape)))(flat), point, 'of a constant')

    @pytest.mark.parametrize('shape', [(48, 51), (64, 49, 48)])
    def test_a_gaussian_is_a_gaussian(self, shape):
        """Of exp(-π a j² / n) it is a^(-1/2) exp(-π k² / (a n)), up to aliasing below rounding."""
        square = [(torch.arange(n, dtype=torch.float64) - n // 2) ** 2 / n for n in shape]
        width = (1.0, 1.2, 0.9)[: len(shape)]
        image = spectrum = torch.ones((), dtype=torch.complex128)
        for s, a in zip(square, width, strict=True):
            image = image[..., None] * torch.exp(-pi * a * s)
            spectrum = spectrum[..., None] * torch.exp(-pi * s / a) / sqrt(a)
        assert_same(Fourier(last(len(shape)))(image), spectrum, 'of a Gaussian')

    @pytest.mark.parametrize('n', [8, 9])
    def test_a_shift_is_a_phase_ramp(self, n, generator):
        x = draw((3, n), generator, torch.complex128)
        index = torch.arange(n) - n // 2
        for shift in (1, -2, 5):
            ramp = torch.exp(-2j * pi * shift / n * index.to(torch.float64))
            found = Fourier((-1,))(x.roll(shift, -1))
            assert_same(found, ramp * Fourier((-1,))(x), f'shifted by {shift}')

    @pytest.mark.parametrize('shape', SHAPES)
    def test_twice_is_the_image_about_its_origin(self, shape, generator):
        x = draw(shape, generator, torch.complex128)
        fourier = Fourier(last(len(shape)))
        about = x.flip(last(len(shape))).roll([1 - n % 2 for n in shape], last(len(shape)))
        assert_same((fourier @ fourier)(x), about, 'F F x')

    def test_a_real_image_is_refused(self):
        for apply in (Fourier((-1,)), Fourier((-1,)).H):
            with pytest.raises(ValueError, match='RealToComplex'):
                apply(torch.ones(3))


class TestPadded:
    @pytest.mark.parametrize('dtype', DTYPES)
    @pytest.mark.parametrize('batch', [(), (2, 3)])
    def test_laws(self, batch, dtype, generator):
        shape, padded = (3, 4, 5), (6, 4, 9)
        pad = Padded(shape, padded)
        assert_operator(pad, (*batch, *shape), (*batch, *padded), generator, dtype)
        assert_norm_at_most(pad, 1, (*batch, *shape), generator, dtype, steps=5)
        x = draw((*batch, *shape), generator, dtype)
        assert torch.equal(pad.gram(x), x)

    @pytest.mark.parametrize('n', [1, 2, 3, 4])
    @pytest.mark.parametrize('m', [4, 5, 8])
    def test_origins_coincide(self, n, m):
        point = torch.zeros(n)
        point[n // 2] = 1
        assert Padded((n,), (m,))(point).nonzero().item() == m // 2

    def test_what_is_not_of_the_domain(self):
        with pytest.raises(ValueError, match='does not hold'):
            Padded((3, 4), (4, 3))
        with pytest.raises(ValueError, match='does not hold'):
            Padded((3,), (4, 3))
        for apply in (Padded((3,), (5,)), Padded((3,), (5,)).H):
            with pytest.raises(ValueError, match='does not end'):
                apply(torch.ones(4))


class TestRepeated:
    @pytest.mark.parametrize('dtype', DTYPES)
    @pytest.mark.parametrize('axis', [-1, -2, -3])
    def test_laws(self, axis, dtype, generator):
        repeated = [3, 4]
        repeated.insert(3 + axis, 5)
        assert_operator(Repeated(5, axis), (3, 4), repeated, generator, dtype)
        assert_operator(Repeated(5, axis), (2, 3, 4), (2, *repeated), generator, dtype)
        x = draw((3, 4), generator, dtype)
        assert_same(Repeated(5, axis).gram(x), 5 * x, 'Aᴴ A x')
        assert_norm_at_most(Repeated(5, axis), sqrt(5), (3, 4), generator, dtype, steps=5)

    def test_what_does_not_count_from_the_end_or_has_another_number(self):
        with pytest.raises(ValueError, match='from the end'):
            Repeated(5, 0)
        with pytest.raises(ValueError, match='not 5 images'):
            Repeated(5, -2).H(torch.ones(1, 3))


@pytest.mark.parametrize('real', DTYPES[:2])
def test_real_to_complex(real, generator):
    embed = RealToComplex()
    assert_operator(embed, (3, 4), (3, 4), generator, real, real.to_complex())
    assert_operator(embed.H, (3, 4), (3, 4), generator, real.to_complex(), real)
    x = draw((3, 4), generator, real)
    assert torch.equal(embed.gram(x), x)
    with pytest.raises(ValueError, match='not complex'):
        embed.H(x)
    with pytest.raises(ValueError, match='not real'):
        embed(embed(x))


class TestAlgebra:
    @pytest.fixture
    def pair(self, generator):
        """Two operators that do not commute."""
        return Fourier((-2, -1)), Diagonal(draw((5, 4), generator, torch.complex128))

    def test_composition_is_from_right_to_left(self, pair, generator):
        a, b = pair
        x = draw((5, 4), generator, torch.complex128)
        assert torch.equal((a @ b)(x), a(b(x)))
        assert torch.equal((a @ b).H(x), b.H(a.H(x)))
        assert not torch.allclose((a @ b)(x), (b @ a)(x))
        assert torch.equal(((a @ b) @ a)(x), (a @ (b @ a))(x))

    def test_the_matrix_of_a_composition_is_the_product(self, pair):
        one, other = (matrix(op, (5, 4), torch.complex128) for op in pair)
        a, b = pair
        for op, wanted in [
            (a @ b, one @ other),
            ((a @ b).H, (one @ other).mH),
            (a + b, one + other),
            ((a + b).H, (one + other).mH),
            ((2 - 1j) * a, (2 - 1j) * one),
            (((2 - 1j) * a).H, (2 + 1j) * one.mH),
            ((b @ a).gram, (other @ one).mH @ other @ one),
            (Diagonal(0.3) + a, 0.3 * torch.eye(20, dtype=torch.float64) + one),
        ]:
            assert_same(matrix(op, (5, 4), torch.complex128), wanted, str(op))
            assert_operator(op, (5, 4), (5, 4), torch.Generator().manual_seed(1), torch.complex128)

    def test_a_call_is_forward_and_the_adjoint_of_the_adjoint_is_itself(self, pair, generator):
        x = draw((5, 4), generator, torch.complex128)
        for op in (*pair, pair[0] @ pair[1], pair[0] + pair[1], pair[0].gram):
            assert torch.equal(op(x), op.forward(x))
            assert torch.equal(op.H(x), op.adjoint(x))
            assert torch.equal(op.H.adjoint(x), op.forward(x))
            assert op.H.H is op

    def test_a_multiple_is_of_the_range(self, generator):
        """Where a complex number may stand and the real domain has none."""
        op, real, number = 1j * RealToComplex(), torch.float64, torch.complex128
        assert_operator(op, (3, 4), (3, 4), generator, real, number)

    def test_they_are_frozen(self, pair):
        for op in (*pair, pair[0].H, pair[0] @ pair[1]):
            with pytest.raises((AttributeError, TypeError)):
                op.other = 1


@pytest.mark.parametrize('dtype', COMPLEX)
@pytest.mark.parametrize('batch', [(), (2,)])
def test_coil_encoded_fourier_samples(dtype, batch, generator):
    """Mask · F · coils; coils whose squares sum to 1 leave the norm at most 1."""
    image, coils = (5, 4, 7), 3
    maps = draw((coils, *image), generator, dtype)
    maps = maps / torch.linalg.vector_norm(maps, dim=0)
    mask = torch.rand(4, 7, generator=generator) < 0.5
    encode = Diagonal(mask) @ Fourier((-2, -1)) @ Diagonal(maps) @ Repeated(coils, -4)
    domain, samples = (*batch, *image), (*batch, coils, *image)
    assert_operator(encode, domain, samples, generator, dtype)
    assert_norm_at_most(encode, 1, domain, generator, dtype)
    every = Fourier((-2, -1)) @ Diagonal(maps) @ Repeated(coils, -4)
    x = draw(domain, generator, dtype)
    assert_same(every.gram(x), x, 'Aᴴ A x with every sample')


@pytest.mark.parametrize('dtype', DTYPES[:2])
@pytest.mark.parametrize('batch', [(), (2,)])
def test_a_real_filter_on_a_padded_grid(dtype, batch, generator):
    """Weights · crop · Re Fᴴ diag(d) F · pad, from real images to real images."""
    image, grid = (5, 4, 3), (9, 8, 6)
    kernel = draw(grid, generator, dtype)
    pad = RealToComplex() @ Padded(image, grid)
    convolve = pad.H @ Fourier(last(3)).H @ Diagonal(kernel) @ Fourier(last(3)) @ pad
    model = Diagonal(draw(image, generator, dtype)) @ convolve
    domain = (*batch, *image)
    assert_operator(model, domain, domain, generator, dtype)
    assert_norm_at_most(convolve, float(kernel.abs().max()), domain, generator, dtype)
    x = draw(domain, generator, dtype)
    assert_same((pad.H @ Fourier(last(3)).gram @ pad)(x), x, 'the filter that is 1')


@dataclass(frozen=True, slots=True, eq=False)
class Pair(LinearOperator):
    """Any two functions that claim to be an operator and its adjoint."""

    there: object
    back: object

    def forward(self, x):
        return self.there(x)

    def adjoint(self, y):
        return self.back(y)


def phase(n):
    return torch.exp(1j * torch.arange(n, dtype=torch.float64))


def fft(x):
    return torch.fft.fftshift(torch.fft.fft(torch.fft.ifftshift(x), norm='ortho'))


def ifft(x):
    return torch.fft.fftshift(torch.fft.ifft(torch.fft.ifftshift(x), norm='ortho'))


def wrongly_shifted(x):
    return torch.fft.ifftshift(torch.fft.ifft(torch.fft.fftshift(x), norm='ortho'))


class TestTheLawsCatch:
    """A law that never fails is worth nothing."""

    @pytest.mark.parametrize(
        ('there', 'back', 'domain', 'range_'),
        [
            pytest.param(lambda x: x * phase(7), lambda y: y * phase(7), 7, 7, id='conjugate'),
            pytest.param(fft, wrongly_shifted, 7, 7, id='shift'),
            pytest.param(fft, lambda y: ifft(y) * 7, 7, 7, id='scale'),
            pytest.param(fft, fft, 7, 7, id='inverse'),
            pytest.param(
                lambda x: torch.nn.functional.pad(x, (1, 2)), lambda y: y[2:-1], 4, 7, id='crop'
            ),
            pytest.param(
                lambda x: x.expand(3, -1), lambda y: y.mean(0, keepdim=True), (1, 4), (3, 4),
                id='sum',
            ),
            pytest.param(lambda x: x.expand(3, -1), lambda y: y, (1, 4), (3, 4), id='shape'),
            pytest.param(lambda x: x, lambda y: y.to(torch.complex64), 7, 7, id='precision'),
            pytest.param(lambda x: x, lambda y: y.real, 7, 7, id='real'),
        ],
    )  # fmt: skip
    def test_a_wrong_adjoint(self, there, back, domain, range_, generator):
        shapes = [(n,) if isinstance(n, int) else n for n in (domain, range_)]
        wrong = Pair(there, back)
        for law in (assert_adjoint, assert_autograd_is_adjoint):
            with pytest.raises((AssertionError, RuntimeError)) as caught:
                law(wrong, *shapes, generator, torch.complex128)
            assert law is assert_autograd_is_adjoint or caught.type is AssertionError

    def test_the_wrong_shift_only_of_odd_sizes(self, generator):
        """What would be missed by whoever tries even sizes alone: there, the two are the same."""
        assert_adjoint(Pair(fft, wrongly_shifted), (8,), (8,), generator, torch.complex128)

    def test_an_error_in_single_precision(self, generator):
        wrong = Pair(lambda x: x * (1 + 1e-2j), lambda y: y * (1 + 1e-2j))
        with pytest.raises(AssertionError):
            assert_adjoint(wrong, (5, 4, 7), (5, 4, 7), generator, torch.complex64)

    def test_an_error_of_a_tiny_operator(self, generator):
        wrong = Pair(lambda x: 1e-9j * x, lambda y: 1e-9j * y)
        for law in (assert_adjoint, assert_autograd_is_adjoint):
            with pytest.raises(AssertionError):
                law(wrong, (7,), (7,), generator, torch.complex128)

    def test_what_mixes_a_batch(self, generator):
        assert_batched(Pair(fft, ifft), (7,), generator, torch.complex128)
        with pytest.raises(AssertionError):
            assert_batched(Pair(torch.fft.fftn, None), (7,), generator, torch.complex128)

    @pytest.mark.parametrize(
        'there',
        [
            pytest.param(lambda x: x + 1, id='affine'),
            pytest.param(lambda x: x * x.abs(), id='square'),
            pytest.param(torch.conj_physical, id='conjugate'),
            pytest.param(lambda x: x.real + 0j, id='real part'),
            pytest.param(lambda x: x / x.norm().clamp_min(1e-9), id='normalised'),
        ],
    )
    def test_what_is_not_linear(self, there, generator):
        with pytest.raises(AssertionError):
            assert_linear(Pair(there, there), (7,), generator, torch.complex128)

    def test_only_real_linearity_can_be_asked_of_a_real_range(self, generator):
        assert_linear(Pair(lambda x: x.real, None), (7,), generator, torch.complex128)

    @pytest.mark.parametrize(
        ('there', 'back'),
        [
            pytest.param(torch.fft.fft, torch.fft.ifft, id='not of norm 1'),
            pytest.param(fft, lambda y: ifft(y) * 0.5, id='adjoint is not the inverse'),
            pytest.param(lambda x: x[:4], lambda y: torch.cat([y, y[:3]]), id='crop'),
            pytest.param(lambda x: torch.cat([x, 0 * x]), lambda y: y[:7], id='isometry only'),
        ],
    )
    def test_what_is_not_unitary(self, there, back, generator):
        with pytest.raises(AssertionError):
            assert_unitary(Pair(there, back), (7,), generator, torch.complex128)

    def test_gradients_that_were_cut(self, generator):
        cut = Pair(lambda x: x + x.detach(), lambda y: 2 * y)
        assert_adjoint(cut, (7,), (7,), generator, torch.float64)
        with pytest.raises(AssertionError):
            assert_autograd_is_adjoint(cut, (7,), (7,), generator, torch.float64)
