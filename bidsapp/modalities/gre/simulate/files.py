"""Files of a simulated gradient-echo scan as scanners and converters write them, and its truth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp.bids.images import scanner_units, write_volume
from bidsapp.bids.write import write_json
from bidsapp.modalities.gre.physics.acquisition import MHZ_PER_TESLA
from bidsapp.simulate.material import SCANNER

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bidsapp.core import FloatArray
    from bidsapp.modalities.gre.simulate.scan import GradientEchoScan

#: Scanner units of a signal of 1.
UNITS = 1000.0


def _whole_numbers(levels: float, zero: float) -> Callable[[FloatArray], np.ndarray]:
    """Phase as ``levels`` whole numbers a turn, the lowest -π, and ``zero`` for phase 0."""
    return lambda phase: np.asarray(
        np.floor((phase + np.pi) / (2 * np.pi) * levels) - levels / 2 + zero, np.int16
    )


def _alternating(phase: FloatArray) -> np.ndarray:
    """Every other slice half a turn on, as of GE's real and imaginary parts."""
    slices = np.pi * (np.arange(phase.shape[2]) % 2)
    return np.asarray((phase + slices + np.pi) % (2 * np.pi) - np.pi, np.float32)


#: How phase in radians becomes what is written, by a name; signs apart.
ENCODINGS: dict[str, Callable[[FloatArray], np.ndarray]] = {
    'radians': lambda phase: np.asarray(phase, np.float32),
    'siemens': lambda phase: 2 * _whole_numbers(4096, 0)(phase),
    'siemens-unsigned': _whole_numbers(4096, 2048),
    'milliradians': lambda phase: np.asarray(np.rint(1000 * phase), np.int16),
    'wrong-slope': lambda phase: np.asarray(0.00244 * _whole_numbers(4096, 0)(phase), np.float32),
    'alternating': _alternating,
}
#: Those of them that are radians; BIDS calls the others arbitrary.
RADIANS = ('radians', 'alternating')


def write_scan(
    folder: Path, label: str, scan: GradientEchoScan, encoding: str = 'radians'
) -> list[Path]:
    """``anat/`` of the participant's ``folder``: magnitude and phase of each echo, by their names.

    Returns the images. One echo has no ``echo-``, and is a ``T2starw``.
    """
    protocol, written = scan.protocol, []
    several = len(protocol.echo_times) > 1
    signal = scan.signal.numpy()
    for number, time in enumerate(protocol.echo_times, start=1):
        sidecar = {**_sidecar(scan), 'EchoTime': time}
        echo = signal[number - 1]
        unit = {'Units': 'rad' if encoding in RADIANS else 'arbitrary'}
        for part, array, own in (
            ('mag', scanner_units(UNITS * scan.signal[number - 1].abs()), {}),
            ('phase', ENCODINGS[encoding](np.angle(echo)), unit),
        ):
            middle = f'_echo-{number}' if several else ''
            suffix = 'MEGRE' if several else 'T2starw'
            stem = folder / 'anat' / f'{label}{middle}_part-{part}_{suffix}'
            image = stem.with_suffix('.nii.gz')
            write_volume(image, array, scan.grid.affine)
            write_json(stem.with_suffix('.json'), sidecar | own)
            written.append(image)
    return written


def _sidecar(scan: GradientEchoScan) -> dict[str, Any]:
    return {
        **SCANNER,
        **_frequency(scan),
        'RepetitionTime': 0.035,
        'FlipAngle': 15,
        'MRAcquisitionType': '3D',
        'PulseSequenceType': 'Gradient echo',
    }


def _frequency(scan: GradientEchoScan) -> dict[str, float]:
    """That of the scanner, and the field strength as it is called: to half a tesla."""
    mhz = scan.protocol.imaging_mhz
    return {
        'ImagingFrequency': mhz,
        'MagneticFieldStrength': max(0.5, round(2 * mhz / MHZ_PER_TESLA) / 2),
    }


TRUTH = {
    'desc-truth_Chimap': ('chi', {'Units': 'ppm', 'Description': 'Susceptibility; water is 0'}),
    'R2starmap': ('r2star', {'Units': '1/s', 'Description': 'Effective transverse relaxation'}),
    'desc-brain_mask': ('brain', {'Type': 'Brain', 'Description': 'Brain tissue and ventricles'}),
}
#: Fields, as `participant` takes them by ``-d fields=``, so that the inversion can be tested alone.
FIELDS = {
    'total': 'Field of all sources, up to a constant',
    'local': "Field of the brain's own sources, less their mean susceptibility",
}


def write_truth(folder: Path, label: str, scan: GradientEchoScan) -> None:
    """The truth as derivatives, on the grid of the scan: maps in ``anat``, fields in ``fmap``."""
    for name, (kind, sidecar) in TRUTH.items():
        array = getattr(scan, kind).numpy()
        kept = np.asarray(array, np.uint8 if kind == 'brain' else np.float32)
        _write(folder / 'anat' / f'{label}_{name}', kept, scan, sidecar)
    magnitude = scanner_units(UNITS * scan.signal[0].abs())
    for kind, words in FIELDS.items():
        hertz = np.asarray(scan.protocol.imaging_mhz * getattr(scan, kind).numpy(), np.float32)
        stem = folder / 'fmap' / f'{label}_desc-{kind}'
        said: dict[str, Any] = {'Units': 'Hz', 'Description': words, **_frequency(scan)}
        _write(stem.with_name(f'{stem.name}_fieldmap'), hertz, scan, said)
        # BIDS wants one beside a field in Hz.
        said = {'Description': 'Magnitude of the first echo'}
        _write(stem.with_name(f'{stem.name}_magnitude'), magnitude, scan, said)


def _write(stem: Path, array: np.ndarray, scan: GradientEchoScan, sidecar: dict[str, Any]) -> None:
    write_volume(stem.with_suffix('.nii.gz'), array, scan.grid.affine)
    write_json(stem.with_suffix('.json'), {**sidecar, 'SkullStripped': False})
