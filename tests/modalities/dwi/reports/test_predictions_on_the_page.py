"""Beside what a network says stands how sure it is, and what it does not explain."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread

from bidsapp.bids.outputs import write_output
from bidsapp.core import Output
from bidsapp.modalities.dwi.physics.gradients import GradientTable, to_fsl
from bidsapp.modalities.dwi.physics.harmonics import fibonacci_hemisphere
from bidsapp.modalities.dwi.reports import figures
from bidsapp.modalities.dwi.reports.restored import draw_restored, restored_file
from bidsapp.modalities.dwi.tasks import crossings, microstructure, orientation, restore, tissue
from bidsapp.reports import maps
from bidsapp.reports.participant import participant_page
from bidsapp.reports.planes import open_view
from bidsapp.reports.written import find_written

RUN, SHAPE = {'subject': '01', 'datatype': 'dwi'}, (20, 24, 12)
AFFINE = np.array([[4.0, 0, 0, -38], [0, 4, 0, -46], [0, 0, 6, -33], [0, 0, 0, 1]])
FA = Output('fa', {'suffix': 'FA'}, 'float32')
MASK = Output('mask', {'suffix': 'mask'}, 'uint8')
MODEL = {'ModelName': 'transfermri-pretrained', 'ModelVersion': 'v1', 'ModelSHA256': 'cafe',
         'Device': 'cpu', 'SeenInTraining': False}  # fmt: skip
STRANGE = 'this run has b=5000 s/mm2; the model was tested with 700 to 3300'


def write_run(root: Path) -> tuple[Path, np.ndarray]:
    """A ball of brain, one b=0 and seven b = 1000 volumes; the image and the brain."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing='ij'))
    x, y, z = np.einsum('ij,j...->i...', AFFINE[:3, :3], index) + AFFINE[:3, 3, None, None, None]
    brain = x**2 + y**2 + (1.3 * z) ** 2 < 36**2
    vectors = np.vstack([np.zeros((1, 3)), fibonacci_hemisphere(7)])
    gtab = GradientTable(vectors, np.array([0.0, *[1000.0] * 7]))
    decay = np.exp(-gtab.bvals * 1e-3 * (0.5 + gtab.bvecs[:, 0] ** 2))
    dwi = root / 'sub-01' / 'dwi' / 'sub-01_desc-preproc_dwi.nii.gz'
    dwi.parent.mkdir(parents=True)
    signal = (300.0 * brain + 5)[..., None] * decay
    nib.save(nib.Nifti1Image(signal.astype(np.float32), AFFINE), dwi)
    base = str(dwi).removesuffix('.nii.gz')
    np.savetxt(base + '.bval', gtab.bvals[None], fmt='%g')
    np.savetxt(base + '.bvec', to_fsl(gtab, AFFINE), fmt='%.6f')
    Path(base + '.json').write_text('{"Description": "Diffusion", "Warnings": []}')
    write_output(root, RUN, MASK, 'brain', brain, dwi, {})
    return dwi, brain


def add_predictions(root: Path, within: bool = True) -> None:
    """A run and everything that a model of all tasks writes; volume 3 was not explained."""
    dwi, brain = write_run(root)
    data = np.asarray(nib.load(dwi).dataobj)
    ones = np.ones(brain.shape)
    said = {**MODEL, 'WithinTestedRange': within, 'Warnings': [] if within else [STRANGE]}
    arrays = {
        'tissue': 2 * ones, 'nfib': ones, 'restored': 0.9 * data, 'restored_adc': 1e-3 * ones,
        'residual': 0.8 * ones, 'tissue_probability': np.ones((*SHAPE, 3)) / 3,
        'nfib_probability': np.ones((*SHAPE, 4)) / 4,
        'direction': np.broadcast_to([1.0, *[0] * 8], (*SHAPE, 9)),
    }  # fmt: skip
    further = {
        'restored': {'RestoredVolumes': list(range(1, 8)), 'PassedThrough': [0]},
        'residual': {'ByVolume': [None, 0.7, 0.7, 4.2, 0.7, 0.7, 0.7, 0.7], 'ExpectedLow': 0.6},
    }
    for output in (o for m in (tissue, orientation, crossings, microstructure, restore)
                   for o in m.task.writes):  # fmt: skip
        array = arrays.get(output.name, 0.4 * ones)
        masked = array * (brain[..., None] if array.ndim == 4 else brain)
        beside = said | further.get(output.name, {})
        write_output(root, RUN, output, 'unet', masked, dwi, beside)
    write_output(root, RUN, FA, 'reference', 0.4 * brain, dwi, {})


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    """A page with everything, of a scan unlike those of the tests; its root and its text."""
    root = tmp_path_factory.mktemp('page')
    add_predictions(root, within=False)
    return root, participant_page(root, '01').read_text()


