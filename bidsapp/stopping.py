"""SIGTERM, by which schedulers and container engines end a job, heard through a whole call.

A process that is the first of its container ignores every signal for which it has no handler, so
there is one from the first line to the last.
"""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

STOPPED = 'Stopped by SIGTERM; the same command goes on from here.'


class Stopped(BaseException):
    """SIGTERM came. It is no Exception, so that no library takes it for a failure of its own."""


_asked = threading.Event()


def _stop(*_: object) -> None:
    """At once; a second signal does not disturb what the first has begun."""
    if not _asked.is_set():
        _asked.set()
        raise Stopped(STOPPED)


def _note(*_: object) -> None:
    _asked.set()


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def heard() -> Iterator[None]:
    """SIGTERM raises Stopped inside, in the main thread; what was written whole stays."""
    previous = signal.getsignal(signal.SIGTERM)
    if not _in_main_thread() or previous in (_stop, _note):
        yield
        return
    _asked.clear()
    signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def held() -> Iterator[threading.Event]:
    """SIGTERM only sets the event inside, to be looked at; who did not look is stopped after it."""
    if not _in_main_thread():
        yield threading.Event()
        return
    with heard():
        outer = signal.signal(signal.SIGTERM, _note)
        try:
            yield _asked
        finally:
            signal.signal(signal.SIGTERM, outer)
        if outer is _stop:
            look()


def look() -> None:
    """Raises Stopped if SIGTERM came and what it raised was lost on the way."""
    if _asked.is_set():
        raise Stopped(STOPPED)
