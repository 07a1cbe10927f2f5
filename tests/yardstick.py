"""Do two checkouts make the same, bit for bit? For changes of the code that shall change nothing.

    python tests/yardstick.py BEFORE AFTER [--work DIR] [--only participant group pretrain]
    python tests/yardstick.py --measure CHECKOUT --into FILE.json

Each checkout makes three coarse heads and takes them through all levels, on one processor, by its
console commands alone, so that its modules may move. BEFORE or AFTER may be the FILE.json of an
earlier --measure on this machine, so that what does not change is run once; whatever was made is
kept beside it, in FILE. One line a difference; the exit code is 1 if there is any, or if nothing
was compared.

Compared are images (header and voxels, uncompressed), pixels of figures, every tensor of weights,
cards and sidecars value by value, and all other files as text, but for the folder that they were
made in and the version; no other word is left out. Sidecars and cards may gain fields (a page
that shows them differs). Log files are not compared.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

import nibabel as nib
import numpy as np
from PIL import Image
from safetensors.numpy import load_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Ends of names, and what such files are; the first that fits.
KINDS = {
    '.nii.gz': 'images', '.png': 'figures', '.safetensors': 'weights', 'card.json': 'cards',
    '.json': 'sidecars', '.html': 'pages', '.tsv': 'tables', '.bval': 'tables', '.bvec': 'tables',
}  # fmt: skip
#: What may gain fields.
MAY_GAIN = ('cards', 'sidecars')
#: Stage → the folders that it leaves.
STAGES = {
    'participant': ('bids', 'first'),
    'group': ('out',),
    'pretrain': ('pretrain', 'auxiliary/models'),
}
HEADS = ('bids', '--participants', '3', '--seed', '3', '--voxel-size', '4.5', '--directions', '30',
         '--bval', '1000', '2000', '--snr', '25')  # fmt: skip
ALIKE = ('--work-dir', 'work', '--nprocs', '1', '--omp-nthreads', '1', '--device', 'cpu',
         '--random-seed', '7')  # fmt: skip
#: `transfermri`, `transfermri-simulate`, and where the code is and of which version.
APP = ('-m', 'bidsapp')
SIMULATE = ('-c', 'import sys; from bidsapp.simulated import main; sys.exit(main())')
ASK = ('-c', 'import bidsapp; print(bidsapp.__version__, bidsapp.__path__[0])')


class Side(NamedTuple):
    """What one checkout made."""

    folder: Path  #: where it is kept
    made_in: str  #: the folder it was made in
    version: str
    made: list[str]  #: folders that are compared
    files: dict[str, object]  #: path below the folder → what it holds, see `content_of`


def kind_of(name: str) -> str:
    """How a file is compared."""
    return next((kind for end, kind in KINDS.items() if name.endswith(end)), 'texts')


def digest(data: bytes) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def digest_of(array: np.ndarray) -> str:
    """SHA-256 of an array with its type and shape."""
    return digest(f'{array.dtype} {array.shape} '.encode() + array.tobytes())


def neutral(path: Path, made_in: str, version: str) -> str:
    """The text of a file without what says where, and by which version, it was made."""
    text = path.read_text(encoding='utf-8', errors='surrogateescape')
    for place in {made_in, quote(made_in)}:
        text = text.replace(place, 'FOLDER')
    return re.sub(rf'(?<![\w.]){re.escape(version)}(?![\w.])', 'VERSION', text)


def content_of(path: Path, made_in: str, version: str) -> object:
    """What is compared of a file: a hash, or a dictionary of values or hashes."""
    match kind_of(path.name):
        case 'images':
            return digest(gzip.decompress(path.read_bytes()))
        case 'figures':
            return digest_of(np.asarray(Image.open(path)))
        case 'weights':
            return {name: digest_of(tensor) for name, tensor in load_file(path).items()}
        case 'cards' | 'sidecars':
            return json.loads(neutral(path, made_in, version))
    return digest(neutral(path, made_in, version).encode('utf-8', 'surrogateescape'))


def read(folder: Path, made_in: str, version: str, made: list[str]) -> Side:
    """The side whose files lie in ``folder``."""
    found = (path for name in made for path in sorted((folder / name).rglob('*')))
    files = {
        path.relative_to(folder).as_posix(): content_of(path, made_in, version)
        for path in found if path.is_file() and path.suffix != '.log'
    }  # fmt: skip
    return Side(folder, made_in, version, made, files)


def changes(before: object, after: object, at: str = '') -> list[tuple[str, str]]:
    """(place, 'gained', 'lost' or how it changed) of all that differs between two JSON values."""
    if isinstance(before, dict) and isinstance(after, dict):
        found = []
        for key in dict.fromkeys([*before, *after]):
            place = f'{at}.{key}' if at else key
            if key in before and key in after:
                found += changes(before[key], after[key], place)
            else:
                found.append((place, 'lost' if key in before else 'gained'))
        return found
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [c for i, pair in pairs for c in changes(*pair, f'{at}[{i}]')]
    # Written out, NaN is NaN, and 1 is neither 1.0 nor true.
    one, other = json.dumps(before), json.dumps(after)
    return [] if one == other else [(at, f'{one:.60} → {other:.60}')]


def how_far(name: str, before: Side, after: Side) -> str:
    """How two versions of a file differ, where both are kept."""
    sides = {side.folder / name: side for side in (before, after)}
    if not all(path.is_file() for path in sides):
        return ''
    if kind_of(name) not in ('images', 'figures'):
        texts = [neutral(path, side.made_in, side.version) for path, side in sides.items()]
        pairs = enumerate(zip(*texts, strict=False))
        first = next((i for i, (one, other) in pairs if one != other), min(map(len, texts)))
        return ' ({!r} → {!r})'.format(*(t[max(0, first - 20) :][:60] for t in texts))
    arrays = [array_of(path) for path in sides]
    one, other = (np.nan_to_num(array.astype(float)) for array in arrays)
    if one.shape != other.shape:
        return f' (shape {one.shape} → {other.shape})'
    gap = np.abs(one - other)
    return f' (max |Δ| = {gap.max():.3g}, {np.count_nonzero(gap)} of {gap.size} values)'


def array_of(path: Path) -> np.ndarray:
    """Voxels of an image, pixels of a figure."""
    if kind_of(path.name) == 'images':
        return np.asarray(nib.load(path).dataobj)
    return np.asarray(Image.open(path))


def differences(name: str, before: Side, after: Side) -> tuple[list[str], list[str]]:
    """What differs of one file, and the fields that it gained as it may."""
    if name not in before.files or name not in after.files:
        return ['only before' if name in before.files else 'only after'], []
    old, new = before.files[name], after.files[name]
    if isinstance(old, str):
        return ([f'differs{how_far(name, before, after)}'] if old != new else []), []
    found = changes(old, new)
    gained = [at for at, how in found if how == 'gained' and kind_of(name) in MAY_GAIN]
    if kind_of(name) == 'weights':
        found = [(at, 'differs' if '→' in how else how) for at, how in found]
    return [f'{at}: {how}' for at, how in found if how != 'gained' or at not in gained], gained


def compare(before: Side, after: Side) -> int:
    """Say all that differs between the folders that both sides have; returns the exit code."""
    both = [name for name in before.made if name in after.made]
    folders = tuple(f'{name}/' for name in both)
    names = sorted(n for n in {*before.files, *after.files} if n.startswith(folders))
    count = {kind: Counter() for kind in [*dict.fromkeys(KINDS.values()), 'texts']}
    gained = Counter()
    for name in names:
        lines, more = differences(name, before, after)
        for line in lines:
            print(f'{kind_of(name)}: {name} {line}')
        count[kind_of(name)]['differ' if lines else 'same'] += 1
        gained.update({re.sub(r'\[\d+\]', '[]', at): 1 for at in more})
    if gained:
        print('gained:', ', '.join(f'{at} ({n} files)' for at, n in sorted(gained.items())))
    if left := sorted({*before.made, *after.made} - {*both}):
        print('not compared, as one side lacks them:', ', '.join(left))
    said = {kind: ', '.join(f'{n} {how}' for how, n in c.items()) for kind, c in count.items()}
    print('; '.join(f'{kind} {words}' for kind, words in said.items() if words) or 'nothing')
    return 1 if not names or any(c['differ'] for c in count.values()) else 0


def make(call: Callable[..., None], at: Path, stages: Sequence[str]) -> list[str]:
    """Make everything of some stages in the folder ``at``; returns the folders made."""
    chosen = [folder for stage in stages for folder in STAGES[stage]]
    if stages != ['pretrain']:
        call(*SIMULATE, *HEADS)
        call(*APP, 'bids', 'out', 'participant', *ALIKE)
        shutil.copytree(at / 'out', at / 'first')
    if 'group' in stages:
        call(*APP, 'bids', 'out', 'group', '--steps', '8', *ALIKE)
        call(*APP, 'bids', 'out', 'participant', *ALIKE)
    if 'pretrain' in stages:
        call(*APP, '-', 'pretrain', 'pretrain', '--steps', '4', *ALIKE)
    if {'participant', 'pretrain'} <= {*stages}:
        shutil.copytree(at / 'first', at / 'auxiliary')
        call(
            *APP, 'bids', 'auxiliary', 'pretrain', '--objective', 'restore', '--steps', '2', *ALIKE
        )
    return [folder for folder in chosen if (at / folder).is_dir()]


def measure(checkout: Path, into: Path, stages: Sequence[str], python: str) -> Side:
    """What a checkout makes; written to ``into``, with the files beside it."""
    kept, at = into.with_suffix(''), into.parent.absolute() / 'making'
    if kept.exists() and not into.is_file():
        sys.exit(f'{kept} is there, and no {into.name} beside it that says why; remove it first.')
    env = {**os.environ, 'PYTHONPATH': str(checkout.resolve()), 'OMP_NUM_THREADS': '1',
           'PYTHONDONTWRITEBYTECODE': '1'}  # fmt: skip
    asked = subprocess.check_output([python, *ASK], cwd='/', env=env, text=True)
    version, place = asked.strip().split(' ', 1)
    if Path(place) != checkout.resolve() / 'bidsapp':
        sys.exit(f'{python} takes the code of {place}, not that of {checkout}.')
    try:
        at.mkdir(parents=True)
    except FileExistsError:
        sys.exit(f'{at} is there: another run is using it, or was stopped and left it.')

    def call(*arguments: str) -> None:
        print(f'{checkout}:', *arguments, flush=True)
        with (at / 'console.log').open('ab') as log:
            run = subprocess.run(
                [python, *arguments], cwd=at, env=env, stdout=log, stderr=subprocess.STDOUT
            )
        if run.returncode:
            sys.exit(f'It ended with {run.returncode}: see console.log in {at}, and remove that.')

    made = make(call, at, stages)
    shutil.rmtree(at / 'work')
    side = read(at, str(at), version, made)
    shutil.rmtree(kept, ignore_errors=True)
    at.rename(kept)
    keep(side, into)
    return side._replace(folder=kept)


def keep(side: Side, into: Path) -> None:
    """Write what a side made, for later; its files stand beside that."""
    into.write_text(json.dumps(side._replace(folder=None)._asdict(), indent=1) + '\n')


def side_of(given: Path, name: str, stages: Sequence[str], options: argparse.Namespace) -> Side:
    """A side as it was measured before, or measured now."""
    if not given.is_file():
        return measure(given, options.work / f'{name}.json', stages, options.python)
    side = Side(**json.loads(given.read_text(encoding='utf-8')))
    chosen = [folder for stage in stages for folder in STAGES[stage]]
    made = [folder for folder in side.made if folder in chosen]
    return side._replace(folder=given.with_suffix(''), made=made)


def main() -> int:
    """Measure one side, or compare two."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('sides', nargs='*', type=Path, help='BEFORE and AFTER')
    parser.add_argument('--measure', type=Path, metavar='CHECKOUT')
    parser.add_argument('--into', type=Path, metavar='FILE.json')
    parser.add_argument('--work', type=Path, default=Path('scratch/yardstick'), metavar='DIR')
    parser.add_argument('--only', nargs='+', choices=STAGES, default=list(STAGES))
    parser.add_argument('--python', default=sys.executable, help='absolute')
    options = parser.parse_args()
    stages = [stage for stage in STAGES if stage in options.only]
    if options.measure and options.into and not options.sides:
        measure(options.measure, options.into, stages, options.python)
        return 0
    if options.measure or options.into or len(options.sides) != 2:
        parser.error('give BEFORE and AFTER, or --measure with --into')
    before, after = options.sides
    return compare(
        side_of(before, 'before', stages, options), side_of(after, 'after', stages, options)
    )


if __name__ == '__main__':
    sys.exit(main())
