"""What the arms of the study of pretraining start from, each made in equally many steps.

    python benchmarks/evidence/arms.py MODELS [restore autoencoder supervised] [--steps 600]

The product's own objectives, simulated brains, network and loop, in smaller batches (two patches of
24 voxels) than the bundled weights had, so that a desk computer makes all of them in an hour. A run
that was stopped goes on from MODELS/<arm>.state.safetensors. Source paper 1 as published: see
`published.py`.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path

import torch
from realscans import KEPT

from bidsapp import registry
from bidsapp.core import Plan
from bidsapp.learn.checkpoint import checkpoint_of, save
from bidsapp.learn.fit import fit
from bidsapp.learn.joint import joint
from bidsapp.modalities.dwi.physics import qspace
from bidsapp.modalities.dwi.simulate import objectives
from bidsapp.pretrain import LEARNING_RATE
from bidsapp.simulate.material import Request
from bidsapp.simulate.stream import SimulatedStream

ARMS = ('restore', 'autoencoder', 'supervised')
#: Voxels of a patch and along the edge of a block; blocks that choose the best step.
PATCH, SIDE, VALIDATION = (24, 24, 24), 32, 6


def make(arm: str, models: Path, steps: int) -> None:
    """MODELS/<arm>/v1, unless it is there."""
    if (folder := models / arm / 'v1').is_dir():
        print(f'{folder} is there')
        return
    own = registry.input('dwi')
    made = objectives.simulated(Request(arm, (), 11, SIDE, KEPT, {}))
    head = joint([task.head for task in made.tasks])
    plan = Plan(steps, PATCH, 2, LEARNING_RATE, seed=1, validate_every=max(1, steps // 8),
                average=0.98)  # fmt: skip
    state_file = models / f'{arm}.state.safetensors'
    models.mkdir(parents=True, exist_ok=True)
    network, state = fit(
        own, head, SimulatedStream(made.scanners['train'], made.tasks, PATCH),
        [made.sample('val', index) for index in range(VALIDATION)], None, plan, state_file,
        partial(print, flush=True),
    )  # fmt: skip
    card = {
        'name': arm, 'version': 'v1', 'modality': 'dwi', 'heads': dict(head.heads),
        'best_step': state.best_step,
        'network': {'name': own.network.name, 'channels_in': qspace.N_CHANNELS,
                    'options': dict(own.network.options)},
    }  # fmt: skip
    save(checkpoint_of(network, card), folder)
    state_file.unlink()
    print(f'{folder}: best of {steps} steps was {state.best_step}')


def main() -> None:
    """Make the arms that are missing."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('models', type=Path)
    parser.add_argument('arms', nargs='*', default=ARMS)
    parser.add_argument('--steps', type=int, default=600)
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', '1')))
    for arm in given.arms:
        make(arm, given.models, given.steps)


if __name__ == '__main__':
    main()
