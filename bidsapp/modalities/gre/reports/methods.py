"""Text for a methods section on susceptibility mapping, with references."""

from __future__ import annotations

METHODS = """\
Gradient-echo MRI was processed with TransferMRI {version}. The sidecar of each local field says
what was found about its phase and what was done. Of several echoes, the phase offset of the coils
was estimated from two and removed [1], the first echo was unwrapped in space and later ones in time
[2], and the field was fitted with the inverse variance of the phase as weights. Where the phase
could not be believed, by its noise and by what the line over the echoes left, it was not used.
Background fields were removed by V-SHARP [3, 4]. R2* came from the magnitudes with their noise
floor [5]. Susceptibility was estimated by total variation, weighted by the noise, in a single step
behind the spherical-mean filter [6, 7], with a strength in proportion to the noise; where only a
local field was given, from that. For comparison it was estimated by truncated division [8] and by
Tikhonov regularisation [9]. Values are relative to the mean that SusceptibilityReference names.
Susceptibility-weighted images are the magnitude times the fourth power of a phase mask [10], from
the local field, averaged over the echoes [11].
"""
REFERENCES = """\
1. Eckstein et al. (2018), Computationally efficient combination of multi-channel phase data from
   multi-echo acquisitions (ASPIRE), Magn. Reson. Med. 79.
2. Dymerska et al. (2021), Phase unwrapping with a rapid opensource minimum spanning tree algorithm
   (ROMEO), Magn. Reson. Med. 85.
3. Schweser et al. (2011), Quantitative imaging of intrinsic magnetic tissue properties using MRI
   signal phase, NeuroImage 54.
4. Wu et al. (2012), Whole brain susceptibility mapping using compressed sensing, Magn. Reson. Med.
   67.
5. Miller & Joseph (1993), The use of power images to perform quantitative analysis on low SNR MR
   images, Magn. Reson. Imaging 11.
6. Chatnuntawech et al. (2017), Single-step quantitative susceptibility mapping with variational
   penalties, NMR Biomed. 30.
7. Milovic et al. (2018), Fast nonlinear susceptibility inversion with variational regularization,
   Magn. Reson. Med. 80.
8. Shmueli et al. (2009), Magnetic susceptibility mapping of brain tissue in vivo using MRI phase
   data, Magn. Reson. Med. 62.
9. Bilgic et al. (2014), Fast quantitative susceptibility mapping with L1-regularization and
   automatic parameter selection, Magn. Reson. Med. 72.
10. Haacke et al. (2004), Susceptibility weighted imaging (SWI), Magn. Reson. Med. 52.
11. Denk & Rauscher (2010), Susceptibility weighted imaging with multiple echoes, J. Magn. Reson.
    Imaging 31.
"""
