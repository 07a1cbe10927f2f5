"""A network over a whole brain: in one piece where memory allows, else in blended patches.

What it says of a head that is turned or mirrored, turned back, is as good an answer; their mean is
a better one, and differs less between a head and its mirror image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bidsapp.learn.patches import in_patches
from bidsapp.modalities.dwi.physics.turns import turned_channels
from bidsapp.physics.geometry import turned_voxels
from bidsapp.problems import WrongUsage
from bidsapp.resources import NETWORK_BYTES, here

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from bidsapp.core import Checkpoint, Task, Turn
    from bidsapp.modalities.dwi.networks.qspace_unet import UNet3d

#: Side and overlap (voxels) of the patches; the overlap hides the zero padding at patch edges.
PATCH, OVERLAP = 96, 48
#: As it is, and mirrored along each axis; where a network learnt with turns, the mean of these.
AVERAGED: tuple[Turn, ...] = (
    ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    ((-1, 0, 0), (0, 1, 0), (0, 0, 1)),
    ((1, 0, 0), (0, -1, 0), (0, 0, 1)),
    ((1, 0, 0), (0, 1, 0), (0, 0, -1)),
)


def resolve_device(wanted: str) -> str:
    """'auto', 'cpu', 'cuda' or 'cuda:N' → a device that is there.

    Raises WrongUsage for an explicit CUDA device that is not.
    """
    if wanted == 'cpu' or (wanted == 'auto' and not torch.cuda.is_available()):
        return 'cpu'
    index = int(wanted.partition(':')[2] or 0) if wanted != 'auto' else 0
    if index >= torch.cuda.device_count():
        raise WrongUsage(
            f'--device {wanted}: found {torch.cuda.device_count()} CUDA devices. Start the '
            'container with --gpus all (Docker) or --nv (Apptainer), or use --device auto or cpu. '
            'transfermri-gpu says what is visible.'
        )
    return f'cuda:{index}'


def precision(device: str) -> torch.dtype | None:
    """bfloat16 where the processor computes in it natively, else None (float32)."""
    if device.startswith('cuda'):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
    flags = torch.cpu.get_capabilities()
    return torch.bfloat16 if flags.get('avx512_bf16') or flags.get('amx_bf16') else None


def network_of(checkpoint: Checkpoint, tasks: Sequence[str]) -> UNet3d:
    """The network that a checkpoint describes, with the heads of ``tasks``, ready to apply."""
    from bidsapp.networks.registry import build

    card = checkpoint.card
    shape: Mapping[str, Any] = card['network']
    heads = {task: card['heads'][task] for task in tasks}
    network = build(shape['name'], shape['channels_in'], heads, **shape['options'])
    network.body.load_state_dict(checkpoint.body)
    for task in tasks:
        network.heads[task].load_state_dict(checkpoint.heads[task])
    return network.eval()


def split_heads(output: Tensor, heads: Mapping[str, int]) -> dict[str, Tensor]:
    """(K, X, Y, Z) of a network → each head's channels, by task."""
    return dict(zip(heads, output.split(list(heads.values())), strict=True))


def _memory_for_features(device: str) -> int:
    if device.startswith('cuda'):
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    # The free memory is the host's; a container or a job may hold less than that.
    return int(min(psutil.virtual_memory().available, here()[0].amount * 2**30))


@torch.inference_mode()
def predict(
    network: UNet3d, image: Tensor, device: str = 'cpu', whole: bool | None = None
) -> Tensor:
    """``network`` over ``image`` (C, X, Y, Z) → (K, X, Y, Z) float32 on the CPU.

    ``whole``: in one piece, or in patches; None decides by the memory that is free. The two agree
    within 2 % of the output's standard deviation (tests/learn/test_predict.py).
    """
    network = network.to(device).eval()
    dtype = precision(device)

    def run(batch: Tensor) -> Tensor:
        with torch.autocast(device.partition(':')[0], dtype=dtype, enabled=dtype is not None):
            result: Tensor = network(batch.contiguous(memory_format=torch.channels_last_3d))
        return result.float()

    if whole is None:
        voxels = image[0].numel()
        whole = voxels * NETWORK_BYTES < 0.5 * _memory_for_features(device)
    if whole:
        return run(image[None].to(device)).cpu()[0]
    return in_patches(run, image, PATCH, OVERLAP, device)


def averaged_turns(task: Task) -> tuple[Turn, ...]:
    """Those of AVERAGED that a network has met which learnt ``task``."""
    return AVERAGED[:1] + tuple(turn for turn in AVERAGED[1:] if turn in task.turns)


def turns_of(card: Mapping[str, Any]) -> tuple[Turn, ...]:
    """What a model's card says of them."""
    said = card.get('averaged_turns', AVERAGED[:1])
    return tuple(tuple(tuple(row) for row in turn) for turn in said)


def predict_turned(
    network: UNet3d,
    image: Tensor,
    tasks: Sequence[Task],
    turns: Sequence[Turn],
    device: str = 'cpu',
) -> Tensor:
    """Mean of `predict` over ``turns`` of the head, turned back; ``tasks`` as the heads are."""
    channels = [task.channels for task in tasks]
    total: Tensor | None = None
    for turn in turns:
        back: Turn = tuple(zip(*turn, strict=True))
        output = turned_voxels(predict(network, turned_channels(image, turn), device), back)
        parts = zip(tasks, output[None].split(channels, 1), strict=True)
        output = torch.cat([task.turn_output(part, back) for task, part in parts], 1)[0]
        total = output if total is None else total.add_(output)
    assert total is not None
    return total / len(turns)


def class_probabilities(logits: Tensor, mask: Tensor) -> np.ndarray:
    """(K, X, Y, Z) logits → (X, Y, Z, K) probabilities in ``mask`` (1, X, Y, Z), 0 outside."""
    return np.asarray((logits.softmax(0) * mask).movedim(0, -1).numpy())
