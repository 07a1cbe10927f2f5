"""Fine-tuning a task on a lab's runs: what it learns from, how it is scored, what its card says."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bidsapp import registry
from bidsapp.learn import cards
from bidsapp.learn.inputs import Use, kept_inputs, open_input, with_network_of
from bidsapp.learn.ranges import spanned
from bidsapp.learn.seen import FLAG
from bidsapp.learn.splits import SPLITS
from bidsapp.problems import BadData, MissingInput, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from bidsapp.core import Case, Checkpoint, Plan, Sample, Task
    from bidsapp.learn.inputs import Input, Part
    from bidsapp.learn.tables import Row
    from bidsapp.networks.base import Network

log = logging.getLogger('transfermri')

#: What does without a network, among the models of a table.
CLASSICAL = 'classical'
#: What figures are of, in a card.
WHOLE, PARTS = 'whole runs', 'parts of each run'


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """One labelled input: the files, or the part of them, that it shows, and what it looks like."""

    case: Case
    sample: Sample


@dataclass(frozen=True, slots=True)
class Material:
    """What one task is fitted to and judged by."""

    groups: Mapping[str, Sequence[Case]]  #: by split
    judged_by: Mapping[str, Sequence[Sequence[Seen]]]  #: by split: of each run its inputs
    learnt_from: Sequence[Sample]

    def seen(self, split: str) -> list[Seen]:
        """Every input of a split that is judged by."""
        return [one for own in self.judged_by[split] for one in own]

    def written(self, task: Task[Any]) -> Callable[[Tensor, Sample], Tensor]:
        """(output, one of its samples) → what is written of it, in the same channels."""
        from bidsapp.learn.evaluate import as_written

        cases = {id(one.sample): one.case for split in SPLITS for one in self.seen(split)}
        return lambda output, sample: as_written(
            task, {task.name: output}, sample, cases[id(sample)]
        )

    @property
    def judged(self) -> str:
        """What figures are of."""
        several = any(len(own) > 1 for split in self.judged_by.values() for own in split)
        return PARTS if several else WHOLE


def gather(
    task: Task[Any],
    cases: Sequence[Case],
    split: Mapping[str, str],
    options: Mapping[str, Any],
    folder: Path,
    instead: Mapping[str, Case] | None = None,
) -> Material:
    """The labelled runs of a task by split; ``options`` are the modality's own.

    Learnt from are parts of a run, and it is judged by them too where its label was derived from
    the run itself: an input that holds the label's own noise would judge how well that is repeated.
    ``instead``: what is seen in the place of runs, by their names; a run without one is left out.
    A run whose input cannot be made is named and left out. Raises MissingInput for an empty split.
    """
    used = [case for case in cases if case.subject in split]
    if instead is not None:
        used = [case for case in used if name_of(task, case) in instead]
    log.info('%s: reading %d runs', task.name, len(used))
    of_run = task.label is None or task.label.of_run
    judge, learn = Use(of_run, options), Use(True, options)
    groups = {s: [c for c in used if split[c.subject] == s] for s in SPLITS}
    shown = instead or {}
    for s in SPLITS:
        uses = [judge, learn] if s == 'train' else [judge]
        groups[s] = usable(task, groups[s], uses, folder, shown)
    if empty := [s for s in SPLITS if not groups[s]]:
        raise MissingInput(
            f'{task.name}: no labelled participant is in {", ".join(empty)} of the split. Label '
            'more participants, give --split-file, or another --random-seed.'
        )
    seen = {s: [seen_of(task, c, judge, folder, shown) for c in groups[s]] for s in SPLITS}
    learnt_from = [
        one.sample for c in groups['train'] for one in seen_of(task, c, learn, folder, shown)
    ]
    return Material(groups, seen, learnt_from)


def usable(
    task: Task[Any],
    cases: Sequence[Case],
    uses: Sequence[Use],
    folder: Path,
    instead: Mapping[str, Case],
) -> list[Case]:
    """The runs whose inputs for all ``uses`` can be made; the others are named."""
    good = []
    for case in cases:
        name = name_of(task, case)
        try:
            for use in uses:
                inputs_of(task, instead.get(name, case), use, folder)
        except BadData as problem:
            log.warning('%s: %s is left out: %s', task.name, name, problem)
        else:
            good.append(case)
    return good


def seen_of(
    task: Task[Any], case: Case, use: Use, folder: Path, instead: Mapping[str, Case]
) -> list[Seen]:
    """Labelled inputs of a run, or of what stands for it, kept in ``folder``; one a part."""
    name = name_of(task, case)
    own = instead.get(name, case)
    return [
        Seen(
            replace(own, part=part),
            task.load(replace(open_input(place), name=name), own),
        )
        for place, part in inputs_of(task, own, use, folder)
    ]


def inputs_of(task: Task[Any], case: Case, use: Use, folder: Path) -> list[tuple[Path, Part]]:
    """Where the inputs of a run are kept, and of which part of it each is."""
    kinds, own = tuple(registry.files(task.modality).prepared.names), registry.input(task.modality)
    places = kept_inputs(own, case, kinds, use, folder)
    return list(zip(places, own.parts(case, use), strict=True))


def name_of(task: Task[Any], case: Case) -> str:
    """What the files of a run begin with."""
    main = registry.files(task.modality).prepared.main
    return case.files[main].name.partition('.')[0].partition('_desc-')[0]


def scored(
    task: Task[Any], arm: str, network: Network, material: Material, device: str
) -> list[Row]:
    """Rows of the metrics table for one network on every split, of what is written of its output.

    ``network`` has the task's head and may have those that the task uses.
    """
    from bidsapp.learn.evaluate import judged

    turned = registry.input(task.modality).turned
    return [
        row
        for split in SPLITS
        for case, inputs in zip(material.groups[split], material.judged_by[split], strict=True)
        for row in rows_of(
            case, split, arm,
            [judged(task, network, one.case, one.sample, device, turned) for one in inputs],
        )
    ]  # fmt: skip


def scored_classical(task: Task[Any], material: Material) -> list[Row]:
    """The same of what does without a network, on the very inputs; not of those it may learn from.

    An input that does not carry it has no rows, and the first reason is said.
    """
    if task.classical is None:
        return []
    rows: list[Row] = []
    try:
        estimate = task.classical.fitted([(s.case, s.sample) for s in material.seen('train')])
    except (Unavailable, BadData) as reason:
        log.info('%s, %s: none: %s', task.name, CLASSICAL, reason)
        return rows
    for split in SPLITS[1:]:
        for case, inputs in zip(material.groups[split], material.judged_by[split], strict=True):
            try:
                found = [
                    task.head.metrics(estimate(one.case, one.sample), one.sample) for one in inputs
                ]
            except (Unavailable, BadData) as reason:
                log.info(
                    '%s, %s: none of %s: %s', task.name, CLASSICAL, name_of(task, case), reason
                )
                continue
            rows += rows_of(case, split, CLASSICAL, found)
    return rows


def rows_of(
    case: Case, split: str, arm: str, inputs: Sequence[Sequence[tuple[str, str, float]]]
) -> list[Row]:
    """One row for each figure of a run: the mean over its inputs of those that are numbers."""
    from bidsapp.learn.evaluate import mean

    values: dict[tuple[str, str], list[float]] = {}
    for figures in inputs:
        for metric, label, value in figures:
            values.setdefault((metric, label), []).append(value)
    return [
        (f'sub-{case.subject}', split, arm, metric, label, mean(found))
        for (metric, label), found in values.items()
    ]


def ranges_of(task: Task[Any], material: Material) -> dict[str, Any]:
    """For a card: which runs a model was made for, by the inputs that it has met."""
    acquisition = registry.files(task.modality).acquisition
    met = [one for split in SPLITS for one in material.seen(split)]
    ranges = spanned(acquisition(one.case).quantities(one.sample) for one in met)
    return {'tested_ranges': ranges}


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
    shape = with_network_of(own, start).network
    title = registry.title(task.modality)
    arm, score = rows[0][2], task.head.score
    known = {row[0] for row in rows if row[2:4] == (arm, FLAG) and row[5] == 1}
    new = [r[5] for r in rows if r[1:4] == ('test', arm, score) and r[0] not in known]
    test = mean(new)
    return cards.make_card(
        {'task': task.name},
        task.name,
        f'{shape.words} for {task.name} from {title[:1].lower()}{title[1:]}.',
        # A start that was made for an earlier input stays what it is.
        {
            'name': shape.name,
            'channels_in': material.learnt_from[0].image.shape[0],
            'options': dict(shape.options),
        } if start is None else dict(start.card['network']),
        task.head,
        {
            **own.about(material.learnt_from),
            'judged_by': material.judged,
            **({'classical': task.classical.words} if task.classical else {}),
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
