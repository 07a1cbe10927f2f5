"""What the page says of corrections: from the confounds, from the raw scan, or that none is."""

from __future__ import annotations

import json
import re
import shutil
from html import unescape

import nibabel as nib
import numpy as np
import pytest

from bidsapp import registry
from bidsapp.bids.derivatives import write_dataset
from bidsapp.bids.names import build
from bidsapp.bids.outputs import write_output
from bidsapp.bids.write import write_json
from bidsapp.modalities.dwi.bids.prepared import CONFOUNDS, MASK
from bidsapp.modalities.dwi.interfaces.outputs import CORRECTIONS
from bidsapp.modalities.dwi.reports import page
from bidsapp.modalities.dwi.reports.preprocessing import (
    draw_distortion,
    draw_ingested,
    draw_motion,
    read_confounds,
)
from bidsapp.modalities.dwi.tasks.crossings import DSEG
from bidsapp.modalities.dwi.tasks.microstructure import ICVF, OD, SMT_DIFFUSIVITY
from bidsapp.problems import BadData
from bidsapp.reports.citation import citation
from bidsapp.reports.html import readable
from bidsapp.reports.maps import draw_labels, draw_parameter, parameters
from bidsapp.reports.participant import participant_page
from bidsapp.reports.planes import open_view
from bidsapp.reports.written import find_written, raw_image

SHAPE = (16, 18, 12)
AFFINE = np.array([[5.0, 0, 0, -40], [0, 5, 0, -45], [0, 0, 5, -30], [0, 0, 0, 1]])
RUN = {'subject': '01', 'datatype': 'dwi'}
BVALS = np.array([0.0, 1000, 1000, 0, 1000, 1000, 1000, 1000])
SAID = {
    'Description': 'Diffusion MRI', 'Sources': ['bids:raw:sub-01/dwi/sub-01_dwi.nii.gz'],
    'GibbsUnringing': {'Method': 'none', 'Reason': 'k-space was sampled partially'},
    'MotionCorrection': {
        'Method': 'registered', 'FramewiseDisplacement': [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0, 0],
        'OutlierSlices': 3, 'VolumesWithOutlierSlices': [2, 4],
    },
    'DistortionCorrection': {
        'Method': 'reversed phase encoding: other_dwi.nii.gz', 'Similarity': 'cross-correlation',
        'SimilarityBefore': 0.5, 'SimilarityAfter': 0.98765, 'DisplacementMedianMillimetres': 1.5,
        'DisplacementMaxMillimetres': 9.25, 'NotUsed': ['a field map: too noisy'],
    },
}  # fmt: skip


@pytest.fixture
def brain():
    box = np.zeros(SHAPE, bool)
    box[3:-3, 3:-3, 2:-2] = True
    return box


@pytest.fixture
def run(tmp_path, brain):
    """A run that was recorded half as bright, but for the volumes that are weighted."""
    raw, out = tmp_path / 'the raw data', tmp_path / 'out'
    dwi = out / 'sub-01/dwi/sub-01_desc-preproc_dwi.nii.gz'
    scan = raw / 'sub-01/dwi/sub-01_dwi.nii.gz'
    for path, b0 in ((dwi, 400.0), (scan, 200.0)):
        data = np.where(BVALS < 50, b0, 100.0) * brain[..., None]
        path.parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(data.astype(np.float32), AFFINE), path)
    np.savetxt(dwi.with_name('sub-01_desc-preproc_dwi.bval'), BVALS[None], fmt='%g')
    vectors = np.random.default_rng(5).normal(size=(3, len(BVALS))) * (BVALS > 50)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=0), 1e-9)
    np.savetxt(dwi.with_name('sub-01_desc-preproc_dwi.bvec'), vectors, fmt='%.6f')
    write_dataset(out, raw)
    write_output(out, RUN, MASK, 'brain', brain, dwi, {})
    (found,) = find_written(out, '01')
    say(found)
    return found


def say(run, **changed):
    """Write the sidecar, with fields that are changed, or left out if None."""
    content = {k: v for k, v in {**SAID, **changed}.items() if v is not None}
    write_json(run.main.with_name('sub-01_desc-preproc_dwi.json'), content)


def add_confounds(run, replaced=(0, 0, 2, 0, 1, 0, 0, 0)):
    names = [f'{kind}_{axis}' for kind in ('trans', 'rot') for axis in 'xyz']
    rows = ['\t'.join([*names, 'framewise_displacement', 'outlier_slices', 'residual'])]
    for n, slices in enumerate(replaced):
        step = 'n/a' if n == 0 else str(n % 3)
        rows.append('\t'.join([*['0.01'] * 6, step, str(slices), '0.1']))
    path = run.root / build({**RUN, **CONFOUNDS[-1]})
    path.write_text('\n'.join(rows) + '\n')
    return path


def pixels(path):
    from matplotlib.image import imread

    return imread(path)[..., :3]


