"""Two calls at once into one output folder, each with its own numbering of processes.

As containers have it: the process 1 of one host is another than that of the next, and both write
what is everybody's (descriptions, the citation, logs) and what is of their own participants.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.robustness.calls import WORK, alone, command, differing, refused, results, write_heads
from tests.robustness.lines import Line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Rounds of calls that end at once with 65, and of real work.
CHEAP, REAL = 50, 3
#: Times that two processes write everybody's files, without pause.
WRITES = 300
WRITE = (
    'import sys; from pathlib import Path; from bidsapp.participant import write_citation; '
    'from bidsapp.bids.derivatives import write_dataset; '
    'bids, out, number = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])\n'
    'for _ in range(number): write_dataset(out, bids, {}); write_citation(out)'
)
APART = ('unshare', '--pid', '--fork', '--mount-proc')
LABELS = ('01', '02')
#: What every call writes.
ROOT = ('dataset_description.json', 'README.md', 'logs/CITATION.md')


def lines(scratch: Path) -> Iterator[Line]:
    """One a kind of round."""
    if why := refused(*APART, 'true'):
        yield Line(f'skipped, for two numberings of processes are not permitted here: {why}')
        return
    bids = write_heads(scratch / 'bids', 2)
    yield Line(f'{WRITES} times what every call writes', at_the_same(bids, scratch / 'written'))
    yield Line(f'{REAL} rounds of two calls at work', at_work(bids, scratch))
    for table in bids.glob('sub-*/dwi/*.bvec'):
        table.write_text('')
    troubles = [at_once(bids, scratch / f'refused-{n}', 65) for n in range(CHEAP)]
    wrong = [trouble for trouble in troubles if trouble]
    summary = f'{len(wrong)} of {CHEAP} rounds: {wrong[0]}' if wrong else ''
    yield Line(f'{CHEAP} rounds of two calls that are refused', summary)


def at_work(bids: Path, scratch: Path) -> str:
    """What is lost in rounds of real work, or not as in the first of them."""
    wrong, found = [], []
    for number in range(REAL):
        out = scratch / f'work-{number}'
        wrong.append(at_once(bids, out, 0))
        found.append(results(out))
        images = {n.split('/')[0] for n in found[-1] if n.endswith('desc-preproc_dwi.nii.gz')}
        wrong.append('' if len(images) == len(LABELS) else f'images of {sorted(images)} only')
        wrong.append(differing(found[0], found[-1]))
    return next(filter(None, wrong), '')


def at_the_same(bids: Path, out: Path) -> str:
    """What goes wrong where two processes write the same files again and again."""
    argv = [*APART, sys.executable, '-c', WRITE, str(bids), str(out), str(WRITES)]
    both = [subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=alone()) for _ in LABELS]
    said = [process.communicate()[1].strip() for process in both]
    failed = [words.splitlines()[-1] for words in said if words]
    lost = [f'{name} is lost or not whole' for name in ROOT if not whole(out / name)]
    return '; '.join([*failed, *lost])


def at_once(bids: Path, out: Path, expected: int) -> str:
    """What is not as promised of two calls on a participant each."""
    calls = [
        subprocess.Popen(
            [*APART, *command(bids, out, *WORK, '--participant-label', label)], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=alone(),
        )
        for label in LABELS
    ]  # fmt: skip
    said = [process.communicate()[0] for process in calls]
    codes = [process.returncode for process in calls]
    if codes != [expected] * 2:
        return f'they end with {codes}, not {expected}: {said[codes[0] == expected].strip()[-300:]}'
    return left(out)


def left(out: Path) -> str:
    """What of an output folder is lost, half or too much."""
    wanted = (*ROOT, *(f'sub-{label}.html' for label in LABELS))
    lost = [f'{name} is lost or not whole' for name in wanted if not whole(out / name)]
    logs = list((out / 'logs').glob('participant-*.log'))
    if len(logs) != len(LABELS):
        lost.append(f'{len(logs)} logs of {len(LABELS)} calls')
    lost += [f'{log.name} has not its last line' for log in logs if 'log: ' not in log.read_text()]
    hidden = [p for p in out.rglob('.*') if '.work' not in p.parts and p.name != '.bidsignore']
    return '; '.join([*lost, *(f'{path.name} is left' for path in hidden)])


def whole(path: Path) -> bool:
    """Whether a file is there and ends as it should."""
    if not path.is_file():
        return False
    text = path.read_text()
    if path.suffix == '.json':
        return bool(json.loads(text))
    return text.rstrip().endswith('</html>') if path.suffix == '.html' else text.endswith('\n')
