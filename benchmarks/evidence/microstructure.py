"""Claim (b): microstructure from few directions and long voxels, on heads by another law.

    python benchmarks/evidence/microstructure.py --model FOLDER [--heads 6] [--quick] [--tables]
        [--real]

Two shells (b = 1000 and 2000) of 6 to 18 directions, voxels of 3 and 4 mm, 1.5 and 2 times as long
as 2 mm; the truth is that of `foreign` heads, the same in every scheme. Where tissue is more than
half of the signal (and more than 0.8 of the voxel): mean error, slope of the estimate on the truth,
coverage of stated intervals. Comparators, from the same volumes: NODDI, raw and after a blur, each
width a setting of which the best afterwards counts (of 2 x 6 directions too, where the app refuses
it); the tissue's own mean, grey and white, known from the truth; ridge regression with squares and
boosted trees on FA and MD of each shell and S0, all blurred too, fitted to the network's training
draws (`draws`).

Implants: icvf - 0.2, and isovf + 0.2, in balls of 9 mm radius in white matter and all else, noise
too, as before: mean change of the estimate over that of the truth, and the share of voxels there
whose truth lies within 1.96 stated deviations.

One shell is reported only (the network is not taught it: such an answer is the population's, for
`group` to learn): NODDI in closed form from FA and MD without water, with water that is regressed
on MD and S0, and the same regressions.

``--real``: the two slices of sub-maastricht in ../shared (30 x 1000 and 60 x 2000), against NODDI
of all of their volumes. The app takes no single slices, and a network of three dimensions has not
met a brain of one: an illustration.

Over 300 lines, for comparators, network and implants are scored in the same voxels, in one way.
"""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import people
import torch
from comparators import blurred, tensor
from draws import PEOPLE, brightness, features, squared, taught
from foreign import Scheme, implanted, scanned
from margins import (
    CLASSICAL,
    Claim,
    Figure,
    Margin,
    Scanned,
    Series,
    chosen,
    claim_of,
    claim_parser,
    print_margins,
    said,
    series,
)
from realscans import SHARED, Scan
from scores import table

from bidsapp.bids.images import load_volume, open_image
from bidsapp.modalities.dwi.learn.scalars import deviations
from bidsapp.modalities.dwi.physics import noddi as noddi_model
from bidsapp.modalities.dwi.physics.gradients import from_fsl
from bidsapp.modalities.dwi.physics.noddi_of_tensor import noddi_of_tensor
from bidsapp.modalities.dwi.physics.subsets import well_spread
from bidsapp.simulate.anatomy import WM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from foreign import Known

B = (1000.0, 2000.0)


def shells(n: int, voxel: float, snr: float = 20.0) -> Scheme:
    """Two shells of ``n`` directions."""
    return Scheme(tuple((b, n) for b in B), snr, voxel)


SCHEMES = (shells(6, 3.0), shells(12, 3.0), shells(18, 3.0), shells(6, 4.0), shells(12, 4.0),
           shells(18, 4.0))  # fmt: skip
#: Where things are implanted; one shell.
IMPLANTED, ONE_SHELL = shells(12, 3.0), Scheme(((1000.0, 30),), 20.0, 3.0)
QUICK, QUICK_ONE = shells(12, 5.0), Scheme(((1000.0, 30),), 20.0, 5.0)
PARAMETERS = ('icvf', 'od', 'isovf')
BLURS = (0.0, 1.2, 1.7, 2.2)  #: voxels, full width at half maximum
#: Voxels of a head that are looked at; NODDI takes its time.
VOXELS = 6000
NETWORK, MEAN = 'network', "tissue's own mean"
#: Of the best comparator's mean error.
WANTED = 0.8
#: Changes of the truth, the radius (mm) of balls and how many there are.
IMPLANTS = {'icvf': -0.2, 'isovf': 0.2}
RADIUS, BALLS = 9.0, 3
IMPLANTS_END = '-implants'


def places(known: Known) -> np.ndarray:
    """(X, Y, Z) the voxels that count, in tissue."""
    solid = known.tissue[:2].sum(0) > 0.8
    where = known.scan.mask & solid & (known.parameters[2] < 0.5)
    voxels = np.flatnonzero(where)
    some = np.random.default_rng(0).permutation(voxels)[:VOXELS]
    found = np.zeros(where.size, bool)
    found[some] = True
    return found.reshape(where.shape)


