"""How a network uses the machine it runs on."""

from __future__ import annotations

import logging
import os


def use_processors(count: int, device: str) -> None:
    """``count`` threads for one network; deterministic kernels on CUDA; a silent Fabric."""
    import torch

    torch.set_num_threads(count)
    if device.startswith('cuda'):
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
    logging.getLogger('lightning_fabric').setLevel(logging.WARNING)
