"""A written dataset is valid, whole, and follows from its design."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bidsapp.problems import CannotCreate
from bidsapp.simulated import Design, _parser, dataset_of, design_of, main, write_dataset


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_the_same_seed_gives_the_same_voxels_however_many_heads_and_threads_there_are(
    simulated, coarse_design, tmp_path, three_threads
):
    threads = []
    write_dataset(
        tmp_path / 'again', replace(coarse_design, participants=1),
        lambda line: threads.append(torch.get_num_threads()),
    )  # fmt: skip
    # On most processors three threads round as one does; not on all.
    assert threads == [1]
    assert torch.get_num_threads() == 3
    for path in (tmp_path / 'again').rglob('sub-01*.nii.gz'):
        one = nib.load(path)
        other = nib.load(simulated / path.relative_to(tmp_path / 'again'))
        np.testing.assert_array_equal(np.asarray(one.dataobj), np.asarray(other.dataobj))
        np.testing.assert_array_equal(one.affine, other.affine)


@pytest.mark.parametrize('part', ['.', 'derivatives/truth'])
def test_the_bids_validator_finds_no_error(simulated, part):
    validator = Path(sys.executable).with_name('bids-validator-deno')
    if not validator.is_file():
        pytest.skip('bids-validator-deno is not installed in this environment')
    done = subprocess.run(
        [validator, simulated / part, '--ignoreWarnings'],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_nothing_half_written_is_left(simulated):
    assert not [p for p in simulated.rglob('.*') if p.name != '.bidsignore']


def test_options_make_the_design_of_each_modality_that_is_scanned():
    design = design_of(_parser().parse_args(['out']))
    assert design == Design()
    assert list(design.scans) == ['dwi']
    asked = ['out', '--seed', '4', '--bval', '1000', '2500', '--voxel-size', '2']
    design = design_of(_parser().parse_args(asked))
    own = replace(dataset_of('dwi').design(), bval=(1000.0, 2500.0), voxel_size=2.0)
    assert design == Design(seed=4, scans={'dwi': own})


def test_a_folder_in_use_is_refused(tmp_path, capsys):
    (tmp_path / 'notes.txt').write_text('mine')
    assert main([str(tmp_path)]) == CannotCreate.exit_code == 73
    assert 'not empty' in capsys.readouterr().err
    assert main([str(tmp_path / 'notes.txt')]) == 73


@pytest.mark.parametrize(
    'options',
    [
        ['--participants', '0'],
        ['--seed', '-1'],
        ['--modality', 'weather'],
        ['--nonsense'],
        [],
    ],
)
def test_wrong_usage_exits_64(tmp_path, options):
    # The folder first: several values may follow --modality.
    assert main([*([str(tmp_path / 'out')] if options else []), *options]) == 64
    assert not (tmp_path / 'out').exists()


def test_asking_for_help_loads_no_torch():
    code = (
        'import sys\n'
        'from bidsapp.simulated import main\n'
        'try:\n    main(["--help"])\n'
        'except SystemExit as end:\n    assert not end.code\n'
        'assert "torch" not in sys.modules and "nilearn" not in sys.modules\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True, capture_output=True)
