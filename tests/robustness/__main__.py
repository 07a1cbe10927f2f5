"""The long checks: ``python -m tests.robustness [name …]`` prints one line a check.

A module of this folder with ``lines(scratch)``, which yields a Line a check, is one of them.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent


def main(wanted: list[str]) -> int:
    """Exit 1 where something was not as promised."""
    bad = 0
    for name in sorted(module.name for module in pkgutil.iter_modules([str(HERE)])):
        if name.startswith(('test_', '_')) or (wanted and name not in wanted):
            continue
        lines = getattr(importlib.import_module(f'tests.robustness.{name}'), 'lines', None)
        if lines is None:
            continue
        with tempfile.TemporaryDirectory(prefix=f'robustness-{name}-') as scratch:
            for line in lines(Path(scratch)):
                bad += bool(line.trouble)
                print(f'{"BAD" if line.trouble else "ok ":3} {name}: {line.name}', flush=True)
                if line.trouble:
                    print(f'      {line.trouble}', flush=True)
    print(f'{bad} not as promised')
    return int(bad > 0)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
