"""Step: the classical reconstructions of a prepared run, and what its own lines say of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nipype.interfaces.base import File, TraitedSpec, traits

from bidsapp.bids.images import load_volume
from bidsapp.bids.names import build, of_recording
from bidsapp.bids.write import whole
from bidsapp.interfaces.base import CaseInput, CaseStep
from bidsapp.interfaces.files import save_like
from bidsapp.modalities.kspace.bids.planes import (
    assembled,
    planes_in,
    short,
    spread,
)
from bidsapp.modalities.kspace.bids.prepared import afterwards_of, opened_case, said_of_run
from bidsapp.modalities.kspace.physics import sense

if TYPE_CHECKING:
    import torch

    from bidsapp.core import Case
    from bidsapp.modalities.kspace.bids.planes import Seen

#: The reconstructions that are written, in the order of the step's image of them; the other methods
#: are judged beside them.
METHODS = ('tv', 'sense')
#: Planes that are judged by lines left out, at most, and sets of noise for the map of it.
JUDGED, REPLICAS = 32, 12
#: What the sidecar of the prepared image says that one of a reconstruction says too.
PASSED = (
    'Acceleration', 'SamplingPattern', 'CalibrationLines', 'Coils', 'CoilCompression', 'CoilMaps',
    'PhaseHeld', 'Whitening', 'Noise', 'GeometryKnown', 'RetrospectiveAcceleration', 'Simulated',
)  # fmt: skip


class _ReconstructInput(CaseInput):
    out_root = traits.Str(mandatory=True)
    seed = traits.Int(mandatory=True)


class _Reconstructed(TraitedSpec):
    reconstructions = File(desc='(X, Y, Z, 2) in the order of METHODS')
    quality = traits.Dict()


class Reconstruct(CaseStep):
    """Total variation and CG-SENSE, found once for all labels, slice by slice."""

    input_spec = _ReconstructInput
    output_spec = _Reconstructed

    def step(self, folder: Path) -> dict[str, Any]:
        """Raises MissingInput where the raw data are gone, BadData."""
        case, judged = self.case(), Judged()
        images: dict[str, list[Any]] = {name: [] for name in METHODS}
        with opened_case(case) as samples:
            for seen in planes_in(samples):
                found = seen.plane.smooth()
                for name, planes in images.items():
                    planes.append(found[name])
                if seen.number in spread(seen.count, JUDGED):
                    judged.judge(seen.plane, _generator(self.inputs.seed, seen.number))
                if seen.number == seen.count // 2:
                    self.keep_for_page(case, seen)
            arrays = {name: assembled(planes, samples.image) for name, planes in images.items()}
        main, quality = case.files['image'], self.said(case, judged)
        if afterwards_of(case) is not None:
            truth = load_volume(main)
            quality['Scores'] = {k: scores(array, truth) for k, array in arrays.items()}
        stacked = np.stack(list(arrays.values()), -1)
        return {
            'reconstructions': str(save_like(folder / 'reconstructions.nii', stacked, main)),
            'quality': quality,
        }

    def said(self, case: Case, judged: Judged) -> dict[str, Any]:
        """Fields of sidecars."""
        said = said_of_run(case)
        residual = judged.residual
        return {
            **{key: said[key] for key in PASSED if key in said},
            'Iterations': {'sense': sense.LINEAR_STEPS, 'tv': sense.STEPS},
            'Regularization': {'sense': sense.OF_NOISE_LINEAR, 'tv': sense.OF_NOISE},
            'LeftOutError': judged.errors,
            'Residual': None if residual is None else short(residual),
            'JudgedPlanes': judged.count,
        }

    def keep_for_page(self, case: Case, seen: Seen) -> None:
        """Of the middle plane what the page draws and no image is: maps, mask, noise."""
        plane = seen.plane
        generator = _generator(self.inputs.seed, seen.number)
        noise = plane.amplification(generator, REPLICAS)
        with whole(page_file(Path(self.inputs.out_root), case)) as hidden, hidden.open('wb') as f:
            np.savez_compressed(
                f, maps=plane.maps.abs().half().numpy(), mask=plane.lines.numpy(),
                noise=noise.half().numpy(), plane=seen.number,
            )  # fmt: skip


class Judged:
    """What lines that were left out, and the residual, say of several planes together."""

    def __init__(self) -> None:
        self._errors: dict[str, list[float]] = {}
        self._residuals: list[float] = []
        self.count = 0

    def judge(self, plane: Any, generator: torch.Generator) -> None:
        """One plane more."""
        for name, error in plane.left_out(generator).items():
            self._errors.setdefault(name, []).append(error)
        if (residual := plane.residual()) is not None:
            self._residuals.append(residual)
        self.count += 1

    @property
    def errors(self) -> dict[str, float]:
        """Method → root mean square over the planes; the expectation is 1."""
        return {name: short(_together(values)) for name, values in self._errors.items()}

    @property
    def residual(self) -> float | None:
        """The same of the residual; None where it says nothing."""
        return _together(self._residuals) if self._residuals else None


def _together(values: list[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _generator(seed: int, number: int) -> torch.Generator:
    from bidsapp.physics.streams import stream

    return stream(seed, number, of='lines left out to judge')


def scores(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """How alike a reconstruction is to the image of all lines, means over slices."""
    import torch

    from bidsapp.modalities.kspace.physics.agreement import agreement, foreground

    rows = []
    for n in range(truth.shape[2]):
        one, other = (torch.from_numpy(np.ascontiguousarray(x[..., n])) for x in (found, truth))
        rows.append(agreement(one, other, foreground(other)))
    return {name: short(float(np.nanmean([row[name] for row in rows]))) for name in rows[0]}


def page_file(root: Path, case: Case) -> Path:
    """Where what the page draws of a run, and no image is, stands."""
    own = {k: v for k, v in of_recording(case.entities).items() if k != 'desc'}
    name = build({**own, 'desc': 'sampling', 'extension': '.npz'}).name
    return root / f'sub-{case.subject}' / 'figures' / name
