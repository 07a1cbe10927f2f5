"""Drawn, and the part `page`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure and what to say of it; there may be something to say and nothing to draw."""

    heading: str
    path: Path | None
    caption: str
