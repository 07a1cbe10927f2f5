"""Many matrices are solved as one is, never more at a time than a solver takes."""

from __future__ import annotations

import pytest
import torch

from bidsapp.physics import eigen


@pytest.mark.parametrize('shape', [(3, 3), (0, 3, 3), (11, 3, 3), (2, 3, 4, 5, 5)])
def test_the_same_in_batches_as_at_once(shape, monkeypatch, generator):
    monkeypatch.setattr(eigen, 'BATCH', 4)
    matrices = torch.randn(shape, generator=generator).double()
    matrices = matrices + matrices.mT
    asked, solve = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, 'eigh', lambda part: asked.append(len(part)) or solve(part))
    values, vectors = eigen.eigh(matrices)
    assert max(asked) <= 4
    expected = solve(matrices)
    assert torch.allclose(values, expected.eigenvalues)
    assert torch.allclose(vectors @ torch.diag_embed(values) @ vectors.mT, matrices)
