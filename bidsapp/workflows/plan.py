"""What a run promises, from its header and table alone, and what of it is still to be made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidsapp import registry
from bidsapp.bids.outputs import files_of
from bidsapp.bids.prepared import promised_files
from bidsapp.learn.ranges import outside
from bidsapp.problems import Problem, Unavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bidsapp.bids.runs import Files, Run, Survey
    from bidsapp.core import Task

#: Task → (folder of its model, card, labels of the participants that it has learnt from; None where
#: labels say nothing, for the model is not of these derivatives).
Models = Mapping[str, tuple[Path, Mapping[str, Any], set[str] | None]]


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
    """A model on disk, and whether it learnt from one of this participant's label, if that says."""

    folder: Path
    sha256: str
    seen_by_label: bool | None = None


@dataclass(slots=True)
class RunPlan:
    """One run, what it can give, what is promised and what is missing."""

    run: Run
    survey: Survey[Any] | None = None  #: None where the run has a problem
    problem: Problem | None = None
    warnings: list[str] = field(default_factory=list)
    unavailable: dict[str, str] = field(default_factory=dict)  #: task → why it has no reference
    inapplicable: dict[str, str] = field(default_factory=dict)  #: task → why it has no prediction
    promised: list[Path] = field(default_factory=list)
    todo: Todo = field(default_factory=Todo)

    def missing(self, root: Path) -> list[Path]:
        """Promised files, below ``root``, that are not there."""
        return [path for path in self.promised if not (root / path).is_file()]


def plan_run(found: Run, root: Path, wanted: Sequence[str], models: Models) -> RunPlan:
    """See what one run can give under ``root``, and what of it is not there yet.

    Of the ``wanted`` tasks those of the run's modality count.
    """
    files: Files[Any, Any] = registry.files(found.modality)
    made = RunPlan(found, problem=found.problem)
    made.promised = promised_files(files.prepared, found)
    if made.problem is None:
        try:
            made.survey = files.survey(found)
        except Problem as problem:
            made.problem = problem
    if made.survey is not None:
        made.warnings += made.survey.warnings
        own = [registry.task(name) for name in wanted]
        promise(made, root, [task for task in own if task.modality == found.modality], models)
    return made


def promise(made: RunPlan, root: Path, wanted: Sequence[Task[Any]], models: Models) -> None:
    """Fill in what this run promises, and what of it has to be made."""
    entities = made.run.case.entities
    assert made.survey is not None
    acquisition = made.survey.acquisition
    references: dict[str, str] = {}
    predictions: dict[str, Model] = {}
    redo = not all((root / path).is_file() for path in made.promised)
    for task in wanted:
        if task.label is not None:
            try:
                source = task.label.source(acquisition)
                files = [p for o, s in task.labels(source) for p in files_of(entities, o, s)]
                made.promised += files
                if redo or not all((root / path).is_file() for path in files):
                    references[task.name] = source
            except Unavailable as reason:
                made.unavailable[task.name] = str(reason)
        if task.name in models and _applies(made, task):
            folder, card, learnt_from = models[task.name]
            files = predicted_files(entities, task.name)
            made.promised += files
            strange = outside(card, acquisition.quantities())
            made.warnings += [text for text in strange if text not in made.warnings]
            if redo or not all(written_by(root / p, card['sha256']) for p in files):
                seen = None if learnt_from is None else made.run.case.subject in learnt_from
                predictions[task.name] = Model(folder, card['sha256'], seen)
    made.todo = Todo(redo, references, predictions)


def _applies(made: RunPlan, task: Task[Any]) -> bool:
    """Whether a prediction makes sense for the run; why not is kept."""
    assert made.survey is not None
    try:
        task.applies(made.survey.acquisition)
    except Unavailable as reason:
        made.inapplicable[task.name] = str(reason)
        return False
    return True


def predictions_of(made: RunPlan, models: Models) -> list[str]:
    """Tasks of which this run promises a prediction."""
    if made.survey is None:
        return []
    own = [name for name in models if registry.task(name).modality == made.run.modality]
    return [name for name in own if name not in made.inapplicable]


def predicted_files(entities: Mapping[str, str], task: str) -> list[Path]:
    """Every file, below the root, that applying a model of ``task`` to one run leaves."""
    outputs = registry.task(task).writes
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
