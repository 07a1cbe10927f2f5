"""Simulated scans of a head that no network has learnt from, with their truth.

Anatomy: the FreeSurfer labels of `../shared/data/extras/t1w_aseg`, registered affinely to the
template's space so that bundles lie where they should. Scans: `dwi.simulate.scan.simulate_dwi`, not
the blocks that networks are pretrained on: one set of bundles and parameters for a whole head,
isotropic grey matter, tortuosity tied to the density, S0 as there, motion and eddy currents a
tenth of those of a raw scan. Of other tissues than pretraining's, and with grey matter that has
directions, are the heads of `foreign`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from unittest import mock

import nibabel as nib
import numpy as np
import torch
from realscans import KEPT, SHARED, Scan
from scipy.ndimage import map_coordinates

from bidsapp.modalities.dwi.physics.gradients import GradientTable
from bidsapp.modalities.dwi.simulate import scan as simulation
from bidsapp.modalities.dwi.simulate.fibres import draw_bundles
from bidsapp.modalities.dwi.simulate.scan import simulate_dwi
from bidsapp.modalities.dwi.simulate.scheme import draw_scheme
from bidsapp.physics.template import template_maps
from bidsapp.simulate.anatomy import Template, draw_head, head_template
from bidsapp.simulate.grids import Grid
from bidsapp.simulate.t1w import field_of_view

if TYPE_CHECKING:
    from bidsapp.modalities.dwi.simulate.protocol import Protocol
    from bidsapp.modalities.dwi.simulate.truth import Truth
    from bidsapp.simulate.anatomy import Head

#: FreeSurfer labels of each tissue.
GREY = (3, 42, 8, 47, 10, 49, 11, 50, 12, 51, 13, 52, 17, 53, 18, 54, 26, 58)
WHITE = (2, 41, 7, 46, 16, 28, 60, 77, 85, 251, 252, 253, 254, 255)
FLUID = (4, 43, 5, 44, 14, 15, 24, 30, 31, 62, 63, 72, 80)
#: mm, voxels of the scans and what slices cover: a slab through the middle of the head is quick.
VOXEL, THICK = 2.5, 70.0
RESOLUTION = 1.5


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A scan and its truth."""

    scan: Scan
    truth: Truth

    @property
    def tissue(self) -> np.ndarray:
        """(3, X, Y, Z) true fractions of GM, WM, CSF, summing to one in the mask."""
        values = self.truth.tissue.numpy()
        return np.asarray(values / np.maximum(values.sum(0), 1e-6))

    @property
    def vectors(self) -> np.ndarray:
        """(X, Y, Z, 3, 3) true fibres, world axes."""
        return np.asarray(self.truth.directions.movedim(0, -1).unflatten(-1, (3, 3)).numpy())


def held_out_template() -> Template:
    """The labelled head in the template's space, kept."""
    kept = KEPT / 'aseg-template.npz'
    if not kept.is_file():
        KEPT.mkdir(exist_ok=True)
        np.savez_compressed(kept, maps=_registered_maps())
    affine = template_maps(RESOLUTION)[-1]
    with np.load(kept) as arrays:
        maps = torch.from_numpy(arrays['maps'])
    return head_template(*maps, torch.from_numpy(affine))


def _registered_maps() -> np.ndarray:
    """(3, X, Y, Z) GM, WM, CSF of the labelled head on the template's grid."""
    import ants

    folder = SHARED / 'extras' / 't1w_aseg'
    # Stored with left, inferior, anterior as its axes and no orientation.
    labels, t1w = (
        np.asarray(nib.load(folder / f'{name}.nii.gz').dataobj)[::-1, ::-1].transpose(0, 2, 1)
        for name in ('aseg', 'T1w_norm')
    )
    fixed, *_, affine = template_maps(RESOLUTION)
    inverse = _affine(ants, np.ascontiguousarray(t1w, np.float32), fixed, affine)
    index = np.indices(fixed.shape).reshape(3, -1)
    world = affine[:3, :3] @ index + affine[:3, 3:]
    places = inverse[:3, :3] @ world + inverse[:3, 3:]
    maps = [
        map_coordinates(np.isin(labels, codes).astype(np.float32), places, order=1)
        for codes in (GREY, WHITE, FLUID)
    ]
    return np.stack(maps).reshape(3, *fixed.shape).astype(np.float32)


