"""What one call shall do, as a frozen value; only the stories see it."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidsapp import registry
from bidsapp.bids.derivatives import APP
from bidsapp.bids.text import text_of
from bidsapp.bids.write import explained
from bidsapp.core import PARTS
from bidsapp.hidden import hidden
from bidsapp.problems import InputOutputError, MissingInput, Problem, WrongUsage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bidsapp.resources import Limit

#: Bytes that must be free in the output folder before anything starts.
MIN_FREE = 200 * 2**20
#: The same in the work folder, even for the smallest scans.
MIN_FREE_WORK = 100 * 2**20
#: Files in the root of OUTPUT_DIR that are written over.
ROOT = ('README.md', '.bidsignore')
#: BIDS_DIR of pretrain on simulated brains.
SIMULATED = Path('-')


@dataclass(frozen=True, slots=True)
class Settings:
    """All options of the command line after parsing."""

    bids_dir: Path
    output_dir: Path
    level: str
    memory: Limit  #: GiB that steps may hold together
    participants: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    filter_file: Path | None = None
    tasks: tuple[str, ...] = ()
    model: str = 'auto'
    device: str = 'auto'
    derivatives: tuple[tuple[str, Path], ...] = ()
    work_dir: Path = Path()
    nprocs: int = 1
    omp_nthreads: int = 0  #: 0: what ``nprocs`` leaves for each run
    plugin_file: Path | None = None
    skip_validation: bool = False
    stop_on_first_crash: bool = False
    dry_run: bool = False
    reports_only: bool = False
    clean_workdir: bool = False
    force: bool = False
    redo: tuple[str, ...] = ()  #: parts and tasks, as `redo` has read them
    seed: int = 0
    verbose: int = 0
    init: str = 'auto'
    freeze: str = 'none'
    steps: int | None = None
    network: str | None = None
    split_file: Path | None = None
    compare: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)  #: of modalities, by name
    objective: str | None = None
    resume: bool = False
    argv: tuple[str, ...] = field(default=())

    @property
    def models(self) -> Path:
        """Where fine-tuned models stand."""
        return self.output_dir / 'models'

    @property
    def roots(self) -> dict[str, Path]:
        """The datasets that runs are of, by their names in BIDS URIs."""
        return {'raw': self.bids_dir, **dict(self.derivatives)}

    def without_places(self, text: str) -> str:
        """``text`` for others to read: of this call's folders their names, not where they are."""
        places = {
            self.work_dir: 'WORK_DIR', self.output_dir: 'OUTPUT_DIR',
            **{path: 'BIDS_DIR' if name == 'raw' else name for name, path in self.roots.items()},
            Path.home(): '~',
        }  # fmt: skip
        every = {form: name for path, name in places.items() for form in (path, path.resolve())}
        for path in sorted(every, key=lambda path: -len(path.parts)):
            if len(path.parts) > 1:
                text = text.replace(str(path), every[path])
        return text

    @property
    def simulated(self) -> bool:
        """Whether no dataset is read."""
        return self.bids_dir == SIMULATED


def check_folders(settings: Settings) -> None:
    """Raises Problem for folders that would harm the input or cannot be written."""
    out, work = settings.output_dir.resolve(), settings.work_dir.resolve()
    others = {f'-d {name}': path.resolve() for name, path in settings.derivatives}
    if settings.simulated:
        keep_for_work(work, {'OUTPUT_DIR': out, **others})
    else:
        raw = settings.bids_dir.resolve()
        keep_for_work(work, {'BIDS_DIR': raw, 'OUTPUT_DIR': out, **others})
        keep_apart(raw, out, work)
    for name, path in settings.derivatives:
        other = path.resolve()
        if out == other or work.is_relative_to(other):
            raise WrongUsage(
                f'The output or work folder is that of -d {name}={path}. Choose another folder.'
            )
    keep_what_is_not_ours(settings.output_dir)
    if settings.dry_run:
        return
    for folder in (out, work):
        prepare(folder)
    for folder, name, needed in ((out, 'OUTPUT_DIR', MIN_FREE), (work, '-w', MIN_FREE_WORK)):
        if (free := shutil.disk_usage(folder).free) < needed:
            raise InputOutputError(
                f'{folder} has {free / 2**20:.0f} MB free; at least {needed / 2**20:.0f} MB are '
                f'needed to begin. Make room or give {name} a place on another disk.'
            )


def keep_what_is_not_ours(out: Path) -> None:
    """Raises WrongUsage if the app would write over files in ``out`` that it did not make."""
    path = out / 'dataset_description.json'
    if path.is_file():
        if APP not in (makers := made_by(path)):
            raise WrongUsage(
                f'OUTPUT_DIR {out} is the folder of {makers[0]}: its dataset_description.json '
                f'says so. Expected an empty folder or one of {APP}. Choose another.'
            )
    elif foreign := sorted(p.name for p in out.glob('*') if p.match('sub-*') or p.name in ROOT):
        raise WrongUsage(
            f'OUTPUT_DIR {out} holds {foreign[0]}, and no dataset_description.json of {APP}: it is '
            'not known whose it is. Expected an empty folder. Choose another.'
        )


