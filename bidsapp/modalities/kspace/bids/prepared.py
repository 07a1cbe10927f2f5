"""What the preparation of a raw scan leaves, and how the samples behind it are read again.

A run is known by its zero-filled image; a full scan by the image of all lines, which is the
reference. The samples stay in the raw data, for they are large: a step reads them slice by slice,
and the sidecar of the main image says where they are and what was left out of them.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bidsapp.bids.identity import raw_scan, roots_of
from bidsapp.bids.images import open_image
from bidsapp.bids.outputs import output_path
from bidsapp.bids.runs import Prepared
from bidsapp.bids.scans import number, read_object, said_beside, sidecar_of
from bidsapp.core import Output
from bidsapp.modalities.kspace.bids.raw import middle_size
from bidsapp.modalities.kspace.bids.runs import FULL
from bidsapp.modalities.kspace.bids.scan import opened_scan
from bidsapp.modalities.kspace.physics.acquisition import Acquisition
from bidsapp.physics.geometry import voxel_sizes
from bidsapp.physics.streams import stream
from bidsapp.problems import BadData, MissingInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from bidsapp.core import Case
    from bidsapp.modalities.kspace.bids.raw import RawImage
    from bidsapp.modalities.kspace.bids.runs import KspaceRun
    from bidsapp.modalities.kspace.physics.measured import Measured

#: Fields of the main sidecar by which the samples are found again: which image of the file, R of
#: the lines that are left, and what they were drawn by.
NUMBER, AFTERWARDS, SEED = 'ImageInFile', 'RetrospectiveAcceleration', 'RetrospectiveSeed'
#: Field of sidecars: all lines over measured ones.
R = 'Acceleration'

#: Every image is a magnitude of the object as the coils see it together.
KEPT: Mapping[str, Any] = {'SkullStripped': False}
ZEROFILLED = Output(
    'zerofilled', {'desc': 'recon'}, 'float32', told_by='reconstruction', sidecar=KEPT,
    description='Magnitude of the image whose k-space is 0 where nothing was measured, combined '
    'over coils.', heading='Zero-filled',
)  # fmt: skip
#: The image of a full scan.
WHOLE = {'reconstruction': 'full', 'desc': FULL, 'extension': '.nii.gz'}


def besides(run: KspaceRun) -> tuple[Mapping[str, str], ...]:
    """Of a full scan with lines left out afterwards also the zero-filled image."""
    if not run.undersample:
        return ()
    named = ZEROFILLED.entities_from('zerofilled')
    return tuple({**named, 'extension': extension} for extension in ('.json', '.nii.gz'))


PREPARED = Prepared(
    datatype='anat',
    main='image',
    names={'image': {**ZEROFILLED.entities_from('zerofilled'), 'extension': '.nii.gz'}},
    instead=(WHOLE,),
    sometimes=((ZEROFILLED, 'zerofilled'),),
    besides=besides,
    words='reconstructed scan (*_rec-zerofilled_desc-recon or *_rec-full_desc-reference)',
)


@dataclass(frozen=True, slots=True)
class Afterwards:
    """Which lines of a full scan are left out afterwards."""

    acceleration: float
    seed: int

    def mask(self, image: RawImage, name: str) -> Tensor:
        """(1, Y, Z), the same for every slice. Raises BadData where R is too much for it."""
        from bidsapp.modalities.kspace.physics.sampling import retrospective

        y, z = image.measured.shape
        generator = stream(self.seed, of='lines left out afterwards')
        try:
            return retrospective((y, z), image.coils, self.acceleration, generator)
        except ValueError as error:
            raise BadData(f'{name}: {error}. Give --undersample less.') from error


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """An image's samples, slice by slice."""

    image: RawImage
    mask: Tensor | None  #: (1, Y, Z) of the lines that are left afterwards
    whole: Callable[[int], Measured]  #: a slice (the slab is the only one) as it was measured

    @property
    def count(self) -> int:
        """How many slices there are to be read."""
        return len(self.image.slices)

    def read(self, number: int) -> Measured:
        """A slice with the lines left out that are to be. Raises BadData."""
        from bidsapp.modalities.kspace.physics.measured import undersampled

        found = self.whole(number)
        return found if self.mask is None else undersampled(found, self.mask)


