"""Text for a methods section on diffusion MRI, with references."""

from __future__ import annotations

METHODS = """\
Diffusion MRI was processed with TransferMRI {version}. Not every step applies to every scan: the
sidecar of each preprocessed run says what was done with it, how, and why the rest was not. A run
that another pipeline had preprocessed was taken as that pipeline left it (CorrectedBy in its
sidecar; cite that pipeline); what follows on corrections does not hold for it.

Where a run had volumes enough, noise was removed by Marchenko-Pastur principal component analysis
[1, 2]. Where the metadata said that k-space was sampled fully and the image not interpolated, Gibbs
ringing was removed by local subvoxel shifts [3]. Brain masks were taken from the mean b=0 and the
mean diffusion-weighted image. Head motion and eddy currents were estimated by registering each
volume to its prediction from the other volumes by a Gaussian process over q-space [4], and the
gradients were turned along; where slices had lost signal, they were replaced by their prediction
[5]. Susceptibility distortion was corrected by the first of these that the data allowed, or not at
all: where images of opposite phase encoding were acquired, by the displacement field that makes
them agree [6, 7]; where a field map was acquired, by the displacement that follows from it [8];
where there was a T1w image, by registration to it along the phase-encoding axis alone. Motion, eddy
currents and susceptibility, where they were corrected, were so in one interpolation, and the
intensity changed with the volume of a voxel. Receive bias was estimated with N4 [9] on the mean b=0
image and divided out.

Fractional anisotropy and mean diffusivity come from a weighted least-squares tensor fit [10]. Where
directions and b-value allow it, fibre directions and their number come from constrained spherical
deconvolution [11], else directions come from the tensor. Where there were shells enough, neurite
density, orientation dispersion and free water come from NODDI [12], and neurite density and
diffusivity from the spherical mean technique [13]; mean, axial and radial kurtosis come from a
weighted least-squares fit of diffusion kurtosis [14] within bounds [15], where the shells tell it.
Where a T1w image was available it was corrected with N4, registered rigidly to the b=0 image by
mutual information [16] and segmented with Atropos [17]. Predictions, where there are any, come from
a 3D U-Net [18, 19] on a q-space representation that does not depend on the acquisition scheme; each
prediction's sidecar names its model. Restored volumes are that representation as the network
corrects it, evaluated at the scan's own gradients.
"""
REFERENCES = """\
1. Veraart et al. (2016), Denoising of diffusion MRI using random matrix theory, NeuroImage 142.
2. Cordero-Grande et al. (2019), Complex diffusion-weighted image estimation via matrix recovery
   under general noise models, NeuroImage 200.
3. Kellner et al. (2016), Gibbs-ringing artifact removal based on local subvoxel-shifts, Magn.
   Reson. Med. 76.
4. Andersson & Sotiropoulos (2015), Non-parametric representation and prediction of single- and
   multi-shell diffusion-weighted MRI data using Gaussian processes, NeuroImage 122.
5. Andersson et al. (2016), Incorporating outlier detection and replacement into a non-parametric
   framework for movement and distortion correction of diffusion MR images, NeuroImage 141.
6. Andersson et al. (2003), How to correct susceptibility distortions in spin-echo echo-planar
   images: application to diffusion tensor imaging, NeuroImage 20.
7. Ruthotto et al. (2012), Diffeomorphic susceptibility artifact correction of diffusion-weighted
   magnetic resonance images, Phys. Med. Biol. 57.
8. Jezzard & Balaban (1995), Correction for geometric distortion in echo planar images from B0 field
   variations, Magn. Reson. Med. 34.
9. Tustison et al. (2010), N4ITK: improved N3 bias correction, IEEE Trans. Med. Imaging 29.
10. Basser et al. (1994), MR diffusion tensor spectroscopy and imaging, Biophys. J. 66.
11. Tournier et al. (2007), Robust determination of the fibre orientation distribution in diffusion
    MRI: non-negativity constrained super-resolved spherical deconvolution, NeuroImage 35.
12. Zhang et al. (2012), NODDI: practical in vivo neurite orientation dispersion and density imaging
    of the human brain, NeuroImage 61.
13. Kaden et al. (2016), Multi-compartment microscopic diffusion imaging, NeuroImage 139.
14. Jensen et al. (2005), Diffusional kurtosis imaging: the quantification of non-Gaussian water
    diffusion by means of magnetic resonance imaging, Magn. Reson. Med. 53.
15. Tabesh et al. (2011), Estimation of tensors and tensor-derived measures in diffusional kurtosis
    imaging, Magn. Reson. Med. 65.
16. Mattes et al. (2003), PET-CT image registration in the chest using free-form deformations, IEEE
    Trans. Med. Imaging 22.
17. Avants et al. (2011), An open source multivariate framework for n-tissue segmentation with
    evaluation on public data, Neuroinformatics 9.
18. Çiçek et al. (2016), 3D U-Net: learning dense volumetric segmentation from sparse annotation,
    MICCAI.
19. Weninger, Ecke et al. (2022), pretraining for diffusion MRI by undoing its artefacts, BVM.
"""
