"""Text for a methods section."""

from __future__ import annotations

from bidsapp import __version__

_TEXT = """\
# Methods

Diffusion MRI was processed with TransferMRI {version}. Brain masks were taken from the mean b=0 and
the mean diffusion-weighted image. Head motion and eddy currents were corrected by registering each
volume to its prediction from the other volumes by a Gaussian process over q-space [1], with the
gradients turned along; receive bias was estimated with N4 [2] on the mean b=0 image. Susceptibility
distortion was not corrected. Fractional anisotropy and mean diffusivity come from a weighted
least-squares tensor fit [3]. Fibre directions come from constrained spherical deconvolution [4]
where directions and b-value allow it, else from the tensor. Where a T1w image was available it was
corrected with N4, registered rigidly to the b=0 image by mutual information [5] and segmented with
Atropos [6]. Predictions come from a 3D U-Net [7, 8] on a q-space representation that does not
depend on the acquisition scheme; each prediction's sidecar names its model.

# References

1. Andersson & Sotiropoulos (2015), Non-parametric representation and prediction of single- and
   multi-shell diffusion-weighted MRI data using Gaussian processes, NeuroImage 122.
2. Tustison et al. (2010), N4ITK: improved N3 bias correction, IEEE Trans. Med. Imaging 29.
3. Basser et al. (1994), MR diffusion tensor spectroscopy and imaging, Biophys. J. 66.
4. Tournier et al. (2007), Robust determination of the fibre orientation distribution in diffusion
   MRI: non-negativity constrained super-resolved spherical deconvolution, NeuroImage 35.
5. Mattes et al. (2003), PET-CT image registration in the chest using free-form deformations, IEEE
   Trans. Med. Imaging 22.
6. Avants et al. (2011), An open source multivariate framework for n-tissue segmentation with
   evaluation on public data, Neuroinformatics 9.
7. Çiçek et al. (2016), 3D U-Net: learning dense volumetric segmentation from sparse annotation,
   MICCAI.
8. Weninger, Ecke et al. (2022), pretraining for diffusion MRI by undoing its artefacts, BVM.
"""


def citation() -> str:
    """Markdown, the same for every run of this version."""
    return _TEXT.format(version=__version__)
