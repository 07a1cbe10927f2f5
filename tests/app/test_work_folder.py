"""The work folder: whose it is, what is removed from it, and which folders it cannot be."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bidsapp import __version__, participant
from bidsapp.bids.derivatives import write_dataset
from bidsapp.bids.runs import Size, Survey
from bidsapp.cli import main
from bidsapp.core import Case
from bidsapp.modalities.dwi.bids.runs import DwiRun
from bidsapp.modalities.dwi.physics.acquisition import Acquisition
from bidsapp.problems import Problem, WrongUsage
from bidsapp.resources import Limit
from bidsapp.settings import SIMULATED, Settings, check_folders
from bidsapp.workflows.participant import init_participant_wf, run_folder
from bidsapp.workflows.plan import RunPlan, Todo
from bidsapp.workflows.preparation import Place

OWN = f'transfermri-{__version__}'


def files(folder):
    """Every file below ``folder``, as text."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file())


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def run_of(subject, session=None, root=Path('/bids')):
    entities = {'subject': subject, 'datatype': 'dwi'}
    entities |= {'session': session} if session else {}
    files = {kind: root / kind for kind in ('dwi', 'bval', 'bvec')}
    return DwiRun('dwi', Case(entities, files))


@pytest.fixture
def settings(tmp_path):
    def make(**options):
        given = {
            'bids_dir': tmp_path / 'data' / 'bids',
            'output_dir': tmp_path / 'results' / 'out',
            'level': 'participant',
            'memory': Limit(4, 'the test'),
            'work_dir': tmp_path / 'work',
        }
        return Settings(**(given | options))

    return make


class TestCleaning:
    def test_only_what_participants_of_this_call_left_is_removed(self, settings, tmp_path):
        work = tmp_path / 'work'
        foreign = [
            work / 'thesis.txt',
            work / 'sub-01' / 'scan.nii.gz',
            work / 'cache' / 'nipype' / 'nipype.cfg',
            work / 'canonical-1' / 'kept',
            work / 'group' / 'state.safetensors',
            work / OWN / 'notes.txt',
            work / OWN / 'sub-011' / 'transfermri_wf' / 'sub_011_wf' / 'result',
            work / OWN / 'sub-03' / 'transfermri_wf' / 'sub_03_wf' / 'result',
            work / 'transfermri-0.0.1' / 'sub-01' / 'result',
        ]
        plans = [RunPlan(run_of(subject)) for subject in ('01', '02')]
        own = [run_folder(work, made.run) / 'motion' / 'result' for made in plans]
        batch = work / OWN / 'sub-01' / 'transfermri_wf' / 'batch' / 'job.sh'
        touch(*foreign, *own, batch)
        participant.clean(plans, settings())
        assert files(work) == sorted(str(path.relative_to(work)) for path in foreign)
        assert not (work / OWN / 'sub-01').exists()

    def test_a_participant_of_whom_a_run_failed_keeps_all(self, settings, tmp_path):
        work = tmp_path / 'work'
        plans = [RunPlan(run) for run in (run_of('01', 'a'), run_of('01', 'b'), run_of('02'))]
        plans[1].problem = Problem('its scan is no scan')
        touch(*(run_folder(work, made.run) / 'result' for made in plans))
        participant.clean(plans, settings())
        assert [p.name for p in (work / OWN).iterdir()] == ['sub-01']
        assert len(files(work)) == 2

    @pytest.mark.parametrize('option', [{'sessions': ('a',)}, {'filter_file': Path('f.json')}])
    def test_a_call_for_some_runs_leaves_others_of_the_participant(
        self, settings, tmp_path, option
    ):
        work = tmp_path / 'work'
        mine, other = run_of('01', 'a'), run_of('01', 'b')
        touch(*(run_folder(work, run) / 'result' for run in (mine, other)))
        participant.clean([RunPlan(mine)], settings(**option))
        assert not run_folder(work, mine).exists()
        assert (run_folder(work, other) / 'result').is_file()
        participant.clean([RunPlan(other)], settings(**option))
        assert not (work / OWN / 'sub-01').exists()

    def test_what_was_removed_already_is_no_matter(self, settings):
        participant.clean([RunPlan(run_of('01'))], settings())

    def test_where_a_link_leads_is_not_removed(self, settings, tmp_path):
        kept = tmp_path / 'elsewhere' / 'kept'
        touch(kept)
        (tmp_path / 'work' / OWN).mkdir(parents=True)
        (tmp_path / 'work' / OWN / 'sub-01').symlink_to(kept.parent)
        participant.clean([RunPlan(run_of('01'))], settings())
        assert kept.is_file()


class ListingPlugin:
    """Runs nothing; knows where each step would have worked."""

    plugin_args = None

    def run(self, graph, updatehash, config):
        self.nodes = list(graph.nodes())


def test_each_participants_steps_work_in_a_folder_of_their_own(tmp_path):
    work = tmp_path / 'work'
    runs = [run_of(*who, root=tmp_path) for who in (('01', 'a'), ('01', 'b'), ('02',))]
    touch(*runs[0].case.files.values())
    place = Place({'raw': tmp_path}, tmp_path / 'out', 0, 'cpu', 1)
    survey = Survey(Acquisition(6, ((1000.0, 6),), 1.5), Size(1, 1))
    wanted = [(run, Todo(preproc=True), survey) for run in runs]
    graph = init_participant_wf(wanted, work, place)
    listing = ListingPlugin()
    graph.run(plugin=listing)
    folders = [Path(node.output_dir()) for node in listing.nodes]
    inputs = [Path(source) for node in listing.nodes for source, _ in node.input_source.values()]
    for path in folders + inputs:
        assert sum(path.is_relative_to(run_folder(work, run)) for run in runs) == 1
    assert {path.relative_to(work).parts[:2] for path in folders} == {
        (OWN, 'sub-01'),
        (OWN, 'sub-02'),
    }
    assert not work.exists(), 'nothing of the graph stands outside of them'


