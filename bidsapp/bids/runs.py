"""Run, Survey and Prepared, and the part `files` that every modality has."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from bidsapp.bids.names import stem
from bidsapp.bids.provenance import of_values
from bidsapp.core import A

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from bidsapp.bids.dataset import Selection
    from bidsapp.core import Case, Finding, Output
    from bidsapp.problems import Problem


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a modality in a raw dataset, or why it cannot be used."""

    modality: str
    case: Case
    metadata: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    problem: Problem | None = None
    taken_from: str | None = None  #: the pipeline that has already prepared it, as ``-d`` names it
    unserved: Problem | None = None  #: why, in principle, nothing can be made of it: it promises
    #: nothing, and that is no failure unless a task of its modality was named
    called: str = ''  #: how it is named where its files' names, or the folder, are not BIDS

    @property
    def name(self) -> str:
        """What its outputs begin with."""
        return self.called or stem(self.case.entities)

    @property
    def path(self) -> Path:
        """The raw file that it is known by: the first of its files."""
        return next(iter(self.case.files.values()))

    def sources(self) -> tuple[Path, ...]:
        """The raw files that its preparation reads; a T1w image serves labels."""
        return tuple(path for kind, path in self.case.files.items() if kind != 't1w')

    def told(self) -> dict[str, Any]:
        """Plain values beside the files, by names for people, that its preparation follows from."""
        return {'the JSON of the scan': of_values(self.metadata)}

    def told_of_labels(self) -> dict[str, Any]:
        """The same that labels and predictions follow from, and its preparation does not."""
        return {}


R = TypeVar('R', bound=Run)


@dataclass(frozen=True, slots=True)
class Size:
    """What the memory that steps need is estimated from."""

    voxels: int  #: of one volume
    volumes: int

    @property
    def run_gb(self) -> float:
        """GiB of all volumes as float32."""
        return self.gb(4 * self.volumes)

    def gb(self, bytes_per_voxel: float) -> float:
        """GiB of something that takes so many bytes for each voxel of one volume."""
        return bytes_per_voxel * self.voxels / 2**30


#: Of a run whose header could not be read.
EMPTY = Size(0, 0)


@dataclass(frozen=True, slots=True)
class Survey(Generic[A]):
    """What headers, tables and metadata tell of a run; no voxel has been read."""

    acquisition: A
    size: Size
    warnings: tuple[str, ...] = ()
    will: tuple[str, ...] = ()  #: what will be corrected, and what not and why


def _nothing(run: Run) -> tuple[Mapping[str, str], ...]:
    return ()


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the preparation of a run leaves below OUTPUT_DIR, and how it is found again."""

    datatype: str  #: folder of the outputs that do not say another: 'dwi', 'anat'
    main: str  #: the kind of file that a run is known by: 'dwi', 'field', 'image'
    names: Mapping[str, Mapping[str, str]]  #: kind of file → its entities beside the run's own;
    #: without a suffix: that of the run's entities
    outputs: tuple[tuple[Output, str], ...] = ()  #: promised besides, with their source
    sometimes: tuple[tuple[Output, str], ...] = ()  #: left where they can be, and not promised
    besides: Callable[[Any], tuple[Mapping[str, str], ...]] = _nothing  #: of a Run: entities of
    #: further files that not every run leaves
    words: str = 'prepared run'  #: what a main file is, for people: 'preprocessed dMRI'
    instead: tuple[Mapping[str, str], ...] = ()  #: the main file of runs of another kind, the kinds
    #: told by ``desc``, which then stands in the run's entities; the first that is there counts

    def main_of(self, entities: Mapping[str, str]) -> Mapping[str, str]:
        """Entities of the main file of the run ``entities``, beside its own."""
        desc = entities.get('desc')
        others = (main for main in self.instead if main['desc'] == desc)
        return next(others, self.names[self.main])


def nothing_found(run: Run) -> list[Finding]:
    """Nothing was noticed that `survey` does not say."""
    return []


@dataclass(frozen=True, slots=True)
class Files(Generic[R, A]):
    """What a modality knows of files; its package ``bids`` has one, called ``files``."""

    words: str  #: what a run is called in messages: 'dMRI'
    find: Callable[[Selection, Mapping[str, Path]], list[R]]  #: the selected runs, those of other
    #: pipelines' results (by name, as ``-d`` gives them) in the place of raw ones
    survey: Callable[[R], Survey[A]]  #: raises Problem
    acquisition: Callable[[Case], A]  #: of a prepared run
    prepared: Prepared
    looked_for: str  #: where raw runs are expected: 'sub-*/[ses-*/]anat/*_MEGRE.nii.gz'
    check: Callable[[R], list[Finding]] = nothing_found  #: voxels included: `transfermri-check`
    pipelines: Mapping[str, str] = field(default_factory=dict)  #: name in ``-d`` → its own name
    check_pipeline: Callable[[str, Path], str] | None = None  #: name, root → pipeline and version;
    #: raises WrongUsage, MissingInput or InvalidDataset
    helps: Mapping[str, str] = field(default_factory=dict)  #: name in ``-d`` → what a folder of the
    #: user's holds for raw runs, for people; no pipeline need have written it
    ignored: tuple[str, ...] = ()  #: lines of .bidsignore
