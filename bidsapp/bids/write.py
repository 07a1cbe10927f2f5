"""Writing: each file whole under a hidden name, then renamed; nobody ever sees half a file."""

from __future__ import annotations

import errno
import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp import __version__
from bidsapp.bids.names import build, source_entities
from bidsapp.core import CannotCreate, InputOutputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from bidsapp.core import Output

BIDS_VERSION = '1.10.0'
#: What the validator's schema does not know. Folders stand without a trailing slash: with one,
#: validator 3.0.2 still reports the folder itself.
BIDSIGNORE = """\
*.html
.work
figures
logs
models
group_*
*.bval
*.bvec
*_dwimap.*
*_timeseries.*
"""
README = """\
# TransferMRI derivatives

Written by TransferMRI {version}. Each image has a JSON beside it that says what it is
(Description), what it was made from (Sources) and, for a prediction, by which model. Open
sub-<label>.html first.

Not for clinical use.
"""
#: Files of a gradient table.
TABLE = ('.bval', '.bvec')
#: Colours of the classes of a segmentation table, by index.
COLOURS = ('#000000', '#9e9e9e', '#f5f5f5', '#3b82f6', '#ef4444', '#10b981')


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A hidden name beside ``path`` to write to; it takes the place of ``path`` on success.

    Raises CannotCreate or InputOutputError in place of the system's errors.
    """
    hidden = path.with_name(f'.{os.getpid()}.{path.name}')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield hidden
            hidden.replace(path)
        finally:
            hidden.unlink(missing_ok=True)
    except OSError as error:
        raise explained(error, path) from error


def explained(error: OSError, path: Path) -> CannotCreate | InputOutputError:
    """The problem behind an OSError, with the right exit code."""
    reason = error.strerror or str(error)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return CannotCreate(
            f'{path} cannot be written: {reason}. Choose an output folder that you may write to.'
        )
    return InputOutputError(f'{path} could not be written: {reason}.')


def remove_leftovers(folder: Path) -> None:
    """Take away hidden files that a killed process of this machine left in ``folder``."""
    for path in folder.glob('.[0-9]*.*'):
        pid = path.name[1:].partition('.')[0]
        if pid.isdigit() and not Path(f'/proc/{pid}').exists():
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> Path:
    """Write ``text`` whole."""
    with whole(path) as hidden:
        hidden.write_text(text, encoding='utf-8')
    return path


def write_json(path: Path, content: Any) -> Path:
    """Write ``content`` as JSON, whole."""
    return write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + '\n')


def write_image(path: Path, array: np.ndarray, like: Path, dtype: str) -> Path:
    """Write ``array`` (X, Y, Z[, K]) on the grid of the image ``like``: same affine, same codes."""
    import nibabel as nib

    source: nib.Nifti1Image = nib.load(like)  # type: ignore[assignment]
    if array.shape[:3] != source.shape[:3]:
        raise ValueError(f'{path.name}: array {array.shape} is not on the grid {source.shape[:3]}')
    header = source.header.copy()
    header.set_data_dtype(dtype)
    header.set_slope_inter(1, 0)
    header['cal_min'] = header['cal_max'] = 0
    header['descrip'] = b'TransferMRI'
    image = nib.Nifti1Image(np.asarray(array, dtype), None, header)
    image.header.set_xyzt_units('mm', 'sec')
    if array.ndim == 4:
        step = (
            source.header.get_zooms()[3] if source.ndim == 4 and array.shape == source.shape else 1
        )
        image.header.set_zooms((*source.header.get_zooms()[:3], step))
    with whole(path) as hidden:
        nib.save(image, hidden)
    return path


def output_path(entities: Mapping[str, str], output: Output, source: str, extension: str) -> Path:
    """Where an output of one run stands below the dataset's root."""
    named = {**source_entities(entities), **output.entities_from(source), 'extension': extension}
    return build(named)


def files_of(entities: Mapping[str, str], output: Output, source: str) -> list[Path]:
    """Every file that one output consists of, below the root, the image last."""
    beside = []
    if output.dtype == 'uint8' and output.labels:
        beside = ['.tsv']
    elif output.entities['suffix'] == 'dwi':
        beside = list(TABLE)
    extensions = ('.json', *beside, '.nii.gz')
    return [output_path(entities, output, source, extension) for extension in extensions]


