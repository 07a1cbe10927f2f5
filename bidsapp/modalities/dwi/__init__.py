"""Diffusion MRI."""

from __future__ import annotations

from bidsapp.core import Objective, Option

OBJECTIVES = {
    'restore': Objective('undo what artefacts and noise did to the canonical input'),
    'autoencoder': Objective(
        'give back the canonical input of uncorrupted scans, half of it unseen'
    ),
    'supervised': Objective(
        'do every task at once, by the truth of simulated brains', dataset=False, tasks=True
    ),
    'mixed': Objective(
        'do every task by the truth of simulated brains, and say volumes of real scans that it is '
        'not shown', simulated=False, tasks=True,
    ),
    'auxiliary': Objective(
        'tell NODDI of the full scan from fewer directions and coarser voxels',
        simulated=False,
        labels='microstructure',
        labels_words='NODDI maps (two shells or more; the participant level makes them)',
    ),
}  # fmt: skip
OPTIONS = (
    Option(
        '--b0-threshold', float, 'B',
        'greatest b in s/mm2 that counts as b = 0; default 50, or the lowest shell up to 100 '
        'where none is below', levels=('participant',), least=0,
    ),
    Option(
        '--exclude-volumes', str, 'FILE',
        'volumes to leave out, a TSV with columns file (path below BIDS_DIR) and volumes (counted '
        'from 0: 3,7-9)', levels=('participant',),
    ),
    Option(
        '--anat', str, 't1w|none',
        'whether a T1w image serves labels and the correction of distortion; default t1w',
        levels=('participant',), choices=('t1w', 'none'),
    ),
    Option(
        '--combine-runs', bool, '',
        'join runs of a session that differ only in dir- or run- and share a grid, after each is '
        'corrected; default: runs are never merged', levels=('participant',),
    ),
    Option(
        '--input-like', str, 'SCAN',
        'group: a routine scan, *_dwi.nii[.gz] with bval and bvec beside it; what the network sees '
        'of each run is made like it (directions, b-values, voxels, noise), its label is of the '
        'whole',
        levels=('group',),
    ),
    Option(
        '--input-directions', int, 'N', 'group: directions that the network sees of each run',
        levels=('group',), least=6,
    ),
)  # fmt: skip
