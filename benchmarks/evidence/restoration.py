"""Restoration on simulated truth: the network against MP-PCA and Patch2Self.

    python benchmarks/evidence/restoration.py [--model FOLDER]

Each method's volumes, or the network's correction, as harmonics of the same canonical map (that of
the noisy scan: the same table, the same noise variance), against those of the same scan without
noise and artefacts through that map, and against those that many noiseless directions would give
(the target that the network learns). Root mean square over harmonics (in the prior's standard
deviations) in the brain and in white matter; FA: mean absolute error of the tensor of the signal
that the harmonics stand for, 60 directions, in white matter. Beside what the network says, the
volumes as `participant` writes them, which take level and strength from the data; there MP-PCA
comes first.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from applied import (
    Applied,
    arguments,
    attenuation_of,
    canonical,
    restored,
    restored_signal,
    shell_signal,
)
from comparators import blurred
from realscans import KEPT, Scan
from scores import table
from simheads import without_faults
from simulated import LEFT, case_of

from bidsapp.modalities.dwi.physics import qspace
from bidsapp.modalities.dwi.physics.diffusion import fit_tensor
from bidsapp.modalities.dwi.physics.gradients import GradientTable
from bidsapp.modalities.dwi.physics.harmonics import fibonacci_hemisphere
from bidsapp.modalities.dwi.simulate.protocol import Protocol
from bidsapp.physics import denoising

if TYPE_CHECKING:
    from collections.abc import Mapping

    from simheads import Case

SCHEMES = {
    '30 at b 1000, SNR 20': Protocol(shells=((1000.0, 30),), n_b0=2, snr=20.0, **LEFT),
    '60 at b 1000, SNR 20': Protocol(shells=((1000.0, 60),), n_b0=2, snr=20.0, **LEFT),
    '30 at b 2000, SNR 20': Protocol(shells=((2000.0, 30),), n_b0=2, snr=20.0, **LEFT),
}


def patch2self(scan: Scan) -> np.ndarray:
    """DIPY's, with its defaults."""
    from dipy.denoise.patch2self import patch2self as dipys

    return np.asarray(dipys(scan.data, scan.gtab.bvals, b0_threshold=50, verbose=False))


def comparators(name: str, case: Case) -> dict[str, Scan]:
    """Method → the scan after it; kept."""
    kept = KEPT / f'restoration-{name}.npz'
    if not kept.is_file():
        found = {
            'MP-PCA': denoising.denoise(case.scan.data).data,
            'Patch2Self': patch2self(case.scan),
            'blur 3 mm': blurred(case.scan, 3.0).data,
        }
        np.savez(kept, **{key: a.astype(np.float32) for key, a in found.items()})
    with np.load(kept) as arrays:
        return {key: replace(case.scan, data=np.maximum(arrays[key], 0)) for key in arrays.files}


def filled(image: torch.Tensor, where: np.ndarray) -> np.ndarray:
    """(K, V) harmonics of the filled slots."""
    firsts = [slot * qspace.SLOT_CHANNELS for slot in qspace.slots_in_use(image)]
    inside = torch.from_numpy(where)
    return np.concatenate([image[f : f + qspace.N_SH, inside].numpy() for f in firsts])


def anisotropy(image: torch.Tensor, where: np.ndarray) -> np.ndarray:
    """(V,) FA of what the harmonics of the first filled slot stand for."""
    slot = qspace.slots_in_use(image)[0]
    along = fibonacci_hemisphere(60)
    signal = shell_signal(image, slot, where, along)
    first = slot * qspace.SLOT_CHANNELS + qspace.N_SH + 2
    b = 1000 * float(image[first, torch.from_numpy(where)].median().exp())
    table_ = GradientTable(np.vstack([np.zeros(3), along]), np.append(0.0, np.full(60, b)))
    return fit_tensor(np.vstack([np.ones(signal.shape[1]), signal]), table_).fa


def written(scan: Scan, image: torch.Tensor, outputs: Mapping[str, torch.Tensor]) -> Scan:
    """The scan with the volumes that `participant` would write, of what the network says."""
    data = scan.data.copy()
    data[scan.mask] = restored_signal(scan, image, outputs)[0].T
    return replace(scan, data=data)


def main() -> None:
    """A table a scheme."""
    applied = Applied(arguments(__doc__).model)
    print(f'Network: {applied.name}\n')
    for label, protocol in SCHEMES.items():
        case, clean = case_of(protocol), case_of(without_faults(protocol)).scan
        inside, white = case.scan.mask, case.scan.mask & (case.tissue[1] >= 0.9)
        variance = attenuation_of(case.scan)[3]
        sample = canonical(case.scan, variance)
        image = sample.image
        truth = canonical(clean, variance).image
        endless = canonical(clean, 1e-5).image
        images = {'noisy': image}
        others = comparators(label.replace(' ', '-'), case)
        for method, scan in others.items():
            images[method] = canonical(scan, variance).image
        outputs = applied(sample)
        images['network'] = restored(image, outputs)
        images['volumes as written'] = canonical(written(case.scan, image, outputs), variance).image
        denoised = others['MP-PCA']
        own = canonical(denoised)
        then = written(denoised, own.image, applied(own))
        images['MP-PCA, then that'] = canonical(then, variance).image
        fa = anisotropy(endless, white)
        rows = []
        for method, one in images.items():
            errors = [
                float(np.sqrt(np.square(filled(one, w) - filled(t, w)).mean()))
                for t in (truth, endless) for w in (inside, white)
            ]  # fmt: skip
            rows.append([method, *errors, float(np.abs(anisotropy(one, white) - fa).mean())])
        print(f'Restoration, {label}')
        table(['method', 'same map: brain', 'white', 'noiseless map: brain', 'white', 'FA'], rows)
        (network,) = (row for row in rows if row[0] == 'network')
        best = [min(row[k] for row in rows if row[0] in others) for k in (1, 3)]
        for place, k, least in (('same map', 1, best[0]), ('noiseless map', 3, best[1])):
            ratio = network[k] / least
            print(f'  {place}, brain: network / best = {ratio:.3f}: '
                  f'{"reached" if ratio < 1 else "NOT reached"}')  # fmt: skip
        print()


if __name__ == '__main__':
    main()