def write_output(
    root: Path,
    entities: Mapping[str, str],
    output: Output,
    source: str,
    array: np.ndarray,
    like: Path,
    sidecar: Mapping[str, Any],
) -> Path:
    """Write one output of one run: sidecar, table of classes where it has any, and last the image.

    So an image that is there has all that belongs to it. Diffusion MRI gets the gradient table
    that stands beside ``like``.
    """
    for path in files_of(entities, output, source):
        target = root / path
        if path.suffix == '.json':
            space = spatial_reference(root, entities, like)
            write_json(target, {**_described(output), **space, **sidecar})
        elif path.suffix == '.tsv':
            write_text(target, _table(output))
        elif path.suffix in TABLE:
            beside = like.with_name(like.name.removesuffix('.nii.gz') + path.suffix)
            write_text(target, beside.read_text(encoding='utf-8'))
        else:
            write_image(target, array, like, output.dtype)
    return root / output_path(entities, output, source, '.nii.gz')


def spatial_reference(root: Path, entities: Mapping[str, str], like: Path) -> dict[str, str]:
    """What BIDS requires in the sidecar of an image with ``space-``: the image that defines it.

    Empty for an image in the space of its raw run.
    """
    if 'space' not in entities:
        return {}
    inside = like.is_relative_to(root)
    return {'SpatialReference': own_uri(like, root) if inside else like.resolve().as_uri()}


def _described(output: Output) -> dict[str, Any]:
    described: dict[str, Any] = {'Description': output.description}
    if output.entities['suffix'] == 'probseg' and output.labels:
        described['LabelMap'] = [code for _, _, code in output.labels]
    if output.entities['suffix'] not in ('dseg', 'probseg', 'mask'):
        described |= {'Units': output.units, 'SkullStripped': True}
    if output.entities.get('param') == 'direction' and 'desc' not in output.entities:
        described |= {
            'OrientationEncoding': {
                'Type': 'unit3vector',
                'EncodingAxis': 3,
                'Reference': 'xyz',
                'FillValue': 0,
                'AntipodalSymmetry': True,
            },
            'EncodingAxis': 3,
            'Reference': 'xyz',
        }
    return described


def _table(output: Output) -> str:
    rows = ['index\tname\tabbreviation\tcolor']
    rows += [f'{i}\t{name}\t{code}\t{COLOURS[i]}' for i, name, code in output.labels]
    return '\n'.join(rows) + '\n'


def write_dataset(root: Path, raw: Path, derivatives: Mapping[str, Path] | None = None) -> None:
    """The root files that make ``root`` a BIDS-Derivatives dataset; safe to repeat in parallel.

    ``derivatives`` are other datasets, by name, that outputs are made from; those that an earlier
    call has named stay, for its outputs do.
    """
    container = os.environ.get('TRANSFERMRI_CONTAINER')
    generated: dict[str, Any] = {
        'Name': 'TransferMRI',
        'Version': __version__,
        'CodeURL': 'https://github.com/transfermri/transfermri',
    }
    if container:
        generated['Container'] = {'Type': 'docker', 'Tag': container}
    given = {'raw': raw, **(derivatives or {})}
    links = _known_links(root) | {name: path.resolve().as_uri() for name, path in given.items()}
    description = {
        'Name': 'TransferMRI - preprocessed diffusion MRI, labels and predictions',
        'BIDSVersion': BIDS_VERSION,
        'DatasetType': 'derivative',
        'GeneratedBy': [generated],
        'SourceDatasets': [{'URL': url} for url in links.values()],
        'DatasetLinks': links,
    }
    for name, text in (
        ('dataset_description.json', json.dumps(description, indent=2) + '\n'),
        ('.bidsignore', BIDSIGNORE),
        ('README.md', README.format(version=__version__)),
    ):
        path = root / name
        if not path.is_file() or path.read_text() != text:
            write_text(path, text)


def _known_links(root: Path) -> dict[str, str]:
    """DatasetLinks that are there already; none if the file is not ours to read."""
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
