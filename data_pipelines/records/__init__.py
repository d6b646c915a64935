"""Records: their types, payloads and storage."""
