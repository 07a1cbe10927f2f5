from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from bidsapp.physics import brain, distortion, fieldmap
from bidsapp.physics.phase import radians, unwrap, wrapped
from bidsapp.problems import BadData, Unavailable

SHAPE = (40, 48, 28)
AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])
AFFINE[:3, 3] = [-80, -96, -56]
STEP = 0.00246  # s


@pytest.fixture
def few_points(monkeypatch):
    monkeypatch.setattr(fieldmap, 'ROUNDS', ((5.0, 6_000),))


def coordinates(affine=AFFINE, shape=SHAPE):
    voxels = np.moveaxis(np.indices(shape), 0, -1)
    return np.moveaxis(voxels @ affine[:3, :3].T + affine[:3, 3], -1, 0)


def head(affine=AFFINE, shape=SHAPE):
    """(gradient echo, b=0, brain) of a lopsided head."""
    x, y, z = coordinates(affine, shape)
    radius = np.sqrt((x / 62) ** 2 + (y / 78) ** 2 + (z / 50) ** 2)
    bumps = 1 + 0.12 * np.sin(x / 11 + 1) * np.cos(y / 13) + 0.1 * np.sin(z / 10 + y / 17)
    white, whole = radius * bumps < 0.75, radius < 1
    fluid = ((x - 6) / 12) ** 2 + ((y + 5) / 28) ** 2 + ((z - 8) / 12) ** 2 < 1
    noise = np.abs(np.random.default_rng(0).normal(0, 2, shape))
    echo = np.select([fluid, white, whole], [60.0, 80.0, 100.0], 0.0) + noise
    return echo, np.select([fluid, white, whole], [200.0, 60.0, 100.0], 0.0) + noise, whole


def hertz(affine=AFFINE, shape=SHAPE):
    """A peak of 300 Hz in front: beyond the 203 Hz at which the phase of STEP wraps."""
    x, y, z = coordinates(affine, shape)
    peak = np.exp(-(x**2 + (y - 55) ** 2 + (z + 15) ** 2) / (2 * 22**2))
    return 300 * peak - 0.3 * y


def siemens(phase):
    """-4096 to 4094 in steps of two, as dcm2niix writes it; its full range is used."""
    return 2 * np.floor(phase / np.pi * 2048)


def test_wraps_of_a_smooth_field_are_undone():
    _, _, inside = head()
    phase = wrapped(2 * np.pi * hertz() * STEP)
    assert np.abs(np.diff(phase, axis=1))[:, 1:][inside[:, 2:]].max() > np.pi
    found = unwrap(phase, inside) / (2 * np.pi * STEP)
    assert found[inside] == pytest.approx(hertz()[inside], abs=1e-6)
    assert not found[~inside].any()


def test_noise_in_the_phase_leaves_no_jumps(rng):
    _, _, inside = head()
    phase = 2 * np.pi * hertz() * STEP
    noisy = wrapped(phase + rng.normal(0, 0.3, SHAPE))
    found = unwrap(noisy, inside)
    turns = np.rint((found - phase)[inside] / (2 * np.pi))
    assert (turns == 0).mean() > 0.999


def test_a_common_turn_is_not_field():
    _, _, inside = head()
    phase = wrapped(2 * np.pi * (hertz() + 1 / STEP) * STEP)
    assert np.median(unwrap(phase, inside)[inside]) == pytest.approx(
        np.median(2 * np.pi * hertz()[inside] * STEP)
    )


@pytest.mark.parametrize(
    ('written', 'precision'),
    [
        (lambda p: p, 1e-9),
        (lambda p: p % (2 * np.pi), 1e-9),
        (lambda p: 1000 * p, 1e-9),
        (siemens, 0.002),
        (lambda p: siemens(p) / 2 + 2048, 0.002),
    ],
    ids=['radians', 'radians from 0', 'milliradians', '-4096 to 4094', '0 to 4095'],
)
def test_every_scale_means_the_same_radians(written, precision, rng):
    phase = rng.uniform(-np.pi, np.pi, (12, 12, 12))
    found = radians(written(phase))
    assert np.abs(wrapped(found - phase)).max() < precision


