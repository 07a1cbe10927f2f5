"""The input and the losses of diffusion networks."""
