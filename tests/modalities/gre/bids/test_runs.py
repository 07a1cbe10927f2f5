"""Which gradient-echo runs are found in skeletons, and what is said of those that are odd."""

from __future__ import annotations

import numpy as np
import pytest

from bidsapp.bids.prepared import promised_files
from bidsapp.check import examined
from bidsapp.choice import served
from bidsapp.modalities.gre.bids import files
from bidsapp.modalities.gre.bids.runs import several
from bidsapp.problems import BadData, MissingInput, NothingSelected
from tests.modalities.gre.skeletons import SHAPE, change, image, only, runs_in, write_run


def test_echoes_of_a_run_are_put_together_in_the_order_of_their_numbers(tmp_path):
    write_run(tmp_path, echoes=11)
    run = only(tmp_path)
    assert run.problem is None
    assert run.facts.echo_times == pytest.approx([0.005 * n for n in range(1, 12)])
    assert [p.name.split('_')[1] for p in several(run.case.files, 'phase')][8:] == [
        'echo-9', 'echo-10', 'echo-11'
    ]  # fmt: skip
    assert run.name == 'sub-01'
    assert run.path.name == 'sub-01_echo-1_part-mag_MEGRE.nii.gz'


@pytest.mark.parametrize(
    ('more', 'kinds'),
    [
        ({'suffix': 'T2starw'}, ['magnitude_1', 'phase_1', 'magnitude_2', 'phase_2']),
        ({'echoes': None, 'suffix': 'T2starw'}, ['magnitude_1', 'phase_1']),
        ({'echoes': None}, ['magnitude_1', 'phase_1']),
        ({'echoes': 1, 'parts': ('', 'phase')}, ['magnitude_1', 'phase_1']),
        ({'echoes': 1, 'parts': ('real', 'imag')}, ['real_1', 'imaginary_1']),
        ({'echoes': 1, 'parts': ('mag', 'phase', 'real')}, ['magnitude_1', 'phase_1']),
    ],
)
def test_every_way_to_name_them(tmp_path, more, kinds):
    write_run(tmp_path, **{'echoes': 2, **more})
    run = only(tmp_path)
    assert run.problem is None
    assert list(run.case.files) == kinds


def test_runs_sessions_and_acquisitions_are_never_merged(tmp_path):
    stems = ['sub-01_acq-a', 'sub-01_run-1', 'sub-01_run-2', 'sub-01_ses-1', 'sub-01_ses-2_run-1']
    for stem in stems:
        write_run(tmp_path, stem, echoes=2)
    assert [run.name for run in runs_in(tmp_path)] == sorted(stems, key=lambda s: s)
    assert [run.name for run in runs_in(tmp_path, select={'sessions': ['2']})] == [stems[-1]]


def test_a_frequency_is_better_than_a_field_strength_and_needs_no_other(tmp_path):
    write_run(tmp_path, said={'ImagingFrequency': 123.2, 'MagneticFieldStrength': 3})
    assert only(tmp_path).facts.imaging_mhz == 123.2
    write_run(tmp_path, said={'MagneticFieldStrength': 3})
    run = only(tmp_path)
    assert run.facts.imaging_mhz == pytest.approx(127.731)
    assert any('nominal' in line for line in files.survey(run).will)


UNSERVED = {
    'magnitude only': ({'parts': ('mag',), 'suffix': 'T2starw'}, {}, MissingInput, 'no phase'),
    'no part at all': ({'parts': ('',)}, {}, MissingInput, 'no phase'),
    'filtered': ({}, {'ImageType': ['ORIGINAL', 'P', 'FILTERED']}, BadData, 'filtered phase'),
    'gaps': (
        {}, {'MRAcquisitionType': '2D', 'SliceThickness': 2, 'SpacingBetweenSlices': 2.4}, BadData,
        '2 mm thick, 2.4 mm apart',
    ),
    'gaps by the header': (
        {}, {'MRAcquisitionType': '2D', 'SliceThickness': 1.5}, BadData, 'gaps'
    ),
}  # fmt: skip


