"""Modalities, their parts and their tasks, found by folder; nothing loads before it is asked for.

A modality is a folder of ``bidsapp/modalities`` that has ``tasks``, a task a file of these. What a
modality brings is found under fixed names on fixed floors:

=============  ====================  ==============================================
``bids``       ``files``             which runs there are, what is known and promised
``workflows``  ``preparation``       the graph that prepares one
``learn``      ``input``             what a network sees of it
``networks``   ``networks``          networks by the name that stands in cards
``simulate``   ``pretraining``       what its networks are pretrained from
``reports``    ``page``              what is drawn of it
=============  ====================  ==============================================

and, in the folder's own ``__init__``, in words: ``OBJECTIVES`` and ``OPTIONS``.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from bidsapp.problems import WrongUsage

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

    from bidsapp.core import Objective, Option, Task

_HOME = 'bidsapp.modalities'
#: The modality of cards and folders that do not say theirs: for long there was no other.
FIRST = 'dwi'


def _names_in(package: str) -> list[str]:
    path = importlib.import_module(package).__path__
    return sorted(m.name for m in pkgutil.iter_modules(path) if not m.name.startswith('_'))


@cache
def modalities() -> tuple[str, ...]:
    """Every modality's name, in alphabetical order; one that is being built has no tasks yet."""
    return tuple(m for m in _names_in(_HOME) if 'tasks' in _names_in(f'{_HOME}.{m}'))


@cache
def tasks() -> Mapping[str, str]:
    """Every task → its modality, by the tasks' names. Raises ValueError for a name twice."""
    found = [(name, m) for m in modalities() for name in _names_in(f'{_HOME}.{m}.tasks')]
    if len(dict(found)) < len(found):
        raise ValueError(f'two tasks share a name: {", ".join(name for name, _ in sorted(found))}')
    return dict(sorted(found))


@cache
def task(name: str) -> Task[Any]:
    """The task of that name. Raises WrongUsage if there is none."""
    if name not in tasks():
        raise WrongUsage(f'There is no task {name!r}. Choose from: {", ".join(tasks())}.')
    modality = tasks()[name]
    own: Task[Any] = importlib.import_module(f'{_HOME}.{modality}.tasks.{name}').task
    return replace(own, name=name, modality=modality, head=replace(own.head, name=name))


def tasks_of(modality: str) -> list[Task[Any]]:
    """Every task of a modality, in alphabetical order."""
    return [task(name) for name, own in tasks().items() if own == modality]


def _face(modality: str) -> ModuleType:
    return importlib.import_module(f'{_HOME}.{modality}')


def title(modality: str) -> str:
    """What a modality is called, without a full stop: 'Diffusion MRI'."""
    return (_face(modality).__doc__ or modality).partition('\n')[0].rstrip('.')


def objectives(modality: str) -> Mapping[str, Objective]:
    """What can be pretrained, by the name on the command line."""
    found: Mapping[str, Objective] = getattr(_face(modality), 'OBJECTIVES', {})
    return found


def options(modality: str) -> tuple[Option, ...]:
    """Command-line options that mean something to this modality only."""
    found: tuple[Option, ...] = getattr(_face(modality), 'OPTIONS', ())
    return found


def _part(modality: str, floor: str, name: str) -> Any:
    return getattr(importlib.import_module(f'{_HOME}.{modality}.{floor}'), name)


def files(modality: str) -> Any:
    """Its `bids.runs.Files`."""
    return _part(modality, 'bids', 'files')


def preparation(modality: str) -> Any:
    """Its `workflows.preparation.Preparation`."""
    return _part(modality, 'workflows', 'preparation')


def input(modality: str) -> Any:  # the part is called so everywhere
    """Its `learn.inputs.Input`."""
    return _part(modality, 'learn', 'input')


def networks(modality: str) -> Any:
    """Its own networks by name, where it has any: `networks.registry.Architecture`."""
    if 'networks' not in _names_in(f'{_HOME}.{modality}'):
        return {}
    return _part(modality, 'networks', 'networks')


def pretraining(modality: str) -> Any:
    """Its `simulate.material.Pretraining`."""
    return _part(modality, 'simulate', 'pretraining')


def page(modality: str) -> Any:
    """Its `reports.page.Page`; the usual one where it has no ``reports``."""
    if 'reports' not in _names_in(f'{_HOME}.{modality}'):
        return importlib.import_module('bidsapp.reports.page').Page()
    return _part(modality, 'reports', 'page')