def _affine(ants: object, moving: np.ndarray, fixed: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """(4, 4) template world mm → voxel index of ``moving``, 1 mm."""
    still = ants.from_numpy(  # type: ignore[attr-defined]
        fixed, origin=tuple(affine[:3, 3]), spacing=(RESOLUTION,) * 3
    )
    middle = [-n / 2 for n in moving.shape]
    movable = ants.from_numpy(moving, origin=tuple(middle))  # type: ignore[attr-defined]
    found = ants.registration(still, movable, 'Affine', random_seed=1)  # type: ignore[attr-defined]
    transform = ants.read_transform(found['fwdtransforms'][0])  # type: ignore[attr-defined]
    # ITK's physical space is LPS only in files with a direction; these arrays have none.
    points = np.vstack([np.zeros(3), np.eye(3) * 10])
    mapped = np.array([transform.apply_to_point(tuple(p)) for p in points])
    matrix = np.eye(4)
    matrix[:3, :3] = (mapped[1:] - mapped[0]).T / 10
    matrix[:3, 3] = mapped[0] - np.array(middle)
    return matrix


def mni_template() -> Template:
    """The MNI maps as a head."""
    _, gm, wm, csf, affine = template_maps(RESOLUTION)
    return head_template(*(torch.from_numpy(array) for array in (gm, wm, csf, affine)))


def slab(head: Head, voxel: float = VOXEL) -> Grid:
    """A grid of axial slices over ``THICK`` mm from the level of the thalamus up."""
    whole, slices = field_of_view(head, torch.eye(3), voxel), round(THICK / voxel)
    centre = torch.linalg.solve(head.affine, torch.tensor([0.0, -20.0, 10.0, 1.0]))
    first = int((centre[2] - whole.affine[2, 3]) / voxel) - slices // 3
    affine = whole.affine.clone()
    affine[2, 3] += first * voxel
    return Grid((whole.shape[0], whole.shape[1], slices), affine)


def simulated(name: str, protocol: Protocol, seed: int, half: bool = False) -> Case:
    """Scan the labelled head with directions in ``protocol``; the same ``seed``, the same. Kept.

    ``half``: all directions on one half sphere, so that eddy currents never cancel.
    """
    kept = KEPT / f'simulated-{name}-{seed}-aseg{"-half" if half else ""}.pt'
    if not kept.is_file():
        with mock.patch.object(simulation, 'draw_scheme', one_sided if half else draw_scheme):
            torch.save(_simulated(held_out_template(), protocol, seed), kept)
    case: Case = torch.load(kept, weights_only=False)
    return case


def one_sided(*given: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """`draw_scheme` with every direction turned upwards."""
    bvecs, bvals = draw_scheme(*given)
    return torch.where(bvecs[:, 2:] < 0, -1.0, 1.0) * bvecs, bvals


def _simulated(template: Template, protocol: Protocol, seed: int) -> Case:
    generator = torch.Generator().manual_seed(seed)
    head, bundles = draw_head(template, generator), draw_bundles(template, generator)
    grid = slab(head)
    run = simulate_dwi(head, bundles, grid, protocol, torch.Generator().manual_seed(seed + 1))
    gtab = GradientTable(run.bvecs.double().numpy(), run.bvals.double().numpy())
    data = run.signal.movedim(0, -1).contiguous().numpy()
    scan = Scan(data, gtab, grid.affine.double().numpy(), run.truth.mask.numpy())
    return Case(scan, run.truth)


def without_faults(protocol: Protocol) -> Protocol:
    """No noise and no artefacts; head, scheme and parameters of the same seed stay the same."""
    return replace(
        protocol, snr=float('inf'), motion_mm=0.0, motion_deg=0.0, eddy_hz=0.0, dropout=0.0
    )
