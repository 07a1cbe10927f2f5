"""Where the large white-matter bundles run: guide curves in MNI mm, right hemisphere.

Coordinates are rounded from textbook anatomy (midsagittal callosum, internal capsule, cingulum …);
they are meant to give plausible orientations and crossings, not to be an atlas.
"""

from __future__ import annotations

from dataclasses import dataclass

Point = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Family:
    """Curves that run side by side: a surface stretched between ``guides``, of some thickness.

    All guides of a family have the same number of points and run the same way.
    """

    name: str
    guides: tuple[tuple[Point, ...], ...]
    strength: float = 1.0
    spread: float = 3.0  #: mm, standard deviation of a curve's offset from the surface
    commissure: bool = False  #: the guides start at the midline and are continued on the left


CALLOSUM = Family(
    'callosum',
    (
        ((0, 27, -4), (7, 31, -5), (14, 42, -6), (18, 56, -6)),
        ((0, 31, 7), (9, 36, 9), (16, 48, 12), (20, 64, 14)),
        ((0, 18, 21), (13, 20, 23), (22, 32, 34), (24, 44, 44)),
        ((0, 0, 26), (13, 1, 29), (22, 3, 42), (24, 4, 62)),
        ((0, -20, 27), (13, -20, 30), (22, -23, 44), (24, -26, 64)),
        ((0, -32, 22), (14, -34, 27), (24, -42, 42), (26, -54, 58)),
        ((0, -39, 14), (14, -46, 17), (22, -66, 20), (16, -88, 18)),
        ((0, -38, 9), (15, -45, 10), (23, -66, 4), (16, -90, -2)),
    ),
    strength=1.2,
    commissure=True,
)


LATERAL_CALLOSUM = Family(
    'lateral callosum',
    (
        ((0, 16, 21), (14, 16, 23), (30, 22, 26), (46, 28, 22)),
        ((0, 0, 26), (14, 0, 28), (32, 0, 34), (52, 2, 30)),
        ((0, -20, 26), (14, -20, 29), (33, -22, 36), (52, -22, 38)),
        ((0, -34, 20), (16, -36, 24), (34, -42, 32), (50, -46, 38)),
    ),
    strength=0.8,
    commissure=True,
)


TAPETUM = Family(
    'tapetum',
    (
        ((0, -37, 14), (16, -40, 18), (30, -42, 6), (42, -34, -12)),
        ((0, -38, 12), (16, -44, 16), (32, -52, 6), (44, -54, -8)),
    ),
    strength=0.5,
    commissure=True,
)


MIDDLE_CEREBELLAR_PEDUNCLE = Family(
    'middle cerebellar peduncle',
    (
        ((0, -18, -28), (11, -24, -29), (22, -42, -34), (26, -62, -38)),
        ((0, -20, -38), (11, -26, -38), (21, -44, -40), (22, -64, -46)),
    ),
    commissure=True,
)


CORTICOSPINAL = Family(
    'corticospinal tract',
    (
        ((5, -32, -66), (6, -25, -40), (13, -18, -12), (23, -14, 8), (24, -18, 30), (9, -26, 72)),
        ((5, -32, -66), (6, -24, -40), (14, -17, -12), (24, -12, 8), (26, -15, 30), (26, -22, 66)),
        ((6, -32, -66), (7, -24, -40), (15, -16, -12), (25, -10, 8), (29, -11, 28), (46, -10, 48)),
    ),
    strength=1.2,
)


CORONA_RADIATA = Family(
    'corona radiata',
    (
        ((11, -14, 2), (18, 4, 8), (21, 22, 16), (22, 40, 24), (22, 54, 28)),
        ((13, -14, -4), (20, -1, 8), (23, 10, 27), (22, 20, 42), (20, 28, 56)),
        ((15, -16, -10), (23, -11, 8), (26, -5, 28), (24, 0, 48), (20, 4, 66)),
        ((16, -20, -8), (25, -20, 10), (28, -28, 28), (26, -38, 48), (22, -46, 66)),
        ((17, -24, -4), (26, -30, 10), (28, -46, 24), (26, -60, 36), (20, -72, 46)),
    ),
    strength=0.9,
)


