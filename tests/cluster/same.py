"""Do two output folders hold the same results?

    python tests/cluster/same.py ONE OTHER

Images: the same shape, affine and voxels, because the time of a compressed file is part of it.
Gradient tables, tab-separated tables and weights: the same bytes. Prints how many were compared
and what differs; the exit code is 1 if anything does, or if nothing was compared.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np

KINDS = ('.nii.gz', '.bval', '.bvec', '.tsv', '.safetensors')


def kind_of(path: Path) -> str | None:
    """The ending that says how a file is compared, None if it is not."""
    return next((kind for kind in KINDS if path.name.endswith(kind)), None)


def results(root: Path) -> set[Path]:
    """Visible files below ``root`` that are compared, from there."""
    found = (path.relative_to(root) for path in root.rglob('*') if path.is_file() and kind_of(path))
    return {path for path in found if not any(part.startswith('.') for part in path.parts)}


def same(one: Path, other: Path) -> bool:
    """Whether two files of one name hold the same."""
    if kind_of(one) != '.nii.gz':
        return one.read_bytes() == other.read_bytes()
    first, second = nib.load(one), nib.load(other)
    return np.array_equal(first.affine, second.affine) and np.array_equal(
        np.asarray(first.dataobj), np.asarray(second.dataobj), equal_nan=True
    )


def main(one: Path, other: Path) -> int:
    """Compare, and say it."""
    ours, theirs = results(one), results(other)
    differing = [f'only in one: {path}' for path in sorted(ours ^ theirs)]
    both = sorted(ours & theirs)
    differing += [f'differs: {path}' for path in both if not same(one / path, other / path)]
    counts = Counter(kind_of(path) for path in both)
    print(', '.join(f'{count} {kind}' for kind, count in counts.items()), 'compared')
    for line in differing:
        print(line)
    return 1 if differing or not both else 0


if __name__ == '__main__':
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
