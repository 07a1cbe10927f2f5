"""One folder a modality; inside each, the floors of the house."""
