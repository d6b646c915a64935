"""The built-in corpus: spoken short stories whose endings follow from what happened."""
