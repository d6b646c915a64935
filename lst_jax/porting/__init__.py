"""PyTorch checkpoints: reading, writing, and running the published model's parameters."""
