"""The yardstick for changes that shall change nothing sees what it must."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

SPEC = importlib.util.spec_from_file_location('yardstick', Path(__file__).parent / 'yardstick.py')
yardstick = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(yardstick)

IMAGE, SIDECAR = 'first/sub-01_dwi.nii.gz', 'first/sub-01_dwi.json'


def write_image(root, voxels):
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), root / IMAGE)


def write_weights(root, **tensors):
    save_file({'bias': np.zeros(2, np.float32), **tensors}, root / 'first/weights.safetensors')


def write_sidecar(root, name=SIDECAR, **more):
    text = json.dumps({'Units': 's', 'Notes': [{'b': 1.0}], 'Doubt': float('nan'), **more})
    (root / name).write_text(text)


def write_page(root, words='all is well'):
    text = f'<p>TransferMRI {root.name}.0.0: {words}, <a href="{root}/out">0.1.0.0</a></p>\n'
    (root / 'first/sub-01.html').write_text(text)


@pytest.fixture
def sides(tmp_path):
    """Two folders that hold the same, but for where, when and by which version it was made."""
    roots = tmp_path / '1', tmp_path / '2'
    for root in roots:
        (root / 'first/logs').mkdir(parents=True)
        write_image(root, np.arange(8, dtype=np.float32).reshape(2, 2, 2))
        write_weights(root)
        write_sidecar(root)
        write_sidecar(root, 'first/card.json')
        write_page(root)
        (root / 'first/group.tsv').write_text('a\tb\n1\t2\n')
        (root / 'first/logs/participant.log').write_text(str(root))
        Image.new('RGB', (4, 4), 'red').save(root / 'first/a.png', pnginfo=None)
    return roots


@pytest.fixture
def compared(sides, capsys):
    """Compare the two; returns the exit code and the lines."""

    def call():
        two = [yardstick.read(r, str(r), f'{r.name}.0.0', ['first']) for r in sides]
        return yardstick.compare(*two), capsys.readouterr().out.splitlines()

    return call


def test_the_same_is_the_same(compared):
    code, lines = compared()
    assert code == 0
    (summary,) = lines
    assert set(summary.split('; ')) == {
        f'{kind} 1 same'
        for kind in ('images', 'figures', 'weights', 'cards', 'sidecars', 'pages', 'tables')
    }


def test_a_voxel_is_noticed_with_its_size(sides, compared):
    voxels = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    voxels[1, 0, 1] += 0.25
    write_image(sides[1], voxels)
    code, lines = compared()
    assert code == 1
    assert lines[0] == f'images: {IMAGE} differs (max |Δ| = 0.25, 1 of 8 values)'
    assert 'images 1 differ' in lines[1]


def test_a_header_is_noticed(sides, compared):
    voxels = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    nib.save(nib.Nifti1Image(voxels, np.diag([-1, 1, 1, 1])), sides[1] / IMAGE)
    assert compared()[0] == 1


def test_a_pixel_is_noticed(sides, compared):
    Image.new('RGB', (4, 4), 'blue').save(sides[1] / 'first/a.png')
    code, lines = compared()
    assert code == 1
    assert lines[0].startswith('figures: first/a.png differs (max |Δ| = 255, ')


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        ({'Units': 'mm'}, 'Units: "s" → "mm"'),
        ({'Notes': [{'b': 1}]}, 'Notes[0].b: 1.0 → 1'),
        ({'Notes': [{}]}, 'Notes[0].b: lost'),
        ({'Notes': []}, 'Notes: [{"b": 1.0}] → []'),
    ],
)
def test_a_field_lost_or_changed_is_noticed(sides, compared, change, said):
    write_sidecar(sides[1], **change)
    code, lines = compared()
    assert code == 1
    assert lines[0] == f'sidecars: {SIDECAR} {said}'


def test_a_field_gained_is_said_and_tolerated(sides, compared):
    write_sidecar(sides[1], Notes=[{'b': 1.0, 'why': 'asked'}])
    write_sidecar(sides[1], 'first/card.json', seed=3)
    code, lines = compared()
    assert code == 0
    assert lines[0] == 'gained: Notes[].why (1 files), seed (1 files)'


def test_weights_are_noticed_tensor_by_tensor(sides, compared):
    write_weights(sides[1], bias=np.float32([0, 1e-7]), more=np.zeros(1))
    code, lines = compared()
    assert code == 1
    assert lines[:2] == [
        'weights: first/weights.safetensors bias: differs',
        'weights: first/weights.safetensors more: gained',
    ]


def test_words_of_a_page_are_noticed(sides, compared):
    write_page(sides[1], 'all is lost')
    code, lines = compared()
    assert code == 1
    assert lines[0].startswith('pages: first/sub-01.html differs (')
    assert 'lost' in lines[0]


def test_a_file_that_only_one_has_is_noticed(sides, compared):
    (sides[0] / 'first/group.tsv').unlink()
    code, lines = compared()
    assert code == 1
    assert lines[0] == 'tables: first/group.tsv only after'


def test_nothing_to_compare_is_not_the_same(tmp_path):
    empty = yardstick.read(tmp_path, str(tmp_path), '1.0.0', [])
    assert yardstick.compare(empty, empty) == 1


def test_a_side_that_was_kept_is_read_as_it_was_with_the_stages_asked_for(sides):
    root = sides[0]
    side = yardstick.read(root, str(root), '1.0.0', ['first'])
    kept = root.with_suffix('.json')
    yardstick.keep(side, kept)
    again = yardstick.side_of(kept, 'before', ['participant'], None)
    assert again.folder == root
    assert yardstick.compare(side, again) == 0
    assert yardstick.side_of(kept, 'before', ['pretrain'], None).made == []
