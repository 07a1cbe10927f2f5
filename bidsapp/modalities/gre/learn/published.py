"""Transfer learning as source paper 2 has it (ISMRM 2024, 1205)."""

from __future__ import annotations

from bidsapp.core import Recipe

#: The adaptive layer stays as it was; the decoding branch, with the layer that ends it, learns at
#: 1e-3 and all else at 1e-5. 13 080 patches of 109 scans, 30 epochs, AdamW.
PUBLISHED = Recipe(
    lr=1e-3,
    rates={'decoder': 1.0, 'heads': 1.0},
    fixed=('adaptive',),
    rest=0.01,
    patches=120,
    epochs=30,
    words='transfer learning as in ISMRM 2024, 1205',
)
