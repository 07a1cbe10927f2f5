"""What this process may use of the machine: the least of all that limits it, and who says so.

A container or a batch job sees the whole host and may use a part of it. The part is written in
its cgroup, in those around it, and in what SLURM tells its jobs.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: Of the limit, the share that steps may take; the rest is for the process that starts them.
SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Limit:
    """GiB of memory, or processors, and what sets the limit."""

    amount: float
    source: str


def memory_limit(environment: Mapping[str, str], total: float, root: Path = Path('/')) -> Limit:
    """The memory that all processes of this call may hold together, in GiB.

    Parameters
    ----------
    environment : variables, among them SLURM's
    total : memory of the machine, GiB
    root : where /proc and /sys are
    """
    limits = [Limit(total, 'the memory of the machine')]
    for folder in own_cgroups('memory', root):
        for name in ('memory.max', 'memory.limit_in_bytes'):
            if words := _words(folder / name):
                limits += _limits(words[0], 2**30, f'{name} of the cgroup')
    limits += _limits(environment.get('SLURM_MEM_PER_NODE'), 2**10, 'SLURM_MEM_PER_NODE')
    for each in _limits(environment.get('SLURM_MEM_PER_CPU'), 2**10, 'SLURM_MEM_PER_CPU'):
        processors = environment.get('SLURM_CPUS_ON_NODE', environment.get('SLURM_CPUS_PER_TASK'))
        for count in _limits(processors, 1, ''):
            limits.append(Limit(each.amount * count.amount, each.source))
    return min(limits, key=lambda limit: limit.amount)


def processor_limit(environment: Mapping[str, str], allowed: int, root: Path = Path('/')) -> Limit:
    """How many processors this call may keep busy, whole ones and at least one.

    ``allowed`` is how many it may run on at all; a cgroup may grant only a part of their time.
    """
    limits = [Limit(allowed, 'the processors that this process may run on')]
    for folder in own_cgroups('cpu', root):
        quota = _words(folder / 'cpu.max')
        if not quota:
            quota = _words(folder / 'cpu.cfs_quota_us') + _words(folder / 'cpu.cfs_period_us')
        if len(quota) == 2:
            limits += _limits(quota[0], float(quota[1]), 'the processor quota of the cgroup')
    limits += _limits(environment.get('SLURM_CPUS_PER_TASK'), 1, 'SLURM_CPUS_PER_TASK')
    least = min(limits, key=lambda limit: limit.amount)
    return Limit(max(1, int(least.amount)), least.source)


def memory_for_steps(asked: float | None, limit: Limit) -> Limit:
    """What steps may take together, GiB: a share of the limit, or what was asked for if less."""
    share = Limit(SHARE * limit.amount, f'{SHARE:.0%} of {limit.amount:.1f} GB, {limit.source}')
    return share if asked is None or asked > share.amount else Limit(asked, '--mem')


def here() -> tuple[Limit, Limit]:
    """(memory, processors) that this process may use."""
    import psutil

    memory = memory_limit(os.environ, psutil.virtual_memory().total / 2**30)
    affinity = getattr(os, 'sched_getaffinity', None)  # Linux alone has it
    allowed = len(affinity(0)) if affinity else os.cpu_count() or 1
    return memory, processor_limit(os.environ, allowed)


def own_cgroups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of the cgroup that this process is in, and of those around it, where they are seen.

    A mount shows its hierarchy from some cgroup on, which in a container without a namespace of
    its own is that of the container; the process's path then begins outside of the mount.
    """
    paths: dict[str, PurePosixPath] = {}
    for line in _lines(root / 'proc/self/cgroup'):
        _, names, path = line.split(':', 2)
        paths |= dict.fromkeys(names.split(','), PurePosixPath(path))
    for line in _lines(root / 'proc/self/mountinfo'):
        mount, _, system = line.partition(' - ')
        shown, point = mount.split()[3:5]
        kind, _, options = system.split(maxsplit=2)
        # Version 2 is one hierarchy for all controllers, and has no name in /proc/self/cgroup.
        name = {'cgroup2': '', 'cgroup': controller}.get(kind)
        if name not in paths or (kind == 'cgroup' and controller not in options.split(',')):
            continue
        inside = paths[name].is_relative_to(shown) and '..' not in paths[name].parts
        below = paths[name].relative_to(shown) if inside else PurePosixPath()
        top = root / point.lstrip('/')
        yield from (top / part for part in (below, *below.parents))


def _limits(text: str | None, unit: float, source: str) -> list[Limit]:
    """One limit if ``text`` is a number above zero; 'max', -1 and 0 mean that there is none."""
    return [Limit(int(text) / unit, source)] if text and text.isdigit() and int(text) else []


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding='utf-8').splitlines() if path.is_file() else []


def _words(path: Path) -> list[str]:
    return ' '.join(_lines(path)).split()
