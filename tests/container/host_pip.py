"""Hand this machine's pip configuration to a build: where packages come from, nothing else.

``host_pip.py FOLDER`` reads ``pip config list`` (files and PIP_* variables alike), writes
FOLDER/pip.conf and copies of the certificate and constraint files that it names, and prints the
volumes that the build needs, one ``SOURCE:TARGET:ro`` a line. Paths are rewritten to /run/pip…, so
no path of this machine is in the build. Without pip, or with nothing configured, the file is empty.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

CONFIGURATION = '/run/pip'
#: Where packages come from and how they are reached; what else a user has set is not the build's.
ADDRESSES = ('index-url', 'extra-index-url', 'find-links')
FILES = ('cert', 'client-cert', 'constraint')
PLAIN = ('trusted-host', 'proxy', 'timeout', 'default-timeout', 'retries', 'no-index')


def configured() -> dict[str, str]:
    """Option → value as ``pip install`` sees it: install over global, variables over files."""
    command = ['pip'] if shutil.which('pip') else [sys.executable, '-m', 'pip']
    listed = subprocess.run(
        [*command, 'config', 'list'], capture_output=True, text=True, check=False
    )
    if listed.returncode:  # this machine has no pip
        return {}
    found: dict[str, dict[str, str]] = {'global': {}, 'install': {}, ':env:': {}}
    for line in listed.stdout.splitlines():
        match = re.fullmatch(r'(global|install|:env:)\.([\w-]+)=(.+)', line)
        if match:
            found[match[1]][match[2].lstrip('.')] = str(ast.literal_eval(match[3]))
    return found['global'] | found['install'] | found[':env:']


def local_folder(address: str) -> Path | None:
    """The folder that ``address`` names, a path or a file: URL; None for one on the network."""
    parts = urlsplit(address)
    if parts.scheme not in ('', 'file'):
        return None
    return Path(unquote(parts.path)).expanduser().resolve()


class Handover:
    """Rewritten options, and the volumes that make them true inside the build."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.volumes = [f'{folder}:{CONFIGURATION}:ro', f'{folder}/pip.conf:/etc/pip.conf:ro']

    def file(self, option: str, path: str) -> str:
        name = f'{option}-{Path(path).name}'
        shutil.copyfile(Path(path).expanduser(), self.folder / name)
        return f'{CONFIGURATION}/{name}'

    def address(self, option: str, address: str) -> str:
        source = local_folder(address)
        if source is None:
            return address
        # An index links to its files by relative paths, which may lead out of it (../../files).
        shown = source if option == 'find-links' else source.parent
        target = f'{CONFIGURATION}-{len(self.volumes)}'
        self.volumes.append(f'{shown}:{target}:ro')
        return target if shown == source else f'file://{target}/{source.name}'


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    handover = Handover(folder)
    lines = ['[global]']
    for option, value in configured().items():
        if option in FILES:
            values = [handover.file(option, path) for path in value.split()]
        elif option in ADDRESSES:
            values = [handover.address(option, address) for address in value.split()]
        elif option in PLAIN:
            values = value.split()
        else:
            continue
        lines.append(f'{option} = ' + '\n    '.join(values))
    (folder / 'pip.conf').write_text('\n'.join(lines) + '\n', encoding='utf-8')
    sys.stdout.write('\n'.join(handover.volumes) + '\n')


if __name__ == '__main__':
    main()
