"""The published arm: a U-Net that takes a zero-filled image for a corrupt one, and mends it.

(Arshad et al., MRI 76:96, 2021.) It sees no coils, no mask and no data, and so may write what
contradicts them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bidsapp.modalities.kspace.networks.normalised import (
    channels_of,
    image_of,
    plane_by_plane,
    unit_of,
)
from bidsapp.modalities.kspace.physics.seen import CHANNELS
from bidsapp.networks.unet3d import UNet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor


class PlainUNet2d(UNet):
    """(B, 4, X, Y, Z): `physics.seen`, of which it looks at Aᴴ y alone → (B, 2, X, Y, Z)."""

    cut = (False, False, False)  # else parts of one image would have several units

    def __init__(
        self,
        channels_in: int,
        heads: Mapping[str, int],
        widths: Sequence[int] = (16, 32, 64, 128),
    ) -> None:
        if channels_in != len(CHANNELS) or list(heads.values()) != [2]:
            raise ValueError('the plain U-Net maps 4 channels to the 2 of one task')
        super().__init__(2, heads, widths, (3, 3, 1))

    def forward(self, image: Tensor, context: Mapping[str, Tensor]) -> Tensor:
        """The image, with the size and the phase that came in."""
        return plane_by_plane(self._of_plane, image, context)

    def _of_plane(self, image: Tensor, context: Mapping[str, Tensor]) -> Tensor:
        zero_filled = image_of(image[:, 2:])
        unit = unit_of(zero_filled)
        corrected = super().forward(channels_of(zero_filled / unit), context)
        return channels_of(image_of(corrected) * unit)
