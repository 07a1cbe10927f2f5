"""Simulated diffusion MRI."""
