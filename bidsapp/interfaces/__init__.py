"""Thin Nipype interfaces around physics and tasks; no mathematics here."""
