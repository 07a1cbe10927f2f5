"""How a network uses the machine it runs on."""

from __future__ import annotations

import ctypes
import logging
import os
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def use_processors(count: int, device: str) -> None:
    """``count`` threads for one network; deterministic kernels on CUDA; a silent Fabric.

    NumPy's too: a product of matrices differs in its last bits with the number of its threads, and
    a library that was loaded before has taken that from an environment which nobody asked for.
    """
    import torch
    from threadpoolctl import threadpool_limits

    threadpool_limits(count, user_api='blas')
    torch.set_num_threads(count)
    keep_freed_memory()
    if device.startswith('cuda'):
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
    logging.getLogger('lightning_fabric').setLevel(logging.WARNING)


@contextmanager
def nondeterminism(device: str) -> Iterator[list[str]]:
    """Deterministic kernels inside, and the operations for which CUDA has none.

    They fill the list on the way out, by torch's own word; on a processor it stays empty.
    """
    import torch

    found: list[str] = []
    if not device.startswith('cuda'):
        yield found
        return
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    before = torch.are_deterministic_algorithms_enabled()
    with warnings.catch_warnings(record=True) as said:
        warnings.filterwarnings('always', '.*does not have a deterministic implementation')
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield found
        finally:
            torch.use_deterministic_algorithms(before)
    for warning in said:
        text, _, rest = str(warning.message).partition(' does not have a deterministic')
        if not rest:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
        elif text not in found:
            found.append(text)


def keep_freed_memory() -> None:
    """Have glibc hand freed memory out again instead of returning it to the system at once.

    Every step of a fit asks for the same hundreds of megabytes, which the system would clear anew
    each time: a seventh of the step. Another C library is left as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
