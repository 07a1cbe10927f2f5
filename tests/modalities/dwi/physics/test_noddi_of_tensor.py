"""The closed form against the tensor of the model, by quadrature over the sphere."""

from __future__ import annotations

import numpy as np
import pytest

from bidsapp.modalities.dwi.physics.noddi_of_tensor import noddi_of_tensor

D = 1.7
SOME = [(0.3, 0.1), (0.6, 0.05), (0.6, 0.3), (0.8, 0.6)]


def tensor(icvf: float, od: float, isovf: float = 0.0) -> tuple[float, float]:
    """FA and MD (mm²/s) of the mean diffusion tensor of sticks, their surroundings and water."""
    z, weight = np.polynomial.legendre.leggauss(200)
    weight = weight * np.exp((z**2 - 1) / np.tan(od * np.pi / 2))
    tau = float((weight * z**2).sum() / weight.sum())
    spread = np.diag([(1 - tau) / 2, (1 - tau) / 2, tau])  # mean of n nᵀ
    outside = D * ((1 - icvf) * np.eye(3) + icvf * spread)
    whole = (1 - isovf) * (icvf * D * spread + (1 - icvf) * outside) + isovf * 3.0 * np.eye(3)
    values = np.diag(whole)
    fa = np.sqrt(1.5 * np.square(values - values.mean()).sum() / np.square(values).sum())
    return float(fa), float(values.mean()) * 1e-3


@pytest.mark.parametrize(('icvf', 'od'), SOME)
@pytest.mark.parametrize('isovf', [0.0, 0.2])
def test_what_made_the_tensor_comes_back(icvf: float, od: float, isovf: float) -> None:
    fa, md = tensor(icvf, od, isovf)
    density, dispersion = noddi_of_tensor(np.array([fa]), np.array([md]), isovf)
    assert density[0] == pytest.approx(icvf, abs=1e-6)
    assert dispersion[0] == pytest.approx(od, abs=2e-3)


def test_water_that_nobody_told_of_passes_for_less_neurites() -> None:
    fa, md = tensor(0.6, 0.1, 0.2)
    assert noddi_of_tensor(np.array([fa]), np.array([md]))[0] < 0.5


def test_what_no_neurites_give_ends_at_a_bound() -> None:
    fa, md = np.array([0.0, 0.0, 1.0, 0.5]), np.array([3e-3, 0.0, 1e-3, 1.7e-3])
    density, dispersion = noddi_of_tensor(fa, md, np.array([0.0, 0.0, 0.0, 1.0]))
    for values in (density, dispersion):
        assert np.isfinite(values).all()
        assert ((values >= 0) & (values <= 1)).all()
    assert density[:2].tolist() == [0.0, 1.0]
    assert dispersion[0] == pytest.approx(1, abs=1e-6)
