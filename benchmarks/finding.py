"""How long it takes to find the runs of a dataset, by its participants.

    python benchmarks/finding.py [PARTICIPANTS ...] [--work DIR]

Writes datasets of 500, 2000 and 5000 people, each with a dMRI run and a T1w image of a few bytes,
and looks for their runs as `participant` and `transfermri-check` do. Printed are the seconds, those
of listing the same folders and doing nothing else (`os.scandir`, what no search can fall below),
and how often more the largest takes than the smallest, which is to be 1.2 times as many as it has
people at most: 12 for 5000 and 500. Seconds are the processor's, which another's load does not
distort, the better of two after one that is not counted: the tree is in memory and on no disk.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np

from bidsapp.bids.dataset import select, subjects_of
from bidsapp.bids.folders import SETTLED
from bidsapp.bids.search import find_runs

if TYPE_CHECKING:
    from collections.abc import Callable

PEOPLE = (500, 2000, 5000)
#: Times the ratio of people.
BOUND = 1.2
SIDECAR = {'PhaseEncodingDirection': 'j-', 'TotalReadoutTime': 0.05}


def write_dataset(root: Path, people: int) -> None:
    """A dataset of so many participants in which only names and headers mean something."""
    root.mkdir(parents=True)
    description = {'Name': 'Benchmark', 'BIDSVersion': '1.10.0'}
    (root / 'dataset_description.json').write_text(json.dumps(description))
    images = {
        kind: nib.Nifti1Image(np.zeros(shape, np.int16), np.diag([-2.0, 2, 2, 1])).to_bytes()
        for kind, shape in (('dwi', (4, 4, 4, 7)), ('T1w', (4, 4, 4)))
    }
    tables = {'bval': '0' + ' 1000' * 6, 'bvec': '0 1 0 0 1 1 0\n0 0 1 0 1 0 1\n0 0 0 1 0 1 1\n'}
    for number in range(people):
        person = f'sub-{number:05d}'
        for folder, kind in (('dwi', 'dwi'), ('anat', 'T1w')):
            (stem := root / person / folder / f'{person}_{kind}').parent.mkdir(parents=True)
            stem.with_suffix('.nii').write_bytes(images[kind])
            stem.with_suffix('.json').write_text(json.dumps(SIDECAR if kind == 'dwi' else {}))
        for kind, text in tables.items():
            (root / person / 'dwi' / f'{person}_dwi.{kind}').write_text(text)


def scan(folder: Path | str) -> int:
    """How many files lie below: what every search does at least."""
    with os.scandir(folder) as entries:
        return sum(scan(entry.path) if entry.is_dir() else 1 for entry in entries)


def search(root: Path) -> int:
    """How many runs are found, none of them with a problem."""
    runs = find_runs(select(root, subjects_of(root)), ['dwi'], {})
    assert not [run for run in runs if run.problem]
    return len(runs)


def seconds(what: Callable[[Path], int], root: Path, expected: int) -> float:
    """Of the processor, the better of two."""
    took = []
    for _ in range(3):
        start = time.process_time()
        assert what(root) == expected
        took.append(time.process_time() - start)
    return min(took[1:])


def main(people: list[int], work: Path) -> int:
    """Measure; 1 if the promise is broken."""
    for number in people:
        if not (work / str(number)).is_dir():
            write_dataset(work / str(number), number)
    time.sleep(SETTLED / 1e9)  # a folder that has changed just now is listed each time
    took = {}
    for number in people:
        root = work / str(number)
        took[number] = found, listed = seconds(search, root, number), scan_seconds(root, number)
        print(
            f'{number} people: found in {found:.2f} s ({1000 * found / number:.2f} ms each), '
            f'listed in {listed:.3f} s: {found / listed:.0f} times as long',
            flush=True,
        )
    least, most = min(people), max(people)
    ratio, bound = took[most][0] / took[least][0], BOUND * most / least
    listing = took[most][1] / took[least][1]
    print(f'{most}/{least} people: {ratio:.1f} (at most {bound:g}); listed: {listing:.1f}')
    return int(ratio > bound)


def scan_seconds(root: Path, people: int) -> float:
    """Those of listing every folder of a dataset of so many people."""
    return seconds(scan, root, 6 * people + 1)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('people', nargs='*', type=int, metavar='PARTICIPANTS', default=PEOPLE)
    parser.add_argument('--work', type=Path, metavar='DIR', help='kept, its datasets used again')
    options = parser.parse_args()
    if options.work:
        sys.exit(main([*options.people], options.work.absolute()))
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(main([*options.people], Path(temporary)))
