"""How long does the bundled network take for a whole brain, and how much of that is convolution?

    python benchmarks/inference.py [--shape 80 96 80] [--repeats 3] [--threads 2]

All heads at once, in one piece; then as `participant` does it, the mean over mirrors. The physical
limit beside it, measured in the same run, is the bare convolutions of the network, each on its own
input in the same precision and memory layout: no norm, no activation, no pooling, no concatenation.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from bidsapp import registry
from bidsapp.core import Sample
from bidsapp.learn.predict import TTA_FLIPS, precision, predict, predict_tta
from bidsapp.modalities.dwi.physics.qspace import LAYOUT, N_CHANNELS, S0_CHANNEL, SLOT_CHANNELS
from bidsapp.networks.registry import build

if TYPE_CHECKING:
    from collections.abc import Callable


def best_of(repeats: int, call: Callable[[], Any]) -> float:
    """Least seconds of ``repeats`` calls, after one that is not counted."""
    call()
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def convolutions(network: nn.Module, image: torch.Tensor) -> list[tuple[nn.Module, torch.Tensor]]:
    """Every convolution with an input like the one that it gets."""
    found = []

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        like = torch.zeros_like(inputs[0])
        found.append((module, like.contiguous(memory_format=torch.channels_last_3d)))

    hooks = [
        module.register_forward_pre_hook(note)
        for module in network.modules()
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d)
    ]
    network(image[None], {})
    for hook in hooks:
        hook.remove()
    return found


@torch.inference_mode()
def main() -> None:
    """Print one line a precision."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--shape', nargs=3, type=int, default=[80, 96, 80])
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--threads', type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    heads = [task.head for task in registry.tasks_of('dwi')]
    served = {head.name: head.channels for head in heads}
    network = build('dwi', 'unet3d', N_CHANNELS, served, **LAYOUT).eval()
    network = network.to(memory_format=torch.channels_last_3d)
    image = torch.zeros(N_CHANNELS, *given.shape)
    image[:SLOT_CHANNELS], image[S0_CHANNEL:] = 1, 1  # one shell, as most scans have
    sample = Sample(image, torch.ones(1, *given.shape, dtype=torch.bool), np.eye(4))
    turned = registry.input('dwi').turned
    dtype = precision('cpu')
    whole = best_of(given.repeats, lambda: predict(network, sample, 'cpu', whole=True))
    mirrored = best_of(
        given.repeats, lambda: predict_tta(network, sample, heads, TTA_FLIPS, turned)
    )
    with torch.autocast('cpu', dtype=dtype, enabled=dtype is not None):
        parts = convolutions(network, image)
        bare = best_of(given.repeats, lambda: [module(x) for module, x in parts])
    size = 'x'.join(map(str, given.shape))
    print(f'{size} voxels, {given.threads} threads, {dtype or torch.float32}')
    print(f'all {len(heads)} tasks {whole:.2f} s, bare convolutions {bare:.2f} s')
    print(f'ratio {whole / bare:.2f}; over {len(TTA_FLIPS)} mirrors {mirrored:.2f} s')


if __name__ == '__main__':
    main()