def test_every_prediction_has_its_picture(drawn):
    _, text = drawn
    names = {Path(source).name for source in re.findall('<img src="([^"]+)"', text)}
    assert names >= {
        'sub-01_seg-tissue_desc-comparison_dseg.png', 'sub-01_seg-nfib_desc-comparison_dseg.png',
        'sub-01_param-direction_desc-comparison_dwimap.png',
        *(f'sub-01_param-{p}_desc-comparison_dwimap.png' for p in ('icvf', 'od', 'isovf')),
        'sub-01_desc-restored_dwi.png', 'sub-01_param-residual_desc-map_dwimap.png',
        'sub-01_param-residual_desc-volumes_dwimap.png',
    }  # fmt: skip
    assert 'class="problem"' not in text
    for words in ('all classes are as likely', '54.7° where it does not know',
                  'the error that the network expects of its own value'):  # fmt: skip
        assert words in text


def test_uncertainty_is_a_row_below_what_it_is_about(tmp_path):
    add_predictions(tmp_path)
    (run,) = find_written(tmp_path, '01')
    view = open_view(run)

    def heights() -> list[int]:
        made = [
            maps.draw_labels(run, view, 'tissue'),
            figures.draw_directions(run, view),
            maps.draw_parameter(run, view, 'od'),
        ]
        return [imread(one.path).shape[0] for one in made]

    before = heights()
    for path in [*run.main.parent.glob('*entropy*'), *run.main.parent.glob('*uncertainty*')]:
        path.unlink()
    assert all(after < 0.75 * was for after, was in zip(heights(), before, strict=True))


def test_residual_is_said_in_words_and_the_volume_that_stands_out_is_named(drawn):
    _, text = drawn
    assert 'median 0.80 in the brain, above 3 in 0.0% of it' in text
    assert 'From 0.60' in text
    assert 'Largest: 4.20 in volume 3' in text
    assert '7 of 8 volumes were restored' in text


def test_what_was_taken_away_is_grey_in_the_brain_where_it_is_nothing(tmp_path):
    """And nothing is drawn outside of it."""
    add_predictions(tmp_path)
    (run,) = find_written(tmp_path, '01')
    volumes = np.asarray(nib.load(run.main).dataobj)
    brain = np.asarray(nib.load(run.case.files['mask']).dataobj) > 0
    restored = restored_file(run)
    nib.save(nib.Nifti1Image(volumes * brain[..., None], AFFINE), restored)
    picture = imread(draw_restored(run, open_view(run)).path)[..., 0]
    third = picture[int(0.42 * len(picture)) : int(0.58 * len(picture))]
    assert np.isclose(third, 0.5, atol=0.02).mean() > 0.2
    assert (third < 0.02).mean() > 0.2


def test_all_that_one_model_made_is_one_row_of_the_table(drawn):
    _, text = drawn
    assert text.count('transfermri-pretrained') == 1
    assert 'WithinTestedRange' in text


def test_a_scan_unlike_those_of_the_tests_is_warned_of_once(drawn):
    _, text = drawn
    assert text.count(STRANGE) == 1
    assert text.index('class="warning"') < text.index(STRANGE)
