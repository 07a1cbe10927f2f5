"""The susceptibility displacement from a measured field: two gradient echoes, or a map in Hz.

The phase of a gradient echo grows by 2π f TE where the field is f Hz above the scanner's
frequency; from two echoes, f = Δφ / (2π ΔTE) (Jezzard & Balaban, MRM 1995). The measured phase is
known up to whole turns, which are found by following the most trustworthy paths (after
Abdul-Rahman et al., Applied Optics 2007).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from bidsapp.physics import alignment, brain, distortion
from bidsapp.physics.phase import TURN, radians, unwrap, wrapped
from bidsapp.problems import BadData, Unavailable

if TYPE_CHECKING:
    from bidsapp.core import BoolArray, FloatArray

#: Hz in one unit of a field map (BIDS ``Units``).
HERTZ = {'Hz': 1.0, 'rad/s': 1 / TURN, 'T': 42.577e6}
#: Of Otsu's threshold: signal in the head, also where it is weak.
SIGNAL = 0.5
#: Voxels further from the median around them than both, robust standard deviations and Hz, are
#: noise.
SPIKE, SPIKE_HZ = 4.0, 15.0
#: mm; the field is smoothed by the first, and continued beyond the head by the others.
SMOOTHING, CONTINUATION = 2.0, (4.0, 8.0, 16.0, 32.0, 64.0)
#: mm around the dMRI brain that the registration sees.
SURROUNDINGS = 30.0
#: (voxel in mm, points compared) of each registration of the magnitude.
ROUNDS = ((5.0, 15_000), (3.0, 30_000))
#: Normalised mutual information that a registration must gain over the scanner's coordinates to be
#: believed. On a real head 0.001 to 0.002 is noise (1 to 2 mm), a motion of 7 mm gains 0.028.
GAIN = 0.005


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """A measured field on its own grid."""

    hertz: FloatArray  #: (X, Y, Z) above the scanner's frequency; smooth, also beyond the head
    magnitude: FloatArray  #: (X, Y, Z) gradient echo, by which the map finds its place
    affine: FloatArray  #: (4, 4) voxel index → world mm
    method: str  #: in words


@dataclass(frozen=True, slots=True, eq=False)
class Displacement:
    """What the field does to a run; ``similarity`` is normalised mutual information, 1 to 2."""

    displacement: FloatArray  #: (X, Y, Z) float32, voxels along the phase-encoding axis
    hertz: FloatArray  #: (X, Y, Z) float32, the field on the run's grid
    matrix: FloatArray  #: (4, 4) world dMRI mm → world field map mm
    similarity_before: float
    similarity_after: float
    method: str  #: in words


def head(magnitude: FloatArray) -> BoolArray:
    """(X, Y, Z) where a gradient echo has signal: one piece, holes filled; may be empty."""
    capped = np.minimum(magnitude, np.percentile(magnitude, 99))
    return brain.filled(brain.largest(capped > SIGNAL * brain.otsu(capped)))


def smooth_field(hertz: FloatArray, mask: BoolArray, affine: FloatArray) -> np.ndarray:
    """``hertz`` (X, Y, Z) within ``mask`` without spikes, smooth, and continued to all voxels.

    Voxels that stand out from the median around them are dropped. Each voxel takes the average of
    the nearest ones that are left: by a Gaussian of 2 mm, and of up to 64 mm beyond the head.
    """
    nearest = ndimage.distance_transform_edt(~mask, return_distances=False, return_indices=True)
    whole = np.asarray(hertz, float)[tuple(nearest)]
    deviation = np.abs(whole - ndimage.median_filter(whole, 3, mode='nearest'))
    spread = 1.4826 * np.median(deviation[mask])
    weight = (mask & (deviation <= max(SPIKE * spread, SPIKE_HZ))).astype(float)
    result = np.full(mask.shape, np.average(whole, weights=weight))
    for scale in sorted((SMOOTHING, *CONTINUATION), reverse=True):
        near = brain.smoothed(weight, affine, scale)
        mean = brain.smoothed(weight * whole, affine, scale) / np.maximum(near, 1e-9)
        trust = np.clip(near / 0.5, 0, 1)
        result = trust * mean + (1 - trust) * result
    return result


def field_from_phase(
    phase: FloatArray | tuple[FloatArray, FloatArray],
    magnitude: FloatArray,
    affine: FloatArray,
    echo_times: tuple[float, float],
) -> Field:
    """The field by the difference of phase (X, Y, Z) of two echoes, or by their two phases.

    Values as the scanner wrote them (see `radians`); ``echo_times`` in s, the first's first. Raises
    BadData for echo times that do not grow, an unknown scale, or a magnitude without a head.
    """
    step = echo_times[1] - echo_times[0]
    if not 0 < step < 0.1:
        raise BadData(
            f'Field map: echo times {echo_times[0]:g} and {echo_times[1]:g} s were found; the '
            'second was expected later than the first by less than 0.1 s. Mend EchoTime1 and '
            'EchoTime2.'
        )
    if isinstance(phase, tuple):
        first, second = (radians(x) for x in phase)
        difference = wrapped(second - first)
    else:
        difference = radians(phase)
    mask = _head_of(magnitude)
    hertz = unwrap(difference, mask) / (TURN * step)
    words = f'phase difference of two gradient echoes {1000 * step:.2f} ms apart, unwrapped'
    return Field(smooth_field(hertz, mask, affine), magnitude, affine, words)


def field_from_map(
    values: FloatArray, magnitude: FloatArray, affine: FloatArray, units: str = 'Hz'
) -> Field:
    """The field by a ready map (X, Y, Z) in BIDS ``units`` 'Hz', 'rad/s' or 'T'.

    Raises BadData for other units, or a magnitude without a head.
    """
    if units not in HERTZ:
        raise BadData(
            f'Field map: units {units!r} were found; one of {", ".join(HERTZ)} was expected.'
        )
    hertz = HERTZ[units] * np.nan_to_num(np.asarray(values, float))
    mask = _head_of(magnitude)
    return Field(smooth_field(hertz, mask, affine), magnitude, affine, f'field map in {units}')


def _head_of(magnitude: FloatArray) -> BoolArray:
    mask = head(magnitude)
    if not 0.02 < mask.mean() < 0.98:
        raise BadData(
            f'Field map: its magnitude image shows signal in {mask.mean():.0%} of its voxels; a '
            'head with air around it was expected.'
        )
    return mask


def displacement_from_field(
    field: Field,
    epi: FloatArray,
    affine: FloatArray,
    mask: BoolArray,
    phase_encoding: str,
    readout: float,
    rng: np.random.Generator,
) -> Displacement:
    """The displacement of a run by a ``field`` measured on another grid.

    ``epi`` (X, Y, Z) is the run's distorted mean b=0, ``mask`` its brain, ``phase_encoding`` and
    ``readout`` in s the BIDS PhaseEncodingDirection and TotalReadoutTime. The field finds its place
    by rigid registration of its magnitude to the b=0 as the field at its last place corrects it,
    and keeps the scanner's coordinates where that gains little.

    Raises Unavailable if the correction makes the two less alike (the polarity is wrong, or the map
    another head's), BadData for a readout time that is none, ValueError for an unknown phase
    encoding.
    """
    if not 0 < readout < 1:
        raise BadData(
            f'TotalReadoutTime {readout:g} s was found; a time between 0 and 1 s was expected.'
        )
    epi = np.clip(np.nan_to_num(np.asarray(epi, float)), 0, None)
    scene = _Scene(field, epi, affine, mask, phase_encoding, readout, rng)
    place = scene.best_place()
    shift = scene.displacement(place)
    before, after = (-scene.compare(x, *ROUNDS[-1])(place) for x in (0 * shift, shift))
    if after < before - GAIN / 2:
        raise Unavailable(
            f'The field map makes the b=0 less like its magnitude image ({after:.3f} after, '
            f'{before:.3f} before, normalised mutual information). Check PhaseEncodingDirection '
            f'{phase_encoding!r}, and that the field map belongs to this run.'
        )
    how = 'placed by rigid registration' if place.any() else "placed by the scanner's coordinates"
    return Displacement(
        displacement=shift,
        hertz=distortion.field_of(shift, readout, phase_encoding),
        matrix=scene.matrix(place),
        similarity_before=before,
        similarity_after=after,
        method=f'{field.method}; {how}',
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Scene:
    """A field and the run it belongs to; a place is 6 parameters of `alignment.motion_matrix`."""

    field: Field
    epi: FloatArray
    affine: FloatArray
    mask: BoolArray
    phase_encoding: str
    readout: float
    rng: np.random.Generator

    @property
    def centre(self) -> np.ndarray:
        return alignment.apply(self.affine, np.argwhere(self.mask).mean(0))

    def matrix(self, place: FloatArray) -> np.ndarray:
        return alignment.motion_matrix(place, self.centre)

    def displacement(self, place: FloatArray) -> np.ndarray:
        """Voxels; beyond the field's own grid its edge is repeated."""
        there = np.linalg.inv(self.field.affine) @ self.matrix(place) @ self.affine
        hertz = ndimage.affine_transform(
            self.field.hertz, there[:3, :3], there[:3, 3], self.epi.shape, order=1, mode='nearest'
        )
        return distortion.displacement_of(hertz, self.readout, self.phase_encoding)

    def best_place(self) -> np.ndarray:
        """By registration; all 0, the scanner's coordinates, where that gains little."""
        header, place = np.zeros(6), np.zeros(6)
        for mm, points in ROUNDS:
            compared = self.compare(self.displacement(place), mm, points)
            place, _ = compared.best(place)
        return place if compared(header) - compared(place) > GAIN else header

    def compare(self, shift: FloatArray, mm: float, points: int) -> alignment.Similarity:
        """The magnitude at any place with the b=0 that ``shift`` corrects."""
        axis, _ = distortion.phase_axis(self.phase_encoding)
        image = distortion.unwarp(self.epi, shift, axis, order=1).clip(0)
        image = np.log(image + 0.02 * np.percentile(image, 99) + 1e-6)
        region = brain.dilated(self.mask, self.affine, SURROUNDINGS)
        moving = (self.field.magnitude, self.field.affine)
        found = alignment.similarity_of(image, self.affine, region, *moving, mm, points, self.rng)
        found.centre = self.centre
        return found


def displacement_from_phase(
    phase: FloatArray | tuple[FloatArray, FloatArray],
    magnitude: FloatArray,
    field_affine: FloatArray,
    echo_times: tuple[float, float],
    epi: FloatArray,
    affine: FloatArray,
    mask: BoolArray,
    phase_encoding: str,
    readout: float,
    rng: np.random.Generator,
) -> Displacement:
    """`field_from_phase`, then `displacement_from_field`; their arguments and what they raise."""
    field = field_from_phase(phase, magnitude, field_affine, echo_times)
    return displacement_from_field(field, epi, affine, mask, phase_encoding, readout, rng)
