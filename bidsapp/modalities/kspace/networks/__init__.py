"""Networks that reconstruct: with the data at hand, and, as was published, without."""
