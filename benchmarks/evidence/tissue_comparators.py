"""Tissue without the network: what a user has, or could fit, for a dMRI scan without a T1w.

Each gives shares (3, V) of grey matter, white matter and fluid in the mask. What is fitted is
fitted to the network's own training draws (`draws`).
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from draws import brightness, drawn, squared, taught, tensors
from realscans import KEPT, Scan

from bidsapp import registry
from bidsapp.core import Plan, Sample
from bidsapp.learn.fit import fit
from bidsapp.learn.inputs import only_voxels
from bidsapp.learn.joint import joint
from bidsapp.learn.patches import PatchSource
from bidsapp.learn.predict import predict
from bidsapp.modalities.dwi.learn.classical import best_thresholds, thresholded
from bidsapp.physics.brain import to_ants
from bidsapp.physics.geometry import voxel_sizes
from bidsapp.physics.template import template_maps

if TYPE_CHECKING:
    from collections.abc import Callable

    from foreign import Scheme

#: mm, of the template's maps.
RESOLUTION = 2.0


@cache
def regressions(scheme: Scheme, people_: int) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Method → features (V, F) to shares (3, V), fitted to the training draws."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    known = taught(scheme, people_)
    x, y = known['features'], known['tissue'].argmax(1)
    logistic = make_pipeline(StandardScaler(), LogisticRegression(C=10.0, max_iter=300))
    logistic.fit(squared(x), y)
    trees = HistGradientBoostingClassifier(max_iter=150, random_state=0).fit(x, y)
    return {
        'logistic regression, squares': lambda own: logistic.predict_proba(squared(own)).T,
        'boosted trees': lambda own: trees.predict_proba(own).T,
    }


@cache
def thresholds(scheme: Scheme, people_: int) -> tuple[float, float]:
    """Of MD and FA, fitted to the training draws."""
    known = taught(scheme, people_)
    fa, md = known['features'][:, 0], known['features'][:, 1]
    return best_thresholds(md, fa, known['tissue'].argmax(1).astype(np.int64) + 1)


def by_thresholds(fa: np.ndarray, md: np.ndarray, pair: tuple[float, float]) -> np.ndarray:
    """(3, V)."""
    return np.asarray(np.eye(3)[thresholded(md, fa, *pair) - 1].T)


def maps_of(scan: Scan) -> list[np.ndarray]:
    """ln S0 (z-scored), FA and MD (X, Y, Z), zero outside the mask."""
    found = []
    for values in (brightness(scan, scan.mask), *tensors(scan, scan.mask)[:2]):
        volume = np.zeros(scan.mask.shape)
        volume[scan.mask] = values
        found.append(volume)
    return found


def atropos(scan: Scan) -> np.ndarray:
    """(3, V) posteriors of Atropos; fluid diffuses most, white matter is the more anisotropic.

    It begins from K-means of all three maps: its own looks at the first alone, and fails where one
    of its classes is empty.
    """
    import ants
    from sklearn.cluster import KMeans

    spacing = voxel_sizes(scan.affine).tolist()
    _, fa, md = maps = maps_of(scan)
    seen = np.column_stack([volume[scan.mask] for volume in maps])
    seen = (seen - seen.mean(0)) / np.maximum(seen.std(0), 1e-6)
    first = KMeans(3, n_init=4, random_state=0).fit_predict(seen)

    def plain(volume: np.ndarray) -> Any:
        return ants.from_numpy(np.ascontiguousarray(volume, np.float32), spacing=spacing)

    def start(k: int) -> Any:
        volume = np.zeros(scan.mask.shape)
        volume[scan.mask] = np.where(first == k, 0.8, 0.1)
        return plain(volume)

    found = ants.atropos(
        a=[plain(volume) for volume in maps], x=plain(scan.mask), i=[start(k) for k in range(3)],
        m='[0.2,1x1x1]', c='[10,0]', priorweight=0.0,
    )  # fmt: skip
    parts = np.stack([part.numpy()[scan.mask] for part in found['probabilityimages']])
    weight = np.maximum(parts.sum(1), 1e-6)
    fluid = int(((parts * md[scan.mask]).sum(1) / weight).argmax())
    anisotropy = (parts * fa[scan.mask]).sum(1) / weight
    anisotropy[fluid] = -1
    white = int(anisotropy.argmax())
    (grey,) = {0, 1, 2} - {fluid, white}
    return np.asarray(parts[[grey, white, fluid]])


def template_prior(scan: Scan) -> np.ndarray:
    """(3, V) the template's maps, carried over by FA on white matter: affine, then SyN."""
    import ants

    _, *maps, affine = template_maps(RESOLUTION)
    fixed = to_ants(maps_of(scan)[1], scan.affine)
    # Of the template only what the slab may hold, or the affine part drifts away.
    corners = np.argwhere(scan.mask) @ scan.affine[2, :3] + scan.affine[2, 3]
    low, high = ((z - affine[2, 3]) / RESOLUTION for z in (corners.min() - 8, corners.max() + 8))
    kept = slice(max(int(low), 0), int(high) + 1)
    there = affine.copy()
    there[2, 3] += kept.start * RESOLUTION
    grey, white, fluid = (to_ants(volume[:, :, kept], there) for volume in maps)
    with TemporaryDirectory() as folder:
        warps = ants.registration(
            fixed, white, 'SyN', mask=to_ants(scan.mask, scan.affine), initial_transform='Identity',
            reg_iterations=(30, 20, 0), random_seed=1, outprefix=f'{folder}/syn',
        )['fwdtransforms']  # fmt: skip
        carried = [
            ants.apply_transforms(fixed, part, warps).numpy()[scan.mask]
            for part in (grey, white, fluid)
        ]
    # Where no map reaches, at the surface, there is fluid.
    carried[2] = np.maximum(carried[2], 1 - carried[0] - carried[1])
    return np.stack(carried)


def sample_of(scan: Scan, tissue: np.ndarray | None = None) -> Sample:
    """FA, MD, ln S0 and the mask, as a plain network sees them."""
    bright, fa, md = (torch.from_numpy(volume).float() for volume in maps_of(scan))
    mask = torch.from_numpy(scan.mask.copy())
    image = torch.stack([fa, md, bright, mask.float()])
    target = None if tissue is None else torch.from_numpy(tissue).float() * mask
    return Sample(image, mask[None], scan.affine, target)


@cache
def plain_unet(scheme: Scheme, steps: int, people_: int) -> Callable[[Scan], np.ndarray]:
    """A plain 3D U-Net, fitted to the training draws; its state stays in a file."""
    own = registry.input('dwi')
    shape = replace(own.network, name='unet', options={})
    own = replace(own, network=shape, turned=only_voxels)
    numbers = range(people_ + 8)
    samples = [sample_of(*drawn(scheme, k)[:2]) for k in numbers]
    plan = Plan(steps, (16, 16, 16), 4, 2e-3, seed=1, validate_every=max(1, steps // 8),
                average=0.98)  # fmt: skip
    head = joint([registry.task('tissue').head])
    state = KEPT / f'plain-unet-{scheme.name}-{people_}-{steps}.state.safetensors'
    KEPT.mkdir(exist_ok=True)
    network, _ = fit(
        own, head, PatchSource(samples[:people_], plan.patch), samples[people_:], None, plan,
        state, partial(print, flush=True),
    )  # fmt: skip

    def apply(scan: Scan) -> np.ndarray:
        said_ = predict(network, sample_of(scan), 'cpu')
        return np.asarray(said_.softmax(0).numpy()[:, scan.mask])

    return apply
