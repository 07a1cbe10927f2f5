"""Nipype graphs, one idea a file; a node's name is its variable's name, ds_ marks a writer."""
