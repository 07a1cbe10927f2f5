"""Small raw scans: points, and two slices of an object in a few coils."""

from __future__ import annotations

import h5py
import numpy as np
import torch

from bidsapp.modalities.kspace.bids.scan import opened_scan
from bidsapp.modalities.kspace.simulate.files import Protocol, write_ismrmrd
from tests.modalities.kspace.phantom import image_of, maps_of

#: Twice as many samples along readout as voxels are wanted.
X, WANTED, Y, COILS = 48, 24, 28, 3
AXES = np.eye(3)


def all_of_k_space(shape, coils, oversampled=1):
    """(C, X, Y) of the phantom, its field of view along readout made longer."""
    from bidsapp.modalities.kspace.physics.fourier import BOTH, around

    image = maps_of(coils, shape) * image_of(shape)
    return BOTH(around(image, shape[0] * oversampled, -2))


def scan(slices=2):
    """(slices, 1, C, X, Y), the second slice weaker."""
    one = all_of_k_space((WANTED, Y), COILS, X // WANTED)
    return torch.stack([one / (1 + n) for n in range(slices)])[:, None].numpy()


def protocol(**given):
    said = {
        'fov_mm': (96.0, 56.0, 4.0), 'recon_x': WANTED, 'axes': AXES,
        'positions': ((3.0, -7.0, 10.0), (3.0, -7.0, 15.0)),
    }  # fmt: skip
    return Protocol(**{**said, **given})


def write(path, given=None, kspace=None, measured=None, separate=None):
    measured = np.ones(Y, bool) if measured is None else measured
    kspace = scan() if kspace is None else kspace
    return write_ismrmrd(path, kspace, measured, given or protocol(), separate)


def read(path, image=0):
    """The image's headers, and `Measured` of every slice."""
    with opened_scan(path) as raw:
        found = raw.images[image]
        return found, [raw.read(found, n) for n in range(len(found.slices))]


def change_header(path, old, new):
    """Another text in the header of a file."""
    with h5py.File(path, 'r+') as file:
        text = file['dataset/xml'][0].decode()
        assert old in text
        file['dataset/xml'][0] = text.replace(old, new)


def write_noise(path):
    """A file of a noise scan alone."""
    noise = np.ones((COILS, 64), np.complex64)
    return write_ismrmrd(path, scan(), np.zeros(Y, bool), protocol(noise=noise))
