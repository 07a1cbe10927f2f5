"""What the outputs of one run would be made from now: their `bids.provenance.Basis`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bidsapp import registry
from bidsapp.bids.derivatives import linked_uri
from bidsapp.bids.prepared import main_sidecar
from bidsapp.bids.provenance import Basis
from bidsapp.core import PARTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from bidsapp.bids.runs import Run
    from bidsapp.workflows.preparation import Preparation, Steps


PREPROCESSING = PARTS[0]


def label_of(task: str) -> str:
    """What the reference label of a task is called among the parts of a run."""
    return f'{task} label'


def prediction_of(task: str) -> str:
    """The same of the prediction."""
    return f'{task} prediction'


@dataclass(frozen=True, slots=True)
class Asked:
    """What a call asks for, as far as outputs of runs follow from it."""

    root: Path  #: of the outputs
    tasks: Sequence[str] = ()
    roots: Mapping[str, Path] = field(default_factory=dict)  #: name in BIDS URIs → dataset
    seed: int = 0
    redo: frozenset[str] = frozenset()  #: parts that are made again in any case: `PARTS`, tasks


def preparation_basis(run: Run, asked: Asked) -> Basis:
    """Of a prepared run."""
    preparation: Preparation = registry.preparation(run.modality)
    options: dict[str, Any] = run.told()
    if run.taken_from is None:
        options['--random-seed'] = asked.seed
    return Basis(uris(run.sources(), asked.roots), versions(preparation.steps(run)), options)


def label_basis(run: Run, task: str, asked: Asked) -> Basis:
    """Of a reference label: the prepared run, the steps between, and what else they read."""
    label = registry.task(task).label
    assert label is not None
    preparation: Preparation = registry.preparation(run.modality)
    aids = [preparation.aids[kind] for kind in aids_for(run, label.reads)]
    steps = {label_of(task): label.version}
    for aid in aids:
        steps |= versions(aid.steps)
    read = [run.case.files['t1w']] if any(aid.needs_t1w for aid in aids) else []
    read += given_files(run, task).values()
    options = {**({'--random-seed': asked.seed} if aids else {}), **run.told_of_labels()}
    return Basis(uris(read, asked.roots), steps, options, prepared_sidecar(run, asked.root))


def prediction_basis(run: Run, task: str, sha256: str, asked: Asked) -> Basis:
    """Of a prediction: the prepared run, what a network sees of it, the model, what was given."""
    steps = {
        'network_input': registry.input(run.modality).version,
        prediction_of(task): registry.task(task).version,
    }
    options = {'the model': sha256, **run.told_of_labels()}
    read = uris(given_files(run, task).values(), asked.roots)
    return Basis(read, steps, options, prepared_sidecar(run, asked.root))


def given_files(run: Run, task: str) -> dict[str, Path]:
    """Kind → file of the user's that label and prediction of a task rest on beside the run."""
    label = registry.task(task).label
    kinds = label.reads if label else ()
    return {kind: run.case.files[kind] for kind in kinds if kind in run.case.files}


def prepared_sidecar(run: Run, root: Path) -> Path:
    """The JSON beside the file that a prepared run is known by."""
    return root / main_sidecar(registry.files(run.modality).prepared, run.case.entities)


def aids_for(run: Run, kinds: Iterable[str]) -> list[str]:
    """The aids of ``kinds`` that can be made of a run, after those that they rest on."""
    preparation: Preparation = registry.preparation(run.modality)
    found: list[str] = []
    for kind in kinds:
        aid = preparation.aids.get(kind)
        if aid is not None and ('t1w' in run.case.files or not aid.needs_t1w):
            found += [k for k in (*aids_for(run, aid.reads), kind) if k not in found]
    return found


def versions(steps: Steps) -> dict[str, int]:
    """Step → version of its results."""
    return {step.__name__: step.version for step in steps}


def uris(paths: Iterable[Path], roots: Mapping[str, Path]) -> dict[str, Path]:
    """BIDS URI → file, by the innermost dataset that holds it."""
    found = {}
    for path in paths:
        inside = [name for name, root in roots.items() if path.is_relative_to(root)]
        name = max(inside, key=lambda own: len(roots[own].parts))
        found[linked_uri(path, name, roots[name])] = path
    return found
