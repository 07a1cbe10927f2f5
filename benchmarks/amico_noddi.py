"""AMICO's NODDI as a program, for an environment that has dmri-amico (not free; not ours).

    python amico_noddi.py FOLDER THREADS

Prints wall and CPU seconds of the fit alone as JSON; the kernels are made before the clock starts.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path

import amico


def main(folder: Path, threads: int) -> None:
    """NDI, ODI and FWF of ``folder/dwi.nii``, in ``folder/amico``."""
    amico.setup()
    amico.util.fsl2scheme(
        str(folder / 'dwi.bval'), str(folder / 'dwi.bvec'), str(folder / 'amico.scheme')
    )
    evaluation = amico.Evaluation(str(folder.parent), folder.name, str(folder / 'amico'))
    evaluation.load_data('dwi.nii', 'amico.scheme', mask_filename='mask.nii', b0_thr=10)
    evaluation.set_model('NODDI')
    evaluation.set_config('nthreads', threads)
    evaluation.generate_kernels(regenerate=True)
    evaluation.load_kernels()
    wall, cpu = time.perf_counter(), time.process_time()
    evaluation.fit()
    cost = {'wall': time.perf_counter() - wall, 'cpu': time.process_time() - cpu, 'scale': 1.0}
    evaluation.save_results()
    print(json.dumps(cost), file=sys.__stdout__)


if __name__ == '__main__':
    os.chdir(sys.argv[1])  # the kernels are kept where it runs
    with contextlib.redirect_stdout(sys.stderr):
        main(Path(sys.argv[1]), int(sys.argv[2]))
