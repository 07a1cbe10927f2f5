"""The input of susceptibility networks, and what is learnt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bidsapp.core import Sample
from bidsapp.learn.inputs import Input, Shape
from bidsapp.modalities.gre.bids.prepared import load_fields

if TYPE_CHECKING:
    from bidsapp.core import Case
    from bidsapp.learn.inputs import Part


def sample_of(case: Case, part: Part) -> Sample:
    """The local field over its spread, and where it is known."""
    import torch

    fields = load_fields(case)
    field = fields.local / max(float(fields.local[fields.known].std()), 1e-12)
    known = torch.from_numpy(fields.known)[None]
    image = torch.cat([torch.from_numpy(field)[None].float(), known.float()])
    return Sample(image, known, fields.affine)


input = Input(modality='gre', sample=sample_of, network=Shape('unet'))
