"""Audio, speech units, alignments and vocoders."""
