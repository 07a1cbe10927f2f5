"""Networks by the name that stands in a model card; a class is loaded when it is built."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bidsapp import registry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from bidsapp.networks.base import Network


@dataclass(frozen=True, slots=True)
class Architecture:
    """A network that can be built: where its class is, and what applying it costs."""

    path: str  #: 'package.module:Class'
    bytes_per_voxel: int  #: that applying it takes at once, float32
    earlier: tuple[int, ...] = ()  #: channels of its inputs in versions before, which are the first
    #: of those of today; a network made for so many looks at no others

    def build(self, channels_in: int, heads: Mapping[str, int], **options: Any) -> Network:
        """A new network of ``channels_in``, with ``heads``: task → channels."""
        module, _, name = self.path.partition(':')
        cls = getattr(importlib.import_module(module), name)
        network: Network = cls(channels_in, heads, **options)
        network.bytes_per_voxel = self.bytes_per_voxel
        return network


#: Networks of no modality in particular. Bytes as measured: peak memory over voxels, rounded up.
SHARED = {'unet': Architecture('bidsapp.networks.unet3d:UNet', 3000)}


def architecture(modality: str, name: str) -> Architecture:
    """The network that a modality, or all, know by ``name``. Raises ValueError for another."""
    known: Mapping[str, Architecture] = {**SHARED, **registry.networks(modality)}
    if name not in known:
        raise ValueError(f'No network named {name!r}. Known: {", ".join(sorted(known))}.')
    return known[name]


def build(
    modality: str, name: str, channels_in: int, heads: Mapping[str, int], **options: Any
) -> Network:
    """A new network with a ``body`` and ``heads``. Raises ValueError for an unknown name."""
    return architecture(modality, name).build(channels_in, heads, **options)


def reads(modality: str, shape: Mapping[str, Any], channels: int) -> bool:
    """Whether the network that a card's ``shape`` describes can be shown ``channels``.

    Raises ValueError for a network that the modality has not.
    """
    wanted, known = shape['channels_in'], architecture(modality, shape['name'])
    return wanted == channels or (wanted < channels and wanted in known.earlier)


def widened(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``weights`` for a network with more inputs: those that are new count for nothing at first.

    Of each tensor the first entries along the second axis are the old ones. Raises ValueError for
    tensors that differ in anything else.
    """
    found = {}
    for name, tensor in wanted.items():
        old = weights.get(name)
        if old is None:  # a part that is new begins as it was drawn
            found[name] = tensor.clone()
            continue
        if old.shape[:1] + old.shape[2:] != tensor.shape[:1] + tensor.shape[2:]:
            raise ValueError(f'{name} is another tensor than that of the model to start from')
        found[name] = old.clone()
        if old.shape != tensor.shape:
            found[name] = tensor.new_zeros(tensor.shape)
            found[name][:, : old.shape[1]] = old
    return found
