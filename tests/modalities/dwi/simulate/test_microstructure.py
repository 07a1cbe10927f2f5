from __future__ import annotations

import math

import pytest
import torch

from bidsapp.modalities.dwi.simulate.microstructure import (
    draw_microstructure,
    evaluate,
    fibre_coefficients,
    gaussian_coefficients,
    powers,
    watson_coefficients,
)


def attenuation(b, icvf, od, d_par, cosines):
    one = [torch.tensor([value], dtype=torch.float32) for value in (icvf, od, d_par)]
    cosines = torch.as_tensor(cosines, dtype=torch.float32)
    return evaluate(powers(fibre_coefficients(b, *one)), cosines[:, None])[:, 0]


def integrated(b, icvf, od, d_par, cosines):
    """The same by summing over a dense sphere of fibre orientations about z; float64."""
    z = torch.linspace(-1, 1, 4001, dtype=torch.float64)
    phi = torch.arange(120, dtype=torch.float64) * (2 * math.pi / 120)
    weight = torch.exp((z**2 - 1) / math.tan(od * math.pi / 2))
    weight[[0, -1]] /= 2
    values = []
    for c in cosines:
        s = math.sqrt(1 - c * c)
        along = c * z[:, None] + s * torch.sqrt(1 - z**2)[:, None] * torch.cos(phi)
        d_perp = (1 - icvf) * d_par
        stick = torch.exp(-b * d_par * along**2)
        zeppelin = torch.exp(-b * (d_perp + (d_par - d_perp) * along**2))
        mean = (icvf * stick + (1 - icvf) * zeppelin).mean(1)
        values.append(float((weight * mean).sum() / weight.sum()))
    return torch.tensor(values, dtype=torch.float32)


@pytest.mark.parametrize('b', [0.7, 1.0, 2.0, 3.0])
@pytest.mark.parametrize('icvf', [0.3, 0.85])
@pytest.mark.parametrize('od', [0.03, 0.12, 0.5])
def test_series_agrees_with_direct_integration(b, icvf, od):
    """The error of the series of order 12 is below 2e-4 of S0 up to b = 3000 s/mm²."""
    cosines = [0.0, 0.2, 0.5, 0.8, 0.95, 1.0]
    found = attenuation(b, icvf, od, 2.2, cosines)
    expected = integrated(b, icvf, od, 2.2, cosines)
    assert (found - expected).abs().max() < 2e-4


def test_signal_is_lowest_along_the_fibre():
    along, across = attenuation(1.0, 0.6, 0.1, 1.9, [1.0, 0.0])
    assert along < 0.5 * across


def test_nothing_is_attenuated_at_b_0():
    torch.testing.assert_close(
        attenuation(0.0, 0.6, 0.1, 1.9, [0.0, 0.3, 1.0]), torch.ones(3), atol=1e-5, rtol=0
    )


def test_full_dispersion_leaves_no_direction():
    values = attenuation(2.0, 0.6, 1.0, 1.9, [0.0, 0.5, 1.0])
    assert float(values.max() - values.min()) < 1e-5


def test_watson_mean_of_p2_in_its_limits():
    aligned, free = watson_coefficients(torch.tensor([0.004, 1.0], dtype=torch.float64))
    # A narrow distribution has <sin²> = 1/κ, so <P_2> = 1 - 1.5/κ.
    assert float(aligned[1]) == pytest.approx(1 - 1.5 * math.tan(0.004 * math.pi / 2), abs=2e-3)
    torch.testing.assert_close(free[1:], torch.zeros_like(free[1:]), atol=1e-9, rtol=0)


def test_mean_over_directions_is_the_powder_average():
    s = torch.tensor([2.0], dtype=torch.float64)
    powder = math.sqrt(math.pi / (4 * 2.0)) * math.erf(math.sqrt(2.0))
    assert float(gaussian_coefficients(s)[0, 0]) == pytest.approx(powder, rel=1e-9)


def test_parameters_stay_in_their_range_and_are_smooth(generator):
    axes = [torch.arange(0.0, 60, 3)] * 3
    drawn = draw_microstructure(axes, generator)
    for values, low, high in (
        (drawn.icvf, 0.3, 0.85),
        (drawn.od, 0.03, 0.5),
        (drawn.isovf, 0.0, 0.3),
        (drawn.d_par, 1.7, 2.2),
    ):
        assert low <= values.min() < values.max() <= high
        assert values.diff(dim=0).abs().mean() < 0.3 * values.std()
