"""Flags of how tokens are drawn and how much is said, which several binaries have."""

from __future__ import annotations

from absl import flags

from lst_jax.inference.sampling import SamplingConfig

flags.disclaim_key_flags()  # they are those of the binary that asks for them

FRAME_RATE = 25  # units of a second
_LONGEST_S = 86_400.0


def define_flags(*, temperature: float, top_p: float, max_seconds: float) -> None:
    """Defines the flags, with these defaults."""
    flags.DEFINE_float("temperature", temperature, "0 takes the most probable token.")
    flags.DEFINE_integer("top_k", None, "Draw from the k most probable tokens.")
    flags.DEFINE_float("top_p", top_p, "Draw from the most probable tokens of this share.")
    flags.DEFINE_float("max_seconds", max_seconds, "Speech that is made of a prompt, at most.")


def sampling() -> SamplingConfig:
    """Returns how tokens are drawn.

    Raises:
      ValueError: a flag is out of range.
    """
    return SamplingConfig(flags.FLAGS.temperature, flags.FLAGS.top_k, flags.FLAGS.top_p)


def max_units() -> int:
    """Returns the units of speech that are made of a prompt, at most.

    Raises:
      ValueError: it is less than one, or more than a day's.
    """
    seconds = flags.FLAGS.max_seconds
    if not 1 / FRAME_RATE <= seconds <= _LONGEST_S:  # NaN fails, too
        raise ValueError(f"max_seconds is {seconds}, expected {1 / FRAME_RATE} … {_LONGEST_S:.0f}")
    return round(seconds * FRAME_RATE)
