"""Networks by the name that stands in a task and in a model card."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bidsapp.modalities.dwi.networks.qspace_unet import UNet3d

if TYPE_CHECKING:
    from collections.abc import Mapping

_NETWORKS = {'unet3d': UNet3d}


def build(name: str, channels_in: int, heads: Mapping[str, int], **options: Any) -> UNet3d:
    """A new network with a ``body`` and ``heads``. Raises ValueError for an unknown name."""
    if name not in _NETWORKS:
        raise ValueError(f'No network named {name!r}. Known: {", ".join(sorted(_NETWORKS))}.')
    return _NETWORKS[name](channels_in, heads, **options)
