"""Two small commands: examine gradient tables and metadata; say whether CUDA works."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bidsapp.arguments import Parser
from bidsapp.bids.query import Run, check_dataset, find_runs, subjects_of
from bidsapp.bids.samples import load_volume, not_numbers, open_image, read_numbers
from bidsapp.core import BadData, MissingInput, Problem
from bidsapp.physics.gradients import Finding, examine, from_fsl
from bidsapp.physics.table_test import check_table, finding

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np


def examine_run(run: Run) -> list[Finding]:
    """What is wrong with one run's files, table and metadata, and with table and data together."""
    if run.problem is not None:
        code = 'MISSING_FILE' if isinstance(run.problem, MissingInput) else 'UNREADABLE'
        return [Finding('error', code, str(run.problem))]
    files = run.case.files
    try:
        shape = open_image(files['dwi']).shape
        volumes = shape[3] if len(shape) == 4 else 1
        bvecs, bvals = read_numbers(files['bvec']), read_numbers(files['bval'])
    except (BadData, MissingInput) as problem:
        return [Finding('error', 'UNREADABLE', str(problem))]
    bvecs, bvals, findings = examine(bvecs, bvals, volumes)
    if not any(f.severity == 'error' for f in findings):
        findings += examine_voxels(files['dwi'], bvecs, bvals)
    return [*findings, *examine_metadata(run)]


def examine_voxels(path: Path, bvecs: np.ndarray, bvals: np.ndarray) -> list[Finding]:
    """Whether the image can be read to its end and its table, free of errors, fits it."""
    try:
        data = load_volume(path)
    except BadData as problem:
        return [Finding('error', 'UNREADABLE', str(problem))]
    if bad := not_numbers(data):
        message = f'{bad} voxels are not numbers (NaN or infinite); convert the image again'
        return [Finding('error', 'IMAGE_NAN', message)]
    affine = open_image(path).affine
    result = check_table(data, from_fsl(bvecs, bvals, affine), affine)
    if not result.decided:
        return [Finding('warning', 'TABLE_NOT_TESTED', result.statement)]
    wrong = finding(result)
    return [] if wrong is None else [wrong]


def examine_metadata(run: Run) -> list[Finding]:
    """Metadata that the corrections would use."""
    consequences = {
        'PhaseEncodingDirection': 'neither a reversed pair nor a field map can be used'
        if 'PhaseEncodingAxis' in run.metadata
        else 'no way to correct susceptibility distortion can be used, and eddy currents are '
        'corrected without assuming a direction',
        'TotalReadoutTime': 'a field map could not be turned into a displacement',
    }
    return [
        Finding('warning', 'MISSING_METADATA', f'{name} is not in the metadata: {consequence}')
        for name, consequence in consequences.items()
        if name not in run.metadata
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """``transfermri-check``: exit 0, or 65 with errors."""
    parser = Parser(prog='transfermri-check', description='Examine the dMRI of a BIDS dataset.')
    parser.add_argument('bids_dir', type=Path, metavar='BIDS_DIR')
    parser.add_argument('--json', action='store_true', help='a list of findings')
    try:
        args = parser.parse_args(argv)
        root = args.bids_dir.absolute()
        check_dataset(root)
        runs = find_runs(root, subjects_of(root))
    except Problem as problem:
        print(f'transfermri-check: {problem}', file=sys.stderr)
        return problem.exit_code
    found = [
        (run.case.files['dwi'].relative_to(root).as_posix(), noticed)
        for run in runs
        for noticed in examine_run(run)
    ]
    errors = sum(f.severity == 'error' for _, f in found)
    if args.json:
        rows = [
            {'file': file, 'severity': f.severity, 'code': f.code, 'message': f.message}
            for file, f in found
        ]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        for file, f in found:
            print(f'{f.severity:7} {file}: {f.message}')
        print(f'{len(runs)} runs examined: {errors} errors, {len(found) - errors} warnings')
    return BadData.exit_code if errors else 0


def gpu_main(argv: Sequence[str] | None = None) -> int:
    """``transfermri-gpu``: exit 0 if a kernel ran on a CUDA device, else 1."""
    try:
        Parser(prog='transfermri-gpu', description='Say whether CUDA works.').parse_args(argv)
    except Problem as problem:
        print(f'transfermri-gpu: {problem}', file=sys.stderr)
        return problem.exit_code
    import torch

    print(f'torch {torch.__version__}, built for CUDA {torch.version.cuda or "no version"}')
    if not torch.cuda.is_available():
        print(
            'No CUDA device is visible. Docker needs --gpus all, Apptainer --nv, and the host an '
            'NVIDIA driver; a CPU build of torch sees none in any case.'
        )
        return 1
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        ones = torch.ones(64, 64, device=f'cuda:{index}')
        works = bool(((ones @ ones) == 64).all())
        name = torch.cuda.get_device_name(index)
        memory = f'{free / 2**30:.1f} of {total / 2**30:.1f} GiB free'
        print(f'cuda:{index} {name}: {memory}; a kernel {"ran" if works else "gave wrong numbers"}')
    return 0
