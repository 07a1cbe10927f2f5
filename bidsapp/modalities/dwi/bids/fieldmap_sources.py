"""Field maps as they lie in a dataset: reversed pairs of images, and gradient-echo field maps.

A PhaseEncodingDirection is in the axes of its own image, so two are compared in the world. The
label ``dir-`` is a name that somebody chose; polarity is never read from it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bidsapp.bids.images import open_image
from bidsapp.bids.names import source_entities
from bidsapp.bids.scans import BidsImage, inherited, number, phase_encoding, read_scan, readout_time
from bidsapp.modalities.dwi.bids.tables import read_numbers
from bidsapp.modalities.dwi.physics.acquisition import MIN_DIRECTIONS
from bidsapp.modalities.dwi.physics.gradients import B0_THRESHOLD, b0_limit
from bidsapp.problems import Unavailable, problem_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

#: Suffixes of images that can be the other half of a pair, the most fitting first.
PAIRED = ('epi', 'dwi', 'sbref')
#: Suffixes that stand for a gradient-echo field map; what belongs to one stands beside it.
MEASURED = ('phasediff', 'phase1', 'fieldmap')
#: Units of a field map in BIDS.
UNITS = ('Hz', 'rad/s', 'T')
LINK_IT = 'if it is meant for this run, link it with B0FieldIdentifier or IntendedFor'


@dataclass(frozen=True, slots=True)
class FieldmapSource:
    """One way to know the displacement of a run: files, and the few numbers that are needed.

    A 'pair' has the file ``opposite``, its ``opposite_bval`` if only some volumes are b=0 (those up
    to the B0Threshold of its metadata, s/mm²), and ``same`` where there is an image like it with
    the polarity of the run. ``metadata`` of ``run``, ``opposite`` and ``same`` have
    PhaseEncodingDirection, each in the axes of its own image, and all or none of them
    TotalReadoutTime in s (none: they are equal).

    A 'gre' has ``magnitude``, and ``phasediff``, or ``phase1`` and ``phase2``, or ``fieldmap``.
    ``metadata`` of ``run`` has PhaseEncodingDirection and TotalReadoutTime in s, that of ``field``
    EchoTime1 and EchoTime2 in s, or the Units of the map.
    """

    kind: Literal['pair', 'gre']
    files: Mapping[str, Path]
    metadata: Mapping[str, Mapping[str, Any]]
    note: str

    @property
    def readout_ratio(self) -> float:
        """Displacement of the opposite image in units of the run's, without sign."""
        times = [self.metadata[k].get('TotalReadoutTime') for k in ('opposite', 'run')]
        return float(times[0] / times[1]) if times[0] and times[1] else 1.0

    @property
    def words(self) -> str:
        """One line for people."""
        main = next(iter(self.files.values())).name
        what = {'pair': 'reversed phase encoding', 'gre': 'gradient-echo field map'}[self.kind]
        return f'{what}: {main} ({self.note})'


def pairs(
    run: BidsImage,
    scans: Sequence[BidsImage],
    link: str,
    notes: list[str],
    b0_threshold: float = B0_THRESHOLD,
) -> list[FieldmapSource]:
    """The best reversed pair of ``run`` with one of ``scans``, or what is wrong as ``notes``.

    ``link`` says how they are linked to the run; it is empty if they are not. ``b0_threshold`` is
    the greatest b (s/mm²) that counts as b = 0.
    """
    candidates = [s for s in scans if s.entities['suffix'] in PAIRED]
    if not candidates:
        return []
    axis, sign = phase_encoding(run.metadata)
    if sign == 0:
        only = '' if axis is None else ', only the axis'
        notes.append(
            f'the metadata do not say PhaseEncodingDirection{only}: a reversed pair cannot be used'
        )
        return []
    opposite: list[tuple[tuple[Any, ...], FieldmapSource]] = []
    alike: list[BidsImage] = []
    for scan in candidates:
        try:
            turn = turn_of(run, scan)
            if turn > 0:
                alike.append(scan)
            elif turn < 0:
                opposite.append((_rank(run, scan), _pair(run, scan, link, b0_threshold)))
        except Exception as error:
            notes.append(f'{scan.path.name} cannot be paired: {_reason(scan, error)}')
    if not opposite:
        return []
    opposite.sort(key=lambda pair: (pair[0], pair[1].files['opposite'].name))
    best = [source for rank, source in opposite if rank == opposite[0][0]]
    if not link and len(best) > 1:
        names = ', '.join(source.files['opposite'].name for source in best)
        notes.append(f'{names} have the opposite phase encoding and none is linked: {LINK_IT}')
        return []
    return [_with_same(best[0], alike, run)]


