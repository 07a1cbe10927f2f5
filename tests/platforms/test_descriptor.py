"""The Boutiques descriptor says what the command line does, and bosh agrees."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from bidsapp import registry
from bidsapp.arguments import DESCRIBE, build_parser
from bidsapp.cli import main, parse
from bidsapp.descriptor import descriptor
from bidsapp.resources import Limit
from bidsapp.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
#: The contract's options, as a user types them.
OPTIONS = """
    --participant-label --session-label --bids-filter-file --tasks --model --device --derivatives
    --work-dir --nprocs --omp-nthreads --mem --use-plugin --skip-bids-validation
    --stop-on-first-crash --dry-run --reports-only --random-seed --version --notrack --low-mem
    --clean-workdir --bids-database-dir --fs-license-file --init --freeze --steps --split-file
    --compare --input-like --input-directions --b0-threshold --exclude-volumes --objective --resume
    --help --force --redo --anat --combine-runs --phase-sign --reference --network --undersample
"""
#: The contract's exit codes but 0.
CODES = [1, 16, 17, 18, 64, 65, 66, 73, 74, 75]
INVOCATIONS = {
    'participant': {
        'InputDataset': ['/data/bids'],
        'OutputLocation': '/data/a folder',
        'AnalysisLevel': 'participant',
        'SubjectLabel': ['01', 'sub-02'],
        'SessionLabel': ['pre'],
        'BidsFilterFile': '/data/filter.json',
        'Tasks': ['tissue', 'orientation'],
        'SkipBidsValidation': True,
        'BidsDatabaseDir': '/data/index',
        'WorkDir': '/scratch/work',
        'Nprocs': 4,
        'OmpNthreads': 2,
        'Mem': '8G',
        'StopOnFirstCrash': True,
        'DryRun': True,
        'ReportsOnly': True,
        'CleanWorkdir': True,
        'Force': True,
        'Redo': ['preprocessing', 'tissue'],
        'RandomSeed': 7,
        'Model': 'bundled',
        'Device': 'cuda:1',
        'Verbose': '-vv',
        'Notrack': True,
        'LowMem': True,
        'FsLicenseFile': '/data/license.txt',
    },
    'group': {
        'InputDataset': ['/data/bids'],
        'OutputLocation': '/data/out',
        'AnalysisLevel': 'group',
        'Init': 'scratch',
        'Freeze': 'encoder',
        'Steps': 300,
        'SplitFile': '/data/split.tsv',
        'Compare': ['scratch', 'autoencoder'],
        'InputLike': '/data/short_dwi.nii.gz',
    },
    'pretrain': {
        'InputDataset': ['-'],
        'OutputLocation': '/data/out',
        'AnalysisLevel': 'pretrain',
        'Objective': 'restore',
        'Steps': 100,
        'Resume': True,
        'RandomSeed': 0,
    },
}
#: What these must have become, apart from what every call has.
MEANT = {
    'participant': {
        'participants': ('01', '02'),
        'sessions': ('pre',),
        'filter_file': Path('/data/filter.json'),
        'tasks': ('tissue', 'orientation'),
        'skip_validation': True,
        'work_dir': Path('/scratch/work'),
        'nprocs': 4,
        'omp_nthreads': 2,
        'memory': Limit(8.0, '--mem'),
        'stop_on_first_crash': True,
        'dry_run': True,
        'reports_only': True,
        'clean_workdir': True,
        'seed': 7,
        'model': 'bundled',
        'device': 'cuda:1',
        'verbose': 2,
    },
    'group': {
        'init': 'scratch',
        'freeze': 'encoder',
        'steps': 300,
        'split_file': Path('/data/split.tsv'),
        'compare': ('scratch', 'autoencoder'),
        'options': {'input_like': '/data/short_dwi.nii.gz'},
    },
    'pretrain': {'objective': 'restore', 'steps': 100, 'resume': True, 'seed': 0},
}


@pytest.fixture(scope='module')
def described() -> dict:
    return descriptor()


@pytest.fixture(scope='module')
def written(described, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('boutiques') / 'transfermri.json'
    path.write_text(json.dumps(described), encoding='utf-8')
    return path


@pytest.fixture(scope='module')
def inputs(described) -> dict:
    return {i['id']: i for i in described['inputs']}


def command_line(described: dict, invocation: dict) -> str:
    """What Boutiques makes of an invocation: each key becomes its flag and value, or nothing."""
    line = described['command-line']
    for one in described['inputs']:
        value = invocation.get(one['id'])
        words = [one['command-line-flag']] if 'command-line-flag' in one else []
        if one['type'] != 'Flag' and value is not None:
            words += [str(v) for v in (value if one.get('list') else [value])]
        line = line.replace(one['value-key'], shlex.join(words) if value is not None else '')
    return line


class TestPrinted:
    def test_alone_it_is_all_that_is_printed_and_loads_no_torch(self, described):
        code = (
            'import sys; from bidsapp.cli import main; code = main(sys.argv[1:]); '
            'print("torch" in sys.modules, file=sys.stderr); sys.exit(code)'
        )
        result = subprocess.run(
            [sys.executable, '-c', code, DESCRIBE], capture_output=True, text=True
        )
        assert result.returncode == 0
        assert json.loads(result.stdout) == described
        assert result.stderr == 'False\n'

    def test_with_other_arguments_it_is_wrong_usage(self, capsys):
        assert main(['a', 'b', 'participant', DESCRIBE]) == 64
        said = capsys.readouterr()
        assert 'alone' in said.err
        assert not said.out


class TestOptions:
    def test_none_of_the_contract_is_missing(self, inputs):
        flags = {i['command-line-flag'] for i in inputs.values() if 'command-line-flag' in i}
        assert flags == set(OPTIONS.split())

    def test_all_that_help_lists_is_there(self, described):
        """Flags as a user sees them, not as the parser keeps them."""
        listed = re.findall(r'^  (?:-\w(?: [^-\s]\S*(?: \[.*\])?)?, )?(--[\w-]+)',
                            build_parser().format_help(), re.M)  # fmt: skip
        flags = [i.get('command-line-flag') for i in described['inputs']]
        assert set(listed) - {DESCRIBE, '--verbose'} == set(flags) - {None}

    def test_only_the_three_positional_ones_are_required(self, inputs):
        required = [name for name, one in inputs.items() if not one['optional']]
        assert required == ['InputDataset', 'OutputLocation', 'AnalysisLevel']
        assert not any('command-line-flag' in inputs[name] for name in required)

    def test_choices_are_those_that_are_accepted(self, inputs):
        choices = {n: i['value-choices'] for n, i in inputs.items() if 'value-choices' in i}
        assert choices == {
            'AnalysisLevel': ['participant', 'group', 'pretrain'],
            'Verbose': ['-v', '-vv'],
            'Tasks': list(registry.tasks()),
            'Freeze': ['none', 'encoder', 'body', 'published'],
            'Anat': ['t1w', 'none'],
            'PhaseSign': ['auto', 'keep', 'turn'],
            'Compare': ['scratch', 'autoencoder'],
            'Objective': ['restore', 'autoencoder', 'supervised', 'mixed', 'auxiliary'],
        }

    def test_what_is_a_list(self, inputs):
        assert {name for name, one in inputs.items() if one.get('list')} == {
            'InputDataset', 'SubjectLabel', 'SessionLabel', 'Tasks', 'Derivatives', 'Redo',
            'Compare',
        }  # fmt: skip

    def test_numbers_are_integers_with_the_least_that_is_accepted(self, inputs):
        numbers = {n: i for n, i in inputs.items() if i['type'] == 'Number'}
        assert {n: i['minimum'] for n, i in numbers.items()} == {
            'Nprocs': 1, 'OmpNthreads': 1, 'RandomSeed': 0, 'Steps': 1, 'InputDirections': 6,
        }  # fmt: skip
        for one in numbers.values():
            flag, least = one['command-line-flag'], one['minimum']
            base = ['a', 'b', 'group', flag]
            assert parse([*base, str(least)])
            assert main([*base, str(least - 1)]) == 64

    @pytest.mark.parametrize('level', ['participant', 'group', 'pretrain'])
    def test_what_a_level_disables_is_refused_there(self, inputs, level):
        """And other options are not."""
        values = {
            'Objective': ['restore'], 'Model': ['bundled'], 'Freeze': ['body'],
            'Compare': ['scratch'], 'SplitFile': ['s.tsv'], 'InputDirections': ['6'],
            'InputLike': ['/data/short_dwi.nii.gz'],
            'Steps': ['1'], 'RandomSeed': ['1'], 'Device': ['cpu'], 'Resume': [],
            'ReportsOnly': [], 'DryRun': [],
        }  # fmt: skip
        disabled = inputs['AnalysisLevel']['value-disables'][level]
        for name, value in values.items():
            argv = ['a', 'b', level, inputs[name]['command-line-flag'], *value]
            if name in disabled:
                assert main(argv) == 64
            else:
                assert isinstance(parse(argv), Settings)

    @pytest.mark.parametrize('level', INVOCATIONS)
    def test_an_invocation_becomes_the_settings_that_it_means(self, described, level):
        line = shlex.split(command_line(described, INVOCATIONS[level]))
        assert line[0] == 'transfermri'
        settings = parse(line[1:])
        assert settings.level == level
        assert str(settings.output_dir) == INVOCATIONS[level]['OutputLocation']
        assert str(settings.bids_dir) == INVOCATIONS[level]['InputDataset'][0]
        assert {name: getattr(settings, name) for name in MEANT[level]} == MEANT[level]


class TestSchema:
    """What Boutiques asks beyond the shape; `bosh validate` below knows the shape too."""

    def test_ids_are_unique(self, described):
        ids = [one['id'] for one in described['inputs'] + described['output-files']]
        assert len(set(ids)) == len(ids)
        assert all(re.fullmatch(r'[A-Za-z0-9]+', name) for name in ids)

    def test_every_key_is_on_the_command_line_once_and_in_no_other(self, described):
        keys = re.findall(r'\[\w+\]', described['command-line'])
        assert sorted(keys) == sorted(one['value-key'] for one in described['inputs'])

    def test_types_and_flags_agree(self, described):
        for one in described['inputs']:
            assert one['type'] in ('String', 'File', 'Flag', 'Number')
            if one['type'] == 'Flag':
                assert one['command-line-flag']
                assert one['optional']
                assert 'list' not in one
            assert 'value-choices' not in one or one['type'] == 'String'

    def test_outputs_lie_in_the_output_folder(self, described):
        paths = [one['path-template'] for one in described['output-files']]
        assert len(set(paths)) == len(paths)
        assert all(path.startswith('[OUTPUT_DIR]/') for path in paths)


def test_the_exit_codes_are_the_contracts(described):
    assert [one['code'] for one in described['error-codes']] == CODES
    assert all(one['description'] for one in described['error-codes'])


def test_the_image_is_the_one_that_apptainer_takes(described):
    recipe = (ROOT / 'Singularity.def').read_text(encoding='utf-8')
    assert described['container-image']['image'] == re.search(r'^From: (\S+)$', recipe, re.M)[1]


def test_the_specification_is_named_in_both_ways(described):
    custom = described['custom']
    assert custom['BIDSAppSpecVersion'] == custom['BIDSApplicationVersion']


@pytest.mark.skipif(find_spec('boutiques') is None, reason='`make test` installs boutiques')
class TestBosh:
    """The real tool."""

    @staticmethod
    def bosh(*argv):
        code = 'import sys; from boutiques.bosh import bosh; sys.argv[0] = "bosh"; sys.exit(bosh())'
        command = [sys.executable, '-c', code, *map(str, argv)]
        return subprocess.run(command, capture_output=True, text=True)

    def test_it_is_valid(self, written):
        result = self.bosh('validate', written)
        assert (result.returncode, result.stdout.strip()) == (0, 'OK'), result.stderr

    @pytest.mark.parametrize('level', INVOCATIONS)
    def test_it_makes_the_same_command_line(self, described, written, level, tmp_path):
        path = tmp_path / 'invocation.json'
        path.write_text(json.dumps(INVOCATIONS[level]), encoding='utf-8')
        assert self.bosh('invocation', '-i', path, written).returncode == 0
        result = self.bosh('exec', 'simulate', '-i', path, written)
        assert result.returncode == 0, result.stdout + result.stderr
        line = result.stdout.strip().splitlines()[-1]
        assert shlex.split(line) == shlex.split(command_line(described, INVOCATIONS[level]))

    def test_it_refuses_what_the_app_would(self, written, tmp_path):
        path = tmp_path / 'invocation.json'
        for wrong in ({'AnalysisLevel': 'cohort'}, {'Steps': 0}, {'Tasks': ['weather']}):
            path.write_text(json.dumps({**INVOCATIONS['group'], **wrong}), encoding='utf-8')
            result = self.bosh('invocation', '-i', path, written)
            assert (result.returncode, result.stderr) == (99, '')
