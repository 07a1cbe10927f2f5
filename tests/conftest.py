"""What every room's tests share."""

from __future__ import annotations

import os
from pathlib import Path

if 'PYTEST_XDIST_WORKER' in os.environ:  # workers share the processors; before NumPy and torch load
    os.environ.setdefault('OMP_NUM_THREADS', '1')

import numpy as np
import pytest

SHARED = Path(__file__).resolve().parents[1].parent / 'shared' / 'data'
#: Nearly upright axes.
_OBLIQUE = np.array([[0.96, -0.2, 0.19], [0.21, 0.98, 0.02], [-0.19, 0.02, 0.98]])


#: Folders and files of tests that start the app or take a head through it: marked ``whole``.
WHOLE = ('app', 'modalities/test_toy.py', 'platforms/test_adapters.py')
#: Files whose tests take a minute and more of one processor: marked ``slow``.
SLOW = (
    'learn/test_fit.py', 'modalities/dwi/learn/test_bundled.py',
    'modalities/dwi/physics/test_motion.py', 'modalities/dwi/physics/test_motion_of_a_real_head.py',
    'modalities/dwi/physics/test_whole_correction.py', 'modalities/dwi/simulate/test_dataset.py',
    'physics/test_reversed_pair.py', 'physics/test_t1w_guided.py',
)  # fmt: skip


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        place = item.path.relative_to(here).as_posix()
        if place.startswith(WHOLE):
            item.add_marker(pytest.mark.whole)
        if place in SLOW:
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def rng():
    return np.random.default_rng(20261121)


def _affine_of(codes: str, oblique: bool) -> np.ndarray:
    """An affine with voxels of 2, 3 and 4 mm in the orientation of ``codes``."""
    import nibabel as nib

    turn = nib.orientations.axcodes2ornt(codes)
    matrix = np.zeros((3, 3))
    for axis, (world, sign) in enumerate(turn):
        matrix[int(world), axis] = sign
    rotation = np.linalg.qr(_OBLIQUE)[0] if oblique else np.eye(3)
    rotation *= np.sign(np.diag(rotation))
    affine = np.eye(4)
    affine[:3, :3] = rotation @ matrix @ np.diag([2, 3, 4])
    affine[:3, 3] = [-20, 5, 9]
    return affine


@pytest.fixture
def affine_of():
    """Orientation such as 'LAS' and whether it is oblique → affine."""
    return _affine_of


@pytest.fixture(scope='session')
def multivendor() -> Path:
    """The real dataset of five heads from four vendors; never copied into the project."""
    folder = SHARED / 'multivendor'
    if not folder.is_dir():
        pytest.skip('the real scans are not beside this checkout (../shared/data/multivendor)')
    return folder


@pytest.fixture
def generator():
    import torch

    return torch.Generator().manual_seed(20261121)


@pytest.fixture(scope='session')
def template():
    """A coarse template of a head."""
    import torch

    from bidsapp.physics.template import template_maps
    from bidsapp.simulate.anatomy import head_template

    _, gm, wm, csf, affine = template_maps(3.0)
    return head_template(*(torch.from_numpy(a) for a in (gm, wm, csf, affine)))


@pytest.fixture(scope='session')
def head(template):
    """One coarse head."""
    import torch

    from bidsapp.simulate.anatomy import draw_head

    return draw_head(template, torch.Generator().manual_seed(1))


@pytest.fixture(scope='session')
def coarse_design():
    """Two heads in coarse voxels, written within seconds."""
    from bidsapp.modalities.dwi.simulate.dataset import DwiDesign
    from bidsapp.simulated import Design

    scans = DwiDesign(voxel_size=5.0, fine_voxel_size=2.5, directions=24)
    return Design(
        participants=2, seed=3, t1w_voxel_size=4.0, template_voxel_size=3.0, scans={'dwi': scans}
    )


@pytest.fixture(scope='session')
def simulated(coarse_design, tmp_path_factory):
    """The dataset of that design; read only."""
    from bidsapp.simulated import write_dataset

    out = tmp_path_factory.mktemp('simulated') / 'heads'
    write_dataset(out, coarse_design, say=lambda line: None)
    return out
