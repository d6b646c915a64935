r"""Turns recordings of a reader into units and sound again, and counts the words that are heard.

    python -m experiments.fetch_speech --output=runs/librivox
    python -m experiments.benchmarks.voice_recordings --recordings=runs/librivox/recordings \
        --workdir=runs/librivox_voice \
        --output=experiments/benchmarks/results/voice_recordings.json

The built-in units, and the voice that was trained for them, know nothing of the reader. Others are
fitted to all recordings but the last, and `experiments.train_vocoder` learns a vocoder of these
from the same recordings: seconds of speech, in minutes, so it says what becomes of them and of
nothing else. Of either units Griffin and Lim's algorithm and a vocoder speak all recordings, and a
recognizer hears that and the original. The same command goes on where a killed one was.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jiwer
import numpy as np
from absl import flags

from data_pipelines.speech.alignment import label_frames
from data_pipelines.speech.audio import read_audio, resample
from data_pipelines.speech.registry import (
    open_aligner,
    open_encoder,
    open_recognizer,
    open_vocoder,
)
from data_pipelines.speech.units import BUILT_IN, MelFeatures, MelKMeansEncoder
from experiments.common import cli
from experiments.common.machine import command_line, device_name, versions
from experiments.common.outputs import check_output, check_writable, keep_results
from experiments.common.paths import define_path
from experiments.common.speech_training import RESULTS
from experiments.common.vocoder_experiment import VOCODER, mel_distance
from lst_jax.evaluation.error_rates import normalize
from lst_jax.evaluation.tables import format_rows
from lst_jax.settings import require
from lst_jax.speech.interfaces import Recognizer, Rejection
from lst_jax.strict_json import read_json_object

_RATE = 16_000
_GIN_FILE = "experiments/configs/vocoder/small.gin"


def define_flags() -> None:
    """Defines the flags of the binary, so that importing this module defines none."""
    define_path("recordings", "Folder of NAME.wav and NAME.txt, what is said.", required=True)
    define_path("workdir", "Folder of units and vocoder.", required=True)
    flags.DEFINE_integer("unit_count", 100, "Units to fit.", lower_bound=1)
    flags.DEFINE_integer("held_out", 1, "Recordings that nothing learns, the last.", lower_bound=0)
    flags.DEFINE_integer("steps", 1500, "Of the vocoder's training.", lower_bound=1)
    define_path("output", "JSON file to write the results to.")


def main(argv: list[str]) -> None:
    """Compares as the flags say."""
    cli.check_no_arguments(argv)
    given, workdir = flags.FLAGS, pathlib.Path(flags.FLAGS.workdir)
    check_output(given.output)
    check_writable(workdir)
    files = sorted(pathlib.Path(given.recordings).glob("*.wav"))
    count = len(files) - given.held_out
    require(count > 0, "--recordings", str(given.recordings), f"more than {given.held_out} *.wav")
    texts = [file.with_suffix(".txt").read_text(encoding="utf-8") for file in files]
    recognizer = open_recognizer("pocketsphinx")
    learned = workdir / "recordings"
    for file in files[:count]:
        learned.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, learned / file.name)
    units_file = workdir / "encoder.npz"
    if not units_file.exists():
        fit_units(files[:count], texts[:count], given.unit_count).save(units_file)
    training = _train(f"mel:{units_file}", learned, given.steps, workdir / "voice")
    originals = [read_audio(file, _RATE) for file in files]
    heard = _hear(recognizer, originals)
    own = f"mel:{units_file}", f"hifigan:{workdir / 'voice' / VOCODER}"
    built_in = f"mel:{BUILT_IN / 'encoder.npz'}", "built_in"
    fitted = ["fitted, learned"] * count + ["fitted, not learned"] * given.held_out
    results = []
    for units, tools in ((["built-in"] * len(files), built_in), (fitted, own)):
        sounds = {"original": originals, **_speak(*tools, files)}
        for voice, made in sounds.items():
            again = heard if voice == "original" else _hear(recognizer, made)
            results += [
                {
                    "units": units[i],
                    "voice": voice,
                    "recording": file.stem,
                    "words": len(normalize(texts[i]).split()),
                    "right": count_same(texts[i], again[i]),
                    "same": count_same(heard[i], again[i]),
                    "mel_distance": mel_distance(originals[i], made[i], _RATE),
                }
                for i, file in enumerate(files)
            ]
    values = {
        "command": command_line("voice_recordings"),
        "recognizer": "pocketsphinx",
        "unit_count": given.unit_count,
        "learned_seconds": sum(len(x) for x in originals[:count]) / _RATE,
        "device": device_name(),
        "cores": len(os.sched_getaffinity(0)),
        "versions": versions("jax", "numpy", "pocketsphinx"),
        "training": training,
        "results": results,
    }
    keep_results(given.output, values, lambda: _table(results))


def fit_units(
    files: Sequence[pathlib.Path], texts: Sequence[str], unit_count: int
) -> MelKMeansEncoder:
    """Returns units of recordings, as the built-in corpus' are fitted, of the words in them.

    Raises:
      ValueError: words of a recording are not found in it.
    """
    features, aligner = MelFeatures(), open_aligner("pocketsphinx")
    found = aligner.align([read_audio(file, aligner.sample_rate) for file in files], texts)
    log_mels, labels = [], []
    for file, alignment in zip(files, found, strict=True):
        if isinstance(alignment, Rejection):
            raise ValueError(f"{file}: {alignment.reason}")
        frames = features.log_mels(read_audio(file, features.sample_rate), features.sample_rate)
        log_mels.append(frames)
        labels.append(label_frames(alignment.words, len(frames), features.frame_rate))
    return MelKMeansEncoder.fit(features, log_mels, labels, unit_count=unit_count)


def count_same(reference: str, heard: str) -> int:
    """Returns how many words of a text are heard, in order."""
    reference, heard = normalize(reference), normalize(heard)
    return jiwer.process_words(reference, heard).hits if reference else 0


def _speak(
    encoder: str, vocoder: str, files: Sequence[pathlib.Path]
) -> dict[str, list[np.ndarray]]:
    """Returns recordings as units speak them, by Griffin and Lim's algorithm and by a vocoder."""
    hears = open_encoder(encoder)
    units = hears.encode([read_audio(file, hears.sample_rate) for file in files])
    known = [x for x in units if not isinstance(x, Rejection)]
    require(len(known) == len(files), "--recordings", len(known), "as many that are long enough")
    voices = {"mel": open_vocoder(encoder), "hifigan": open_vocoder(vocoder)}
    return {
        name: [resample(x, voice.sample_rate, _RATE) for x in voice.decode(known)]
        for name, voice in voices.items()
    }


