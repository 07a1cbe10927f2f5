"""Gibbs ringing as a sinc rings; MP-PCA's residue lies where the signal does."""

from __future__ import annotations

import pytest
import torch

from bidsapp.modalities.dwi.simulate.reconstruction import kept_by_components, ringing


def edge(n=40):
    volumes = torch.zeros(1, n, 6, 6)
    volumes[:, n // 2 :] = 1.0
    return volumes + 1.0


def test_all_frequencies_change_nothing():
    assert ringing(edge(), (1.0, 1.0, 1.0)) is not None
    assert torch.equal(ringing(edge(), (1.0, 1.0, 1.0)), edge())


def test_an_edge_overshoots_by_a_tenth_and_flat_parts_stay():
    seen = ringing(edge(), (0.7, 1.0, 1.0))[0, :, 3, 3]
    assert 0.04 < float(seen.max()) - 2 < 0.15
    assert seen[:8] == pytest.approx(torch.ones(8), abs=0.02)
    along = ringing(edge().movedim(1, 2).contiguous(), (0.7, 1.0, 1.0))
    assert along == pytest.approx(edge().movedim(1, 2), abs=1e-4)  # of the axis that was cut only


def test_components_keep_their_share_of_the_noise_and_all_of_the_signal():
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(20, 3, generator=generator) @ torch.randn(3, 4000, generator=generator)
    noise = torch.randn(20, 4000, generator=generator)
    kept = kept_by_components(noise, signal, 5)
    assert float(kept.square().mean()) == pytest.approx(5 / 20, rel=0.1)
    centred = signal - signal.mean(1, keepdim=True)
    assert kept_by_components(centred, signal, 5) == pytest.approx(centred, abs=1e-3)
    assert torch.equal(kept_by_components(noise, signal, 20), noise)
