"""Many voices for what must hear any of them: eSpeak NG's variants, and those that are held out."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np

from data_pipelines.microworld import stories
from data_pipelines.microworld.speech import TimedSpeech, Voice, synthesize

LANGUAGE = "gmw/en-US"
VARIANTS = (
    *("", "m1", "m2", "m3", "m4", "m6", "m8", "f1", "f2", "f4", "f5"),
    *("Alex", "Andy", "Annie", "Gene", "Michael", "Mike", "adam", "anika", "belinda", "david"),
    *("edward", "ian", "john", "linda", "max", "paul", "quincy", "rob", "steph", "victor", "zac"),
)
HELD_OUT = ("m5", "m7", "f3", "Alicia", "Andrea", "Lee", "benjamin", "robert", "shelby", "travis")
"""Variants of no training."""

_RATES, _PITCHES = (150, 290), (25, 75)
_INVENTED = 0.3  # share of sentences of words that are no words
_ONSETS = "b c d f g h j k l m n p r s t v w y z bl br ch cl cr dr fl fr gr pl pr sh sl sp st th tr"
_NUCLEI = "a e i o u a e i o ai ea ee oo ou ow"
_CODAS = "b ck d ft g l ld ll m n nd ng nt p r rd rt s sh ss st t th x"


def speak(seed: int, index: int, *, held_out: bool = False) -> TimedSpeech:
    """Speaks a sentence; the same numbers give the same one, in the same voice.

    Most are sentences of stories, which are others than the corpus'. The rest are of invented
    words, so that who listens learns letters and not words alone; held-out voices speak none.
    """
    rng = random.Random(f"voices/{seed}/{index}/{held_out}")
    variant = rng.choice(HELD_OUT if held_out else VARIANTS)
    voice = Voice(LANGUAGE, variant, rng.randint(*_RATES), rng.randint(*_PITCHES))
    if not held_out and rng.random() < _INVENTED:
        return synthesize(" ".join(_invent(rng)), voice)
    story = stories.generate_story(seed, "train", index)
    return synthesize(rng.choice(story.sentences), voice)


def _invent(rng: random.Random) -> Iterator[str]:
    onsets, nuclei, codas = _ONSETS.split(), _NUCLEI.split(), _CODAS.split()
    for _ in range(rng.randint(2, 6)):
        parts = ""
        for _ in range(rng.choice((1, 1, 2, 2, 3))):
            parts += rng.choice(onsets) + rng.choice(nuclei)
            parts += rng.choice(codas) if rng.random() < 0.7 else ""
        yield parts


def full_scale(speech: TimedSpeech) -> np.ndarray:
    """Returns its samples as float32 within ±1."""
    return speech.samples / np.float32(2**15)
