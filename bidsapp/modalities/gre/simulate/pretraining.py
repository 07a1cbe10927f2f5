"""What susceptibility networks are pretrained from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bidsapp import registry
from bidsapp.learn.splits import SPLITS
from bidsapp.modalities.gre.learn.input import about
from bidsapp.simulate.material import Material

if TYPE_CHECKING:
    from bidsapp.simulate.material import Request

#: Batches that a block serves. Blocks differ more than heads: with 24, so of 165 blocks in all, the
#: network knew these by heart and was no better than its start on others.
STEPS_A_BLOCK = 4


def material(request: Request) -> Material:
    """Endless blocks without anatomy, of another seed for each split."""
    from bidsapp.modalities.gre.simulate import geometry  # loads torch, which `--help` need not
    from bidsapp.modalities.gre.simulate.susceptibility import Blocks

    tasks = request.tasks or [t.name for t in registry.tasks_of('gre') if t.truth is not None]
    scanners = {
        name: Blocks(len(SPLITS) * request.seed + k, request.side) for k, name in enumerate(SPLITS)
    }
    return Material(
        tuple(registry.task(name) for name in tasks),
        scanners,
        {
            'blocks': 'simulated, without anatomy; those that test are of another seed',
            'left_out': {
                'voxel_mm': list(geometry.UNSEEN_EDGES),
                'anisotropy': list(geometry.UNSEEN_ANISOTROPY),
                'tilt_deg': list(geometry.UNSEEN_TILTS),
            },
        },
        # As `learn.ranges` reads them: what is drawn. Fields of any strength are ppm to a network.
        {'voxel_mm': list(geometry.EDGES), 'tilt_deg': [0.0, 54.8], 'field': [1.0, 10.5]},
        about(()),
        license='Apache-2.0',
        steps_a_scan=STEPS_A_BLOCK,
    )
