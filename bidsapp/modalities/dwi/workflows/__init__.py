"""Nipype graphs of diffusion MRI."""
