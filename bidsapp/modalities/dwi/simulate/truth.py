"""What a simulated run truly holds, and the names under which that is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp.core import TISSUES
from bidsapp.modalities.dwi.physics.peaks import MAX_FIBRES

if TYPE_CHECKING:
    from torch import Tensor

DIRECTIONS = {
    'Description': 'Fibre directions in world (RAS+) axes, strongest first, three volumes '
    '(x, y, z) a fibre; zero where there is none',
    'OrientationEncoding': {
        'Type': 'unit3vector',
        'EncodingAxis': 3,
        'Reference': 'xyz',
        'FillValue': 0,
        'AntipodalSymmetry': True,
    },
}
PARAMETERS = {
    'icvf': 'Intracellular share of the signal of the fibres, where there are fibres',
    'od': 'Orientation dispersion index of a Watson distribution, where there are fibres',
    'isovf': 'Share of free water in the signal at b=0',
}


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """What a dMRI voxel holds, on the run's grid with the head where the first volume has it."""

    tissue: Tensor  #: (3, X, Y, Z) volume fractions of GM, WM, CSF; fluid around the brain is CSF
    mask: Tensor  #: (X, Y, Z) bool, at least half brain
    directions: Tensor  #: (3 MAX_FIBRES, X, Y, Z) unit vectors, world axes, strongest first; or 0
    icvf: Tensor  #: (X, Y, Z) where there are directions
    od: Tensor  #: (X, Y, Z) where there are directions
    isovf: Tensor  #: (X, Y, Z) share of free water in the b=0 signal, in the mask

    @property
    def labels(self) -> Tensor:
        """(X, Y, Z) 1 GM, 2 WM, 3 CSF: the largest fraction; 0 outside the mask."""
        return (self.tissue.argmax(0) + 1) * self.mask

    @property
    def n_fibres(self) -> Tensor:
        """(X, Y, Z) how many directions are there."""
        vectors = self.directions.reshape(MAX_FIBRES, 3, *self.mask.shape)
        return (vectors.norm(dim=1) > 0.5).sum(0)


def named_maps(truth: Truth) -> dict[str, tuple[np.ndarray, dict[str, Any]]]:
    """File name without participant and extension → (array (X, Y, Z[, K]), sidecar)."""
    tissue = {'Description': 'Tissue of the largest volume fraction'}
    fractions = {'Description': 'Volume fractions', 'LabelMap': [code for *_, code in TISSUES]}
    n_fibres = {'Description': 'Fibres of at least 15 % of the voxel, in white matter'}
    mask = {'Type': 'Brain', 'Description': 'At least half brain'}
    files: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
        'seg-tissue_desc-truth_dseg': (_small(truth.labels), tissue),
        'seg-tissue_desc-truth_probseg': (truth.tissue.movedim(0, -1).numpy(), fractions),
        'seg-nfib_desc-truth_dseg': (_small(truth.n_fibres), n_fibres),
        'desc-brain_mask': (_small(truth.mask), mask),
        'model-truth_param-direction_dwimap': (truth.directions.movedim(0, -1).numpy(), DIRECTIONS),
    }
    for name, description in PARAMETERS.items():
        sidecar = {'Description': description, 'Units': 'arbitrary'}
        files[f'model-truth_param-{name}_dwimap'] = (getattr(truth, name).numpy(), sidecar)
    return files


def _small(values: Tensor) -> np.ndarray:
    return np.asarray(values.numpy(), np.uint8)
