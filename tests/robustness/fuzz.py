"""Bad input by kinds: headers, voxels, gradient tables, sidecars, names.

A kind says what is promised and spoils a run in a way that hypothesis draws. What is promised is
tried by `transfermri-check` and by a dry run, both in this process, beside a sound run.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import shutil
import struct
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bidsapp import check, cli
from bidsapp.modalities.dwi.physics.harmonics import fibonacci_hemisphere
from tests.robustness.lines import Line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SHAPE, DIRECTIONS, B0 = (8, 9, 6), 12, 2
VOLUMES = B0 + DIRECTIONS
SIDECAR = {'PhaseEncodingDirection': 'j-', 'TotalReadoutTime': 0.05, 'PartialFourier': 1}
#: Of each kind, where all is tried.
EXAMPLES = 6


@dataclass(frozen=True, slots=True)
class Kind:
    """``spoil(stem, drawn)`` makes the run at ``stem`` bad; the codes that a dry run may end with.

    ``voxels``: only who reads them sees it, as `transfermri-check` does and a dry run does not.
    """

    name: str
    codes: tuple[int, ...]
    drawn: st.SearchStrategy[Any]
    spoil: Callable[[Path, Any], None]
    voxels: bool = False


def of(stem: Path, extension: str) -> Path:
    """A file of the run at ``stem``."""
    return stem.with_name(f'{stem.name}.{extension}')


def write_run(root: Path, label: str) -> Path:
    """A sound run, so small that nothing can be seen in it; returns its path without extension."""
    stem = root / f'sub-{label}' / 'dwi' / f'sub-{label}_dwi'
    stem.parent.mkdir(parents=True)
    data = np.random.default_rng(1).integers(100, 900, (*SHAPE, VOLUMES)).astype(np.int16)
    image = nib.Nifti1Image(data, np.diag([-2.0, 2, 2, 1]))
    image.set_qform(image.affine, 1)
    nib.save(image, of(stem, 'nii.gz'))
    vectors = np.r_[np.zeros((B0, 3)), fibonacci_hemisphere(DIRECTIONS)]
    np.savetxt(of(stem, 'bval'), [[0] * B0 + [1000] * DIRECTIONS], fmt='%d')
    np.savetxt(of(stem, 'bvec'), vectors.T, fmt='%.6f')
    of(stem, 'json').write_text(json.dumps(SIDECAR))
    return stem


def table(stem: Path, extension: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Write a table anew, changed."""
    path = of(stem, extension)
    np.savetxt(path, change(np.loadtxt(path, ndmin=2)), fmt='%.6g')


def header(stem: Path, offset: int, content: bytes) -> None:
    """Overwrite bytes of the NIfTI header."""
    path = of(stem, 'nii.gz')
    whole = bytearray(gzip.decompress(path.read_bytes()))
    whole[offset : offset + len(content)] = content
    path.write_bytes(gzip.compress(bytes(whole), 1))


def image(stem: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Write the voxels anew, changed."""
    path = of(stem, 'nii.gz')
    given_image = nib.load(path)
    data = change(np.asarray(given_image.dataobj))
    nib.save(nib.Nifti1Image(data, given_image.affine), path)


def with_voxel(value: float) -> Callable[[np.ndarray], np.ndarray]:
    """One voxel of a weighted volume has this value."""

    def change(data: np.ndarray) -> np.ndarray:
        data = data.astype(np.float32)
        data[3, 4, 2, 5] = value
        return data

    return change


def put(stem: Path, row: int, column: int, token: str, extension: str) -> None:
    """Write ``token`` in place of one number of a table."""
    path = of(stem, extension)
    rows = [line.split() for line in path.read_text().splitlines()]
    rows[row % len(rows)][column] = token
    path.write_text('\n'.join(' '.join(line) for line in rows))


def sidecar(stem: Path, **entries: Any) -> None:
    """Write entries into the sidecar, as Python's json does: NaN and Infinity too."""
    of(stem, 'json').write_text(json.dumps({**SIDECAR, **entries}))


def directory(stem: Path, extension: str) -> None:
    """A folder in place of a file."""
    of(stem, extension).unlink()
    of(stem, extension).mkdir()


def coplanar(vectors: np.ndarray) -> np.ndarray:
    """All directions in one plane: no tensor."""
    angle = np.linspace(0, np.pi, vectors.shape[1], endpoint=False)
    flat = np.stack([np.cos(angle), np.sin(angle), 0 * angle])
    return np.where(np.linalg.norm(vectors, axis=0) > 0, flat, 0)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner,
                                                                max_size=3),
    max_leaves=5,
)  # fmt: skip
WEIGHTED = st.integers(B0, VOLUMES - 1)
WORDS = st.text('abcxyzµ_/%', min_size=1, max_size=6)
TEXT = st.text(st.characters(codec='utf-8'), max_size=30)
#: Fields of a NIfTI-1 header.
DIM, DATATYPE, PIXDIM, VOX_OFFSET, SLOPE, QCODE, SCODE, SROW, MAGIC = (
    40, 70, 76, 108, 112, 252, 254, 280, 344
)  # fmt: skip
USED = ('PhaseEncodingDirection', 'PhaseEncodingAxis', 'TotalReadoutTime', 'PartialFourier',
        'SliceTiming', 'SliceEncodingDirection', 'EchoTime', 'IntendedFor', 'B0FieldSource',
        'MultibandAccelerationFactor', 'EffectiveEchoSpacing', 'Manufacturer')  # fmt: skip

