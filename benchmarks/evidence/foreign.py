"""Whole heads by another law than the one that pretraining draws from, with all their truth.

Anatomy: `aseg`, the FreeSurfer labels of `../shared/data/extras/t1w_aseg` (`simheads`), whose
cortex is a person's; and `mni`, the template with another cortex: its tissues sharpened and the
border between them moved by a field of its own. Bundles as people have them, and three straight
sheets through all of white matter, which cross whatever they meet. What tissues are made of: sticks
and their surroundings have diffusivities of their own, and what is across fibres is not tied to
density (pretraining ties it, as NODDI does, within a factor). Fields are smooth over 9 mm.

Scans hold a slab of 70 mm, upright. Volumes move by a tenth of a millimetre and degree; Rician
noise; a receive field. Directions of a shell are spread evenly, anew for every head.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from realscans import SHARED, Scan
from simheads import held_out_template, mni_template, slab

from bidsapp.modalities.dwi.physics.gradients import GradientTable
from bidsapp.modalities.dwi.physics.harmonics import degrees
from bidsapp.modalities.dwi.physics.peaks import MAX_FIBRES
from bidsapp.modalities.dwi.simulate.blocks import ORDER, Block, fractions_of, make_block
from bidsapp.modalities.dwi.simulate.corruption import Table, true_volumes, turned_all
from bidsapp.modalities.dwi.simulate.fibres import Bundles, draw_bundles
from bidsapp.modalities.dwi.simulate.microstructure import FREE_WATER, fibre_coefficients
from bidsapp.modalities.dwi.simulate.protocol import DIFFUSIVITY, DWI_UNITS, S0
from bidsapp.modalities.dwi.simulate.scheme import draw_scheme
from bidsapp.modalities.dwi.simulate.tissue_parameters import (
    Neurites,
    TissueParameters,
    parameters,
    signal_at_rest,
)
from bidsapp.physics.streams import stream
from bidsapp.simulate.acquisition import draw_bias, draw_motion, rician
from bidsapp.simulate.anatomy import CSF, GM, RIM, TISSUES, WM, Template, draw_head
from bidsapp.simulate.grids import Grid, normal, smooth_field, uniform

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    #: What is done to the tissues of a block before it is scanned.
    Change = Callable[[Block, TissueParameters], TissueParameters]

#: mm over which the tissues' parameters change; thickness of a sheet of fibres.
WIDTH, SHEET = 9.0, 9.0
#: Sheets of fibres, and how they count beside a bundle.
SHEETS, STRENGTH = 3, 0.7
#: How much sharper tissues are than in the template, and how far (log odds) their border moves.
SHARPER, MOVED = 1.6, 1.2
#: Of volumes, mm and degrees.
LEFT = 0.1
ANATOMIES = ('aseg', 'mni')
#: Seeds of the heads that thresholds are tuned on begin here.
TUNED = 1000
#: Parts of the stream that a head's numbers come from.
_HEAD, _TISSUE, _SCAN = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Scheme:
    """What is asked of the scanner."""

    shells: tuple[tuple[float, int], ...]  #: (b in s/mm², directions)
    snr: float = 20.0  #: of white matter at b = 0
    voxel: float = 2.5  #: mm
    n_b0: int = 2

    @property
    def name(self) -> str:
        """For rows and files."""
        shells = '+'.join(f'{n}at{b:.0f}' for b, n in self.shells)
        return f'{shells}-snr{self.snr:g}-{self.voxel:g}mm'

    def table(self, generator: torch.Generator) -> Table:
        """Directions, drawn anew."""
        return Table(*draw_scheme(self.n_b0, self.shells, generator))


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """A scan and all that is true of it."""

    scan: Scan
    tissue: np.ndarray  #: (3, X, Y, Z) fractions of GM, WM, fluid; one in all, in the mask
    fibres: np.ndarray  #: (X, Y, Z, 3, 3) unit vectors, world axes, or zeros
    parameters: np.ndarray  #: (3, X, Y, Z) icvf, od, isovf

    @property
    def count(self) -> np.ndarray:
        """(X, Y, Z) fibres that count, in white matter."""
        return np.asarray((np.square(self.fibres).sum(-1) > 0.25).sum(-1))


@dataclass(frozen=True, slots=True, eq=False)
class Apart(Neurites):
    """Neurites along which it does not diffuse as it does around them: ``d_out``."""

    d_out: Tensor


def heads(each: int, first: int = 1) -> list[str]:
    """Names of ``each`` heads of every anatomy that can be made here."""
    there = [a for a in ANATOMIES if a != 'aseg' or (SHARED / 'extras' / 't1w_aseg').is_dir()]
    return [f'{anatomy}-{first + k}' for k in range(each) for anatomy in there]


@lru_cache(maxsize=1)
def block_of(head: str, voxel: float) -> Block:
    """Anatomy and fibres of a head, by its name."""
    anatomy, _, number = head.partition('-')
    generator = stream(int(number), _HEAD, ANATOMIES.index(anatomy), of='foreign')
    own = anatomy == 'aseg'
    template = held_out_template() if own else other_cortex(mni_template(), generator)
    person = draw_head(template, generator)
    bundles = with_sheets(draw_bundles(template, generator), generator)
    grid = slab(person, voxel)
    return make_block(
        person, bundles, around(person.tissues(grid.points())[: CSF + 1].sum(0), grid)
    )


def around(brain: Tensor, grid: Grid, margin: int = 3) -> Grid:
    """The part of a grid that holds the brain, and a margin in the plane of slices."""
    there = (brain > 0.3).nonzero()
    low = (there.amin(0) - margin).clamp_min(0)
    high = torch.minimum(there.amax(0) + 1 + margin, torch.tensor(grid.shape))
    affine = grid.affine.clone()
    affine[:3, 3] += affine[:3, :3] @ low.to(affine)
    x, y, z = (high - low).tolist()
    return Grid((x, y, z), affine)


def other_cortex(template: Template, generator: torch.Generator) -> Template:
    """The template with sharper tissues, whose borders lie elsewhere."""
    fractions = template.fractions.clone()
    brain = fractions[: CSF + 1].sum(0)
    odds = SHARPER * (fractions[: CSF + 1] / brain.clamp_min(1e-6)).clamp_min(1e-4).log()
    odds = odds + MOVED * smooth_field(template.grid.axes(), 8.0, CSF + 1, generator)
    fractions[: CSF + 1] = odds.softmax(0) * brain
    return Template(fractions, template.grid)


def with_sheets(bundles: Bundles, generator: torch.Generator) -> Bundles:
    """With straight sheets of fibres, each a layer of the whole brain."""
    points, fields = bundles.lattice.points(), [*bundles.fields]
    for _ in range(SHEETS):
        along, across = torch.linalg.qr(normal((3, 3), generator))[0].T[:2]
        place = torch.tensordot(across, points, dims=1) - uniform(-30, 30, generator)
        amount = STRENGTH * torch.exp(-((place / (SHEET / 2)) ** 4))
        fields.append(along[:, None, None, None] * amount)
    return Bundles(torch.stack(fields), bundles.lattice)


def tissues_of(block: Block, generator: torch.Generator) -> TissueParameters:
    """What the tissues of a head are made of."""
    fields = smooth_field(block.grid.axes(), WIDTH, 12, generator).to(block.tissues)

    def kind(icvf: float, od: float, iso: float, d: tuple[float, ...], f: Tensor) -> Apart:
        inside, outside, across = (
            value + 0.12 * field for value, field in zip(d, f[3:], strict=True)
        )
        return Apart(
            icvf=(icvf + 0.09 * f[0]).clamp(0.1, 0.9),
            od=(od * torch.exp(0.45 * f[1])).clamp(0.03, 0.9),
            isovf=(iso * torch.exp(0.7 * f[2])).clamp(0, 0.4),
            d_par=inside.clamp(1.2, 2.8),
            d_perp=across.clamp(0.2, 1.2),
            d_out=outside.clamp(1.2, 2.6),
        )

    def some(low: float, high: float) -> float:
        return uniform(low, high, generator)

    white = kind(
        some(0.5, 0.7), some(0.06, 0.16), some(0.02, 0.08),
        (some(1.8, 2.4), some(1.4, 2.2), some(0.4, 0.8)), fields[:6],
    )  # fmt: skip
    grey = kind(
        some(0.3, 0.5), some(0.4, 0.7), some(0.03, 0.12),
        (some(1.5, 2.3), some(1.3, 1.8), some(0.6, 1.0)), fields[6:],
    )  # fmt: skip
    s0 = torch.tensor(S0).to(block.tissues)
    s0[GM], s0[CSF] = some(1.05, 1.4), some(1.7, 3.4)
    s0[RIM] = s0[CSF]
    return TissueParameters(white, grey, s0)


def signal_of(block: Block, made: TissueParameters, b: float) -> Tensor:
    """(K, X, Y, Z) harmonics of the signal at ``b`` s/mm²."""
    ms, total = b * 1e-3, torch.zeros_like(block.white)
    degree = torch.from_numpy(degrees(ORDER))
    isotropic = torch.zeros_like(block.tissues[0])
    kinds = ((WM, block.white, made.white), (GM, block.grey, made.grey))
    for tissue, density, what in kinds:
        assert isinstance(what, Apart)
        where = block.tissues[tissue] > 0
        icvf, od, d_in, d_out, d_perp = (
            field[where] for field in (what.icvf, what.od, what.d_par, what.d_out, what.d_perp)
        )
        sticks = fibre_coefficients(ms, torch.ones_like(icvf), od, d_in, d_in)
        around_them = fibre_coefficients(
            ms, torch.zeros_like(icvf), od, torch.maximum(d_out, d_perp), d_perp
        )
        kernel = (icvf[:, None] * sticks + (1 - icvf[:, None]) * around_them).T[degree // 2]
        scale = made.s0[tissue] * (1 - what.isovf[where])
        factor = (4 * torch.pi / (2 * degree + 1))[:, None] * kernel
        total[:, where] += density[:, where] * factor * scale
        free = float(np.exp(-ms * FREE_WATER))
        isotropic += made.s0[tissue] * block.tissues[tissue] * what.isovf * free
    for k in range(WM + 1, len(TISSUES)):
        decay = float(np.exp(-ms * DIFFUSIVITY[k]))
        isotropic += made.s0[k] * block.tissues[k] * decay
    total[0] += (4 * torch.pi) ** 0.5 * isotropic
    return total


def scanned(head: str, scheme: Scheme, change: Change | None = None) -> Known:
    """A head by a scheme; noise and all else stay what they were when its tissues ``change``."""
    block = block_of(head, scheme.voxel)
    anatomy, _, number = head.partition('-')
    own = (int(number), ANATOMIES.index(anatomy))
    made = tissues_of(block, stream(own[0], _TISSUE, own[1], of='foreign'))
    if change is not None:
        made = change(block, made)
    generator = stream(own[0], _SCAN, own[1], of='foreign')
    table = scheme.table(generator)
    n, grid = len(table.bvals), block.grid
    middle = (torch.tensor(grid.shape) - 1) / 2 * torch.tensor(grid.spacing)
    motion = draw_motion(n, middle, generator, LEFT, LEFT)
    s0 = signal_at_rest(block, made)
    clean = {float(b): signal_of(block, made, float(b)) for b in table.bvals.unique() if b > 0}
    volumes = turned_all(true_volumes(clean, s0, table, motion), motion, grid)
    volumes = DWI_UNITS * volumes * draw_bias(grid, generator)
    pure = block.tissues[WM] > 0.9
    sigma = float(volumes[table.bvals == 0].mean(0)[pure].mean()) / scheme.snr
    data = rician(volumes, sigma, generator).movedim(0, -1).contiguous().numpy()
    gtab = GradientTable(table.bvecs.double().numpy(), table.bvals.double().numpy())
    mask = block.mask
    fractions = fractions_of(block.tissues) * mask
    vectors = (block.directions * mask).movedim(0, -1).unflatten(-1, (MAX_FIBRES, 3))
    return Known(
        Scan(data, gtab, grid.affine.double().numpy(), mask.numpy()),
        (fractions / fractions.sum(0).clamp_min(1e-6)).numpy(),
        vectors.numpy(),
        (parameters(block, made) * mask).numpy(),
    )


def implanted(where: Tensor, icvf: float = 0.0, isovf: float = 0.0) -> Change:
    """Less neurites or more water in both tissues, as far as ``where`` (X, Y, Z) is 1."""

    def change(block: Block, made: TissueParameters) -> TissueParameters:
        def of(kind: Neurites) -> Neurites:
            density, water = kind.icvf + icvf * where, kind.isovf + isovf * where
            return replace(kind, icvf=density.clamp(0.02, 0.98), isovf=water.clamp(0, 0.98))

        return TissueParameters(of(made.white), of(made.grey), made.s0)

    return change
