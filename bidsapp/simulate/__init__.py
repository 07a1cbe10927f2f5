"""Synthetic heads and scans in pure torch: anatomy, fibres, microstructure, acquisition."""
