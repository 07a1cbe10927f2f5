"""``--freeze published``: fine-tuning as a paper has it, where a modality knows of one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bidsapp import registry
from bidsapp.problems import WrongUsage

if TYPE_CHECKING:
    from bidsapp.core import Checkpoint, Plan, Recipe, Task


def recipe_of(task: Task[Any]) -> Recipe:
    """What was published on networks of the task's modality. Raises WrongUsage for nothing."""
    found: Recipe | None = registry.input(task.modality).published
    if found is None:
        known = (m for m in registry.modalities() if registry.input(m).published)
        raise WrongUsage(
            f'--freeze published means nothing to {task.name}: there is a recipe for '
            f'{", ".join(registry.title(m) for m in known)} alone. Name tasks of it by --tasks, or '
            'choose another --freeze.'
        )
    return found


def as_published(
    plan: Plan, recipe: Recipe, start: Checkpoint | None, scans: int, steps: int | None
) -> Plan:
    """``plan`` with the rates of ``recipe`` and its length for so many ``scans`` to learn from.

    ``steps``, where a user gives them, are in the place of the length. Rates rise and fall as in
    every fit here. Raises WrongUsage without a start, or where its network has not the parts.
    """
    from bidsapp.learn.predict import network_of

    if start is None:
        raise WrongUsage(
            f'--freeze published ({recipe.words}) goes on from weights that know something, and '
            'there are none to start from. Give --init PATH, a model that `pretrain` made.'
        )
    parts = network_of(start, list(start.heads)).parts()
    if missing := recipe.rates.keys() - parts.keys():
        raise WrongUsage(
            f'--freeze published ({recipe.words}) has rates for parts of a network that '
            f'{start.card["name"]} has not: {", ".join(sorted(missing))}; it has '
            f'{", ".join(parts)}. Choose another --init or --freeze.'
        )
    return replace(
        plan,
        steps=steps or recipe.steps(scans, plan.batch),
        lr=recipe.lr,
        rates={**recipe.rates, **{name: 0.0 for name in recipe.fixed if name in parts}},
        rest=recipe.rest,
    )