@pytest.fixture
def place(tmp_path):
    """A dataset without scans, outputs, a derivative dataset, and a link to the folder of each."""
    roots = {name: tmp_path / name / 'folder' for name in ('bids', 'out', 'qsiprep')}
    touch(roots['bids'] / 'sub-01' / 'dwi' / 'scan', roots['out'] / 'result')
    descriptions = {
        'bids': {'Name': 'x', 'BIDSVersion': '1.10.0'},
        'qsiprep': {'DatasetType': 'derivative', 'GeneratedBy': [{'Name': 'QSIPrep'}]},
    }
    for name, description in descriptions.items():
        roots[name].mkdir(parents=True, exist_ok=True)
        (roots[name] / 'dataset_description.json').write_text(json.dumps(description))
    for name, root in roots.items():
        (tmp_path / f'link-to-{name}').symlink_to(root)
        (tmp_path / f'link-above-{name}').symlink_to(root.parent)
    return tmp_path


HELD = {'bids': 'BIDS_DIR', 'out': 'OUTPUT_DIR', 'qsiprep': '-d qsiprep'}
REFUSED = [
    (f'{name}{below}', name, how)
    for name in HELD
    for below, how in (('/folder', 'is'), ('', 'contains'))
] + [
    (f'link-{where}-{name}', name, how)
    for name in HELD
    for where, how in (('to', 'is'), ('above', 'contains'))
]


@pytest.mark.parametrize('level', ['participant', 'group'])
@pytest.mark.parametrize(('work', 'name', 'how'), REFUSED)
def test_a_folder_with_data_is_refused_and_stays(
    place, monkeypatch, capsys, work, name, how, level
):
    monkeypatch.setattr('os.environ', os.environ.copy())
    before = files(place)
    argv = [place / 'bids' / 'folder', place / 'out' / 'folder', level, '-w', place / work]
    argv += ['-d', f'qsiprep={place / "qsiprep" / "folder"}', '--clean-workdir']
    assert main([str(arg) for arg in argv]) == 64
    said = capsys.readouterr().err
    assert f'The work folder {(place / work).resolve()} {how} {HELD[name]}' in said
    assert 'expected one that holds intermediate files and nothing else. Give -w a folder' in said
    assert files(place) == before


def test_a_dataset_that_is_itself_named_by_a_link_is_seen(place, settings):
    given = settings(
        bids_dir=place / 'link-to-bids', output_dir=place / 'new', work_dir=place / 'bids'
    )
    with pytest.raises(WrongUsage, match='contains BIDS_DIR'):
        check_folders(given)
    assert not (place / 'new').exists()


@pytest.mark.parametrize('bids', [SIMULATED, Path('/data/auxiliary')])
def test_pretrain_is_held_to_the_same(tmp_path, settings, bids):
    given = settings(bids_dir=bids, level='pretrain', work_dir=tmp_path)
    with pytest.raises(WrongUsage, match='contains OUTPUT_DIR'):
        check_folders(given)
    assert not given.output_dir.exists()


@pytest.mark.parametrize('work', ['results/out/.work', 'results/work', 'data/work', 'results/ou'])
def test_a_folder_beside_or_below_the_outputs_is_fine(tmp_path, settings, work):
    given = settings(work_dir=tmp_path / work)
    check_folders(given)
    assert given.work_dir.is_dir()


def test_a_run_that_failed_resumes_and_nothing_is_left_of_one_that_finished(few, tmp_path, app):
    broken = few / 'sub-02' / 'dwi' / 'sub-02_dwi.nii.gz'  # without a gradient table
    broken.parent.mkdir(parents=True)
    broken.write_bytes((few / 'sub-01' / 'dwi' / 'sub-01_dwi.nii.gz').read_bytes())
    out, work = tmp_path / 'out', tmp_path / 'work'
    in_the_way = out / 'sub-01' / 'dwi'
    foreign = [work / 'mine.txt', *(work / OWN / f'sub-0{n}' / 'result' for n in (2, 3))]
    write_dataset(out, few)
    touch(in_the_way, *foreign)
    argv = [few, out, 'participant', '-w', work, '--clean-workdir', '--device', 'cpu', '-v']
    argv += ['--tasks', 'orientation']
    first = app(*argv)
    assert 'FAILED sub-01' in first.stdout, first.stdout + first.stderr
    assert list((work / OWN / 'sub-01').rglob('result_motion.pklz'))
    in_the_way.unlink()
    again = app(*argv)
    assert again.returncode == 1, again.stdout + again.stderr
    assert 'FAILED sub-02' in again.stdout
    assert '1 of 2 runs finished' in again.stdout
    assert 'start transfermri_wf.dwi_sub_01_wf.dwi_preproc_wf.ds_preproc' in again.stdout
    assert 'dwi_preproc_wf.motion' not in again.stdout, 'it was done before the failure'
    assert not (work / OWN / 'sub-01').exists()
    assert all(path.is_file() for path in foreign)
    assert (in_the_way / 'sub-01_desc-preproc_dwi.nii.gz').is_file()
