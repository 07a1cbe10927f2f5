"""Which outputs are still what would be made now: as a call sees it before it computes anything."""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

from bidsapp import registry
from bidsapp.bids.dataset import select, subjects_of
from bidsapp.bids.outputs import files_of
from bidsapp.bids.prepared import find_prepared, with_references
from bidsapp.bids.provenance import FIELD, INSTEAD, basis, record
from bidsapp.bids.search import find_runs
from bidsapp.core import PARTS
from bidsapp.modalities.dwi.interfaces.corrections import Denoise
from bidsapp.modalities.dwi.interfaces.fibres import FindFibres
from bidsapp.workflows.basis import Asked, label_of, prediction_of
from bidsapp.workflows.plan import labelled_files, plan_run, sidecars

TASKS = ['orientation', 'tissue']
LABELS = [label_of(task) for task in TASKS]
SHA256 = 'ab' * 32
MODELS = {'tissue': (None, {'sha256': SHA256, 'name': 'x'}, None)}


@pytest.fixture
def there(quick_dataset, tmp_path):
    """A dataset, and what was asked of it; every output stands there, empty, with its record."""
    root = tmp_path / 'bids'
    shutil.copytree(quick_dataset / 'sub-01', root / 'sub-01')
    shutil.copy(quick_dataset / 'dataset_description.json', root)
    asked = Asked(tmp_path / 'out', TASKS, {'raw': root})
    fill(asked)
    assert not plan(asked).todo
    return asked


def plan(asked, models=MODELS):
    root = asked.roots['raw']
    (run,) = find_runs(select(root, tuple(subjects_of(root)), (), {}), ['dwi'], {})
    return plan_run(run, asked, models)


def fill(asked):
    """Write what a call would have made, in the order in which it rests on each other."""
    made = plan(asked)
    assert made.problem is None
    parts, entities = made.todo.bases, made.run.case.entities
    owners = {**dict.fromkeys(made.promised, 'preprocessing')}
    for task, source in made.todo.references.items():
        for output, said in registry.task(task).labels(source):
            owners |= dict.fromkeys(files_of(entities, output, said), label_of(task))
    for task in made.todo.predictions:
        for output in registry.task(task).writes:
            owners |= dict.fromkeys(files_of(entities, output, 'unet'), prediction_of(task))
    beside = set(sidecars(made.promised))
    for path, part in sorted(owners.items(), key=lambda item: item[1] != 'preprocessing'):
        target = asked.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        content = {FIELD: record(basis(parts[part]))} if path in beside else {}
        target.write_text(json.dumps(content))


def again(asked, models=MODELS):
    """Part → why it is made again."""
    return dict(plan(asked, models).todo.again)


ALL = {'preprocessing', *LABELS, prediction_of('tissue')}


def scan(asked, extension):
    return asked.roots['raw'] / f'sub-01/dwi/sub-01_dwi.{extension}'


def test_a_mended_table_makes_the_run_and_all_that_rests_on_it_again(there):
    table = np.loadtxt(scan(there, 'bvec'))
    np.savetxt(scan(there, 'bvec'), table * [[-1], [1], [1]])
    found = again(there)
    assert set(found) == ALL
    assert found['preprocessing'] == 'sub-01_dwi.bvec has changed'
    assert found[LABELS[0]] == 'the preprocessed run is made again'


def test_another_scan_in_its_place_is_seen_by_its_content(there):
    path = scan(there, 'nii.gz')
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    assert again(there)['preprocessing'] == 'sub-01_dwi.nii.gz has changed'


def test_a_copy_of_the_dataset_makes_nothing_again(there, tmp_path):
    moved = tmp_path / 'elsewhere'
    shutil.copytree(there.roots['raw'], moved, copy_function=shutil.copyfile)
    for path in moved.rglob('*.*'):
        os.utime(path, (1, 1))
    assert not plan(replace(there, roots={'raw': moved})).todo


def test_metadata_that_change_what_is_done_count(there):
    path = scan(there, 'json')
    path.write_text(json.dumps({**json.loads(path.read_text()), 'PartialFourier': 0.75}))
    assert again(there)['preprocessing'] == 'the JSON of the scan has changed'


def test_another_seed_is_another_result(there):
    assert again(replace(there, seed=7))['preprocessing'] == '--random-seed is 7, and was 0'


def test_what_volumes_count_as_unweighted_is_part_of_it(there, monkeypatch):
    from bidsapp.modalities.dwi.bids.runs import DwiRun

    told = DwiRun.told
    monkeypatch.setattr(DwiRun, 'told', lambda self: {**told(self), '--b0-threshold': 70.0})
    assert again(there)['preprocessing'] == '--b0-threshold is 70.0, and was 50.0'


def test_a_t1w_that_went_takes_what_rests_on_it_along(there):
    """It would have guided the correction of distortion, and fibres were found in its tissue."""
    (anatomy,) = there.roots['raw'].rglob('*_T1w.nii.gz')
    anatomy.unlink()
    found = again(there)
    assert found['preprocessing'] == 'sub-01_T1w.nii.gz is no longer used'
    assert plan(there).unavailable.keys() == {'tissue'}


def test_a_t1w_that_came_makes_what_can_use_it_again(there):
    (anatomy,) = there.roots['raw'].rglob('*_T1w.nii.gz')
    kept = anatomy.read_bytes()
    anatomy.unlink()
    shutil.rmtree(there.root)
    fill(there)
    anatomy.write_bytes(kept)
    assert again(there)['preprocessing'] == 'sub-01_T1w.nii.gz is new'