def _reason(scan: BidsImage, error: Exception) -> Exception:
    """Why a field map, without which a run goes on, cannot be used."""
    return error if isinstance(error, Unavailable) else problem_of(error, scan.path.name)


def turn_of(run: BidsImage, scan: BidsImage) -> int:
    """1 for the same phase encoding, -1 for the opposite, 0 for another axis."""
    if scan.trouble is not None:
        raise scan.trouble
    vectors = []
    for one in (run, scan):
        axis, sign = phase_encoding(one.metadata)
        if axis is None or sign == 0:
            raise Unavailable('its metadata do not say PhaseEncodingDirection')
        column = one.grid()[1][:3, axis]
        vectors.append(sign * column / np.linalg.norm(column))
    cosine = float(vectors[0] @ vectors[1])
    return round(cosine) if abs(cosine) > 0.9 else 0


def _rank(run: BidsImage, scan: BidsImage) -> tuple[Any, ...]:
    """How well a scan fits a run, the smaller the better: grid, kind of image, name."""
    mine, its = source_entities(run.entities), source_entities(scan.entities)
    shared = sum(mine.get(key) == value for key, value in its.items())
    return not _same_grid(run, scan), PAIRED.index(scan.entities['suffix']), -shared


def _same_grid(run: BidsImage, scan: BidsImage) -> bool:
    (mine, here), (its, there) = run.grid(), scan.grid()
    sizes = [np.linalg.norm(affine[:3, :3], axis=0) for affine in (here, there)]
    return mine == its and np.allclose(sizes[0], sizes[1], rtol=0.02)


def _pair(run: BidsImage, scan: BidsImage, link: str, b0_threshold: float) -> FieldmapSource:
    """``run`` and ``scan`` as a pair. Raises Unavailable or BadData if they are not one."""
    alike = _same_grid(run, scan)
    if not link and not alike:
        raise Unavailable(f'it is on another grid and linked to nothing; {LINK_IT}')
    files = {'opposite': scan.path}
    tables = inherited(scan.root, scan.path, '.bval')
    if tables:
        files['opposite_bval'] = tables[-1]
        bvals = read_numbers(tables[-1]).ravel()
        limit = b0_limit(bvals, b0_threshold)
        if not (bvals <= limit).any():
            raise Unavailable('it has no volume without diffusion weighting')
    elif scan.entities['suffix'] == 'dwi' and volumes_of(scan) > MIN_DIRECTIONS:
        raise Unavailable('it has no bval file, so its volumes at b = 0 are not known')
    metadata = {
        name: {'PhaseEncodingDirection': one.metadata['PhaseEncodingDirection']}
        for name, one in (('run', run), ('opposite', scan))
    }
    if tables:
        metadata['opposite']['B0Threshold'] = limit
    (mine, said), (its, _) = readout_time(run.metadata), readout_time(scan.metadata)
    remarks = [link or 'not linked, the one that fits in the session']
    if scan.entities['suffix'] == 'dwi' and not tables:
        remarks.append('it has no bval file and too few volumes for another purpose than b = 0')
    if mine is not None and its is not None:
        metadata['run']['TotalReadoutTime'] = mine
        metadata['opposite']['TotalReadoutTime'] = its
        remarks += [said] * (said != '' and mine != its)
    elif alike:
        remarks.append('the readout times are not known and taken to be equal, as the grids are')
    else:
        raise Unavailable('TotalReadoutTime is not in the metadata of both, and the grids differ')
    remarks += ['on another grid'] * (not alike)
    return FieldmapSource('pair', files, metadata, '; '.join(remarks))


def volumes_of(scan: BidsImage) -> int:
    """How many volumes an image has, by its header."""
    shape = open_image(scan.path).shape
    return int(shape[3]) if len(shape) > 3 else 1


