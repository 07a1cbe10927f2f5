"""What can be learnt. One file a task; this folder is the registry.

A new task is a new file here with a module-level ``task``. Listing the names loads no torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

import bidsapp.modalities.dwi.tasks as dwi
from bidsapp.problems import WrongUsage

if TYPE_CHECKING:
    from bidsapp.core import Task


def names() -> list[str]:
    """Every task's name, in alphabetical order."""
    return sorted(module.name for module in pkgutil.iter_modules(dwi.__path__))


def get(name: str) -> Task:
    """The task of that name. Raises WrongUsage if there is none."""
    if name not in names():
        raise WrongUsage(f'There is no task {name!r}. Choose from: {", ".join(names())}.')
    task: Task = importlib.import_module(f'{dwi.__name__}.{name}').task
    return task
