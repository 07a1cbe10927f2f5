"""What a user can mend, and the exit codes. Nothing here imports anything of ours."""

from __future__ import annotations

import errno
import gzip
import zlib
from typing import ClassVar


class Problem(Exception):
    """Something a user can mend. The message says what was found, what was expected, what to do.

    ``exit_code`` follows the table in the README.
    """

    exit_code: ClassVar[int] = 1


class InvalidDataset(Problem):
    """The dataset as a whole is not valid BIDS."""

    exit_code = 16


class UnknownLevel(Problem):
    """The analysis level does not exist."""

    exit_code = 17


class NothingSelected(Problem):
    """The filters selected nothing."""

    exit_code = 18


class WrongUsage(Problem):
    """Options that do not fit together or do not exist."""

    exit_code = 64


class BadData(Problem):
    """A file is there and its content cannot be used."""

    exit_code = 65


class MissingInput(Problem):
    """A file or a label that is needed is not there."""

    exit_code = 66


class CannotCreate(Problem):
    """An output cannot be created."""

    exit_code = 73


class InputOutputError(Problem):
    """Reading or writing failed, or the disk is full."""

    exit_code = 74


class TryAgain(Problem):
    """Out of memory, or stopped from outside after saving: the same call may succeed."""

    exit_code = 75


#: What a user is told where a disk is full.
MAKE_ROOM = 'Make room, or give -w or OUTPUT_DIR a place on another disk; the same call goes on.'
#: What a user is told then.
OUT_OF_MEMORY = 'Out of memory. Give the job more, or lower --nprocs.'


def ran_out_of_memory(error: Exception) -> bool:
    """Whether an exception says that memory ran out: Python's, torch's (CUDA too), ITK's."""
    if isinstance(error, RuntimeError | OSError):
        said = str(error).lower()
        return any(text in said for text in ('allocate memory', 'out of memory', 'bad_alloc'))
    return isinstance(error, MemoryError)


class Unavailable(Exception):
    """A reference label cannot be derived from this scan; the message says why."""


def is_full(error: BaseException) -> bool:
    """Whether an exception says that a disk is full, as NumPy does without the system's number."""
    short = 'requested and' in str(error) and 'written' in str(error)
    known = getattr(error, 'errno', None)
    return isinstance(error, OSError) and (known in (errno.ENOSPC, errno.EDQUOT) or short)


def problem_of(error: Exception, about: str) -> Problem:
    """What an exception over one run's files means to a user; ``about`` says which files.

    A defect of ours is a plain Problem: it is told like the others and stops none of them.
    """
    if isinstance(error, Problem):
        return error
    if ran_out_of_memory(error):
        return TryAgain(OUT_OF_MEMORY)
    if isinstance(error, FileNotFoundError):
        return MissingInput(f'{about}: {error.filename or error} is not there.')
    if isinstance(error, EOFError | UnicodeError | zlib.error | gzip.BadGzipFile):
        return BadData(f'{about}: its content cannot be read ({error}). Copy or convert it again.')
    if is_full(error):
        return InputOutputError(f'{about}: the disk is full ({error}). {MAKE_ROOM}')
    if isinstance(error, OSError):
        return InputOutputError(
            f'{about}: reading or writing failed: {error}. See who may read it, and the disk.'
        )
    return Problem(
        f'{about}: {type(error).__name__}: {error}. This is a defect of TransferMRI; please report '
        'it.'
    )
