"""argparse that raises a Problem instead of exiting with 2."""

from __future__ import annotations

import argparse
from typing import NoReturn

from bidsapp.core import WrongUsage


class Parser(argparse.ArgumentParser):
    """Wrong usage is exit code 64."""

    def error(self, message: str) -> NoReturn:
        """Raises WrongUsage."""
        raise WrongUsage(f'{message}. {self.prog} --help lists the options.')
