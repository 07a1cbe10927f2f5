"""What a run promises, from its header and table alone, and what of it is still to be made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidsapp import registry
from bidsapp.bids.outputs import files_of
from bidsapp.learn.ranges import outside
from bidsapp.modalities.dwi.bids.prepared import promised_by_preprocessing
from bidsapp.modalities.dwi.bids.survey import look
from bidsapp.problems import Problem, Unavailable
from bidsapp.workflows.preparation import EMPTY, Size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bidsapp.bids.runs import Run
    from bidsapp.core import Task
    from bidsapp.modalities.dwi.physics.acquisition import Acquisition, Facts

#: Task → (folder of its model, card, labels of the participants that it has learnt from).
Models = Mapping[str, tuple[Path, Mapping[str, Any], set[str]]]


@dataclass(frozen=True, slots=True)
class Todo:
    """What is missing for one run."""

    preproc: bool = False
    references: Mapping[str, str] = field(default_factory=dict)  #: task → source of its label
    predictions: Mapping[str, Model] = field(default_factory=dict)  #: task → model to apply

    def __bool__(self) -> bool:
        return bool(self.preproc or self.references or self.predictions)


@dataclass(frozen=True, slots=True)
class Model:
    """A model on disk, and whether this participant was among those it learnt from."""

    folder: Path
    sha256: str
    seen_in_training: bool


@dataclass(slots=True)
class RunPlan:
    """One run, what it can give, what is promised and what is missing."""

    run: Run
    acquisition: Acquisition | None = None
    problem: Problem | None = None
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  #: what will be corrected, and what not
    unavailable: dict[str, str] = field(default_factory=dict)  #: task → why it has no reference
    inapplicable: dict[str, str] = field(default_factory=dict)  #: task → why it has no prediction
    promised: list[Path] = field(default_factory=list)
    todo: Todo = field(default_factory=Todo)
    size: Size = EMPTY
    facts: Facts | None = None  #: what models are judged by

    def missing(self, root: Path) -> list[Path]:
        """Promised files, below ``root``, that are not there."""
        return [path for path in self.promised if not (root / path).is_file()]


def plan_run(found: Run, root: Path, wanted: Sequence[str], models: Models) -> RunPlan:
    """See what one run can give under ``root``, and what of it is not there yet."""
    made = RunPlan(found, problem=found.problem)
    if made.problem is None:
        try:
            look(made)
        except Problem as problem:
            made.problem = problem
    if made.problem is not None or made.acquisition is None:
        made.promised = promised_by_preprocessing(found.case.entities, found.preprocessed is None)
        return made
    promise(made, root, wanted, models)
    return made


def promise(made: RunPlan, root: Path, wanted: Sequence[str], models: Models) -> None:
    """Fill in what this run promises, and what of it has to be made."""
    entities = made.run.case.entities
    assert made.acquisition is not None
    preprocessing = promised_by_preprocessing(entities, made.run.preprocessed is None)
    references: dict[str, str] = {}
    predictions: dict[str, Model] = {}
    made.promised = list(preprocessing)
    redo = not all((root / path).is_file() for path in preprocessing)
    for name in wanted:
        task = registry.get(name)
        if task.derive is not None:
            try:
                source = task.reference(made.acquisition)
                files = [p for o, s in task.labels(source) for p in files_of(entities, o, s)]
                made.promised += files
                if redo or not all((root / path).is_file() for path in files):
                    references[name] = source
            except Unavailable as reason:
                made.unavailable[name] = str(reason)
        if name in models and _applies(made, task):
            folder, card, learnt_from = models[name]
            files = predicted_files(entities, name)
            made.promised += files
            judge(made, card)
            if redo or not all(written_by(root / p, card['sha256']) for p in files):
                seen = made.run.case.subject in learnt_from
                predictions[name] = Model(folder, card['sha256'], seen)
    made.todo = Todo(redo, references, predictions)


def _applies(made: RunPlan, task: Task) -> bool:
    """Whether a prediction makes sense for the run; why not is kept."""
    assert made.acquisition is not None
    try:
        task.applies(made.acquisition)
    except Unavailable as reason:
        made.inapplicable[task.name] = str(reason)
        return False
    return True


def judge(made: RunPlan, card: Mapping[str, Any]) -> None:
    """Warn of what can be seen from header and table to lie outside of a model's tests."""
    if made.facts is not None:
        made.warnings += [text for text in outside(card, made.facts) if text not in made.warnings]


def predictions_of(made: RunPlan, models: Models) -> list[str]:
    """Tasks of which this run promises a prediction."""
    if made.problem is not None or made.acquisition is None:
        return []
    return [name for name in models if name not in made.inapplicable]


def predicted_files(entities: Mapping[str, str], task: str) -> list[Path]:
    """Every file, below the root, that applying a model of ``task`` to one run leaves."""
    outputs = registry.get(task).writes
    return [path for output in outputs for path in files_of(entities, output, 'unet')]


def written_by(path: Path, sha256: str) -> bool:
    """Is the file there and, as far as it can tell, made by this model?"""
    if not path.is_file():
        return False
    if path.suffix != '.json':
        return True
    try:
        sidecar: dict[str, Any] = json.loads(path.read_text(encoding='utf-8'))
    except ValueError:
        return False
    return sidecar.get('ModelSHA256') == sha256


def stale(made: RunPlan, root: Path) -> bool:
    """Is a prediction still that of another model?"""
    return not all(
        written_by(root / path, model.sha256)
        for name, model in made.todo.predictions.items()
        for path in predicted_files(made.run.case.entities, name)
    )
