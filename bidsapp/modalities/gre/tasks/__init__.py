"""What can be learnt of gradient-echo MRI. One file a task."""
