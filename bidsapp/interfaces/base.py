"""What all steps share: a problem a user can mend leaves a note that the story reads."""

from __future__ import annotations

import json
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    DynamicTraitedSpec,
    File,
    SimpleInterface,
    isdefined,
    traits,
)

from bidsapp.bids.provenance import FIELD, basis, record
from bidsapp.core import Case
from bidsapp.problems import Problem, Unavailable, problem_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

#: Written to the folder of a step that met a problem, and of one whose label the scan cannot give.
PROBLEM, ABSENT = 'problem.json', 'absent.json'


class StepInput(BaseInterfaceInputSpec):
    """What every step is told: its own version, so that a raised one goes on from nothing."""

    version = traits.Int(1, usedefault=True)


class ComputingInput(StepInput):
    """Where and with how many threads a step computes; neither changes what comes out.

    ``use_gpu`` follows from the device: by it Nipype lets one step at a time onto a card.
    """

    device = traits.Str('cpu', usedefault=True, nohash=True)
    use_gpu = traits.Bool(False, usedefault=True, nohash=True)
    n_threads = traits.Int(1, usedefault=True, nohash=True)

    def _device_changed(self, device: str) -> None:
        self.use_gpu = device != 'cpu'


class Step(SimpleInterface):
    """A step whose work is ``step(folder)``; what it returns becomes the outputs.

    A Problem is written as ``problem.json`` before it goes on to Nipype, because Nipype keeps of
    an exception only its text. A step that says ``n_threads`` gets as many from torch.

    ``version`` is raised when the results of a step change: what was made by an earlier one is then
    made again, and nothing else is.
    """

    input_spec = StepInput
    version: ClassVar[int] = 1

    def __init__(self, **inputs: Any) -> None:
        super().__init__(**inputs)
        self.inputs.version = self.version

    def step(self, folder: Path) -> dict[str, Any]:
        """Do the work; new files go to ``folder``."""
        raise TypeError(f'{type(self).__name__} does not say what its step is')

    def told(self, folder: Path) -> dict[str, Any]:
        """What the step gives; in its ``quality`` what on CUDA is not the same bits each time."""
        from bidsapp.learn.processors import nondeterminism

        with nondeterminism(getattr(self.inputs, 'device', 'cpu')) as found:
            given = self.step(folder)
        if found and 'quality' in given:
            given = {**given, 'quality': {**given['quality'], 'NotDeterministic': found}}
        return given

    def _run_interface(self, runtime: Any) -> Any:
        folder = Path(runtime.cwd)
        if isinstance(self.inputs, ComputingInput):
            import torch

            torch.set_num_threads(self.inputs.n_threads)
        try:
            with temporary_files_in(folder):
                self._results.update(self.told(folder))
        except Unavailable as reason:
            note(folder, Problem(f'a label that the table promised cannot be derived: {reason}'))
            raise
        except Exception as error:
            note(folder, problem_of(error, f'{type(self).__name__} in {folder}'))
            raise
        return runtime


class RecordingInput(StepInput):
    """What a writer is told of what its outputs are made from: a `bids.provenance.Basis`, plain.

    It changes no voxel, and a writer that is in a graph runs in any case.
    """

    basis = traits.Dict(nohash=True)

    def made_from(self) -> dict[str, Any]:
        """The field of a sidecar; empty where nothing was told."""
        return {FIELD: record(basis(self.basis))} if self.basis else {}


class CaseInput(DynamicTraitedSpec, ComputingInput):
    """A prepared run: its entities, and an input for each kind of its files."""

    modality = traits.Str(mandatory=True)
    entities = traits.Dict(mandatory=True)
    part = traits.Dict({}, usedefault=True, desc='as of `Case`')


class CaseStep(Step):
    """A step on a prepared run, whose kinds of files are those of its modality.

    ``kinds`` are inputs that must be connected, ``aids`` inputs that may be.
    """

    input_spec = CaseInput

    def __init__(self, kinds: Sequence[str] = (), aids: Sequence[str] = (), **inputs: Any) -> None:
        super().__init__(**inputs)
        self._kinds = (*kinds, *aids)
        for kind in self._kinds:
            self.inputs.add_trait(kind, File(exists=True, mandatory=kind in kinds))

    def case(self) -> Case:
        """The run, with those of its files that are defined."""
        known = {kind: getattr(self.inputs, kind) for kind in self._kinds}
        files = {kind: Path(path) for kind, path in known.items() if isdefined(path)}
        return Case(dict(self.inputs.entities), files, dict(self.inputs.part))


@contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """Temporary files, ANTs' among them, go to ``folder``, which is on the disk of the work folder.

    In a container /tmp may be memory, or hold 64 MB as in ``apptainer --containall``.
    """
    before = tempfile.tempdir
    tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def note(folder: Path, problem: Problem) -> None:
    """Leave a problem's text and exit code in ``folder``."""
    _leave(folder, PROBLEM, {'message': str(problem), 'exit_code': problem.exit_code})


def note_absent(folder: Path, task: str, source: str | None, reason: str) -> None:
    """Leave in ``folder`` that a promised label is not there, but that of ``source`` or none."""
    _leave(folder, ABSENT, {'task': task, 'source': source, 'reason': reason})


def _leave(folder: Path, name: str, content: Mapping[str, Any]) -> None:
    with tempfile.NamedTemporaryFile('w', dir=folder, delete=False, encoding='utf-8') as file:
        json.dump(content, file)
    Path(file.name).replace(folder / name)
