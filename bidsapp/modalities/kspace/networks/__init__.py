"""Networks that reconstruct: with the data at hand, and, as was published, without."""

from __future__ import annotations

from bidsapp.networks.registry import Architecture

_HOME = 'bidsapp.modalities.kspace.networks'
#: Bytes measured as peak memory over voxels of one plane of 256 x 256 and 16 coils, rounded up.
#: More than one plane is never worked on at a time.
networks = {
    'cascades': Architecture(f'{_HOME}.cascades:Cascades', 2000),
    'plain_unet2d': Architecture(f'{_HOME}.plain:PlainUNet2d', 1100),
}
