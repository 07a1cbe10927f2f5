"""The examples for BABS, Nipoppy and brainlife say what the app understands."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

import bidsapp
from bidsapp import registry
from bidsapp.arguments import build_parser
from bidsapp.bids.prepared import promised_files
from bidsapp.bids.runs import Run
from bidsapp.cli import parse
from bidsapp.core import Case
from bidsapp.descriptor import IMAGE, descriptor
from bidsapp.settings import memory_in_gb

EXAMPLES = Path(__file__).resolve().parents[2] / 'examples'
DASHED = bidsapp.__version__.replace('.', '-')


class TestBabs:
    @pytest.fixture
    def config(self):
        path = EXAMPLES / 'babs' / 'transfermri_participant.yaml'
        return yaml.safe_load(path.read_text(encoding='utf-8'))

    def test_its_arguments_parse(self, config):
        """As BABS 0.5 puts them together: keys, and values where there are any."""
        arguments = dict(config['bids_app_args'])
        selection = arguments.pop('$SUBJECT_SELECTION_FLAG')
        argv = ['/job/inputs/data/BIDS', '/job/outputs/transfermri', 'participant']
        for flag, value in arguments.items():
            argv += [flag, *([value] if value else [])]
        settings = parse(
            [*(a.replace('$BABS_TMPDIR', '/job/tmp') for a in argv), selection, 'sub-01']
        )
        assert settings.participants == ('01',)
        assert settings.work_dir == Path('/job/tmp')
        assert settings.stop_on_first_crash

    def test_what_it_asks_of_the_cluster_holds_what_it_gives_the_app(self, config):
        given, asked = config['bids_app_args'], config['cluster_resources']
        assert int(asked['number_of_cpus']) == int(given['--nprocs'])
        assert memory_in_gb(asked['hard_memory_limit']) > memory_in_gb(given['--mem'])

    def test_results_bear_the_version(self, config):
        assert config['zip_foldernames'] == {'transfermri': DASHED}
        assert config['all_results_in_one_zip'] is True


class TestNipoppy:
    @staticmethod
    def load(name):
        return json.loads((EXAMPLES / 'nipoppy' / name).read_text(encoding='utf-8'))

    def test_it_runs_this_version(self):
        config = self.load('config.json')
        assert config['VERSION'] == bidsapp.__version__
        uri = config['CONTAINER_INFO']['URI']
        for key in ('NAME', 'VERSION'):
            uri = uri.replace(f'[[PIPELINE_{key}]]', config[key])
        assert uri == f'docker://{IMAGE}'

    def test_its_files_are_there_but_for_the_descriptor(self):
        named = {
            value for step in self.load('config.json')['STEPS']
            for key, value in step.items() if key.endswith('_FILE')
        }  # fmt: skip
        present = {path.name for path in (EXAMPLES / 'nipoppy').iterdir()}
        assert named - {'descriptor.json'} == present - {'config.json', 'README.md'}

    @pytest.mark.parametrize('name', ['invocation.json', 'invocation-group.json'])
    def test_its_invocations_are_those_of_the_descriptor(self, name):
        inputs = {one['id']: one for one in descriptor()['inputs']}
        invocation = self.load(name)
        assert invocation.keys() <= inputs.keys()
        assert {n for n, one in inputs.items() if not one['optional']} <= invocation.keys()
        for key, value in invocation.items():
            assert isinstance(value, list) == inputs[key].get('list', False)
            assert not inputs[key].get('integer') or isinstance(value, int)

    def test_it_tracks_files_that_are_written(self):
        run = Run('dwi', Case({'subject': '01', 'session': 'a', 'datatype': 'dwi'}, {}))
        prepared = registry.files('dwi').prepared
        written = {path.as_posix() for path in promised_files(prepared, run)}
        for path in self.load('tracker.json')['PATHS']:
            path = path.replace('[[NIPOPPY_BIDS_PARTICIPANT_ID]]', 'sub-01')
            assert (
                path.replace('[[NIPOPPY_BIDS_SESSION_ID]]*', 'ses-a').replace(
                    '[[NIPOPPY_BIDS_SESSION_ID]]', 'ses-a'
                )
                in written
            )


#: Stands in for the app: the real one looks at the BIDS folder (a dry run), then files of the names
#: that it promises are written, each with its own name as content.
STAND_IN = """
import json, sys
from pathlib import Path
from bidsapp.cli import main
from bidsapp.bids.scans import read_object
from bidsapp import registry
from bidsapp.bids.prepared import promised_files
from bidsapp.bids.runs import Run
from bidsapp.core import Case
from bidsapp.workflows.plan import predicted_files

if code := main([*sys.argv[1:], '--dry-run']):
    sys.exit(code)
