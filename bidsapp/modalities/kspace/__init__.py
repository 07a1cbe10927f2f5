"""Raw k-space.

Axes, throughout: arrays end in (X, Y), X along readout and Y along phase encoding, coils C before
them. In image and k-space alike the origin is index n // 2. Noise: σ² = E |n|² of a complex sample,
the same in k-space and in every orthonormal transform of it.
"""

from __future__ import annotations

from bidsapp.core import Objective, Option

OBJECTIVES = {
    'supervised': Objective(
        'reconstruct under-sampled scans, by the truth of simulated slices', dataset=False,
        tasks=True,
    )
}  # fmt: skip

OPTIONS = (
    Option(
        '--undersample', float, 'R',
        'leave lines of full scans out afterwards, until one in R is left; everything is then '
        'compared with the image of all of them', levels=('participant', 'group'), least=1,
    ),
)  # fmt: skip
