"""The files under examples/: what they ask of SLURM, with programs in place of SLURM's own.

tests/cluster/run.sh submits them to a real one.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from nipype import IdentityInterface, Node, Workflow

from bidsapp.problems import WrongUsage
from bidsapp.resources import Limit
from bidsapp.workflows.execution import ask_slurm, engine

EXAMPLES = Path(__file__).resolve().parents[2] / 'examples'
SLURM = EXAMPLES / 'slurm'

pytestmark = pytest.mark.skipif(shutil.which('bash') is None, reason='bash is not there')


@pytest.fixture
def site(tmp_path):
    """A dataset's folder, and programs named like SLURM's that write down how they were called."""
    programs = tmp_path / 'bin'
    programs.mkdir()
    (tmp_path / 'bids').mkdir()
    calls = tmp_path / 'calls'
    calls.touch()
    bodies = {
        'sbatch': 'echo $(($(grep -c ^sbatch "$CALLS") + 100))',
        'scontrol': '',
        # A run that saves within a second of SIGTERM, as the app does.
        'transfermri': 'trap "exit 75" TERM\n'
        '[ -z "$SLOW" ] || { touch "$SLOW"; sleep 30 & wait; }\nexit ${CODE:-0}',
    }
    for name, body in bodies.items():
        (programs / name).write_text(f'#!/bin/bash\necho {name} "$@" >> "$CALLS"\n{body}\n')
        (programs / name).chmod(0o755)
    return {
        'PATH': f'{programs}:{os.environ["PATH"]}', 'CALLS': str(calls), 'SLOW': '',
        'BIDS': str(tmp_path / 'bids'), 'OUT': str(tmp_path / 'out'),
        'SCRATCH': str(tmp_path / 'scratch'), 'HERE': str(SLURM),
    }  # fmt: skip


def people(site, *labels):
    for label in labels:
        (Path(site['BIDS']) / label).mkdir()


def submitted(site):
    result = subprocess.run(
        [SLURM / 'submit.sh'], env=site, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return Path(site['CALLS']).read_text().splitlines(), result.stderr


def test_a_round_is_three_jobs_that_wait_for_each_other(site):
    people(site, 'sub-01', 'sub-02', 'sub-03')
    calls, _ = submitted(site)
    first, group, second = calls
    assert '--array=1-3' in first
    assert '--dependency' not in first
    assert first.endswith('participant.sh')
    # `group` starts where a participant failed; nothing is applied where it failed itself.
    assert '--dependency=afterany:101' in group
    assert '--gpus-per-task=1' in group
    assert '--dependency=afterok:102 --kill-on-invalid-dep=yes' in second
    assert '--array=1-3' in second


def test_no_gpu_is_asked_for_where_there_is_none(site):
    people(site, 'sub-01')
    calls, _ = submitted({**site, 'GPU_OPTIONS': '', 'SBATCH_OPTIONS': '--account=lab --qos=low'})
    assert not any('--gpu' in call for call in calls)
    assert all('--account=lab --qos=low' in call for call in calls)


def test_participants_are_those_of_the_table_that_have_a_folder(site):
    people(site, 'sub-A', 'sub-C', 'sub-notlisted')
    table = 'age\tparticipant_id\r\n7\tsub-A\r\n8\tsub-B\r\n9\tsub-C\r\n'
    (Path(site['BIDS']) / 'participants.tsv').write_text(table, newline='')
    calls, said = submitted(site)
    assert '--array=1-2' in calls[0]
    listed = Path(site['OUT'], 'logs/slurm/participants.txt').read_text()
    assert listed == 'sub-A\nsub-C\n'
    assert 'sub-B' in said


def test_more_than_a_thousand_share_the_tasks_of_one_array(site):
    people(site, *(f'sub-{i:04d}' for i in range(1500)))
    calls, _ = submitted(site)
    assert '--array=1-750' in calls[0]


def task(site, index, **more):
    """The environment that a task of the array finds, two participants each."""
    listed = Path(site['OUT']) / 'people'
    listed.parent.mkdir(exist_ok=True)
    listed.write_text('sub-1\nsub-2\nsub-3\n')
    return {
        **site, 'PEOPLE': str(listed), 'PER_TASK': '2', 'SLURM_JOB_ID': '9',
        'SLURM_ARRAY_JOB_ID': '7', 'SLURM_ARRAY_TASK_ID': str(index), **more,
    }  # fmt: skip


@pytest.mark.parametrize(('index', 'labels'), [(1, 'sub-1 sub-2'), (2, 'sub-3')])
def test_a_task_takes_its_participants(site, index, labels):
    subprocess.run([SLURM / 'participant.sh'], env=task(site, index), check=True)
    assert f'--participant-label {labels} -w' in Path(site['CALLS']).read_text()
    assert not list(Path(site['SCRATCH']).iterdir())


@pytest.mark.parametrize('code', [1, 65, 66])
def test_a_failure_is_the_code_of_the_task_and_not_tried_again(site, code):
    result = subprocess.run([SLURM / 'participant.sh'], env=task(site, 1, CODE=str(code)))
    assert result.returncode == code
    assert 'scontrol' not in Path(site['CALLS']).read_text()


@pytest.mark.parametrize(('before', 'again'), [('', True), ('2', True), ('3', False)])
def test_try_again_goes_back_into_the_queue_a_few_times(site, before, again):
    environment = task(site, 1, CODE='75', SLURM_RESTART_COUNT=before)
    result = subprocess.run([SLURM / 'participant.sh'], env=environment)
    assert result.returncode == 75
    assert ('scontrol requeue 9' in Path(site['CALLS']).read_text()) == again
    assert Path(site['OUT'], '.work/slurm/7_1.tar').is_file()


@pytest.mark.timeout(60)
def test_a_signal_to_the_shell_reaches_the_app(site, tmp_path):
    begun = tmp_path / 'begun'
    environment = task(site, 1, SLOW=str(begun))
    process = subprocess.Popen([SLURM / 'participant.sh'], env=environment)
    while not begun.exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 75
    assert 'scontrol requeue 9' in Path(site['CALLS']).read_text()


@pytest.mark.parametrize('path', sorted((EXAMPLES / 'nipype').glob('*.yml')), ids=lambda p: p.stem)
def test_every_plugin_file_is_understood(path):
    chosen = engine(path, 3, Limit(5, 'here'))
    assert chosen.plugin in ('MultiProc', 'SLURM')
    if chosen.plugin == 'MultiProc':
        assert chosen.args['mp_context'] == 'forkserver'  # CUDA does not survive a fork
        assert path.name in chosen.limit.source


def test_a_plugin_that_does_not_wait_is_refused(tmp_path):
    path = tmp_path / 'plugin.yml'
    for name in ('SLURMGraph', 'Nonsense'):
        path.write_text(f'plugin: {name}\n')
        with pytest.raises(WrongUsage, match=name):
            engine(path, 1, Limit(1, 'here'))


@pytest.mark.parametrize(
    ('said', 'asked'),
    [('', '--mem=1536M --cpus-per-task=3'), ('--mem=9G --time=60', '--cpus-per-task=3')],
)
def test_a_step_asks_slurm_for_what_it_needs_unless_it_is_said(said, asked):
    graph = Workflow(name='graph')
    graph.add_nodes([Node(IdentityInterface(['a']), name='step', mem_gb=1.5, n_procs=3)])
    ask_slurm(graph, said)
    assert graph.get_node('step').plugin_args == {'sbatch_args': asked}
