"""Networks that know q-space."""