OPTIC_RADIATION = Family(
    'optic radiation',
    (
        ((22, -26, -3), (33, -30, 0), (34, -46, 4), (28, -68, 8), (13, -90, 6)),
        ((22, -25, -5), (36, -22, -8), (38, -44, -4), (30, -68, -2), (14, -90, -4)),
    ),
    strength=0.9,
)


CINGULUM = Family(
    'cingulum',
    (
        (
            (7, 26, -8), (9, 38, 4), (9, 34, 20), (9, 18, 32), (9, -4, 38), (9, -26, 38),
            (10, -42, 30), (13, -49, 14), (20, -42, -2), (25, -30, -12), (24, -12, -24),
        ),
    ),
    strength=1.0,
    spread=2.0,
)  # fmt: skip


SUPERIOR_LONGITUDINAL = Family(
    'superior longitudinal fasciculus',
    (
        ((24, 40, 26), (26, 18, 40), (26, -6, 46), (28, -32, 46), (28, -58, 40)),
        ((36, 38, 18), (38, 14, 28), (38, -10, 32), (38, -34, 34), (38, -58, 30)),
        ((44, 22, 14), (42, 4, 22), (42, -16, 26), (44, -36, 28), (48, -54, 24)),
    ),
    strength=0.9,
)


ARCUATE = Family(
    'arcuate fasciculus',
    (
        ((42, 14, 22), (38, -8, 28), (38, -32, 26), (42, -44, 10), (48, -34, -6), (52, -14, -16)),
        ((44, 8, 30), (40, -14, 32), (39, -40, 28), (44, -52, 8), (50, -42, -10), (54, -24, -20)),
    ),
    strength=0.8,
)


INFERIOR_FRONTO_OCCIPITAL = Family(
    'inferior fronto-occipital fasciculus',
    (
        ((22, 56, -4), (27, 32, -2), (32, 8, -6), (36, -18, -6), (36, -44, 0), (30, -70, 2),
         (20, -90, 0)),
        ((32, 48, 8), (31, 28, 4), (33, 6, -4), (37, -20, -3), (37, -46, 8), (32, -70, 14),
         (22, -88, 18)),
    ),
)  # fmt: skip


INFERIOR_LONGITUDINAL = Family(
    'inferior longitudinal fasciculus',
    (
        ((40, 4, -34), (44, -16, -24), (44, -40, -14), (36, -66, -6), (22, -88, -4)),
        ((52, -2, -20), (52, -20, -14), (48, -42, -6), (40, -66, 2), (28, -88, 6)),
    ),
    strength=0.9,
)


UNCINATE = Family(
    'uncinate fasciculus',
    (((20, 46, -12), (26, 26, -12), (33, 10, -14), (36, 2, -24), (36, 0, -36)),),
    strength=0.9,
)


SUPERIOR_CEREBELLAR_PEDUNCLE = Family(
    'superior cerebellar peduncle',
    (((20, -62, -38), (12, -54, -32), (7, -44, -24), (4, -32, -14), (8, -20, -2)),),
    spread=2.0,
)


FAMILIES = (
    CALLOSUM,
    LATERAL_CALLOSUM,
    TAPETUM,
    MIDDLE_CEREBELLAR_PEDUNCLE,
    CORTICOSPINAL,
    CORONA_RADIATA,
    OPTIC_RADIATION,
    CINGULUM,
    SUPERIOR_LONGITUDINAL,
    ARCUATE,
    INFERIOR_FRONTO_OCCIPITAL,
    INFERIOR_LONGITUDINAL,
    UNCINATE,
    SUPERIOR_CEREBELLAR_PEDUNCLE,
)
