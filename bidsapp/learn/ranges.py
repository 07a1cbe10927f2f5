"""Whether a scan lies in the range for which a model was tested; nothing here loads torch.

A card's ``tested_ranges`` holds, by the names of a modality's quantities, [lowest, highest] or a
list of such. What a card does not say is not judged. A model without tested ranges, as `group`
makes them, may say what it has learnt from: ``learnt_<name>_ranges``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bidsapp.core import Quantity


#: By what the lowest is multiplied of what was estimated and may be as high as it likes.
LEEWAY = 0.9


def has_ranges(card: Mapping[str, Any]) -> bool:
    """Whether a card says for which scans its model was tested."""
    return bool(card.get('tested_ranges'))


def outside(card: Mapping[str, Any], quantities: Iterable[Quantity]) -> list[str]:
    """A sentence for each way in which a scan differs from those that a model was tested with."""
    tested: Mapping[str, Any] = card.get('tested_ranges') or {}
    found = []
    for quantity in quantities:
        known = tested.get(quantity.name)
        said = known if known is not None else card.get(f'learnt_{quantity.name}_ranges')
        if said is None or not quantity.values:
            continue
        ranges = said if isinstance(said[0], list | tuple) else [said]
        words = ', '.join(quantity.limits.format(low=low, high=high) for low, high in ranges)
        verb = 'was tested' if known is not None else 'has learnt'
        found += [f'{own}; the model {verb} with {words}' for own in _strange(quantity, ranges)]
    return [f'{text}: look at its predictions before they are used' for text in found]


def spanned(found: Iterable[Iterable[Quantity]]) -> dict[str, Any]:
    """The ranges that scans, each with its quantities, lie in, as a card's ``tested_ranges``.

    Of a quantity each of whose values is judged for itself there are as many ranges as a scan has
    values; where scans differ in that, one. The lowest of what has no highest is an estimate, and
    is given some leeway.
    """
    values: dict[str, list[tuple[float, ...]]] = {}
    alone: set[str] = set()
    estimated: set[str] = set()
    for quantities in found:
        for quantity in quantities:
            if quantity.values:
                values.setdefault(quantity.name, []).append(quantity.values)
            if quantity.each:
                alone.add(quantity.name)
            if not quantity.upper:
                estimated.add(quantity.name)
    ranges: dict[str, Any] = {}
    for name, every in values.items():
        if name in alone and len({len(own) for own in every}) == 1:
            ranges[name] = [[min(kind), max(kind)] for kind in zip(*every, strict=True)]
        else:
            flat = [value for own in every for value in own]
            ranges[name] = [min(flat) * (LEEWAY if name in estimated else 1), max(flat)]
    return ranges


def _strange(quantity: Quantity, ranges: Sequence[Sequence[float]]) -> list[str]:
    """What is to be said of values that lie in none of ``ranges``."""
    alone: list[tuple[str, tuple[float, ...]]] = [(quantity.words, quantity.values)]
    if quantity.each:
        alone = [(quantity.words.format(value=v), (v,)) for v in quantity.values]
    return [words for words, values in alone if not any(_within(values, r, quantity)
                                                        for r in ranges)]  # fmt: skip


def _within(values: Sequence[float], limits: Sequence[float], quantity: Quantity) -> bool:
    low, high = limits[0] * (1 - quantity.slack), limits[1] * (1 + quantity.slack)
    return low <= min(values) and (not quantity.upper or max(values) <= high)
