"""The participant's page: every picture is there, left is left, text is only text."""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nibabel as nib
import numpy as np
import pytest

from bidsapp.bids.names import build
from bidsapp.bids.outputs import write_output
from bidsapp.bids.write import write_image, write_json
from bidsapp.core import Output
from bidsapp.modalities.dwi.physics.gradients import GradientTable, to_fsl
from bidsapp.modalities.dwi.reports.figures import angles, coloured_directions
from bidsapp.reports.canvas import draw_rows
from bidsapp.reports.participant import participant_page
from bidsapp.reports.planes import Panel, grey, open_view
from bidsapp.reports.written import find_written

SHAPE, SIZES = (20, 24, 12), (4.0, 4.0, 6.0)
RAS = np.array([[4.0, 0, 0, -38], [0, 4, 0, -46], [0, 0, 6, -33], [0, 0, 0, 1]])
TISSUE = Output(
    'tissue', {'suffix': 'dseg', 'seg': 'tissue'}, 'uint8', description='Tissue <script>alert()',
    labels=((1, 'Gray Matter', 'GM'), (2, 'White Matter', 'WM')),
)  # fmt: skip
DIRECTION, ODI = (
    Output(name, {'suffix': 'dwimap', 'param': name}, 'float32', told_by='model')
    for name in ('direction', 'od')
)
FA = Output('fa', {'suffix': 'FA'}, 'float32')
MASK = Output('mask', {'suffix': 'mask'}, 'uint8')


def oriented(affine: np.ndarray, axes: str) -> np.ndarray:
    """The affine of the same box of space with its voxel axes flipped to ``axes``."""
    for axis, (letter, positive) in enumerate(zip(axes, 'RAS', strict=True)):
        if letter != positive:
            flip = np.eye(4)
            flip[axis, axis], flip[axis, 3] = -1, SHAPE[axis] - 1
            affine = affine @ flip
    return affine


def world(affine: np.ndarray) -> np.ndarray:
    """(3, X, Y, Z) position of each voxel in mm."""
    index = np.stack([*np.meshgrid(*(np.arange(n) for n in SHAPE), indexing='ij')])
    return np.einsum('ij,j...->i...', affine[:3, :3], index) + affine[:3, 3, None, None, None]


