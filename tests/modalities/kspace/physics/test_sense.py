"""Laws of the forward model and of every classical solve."""

from __future__ import annotations

import pytest
import torch

from bidsapp.modalities.kspace.physics import coils, sampling, sense
from bidsapp.modalities.kspace.physics.fourier import ALONG_PHASE, BOTH, around, hybrid, middle
from tests.laws import assert_norm_at_most, assert_operator, assert_unitary
from tests.modalities.kspace.phantom import error, maps_of, noise_of, scan_of

SHAPES = [(16, 20), (15, 21)]
#: Noise of a scan whose object is about 1.
SIGMA = 0.01


def tv(operator, y, strength=0.5 * SIGMA):
    return sense.total_variation(operator, y, strength, sense.cg_sense(operator, y, 1e-3, 1))


def wavelet(operator, y, strength=0.5 * SIGMA):
    return sense.l1_wavelet(operator, y, strength, sense.cg_sense(operator, y, 1e-3, 1))


def cg(operator, y, strength=1e-3):
    return sense.cg_sense(operator, y, strength, 1)


METHODS = [cg, tv, wavelet]


def undersampled(shape, generator, n=6, acceleration=2.5, sigma=SIGMA):
    """Image, maps from eleven lines, mask, and y in hybrid space."""
    image, _, kspace = scan_of(n, shape, sigma, generator)
    mask = sampling.random_lines(shape[1], acceleration, 11, generator)
    maps = coils.espirit(middle(kspace, 11, -1), shape)
    return image, maps, mask, hybrid(kspace) * mask


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('hybrid_space', [False, True])
def test_laws_of_the_forward_model(shape, hybrid_space, generator):
    maps = maps_of(4, shape)
    mask = sampling.random_lines(shape[1], 2, 5, generator)
    if not hybrid_space:
        mask = mask * (torch.rand(shape, generator=generator) < 0.7)
    op = sense.sense(maps, mask, ALONG_PHASE if hybrid_space else BOTH)
    assert_operator(op, shape, (4, *shape), generator, torch.complex64)
    assert_norm_at_most(op, 1, shape, generator, torch.complex64)


@pytest.mark.parametrize('shape', SHAPES)
def test_laws_of_a_model_that_holds_the_phase(shape, generator):
    phase = torch.polar(torch.ones(shape), torch.randn(shape, generator=generator))
    mask = sampling.partial_fourier(shape[1], 0.7)
    op = sense.holding(sense.sense(maps_of(3, shape), mask), phase)
    assert_operator(op, shape, (3, *shape), generator, torch.float32, torch.complex64)
    assert_norm_at_most(op, 1, shape, generator, torch.float32)


@pytest.mark.parametrize('shape', [(16, 20), (15, 21), (17, 4)])
def test_wavelets_are_unitary_for_any_size(shape, generator):
    op = sense.Wavelet.of(shape)
    assert_operator(op, shape, shape, generator, torch.complex64)
    assert_unitary(op, shape, generator, torch.complex64)


