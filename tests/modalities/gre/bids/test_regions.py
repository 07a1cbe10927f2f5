"""Regions and maps of the user's: found by the names of their runs, and refused where they err."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from bidsapp import registry
from bidsapp.bids.prepared import find_prepared, given_reference, with_references
from bidsapp.modalities.gre.bids.regions import TABLES, tables
from bidsapp.problems import BadData, MissingInput
from bidsapp.workflows.basis import Asked, label_basis, preparation_basis
from bidsapp.workflows.plan import labelled_files
from tests.modalities.gre.skeletons import SHAPE, affine_of, image, only, write_run
from tests.modalities.prepared import PREPARED

TABLE = 'index\tname\n1\tCaudate\n4\tLateral Ventricles\n'


@pytest.fixture
def raw(tmp_path):
    write_run(tmp_path / 'raw')
    return tmp_path / 'raw'


def labels(folder, name='sub-01_seg-nuclei_dseg', table=TABLE, **more):
    path = image(folder / f'sub-01/anat/{name}.nii.gz', np.ones(SHAPE), **more)
    if table:
        path.with_name(f'{name}.tsv').write_text(table)
    return path


def of(raw, folder, reference=None):
    options = {} if reference is None else {'reference': reference}
    return only(raw, options=options, **({'dseg': folder} if folder else {}))


def test_labels_are_found_by_the_name_of_their_run(raw, tmp_path):
    labels(tmp_path / 'dseg', 'sub-01_acq-fast_dseg')
    labels(tmp_path / 'dseg', 'sub-01_space-T1w_dseg')
    path = labels(tmp_path / 'dseg')
    run = of(raw, tmp_path / 'dseg')
    assert run.case.files['dseg'] == path
    assert run.problem is None
    assert any(path.name in note for note in run.notes)


def test_without_labels_there_is_no_table_and_that_is_said(raw, tmp_path):
    (tmp_path / 'dseg').mkdir()
    run = of(raw, tmp_path / 'dseg')
    assert 'dseg' not in run.case.files
    assert any('no table of regions' in note for note in run.notes)
    assert tables(run.case) == ()


@pytest.mark.parametrize('reference', ['4', 'lateral ventricles', 'Lateral Ventricles'])
def test_the_reference_is_a_label_by_index_or_name(raw, tmp_path, reference):
    labels(tmp_path / 'dseg')
    run = of(raw, tmp_path / 'dseg', reference)
    assert run.case.part == {'reference': 'Lateral Ventricles', 'index': 4}


def test_labels_without_a_table_have_indices(raw, tmp_path):
    labels(tmp_path / 'dseg', table='')
    assert of(raw, tmp_path / 'dseg', '7').case.part == {'reference': '7', 'index': 7}
    assert isinstance(of(raw, tmp_path / 'dseg', 'fluid').problem, BadData)


@pytest.mark.parametrize(
    ('table', 'reference', 'words'),
    [(TABLE, 'Thalamus', '1 Caudate'), (TABLE, '9', '4 Lateral'), ('a\tb\n1\t2\n', '4', 'columns')],
)
def test_a_reference_that_is_no_label_is_the_runs_problem(raw, tmp_path, table, reference, words):
    labels(tmp_path / 'dseg', table=table)
    problem = of(raw, tmp_path / 'dseg', reference).problem
    assert isinstance(problem, BadData)
    assert words in str(problem)


def test_a_reference_without_labels_is_missing(raw):
    problem = of(raw, None, 'Caudate').problem
    assert isinstance(problem, MissingInput)
    assert '-d dseg' in str(problem)


def test_labels_on_another_grid_are_the_runs_problem(raw, tmp_path):
    labels(tmp_path / 'dseg', affine=affine_of((1.0, 1.0, 2.5)))
    assert 'onto the grid' in str(of(raw, tmp_path / 'dseg').problem)


def test_labels_and_reference_change_what_the_label_is_made_from_and_not_the_field(raw, tmp_path):
    labels(tmp_path / 'dseg')
    asked = Asked(tmp_path / 'out', ['susceptibility'], {'raw': raw, 'dseg': tmp_path / 'dseg'})
    plain, with_labels = of(raw, None), of(raw, tmp_path / 'dseg')
    referenced = of(raw, tmp_path / 'dseg', '1')
    made = [label_basis(run, 'susceptibility', asked) for run in (plain, with_labels, referenced)]
    assert 'bids:dseg:sub-01/anat/sub-01_seg-nuclei_dseg.nii.gz' in made[1].sources
    assert [basis.options['--reference'] for basis in made] == [
        'whole-brain', 'whole-brain', 'Caudate'
    ]  # fmt: skip
    fields = [preparation_basis(run, asked) for run in (plain, referenced)]
    assert fields[0].plain() == fields[1].plain()
    promised = labelled_files(with_labels.case, {'susceptibility': 'reference'})
    names = {path.name for path in promised}
    assert {f'sub-01_desc-susceptibility_stats{t["extension"]}' for t in TABLES} <= names
    assert {f'sub-01_desc-{m}_Chimap.nii.gz' for m in ('reference', 'tkd', 'tikhonov')} <= names


class TestMaps:
    @pytest.fixture
    def case(self, tmp_path):
        PREPARED['gre'](tmp_path / 'out', affine_of())
        (found,) = find_prepared(tmp_path / 'out', 'gre')
        return found

    @pytest.fixture
    def task(self):
        return registry.task('susceptibility')

    def chi(self, case, folder, name='sub-01_desc-cosmos_Chimap', **more):
        shape = image_shape(case)
        return image(folder / f'sub-01/anat/{name}.nii.gz', np.ones(shape), **more)

    def test_a_map_is_learnt_from_where_it_lies(self, case, task, tmp_path):
        path = self.chi(case, tmp_path / 'maps')
        self.chi(case, tmp_path / 'maps', 'sub-01_desc-uncertainty_Chimap')
        self.chi(case, tmp_path / 'maps', 'sub-01_acq-other_Chimap')
        given = {'chimap': tmp_path / 'maps'}
        (found,) = with_references(tmp_path / 'out', [case], task, given)
        assert found.files['chi'] == path
        assert not with_references(tmp_path / 'out', [case], task)  # nothing was derived

    def test_two_maps_of_one_run_are_not_chosen_from(self, case, task, tmp_path, caplog, logged):
        self.chi(case, tmp_path / 'maps')
        self.chi(case, tmp_path / 'maps', 'sub-01_Chimap')
        with pytest.raises(BadData, match='maps of one run'):
            given_reference(tmp_path / 'maps', case, task)
        given = {'chimap': tmp_path / 'maps'}
        assert not with_references(tmp_path / 'out', [case], task, given)
        assert 'sub-01 is left out' in caplog.text

    def test_a_map_on_another_grid_is_refused(self, case, task, tmp_path):
        self.chi(case, tmp_path / 'maps', affine=affine_of((1.0, 1.0, 2.5)))
        with pytest.raises(BadData, match='grid'):
            given_reference(tmp_path / 'maps', case, task)

    @pytest.fixture
    def logged(self, monkeypatch):
        monkeypatch.setattr(logging.getLogger('transfermri'), 'propagate', True)


def image_shape(case):
    from bidsapp.bids.images import open_image

    return open_image(case.files['field']).shape
