"""Batches of patches: what is drawn, what is told of it, and whole axes as they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bidsapp.core import Sample
from bidsapp.learn.patches import PatchSource, in_patches, seeded, stacked

CUBE = (16, 16, 16)


def sample(seed: int, shape=(20, 18, 16), value: float | None = None) -> Sample:
    """Noise, or one ``value`` everywhere, that the context tells; the target is twice the image."""
    image = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))
    if value is not None:
        image = torch.full_like(image, value)
    mask = torch.zeros(1, *shape, dtype=torch.bool)
    mask[:, 2:-2, 2:-2, 2:-2] = True
    context = {'level': torch.tensor([value or 0.0]), 'maps': torch.full((3, *shape[:2]), seed)}
    return Sample(image, mask, np.eye(4), 2 * image, context)


def test_drawing_a_batch_leaves_the_global_generator_alone():
    source = PatchSource([sample(0)], CUBE)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    source.batch(2, 0, 0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_batches_depend_on_seed_and_step_only():
    source = PatchSource([sample(0), sample(1)], CUBE)
    first = source.batch(2, 5, 7)[0]
    source.batch(2, 5, 8)
    assert torch.equal(first, source.batch(2, 5, 7)[0])
    assert not torch.equal(first, source.batch(2, 5, 8)[0])


def test_every_patch_holds_brain_even_in_a_volume_of_one_patch():
    small = Sample(
        torch.ones(1, 16, 9, 16), torch.zeros(1, 16, 9, 16, dtype=torch.bool), np.eye(4),
        target=torch.ones(1, 16, 9, 16),
    )  # fmt: skip
    small.mask[0, 1, 1, 1] = True
    mask = PatchSource([small], CUBE).batch(4, 0, 0).mask
    assert mask.flatten(1).any(1).all()


def test_seeded_restores_the_generator():
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    with seeded(1, 2):
        torch.rand(5)
    assert torch.equal(expected, torch.rand(3))


def test_image_target_and_mask_of_a_patch_are_of_the_same_voxels():
    batch = PatchSource([sample(0), sample(1)], (8, 16, 4)).batch(6, 0, 0)
    assert batch.image.shape == (6, 2, 8, 16, 4)
    assert torch.equal(batch.target, 2 * batch.image)
    assert batch.mask.dtype == torch.bool
    assert batch.mask.shape == (6, 1, 8, 16, 4)


def test_each_patch_is_told_what_its_own_sample_is_told():
    source = PatchSource([sample(k, value=float(k)) for k in range(4)], CUBE)
    met = set()
    for step in range(6):
        batch = source.batch(5, 0, step)
        assert batch.context['level'].shape == (5, 1)
        assert batch.context['maps'].shape == (5, 3, 20, 18)
        assert torch.equal(batch.image[:, 0, 0, 0, 0], batch.context['level'][:, 0])
        assert torch.equal(batch.context['maps'][:, 0, 0, 0].float(), batch.context['level'][:, 0])
        met |= set(batch.context['level'].flatten().tolist())
    assert met == {0, 1, 2, 3}


def test_a_smaller_volume_is_padded_to_a_patch_with_zeros():
    batch = PatchSource([sample(0, (10, 9, 8))], CUBE).batch(1, 0, 0)
    assert torch.equal(batch.image[0, :, :10, :9, :8], sample(0, (10, 9, 8)).image)
    assert not batch.image[..., 9:, :].any()
    assert not batch.mask[..., 8:].any()


def test_slices_are_whole_as_they_are_and_never_padded():
    """A patch of (None, None, 1) is a slice of a sample, of a size of its own."""
    samples = [sample(0, (20, 18, 5)), sample(1, (7, 9, 11))]
    source = PatchSource(samples, (None, None, 1))
    met = set()
    for step in range(12):
        batch = source.batch(3, 2, step)
        (own,) = (s for s in samples if s.image.shape[1:3] == batch.image.shape[2:4])
        assert batch.image.shape[4] == 1
        for image, mask in zip(batch.image, batch.mask, strict=True):
            same = [
                k
                for k in range(own.image.shape[3])
                if torch.equal(image, own.image[..., k : k + 1])
            ]
            assert len(same) == 1
            assert torch.equal(mask, own.mask[..., same[0] : same[0] + 1])
            assert mask.any()
            met.add((own.image.shape[1], same[0]))
    assert {width for width, _ in met} == {20, 7}
    assert len(met) > 4


@pytest.mark.parametrize('patch', [(None, None, None), (None, 8, 8), (None, None, 1)])
def test_a_batch_with_a_whole_axis_is_of_samples_of_one_shape(patch):
    shapes = [(20, 18, 16), (16, 18, 16), (20, 18, 16), (12, 10, 10)]
    samples = [sample(k, shape, float(k)) for k, shape in enumerate(shapes)]
    source = PatchSource(samples, patch)
    together = set()
    for step in range(20):
        batch = source.batch(3, 0, step)
        drawn = [int(k) for k in batch.context['level'].flatten()]
        assert len({shapes[k] for k in drawn}) == 1
        whole = [n for n, side in zip(shapes[drawn[0]], patch, strict=True) if side is None]
        assert [*batch.image.shape[2:]][: len(whole)] == whole
        together.add(frozenset(drawn))
    assert frozenset({0, 2}) in together
    assert {k for drawn in together for k in drawn} == {0, 1, 2, 3}


def test_cubes_are_of_samples_of_any_shape():
    samples = [sample(0, (20, 18, 16), 0.0), sample(1, (24, 17, 19), 1.0)]
    for each in samples:
        each.context.pop('maps')
    source = PatchSource(samples, CUBE)
    drawn = [frozenset(source.batch(4, 0, k).context['level'].flatten().tolist()) for k in range(6)]
    assert frozenset({0.0, 1.0}) in drawn


def test_samples_that_are_told_different_things_share_no_batch():
    one, other = {'a': torch.zeros(3)}, {'a': torch.ones(3)}
    assert stacked([one, other])['a'].shape == (2, 3)
    assert stacked([{}, {}]) == {}
    for wrong in ({'b': torch.ones(3)}, {'a': torch.ones(4)}, {}):
        with pytest.raises(ValueError, match='different things'):
            stacked([one, wrong])


def test_a_sample_without_target_cannot_be_learnt_from():
    unlabelled = Sample(torch.ones(1, 4, 4, 4), torch.ones(1, 4, 4, 4, dtype=torch.bool), np.eye(4))
    with pytest.raises(ValueError, match='without a target'):
        PatchSource([unlabelled], (4, 4, 4))


@pytest.mark.parametrize('patch', [(16, 16, 16), (16, 24, None), (None, None, 16)])
def test_identity_in_patches_is_the_image(patch):
    image = torch.randn(2, 37, 50, 29)
    blended = in_patches(lambda x: x, image, patch, 8, (8, 8, 8), 'cpu')
    assert torch.allclose(blended, image, atol=1e-5)


def test_slices_in_patches_are_pooled_within_the_slice_only():
    """A stride of one along an axis pads nothing there."""
    seen = []

    def noted(piece):
        seen.append(tuple(piece.shape[2:]))
        return piece

    image = torch.randn(1, 30, 17, 5)
    blended = in_patches(noted, image, (16, None, None), 8, (8, 8, 1), 'cpu')
    assert torch.allclose(blended, image, atol=1e-5)
    assert set(seen) == {(16, 24, 5)}
