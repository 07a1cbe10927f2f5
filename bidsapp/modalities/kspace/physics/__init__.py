"""Mathematics of Cartesian k-space on arrays: sampling, coils, classical reconstruction."""
