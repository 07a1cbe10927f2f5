"""The body of the diffusion network: a U-Net between a q-space stem and a sphere.

Over 300 lines: one network, from the stem to the heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bidsapp.modalities.dwi.networks.neighbours import Neighbours
from bidsapp.modalities.dwi.networks.sphere import Sphere, order_of
from bidsapp.modalities.dwi.networks.tensor_signal import TensorSignal
from bidsapp.modalities.dwi.physics.harmonics import degrees
from bidsapp.networks.base import Network
from bidsapp.networks.pointwise import Pointwise
from bidsapp.networks.unet3d import CUBE, Decoder, Encoder, padded, stride_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Voxels that are answered at a time where nothing is learnt: their features stay in the caches of
#: a processor, and are few beside a whole brain's.
AT_A_TIME = {'cpu': 2**15, 'cuda': 2**21}
_ALL = slice(None)
#: How far a correction goes at first, in deviations, on half the way to the tensor's signal. On
#: four validating blocks of a real scan 2 left 0.31 of the input's squared error, 4 left 0.36.
TENSOR_FIRST = 2.0
#: Levels of the U-Net, and voxels of the finest that the coarsest pools into one.
LEVELS = 4
STRIDE = stride_of(CUBE, LEVELS)
#: Channels of a slot that hold the harmonics of degree 2.
DEGREE_2 = slice(1, 6)
#: Appended channels that hold a tensor.
TENSOR = 6


class SlotStem(nn.Module):
    """(B, slots · n + rest, …) → (B, width, …), the same map for each slot of n channels.

    An empty slot is all zeros and adds nothing: its map has no bias, and the channel that says
    'filled' is the bias of one that is not empty.
    """

    def __init__(self, channels_in: int, slots: int, slot_channels: int, width: int) -> None:
        super().__init__()
        self.parts = [slot_channels] * slots + [channels_in - slots * slot_channels]
        self.each = Pointwise(slot_channels, 2 * width, bias=False)
        self.join = Pointwise(2 * width + self.parts[-1], width)

    def forward(self, x: Tensor) -> Tensor:
        """The slots stand first, one after another; one that is empty everywhere is passed by."""
        *parts, rest = x.split(self.parts, dim=1)
        first, *more = [part for part in parts if part.any()] or parts[:1]
        added = sum((F.relu(self.each(part)) for part in more), F.relu(self.each(first)))
        return self.join(torch.cat([added, rest.to(added.dtype)], dim=1))


def _unit(harmonics: Tensor) -> Tensor:
    """(B, 5, …) of degree 2 as a unit vector, where it is more than nothing."""
    return harmonics / (harmonics.square().sum(1, keepdim=True) + 1e-4).sqrt()


class Body(nn.Module):
    """(B, channels_in, X, Y, Z) → (B, width_out, X, Y, Z) for any X, Y, Z.

    What the decoder says joins the voxel's own input, because some answers have more dimensions
    than the finest level. Where ``harmonics`` says how many of a slot's channels are harmonics (and
    the next one whether it is filled) and the last ``density`` channels a density of fibres, it is
    their adaptive means that join; what these change, the degree 2 of all slots as a unit vector
    (the axis of a lone fibre), and what `Sphere` says stand beside the features for the heads.
    Behind the density stand ``appended`` channels, the first six of them a tensor by its harmonics
    (`physics.log_tensor`). A body that has them is also told that tensor's axis, the strength of
    each degree of the means, which no rotation changes, and how `TensorSignal` differs from the
    input.
    """

    degree: Tensor

    def __init__(
        self,
        channels_in: int,
        slots: int,
        slot_channels: int,
        harmonics: int,
        density: int,
        appended: int,
        widths: tuple[int, ...],
        features: int,
    ) -> None:
        super().__init__()
        self.channels_in, self.density, self.appended = channels_in, density, appended
        self.slots, self.slot_channels, self.harmonics = slots, slot_channels, harmonics
        stem = SlotStem(channels_in, slots, slot_channels, widths[0])
        self.encoder = Encoder(stem, widths)
        self.decoder = Decoder(widths)
        if harmonics:
            bands = ((0, DEGREE_2.stop), (DEGREE_2.stop, harmonics))
            self.neighbours = Neighbours(widths[0], bands)
        axis = DEGREE_2.stop - DEGREE_2.start if harmonics else 0
        told = widths[0] + channels_in + axis
        if appended and harmonics:
            degree = torch.from_numpy(degrees(order_of(harmonics)) // 2)
            self.register_buffer('degree', degree, False)
            strengths = slots * (int(degree.max()) + 1)
            told += strengths + axis
            self.tensor, self.share = TensorSignal(), Pointwise(features, strengths)
        self.mix = Pointwise(told, features)
        self.width_out = features + slots * harmonics + axis
        if appended:
            self.width_out += axis + slots * harmonics
        if harmonics:
            self.sphere = Sphere(features, slots, order_of(harmonics))
            self.width_out += Sphere.width_out

    def forward(self, x: Tensor) -> Tensor:
        """All at once."""
        return self.near(self.far(x), x)

    def far(self, x: Tensor) -> Tensor:
        """(B, widths[0], X, Y, Z) what the U-Net says.

        Sides that are no multiple of 8 are padded with zeros and cropped again.
        """
        sides = x.shape[2:]
        y = self.decoder(self.encoder(padded(x, STRIDE)))
        return y[..., : sides[0], : sides[1], : sides[2]]

    def near(self, y: Tensor, x: Tensor, planes: slice = _ALL) -> Tensor:
        """(B, width_out, …) what the heads see, from what is said and the input.

        A voxel's answer depends on itself and its 26 neighbours in ``x``, and on itself in ``y``.
        ``planes`` along X are answered, by default all.
        """
        if not self.harmonics:
            return F.relu(self.mix(torch.cat([y, x.to(y.dtype)], dim=1)))[:, :, planes]
        around, mean, change, axis, density, more = self._averaged(y, x)
        mean, y, x, density = mean[:, :, :, planes], *(p[:, :, planes] for p in (y, x, density))
        # Joined with parts in another memory layout, all that follows would be slow.
        around, change, axis, more = (
            part[:, :, planes].to(y.dtype, memory_format=torch.channels_last_3d)
            for part in (around, change, axis, more)
        )
        beside, last = [axis], []
        if self.appended:
            tensor_axis = _unit(more[:, DEGREE_2])
            strength = self._strength(mean).to(y.dtype, memory_format=torch.channels_last_3d)
            beside += [more, strength, tensor_axis]
        features = F.relu(self.mix(torch.cat([y, around, *beside], dim=1)))
        said = self._on_sphere(features, mean, density, x)
        if self.appended:  # what heads of bodies without it do not know comes last
            last = [tensor_axis, self._to_tensor(features, x)]
        return torch.cat([features, change, axis, said, *last], dim=1)

    def _to_tensor(self, features: Tensor, x: Tensor) -> Tensor:
        """(B, slots · H, …) from the input's harmonics to those of the tensor's signal.

        As far as the features say, a share for each slot and degree; zero in empty slots. Both are
        the voxel's own: a mean of tensors is blurred, which few directions do not make up for.
        """
        tensor = x[:, x.shape[1] - self.appended :][:, :TENSOR].float()
        share = self.share(features).float().sigmoid().unflatten(1, (self.slots, -1))
        parts = []
        for k in range(self.slots):
            first = k * self.slot_channels
            own = x[:, first : first + self.harmonics].float()
            filled = x[:, first + self.harmonics, None].float()
            if not filled.any():
                parts.append(torch.zeros_like(own))
                continue
            log_b = x[:, first + self.harmonics + 2].float()
            way = (self.tensor(tensor, log_b) - own) * filled
            parts.append(way * share[:, k, self.degree])
        return torch.cat(parts, dim=1).to(features.dtype, memory_format=torch.channels_last_3d)

    def _strength(self, mean: Tensor) -> Tensor:
        """(B, slots · degrees, …) root of the power of each degree of means (B, slots, H, …)."""
        count = int(self.degree.max()) + 1
        power = mean.new_zeros(*mean.shape[:2], count, *mean.shape[3:])
        power = power.index_add(2, self.degree, mean.square())
        return (power + 1e-4).sqrt().flatten(1, 2)

    def _filled(self, x: Tensor) -> Tensor:
        """(B, 1, X, Y, Z) 1 where any slot is filled, which is in the brain."""
        step = self.slot_channels
        return x[:, self.harmonics : self.slots * step : step].amax(1, keepdim=True)

    def deviation(self, x: Tensor) -> Tensor:
        """(B, slots · H, …) the predictive deviation of each slot, as a share of the prior's."""
        first, step = self.harmonics + 1, self.slot_channels
        stated = x[:, first : self.slots * step : step].float()
        return stated.repeat_interleave(self.harmonics, dim=1)

    def _averaged(self, y: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        """The input with means; these (B, slots, H, …), their change, the axis, mean density.

        And the appended channels, which are averaged as the density is.
        """
        n = self.slots * self.slot_channels
        slots = x[:, :n].float().unflatten(1, (self.slots, self.slot_channels))
        own, filled = slots[:, :, : self.harmonics], slots[:, :, self.harmonics]
        used = [k for k in range(self.slots) if filled[:, k].any()]
        change, last = torch.zeros_like(own), x.shape[1] - self.density - self.appended
        density = x[:, last:].float()
        if used:
            means, density = self.neighbours(y, own[:, used], density, self._filled(x))
            change[:, used] = means - own[:, used]
        density, more = density.split([self.density, self.appended], 1)
        mean = own + change
        axis = _unit(mean[:, :, DEGREE_2].sum(1))  # an empty slot is zero, and so is its mean
        around = torch.cat([mean, slots[:, :, self.harmonics :]], dim=2).flatten(1, 2)
        around = torch.cat([around, x[:, n:last], density], dim=1)
        return around, mean, change.flatten(1, 2), axis, density, more

    def _on_sphere(self, features: Tensor, mean: Tensor, density: Tensor, x: Tensor) -> Tensor:
        """What `Sphere` makes of means (B, slots, H, …), (B, D, …) in the brain; zero outside."""
        where = self._filled(x)[:, 0] > 0
        said = self.sphere(
            features.movedim(1, -1)[where].float(),
            mean.permute(0, 3, 4, 5, 1, 2)[where],
            density.movedim(1, -1)[where],
        )
        whole = features.new_zeros(*where.shape, Sphere.width_out)
        whole[where] = said.to(whole.dtype)
        return whole.movedim(-1, 1)


class UNet3d(Network):
    """The bundled network of diffusion MRI; its name in cards is 'unet3d'.

    ``heads`` maps names of tasks to their numbers of channels; a head is a 1x1x1 convolution.
    Heads named in ``by_deviation`` correct the input's harmonics, slot after slot, in units of the
    deviation that the input itself states there: what is known for certain is not changed.
    """

    stride = STRIDE
    body: Body

    def __init__(
        self,
        channels_in: int,
        heads: Mapping[str, int],
        slots: int = 1,
        slot_channels: int | None = None,
        widths: tuple[int, ...] = (16, 48, 96, 128),
        features: int = 96,
        harmonics: int = 0,
        density: int = 0,
        appended: int = 0,
        by_deviation: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.by_deviation = tuple(by_deviation)
        if len(widths) != LEVELS:
            raise ValueError(
                f'widths names {len(widths)} levels; padding to {STRIDE} needs {LEVELS}'
            )
        per_slot = channels_in // slots if slot_channels is None else slot_channels
        self.body = Body(
            channels_in, slots, per_slot, harmonics, density, appended, tuple(widths), features
        )
        self.heads = nn.ModuleDict(
            {task: Pointwise(self.body.width_out, n) for task, n in heads.items()}
        )

    @torch.no_grad()
    def begin(self, heads: Sequence[str]) -> None:
        """Corrections begin with none, those ``by_deviation`` on the way to the tensor's signal.

        In the lowest bin alone: at higher b tissue is not Gaussian, and the tensor's signal wrong.
        """
        super().begin(heads)
        if not (self.body.appended and self.body.harmonics):
            return
        for name in set(heads) & set(self.by_deviation):
            weight, n = self.heads[name].get_parameter('weight'), self.body.harmonics
            first = weight.shape[1] - self.body.slots * n
            weight[:n, first : first + n, 0, 0, 0] = TENSOR_FIRST * torch.eye(n)

    def parts(self) -> dict[str, nn.Module]:
        """Encoder and decoder of the U-Net apart."""
        own = {'encoder': self.body.encoder, 'decoder': self.body.decoder}
        return {'body': self.body, **own, 'heads': self.heads}

    def forward(self, image: Tensor, context: Mapping[str, Tensor]) -> Tensor:
        """(B, channels_in or more, X, Y, Z) → the heads' channels one after another, float32.

        Later versions of the input have more channels, appended: those are not looked at.
        """
        x = image[:, : self.body.channels_in]
        y = self.body.far(x)
        if torch.is_grad_enabled():
            return self._answered(y, x, _ALL)
        planes = max(1, AT_A_TIME[x.device.type] // (x.shape[0] * x.shape[3] * x.shape[4]))
        parts = []
        for first in range(0, x.shape[2], planes):
            # A plane more on either side, for the neighbours.
            near = slice(max(first - 1, 0), first + planes + 1)
            own = slice(first - near.start, first - near.start + planes)
            parts.append(self._answered(y[:, :, near], x[:, :, near], own))
        return torch.cat(parts, dim=2)

    def _answered(self, y: Tensor, x: Tensor, planes: slice) -> Tensor:
        features = self.body.near(y, x, planes)
        said = {name: head(features).float() for name, head in self.heads.items()}
        for name in said.keys() & set(self.by_deviation):
            said[name] = said[name] * self.body.deviation(x[:, :, planes])
        return torch.cat([*said.values()], dim=1)
