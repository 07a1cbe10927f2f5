"""Gradient-echo MRI.

Susceptibility mapping in the making: what stands here (`physics`, `simulate`, `bids`, `interfaces`,
`workflows`) is complete. As long as the folder has no ``tasks`` it is no modality of the app.

Signs and units, throughout: φ = 2π f TE with the phase φ in rad, the field f in Hz above the
scanner's frequency and positive where paramagnetic matter lies; χ in ppm; a field in ppm is
Hz / ImagingFrequency (MHz). The direction of B0 is a unit vector b along the voxel axes.
"""

from __future__ import annotations

from bidsapp.core import Objective, Option

OBJECTIVES = {
    'supervised': Objective(
        'tell susceptibility from the field, by the truth of simulated blocks', dataset=False,
        tasks=True,
    )
}  # fmt: skip

OPTIONS = (
    Option(
        '--phase-sign', str, 'auto|keep|turn',
        'whether the phase has the sign of paramagnetic matter; auto (default) warns and turns '
        'nothing', levels=('participant',), choices=('auto', 'keep', 'turn'),
    ),
    Option(
        '--reference', str, 'whole-brain|LABEL',
        'where susceptibility is 0 on average: the whole brain (default), or a label of -d dseg= '
        'by its index or name', levels=('participant',),
    ),
)  # fmt: skip
