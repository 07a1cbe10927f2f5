"""Heads with a susceptibility, in the scanner: multi-echo gradient echoes with their truth."""
