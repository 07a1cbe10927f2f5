"""What can be learnt of raw k-space. One file a task."""
