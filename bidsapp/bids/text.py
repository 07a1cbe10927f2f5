"""Text files as people's editors leave them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from bidsapp.problems import BadData

if TYPE_CHECKING:
    from pathlib import Path


def text_of(path: Path) -> str:
    """The text of ``path``: UTF-8, or UTF-16 as some editors write it; a mark at its start skipped.

    Raises BadData for anything else.
    """
    if path.is_dir():
        raise BadData(f'{path} is a folder; expected a text file. Move or rename it.')
    content = path.read_bytes()
    try:
        return content.decode(json.detect_encoding(content))
    except UnicodeDecodeError as error:
        raise BadData(f'{path} is not a text of UTF-8: {error}. Save it as UTF-8.') from error