def scores(method: str, setting: str, name: str, own: np.ndarray, true: np.ndarray) -> list[Figure]:
    """Mean error and slope of the estimate on the truth, (V,) each."""
    spread = np.square(true - true.mean()).mean()
    slope = float(((own - own.mean()) * (true - true.mean())).mean() / max(float(spread), 1e-12))
    error = float(np.abs(own - true).mean())
    return [(method, setting, f'{name}_error', error), (method, setting, f'{name}_slope', slope)]


def noddi(scan: Scan, where: np.ndarray) -> noddi_model.Noddi:
    """NODDI, of fewer than the 12 directions a shell that the app asks for too."""
    with mock.patch.object(noddi_model, 'supports_noddi', return_value=None):
        return noddi_model.fit_noddi(scan.data, scan.gtab, where)


def by_noddi(scan: Scan, where: np.ndarray) -> dict[str, np.ndarray]:
    """Blur → (3, V) NODDI in ``where``."""
    edge, found = float(np.linalg.norm(scan.affine[:3, 0])), {}
    for width in BLURS:
        one = blurred(scan, width * edge) if width else scan
        fitted = noddi(one, where)
        found[f'blur {width:g}'] = np.stack([getattr(fitted, p)[where] for p in PARAMETERS])
    return found


@cache
def regressions(scheme: Scheme, people_: int) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Method → features (V, F) to (3, V), fitted to the training draws where there is tissue."""
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    known = taught(scheme, people_)
    good = (known['tissue'][:, :2].sum(1) > 0.5) & np.isfinite(known['parameters']).all(1)
    x, y = known['features'][good], known['parameters'][good]
    ridge = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 4, 6))).fit(squared(x), y)
    trees = [
        HistGradientBoostingRegressor(max_iter=150, random_state=0).fit(x, column) for column in y.T
    ]
    return {
        'ridge regression, squares': lambda own: ridge.predict(squared(own)).T.clip(0, 1),
        'boosted trees': lambda own: np.stack([tree.predict(own) for tree in trees]).clip(0, 1),
    }


@cache
def water(scheme: Scheme, people_: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """isovf regressed on MD (µm²/ms) and S0 with squares, on the training draws."""
    known = taught(scheme, people_)
    seen = known['features']

    def design(md: np.ndarray, s0: np.ndarray) -> np.ndarray:
        return np.column_stack([np.ones(len(md)), squared(np.column_stack([md, s0]))])

    a = design(seen[:, 1], seen[:, 2])
    weights = np.linalg.lstsq(a, known['parameters'][:, 2], rcond=None)[0]
    return lambda md, s0: np.clip(design(md, s0) @ weights, 0, 0.95)


def of_tissue(known: Known, where: np.ndarray) -> np.ndarray:
    """(3, V) the mean of grey and of white matter, whichever the voxel holds more of."""
    true, white = known.parameters[:, where], known.tissue[1][where] > known.tissue[0][where]
    found = np.zeros_like(true)
    for part in (white, ~white):
        if part.any():
            found[:, part] = true[:, part].mean(1, keepdims=True)
    return found


def classical(scheme: Scheme, people_: int, known: Known) -> Iterator[Figure]:
    """All comparators."""
    scan, where = known.scan, places(known)
    seen, true = features(scan)[where[scan.mask]], known.parameters[:, where]
    methods: dict[tuple[str, str], np.ndarray] = {(MEAN, ''): of_tissue(known, where)}
    if len(scheme.shells) > 1:
        methods |= {('NODDI', width): own for width, own in by_noddi(scan, where).items()}
    else:
        methods |= {('closed form, ' + k, ''): own for k, own in
                    by_closed_form(scan, where, scheme, people_).items()}  # fmt: skip
    for name, apply in regressions(scheme, people_).items():
        methods[name, ''] = apply(seen)
    for (method, setting), own in methods.items():
        for name, values, truth in zip(PARAMETERS, own, true, strict=True):
            yield from scores(method, setting, name, values, truth)


def by_closed_form(
    scan: Scan, where: np.ndarray, scheme: Scheme, people_: int
) -> dict[str, np.ndarray]:
    """(3, V) without water, and with water by regression."""
    maps = tensor(scan, where)
    fa, md = maps.fa[where], maps.md[where]
    guess = water(scheme, people_)(md * 1e3, brightness(scan, scan.mask)[where[scan.mask]])
    return {
        'no water': np.stack([*noddi_of_tensor(fa, md), np.zeros_like(fa)]),
        'water of MD and S0': np.stack([*noddi_of_tensor(fa, md, guess), guess]),
    }


def said_of(claim: Claim, scan: Scan, where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(3, V) what the network says, and the deviations that it states."""
    output = claim.applied.of(scan)['microstructure']
    inside = torch.from_numpy(where)
    n = len(PARAMETERS)
    stated = deviations(output[n:])[:, inside]
    return output[:n].sigmoid()[:, inside].numpy(), stated.numpy()


