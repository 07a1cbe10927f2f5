"""Public cases in which a dry run or an examination shows the fault; skipped where they are not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).resolve().parents[2].parent / 'shared' / 'cases'
#: Those that call nothing but dry runs and `transfermri-check`.
CHEAP = (
    'b0_at_60', 'below_a_folder_named_dwi', 'database_of_one', 'filter_keys', 'interpolated',
    'no_orientation_codes', 'odd_labels', 'reversed_b0_in_dwi', 'session_label_t1w',
    'singular_affine', 'table_spelling', 'unknown_entity',
)  # fmt: skip


@pytest.mark.parametrize('name', CHEAP)
def test_a_public_case_is_as_expected(name, tmp_path):
    if not (CASES / f'{name}.py').is_file():
        pytest.skip('the public cases are not beside this checkout (../shared/cases)')
    programs = tmp_path / 'bin'
    programs.mkdir()
    for program, module in (('transfermri', 'cli'), ('transfermri-check', 'check')):
        code = f'import sys; from bidsapp.{module} import main; sys.exit(main())'
        (programs / program).write_text(f'#!{sys.executable}\n{code}\n')
        (programs / program).chmod(0o755)
    path = f'{Path(__file__).parents[2]}:{os.environ.get("PYTHONPATH", "")}'
    environment = {
        **os.environ, 'TRANSFERMRI': str(programs / 'transfermri'), 'PYTHONPATH': path,
        'PYTHONDONTWRITEBYTECODE': '1',
    }  # fmt: skip
    command = [sys.executable, CASES / f'{name}.py', tmp_path / 'case', '--check']
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=CASES)
    assert done.returncode == 0, done.stdout + done.stderr
