"""Objects in several coils, and files of raw k-space as a scanner writes them."""
