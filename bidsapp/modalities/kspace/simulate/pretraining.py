"""What networks that reconstruct are pretrained from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from bidsapp import registry
from bidsapp.learn.splits import SPLITS
from bidsapp.simulate.material import Material
from bidsapp.simulate.template_head import kept_template

if TYPE_CHECKING:
    from bidsapp.simulate.material import Request

#: Left out of training, so that they can test it: R, and noise over the largest signal.
UNSEEN_ACCELERATION, UNSEEN_NOISE = (4.8, 5.6), (0.018, 0.023)
#: Coils of a scan; more than 16, which are the most that are drawn, are compressed to so many.
COILS = (1, 32)


def material(request: Request) -> Material:
    """Endless slices of another seed for each split; worker processes make those to learn from."""
    import torch  # nor does what follows load before it is asked for: `--help` needs none

    from bidsapp.modalities.kspace.learn.input import about
    from bidsapp.modalities.kspace.simulate.bank import Bank, makers_of
    from bidsapp.modalities.kspace.simulate.slices import EVERYTHING

    template = kept_template(request.kept)
    tasks = request.tasks or [t.name for t in registry.tasks_of('kspace') if t.truth is not None]
    threads = torch.get_num_threads()
    makers = makers_of(template, threads) if threads > 1 else None
    training = replace(
        EVERYTHING, unseen_acceleration=UNSEEN_ACCELERATION, unseen_noise=UNSEEN_NOISE
    )
    scanners = {
        name: Bank(template, len(SPLITS) * request.seed + k,
                   training if name == 'train' else EVERYTHING, makers)
        for k, name in enumerate(SPLITS)
    }  # fmt: skip
    return Material(
        tuple(registry.task(name) for name in tasks),
        scanners,
        {
            'slices': 'simulated: heads in any plane, bodies, shapes without anatomy; those that '
            'test are of another seed',
            'left_out': {
                'acceleration': list(UNSEEN_ACCELERATION), 'noise': list(UNSEEN_NOISE),
            },
        },
        {'acceleration': list(EVERYTHING.acceleration), 'coils': list(COILS)},
        about(()),
        license='Apache-2.0',
    )  # fmt: skip
