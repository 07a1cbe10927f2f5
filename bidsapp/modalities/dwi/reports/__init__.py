"""Pictures of a dMRI run."""
