"""Physics of susceptibility and of gradient-echo phase, on arrays and tensors."""
