"""eSpeak NG as a synthesizer: `espeak[:VOICE]`, such as `espeak:gmw/en-US+f2,rate=170,pitch=50`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from data_pipelines.microworld.speech import Voice, synthesize
from data_pipelines.speech.audio import float_samples
from data_pipelines.speech.registry import check_options, number_option


class EspeakSynthesizer:
    """A voice of eSpeak NG, from the package `espeakng-loader`.

    Attributes:
      sample_rate: that all of its voices have.
    """

    sample_rate = 22050

    def __init__(self, voice: Voice) -> None:
        """Makes a synthesizer.

        Raises:
          ImportError: the extra `demo` is missing.
          ValueError: there is no such voice.
        """
        self._voice = voice
        synthesize("a", voice)

    def synthesize(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See `Synthesizer.synthesize`."""
        return [float_samples(synthesize(text, self._voice).samples) for text in texts]


def open_espeak(argument: str, options: Mapping[str, str]) -> EspeakSynthesizer:
    """Opens `espeak[:VOICE][,rate=WORDS_A_MINUTE][,pitch=0…99]`."""
    check_options("espeak", options, ("rate", "pitch"))
    name, _, variant = (argument or "gmw/en-US").partition("+")
    rate = int(number_option("espeak", options, "rate", 175))
    pitch = int(number_option("espeak", options, "pitch", 50))
    return EspeakSynthesizer(Voice(name, variant, rate, pitch))
