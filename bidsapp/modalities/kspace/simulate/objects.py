"""What lies in the scanner: heads in any plane, bodies, and dead leaves.

Complex signals (X, Y) of about 1, at points (3, X, Y) in mm about the middle of the field of view.
Leaves are there so that a network does not learn anatomy by heart.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from bidsapp.simulate.anatomy import AIR, SCALP, SKULL
from bidsapp.simulate.grids import chance, normal, rotation, smooth_field, uniform

if TYPE_CHECKING:
    from torch import Tensor

    from bidsapp.simulate.anatomy import Head

#: Leaves of a picture, and their largest radius as a share of the field of view.
LEAVES, LARGEST = 60, 0.25
#: mm over which phase turns slowly, and fast near surfaces.
SLOW_MM, FAST_MM = 60.0, 9.0
#: Power by which borders of tissues are sharpened; how often bone is dark, as it is to most
#: sequences; strength of a texture and its width in mm.
SHARPNESS, DARK, GRAIN, GRAIN_MM = (1.0, 5.0), 0.85, (0.0, 0.1), (1.0, 6.0)
#: Vessels across a plane, and their radii in mm.
VESSELS, VESSEL_MM = 12, (0.5, 1.5)


def head_slice(head: Head, points: Tensor, generator: torch.Generator) -> Tensor:
    """(X, Y) magnitude: any plane through the brain, random contrast, fat, vessels, texture."""
    turn = rotation(180 * (torch.rand(3, generator=generator) - 0.5))
    centre = torch.tensor([0.0, -18.0, 8.0]) + 20 * normal((3,), generator)
    there = torch.tensordot(turn, points, 1) + centre[:, None, None]
    # The template's borders are as wide as its voxels, a person's are not.
    tissues = head.tissues(there[..., None])[..., 0] ** uniform(*SHARPNESS, generator)
    tissues = tissues / tissues.sum(0)
    contrast = 0.15 + 0.85 * torch.rand(len(tissues), generator=generator)
    contrast[AIR] = 0
    if chance(DARK, generator):
        contrast[SKULL] = uniform(0.0, 0.12, generator)
    if chance(0.5, generator):
        contrast[SCALP] = uniform(1.0, 2.0, generator)  # fat that is not suppressed
    grain = _texture(points, uniform(*GRAIN_MM, generator), generator)
    image = torch.tensordot(contrast, tissues, 1) * (1 + uniform(*GRAIN, generator) * grain)
    for _ in range(VESSELS):
        place = points.flatten(1)[:, _index(points[0].numel(), generator)]
        radius = uniform(*VESSEL_MM, generator)
        share = _disc(points, place, radius, radius, 0.0) * (tissues[AIR] < 0.5)
        image = image + share * (uniform(0.0, 1.5, generator) - image)
    return image.clamp_min(0)


def leaves(points: Tensor, generator: torch.Generator) -> Tensor:
    """(X, Y) magnitude: overlapping ellipses of random grey and texture (Lee et al., IJCV 2001)."""
    size = float(points.amax() - points.amin())
    image = torch.zeros_like(points[0])
    for number in range(LEAVES):
        # Few are large: radii by a power law, the largest at the bottom.
        radius = LARGEST * size * (1 + number) ** -0.6
        place = points.flatten(1)[:, _index(points[0].numel(), generator)]
        narrow = uniform(0.3, 1.0, generator)
        share = _disc(points, place, radius, narrow * radius, uniform(0, math.pi, generator))
        grey = uniform(0.0, 1.2, generator)
        if number % 4 == 0:
            own = grey * (1 + 0.3 * _texture(points, uniform(2.0, 12.0, generator), generator))
            image = image + share * (own - image)
        else:
            image = image + share * (grey - image)
    return image.clamp_min(0)


def body(points: Tensor, generator: torch.Generator) -> Tensor:
    """(X, Y) magnitude: a body's outline with fat about it and leaves for organs."""
    half = points.flatten(1).amax(1)
    wide, high = (uniform(0.6, 0.9, generator) for _ in range(2))
    turn = uniform(-0.3, 0.3, generator)
    rx, ry = wide * float(half[0]), high * float(half[1])
    middle = torch.zeros(3)
    outline = _disc(points, middle, rx, ry, turn)
    fat = uniform(6.0, 25.0, generator)
    inside = _disc(points, middle, max(rx - fat, 10.0), max(ry - fat, 10.0), turn)
    organs = 0.3 + 0.7 * leaves(points, generator)
    return (outline - inside).clamp_min(0) * uniform(0.6, 1.5, generator) + inside * organs


def phase(image: Tensor, points: Tensor, generator: torch.Generator) -> Tensor:
    """(X, Y) of modulus 1: turning slowly, by a radian or two, and fast at the image's edges."""
    slow = uniform(0.3, 2.0, generator) * _texture(points, SLOW_MM, generator)
    edges = (image.roll(1, 0) - image).abs() + (image.roll(1, 1) - image).abs()
    fast = uniform(0.0, 0.8, generator) * _texture(points, FAST_MM, generator)
    angle = slow + fast * (edges / edges.amax().clamp_min(1e-6)).sqrt()
    return torch.polar(torch.ones_like(angle), angle)


def _texture(points: Tensor, width: float, generator: torch.Generator) -> Tensor:
    """(X, Y) a random field of variance 1, smooth over ``width`` mm."""
    axes = [points[0, :, 0], points[1, 0, :], torch.zeros(1)]
    return smooth_field(axes, width, 1, generator)[0, :, :, 0]


def _disc(points: Tensor, place: Tensor, rx: float, ry: float, turn: float) -> Tensor:
    """(X, Y) share of each point in an ellipse about ``place`` (3,), its edge half a mm soft."""
    x, y = points[0] - place[0], points[1] - place[1]
    cosine, sine = math.cos(turn), math.sin(turn)
    along, across = (cosine * x + sine * y) / rx, (cosine * y - sine * x) / ry
    level = (torch.hypot(along, across) - 1) * min(rx, ry)
    return (0.5 - level).clamp(0, 1)


def _index(n: int, generator: torch.Generator) -> int:
    return int(torch.randint(n, (), generator=generator))