def test_a_step_of_the_preparation_whose_results_change_makes_all_again(there, monkeypatch):
    monkeypatch.setattr(Denoise, 'version', 2)
    assert set(again(there)) == ALL
    assert 'the step Denoise gives other results' in again(there)['preprocessing']


def test_a_step_of_a_label_makes_those_labels_again(there, monkeypatch):
    monkeypatch.setattr(FindFibres, 'version', FindFibres.version + 1)
    assert set(again(there)) == {label_of('orientation')}


@pytest.fixture
def of_tensor(there):
    """The direction of ``there`` is the tensor's, for the scan could not give that of csd."""
    case = plan(there).run.case
    for path in labelled_files(case, {'orientation': 'csd'}):
        other = there.root / str(path).replace('model-csd', 'model-tensor')
        (there.root / path).rename(other)
        if other.suffix == '.json':
            content = json.loads(other.read_text())
            content[FIELD][INSTEAD] = 'csd'
            other.write_text(json.dumps(content))
    return there


def test_a_label_that_was_made_instead_of_another_is_what_is_promised(of_tensor):
    made = plan(of_tensor)
    assert not made.todo
    assert not made.missing(of_tensor.root)


def test_a_label_made_instead_is_looked_at_like_any_other(of_tensor, monkeypatch):
    """And the one that the table allows is tried first again."""
    monkeypatch.setattr(FindFibres, 'version', FindFibres.version + 1)
    made = plan(of_tensor)
    assert made.todo.references == {'orientation': 'csd'}
    assert any('model-tensor' in path.name for path in made.todo.remove)


def test_a_label_that_the_scan_cannot_give_is_promised_no_longer(there):
    shutil.rmtree(there.root)
    made = plan(there)
    assert 'no tissue label: it is water' in made.settle('tissue', None, 'it is water')
    assert made.unavailable == {'tissue': 'it is water'}
    assert not any('tissue_desc-reference' in path.name for path in made.promised)
    made.settle('orientation', 'tensor', 'it is newborn')
    names = [path.name for path in made.promised if 'direction' in path.name]
    assert names
    assert all('model-tensor' in name for name in names)


def test_another_model_makes_its_predictions_again(there):
    models = {'tissue': (None, {'sha256': 'cd' * 32, 'name': 'x'}, None)}
    assert again(there, models) == {prediction_of('tissue'): 'the model has changed'}


def test_outputs_without_a_record_are_made_again(there):
    for path in there.root.rglob('*.json'):
        path.write_text('{}')
    assert set(again(there)) == ALL


def test_a_label_of_an_earlier_preparation_is_made_again(there):
    """As a call leaves it that was cut off after it wrote the run anew."""
    beside = there.root / 'sub-01/dwi/sub-01_desc-preproc_dwi.json'
    content = json.loads(beside.read_text())
    content[FIELD]['Sources'] = {k: {**v, 'SHA256': 'x'} for k, v in
                                 content[FIELD]['Sources'].items()}  # fmt: skip
    beside.write_text(json.dumps(content))
    found = again(there)
    assert set(found) == {*LABELS, prediction_of('tissue')}
    assert set(found.values()) == {'sub-01_desc-preproc_dwi was made again'}


def test_group_learns_from_no_label_of_an_earlier_preparation(there, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('transfermri'), 'propagate', True)
    (case,) = find_prepared(there.root, 'dwi')
    task = registry.task('orientation')
    assert with_references(there.root, [case], task)
    beside = there.root / 'sub-01/dwi/sub-01_desc-preproc_dwi.json'
    content = json.loads(beside.read_text())
    content[FIELD]['Options']['--random-seed'] = 9
    beside.write_text(json.dumps(content))
    with caplog.at_level('WARNING', 'transfermri'):
        assert not with_references(there.root, [case], task)
    assert 'another preparation of its run' in caplog.text
    for path in there.root.rglob('*direction_dwimap.json'):
        path.write_text('{"Description": "drawn by hand"}')
    assert with_references(there.root, [case], task)


@pytest.mark.parametrize(
    ('redo', 'parts'),
    [
        (PARTS, ALL), (['preprocessing'], ALL), (['labels'], set(LABELS)),
        (['predictions'], {prediction_of('tissue')}), (['page'], set()),
        (['tissue'], {label_of('tissue'), prediction_of('tissue')}),
        (['orientation'], {label_of('orientation')}),
    ],
)  # fmt: skip
def test_redo_makes_again_what_is_named_and_what_depends_on_it(there, redo, parts):
    assert set(again(replace(there, redo=frozenset(redo)))) == parts


def test_what_is_made_again_is_removed_first_and_images_before_the_rest(there):
    other = there.root / 'sub-01/dwi/sub-01_model-noddi_param-icvf_dwimap.nii.gz'
    other.write_text('of a task that this call is not about')
    foreign = there.root / 'sub-01/dwi/sub-01_mine.nii.gz'
    foreign.write_text('of the user')
    todo = plan(replace(there, redo=frozenset(['preprocessing']))).todo
    gone = {there.root / path for path in todo.remove}
    assert other in gone
    assert foreign not in gone
    assert gone == {*there.root.rglob('*.*')} - {foreign}
    for image in (path for path in gone if path.name.endswith('.nii.gz') and path != other):
        names = [there.root / path for path in todo.remove]
        beside = image.with_name(image.name.replace('.nii.gz', '.json'))
        assert names.index(image) < names.index(beside)


def test_a_run_that_cannot_be_looked_at_is_its_own_problem(there, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError('no')

    monkeypatch.setattr('bidsapp.workflows.plan.preparation_basis', broken)
    made = plan(there)
    assert 'ZeroDivisionError' in str(made.problem)
    assert not made.todo
