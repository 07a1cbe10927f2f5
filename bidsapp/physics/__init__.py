"""Arrays in, arrays out: no files, no BIDS, no networks."""
