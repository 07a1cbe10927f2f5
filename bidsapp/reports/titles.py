"""How sources, segmentations and parameters are called on a page."""

from __future__ import annotations

from bidsapp.reports.written import PREDICTED

#: Sources in words.
TITLES = {
    'reference': 'reference',
    'truth': 'truth',
    PREDICTED: 'network',
    'csd': 'reference, spherical deconvolution',
    'tensor': 'reference, diffusion tensor',
    'noddi': 'reference, NODDI',
    'smt': 'spherical mean technique',
}
#: Segmentations and parameters whose entity says little.
HEADINGS = {
    'nfib': 'Number of fibres',
    'icvf': 'Neurite density',
    'od': 'Orientation dispersion',
    'isovf': 'Free water',
    'diffusivity': 'Diffusivity of neurites',
}


def title_of(source: str) -> str:
    """A source in words."""
    return TITLES.get(source, source)


def heading_of(kind: str, name: str) -> str:
    """A segmentation or parameter, what ``kind`` says, in words and by its entity."""
    return f'{HEADINGS[name]} ({name})' if name in HEADINGS else f'{kind}: {name}'


def begun(text: str) -> str:
    """The text with a capital; NODDI stays NODDI."""
    return text[:1].upper() + text[1:]
