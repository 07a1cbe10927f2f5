"""A worker that the system kills: said as that, never a hang, and nothing else is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from nipype import Function, Node, Workflow, config

from bidsapp.problems import Problem, TryAgain
from bidsapp.resources import Limit
from bidsapp.stopping import Stopped
from bidsapp.workflows.execution import Engine, configure, engine, problems_left, run_graph


def end_by(number):
    """A step that its own process does not survive, or, without a signal's number, does."""
    import os

    if number:
        os.kill(os.getpid(), number)
    return os.getpid()


def work_on(started):
    """A step that takes for ever."""
    import os
    import time
    from pathlib import Path

    Path(started).write_text(str(os.getpid()))
    time.sleep(600)
    return 0


def after(pid):
    return pid


@pytest.fixture
def graph(tmp_path):
    """Two chains that do not depend on each other; the first step of one ends by a signal."""
    before = dict(os.environ)
    configure(tmp_path / 'nipype', tmp_path / 'crashes', stop_on_first_crash=False)

    def make(number):
        workflow = Workflow(name='graph', base_dir=str(tmp_path))
        for name, own in (('doomed', number), ('spared', 0)):
            first = Node(Function(['number'], ['pid'], end_by), name=name, mem_gb=0.2)
            first.inputs.number = own
            then = Node(Function(['pid'], ['pid'], after), name=f'after_{name}', mem_gb=0.2)
            workflow.connect([(first, then, [('pid', 'pid')])])
        return workflow

    yield make
    config.set_default_config()
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.timeout(120)
@pytest.mark.parametrize('nprocs', [1, 2])
def test_the_step_fails_with_try_again_and_the_others_go_on(graph, tmp_path, nprocs):
    failure = run_graph(graph(signal.SIGKILL), engine(None, nprocs, Limit(3.25, 'the test')))
    assert failure is not None
    folder = tmp_path / 'graph'
    problem = problems_left(folder / 'doomed')
    assert isinstance(problem, TryAgain)
    for text in (
        'doomed was killed (SIGKILL)',
        'estimated at 0.2 GB',
        '3.2 GB (the test)',
        'Give the job more memory',
    ):
        assert text in str(problem)
    assert ('--nprocs below' in str(problem)) == (nprocs > 1)
    assert list(folder.glob('after_spared/result_*'))
    assert not list(folder.glob('after_doomed/result_*'))
    assert problems_left(folder / 'spared') is None


@pytest.mark.timeout(120)
def test_another_signal_is_a_defect_and_not_called_memory(graph, tmp_path):
    run_graph(graph(signal.SIGSEGV), engine(None, 1, Limit(3, 'the test')))
    problem = problems_left(tmp_path / 'graph')
    assert type(problem) is Problem
    assert 'SIGSEGV' in str(problem)
    assert 'memory' not in str(problem)


@pytest.mark.timeout(120)
def test_what_was_there_before_is_not_searched_for_garbage_at_each_look(graph):
    """Nipype collects at each: with torch in memory that took longer than the steps waited for."""
    import gc

    seen = []

    class Seen(Engine):
        def told(self, watch):
            return super().told(lambda node, status: (seen.append(gc.get_freeze_count()),
                                                      watch(node, status)))  # fmt: skip

    plain = engine(None, 2, Limit(3, 'the test'))
    gc.collect()
    there = len(gc.get_objects())
    assert run_graph(graph(0), Seen(plain.plugin, plain.args, plain.limit)) is None
    assert min(seen) > 0.9 * there
    assert gc.get_freeze_count() == 0


@pytest.mark.timeout(120)
def test_no_process_is_left(graph):
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    run_graph(graph(signal.SIGKILL), engine(None, 2, Limit(3, 'the test')))
    left = [c for c in psutil.Process().children(recursive=True) if c.pid not in before]
    # The server that forks workers and the one that tracks semaphores stay for the next graph.
    assert not [c for c in left if c.parent().pid != os.getpid()]


@pytest.mark.timeout(120)
def test_sigterm_does_not_wait_for_a_worker_that_is_busy(graph, tmp_path):
    del graph  # it has configured Nipype
    started = tmp_path / 'started'
    workflow = Workflow(name='graph', base_dir=str(tmp_path))
    step = Node(Function(['started'], ['out'], work_on), name='busy', mem_gb=0.2)
    step.inputs.started = str(started)
    workflow.add_nodes([step])

    def end_it():
        while not (started.exists() and started.read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_it).start()
    begun = time.monotonic()
    with pytest.raises(Stopped, match='goes on'):
        run_graph(workflow, engine(None, 1, Limit(3, 'the test')))
    assert time.monotonic() - begun < 60
    assert not psutil.pid_exists(int(started.read_text()))


def workers_of(process):
    """Processes that compute steps: children of the server that forks them."""
    children = psutil.Process(process.pid).children()
    return [worker for child in children for worker in child.children()]


def kill_a_worker(process, seen):
    """Once ``seen`` is printed, kill the worker that has computed longest; all that was said."""
    said = []
    reader = threading.Thread(target=lambda: said.extend(iter(process.stdout.readline, '')))
    reader.start()
    deadline = time.monotonic() + 300
    while not any(seen in line for line in said) and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = workers_of(process)
    assert workers, ''.join(said)
    max(workers, key=lambda worker: sum(worker.cpu_times()[:2])).kill()
    process.wait(timeout=900)
    reader.join()
    process.stdout.close()
    return ''.join(said)


def start(*argv):
    command = [sys.executable, '-m', 'bidsapp', *(str(arg) for arg in argv)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_killed_in_mid_run_is_said_and_the_next_call_goes_on(few, tmp_path, app):
    argv = [few, tmp_path / 'out', 'participant', '--device', 'cpu', '--tasks', 'orientation']
    argv += ['--nprocs', '1', '-v']
    process = start(*argv)
    said = kill_a_worker(process, 'dwi_preproc_wf.motion')
    assert process.returncode == 75, said
    assert 'FAILED sub-01' in said
    assert 'was killed (SIGKILL), as the system does where memory runs out' in said
    assert 'Give the job more memory' in said
    assert 'Traceback' not in said
    result = app(*argv)
    assert result.returncode == 0, result.stdout + result.stderr
    assert 'start transfermri_wf.dwi_sub_01_wf.dwi_preproc_wf.motion' in result.stdout
    assert 'dwi_preproc_wf.denoise' not in result.stdout, 'it was done before the kill'


def test_the_other_participant_is_finished(few_two, tmp_path):
    out = tmp_path / 'out'
    argv = [few_two, out, 'participant', '--device', 'cpu', '--tasks', 'orientation']
    process = start(*argv, '--nprocs', '2', '-v')
    said = kill_a_worker(process, 'dwi_preproc_wf.motion')
    assert process.returncode == 1, said
    failed = [line for line in said.splitlines() if 'FAILED' in line]
    assert len(failed) == 1
    assert 'was killed (SIGKILL)' in failed[0]
    assert '1 of 2 runs finished' in said
    labels = out.glob('sub-*/dwi/*_model-tensor_param-direction_dwimap.json')
    made = [path.parent.parent.name for path in labels]
    assert len(made) == 1
    assert made[0] not in failed[0]
    sidecar = json.loads(next(out.glob('sub-*/dwi/*_desc-preproc_dwi.json')).read_text())
    assert sidecar['Sources']
