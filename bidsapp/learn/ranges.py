"""Whether a scan lies in the range for which a model was tested; nothing here loads torch.

A card's ``tested_ranges`` may hold ``directions``, ``shells``, ``voxel_mm`` and ``snr`` as
[lowest, highest] and ``b`` as a list of such, in s/mm². What a card does not say is not judged. A
model without tested ranges, as `group` makes them, says from which ranges of b it has learnt
(``learnt_b_ranges``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bidsapp.modalities.dwi.physics.acquisition import Facts

#: Shares by which a value may miss a range: b and voxel sizes are what a scanner rounds to.
B_SLACK, VOXEL_SLACK = 0.03, 0.02


def has_ranges(card: Mapping[str, Any]) -> bool:
    """Whether a card says for which scans its model was tested."""
    return bool(card.get('tested_ranges'))


def outside(card: Mapping[str, Any], facts: Facts) -> list[str]:
    """A sentence for each way in which a scan differs from those that a model was tested with."""
    tested: Mapping[str, Any] = card.get('tested_ranges') or {}
    found = [
        _count(facts.directions, 'different directions', tested.get('directions')),
        _count(len(facts.b), 'ranges of b in use', tested.get('shells')),
        _voxels(facts.voxel_mm, tested.get('voxel_mm')),
        _noise(facts.snr, tested.get('snr')),
        *_shells(facts.b, card, tested),
    ]
    return [f'{text}: look at its predictions before they are used' for text in found if text]


def _count(value: int, what: str, limits: Sequence[float] | None) -> str:
    if limits is None or limits[0] <= value <= limits[1]:
        return ''
    return (f'this run has {value} {what}; the model was tested with {limits[0]:g} to '
            f'{limits[1]:g}')  # fmt: skip


def _voxels(sizes: Sequence[float], limits: Sequence[float] | None) -> str:
    low, high = (1 - VOXEL_SLACK, 1 + VOXEL_SLACK)
    if limits is None or (limits[0] * low <= min(sizes) and max(sizes) <= limits[1] * high):
        return ''
    edges = ' x '.join(f'{x:.3g}' for x in sizes)
    return (f'voxels of this run measure {edges} mm; the model was tested with edges of '
            f'{limits[0]:g} to {limits[1]:g} mm')  # fmt: skip


def _noise(snr: float | None, limits: Sequence[float] | None) -> str:
    """More signal than in any test is no reason for doubt."""
    if snr is None or limits is None or snr >= limits[0]:
        return ''
    return (f'the signal-to-noise ratio of this run is about {snr:.1f}; the model was tested with '
            f'{limits[0]:g} or more')  # fmt: skip


def _shells(b: Sequence[float], card: Mapping[str, Any], tested: Mapping[str, Any]) -> list[str]:
    ranges = tested.get('b', card.get('learnt_b_ranges'))
    if ranges is None:
        return []
    words = ', '.join(f'{low:g} to {high:g}' for low, high in ranges)
    verb = 'was tested' if 'b' in tested else 'has learnt'
    return [
        f'this run has b={value:.0f} s/mm2; the model {verb} with {words}'
        for value in b
        if not any(low * (1 - B_SLACK) <= value <= high * (1 + B_SLACK) for low, high in ranges)
    ]
