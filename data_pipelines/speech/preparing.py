"""Recordings to utterances: decoded, encoded and aligned, or rejected with a reason."""

from __future__ import annotations

import dataclasses
import itertools
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from data_pipelines.records.storage import Utterance, make_utterance
from data_pipelines.records.types import SILENCE
from data_pipelines.speech.alignment import align_units, time_words
from data_pipelines.speech.audio import loudest_of
from data_pipelines.speech.imports import Index
from data_pipelines.speech.recordings import Recording
from lst_jax.settings import one_line
from lst_jax.speech.interfaces import (
    Aligner,
    Alignment,
    Recognizer,
    Rejection,
    TimedText,
    UnitEncoder,
)
from lst_jax.speech.plausibility import PlausibilityConfig, check_plausible
from lst_jax.vocabulary import TextTokenizer

_SILENT = 1e-4  # full scale is 1: recordings that never reach it have no sound
_TOGETHER, _TOGETHER_S = 64, 1800.0  # recordings, and seconds of them, that are encoded at a time
_STEP_S = 0.02  # frames of which the quietest is where a long recording is cut
_CUT_WITHIN = 0.2  # share of a piece, its end, in which it is cut
_ROUNDED_S = 0.02  # by which words of a file may overlap
_DURATION_S, _DURATION_SHARE = 0.2, 0.02  # by which a manifest may err
_OVERSHOOT_S = 0.1  # by which words of a file may end after the recording
_PLAUSIBLE = PlausibilityConfig()


@dataclasses.dataclass(frozen=True)
class UnitSource:
    """Where units come from.

    Attributes:
      frame_rate: units a second.
      unit_count: units are 0 … unit_count − 1.
      encoder: makes them of sound. None: `index` has them.
      index: of units that are there.
    """

    frame_rate: float
    unit_count: int
    encoder: UnitEncoder | None = None
    index: Index | None = None


@dataclasses.dataclass(frozen=True)
class Tools:
    """What makes an utterance of a recording.

    Attributes:
      units: where units come from.
      tokenizer: encodes the words.
      aligner: says when words are spoken, where nothing else does. None: a recording with a
        transcript needs `alignments`.
      recognizer: says what is spoken, where nothing else does. None: such recordings have no words.
      alignments, transcripts: of files; None where there are none.
      plausibility: what alignments must hold to.
      piece_s: longest recording without words, in seconds; longer ones are cut.
      longest_s: longest recording of all.
    """

    units: UnitSource
    tokenizer: TextTokenizer
    aligner: Aligner | None = None
    recognizer: Recognizer | None = None
    alignments: Index | None = None
    transcripts: Index | None = None
    plausibility: PlausibilityConfig = _PLAUSIBLE
    piece_s: float = 30.0
    longest_s: float = 25_000.0

    @property
    def sample_rates(self) -> tuple[int, ...]:
        """Returns those at which recordings are decoded; the first tells how long one is."""
        used = (self.units.encoder, self.recognizer, self.aligner)
        return tuple(dict.fromkeys(tool.sample_rate for tool in used if tool)) or (16_000,)


@dataclasses.dataclass(frozen=True, eq=False)
class Piece:
    """A recording, or a piece of one, decoded.

    Attributes:
      recording: with its transcript and words, as far as they are known.
      waveforms: float32 (S,) by sample rate.
      duration_s: its length.
      begin_s: where in the recording it begins.
      whole: the recording's id.
    """

    recording: Recording
    waveforms: dict[int, np.ndarray]
    duration_s: float
    begin_s: float = 0.0
    whole: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """What became of a piece.

    Attributes:
      id: its name.
      result: its record, or why there is none.
      duration_s: its length; 0 where it is unknown.
      score: mean of the words' scores, None where there are none.
    """

    id: str
    result: Utterance | Rejection
    duration_s: float = 0.0
    score: float | None = None


def prepare_utterances(
    recordings: Sequence[Recording], tools: Tools, decoded: Iterable[Any] | None = None
) -> Iterator[Outcome]:
    """Yields what becomes of recordings, in order.

    Args:
      recordings: of a corpus.
      tools: what makes utterances of them.
      decoded: what `decode` returns of the recordings that `expand` makes of these, one at a time.
        None: they are decoded here.

    Raises:
      ValueError: a file of units, alignments or transcripts is not what it should be.
    """
    parts = list(expand(recordings, tools))
    if decoded is None:
        decoded = (decode(part, tools.sample_rates, tools.longest_s) for part in parts)
    # So many that a device has work, and so few that they fit in memory.
    group: list[tuple[Recording, Any]] = []
    seconds = 0.0
    for part, waveforms in zip(parts, decoded, strict=True):
        group.append((part, waveforms))
        if not isinstance(waveforms, Rejection):
            rate, samples = next(iter(waveforms.items()))
            seconds += len(samples) / rate
        if len(group) == _TOGETHER or seconds >= _TOGETHER_S:
            yield from _prepare_group(group, tools)
            group, seconds = [], 0.0
    yield from _prepare_group(group, tools)