def covered(own: np.ndarray, true: np.ndarray, stated: np.ndarray, z: float) -> float:
    """Share of voxels whose truth lies within ``z`` stated deviations."""
    return float((np.abs(own - true) <= z * stated).mean())


def network(claim: Claim, known: Known) -> Iterator[Figure]:
    """What the network says, and how sure it is."""
    where = places(known)
    own, stated = said_of(claim, known.scan, where)
    for name, values, spread, true in zip(
        PARAMETERS, own, stated, known.parameters[:, where], strict=True
    ):
        yield from scores(NETWORK, '', name, values, true)
        for level, z in (('68', 1.0), ('95', 1.96)):
            yield NETWORK, '', f'{name}_within_{level}', covered(values, true, spread, z)


def balls(known: Known, voxel: float) -> np.ndarray:
    """(X, Y, Z) 1 in balls deep in white matter, that lie apart."""
    from scipy.ndimage import distance_transform_edt

    depth = distance_transform_edt(known.tissue[WM] > 0.8) * voxel
    points = np.moveaxis(np.indices(depth.shape), 0, -1) * voxel
    found = np.zeros(depth.shape, bool)
    for _ in range(BALLS):
        centre = points[np.unravel_index(depth.argmax(), depth.shape)]
        away = np.linalg.norm(points - centre, axis=-1)
        found |= away <= RADIUS
        depth = np.where(away <= 2.5 * RADIUS, 0, depth)
    return found


def implants(claim: Claim, head: str, scheme: Scheme, known: Known) -> Iterator[Figure]:
    """How much of a change of the truth the network follows, and NODDI."""
    inside = balls(known, scheme.voxel) & known.scan.mask & (known.tissue[WM] > 0.8)
    before = said_of(claim, known.scan, inside)[0]
    first = noddi(known.scan, inside)
    for name, size in IMPLANTS.items():
        k = PARAMETERS.index(name)
        change = implanted(torch.from_numpy(inside).float(), **{name: size})
        after = scanned(head, scheme, change)
        true = after.parameters[k][inside]
        wanted = float((true - known.parameters[k][inside]).mean())
        own, stated = said_of(claim, after.scan, inside)
        followed = float((own[k] - before[k]).mean()) / wanted
        yield NETWORK, '', f'{name}_implant', wanted
        yield NETWORK, '', f'{name}_followed', followed
        yield NETWORK, '', f'{name}_implant_within_95', covered(own[k], true, stated[k], 1.96)
        again = noddi(after.scan, inside)
        theirs = (getattr(again, name) - getattr(first, name))[inside].mean() / wanted
        yield 'NODDI', 'blur 0', f'{name}_followed', float(theirs)


def verdict_of(claim: Claim, scheme: Scheme, name: str) -> Callable[[Series, Margin], str]:
    """Error at most WANTED of theirs, and a slope that is no less."""
    made_by = (CLASSICAL, claim.applied.label)
    slopes = {
        (one.method, one.setting): one.mean
        for one in series(claim.results, made_by, scheme.name, f'{name}_slope')
    }

    def verdict(theirs: Series, found: Margin) -> str:
        own, other = slopes[NETWORK, ''], slopes[theirs.method, theirs.setting]
        fine = found.value <= WANTED and own >= other
        wanted = len(scheme.shells) > 1 and name != 'isovf'
        return f'slope {own:.2f}, theirs {other:.2f}' + (f': {said(fine)}' if wanted else '')

    return verdict


def tables(claim: Claim, schemes: tuple[Scheme, ...]) -> None:
    """Of all rows so far."""
    made_by = (CLASSICAL, claim.applied.label)
    for scheme in schemes:
        for name in PARAMETERS:
            found = series(claim.results, made_by, scheme.name, f'{name}_error')
            ours = [one for one in found if one.method == NETWORK]
            theirs = chosen([one for one in found if one.method != NETWORK], higher=False)
            theirs.sort(key=lambda one: -one.mean)
            if ours:
                title = f'{name}, {scheme.name}: mean error in tissue'
                print_margins(title, ours[0], theirs, True, verdict_of(claim, scheme, name))
    print_implants(claim)
    rows: list[list[object]] = []
    for scheme in schemes:
        for name in PARAMETERS:
            means = [
                one.mean
                for level in ('68', '95')
                for one in series(claim.results, made_by, scheme.name, f'{name}_within_{level}')
            ]
            if len(means) == 2:
                fine = 0.63 <= means[0] <= 0.73 and 0.92 <= means[1] <= 0.97
                rows.append([scheme.name, name, *means, said(fine)])
    if rows:
        print('Truth within 1 and 1.96 stated deviations: 0.63 to 0.73 and 0.92 to 0.97 wanted')
        table(['scheme', 'parameter', '68 %', '95 %', 'verdict'], rows)


