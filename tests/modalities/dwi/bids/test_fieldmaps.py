"""Which field maps belong to a run: links before places, metadata before names, never a guess."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from bidsapp.bids.dataset import select
from bidsapp.modalities.dwi.bids.fieldmaps import choose_distortion
from bidsapp.modalities.dwi.bids.runs import runs_of

LAS = np.diag([-2.0, 2, 2, 1])
#: The same place and orientation, but rows stored from front to back: 'j' is the other way there.
FLIPPED = LAS @ np.diag([1.0, -1, 1, 1])
AP = {'PhaseEncodingDirection': 'j-', 'TotalReadoutTime': 0.05}
PA = {'PhaseEncodingDirection': 'j', 'TotalReadoutTime': 0.05}
PHASEDIFF = {'EchoTime1': 0.00492, 'EchoTime2': 0.00738}
RUN = 'sub-01/dwi/sub-01_dir-AP_dwi'


class Tree:
    """A dataset that grows image by image."""

    def __init__(self, root):
        self.root = root
        (root / 'dataset_description.json').write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')

    def add(self, name, metadata=None, bvals=None, shape=(4, 5, 6), affine=LAS):
        path = self.root / f'{name}.nii.gz'
        path.parent.mkdir(parents=True, exist_ok=True)
        volumes = () if bvals is None else (len(bvals),)
        nib.save(nib.Nifti1Image(np.zeros((*shape, *volumes), np.int16), affine), path)
        if metadata is not None:
            (self.root / f'{name}.json').write_text(json.dumps(metadata))
        if bvals is not None:
            (self.root / f'{name}.bval').write_text(' '.join(map(str, bvals)))
            (self.root / f'{name}.bvec').write_text('\n'.join(['0 ' * len(bvals)] * 3))
        return self

    def dwi(self, name, metadata, **options):
        return self.add(name, metadata, **{'bvals': [0, 1000], **options})

    def measured(self, metadata=PHASEDIFF, session='sub-01', start='sub-01'):
        for suffix, said in (('phasediff', metadata), ('magnitude1', {}), ('magnitude2', {})):
            self.add(f'{session}/fmap/{start}_{suffix}', said)
        return self

    def run(self, name='sub-01_dir-AP', **options):
        runs = runs_of(select(self.root, ['01'], **options))
        return next(run for run in runs if run.name == name)


@pytest.fixture
def tree(tmp_path):
    """One participant with one run from front to back."""
    return Tree(tmp_path).dwi(RUN, AP)


def kinds(run):
    return [c.method for c in choose_distortion(run).candidates]


def opposite(run):
    return run.fieldmaps[0].files['opposite'].name


def test_the_order_is_pair_measured_t1w_none(tree):
    tree.dwi('sub-01/dwi/sub-01_dir-PA_dwi', PA).measured().add('sub-01/anat/sub-01_T1w')
    run = tree.run()
    assert kinds(run) == ['pair', 'gre', 't1w', 'none']
    pair, measured = run.fieldmaps
    assert opposite(run) == 'sub-01_dir-PA_dwi.nii.gz'
    assert pair.files['opposite_bval'].name == 'sub-01_dir-PA_dwi.bval'
    assert pair.readout_ratio == 1
    assert measured.metadata == {'run': AP, 'field': PHASEDIFF}
    assert set(measured.files) == {'phasediff', 'magnitude'}
    assert 'not linked' in pair.note
    assert choose_distortion(run).words.startswith('distortion: reversed phase encoding: sub-01_')


def test_without_anything_it_is_said(tree):
    choice = choose_distortion(tree.run())
    assert choice.best.method == 'none'
    assert choice.reasons == (
        'no reversed phase encoding and no field map was found',
        'there is no T1w image to guide a registration',
    )


@pytest.mark.parametrize(
    ('said', 'affine', 'is_pair'),
    [
        ('j', LAS, True),
        ('j-', LAS, False),
        ('i', LAS, False),
        ('j-', FLIPPED, True),
        ('j', FLIPPED, False),
    ],
)
def test_opposite_means_opposite_in_the_world(tree, said, affine, is_pair):
    """The axis of a PhaseEncodingDirection is that of the image that it belongs to."""
    tree.dwi('sub-01/dwi/sub-01_dir-x_dwi', PA | {'PhaseEncodingDirection': said}, affine=affine)
    assert kinds(tree.run()) == (['pair', 'none'] if is_pair else ['none'])


def test_polarity_is_never_read_from_a_label(tree):
    axis = {'PhaseEncodingAxis': 'j', 'TotalReadoutTime': 0.05}
    tree.dwi(RUN, axis).dwi('sub-01/dwi/sub-01_dir-PA_dwi', axis).measured()
    run = tree.add('sub-01/anat/sub-01_T1w').run()
    assert kinds(run) == ['t1w', 'none']
    assert choose_distortion(run).best.axis == 1
    said = ' '.join(choose_distortion(run).reasons)
    assert 'PhaseEncodingDirection, only the axis: a reversed pair cannot be used' in said
    assert 'a field map cannot be used' in said


def test_without_an_axis_not_even_a_t1w_helps(tree):
    run = tree.dwi(RUN, {}).add('sub-01/anat/sub-01_T1w').run()
    assert kinds(run) == ['none']
    assert 'neither PhaseEncodingDirection nor PhaseEncodingAxis' in choose_distortion(run).words


@pytest.mark.parametrize(
    'entry',
    [
        f'bids::{RUN}.nii.gz',
        'dwi/sub-01_dir-AP_dwi.nii.gz',
        f'{RUN}.nii.gz',
        ['dwi/other.nii.gz', './dwi/sub-01_dir-AP_dwi.nii.gz'],
    ],
)
def test_every_spelling_of_intended_for(tree, entry):
    tree.add('sub-01/fmap/sub-01_dir-PA_epi', PA | {'IntendedFor': entry})
    run = tree.run()
    assert kinds(run) == ['pair', 'none']
    assert run.fieldmaps[0].note == 'linked by IntendedFor'


def test_what_is_intended_for_others_is_left_alone(tree):
    other = {'IntendedFor': 'func/sub-01_task-rest_bold.nii.gz'}
    tree.add('sub-01/fmap/sub-01_dir-PA_epi', PA | other).measured(PHASEDIFF | other)
    run = tree.run()
    assert kinds(run) == ['none']
    assert 'sub-01_phasediff.nii.gz is intended for other images' in run.fieldmap_notes


def test_b0_fields_come_before_intended_for_and_links_before_places(tree):
    tree.dwi(RUN, AP | {'B0FieldSource': 'gre'})
    tree.measured(PHASEDIFF | {'B0FieldIdentifier': ['gre', 'other']})
    tree.add('sub-01/fmap/sub-01_dir-PA_epi', PA | {'IntendedFor': f'bids::{RUN}.nii.gz'})
    tree.dwi('sub-01/dwi/sub-01_dir-PA_dwi', PA)
    run = tree.run()
    assert kinds(run) == ['gre', 'none']
    assert run.fieldmaps[0].note == 'linked by B0FieldIdentifier'


def test_a_link_to_nothing_is_said_and_the_next_one_taken(tree):
    tree.dwi(RUN, AP | {'B0FieldSource': 'pepolar'}).dwi('sub-01/dwi/sub-01_dir-PA_dwi', PA)
    run = tree.run()
    assert kinds(run) == ['pair', 'none']
    assert run.fieldmap_notes == ('no image has the B0FieldIdentifier pepolar that this run names',)


def test_a_link_reaches_another_session_and_a_place_does_not(tmp_path):
    tree = Tree(tmp_path).dwi('sub-01/ses-a/dwi/sub-01_ses-a_dwi', AP)
    uri = 'bids::sub-01/ses-a/dwi/sub-01_ses-a_dwi.nii.gz'
    name = 'sub-01/ses-b/fmap/sub-01_ses-b_dir-PA_epi'
    assert kinds(tree.add(name, PA).run('sub-01_ses-a')) == ['none']
    assert kinds(tree.add(name, PA | {'IntendedFor': uri}).run('sub-01_ses-a')) == ['pair', 'none']


def test_two_that_fit_and_no_link_is_no_guess(tree):
    for run in (1, 2):
        tree.add(f'sub-01/fmap/sub-01_dir-PA_run-{run}_epi', PA)
        tree.measured(start=f'sub-01_run-{run}')
    run = tree.run()
    assert kinds(run) == ['none']
    assert sum('none is linked' in note for note in run.fieldmap_notes) == 2


def test_of_several_dwi_runs_the_one_that_shares_the_name_is_the_partner(tree):
    for acq in ('a', 'b'):
        tree.dwi(f'sub-01/dwi/sub-01_acq-{acq}_dir-AP_dwi', AP)
        tree.dwi(f'sub-01/dwi/sub-01_acq-{acq}_dir-PA_dwi', PA)
    assert opposite(tree.run('sub-01_acq-b_dir-AP')) == 'sub-01_acq-b_dir-PA_dwi.nii.gz'


def test_a_spin_echo_pair_of_another_grid_is_used_whole_if_linked(tree):
    for label, said in (('AP', AP), ('PA', PA)):
        tree.add(f'sub-01/fmap/sub-01_dir-{label}_epi', said, shape=(8, 8, 6))
    assert kinds(tree.run()) == ['none']
    assert 'another grid and linked to nothing' in ' '.join(tree.run().fieldmap_notes)
    for label, said in (('AP', AP), ('PA', PA)):
        linked = said | {'IntendedFor': f'bids::{RUN}.nii.gz', 'TotalReadoutTime': 0.025}
        tree.add(f'sub-01/fmap/sub-01_dir-{label}_epi', linked, shape=(8, 8, 6))
    source = tree.run().fieldmaps[0]
    assert source.files['same'].name == 'sub-01_dir-AP_epi.nii.gz'
    assert source.metadata['same'] == {'PhaseEncodingDirection': 'j-', 'TotalReadoutTime': 0.025}
    assert source.readout_ratio == 0.5
    assert 'on another grid' in source.note


def test_a_pair_needs_no_readout_time_on_one_grid(tree):
    one, other = ({'PhaseEncodingDirection': d} for d in ('j-', 'j'))
    tree.dwi(RUN, one).dwi('sub-01/dwi/sub-01_dir-PA_dwi', other).measured()
    run = tree.run()
    assert kinds(run) == ['pair', 'none']
    assert run.fieldmaps[0].readout_ratio == 1
    assert 'taken to be equal' in run.fieldmaps[0].note
    assert 'TotalReadoutTime is not in the metadata: a field map' in run.fieldmap_notes[0]


def test_other_kinds_of_field_map(tree):
    for suffix, said in (('fieldmap', {'Units': 'Hz'}), ('magnitude', {})):
        tree.add(f'sub-01/fmap/sub-01_acq-map_{suffix}', said)
    source = tree.run().fieldmaps[0]
    assert (set(source.files), source.metadata['field']) == (
        {'fieldmap', 'magnitude'}, {'Units': 'Hz'},
    )  # fmt: skip
    (tree.root / 'sub-01/fmap/sub-01_acq-map_fieldmap.json').unlink()
    for k in (1, 2):
        tree.add(f'sub-01/fmap/sub-01_phase{k}', {'EchoTime': 0.00246 * k})
        tree.add(f'sub-01/fmap/sub-01_magnitude{k}')
    run = tree.run()
    assert set(run.fieldmaps[0].files) == {'phase1', 'phase2', 'magnitude'}
    assert run.fieldmaps[0].metadata['field'] == {'EchoTime1': 0.00246, 'EchoTime2': 0.00492}
    assert 'none of Hz' in run.fieldmap_notes[0]


def test_echo_times_may_stand_with_the_magnitudes(tree):
    tree.measured({})
    for k in (1, 2):
        tree.add(f'sub-01/fmap/sub-01_magnitude{k}', {'EchoTime': PHASEDIFF[f'EchoTime{k}']})
    assert tree.run().fieldmaps[0].metadata['field'] == PHASEDIFF


@pytest.mark.parametrize(
    ('spoil', 'said'),
    [
        (lambda fmap: (fmap / 'sub-01_phasediff.nii.gz').write_bytes(b''), 'empty or not there'),
        (lambda fmap: (fmap / 'sub-01_phasediff.nii.gz').write_bytes(b'x' * 400), 'NIfTI'),
        (lambda fmap: (fmap / 'sub-01_phasediff.json').write_text('{'), 'not valid JSON'),
        (lambda fmap: (fmap / 'sub-01_phasediff.json').write_text('{}'), 'EchoTime1'),
        (
            lambda fmap: (fmap / 'sub-01_phasediff.json').write_text(
                '{"EchoTime1": 4.92, "EchoTime2": 7.38}'
            ),
            'not two times in seconds',
        ),
        (lambda fmap: [p.unlink() for p in fmap.glob('*magn*')], 'no sub-01_magnitude1 beside it'),
    ],
)
def test_a_field_map_that_cannot_be_used_is_said(tree, spoil, said):
    tree.measured()
    spoil(tree.root / 'sub-01' / 'fmap')
    run = tree.run()
    assert kinds(run) == ['none']
    assert said in run.fieldmap_notes[0]


def test_an_opposite_run_without_b0_is_no_partner(tree):
    tree.dwi('sub-01/dwi/sub-01_dir-PA_dwi', PA, bvals=[700, 1000])
    assert 'no volume without diffusion weighting' in tree.run().fieldmap_notes[0]


def test_a_filter_chooses_field_maps_and_leaves_dwi_partners(tree):
    tree.add('sub-01/fmap/sub-01_acq-x_dir-PA_epi', PA)
    tree.add('sub-01/fmap/sub-01_acq-y_dir-PA_epi', PA)
    assert kinds(tree.run()) == ['none']
    run = tree.run(filters={'fmap': {'acquisition': 'y'}})
    assert opposite(run) == 'sub-01_acq-y_dir-PA_epi.nii.gz'
    tree.dwi('sub-01/dwi/sub-01_dir-PA_dwi', PA)
    run = tree.run(filters={'dwi': {'direction': 'AP'}, 'fmap': {'acquisition': 'z'}})
    assert opposite(run) == 'sub-01_dir-PA_dwi.nii.gz'


def test_the_real_scans(multivendor):
    chosen = select(multivendor, ['prisma', 'uih', 'achieva'])
    runs = {run.name: run for run in runs_of(chosen)}
    assert kinds(runs['sub-prisma_dir-AP']) == ['pair', 'gre', 't1w', 'none']
    assert opposite(runs['sub-prisma_dir-AP']) == 'sub-prisma_dir-PA_dwi.nii.gz'
    assert opposite(runs['sub-prisma_dir-PA']) == 'sub-prisma_dir-AP_dwi.nii.gz'
    assert kinds(runs['sub-uih_dir-PA']) == ['t1w', 'none']
    assert kinds(runs['sub-achieva']) == ['none']
    assert choose_distortion(runs['sub-achieva']).best.axis == 1
