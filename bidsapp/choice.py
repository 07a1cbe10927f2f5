"""What a participant call is about: its runs, tasks, models and device."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bidsapp import registry
from bidsapp.bids.dataset import select, subjects_of
from bidsapp.bids.filters import read_filters
from bidsapp.bids.search import find_runs, say_what_is_not_used, without_run
from bidsapp.learn.cards import bundled_models, load_card, newest_model, training_participants
from bidsapp.problems import MissingInput, NothingSelected

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bidsapp.bids.runs import Run
    from bidsapp.settings import Settings
    from bidsapp.workflows.plan import Models

log = logging.getLogger('transfermri')


def select_runs(settings: Settings) -> list[Run]:
    """The runs that the labels and filters select, and a problem for each label without one.

    Raises NothingSelected if nobody who was asked for is there, or nothing is left of anybody.
    """
    root, asked = settings.bids_dir, settings.participants
    present = subjects_of(root)
    wanted = tuple(s for s in asked or present if s in present)
    if not wanted:
        shown = ', '.join(present[:8]) + (' …' if len(present) > 8 else '')
        raise NothingSelected(f'No participant {", ".join(asked)} in {root}; it has {shown}.')
    filters = read_filters(settings.filter_file)
    chosen = replace(select(root, wanted, settings.sessions, filters), options=settings.options)
    modalities = modalities_of(selected_tasks(settings))
    say_what_is_not_used(chosen, modalities)
    runs = find_runs(chosen, modalities, dict(settings.derivatives))
    without = without_run(chosen, asked, modalities, runs)
    return [*served(runs, modalities_of(list(settings.tasks))), *without]


def served(runs: Sequence[Run], named: Sequence[str]) -> list[Run]:
    """``runs`` without those that cannot be served in principle, which are said in a line each.

    Of a modality of which a task was ``named`` such a run is a problem. Raises NothingSelected
    where no run is left.
    """
    found: list[Run] = []
    for run in runs:
        if run.unserved is None:
            found.append(run)
        elif run.modality in named:
            found.append(replace(run, problem=run.unserved))
        else:
            log.warning('%s promises nothing: %s', run.name, run.unserved)
    if runs and not found:
        raise NothingSelected(
            f'None of the {len(runs)} runs that are selected can be served; {runs[0].name}: '
            f'{runs[0].unserved}'
        )
    return found


def modalities_of(tasks: list[str]) -> list[str]:
    """The modalities of these tasks, in alphabetical order."""
    return sorted({registry.tasks()[name] for name in tasks})


def chosen_device(settings: Settings) -> str:
    """The device to compute on; torch is only asked when CUDA is in question."""
    if settings.device == 'cpu':
        return 'cpu'
    from bidsapp.learn.predict import resolve_device

    device = resolve_device(settings.device)
    if settings.device == 'auto' and device == 'cpu':
        log.warning('No CUDA device is visible: computing on the CPU (--device cpu says so).')
    return device


def selected_tasks(settings: Settings) -> list[str]:
    """The tasks that were named, else all."""
    return list(settings.tasks) or list(registry.tasks())


def models_to_apply(settings: Settings) -> Models:
    """Task → (folder, card, participants it has learnt from). Raises MissingInput.

    A model that was asked for and is not there is missing; with 'auto' a task without a model
    simply gets no prediction.
    """
    wanted = selected_tasks(settings)
    folders: dict[str, Path] = {}
    if settings.model in ('auto', 'bundled'):
        bundled = bundled_models()
        for task in wanted:
            newest = newest_model(settings.models, task) if settings.model == 'auto' else None
            if folder := newest or bundled.get(task):
                folders[task] = folder
        if settings.model == 'bundled' and not folders:
            raise MissingInput(
                'This version bundles no model for ' + ', '.join(wanted) + '. Fine-tune one with '
                '`group`, or give --model a folder with weights.safetensors and card.json.'
            )
    else:
        folder = Path(settings.model).absolute()
        heads = load_card(folder)['heads']
        folders = {task: folder for task in wanted if task in heads}
        if not folders:
            raise MissingInput(
                f'The model in {folder} was made for {", ".join(heads)}; this call is about '
                f'{", ".join(wanted)}.'
            )
    here = {t: f.resolve().is_relative_to(settings.models.resolve()) for t, f in folders.items()}
    return {
        t: (f, dict(load_card(f)), training_participants(f) if here[t] else None)
        for t, f in folders.items()
    }
