"""How fast, and how good, is each step of preprocessing beside its peer?

    python benchmarks/preprocessing.py [--shape 100 100 60] [--directions 64] [--threads 2]
        [--steps denoise unring …] [--work DIR] [--amico-python PYTHON] [--quick]

A simulated head is scanned: one shell of b = 1000 and one b = 0, SNR 25, with motion and eddy
currents, which nothing here corrects before `participant`; for NODDI and SMT a small scan of two
shells of a head that lies still. Each step of ours runs beside its peer's program in turn, on the
same files, the same mask (none while denoising and unringing, as in the workflow) and the same
number of threads. What ours wrote is what the next step of both reads, so a step needs those
before it, in the same call or an earlier one with the same DIR. MRtrix3 3.0.3 is looked for on the
PATH; DIPY is given a piece of the data where marked ×, and its time multiplied; AMICO is not free
and runs only where PYTHON has it. A peer that is missing is named and left out.

Ours read and wrote uncompressed NIfTI within the time given, as the peers do; the start of Python
and its imports are counted for whole programs only: MRtrix3's (dwi2response is Python too) and
`participant`. CPU seconds are user + system: on a machine that others use they are the figure to
trust. MiB is the highest sampled sum of proportional set sizes of a process and its children, for
ours with Python and PyTorch, for MRtrix3 with the files that it maps.

Below the steps: the chain of them against MRtrix3's, and `participant` (the whole BIDS App, with
motion, without and with a T1w image of 1 mm) against that same chain.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from agreement import AGREEMENT

HERE = Path(__file__).resolve().parent
CHAIN = ('denoise', 'unring', 'response', 'fod', 'peaks')
STEPS = (*CHAIN, 'tensor', 'noddi', 'smt', 'participant')
#: Which scan a step is given; 'scan' where none is named.
SCANS = {'noddi': 'shells', 'smt': 'shells'}
#: Threads that wait for work sleep; spinning ones take the processor from those that work.
SLEEPING = {'OMP_WAIT_POLICY': 'passive'}
FSL, MASK = '-fslgrad dwi.bvec dwi.bval', '-mask mask.nii'
MRTRIX = {
    'denoise': 'dwidenoise dwi.nii mrtrix_denoise.nii -noise mrtrix_noise.nii',
    'unring': 'mrdegibbs ours_denoise.nii mrtrix_unring.nii -axes 0,1',
    'response': f'dwi2response tournier ours_unring.nii mrtrix_response.txt {MASK} {FSL}',
    'fod': f'dwi2fod csd ours_unring.nii mrtrix_response.txt mrtrix_fod.nii {MASK} {FSL}',
    'peaks': f'sh2peaks ours_fod.nii mrtrix_peaks.nii -num 3 {MASK}',
    'tensor': f'dwi2tensor ours_unring.nii mrtrix_tensor.nii {MASK} {FSL}',
}
DIPY = {
    'denoise': 'DIPY mppca',
    'unring': 'DIPY gibbs_removal',
    'fod': 'DIPY csdeconv',
    'tensor': 'DIPY TensorModel',
}


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run took; ``scale`` is how many times as large the whole is as what was run."""

    wall: float  #: s
    cpu: float  #: s
    memory: float = 0.0  #: MiB
    scale: float = 1.0

    def __add__(self, other: Cost) -> Cost:
        memory = max(self.memory, other.memory)
        return Cost(self.wall + other.wall, self.cpu + other.cpu, memory)


class Failed(Exception):
    """A program ended with an error; the message is the end of what it said."""


