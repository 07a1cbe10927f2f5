"""What the files around the code promise: versions, pins, the image, a set-up that rests."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import bidsapp

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ['requirements.lock', 'requirements-test.lock']
WORKFLOWS = sorted((ROOT / '.github' / 'workflows').glob('*.yml'))
#: The jobs that may do more than read, and what.
GRANTED = {
    ('release', 'image'): {
        'contents': 'read',
        'packages': 'write',
        'id-token': 'write',
        'attestations': 'write',
    }
}


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding='utf-8')


def pins(name: str) -> dict[str, str]:
    lines = [line for line in text(name).splitlines() if not line.startswith('#')]
    return dict(line.split('==') for line in lines)


def final_stage() -> str:
    return text('Dockerfile').rpartition('\nFROM ')[2]


@pytest.fixture(scope='module')
def project() -> dict:
    return tomllib.loads(text('pyproject.toml'))


class TestVersion:
    def test_the_package_states_it(self, project):
        assert 'version' in project['project']['dynamic']
        assert project['tool']['setuptools']['dynamic']['version'] == {
            'attr': 'bidsapp.__version__'
        }

    def test_the_citation_agrees(self):
        assert str(yaml.safe_load(text('CITATION.cff'))['version']) == bidsapp.__version__

    def test_the_image_agrees(self):
        assert set(re.findall(r'^ARG VERSION=(\S+)', text('Dockerfile'), re.M)) == {
            bidsapp.__version__
        }
        assert 'org.opencontainers.image.version="${VERSION}"' in final_stage()

    def test_the_apptainer_recipe_agrees(self):
        recipe = text('Singularity.def')
        assert re.search(r'^From: \S+:(\S+)$', recipe, re.M)[1] == bidsapp.__version__
        assert f'image.version {bidsapp.__version__}\n' in recipe


def test_the_licence_is_the_same_everywhere(project):
    assert project['project']['license'] == 'Apache-2.0'
    assert yaml.safe_load(text('CITATION.cff'))['license'] == 'Apache-2.0'
    assert 'org.opencontainers.image.licenses="Apache-2.0"' in final_stage()
    assert 'Apache License\n' in text('LICENSE')


def test_what_is_under_other_licences_than_permissive_ones_is_named():
    """By what the packages say of themselves."""
    for name in pins('requirements.lock'):
        about = metadata.metadata(name)
        said = [about['License-Expression'] or '', *(about.get_all('Classifier') or [])]
        if re.search(r'GPL|MPL|General Public|Mozilla', ' '.join(said)):
            assert f'| {name} |' in text('NOTICE.md'), name
    assert 'nilearn' in text('NOTICE.md')
    assert 'NOTICE.md' in text('Dockerfile')


class TestLockFiles:
    @pytest.mark.parametrize('name', LOCKS)
    def test_every_line_is_one_exact_public_version(self, name):
        """No hash, index, path, marker or local version such as +cpu."""
        for line in text(name).splitlines():
            assert line.startswith('#') or re.fullmatch(r'[a-z0-9-]+==[0-9][0-9a-z.]*', line), line

    @pytest.mark.parametrize('name', LOCKS)
    def test_torch_is_the_one_that_was_tested(self, name):
        assert pins(name)['torch'] == '2.13.0'

    def test_tests_run_with_what_users_run(self):
        assert pins('requirements.lock').items() <= pins('requirements-test.lock').items()

    @pytest.mark.parametrize(('name', 'extra'), [(LOCKS[0], None), (LOCKS[1], 'test')])
    def test_the_lock_answers_the_requirements(self, project, name, extra):
        """The build backend is among them, because the project is built without isolation."""
        wanted = [*project['build-system']['requires'], *project['project']['dependencies']]
        wanted += project['project']['optional-dependencies'].get(extra, [])
        locked = pins(name)
        for requirement in map(Requirement, wanted):
            version = locked[requirement.name.lower()]
            assert requirement.specifier.contains(version), f'{requirement}, locked {version}'

    def test_the_commit_hooks_use_the_same_ruff(self):
        hooks = set(re.findall(r'ruff==([0-9.]+)', text('.pre-commit-config.yaml')))
        assert hooks == {pins('requirements-test.lock')['ruff']}


@pytest.mark.parametrize('path', WORKFLOWS, ids=lambda path: path.stem)
class TestWorkflows:
    def test_actions_are_pinned_to_a_commit(self, path):
        uses = re.findall(r'uses:\s*(.*)', path.read_text(encoding='utf-8'))
        assert uses
        for action in uses:
            assert re.fullmatch(r'[\w-]+/[\w./-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+', action), action

    def test_they_may_only_read_and_do_not_run_for_ever(self, path):
        workflow = yaml.safe_load(path.read_text(encoding='utf-8'))
        assert workflow['permissions'] == {'contents': 'read'}
        assert workflow['concurrency']
        for name, job in workflow['jobs'].items():
            assert job['timeout-minutes'] <= 90
            granted = job.get('permissions', workflow['permissions'])
            assert granted == GRANTED.get((path.stem, name), {'contents': 'read'})


def test_there_are_workflows():
    assert {path.stem for path in WORKFLOWS} >= {'test', 'lint', 'container', 'release'}


class TestRelease:
    @pytest.fixture
    def steps(self):
        workflow = yaml.safe_load(text('.github/workflows/release.yml'))
        assert workflow[True] == {'push': {'tags': ['v*']}}  # YAML 1.1 reads `on` as true
        return workflow['jobs']['image']['steps']

    @staticmethod
    def uses(steps: list[dict], action: str) -> list[dict]:
        return [step for step in steps if step.get('uses', '').startswith(f'{action}@')]

    def test_both_variants_are_built(self):
        job = yaml.safe_load(text('.github/workflows/release.yml'))['jobs']['image']
        variants = {one['variant'] for one in job['strategy']['matrix']['include']}
        assert variants == {'cpu', 'gpu'}
        assert job['env']['IMAGE'] == re.search(r'^ARG IMAGE=(\S+)', text('Dockerfile'), re.M)[1]

    def test_what_is_pushed_was_tried_and_is_attested(self, steps):
        tried, pushed = self.uses(steps, 'docker/build-push-action')
        assert tried['with']['load'] is True
        assert 'push' not in tried['with']
        assert pushed['with']['push'] is True
        assert pushed['with']['provenance'] == 'mode=max'
        assert pushed['with']['sbom'] is True
        for key in ('context', 'build-args'):
            assert tried['with'][key] == pushed['with'][key]
        (statement,) = self.uses(steps, 'actions/attest-build-provenance')
        assert statement['with']['subject-digest'] == (
            '${{ steps.' + pushed['id'] + '.outputs.digest }}'
        )
        smoke = next(i for i, step in enumerate(steps) if step.get('name') == 'Smoke')
        assert steps.index(tried) < smoke < steps.index(pushed) < steps.index(statement)

    @pytest.mark.parametrize(
        ('tag', 'variant', 'alone', 'tags'),
        [
            (f'v{bidsapp.__version__}', 'cpu', 'false', ['IMAGE:VERSION-cpu']),
            (f'v{bidsapp.__version__}', 'gpu', 'true', ['IMAGE:VERSION-gpu', 'IMAGE:VERSION']),
            ('v0.0.0', 'gpu', 'true', None),
        ],
    )
    def test_a_tag_that_is_not_the_version_releases_nothing(
        self, steps, tmp_path, tag, variant, alone, tags
    ):
        (script,) = (step['run'] for step in steps if step.get('id') == 'version')
        output = tmp_path / 'output'
        environment = {
            'PATH': os.environ['PATH'], 'GITHUB_REF_NAME': tag, 'GITHUB_OUTPUT': str(output),
            'IMAGE': 'IMAGE', 'VARIANT': variant, 'ALONE': alone,
        }  # fmt: skip
        result = subprocess.run(['bash', '-e', '-c', script], cwd=ROOT, env=environment)
        assert (result.returncode == 0) == (tags is not None)
        if tags is not None:
            lines = output.read_text(encoding='utf-8').splitlines()
            wanted = [name.replace('VERSION', bidsapp.__version__) for name in tags]
            assert lines == ['tags<<END', *wanted, 'END']


class TestImage:
    def test_the_entry_point_is_a_program_without_a_shell(self):
        entry = re.search(r'^ENTRYPOINT (.*)$', final_stage(), re.M)[1]
        assert json.loads(entry) == ['/opt/venv/bin/transfermri']

    def test_nothing_that_it_runs_writes_to_its_home(self):
        environment = dict(re.findall(r'(\w+)=(\S+)(?: \\)?$', final_stage(), re.M))
        assert environment['HOME'] == '/tmp'
        assert environment['XDG_CACHE_HOME'].startswith('/tmp/')
        assert environment['PYTHONNOUSERSITE'] == '1'

    def test_dependencies_come_before_the_code(self):
        recipe = text('Dockerfile')
        assert recipe.index('--requirement requirements.lock') < recipe.index('COPY bidsapp')

    def test_what_is_copied_is_in_the_build_context_and_nothing_else(self):
        copied = set()
        for sources in re.findall(r'^COPY (?!--from)(.*) \S+$', text('Dockerfile'), re.M):
            copied |= set(sources.split())
        rules = [line for line in text('.dockerignore').splitlines() if not line.startswith('#')]
        assert rules[0] == '*'
        assert {rule[1:] for rule in rules if rule.startswith('!')} == copied
        assert all((ROOT / name).exists() for name in copied)


class TestSetUp:
    def test_continuous_integration_is_make_test(self):
        assert os.access(ROOT / '.ci' / 'run', os.X_OK)
        assert text('.ci/run').splitlines()[-1] == 'exec make test'

    def test_pytest_has_the_last_word(self):
        last = self.make(ROOT, '--dry-run', 'test').splitlines()[-1]
        assert last.startswith('.venv/bin/python -m pytest')

    def test_nothing_is_installed_twice(self, tmp_path):
        """Only other content installs again; a newer date does not."""
        for name in ('Makefile', 'pyproject.toml', *LOCKS):
            shutil.copy(ROOT / name, tmp_path)
        python = tmp_path / '.venv' / 'bin' / 'python'
        python.parent.mkdir(parents=True)
        python.write_text('#!/bin/sh\n', encoding='utf-8')
        python.chmod(0o755)
        assert 'pip install' in self.make(tmp_path, 'install')
        lock = tmp_path / 'requirements.lock'
        os.utime(lock, (2**31, 2**31))
        assert 'pip install' not in self.make(tmp_path, 'install')
        lock.write_text(text('requirements.lock') + 'another==1.0\n', encoding='utf-8')
        assert 'pip install' in self.make(tmp_path, 'install')

    @staticmethod
    def make(folder: Path, *arguments: str) -> str:
        if shutil.which('make') is None:
            pytest.skip('make is not installed')
        environment = {key: os.environ[key] for key in ('PATH', 'HOME') if key in os.environ}
        command = ['make', '--no-print-directory', *arguments]
        return subprocess.run(
            command, cwd=folder, env=environment, check=True, capture_output=True, text=True
        ).stdout


def test_no_large_file_is_tracked():
    listing = subprocess.run(
        ['git', '-C', str(ROOT), 'ls-files', '-z'], capture_output=True, text=True, check=False
    )
    if listing.returncode:
        pytest.skip('not a git checkout')
    paths = [ROOT / name for name in listing.stdout.split('\0') if name]
    weights = {
        ROOT / 'bidsapp' / 'models',  # whose size is bounded by each modality's tests
        ROOT / 'tests' / 'modalities' / 'dwi' / 'learn' / 'v2',
    }  # a model of before
    large = [
        str(path)
        for path in paths
        if path.is_file() and path.stat().st_size > 6_000_000 and not weights & {*path.parents}
    ]
    assert not large


def test_a_long_file_says_why_it_is_one():
    for path in (ROOT / 'bidsapp').rglob('*.py'):
        content = path.read_text(encoding='utf-8')
        if len(content.splitlines()) > 300:
            assert 'Over 300 lines' in (ast.get_docstring(ast.parse(content)) or ''), path
