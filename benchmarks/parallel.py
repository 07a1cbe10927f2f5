"""Two participants at once on two processors, and the memory of one.

    python benchmarks/parallel.py [time] [memory] [--work DIR]

time: the `participant` level, every step with one thread, on two simulated people, one after the
other (--nprocs 1) and at once (--nprocs 2). Printed are both times and their ratio, which is to be
0.6 at most, with the load of the machine before each: what else runs there distorts a ratio.

memory: the most memory that all processes of `participant` hold together (proportional set size)
on one person's scan of 2 mm and 65 volumes with a T1w image, which is to be 4 GiB at most.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from preprocessing import Cost, run
from scans import write_dataset as write_scan_dataset
from scans import write_scans

from bidsapp.modalities.dwi.simulate.dataset import DwiDesign
from bidsapp.simulated import Design, write_dataset

RATIO = 0.6
GIB = 4.0
SHAPE, VOXEL, DIRECTIONS = (96, 96, 60), 2.0, 64


def participant(bids: Path, out: Path, *options: str) -> Cost:
    """What one call of the participant level took, on the processor."""
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, '-m', 'bidsapp', str(bids), str(out), 'participant']
    return run([*command, '--device', 'cpu', '--omp-nthreads', '1', *options], out.parent, 1)


def compare_times(work: Path) -> bool:
    """One after the other, then at once; whether the ratio is as promised."""
    bids = work / 'two' / 'bids'
    if not (bids / 'participants.tsv').is_file():
        scan = DwiDesign(voxel_size=3.5, fine_voxel_size=1.75, directions=32, snr=25)
        design = Design(
            participants=2, seed=3, t1w_voxel_size=2.0, template_voxel_size=2.0, scans={'dwi': scan}
        )
        write_dataset(bids, design, say=lambda line: None)
    walls = []
    for processors in ('1', '2'):
        load = os.getloadavg()[0]
        with tempfile.TemporaryDirectory(dir=work) as folder:
            cost = participant(bids, Path(folder) / 'out', '--nprocs', processors)
        walls.append(cost.wall)
        print(
            f'--nprocs {processors}: {cost.wall:.0f} s, {cost.cpu:.0f} s of processor time, '
            f'{cost.memory / 1024:.2f} GiB; load before: {load:.1f}',
            flush=True,
        )
    ratio = walls[1] / walls[0]
    print(f'ratio {ratio:.2f} (at most {RATIO}) on {os.cpu_count()} processors')
    return ratio <= RATIO


def measure_memory(work: Path) -> bool:
    """One person's scan; whether the peak is as promised."""
    scans, bids = work / 'scans', work / 'one' / 'bids'
    if not (scans / 't1w.nii').is_file():
        write_scans(scans, SHAPE, VOXEL, DIRECTIONS)
    if not bids.is_dir():
        write_scan_dataset(bids, scans, t1w=True)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        cost = participant(bids, Path(folder) / 'out', '--nprocs', '1')
    shape = ' x '.join(map(str, SHAPE))
    print(
        f'{shape} x {DIRECTIONS + 1}, {VOXEL:g} mm: at most {cost.memory / 1024:.2f} GiB together '
        f'(promised {GIB:g}), {cost.wall:.0f} s',
        flush=True,
    )
    return cost.memory / 1024 <= GIB


def main(wanted: list[str], work: Path) -> int:
    """Measure what is wanted; 1 if a promise is broken."""
    work.mkdir(parents=True, exist_ok=True)
    kept = [compare_times(work) if what == 'time' else measure_memory(work) for what in wanted]
    return 0 if all(kept) else 1


if __name__ == '__main__':
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('what', nargs='*', metavar='time|memory', help='default: both')
    parser.add_argument('--work', type=Path, metavar='DIR', help='kept, its scans used again')
    options = parser.parse_args()
    chosen = options.what or ['time', 'memory']
    if unknown := set(chosen) - {'time', 'memory'}:
        parser.error(f'{", ".join(unknown)}: expected time or memory')
    if options.work:
        sys.exit(main(chosen, options.work.absolute()))
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(main(chosen, Path(temporary)))
