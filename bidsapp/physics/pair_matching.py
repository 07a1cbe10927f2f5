"""Two images of opposite phase-encoding polarity made to agree, at one resolution.

See `reversed_pair` for the equation. Its unknowns are the displacement d of every voxel (mm), the
head's motion T and the sensitivity ratio g = (1 + h/2) / (1 - h/2), whose h enters linearly and is
always the best polynomial.

Over 300 lines, for residual, Jacobian, its transpose and the step that they make are one problem.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bidsapp.physics.distortion import interpolated
from bidsapp.physics.geometry import grid_axes, voxel_sizes

if TYPE_CHECKING:
    from collections.abc import Callable

    from bidsapp.core import FloatArray

#: Gauss-Newton steps at most at each level, and conjugate-gradient steps at most within one.
STEPS, INNER = 10, 30
#: A step that lowers the cost by less than this share is the last of its level.
LEAST_GAIN = 1e-3
#: Against squared differences of images of mean 1 in the head: weight of |∇d|², of (Δd)² in mm²,
#: and of the barrier v⁴ / ((1 + v)(1 - κv)), v = ∂d, that keeps both Jacobians positive.
STIFFNESS, BENDING, BARRIER = 0.01, 0.5, 0.01
#: Neither Jacobian comes nearer to 0 than this.
LEAST_JACOBIAN = 0.02
#: Degree of the polynomial h, and how reluctantly its terms grow. A smooth g and a smooth J look
#: alike: too free a g loses information, too stiff a g bends d.
DEGREE, RELUCTANCE = 4, 3e-5
#: Motion parameters that are free: two translations across the axis and three rotations.
N_MOTION = 5


def _steps(d: Tensor, axis: int, size: float) -> Tensor:
    """Forward differences per mm, one fewer than voxels."""
    return d.diff(dim=axis) / size


def _steps_adjoint(faces: Tensor, axis: int, size: float) -> Tensor:
    padding = [0] * 6
    padding[4 - 2 * axis : 6 - 2 * axis] = [1, 1]
    return -functional.pad(faces, padding).diff(dim=axis) / size


def _centred(faces: Tensor, axis: int) -> Tensor:
    """Mean of the two faces of each voxel; the end voxels have one."""
    n = faces.shape[axis]
    ends = (faces.narrow(axis, 0, 1), faces.narrow(axis, n - 1, 1))
    wide = torch.cat([ends[0], faces, ends[1]], axis)
    return (wide.narrow(axis, 0, n + 1) + wide.narrow(axis, 1, n + 1)) / 2


def _centred_adjoint(voxels: Tensor, axis: int) -> Tensor:
    n = voxels.shape[axis]
    faces = (voxels.narrow(axis, 0, n - 1) + voxels.narrow(axis, 1, n - 1)) / 2
    faces.narrow(axis, 0, 1).add_(voxels.narrow(axis, 0, 1) / 2)
    faces.narrow(axis, n - 2, 1).add_(voxels.narrow(axis, n - 1, 1) / 2)
    return faces


class _View:
    """A raw image and its gradient at any world point."""

    def __init__(self, image: Tensor, affine: FloatArray) -> None:
        fine = image
        for axis, n in enumerate(image.shape):
            # Twice as fine by splines, so that linear interpolation hardly blurs.
            place = torch.arange(2 * n - 1).to(image) / 2
            matrix = interpolated(torch.eye(n).to(image), place.expand(n, -1), 3)
            fine = (fine.movedim(axis, -1) @ matrix).movedim(-1, axis)
        self.to_index = torch.as_tensor(np.linalg.inv(affine)).to(image)
        gradient = torch.stack(torch.gradient(fine, spacing=0.5))
        gradient = torch.tensordot(self.to_index[:3, :3].T, gradient, dims=1)
        self.channels = torch.cat([fine[None], gradient])
        self.half = ((torch.tensor(image.shape) - 1) / 2).to(image)[:, None, None, None]

    def at(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Value, gradient (3, X, Y, Z) per mm, and whether ``points`` (3, X, Y, Z) lie within."""
        index = torch.tensordot(self.to_index[:3, :3], points, dims=1)
        unit = (index + self.to_index[:3, 3, None, None, None]) / self.half - 1
        within = (unit.abs() <= 1 + 0.5 / self.half).all(0)
        where = unit.flip(0).movedim(0, -1)[None]
        found = functional.grid_sample(
            self.channels[None], where, 'bilinear', padding_mode='border', align_corners=True
        )[0]
        return found[0], found[1:], within.to(points)


