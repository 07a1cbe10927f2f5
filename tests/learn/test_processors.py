"""How a network uses the machine."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import warnings

import pytest
import torch

from bidsapp.learn.processors import nondeterminism

CODE = """
import resource, torch
from bidsapp.learn.processors import keep_freed_memory

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(16 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

apart = pages()
keep_freed_memory()
while pages() > 1000:  # the heap grows until it has a hole of that size
    pass
print(apart, pages())
"""


@pytest.mark.skipif(
    getattr(ctypes.CDLL(None), 'mallopt', None) is None, reason='the C library is not glibc'
)
def test_memory_that_was_freed_is_used_again_without_being_asked_for_anew():
    """64 MiB ten times: the system hands out 4 KiB pages each time, or only once."""
    said = subprocess.run([sys.executable, '-c', CODE], capture_output=True, text=True, check=True)
    apart, kept = map(int, said.stdout.split())
    assert kept < 0.1 * apart


def test_what_cuda_cannot_repeat_is_said_and_other_warnings_are_still_heard():
    """As torch says it where deterministic kernels are asked for and there is none."""

    def compute():
        with nondeterminism('cuda:0') as found:
            assert torch.are_deterministic_algorithms_enabled()
            for text in ('cumsum_cuda does not have a deterministic implementation', 'elsewhere'):
                warnings.warn(text, stacklevel=1)
                warnings.warn(text, stacklevel=1)
        return found

    with pytest.warns(UserWarning, match='elsewhere'):
        assert compute() == ['cumsum_cuda']
    assert not torch.are_deterministic_algorithms_enabled()
    with nondeterminism('cpu') as found:
        assert not torch.are_deterministic_algorithms_enabled()
    assert found == []
