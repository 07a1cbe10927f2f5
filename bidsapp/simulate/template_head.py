"""The template head, kept on disk so that it serves without nilearn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bidsapp.hidden import hidden

if TYPE_CHECKING:
    from pathlib import Path

    from bidsapp.simulate.anatomy import Template

#: mm; voxels of the template that simulated heads are made of.
TEMPLATE_MM = 1.5


def kept_template(folder: Path) -> Template:
    """The template head; its maps stay in ``folder``, which from then on serves without nilearn."""
    import torch

    from bidsapp.physics.template import template_maps
    from bidsapp.simulate.anatomy import head_template

    path = folder / f'template-{TEMPLATE_MM:g}mm.npz'
    if not path.is_file():
        _, *maps = template_maps(TEMPLATE_MM)
        folder.mkdir(parents=True, exist_ok=True)
        staging = hidden(path)
        np.savez_compressed(staging, *(np.asarray(array, np.float32) for array in maps))
        staging.replace(path)
    with np.load(path) as arrays:
        return head_template(*(torch.from_numpy(arrays[name]) for name in arrays.files))
