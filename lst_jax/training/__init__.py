"""Training: the step, and what will stand beside it."""
