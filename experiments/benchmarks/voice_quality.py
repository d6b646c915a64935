r"""Compares vocoders of the built-in units by what a recognizer hears and by mel spectra.

    python -m experiments.train_vocoder --gin_file=experiments/configs/vocoder/small.gin \
        --gin.ENCODER="'built_in'" --workdir=runs/voice
    python -m experiments.benchmarks.voice_quality --encoder=built_in \
        --vocoder=mel:data_pipelines/speech/built_in/encoder.npz \
        --vocoder=hifigan:runs/voice/vocoder \
        --recognizer=ctc:runs/ctc/model,words=runs/ctc/words.txt \
        --training=runs/voice/results.json \
        --output=experiments/benchmarks/results/voice_quality.json

Sentences that no training has, in the voice that `vocoder/small.gin` learns, become units; each
vocoder speaks these, and the recognizer hears the speech and the original.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
from absl import flags

from data_pipelines.microworld.speech import VOICES, synthesize
from data_pipelines.microworld.voices import full_scale
from data_pipelines.speech.audio import resample
from data_pipelines.speech.registry import open_encoder, open_recognizer, open_vocoder
from experiments.common import cli
from experiments.common.machine import command_line, versions
from experiments.common.outputs import check_output, keep_results
from experiments.common.paths import define_path
from experiments.common.vocoder_experiment import HELD_OUT_SEED, mel_distance, story_sentence
from lst_jax.evaluation.error_rates import character_error_rate, count_errors, word_error_rate
from lst_jax.evaluation.tables import format_rows
from lst_jax.settings import require
from lst_jax.speech.interfaces import Rejection
from lst_jax.strict_json import read_json_object

_RATE = 16_000
_FIRST = 10**6  # beyond the sentences that a training measures itself by
_ORIGINAL = "original"


def define_flags() -> None:
    """Defines the flags of the binary, so that importing this module defines none."""
    flags.DEFINE_string("encoder", None, "Makes the units.", required=True)
    flags.DEFINE_multi_string("vocoder", None, "May be given several times.", required=True)
    flags.DEFINE_string("recognizer", "pocketsphinx", "Hears them.")
    flags.DEFINE_integer("sentences", 100, "How many.", lower_bound=1)
    define_path("training", "results.json of a vocoder's training, to be kept beside.")
    define_path("output", "JSON file to write the results to.")


def main(argv: list[str]) -> None:
    """Compares as the flags say."""
    cli.check_no_arguments(argv)
    given = flags.FLAGS
    check_output(given.output)
    training = given.training and read_json_object(pathlib.Path(given.training)).get("training")
    encoder, recognizer = open_encoder(given.encoder), open_recognizer(given.recognizer)
    vocoders = [open_vocoder(name) for name in given.vocoder]
    for name, vocoder in zip(given.vocoder, vocoders, strict=True):
        for what in ("frame_rate", "unit_count"):
            found, expected = getattr(vocoder, what), getattr(encoder, what)
            require(found == expected, f"{what} of {name}", found, f"{expected}, as the encoder")
    texts = [story_sentence(HELD_OUT_SEED, _FIRST + i) for i in range(given.sentences)]
    speech = [synthesize(text, VOICES[0]) for text in texts]
    originals = [resample(full_scale(x), x.sample_rate, _RATE) for x in speech]
    heard = [resample(full_scale(x), x.sample_rate, encoder.sample_rate) for x in speech]
    units = [x for x in encoder.encode(heard) if not isinstance(x, Rejection)]
    require(len(units) == len(texts), "units", len(units), f"those of {len(texts)} sentences")
    results = [_judge(_ORIGINAL, originals, originals, texts, recognizer)]
    for name, vocoder in zip(given.vocoder, vocoders, strict=True):
        made = [resample(x, vocoder.sample_rate, _RATE) for x in vocoder.decode(units)]
        results.append(_judge(name.partition(":")[0], made, originals, texts, recognizer))
    values = {
        "command": command_line("voice_quality"),
        "recognizer": given.recognizer.partition(":")[0],
        "sentences": len(texts),
        "words": sum(len(text.split()) for text in texts),
        "versions": versions("jax", "numpy"),
        "training": training,
        "results": results,
    }
    keep_results(given.output, values, lambda: _table(results))


def _judge(
    name: str,
    made: list[np.ndarray],
    originals: list[np.ndarray],
    texts: list[str],
    recognizer: Any,
) -> dict[str, Any]:
    sounds = [resample(x, _RATE, recognizer.sample_rate) for x in made]
    heard = [" ".join(word.text for word in words) for words in recognizer.recognize(sounds)]
    counted = [
        count_errors(str(i), text, answer)
        for i, (text, answer) in enumerate(zip(texts, heard, strict=True))
    ]
    distances = [mel_distance(a, b, _RATE) for a, b in zip(originals, made, strict=True)]
    return {
        "voice": name,
        "wer": word_error_rate(counted).rate,
        "cer": character_error_rate(counted).rate,
        "mel_distance": float(np.mean(distances)),
    }


def _table(results: list[dict[str, Any]]) -> str:
    rows = [["voice", "WER", "CER", "mel distance"]]
    for x in results:
        rows.append([x["voice"], f"{x['wer']:.1%}", f"{x['cer']:.1%}", f"{x['mel_distance']:.3f}"])
    return format_rows(rows, 1)


if __name__ == "__main__":
    define_flags()
    cli.run_main(main)
