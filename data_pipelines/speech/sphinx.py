"""`pocketsphinx`: an aligner and recognizer of English whose models are in its package.

Options of the aligner:

* `unknown=spell` (default): a word outside of the dictionary is said by rules for its letters,
  which is enough to find it between its neighbors; `unknown=reject`: its utterance is refused.

Numbers and symbols are spelled (`spelling.py`). A word without letters, such as a dash, lasts for
no time at the end of the word before it. Scores are those of the acoustic model, relative to its
best state of each frame.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.speech.registry import check_options
from data_pipelines.speech.spelling import MISSING, Speller
from lst_jax.extras import import_extra
from lst_jax.settings import quote, require
from lst_jax.speech.interfaces import Alignment, Rejection, TimedText

SAMPLE_RATE = 16_000

_FRAME_S = 0.01
# The decoder loses words at the edges of a recording, and frames of digital silence have no energy
# to take the logarithm of; so a recording is put between silences, under faint noise.
_PADDING_S = 0.2
_NOISE = 1e-3
_LEAST_PROBABILITY = 5e-324  # of a word: the decoder gives probabilities, which underflow
_VARIANT = re.compile(r"\(\d+\)$")  # of a pronunciation
_UNKNOWN = ("spell", "reject")
_SPELLER = Speller(frozenset("abcdefghijklmnopqrstuvwxyz'"))

# Phones of the package's dictionary; the longest spelling counts. Rough, as spelling is.
_PHONES = {
    **{"tch": "CH", "igh": "AY", "sch": "SH", "tion": "SH AH N", "sion": "ZH AH N"},
    **{"ch": "CH", "sh": "SH", "th": "TH", "ph": "F", "wh": "W", "ck": "K", "ng": "NG"},
    **{"qu": "K W", "gh": "G", "kn": "N", "wr": "R", "dg": "JH", "ce": "S", "ci": "S IH"},
    **{"cy": "S IY", "ge": "JH", "ee": "IY", "ea": "IY", "ie": "IY", "oo": "UW", "ou": "AW"},
    **{"ow": "OW", "oi": "OY", "oy": "OY", "ai": "EY", "ay": "EY", "au": "AO", "aw": "AO"},
    **{"er": "ER", "ir": "ER", "ur": "ER", "ar": "AA R", "or": "AO R", "oa": "OW", "ew": "UW"},
    **{"a": "AE", "b": "B", "c": "K", "d": "D", "e": "EH", "f": "F", "g": "G", "h": "HH"},
    **{"i": "IH", "j": "JH", "k": "K", "l": "L", "m": "M", "n": "N", "o": "AA", "p": "P"},
    **{"q": "K", "r": "R", "s": "S", "t": "T", "u": "AH", "v": "V", "w": "W", "x": "K S"},
    **{"y": "IY", "z": "Z"},
}
_SPELLINGS = re.compile("|".join(sorted(_PHONES, key=len, reverse=True)))


class _Segment(NamedTuple):
    word: str
    start: int
    end: int  # frames, exclusive
    log_probability: float


def open_aligner(argument: str, options: Mapping[str, str]) -> SphinxAligner:
    """Opens `pocketsphinx[,unknown=spell|reject]`."""
    require(argument == "", "pocketsphinx", argument, "no argument")
    check_options("pocketsphinx", options, ("unknown",))
    unknown = options.get("unknown", "spell")
    require(unknown in _UNKNOWN, "unknown of pocketsphinx", unknown, " or ".join(_UNKNOWN))
    return SphinxAligner(spell_unknown=unknown == "spell")


def open_recognizer(argument: str, options: Mapping[str, str]) -> SphinxRecognizer:
    """Opens `pocketsphinx`."""
    require(argument == "", "pocketsphinx", argument, "no argument")
    check_options("pocketsphinx", options, ())
    return SphinxRecognizer()


class SphinxAligner:
    """The `Aligner`."""

    sample_rate = SAMPLE_RATE

    def __init__(self, spell_unknown: bool = True) -> None:
        self._spell_unknown = spell_unknown
        self._decoder = _make_decoder(lm=None)

    def align(
        self, waveforms: Sequence[np.ndarray], transcripts: Sequence[str]
    ) -> list[Alignment | Rejection]:
        """Returns the words' places; see `Aligner`."""
        require(len(waveforms) == len(transcripts), "transcripts", len(transcripts), "as waveforms")
        pairs = zip(waveforms, transcripts, strict=True)
        return [self._align(waveform, transcript.split()) for waveform, transcript in pairs]

    def _align(self, waveform: np.ndarray, words: Sequence[str]) -> Alignment | Rejection:
        pcm = _to_pcm(waveform)
        spoken = self._say(words)
        if isinstance(spoken, Rejection):
            return spoken
        tokens = [token for of_word in spoken for token in of_word]
        if not tokens:
            return Rejection(
                "no-words", f"the transcript has {len(words)} words, none with letters"
            )
        found = self._find(pcm, tokens)
        if [segment.word for segment in found] != tokens:
            return Rejection(
                "no-path", f"pocketsphinx does not find the {len(tokens)} words in the recording"
            )
        duration = len(waveform) / SAMPLE_RATE
        segments, timed, last = iter(found), [], 0.0
        for word, of_word in zip(words, spoken, strict=True):
            own = [next(segments) for _ in of_word]
            timed.append(_join(word, own, last, duration))
            last = timed[-1].end_s
        return Alignment(tuple(timed))

    def _say(self, words: Sequence[str]) -> list[list[str]] | Rejection:
        """Returns the dictionary's words for each word."""
        said = []
        for word in words:
            letters = _SPELLER.spell(word)
            if isinstance(letters, Rejection):
                return letters
            said.append(letters.split())
            for token in said[-1]:
                if self._decoder.lookup_word(token) is not None:
                    continue
                phones = _say_letters(token)
                if not (self._spell_unknown and phones):
                    return Rejection(
                        MISSING, f"word {quote(word)} is not in the dictionary of pocketsphinx"
                    )
                self._decoder.add_word(token, phones, True)
        return said

    def _find(self, pcm: bytes, tokens: Sequence[str]) -> list[_Segment]:
        try:
            self._decoder.set_align_text(" ".join(tokens))
        except RuntimeError:  # of the first word that it cannot place
            return []
        return list(_decode(self._decoder, pcm))


