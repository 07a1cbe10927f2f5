"""What is asked of the simulated scanner, and what tissues answer at b=0."""

from __future__ import annotations

from dataclasses import dataclass

from bidsapp.modalities.dwi.simulate.microstructure import FREE_WATER

#: Of ``anatomy.TISSUES``: signal at b=0 (white matter = 1), diffusivity (µm²/ms; GM and WM have
#: their own), T1w intensity. Fat is suppressed in dMRI and hardly diffuses.
S0 = (1.20, 1.00, 2.30, 2.30, 0.04, 0.15, 0.40, 2.00, 0.0)
DIFFUSIVITY = (0.0, 0.0, FREE_WATER, FREE_WATER, 0.5, 0.10, 1.3, FREE_WATER, 0.0)
#: Scanner units of the b=0 signal of white matter.
DWI_UNITS = 600.0


@dataclass(frozen=True, slots=True)
class Protocol:
    """What is asked of the scanner."""

    shells: tuple[tuple[float, int], ...] = ((1000.0, 32),)  #: (b in s/mm², directions)
    n_b0: int = 2
    snr: float = 20.0  #: mean b=0 signal of white matter over the noise's standard deviation
    fine: int = 2  #: fine voxels along the edge of a dMRI voxel
    motion_mm: float = 0.5  #: standard deviation from volume to volume, along each axis
    motion_deg: float = 0.5
    motion_walk: bool = False  #: steps add up, as those of a person do; or each is from rest
    eddy_hz: float = 6.0  #: standard deviation of the eddy field 80 mm from the isocentre
    susceptibility_hz: float = 0.0  #: largest off-resonance in the brain; 0 for none
    dropout: float = 0.0  #: share of the slices of weighted volumes that lose signal
    readout: float = 0.05  #: s, total readout time
    phase_axis: int = 1  #: voxel axis of phase encoding
    phase_sign: int = 1  #: -1 for reversed polarity
