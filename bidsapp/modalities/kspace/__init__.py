"""Reconstruction of under-sampled scans.

In the making: what stands here is complete, and as long as the folder has no ``tasks`` it is no
modality of the app.

Axes, throughout: arrays end in (X, Y), X along readout and Y along phase encoding, coils C before
them. In image and k-space alike the origin is index n // 2. Noise: σ² = E |n|² of a complex sample,
the same in k-space and in every orthonormal transform of it.
"""