TABLES = (
    Kind('bvec with columns missing', (65,), st.integers(1, VOLUMES - 1),
         lambda stem, n: table(stem, 'bvec', lambda t: t[:, :-n])),
    Kind('bvec with columns too many', (65,), st.integers(1, 20),
         lambda stem, n: table(stem, 'bvec', lambda t: np.c_[t, t[:, :1].repeat(n, 1)])),
    Kind('bvec of another number of rows', (65,), st.sampled_from([1, 2, 4, 5, 9]),
         lambda stem, n: table(stem, 'bvec', lambda t: np.resize(t, (n, t.shape[1])))),
    Kind('bval of another length', (65,), st.integers(1, 3 * VOLUMES).filter(
        lambda n: n != VOLUMES),
         lambda stem, n: table(stem, 'bval', lambda t: np.resize(t, n)[None])),
    Kind('a word in bval', (65,), st.tuples(WEIGHTED, WORDS),
         lambda stem, d: put(stem, 0, d[0], d[1], 'bval')),
    Kind('a word in bvec', (65,), st.tuples(WEIGHTED, WORDS),
         lambda stem, d: put(stem, d[0], d[0], d[1], 'bvec')),
    Kind('bval that is no finite number', (65,),
         st.tuples(st.integers(0, VOLUMES - 1), st.sampled_from(['nan', 'inf', '-inf'])),
         lambda stem, d: put(stem, 0, d[0], d[1], 'bval')),
    Kind('negative bval', (65,), st.tuples(WEIGHTED, st.floats(-5000, -1)),
         lambda stem, d: put(stem, 0, d[0], f'{d[1]:g}', 'bval')),
    Kind('weighted gradient that is no number', (65,),
         st.tuples(WEIGHTED, st.sampled_from(['nan', 'inf'])),
         lambda stem, d: put(stem, d[0], d[0], d[1], 'bvec')),
    Kind('weighted gradient of length zero', (65,), st.integers(B0, VOLUMES - 2),
         lambda stem, v: table(stem, 'bvec', lambda t: np.where(np.arange(VOLUMES) == v, 0, t))),
    Kind('nothing is weighted', (65,), st.integers(0, 49),
         lambda stem, b: table(stem, 'bval', lambda t: 0 * t + b)),
    Kind('fewer than six directions', (65,), st.integers(1, 5),
         lambda stem, n: table(stem, 'bvec', lambda t: np.c_[
             t[:, :B0], np.resize(t[:, B0 : B0 + n].T, (DIRECTIONS, 3)).T])),
    Kind('directions of one plane', (65,), st.just(0),
         lambda stem, _: table(stem, 'bvec', coplanar)),
    Kind('a table of nothing', (65,), st.sampled_from(['bval', 'bvec']),
         lambda stem, e: of(stem, e).write_text('')),
    Kind('a table of bytes', (65,), st.tuples(st.sampled_from(['bval', 'bvec']),
                                              st.binary(min_size=1, max_size=40)),
         lambda stem, d: of(stem, d[0]).write_bytes(b'\xff' + d[1])),
    Kind('rows of different lengths', (65,), st.integers(1, VOLUMES - 1),
         lambda stem, n: of(stem, 'bvec').write_text(
             of(stem, 'bvec').read_text() + ' '.join(['0'] * n) + '\n')),
    Kind('no table', (66,), st.sampled_from(['bval', 'bvec']),
         lambda stem, e: of(stem, e).unlink()),
    Kind('a folder in place of a table', (65,), st.sampled_from(['bval', 'bvec']),
         directory),
)  # fmt: skip

