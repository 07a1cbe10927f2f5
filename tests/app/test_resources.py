"""How much memory and how many processors: trees of files like those of real containers."""

from __future__ import annotations

import pytest

from bidsapp.cli import parse
from bidsapp.resources import (
    Limit,
    here,
    memory_for_steps,
    memory_limit,
    own_cgroups,
    processor_limit,
)

GIB = 2**30
#: What version 1 says where there is no limit.
ABSURD = 9223372036854771712

#: A host with systemd, in a service; a Docker container with a namespace of its own, and one
#: without, whose path begins outside of what is mounted; both versions at once.
V2 = ('0::/system.slice/job.scope', '30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw')
V2_CONTAINER = ('0::/', '30 23 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup rw')
V1 = (
    '9:memory:/slurm/uid_7/job_5\n4:cpu,cpuacct:/slurm/uid_7/job_5\n1:name=systemd:/x',
    '31 25 0:27 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n'
    '32 25 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct',
)
V1_CONTAINER = (
    '9:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc',
    '31 25 0:27 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n'
    '32 25 0:28 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct',
)
HYBRID = (V1[0] + '\n0::/', V1[1] + '\n41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw')


@pytest.fixture
def machine(tmp_path):
    """A root folder: what /proc says of cgroups, and the content of files under /sys/fs/cgroup."""

    def make(where, **files):
        own = tmp_path / 'proc' / 'self'
        own.mkdir(parents=True)
        (own / 'cgroup').write_text(where[0] + '\n')
        (own / 'mountinfo').write_text('23 1 8:1 / / rw - ext4 /dev/sda1 rw\n' + where[1] + '\n')
        for name, content in files.items():
            path = tmp_path / 'sys' / 'fs' / 'cgroup' / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f'{content}\n')
        return tmp_path

    return make


MEMORY = [
    (V2, {'system.slice/job.scope/memory.max': 3 * GIB}, 3),
    (V2, {'system.slice/job.scope/memory.max': 'max', 'system.slice/memory.max': 5 * GIB}, 5),
    (V2, {'system.slice/job.scope/memory.max': 6 * GIB, 'system.slice/memory.max': 5 * GIB}, 5),
    (V2, {'system.slice/job.scope/memory.max': 'max', 'other.slice/memory.max': GIB}, 64),
    (V2_CONTAINER, {'memory.max': 2 * GIB}, 2),
    (V1, {'memory/slurm/uid_7/job_5/memory.limit_in_bytes': 4 * GIB,
          'memory/memory.limit_in_bytes': ABSURD}, 4),
    (V1, {'memory/slurm/uid_7/job_5/memory.limit_in_bytes': ABSURD,
          'memory/slurm/memory.limit_in_bytes': 7 * GIB}, 7),
    (V1, {'memory/slurm/uid_7/job_5/memory.limit_in_bytes': ABSURD}, 64),
    (V1_CONTAINER, {'memory/memory.limit_in_bytes': GIB}, 1),
    (HYBRID, {'memory/slurm/uid_7/job_5/memory.limit_in_bytes': 4 * GIB,
              'unified/memory.max': 'max'}, 4),
]  # fmt: skip


@pytest.mark.parametrize(('where', 'files', 'expected'), MEMORY)
def test_the_least_memory_of_the_own_cgroup_and_those_around_it(machine, where, files, expected):
    assert memory_limit({}, 64, machine(where, **files)).amount == expected


SLURM = [
    ({}, 64),
    ({'SLURM_MEM_PER_NODE': '8192'}, 8),
    ({'SLURM_MEM_PER_NODE': '0'}, 64),  # --mem=0 asks for all of the node
    ({'SLURM_MEM_PER_NODE': '999999999'}, 64),
    ({'SLURM_MEM_PER_CPU': '2048', 'SLURM_CPUS_ON_NODE': '3'}, 6),
    ({'SLURM_MEM_PER_CPU': '2048', 'SLURM_CPUS_PER_TASK': '2'}, 4),
    ({'SLURM_MEM_PER_CPU': '2048'}, 64),
]


@pytest.mark.parametrize(('environment', 'expected'), SLURM)
def test_what_slurm_tells_its_jobs_counts(tmp_path, environment, expected):
    assert memory_limit(environment, 64, tmp_path).amount == expected


def test_a_limit_says_what_set_it(machine):
    root = machine(V2_CONTAINER, **{'memory.max': 2 * GIB})
    assert 'cgroup' in memory_limit({}, 64, root).source
    assert memory_limit({'SLURM_MEM_PER_NODE': '1024'}, 64, root).source == 'SLURM_MEM_PER_NODE'
    assert 'machine' in memory_limit({}, 1, root).source


PROCESSORS = [
    (V2, {}, {}, 16),
    (V2, {'system.slice/cpu.max': '250000 100000'}, {}, 2),
    (V2, {'system.slice/job.scope/cpu.max': 'max 100000'}, {}, 16),
    (V2_CONTAINER, {'cpu.max': '50000 100000'}, {}, 1),
    (V1, {'cpu,cpuacct/slurm/uid_7/job_5/cpu.cfs_quota_us': 300000,
          'cpu,cpuacct/slurm/uid_7/job_5/cpu.cfs_period_us': 100000}, {}, 3),
    (V1, {'cpu,cpuacct/slurm/uid_7/job_5/cpu.cfs_quota_us': -1,
          'cpu,cpuacct/slurm/uid_7/job_5/cpu.cfs_period_us': 100000}, {}, 16),
    (V2_CONTAINER, {'cpu.max': '800000 100000'}, {'SLURM_CPUS_PER_TASK': '4'}, 4),
]  # fmt: skip


@pytest.mark.parametrize(('where', 'files', 'environment', 'expected'), PROCESSORS)
def test_the_least_number_of_processors(machine, where, files, environment, expected):
    assert processor_limit(environment, 16, machine(where, **files)).amount == expected


def test_a_machine_without_cgroups_has_none(tmp_path):
    assert not list(own_cgroups('memory', tmp_path))
    assert processor_limit({}, 5, tmp_path) == Limit(
        5, 'the processors that this process may run on'
    )


def test_this_machine_has_some_memory_and_a_processor():
    memory, processors = here()
    assert memory.amount > 0.1
    assert processors.amount >= 1


def test_steps_get_a_share_of_the_limit_or_what_was_asked_for():
    limit = Limit(10, 'here')
    assert memory_for_steps(None, limit).amount == 9
    assert 'here' in memory_for_steps(None, limit).source
    assert memory_for_steps(4, limit) == Limit(4, '--mem')
    assert memory_for_steps(40, limit) == memory_for_steps(None, limit)


def test_the_command_line_asks_for_them(monkeypatch):
    monkeypatch.setenv('SLURM_MEM_PER_NODE', '512')
    monkeypatch.setenv('SLURM_CPUS_PER_TASK', '1')
    settings = parse(['a', 'b', 'participant'])
    assert settings.nprocs == 1
    assert settings.memory.amount == pytest.approx(0.45)
    assert parse(['a', 'b', 'participant', '--mem', '300M']).memory == Limit(0.3, '--mem')
    assert parse(['a', 'b', 'participant', '--nprocs', '7']).nprocs == 7
