"""Finding and writing files by their BIDS names."""
