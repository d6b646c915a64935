"""Cached decoding: caches, the loop, a decoder for each model."""
