from __future__ import annotations

import socket

import numpy as np
import pytest

from bidsapp.physics.template import template_maps


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError('the network was asked')

    monkeypatch.setattr(socket.socket, 'connect', refuse)


def at(volume, affine, mm):
    return volume[tuple(np.rint(np.linalg.inv(affine) @ [*mm, 1])[:3].astype(int))]


@pytest.mark.usefixtures('no_network')
def test_maps_are_fractions_in_mni_space():
    t1, gm, wm, csf, affine = template_maps(2.0)
    for volume in (t1, gm, wm, csf):
        assert volume.dtype == np.float32
        assert volume.shape == (99, 117, 95)
        assert 0 <= volume.min() <= volume.max() <= 1
    assert (gm + wm + csf).max() < 1.01
    assert at(wm, affine, (0, -18, 25)) > 0.8  # body of the corpus callosum
    assert at(csf, affine, (-4, 10, 8)) > 0.5  # left lateral ventricle
    assert at(t1, affine, (0, 90, 0)) == 0


def test_a_coarser_grid_keeps_the_volume_of_each_tissue():
    fine, coarse = template_maps(1.0), template_maps(2.5)
    for one, other in zip(fine[1:4], coarse[1:4], strict=True):
        assert other.sum(dtype=float) * 2.5**3 == pytest.approx(one.sum(dtype=float), rel=1e-4)
