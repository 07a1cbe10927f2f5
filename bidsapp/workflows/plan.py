"""What a run promises, from its header and table alone, and what of it is to be made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidsapp import registry
from bidsapp.bids.names import build, of_recording
from bidsapp.bids.outputs import files_of, output_path
from bidsapp.bids.prepared import promised_files
from bidsapp.bids.provenance import INSTEAD, changed, recorded
from bidsapp.bids.statistics import table_path
from bidsapp.learn.ranges import outside
from bidsapp.problems import Problem, Unavailable, problem_of
from bidsapp.workflows.basis import (
    PREPROCESSING,
    label_basis,
    label_of,
    prediction_basis,
    prediction_of,
    preparation_basis,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bidsapp.bids.provenance import Basis
    from bidsapp.bids.runs import Files, Run, Survey
    from bidsapp.core import Case, Task
    from bidsapp.workflows.basis import Asked

#: Task → (folder of its model, card, labels of the participants that it has learnt from; None where
#: labels say nothing, for the model is not of these derivatives).
Models = Mapping[str, tuple[Path, Mapping[str, Any], set[str] | None]]


@dataclass(frozen=True, slots=True)
class Todo:
    """What is to be made for one run; its parts have the names of `basis`."""

    preproc: bool = False
    references: Mapping[str, str] = field(default_factory=dict)  #: task → source of its label
    predictions: Mapping[str, Model] = field(default_factory=dict)  #: task → model to apply
    bases: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  #: part → what is recorded
    again: Mapping[str, str] = field(default_factory=dict)  #: part that is there → why it is not
    #: left as it is
    remove: tuple[Path, ...] = ()  #: files, below the root, that must be gone before that, first
    #: those without which the others count for nothing

    def __bool__(self) -> bool:
        return bool(self.preproc or self.references or self.predictions)

    @property
    def parts(self) -> list[str]:
        """What is to be made, for people."""
        labels = [f'{label_of(task)} ({source})' for task, source in self.references.items()]
        return [PREPROCESSING] * self.preproc + labels + [*map(prediction_of, self.predictions)]


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

    def settle(self, task: str, source: str | None, reason: str) -> str:
        """Promise no label that the scan turned out not to give, but that of ``source`` if any.

        Returns what is to be said of it.
        """
        case = self.run.case
        gone = labelled_files(case, {task: self.todo.references[task]})
        self.promised = [path for path in self.promised if path not in gone]
        if source is None:
            self.unavailable[task] = reason
            return f'no {label_of(task)}: {reason}'
        self.promised += labelled_files(case, {task: source})
        return f'{label_of(task)} of {source}, not of {self.todo.references[task]}: {reason}'


@dataclass(slots=True)
class Review:
    """Looks at each part of a run: whether it is there, and what would be made now."""

    run: Run
    asked: Asked
    preproc: bool = False
    bases: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    again: dict[str, str] = field(default_factory=dict)
    remove: list[Path] = field(default_factory=list)

    def due(self, part: str, named: set[str], files: Sequence[Path], basis: Basis) -> bool:
        """Whether a part, known to ``--redo`` by the names ``named``, is to be made.

        Its ``files`` are below the root; those that are there and stale are noted for removal.
        """
        root = self.asked.root
        there = [path for path in files if (root / path).is_file()]
        why = None
        if self.preproc:
            why = 'the preprocessed run is made again'
        elif self.asked.redo & named:
            why = 'asked for'
        elif len(there) == len(files):
            reasons = (changed(root / path, basis) for path in sidecars(files))
            why = next((reason for reason in reasons if reason), None)
            if why is None:
                return False
        if why is not None and there:
            self.again[part] = why
        self.bases[part] = basis.plain()
        self.remove += sorted(there, key=lambda path: not path.name.endswith('.nii.gz'))
        return True


def plan_run(found: Run, asked: Asked, models: Models) -> RunPlan:
    """See what one run can give, and what of it is not there yet, or stale.

    Of the tasks that are asked for those of the run's modality count.
    """
    files: Files[Any, Any] = registry.files(found.modality)
    made = RunPlan(found, problem=found.problem)
    made.promised = promised_files(files.prepared, found)
    if made.problem is not None:
        return made
    try:
        made.survey = files.survey(found)
        made.warnings += made.survey.warnings
        own = [registry.task(name) for name in asked.tasks]
        promise(made, asked, [task for task in own if task.modality == found.modality], models)
    except Exception as error:  # whatever it is, the other runs go on
        made.survey, made.problem = None, problem_of(error, found.name)
    return made


def promise(made: RunPlan, asked: Asked, wanted: Sequence[Task[Any]], models: Models) -> None:
    """Fill in what this run promises, and what of it has to be made."""
    assert made.survey is not None
    run, acquisition, review = made.run, made.survey.acquisition, Review(made.run, asked)
    entities = run.case.entities
    references: dict[str, str] = {}
    predictions: dict[str, Model] = {}
    basis = preparation_basis(run, asked)
    review.preproc = review.due(PREPROCESSING, {PREPROCESSING}, list(made.promised), basis)
    for task in wanted:
        if task.label is not None:
            try:
                source = task.label.source(acquisition)
                made_as = made_instead(entities, task, source, asked.root)
                files = labelled_files(run.case, {task.name: made_as})
                basis = label_basis(run, task.name, asked)
                if review.due(label_of(task.name), {'labels', task.name}, files, basis):
                    references[task.name] = source
                    files = labelled_files(run.case, {task.name: source})
                made.promised += files
            except Unavailable as reason:
                made.unavailable[task.name] = str(reason)
                if not review.preproc:
                    made.warnings += left_over(made, task, asked.root)
        if task.name in models and _applies(made, task, models[task.name][1]):
            folder, card, learnt_from = models[task.name]
            files = predicted_tables(run.case, task) + predicted_files(entities, task.name)
            made.promised += files
            strange = outside(card, acquisition.quantities())
            made.warnings += [text for text in strange if text not in made.warnings]
            basis = prediction_basis(run, task.name, card['sha256'], asked)
            if review.due(prediction_of(task.name), {'predictions', task.name}, files, basis):
                seen = None if learnt_from is None else run.case.subject in learnt_from
                predictions[task.name] = Model(folder, card['sha256'], seen)
    remove = review.remove + (everything_of(run) if review.preproc else [])
    made.todo = Todo(
        review.preproc, references, predictions, review.bases, review.again,
        tuple(path for path in dict.fromkeys(remove) if (asked.root / path).is_file()),
    )  # fmt: skip


def left_over(made: RunPlan, task: Task[Any], root: Path) -> list[str]:
    """That a label stands there which this call would not make."""
    found = [output_path(made.run.case.entities, o, s, '.nii.gz')
             for o in task.learnt for s in o.references]  # fmt: skip
    reason = made.unavailable[task.name]
    return [
        f'{path.name} is of an earlier call and is left as it is; this one would not make it: '
        f'{reason}' for path in found
        if (root / path).is_file() and path not in made.promised
    ]  # fmt: skip


def everything_of(run: Run) -> list[Path]:
    """Every file, below the root, that may have been made of a prepared run or rests on it."""
    prepared, entities = registry.files(run.modality).prepared, run.case.entities
    outputs = list(prepared.sometimes)
    for task in registry.tasks_of(run.modality):
        outputs += [(o, source) for o in task.writes for source in (*o.references, 'unet')]
        outputs += task.label.beside if task.label else []
    rest = [
        path for output, source in outputs for path in reversed(files_of(entities, output, source))
    ]
    for task in registry.tasks_of(run.modality):
        rest += tables_of(run.case, task) + predicted_tables(run.case, task)
    return [*rest, *promised_files(prepared, run)]


def sidecars(files: Sequence[Path]) -> list[Path]:
    """The JSONs among ``files`` that stand beside an image: those hold a record."""
    images = {path.name.removesuffix('.nii.gz') for path in files if path.name.endswith('.nii.gz')}
    return [path for path in files if path.suffix == '.json' and path.stem in images]


def _applies(made: RunPlan, task: Task[Any], card: Mapping[str, Any]) -> bool:
    """Whether a prediction makes sense for the run; why not is kept.

    A model that was made for the like of it (`group --input-like`) says what labels have taught it,
    also where the run itself does not determine it: that is said.
    """
    assert made.survey is not None
    acquisition = made.survey.acquisition
    try:
        task.applies(acquisition)
    except Unavailable as reason:
        if card.get('input_like') and not outside(card, acquisition.quantities()):
            made.warnings.append(
                f'{task.name}: this run alone does not determine it ({reason}); predicted is what '
                'the labels have taught of people like those that the model has learnt from'
            )
            return True
        made.inapplicable[task.name] = str(reason)
        return False
    return True


def predictions_of(made: RunPlan, models: Models) -> list[str]:
    """Tasks of which this run promises a prediction."""
    if made.survey is None:
        return []
    own = [name for name in models if registry.task(name).modality == made.run.modality]
    return [name for name in own if name not in made.inapplicable]


def made_instead(entities: Mapping[str, str], task: Task[Any], source: str, root: Path) -> str:
    """The source whose label stands there because the scan could not give that of ``source``."""
    for output in task.learnt[:1]:
        for other in output.references:
            written = recorded(root / output_path(entities, output, other, '.json')) or {}
            if other != source and written.get(INSTEAD) == source:
                return other
    return source


def labelled_files(case: Case, sources: Mapping[str, str]) -> list[Path]:
    """Every file, below the root, of the labels of one run, whose ``sources`` are told by task."""
    found: list[Path] = []
    for name, source in sources.items():
        task = registry.task(name)
        found += tables_of(case, task)
        found += [p for o, s in task.labels(source) for p in files_of(case.entities, o, s)]
    return found


def tables_of(case: Case, task: Task[Any]) -> list[Path]:
    """Files, below the root, that come with the label of a run and are none of its outputs."""
    own = of_recording(case.entities)
    tables = task.label.tables(case) if task.label else ()
    return [build({**own, **named}) for named in tables]


def predicted_files(entities: Mapping[str, str], task: str) -> list[Path]:
    """Every file, below the root, that applying a model of ``task`` to one run leaves."""
    outputs = registry.task(task).writes
    return [path for output in outputs for path in files_of(entities, output, 'unet')]


def predicted_tables(case: Case, task: Task[Any]) -> list[Path]:
    """Files, below the root, that come with the prediction of a run and are none of its outputs."""
    named = [table.output for table in task.tables(case)]
    return [table_path(case.entities, output, end) for output in named for end in ('.json', '.tsv')]
