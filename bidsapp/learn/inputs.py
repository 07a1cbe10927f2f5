"""The part `input`; inputs kept on disk, mapped into memory."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import numpy as np

from bidsapp.core import Sample

if TYPE_CHECKING:
    from pathlib import Path


def save_canonical(sample: Sample, folder: Path) -> Path:
    """Keep a sample's input on disk, to be mapped into memory later; written whole."""
    staging = folder.with_name(f'.{os.getpid()}.{folder.name}')
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    np.save(staging / 'image.npy', sample.image.numpy())
    np.save(staging / 'mask.npy', sample.mask.numpy())
    np.save(staging / 'affine.npy', sample.affine)
    if sample.context is not None:
        np.save(staging / 'context.npy', sample.context.numpy())
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)
    return folder


def open_canonical(folder: Path) -> Sample:
    """A kept sample. Its image is mapped copy-on-write, so only what is used is read."""
    import torch

    kept = folder / 'context.npy'
    return Sample(
        torch.from_numpy(np.load(folder / 'image.npy', mmap_mode='c')),
        torch.from_numpy(np.load(folder / 'mask.npy')),
        np.load(folder / 'affine.npy'),
        context=torch.from_numpy(np.load(kept)) if kept.is_file() else None,
    )