@contextmanager
def opened(path: Path, number: int, afterwards: Afterwards | None) -> Iterator[Samples]:
    """The samples of image ``number`` of a raw file. Raises BadData."""
    with opened_scan(path) as scan:
        if number >= len(scan.images):
            raise BadData(f'{path.name} has {len(scan.images)} images; number {number} is not one')
        image = scan.images[number]
        mask = None if afterwards is None else afterwards.mask(image, path.name)
        yield Samples(image, mask, lambda n: scan.read(image, n))


def said_of_run(case: Case) -> dict[str, Any]:
    """The sidecar of what is reconstructed: the zero-filled image's, else that of all lines."""
    beside = root_of(case) / output_path(case.entities, ZEROFILLED, 'zerofilled', '.json')
    return read_object(beside if beside.is_file() else sidecar_of(case.files['image']))


def afterwards_of(case: Case) -> Afterwards | None:
    """What the sidecar of a prepared run's zero-filled image says is left out."""
    said = said_of_run(case)
    acceleration, seed = number(said, AFTERWARDS), number(said, SEED)
    return None if acceleration is None else Afterwards(acceleration, int(seed or 0))


@contextmanager
def opened_case(case: Case, whole: bool = False) -> Iterator[Samples]:
    """The samples of a prepared run; ``whole``: also those that are left out afterwards.

    Raises MissingInput where the raw data are not where the links of the dataset say, BadData.
    """
    path = raw_of(case)
    said = said_beside(case.files['image'])
    with opened(
        path, int(number(said, NUMBER) or 0), None if whole else afterwards_of(case)
    ) as samples:
        yield samples


def raw_of(case: Case) -> Path:
    """The raw data behind a prepared run. Raises MissingInput."""
    found = raw_scan(case, PREPARED, roots_of(root_of(case), {}))
    if found is None:
        raise MissingInput(
            f'The raw data behind {case.files["image"].name} are not where its Sources and the '
            'DatasetLinks of its dataset say. Mount them there, for k-space is read from them.'
        )
    return found[0]


def root_of(case: Case) -> Path:
    """The derivative dataset of a prepared run."""
    below = output_path({**case.entities}, ZEROFILLED, 'zerofilled', '.nii.gz')
    return case.files['image'].parents[len(below.parts) - 1]


def acquisition_of_raw(image: RawImage, mask: Tensor | None = None) -> Acquisition:
    """The acquisition of an image, of which ``mask`` (1, Y, Z) is left afterwards."""
    from bidsapp.modalities.kspace.physics.sampling import pattern

    lines, calibration = image.measured, image.calibration
    if mask is not None:
        lines = lines & (mask[0] > 0).numpy()
        calibration = middle_size(lines)
    deep = image.three_dimensional
    return Acquisition(
        image.coils, image.encoding.encoded.matrix[: 3 if deep else 2],
        1 if deep else len(image.slices), lines.size / max(int(lines.sum()), 1),
        calibration[: 1 + deep], tuple(float(x) for x in voxel_sizes(image.affine)),
        pattern(lines), mask is not None,
    )  # fmt: skip


def said_of(found: Acquisition) -> dict[str, Any]:
    """An acquisition as fields of a sidecar."""
    return {
        R: round(found.acceleration, 4),
        'SamplingPattern': found.pattern,
        'CalibrationLines': list(found.calibration),
        'Coils': found.coils,
        'Matrix': list(found.matrix),
        'Slices': found.slices,
    }


def acquisition_of(case: Case) -> Acquisition:
    """The acquisition of a prepared run, by its sidecar. Raises Problem."""
    said = said_of_run(case)
    if missing := [k for k in (R, 'Coils', 'Matrix', 'CalibrationLines') if k not in said]:
        raise MissingInput(
            f'The sidecar of {case.files["image"].name} does not say {", ".join(missing)}.'
        )
    edges = voxel_sizes(open_image(case.files['image']).affine)
    return Acquisition(
        int(said['Coils']), tuple(int(n) for n in said['Matrix']), int(said.get('Slices', 1)),
        float(said[R]), tuple(int(n) for n in said['CalibrationLines']),
        tuple(float(x) for x in edges), str(said.get('SamplingPattern', '')), AFTERWARDS in said,
    )  # fmt: skip
