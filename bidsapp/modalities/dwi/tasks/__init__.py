"""What can be learnt of diffusion MRI. One file a task."""