HEADERS = (
    Kind('an image of nothing', (65,), st.just(0),
         lambda stem, _: of(stem, 'nii.gz').write_bytes(b'')),
    Kind('an image of bytes', (65,), st.binary(max_size=400),
         lambda stem, d: of(stem, 'nii.gz').write_bytes(d)),
    Kind('compressed bytes', (65,), st.binary(max_size=400),
         lambda stem, d: of(stem, 'nii.gz').write_bytes(gzip.compress(d))),
    Kind('an image cut within its header', (65,), st.integers(1, 40),
         lambda stem, n: of(stem, 'nii.gz').write_bytes(of(stem, 'nii.gz').read_bytes()[:n])),
    Kind('a number of dimensions that cannot be', (65,),
         st.integers(-32768, 32767).filter(lambda n: not 1 <= n <= 7),
         lambda stem, n: header(stem, DIM, struct.pack('<h', n))),
    Kind('dimensions that cannot be', (65,), st.tuples(st.integers(1, 4), st.integers(-9, 0)),
         lambda stem, d: header(stem, DIM + 2 * d[0], struct.pack('<h', d[1]))),
    Kind('another number of volumes', (65,), st.integers(1, 30000).filter(lambda n: n != VOLUMES),
         lambda stem, n: header(stem, DIM + 8, struct.pack('<h', n))),
    Kind('a type of voxels that does not exist', (65,),
         st.sampled_from([0, 1, 3, 5, 77, 255, 999, -1, 4097]),
         lambda stem, n: header(stem, DATATYPE, struct.pack('<h', n))),
    Kind('no magic word', (65,), st.binary(min_size=4, max_size=4).filter(
        lambda b: b not in (b'n+1\0', b'ni1\0', b'n+2\0')), lambda stem, d: header(stem, MAGIC, d)),
    Kind('voxels that begin nowhere', (65,), st.sampled_from([float('nan'), float('inf'), -352.0]),
         lambda stem, v: header(stem, VOX_OFFSET, struct.pack('<f', v))),
    Kind('neither sform nor qform is one', (65,),
         st.sampled_from([0.0, float('nan'), float('inf')]),
         lambda stem, v: (header(stem, SROW, struct.pack('<12f', *[v] * 12)),
                          header(stem, QCODE, struct.pack('<2h', 0, 1)))[0]),
    Kind('voxels of no size', (65,), st.sampled_from([float('nan'), float('inf')]),
         lambda stem, v: (header(stem, PIXDIM + 4, struct.pack('<3f', v, v, v)),
                          header(stem, QCODE, struct.pack('<2h', 0, 0)))[0]),
    Kind('an unusable sform beside a qform', (0,), st.sampled_from([0.0, float('nan')]),
         lambda stem, v: header(stem, SROW, struct.pack('<12f', *[v] * 12))),
    Kind('one volume alone', (65,), st.just(0), lambda stem, _: image(stem, lambda d: d[..., 0])),
    Kind('five dimensions', (65,), st.integers(2, 3),
         lambda stem, n: image(stem, lambda d: np.stack([d] * n, -1))),
    Kind('too few slices', (65,), st.tuples(st.integers(0, 2), st.integers(1, 2)),
         lambda stem, d: image(stem, lambda data: data.take(range(d[1]), d[0]))),
    Kind('complex voxels', (65,), st.just(0),
         lambda stem, _: image(stem, lambda d: d.astype(np.complex64))),
    Kind('colours', (65,), st.just(0), lambda stem, _: image(stem, lambda d: np.zeros(
        d.shape, [('R', 'u1'), ('G', 'u1'), ('B', 'u1')]))),
    Kind('no image at all', (65, 66), st.just(0), lambda stem, _: (
        of(stem, 'nii.gz').unlink(), of(stem, 'nii.gz').symlink_to('nowhere'))[0]),
)  # fmt: skip

VOXELS = (
    Kind('a voxel that is no number', (65,),
         st.sampled_from([float('nan'), float('inf'), -float('inf')]),
         lambda stem, v: image(stem, with_voxel(v)), voxels=True),
    Kind('an image cut off', (65,), st.floats(0.4, 0.99), lambda stem, share: of(
        stem, 'nii.gz').write_bytes((w := of(stem, 'nii.gz').read_bytes())[: int(share * len(w))]),
        voxels=True),
    Kind('a damaged body', (65,), st.floats(0.5, 0.9), lambda stem, share: damage(stem, share),
         voxels=True),
)  # fmt: skip