def test_wavelets_see_no_ramp():
    """Two vanishing moments: away from the circle's end a line has averages only."""
    n = 32
    details = (sense.wavelet_matrix(n) @ torch.arange(n, dtype=torch.float32))[n // 2 : -1]
    assert details.abs().max() < 1e-4


def test_differences_and_divergence_are_adjoint(generator):
    x = noise_of((15, 21), generator)
    p = noise_of((2, 15, 21), generator)
    there = torch.vdot(sense.gradient(x).flatten(), p.flatten())
    here = torch.vdot(x.flatten(), -sense.divergence(p).flatten())
    assert torch.allclose(there, here, rtol=1e-4)


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('shape', SHAPES)
def test_a_fully_sampled_scan_comes_back(method, shape, generator):
    image, maps, kspace = scan_of(4, shape, 0.0, generator)
    op = sense.sense(maps, torch.ones(shape[1]), ALONG_PHASE)
    assert error(method(op, hybrid(kspace), 1e-6), image) < 1e-4
    assert error(op.H(hybrid(kspace)), image) < 1e-5


@pytest.mark.parametrize('shape', [(32, 40), (33, 41)])
def test_every_method_is_better_than_zeros_and_total_variation_is_best(shape, generator):
    image, maps, mask, y = undersampled(shape, generator)
    op = sense.sense(maps, mask, ALONG_PHASE)
    errors = {method.__name__: error(method(op, y), image) for method in METHODS}
    assert errors['tv'] < errors['wavelet'] < errors['cg'] < 0.8 * error(op.H(y), image)


@pytest.mark.parametrize('method', METHODS)
def test_scale_and_phase_of_k_space_are_the_image_s_and_nothing_else(method, generator):
    _, maps, mask, y = undersampled((32, 40), generator)
    op = sense.sense(maps, mask, ALONG_PHASE)
    factor = 1000 * torch.exp(torch.tensor(2.1j))
    strength = 1e-3 if method is cg else 0.5 * SIGMA
    here = method(op, y, strength)
    there = method(op, factor * y, strength if method is cg else 1000 * strength)
    assert (there / factor - here).norm() < 1e-3 * here.norm()


@pytest.mark.parametrize('method', METHODS)
def test_an_object_one_voxel_on_is_the_same_image_one_voxel_on(method, generator):
    shape = (32, 40)
    image, maps, kspace = scan_of(6, shape, 0.0, generator)
    mask = sampling.random_lines(shape[1], 2.5, 11, generator)
    step = torch.exp(-2j * torch.pi * (torch.arange(40) - 20) / 40)
    here = method(sense.sense(maps, mask, ALONG_PHASE), hybrid(kspace) * mask)
    moved = sense.sense(maps.roll(1, -1), mask, ALONG_PHASE)
    there = method(moved, hybrid(kspace * step) * mask)
    if method is wavelet:  # whose grid does not move along
        assert error(there, image.roll(1, -1)) == pytest.approx(error(here, image), rel=0.1)
    else:
        assert (there - here.roll(1, -1)).norm() < 1e-4 * here.norm()


def test_a_crop_of_columns_is_the_crop_of_the_whole_solve(generator):
    _, maps, mask, y = undersampled((33, 40), generator)
    op = sense.sense(maps, mask, ALONG_PHASE)
    columns = slice(9, 22)
    part = sense.sense(maps[:, columns], mask, ALONG_PHASE)
    for steps in (3, 30):
        whole = sense.cg_sense(op, y, 1e-3, 1, steps)
        crop = sense.cg_sense(part, y[:, columns], 1e-3, 1, steps)
        assert (crop - whole[columns]).norm() < 1e-5 * crop.norm()


def test_hybrid_space_solves_what_k_space_does(generator):
    _, maps, mask, y = undersampled((16, 20), generator, acceleration=1.5)
    op = sense.sense(maps, mask, ALONG_PHASE)
    plane = sense.sense(maps, mask, BOTH)
    here = sense.cg_sense(op, y, 0.05, 1, 60)
    there = sense.cg_sense(plane, BOTH(ALONG_PHASE.H(y)), 0.05, 2, 60)
    assert (here - there).norm() < 1e-3 * here.norm()


def test_a_batch_is_solved_as_its_parts(generator):
    _, maps, mask, y = undersampled((16, 20), generator, acceleration=1.6)
    op = sense.sense(maps, mask, ALONG_PHASE)
    both = torch.stack([y, 2 * y.flip(-2)])
    for method in METHODS:
        together = method(op, both)
        apart = torch.stack([method(op, one) for one in both])
        assert (together - apart).norm() < 1e-4 * apart.norm()


@pytest.mark.parametrize('n', [1, 6])
def test_a_held_phase_fills_what_partial_fourier_left_out(n, generator):
    shape = (32, 48)
    image, maps, kspace = scan_of(n, shape, SIGMA, generator)
    mask = sampling.partial_fourier(48, 5 / 8)
    if n > 1:
        mask = mask * (sampling.random_lines(48, 2, 11, generator))
    whole = sampling.symmetric(sampling.middle_block(mask)[0], 48)
    phase = coils.low_resolution_phase(kspace[..., whole], maps)
    y = hybrid(kspace) * mask
    op = sense.sense(maps, mask, ALONG_PHASE)
    held = sense.holding(op, phase)
    plain = error(tv(op, y), image)
    assert error(tv(held, y), image) < 0.75 * plain
    assert error(cg(held, y), image) < error(cg(op, y), image)


def test_noise_grows_by_the_root_of_r_and_more(generator):
    shape = (12, 24)
    maps = maps_of(8, shape)
    full = sense.sense(maps, torch.ones(24), ALONG_PHASE)
    sd = sense.noise_map(full, (8, *shape), 0.0, 1, generator, replicas=60)
    assert float(sd.mean()) == pytest.approx(1, abs=0.03)
    mask = torch.zeros(24)
    mask[::2] = 1
    half = sense.sense(maps, mask, ALONG_PHASE)
    amplified = sense.noise_map(half, (8, *shape), 0.0, 1, generator, replicas=60)
    g = amplified / 2**0.5
    assert float(g.min()) > 0.8  # 1 within the error of 60 replicas
    assert 1.0 < float(g.mean()) < 1.5
    assert sense.noise_map(half, (8, *shape), 1.0, 1, generator).mean() < amplified.mean()


def test_a_middle_put_back_among_zeros_is_where_it_was(generator):
    for n, part in ((9, 4), (8, 5), (8, 8), (9, 9)):
        x = noise_of((3, n), generator)
        back = around(middle(x, part, -1), n, -1)
        assert torch.equal(back[:, n // 2], x[:, n // 2])
        assert (back != 0).sum() == 3 * part


def test_what_is_made_of_a_scan_follows_from_it_and_its_noise_alone(generator):
    """λ is the noise's: other units are another scale of the images, and nothing else."""
    image, maps, mask, y = undersampled((32, 40), generator)
    op = sense.sense(maps, mask, ALONG_PHASE)
    here = sense.classical(op, y, SIGMA, 1)
    factor = 1000 * torch.exp(torch.tensor(2.1j))
    there = sense.classical(op, factor * y, 1000 * SIGMA, 1)
    for name, found in here.items():
        assert (there[name] / factor - found).norm() < 1e-3 * found.norm(), name
    assert min(here, key=lambda name: error(here[name], image)) == 'tv'
    assert error(here['sense'], image) < error(here['zerofilled'], image)
