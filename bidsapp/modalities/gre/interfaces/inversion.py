"""Steps: the classical susceptibility maps of a prepared run, and what they say of regions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nipype.interfaces.base import File, TraitedSpec, traits

from bidsapp.bids.classes import classes_of
from bidsapp.bids.derivatives import own_uri
from bidsapp.bids.images import load_volume
from bidsapp.bids.names import build, source_entities
from bidsapp.bids.scans import said_beside
from bidsapp.bids.write import write_json, write_table
from bidsapp.interfaces.base import CaseInput, CaseStep
from bidsapp.interfaces.files import save_like
from bidsapp.modalities.gre.bids.direction import FIELD
from bidsapp.modalities.gre.bids.prepared import load_fields
from bidsapp.modalities.gre.bids.regions import DSEG, TABLES, columns, reference_region, row_of

if TYPE_CHECKING:
    from bidsapp.modalities.gre.bids.prepared import Fields
    from bidsapp.modalities.gre.physics.maps import Inverted

#: The maps, in the order of the step's image of them: the one that networks are measured by first.
MAPS = ('reference', 'tkd', 'tikhonov')
#: What the sidecar of the field says that one of χ says too.
PASSED = ('ImagingFrequency', 'FrequencyFrom', 'EchoTimes', FIELD, 'Phase', 'FieldFit',
          'BackgroundRemoval', 'PhaseSign')  # fmt: skip
#: Columns of the table of regions, and what they are.
COLUMNS = columns(
    'reference', 'deviation_of_mean',
    'Standard deviation of the mean by the noise of the phase: over maps that '
    'were inverted anew from the field with its noise added once more. What the model of the '
    'field gets wrong is not in it',
)  # fmt: skip


def reference_of(fields: Fields) -> tuple[str, np.ndarray, np.ndarray]:
    """Of total variation: its name, and the field (X, Y, Z) in ppm that it inverts in a mask.

    It is the single step where a total field is there and the filter's ball fits around half of the
    voxels; in small pieces of a brain V-SHARP, whose balls become smaller, knows more.
    """
    from bidsapp.modalities.gre.physics.background import SINGLE, reach

    mask = fields.mask
    if fields.total is None or 2 * reach(mask, fields.voxel_mm, SINGLE).sum() < mask.sum():
        return 'tv', fields.local, fields.known
    return 'single-step', fields.total, mask


def inverted(
    fields: Fields,
    method: str,
    field: np.ndarray,
    mask: np.ndarray,
    strength: float | None = None,
) -> Inverted:
    """``field`` in ppm in ``mask`` by ``method``, at its usual strength or another."""
    from bidsapp.modalities.gre.physics import maps

    return maps.inverted(
        field, fields.noise, mask, fields.affine, method, strength, b=fields.direction
    )  # fmt: skip


class _Maps(TraitedSpec):
    chimaps = File(desc='(X, Y, Z, 3) ppm')
    quality = traits.Dict()


class Invert(CaseStep):
    """Weighted total variation, truncated division and Tikhonov's map, found once for all labels.

    Total variation is the single step from the total field where that can be (`reference_of`).
    """

    version = 4
    output_spec = _Maps

    def step(self, folder: Path) -> dict[str, Any]:
        """Raises MissingInput where the sidecar of the field does not say what it was made with."""
        from bidsapp.modalities.gre.physics.regions import referenced

        case = self.case()
        fields = load_fields(case)
        first, field, mask = reference_of(fields)
        ways = {first: (field, mask)} | dict.fromkeys(MAPS[1:], (fields.local, fields.known))
        named, where = reference_region(case)
        made = {way: inverted(fields, way, *of) for way, of in ways.items()}
        found = [referenced(made[way].chi, where, of[1]) for way, of in ways.items()]
        strengths = {way: float(f'{one.strength:.4g}') for way, one in made.items()}
        said, path = said_beside(case.files['field']), case.files['field']
        return {
            'chimaps': str(
                save_like(folder / 'chimaps.nii', np.stack([c for c, _ in found], -1), path)
            ),
            'quality': {
                'ReferenceMethod': first,
                'Regularization': strengths,
                'SusceptibilityReference': named,
                'ReferenceOffset': {
                    name: round(offset, 6) for name, (_, offset) in zip(MAPS, found, strict=True)
                },
                **{key: said[key] for key in PASSED if key in said},
            },
        }


class _RegionsInput(CaseInput):
    chimaps = File(exists=True, mandatory=True)
    out_root = traits.Str(mandatory=True)
    sources = traits.List(traits.Str, mandatory=True, desc='BIDS URIs')
    seed = traits.Int(0, usedefault=True)


class _Table(TraitedSpec):
    table = File()


class WriteRegions(CaseStep):
    """χ of each region of the user's, with the deviation of its mean, as a table."""

    version = 2
    input_spec = _RegionsInput
    output_spec = _Table

    def step(self, folder: Path) -> dict[str, Any]:
        """A label of which too little is in the mask has no row."""
        from bidsapp.modalities.gre.physics.regions import DRAWS, referenced, statistics

        case = self.case()
        dseg = case.files[DSEG]
        fields = load_fields(case)
        method, field, mask = reference_of(fields)
        _, where = reference_region(case)

        strength = inverted(fields, method, field, mask).strength

        def invert(noisy: np.ndarray) -> np.ndarray:
            return referenced(inverted(fields, method, noisy, mask, strength).chi, where, mask)[0]

        chi = load_volume(Path(self.inputs.chimaps))[..., 0]
        found = statistics(
            chi, load_volume(dseg), mask, invert, field, fields.noise, seed=self.inputs.seed
        )
        names = classes_of(dseg)
        rows = [row_of(region, names) for region in found]
        root, own = Path(self.inputs.out_root), source_entities(case.entities)
        said, table = (root / build({**own, **named}) for named in TABLES)
        about = {
            'Sources': [*self.inputs.sources, own_uri(case.files['field'], root)],
            'NoiseDraws': DRAWS,
        }
        write_json(said, {**COLUMNS, **about})
        write_table(table, list(COLUMNS), rows)
        return {'table': str(table)}
