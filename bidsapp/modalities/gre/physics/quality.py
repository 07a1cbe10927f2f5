"""Where phase can be believed, and whether its sign is that of paramagnetic matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from bidsapp.physics import brain

if TYPE_CHECKING:
    from bidsapp.core import BoolArray, FloatArray
    from bidsapp.modalities.gre.physics.echoes import Field

#: A voxel is noisy with so many times the median noise of the field in the mask.
NOISY = 6.0
#: The phase of a voxel and its neighbours is no line over the echoes if it misses one by so many
#: times its noise.
MISFIT = 3.0
#: mm; gaps narrower than twice this are kept: weights deal with single voxels and veins, while
#: every gap costs a ball around it.
GAP = 2.0
#: Of the brain, ordered by R2*: the share that iron and veins have, and the share from which decay
#: is no longer that of tissue.
IRON, TOO_FAST = 0.98, 0.999
#: ppm by which χ has to differ there for its sign to be told, and standard errors that it takes.
CONTRAST, ERRORS = 0.015, 4.0
#: mm of the mask's surface that tell nothing of iron.
SURFACE = 6.0
#: Fewer voxels tell no sign.
ENOUGH = 500
#: Of the voxels, by their signal: the share that air would hold at least, the share below what
#: counts as bright tissue, and how dark air is beside that.
AIR, BRIGHT, DARK = 0.01, 0.9, 0.3


def cut_from_a_brain(magnitude: FloatArray) -> bool:
    """Whether the field of view of ``magnitude`` (X, Y, Z) holds tissue only, as a crop may."""
    dark, bright = np.quantile(magnitude, [AIR, BRIGHT])
    return bool(dark > DARK * bright)


def reliable_mask(field: Field, mask: BoolArray, affine: FloatArray) -> BoolArray:
    """Where within ``mask`` (X, Y, Z) the field is known; one piece, small gaps closed.

    Left out is what is noisy (bone, air, signal that is gone) and what misses the line of phase
    over time by more than noise, as it does above the sinuses, where phase runs through the voxel.
    """
    typical = float(np.median(field.noise[mask])) if mask.any() else 0.0
    quiet = field.noise <= NOISY * typical
    # One voxel's misfit may be chance.
    power = ndimage.uniform_filter(np.where(mask, field.residual, 0) ** 2, 3)
    share = ndimage.uniform_filter(mask.astype(float), 3)
    straight = power <= MISFIT**2 * np.maximum(share, 1e-6)
    heart = brain.largest(mask & quiet & straight)
    return np.asarray(brain.filled(brain.closed(heart, affine, GAP)) & mask)


@dataclass(frozen=True, slots=True)
class Sign:
    """What χ says about the sign of the phase."""

    verdict: str  #: 'as expected', 'turned' or 'cannot tell'
    contrast: float  #: ppm, median χ where R2* is largest less that of all
    errors: float  #: the same in standard errors


def phase_sign(chi: FloatArray, r2star: FloatArray, mask: BoolArray, affine: FloatArray) -> Sign:
    """Whether χ (X, Y, Z) is positive where R2* is large: iron and veins are paramagnetic.

    Looked at is what lies deeper than 6 mm in ``mask``: at its surface bone makes R2* large.

    Infants and slabs without deep nuclei may show neither; then nothing is told. Myelin and
    calcium, which decay fast and are diamagnetic, are fewer than the veins and nuclei of an adult.
    """
    mask = brain.eroded(mask, affine, SURFACE)
    if mask.sum() < ENOUGH:
        return Sign('cannot tell', 0.0, 0.0)
    low, high = np.quantile(r2star[mask], [IRON, TOO_FAST])
    there = mask & (r2star >= low) & (r2star <= high)
    contrast = float(np.median(chi[there]) - np.median(chi[mask]))
    spread = 1.4826 * float(np.median(np.abs(chi[there] - np.median(chi[there]))))
    # Neighbours are alike: a block of 3³ counts as one.
    errors = contrast / max(1.2533 * spread / np.sqrt(max(there.sum() / 27, 1)), 1e-12)
    told = abs(contrast) >= CONTRAST and abs(errors) >= ERRORS
    verdict = ('turned' if contrast < 0 else 'as expected') if told else 'cannot tell'
    return Sign(verdict, contrast, float(errors))