class _Watcher(threading.Thread):
    """Samples a process and its children until it ends.

    Children that nobody waits for (workers of a pool) are missing from the system's own account.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.parent = psutil.Process(pid)
        self.memory = 0.0  #: MiB, the most that all held together
        self.seconds: dict[psutil.Process, float] = {}  #: CPU seconds of each that was seen

    def _alive(self) -> bool:
        try:
            return self.parent.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def _tree(self) -> list[psutil.Process]:
        try:
            return [self.parent, *self.parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def run(self) -> None:
        """Until the parent is gone."""
        while self._alive():
            start, total = time.perf_counter(), 0.0
            for process in self._tree():
                with contextlib.suppress(psutil.Error):  # one may end any moment
                    times = process.cpu_times()
                    self.seconds[process] = times.user + times.system
                    total += process.memory_full_info().pss / 2**20
            self.memory = max(self.memory, total)
            # Counting the pages of a large process takes a while: never more than a few per cent.
            time.sleep(max(0.1, 30 * (time.perf_counter() - start)))


def run(command: list[str], folder: Path, threads: int, **variables: str) -> Cost:
    """Run a program in ``folder``; one that prints its own cost as JSON is taken at its word."""
    names = ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS')
    env = os.environ | dict.fromkeys(names, str(threads)) | variables
    log = folder / 'log.txt'
    start = time.perf_counter()
    with log.open('w') as out:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=out)
        watcher = _Watcher(process.pid)
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - start
    watcher.join()
    lines = log.read_text(errors='replace').splitlines() or ['']
    if process.returncode:
        raise Failed(f'{" ".join(command[:4])} ended with {process.returncode}: {lines[-1]}')
    said = next((json.loads(s) for s in reversed(lines) if s.startswith('{"wall"')), None)
    seconds = max(usage.ru_utime + usage.ru_stime, sum(watcher.seconds.values()))
    cost = said or {'wall': wall, 'cpu': seconds}
    return Cost(memory=watcher.memory, **cost)


def show(step: str, peer: str, ours: Cost, theirs: Cost | None, note: str = '') -> None:
    """Print a row of the table."""
    if theirs is None:
        theirs = Cost(float('nan'), float('nan'), float('nan'))
    wall, cpu = theirs.wall * theirs.scale, theirs.cpu * theirs.scale
    if theirs.scale > 1:
        peer += f' ×{theirs.scale:.0f}'
    print(
        f'{step:12} {peer:24} {ours.wall:8.1f} {wall:8.1f} {ours.wall / wall:6.2f} '
        f'{ours.cpu:8.1f} {cpu:8.1f} {ours.cpu / cpu:6.2f} '
        f'{ours.memory:6.0f} {theirs.memory:6.0f}  {note}',
        flush=True,
    )


def peers(step: str, options: argparse.Namespace) -> dict[str, tuple[str, list[str]]]:
    """'mrtrix', 'dipy', 'amico' → (name, command) of those that can be run; says which cannot."""
    found: dict[str, tuple[str, list[str]]] = {}
    if step in MRTRIX:
        words = MRTRIX[step].split()
        if shutil.which(words[0]):
            options_ = ['-nthreads', str(options.threads), '-quiet', '-force']
            found['mrtrix'] = (words[0], words + options_)
        else:
            print(f'{step:12} {words[0]} is not on the PATH')
    if step in DIPY and not options.no_dipy:
        found['dipy'] = (DIPY[step], own(f'{step}_dipy'))
    if step == 'noddi':
        program = [options.amico_python, str(HERE / 'amico_noddi.py'), '.', str(options.threads)]
        if options.amico_python and not subprocess.call([program[0], '-c', 'import amico']):
            found['amico'] = ('AMICO', program)
        else:
            print(f'{step:12} AMICO: no --amico-python that has it')
    return found


def own(step: str) -> list[str]:
    """The command of a step of steps.py."""
    return [sys.executable, str(HERE / 'steps.py'), step, '.']


def compare(step: str, folder: Path, options: argparse.Namespace) -> tuple[Cost, Cost | None]:
    """Run a step and its peers, print their rows; costs of ours and of MRtrix3."""
    ours = run(own(f'{step}_ours'), folder, options.threads, **SLEEPING)
    costs: dict[str, Cost] = {}
    for kind, (name, command) in peers(step, options).items():
        try:
            costs[kind] = run(command, folder, options.threads, **SLEEPING)
        except Failed as problem:
            print(f'{step:12} {name}: {problem}')
            continue
        show(step, name, ours, costs[kind], AGREEMENT.get((step, kind), lambda _: '')(folder))
    if not costs:
        show(step, 'none', ours, None, AGREEMENT.get((step, 'none'), lambda _: '')(folder))
    return ours, costs.get('mrtrix')


def participant(work: Path, chain: Cost | None, options: argparse.Namespace) -> None:
    """The whole of `participant` beside the chain of MRtrix3, without and with a T1w image."""
    from scans import write_dataset

    for t1w in (False, True):
        place = work / ('with_t1w' if t1w else 'without_t1w')
        shutil.rmtree(place, ignore_errors=True)
        write_dataset(place / 'bids', work, t1w)
        threads = str(options.threads)
        command = [sys.executable, '-m', 'bidsapp', 'bids', 'out', 'participant']
        limits = ['--nprocs', threads, '--omp-nthreads', threads]
        name = 'MRtrix3 chain, ' + ('T1w' if t1w else 'no T1w')
        try:
            show('participant', name, run(command + limits, place, options.threads), chain)
        except Failed as problem:
            print(f'participant  {problem}')


def main(options: argparse.Namespace, work: Path) -> None:
    """Simulate, unless ``work`` holds these scans already, and print the table."""
    x, y, z = options.shape
    work = work / f'{x}x{y}x{z}_{options.voxel:g}mm_{options.directions}'
    if not (work / 't1w.nii').is_file():
        from scans import write_scans

        shutil.rmtree(work, ignore_errors=True)
        write_scans(work, options.shape, options.voxel, options.directions)
    print(f'{x} x {y} x {z} x {options.directions + 1}, {options.threads} threads')
    print(
        f'{"step":12} {"peer":24} {"ours s":>8} {"peer s":>8} {"ratio":>6} '
        f'{"ours CPU":>8} {"peer CPU":>8} {"ratio":>6} {"MiB":>6} {"MiB":>6}  agreement'
    )
    costs = {}
    for step in STEPS[:-1]:
        if step in options.steps:
            try:
                costs[step] = compare(step, work / SCANS.get(step, 'scan'), options)
            except Failed as problem:
                print(f'{step:12} {problem}')
    theirs = [costs[s][1] for s in CHAIN if s in costs]
    chain = None
    if len(theirs) == len(CHAIN) and all(theirs):
        chain = sum((c for c in theirs if c), Cost(0, 0))
        show('chain', 'MRtrix3', sum((costs[s][0] for s in CHAIN), Cost(0, 0)), chain)
    if 'participant' in options.steps:
        participant(work, chain, options)


def parse() -> argparse.Namespace:
    """The command line."""
    description, _, epilog = (__doc__ or '').partition('\n')
    parser = argparse.ArgumentParser(
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('--shape', type=int, nargs=3, default=[100, 100, 60], metavar='N')
    add('--voxel', type=float, default=2.0, metavar='MM')
    add('--directions', type=int, default=64, metavar='N')
    add('--threads', type=int, default=2, metavar='N')
    add('--steps', nargs='+', choices=STEPS, default=STEPS, metavar='STEP', help=' '.join(STEPS))
    add('--work', type=Path, metavar='DIR', help='kept, and its scans used again')
    add('--amico-python', metavar='PYTHON', help='of an environment with dmri-amico')
    add('--no-dipy', action='store_true', help='MRtrix3 and AMICO only')
    add('--quick', action='store_true', help='50 x 50 x 30 voxels of 4 mm')
    options = parser.parse_args()
    if options.quick:
        options.shape, options.voxel = [50, 50, 30], 4.0
    return options


if __name__ == '__main__':
    chosen = parse()
    if chosen.work:
        main(chosen, chosen.work.absolute())
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(chosen, Path(folder))
