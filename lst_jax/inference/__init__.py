"""Inference: scoring (and, later, generation) with a trained model."""
