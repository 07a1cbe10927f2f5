"""Step: parts of one scheme, each preprocessed by itself, become one run."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nipype.interfaces.base import File, TraitedSpec, traits
from scipy.spatial.transform import Rotation

from bidsapp.bids.images import load_volume, open_image
from bidsapp.bids.names import build, parse, source_entities
from bidsapp.bids.outputs import output_path
from bidsapp.bids.prepared import prepared_files
from bidsapp.bids.scans import said_beside
from bidsapp.bids.write import write_table
from bidsapp.interfaces.base import Step, StepInput
from bidsapp.interfaces.files import load_mask, save_like
from bidsapp.modalities.dwi.bids.prepared import CONFOUNDS, NOISE, PREPARED
from bidsapp.modalities.dwi.bids.replaced import REPLACED
from bidsapp.modalities.dwi.bids.tables import b0_threshold_of
from bidsapp.modalities.dwi.interfaces.files import mean_b0, read_table, save_table
from bidsapp.modalities.dwi.interfaces.outputs import CORRECTIONS
from bidsapp.modalities.dwi.physics.gradients import GradientTable, rotated

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class _JoinInput(StepInput):
    dwi = traits.List(File(exists=True), mandatory=True, desc='parts as WritePreprocessed has them')
    names = traits.List(traits.Str, mandatory=True, desc='of the parts, for people')
    seed = traits.Int(0, usedefault=True)


class _Joined(TraitedSpec):
    dwi = File(exists=True)
    bval = File(exists=True)
    bvec = File(exists=True)
    mask = File(exists=True)
    noise = File()
    confounds = File()
    warnings = traits.List(traits.Str)
    left_out = traits.Dict()
    gradient_check = traits.Dict()
    denoising = traits.Dict()
    unringing = traits.Dict()
    motion = traits.Dict()
    distortion = traits.Dict()
    bias = traits.Dict()


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One preprocessed part: where its files are, and what is said of it."""

    dwi: Path
    name: str

    def beside(self, entities: Mapping[str, str]) -> Path:
        """Another of its files."""
        below = prepared_files(PREPARED, self.entities)['dwi']
        return self.dwi.parents[len(below.parts) - 1] / build({**self.entities, **entities})

    @property
    def entities(self) -> dict[str, str]:
        """Of the raw run."""
        return {**source_entities(parse(self.dwi.name)), 'datatype': PREPARED.datatype}

    @property
    def said(self) -> dict[str, Any]:
        """Its sidecar."""
        return said_beside(self.dwi)

    @property
    def noise(self) -> list[Path]:
        """Maps of its noise; none where it is unknown."""
        names = [output_path(self.entities, o, 'preproc', '.nii.gz').name for o in NOISE]
        return [p for p in map(self.dwi.with_name, names) if p.is_file()]

    @property
    def mean_b0(self) -> np.ndarray:
        """(X, Y, Z)."""
        bval = self.beside(PREPARED.names['bval'])
        return mean_b0(self.dwi, bval, b0_threshold_of(self.dwi))

    @property
    def table(self) -> GradientTable:
        """In world axes."""
        bval, bvec = (self.beside(PREPARED.names[kind]) for kind in ('bval', 'bvec'))
        return read_table(self.dwi, bval, bvec, b0_threshold_of(self.dwi))


