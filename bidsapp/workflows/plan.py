"""What a run promises, from its header and table alone, and what of it is still to be made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidsapp import tasks
from bidsapp.bids.fieldmaps import choose_distortion
from bidsapp.bids.samples import open_image, read_numbers
from bidsapp.bids.write import files_of
from bidsapp.core import Acquisition, BadData, Problem, Unavailable
from bidsapp.interfaces.outputs import promised_by_preprocessing
from bidsapp.learn.ranges import Facts, facts_of, outside
from bidsapp.physics import gradients
from bidsapp.physics.denoising import MIN_VOLUMES
from bidsapp.physics.ringing import may_unring
from bidsapp.workflows.run import EMPTY, Model, Size, Todo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bidsapp.bids.query import Run
    from bidsapp.core import Task

#: Task → (folder of its model, card, labels of the participants that it has learnt from).
Models = Mapping[str, tuple[Path, Mapping[str, Any], set[str]]]


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


def look(made: RunPlan) -> None:
    """Read header and table: cheap, and enough to know what can be promised. Raises Problem."""
    files = made.run.case.files
    image = open_image(files['dwi'])
    volumes = image.shape[3] if len(image.shape) == 4 else 1
    bvecs, bvals, findings = gradients.examine(
        read_numbers(files['bvec']), read_numbers(files['bval']), volumes
    )
    if errors := [f.message for f in findings if f.severity == 'error']:
        raise BadData(f'{files["dwi"].name}: ' + '; '.join(errors) + '.')
    made.warnings += [f.message for f in findings]
    if made.run.preprocessed is None:
        made.notes += corrections(made.run, volumes)
    table = gradients.from_fsl(bvecs, bvals, image.affine)
    made.acquisition = gradients.acquisition(table, 't1w' in files)
    made.size = Size(prod(image.shape[:3]), volumes)
    made.facts = facts_of(table, gradients.voxel_sizes(image.affine))


def corrections(run: Run, volumes: int) -> list[str]:
    """What will be corrected, and what not and why, before anything is computed."""
    lines = []
    if volumes < MIN_VOLUMES:
        lines.append(f'denoising: none, {volumes} volumes; at least {MIN_VOLUMES} are needed')
    if (reason := may_unring(run.metadata)) is not None:
        lines.append(f'Gibbs unringing: none, {reason}')
    if not {'PhaseEncodingDirection', 'PhaseEncodingAxis'} & run.metadata.keys():
        lines.append(
            'eddy currents: the metadata do not say the phase-encoding direction; corrected '
            'without assuming one'
        )
    return [*lines, choose_distortion(run).words]


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
        task = tasks.get(name)
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
    outputs = tasks.get(task).writes
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
