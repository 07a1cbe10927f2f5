"""What a check of robustness says: one line."""

from __future__ import annotations

from typing import NamedTuple


class Line(NamedTuple):
    """What was tried, and what was not as promised; nothing where all was."""

    name: str
    trouble: str = ''
