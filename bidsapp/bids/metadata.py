"""What sidecars say, read with care: spellings that are clear are understood, the rest left out."""

from __future__ import annotations

import re
from math import isfinite
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Directions along an axis of the image, and what follows where one is not understood.
DIRECTIONS = {
    'PhaseEncodingDirection': '',
    'SliceEncodingDirection': '; slices are taken to lie along the third axis (k)',
}
#: A letter of an axis with a sign before or after it, or none.
DIRECTION = re.compile(r'(?P<before>[+-]?)(?P<axis>[ijkxyz])(?P<after>[+-]?)')
#: Numbers greater than zero that are used or handed on.
POSITIVE = (
    'EchoTime', 'EchoTime1', 'EchoTime2', 'RepetitionTime', 'MagneticFieldStrength',
    'TotalReadoutTime', 'EffectiveEchoSpacing',
)  # fmt: skip
#: Of these a list is as good.
LISTED = ('EchoTime', 'FlipAngle')
#: Texts that are handed on.
TEXTS = ('Manufacturer', 'ManufacturersModelName', 'Units')


class _Unclear(Exception):
    """A value that is not understood; the message goes on after the name of the entry."""


def understood(said: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The entries of ``said`` that can be used, as BIDS spells them; and what to say of others.

    NaN, Infinity and null, which are no values, are left out, however deep they stand.
    """
    clean: dict[str, Any] = {}
    notes: list[str] = []
    for key, value in said.items():
        try:
            clean[key] = _read(key, value)
        except _Unclear as reason:
            notes.append(f'{key} in the metadata {reason}: taken as not said')
            notes[-1] += DIRECTIONS.get(key, '')
            continue
        if clean[key] != value:
            notes.append(f'{key} in the metadata is {value!r}, read as {clean[key]!r}')
    return clean, notes


def _read(key: str, value: Any) -> Any:
    """The value of one entry. Raises _Unclear."""
    if (odd := _no_value(value)) is not None:
        raise _Unclear(odd)
    if key in DIRECTIONS or key == 'PhaseEncodingAxis':
        return _direction(value, signed=key != 'PhaseEncodingAxis')
    if key in (*POSITIVE, *LISTED):
        if isinstance(value, list) and value and key in LISTED:
            return [_number(v, key) for v in value]
        return _number(value, key)
    if key in TEXTS and not isinstance(value, str):
        raise _Unclear(f'is {value!r}, expected a text')
    return value


def _no_value(value: Any) -> str | None:
    """What is wrong with a value that holds null, NaN or Infinity; None if it holds none."""
    if value is None:
        return 'is or holds null'
    if isinstance(value, float) and not isfinite(value):
        return 'is or holds NaN or Infinity'
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((odd for v in inner if (odd := _no_value(v)) is not None), None)


def _direction(value: Any, signed: bool) -> str:
    """'j-' of what may be spelled y-, -j, J-, or ['j-']; without its sign unless ``signed``."""
    text = value[0] if isinstance(value, list) and len(value) == 1 else value
    found = DIRECTION.fullmatch(text.replace(' ', '').lower()) if isinstance(text, str) else None
    if found is None or (found['before'] and found['after']):
        raise _Unclear(f'is {value!r}, expected i, j or k, or one of them with a -')
    sign = '-' if signed and '-' in (found['before'], found['after']) else ''
    axis = found['axis'].translate(str.maketrans('xyz', 'ijk'))
    return f'{axis}{sign}'


def _number(value: Any, key: str) -> float:
    """A number, of a text too; greater than zero where nothing else makes sense."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = float('nan')
    if isinstance(value, bool) or not isfinite(number):
        raise _Unclear(f'is {value!r}, expected a number')
    if key in POSITIVE and number <= 0:
        raise _Unclear(f'is {value!r}, expected a number above 0')
    return value if isinstance(value, int | float) else number
