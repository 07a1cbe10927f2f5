"""Networks that know q-space."""

from __future__ import annotations

from bidsapp.networks.registry import Architecture

networks = {
    # Bytes measured on the bundled shape in float32, the mean over mirrors included, as peak memory
    # over voxels, and rounded up. The name stands in cards.
    'unet3d': Architecture(
        'bidsapp.modalities.dwi.networks.qspace_unet:UNet3d', 5000, earlier=(142,)
    ),
}
