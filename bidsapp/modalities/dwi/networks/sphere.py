"""Filters on the sphere at each voxel, which turn with the head as harmonics do.

A 1x1x1 convolution over harmonics has to learn every rotation of what it looks for; here a filter
is one number a degree (a convolution on the sphere with something axially symmetric), followed by
rectification of the values at points: what constrained deconvolution does, in two learnt steps.
The features at the voxel, which know noise and neighbourhood, say how strong each degree is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bidsapp.modalities.dwi.physics.harmonics import (
    basis,
    degrees,
    fibonacci_hemisphere,
    n_coefficients,
)

#: Order of the functions that come out, and points of the half sphere where values are rectified.
ORDER, POINTS = 8, 50
N_OUT = n_coefficients(ORDER)
#: Functions on the sphere at a voxel; rotation-invariant features that come out.
CHANNELS, INVARIANTS = 4, 32
#: Harmonics of degree 2 of those that come out.
DEGREE_2 = slice(1, 6)


def order_of(n: int) -> int:
    """The order up to which there are ``n`` even harmonics."""
    return next(order for order in range(0, 2 * n, 2) if n_coefficients(order) >= n)


class Sphere(nn.Module):
    """(V, features), (V, slots, H) harmonics up to ``order``, (V, N_OUT) density → (V, width_out).

    First the density, corrected, then the degree 2 of where it is highest, then invariants.
    """

    width_out = N_OUT + 5 + INVARIANTS
    degree_in: Tensor
    degree: Tensor
    values_in: Tensor
    values: Tensor
    back: Tensor

    def __init__(self, features: int, slots: int, order: int) -> None:
        super().__init__()
        points = fibonacci_hemisphere(POINTS)
        values = torch.from_numpy(basis(points, ORDER))
        self.register_buffer('values_in', torch.from_numpy(basis(points, order)).float(), False)
        self.register_buffer('values', values.float(), False)
        self.register_buffer('back', torch.linalg.pinv(values).float(), False)
        self.register_buffer('degree_in', torch.from_numpy(degrees(order) // 2), False)
        self.register_buffer('degree', torch.from_numpy(degrees(ORDER) // 2), False)
        n_in, n = order // 2 + 1, ORDER // 2 + 1
        # Deconvolution strengthens what varies fast; channels differ in how much.
        steep = torch.linspace(0.2, 1.0, CHANNELS)[:, None, None]
        self.first = nn.Parameter((steep * torch.arange(n_in)).exp().repeat(1, slots, 1))
        own = torch.eye(CHANNELS)[..., None].repeat(1, 1, n)
        self.sharp = nn.Parameter(0.5 * torch.ones(CHANNELS, n))
        self.second = nn.Parameter(own + 0.1 * torch.randn(CHANNELS, CHANNELS, n))
        self.last = nn.Parameter(torch.full((CHANNELS, n), 0.1 / CHANNELS))
        self.kept = nn.Parameter(torch.ones(n))
        self.parts = [slots * n_in, CHANNELS, CHANNELS, 1]
        self.said = nn.Linear(features, sum(self.parts))
        with torch.no_grad():
            self.said.weight.mul_(0.1)
        self.told = nn.Linear(features + CHANNELS + n, INVARIANTS)

    def forward(self, features: Tensor, harmonics: Tensor, density: Tensor) -> Tensor:
        """Empty slots are zero and add nothing."""
        gain, floor, floor_2, steep = self.said(features).split(self.parts, dim=1)
        slots, n_in = self.first.shape[1:]
        gain = 1 + gain.view(len(gain), slots, n_in)[..., self.degree_in]
        flat = (CHANNELS * POINTS,)
        filters = torch.einsum('csk,pk->skcp', self.first[..., self.degree_in], self.values_in)
        everywhere = torch.eye(CHANNELS).to(gain).repeat_interleave(POINTS, dim=1)
        sharp = torch.einsum('ck,pk->kcp', self.sharp[:, self.degree], self.values)
        waves = torch.cat([(gain * harmonics).flatten(1), density, floor], dim=1)
        parts = [filters.reshape(-1, *flat), sharp.reshape(-1, *flat), everywhere]
        z = F.relu(waves @ torch.cat(parts))
        second = self.second[..., self.degree]
        again = torch.einsum('kp,cdk,qk->cpdq', self.back, second, self.values)
        z = F.relu(torch.addmm(floor_2 @ everywhere, z, again.reshape(*flat, *flat)))
        out = torch.einsum('kp,ck->cpk', self.back, self.last[:, self.degree]).reshape(*flat, -1)
        function = z @ out + self.kept[self.degree] * density
        where = (F.softplus(steep + 2.0) * (function @ self.values.T)).softmax(dim=1)
        lead = where @ self.values[:, DEGREE_2]
        power = torch.zeros(len(function), self.last.shape[-1]).to(function)
        power = power.index_add(1, self.degree, function.square()).clamp_min(1e-6).sqrt()
        strength = z @ everywhere.T / POINTS
        told = F.relu(self.told(torch.cat([features, strength, power], dim=1)))
        return torch.cat([function, lead, told], dim=1)
