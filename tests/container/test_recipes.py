"""What the two recipes promise, read from their text; run.sh builds the image and runs it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from bidsapp.interfaces.base import Step

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SCRIPTS = sorted(HERE.glob('*.sh'))


def instructions(stage: str) -> list[tuple[str, str]]:
    """(instruction, arguments) of a stage, continued lines joined, comments left out."""
    lines = [line for line in stage.splitlines() if not line.lstrip().startswith('#')]
    joined = re.sub(r'\\\n', ' ', '\n'.join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


DOCKERFILE = (ROOT / 'Dockerfile').read_text(encoding='utf-8')
_, BUILDER, FINAL = (instructions(part) for part in re.split(r'^(?=FROM )', DOCKERFILE, flags=re.M))
ARGUMENTS = dict(rest.split('=', 1) for name, rest in FINAL if name == 'ARG')
DEFINITION = (ROOT / 'Singularity.def').read_text(encoding='utf-8')
SECTIONS = {
    part.split(maxsplit=1)[0]: part.partition('\n')[2]
    for part in re.split(r'^%', DEFINITION, flags=re.M)[1:]
}


class TestDockerfile:
    def test_both_stages_are_of_the_same_slim_debian(self):
        assert re.search(r'^ARG BASE=(\S+)$', DOCKERFILE, re.M)[1] == 'debian:bookworm-slim'
        assert BUILDER[0] == ('FROM', '${BASE} AS builder')
        assert FINAL[0] == ('FROM', '${BASE}')

    def test_nothing_is_installed_from_pip_in_the_last_stage(self):
        copies = [rest for name, rest in FINAL if name == 'COPY']
        assert copies == ['--from=builder /opt/venv /opt/venv']
        assert not [rest for name, rest in FINAL if name == 'RUN' and 'pip' in rest]

    @pytest.mark.parametrize('stage', [BUILDER, FINAL], ids=['builder', 'final'])
    def test_package_lists_do_not_stay(self, stage):
        updates = [rest for name, rest in stage if name == 'RUN' and 'apt-get update' in rest]
        assert len(updates) == 1
        assert '--no-install-recommends' in updates[0]
        assert 'rm -rf /var/lib/apt/lists/*' in updates[0]

    def test_one_file_makes_both_variants_from_the_lock(self):
        install = next(rest for name, rest in BUILDER if name == 'RUN' and 'requirements' in rest)
        assert re.search(r'cpu\) pip install --no-deps .*torch==', install)
        assert re.search(r'gpu\) ;;', install)
        assert install.endswith('pip install --requirement requirements.lock')

    def test_a_gpu_is_asked_for(self):
        environment = next(rest for name, rest in FINAL if name == 'ENV')
        assert {'NVIDIA_VISIBLE_DEVICES=all', 'NVIDIA_DRIVER_CAPABILITIES=compute,utility'} <= set(
            environment.split()
        )

    @pytest.mark.parametrize(
        'name', ['title', 'description', 'version', 'revision', 'licenses', 'source', 'vendor']
    )
    def test_it_is_labelled(self, name):
        labels = dict(
            pair.split('=', 1)
            for instruction, rest in FINAL
            if instruction == 'LABEL'
            for pair in shlex.split(rest)
        )
        assert labels[f'org.opencontainers.image.{name}']

    def test_it_states_its_version_in_a_file(self):
        assert any('echo "${VERSION}" > /version' in rest for name, rest in FINAL if name == 'RUN')

    def test_files_of_the_build_do_not_stay_in_tmp(self):
        runs = [rest for name, rest in FINAL if name == 'RUN']
        assert runs[-1].endswith('find /tmp -mindepth 1 -delete')


class TestDefinition:
    def test_it_has_the_sections_that_users_ask_for(self):
        assert set(SECTIONS) == {'labels', 'help', 'runscript', 'test'}

    def test_it_is_made_from_the_image_of_the_dockerfile(self):
        reference = re.search(r'^From: (\S+)$', DEFINITION, re.M)[1]
        assert re.search(r'^Bootstrap: docker$', DEFINITION, re.M)
        assert reference == f'{ARGUMENTS["IMAGE"]}:{ARGUMENTS["VERSION"]}'

    def test_it_runs_what_the_image_runs_with_all_arguments(self):
        entry = json.loads(next(rest for name, rest in FINAL if name == 'ENTRYPOINT'))
        assert SECTIONS['runscript'].split('\n')[-3].strip() == f'exec {entry[0]} "$@"'

    @pytest.mark.parametrize('section', ['runscript', 'test'])
    def test_packages_of_the_host_are_not_seen(self, section):
        assert 'unset PYTHONPATH PYTHONHOME' in SECTIONS[section]

    def test_its_test_stops_at_the_first_failure(self):
        """Apptainer runs it by a plain sh, where only the last command would count."""
        commands = [
            line.strip()
            for line in SECTIONS['test'].splitlines()
            if line.strip() and not line.strip().startswith('#')
        ]
        assert commands[0] == 'set -e'

    def test_its_test_is_right_about_the_package(self):
        """The statements on weights and template run here as they will there."""
        statements = re.findall(r"\$python -c '(from bidsapp[^']*)'", SECTIONS['test'])
        assert len(statements) == 2
        for statement in statements:
            subprocess.run([sys.executable, '-c', statement], cwd=ROOT, check=True)

    def test_the_help_says_how_to_run_it_sealed_off(self):
        for flag in ('--containall', '--writable-tmpfs', '--nv', '--bind'):
            assert flag in SECTIONS['help']


class TestScripts:
    @pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: path.name)
    def test_they_parse_run_and_stop_at_errors(self, path):
        assert os.access(path, os.X_OK)
        assert re.search(r'^set -euo pipefail$', path.read_text(encoding='utf-8'), re.M)
        subprocess.run(['bash', '-n', path], check=True)

    def test_every_check_calls_a_function_that_there_is(self):
        script = (HERE / 'run.sh').read_text(encoding='utf-8')
        called = re.findall(r"^    check '[^']+' (?:\\\n\s+)?(\w+)", script, re.M)
        assert len(called) >= 11
        assert set(called) <= set(re.findall(r'^(\w+)\(\) \{', script, re.M))


class TestPipHandover:
    @pytest.fixture
    def handed(self, tmp_path):
        """(pip.conf of the build, volumes) from a configuration with one of each kind."""
        for name in ('wheels', 'mirror/simple', 'mirror/files'):
            (tmp_path / name).mkdir(parents=True)
        (tmp_path / 'pins.txt').write_text('numpy<3\n', encoding='utf-8')
        settings = tmp_path / 'pip.conf'
        settings.write_text(
            f'[global]\nconstraint = {tmp_path}/pins.txt\nextra-index-url =\n'
            f'    file://{tmp_path}/mirror/simple\n    https://mirror.invalid/simple\n'
            '[install]\nquiet = 1\n',
            encoding='utf-8',
        )
        environment = {
            'PATH': '/nonexistent',  # so that it is this interpreter's pip
            'HOME': str(tmp_path),
            'PIP_CONFIG_FILE': str(settings),
            'PIP_FIND_LINKS': str(tmp_path / 'wheels'),
        }
        if importlib.util.find_spec('pip') is None:
            pytest.skip('this environment has no pip')
        out = tmp_path / 'handed'
        volumes = subprocess.run(
            [sys.executable, HERE / 'host_pip.py', out],
            env=environment, check=True, capture_output=True, text=True,
        ).stdout.split()  # fmt: skip
        return out, volumes

    def test_folders_become_volumes_and_paths_are_those_of_the_build(self, handed, tmp_path):
        out, volumes = handed
        text = (out / 'pip.conf').read_text(encoding='utf-8')
        assert str(tmp_path) not in text
        targets = dict(volume.removesuffix(':ro').split(':') for volume in volumes)
        assert all(volume.endswith(':ro') for volume in volumes)
        assert targets[str(out / 'pip.conf')] == '/etc/pip.conf'
        assert f'find-links = {targets[str(tmp_path / "wheels")]}\n' in text
        # The whole mirror, because its index links to ../../files.
        assert f'file://{targets[str(tmp_path / "mirror")]}/simple\n' in text
        assert 'https://mirror.invalid/simple' in text

    def test_files_that_it_names_go_along_and_tastes_do_not(self, handed):
        out, _ = handed
        text = (out / 'pip.conf').read_text(encoding='utf-8')
        assert 'constraint = /run/pip/constraint-pins.txt\n' in text
        assert (out / 'constraint-pins.txt').read_text(encoding='utf-8') == 'numpy<3\n'
        assert 'quiet' not in text


class Scribbler(Step):
    """A step that says where its temporary files would stand."""

    class input_spec(Step.input_spec):  # noqa: N801  Nipype's name
        """Nothing is needed."""

    def step(self, folder):
        with tempfile.NamedTemporaryFile() as file:
            self.place = Path(file.name).parent
        return {}


def test_temporary_files_of_a_step_stand_in_its_folder(tmp_path, monkeypatch):
    """Not in /tmp, which holds 64 MB under ``apptainer --containall``."""
    monkeypatch.chdir(tmp_path)
    before = tempfile.gettempdir()
    step = Scribbler()
    step.run()
    assert step.place == tmp_path
    assert tempfile.gettempdir() == before
