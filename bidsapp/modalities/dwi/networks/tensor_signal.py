"""The signal of a tensor as harmonics of the canonical input: the classical answer, to start from.

From few directions the tensor in the log domain explains volumes that it was not fitted to better
than the input's own harmonics do. A network that is shown the way from these to the tensor's has
only to say how far to go.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from bidsapp.modalities.dwi.physics import log_tensor
from bidsapp.modalities.dwi.physics.harmonics import basis, fibonacci_hemisphere
from bidsapp.modalities.dwi.physics.qspace import ORDER, standard

#: Points of the half sphere at which the signal is worked out: twice the harmonics and more.
POINTS = 64


class TensorSignal(nn.Module):
    """(B, 6, …) log-domain tensor, (B, …) ln(b/1000) of a bin → (B, N_SH, …) its harmonics.

    Tensor and harmonics are standardised as in the canonical input (`physics.log_tensor`,
    `physics.qspace`). Each sample has one b; what comes out for a bin that is empty means nothing.
    """

    values: Tensor
    back: Tensor

    def __init__(self) -> None:
        super().__init__()
        points = fibonacci_hemisphere(POINTS)
        spread = np.r_[log_tensor.SPREAD * np.sqrt(4 * np.pi), np.full(5, log_tensor.ANISOTROPY)]
        values = basis(points, log_tensor.ORDER) * spread
        back = np.linalg.pinv(basis(points, ORDER))
        self.register_buffer('values', torch.from_numpy(values).float(), False)
        self.register_buffer('back', torch.from_numpy(back).float(), False)

    def forward(self, tensor: Tensor, log_b: Tensor) -> Tensor:
        """Diffusivities below zero are taken for zero.

        In single precision throughout: autocast would give products in half of it, for which torch
        has no product with what is not.
        """
        with torch.autocast(tensor.device.type, enabled=False):
            return self._signal(tensor, log_b)

    def _signal(self, tensor: Tensor, log_b: Tensor) -> Tensor:
        found = []
        for own, level in zip(tensor.float(), log_b.float(), strict=True):
            # Outside the brain all channels are zero, and so it is inside where b = 1000.
            b = 1000 * float(level.flatten()[level.abs().argmax()].exp())
            along = log_tensor.MEAN + torch.tensordot(self.values, own, dims=1)
            signal = torch.exp(-b * 1e-3 * along.clamp_min(0))
            mean, deviations = standard(round(b, 2))
            spread = torch.tensor(deviations).to(signal)
            found.append(torch.tensordot(self.back / spread[:, None], signal, dims=1))
            found[-1][0] -= mean * (4 * np.pi) ** 0.5 / spread[0]
        return torch.stack(found)
