"""Language models of text, by one line: `lst:CHECKPOINT`, or what `open_language_model` opens."""

from __future__ import annotations

from data_pipelines.speech.registry import (
    check_options,
    open_language_model,
    parse_specification,
)
from lst_jax.evaluation.speech_quality import TextModel
from lst_jax.inference.trained_model import load_trained_model
from lst_jax.settings import require
from lst_jax.speech.interfaces import LanguageModel


def load_language_model(specification: str, tokenizer: str | None) -> LanguageModel:
    """Opens a language model.

    Args:
      specification: of the model.
      tokenizer: of a run, where it is no longer at its place.

    Raises:
      ImportError, OSError, ValueError: see `open_language_model` and `load_trained_model`.
    """
    parts = parse_specification(specification, "language model")
    if parts.kind != "lst":
        return open_language_model(specification)
    check_options("lst", parts.options, ())
    argument = parts.argument or ""
    require(argument != "", "language model", specification, "lst:CHECKPOINT")
    return TextModel(load_trained_model(argument, tokenizer))