def print_implants(claim: Claim) -> None:
    """Followed to a half, or covered by what is stated."""
    scheme = f'{(QUICK if claim.quick else IMPLANTED).name}{IMPLANTS_END}'
    rows: list[list[object]] = []
    for name, size in IMPLANTS.items():
        own = {
            metric: series(claim.results, (claim.applied.label,), scheme, metric)
            for metric in (f'{name}_followed', f'{name}_implant_within_95')
        }
        if not all(own.values()):
            continue
        by = {s.method: s.mean for s in own[f'{name}_followed']}
        inside = own[f'{name}_implant_within_95'][0].mean
        fine = by[NETWORK] >= 0.5 or inside >= 0.92
        rows.append([f'{name} {size:+g}', by[NETWORK], by['NODDI'], inside, said(fine)])
    if rows:
        print(f'Implants, {scheme}: share of the change that is followed (0.5 wanted), or covered')
        table(['implant', 'network', 'NODDI', 'truth within 95 %', 'verdict'], rows)


def real(claim: Claim) -> None:
    """The two slices of sub-maastricht; printed, never rows."""
    rows: list[list[object]] = []
    for path in people.scans_in(SHARED / 'more'):
        if people.person_of(path) != 'maastricht':
            continue
        people.refuse_seen(claim.applied.card, path)
        scan = one_slice(path).in_ras()
        label = noddi(scan, scan.mask)
        where = scan.mask & (label.isovf < 0.5)
        true = np.stack([getattr(label, p)[where] for p in PARAMETERS])
        for n in (6, 12, 18):
            part = scan.of(few(scan, n))
            methods = {f'NODDI, {k}': v for k, v in by_noddi(part, where).items()}
            methods[NETWORK] = said_of(claim, part, where)[0]
            for method, own in methods.items():
                errors = np.abs(own - true).mean(1)
                rows.append([path.name.split('.')[0], f'2 x {n}', method, *errors])
    if rows:
        print('sub-maastricht, single slices, against NODDI of all volumes: mean error')
        table(['scan', 'directions', 'method', *PARAMETERS], rows)


def one_slice(path: Path) -> Scan:
    """A run of a single slice, which `realscans.load` refuses; its brain is what is bright."""
    from scipy.ndimage import binary_fill_holes, binary_opening, label

    image, stem = open_image(path), str(path).removesuffix('.nii.gz')
    tables = [np.loadtxt(f'{stem}{kind}') for kind in ('.bvec', '.bval')]
    gtab, data = from_fsl(*tables, image.affine), load_volume(path)
    bright = data[..., gtab.b0].mean(-1)[..., 0]
    inside = binary_opening(bright > 0.25 * np.percentile(bright, 98), iterations=2)
    parts, _ = label(inside)
    largest = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    return Scan(data, gtab, np.asarray(image.affine), binary_fill_holes(largest)[..., None])


def few(scan: Scan, n: int) -> np.ndarray:
    """(K,) two b = 0 volumes and ``n`` of each shell that lie well apart."""
    chosen_ = [np.flatnonzero(scan.gtab.b0)[:2]]
    for _, members in scan.gtab.shells():
        chosen_.append(members[well_spread(scan.gtab[members], n)])
    return np.sort(np.concatenate(chosen_))


def main() -> None:
    """Rows that are missing, then the tables."""
    parser = claim_parser(__doc__)
    parser.add_argument('--real', action='store_true', help='the slices of sub-maastricht')
    claim = claim_of(parser, 'microstructure')
    people_ = 6 if claim.quick else PEOPLE
    schemes = (QUICK, QUICK_ONE) if claim.quick else (*SCHEMES, ONE_SHELL)
    label = claim.applied.label
    for head in claim.heads if not claim.only_tables else ():
        for scheme in schemes:
            scan, own = Scanned(head, scheme), partial(classical, scheme, people_)
            scan.write(claim.results, CLASSICAL, own)
            scan.write(claim.results, label, partial(network, claim))
            if scheme in (QUICK, IMPLANTED):
                own = partial(implants, claim, head, scheme)
                scan.write(claim.results, label, own, IMPLANTS_END)
    tables(claim, schemes)
    if claim.given.real:
        real(claim)


if __name__ == '__main__':
    main()