bids, out = Path(sys.argv[1]), Path(sys.argv[2])
(scan,) = bids.glob('sub-*/**/*_dwi.nii.gz')
subject = scan.relative_to(bids).parts[0][4:]
session = {'session': '2'} if 'ses-2' in scan.parts else {}
entities = {'subject': subject, 'datatype': 'dwi', **session}
names = promised_files(registry.files('dwi').prepared, Run('dwi', Case(entities, {})))
names += [p for name in PREDICTED for p in predicted_files(entities, name)]
for name in names:
    path = out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.name
    if path.suffix == '.json':
        text = json.dumps({'Warnings': ['the scan is short'], 'Seen': read_object(
            scan.with_name(scan.name.replace('.nii.gz', '.json')))})
    if path.suffix == '.tsv':
        text = 'index\\tname\\tabbreviation\\tcolor\\n1\\tGray Matter\\tGM\\t#9e0010\\n'
    path.write_text(text)
(out / f'sub-{subject}.html').write_text('page')
(out / f'sub-{subject}' / 'figures').mkdir()
"""


@pytest.mark.skipif(shutil.which('jq') is None, reason='jq, which brainlife has, is not installed')
class TestBrainlife:
    @pytest.fixture
    def task(self, tmp_path, rng):
        """A task's folder with a configuration and the inputs that it names."""
        inputs = tmp_path / 'inputs'
        inputs.mkdir()
        for name, volumes in (('dwi', 12), ('t1', 1)):
            data = rng.normal(100, 1, (6, 6, 6, volumes)).astype(np.float32).squeeze()
            nib.save(nib.Nifti1Image(data, np.diag([2.0, 2, 2, 1])), inputs / f'{name}.nii.gz')
        directions = rng.normal(size=(3, 12))
        directions /= np.linalg.norm(directions, axis=0)
        directions[:, 0] = 0
        np.savetxt(inputs / 'dwi.bvecs', directions)
        np.savetxt(inputs / 'dwi.bvals', [[0] + [1000] * 11])
        folder = tmp_path / 'task'
        folder.mkdir()
        self.configure(folder)
        return folder

    @staticmethod
    def configure(folder, **changes):
        """Write config.json; None takes an entry away."""
        config = {
            'dwi': '../inputs/dwi.nii.gz',
            'bvals': '../inputs/dwi.bvals',
            'bvecs': '../inputs/dwi.bvecs',
            't1': '../inputs/t1.nii.gz',
            'device': 'cpu',
            'memory': '4G',
            'cores': 1,
            '_inputs': [
                {'id': 't1', 'meta': {'subject': 'P_01', 'session': '2', 'EchoTime': 0.003}},
                {
                    'id': 'other',
                    'keys': ['dwi', 'bvals', 'bvecs'],
                    'meta': {
                        'subject': 'P_01', 'session': '2', 'dummyScans': None,
                        'PhaseEncodingDirection': 'j-', 'TotalReadoutTime': 0.05,
                    },
                },
            ],
        } | changes  # fmt: skip
        config = {key: value for key, value in config.items() if value is not None}
        (folder / 'config.json').write_text(json.dumps(config), encoding='utf-8')

    @staticmethod
    def run(folder, app='false', predicted=()):
        """Start `main` in ``folder`` with ``app`` in place of the container."""
        stand_in = folder.parent / 'app.py'
        stand_in.write_text(f'PREDICTED = {list(predicted)!r}\n{STAND_IN}', encoding='utf-8')
        root = str(EXAMPLES.parent)
        environment = {
            **os.environ, 'PYTHONPATH': root,
            'TRANSFERMRI': app or f'{sys.executable} {stand_in}',
        }  # fmt: skip
        return subprocess.run(
            [str(EXAMPLES / 'brainlife' / 'main')],
            cwd=folder, env=environment, capture_output=True, text=True,
        )  # fmt: skip

    def test_it_runs_this_version_and_may_be_executed(self):
        main = EXAMPLES / 'brainlife' / 'main'
        assert os.access(main, os.X_OK)
        assert f'docker://{IMAGE}}}' in main.read_text(encoding='utf-8')

    def test_the_sample_names_what_is_read(self):
        sample = json.loads((EXAMPLES / 'brainlife' / 'config.json.sample').read_text())
        main = (EXAMPLES / 'brainlife' / 'main').read_text(encoding='utf-8')
        for key in sample.keys() - {'_inputs'}:
            assert re.search(rf'\b{key}\b', main.partition('set -euo pipefail')[2]), key

    def test_its_options_are_the_apps(self):
        main = (EXAMPLES / 'brainlife' / 'main').read_text(encoding='utf-8')
        lines = [line for line in main.splitlines() if 'options' in line or ':--' in line]
        flags = set(re.findall(r'--[a-z-]+', '\n'.join(lines)))
        known = {o for a in build_parser()._actions for o in a.option_strings}
        assert {'--participant-label', '--work-dir', '--mem', '--tasks'} <= flags <= known

    def test_outputs_lie_as_brainlife_wants_them(self, task):
        result = self.run(task, app='', predicted=['tissue', 'microstructure'])
        assert result.returncode == 0, result.stdout + result.stderr
        stem = 'sub-P01_ses-2'
        expected = {
            'output_dwi/dwi.nii.gz': f'{stem}_desc-preproc_dwi.nii.gz',
            'output_dwi/dwi.bvals': f'{stem}_desc-preproc_dwi.bval',
            'output_dwi/dwi.bvecs': f'{stem}_desc-preproc_dwi.bvec',
            'output_mask/mask.nii.gz': f'{stem}_desc-brain_mask.nii.gz',
            'output_tensor/fa.nii.gz': f'{stem}_desc-reference_FA.nii.gz',
            'output_tensor/md.nii.gz': f'{stem}_desc-reference_ADC.nii.gz',
            'output_noddi/ndi.nii.gz': f'{stem}_model-unet_param-icvf_dwimap.nii.gz',
            'output_noddi/odi.nii.gz': f'{stem}_model-unet_param-od_dwimap.nii.gz',
            'output_noddi/isovf.nii.gz': f'{stem}_model-unet_param-isovf_dwimap.nii.gz',
            'output_tissue/parc.nii.gz': f'{stem}_seg-tissue_desc-unet_dseg.nii.gz',
            'output_report/html/sub-P01.html': 'page',
        }
        assert {name: (task / name).read_text() for name in expected} == expected
        labels = json.loads((task / 'output_tissue' / 'label.json').read_text())
        assert labels[1] == {
            'name': 'Gray Matter', 'label': '1', 'voxel_value': 1, 'r': 158, 'g': 0, 'b': 16,
        }  # fmt: skip
        assert (task / 'output_tissue' / 'key.txt').read_text() == (
            '0 -> 0 == Unknown\n1 -> 1 == Gray Matter\n'
        )
        product = json.loads((task / 'product.json').read_text())
        assert [one['type'] for one in product['brainlife']] == ['info', 'warning']
        assert 'Not for clinical use' in product['brainlife'][0]['msg']
        assert product['sources']['output_noddi/ndi.nii.gz'].endswith(
            f'/{expected["output_noddi/ndi.nii.gz"]}'
        )
        assert (task / 'product.json').stat().st_size < 4096

    def test_metadata_of_the_scan_and_no_other_go_along(self, task):
        assert self.run(task, app='').returncode == 0
        sidecars = sorted((task / 'bids').rglob('sub-*.json'))
        assert [json.loads(path.read_text()) for path in sidecars] == [
            {'EchoTime': 0.003},
            {'PhaseEncodingDirection': 'j-', 'TotalReadoutTime': 0.05},
        ]

    def test_without_t1_subject_and_session(self, task):
        self.configure(task, t1=None, _inputs=None)
        result = self.run(task, app='')
        assert result.returncode == 0, result.stdout + result.stderr
        assert 'no T1w' in result.stdout
        assert (task / 'bids' / 'sub-01' / 'dwi' / 'sub-01_dwi.nii.gz').is_file()
        assert not (task / 'output_noddi').exists()

    @pytest.mark.parametrize(
        ('config', 'code', 'message'),
        [
            (None, 66, 'There is no config.json'),
            ('{"dwi": ', 64, 'not a JSON object'),
            ('["dwi"]', 64, 'not a JSON object'),
            ('{}', 64, 'config.json lacks "dwi"'),
            ('{"dwi": "nowhere.nii.gz"}', 66, 'nowhere.nii.gz is empty or not there'),
        ],
    )
    def test_a_wrong_configuration_has_one_clear_message(self, task, config, code, message):
        (task / 'config.json').unlink()
        if config is not None:
            (task / 'config.json').write_text(config, encoding='utf-8')
        result = self.run(task)
        assert result.returncode == code
        assert message in result.stderr
        assert result.stderr.count('\n') == 1
        (said,) = json.loads((task / 'product.json').read_text())['brainlife']
        assert said['type'] == 'error'
        assert message in said['msg']

    def test_the_apps_exit_code_is_passed_on(self, task):
        (task.parent / 'inputs' / 'dwi.bvals').write_text('0 1000\n')
        result = self.run(task, app='')
        assert result.returncode == 65
        assert 'exit code 65' in result.stderr