def expand(recordings: Sequence[Recording], tools: Tools) -> Iterator[Recording]:
    """Yields recordings with what recognizers heard in them; one for each segment without words."""
    for recording in recordings:
        sound = recording.sound
        found = tools.transcripts.find(recording.id, sound) if tools.transcripts else None
        if not found:
            yield recording
            continue
        heard, begin = found
        end = np.inf if sound.end_s is None else begin + sound.end_s - sound.start_s
        if heard.words is not None:
            words = _within(heard.words, begin, end)
            text = heard.text if len(words) == len(heard.words) else ""
            text = text or " ".join(word.text for word in words)
            yield dataclasses.replace(recording, transcript=text or None, words=words or None)
        elif not heard.segments:
            yield dataclasses.replace(recording, transcript=heard.text or None, words=None)
        else:
            inside = [s for s in heard.segments if begin <= (s[0] + s[1]) / 2 < end]
            for number, (first, last, text) in enumerate(inside):
                first, last = (sound.start_s - begin + edge for edge in (max(first, begin), last))
                yield dataclasses.replace(
                    recording,
                    id=f"{recording.id}-{number:05d}",
                    sound=dataclasses.replace(sound, start_s=first, end_s=last),
                    transcript=text,
                    words=None,
                    duration_s=None,
                )


def _within(words: Sequence[TimedText], begin_s: float, end_s: float) -> tuple[TimedText, ...]:
    """Returns the words in a part of a recording, with their times in the part."""
    return tuple(
        dataclasses.replace(
            word,
            start_s=max(0.0, word.start_s - begin_s),
            end_s=min(word.end_s, max(end_s, word.start_s)) - begin_s,
        )
        if begin_s or end_s < word.end_s
        else word
        for word in words
        if begin_s <= (word.start_s + word.end_s) / 2 < end_s
    )


def decode(
    recording: Recording, sample_rates: Sequence[int], longest_s: float
) -> dict[int, np.ndarray] | Rejection:
    """Returns the waveforms of a recording by rate, or why there are none."""
    if recording.rejection:
        return recording.rejection
    try:
        sound = recording.sound
        if sound.end_s is not None and sound.end_s <= sound.start_s:
            return Rejection("empty", f"it is at {sound.start_s:g} … {sound.end_s:g} s")
        waveforms = {rate: sound.load(rate, longest_s) for rate in sample_rates}
    except ValueError as error:
        return Rejection("unreadable", one_line(str(error)))
    rate, samples = next(iter(waveforms.items()))
    lasts, expected = len(samples) / rate, recording.duration_s
    if expected is None or lasts > longest_s:
        expected = lasts
    # A file that was cut short, or whose header has another sample rate.
    if abs(lasts - expected) > _DURATION_S + _DURATION_SHARE * expected:
        reason = f"it lasts {lasts:.2f} s, expected {expected:.2f} s by its manifest"
        return Rejection("duration", reason)
    return find_silence(samples) or waveforms


def find_silence(samples: np.ndarray) -> Rejection | None:
    """Returns why samples (S,) are no speech: there is no sound in them; None where there is."""
    loudest = loudest_of(samples)
    if loudest >= _SILENT:
        return None
    return Rejection("silent", f"its loudest sample is {loudest:g}, expected {_SILENT:g}")


def _prepare_group(group: Sequence[tuple[Recording, Any]], tools: Tools) -> Iterator[Outcome]:
    pieces: list[Piece | Outcome] = []
    for recording, waveforms in group:
        if isinstance(waveforms, Rejection):
            pieces.append(Outcome(recording.id, waveforms))
        else:
            pieces += _cut(recording, waveforms, tools)
    pieces = _recognize(pieces, tools)
    known = [piece for piece in pieces if isinstance(piece, Piece)]
    words = dict(zip(map(id, known), _find_words(known, tools), strict=True))
    kept = [piece for piece in known if not isinstance(words[id(piece)], Rejection)]
    units = dict(zip(map(id, kept), _find_units(kept, tools.units), strict=True))
    for piece in pieces:
        if isinstance(piece, Outcome):
            yield piece
            continue
        spoken = words[id(piece)]
        if isinstance(spoken, Rejection):
            yield Outcome(piece.recording.id, spoken, piece.duration_s)
        else:
            yield _make_record(piece, units[id(piece)], spoken, tools)


