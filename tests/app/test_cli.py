"""The outside: options, exit codes and messages, without running a graph."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from bidsapp.cli import main, parse
from bidsapp.problems import UnknownLevel, WrongUsage
from bidsapp.settings import labels, memory_in_gb


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    """The app sets variables of its process; other tests shall not see them."""
    monkeypatch.setattr('os.environ', os.environ.copy())


def run(*argv):
    """(exit code) of a call in this process."""
    return main([str(arg) for arg in argv])


@pytest.fixture
def dataset(tmp_path):
    """A dataset without scans: enough for what is refused before they are read."""
    root = tmp_path / 'bids'
    (root / 'sub-01' / 'dwi').mkdir(parents=True)
    (root / 'dataset_description.json').write_text(
        json.dumps({'Name': 'x', 'BIDSVersion': '1.10.0'})
    )
    return root


def test_help_is_quick_and_loads_no_torch():
    code = 'import sys, bidsapp.cli as c; c.build_parser(); print("torch" in sys.modules)'
    start = time.perf_counter()
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.stdout.strip() == 'False'
    assert time.perf_counter() - start < 10  # the promise is 0.5 s; this only catches torch


def test_help_says_of_every_option_what_it_does_and_of_steps_what_is_so():
    from bidsapp import pretrain, training
    from bidsapp.arguments import LEVELS, build_parser

    parser = build_parser()
    assert all(action.help for action in parser._actions)
    said = ' '.join(parser.format_help().split())
    assert f'{training.STEPS} (group), {pretrain.STEPS} (pretrain)' in said
    for level in LEVELS:
        assert f'/data/out {level}' in said


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        run('--version')
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith('TransferMRI ')


@pytest.mark.parametrize(
    ('argv', 'code', 'message'),
    [
        (('a',), 64, 'OUTPUT_DIR'),
        (('a', 'b', 'participant', '--nonsense'), 64, '--nonsense'),
        (('a', 'b', 'participants'), 17, "'participants' does not exist"),
        (('a', 'b', 'participant', '--tasks', 'weather'), 64, 'restore, susceptibility, tissue'),
        (('a', 'b', 'participant', '--device', 'tpu'), 64, 'auto, cpu, cuda'),
        (('a', 'b', 'participant', '--mem', 'lots'), 64, '8G'),
        (('a', 'b', 'participant', '--nprocs', '0'), 64, 'at least 1'),
        (('a', 'b', 'group', '--input-directions', '5'), 64, 'at least 6'),
        (('a', 'b', 'participant', '--input-directions', '6'), 64, 'that is for group'),
        (('a', 'b', 'participant', '--use-plugin', 'no.yml'), 66, 'no.yml'),
        (('a', 'b', 'participant', '-d', '/data/qsiprep'), 64, 'expected NAME=PATH'),
        (('a', 'b', 'participant', '-d', 'fmriprep=/data'), 64, 'supported: qsiprep'),
        (('a', 'b', 'participant', '-d', 'qsiprep=/nowhere'), 66, 'does not exist'),
        (('-d', 'qsiprep=/x', 'a', 'b', 'participant'), 64, 'OUTPUT_DIR'),
        (('/nowhere/at/all', 'b', 'participant'), 66, 'does not exist'),
    ],
)
def test_wrong_calls_have_their_code_and_message(argv, code, message, capsys):
    assert run(*argv) == code
    assert message in capsys.readouterr().err


def test_dataset_without_description_is_16(dataset, tmp_path, capsys):
    (dataset / 'dataset_description.json').unlink()
    assert run(dataset, tmp_path / 'out', 'participant') == 16
    assert 'dataset_description.json' in capsys.readouterr().err


def test_dataset_without_subjects_is_16(dataset, tmp_path):
    (dataset / 'sub-01' / 'dwi').rmdir()
    (dataset / 'sub-01').rmdir()
    assert run(dataset, tmp_path / 'out', 'participant') == 16


def test_output_is_kept_apart_from_the_input(dataset, tmp_path):
    assert run(dataset, dataset, 'participant') == 64
    assert run(dataset, dataset / 'out', 'participant') == 64
    assert run(dataset, tmp_path / 'out', 'participant', '-w', dataset / 'work') == 64
    assert not (dataset / 'out').exists()
    assert not (dataset / 'work').exists()


def test_output_under_derivatives_is_fine_and_no_scan_is_18(dataset):
    assert run(dataset, dataset / 'derivatives' / 'x', 'participant', '--device', 'cpu') == 18


def test_absent_participant_is_18(dataset, tmp_path, capsys):
    argv = (
        dataset,
        tmp_path / 'out',
        'participant',
        '--device',
        'cpu',
        '--participant-label',
        '99',
    )
    assert run(*argv) == 18
    assert '99' in capsys.readouterr().err


def test_output_that_is_a_file_is_73(dataset, tmp_path):
    (tmp_path / 'out').touch()
    assert run(dataset, tmp_path / 'out', 'participant') == 73


def test_group_without_participants_results_is_66(dataset, tmp_path, capsys):
    assert run(dataset, tmp_path / 'out', 'group') == 66
    assert 'participant level' in capsys.readouterr().err


def test_a_model_that_is_not_there_is_66(dataset, tmp_path):
    out = tmp_path / 'out'
    assert run(dataset, out, 'participant', '--device', 'cpu', '--model', tmp_path / 'no') == 66


def test_spellings():
    settings = parse(['a', 'b', 'participant', '--participant_label', 'sub-01', '02', '01'])
    assert settings.participants == ('01', '02')
    assert parse(['a', 'b', 'participant', '--session-id', 'ses-x']).sessions == ('x',)
    assert parse(['a', 'b', 'participant', '--n-cpus', '3']).nprocs == 3


def test_labels_from_a_file(tmp_path):
    path = tmp_path / 'labels.txt'
    path.write_text('sub-01\n02\n')
    assert labels([str(path), '03'], 'sub-') == ('01', '02', '03')


@pytest.mark.parametrize(
    ('text', 'gigabytes'), [('8G', 8), ('8g', 8), ('1.5GB', 1.5), ('8000M', 8), ('8000', 8)]
)
def test_memory_sizes(text, gigabytes):
    assert memory_in_gb(text) == pytest.approx(gigabytes)


def test_accepted_flags_say_that_they_do_nothing(capsys):
    parse(['a', 'b', 'participant', '--notrack', '--low-mem', '--fs-license-file', 'x'])
    assert capsys.readouterr().out.count('no effect') == 3


def test_unknown_level_is_its_own_problem():
    with pytest.raises(UnknownLevel):
        parse(['a', 'b', 'cohort'])


@pytest.fixture
def qsiprep(tmp_path):
    """A derivative dataset of QSIPrep without results."""
    root = tmp_path / 'qsiprep'
    root.mkdir()
    (root / 'dataset_description.json').write_text(
        json.dumps({'DatasetType': 'derivative', 'GeneratedBy': [{'Name': 'QSIPrep'}]})
    )
    return root


def test_derivatives_have_a_name_and_a_place(qsiprep):
    settings = parse(['a', 'b', 'participant', '-d', f'qsiprep={qsiprep}', '--steps', '3'])
    assert settings.derivatives == (('qsiprep', qsiprep),)
    with pytest.raises(WrongUsage, match='given twice'):
        parse(['a', 'b', 'participant', '-d', f'qsiprep={qsiprep}', '-d', f'qsiprep={qsiprep}'])


def test_nothing_is_written_into_a_derivative_dataset(dataset, qsiprep, tmp_path, capsys):
    given = ('-d', f'qsiprep={qsiprep}')
    assert run(dataset, qsiprep, 'participant', *given) == 64
    assert run(dataset, tmp_path / 'out', 'participant', '-w', qsiprep / 'work', *given) == 64
    assert [p.name for p in qsiprep.iterdir()] == ['dataset_description.json']


def test_a_derivative_dataset_that_is_none_is_16(dataset, qsiprep, tmp_path, capsys):
    (qsiprep / 'dataset_description.json').write_text('{"Name": "x"}')
    assert run(dataset, tmp_path / 'out', 'participant', '-d', f'qsiprep={qsiprep}') == 16
    assert 'not the output of a pipeline' in capsys.readouterr().err
