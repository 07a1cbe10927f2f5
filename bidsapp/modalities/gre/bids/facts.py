"""What sidecars of a gradient-echo run say: echo times, frequency; and what cannot be served."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bidsapp.bids.images import open_image
from bidsapp.bids.scans import number
from bidsapp.modalities.gre.bids.direction import FIELD
from bidsapp.modalities.gre.physics.acquisition import MHZ_PER_TESLA, check_times
from bidsapp.physics.geometry import voxel_sizes
from bidsapp.problems import BadData, MissingInput

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bidsapp.bids.scans import BidsImage
    from bidsapp.problems import Problem

#: Shares by which one value may differ from file to file, and a frequency from the field strength:
#: a nominal 3 T may be 2.89, and no scanner is farther off.
SAME, NOMINAL = 1e-3, 0.1
#: Of ImageType: phase from which somebody has taken what is smooth, and with it χ.
FILTERED = ('FILTERED', 'FILTERED_PHASE', 'HIGHPASS', 'HP', 'SWI', 'VENOGRAM')
#: Slices farther apart than this share of their thickness have gaps.
GAP = 1.05


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a run before a header is opened."""

    echo_times: tuple[float, ...]  #: s, rising; none where a finished field was given
    imaging_mhz: float
    frequency_from: str  #: 'ImagingFrequency' or 'MagneticFieldStrength'
    said: Mapping[str, Any] = field(default_factory=dict)  #: of the direction of B0, if anything


def facts_of(echoes: Sequence[Sequence[BidsImage]]) -> Facts:
    """What the images of each echo say. Raises MissingInput for what is needed, BadData for odds.

    ``echoes`` are in the order of their numbers. What files say differently is contradictory.
    """
    times = tuple(_echo_time(images) for images in echoes)
    check_times(times)
    every = [image for images in echoes for image in images]
    mhz, origin = frequency(every)
    return Facts(times, mhz, origin, direction_said(every))


def direction_said(images: Sequence[BidsImage]) -> dict[str, Any]:
    """The direction of B0 as the first image that has one says it."""
    return next(({FIELD: i.metadata[FIELD]} for i in images if FIELD in i.metadata), {})


def _echo_time(images: Sequence[BidsImage]) -> float:
    time = agreed(images, 'EchoTime')
    if time is None:
        raise MissingInput(
            f'{images[0].path.name} has no EchoTime in its metadata; expected the time of this '
            'echo in seconds. Add it to the JSON file.'
        )
    return time


def agreed(images: Sequence[BidsImage], key: str) -> float | None:
    """The number that ``images`` say under ``key``, None where none does. Raises BadData."""
    first: tuple[float, str] | None = None
    for image in images:
        value = number(image.metadata, key)
        if key in image.metadata and value is None:
            raise BadData(
                f'{image.path.name}: {key} in the metadata is {image.metadata[key]!r}; expected '
                'one number. Correct the JSON file.'
            )
        if value is None:
            continue
        if first is None:
            first = value, image.path.name
        elif abs(value - first[0]) > SAME * abs(first[0]):
            raise BadData(
                f'{key} contradicts itself: {first[0]:g} in the metadata of {first[1]}, {value:g} '
                f'of {image.path.name}; expected one value. Correct the JSON files.'
            )
    return None if first is None else first[0]


def frequency(images: Sequence[BidsImage]) -> tuple[float, str]:
    """Of the scanner in MHz, and the entry that it is from; the field strength is second best.

    Raises MissingInput where neither is said, BadData where they contradict each other.
    """
    mhz, tesla = (agreed(images, key) for key in ('ImagingFrequency', 'MagneticFieldStrength'))
    name = images[0].path.name
    if mhz is None and tesla is None:
        raise MissingInput(
            f'{name} has neither ImagingFrequency nor MagneticFieldStrength in its metadata: '
            'a field in Hz cannot become ppm. Add one of them (MHz, tesla) to the JSON file.'
        )
    if mhz is None:
        assert tesla is not None
        return MHZ_PER_TESLA * tesla, 'MagneticFieldStrength'
    if not 1 < mhz < 1000:
        likely = ' BIDS has MHz: this looks like Hz.' if mhz > 1e6 else ''
        raise BadData(
            f'{name}: ImagingFrequency is {mhz:g}; expected a frequency in MHz, such as 123.2.'
            f'{likely} Correct the JSON file.'
        )
    if tesla is not None and abs(mhz / (MHZ_PER_TESLA * tesla) - 1) > NOMINAL:
        raise BadData(
            f'{name}: ImagingFrequency is {mhz:g} MHz and MagneticFieldStrength {tesla:g} T, at '
            f'which {MHZ_PER_TESLA * tesla:.1f} MHz were expected. Correct the JSON file.'
        )
    return mhz, 'ImagingFrequency'


def cannot_serve(echoes: Sequence[Mapping[str, BidsImage]]) -> Problem | None:
    """Why no susceptibility follows from such images in principle; None where it may.

    ``echoes`` are images by their part: mag, phase, real, imag.
    """
    first = next(iter(echoes[0].values()))
    if not any(part in echo for echo in echoes for part in ('phase', 'real', 'imag')):
        return MissingInput(f'{first.path.name} has a magnitude and no phase.')
    for image in (image for echo in echoes for image in echo.values()):
        kind = image.metadata.get('ImageType')
        tokens = [str(k).upper() for k in kind] if isinstance(kind, list) else []
        if image.entities.get('part') == 'phase' and set(FILTERED) & set(tokens):
            return BadData(
                f'{image.path.name} is filtered phase (ImageType {", ".join(tokens)}): the field '
                'of large structures is no longer in it. Export the phase as it was measured.'
            )
    if (apart := _gap(first)) is not None:
        return BadData(
            f'{first.path.name} has 2-D slices with gaps ({apart}): between them the field is not '
            'known. Acquire a volume, or slices that touch.'
        )
    return None


def _gap(image: BidsImage) -> str | None:
    """How far slices are apart, in words; None where they touch or it is a volume."""
    if str(image.metadata.get('MRAcquisitionType', '3D')).upper() != '2D':
        return None
    thick = number(image.metadata, 'SliceThickness')
    step = number(image.metadata, 'SpacingBetweenSlices')
    if thick is None:
        return None
    if step is None:
        step = float(voxel_sizes(open_image(image.path).affine)[2])
    return f'{thick:g} mm thick, {step:g} mm apart' if step > GAP * thick else None
