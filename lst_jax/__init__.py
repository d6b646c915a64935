"""Latent Speech-Text Transformer in JAX and Flax."""
