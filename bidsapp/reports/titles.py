"""How sources, segmentations and parameters are called on a page."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from bidsapp import registry
from bidsapp.reports.written import PREDICTED, outputs_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bidsapp.core import Output

#: Sources in words, where no modality says more.
TITLES = {'reference': 'reference', 'truth': 'truth', PREDICTED: 'network'}


@cache
def _titles() -> Mapping[str, str]:
    own = [registry.page(modality).sources for modality in registry.modalities()]
    return {source: words for sources in (TITLES, *own) for source, words in sources.items()}


def title_of(source: str) -> str:
    """A source in words."""
    return _titles().get(source, source)


def output_named(modality: str, name: str) -> Output | None:
    """The output of a segmentation or parameter, what it is called there."""
    called = (o for o in outputs_of(modality) if name in (o.entities.get('seg'),
                                                          o.entities.get('param')))  # fmt: skip
    return next(called, None)


def heading_of(modality: str, kind: str, name: str) -> str:
    """A segmentation or parameter, what ``kind`` says, in words and by its entity."""
    output = output_named(modality, name)
    return f'{output.heading} ({name})' if output and output.heading else f'{kind}: {name}'


def begun(text: str) -> str:
    """The text with a capital; NODDI stays NODDI."""
    return text[:1].upper() + text[1:]