class _Sensitivity:
    """Polynomials over a grid, as products of Legendre's along its axes."""

    def __init__(self, like: Tensor) -> None:
        lines = [np.linspace(-1, 1, n) for n in like.shape]
        vander = [np.polynomial.legendre.legvander(line, DEGREE).T for line in lines]
        self.lines = [torch.as_tensor(v).to(like) for v in vander]
        power = torch.arange(DEGREE + 1, device=like.device)
        degree = power[:, None, None] + power[:, None] + power
        self.kept = degree <= DEGREE
        self.reluctance = RELUCTANCE * degree[self.kept].double() ** 2 + 1e-9

    def terms(self, image: Tensor) -> Tensor:
        """(K,) sum of ``image`` times each polynomial."""
        return _contracted(image, self.lines)[self.kept].double()

    def field(self, coefficients: Tensor) -> Tensor:
        """The polynomial (X, Y, Z)."""
        full = self.lines[0].new_zeros(self.kept.shape)
        full[self.kept] = coefficients.to(full)
        return _contracted(full, [line.T for line in self.lines])

    def gram(self, weight: Tensor) -> Tensor:
        """(K, K) sum of ``weight`` times two polynomials, and their reluctance."""
        pairs = [(line[:, None] * line).flatten(0, 1) for line in self.lines]
        side = [DEGREE + 1] * 6
        full = _contracted(weight, pairs).double().view(side).permute(0, 2, 4, 1, 3, 5)
        gram = full[self.kept][:, self.kept]
        return gram + torch.diag(gram[0, 0] * self.reluctance)


def _contracted(volume: Tensor, lines: list[Tensor]) -> Tensor:
    """``volume`` with each axis multiplied by its matrix (M, n)."""
    for line in reversed(lines):
        volume = (volume @ line.T).movedim(-1, 0)
    return volume


@dataclass(slots=True, eq=False)
class _Comparison:
    """The two images put back by some d and T: what differs, and what it changes with."""

    one: Tensor  #: (X, Y, Z) the first image, as bright as without distortion and bias
    two: Tensor  #: the second
    mean: Tensor  #: of the two, before their sensitivities are made equal
    by_displacement: Tensor  #: change of ``difference`` with d
    by_slope: Tensor  #: and with ∂d
    by_motion: Tensor  #: (5, X, Y, Z) and with the motion

    @property
    def difference(self) -> Tensor:
        """(X, Y, Z) what remains to be explained."""
        return self.one - self.two


