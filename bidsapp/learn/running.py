"""What a long loop needs: batches in time, and a clock."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bidsapp.core import Batch


@contextmanager
def drawn_ahead(draw: Callable[[int], Batch], first: int, last: int) -> Iterator[Iterator[Batch]]:
    """``draw`` (step) for each step from ``first`` to before ``last``, each while the one before
    it is at work.

    One thread draws, one batch ahead, so that ``draw`` is never entered twice at a time; on the way
    out what it is drawing is awaited.
    """
    with ThreadPoolExecutor(1, 'batches') as thread:

        def batches() -> Iterator[Batch]:
            if first >= last:
                return
            coming = thread.submit(draw, first)
            for step in range(first, last):
                batch = coming.result()
                if step + 1 < last:
                    coming = thread.submit(draw, step + 1)
                yield batch

        yield batches()


class Clock:
    """Seconds of the loop by what they went into."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._what: str | None = None
        self._since = 0.0

    def start(self, what: str) -> None:
        """From now on it is ``what``."""
        self.stop()
        self._what, self._since = what, time.perf_counter()

    def stop(self) -> None:
        """Nothing of the loop from now on."""
        if self._what is not None:
            passed = time.perf_counter() - self._since
            self.seconds[self._what] = self.seconds.get(self._what, 0.0) + passed
        self._what = None

    def share(self, what: str) -> float:
        """Part of all seconds."""
        return self.seconds.get(what, 0.0) / max(sum(self.seconds.values()), 1e-9)