def made_by(description: Path) -> list[str]:
    """The names in GeneratedBy, or what else a dataset is called."""
    try:
        said = json.loads(text_of(description))
        made = [str(by['Name']) for by in said.get('GeneratedBy') or [] if 'Name' in by]
        return made or [str(said.get('Name', 'somebody else'))]
    except (ValueError, TypeError, AttributeError, Problem):
        return ['somebody else']


def keep_for_work(work: Path, others: Mapping[str, Path]) -> None:
    """Raises WrongUsage if the work folder is, or is above, one of ``others``, by their names."""
    for name, path in others.items():
        if path.is_relative_to(work):
            found = f'is {name}' if path == work else f'contains {name} ({path})'
            raise WrongUsage(
                f'The work folder {work} {found}; expected one that holds intermediate files and '
                'nothing else. Give -w a folder of its own, or leave it out for OUTPUT_DIR/.work.'
            )


def keep_apart(raw: Path, out: Path, work: Path) -> None:
    """Raises WrongUsage if the dataset ``raw`` would be written into."""
    if out == raw:
        raise WrongUsage(
            f'OUTPUT_DIR is BIDS_DIR ({raw}). Choose another folder, such as '
            f'{raw / "derivatives" / "transfermri"}.'
        )
    if out.is_relative_to(raw) and not out.is_relative_to(raw / 'derivatives'):
        raise WrongUsage(
            f'OUTPUT_DIR {out} lies inside BIDS_DIR but not under its derivatives/ folder. '
            'Choose a folder there, or one outside the dataset.'
        )
    if work.is_relative_to(raw) and not work.is_relative_to(out):
        raise WrongUsage(f'The work folder {work} lies inside BIDS_DIR. Choose one outside it.')


def prepare(folder: Path) -> None:
    """Make ``folder`` and see that it can be written. Raises CannotCreate."""
    probe = hidden(folder / 'probe')
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise explained(error, folder) from error


def labels(values: list[str] | None, prefix: str) -> tuple[str, ...]:
    """Labels with or without ``prefix``, or text files with one a line, in order, once each."""
    found: list[str] = []
    for value in values or []:
        path = Path(value)
        if path.suffix == '.txt' or path.is_file():
            if not path.is_file():
                raise MissingInput(f'The label file {path} does not exist.')
            found += path.read_text(encoding='utf-8-sig').split()
        else:
            found.append(value)
    return tuple(dict.fromkeys(value.removeprefix(prefix) for value in found))


def redo(values: list[str]) -> tuple[str, ...]:
    """What shall be made again, though it is there. Raises WrongUsage for what is no part."""
    known = (*PARTS, *registry.tasks())
    for value in values:
        if value not in known:
            raise WrongUsage(
                f'--redo {value}: expected one or several of {", ".join(known)}. Each is made '
                'again with what depends on it.'
            )
    return tuple(dict.fromkeys(values))


def derivatives(values: list[str]) -> tuple[tuple[str, Path], ...]:
    """'qsiprep=PATH' or 'masks=PATH' → (name, path).

    Raises WrongUsage, MissingInput or InvalidDataset.
    """
    parts = [registry.files(m) for m in registry.modalities()]
    known = {name: files for files in parts for name in (*files.pipelines, *files.helps)}
    found: dict[str, Path] = {}
    for value in values:
        name, equals, path = value.partition('=')
        if not equals or not name or not path:
            raise WrongUsage(
                f'-d {value}: expected NAME=PATH, such as qsiprep=/data/derivatives/qsiprep, and '
                'the positional arguments before it.'
            )
        if name not in known:
            raise WrongUsage(
                f'-d {name}=…: results of {name!r} cannot be used; supported: {", ".join(known)}.'
            )
        if name in found:
            raise WrongUsage(f'-d {name} is given twice; expected one folder for each name.')
        found[name] = Path(path).absolute()
        if name in known[name].helps:
            if not found[name].is_dir():
                raise MissingInput(f'-d {name}: {found[name]} is no folder. Is it mounted?')
        elif (check := known[name].check_pipeline) is not None:
            check(name, found[name])
    return tuple(found.items())


def memory_in_gb(text: str) -> float:
    """'8G', '8000M', '1.5g' or a bare number of MB → GB. Raises WrongUsage."""
    match = re.fullmatch(r'([0-9.]+)\s*([kmgt]?)i?b?', text.strip().lower())
    try:
        number = float(match[1]) if match else -1.0
    except ValueError:
        number = -1.0
    if match is None or number <= 0:
        raise WrongUsage(f'--mem {text}: expected a size such as 8G, 8000M, or a number of MB.')
    return number * {'k': 1e-6, '': 1e-3, 'm': 1e-3, 'g': 1.0, 't': 1e3}[match[2]]
