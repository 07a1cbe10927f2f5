"""Receive coils around an object, two ways that share no code: for training, and for tests of it.

Both give (C, …) complex sensitivities at points (3, …) in mm about the object's middle, with B0
along the third axis.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from bidsapp.simulate.grids import normal, uniform

if TYPE_CHECKING:
    from torch import Tensor

#: Straight pieces that a loop is made of.
PIECES = 24


def drawn_coils(n: int, points: Tensor, reach: float, generator: torch.Generator) -> Tensor:
    """``n`` coils about ``reach`` mm from the middle, of polynomials drawn at random.

    One over a quadratic of the distance to a centre outside the object, its phase a quadratic too.
    """
    x = points.flatten(1) / reach
    turn = uniform(0, 2 * math.pi, generator)
    found = []
    for number in range(n):
        angle = turn + 2 * math.pi * number / n + 0.15 * float(normal((), generator))
        height = 0.5 * float(normal((), generator))
        far = uniform(1.05, 1.4, generator)
        centre = x.new_tensor([far * math.cos(angle), far * math.sin(angle), height])
        spread = uniform(0.5, 1.0, generator)
        squared = (x - centre[:, None]).square().sum(0)
        slopes, bends = normal((3,), generator), 0.3 * normal((3,), generator)
        phase = slopes @ x + bends @ x.square() + angle
        found.append(torch.polar(1 / (1 + squared / spread**2), phase))
    return torch.stack(found).reshape(n, *points.shape[1:])


def loop_coils(n: int, points: Tensor, reach: float) -> Tensor:
    """``n`` round loops that touch on a cylinder of ``reach`` mm about the third axis, in one row.

    By the law of Biot and Savart for a unit current, straight piece by piece; what is received is
    the field's part that turns with the spins, Bx - i By (Hoult, Concepts Magn Reson 12:173, 2000).
    """
    flat = points.flatten(1)
    radius = reach * math.sin(math.pi / max(n, 3))
    around = torch.arange(PIECES) * 2 * math.pi / PIECES
    found = []
    for number in range(n):
        angle = 2 * math.pi * number / n
        out = flat.new_tensor([math.cos(angle), math.sin(angle), 0.0])
        aside = flat.new_tensor([-math.sin(angle), math.cos(angle), 0.0])
        up = flat.new_tensor([0.0, 0.0, 1.0])
        field = torch.zeros_like(flat)
        for turn in around.tolist():
            place = reach * out + radius * (math.cos(turn) * aside + math.sin(turn) * up)
            step = 2 * math.pi * radius / PIECES * (math.cos(turn) * up - math.sin(turn) * aside)
            apart = flat - place[:, None]
            over = apart / apart.norm(dim=0).clamp_min(radius / 10) ** 3
            field += torch.linalg.cross(step[:, None].expand_as(over), over, dim=0)
        found.append(torch.complex(field[0], -field[1]))
    return torch.stack(found).reshape(n, *points.shape[1:])