class SphinxRecognizer:
    """The `Recognizer`."""

    sample_rate = SAMPLE_RATE

    def __init__(self) -> None:
        self._decoder = _make_decoder()

    def recognize(self, waveforms: Sequence[np.ndarray]) -> list[tuple[TimedText, ...]]:
        """Returns the words that are heard; see `Recognizer`."""
        return [
            tuple(
                _join(segment.word, [segment], 0.0, len(waveform) / SAMPLE_RATE)
                for segment in _decode(self._decoder, _to_pcm(waveform))
            )
            for waveform in waveforms
        ]


def _make_decoder(**options: Any) -> Any:
    sphinx = import_extra("align", "pocketsphinx")
    return sphinx.Decoder(samprate=SAMPLE_RATE, loglevel="FATAL", cmn="batch", **options)


def _decode(decoder: Any, pcm: bytes) -> Iterator[_Segment]:
    """Yields the words that are found, without silences and noises."""
    padding = round(_PADDING_S / _FRAME_S)
    decoder.reinit_feat()  # else means and noise would be those of the recording before
    decoder.start_utt()
    decoder.process_raw(pcm, full_utt=True)
    decoder.end_utt()
    for segment in decoder.seg() or ():  # None where nothing is found
        if segment.word[0] not in "<[+":
            probability = math.log(max(segment.ascore, _LEAST_PROBABILITY))
            word = _VARIANT.sub("", segment.word)
            start, end = (frame - padding for frame in (segment.start_frame, segment.end_frame))
            yield _Segment(word, max(start, 0), max(end + 1, 0), probability)


def _join(word: str, own: Sequence[_Segment], last: float, duration: float) -> TimedText:
    """Returns a word's time; without segments it lasts for none at the end of the last."""
    if not own:
        return TimedText(word, last, last)
    start, end = (min(frame * _FRAME_S, duration) for frame in (own[0].start, own[-1].end))
    frames = sum(max(segment.end - segment.start, 1) for segment in own)
    score = sum(segment.log_probability for segment in own) / frames
    return TimedText(word, max(start, last), max(end, last), min(score, 0.0))


def _say_letters(token: str) -> str:
    """Returns phones for a spelling; a last e is silent behind other letters."""
    letters = token.replace("'", "")
    if len(letters) > 3 and letters.endswith("e") and not letters.endswith("ee"):
        letters = letters[:-1]
    letters = re.sub(r"(.)\1", r"\1", letters) if "ee" not in letters else letters
    return " ".join(_PHONES[found] for found in _SPELLINGS.findall(letters))


def _to_pcm(waveform: np.ndarray) -> bytes:
    real = waveform.ndim == 1 and waveform.dtype.kind == "f" and waveform.size > 0
    shape = f"{waveform.dtype} {waveform.shape}"
    require(real and bool(np.isfinite(waveform).all()), "waveform", shape, "finite floats (S,)")
    padded = np.pad(waveform, round(_PADDING_S * SAMPLE_RATE))
    padded = padded + _NOISE * np.random.default_rng(0).standard_normal(len(padded))
    return np.clip(np.rint(padded * 32767), -32768, 32767).astype("<i2").tobytes()
