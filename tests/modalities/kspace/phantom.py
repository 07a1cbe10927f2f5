"""A smooth object with edges in a few smooth coils, on small grids."""

from __future__ import annotations

import torch

from bidsapp.modalities.kspace.physics.fourier import BOTH


def axes_of(shape):
    """(X, 1) and (1, Y), -1 to 1 about n // 2."""
    x, y = ((torch.arange(n) - n // 2) / (n / 2) for n in shape)
    return x[:, None], y[None]


def image_of(shape):
    """(X, Y) complex: an ellipse with a bright spot, a wave, and a phase that turns slowly."""
    x, y = axes_of(shape)
    body = (x**2 / 0.6 + y**2 / 0.5 < 1).float()
    spot = ((x - 0.2) ** 2 + (y + 0.1) ** 2 < 0.1).float()
    return body * (1 + 0.5 * spot + 0.2 * torch.sin(7 * x)) * torch.exp(1j * (x + 0.5 * y * x))


def maps_of(coils, shape):
    """(C, X, Y) coils on a ring, whose squares sum to 1."""
    if coils == 1:
        return torch.ones((1, *shape), dtype=torch.complex64)
    x, y = axes_of(shape)
    found = []
    for turn in torch.arange(coils) * 2 * torch.pi / coils:
        cx, cy = turn.cos(), turn.sin()
        size = 1 / (0.6 + (x - 1.4 * cx) ** 2 + (y - 1.4 * cy) ** 2)
        found.append(size * torch.exp(1j * (x * cy + y * cx + turn)))
    found = torch.stack(found)
    return found / found.abs().square().sum(0).sqrt()


def noise_of(shape, generator):
    """Complex noise of σ = 1."""
    return torch.randn(shape, dtype=torch.complex64, generator=generator)


def scan_of(coils, shape, sigma, generator):
    """Image (X, Y), maps (C, X, Y) and all of k-space (C, X, Y) with noise."""
    image, maps = image_of(shape), maps_of(coils, shape)
    return image, maps, BOTH(maps * image) + sigma * noise_of(maps.shape, generator)


def error(found, image):
    """Of magnitudes where there is an object, over its own."""
    inside = image.abs() > 0
    return float((found.abs() - image.abs())[inside].norm() / image[inside].norm())