def _with_same(
    source: FieldmapSource, alike: Sequence[BidsImage], run: BidsImage
) -> FieldmapSource:
    """With the spin echo of the run's polarity that was made along with an opposite one."""
    opposite = read_scan(run.root, source.files['opposite'])
    timed = 'TotalReadoutTime' in source.metadata['run']
    for scan in sorted(alike, key=lambda s: s.path):
        time, _ = readout_time(scan.metadata)
        if (
            _series(scan) == _series(opposite)
            and scan.entities['suffix'] == 'epi'
            and _same_grid(scan, opposite)
            and (time is not None or not timed)
        ):
            said = {'PhaseEncodingDirection': scan.metadata['PhaseEncodingDirection']}
            metadata = {**source.metadata, 'same': {**said, 'TotalReadoutTime': time}}
            if not timed:
                metadata['same'] = said
            return replace(source, files={**source.files, 'same': scan.path}, metadata=metadata)
    return source


def _series(scan: BidsImage) -> dict[str, str]:
    """What the names of the two halves of a pair have in common."""
    return {k: v for k, v in scan.entities.items() if k not in ('direction', 'run')}


def measured(
    run: BidsImage, scans: Sequence[BidsImage], link: str, notes: list[str]
) -> list[FieldmapSource]:
    """The gradient-echo field maps of ``run`` among ``scans``; arguments as for `pairs`."""
    candidates = [s for s in scans if s.entities['suffix'] in MEASURED]
    if not candidates:
        return []
    time, said = readout_time(run.metadata)
    if phase_encoding(run.metadata)[1] == 0:
        notes.append(
            'the metadata do not say PhaseEncodingDirection: a field map cannot be used, for it '
            'would not be known which way it shifts'
        )
        return []
    if time is None:
        notes.append(f'{said}: a field map cannot be used, for it would not be known how far')
        return []
    known = {
        'PhaseEncodingDirection': run.metadata['PhaseEncodingDirection'],
        'TotalReadoutTime': time,
    }
    found = []
    for scan in candidates:
        try:
            files, field = _field(scan)
        except Exception as error:
            notes.append(f'{scan.path.name} cannot be used: {_reason(scan, error)}')
            continue
        remarks = [link or 'not linked, the only one in the session', *([said] if said else [])]
        found.append(
            FieldmapSource('gre', files, {'run': known, 'field': field}, '; '.join(remarks))
        )
    if not link and len(found) > 1:
        names = ', '.join(next(iter(source.files.values())).name for source in found)
        notes.append(f'{names} are field maps and none is linked: {LINK_IT}')
        return []
    return found


def _field(scan: BidsImage) -> tuple[dict[str, Path], dict[str, Any]]:
    """Files and numbers of a field map. Raises Unavailable or BadData if some are missing."""
    if scan.trouble is not None:
        raise scan.trouble
    suffix = scan.entities['suffix']
    files, field = {suffix: scan.path}, {}
    if suffix == 'fieldmap':
        if scan.metadata.get('Units') not in UNITS:
            raise Unavailable(f'Units in its metadata are none of {", ".join(UNITS)}')
        field = {'Units': scan.metadata['Units']}
    elif suffix == 'phase1':
        second = _beside(scan, 'phase2')
        files['phase2'] = second.path
        field = _echo_times(number(scan.metadata, 'EchoTime'), number(second.metadata, 'EchoTime'))
    else:
        times = [number(scan.metadata, f'EchoTime{k}') for k in (1, 2)]
        if None in times:
            both = [_beside(scan, f'magnitude{k}').metadata for k in (1, 2)]
            times = [number(metadata, 'EchoTime') for metadata in both]
        field = _echo_times(*times)
    wanted = ('magnitude', 'magnitude1') if suffix == 'fieldmap' else ('magnitude1', 'magnitude2')
    files['magnitude'] = _beside(scan, *wanted).path
    for path in files.values():
        BidsImage(scan.root, path, {}).grid()
    return files, field


def _echo_times(first: float | None, second: float | None) -> dict[str, float]:
    if first is None or second is None:
        raise Unavailable('its metadata do not say EchoTime1 and EchoTime2')
    if not 0 < second - first < 0.1:
        raise Unavailable(f'its echo times {first:g} and {second:g} are not two times in seconds')
    return {'EchoTime1': first, 'EchoTime2': second}


def _beside(scan: BidsImage, *suffixes: str) -> BidsImage:
    """The image of the same name but another suffix, the first that is there."""
    start = scan.path.name.rpartition('_')[0]
    for suffix in suffixes:
        for extension in ('.nii.gz', '.nii'):
            path = scan.path.with_name(f'{start}_{suffix}{extension}')
            if path.is_file() or path.is_symlink():
                return read_scan(scan.root, path)
    raise Unavailable(f'there is no {start}_{suffixes[0]} beside it')
