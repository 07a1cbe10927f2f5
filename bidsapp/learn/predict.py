"""A network over a whole brain: in one piece where memory allows, else in blended patches.

What it says of a head that is turned or mirrored, turned back, is as good an answer; their mean is
a better one, and differs less between a head and its mirror image.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bidsapp.learn.cards import modality_of
from bidsapp.learn.patches import in_patches
from bidsapp.networks.registry import build
from bidsapp.physics.geometry import turned_voxels
from bidsapp.problems import BadData, WrongUsage, ran_out_of_memory
from bidsapp.resources import here

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from torch import Tensor

    from bidsapp.core import Checkpoint, Head, Sample, Turn
    from bidsapp.learn.inputs import Turned
    from bidsapp.networks.base import Network

#: Side and overlap (voxels) of the patches; the overlap hides the zero padding at patch edges.
PATCH, OVERLAP = 96, 48
#: As it is, and mirrored along each axis; where a network learnt with turns, the mean of these.
TTA_FLIPS: tuple[Turn, ...] = (
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


def network_of(checkpoint: Checkpoint, tasks: Sequence[str]) -> Network:
    """The network that a checkpoint describes, with the heads of ``tasks``, ready to apply."""
    card = checkpoint.card
    shape: Mapping[str, Any] = card['network']
    heads = {task: card['heads'][task] for task in tasks}
    with described_by(card):
        network = build(
            modality_of(card), shape['name'], shape['channels_in'], heads, **shape['options']
        )
        network.body.load_state_dict(checkpoint.body)
        for task in tasks:
            network.heads[task].load_state_dict(checkpoint.heads[task])
    return network.eval()


@contextmanager
def described_by(card: Mapping[str, Any]) -> Iterator[None]:
    """Raises BadData where the network that a card describes is not that of its weights."""
    try:
        yield
    except (TypeError, ValueError, LookupError, RuntimeError, ImportError) as error:
        if ran_out_of_memory(error):
            raise
        raise BadData(
            f'The card of {card["name"]} {card["version"]} describes another network than its '
            f'weights are of: {str(error).splitlines()[0]} Copy the model again.'
        ) from error


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
    network: Network,
    sample: Sample,
    device: str = 'cpu',
    whole: bool | None = None,
) -> Tensor:
    """``network`` over the image (C, X, Y, Z) of ``sample`` → (K, X, Y, Z) float32 on the CPU.

    ``whole``: in one piece, or in patches; None decides by the memory that is free, unless the
    network cannot be cut. The two agree within 2 % of the output's standard deviation
    (tests/learn/test_predict.py).
    """
    network = network.to(device).eval()
    dtype = precision(device)
    image = sample.image
    context = {name: value[None].to(device) for name, value in sample.context.items()}

    def run(batch: Tensor) -> Tensor:
        with torch.autocast(device.partition(':')[0], dtype=dtype, enabled=dtype is not None):
            batch = batch.contiguous(memory_format=torch.channels_last_3d)
            result: Tensor = network(batch, context)
        return result.float()

    if whole is None:
        voxels = image[0].numel()
        enough = voxels * network.bytes_per_voxel < 0.5 * _memory_for_features(device)
        whole = enough or not any(network.cut)
    if whole:
        return run(image[None].to(device)).cpu()[0]
    sides = tuple(PATCH if cut else None for cut in network.cut)
    return in_patches(run, image, sides, OVERLAP, network.stride, device)


def averaged_turns(turns: Collection[Turn]) -> tuple[Turn, ...]:
    """Those of TTA_FLIPS that a network has met which learnt under ``turns``."""
    return TTA_FLIPS[:1] + tuple(turn for turn in TTA_FLIPS[1:] if turn in turns)


def turns_of(card: Mapping[str, Any]) -> tuple[Turn, ...]:
    """What a model's card says of them."""
    said = card.get('averaged_turns', TTA_FLIPS[:1])
    return tuple(tuple(tuple(row) for row in turn) for turn in said)


def predict_tta(
    network: Network,
    sample: Sample,
    heads: Sequence[Head],
    turns: Sequence[Turn],
    turned: Turned,
    device: str = 'cpu',
) -> Tensor:
    """Test-time augmentation: the mean of `predict` over ``turns`` of the head, turned back.

    ``heads`` as the network has them; ``turned`` is the modality's (`learn.inputs.Input`).
    """
    channels = [head.channels for head in heads]
    total: Tensor | None = None
    for turn in turns:
        back: Turn = tuple(zip(*turn, strict=True))
        image, context = turned(sample.image, sample.context, turn)
        moved = replace(sample, image=image, context=context)
        output = turned_voxels(predict(network, moved, device), back)
        parts = zip(heads, output[None].split(channels, 1), strict=True)
        output = torch.cat([head.turn_output(part, back) for head, part in parts], 1)[0]
        total = output if total is None else total.add_(output)
    assert total is not None
    return total / len(turns)


def class_probabilities(logits: Tensor, mask: Tensor) -> np.ndarray:
    """(K, X, Y, Z) logits → (X, Y, Z, K) probabilities in ``mask`` (1, X, Y, Z), 0 outside."""
    return np.asarray((logits.softmax(0) * mask).movedim(0, -1).numpy())
