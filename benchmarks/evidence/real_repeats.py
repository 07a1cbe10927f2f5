"""Does the stated uncertainty know the error? Two scans of one head, and scans out of range.

    python benchmarks/evidence/real_repeats.py [--model FOLDER]

sub-prisma was scanned twice, with reversed phase encoding; `participant` has corrected both, each
on its own, onto grids of the same shape and affine. Voxels: brain in both; white matter where the
tensor's FA of both exceeds 0.2. Error: angle between the two directions as written; stated: root
of the sum of squares of the two uncertainties, for both err; both by tenths of what is stated.
Rank correlation over voxels. Beside it the tensor's own angle between the scans in the same voxels.
Out of range: the mean uncertainty in the same voxels when the scan is made worse or wrong.
"""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
from applied import Applied, arguments, attenuation_of, canonical, written
from comparators import tensor
from people import admit
from realscans import DONE, Scan, load_done
from scipy.stats import spearmanr
from scores import degrees, table

from bidsapp.modalities.dwi.physics.gradients import GradientTable
from bidsapp.modalities.dwi.physics.subsets import well_spread

PAIR = ('sub-prisma_dir-AP', 'sub-prisma_dir-PA')


def pair() -> list[Scan]:
    """Both, cropped to one box, with the mask of both."""
    scans = [load_done(name) for name in PAIR]
    shapes = [nib.load(next(DONE.rglob(f'{n}_desc-preproc_dwi.nii.gz'))).affine for n in PAIR]
    if not np.allclose(shapes[0], shapes[1], atol=1e-2):
        raise SystemExit('the two scans are not on the same grid')
    starts = [np.round(np.linalg.inv(scans[0].affine) @ s.affine[:, 3]).astype(int)[:3]
              for s in scans]  # fmt: skip
    low = np.max(starts, 0)
    high = np.min([a + s.mask.shape for a, s in zip(starts, scans, strict=True)], 0)
    cut = [
        s.inside(tuple(slice(int(b - a), int(e - a)) for a, b, e in zip(o, low, high, strict=True)))
        for o, s in zip(starts, scans, strict=True)
    ]
    both = cut[0].mask & cut[1].mask
    return [replace(s, mask=both) for s in cut]


def worse(scan: Scan) -> dict[str, Scan]:
    """The scan, and what it becomes out of range."""
    rng = np.random.default_rng(0)
    level = np.sqrt(attenuation_of(scan)[3]) * np.median(scan.data[..., scan.gtab.b0][scan.mask])
    found = {'as it is': scan}
    for times in (3, 6, 12):
        noise = rng.normal(scale=times * level, size=(2, *scan.data.shape))
        data = np.hypot(scan.data + noise[0], noise[1]).astype(np.float32)
        found[f'noise x {times} added'] = replace(scan, data=data)
    found['6 directions'] = scan.of(well_spread(scan.gtab, 6))
    swapped = scan.gtab.bvecs[:, [1, 2, 0]]
    found['wrong axes (x y z are y z x)'] = replace(
        scan, gtab=GradientTable(swapped, scan.gtab.bvals)
    )
    shuffled = scan.gtab.bvecs.copy()
    weighted = np.flatnonzero(~scan.gtab.b0)
    shuffled[weighted] = shuffled[rng.permutation(weighted)]
    found['gradients shuffled'] = replace(scan, gtab=GradientTable(shuffled, scan.gtab.bvals))
    large = np.kron(scan.data[::2, ::2, ::2], np.ones((2, 2, 2, 1), np.float32))
    x, y, z, _ = scan.data.shape
    found['every second voxel only'] = replace(scan, data=large[:x, :y, :z])
    return found


def main() -> None:
    """Both tables."""
    applied = Applied(arguments(__doc__).model)
    print(f'Network: {applied.name}\n')
    admit(applied.card, *PAIR)
    scans = pair()
    fits = [tensor(s, s.mask) for s in scans]
    white = scans[0].mask & (fits[0].fa > 0.2) & (fits[1].fa > 0.2)
    samples = [canonical(s) for s in scans]
    outputs = [applied(sample) for sample in samples]
    each = zip(scans, samples, outputs, strict=True)
    vectors, doubts = zip(*(written(s, i, o, white) for s, i, o in each), strict=True)
    error = degrees(*vectors)
    stated = np.sqrt(np.sum(np.square(doubts), 0))  # both err
    plain = degrees(*(f.direction[white] for f in fits))
    rows = []
    for k, here in enumerate(np.array_split(np.argsort(stated, kind='stable'), 10)):
        rms = float(np.sqrt(np.square(error[here]).mean()))
        rows.append([k + 1, stated[here].mean(), np.median(error[here]), rms,
                     np.median(plain[here])])  # fmt: skip
    print(f'{PAIR[0]} against {PAIR[1]}: {white.sum()} voxels')
    table(['tenth', 'stated', 'median error', 'rms error', "tensor's median"], rows)
    rising = bool(np.all(np.diff([row[2] for row in rows]) > 0))
    rank = spearmanr(stated, error).statistic
    print(
        f'  median error rises from tenth to tenth: {"yes" if rising else "NO"}; rank r {rank:.3f}'
    )
    print(f'  share of voxels with a stated uncertainty below 1 degree: {(stated < 1).mean():.3f}')
    print(f'  medians over all: network {np.median(error):.2f}°, tensor {np.median(plain):.2f}°\n')
    rows, first = [], 0.0
    for name, scan in worse(scans[0]).items():
        sample = canonical(scan)
        doubt = float(written(scan, sample, applied(sample), white)[1].mean())
        first = first or doubt
        rows.append([name, doubt, doubt / first])
    print(f'Out of range: {PAIR[0]}, mean uncertainty of direction (54.7: none known)')
    table(['scan', 'degrees', 'ratio'], rows)


if __name__ == '__main__':
    main()
