"""Speech as models see it: encoders, alignment and vocoders, without a file or an audio library."""
