"""What the checks of whole calls share: a small dataset, a call, and what is in a folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from bidsapp.modalities.dwi.simulate.dataset import DwiDesign
from bidsapp.simulated import Design, write_dataset

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

#: Real work at its cheapest.
WORK = ('participant', '--device', 'cpu', '--tasks', 'orientation', '--nprocs', '1')
#: Entries of a JSON that say when, where and by whom something was made.
ASIDE = ('ModificationTime', 'GeneratedBy', 'command', 'created', 'date', 'seconds')
#: What a call makes and is the same whenever it is made.
SAME = ('.nii.gz', '.tsv', '.bval', '.bvec', '.safetensors', '.json')


def write_heads(root: Path, people: int) -> Path:
    """A dataset of so many heads of 6 mm, one shell, without T1w images."""
    scans = DwiDesign(6.0, 3.0, directions=30, snr=25)
    design = Design(
        participants=people, seed=3, t1w_voxel_size=4.0, template_voxel_size=3.0,
        scans={'dwi': scans},
    )  # fmt: skip
    write_dataset(root, design, say=lambda line: None)
    for anat in root.glob('sub-*/anat'):
        shutil.rmtree(anat)
    return root


def command(*argv: object) -> list[str]:
    """The app as another process."""
    return [sys.executable, '-m', 'bidsapp', *(str(arg) for arg in argv)]


def called(arguments: Sequence[str]) -> tuple[int, str]:
    """(exit code, what was said) of a command."""
    done = subprocess.run(arguments, capture_output=True, text=True, env=alone())
    return done.returncode, done.stdout + done.stderr


def alone() -> dict[str, str]:
    """The environment with one thread a library: sums in one order."""
    return {**os.environ, 'OMP_NUM_THREADS': '1'}


def results(out: Path) -> dict[str, Any]:
    """Path below ``out`` → what has to be the same: bytes, or the values of a JSON."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob('*')):
        below = path.relative_to(out)
        hidden = any(part.startswith('.') for part in below.parts)
        if path.is_file() and not hidden and below.parts[0] != 'logs' and ends(path):
            content = path.read_bytes()
            found[str(below)] = plain(json.loads(content)) if path.suffix == '.json' else content
    return found


def ends(path: Path) -> bool:
    """Whether its bytes depend on nothing but data, options and seed."""
    return path.name.endswith(SAME) and path.name != 'log.tsv'


def plain(value: Any) -> Any:
    """A value of a JSON without what says when it was made."""
    if isinstance(value, dict):
        return {key: plain(own) for key, own in value.items() if key not in ASIDE}
    return [plain(own) for own in value] if isinstance(value, list) else value


def differing(one: dict[str, Any], other: dict[str, Any]) -> str:
    """Names of what is not the same; empty where all is."""
    names = sorted(n for n in one.keys() | other.keys() if one.get(n) != other.get(n))
    return f'{len(names)} files differ: {", ".join(names[:4])}' if names else ''


def refused(*needed: str) -> str:
    """Do what a check needs; why this machine does not let us, or nothing where it does."""
    try:
        done = subprocess.run(needed, capture_output=True, text=True)
    except OSError as error:
        return str(error)
    return done.stderr.strip() if done.returncode else ''
