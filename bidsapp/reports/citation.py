"""Text for a methods section."""

from __future__ import annotations

from bidsapp import __version__, registry
from bidsapp.bids.derivatives import scans


def citation() -> str:
    """Markdown, the same for every run of this version: methods, then references by modality."""
    known = registry.modalities()
    pages = {modality: registry.page(modality) for modality in known}
    methods = '\n'.join(page.methods for page in pages.values())
    lists = [
        (f'## {scans([modality])}\n\n' if len(known) > 1 else '') + page.references
        for modality, page in pages.items()
    ]
    text = f'# Methods\n\n{methods}\n# References\n\n' + '\n'.join(lists)
    return text.format(version=__version__)
