r"""What is heard in speech that models made: how likely, how repetitive, and how far from its text.

    python -m experiments.evaluate_speech_quality --data=continued/continuations.jsonl \
        --recognizer=pocketsphinx --vocoder=mel:encoder.npz --language_model=lst:runs/lst \
        --output=quality.json

prints a line per file and writes the same, with every transcript, as JSON: perplexity of the
transcripts under a text model, auto-BLEU, and error rates where it is known what was meant
(`lst_jax/evaluation/speech_quality.py`). Recognizers are those of `experiments.evaluate_tts`.
"""

from __future__ import annotations

import dataclasses
import pathlib

from absl import flags

from experiments.common import cli
from experiments.common.encoders import define_specification, most_units, open_speech
from experiments.common.language_models import load_language_model
from experiments.common.outputs import check_output, keep_results
from experiments.common.paths import define_path, define_paths
from experiments.common.recognizers import UnitRecognizer, hear, make_recognizer, model_recognizer
from lst_jax.evaluation.answer_rates import error_cells
from lst_jax.evaluation.speech_quality import (
    Measured,
    SpeechQuality,
    measure_quality,
    read_made_speech,
)
from lst_jax.evaluation.tables import format_percent, format_rate, format_rows
from lst_jax.inference.trained_model import load_trained_model

_DATA = define_paths(
    "data", "Continuations, or lines with id and units; several are compared.", required=True
)
_RECOGNIZER = define_specification("recognizer", "What hears the speech.", required=True)
_LANGUAGE_MODEL = define_specification(
    "language_model", "Tells how likely texts are: lst:RUN, transformers:DIR."
)
_ENCODER = define_specification("encoder", "The units' encoder: its own vocoder speaks.")
_VOCODER = define_specification("vocoder", "What speaks, in place of the encoder's own.")
_MEANT_IS_PROMPT = flags.DEFINE_bool(
    "meant_is_prompt", False, "Continuations should say their prompts' texts."
)
_TOKENIZER = define_path("tokenizer", "The runs' SentencePiece model, where it has moved.")
_BATCH_ROWS = flags.DEFINE_integer("batch_rows", 8, "Rows of a batch.", 1, 2**20)
_OUTPUT = define_path("output", "JSON file to write the results to.")

_UNITS = 2**20  # more than any encoder has
_HEADER: tuple[str, ...] = (
    "data",
    "n",
    "perplexity",
    "per word",
    "auto-BLEU",
    "WER",
    "CER",
    "without words",
)


def main(argv: list[str]) -> None:
    """Evaluates as the flags say."""
    cli.check_no_arguments(argv)
    check_output(_OUTPUT.value)
    encoder, vocoder = open_speech(_ENCODER.value, _VOCODER.value, [])
    known = encoder.fingerprint if encoder else None
    if vocoder is not None:
        known = known or vocoder.encoder_fingerprint
    count = most_units(vocoder) if vocoder else _UNITS
    files = {
        path: read_made_speech(
            pathlib.Path(path), count, known, meant_is_prompt=_MEANT_IS_PROMPT.value
        )
        for path in _DATA.value
    }
    recognizer = make_recognizer(_RECOGNIZER.value, _load_recognizer, vocoder)
    model = _LANGUAGE_MODEL.value and load_language_model(_LANGUAGE_MODEL.value, _TOKENIZER.value)
    rows, results = [list(_HEADER)], []
    for path, spoken in files.items():
        heard = hear(recognizer, [item.units for item in spoken])
        quality = measure_quality(spoken, heard, model or None)
        rows.append(_row(path, quality))
        results.append({"data": path, **dataclasses.asdict(quality)})
    named = {
        "recognizer": _RECOGNIZER.value,
        "language_model": _LANGUAGE_MODEL.value,
        "vocoder": _VOCODER.value or _ENCODER.value,
    }
    keep_results(_OUTPUT.value, named | {"results": results}, lambda: format_rows(rows, 1))


def _load_recognizer(checkpoint: str) -> UnitRecognizer:
    return model_recognizer(load_trained_model(checkpoint, _TOKENIZER.value), _BATCH_ROWS.value)


def _row(path: str, quality: SpeechQuality) -> list[str]:
    bleu, errors = quality.auto_bleu, quality.errors
    return [
        path,
        str(quality.n),
        _perplexity(quality.perplexity),
        _perplexity(quality.word_perplexity),
        format_rate(bleu.value, bleu.interval) if bleu else "",
        *(error_cells(errors) if errors else ("", "")),
        format_percent(quality.without_words / quality.n),
    ]


def _perplexity(found: Measured | None) -> str:
    if found is None:
        return ""
    low, high = found.interval
    return f"{found.value:.1f} ({low:.1f} … {high:.1f})"


if __name__ == "__main__":
    cli.run_main(main)
