"""Corpora to records to Grain datasets."""