def _cut(
    recording: Recording, waveforms: dict[int, np.ndarray], tools: Tools
) -> list[Piece | Outcome]:
    """Returns a recording, or its pieces where it is long and nothing says what is spoken."""
    rate, samples = next(iter(waveforms.items()))
    duration = len(samples) / rate
    if duration > tools.longest_s:
        reason = f"it lasts more than {tools.longest_s:g} s, expected at most so long"
        return [Outcome(recording.id, Rejection("too-long", reason), duration)]
    if duration <= tools.piece_s or recording.transcript is not None or recording.words is not None:
        return [Piece(recording, waveforms, duration, 0.0, recording.id)]
    cuts = [0.0, *_quiet_places(samples, rate, tools.piece_s), duration]
    return [
        Piece(
            dataclasses.replace(recording, id=f"{recording.id}-{number:05d}"),
            {r: w[round(begin * r) : round(end * r)] for r, w in waveforms.items()},
            end - begin,
            begin,
            recording.id,
        )
        for number, (begin, end) in enumerate(itertools.pairwise(cuts))
    ]


def _quiet_places(samples: np.ndarray, rate: int, longest_s: float) -> list[float]:
    """Returns where to cut a recording, in seconds, so that no piece is longer."""
    step = max(1, round(_STEP_S * rate))
    count = len(samples) // step
    frames = samples[: count * step].reshape(count, step)
    power = np.einsum("ij,ij->i", frames, frames)
    longest = max(2, int(longest_s * rate) // step)
    shortest = max(1, int(longest * (1 - _CUT_WITHIN)))
    places, last = [], 0
    while count - last > longest:
        last += shortest + int(power[last + shortest : last + longest].argmin())
        places.append(last * step / rate)
    return places


def _recognize(pieces: list[Piece | Outcome], tools: Tools) -> list[Piece | Outcome]:
    """Returns the pieces with what a recognizer hears in those of which nothing is known."""
    recognizer = tools.recognizer
    unknown = [
        piece
        for piece in pieces
        if isinstance(piece, Piece)
        and piece.recording.transcript is None
        and piece.recording.words is None
    ]
    if recognizer is None or not unknown:
        return pieces
    heard = recognizer.recognize([piece.waveforms[recognizer.sample_rate] for piece in unknown])
    found = dict(zip(map(id, unknown), heard, strict=True))
    known: list[Piece | Outcome] = []
    for piece in pieces:
        words = found.get(id(piece))
        if words and isinstance(piece, Piece):
            text = " ".join(word.text for word in words)
            recording = dataclasses.replace(piece.recording, transcript=text, words=tuple(words))
            piece = dataclasses.replace(piece, recording=recording)
        known.append(piece)
    return known


def _find_units(pieces: Sequence[Piece], source: UnitSource) -> Iterator[np.ndarray | Rejection]:
    if not pieces:
        return
    if source.encoder is not None:
        rate = source.encoder.sample_rate
        yield from source.encoder.encode([piece.waveforms[rate] for piece in pieces])
        return
    assert source.index is not None  # one of the two is there
    for piece in pieces:
        found = source.index.find(piece.whole, piece.recording.sound)
        if found is None:
            yield Rejection("no-units", "the unit files do not name it")
            continue
        units, begin = found
        if begin or piece.begin_s or piece.recording.id != piece.whole:
            edges = begin + piece.begin_s + np.array([0.0, piece.duration_s])
            first, last = np.rint(edges * source.frame_rate).astype(int)
            units = units[first:last]
        if not units.size or units.min() < 0 or units.max() >= source.unit_count:
            told = f"{units.min()} … {units.max()}" if units.size else "none"
            reason = f"units are {told}, expected 0 … {source.unit_count - 1}"
            yield Rejection("unit-range", reason)
        else:
            yield units


def _find_words(
    pieces: Sequence[Piece], tools: Tools
) -> Iterator[tuple[TimedText, ...] | Rejection | None]:
    """Yields the words of every piece with their times; None where nobody knows any."""
    found: list[Any] = [_known_words(piece, tools) for piece in pieces]
    missing = [number for number, words in enumerate(found) if words is _ALIGN]
    if missing:
        assert tools.aligner is not None  # `_known_words` asks for one only then
        rate = tools.aligner.sample_rate
        aligned = tools.aligner.align(
            [pieces[number].waveforms[rate] for number in missing],
            [pieces[number].recording.transcript or "" for number in missing],
        )
        for number, result in zip(missing, aligned, strict=True):
            found[number] = result.words if isinstance(result, Alignment) else result
    yield from found


_ALIGN = object()


def _known_words(piece: Piece, tools: Tools) -> Any:
    """Returns words with times, a rejection, None (no words), or `_ALIGN`."""
    recording = piece.recording
    words = recording.words
    found = tools.alignments.find(recording.id, recording.sound) if tools.alignments else None
    if found and found[0] is not None:
        words = _within(found[0], found[1], found[1] + piece.duration_s + _OVERSHOOT_S)
    if words or (words is not None and recording.transcript is not None):
        return _match_transcript(_tidy(words, piece.duration_s), recording.transcript)
    if recording.transcript is None:
        return None
    if tools.aligner is not None:
        return _ALIGN
    return Rejection(
        "no-alignment", "it has a transcript and no word times, and no aligner is there"
    )


def _tidy(words: Sequence[TimedText], duration_s: float) -> tuple[TimedText, ...]:
    """Returns words of a file without the overlaps and the end that rounding gave them."""
    tidy: list[TimedText] = []
    last = 0.0
    for word in words:
        start, end = word.start_s, word.end_s
        if start < last <= start + _ROUNDED_S:
            start, end = last, max(end, last)
        if duration_s < end <= duration_s + _OVERSHOOT_S:
            start, end = min(start, duration_s), duration_s
        tidy.append(dataclasses.replace(word, start_s=start, end_s=end))
        last = end
    return tuple(tidy)


def _match_transcript(
    words: tuple[TimedText, ...], transcript: str | None
) -> tuple[TimedText, ...] | Rejection:
    """Returns the words of a file as the transcript writes them, or that they are others."""
    words = tuple(part for word in words for part in _split_word(word))
    if transcript is None:
        return words
    written = transcript.split()
    here = [(word, _letters(word.text)) for word in words if _letters(word.text)]
    there = [(text, _letters(text)) for text in written if _letters(text)]
    for number, (found, expected) in enumerate(itertools.zip_longest(here, there)):
        if not found or not expected or found[1] != expected[1]:
            told = repr(found[0].text) if found else "nothing"
            wanted = repr(expected[0]) if expected else "nothing"
            return Rejection("other-words", f"word {number + 1} is {told}, expected {wanted}")
    if len(there) != len(written):  # marks apart from words have no times
        return tuple(word for word, _ in here)
    return tuple(
        dataclasses.replace(word, text=text)
        for (word, _), (text, _) in zip(here, there, strict=True)
    )


def _split_word(word: TimedText) -> Iterator[TimedText]:
    """Yields the words of a text with spaces in it, each with an equal share of its time."""
    texts = word.text.split()
    edges = np.linspace(word.start_s, word.end_s, len(texts) + 1).tolist()
    for text, (start, end) in zip(texts, itertools.pairwise(edges), strict=True):
        yield TimedText(text, start, end, word.score)


def _letters(text: str) -> str:
    """Returns what of a word does not depend on how it is written."""
    folded = unicodedata.normalize("NFC", text).casefold()
    return "".join(c for c in folded if unicodedata.category(c)[0] in "LMN")


def _make_record(
    piece: Piece,
    units: np.ndarray | Rejection,
    words: tuple[TimedText, ...] | None,
    tools: Tools,
) -> Outcome:
    recording, duration = piece.recording, piece.duration_s

    def reject(rejection: Rejection) -> Outcome:
        return Outcome(recording.id, rejection, duration)

    if isinstance(units, Rejection):
        return reject(units)
    rate = tools.units.frame_rate
    expected = duration * rate
    if abs(len(units) - expected) > 2 + duration / 50:
        reason = f"it has {len(units)} units, expected {expected:.1f}, {rate:g} a second"
        return reject(Rejection("unit-count", reason))
    if words is None:
        names, counts = (SILENCE,), np.array([len(units)], np.int32)
        times = np.array([[0, round(1000 * duration)]], np.int32)
    else:
        implausible = check_plausible(words, duration, tools.plausibility)
        if implausible:
            return reject(implausible)
        if len(units) < len(words):
            reason = f"it has {len(units)} units for {len(words)} words, expected one for each"
            return reject(Rejection("few-units", reason))
        names, counts = align_units(words, len(units), rate)
        times = time_words(words, names, duration)
    try:
        utterance = make_utterance(recording.id, names, units, counts, tools.tokenizer)
    except ValueError as error:
        return reject(Rejection("no-pieces", one_line(str(error))))
    utterance = dataclasses.replace(
        utterance,
        word_times_ms=times,
        transcript=recording.transcript,
        speaker=recording.speaker,
        license=recording.license,
        source=recording.source,
    )
    scores = [word.score for word in words or () if word.score is not None]
    return Outcome(recording.id, utterance, duration, float(np.mean(scores)) if scores else None)
