"""A model on disk is whole, verified, and never a pickle."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from bidsapp.core import Checkpoint, Sample
from bidsapp.learn.cards import (
    newest_model,
    next_version,
    training_participants,
    versions,
)
from bidsapp.learn.checkpoint import load, save, save_next
from bidsapp.learn.predict import network_of, predict, split_heads
from bidsapp.networks.registry import build
from bidsapp.problems import BadData, MissingInput

OPTIONS = {'widths': [4, 4, 8, 8]}


@pytest.fixture
def checkpoint():
    network = build('dwi', 'unet', 3, {'tissue': 2, 'restore': 4}, **OPTIONS)
    card = {
        'name': 'toy', 'version': 'v1', 'heads': {'tissue': 2, 'restore': 4},
        'network': {'name': 'unet', 'channels_in': 3, 'options': OPTIONS},
    }  # fmt: skip
    heads = {task: head.state_dict() for task, head in network.heads.items()}
    return Checkpoint(card, network.body.state_dict(), heads)


def test_saved_and_loaded_it_predicts_the_same(checkpoint, tmp_path):
    folder = save(checkpoint, tmp_path / 'v1')
    image = torch.randn(3, 9, 10, 11)
    sample = Sample(image, torch.ones(1, 9, 10, 11, dtype=torch.bool), np.eye(4))
    both = ('tissue', 'restore')
    before, after = (predict(network_of(c, both), sample) for c in (checkpoint, load(folder)))
    assert torch.equal(before, after)
    parts = split_heads(after, {'tissue': 2, 'restore': 4})
    alone = predict(network_of(checkpoint, ['restore']), sample)
    assert torch.allclose(parts['restore'], alone, atol=1e-3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['v1']


def test_who_may_read_new_files_may_read_a_model(checkpoint, tmp_path):
    folder = save(checkpoint, tmp_path / 'v1')
    (tmp_path / 'other').touch()
    ordinary = (tmp_path / 'other').stat().st_mode
    assert all(file.stat().st_mode == ordinary for file in folder.iterdir())


def test_damaged_weights_are_noticed(checkpoint, tmp_path):
    folder = save(checkpoint, tmp_path / 'v1')
    weights = folder / 'weights.safetensors'
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BadData, match='SHA-256'):
        load(folder)


def test_a_card_that_lacks_something_is_refused(checkpoint, tmp_path):
    folder = save(checkpoint, tmp_path / 'v1')
    card = json.loads((folder / 'card.json').read_text())
    del card['network']
    (folder / 'card.json').write_text(json.dumps(card))
    with pytest.raises(BadData, match='network'):
        load(folder)


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('heads', ['tissue']), ('heads', {'tissue': 'two'}), ('heads', None), ('network', 'unet'),
        ('network', {'name': 'unet', 'channels_in': '3'}), ('network', {'name': 'unet'}),
        ('network', {'name': 'unheard-of', 'channels_in': 3, 'options': {}}),
        ('network', {'name': 'unet', 'channels_in': 3, 'options': {'widths': [8, 8, 8, 8]}}),
        ('network', {'name': 'unet', 'channels_in': 3, 'options': {'colour': 'red'}}),
        ('version', 3), ('sha256', None), ('averaged_turns', [[1, 2], [3]]), ('modality', {}),
        ('tested_ranges', {'b': 'any'}), ('tested_ranges', {'b': []}), ('seen_scans', 'all'),
        ('heads', {'tissue': 5}), ('ancestry', ['a model']), ('modality', 'unheard-of'),
    ],
)  # fmt: skip
def test_whatever_is_wrong_with_a_card_is_bad_data(checkpoint, tmp_path, field, value):
    folder = save(checkpoint, tmp_path / 'v1')
    card = json.loads((folder / 'card.json').read_text())
    (folder / 'card.json').write_text(json.dumps({**card, field: value}))
    with pytest.raises(BadData, match='card'):
        network_of(load(folder), ['tissue'])


@pytest.mark.parametrize('text', ['', '[]', '3', 'null', '"x"', '{', '\x00\xff', '[' * 100_000])
def test_what_is_no_card_is_bad_data(tmp_path, text):
    (tmp_path / 'card.json').write_text(text, encoding='latin-1')
    with pytest.raises(BadData, match='not a model card'):
        load(tmp_path)


def test_a_folder_without_a_model_is_said(tmp_path):
    with pytest.raises(MissingInput, match=r'card\.json'):
        load(tmp_path)


def test_versions_are_numbers_not_text(checkpoint, tmp_path):
    for name in ('v2', 'v10', 'v9'):
        save(checkpoint, tmp_path / 'tissue' / name)
    (tmp_path / 'tissue' / '.v11.123').mkdir()
    assert [p.name for p in versions(tmp_path, 'tissue')] == ['v2', 'v9', 'v10']
    assert newest_model(tmp_path, 'tissue').name == 'v10'
    assert next_version(tmp_path, 'tissue').name == 'v11'
    assert next_version(tmp_path, 'orientation').name == 'v1'


def test_calls_that_end_at_once_take_a_version_each(checkpoint, tmp_path):
    """Both have looked for the next version before either has taken it."""
    together = threading.Barrier(2, timeout=30)

    def save_one(number):
        waited = []

        def add(staging):
            if not waited:
                waited.append(together.wait())
            (staging / 'log.tsv').write_text(str(number))

        return save_next(checkpoint, tmp_path, 'tissue', add)

    with ThreadPoolExecutor(2) as threads:
        folders = list(threads.map(save_one, range(2)))
    assert sorted(folder.name for folder in folders) == ['v1', 'v2']
    assert sorted((f / 'log.tsv').read_text() for f in folders) == ['0', '1']
    assert all(load(folder).card['version'] == folder.name for folder in folders)
    assert len([*(tmp_path / 'tissue').iterdir()]) == 2


def test_a_folder_without_a_model_is_no_version_and_is_not_taken(checkpoint, tmp_path):
    (tmp_path / 'tissue' / 'v1').mkdir(parents=True)
    assert newest_model(tmp_path, 'tissue') is None
    assert save_next(checkpoint, tmp_path, 'tissue').name == 'v2'


def test_who_was_seen_in_training(tmp_path):
    (tmp_path / 'split.tsv').write_text(
        'participant_id\tsplit\nsub-01\ttrain\nsub-02\tval\nsub-03\ttest\n'
    )
    assert training_participants(tmp_path) == {'01', '02'}
