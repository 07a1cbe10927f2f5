"""Raw Cartesian k-space in files: what they hold, where it lies, and its samples in their place."""