class JoinRuns(Step):
    """Each later part where the first one's head was, as bright, its gradients turned along.

    A later part is interpolated a second time by that, unless its head did not move. The brain is
    what is brain in all parts, so every voxel of it has every volume.
    """

    input_spec = _JoinInput
    output_spec = _Joined

    def step(self, folder: Path) -> dict[str, Any]:
        """Volumes in the order of the parts."""
        paths = [Path(path) for path in self.inputs.dwi]
        parts = [Part(p, n) for p, n in zip(paths, self.inputs.names, strict=True)]
        laid = [Laid.onto(parts[0], part, self.inputs.seed) for part in parts]
        like, affine = parts[0].dwi, open_image(parts[0].dwi).affine
        data = np.concatenate([one.volumes() for one in laid], axis=-1)
        tables = [one.table() for one in laid]
        table = GradientTable(
            np.concatenate([t.bvecs for t in tables]), np.concatenate([t.bvals for t in tables]),
            max(t.b0_threshold for t in tables),
        )  # fmt: skip
        mask = np.all([one.mask() for one in laid], axis=0)
        given = {
            'dwi': str(save_like(folder / 'dwi.nii', data, like)),
            'mask': str(save_like(folder / 'mask.nii', mask, like, 'uint8')),
            **save_table(folder, table, affine),
            **self.said(parts, laid, [len(t) for t in tables]),
            'confounds': str(join_confounds(folder, parts)),
        }
        if all(len(part.noise) == len(NOISE) for part in parts):
            noise = np.sqrt(np.mean([np.square(one.noise()) for one in laid], axis=0))
            given['noise'] = str(save_like(folder / 'noise.nii', noise, like))
        return given

    @staticmethod
    def said(parts: Sequence[Part], laid: Sequence[Laid], volumes: Sequence[int]) -> dict[str, Any]:
        """What the sidecars of the parts say, as inputs of the writer."""
        found: dict[str, Any] = {
            key: together(parts, field) for field, key, _ in CORRECTIONS
        }  # fmt: skip
        begin, rows = 0, []
        for part, count in zip(parts, volumes, strict=True):
            own = part.said['MotionCorrection'].get(REPLACED, [])
            rows += [[begin + int(v), int(a), int(b)] for v, a, b in own]
            begin += count
        first = parts[0].said['MotionCorrection']
        found['motion'] = {
            **{k: v for k, v in first.items() if k in ('Method', 'SliceAxis')},
            REPLACED: rows,
            'OutlierSlices': sum(p.said['MotionCorrection'].get('OutlierSlices', 0) for p in parts),
            'Joined': [one.words(n) for one, n in zip(laid, volumes, strict=True)],
        }
        checks = [part.said.get('GradientTableTest', {}) for part in parts]
        found['gradient_check'] = {
            **{k: all(c.get(k, False) for c in checks) for k in ('Passed', 'Decided')},
            'Margin': min(c.get('Margin', 0.0) for c in checks),
            'Statement': '; '.join(dict.fromkeys(str(c.get('Statement', '')) for c in checks)),
        }
        found['warnings'] = [f'{p.name}: {text}' for p in parts for text in p.said['Warnings']]
        found['left_out'] = {
            f'{p.name}: {v}': why for p in parts for v, why in p.said['VolumesLeftOut'].items()
        }
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Laid:
    """A part, and how it is brought to the first: (4, 4) world mm, first → part, and its gain."""

    part: Part
    matrix: np.ndarray
    gain: float
    affine: np.ndarray  #: (4, 4) of the part's grid

    @classmethod
    def onto(cls, first: Part, part: Part, seed: int) -> Laid:
        """The first itself is left as it is."""
        from bidsapp.modalities.dwi.physics.joining import between, gain
        from bidsapp.physics.resampling import resampled_cubic

        affine = open_image(first.dwi).affine
        if part is first:
            return cls(part, np.eye(4), 1.0, affine)
        still, moving = first.mean_b0, part.mean_b0
        mask = load_mask(first.beside(PREPARED.names['mask']))
        matrix = between(still, moving, affine, mask, seed)
        there = resampled_cubic(moving, np.linalg.inv(affine) @ matrix @ affine)
        return cls(part, matrix, gain(still, there, mask), open_image(part.dwi).affine)

    def moved(self, volume: np.ndarray) -> np.ndarray:
        """(X, Y, Z) on the first one's grid, where its head was."""
        from bidsapp.physics.resampling import resampled_cubic

        return resampled_cubic(volume, np.linalg.inv(self.affine) @ self.matrix @ self.affine)

    def volumes(self) -> np.ndarray:
        """(X, Y, Z, N)."""
        data = load_volume(self.part.dwi)
        for volume in range(data.shape[-1]):
            data[..., volume] = np.maximum(self.moved(data[..., volume]) * self.gain, 0)
        return data

    def table(self) -> GradientTable:
        """Directions where the first one's head was."""
        return rotated(self.part.table, self.matrix[:3, :3].T)

    def mask(self) -> np.ndarray:
        """(X, Y, Z) bool."""
        own = load_mask(self.part.beside(PREPARED.names['mask']))
        return self.moved(own.astype('float32')) > 0.5

    def noise(self) -> np.ndarray:
        """(X, Y, Z, 2) floor and spread, in the unit of the first."""
        maps = [self.moved(load_volume(path)) for path in self.part.noise]
        return np.maximum(np.stack(maps, -1), 0) * self.gain

    def words(self, volumes: int) -> dict[str, Any]:
        """For the sidecar."""
        turn = Rotation.from_matrix(self.matrix[:3, :3]).magnitude()
        centre = np.array(open_image(self.part.dwi).shape[:3]) / 2
        world = self.affine @ [*centre, 1]
        shift = float(np.linalg.norm((self.matrix @ world - world)[:3]))
        return {
            'Run': self.part.name, 'Volumes': volumes, 'Shift': round(shift, 2),
            'Rotation': round(float(np.degrees(turn)), 2), 'Gain': round(self.gain, 3),
        }  # fmt: skip


def together(parts: Sequence[Part], field: str) -> dict[str, Any]:
    """One correction of all parts: what they say alike, else each by its name."""
    every = {part.name: dict(part.said.get(field, {})) for part in parts}
    first = next(iter(every.values()))
    if all(said == first for said in every.values()):
        return first
    return {'Method': first.get('Method', 'none'), 'Parts': every}


def join_confounds(folder: Path, parts: Sequence[Part]) -> Path:
    """The rows of all parts, one after the other."""
    header: list[str] = []
    rows: list[list[str]] = []
    for part in parts:
        with part.beside(CONFOUNDS[1]).open(encoding='utf-8') as stream:
            header, *own = csv.reader(stream, delimiter='\t')
        rows += own
    write_table(folder / 'confounds.tsv', header, rows)
    return folder / 'confounds.tsv'
