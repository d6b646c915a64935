"""Readers of what people have: JSONL, text, transcripts, alignments."""
