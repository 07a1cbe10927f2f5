"""What every room's tests share."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

if 'PYTEST_XDIST_WORKER' in os.environ:  # workers share the processors; before torch loads
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    # The app's own workers each load the libraries anew: one a call, where a test asks for no more.
    os.environ.setdefault('SLURM_CPUS_PER_TASK', '1')

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

if 'PYTEST_XDIST_WORKER' in os.environ:  # a plugin of pytest may have loaded NumPy before
    threadpool_limits(1, user_api='blas')

SHARED = Path(__file__).resolve().parents[1].parent / 'shared' / 'data'
#: Nearly upright axes.
_OBLIQUE = np.array([[0.96, -0.2, 0.19], [0.21, 0.98, 0.02], [-0.19, 0.02, 0.98]])


#: Folders and files of tests that start the app or take a head through it: marked ``whole``.
WHOLE = ('app', 'robustness', 'modalities/test_toy.py', 'platforms/test_adapters.py')
#: Files whose tests take a minute and more of one processor: marked ``slow``.
SLOW = (
    'learn/test_fit.py', 'modalities/dwi/learn/test_bundled.py',
    'modalities/dwi/physics/test_motion.py', 'modalities/dwi/physics/test_motion_of_a_real_head.py',
    'modalities/dwi/physics/test_placement.py', 'modalities/dwi/physics/test_whole_correction.py',
    'modalities/dwi/simulate/test_dataset.py',
    'physics/test_reversed_pair.py', 'physics/test_t1w_guided.py',
)  # fmt: skip


#: Files that take longest, by processor time: begun first, so that all workers end together.
LONGEST = (
    'app/test_round.py', 'app/test_pretrain.py', 'app/test_input_like.py', 'app/test_bad_input.py',
    'app/test_odd_scans.py', 'app/test_killed_worker.py', 'app/test_predictions.py',
    'app/test_made_again.py', 'app/test_combine_runs.py', 'app/test_work_folder.py',
    'modalities/dwi/learn/test_bundled.py', 'learn/test_fit.py',
)  # fmt: skip


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    rank = {name: number for number, name in enumerate((*LONGEST, *SLOW))}
    items.sort(key=lambda item: rank.get(item.path.relative_to(here).as_posix(), len(rank)))
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


@pytest.fixture(scope='session')
def once(tmp_path_factory):
    """A folder that ``make(folder)`` fills once for all workers of a session; read only."""
    base = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:
        base = base.parent

    def shared(name, make):
        folder, done = base / f'shared-{name}', base / f'shared-{name}.done'
        with (base / f'shared-{name}.lock').open('w') as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                make(folder)
                done.touch()
        return folder

    return shared


def _written(scans, **design):
    """Fills a folder with simulated heads."""
    from bidsapp.simulated import Design, write_dataset

    made = Design(seed=3, scans={'dwi': scans}, **design)
    return lambda folder: write_dataset(folder, made, say=lambda line: None)


@pytest.fixture(scope='session')
def small_dataset(once):
    """One head at 4.5 mm with T1w, two shells: enough for labels to be near the truth."""
    from bidsapp.modalities.dwi.simulate.dataset import DwiDesign

    scans = DwiDesign(4.5, 2.25, directions=30, bval=(1000.0, 2000.0), snr=25)
    design = {'participants': 1, 't1w_voxel_size': 2.5, 'template_voxel_size': 2.0}
    return once('small', _written(scans, **design))


@pytest.fixture(scope='session')
def three_heads(once, small_dataset):
    """That head, and two at 8 mm of the same scheme: as many as a fit needs.

    Only of the second is the axis of phase encoding known, along which a T1w may guide a
    correction: that takes longest in small voxels.
    """
    from bidsapp.modalities.dwi.simulate.dataset import DwiDesign
    from tests.scans import without_phase_encoding

    scans = DwiDesign(8.0, 4.0, directions=30, bval=(1000.0, 2000.0), snr=25)
    write = _written(scans, participants=3, t1w_voxel_size=4.0, template_voxel_size=3.0)

    def make(folder):
        write(folder)
        for own in ('sub-01', 'derivatives/truth/sub-01'):
            shutil.rmtree(folder / own)
            shutil.copytree(small_dataset / own, folder / own)
        for own in ('sub-01', 'sub-03'):
            without_phase_encoding(folder / own / 'dwi', own)

    return once('three', make)


@pytest.fixture(scope='session')
def quick_dataset(once):
    """Two heads at 6 mm with T1w, one shell: for tests in which only the files matter."""
    from bidsapp.modalities.dwi.simulate.dataset import DwiDesign

    scans = DwiDesign(6.0, 3.0, directions=30, snr=25)
    design = {'participants': 2, 't1w_voxel_size': 4.0, 'template_voxel_size': 3.0}
    return once('quick', _written(scans, **design))


def _scans_alone(source: Path, target: Path, *subjects: str) -> Path:
    """A dataset of the dMRI runs of ``subjects``, without T1w."""
    for subject in subjects:
        shutil.copytree(source / subject / 'dwi', target / subject / 'dwi')
    shutil.copy(source / 'dataset_description.json', target)
    return target


@pytest.fixture(scope='session')
def few_dataset(once, quick_dataset):
    """Those two heads without T1w in six directions: for tests that only need a run to be made."""
    from tests.scans import keep_six_directions

    def make(folder):
        _scans_alone(quick_dataset, folder, 'sub-01', 'sub-02')
        for own in ('sub-01', 'sub-02'):
            keep_six_directions(folder / own / 'dwi', own)

    return once('few', make)


@pytest.fixture
def coarse(small_dataset, tmp_path):
    """One head of ``small_dataset`` without T1w, to be changed; its table can be tested."""
    return _scans_alone(small_dataset, tmp_path / 'bids', 'sub-01')


@pytest.fixture
def quick(quick_dataset, tmp_path):
    """One head of ``quick_dataset`` without T1w, to be changed."""
    return _scans_alone(quick_dataset, tmp_path / 'bids', 'sub-01')


@pytest.fixture
def few(few_dataset, tmp_path):
    """One head of ``few_dataset``, to be changed."""
    return _scans_alone(few_dataset, tmp_path / 'bids', 'sub-01')


@pytest.fixture
def few_two(few_dataset, tmp_path):
    """Both heads of ``few_dataset``, to be changed."""
    return _scans_alone(few_dataset, tmp_path / 'bids', 'sub-01', 'sub-02')


def _done(once, dataset, folder, name):
    """What `participant --tasks orientation` makes of one head of ``dataset``."""
    bids = _scans_alone(dataset, folder / 'bids', 'sub-01')

    def make(out):
        result = _call(bids, out, 'participant', '--device', 'cpu', '--tasks', 'orientation')
        assert result.returncode == 0, result.stdout + result.stderr

    return once(name, make)


@pytest.fixture(scope='session')
def quick_done(once, quick_dataset, tmp_path_factory):
    """``quick`` after `participant --tasks orientation`."""
    return _done(once, quick_dataset, tmp_path_factory.mktemp('quick'), 'quick_done')


@pytest.fixture(scope='session')
def few_done(once, few_dataset, tmp_path_factory):
    """``few`` after `participant --tasks orientation`."""
    return _done(once, few_dataset, tmp_path_factory.mktemp('few'), 'few_done')


def _call(*argv, **options):
    command = [sys.executable, '-m', 'bidsapp', *(str(arg) for arg in argv)]
    return subprocess.run(command, capture_output=True, text=True, **options)


@pytest.fixture
def app():
    """Call the app as a user does, in a process of its own."""
    return _call


@pytest.fixture
def app_here(capsys, monkeypatch):
    """Call the app in this process: quicker by its imports. Not for calls that run a graph."""
    from bidsapp.cli import main

    def call(*argv):
        with monkeypatch.context() as patch:
            patch.setattr('os.environ', os.environ.copy())
            code = main([str(arg) for arg in argv])
        said = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=said.out, stderr=said.err)

    return call
