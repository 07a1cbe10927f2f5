"""What a card says of a model: whose it is, where it stands, how it was fitted."""

from __future__ import annotations

import json

import pytest

from bidsapp import registry
from bidsapp.core import Head, Plan
from bidsapp.learn import cards

PLAN = Plan(steps=10, patch=(32, 32, 32), batch=2, lr=1e-3)


def model(folder, **card):
    """A folder with a card and no weights."""
    folder.mkdir(parents=True)
    said = {'name': 'x', 'version': folder.name, 'heads': {}, 'network': {}, 'sha256': ''}
    (folder / 'card.json').write_text(json.dumps({**said, **card}))
    return folder


@pytest.mark.parametrize(
    ('card', 'modality'),
    [
        ({'modality': 'gre', 'heads': {'tissue': 3}}, 'gre'),
        ({'heads': {'tissue': 3}}, 'dwi'),
        ({'heads': {'autoencoder': 84}}, registry.FIRST),
    ],
)
def test_a_model_is_of_the_modality_that_it_says_or_that_of_its_tasks(card, modality):
    assert cards.modality_of(card) == modality


def test_an_autoencoder_of_before_there_were_several_modalities_is_found_too(tmp_path):
    assert cards.autoencoder(tmp_path, 'dwi') is None
    earlier = model(tmp_path / 'pretrained' / 'autoencoder' / 'v3')
    assert cards.autoencoder(tmp_path, 'dwi') == earlier
    assert cards.autoencoder(tmp_path, 'another') is None
    now = model(cards.pretrained(tmp_path, 'dwi') / 'autoencoder' / 'v1')
    assert cards.autoencoder(tmp_path, 'dwi') == now


def test_the_package_has_one_model_a_modality_and_each_task_finds_it():
    for name, folder in cards.bundled_models().items():
        if name in registry.tasks():
            assert folder == cards.bundled_model(registry.tasks()[name])
        assert name in cards.load_card(folder)['heads']
    assert cards.bundled_model('another') is None


@pytest.mark.parametrize(
    ('patch', 'said'),
    [((32, 32, 32), 32), ((32, 32, 8), [32, 32, 8]), ((None, None, 1), [None, None, 1]),
     ((None, None, None), [None, None, None])],
)  # fmt: skip
def test_the_side_of_a_cube_is_one_number(patch, said):
    plan = Plan(steps=10, patch=patch, batch=2, lr=1e-3)
    assert cards.described(plan, 'body') == {
        'steps': 10, 'patch': said, 'batch': 2, 'lr': 1e-3, 'freeze': 'body', 'seed': 0,
        'device': 'cpu', 'validate_every': 50, 'average': 0.0,
    }  # fmt: skip
    assert json.loads(json.dumps(cards.described(plan)))['patch'] == said


def test_a_card_holds_what_it_is_made_of_and_is_json():
    head = Head(3, 2, None, None, 'x', True, name='toy')
    card = cards.make_card(
        {'task': 'toy'}, 'toy', 'A network.', {'name': 'unet', 'channels_in': 2, 'options': {}},
        head, {'input': 'two echoes'}, cards.described(PLAN), 7, {'license': 'CC0', 'seed': 3},
    )  # fmt: skip
    again = json.loads(json.dumps(card))
    assert again == {**card, 'averaged_turns': [[[1, 0, 0], [0, 1, 0], [0, 0, 1]]]}
    assert (again['name'], again['task'], again['heads']) == ('transfermri-toy', 'toy', {'toy': 3})
    assert (again['input'], again['best_step'], again['license']) == ('two echoes', 7, 'CC0')
    assert 'clinical' in again['intended_use']