def orange(path):
    """Columns of a chart that are shaded."""
    red, _, blue = np.moveaxis(pixels(path), -1, 0)
    return ((red > 0.9) & (blue < 0.85) & (blue > 0.6)).sum()


def brightness(picture):
    """The commonest grey of a picture that is not black."""
    red, green, blue = np.moveaxis(np.round(picture * 255).astype(int), -1, 0)
    same = (red == green) & (green == blue) & (red > 20)
    return np.bincount(red[same]).argmax() / 255


def test_every_correction_has_its_place_in_the_order_of_processing():
    fields = [field for field, _, _ in CORRECTIONS]
    assert [f for f in page.processing if f in fields] == fields
    assert 'CorrectedBy' in page.processing


def test_motion_is_told_from_the_confounds(run):
    add_confounds(run)
    drawn = draw_motion(run)
    assert 'mean 1.00 mm, largest 2.00 mm (volume 2, counted from 0)' in drawn.caption
    assert '3 slices in 2 volumes (orange)' in drawn.caption
    assert 'phase-encoding axis' in drawn.caption
    assert orange(drawn.path) > 1000
    assert list(read_confounds(run))[-1] == 'residual'
    assert np.isnan(read_confounds(run)['framewise_displacement'][0])


def test_motion_is_told_from_the_sidecar_without_confounds(run):
    path = add_confounds(run)
    taller = len(pixels(draw_motion(run).path))
    path.unlink()
    drawn = draw_motion(run)
    assert 'mean 0.21 mm, largest 0.50 mm (volume 5' in drawn.caption
    assert '3 slices in 2 volumes' in drawn.caption
    assert 'phase-encoding axis' not in drawn.caption
    assert orange(drawn.path) > 1000
    assert len(pixels(drawn.path)) < taller


def test_run_without_lost_slices_says_so_and_marks_nothing(run):
    add_confounds(run, (0,) * 8)
    say(run, MotionCorrection={'Method': 'registered', 'OutlierSlices': 0})
    drawn = draw_motion(run)
    assert 'No slice had lost signal' in drawn.caption
    assert orange(drawn.path) == 0


@pytest.mark.parametrize('said', [None, 'none', {}, {'FramewiseDisplacement': ['0', None]}])
def test_motion_that_is_not_known_is_not_drawn(run, said):
    say(run, MotionCorrection=said)
    assert draw_motion(run) is None


def test_broken_confounds_are_named_and_the_rest_is_drawn(run):
    path = add_confounds(run)
    path.write_text(path.read_text().replace('n/a', 'unknown'))
    with pytest.raises(BadData, match='no table of numbers'):
        draw_motion(run)
    text = participant_page(run.root, '01').read_text()
    assert 'desc-confounds_timeseries.tsv is no table of numbers' in text
    assert 'desc-distortion_dwi.png' in text


def test_distortion_shows_the_raw_above_the_corrected_in_one_scale(run):
    drawn = draw_distortion(run, open_view(run))
    picture = pixels(drawn.path)
    upper, lower = np.array_split(picture[: int(0.9 * len(picture))], 2)
    assert brightness(lower) == 1
    assert brightness(upper) == pytest.approx(2 / 3, abs=0.02)  # white at the mean of both
    for words in (
        'Corrected by reversed phase encoding: other_dwi.nii.gz.',
        'Cross-correlation: 0.500 before, 0.988 after.', 'median 1.50 mm, largest 9.25 mm',
        'Not used: a field map: too noisy.',
    ):  # fmt: skip
        assert words in drawn.caption
    for half in (upper, lower):
        red, green, _ = np.moveaxis(half, -1, 0)
        assert ((red > 0.9) & (green < 0.5)).sum() > 100  # the outline


def gone(run):
    shutil.rmtree(raw_image(run).parents[2])


def another_grid(run):
    path = raw_image(run)
    nib.save(nib.Nifti1Image(np.ones((*SHAPE, 8), np.float32), np.diag([2.0, 2, 2, 1])), path)


def fewer_volumes(run):
    path = raw_image(run)
    nib.save(nib.Nifti1Image(np.ones((*SHAPE, 3), np.float32), AFFINE), path)


def no_image(run):
    raw_image(run).write_bytes(b'not an image')


def elsewhere(run):
    description = run.root / 'dataset_description.json'
    content = {**json.loads(description.read_text()), 'DatasetLinks': {'raw': 'https://a.b/raw'}}
    write_json(description, content)


def several_sources(run):
    say(run, Sources=[*SAID['Sources'], 'bids:raw:sub-01/dwi/sub-01_run-2_dwi.nii.gz'])


@pytest.mark.parametrize(
    'change', [gone, another_grid, fewer_volumes, no_image, elsewhere, several_sources]
)
def test_without_the_raw_scan_it_is_said_and_not_drawn(run, change):
    change(run)
    drawn = draw_distortion(run, open_view(run))
    assert drawn.path is None
    assert 'largest 9.25 mm' in drawn.caption
    assert 'outline' not in drawn.caption


