"""How diffusion was encoded: models here know linear encoding only, one direction a volume."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from bidsapp.modalities.dwi.bids.tables import read_numbers
from bidsapp.modalities.dwi.physics.gradients import B0_THRESHOLD
from bidsapp.problems import BadData

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from bidsapp.core import Case, FloatArray

#: Names of metadata entries that tell the shape of the b-tensor, letters only.
SHAPE_KEY = re.compile(r'b?tensor(encoding|shape)?|b(delta|shape)|encodingshape')
#: Words and numbers for linear encoding.
LINEAR = re.compile(r'l|lte|linear.*|1(\.0*)?')
#: Labels that name another one.
OTHER_LABEL = re.compile(r'(?<![A-Za-z])[SPC]TE(?=$|[^A-Za-z]|b\d)|(?i:spherical|planar)')
#: Table beside an image: 1 linear, 0 spherical, -0.5 planar.
DELTA = '.bdelta'


def check_linear(case: Case, metadata: Mapping[str, Any], bvals: FloatArray) -> None:
    """Raises BadData where metadata, a table or the name say that the b-tensor is not linear.

    ``bvals`` (N,): of the values of N volumes, those without weighting do not count.
    """
    image = case.files['dwi']
    told = list(_told(metadata))
    table = image.with_name(image.name.partition('.')[0] + DELTA)
    if table.is_file():
        told.append((table.name, read_numbers(table).ravel().tolist()))
    label = case.entities.get('acquisition', '')
    if not told and OTHER_LABEL.search(label):
        told.append(('its name', [f'acq-{label}']))
    for where, values in told:
        if len(values) == len(bvals):
            values = [v for v, b in zip(values, bvals, strict=True) if b > B0_THRESHOLD]
        other = [v for v in values if not LINEAR.fullmatch(str(v).strip().lower())]
        if other:
            raise BadData(
                f'{image.name}: {where} says {other[0]!r}: diffusion was not encoded linearly '
                '(b-tensor encoding), and every model here takes one direction a volume. Leave '
                'this run out, or say BTensorEncoding: "linear" in its sidecar if it is.'
            )


def _told(metadata: Mapping[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    """Entries of the metadata that tell the shape of the b-tensor: (name, values)."""
    for key, value in metadata.items():
        if SHAPE_KEY.fullmatch(re.sub('[^a-z]', '', key.lower())):
            yield key, value if isinstance(value, list) else [value]
