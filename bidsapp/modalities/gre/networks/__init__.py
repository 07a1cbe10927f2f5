"""Networks from a field to susceptibility."""

from __future__ import annotations

from bidsapp.networks.registry import Architecture

_HOME = 'bidsapp.modalities.gre.networks'
#: Bytes measured as peak memory over voxels, of 128 x 128 x 96 in float32, and rounded up.
networks = {
    'dipole_unet': Architecture(f'{_HOME}.dipole_unet:DipoleUNet', 900),
    'adaptive_unet': Architecture(f'{_HOME}.adaptive:AdaptiveUNet', 600),
}