def test_page_without_the_raw_scan_has_the_words_and_no_problem(run):
    gone(run)
    text = participant_page(run.root, '01').read_text()
    assert 'desc-distortion' not in text
    assert 'class="problem"' not in text
    assert 'largest 9.25 mm' in text


def test_what_was_not_corrected_says_why(run):
    say(run, DistortionCorrection={'Method': 'none', 'NotUsed': ['no field map', 'no T1w image']})
    drawn = draw_distortion(run, open_view(run))
    assert drawn.path is None
    assert drawn.caption == 'Not corrected: no field map; no T1w image.'
    say(run, DistortionCorrection=None)
    assert draw_distortion(run, open_view(run)) is None


def test_what_another_pipeline_corrected_is_its_own(run):
    assert draw_ingested(run) is None
    add_confounds(run)
    say(run, CorrectedBy='QSIPrep <1.0>', DistortionCorrection=None, GibbsUnringing=None)
    text = unescape(participant_page(run.root, '01').read_text())
    assert 'was corrected by QSIPrep <1.0>' in text
    assert re.search(r'CorrectedBy</th><td>QSIPrep <1.0>', text)
    assert 'desc-motion' not in text
    assert 'desc-distortion' not in text


def test_page_holds_the_table_of_confounds_and_short_alternative_texts(run):
    add_confounds(run)
    text = participant_page(run.root, '01').read_text()
    assert 'href="sub-01/dwi/sub-01_desc-confounds_timeseries.tsv"' in text
    assert 'alt="Susceptibility distortion of sub-01"' in text
    assert text.index('GibbsUnringing') < text.index('MotionCorrection')


def test_parameters_have_fixed_scales(run, brain):
    for output, source, value in (
        (ICVF, 'noddi', 0.5), (OD, 'noddi', 0.5), (ICVF, 'smt', 0.25),
        (SMT_DIFFUSIVITY, 'smt', 1.5e-3),
    ):  # fmt: skip
        write_output(run.root, RUN, output, source, value * brain, run.main, {})
    view = open_view(run)
    assert parameters(run) == ['icvf', 'od', 'diffusivity']
    icvf, od, diffusivity = (draw_parameter(run, view, name) for name in parameters(run))
    assert (icvf.heading, od.heading) == ('Neurite density (icvf)', 'Orientation dispersion (od)')
    noddi, smt = np.array_split(pixels(icvf.path)[:-70], 2)
    assert brightness(noddi) == pytest.approx(0.5, abs=0.01)
    assert brightness(smt) == pytest.approx(0.25, abs=0.01)
    assert brightness(pixels(diffusivity.path)[:-70]) == pytest.approx(0.5, abs=0.01)
    assert 'same grey scale' in icvf.caption
    assert 'same grey scale' not in diffusivity.caption


def test_more_fibres_are_brighter(run, brain):
    counts = brain * np.array([1, 2, 3])[np.arange(SHAPE[0]) % 3][:, None, None]
    write_output(run.root, RUN, DSEG, 'reference', counts, run.main, {})
    drawn = draw_labels(run, open_view(run), 'nfib')
    assert drawn.heading == 'Number of fibres (nfib)'
    picture = pixels(drawn.path)[-70:].reshape(-1, 3)  # the key
    colours, often = np.unique(np.round(picture, 2), axis=0, return_counts=True)
    coloured = colours[(np.ptp(colours, axis=1) > 0.3) & (often > 200)]
    assert len(coloured) == 3
    luminance = np.sort(coloured @ [0.2126, 0.7152, 0.0722])
    assert (np.diff(luminance) > 0.1).all()


def test_nested_values_are_readable():
    assert readable({'NotUsed': ['a', '<b>']}) == (
        '<div>NotUsed: <ul><li>a</li><li>&lt;b&gt;</li></ul></div>'
    )
    assert readable(['only']) == 'only'
    assert readable([5, 11]) == '5, 11'


def test_citations_are_numbered_as_they_come():
    methods, references = citation().split('# References')
    sections = [part.split('\n## ')[1:] for part in (methods, references)]
    assert len(sections[0]) == len(sections[1]) == len(registry.modalities())
    for text, own in zip(*sections, strict=True):
        assert text.splitlines()[0] == own.splitlines()[0]  # the modality
        cited = [int(n) for group in re.findall(r'\[([\d, ]+)\]', text) for n in group.split(',')]
        listed = [int(n) for n in re.findall(r'^(\d+)\.', own, re.MULTILINE)]
        assert list(dict.fromkeys(cited)) == listed == list(range(1, len(listed) + 1))
    for name in ('Veraart', 'Cordero-Grande', 'Kellner', 'Ruthotto', 'Jezzard', 'Zhang', 'Kaden'):
        assert name in references
    assert max(map(len, citation().splitlines())) <= 100
