"""Text for a methods section on reconstruction, with references."""

from __future__ import annotations

METHODS = """\
Raw k-space was read from ISMRMRD [1] and reconstructed with TransferMRI {version}. Lines were
placed by the encoding limits of the header; samples were whitened by the noise scan where there was
one [2]. Coils were compressed along the readout [3]; coil maps came from the calibration lines
alone by ESPIRiT [4], or from windowed low-resolution images where there were few lines [5]. Images
of lines that were left out are by conjugate-gradient SENSE [6] and by total variation, found by
primal-dual steps [7] from there, the strength of both in proportion to the noise. With partial
Fourier the phase of the symmetric middle of k-space was held, as virtual conjugate coils do [8]. To
judge every method without a reference, one in five measured lines outside the middle was left out,
and predicted by each method from the rest; the sidecars say the error over what the noise lets
expect.
"""
REFERENCES = """\
1. Inati et al. (2017), ISMRM Raw data format: a proposed standard for MRI raw datasets, Magn.
   Reson. Med. 77.
2. Pruessmann et al. (2001), Advances in sensitivity encoding with arbitrary k-space trajectories,
   Magn. Reson. Med. 46.
3. Zhang et al. (2013), Coil compression for accelerated imaging with Cartesian sampling, Magn.
   Reson. Med. 69.
4. Uecker et al. (2014), ESPIRiT: an eigenvalue approach to autocalibrating parallel MRI, Magn.
   Reson. Med. 71.
5. McKenzie et al. (2002), Self-calibrating parallel imaging with automatic coil sensitivity
   extraction, Magn. Reson. Med. 47.
6. Pruessmann et al. (1999), SENSE: sensitivity encoding for fast MRI, Magn. Reson. Med. 42.
7. Condat (2013), A primal-dual splitting method for convex optimization involving Lipschitzian,
   proximable and linear composite terms, J. Optim. Theory Appl. 158.
8. Blaimer et al. (2009), Virtual coil concept for improved parallel MRI employing conjugate
   symmetric signals, Magn. Reson. Med. 61.
"""
