"""The smallest runs of each modality, for the laws that hold for all of them.

``PREPARED``: modality → writes one prepared run of sub-01 on a grid below a folder;
``RAW``: modality → a raw run whose images end after their headers.
"""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np

from bidsapp.core import Case
from bidsapp.modalities.dwi.bids.runs import DwiRun
from bidsapp.modalities.dwi.physics.gradients import GradientTable, to_fsl
from bidsapp.modalities.dwi.physics.harmonics import fibonacci_hemisphere
from bidsapp.modalities.gre.bids.facts import Facts
from bidsapp.modalities.gre.bids.runs import GreRun
from bidsapp.modalities.kspace.bids.runs import runs_in
from tests.modalities.kspace import raw

SHAPE = (11, 13, 10)


def _table() -> GradientTable:
    vectors = np.concatenate([np.zeros((2, 3)), fibonacci_hemisphere(12)])
    return GradientTable(vectors, np.r_[0, 0, np.full(12, 1000.0)])


def _write_table(stem, affine):
    gtab = _table()
    np.savetxt(f'{stem}.bval', gtab.bvals[None], '%g')
    np.savetxt(f'{stem}.bvec', to_fsl(gtab, affine), '%.8f')


def dwi(root, affine):
    """A ball of tissue whose fibres run along one axis of the world."""
    gtab, rng = _table(), np.random.default_rng(0)
    centre = (np.array(SHAPE) - 1) / 2
    place = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing='ij'), -1) - centre
    brain = np.linalg.norm(place, axis=-1) < 4.5
    signal = 400 * np.exp(-gtab.bvals * 1e-3 * (0.3 + 1.4 * gtab.bvecs[:, 0] ** 2))
    data = np.abs(brain[..., None] * signal + 4 * rng.standard_normal((*SHAPE, len(gtab))))
    folder = root / 'sub-01' / 'dwi'
    folder.mkdir(parents=True)
    stem = folder / 'sub-01_desc-preproc_dwi'
    nib.save(nib.Nifti1Image(data.astype(np.float32), affine), f'{stem}.nii.gz')
    mask = nib.Nifti1Image(brain.astype(np.uint8), affine)
    nib.save(mask, folder / 'sub-01_desc-brain_mask.nii.gz')
    _write_table(stem, affine)
    (folder / 'sub-01_desc-preproc_dwi.json').write_text(json.dumps({'Description': 'A ball.'}))


def raw_dwi(root):
    """A run with its table and a T1w image."""
    stem = root / 'sub-01_dwi'
    header = nib.Nifti1Image(np.zeros((*SHAPE, len(_table())), np.int16), np.eye(4)).header
    (root / 'sub-01_dwi.nii').write_bytes(header.binaryblock + bytes(4))
    _write_table(stem, np.eye(4))
    files = {'dwi': root / 'sub-01_dwi.nii', 'bval': root / 'sub-01_dwi.bval',
             'bvec': root / 'sub-01_dwi.bvec'}  # fmt: skip
    return DwiRun('dwi', Case({'subject': '01', 'datatype': 'dwi'}, files))


def gre(root, affine):
    """A ball of tissue with a smaller one in it that is paramagnetic; its field alone is known."""
    centre = (np.array(SHAPE) - 1) / 2
    place = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing='ij'), -1) - centre
    distance = np.linalg.norm(place, axis=-1)
    brain = distance < 4.5
    cosine = place[..., 2] / np.maximum(distance, 1)
    field = 5 * brain * np.where(distance < 1.5, 0.1, (3 * cosine**2 - 1) / np.maximum(distance, 1))
    images = {
        'anat/sub-01_desc-reliable_mask': brain.astype(np.uint8),
        'anat/sub-01_desc-brain_mask': brain.astype(np.uint8),
        'fmap/sub-01_desc-local_magnitude': brain.astype(np.float32),
        'fmap/sub-01_desc-local_fieldmap': field.astype(np.float32),
    }
    for name, array in images.items():
        path = root / 'sub-01' / f'{name}.nii.gz'
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, affine), path)
    said = {'Description': 'A ball.', 'ImagingFrequency': 123.2, 'EchoTimes': [0.005, 0.010],
            'NoiseTimesMagnitude': 0.1}  # fmt: skip
    (root / 'sub-01/fmap/sub-01_desc-local_fieldmap.json').write_text(json.dumps(said))


def raw_gre(root):
    """One echo of magnitude and phase."""
    header = nib.Nifti1Image(np.zeros(SHAPE, np.int16), np.eye(4)).header
    files = {}
    for kind, part in (('magnitude_1', 'mag'), ('phase_1', 'phase')):
        files[kind] = root / f'sub-01_part-{part}_T2starw.nii'
        files[kind].write_bytes(header.binaryblock + bytes(4))
    facts = Facts((0.02,), 123.2, 'ImagingFrequency')
    return GreRun('gre', Case({'subject': '01', 'datatype': 'anat'}, files), facts=facts)


def kspace(root, affine):
    """A full scan of two slices where its raw data lie, in a dataset below ``root`` that is linked.

    Its grid is that of the raw data.
    """
    links = {'Name': 'Prepared', 'BIDSVersion': '1.10.0', 'DatasetLinks': {'raw': 'raw'}}
    (root / 'dataset_description.json').write_text(json.dumps(links))
    run = raw_kspace(root / 'raw', None)
    stem = root / 'sub-01/anat/sub-01_rec-full_desc-reference_PDw'
    stem.parent.mkdir(parents=True, exist_ok=True)
    array = np.ones(run.image.shape, np.float32)
    nib.save(nib.Nifti1Image(array, run.image.affine), f'{stem}.nii.gz')
    said = {
        'Description': 'An ellipse.', 'ImageInFile': 0, 'Acceleration': 1, 'Coils': raw.COILS,
        'Matrix': [raw.X, raw.Y], 'Slices': 2, 'CalibrationLines': [raw.Y],
        'Sources': ['bids:raw:sourcedata/sub-01/anat/sub-01_PDw.h5'],
    }  # fmt: skip
    stem.with_suffix('.json').write_text(json.dumps(said))


def raw_kspace(root, measured='some'):
    """An object in a few coils, every other line and twelve in the middle."""
    lines = np.arange(raw.Y) % 2 == 0
    lines[raw.Y // 2 - 6 : raw.Y // 2 + 6] = True
    path = root / 'sourcedata/sub-01/anat/sub-01_PDw.h5'
    raw.write(path, measured=lines if measured else None)
    (run,) = runs_in(root, path)
    return run


PREPARED = {'dwi': dwi, 'gre': gre, 'kspace': kspace}
RAW = {'dwi': raw_dwi, 'gre': raw_gre, 'kspace': raw_kspace}
