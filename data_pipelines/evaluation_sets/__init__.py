"""Evaluation sets as others publish them, made into items of this project's formats."""
