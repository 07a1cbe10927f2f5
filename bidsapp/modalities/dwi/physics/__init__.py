"""Mathematics of diffusion MRI: arrays in, arrays out."""