def write_run(root: Path, axes: str = 'RAS', turn: float = 0.0, **entities: str) -> Path:
    """A ball of brain with a bright blob at x < 0, y > 0 and seven b = 1000 volumes."""
    rotation = np.eye(4)
    rotation[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    affine = rotation @ oriented(RAS, axes)
    x, y, z = world(affine)
    brain = x**2 + y**2 + (1.3 * z) ** 2 < 36**2
    left_blob = (x + 16) ** 2 + (y - 8) ** 2 + z**2 < 10**2
    b0 = 300.0 * brain + 600 * left_blob + 5
    rng = np.random.default_rng(5)
    vectors = rng.normal(size=(7, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    gtab = GradientTable(np.vstack([np.zeros((1, 3)), vectors]), np.array([0.0, *[1000.0] * 7]))
    signal = b0[..., None] * np.exp(-gtab.bvals * 1e-3 * (0.5 + gtab.bvecs[:, 0] ** 2))
    run = {'subject': '01', 'datatype': 'dwi', **entities}
    named = {'desc': 'preproc', 'suffix': 'dwi', 'extension': '.nii.gz'}
    dwi = root / build({**run, **named})
    dwi.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(signal.astype(np.float32), affine), dwi)
    base = str(dwi).removesuffix('.nii.gz')
    np.savetxt(base + '.bval', gtab.bvals[None], fmt='%g')
    np.savetxt(base + '.bvec', to_fsl(gtab, affine), fmt='%.6f')
    write_json(Path(base + '.json'), {
        'Description': 'Diffusion', 'DistortionCorrection': 'none', 'EchoTime': 0.08,
        'Warnings': ['a <b>bold</b> doubt'], 'Notes': [], 'Unheard': {'Of': [1, 2], 'Flag': None},
        'MotionCorrection': {'FramewiseDisplacement': [0.0, 0.1, 0.2]},
    })  # fmt: skip
    write_output(root, run, MASK, 'brain', brain, dwi, {})
    return dwi


def add_labels(root: Path, dwi: Path) -> None:
    """Tissue and direction of reference and network, 90° and some labels apart."""
    entities = find_written(root, '01')[0].entities
    mask = nib.load(str(dwi).replace('preproc_dwi', 'brain_mask'))
    brain, (x, y, _) = np.asarray(mask.dataobj) > 0, world(mask.affine)
    labels, other = np.where(x > 0, 2, 1) * brain, np.where(y > 0, 2, 1) * brain
    model = {'ModelName': 'transfermri-tissue', 'ModelSHA256': 'cafe', 'SeenInTraining': True}
    write_output(root, entities, TISSUE, 'reference', labels, dwi, {})
    write_output(root, entities, TISSUE, 'unet', other, dwi, model)
    write_output(root, entities, FA, 'reference', 0.5 * brain, dwi, {})
    write_output(root, entities, ODI, 'unet', 0.3 * brain, dwi, {})
    for source, axis in (('csd', 0), ('unet', 2)):
        vectors = np.zeros((*SHAPE, 3))
        vectors[brain & (labels == 2), axis] = 1
        write_output(root, entities, DIRECTION, source, vectors, dwi, {})


class Reader(HTMLParser):
    """Collects image sources and checks that every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.sources: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == 'img':
            self.sources.append(unquote(dict(attrs)['src']))
        if tag not in ('img', 'meta', 'br'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def pixels(path: Path) -> np.ndarray:
    """A picture as (H, W, 3)."""
    from matplotlib.image import imread

    return imread(path)[..., :3]


def test_every_picture_of_a_full_run_is_there_and_shows_something(tmp_path):
    add_labels(tmp_path, write_run(tmp_path))
    page = participant_page(tmp_path, '01')
    reader = Reader(page.read_text())
    assert page == tmp_path / 'sub-01.html'
    assert len(reader.sources) == 6  # mask, motion, anisotropy, tissue, direction, od
    for source in reader.sources:
        picture = pixels(tmp_path / source)
        assert source.startswith('sub-01/figures/sub-01_')
        assert picture.std() > 0.01
    assert not list((tmp_path / 'sub-01' / 'figures').glob('.*'))


def test_what_stands_in_a_sidecar_is_text_and_never_markup(tmp_path):
    add_labels(tmp_path, write_run(tmp_path))
    text = participant_page(tmp_path, '01', {'sub-01_run-2': '<script>x</script>'}).read_text()
    reader = Reader(text)
    assert 'script' not in reader.tags
    assert 'b' not in reader.tags
    assert 'Tissue <script>alert()' in unescape(text)
    assert 'a &lt;b&gt;bold&lt;/b&gt; doubt' in text


def test_comparison_is_put_into_numbers(tmp_path):
    add_labels(tmp_path, write_run(tmp_path))
    text = participant_page(tmp_path, '01').read_text()
    assert 'Median angle in white matter 90.0°' in text
    differing, of = map(int, re.search(r'(\d+) of (\d+) voxels labelled by both', text).groups())
    assert 0.4 < differing / of < 0.6  # the two halves cross at a right angle
    assert 'says nothing about new participants' in text


def test_problems_and_facts_are_said(tmp_path):
    write_run(tmp_path)
    text = participant_page(tmp_path, '01', {'sub-01_run-2': 'its bvec has 3 columns'}).read_text()
    assert text.index('its bvec has 3 columns') < text.index('<section')
    for expected in (
        'Not for clinical use', '20 × 24 × 12 voxels of 4 × 4 × 6 mm', '0.08 s', 'Flag: –',
        'b = 1000 s/mm²: 7 directions', 'DistortionCorrection',
    ):  # fmt: skip
        assert expected in text


def test_participant_without_any_run_still_has_a_page(tmp_path):
    text = participant_page(tmp_path, '01', {'sub-01': 'no bval'}).read_text()
    assert 'sub-01: no bval' in text
    assert not Reader(text).sources


def test_one_page_for_all_sessions_and_runs(tmp_path):
    write_run(tmp_path, session='a')
    write_run(tmp_path, session='b', run='1')
    write_run(tmp_path, session='b', run='10')
    text = participant_page(tmp_path, '01').read_text()
    sources = Reader(text).sources
    assert len(sources) == len(set(sources)) == 9
    for name in ('sub-01_ses-a', 'sub-01_ses-b_run-1', 'sub-01_ses-b_run-10'):
        assert f'<h2 id="{name}">' in text


def test_broken_map_is_named_and_the_rest_is_drawn(tmp_path):
    dwi = write_run(tmp_path)
    add_labels(tmp_path, dwi)
    bad = dwi.with_name('sub-01_seg-tissue_desc-unet_dseg.nii.gz')
    bad.write_bytes(bad.read_bytes()[:60])
    text = participant_page(tmp_path, '01').read_text()
    assert len(Reader(text).sources) == 5
    assert 'class="problem"' in text


def test_missing_mask_is_a_problem_on_the_page(tmp_path):
    dwi = write_run(tmp_path)
    dwi.with_name('sub-01_desc-brain_mask.nii.gz').unlink()
    text = participant_page(tmp_path, '01').read_text()
    assert 'sub-01_desc-brain_mask.nii.gz is missing' in text
    assert not Reader(text).sources


def test_same_files_give_the_same_bytes(tmp_path):
    add_labels(tmp_path, write_run(tmp_path))

    def drawn() -> dict[Path, bytes]:
        page = participant_page(tmp_path, '01')
        figures = sorted((tmp_path / 'sub-01' / 'figures').iterdir())
        return {path: path.read_bytes() for path in [page, *figures]}

    assert drawn() == drawn()


@pytest.mark.parametrize('axes', ['RAS', 'LAS', 'LPS', 'RPI'])
@pytest.mark.parametrize('turn', [0.0, 0.2])
def test_left_of_the_patient_is_on_the_left_and_front_is_up(tmp_path, axes, turn):
    write_run(tmp_path, axes, turn)
    view = open_view(find_written(tmp_path, '01')[0])
    (panel,) = view.panels(view.cuts(2, 1, 0.5, 0.5), lambda at: grey(at(view.background), 900))
    up, right = np.argwhere(panel.picture[..., 0] > 0.5).mean(0) / panel.picture.shape[:2]
    assert right < 0.4 < 0.5 < up
    assert panel.letters == ('L', 'R')
    rows, columns = panel.picture.shape[:2]
    assert panel.size == pytest.approx((columns * 4.0, rows * 4.0))


def test_files_of_any_orientation_give_the_same_picture(tmp_path):
    for axes in ('RAS', 'LAS'):
        add_labels(tmp_path / axes, write_run(tmp_path / axes, axes))
        participant_page(tmp_path / axes, '01')
    names = sorted(p.name for p in (tmp_path / 'RAS/sub-01/figures').iterdir())
    assert len(names) == 6
    for name in names:
        one, other = (pixels(tmp_path / axes / 'sub-01/figures' / name) for axes in ('RAS', 'LAS'))
        assert np.abs(one - other).max() < 0.02


def test_letter_stands_on_its_side_and_the_first_row_at_the_bottom(tmp_path):
    picture = np.zeros((20, 20, 3))
    picture[10:, :5, 2] = 1  # up, and at the side of the first letter
    panel = Panel(picture, (60.0, 60.0), ('L', ''), '')
    image = pixels(draw_rows(tmp_path / 'x.png', [('', [panel])]))
    height, width = image.shape[:2]
    red, green, blue = np.moveaxis(image, -1, 0)
    row, column = np.argwhere((blue > 0.9) & (red < 0.1)).mean(0)
    assert row < height / 2
    assert column < width / 2
    letter = np.argwhere((red > 0.9) & (green > 0.7) & (blue < 0.5))[:, 1]
    assert len(letter) > 10
    assert letter.max() < width / 2


def test_sagittal_cut_has_the_front_on_the_right(tmp_path):
    write_run(tmp_path, 'LPS')
    view = open_view(find_written(tmp_path, '01')[0])
    cut = view.cuts(0, 1, 0.28, 0.28)
    (panel,) = view.panels(cut, lambda at: grey(at(view.background), 900))
    bright = np.argwhere(panel.picture[..., 0] > 0.5).mean(0)
    assert bright[1] / panel.picture.shape[1] > 0.5
    assert panel.letters == ('P', 'A')
    assert panel.place.startswith('x = -')


def test_directions_have_the_colours_of_the_convention():
    axes = np.eye(3)[None]
    colours = coloured_directions(-axes, np.ones((1, 3)))
    assert np.array_equal(colours, axes)  # red left-right, green front-back, blue up-down


def test_angle_does_not_know_the_sign_of_an_axis():
    one = np.array([[[[1.0, 0, 0], [1, 0, 0], [0, 0, 0]]]])
    other = np.array([[[[-1.0, 0, 0], [0.5, 0.5, 0], [1, 0, 0]]]])
    angle, where = angles(one, other)
    assert angle[0, 0] == pytest.approx([0, 45, 0])
    assert where[0, 0].tolist() == [True, True, False]


def test_map_of_another_grid_is_not_drawn(tmp_path):
    dwi = write_run(tmp_path)
    other = tmp_path / 'other.nii.gz'
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.float32), np.diag([2.0, 2, 2, 1])), other)
    fa = dwi.with_name('sub-01_desc-reference_FA.nii.gz')
    write_image(fa, np.ones(SHAPE), other, 'float32')
    add = dwi.with_name('sub-01_model-tensor_param-direction_dwimap.nii.gz')
    write_image(add, np.ones((*SHAPE, 3)), dwi, 'float32')
    assert 'not on the voxel grid of its run' in participant_page(tmp_path, '01').read_text()