@pytest.mark.parametrize('values', [(0, 0), (-20, 20), (0, 900), (-40000, 40000)])
def test_an_unknown_scale_is_refused_with_what_was_found(values):
    phase = np.linspace(*values, 27).reshape(3, 3, 3)
    with pytest.raises(BadData, match=f'values from {values[0]} to {values[1]}.*expected'):
        radians(phase)


def test_two_phases_give_what_their_difference_gives(rng):
    echo, _, inside = head()
    offset = wrapped(np.cumsum(rng.normal(0, 0.2, SHAPE), axis=0))
    difference = wrapped(2 * np.pi * hertz() * STEP)
    phases = siemens(offset), siemens(wrapped(offset + difference))
    pair = fieldmap.field_from_phase(phases, echo, AFFINE, (0.01, 0.01 + STEP))
    one = fieldmap.field_from_phase(difference, echo, AFFINE, (0.01, 0.01 + STEP))
    assert np.abs(pair.hertz - one.hertz)[inside].max() < 2


def test_the_field_comes_back_in_hertz_without_spikes(rng):
    echo, _, inside = head()
    inner = brain.eroded(inside, AFFINE, 8.0)
    spiky = hertz() + np.where(rng.random(SHAPE) < 0.01, 300.0, 0)
    found = fieldmap.field_from_map(spiky, echo, AFFINE).hertz
    assert np.abs(found - hertz())[inner].max() < 12
    assert np.isfinite(found).all()
    assert np.abs(found).max() < np.abs(hertz()[inside]).max() + 30


def test_units_of_a_ready_map():
    echo, _, _ = head()
    in_hertz = fieldmap.field_from_map(hertz(), echo, AFFINE).hertz
    for units, factor in (('rad/s', 2 * np.pi), ('T', 1 / 42.577e6)):
        other = fieldmap.field_from_map(hertz() * factor, echo, AFFINE, units).hertz
        assert other == pytest.approx(in_hertz, abs=1e-6)
    with pytest.raises(BadData, match='ppm'):
        fieldmap.field_from_map(hertz(), echo, AFFINE, 'ppm')


def test_echo_times_in_the_wrong_order_or_unit_are_refused():
    echo, _, _ = head()
    for times in ((0.01246, 0.01), (10.0, 12.46)):
        with pytest.raises(BadData, match='EchoTime1'):
            fieldmap.field_from_phase(np.ones(SHAPE), echo, AFFINE, times)


def test_a_magnitude_of_nothing_is_refused():
    with pytest.raises(BadData, match='magnitude'):
        fieldmap.field_from_map(hertz(), np.ones(SHAPE), AFFINE)


@pytest.mark.parametrize(('phase_encoding', 'voxels'), [('j', 1.5), ('j-', -1.5), ('i', 1.5)])
def test_a_spin_30_hz_above_resonance_lies_1_5_voxels_further(phase_encoding, voxels, few_points):
    echo, b0, inside = head()
    axis = 'ijk'.index(phase_encoding[0])
    raw = distortion.distort(b0, np.full(SHAPE, voxels), axis)
    field = fieldmap.Field(np.full(SHAPE, 30.0), echo, AFFINE, 'uniform')
    found = fieldmap.displacement_from_field(
        field, raw, AFFINE, inside, phase_encoding, 0.05, np.random.default_rng(0)
    )
    assert found.displacement.dtype == np.float32
    assert found.displacement == pytest.approx(np.full(SHAPE, voxels))


def scanned(phase_encoding, field_affine=AFFINE):
    """(field, distorted b=0, undistorted b=0, brain) of the simulated head."""
    echo, b0, inside = head()
    shift = distortion.displacement_of(hertz(), 0.012, phase_encoding)
    raw = distortion.distort(b0, shift, distortion.phase_axis(phase_encoding)[0])
    field = fieldmap.field_from_map(hertz(), echo, field_affine)
    return field, raw, b0, inside


