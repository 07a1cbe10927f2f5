"""Networks from a field to susceptibility."""

from __future__ import annotations

from bidsapp.networks.registry import Architecture

_HOME = 'bidsapp.modalities.gre.networks'
networks = {
    'dipole_unet': Architecture(f'{_HOME}.dipole_unet:DipoleUNet', 3000),
    'adaptive_unet': Architecture(f'{_HOME}.adaptive:AdaptiveUNet', 3000),
}
