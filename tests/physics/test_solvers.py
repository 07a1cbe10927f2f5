"""Solvers: conjugate gradients against a dense solution, its gradients, and the spectral norm."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from bidsapp.physics.operators import Diagonal, LinearOperator
from bidsapp.physics.solvers import conjugate_gradient, inner, norm
from tests.laws import assert_same, draw

DOUBLE = [torch.float64, torch.complex128]


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(20261121)


@dataclass(frozen=True, slots=True, eq=False)
class Matrix(LinearOperator):
    """A dense matrix (…, M, N) on the last axis."""

    of: torch.Tensor

    def forward(self, x):
        return (self.of @ x[..., None])[..., 0]

    def adjoint(self, y):
        return (self.of.mH @ y[..., None])[..., 0]


def definite(shape, generator, dtype):
    """Hermitian matrices (*shape, shape[-1]) with eigenvalues from 1 to 10."""
    unitary, _ = torch.linalg.qr(draw((*shape, shape[-1]), generator, dtype))
    return unitary * torch.linspace(1, 10, shape[-1], dtype=dtype.to_real()) @ unitary.mH


class TestInner:
    @pytest.mark.parametrize('dtype', DOUBLE)
    def test_conjugate_of_the_first(self, dtype, generator):
        x, y = draw((2, 3, 4, 5), generator, dtype)
        for batch_dims in range(3):
            axes = tuple(range(batch_dims, 3))
            wanted = (x.conj() * y).sum(axes, keepdim=True)
            assert_same(inner(x, y, batch_dims), wanted, '⟨x, y⟩')
            assert_same(inner(y, x, batch_dims), wanted.conj(), '⟨y, x⟩')


class TestConjugateGradient:
    @pytest.mark.parametrize('dtype', DOUBLE)
    @pytest.mark.parametrize('n', [1, 2, 7])
    def test_n_steps_solve_n_equations(self, n, dtype, generator):
        a, b = definite((n,), generator, dtype), draw((n,), generator, dtype)
        wanted = torch.linalg.solve(a, b)
        for start in (None, draw((n,), generator, dtype)):
            found = conjugate_gradient(Matrix(a), b, steps=n, start=start)
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
            if n > 1:
                early = conjugate_gradient(Matrix(a), b, steps=n - 1, start=start)
                assert (early - wanted).norm() > 1e-6 * wanted.norm()

    def test_as_many_steps_as_different_eigenvalues(self, generator):
        values = torch.tensor([1.0, 5.0, 5.0, 1.0, 5.0], dtype=torch.float64)
        b = draw((5,), generator, torch.float64)
        found = conjugate_gradient(Diagonal(values), b, steps=2)
        torch.testing.assert_close(found, b / values, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize('dtype', [torch.float32, torch.complex64])
    def test_single_precision(self, dtype, generator):
        a, b = definite((20,), generator, dtype), draw((20,), generator, dtype)
        found = conjugate_gradient(Matrix(a), b, steps=40, tolerance=1e-6)
        assert found.dtype == dtype
        torch.testing.assert_close(found, torch.linalg.solve(a, b), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize('dtype', DOUBLE)
    def test_a_batch_is_each_system_alone(self, dtype, generator):
        a, b = definite((2, 3, 6), generator, dtype), draw((2, 3, 6), generator, dtype)
        a[1, 2], b[0, 1] = torch.eye(6, dtype=dtype), 0  # one takes one step, one takes none
        for steps in (1, 3, 6):
            found = conjugate_gradient(Matrix(a), b, steps=steps, tolerance=1e-9, batch_dims=2)
            for at in [(i, j) for i in range(2) for j in range(3)]:
                alone = conjugate_gradient(Matrix(a[at]), b[at], steps=steps, tolerance=1e-9)
                torch.testing.assert_close(found[at], alone, rtol=1e-10, atol=1e-12)
        assert not found[0, 1].any()
        torch.testing.assert_close(found, torch.linalg.solve(a, b), rtol=1e-8, atol=1e-8)

    def test_without_batch_axes_it_is_one_system(self, generator):
        """One step for both of two independent systems is not the best step of either."""
        values = torch.tensor([[1.0, 2.0], [30.0, 50.0]], dtype=torch.float64)
        b = draw((2, 2), generator, torch.float64)
        together = conjugate_gradient(Diagonal(values), b, steps=2)
        each = conjugate_gradient(Diagonal(values), b, steps=2, batch_dims=1)
        torch.testing.assert_close(each, b / values, rtol=1e-12, atol=1e-12)
        assert not torch.allclose(together, each)
        enough = conjugate_gradient(Diagonal(values), b, steps=4)
        torch.testing.assert_close(enough, each, rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize('tolerance', [1e-2, 1e-6])
    def test_it_stops_at_the_tolerance_and_not_much_later(self, tolerance, generator):
        dtype, calls = torch.complex128, []
        a, b = definite((50,), generator, dtype), draw((50,), generator, dtype)

        def counted(x):
            calls.append(1)
            return Matrix(a)(x)

        found = conjugate_gradient(counted, b, steps=50, tolerance=tolerance)
        assert (b - Matrix(a)(found)).norm() <= 1.0001 * tolerance * b.norm()
        assert len(calls) < 40
        before = conjugate_gradient(Matrix(a), b, steps=len(calls) - 1)
        assert (b - Matrix(a)(before)).norm() > tolerance * b.norm()

    def test_it_stays_at_a_solution(self, generator):
        a, x = definite((6,), generator, torch.float64), draw((6,), generator, torch.float64)
        found = conjugate_gradient(Matrix(a), Matrix(a)(x), steps=9, start=x, tolerance=1e-12)
        assert torch.equal(found, x)

    def test_near_enough_is_near_to_b_and_not_nearer_than_the_start(self, generator):
        a, x = definite((6,), generator, torch.float64), draw((6,), generator, torch.float64)
        start = x * (1 + 1e-4)
        found = conjugate_gradient(Matrix(a), Matrix(a)(x), steps=9, start=start, tolerance=1e-3)
        assert torch.equal(found, start)

    def test_normal_equations_of_too_few_samples(self, generator):
        """Semidefinite, and b in the range: from 0 it is the solution of least norm."""
        tall = draw((4, 9), generator, torch.complex128)
        y = draw((4,), generator, torch.complex128)
        model = Matrix(tall)
        found = conjugate_gradient(model.gram, model.H(y), steps=50, tolerance=1e-10)
        wanted = torch.linalg.pinv(tall) @ y
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)

    def test_a_direction_that_the_operator_does_not_see_is_left_alone(self):
        values = torch.tensor([2.0, 0.0], dtype=torch.float64)
        b = torch.tensor([0.0, 1.0], dtype=torch.float64)
        assert not conjugate_gradient(Diagonal(values), b, steps=5).any()

    @pytest.mark.parametrize('dtype', DOUBLE)
    def test_gradients_are_those_of_the_solution(self, dtype, generator):
        """x = A⁻¹ b has the vector-Jacobian product A⁻¹ g with respect to b."""
        a, g = definite((5,), generator, dtype), draw((5,), generator, dtype)
        b = draw((5,), generator, dtype).requires_grad_()
        x = conjugate_gradient(Matrix(a), b, steps=20, tolerance=1e-13)
        (found,) = torch.autograd.grad(x, b, g)
        torch.testing.assert_close(found, torch.linalg.solve(a, g), rtol=1e-7, atol=1e-7)

    @pytest.mark.parametrize('steps', [2, 5])
    def test_gradients_of_the_unrolled_steps(self, steps, generator):
        """Few steps are no solution, and yet a function of b, start, the model and its weight."""
        dense = draw((2, 4, 5), generator, torch.complex128).requires_grad_()
        b, start = (draw((2, 5), generator, torch.complex128).requires_grad_() for _ in range(2))
        weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

        def solution(dense, b, start, weight):
            operator = Matrix(dense).gram + Diagonal(weight)
            return conjugate_gradient(operator, b, steps=steps, start=start, batch_dims=1)

        assert torch.autograd.gradcheck(solution, (dense, b, start, weight), atol=1e-4)

    def test_gradients_stay_finite_where_nothing_is_left_to_solve(self, generator):
        values = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
        b = torch.tensor([[0.0, 0, 0], [1, 2, 3]], dtype=torch.float64, requires_grad=True)
        x = conjugate_gradient(Diagonal(values), b, steps=5, batch_dims=1)
        x.sum().backward()
        assert torch.equal(x.detach(), b.detach())
        assert values.grad.isfinite().all()
        assert b.grad.isfinite().all()


class TestNorm:
    @pytest.mark.parametrize('dtype', [torch.float32, *DOUBLE])
    def test_the_largest_singular_value(self, dtype, generator):
        dense = draw((6, 9), generator, dtype)
        wanted = float(torch.linalg.matrix_norm(dense, 2))
        tolerance = 1e-6 if dtype == torch.float32 else 1e-10
        found = norm(Matrix(dense), (9,), generator, dtype=dtype, steps=1000)
        assert found == pytest.approx(wanted, rel=tolerance)
        assert norm(Matrix(dense).H, (6,), generator, dtype=dtype, steps=1000) == pytest.approx(
            wanted, rel=tolerance
        )

    def test_it_comes_from_below(self, generator):
        dense = draw((6, 9), generator, torch.float64)
        wanted = float(torch.linalg.matrix_norm(dense, 2))
        seed = generator.initial_seed()
        found = [
            norm(Matrix(dense), (9,), generator.manual_seed(seed), dtype=dense.dtype, steps=n)
            for n in (1, 2, 4, 8, 16)
        ]
        assert found == sorted(found)
        assert 0 < found[0] < found[-1] <= wanted * (1 + 1e-12)

    def test_of_zero(self, generator):
        assert norm(Diagonal(0.0), (3, 4), generator, dtype=torch.float32) == 0