def _hear(recognizer: Recognizer, sounds: Sequence[np.ndarray]) -> list[str]:
    given = [resample(x, _RATE, recognizer.sample_rate) for x in sounds]
    return [" ".join(word.text for word in words) for words in recognizer.recognize(given)]


def _train(
    encoder: str, recordings: pathlib.Path, steps: int, workdir: pathlib.Path
) -> dict[str, Any]:
    """Trains a vocoder, or goes on, and returns what its results say of it."""
    settings = {"ENCODER": encoder, "RECORDINGS": str(recordings), "NUM_STEPS": steps}
    command = [sys.executable, "-m", "experiments.train_vocoder", f"--gin_file={_GIN_FILE}"]
    command += [f"--gin.{name}={value!r}" for name, value in settings.items()]
    done = subprocess.run([*command, f"--workdir={workdir}"], check=False)
    require(done.returncode == 0, "train_vocoder", done.returncode, "0, its end")
    return read_json_object(workdir / RESULTS)["training"]


def _table(results: list[dict[str, Any]]) -> str:
    rows = [["units", "voice", "words", "right", "same", "mel distance"]]
    for units, voice in dict.fromkeys((x["units"], x["voice"]) for x in results):
        part = [x for x in results if (x["units"], x["voice"]) == (units, voice)]
        sums = [str(sum(x[name] for x in part)) for name in ("words", "right", "same")]
        distance = np.mean([x["mel_distance"] for x in part])
        rows.append([units, voice, *sums, f"{distance:.3f}"])
    return format_rows(rows, 2)


if __name__ == "__main__":
    define_flags()
    cli.run_main(main)
