"""Main fibre directions from a few volumes of a real scan, against those of its other volumes.

    python benchmarks/evidence/real_directions.py [--model FOLDER]

Raw volumes are divided first (`realscans.divisions`): well-conditioned directions in, all others as
reference, each part corrected for motion on its own, the b = 0 volumes shared. Reference: tensor of
the other volumes, as they are. White matter: where both parts see brain and the reference, smoothed
by 1.5 voxels so that noise is no anisotropy, has FA > 0.25 and MD < 1.5e-3 mm²/s; core: what is
left of it one voxel (6 neighbours) inside; edge: the rest. Median and 90th percentile of the angle
in degrees over the choices of directions. Covered: share of white matter with an answer. Reach:
noise, independent from voxel to voxel and as strong as there is already, is added to the input; the
FWHM of the blur after which neighbours' answers change as much alike as after this method
(`scores.coherence`), in the core; 6 mm is the end of that scale. Ratio: network over the best
comparator (the lowest median among those that cover 95 %), 95 % interval over blocks of 15 mm.
Deconvolution needs 25 directions and none of these inputs has them.

The network stands twice: by the first fibre that it names, which is another thing than the axis
of a tensor where fibres cross, and by the tensor of the volumes that it restores, which is the same
thing as the reference. The ratio is that of the second; that of the first is printed beside it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from applied import (
    Applied,
    arguments,
    attenuation_of,
    canonical,
    named,
)
from comparators import BLURS, blurred, directions, tensor
from realscans import CHOICES, KEPT, RAW, Divided, divided
from scipy.ndimage import binary_erosion
from scores import blocks, coherence, degrees, histogram, quantile, ratio_interval, six, table

from bidsapp.physics.geometry import voxel_sizes

#: Scan → numbers of directions in.
ROWS: dict[str, tuple[int, ...]] = {
    'sub-achieva/dwi/sub-achieva_dwi': (12, 6),
    'sub-prisma/dwi/sub-prisma_dir-AP_dwi': (12, 6),
    'sub-uih/dwi/sub-uih_dir-AP_dwi': (6,),
    'sub-galan/dwi/sub-galan_acq-all20d_dwi': (6,),
    'sub-galan/dwi/sub-galan_acq-ortho_dwi': (6,),
    'sub-ds114/dwi/sub-ds114_dwi': (6,),
}
#: Share of white matter that a comparator must answer in to count as the best.
ENOUGH = 0.95
OURS, STRONGEST = 'network: restored + tensor', 'network: first fibre'
#: Network over the best comparator, at most.
WANTED = 0.95


def regions(parts: Divided) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """White matter (X, Y, Z), which of its voxels are core, and reference directions there."""
    both = parts.scan.mask & parts.reference.mask
    width = 1.5 * float(np.mean(voxel_sizes(parts.scan.affine)))
    maps = tensor(blurred(replace(parts.reference, mask=both), width), both)
    white = both & (maps.fa > 0.25) & (maps.md < 1.5e-3)
    return white, binary_erosion(white)[white], tensor(parts.reference, white).direction[white]


def noisier(parts: Divided) -> Divided:
    """The input with independent noise added, as strong as what it holds already."""
    _, s0, _, variance = attenuation_of(parts.scan)
    rng = np.random.default_rng(0)
    level = np.sqrt(variance) * np.median(s0[parts.scan.mask])
    noise = rng.normal(scale=level, size=parts.scan.data.shape).astype(np.float32)
    noise[..., parts.scan.gtab.b0] = 0
    data = np.maximum(parts.scan.data + noise, 0)
    fewer = None if parts.denoised is None else np.maximum(parts.denoised + noise, 0)
    return Divided(replace(parts.scan, data=data), fewer, parts.reference)


def ours(applied: Applied, parts: Divided, white: np.ndarray) -> dict[str, np.ndarray]:
    """(V, 3) world axes by both ways to ask the network."""
    sample = canonical(parts.scan)
    outputs = applied(sample)
    first, axes = named(parts.scan, sample.image, outputs, white)
    return {STRONGEST: first, OURS: axes}


def comparators_of(parts: Divided, name: str, white: np.ndarray) -> dict[str, np.ndarray]:
    """`comparators.directions`, kept from run to run."""
    kept = KEPT / f'{name}-comparators.npz'
    if not kept.is_file():
        found = directions(parts.scan, parts.denoised, white)
        np.savez(kept, **{key: a.astype(np.float32) for key, a in found.items()})
    with np.load(kept) as arrays:
        return dict(arrays)


def reaches(
    parts: Divided,
    name: str,
    white: np.ndarray,
    core: np.ndarray,
    before: dict[str, np.ndarray],
    applied: Applied,
) -> dict[str, float]:
    """Method → FWHM in mm of the blur whose answers react to noise as coherently as its own."""
    rough = noisier(parts)
    after = comparators_of(rough, f'{name}-noisier', white) | ours(applied, rough, white)
    inner = np.zeros_like(white)
    inner[white] = core
    alike = {m: coherence((six(after[m]) - six(before[m]))[core], inner) for m in after}
    known = [('tensor', 0.0), *((f'blur {fwhm:g} mm + tensor', fwhm) for fwhm in BLURS)]
    scale = np.maximum.accumulate([alike[m] for m, _ in known])
    return {m: float(np.interp(c, scale, [fwhm for _, fwhm in known])) for m, c in alike.items()}


def one_row(applied: Applied, path: str, n: int) -> None:
    """Print the table of one scan with ``n`` directions in."""
    errors: dict[str, list[np.ndarray]] = {}
    places: list[tuple[np.ndarray, np.ndarray]] = []
    reached: dict[str, float] = {}
    label = path.rpartition('/')[2].removesuffix('_dwi')
    for choice in range(CHOICES):
        parts = divided(RAW / f'{path}.nii.gz', n, choice)
        if parts is None:
            break
        white, core, truth = regions(parts)
        name = f'{label}-{n}-{choice}'
        found = comparators_of(parts, name, white)
        found |= ours(applied, parts, white)
        reached = reached or reaches(parts, name, white, core, found, applied)
        places.append((core, blocks(white, parts.scan.affine)))
        for method, vectors in found.items():
            errors.setdefault(method, []).append(degrees(vectors, truth))
    if not places:
        print(f'{label}, {n} in: no division with two well-conditioned parts\n')
        return
    core, block = (np.concatenate(each) for each in zip(*places, strict=True))
    sizes = f'{core.sum() // len(places)} voxels of core, {(~core).sum() // len(places)} of edge'
    print(f'{label}: {n} directions in, {len(places)} choices, {sizes}')
    _report({m: np.concatenate(each) for m, each in errors.items()}, core, block, reached)


def _report(
    errors: dict[str, np.ndarray], core: np.ndarray, block: np.ndarray, reached: dict[str, float]
) -> None:
    """The table, and the ratio in each region; ``errors`` (V,) degrees of each method."""
    regions = {'core': core, 'edge': ~core}
    counts = {
        r: {m: histogram(e[where], block[where]) for m, e in errors.items()}
        for r, where in regions.items()
    }
    median = {r: {m: float(quantile(c.sum(0), 0.5)) for m, c in counts[r].items()} for r in counts}
    upper = {r: {m: float(quantile(c.sum(0), 0.9)) for m, c in counts[r].items()} for r in counts}
    covered = {m: float(np.isfinite(e).mean()) for m, e in errors.items()}
    table(
        ['method', 'core median', 'core 90 %', 'edge median', 'edge 90 %', 'covered', 'reach mm'],
        [
            [m, *(each[r][m] for r in regions for each in (median, upper)), covered[m], reached[m]]
            for m in errors
        ],
    )
    able = [m for m in errors if m not in (OURS, STRONGEST) and covered[m] >= ENOUGH]
    for region in regions:
        best = min(able, key=median[region].__getitem__)
        ratio = ratio_interval(counts[region][OURS], counts[region][best])
        verdict = 'reached' if ratio[0] <= WANTED else 'NOT reached'
        print(
            f'  {region}: network / {best} = {ratio[0]:.3f} ({ratio[1]:.3f} to {ratio[2]:.3f}); '
            f'at most {WANTED} wanted: {verdict}'
        )
    print(flush=True)


def main() -> None:
    """All scans."""
    applied = Applied(arguments(__doc__).model)
    print(f'Network: {applied.name}\n')
    for path, numbers in ROWS.items():
        for n in numbers:
            one_row(applied, path, n)


if __name__ == '__main__':
    main()
