"""From records to batches: interleaving, documents, mixture, packing."""
