"""Small simulated datasets for whole runs of the app."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bidsapp.modalities.dwi.simulate.dataset import DwiDesign
from bidsapp.simulated import Design, write_dataset


@pytest.fixture(scope='session')
def small_dataset(tmp_path_factory):
    """Three heads at 4.5 mm with T1w, two shells; read only, to be copied by who changes it."""
    out = tmp_path_factory.mktemp('small') / 'bids'
    scans = DwiDesign(
        voxel_size=4.5, fine_voxel_size=2.25, directions=30, bval=(1000.0, 2000.0), snr=25
    )
    design = Design(
        participants=3, seed=3, t1w_voxel_size=2.5, template_voxel_size=2.0, scans={'dwi': scans}
    )
    write_dataset(out, design, say=lambda line: None)
    return out


@pytest.fixture
def app():
    """Call the app as a user does, in a process of its own."""

    def call(*argv, **options):
        command = [sys.executable, '-m', 'bidsapp', *(str(arg) for arg in argv)]
        return subprocess.run(command, capture_output=True, text=True, **options)

    return call


@pytest.fixture
def coarse(small_dataset, tmp_path):
    """A dataset of one head without T1w, quick enough to be broken in many ways."""
    source = small_dataset / 'sub-01' / 'dwi'
    root = tmp_path / 'bids'
    target = root / 'sub-01' / 'dwi'
    target.mkdir(parents=True)
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    description = (small_dataset / 'dataset_description.json').read_text()
    (root / 'dataset_description.json').write_text(description)
    return root
