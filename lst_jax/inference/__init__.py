"""Inference with a trained model: scoring, cached decoding, generation."""