def agreement(image, b0, inside):
    return np.corrcoef(image[inside], b0[inside])[0, 1]


@pytest.mark.parametrize('phase_encoding', ['j', 'j-', 'i-'])
def test_a_distorted_head_comes_back(phase_encoding, few_points):
    field, raw, b0, inside = scanned(phase_encoding)
    found = fieldmap.displacement_from_field(
        field, raw, AFFINE, inside, phase_encoding, 0.012, np.random.default_rng(0)
    )
    axis = distortion.phase_axis(phase_encoding)[0]
    mended = distortion.unwarp(raw, found.displacement, axis, order=1)
    assert agreement(mended, b0, inside) > agreement(raw, b0, inside) + 0.05
    assert agreement(mended, b0, inside) > 0.95
    assert found.similarity_after > found.similarity_before
    assert "the scanner's coordinates" in found.method


def test_the_wrong_polarity_is_refused(few_points):
    field, raw, _, inside = scanned('j')
    with pytest.raises(Unavailable, match='PhaseEncodingDirection'):
        fieldmap.displacement_from_field(
            field, raw, AFFINE, inside, 'j-', 0.012, np.random.default_rng(0)
        )


def test_a_field_map_scanned_after_the_head_moved_is_put_in_its_place(few_points):
    moved = AFFINE.copy()
    moved[:3, 3] += [6.0, -5.0, 7.0]  # the same head, 6 mm to the right, 5 back, 7 up
    field, raw, b0, inside = scanned('j', moved)
    found = fieldmap.displacement_from_field(
        field, raw, AFFINE, inside, 'j', 0.012, np.random.default_rng(0)
    )
    centre = AFFINE[:3, :3] @ np.argwhere(inside).mean(0) + AFFINE[:3, 3]
    shift = found.matrix[:3, :3] @ centre + found.matrix[:3, 3] - centre
    assert shift == pytest.approx([6, -5, 7], abs=2)
    mended = distortion.unwarp(raw, found.displacement, 1, order=1)
    assert agreement(mended, b0, inside) > agreement(raw, b0, inside) + 0.03


def test_a_real_field_map_makes_both_polarities_agree(multivendor):
    """Siemens' phase difference has the sign of the formula, and no offset is to be removed."""
    folder = multivendor / 'sub-prisma'
    known = json.loads((folder / 'fmap/sub-prisma_phasediff.json').read_text())
    phase, echo = (
        nib.load(folder / f'fmap/sub-prisma_{name}.nii.gz') for name in ('phasediff', 'magnitude1')
    )
    field = fieldmap.field_from_phase(
        phase.get_fdata(), echo.get_fdata(), echo.affine, (known['EchoTime1'], known['EchoTime2'])
    )
    raw, mended, masks = [], [], []
    for direction, phase_encoding in (('AP', 'j-'), ('PA', 'j')):
        run = nib.load(folder / f'dwi/sub-prisma_dir-{direction}_dwi.nii.gz')
        data = run.get_fdata(dtype=np.float32)
        masks.append(brain.brain_mask(data[..., 0], data[..., 1:].mean(-1), run.affine))
        raw.append(data[..., 0])
        found = fieldmap.displacement_from_field(
            field, raw[-1], run.affine, masks[-1], phase_encoding, 0.0475693,
            np.random.default_rng(0),
        )  # fmt: skip
        assert found.similarity_after > found.similarity_before + 0.005
        mended.append(distortion.unwarp(raw[-1], found.displacement, 1, order=1))
    inside = masks[0] | masks[1]
    assert np.abs(found.hertz[inside]).max() < 300
    assert np.median(found.hertz[inside]) == pytest.approx(8.5, abs=2)
    assert agreement(*raw, inside) < 0.65
    assert agreement(*mended, inside) > 0.88