@pytest.mark.parametrize('why', UNSERVED)
def test_what_cannot_be_served_promises_nothing_unless_it_was_named(tmp_path, why, caplog):
    more, said, kind, words = UNSERVED[why]
    for path in write_run(tmp_path, 'sub-01_acq-odd', **{'echoes': 2, **more}).values():
        change(path, **said)
    write_run(tmp_path, 'sub-01_acq-whole')
    odd = next(run for run in runs_in(tmp_path) if run.unserved)
    assert isinstance(odd.unserved, kind)
    assert words in str(odd.unserved)
    assert [f.code for f in examined(odd)] == ['NOT_SERVED']
    assert [run.name for run in served(runs_in(tmp_path), [])] == ['sub-01_acq-whole']
    assert [r.getMessage() for r in caplog.records] == [
        f'sub-01_acq-odd promises nothing: {odd.unserved}'
    ]
    named = served(runs_in(tmp_path), ['gre'])
    assert {type(run.problem) for run in named} == {kind, type(None)}
    with pytest.raises(NothingSelected, match='None of the 1 runs'):
        served([odd], [])


def test_slices_that_touch_are_served(tmp_path):
    for path in write_run(tmp_path).values():
        change(path, MRAcquisitionType='2D', SliceThickness=2, SpacingBetweenSlices=2)
    assert only(tmp_path).unserved is None


def of_all(**said):
    def spoil(paths):
        for path in paths.values():
            change(path, **said)

    return spoil


def of_one(key, **said):
    return lambda paths: change(paths[key], **said)


def cut(paths):
    image(paths[2, 'phase'], np.zeros((10, 12, 8)))


def moved(paths):
    affine = np.diag([1.0, 1, 2, 1])
    affine[0, 3] = 3
    image(paths[3, 'mag'], affine=affine)


def twice(paths):
    path = paths[1, 'mag']
    image(path.with_name(path.name.removesuffix('.gz')))


def without_number(paths):
    image(paths[1, 'mag'].with_name('sub-01_acq-bad_part-mag_MEGRE.nii.gz'))


def broken(paths):
    path = paths[1, 'phase']
    path.with_name(path.name.replace('.nii.gz', '.json')).write_text('{"EchoTime": ')


def four_dimensions(paths):
    for path in paths.values():
        image(path, np.zeros((*SHAPE, 2)))


def one_slice(paths):
    for path in paths.values():
        image(path, np.zeros((10, 12, 1)))


def truncated(paths):
    paths[1, 'phase'].write_bytes(paths[1, 'phase'].read_bytes()[:200])


def steady(paths):
    for (_, part), path in paths.items():
        if part == 'phase':
            image(path, np.full(SHAPE, 0.5))


#: What is wrong → what does it, the exit code, and what is said.
BAD = {
    'no EchoTime': (of_all(EchoTime=None), 66, 'has no EchoTime'),
    'no EchoTime of one echo': (
        lambda p: [change(p[2, k], EchoTime=None) for k in ('mag', 'phase')], 66, 'echo-2'
    ),
    'neither frequency nor field': (
        of_all(ImagingFrequency=None, MagneticFieldStrength=None), 66, 'neither ImagingFrequency'
    ),
    'milliseconds': (
        lambda p: [change(path, EchoTime=5 * n) for (n, _), path in p.items()], 65, 'milliseconds'
    ),
    'all echoes at one time': (of_all(EchoTime=0.01), 65, 'rising positive times'),
    'two times of one echo': (of_one((1, 'phase'), EchoTime=0.004), 65, 'contradicts itself'),
    'a list of times': (of_all(EchoTime=[0.01, 0.02]), 65, 'expected one number'),
    'Hz': (of_all(ImagingFrequency=123.2e6), 65, 'looks like Hz'),
    'another field': (of_all(MagneticFieldStrength=7), 65, '298.0 MHz were expected'),
    'two frequencies': (of_one((3, 'mag'), ImagingFrequency=63.9), 65, 'contradicts itself'),
    'a slice is missing': (cut, 65, 'has the shape (10, 12, 8)'),
    'another grid': (moved, 65, 'mm from where'),
    'an echo without phase': (lambda p: p[2, 'phase'].unlink(), 66, 'no part-phase'),
    'an echo without magnitude': (lambda p: p[3, 'mag'].unlink(), 66, 'no part-mag'),
    'two of one name': (twice, 65, 'one image by their names'),
    'some without echo-': (without_number, 65, 'others none'),
    'no JSON': (broken, 65, 'is not valid JSON'),
    'echoes in one file': (four_dimensions, 65, 'one volume, of one echo'),
    'one slice': (one_slice, 65, 'not known from single slices'),
    'no direction': (of_all(B0_dir=[0, 0]), 65, 'expected three numbers'),
    'not fetched': (
        lambda p: (p[1, 'mag'].unlink(), p[1, 'mag'].symlink_to('../nowhere')), 66, 'datalad get'
    ),
    'cut off': (truncated, 65, 'sub-01_acq-bad_echo-1_part-phase'),
    'phase constant': (steady, 65, 'in every voxel'),
}  # fmt: skip


