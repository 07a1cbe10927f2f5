"""One scan in many guises is one image, and lies where the scanner put it."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch

from bidsapp.modalities.kspace.bids.layout import ACQUISITION
from bidsapp.modalities.kspace.bids.planes import assembled, planes_in
from bidsapp.modalities.kspace.bids.prepared import opened
from bidsapp.modalities.kspace.bids.scan import onto_grid, opened_scan, survey_scan
from bidsapp.modalities.kspace.physics import coils, measured, sense
from bidsapp.modalities.kspace.physics.fourier import ALONG_PHASE, BOTH, hybrid
from bidsapp.modalities.kspace.simulate.files import Protocol, write_fastmri, write_ismrmrd
from bidsapp.physics.operators import Fourier
from tests.modalities.kspace import raw
from tests.modalities.kspace.phantom import image_of, noise_of


def turned(degrees, axis):
    """(3, 3) rotation about a coordinate axis."""
    from bidsapp.simulate.grids import rotation

    return rotation(torch.tensor([degrees * (i == axis) for i in range(3)])).double().numpy()


#: Columns in LPS: where readout, phase encoding and slices run to.
AXIAL = np.eye(3)
SAGITTAL = np.array([[0.0, 0, 1], [1, 0, 0], [0, -1, 0]])
ORIENTATIONS = {
    'axial': AXIAL,
    'sagittal': SAGITTAL,
    'oblique': turned(25.0, 0) @ turned(-10.0, 2) @ SAGITTAL,
    'feet first': AXIAL * [-1, 1, -1],
    'left-handed': AXIAL * [1, 1, -1],
}


@pytest.mark.parametrize('orientation', ORIENTATIONS)
@pytest.mark.parametrize('point', [(10.0, 0, 0), (0, 10.0, 0), (0, 0, 10.0)])
@pytest.mark.parametrize('odd', [0, 1])
def test_a_point_lies_where_it_is(orientation, point, odd, tmp_path):
    """At +10 mm along x, y or z of RAS; voxels of 2 x 2.5 x 5 mm."""
    axes, n = ORIENTATIONS[orientation], (20 + odd, 24 - odd)
    voxel = np.array([2.0, 2.5, 5.0])
    there = np.array(point) * [-1, -1, 1]  # LPS
    # Slices through the point and beside it; in their planes, off by what is no voxel.
    middle = axes @ (axes.T @ there * [0, 0, 1] + [1.0, -2.0, 0])
    positions = [middle + step * voxel[2] * axes[:, 2] for step in (-1, 0, 1)]
    aside = axes.T @ (there - middle)
    k = [np.arange(m) - m // 2 for m in n]
    waves = [np.exp(-2j * np.pi * k[i] * aside[i] / (n[i] * voxel[i])) for i in (0, 1)]
    kspace = np.zeros((3, 1, 1, *n), np.complex64)
    kspace[:] = 0.01
    kspace[1, 0, 0] = waves[0][:, None] * waves[1]
    protocol = Protocol(
        (n[0] * 2.0, n[1] * 2.5, 5.0),
        axes=axes,
        positions=tuple(map(tuple, positions)),
        order=(1, 0, 2),
    )
    path = write_ismrmrd(tmp_path / 'a.h5', kspace, np.ones(n[1], bool), protocol)
    found, slices = raw.read(path)
    volume = torch.stack(
        [sense.sense(torch.ones(1, *n) + 0j, one.weights[0, :, 0]).H(one.kspace[..., 0])
         for one in slices], -1,
    )  # fmt: skip
    size = volume.abs().numpy() ** 2
    size[size < 0.1 * size.max()] = 0
    place = np.unravel_index(size.argmax(), size.shape)
    assert np.abs(np.diag(found.affine.T @ found.affine)[:3] ** 0.5 - voxel).max() < 1e-4
    off = np.linalg.inv(found.affine[:3, :3]) @ (point - (found.affine @ [*place, 1])[:3])
    assert np.abs(off).max() <= 0.501
    assert abs(off[2]) < 1e-3


def plain(tmp_path):
    return raw.read(raw.write(tmp_path / 'plain.h5'))


VARIANTS = {
    'reversed lines': {'given': raw.protocol(reversed_lines=True)},
    'shifted centre': {'given': raw.protocol(centre=20)},
    'slices out of order': {'given': raw.protocol(order=(1, 0))},
    'samples to discard': {'given': raw.protocol(skipped=(3, 2), reversed_lines=True)},
    'averages': {'kspace': np.repeat(raw.scan(), 2, axis=1)},
}


@pytest.mark.parametrize('variant', VARIANTS)
def test_one_scan_in_other_lines_is_the_same_scan(variant, tmp_path):
    image, slices = plain(tmp_path)
    other, found = raw.read(raw.write(tmp_path / 'other.h5', **VARIANTS[variant]))
    assert np.allclose(other.affine, image.affine)
    assert other.shape == image.shape == (raw.WANTED, raw.Y, 2)
    for here, there in zip(slices, found, strict=True):
        assert torch.allclose(there.kspace, here.kspace, atol=1e-5)
        assert torch.allclose(there.calibration, here.calibration, atol=1e-5)
        assert torch.equal(there.weights, here.weights)


def test_slices_numbered_against_their_positions_lie_by_their_positions(tmp_path):
    upside_down = raw.protocol(positions=raw.protocol().positions[::-1])
    image, slices = plain(tmp_path)
    path = raw.write(tmp_path / 'b.h5', upside_down, kspace=raw.scan()[::-1])
    other, found = raw.read(path)
    assert np.allclose(other.affine, image.affine)
    for here, there in zip(slices, found, strict=True):
        assert torch.allclose(there.kspace, here.kspace, atol=1e-6)


def test_a_fully_sampled_scan_comes_back_without_its_oversampling(tmp_path):
    image, slices = plain(tmp_path)
    maps, _ = coils.coil_maps(slices[0].calibration[..., 0], (raw.WANTED, raw.Y))
    op = sense.sense(maps, slices[0].weights[..., 0], ALONG_PHASE)
    found = onto_grid(op.H(hybrid(slices[0].kspace[..., 0])), image)
    true = image_of((raw.WANTED, raw.Y)).abs()
    assert found.shape == true.shape
    assert (found.abs() - true).norm() < 0.02 * true.norm()


def test_fastmri_s_layout_holds_the_same_image_and_no_place(tmp_path):
    image, slices = plain(tmp_path)
    path = write_fastmri(
        tmp_path / 'f.h5', raw.scan()[:, 0], np.ones(raw.Y, bool), raw.protocol(centre=14)
    )
    other, found = raw.read(path)
    assert not other.geometry_known
    assert image.geometry_known
    assert other.shape == image.shape
    sizes = np.linalg.norm(other.affine[:3, :3], axis=0)
    assert sizes == pytest.approx([2, 2, 4])
    for here, there in zip(slices, found, strict=True):
        assert torch.allclose(there.kspace, here.kspace, atol=1e-5)


def test_lines_that_were_not_measured_are_no_zeros(tmp_path):
    image, slices = plain(tmp_path)
    lines = np.arange(raw.Y) >= 7  # 6/8
    lines[[8, 26]] = False
    found, some = raw.read(raw.write(tmp_path / 'p.h5', measured=lines))
    assert found.measured[:, 0].tolist() == lines.tolist()
    assert found.acceleration == pytest.approx(raw.Y / 19)
    assert found.calibration == (11, 1)  # 9 to 19, 14 amid them
    for here, there in zip(slices, some, strict=True):
        assert torch.equal(there.weights[0, :, 0] > 0, torch.from_numpy(lines))
        assert torch.allclose(there.kspace, here.kspace * there.weights, atol=1e-5)
        assert torch.allclose(there.calibration, here.kspace[:, :, 9:20], atol=1e-5)
    assert np.allclose(found.affine, image.affine)


def test_separate_calibration_lines_make_maps_and_no_image(tmp_path):
    lines = np.arange(raw.Y) % 2 == 0
    other = 3 * raw.scan()[:, 0]  # another contrast
    path = raw.write(tmp_path / 's.h5', raw.protocol(separate=12), measured=lines, separate=other)
    image, slices = raw.read(path)
    assert image.calibration == (12, 1)
    assert image.acceleration == 2
    _, whole = plain(tmp_path)
    first = raw.Y // 2 - 6
    for here, there in zip(whole, slices, strict=True):
        wanted = 3 * here.kspace[:, :, first : first + 12]
        assert torch.allclose(there.calibration, wanted, atol=1e-5)
        assert torch.equal(there.weights[0, :, 0] > 0, torch.from_numpy(lines))
        assert torch.allclose(there.kspace, here.kspace * there.weights, atol=1e-5)


def test_a_noise_scan_makes_noise_independent_and_of_the_sigma_that_is_said(tmp_path, generator):
    mix = noise_of((raw.COILS, raw.COILS), generator)
    n = (2, 2, raw.COILS, raw.X, raw.Y)
    noise = torch.einsum('cd,sadxy->sacxy', mix, noise_of(n, generator))
    # The noise scan's samples are twice as short, so its noise is √2 times as strong.
    alone = 2**0.5 * mix @ noise_of((raw.COILS, 20_000), generator)
    protocol = raw.protocol(noise=alone.numpy(), dwell_us=(8.0, 4.0))
    path = raw.write(tmp_path / 'n.h5', protocol, kspace=noise.numpy())
    _, slices = raw.read(path)
    for one in slices:
        assert one.sigma == pytest.approx(0.5**0.5)  # two averages
        flat = one.kspace.flatten(1) / one.sigma
        covariance = flat @ flat.mH / flat.shape[1]
        assert (covariance - torch.eye(raw.COILS)).abs().max() < 0.1
        assert 'dwell times 4 and 8' in one.steps['Whitening']


def test_without_a_noise_scan_the_corners_tell_the_noise(tmp_path, generator):
    kspace = torch.from_numpy(raw.scan())
    kspace = kspace + 0.3 * noise_of(kspace.shape, generator)
    _, slices = raw.read(raw.write(tmp_path / 'c.h5', kspace=kspace.numpy()))
    assert slices[0].sigma == pytest.approx(0.3, rel=0.15)
    assert 'corners' in slices[0].steps['Noise']


def test_lines_of_more_averages_count_more(tmp_path, generator):
    """The mean of two, weighted by √2 against lines measured once."""
    path = raw.write(tmp_path / 'w.h5', kspace=np.repeat(raw.scan(1), 2, axis=1),
                     given=raw.protocol(positions=((0.0, 0, 0),)))  # fmt: skip
    with h5py.File(path, 'r+') as file:
        lines = file['dataset/data'][()]
        second = (lines['head']['idx']['average'] == 1) & (
            lines['head']['idx']['kspace_encode_step_1'] < 5
        )
        del file['dataset/data']
        file['dataset/data'] = lines[~second]
    _, (one,) = raw.read(path)
    weights = one.weights[0, :, 0]
    assert torch.allclose(weights[:5], torch.full((5,), 0.5**0.5))
    assert (weights[5:] == 1).all()
    _, slices = plain(tmp_path)
    assert torch.allclose(one.kspace, slices[0].kspace * one.weights, atol=1e-5)


def test_an_asymmetric_echo_is_a_mask_of_samples(tmp_path):
    """Samples of its first part are missing, not zero; no oversampling can be taken off."""
    path = raw.write(tmp_path / 'a.h5')
    with h5py.File(path, 'r+') as file:
        lines = file['dataset/data'][()]
        lines['head']['discard_pre'] = 10
        file['dataset/data'][...] = lines
    image, slices = raw.read(path)
    weights = slices[0].weights
    assert weights.shape == (raw.X, raw.Y, 1)
    assert not weights[:10].any()
    assert weights[10:].all()
    assert slices[0].kspace.shape == (raw.COILS, raw.X, raw.Y, 1)
    assert onto_grid(slices[0].kspace[..., 0], image).shape[-2:] == (raw.WANTED, raw.Y)


def test_what_headers_tell_needs_no_samples(tmp_path):
    (image,) = survey_scan(raw.write(tmp_path / 'a.h5', measured=np.arange(raw.Y) % 2 == 0))
    assert image.words == '3 coils, 48 x 28, 2 slices, R = 2, 1 calibration lines'
    with opened_scan(tmp_path / 'a.h5') as scan, pytest.raises(Exception, match='calibration'):
        scan.read(image, 0)


def test_several_orientations_and_contrasts_are_several_images(tmp_path):
    one = raw.write(tmp_path / 'one.h5')
    other = raw.write(tmp_path / 'other.h5', raw.protocol(axes=SAGITTAL, positions=(
        (0.0, 0, 0), (6.0, 0, 0))))  # fmt: skip
    with h5py.File(other) as file, h5py.File(one, 'r+') as both:
        late = both['dataset/data'][()]
        late['head']['idx']['contrast'] = 1
        more = file['dataset/data'][()]
        every = np.concatenate([both['dataset/data'][()], late, more])
        del both['dataset/data']
        both['dataset'].create_dataset('data', data=every.astype(ACQUISITION))
    images = survey_scan(one)
    assert [image.echo for image in images] == [1, 1, 2]
    assert [len(lines) for image in images for lines in image.slices] == [raw.Y] * 6
    assert np.allclose(images[0].affine, images[2].affine)
    assert np.linalg.norm(images[1].affine[:3, 2]) == pytest.approx(6)


def test_a_centre_of_energy_beside_the_header_s_is_a_warning(tmp_path):
    _, slices = raw.read(raw.write(tmp_path / 'a.h5', kspace=np.roll(raw.scan(), 5, axis=-1)))
    assert any('phase encoding' in warning for warning in slices[0].warnings)
    _, slices = plain(tmp_path)
    assert not slices[0].warnings


@pytest.fixture
def slab(tmp_path):
    """Eight planes along a second direction of phase encoding, of 3 mm, and the image behind."""
    planes = torch.from_numpy(raw.scan(8))[:, 0]
    kspace = Fourier((0,))(planes)
    path = raw.write(
        tmp_path / '3d.h5',
        raw.protocol(positions=((3.0, -7.0, 10.0),) * 8, fov_mm=(96.0, 56.0, 24.0)),
        kspace=kspace[:, None].numpy(),
    )
    with h5py.File(path, 'r+') as file:
        lines = file['dataset/data'][()]
        counters = lines['head']['idx']
        counters['kspace_encode_step_2'], counters['slice'] = counters['slice'].copy(), 0
        file['dataset/data'][...] = lines
        text = file['dataset/xml'][0].decode().replace('<z>1</z>', '<z>8</z>')
        second = 'kspace_encoding_step_2><minimum>0</minimum><maximum>7</maximum><center>4</center>'
        limits = f'<encodingLimits><{second}</kspace_encoding_step_2>'
        file['dataset/xml'][0] = text.replace('<encodingLimits>', limits)
    return path, planes


def test_a_slab_has_two_directions_of_phase_encoding(slab):
    path, planes = slab
    image, (one,) = raw.read(path)
    assert image.three_dimensional
    assert image.shape == (raw.WANTED, raw.Y, 8)
    assert one.weights.shape == (1, raw.Y, 8)
    assert image.words == '3 coils, 48 x 28 x 8, R = 1, 28 x 8 calibration lines'
    back = Fourier((-1,)).H(one.kspace)
    for number, plane in enumerate(planes):
        wanted = measured.without_oversampling(plane, raw.WANTED)
        assert torch.allclose(back[..., number], wanted, atol=1e-4)
    # The position is the middle of the slab, voxel n // 2 along each axis.
    middle = image.affine @ [raw.WANTED // 2, raw.Y // 2, 4, 1]
    assert np.allclose(middle[:3], [-3, 7, 10])
    assert np.linalg.norm(image.affine[:3, 2]) == pytest.approx(3)


def test_planes_of_a_slab_make_its_volume(slab):
    """Planes lie across readout; what is stacked of them is on the grid of the slab."""
    path, planes = slab
    with opened(path, 0, None) as samples:
        seen = list(planes_in(samples))
        array = assembled([one.plane.zero_filled for one in seen], samples.image)
    assert [one.number for one in seen] == list(range(raw.WANTED))
    assert array.shape == (raw.WANTED, raw.Y, 8)
    for number, plane in enumerate(planes):
        seen_by_coils = BOTH.H(measured.without_oversampling(plane, raw.WANTED))
        truth = seen_by_coils.abs().square().sum(0).sqrt().numpy()
        assert np.abs(array[..., number] - truth).max() < 0.05 * truth.max()
