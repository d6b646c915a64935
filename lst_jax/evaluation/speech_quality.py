"""Quality of speech that a model made: how likely and how repetitive what is heard in it is.

Data are JSON lines, an utterance a line: continuations as `experiments.generate` writes them, or

    {"id": "17", "units": [3, 3, 99, …], "text": "Ann lost her key."}

where `text`, what was meant, may be absent.

*Generation perplexity*: of transcripts, under a text model, per token of that model and per word.
*auto-BLEU* of a transcript: the share of its n-grams that are in it more than once, as the
geometric mean over n = 1, 2 (Lakhotia et al., 2021); 1 says the same again and again.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lst_jax.evaluation.answer_rates import ErrorRates, rates_of
from lst_jax.evaluation.error_rates import count_errors, normalize
from lst_jax.evaluation.jsonl import Example, field, parse_units, read_examples, show
from lst_jax.evaluation.statistics import bootstrap_ratio_interval
from lst_jax.inference.scoring import Continuation, ScoringShape, score_continuations
from lst_jax.inference.trained_model import TrainedModel
from lst_jax.speech.interfaces import LanguageModel, TextScore


@dataclasses.dataclass(frozen=True, eq=False)
class MadeSpeech(Example):
    """An utterance that a model made.

    Attributes:
      units: (U,) int32; none where it made text alone.
      meant: what it should say; None where nobody knows.
    """

    units: np.ndarray
    meant: str | None


@dataclasses.dataclass(frozen=True)
class Measured:
    """A number over utterances.

    Attributes:
      value: the number.
      interval: its 95 % bootstrap interval, utterances drawn with replacement.
      n: utterances that have it.
    """

    value: float
    interval: tuple[float, float]
    n: int


@dataclasses.dataclass(frozen=True)
class SpeechQuality:
    """Quality of utterances; None for what nothing was there to measure by.

    Attributes:
      n: utterances.
      without_words: of them, those in which no word was heard; they count in `errors` alone.
      perplexity: of transcripts, per token of the language model.
      word_perplexity: the same per word.
      auto_bleu: mean over transcripts of two words or more.
      errors: of what was heard, against what was meant.
      transcripts: by utterance.
    """

    n: int
    without_words: int
    perplexity: Measured | None
    word_perplexity: Measured | None
    auto_bleu: Measured | None
    errors: ErrorRates | None
    transcripts: dict[str, str]


def read_made_speech(
    path: pathlib.Path,
    unit_count: int,
    encoder_fingerprint: str | None = None,
    *,
    meant_is_prompt: bool = False,
) -> tuple[MadeSpeech, ...]:
    """Reads and checks a file of utterances (format: see the module).

    Args:
      path: JSONL file.
      unit_count: units are less.
      encoder_fingerprint: see `jsonl.read_examples`.
      meant_is_prompt: whether a continuation should say its prompt's text, as of models that are
        fine-tuned for synthesis.

    Raises:
      OSError, ValueError: see `jsonl.read_examples`; or a field is not what it should be.
    """

    def parse(fields: Mapping[str, Any], count: int, origin: str) -> MadeSpeech:
        name = fields.get("id")
        name = str(name) if type(name) is int else field(fields, "id", str)
        if "segments" not in fields:
            units = parse_units(field(fields, "units", list), "units", count)
            return MadeSpeech(name, "", origin, units, _meant(fields))
        parts = []
        for i, segment in enumerate(field(fields, "segments", list)):
            if not isinstance(segment, dict) or not {"text", "units"} & set(segment):
                raise ValueError(f"segments[{i}] is {show(segment)}; expected text or units")
            if "units" in segment:
                parts.append(parse_units(segment["units"], f"segments[{i}].units", count))
        units = np.concatenate([np.zeros(0, np.int32), *parts])
        prompt = field(fields, "prompt", dict)
        name = f"{name}-{field(fields, 'sample', int)}"
        return MadeSpeech(name, "", origin, units, _meant(prompt) if meant_is_prompt else None)

    return read_examples([path], unit_count, parse, encoder_fingerprint)


def _meant(fields: Mapping[str, Any]) -> str | None:
    if fields.get("text") is None:
        return None
    text = field(fields, "text", str)
    if not normalize(text):
        raise ValueError(f"text is {show(text)}; expected a string with words")
    return text


def auto_bleu(text: str, n: int = 2) -> float | None:
    """Returns how much a text repeats itself, 0 … 1; None where it has fewer than n words.

    Args:
      text: is normalized, see `error_rates.normalize`.
      n: length of the longest n-grams.
    """
    words = normalize(text).split()
    if len(words) < n:
        return None
    product = 1.0
    for k in range(1, n + 1):
        counts = collections.Counter(zip(*(words[i:] for i in range(k)), strict=False))
        repeated = sum(count for count in counts.values() if count > 1)
        product *= repeated / counts.total()
    return product ** (1 / n)


class TextModel:
    """A trained model as a language model: of text after bos and `<t>`, without eos."""

    def __init__(self, trained: TrainedModel, shape: ScoringShape | None = None) -> None:
        """Makes a language model of a trained one; `shape` as of `score_continuations`."""
        self._trained, self._shape = trained, shape

    def score(self, texts: Sequence[str]) -> list[TextScore]:
        """See `LanguageModel.score`."""
        vocabulary = self._trained.vocabulary
        prompt = np.array([vocabulary.bos_id, vocabulary.text_mode_id], np.int32)
        pieces = [self._trained.text_tokenizer.encode(text.strip()) for text in texts]
        asked = [Continuation(prompt, ids) for ids in pieces if len(ids)]
        found = score_continuations(self._trained, asked, shape=self._shape) if asked else []
        scores = iter(found)
        return [TextScore(float(next(scores)) if len(x) else 0.0, len(x)) for x in pieces]


def measure_quality(
    spoken: Sequence[MadeSpeech], heard: Sequence[str], model: LanguageModel | None
) -> SpeechQuality:
    """Returns the quality of utterances, at least one.

    Args:
      spoken: the utterances.
      heard: their transcripts, "" where nothing was heard.
      model: tells how likely transcripts are; None: nothing does.
    """
    texts = [text for text in heard if normalize(text)]
    scores = [TextScore(0.0, 0)] * len(texts) if model is None else model.score(texts)
    words = [len(normalize(text).split()) for text in texts]
    # A text of one token may have no score, as where a model has no bos.
    likely = [pair for pair in zip(scores, words, strict=True) if pair[0].token_count]
    losses = [-score.log_probability for score, _ in likely]
    bleus = [x for text in heard if (x := auto_bleu(text)) is not None]
    errors = tuple(
        count_errors(item.example_id, item.meant, text)
        for item, text in zip(spoken, heard, strict=True)
        if item.meant is not None
    )
    return SpeechQuality(
        n=len(spoken),
        without_words=len(heard) - len(texts),
        perplexity=_perplexity(losses, [score.token_count for score, _ in likely]),
        word_perplexity=_perplexity(losses, [count for _, count in likely]),
        auto_bleu=_ratio(bleus, [1] * len(bleus)),
        errors=rates_of(errors) if errors else None,
        transcripts={item.example_id: text for item, text in zip(spoken, heard, strict=True)},
    )


def _ratio(numerators: Sequence[float], denominators: Sequence[int]) -> Measured | None:
    if not numerators:
        return None
    interval = bootstrap_ratio_interval(np.array(numerators), np.array(denominators))
    return Measured(sum(numerators) / sum(denominators), interval, len(numerators))


def _perplexity(losses: Sequence[float], lengths: Sequence[int]) -> Measured | None:
    loss = _ratio(losses, lengths)
    if loss is None:
        return None
    low, high = loss.interval
    return Measured(_exp(loss.value), (_exp(low), _exp(high)), loss.n)


def _exp(loss: float) -> float:
    return math.exp(min(loss, 700.0))  # beyond there is no finite number
