"""The root files of the derivative dataset, and BIDS URIs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from bidsapp import __version__, registry
from bidsapp.bids.write import BIDS_VERSION, write_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: The app's name in GeneratedBy, by which a folder is known as its own.
APP = 'TransferMRI'
#: What the validator's schema does not know. Folders stand without a trailing slash: with one,
#: validator 3.0.2 still reports the folder itself.
BIDSIGNORE = """\
*.html
.work
figures
logs
models
group_*
"""
README = """\
# TransferMRI derivatives

Written by TransferMRI {version}. Each image has a JSON beside it that says what it is
(Description), what it was made from (Sources) and, for a prediction, by which model. Open
sub-<label>.html first.

Not for clinical use.
"""


def write_dataset(root: Path, raw: Path, derivatives: Mapping[str, Path] | None = None) -> None:
    """The root files that make ``root`` a BIDS-Derivatives dataset; safe to repeat in parallel.

    ``derivatives`` are other datasets, by name, that outputs are made from; those that an earlier
    call has named stay, for its outputs do.
    """
    container = os.environ.get('TRANSFERMRI_CONTAINER')
    generated: dict[str, Any] = {
        'Name': APP,
        'Version': __version__,
        'CodeURL': 'https://github.com/transfermri/transfermri',
    }
    if container:
        generated['Container'] = {'Type': 'docker', 'Tag': container}
    given = {'raw': raw, **(derivatives or {})}
    links = known_links(root) | {name: link_to(path, root) for name, path in given.items()}
    every = scans(registry.modalities())
    description = {
        'Name': f'TransferMRI - preprocessed {every}, labels and predictions',
        'BIDSVersion': BIDS_VERSION,
        'DatasetType': 'derivative',
        'GeneratedBy': [generated],
        'SourceDatasets': [{'URL': url} for url in links.values()],
        'DatasetLinks': links,
    }
    for name, text in (
        ('dataset_description.json', json.dumps(description, indent=2) + '\n'),
        ('.bidsignore', ignored()),
        ('README.md', README.format(version=__version__)),
    ):
        path = root / name
        if not path.is_file() or path.read_text() != text:
            write_text(path, text)


def link_to(path: Path, root: Path) -> str:
    """A dataset as DatasetLinks of ``root`` have it: the way there, nothing about a machine.

    Derivatives and what they were made from are moved together, or mounted side by side.
    """
    return quote(Path(os.path.relpath(path.resolve(), root.resolve())).as_posix())


def scans(modalities: Iterable[str]) -> str:
    """Modalities for people, in a sentence: 'diffusion MRI, gradient-echo MRI and raw k-space'."""
    titles = [registry.title(modality) for modality in modalities]
    *first, last = (title[:1].lower() + title[1:] for title in titles)
    return ' and '.join([', '.join(first), last]) if first else last


def ignored() -> str:
    """The .bidsignore: what no validator knows, and what every modality adds to it."""
    own = [line for modality in registry.modalities() for line in registry.files(modality).ignored]
    return BIDSIGNORE + ''.join(f'{line}\n' for line in dict.fromkeys(own))


def known_links(root: Path) -> dict[str, str]:
    """DatasetLinks of ``root``; none if the file is not there or not ours to read."""
    try:
        known = json.loads((root / 'dataset_description.json').read_text(encoding='utf-8'))
        return {str(name): str(url) for name, url in known['DatasetLinks'].items()}
    except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def raw_uri(path: Path, raw: Path) -> str:
    """BIDS URI of a file of the raw dataset."""
    return linked_uri(path, 'raw', raw)


def own_uri(path: Path, root: Path) -> str:
    """BIDS URI of a file of this dataset."""
    return linked_uri(path, '', root)


def linked_uri(path: Path, name: str, root: Path) -> str:
    """BIDS URI of a file of the dataset ``root`` that DatasetLinks calls ``name``."""
    return f'bids:{name}:{path.relative_to(root).as_posix()}'
