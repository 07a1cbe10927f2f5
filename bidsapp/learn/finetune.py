"""Fine-tuning a task on a lab's runs: what it learns from, how it is scored, what its card says."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bidsapp import registry
from bidsapp.learn import cards
from bidsapp.learn.inputs import Use, kept_inputs, open_input
from bidsapp.learn.seen import FLAG
from bidsapp.learn.splits import SPLITS
from bidsapp.problems import BadData, MissingInput

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from bidsapp.core import Case, Checkpoint, Plan, Sample, Task
    from bidsapp.learn.inputs import Input
    from bidsapp.learn.tables import Row
    from bidsapp.networks.base import Network

log = logging.getLogger('transfermri')


@dataclass(frozen=True, slots=True)
class Material:
    """What one task is fitted to and judged by."""

    groups: Mapping[str, Sequence[Case]]  #: by split
    samples: Mapping[str, Sequence[Sample]]  #: a run each, by split
    learnt_from: Sequence[Sample]


def gather(
    task: Task[Any],
    cases: Sequence[Case],
    split: Mapping[str, str],
    options: Mapping[str, Any],
    folder: Path,
) -> Material:
    """The labelled runs of a task by split; ``options`` are the modality's own.

    A run whose input cannot be made is named and left out. Raises MissingInput for an empty split.
    """
    used = [case for case in cases if case.subject in split]
    log.info('%s: reading %d runs', task.name, len(used))
    uses = {s: [Use(training, options) for training in (False, s == 'train')] for s in SPLITS}
    groups = {s: [c for c in used if split[c.subject] == s] for s in SPLITS}
    groups = {s: usable(task, groups[s], uses[s], folder) for s in SPLITS}
    if empty := [s for s in SPLITS if not groups[s]]:
        raise MissingInput(
            f'{task.name}: no labelled participant is in {", ".join(empty)} of the split. Label '
            'more participants, give --split-file, or another --random-seed.'
        )
    samples = {s: samples_of(task, groups[s], uses[s][0], folder) for s in SPLITS}
    learnt_from = samples_of(task, groups['train'], uses['train'][1], folder)
    return Material(groups, samples, learnt_from)


def usable(task: Task[Any], cases: Sequence[Case], uses: Sequence[Use], folder: Path) -> list[Case]:
    """The runs whose inputs for all ``uses`` can be made; the others are named."""
    good = []
    for case in cases:
        try:
            for use in uses:
                inputs_of(task, case, use, folder)
        except BadData as problem:
            log.warning('%s: %s is left out: %s', task.name, name_of(task, case), problem)
        else:
            good.append(case)
    return good


def samples_of(task: Task[Any], cases: Sequence[Case], use: Use, folder: Path) -> list[Sample]:
    """Labelled samples of runs, inputs kept in ``folder``; a run enters once for each part."""
    return [
        task.load(replace(open_input(place), name=name_of(task, case)), case)
        for case in cases
        for place in inputs_of(task, case, use, folder)
    ]


def inputs_of(task: Task[Any], case: Case, use: Use, folder: Path) -> list[Path]:
    """Where the inputs of a run are kept."""
    kinds = tuple(registry.files(task.modality).prepared.names)
    return kept_inputs(registry.input(task.modality), case, kinds, use, folder)


def name_of(task: Task[Any], case: Case) -> str:
    """What the files of a run begin with."""
    main = registry.files(task.modality).prepared.main
    return case.files[main].name.partition('.')[0].partition('_desc-')[0]


def scored(
    task: Task[Any], arm: str, network: Network, material: Material, device: str
) -> list[Row]:
    """Rows of the metrics table for one network on every split."""
    from bidsapp.learn.evaluate import evaluate

    turned = registry.input(task.modality).turned
    return [
        (f'sub-{case.subject}', split, arm, metric, label, value)
        for split in SPLITS
        for case, figures in zip(
            material.groups[split],
            evaluate(task.head, network, material.samples[split], device, turned),
            strict=True,
        )
        for metric, label, value in figures
    ]


def make_card(
    task: Task[Any],
    plan: Plan,
    start: Checkpoint | None,
    material: Material,
    best_step: int,
    rows: Sequence[Row],
    split: Mapping[str, str],
    freeze: str,
    seen: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything about a fine-tuned model but its weights; version and hash are added on saving.

    Test participants whom its start had seen have no part in its test figure; ``seen`` are the
    fields that `learn.seen` gives, and what else names its data.
    """
    from bidsapp.learn.evaluate import mean

    own: Input = registry.input(task.modality)
    shape = own.network
    title = registry.title(task.modality)
    arm, score = rows[0][2], task.head.score
    known = {row[0] for row in rows if row[2:4] == (arm, FLAG) and row[5] == 1}
    new = [r[5] for r in rows if r[1:4] == ('test', arm, score) and r[0] not in known]
    test = mean(new)
    return cards.make_card(
        {'task': task.name},
        task.name,
        f'{shape.words} for {task.name} from {title[:1].lower()}{title[1:]}.',
        {
            'name': shape.name,
            'channels_in': material.learnt_from[0].image.shape[0],
            'options': dict(shape.options if start is None else start.card['network']['options']),
        },
        task.head,
        {
            **own.about(material.learnt_from),
            'started_from': None if start is None else
                {k: start.card[k] for k in ('name', 'version', 'sha256')},
            **seen,
        },
        cards.described(plan, freeze),
        best_step,
        {
            'participants': {s: sum(v == s for v in split.values()) for s in SPLITS},
            'test': {score: test if math.isfinite(test) else None},
            'test_participants_seen_before': len(known),
        },
    )  # fmt: skip
