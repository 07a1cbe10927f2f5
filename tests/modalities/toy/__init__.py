"""Toys."""

from bidsapp.core import Objective

OBJECTIVES = {'supervised': Objective('tell bright from dark', dataset=False, tasks=True)}