class Level:
    """The problem for images of one resolution; d here is (X, Y, Z) in mm."""

    def __init__(
        self,
        first: Tensor,
        affine: FloatArray,
        second: Tensor,
        second_affine: FloatArray,
        axis: int,
        toward: FloatArray,
        kappa: float,
        centre: FloatArray,
    ) -> None:
        self.views = (_View(first, affine), _View(second, second_affine))
        self.axis, self.kappa, self.centre = axis, kappa, centre
        self.sizes = [float(size) for size in voxel_sizes(affine)]
        directions = (grid_axes(affine)[:, axis], toward)
        self.directions = [torch.as_tensor(u).to(first)[:, None, None, None] for u in directions]
        # What is left of the head's translation, once that along u is called displacement.
        self.across = np.linalg.svd(directions[0][None])[2][1:]
        lines = [torch.arange(n).to(first) for n in first.shape]
        index = torch.stack(torch.meshgrid(*lines, indexing='ij'))
        self.points = _moved(affine, index)
        self.sensitivity = _Sensitivity(first)

    def slope(self, d: Tensor) -> Tensor:
        """∂d by central differences."""
        return _centred(_steps(d, self.axis, self.sizes[self.axis]), self.axis)

    def slope_adjoint(self, voxels: Tensor) -> Tensor:
        """The transpose of `slope`."""
        return _steps_adjoint(_centred_adjoint(voxels, self.axis), self.axis, self.sizes[self.axis])

    def curvature(self, d: Tensor) -> Tensor:
        """-Δd."""
        total = torch.zeros_like(d)
        for axis, size in enumerate(self.sizes):
            total += _steps_adjoint(_steps(d, axis, size), axis, size)
        return total

    def stiffness(self, d: Tensor) -> Tensor:
        """Half the gradient of what smoothness costs."""
        curvature = self.curvature(d)
        return STIFFNESS * curvature + BENDING * self.curvature(curvature)

    def barrier(self, d: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """v⁴ / ((1 + v)(1 - κv)) at each face, and two derivatives; None near a fold."""
        v, k = _steps(d, self.axis, self.sizes[self.axis]), self.kappa
        one, two = 1 + v, 1 - k * v
        if min(float(one.min()), float(two.min())) < LEAST_JACOBIAN:
            return None
        product, change = one * two, two - k * one
        first = 4 * v**3 / product - v**4 * change / product**2
        second = 12 * v**2 / product - 8 * v**3 * change / product**2
        second = second + v**4 * (2 * change**2 / product + 2 * k) / product**2
        return v**4 / product, first, second.clamp_min(0)

    def compare(self, d: Tensor, transform: FloatArray) -> _Comparison:
        """The images put back by ``d`` and ``transform`` (4, 4)."""
        slope, kappa = self.slope(d), self.kappa
        there = _moved(transform, self.points)
        value1, gradient1, within1 = self.views[0].at(self.points + d * self.directions[0])
        value2, gradient2, within2 = self.views[1].at(there - kappa * d * self.directions[1])
        seen = within1 * within2
        brightness1, brightness2 = seen * (1 + slope), seen * (1 - kappa * slope)
        one, two = brightness1 * value1, brightness2 * value2
        mean = (one + two) / 2
        ratio = self.sensitivity.field(
            torch.linalg.solve(
                self.sensitivity.gram(mean.square()), self.sensitivity.terms(mean * (one - two))
            )
        )
        # Half the ratio on either side: a factor of one image alone would be fitted too small, by
        # the other's noise, and its slope would be taken for a displacement.
        gain1, gain2 = 1 - ratio / 2, 1 + ratio / 2
        gradient2 = gain2 * brightness2 * gradient2
        along1 = gain1 * brightness1 * (self.directions[0] * gradient1).sum(0)
        along2 = (self.directions[1] * gradient2).sum(0)
        return _Comparison(
            one=gain1 * one,
            two=gain2 * two,
            mean=mean,
            by_displacement=along1 + kappa * along2,
            by_slope=seen * (gain1 * value1 + kappa * gain2 * value2),
            by_motion=-self._motions(transform, there, gradient2),
        )

    def _motions(self, transform: FloatArray, there: Tensor, gradient: Tensor) -> Tensor:
        """(5, X, Y, Z) change of an image of this ``gradient`` with two shifts and three turns."""
        across = torch.as_tensor(self.across).to(gradient)
        middle = transform[:3, :3] @ self.centre + transform[:3, 3]
        arm = there - torch.as_tensor(middle).to(there)[:, None, None, None]
        turns = torch.linalg.cross(arm, gradient, dim=0)
        return torch.cat([torch.tensordot(across, gradient, dims=1), turns])

    def turned(self, transform: FloatArray, motion: FloatArray) -> np.ndarray:
        """``transform`` (4, 4) followed by ``motion`` (5,): mm, and rad about the head's centre."""
        from scipy.spatial.transform import Rotation

        middle = transform[:3, :3] @ self.centre + transform[:3, 3]
        step = np.eye(4)
        step[:3, :3] = Rotation.from_rotvec(motion[2:]).as_matrix()
        step[:3, 3] = middle - step[:3, :3] @ middle + self.across.T @ motion[:2]
        return np.asarray(step @ transform)

    def cost(self, d: Tensor, transform: FloatArray) -> tuple[float, _Comparison | None]:
        """What is minimised; infinite where an image is folded."""
        barrier = self.barrier(d)
        if barrier is None:
            return float('inf'), None
        compared = self.compare(d, transform)
        smooth = STIFFNESS * (d * self.curvature(d)).sum()
        smooth = smooth + BENDING * self.curvature(d).square().sum()
        total = compared.difference.square().sum() + smooth + BARRIER * barrier[0].sum()
        return float(total), compared

    def solve(self, d: Tensor, transform: FloatArray) -> tuple[Tensor, np.ndarray]:
        """(d, transform) of the lowest cost found from a start that folds nothing."""
        cost, compared = self.cost(d, transform)
        for _ in range(STEPS):
            if compared is None:
                break
            step, motion = self._step(d, compared)
            for length in (1.0, 0.5, 0.25, 0.125, 0.0625):
                trial = d + length * step, self.turned(transform, length * motion)
                lower, there = self.cost(*trial)
                if lower < cost:
                    break
            else:
                break
            (d, transform), compared = trial, there
            enough, cost = cost - lower < LEAST_GAIN * cost, lower
            if enough:
                break
        return d, np.asarray(transform)

    def _step(self, d: Tensor, at: _Comparison) -> tuple[Tensor, np.ndarray]:
        """Gauss-Newton step of d, and of the motion that goes with it."""
        barrier = self.barrier(d)
        assert barrier is not None
        a, b, axis = at.by_displacement, at.by_slope, self.axis
        size = self.sizes[axis]
        explained = _Explained(at, self.sensitivity)

        def change(x: Tensor) -> Tensor:
            return a * x + b * self.slope(x)

        def adjoint(r: Tensor) -> Tensor:
            return a * r + self.slope_adjoint(b * r)

        def hessian(x: Tensor) -> Tensor:
            faces = BARRIER / 2 * barrier[2] * _steps(x, axis, size)
            data = adjoint(explained.without(change(x)))
            return data + self.stiffness(x) + _steps_adjoint(faces, axis, size)

        gradient = adjoint(explained.without(at.difference)) + self.stiffness(d)
        gradient = gradient + _steps_adjoint(BARRIER / 2 * barrier[1], axis, size)
        corner = 2 * sum(size**-2 for size in self.sizes)
        spread = _centred(_centred_adjoint(b.square(), axis), axis) / (2 * size**2)
        diagonal = a.square() + spread + STIFFNESS * corner + BENDING * corner**2
        step = _conjugate_gradient(hessian, -gradient, diagonal)
        motion = -explained.motion(at.difference + change(step))
        return step, motion

    def similarity(self, d: Tensor, transform: FloatArray, mask: Tensor) -> float:
        """Correlation of the two images put back, in ``mask`` (X, Y, Z)."""
        compared = self.compare(d, transform)
        pair = torch.stack([compared.one[mask], compared.two[mask]]).double()
        return float(torch.corrcoef(pair)[0, 1])


class _Explained:
    """What motion and sensitivity can explain of a difference, by least squares."""

    def __init__(self, at: _Comparison, sensitivity: _Sensitivity) -> None:
        self.sensitivity, self.mean = sensitivity, at.mean
        self.scale = at.by_motion.flatten(1).norm(dim=1).clamp_min(1e-6)
        self.motions = at.by_motion / self.scale[:, None, None, None]
        flat = self.motions.flatten(1)
        mixed = torch.stack([sensitivity.terms(self.mean * motion) for motion in self.motions])
        rows = [
            torch.cat([(flat @ flat.T).double(), mixed], 1),
            torch.cat([mixed.T, sensitivity.gram(self.mean.square())], 1),
        ]
        gram = torch.cat(rows)
        self.inverse = torch.linalg.inv(gram + 1e-6 * torch.diag(gram.diag()))

    def _coefficients(self, r: Tensor) -> Tensor:
        motions = (self.motions.flatten(1) @ r.flatten()).double()
        found: Tensor = self.inverse @ torch.cat([motions, self.sensitivity.terms(self.mean * r)])
        return found

    def without(self, r: Tensor) -> Tensor:
        """``r`` (X, Y, Z) less what they explain."""
        found = self._coefficients(r)
        moved = torch.tensordot(found[:N_MOTION].to(r), self.motions, dims=1)
        rest: Tensor = r - moved - self.mean * self.sensitivity.field(found[N_MOTION:])
        return rest

    def motion(self, r: Tensor) -> np.ndarray:
        """(5,) the motion that explains ``r``."""
        found = self._coefficients(r)[:N_MOTION] / self.scale
        return np.asarray(found.double().cpu().numpy())


def _moved(matrix: FloatArray, points: Tensor) -> Tensor:
    """``points`` (3, X, Y, Z) through an affine ``matrix`` (4, 4)."""
    affine = torch.as_tensor(matrix).to(points)
    there: Tensor = torch.tensordot(affine[:3, :3], points, dims=1)
    return there + affine[:3, 3, None, None, None]


def _conjugate_gradient(
    matrix: Callable[[Tensor], Tensor], right: Tensor, diagonal: Tensor
) -> Tensor:
    """x with ``matrix`` (x) ≈ ``right``: at most INNER steps, preconditioned by a ``diagonal``."""
    x = torch.zeros_like(right)
    residual = right.clone()
    search = residual / diagonal
    size = first = float((residual * search).sum())
    for _ in range(INNER):
        if size <= 1e-3 * first:
            break
        image = matrix(search)
        length = size / float((search * image).sum())
        x.add_(search, alpha=length)
        residual.sub_(image, alpha=length)
        scaled = residual / diagonal
        size, before = float((residual * scaled).sum()), size
        search = scaled + (size / before) * search
    return x