SIDECARS = (
    Kind('a sidecar cut off', (65,), st.integers(0, len(json.dumps(SIDECAR)) - 1),
         lambda stem, n: of(stem, 'json').write_text(json.dumps(SIDECAR)[:n])),
    Kind('a sidecar that is no object', (65,), JSON.filter(lambda v: not isinstance(v, dict)),
         lambda stem, v: of(stem, 'json').write_text(json.dumps(v))),
    Kind('a sidecar of bytes', (65,), st.binary(max_size=40),
         lambda stem, d: of(stem, 'json').write_bytes(b'\xfe' + d)),
    Kind('a sidecar of words', (65,), TEXT.map(lambda t: f'x{t}'),
         lambda stem, t: of(stem, 'json').write_text(t, encoding='utf-8')),
    Kind('a sidecar too deep', (65,), st.integers(20000, 100000),
         lambda stem, n: of(stem, 'json').write_text('{"a":' * n)),
    Kind('a folder in place of a sidecar', (65,), st.just('json'), directory),
    Kind('an entry of any value', (0, 65), st.tuples(st.sampled_from(USED), JSON),
         lambda stem, d: sidecar(stem, **{d[0]: d[1]})),
    Kind('entries of any name and value', (0, 65), st.dictionaries(TEXT, JSON, max_size=4),
         lambda stem, d: sidecar(stem, **d)),
)  # fmt: skip

KINDS = (*TABLES, *HEADERS, *VOXELS, *SIDECARS)


def damage(stem: Path, share: float) -> None:
    """Other bytes in the middle of the compressed voxels."""
    path = of(stem, 'nii.gz')
    whole = bytearray(path.read_bytes())
    at = int(share * len(whole))
    whole[at : at + 8] = bytes(255 - b for b in whole[at : at + 8])
    path.write_bytes(bytes(whole))


def called(main: Callable[[list[str]], int], *argv: Any) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a program in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(arg) for arg in argv])
    return code, out.getvalue(), err.getvalue()


def trouble(kind: Kind, drawn: Any, scratch: Path) -> str:
    """What is not as promised of a dataset with one run of this kind and a sound one."""
    shutil.rmtree(scratch, ignore_errors=True)
    root = scratch / 'bids'
    write_run(root, 'sound')
    kind.spoil(write_run(root, 'bad'), drawn)
    (root / 'dataset_description.json').write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    return examined(kind, root) or planned(kind, root, scratch / 'out')


def examined(kind: Kind, root: Path) -> str:
    """What `transfermri-check` says that it should not, or does not."""
    code, out, err = called(check.main, root, '--json')
    if 'Traceback' in err or err:
        return f'transfermri-check: {err.strip().splitlines()[-1]}'
    errors = [row for row in json.loads(out) if row['severity'] == 'error']
    if [row for row in errors if 'sub-sound' in row['file']]:
        return f'transfermri-check blames the sound run: {errors}'
    if code not in (0, 65) or (code == 65) != bool(errors) or (not errors and 0 not in kind.codes):
        return f'transfermri-check ends with {code}: {[row["message"] for row in errors]}'
    if len(errors) > 1 and len({row['message'] for row in errors}) < len(errors):
        return f'transfermri-check says it twice: {errors}'
    return ''


def planned(kind: Kind, root: Path, out: Path) -> str:
    """What a dry run says that it should not, or does not."""
    argv = ('participant', '--dry-run', '--device', 'cpu', '--tasks', 'orientation')
    codes = (*kind.codes, 0) if kind.voxels else kind.codes
    alone, said, err = called(cli.main, root, out, *argv, '--participant-label', 'bad')
    if 'Traceback' in said + err or 'defect' in said + err:
        return f'dry run: {(said + err).strip().splitlines()[-1]}'
    if alone not in codes:
        return f'dry run ends with {alone}, not {codes}: {(said + err).strip()[-300:]}'
    both, said, err = called(cli.main, root, out, *argv)
    if both != (1 if alone else 0):
        return f'dry run beside a sound run ends with {both}: {(said + err).strip()[-300:]}'
    lines = [line for line in said.splitlines() if re.match(r'[\d:]+ sub-bad', line)]
    if len(lines) != 1:
        return f'dry run has {len(lines)} messages for the run: {lines}'
    if not re.search(r'sub-sound: 12 directions', said):
        return 'dry run does not plan the sound run'
    return ''


def tried(kind: Kind, scratch: Path, examples: int) -> tuple[int, str]:
    """How many distinct inputs of a kind were tried, and the first thing that went wrong."""
    seen: set[str] = set()

    @settings(
        max_examples=examples, derandomize=True, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(kind.drawn)
    def all_as_promised(drawn: Any) -> None:
        seen.add(repr(drawn))
        wrong = trouble(kind, drawn, scratch / 'case')
        assert not wrong, f'{drawn!r}: {wrong}'

    try:
        all_as_promised()
    except AssertionError as error:
        return len(seen), str(error).splitlines()[0]
    return len(seen), ''


def lines(scratch: Path) -> Iterator[Line]:
    """Every kind, several inputs each, and how many there were."""
    total = 0
    for kind in KINDS:
        number, wrong = tried(kind, scratch, EXAMPLES)
        total += number
        yield Line(f'{kind.name} ({number})', wrong)
    yield Line(f'{total} distinct inputs', '' if total > 100 else 'expected more than 100')
