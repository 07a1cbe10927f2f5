"""Nipype steps of diffusion MRI."""
