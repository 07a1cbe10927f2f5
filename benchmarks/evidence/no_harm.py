"""Changes implanted in real scans come back, and what is clean stays as it is.

    python benchmarks/evidence/no_harm.py [--model FOLDER] [--data BIDS_FOLDER …] [--scans NAME …]

Signals are mixed physically in a scan, corrected as a whole as for `real_directions.py`, and noise
is put back so that its level stays: lesion: half of the signal becomes isotropic tissue (0.9
µm²/ms) in a ball of 3 voxels' radius in white matter; oedema: free water (3 µm²/ms, twice as
bright) for 40 %; one-sided: 40 % isotropic tissue in all white matter of the left hemisphere above
the ventricles' floor. Three places each for the first two. Kept: mean change inside seen by the
network over that seen by the tensor of the same volumes, 0.9 to 1.15 wanted. FA and MD are of the
restored volumes, fitted to the data as `participant` writes them; 'tensor of input' is that of the
canonical input without a correction. Spread: the farthest whole number of voxels outside the ball
where the mean change is still above 10 % of that inside, less the same of the tensor. Tissue and
uncertainty: mean change inside, for information.

Clean, of what `participant` has preprocessed, if that is there: restored less input in the
harmonics' signal over the directions of the scan, root mean square in the brain, over the noise of
S/S0, in scans that MP-PCA has denoised or of large voxels.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from applied import (
    Applied,
    attenuation_of,
    canonical,
    parser_of,
    restored_signal,
    written,
)
from comparators import tensor
from people import add_choice, announced, chosen, refuse_seen
from realscans import DONE, Scan, load_done, whole
from scipy.ndimage import binary_erosion, distance_transform_edt, label
from scores import table

from bidsapp.modalities.dwi.physics import qspace
from bidsapp.modalities.dwi.physics.diffusion import fit_tensor
from bidsapp.modalities.dwi.physics.gradients import in_grid
from bidsapp.modalities.dwi.physics.restored import attenuation_at, slots_of_volumes

SCANS = ('sub-achieva_dwi', 'sub-prisma_dir-AP_dwi')
CLEAN = ('sub-achieva', 'sub-ds114', 'sub-prisma_dir-AP', 'sub-prisma_dir-PA', 'sub-uih_dir-AP',
         'sub-galan_acq-all20d')  # fmt: skip
RADIUS, PLACES = 3.0, 3
#: Diffusivity (µm²/ms), brightness against the voxel's own S0, share of the signal at b = 0.
LESION, OEDEMA, LOSS = (0.9, 1.0, 0.5), (3.0, 2.0, 0.4), (0.9, 1.0, 0.4)
WANTED, STILL = (0.9, 1.15), 0.1


def implanted(scan: Scan, where: np.ndarray, kind: tuple[float, float, float]) -> Scan:
    """``scan`` with some of the signal in ``where`` replaced."""
    diffusivity, brightness, share = kind
    rng = np.random.default_rng(0)
    s0 = scan.data[where][:, scan.gtab.b0].mean(-1, keepdims=True)
    other = s0 * brightness * np.exp(-scan.gtab.bvals * 1e-3 * diffusivity)
    level = np.sqrt(attenuation_of(scan)[3]) * np.median(s0)
    lost = np.sqrt(1 - (1 - share) ** 2) * level
    mixed = (1 - share) * scan.data[where] + share * other
    data = scan.data.copy()
    data[where] = np.hypot(*(x for x in (
        mixed + rng.normal(scale=lost, size=mixed.shape), rng.normal(scale=lost, size=mixed.shape)
    )))  # fmt: skip
    return replace(scan, data=data)


def maps_of(applied: Applied, scan: Scan) -> dict[str, dict[str, np.ndarray]]:
    """'tensor', 'tensor of input', 'network' → FA, MD (µm²/ms) and, of the network, others."""
    raw = tensor(scan, scan.mask)
    sample = canonical(scan)
    image, output = sample.image, applied(sample)
    found = {'tensor': {'FA': raw.fa, 'MD': raw.md * 1e3}}
    said = restored_signal(scan, image, output)[0]
    for name, signal in (('tensor of input', input_signal(scan, image)), ('network', said)):
        maps = fit_tensor(signal, scan.gtab)
        found[name] = {}
        for key, values in (('FA', maps.fa), ('MD', maps.md * 1e3)):
            found[name][key] = np.zeros(scan.mask.shape)
            found[name][key][scan.mask] = values
    doubt = np.zeros(scan.mask.shape)
    doubt[scan.mask] = written(scan, sample, output, scan.mask)[1]
    found['network'] |= {
        'uncertainty': doubt,
        'share of WM': output['tissue'].softmax(0)[1].numpy(),
    }
    return found


def input_signal(scan: Scan, image: torch.Tensor) -> np.ndarray:
    """(N, V) volumes in the mask that the canonical input stands for, without a correction."""
    local = in_grid(scan.gtab, scan.affine)
    signal = np.moveaxis(scan.data[scan.mask], -1, 0).copy()
    harmonics = qspace.input_harmonics(image)[:, torch.from_numpy(scan.mask)].numpy()
    s0 = signal[local.b0].mean(0)
    signal[slots_of_volumes(local) >= 0] = s0 * attenuation_at(harmonics, local)
    return signal


def change(applied: Applied, scan: Scan, where: np.ndarray, kind: tuple[float, float, float],
           before: dict[str, dict[str, np.ndarray]]) -> list[list[object]]:  # fmt: skip
    """Rows: map, tensor's change, network's, share kept, spread."""
    after = maps_of(applied, implanted(scan, where, kind))
    rows: list[list[object]] = []
    for key in ('FA', 'MD'):
        gaps = {m: after[m][key] - before[m][key] for m in after}
        inside = {m: float(gap[where].mean()) for m, gap in gaps.items()}
        far = {m: reached(gap, where, scan.mask) for m, gap in gaps.items()}
        kept = inside['network'] / inside['tensor']
        spread = far['network'] - far['tensor']
        fine = WANTED[0] <= kept <= WANTED[1] and spread <= 1
        rows.append([key, inside['tensor'], inside['tensor of input'], inside['network'], kept,
                     spread, 'reached' if fine else 'NOT reached'])  # fmt: skip
    for key in ('uncertainty', 'share of WM'):
        gap = after['network'][key] - before['network'][key]
        rows.append([key, np.nan, np.nan, float(gap[where].mean()), np.nan,
                     reached(gap, where, scan.mask), '-'])  # fmt: skip
    return rows


def reached(gap: np.ndarray, where: np.ndarray, mask: np.ndarray) -> int:
    """Voxels outside ``where`` up to which the mean change stays above ``STILL`` of that inside."""
    distance = distance_transform_edt(~where)
    inside = gap[where].mean()
    for far in range(1, 8):
        ring = mask & (distance > far - 1) & (distance <= far)
        if not ring.any() or gap[ring].mean() / inside < STILL:
            return far - 1
    return 7


def places(scan: Scan, fa: np.ndarray) -> list[np.ndarray]:
    """Balls in the thickest white matter, far from each other."""
    white = scan.mask & (fa > 0.3)
    depth = distance_transform_edt(white)
    voxels = np.indices(scan.mask.shape)
    chosen: list[np.ndarray] = []
    for _ in range(PLACES):
        centre = np.unravel_index(depth.argmax(), depth.shape)
        away = np.sqrt(sum((v - c) ** 2 for v, c in zip(voxels, centre, strict=True)))
        chosen.append((away <= RADIUS) & scan.mask)
        depth = np.where(away < 12, 0, depth)
    return chosen


def one_side(scan: Scan, fa: np.ndarray) -> np.ndarray:
    """White matter of the left hemisphere (low first index in RAS), upper half of the brain."""
    middle = int(np.median(np.argwhere(scan.mask)[:, 0]))
    floor = int(np.median(np.argwhere(scan.mask)[:, 2]))
    white = scan.mask & (fa > 0.25)
    white[middle - 2 :] = False
    white[:, :, :floor] = False
    parts, _ = label(white)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return np.asarray(parts == sizes.argmax())


def clean(applied: Applied) -> None:
    """What is changed of scans with little noise."""
    rows = []
    for name in CLEAN:
        scan = load_done(name)
        sample = canonical(scan)
        image, output = sample.image, applied(sample)
        use = slots_of_volumes(in_grid(scan.gtab, scan.affine)) >= 0
        gap = restored_signal(scan, image, output)[0] - input_signal(scan, image)
        core = binary_erosion(scan.mask, iterations=2)[scan.mask]
        _, s0, _, variance = attenuation_of(scan)
        noise = float(np.sqrt(variance) * np.median(s0[scan.mask]))
        rms = [float(np.sqrt(np.square(gap[use][:, w]).mean())) for w in (np.ones_like(core), core)]
        rows.append([name, float(np.sqrt(variance)), rms[0] / noise, rms[1] / noise,
                     'reached' if rms[0] <= 0.5 * noise else 'NOT reached'])  # fmt: skip
    print('Clean input: rms of restored - input over the noise of S/S0')
    table(['scan', 'noise', 'brain', '2 voxels inside', 'at most 0.5'], rows)


def main() -> None:
    """Each scan."""
    parser = parser_of(__doc__)
    add_choice(parser, SCANS)
    given = parser.parse_args()
    applied = Applied(given.model)
    print(f'Network: {applied.name}\n')
    header = ['map', 'tensor', 'tensor of input', 'network', 'kept', 'spread', 'verdict']
    paths, everyone = chosen(given)
    for path in paths:
        refuse_seen(applied.card, path, everyone)
        name, scan = path.name.split('.')[0], whole(path)
        print(announced(path))
        before = maps_of(applied, scan)
        fa = before['tensor']['FA']
        for kind, what in ((LESION, 'lesion'), (OEDEMA, 'oedema')):
            everything = [change(applied, scan, w, kind, before) for w in places(scan, fa)]
            for k, rows in enumerate(everything):
                print(f'{name}: {what}, place {k + 1}')
                table(header, rows)
        print(f'{name}: one-sided loss of FA')
        table(header, change(applied, scan, one_side(scan, fa), LOSS, before))
    if DONE.is_dir():
        clean(applied)


if __name__ == '__main__':
    main()
