"""`ctc:DIR`: wav2vec 2.0 models with a CTC head as aligners and recognizers.

DIR is what `hugging_face.read_model` reads, with a `vocab.json`; `experiments.train_ctc` writes
one. Labels of one character are letters, `|` stands between words where there is one, and the blank
is `<blank>` or the configuration's `pad_token_id`. Options of the aligner:

* `language=en` (default): of numbers and symbols, ISO 639-1;
* `romanize=yes|no` (default no): other scripts in Latin letters first, for MMS models;
* `missing=reject|star` (default reject): what becomes of a word that labels cannot spell: its
  utterance is refused, or it is aligned to whatever is said between its neighbors.

Options of the recognizer: `language`, and `words=FILE`, a word on each line: it hears no others,
and writes them so. Without a list it reads the likeliest label of every frame.

A frame stands for the samples around the center of what it sees. Recordings are computed in pieces
that overlap, of whose frames those in the overlap are dropped; one path goes through the whole, so
an alignment has no seams.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import cast

import jax
import numpy as np

from data_pipelines.speech.audio import loudest_of
from data_pipelines.speech.hugging_face import normalize_waveform, read_model
from data_pipelines.speech.manifests import decode_text
from data_pipelines.speech.registry import check_options, path_argument
from data_pipelines.speech.spelling import Speller
from lst_jax.files import read_numbered_lines
from lst_jax.local_paths import local_path
from lst_jax.settings import require
from lst_jax.sharding import batch_mesh_size, batch_sharding, make_mesh, replicated
from lst_jax.speech.ctc import CTCPath, add_star, align_ctc, align_ctc_rows, decode_greedy
from lst_jax.speech.interfaces import Alignment, Rejection, TimedText
from lst_jax.speech.wav2vec2 import HiddenStates, Wav2Vec2
from lst_jax.speech.wav2vec2_config import frame_count, receptive_field, samples_per_frame
from lst_jax.speech.word_search import WordSearch

_PIECES_S = (2, 4, 8, 16, 30)  # lengths that programs are compiled for
_CONTEXT_S = 3  # on either side of a piece of a recording that is longer than the last of them
_ROWS = 8
_DELIMITER, _STAR = "|", "*"
_CHOICES = {"romanize": ("no", "yes"), "missing": ("reject", "star")}


def open_aligner(argument: str, options: Mapping[str, str]) -> CTCModel:
    """Opens `ctc:DIR[,language=…][,romanize=…][,missing=…]`."""
    check_options("ctc", options, ("language", *_CHOICES))
    for name, choices in _CHOICES.items():
        value = options.get(name, choices[0])
        require(value in choices, f"{name} of ctc", value, " or ".join(choices))
    return CTCModel(
        path_argument("ctc", argument, "a directory of Hugging Face's"),
        language=options.get("language", "en"),
        romanize=options.get("romanize") == "yes",
        star=options.get("missing") == "star",
    )


def open_recognizer(argument: str, options: Mapping[str, str]) -> CTCModel:
    """Opens `ctc:DIR[,words=FILE][,language=…]`."""
    check_options("ctc", options, ("words", "language"))
    return CTCModel(
        path_argument("ctc", argument, "a directory of Hugging Face's"),
        language=options.get("language", "en"),
        words=local_path(options["words"], "words of ctc") if "words" in options else None,
    )


@dataclasses.dataclass(frozen=True)
class _Piece:
    """Samples [start, end) of a waveform, of whose frames [first, last) are kept."""

    row: int
    start: int
    end: int
    first: int
    last: int


class CTCModel:
    """The `Aligner` and `Recognizer`."""

    def __init__(
        self,
        directory: str | pathlib.Path,
        *,
        language: str = "en",
        romanize: bool = False,
        star: bool = False,
        words: pathlib.Path | None = None,
    ) -> None:
        """Reads a model.

        Args:
          directory: its directory.
          language: of numbers and symbols.
          romanize: whether words are first spelled in Latin letters.
          star: whether words that labels cannot spell are aligned to anything.
          words: file of all words that are heard. None: any letters are.

        Raises:
          OSError, ValueError: see `read_model`; or it has no CTC head, no labels, or no blank; or
            a line of the list is no word that labels can spell.
        """
        model = read_model(directory)
        require(model.head, f"{directory}: lm_head", None, "a CTC head")
        require(
            model.labels is not None, f"{directory}: vocab.json", None, "labels of the CTC head"
        )
        assert model.labels is not None
        blank = model.labels.get("<blank>", model.config.pad_token_id)
        require(blank is not None, f"{directory}: pad_token_id", blank, "the blank's id")
        assert blank is not None
        letters = {label for label in model.labels if len(label) == 1} - {_DELIMITER, _STAR}
        require(bool(letters), f"{directory}: vocab.json", model.labels, "labels of one character")
        self._config, self._labels, self._blank = model.config, model.labels, blank
        self._names = {number: label for label, number in model.labels.items()}
        self._speller = Speller(frozenset(letters), language, romanize)
        self._star = star
        self._words = [] if words is None else self._read_words(words)
        if words is not None:
            targets = [self._targets([parts]).tolist() for _, parts in self._words]
            self._search = WordSearch(targets, self._labels[_DELIMITER], blank)
        self._normalize = bool(model.normalize)
        self.sample_rate = model.sample_rate
        self._step, self._field = samples_per_frame(model.config), receptive_field(model.config)
        self._mesh = make_mesh()
        self._params = jax.device_put(model.params, replicated(self._mesh))
        network = Wav2Vec2(model.config, head=True)

        def log_probabilities(params: dict, waveforms: jax.Array, lengths: jax.Array) -> jax.Array:
            states = cast(HiddenStates, network.apply(params, waveforms, lengths))
            return jax.nn.log_softmax(cast(jax.Array, states.logits))

        self._log_probabilities = jax.jit(log_probabilities)

    def align(
        self, waveforms: Sequence[np.ndarray], transcripts: Sequence[str]
    ) -> list[Alignment | Rejection]:
        """Returns the words' places; see `Aligner`."""
        require(len(waveforms) == len(transcripts), "transcripts", len(transcripts), "as waveforms")
        spelled = [self._spell(transcript.split()) for transcript in transcripts]
        found: list[Alignment | Rejection | None] = [
            words if isinstance(words, Rejection) else self._check_length(waveform)
            for words, waveform in zip(spelled, waveforms, strict=True)
        ]
        rows = [i for i, rejection in enumerate(found) if rejection is None]
        emissions = self.emissions([waveforms[i] for i in rows])
        if self._star:
            emissions = [add_star(row) for row in emissions]
        words = {i: of_row for i in rows if not isinstance(of_row := spelled[i], Rejection)}
        targets = [self._targets(words[i]) for i in rows]
        paths = align_ctc_rows(emissions, targets, self._blank)
        for i, path in zip(rows, paths, strict=True):
            is_path = isinstance(path, CTCPath)
            duration = len(waveforms[i]) / self.sample_rate
            transcript = transcripts[i].split()
            found[i] = self._time(path, transcript, words[i], duration) if is_path else path
        return [result for result in found if result is not None]

    def recognize(
        self, waveforms: Sequence[np.ndarray], *, listed: bool = True
    ) -> list[tuple[TimedText, ...]]:
        """Returns the likeliest words; see `Recognizer`.

        Args:
          waveforms: of the utterances.
          listed: of the list, where there is one; false reads the likeliest labels all the same.
        """
        found: list[tuple[TimedText, ...]] = [()] * len(waveforms)
        long = [i for i, w in enumerate(waveforms) if self._check_length(w) is None]
        read = self._find_listed if listed and self._words else self._read
        for i, emissions in zip(long, self.emissions([waveforms[i] for i in long]), strict=True):
            found[i] = read(emissions, len(waveforms[i]) / self.sample_rate)
        return found

    def emissions(self, waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns log-probabilities float32 (T, V) of each waveform, which has a frame or more.

        Raises:
          ValueError: a waveform is not as `UnitEncoder.encode` takes it.
        """
        rows = [self._prepare(waveform) for waveform in waveforms]
        found = [
            np.zeros((frame_count(self._config, len(row)), self._config.vocab_size), np.float32)
            for row in rows
        ]
        pieces = [piece for i, row in enumerate(rows) for piece in self._cut(i, len(row))]

        def length(piece: _Piece) -> int:
            samples = piece.end - piece.start
            return next(s for s in _PIECES_S if samples <= s * self.sample_rate + self._field)

        for seconds, group in itertools.groupby(sorted(pieces, key=length), length):
            for batch in _batches(list(group)):
                computed = self._compute(rows, batch, seconds * self.sample_rate + self._field)
                for piece, log_probs in zip(batch, computed, strict=False):
                    skip = piece.first - piece.start // self._step
                    kept = log_probs[skip : skip + piece.last - piece.first]
                    found[piece.row][piece.first : piece.last] = kept
        return found

    def _compute(
        self, rows: Sequence[np.ndarray], batch: Sequence[_Piece], samples: int
    ) -> np.ndarray:
        parts = batch_mesh_size(self._mesh)
        size = 1 << (len(batch) - 1).bit_length()  # a few numbers of rows are few compilations
        size += -size % parts
        waveforms = np.zeros((size, samples), np.float32)
        lengths = np.full(size, self._field, np.int32)
        for i, piece in enumerate(batch):
            waveforms[i, : piece.end - piece.start] = rows[piece.row][piece.start : piece.end]
            lengths[i] = piece.end - piece.start
        sharding = batch_sharding(self._mesh)
        given = (jax.device_put(x, sharding) for x in (waveforms, lengths))
        return np.asarray(self._log_probabilities(self._params, *given))

    def _cut(self, row: int, samples: int) -> list[_Piece]:
        frames = frame_count(self._config, samples)
        longest = _PIECES_S[-1] * self.sample_rate
        if samples <= longest:
            return [_Piece(row, 0, samples, 0, frames)]
        context = round(_CONTEXT_S * self.sample_rate) // self._step
        kept = longest // self._step - 2 * context
        pieces = []
        for first in range(0, frames, kept):
            last = min(first + kept, frames)
            start = max(first - context, 0) * self._step
            end = min(last - 1 + context, frames - 1) * self._step + self._field
            pieces.append(_Piece(row, start, end, first, last))
        return pieces

    def _prepare(self, waveform: np.ndarray) -> np.ndarray:
        real = waveform.ndim == 1 and waveform.dtype.kind == "f" and waveform.size > 0
        shape = f"{waveform.dtype} {waveform.shape}"
        good = real and bool(np.isfinite(loudest_of(waveform)))
        require(good, "waveform", shape, "finite floats (S,)")
        if self._normalize:
            return normalize_waveform(waveform)
        return waveform.astype(np.float32, copy=False)

    def _check_length(self, waveform: np.ndarray) -> Rejection | None:
        if len(waveform) >= self._field:
            return None
        return Rejection(
            "too-short", f"{len(waveform)} samples, expected at least {self._field} for a frame"
        )

    def _spell(self, words: Sequence[str]) -> list[list[str]] | Rejection:
        """Returns the parts of each word, which are letters; a star for what has no labels."""
        spelled: list[list[str]] = []
        for word in words:
            letters = self._speller.spell(word)
            if isinstance(letters, Rejection):
                if not self._star:
                    return letters
                letters = _STAR
            spelled.append(letters.split())
        if not any(spelled):
            return Rejection("no-words", f"{len(words)} words, none of them with letters")
        return spelled

    def _targets(self, words: Sequence[Sequence[str]]) -> np.ndarray:
        parts = [part for of_word in words for part in of_word]
        star = self._config.vocab_size
        ids = [[star if c == _STAR else self._labels[c] for c in part] for part in parts]
        between = [self._labels[_DELIMITER]] if _DELIMITER in self._labels else []
        joined = [number for part in ids for number in (*between, *part)]
        return np.array(joined[len(between) :], np.int32)

    def _time(
        self,
        path: CTCPath,
        transcript: Sequence[str],
        words: Sequence[Sequence[str]],
        duration: float,
    ) -> Alignment:
        """Returns the transcript's words and letters with their times."""
        between = int(_DELIMITER in self._labels)
        place, last = 0, 0.0
        timed, characters = [], []
        for text, parts in zip(transcript, words, strict=True):
            own = []
            for part in parts:
                own += [(letter, place + i) for i, letter in enumerate(part)]
                place += len(part) + between
            if not own:  # punctuation alone
                timed.append(TimedText(text, last, last))
                continue
            spans = path.spans[[i for _, i in own]]
            scores = path.span_scores[[i for _, i in own]]
            frames = spans[:, 1] - spans[:, 0]
            mean = float(np.sum(scores * frames) / np.sum(frames))
            last = self._seconds(int(spans[-1, 1]), duration)
            timed.append(TimedText(text, self._seconds(int(spans[0, 0]), duration), last, mean))
            for (letter, _), (first, end), score in zip(own, spans, scores, strict=True):
                times = (self._seconds(int(first), duration), self._seconds(int(end), duration))
                characters.append(TimedText(letter, *times, min(float(score), 0.0)))
        return Alignment(tuple(timed), tuple(characters))

    def _seconds(self, frame: int, duration: float) -> float:
        """Returns when a frame begins."""
        sample = frame * self._step + (self._field - self._step) / 2
        return min(max(sample, 0.0) / self.sample_rate, duration)

    def _read_words(self, path: pathlib.Path) -> list[tuple[str, list[str]]]:
        """Returns the words of a list and the parts of each, which are letters."""
        found = self._labels.get(_DELIMITER)
        require(found is not None, f"label {_DELIMITER} for words of a list", found, "its id")
        words = []
        for number, line in read_numbered_lines(path):
            place = f"{path}:{number}"
            word = decode_text(line, place).strip()
            letters = self._speller.spell(word)
            if isinstance(letters, Rejection):
                raise ValueError(f"{place}: {letters.reason}")
            require(len(word.split()) == 1 and letters != "", place, word, "a word")
            words.append((word, letters.split()))
        require(len(words) > 0, str(path), words, "a word on each line")
        return words

    def _find_listed(self, log_probs: np.ndarray, duration: float) -> tuple[TimedText, ...]:
        """Returns the likeliest words of the list, where CTC aligns them."""
        found = [self._words[number] for number in self._search.search(log_probs)]
        if not found:
            return ()
        parts = [letters for _, letters in found]
        path = align_ctc(log_probs, self._targets(parts), self._blank)
        return self._time(path, [word for word, _ in found], parts, duration).words

    def _read(self, log_probs: np.ndarray, duration: float) -> tuple[TimedText, ...]:
        labels, spans = decode_greedy(log_probs, self._blank)
        best = log_probs.max(axis=-1)
        names = [self._names.get(label, "") for label in labels.tolist()]
        words = []
        groups = itertools.groupby(range(len(names)), lambda i: names[i] == _DELIMITER)
        for is_delimiter, group in groups:
            own = [i for i in group if len(names[i]) == 1]
            if is_delimiter or not own:
                continue
            start, end = int(spans[own[0], 0]), int(spans[own[-1], 1])
            score = min(float(best[start:end].mean()), 0.0)
            times = (self._seconds(start, duration), self._seconds(end, duration))
            words.append(TimedText("".join(names[i] for i in own), *times, score))
        return tuple(words)


def _batches(pieces: Sequence[_Piece]) -> list[Sequence[_Piece]]:
    return [pieces[i : i + _ROWS] for i in range(0, len(pieces), _ROWS)]
