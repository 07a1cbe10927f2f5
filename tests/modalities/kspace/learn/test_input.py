"""What a network sees of a scan: the operator is turned and rephased with the image."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
import torch

from bidsapp.core import Batch
from bidsapp.learn.inputs import Use, whole
from bidsapp.modalities.kspace.bids.prepared import Afterwards, opened
from bidsapp.modalities.kspace.learn.head import MIRRORS, slices_of
from bidsapp.modalities.kspace.networks.normalised import channels_of
from bidsapp.modalities.kspace.physics import sampling
from bidsapp.modalities.kspace.physics.fourier import hybrid
from bidsapp.modalities.kspace.physics.planes import Plane
from bidsapp.modalities.kspace.physics.seen import operator_of, seen
from bidsapp.physics.geometry import turned_voxels
from bidsapp.problems import BadData
from tests.modalities.kspace import raw
from tests.modalities.kspace.phantom import scan_of

module = import_module('bidsapp.modalities.kspace.learn.input')  # the package has one of the name
QUARTER = ((0, -1, 0), (1, 0, 0), (0, 0, 1))


def looked_at(shape, generator, of_samples=False):
    """Image and context of a plane of the phantom."""
    _, maps, kspace = scan_of(3, shape, 0.01, generator)
    if of_samples:
        mask = (torch.rand(shape, generator=generator) < 0.6).float()
        return seen(Plane(kspace * mask, maps, mask[None], 0.01))
    mask = sampling.random_lines(shape[1], 2, 5, generator)
    return seen(Plane(hybrid(kspace) * mask, maps, mask[None, None], 0.01))


def gram(image, context):
    """Aᴴ A of the start of a plane, as channels."""
    found = operator_of(context).gram(slices_of(image[:2])[0])
    return channels_of(found[None])[0]


@pytest.mark.parametrize('of_samples', [False, True])
@pytest.mark.parametrize('shape', [(16, 18), (15, 17)])
@pytest.mark.parametrize('turn', [*MIRRORS, QUARTER])
def test_the_operator_is_turned_with_the_image(turn, shape, of_samples, generator):
    """Also for an even number of samples, whose origin is beside the mirror's axis."""
    image, context = looked_at(shape, generator, of_samples)
    moved, told = module.turned(image, context, turn)
    wanted = turned_voxels(gram(image, context), turn)
    assert torch.allclose(gram(moved, told), wanted, atol=1e-5)


def test_slices_stay_in_their_plane(generator):
    image, context = looked_at((16, 18), generator)
    with pytest.raises(ValueError, match='out of their plane'):
        module.turned(image, context, ((0, 0, 1), (0, 1, 0), (1, 0, 0)))
    _, told = module.turned(image, context, ((1, 0, 0), (0, 1, 0), (0, 0, -1)))
    assert torch.equal(told['sigma'], context['sigma'].flip(-1))


def test_another_phase_leaves_the_data_what_they_were(generator):
    """Maps take off what the image is given, so A x is the same for start and target."""
    image, context = looked_at((16, 18), generator)
    both = {name: value[None] for name, value in context.items()}
    mask = torch.ones(1, 1, 16, 18, 1, dtype=torch.bool)
    batch = Batch(image[None], image[None, :2], mask, both)
    found = module.rephased(batch, generator)
    told = {name: value[0] for name, value in found.context.items()}
    for before, after in ((image[:2], found.image[0, :2]), (image[:2], found.target[0])):
        assert not torch.allclose(before, after, atol=0.1)
        here, there = (slices_of(x)[0] for x in (before, after))
        assert torch.allclose(here.abs(), there.abs(), atol=1e-5)
        data = operator_of(context)(here), operator_of(told)(there)
        assert torch.allclose(*data, atol=1e-4)


@pytest.fixture
def scan(tmp_path):
    return raw.write(tmp_path / 'scan.h5')


def test_of_a_scan_every_plane_is_seen_where_it_lies(scan):
    with opened(scan, 0, Afterwards(2.0, 0)) as samples:
        found = module.every_plane(samples)
        assert np.allclose(found.affine, samples.image.affine)
        assert found.image.shape == (4, raw.WANTED, raw.Y, 2)
        assert found.context['maps'].shape[1:] == found.image.shape[1:]
        measured = samples.mask[:, :, 0]
    assert torch.equal(found.context['mask'][..., 0] > 0, (measured > 0)[None])
    assert found.target is None


def test_samples_that_reach_beyond_the_image_lie_around_it(scan):
    """The origin, n // 2, is the same place on both grids."""
    with opened(scan, 0, None) as samples:
        image = samples.image
        wide = module._affine(image, (30, raw.Y + 5, 2))
        for n, m in ((raw.WANTED // 2, 15), (raw.WANTED // 2 + 3, 18)):
            here = image.affine @ [n, image.shape[1] // 2, 1, 1]
            there = wide @ [m, (raw.Y + 5) // 2, 1, 1]
            assert np.allclose(here, there)


def test_a_full_scan_is_learnt_from_with_lines_left_out(scan, monkeypatch):
    monkeypatch.setattr(module, 'COLUMNS', 20)
    part = {'plane': 1, 'draw': 0, 'acceleration': 2.0}
    with opened(scan, 0, None) as samples:
        found, again = (module.drawn_plane(samples, part) for _ in range(2))
        other = module.drawn_plane(samples, {**part, 'draw': 1, 'acceleration': None})
    assert torch.equal(found.image, again.image)
    assert found.context['mask'].sum() == raw.Y // 2
    assert not torch.equal(found.context['mask'], other.context['mask'])
    assert found.image.shape == (4, 20, raw.Y, 1)
    assert not found.mask[:, :8].any()
    assert not found.mask[:, -8:].any()
    assert found.mask[:, 8:-8].all()
    # What the lines would have been, had they been measured, is what the target says.
    truth, back = slices_of(found.target)[0], slices_of(found.image[2:])[0]
    said = operator_of(found.context).gram(truth)
    assert (said - back).norm() < 0.1 * back.norm()
    assert (truth - slices_of(found.image[:2])[0]).norm() < 0.3 * truth.norm()


def test_a_scan_with_missing_lines_has_no_target(tmp_path):
    path = raw.write(tmp_path / 'scan.h5', measured=np.abs(np.arange(raw.Y) - 14) < 9)
    with opened(path, 0, None) as samples, pytest.raises(BadData, match='every line'):
        module.drawn_plane(samples, {'plane': 0, 'draw': 0, 'acceleration': None})


def test_what_is_applied_is_all_of_a_scan():
    assert list(module.parts(None, Use())) == whole(None, Use())
