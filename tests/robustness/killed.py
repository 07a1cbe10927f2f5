"""Killed by SIGKILL at random moments and started again, a call ends as one that nothing disturbed.

Each round kills twice: first a call that begins, then the one that goes on from what it left.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from tests.robustness.calls import WORK, alone, called, command, differing, results, write_heads
from tests.robustness.lines import Line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Level → rounds of two kills each: fifty moments.
ROUNDS = {'participant': 9, 'group': 8, 'pretrain': 8}
FEW = ('--steps', '4', '--device', 'cpu', '--nprocs', '1')
#: `pretrain` on blocks of 16 voxels, as its tests have it.
SMALL = (
    'import sys; from pytest import MonkeyPatch; from bidsapp.cli import main; '
    'from tests.app.test_pretrain import shrink; shrink(MonkeyPatch()); sys.exit(main())'
)


class Level(NamedTuple):
    """A level: what is called, and the output folder that it begins with, if with any."""

    argv: list[str]
    out: Path
    begin: Path | None = None

    def prepare(self) -> None:
        """The output folder as it is before."""
        shutil.rmtree(self.out, ignore_errors=True)
        if self.begin is not None:
            shutil.copytree(self.begin, self.out, ignore=shutil.ignore_patterns('.work', 'logs'))


def lines(scratch: Path) -> Iterator[Line]:
    """One a round."""
    bids, whole = write_heads(scratch / 'bids', 3), scratch / 'whole'
    code, said = called(command(bids, whole, *WORK))
    yield Line('three participants, undisturbed', said[-300:] if code else '')
    out, rest = scratch / 'out', ('orientation', *FEW)
    known = {
        'participant': Level(command(bids, out, *WORK, '--participant-label', '01'), out),
        'group': Level(command(bids, out, 'group', '--tasks', *rest), out, whole),
        'pretrain': Level(
            [sys.executable, '-c', SMALL, '-', str(out), 'pretrain', '--resume', *FEW], out
        ),
    }
    for name, level in known.items():
        if ROUNDS.get(name):
            yield from rounds(name, level)


def rounds(name: str, level: Level) -> Iterator[Line]:
    """Of one level, after a call that nothing disturbs."""
    level.prepare()
    start = time.monotonic()
    code, said = called(level.argv)
    took = time.monotonic() - start
    yield Line(f'{name}, undisturbed', said[-300:] if code else '')
    expected, chance = results(level.out), random.Random(name)
    for _ in range(ROUNDS[name]):
        level.prepare()
        moments = [killed_after(chance.uniform(0, took), level.argv) for _ in range(2)]
        code, said = called(level.argv)
        wrong = said[-300:] if code else differing(expected, results(level.out))
        yield Line(f'{name}, killed {" and ".join(moments)}', wrong)


def killed_after(seconds: float, argv: list[str]) -> str:
    """Start a call and kill it and its workers after so long; when, in words."""
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        argv, stdout=quiet, stderr=quiet, env=alone(), start_new_session=True
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f'after {seconds:.1f} s'
    return 'too late'
