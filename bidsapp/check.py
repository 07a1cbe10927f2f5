"""Two small commands: examine the scans of a dataset; say whether CUDA works."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bidsapp import registry
from bidsapp.arguments import Parser
from bidsapp.bids.dataset import check_dataset, select, subjects_of
from bidsapp.bids.search import find_runs, nothing_selected, unused
from bidsapp.core import Finding
from bidsapp.problems import BadData, MissingInput, Problem, problem_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bidsapp.bids.runs import Run

#: Of what looks like a participant or a run.
NOT_USED = Finding(
    'warning', 'NOT_USED', 'it is not used, for its name or its place is not as BIDS has it'
)


def main(argv: Sequence[str] | None = None) -> int:
    """``transfermri-check``: exit 0, or 65 with errors."""
    parser = Parser(prog='transfermri-check', description='Examine the scans of a BIDS dataset.')
    parser.add_argument('bids_dir', type=Path, metavar='BIDS_DIR')
    parser.add_argument('--json', action='store_true', help='a list of findings')
    try:
        args = parser.parse_args(argv)
        root = args.bids_dir.absolute()
        check_dataset(root)
        chosen = select(root, subjects_of(root))
        parts = {m: registry.files(m) for m in registry.modalities()}
        runs = find_runs(chosen, list(parts), {})
        if not runs:
            raise nothing_selected(chosen, {f.words: f.looked_for for f in parts.values()})
    except Problem as problem:
        print(f'transfermri-check: {problem}', file=sys.stderr)
        return problem.exit_code
    found = [
        (run.path.relative_to(root).as_posix(), noticed)
        for run in runs
        for noticed in examined(run)
    ]
    found += [(path.relative_to(root).as_posix(), NOT_USED) for path in unused(chosen, parts)]
    errors = sum(f.severity == 'error' for _, f in found)
    warnings = sum(f.severity == 'warning' for _, f in found)
    if args.json:
        rows = [
            {'file': file, 'severity': f.severity, 'code': f.code, 'message': f.message}
            for file, f in found if f.severity != 'note'
        ]  # fmt: skip
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        for file, f in found:
            print(f'{f.severity:7} {file}: {f.message}')
        print(f'{len(runs)} runs examined: {errors} errors, {warnings} warnings')
    return BadData.exit_code if errors else 0


def examined(run: Run) -> list[Finding]:
    """What is noticed of one run, whatever state its files are in."""
    if run.unserved is not None:
        return [Finding('warning', 'NOT_SERVED', str(run.unserved))]
    try:
        return registry.files(run.modality).check(run) if run.problem is None else refused(run)
    except Exception as error:
        return refused(replace(run, problem=problem_of(error, run.name)))


def refused(run: Run) -> list[Finding]:
    """The problem of a run that could not even be looked at."""
    code = 'MISSING_FILE' if isinstance(run.problem, MissingInput) else 'UNREADABLE'
    return [Finding('error', code, str(run.problem))]


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
