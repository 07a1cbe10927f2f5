"""Gradient-echo runs of few voxels or none, for tests in which only files and headers matter."""

from __future__ import annotations

import json
from dataclasses import replace

import nibabel as nib
import numpy as np

from bidsapp.bids.dataset import select
from bidsapp.modalities.gre.bids import find

SHAPE = (10, 12, 9)
SAID = {'ImagingFrequency': 123.2, 'MagneticFieldStrength': 3, 'MRAcquisitionType': '3D'}
TURN = np.array([[0.96, 0.28, 0.0], [-0.28, 0.96, 0.0], [0.0, 0.0, 1.0]])


def affine_of(voxel=(1.0, 1.0, 2.0), turn=None):
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if turn is None else turn) @ np.diag(voxel)
    affine[:3, 3] = -20
    return affine


def image(path, array=None, affine=None, code=1):
    """An image; random numbers where no array is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if array is None:
        array = np.random.default_rng(len(path.name)).uniform(-np.pi, np.pi, SHAPE)
        array = np.abs(array) if '_part-phase' not in path.name else array
    made = nib.Nifti1Image(np.asarray(array, np.float32), affine_of() if affine is None else affine)
    made.set_sform(made.affine, code)
    made.set_qform(made.affine, code)
    nib.save(made, path)
    return path


def sidecar(path, said):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(path.name.partition('.')[0] + '.json').write_text(json.dumps(said))


def write_run(
    root,
    stem='sub-01',
    echoes=3,
    parts=('mag', 'phase'),
    suffix='MEGRE',
    said=None,
    affine=None,
    arrays=None,
):
    """(echo, part) → image of a run in ``anat``; ``echoes`` None: one without ``echo-``."""
    subject, _, rest = stem.partition('_')
    session = rest.partition('_')[0] if rest.startswith('ses-') else ''
    folder = root / subject / session / 'anat'
    found = {}
    for echo in range(1, (echoes or 1) + 1):
        middle = '' if echoes is None else f'_echo-{echo}'
        for part in parts:
            label = f'_part-{part}' if part else ''
            path = folder / f'{stem}{middle}{label}_{suffix}.nii.gz'
            array = None if arrays is None else arrays[part][echo - 1]
            found[echo, part] = image(path, array, affine)
            sidecar(path, {'EchoTime': 0.005 * echo, **(SAID if said is None else said)})
    return found


def change(path, **said):
    """Other entries in the JSON beside an image; None takes one away."""
    place = path.with_name(path.name.partition('.')[0] + '.json')
    content = {**json.loads(place.read_text()), **said}
    place.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def runs_in(root, **given):
    """Runs of sub-01; ``options`` of the call, ``select`` labels, others are folders of -d."""
    options = given.pop('options', {})
    return find(replace(select(root, ['01'], **given.pop('select', {})), options=options), given)


def only(root, **given):
    (run,) = runs_in(root, **given)
    return run
