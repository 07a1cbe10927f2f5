"""Labels of a run on the longer voxels of what stands for it."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bidsapp import registry
from bidsapp.core import Case
from bidsapp.modalities.dwi.physics.gradients import GradientTable, to_fsl
from bidsapp.modalities.dwi.physics.harmonics import fibonacci_hemisphere
from bidsapp.modalities.dwi.physics.likeness import coarse_grid
from bidsapp.physics.longer_voxels import commonest, shares
from bidsapp.standins import averaged_outputs

SHAPE, AFFINE = (18, 20, 16), np.diag([2.0, 2, 2, 1])


@pytest.fixture
def grid():
    return coarse_grid(SHAPE, AFFINE, (3.0, 3.0, 4.0))


@pytest.fixture
def case(tmp_path):
    """A prepared run of a ball with every label that there is."""
    rng = np.random.default_rng(0)
    place = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing='ij'), -1)
    ball = np.linalg.norm(place - (np.array(SHAPE) - 1) / 2, axis=-1) < 7
    gtab = GradientTable(np.r_[np.zeros((2, 3)), fibonacci_hemisphere(12)], np.r_[0, 0, [1e3] * 12])
    number = rng.integers(1, 4, SHAPE) * ball
    fibres = np.zeros((*SHAPE, 9), np.float32)
    fibres[ball, 0] = 1
    arrays = {
        'dwi': ball[..., None] * np.r_[400.0, 400, [150] * 12], 'mask': ball, 'tissue': number,
        'nfib': np.minimum(number, 1), 'direction': fibres,
        **{name: rng.random(SHAPE) * ball for name in ('icvf', 'od', 'isovf')},
        **{name: (0.5 + rng.random(SHAPE)) * ball for name in ('mk', 'ak', 'rk')},
    }  # fmt: skip
    files = {}
    for name, array in arrays.items():
        files[name] = tmp_path / f'sub-01_desc-{name}.nii.gz'
        nib.save(nib.Nifti1Image(array.astype(np.float32), AFFINE), files[name])
    files |= {kind: tmp_path / f'sub-01.{kind}' for kind in ('bval', 'bvec')}
    np.savetxt(files['bval'], gtab.bvals[None])
    np.savetxt(files['bvec'], to_fsl(gtab, AFFINE))
    return Case({'subject': '01', 'datatype': 'dwi'}, files)


def test_shares_sum_to_one_where_most_is_labelled(grid):
    rng = np.random.default_rng(1)
    label = rng.integers(1, 4, SHAPE)
    label[:6] = 0
    found = shares(label, (1, 2, 3), grid)
    total = found.sum(-1)
    assert np.all(np.isclose(total, 1) | (total == 0))
    assert (total[0] == 0).all()
    assert np.isclose(total[-1], 1).all()
    assert found.mean(axis=(0, 1, 2)).std() < 0.05


def test_the_commonest_label_may_be_none(grid):
    label = np.zeros(SHAPE)
    label[:9] = 1
    found = commonest(label, (1,), np.ones(SHAPE, bool), grid)
    assert set(np.unique(found)) == {0, 1}
    assert (found[:5] == 1).all()
    assert (found[7:] == 0).all()


def test_every_task_with_a_label_has_it_on_longer_voxels(case, grid):
    shape = tuple(len(kernel) for kernel in grid.kernels)
    for name in registry.tasks():
        task = registry.task(name)
        if task.label is None or task.modality != 'dwi':
            continue
        found = (task.label.averaged or averaged_outputs(task))(case, grid)
        for output in task.learnt:
            array = np.asarray(found[output.name])
            assert array.shape[:3] == shape, name
            assert np.isfinite(array).all(), name
            assert array.any(), name


def test_water_counts_by_signal_and_what_has_no_tissue_is_not_known(case, grid):
    task = registry.task('microstructure')
    water = nib.load(case.files['isovf'])
    for name, value in (('isovf', 1.0), ('icvf', 0.0), ('od', 0.0)):
        array = np.full(SHAPE, value) * (water.get_fdata() > 0)
        nib.save(nib.Nifti1Image(array.astype(np.float32), AFFINE), case.files[name])
    found = task.label.averaged(case, grid)
    assert (found['icvf'] == -1).all()
    assert found['isovf'].max() == pytest.approx(1, abs=1e-3)


def test_directions_of_one_bundle_stay(case, grid):
    found = registry.task('orientation').label.averaged(case, grid)['direction']
    inside = found.any(-1)
    assert inside.any()
    assert np.abs(found[inside][:, 0]).min() > 0.999
