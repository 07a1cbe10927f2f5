"""Promised files of a run: their names, their sidecars, and writing them whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bidsapp.bids.derivatives import own_uri
from bidsapp.bids.names import build, of_recording
from bidsapp.bids.write import write_image, write_json, write_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np

    from bidsapp.core import Output

#: Colours of the classes of a segmentation table, by index.
COLOURS = ('#000000', '#9e9e9e', '#f5f5f5', '#3b82f6', '#ef4444', '#10b981')


def output_path(entities: Mapping[str, str], output: Output, source: str, extension: str) -> Path:
    """Where an output of one run stands below the dataset's root."""
    named = {**of_recording(entities), **output.entities_from(source), 'extension': extension}
    return build(named)


def files_of(entities: Mapping[str, str], output: Output, source: str) -> list[Path]:
    """Every file that one output consists of, below the root, the image last."""
    table = ('.tsv',) if output.dtype == 'uint8' and output.labels else ()
    extensions = ('.json', *table, *output.beside, '.nii.gz')
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

    So an image that is there has all that belongs to it. What the output has ``beside`` it is what
    stands beside ``like``. BIDS requires of an image with ``space-`` to say which image defines it:
    that is ``like`` where it is below ``root``, else the ``sidecar`` has to say it.
    """
    for path in files_of(entities, output, source):
        target = root / path
        if path.suffix == '.json':
            inside = 'space' in entities and like.is_relative_to(root)
            space = {'SpatialReference': own_uri(like, root)} if inside else {}
            write_json(target, {**_described(output), **space, **sidecar})
        elif path.suffix == '.tsv':
            write_text(target, _table(output))
        elif path.suffix in output.beside:
            beside = like.with_name(like.name.removesuffix('.nii.gz') + path.suffix)
            write_text(target, beside.read_text(encoding='utf-8'))
        else:
            write_image(target, array, like, output.dtype)
    return root / output_path(entities, output, source, '.nii.gz')


def _described(output: Output) -> dict[str, Any]:
    described: dict[str, Any] = {'Description': output.description}
    suffix = output.entities.get('suffix')
    if suffix == 'probseg' and output.labels:
        described['LabelMap'] = [code for _, _, code in output.labels]
    if suffix not in ('dseg', 'probseg', 'mask'):
        described |= {'Units': output.units, 'SkullStripped': True}
    return {**described, **output.sidecar}


def _table(output: Output) -> str:
    rows = ['index\tname\tabbreviation\tcolor']
    rows += [f'{i}\t{name}\t{code}\t{COLOURS[i]}' for i, name, code in output.labels]
    return '\n'.join(rows) + '\n'
