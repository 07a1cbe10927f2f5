"""Which samples of k-space are measured.

A mask of lines is (Y,), one of samples (X, Y): float32, 1 where measured and 0 where not. The
middle, from which coil maps are made, is always measured. R is all samples over measured ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

#: Lines in the middle that are kept: this share over R, or so many.
SHARE, FIXED = 0.32, 24
#: Rounds of bisection for the spacing of a Poisson-disc mask.
ROUNDS = 8
#: Lines in the middle without which maps of several coils cannot be made.
FEWEST = 4
#: Share of the longer side of k-space below which the other is called partial, and by how many of
#: the widest gaps between lines: lines at random may end early too.
PARTIAL, GAPS = 0.9, 2


def centre_lines(n: int, acceleration: float) -> int:
    """How many of ``n`` lines in the middle are kept: 0.32 n / R (Zbontar et al., 2018)."""
    return max(round(SHARE * n / acceleration), 1)


def acceleration(mask: Tensor) -> float:
    """All over measured."""
    return mask.numel() / max(int((mask > 0).sum()), 1)


def random_lines(n: int, acceleration: float, centre: int, generator: torch.Generator) -> Tensor:
    """(n,) exactly round(n / R) lines: ``centre`` in the middle, the others drawn evenly."""
    mask, outer, wanted = _begun(n, acceleration, centre)
    mask[outer[torch.randperm(len(outer), generator=generator)[:wanted]]] = 1
    return mask


def equispaced_lines(
    n: int, acceleration: float, centre: int, generator: torch.Generator
) -> Tensor:
    """(n,) exactly round(n / R) lines: ``centre`` in the middle, the others evenly spread.

    Even among the lines outside the middle, to the nearest line, from a start drawn at random.
    """
    mask, outer, wanted = _begun(n, acceleration, centre)
    start = float(torch.rand((), generator=generator))
    steps = (torch.arange(wanted) + start) * (len(outer) / max(wanted, 1))
    mask[outer[steps.long().clamp(max=len(outer) - 1)]] = 1
    return mask


def _begun(n: int, acceleration: float, centre: int) -> tuple[Tensor, Tensor, int]:
    """The middle, the lines outside it, and how many of these are wanted."""
    wanted = round(n / acceleration) - centre
    if wanted < 0:
        raise ValueError(f'{centre} lines in the middle of {n} are more than R = {acceleration:g}')
    mask = torch.zeros(n)
    first = n // 2 - centre // 2
    mask[first : first + centre] = 1
    return mask, torch.nonzero(mask == 0)[:, 0], wanted


def partial_fourier(n: int, fraction: float) -> Tensor:
    """(n,) the last ``fraction`` of the lines, more than half: the first ones are not measured."""
    mask = torch.zeros(n)
    mask[n - max(round(fraction * n), n // 2 + 1) :] = 1
    return mask


def poisson_disc(
    shape: tuple[int, int], acceleration: float, centre: int, generator: torch.Generator
) -> Tensor:
    """(X, Y) exactly round(XY / R) samples that keep apart, further out the further.

    A disc of ``centre`` samples across is measured whole. Outside, samples are thrown in random
    order, and each forbids a disc about it whose radius grows with the distance from the origin
    (Bridson, SIGGRAPH 2007; Lustig & Pauly, MRM 64:457, 2010). Bisection finds the spacing that
    leaves just enough, and the few too many are taken away at random.
    """
    wanted = round(shape[0] * shape[1] / acceleration)
    seed = int(torch.randint(2**31, (), generator=generator))
    order = np.random.default_rng(seed).permutation(shape[0] * shape[1])
    places = np.stack(np.unravel_index(order, shape), 1).tolist()
    low, high = 0.0, 4 * acceleration**0.5
    for _ in range(ROUNDS):
        spacing = (low + high) / 2
        enough = _thrown(shape, centre, spacing, places, wanted).sum() >= wanted
        low, high = (spacing, high) if enough else (low, spacing)
    best = _thrown(shape, centre, low, places)
    middle = _distance(shape) * max(shape) <= centre
    if middle.sum() > wanted:
        raise ValueError(f'a middle of {centre} samples in {shape} is more than R = {acceleration}')
    spare = np.flatnonzero((best & ~middle).ravel()[order])[: int(best.sum()) - wanted]
    best.ravel()[order[spare]] = False
    return torch.from_numpy(best.astype(np.float32))


def retrospective(
    shape: tuple[int, int], coils: int, acceleration: float, generator: torch.Generator
) -> Tensor:
    """(1, Y, Z): which lines of a full scan of ``coils`` are kept; of a slab by Poisson discs.

    Evenly spaced ones, as scanners leave them out for coils to tell apart what folds over; random
    ones of a single coil, for which that would stay folded. Raises ValueError where R leaves too
    few for the middle.
    """
    y, z = shape
    if z == 1:
        drawn = random_lines if coils == 1 else equispaced_lines
        kept = max(centre_lines(y, acceleration), FEWEST)
        return drawn(y, acceleration, kept, generator)[None, :, None]
    return poisson_disc(shape, acceleration, min(FIXED, min(shape) // 2), generator)[None]


def one_sided(mask: Tensor) -> bool:
    """Whether ``mask`` (Y,) or (X, Y) reaches farther to one side of the origin: partial Fourier.

    Then the other side follows from this one as far as the image is real, or of a known phase.
    """
    known = mask > 0
    alone = [known] if known.ndim == 1 else [known.any(1), known.any(0)]
    return any(_reaches_unevenly(line.nonzero()[:, 0], len(line)) for line in alone)


def _reaches_unevenly(places: Tensor, n: int) -> bool:
    before, after = n // 2 - int(places.min()), int(places.max()) - n // 2
    missing, gap = abs(before - after), int(places.diff().max()) if len(places) > 1 else 1
    return missing > GAPS * gap and missing > (1 - PARTIAL) * max(before, after)


def pattern(measured: np.ndarray) -> str:
    """What a mask (Y, Z) is called."""
    if measured.all():
        return 'all lines'
    if measured.shape[1] > 1:
        return 'samples of two phase-encoding directions'
    lines = measured[:, 0]
    about = _run(lines)
    outer = [np.flatnonzero(lines[part]) for part in (slice(about.start), slice(about.stop, None))]
    steps = np.concatenate([np.diff(places) for places in outer])
    even = not len(steps) or int(steps.max()) - int(steps.min()) <= 1
    return f'{"evenly" if even else "unevenly"} spaced lines about a middle that is whole'


def _distance(shape: tuple[int, int]) -> np.ndarray:
    """(X, Y) from the origin, 1 at the edge of either axis."""
    x, y = ((np.arange(n) - n // 2) / (n / 2) for n in shape)
    return np.asarray(np.hypot(x[:, None], y))


def _thrown(
    shape: tuple[int, int],
    centre: int,
    spacing: float,
    places: Sequence[Sequence[int]],
    most: int | None = None,
) -> np.ndarray:
    """(X, Y) samples of which none lies in the disc of one before it, and the whole middle.

    They are tried in the order of ``places``; no more than ``most`` are outside the middle.
    """
    distance = _distance(shape)
    taken = distance * max(shape) <= centre
    free = ~taken
    reach = (spacing * distance).tolist()
    offset = np.arange(-max(shape), max(shape) + 1) ** 2
    left, origin = taken.size if most is None else most, max(shape)
    for x, y in places:
        if not free[x, y]:
            continue
        if left <= 0:
            break
        left -= 1
        taken[x, y] = True
        r = reach[x][y]
        n = int(r)
        x0, y0 = max(x - n, 0), max(y - n, 0)
        block = free[x0 : x + n + 1, y0 : y + n + 1]
        dx = offset[origin + x0 - x :][: block.shape[0], None]
        dy = offset[origin + y0 - y :][: block.shape[1]]
        block &= dx + dy > r * r
        free[x, y] = False
    return taken


def middle_block(measured: Tensor) -> tuple[slice, ...]:
    """The largest block about the origin of ``measured`` (Y,) or (X, Y) without a gap.

    Lines: as far as they reach to either side. Samples: the rectangle of most samples, centred.
    Slices are empty where the origin itself is not measured.
    """
    known = (measured > 0).numpy()
    if known.ndim == 1:
        return (_run(known),)
    best: tuple[slice, slice] = (slice(0, 0), slice(0, 0))
    whole = known.shape[0]
    for half in range(whole // 2 + 1):
        rows = slice(whole // 2 - half, min(whole // 2 + half + 1, whole))
        columns = _run(np.asarray(known[rows].all(0)))
        if _area(rows, columns) > _area(*best):
            best = rows, columns
    return best


def _area(rows: slice, columns: slice) -> int:
    return int((rows.stop - rows.start) * (columns.stop - columns.start))


def _run(known: np.ndarray) -> slice:
    """The run of true values about n // 2."""
    origin = len(known) // 2
    if not known[origin]:
        return slice(origin, origin)
    gaps = np.flatnonzero(~known)
    before, after = gaps[gaps < origin], gaps[gaps > origin]
    first = int(before[-1]) + 1 if len(before) else 0
    return slice(first, int(after[0]) if len(after) else len(known))


def about_origin(block: slice, n: int) -> slice:
    """The largest part of a ``block`` of lines in whose middle, index size // 2, the origin is."""
    before, after = n // 2 - block.start, block.stop - 1 - n // 2
    size = max(2 * min(before, after + 1), 2 * min(before, after) + 1, 0)
    first = n // 2 - size // 2
    return slice(first, first + size)


def symmetric(block: slice, n: int) -> slice:
    """The part of a ``block`` of lines whose mirror images in the origin are in it too."""
    reach = min(n // 2 - block.start, block.stop - 1 - n // 2)
    return slice(n // 2 - reach, n // 2 + reach + 1)
