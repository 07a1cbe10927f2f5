"""SIGTERM ends a call with 75 wherever it comes, also as the first process of a container."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from bidsapp.stopping import Stopped, heard, held, look


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def test_it_is_raised_at_once_and_no_library_takes_it_for_its_own():
    before = signal.getsignal(signal.SIGTERM)

    def call():
        with heard():
            try:
                terminate()
            except Exception:
                pytest.fail('swallowed')

    with pytest.raises(Stopped, match='goes on'):
        call()
    assert signal.getsignal(signal.SIGTERM) is before


def test_where_it_is_held_it_waits_and_who_did_not_look_is_stopped_after_it():
    done = []

    def call():
        with heard():
            with held() as asked:
                terminate()
                done.append(asked.is_set())
            done.append('not reached')

    with pytest.raises(Stopped):
        call()
    assert done == [True]


def test_what_was_lost_on_the_way_is_still_there_to_be_looked_at():
    """As in a callback of a C library, whose exceptions nobody hears of; or in a bare except."""
    with heard():
        look()
        with pytest.raises(Stopped):
            terminate()
        terminate()  # the second disturbs nothing
        with pytest.raises(Stopped):
            look()
    with heard():
        look()


CALL = """
import sys, time
from bidsapp import cli, {story}
def run(settings, log_file):
    print('at work', flush=True)
    time.sleep(60)
{story}.run = run
sys.exit(cli.main(['{bids}', '{out}', '{story}', '--skip-bids-validation']))
"""


@pytest.mark.parametrize('first', [False, True])
def test_a_call_that_is_at_work_anywhere_ends_with_75(tmp_path, first):
    (tmp_path / 'bids' / 'sub-01').mkdir(parents=True)
    code = CALL.format(story='group', bids=tmp_path / 'bids', out=tmp_path / 'out')
    command = [sys.executable, '-c', code]
    if first:  # of its own PID namespace, as in a container
        command = ['unshare', '--user', '--map-root-user', '--pid', '--fork', *command]
        if subprocess.run([*command[:5], 'true'], capture_output=True).returncode:
            pytest.skip('this machine lets nobody make a PID namespace')
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        assert process.stdout.readline() == 'at work\n'
        os.killpg(process.pid, signal.SIGTERM)
        said, _ = process.communicate(timeout=30)
    finally:
        process.poll() is None and os.killpg(process.pid, signal.SIGKILL)
    assert 'goes on from here' in said
    assert process.returncode == 75, said