@pytest.mark.parametrize('what', BAD)
def test_bad_input_is_said_and_leaves_others_alone(tmp_path, what):
    spoil, code, words = BAD[what]
    spoil(write_run(tmp_path, 'sub-01_acq-bad'))
    write_run(tmp_path, 'sub-01_acq-whole')
    bad, whole = runs_in(tmp_path)
    assert whole.problem is None
    assert [f.severity for f in files.check(whole)] in ([], ['warning'])
    (finding,) = files.check(bad)
    assert finding.severity == 'error'
    assert words in finding.message
    problem = bad.problem
    if problem is None and what not in ('cut off', 'phase constant'):
        with pytest.raises((BadData, MissingInput)) as told:
            files.survey(bad)
        problem = told.value
    if problem is not None:
        assert problem.exit_code == code
    assert (finding.code == 'MISSING_FILE') == (code == 66)


def test_two_that_only_a_suffix_tells_apart_are_a_problem_if_both_can_be_served(tmp_path):
    write_run(tmp_path)
    write_run(tmp_path, echoes=None, suffix='T2starw', parts=('mag',))
    assert [bool(run.problem) for run in runs_in(tmp_path)] == [False, False]
    write_run(tmp_path, echoes=None, suffix='T2starw')
    assert ['acq-' in str(run.problem) for run in runs_in(tmp_path)] == [True, True]


def test_a_name_that_is_none_is_a_problem_of_its_own(tmp_path):
    write_run(tmp_path)
    image(tmp_path / 'sub-01/anat/sub-01_te-5_part-phase_MEGRE.nii.gz')
    assert [bool(run.problem) for run in runs_in(tmp_path)] == [False, True]


def test_what_is_promised_follows_from_echoes_and_from_what_is_given(tmp_path):
    write_run(tmp_path, echoes=2)
    write_run(tmp_path, 'sub-01_acq-one', echoes=None)
    two, one = (
        {p.as_posix() for p in promised_files(files.prepared, run)} for run in runs_in(tmp_path)
    )
    assert {
        'sub-01/fmap/sub-01_desc-local_fieldmap.nii.gz',
        'sub-01/fmap/sub-01_desc-local_fieldmap.json',
        'sub-01/fmap/sub-01_desc-local_magnitude.nii.gz',
        'sub-01/fmap/sub-01_desc-total_fieldmap.nii.gz',
        'sub-01/fmap/sub-01_desc-total_magnitude.nii.gz',
        'sub-01/anat/sub-01_desc-brain_mask.nii.gz',
        'sub-01/anat/sub-01_desc-reliable_mask.nii.gz',
        'sub-01/anat/sub-01_R2starmap.nii.gz',
        'sub-01/anat/sub-01_T2starmap.nii.gz',
    } <= two
    assert not any('starmap' in path for path in one)
    assert len(one) == len(two) - 4


def test_the_users_word_on_the_sign_is_told(tmp_path):
    write_run(tmp_path)
    asked, kept = only(tmp_path, options={'phase_sign': 'turn'}), only(tmp_path)
    assert asked.turned
    assert asked.told() != kept.told()
    assert any('--phase-sign' in line for line in files.survey(asked).will)
