"""How well recognition and synthesis work: error rates, and the units that they take.

Recognition (ASR) is judged by the errors of its texts. Synthesis (TTS) is judged by what a
recognizer understands of it, against the text that it should say.

Costs are counted in units, patches, as in the paper's Table 5: the context (of the question) and
the generation (of the answer). The unpatched baseline's units are its tokens, so units per token
are the ratio of a model's cost to the baseline's on the same tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from lst_jax.evaluation.error_rates import (
    ErrorRate,
    UtteranceErrors,
    character_error_rate,
    count_errors,
    word_error_rate,
)
from lst_jax.evaluation.spoken_texts import SpokenText
from lst_jax.evaluation.tables import format_rate
from lst_jax.inference.transcription import Answer


@dataclasses.dataclass(frozen=True)
class ErrorRates:
    """Errors on a set of utterances.

    Attributes:
      wer, cer: over all of them.
      utterances: the errors of each.
    """

    wer: ErrorRate
    cer: ErrorRate
    utterances: tuple[UtteranceErrors, ...]


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """Errors and costs of a model on a set of utterances.

    Attributes:
      context_patches, context_tokens: of the questions: patches, and tokens.
      generation_patches, generation_tokens: the same of the answers.
      errors: of what was recognized.
    """

    context_patches: int
    context_tokens: int
    generation_patches: int
    generation_tokens: int
    errors: ErrorRates

    def as_dict(self) -> dict[str, Any]:
        """Returns the result as JSON values."""
        return dataclasses.asdict(self)


def error_rates(spoken: Sequence[SpokenText], hypotheses: Sequence[str]) -> ErrorRates:
    """Returns the errors of what was recognized of utterances, at least one.

    Raises:
      ValueError: a reference has no words.
    """
    errors = tuple(
        count_errors(item.example_id, item.text, hypothesis)
        for item, hypothesis in zip(spoken, hypotheses, strict=True)
    )
    return rates_of(errors)


def rates_of(errors: tuple[UtteranceErrors, ...]) -> ErrorRates:
    """Returns the rates over utterances, at least one, with the errors of each."""
    return ErrorRates(word_error_rate(errors), character_error_rate(errors), errors)


def judge(
    spoken: Sequence[SpokenText], hypotheses: Sequence[str], answers: Sequence[Answer]
) -> TaskResult:
    """Returns the errors and costs of a model's answers.

    Args:
      spoken: the utterances, at least one.
      hypotheses: what was recognized of each, by the model itself or of what it said.
      answers: the model's, which took the units.

    Raises:
      ValueError: a reference has no words.
    """
    return TaskResult(
        context_patches=sum(answer.question_patches for answer in answers),
        context_tokens=sum(answer.question_tokens for answer in answers),
        generation_patches=sum(answer.answer_patches for answer in answers),
        generation_tokens=sum(len(answer.generation.tokens) for answer in answers),
        errors=error_rates(spoken, hypotheses),
    )


HEADER = (
    *(
        "model",
        "n",
        "WER",
        "CER",
        "context patches",
        "per token",
        "generation patches",
        "per token",
    ),
)


def table_row(name: str, result: TaskResult) -> list[str]:
    """Returns the cells of a result in the order of `HEADER`; rates in percent, with intervals."""
    return [
        name,
        str(len(result.errors.utterances)),
        *error_cells(result.errors),
        f"{result.context_patches:,}",
        f"{result.context_patches / result.context_tokens:.2f}",
        f"{result.generation_patches:,}",
        f"{result.generation_patches / result.generation_tokens:.2f}",
    ]


def error_cells(errors: ErrorRates) -> list[str]:
    """Returns the WER and CER in percent, with their intervals."""
    return [format_rate(rate.rate, rate.interval) for rate in (errors.wer, errors.cer)]
