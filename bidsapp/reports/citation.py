"""Text for a methods section."""

from __future__ import annotations

from bidsapp import __version__, registry
from bidsapp.bids.derivatives import scans


def citation() -> str:
    """Markdown, the same for every run of this version: methods, then references.

    Both by modality under its title, where there are several; numbers are a modality's own.
    """
    pages = {modality: registry.page(modality) for modality in registry.modalities()}
    titles = [f'## {scans([name])}\n\n' if len(pages) > 1 else '' for name in pages]
    parts = [
        '\n'.join(title + text for title, text in zip(titles, texts, strict=True))
        for texts in zip(*((page.methods, page.references) for page in pages.values()), strict=True)
    ]
    text = f'# Methods\n\n{parts[0]}\n# References\n\n{parts[1]}'
    return text.format(version=__version__)
