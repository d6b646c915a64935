r"""Measures how long an encoder of units waits for sound, and the memory of a very long recording.

    python -m experiments.benchmarks.speech_feed \
        --output=experiments/benchmarks/results/speech_feed.json

Recordings are FLAC of 44.1 kHz, so that each is decoded and resampled. They go through what
`experiments.prepare_speech` makes records with; the encoder waits whenever it does not encode. On a
CPU workers and encoder share the cores, so that what workers gain there is little: a small model
stands for a device that is faster than the decoding of one process.
"""

from __future__ import annotations

import os
import pathlib
import resource
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import soundfile
from absl import flags

from data_pipelines.speech.hubert_encoder import EncoderOptions, FrameModel, HubertEncoder
from data_pipelines.speech.hugging_face import SpeechModel
from data_pipelines.speech.parts import Decoders
from data_pipelines.speech.preparing import Tools, UnitSource, prepare_utterances
from data_pipelines.speech.recordings import Recording, Sound
from data_pipelines.tokenizers import train_tokenizer
from experiments.common import cli
from experiments.common.machine import command_line, cpu_model, versions
from experiments.common.outputs import check_output, keep_results
from experiments.common.paths import define_path
from lst_jax.evaluation.tables import format_rows
from lst_jax.speech.interfaces import Rejection, UnitEncoder
from lst_jax.speech.quantizers import KMeans
from lst_jax.speech.wav2vec2 import Wav2Vec2
from lst_jax.speech.wav2vec2_config import Wav2Vec2Config, receptive_field
from lst_jax.vocabulary import TextTokenizer

_RATE, _LONG_RATE = 44_100, 16_000
_SMALL = Wav2Vec2Config(
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=128,
    conv_dim=(32,) * 7,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
)
_MODELS = {"small": _SMALL, "HuBERT base": Wav2Vec2Config()}
_UNITS = 100


def define_flags() -> None:
    """Defines the flags of the binary, so that importing this module defines none."""
    flags.DEFINE_integer("seconds", 10, "Length of a recording.", 1)
    flags.DEFINE_multi_integer("recordings", [256, 16], "Recordings, for each model.", 1)
    flags.DEFINE_multi_integer("workers", [0, 1, 2], "Processes that decode.", 0)
    flags.DEFINE_float("hours", 6.0, "Length of the long recording; 0: none.", 0)
    define_path("output", "JSON file to write the results to.")


def main(argv: list[str]) -> None:
    """Measures as the flags say."""
    cli.check_no_arguments(argv)
    values = flags.FLAGS
    check_output(values.output)
    report: dict[str, Any] = {
        "command": command_line("speech_feed"),
        "versions": versions("jax", "soundfile", "soxr"),
        "device": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average_before": os.getloadavg()[0],
        "seconds": values.seconds,
        "results": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        tokenizer = TextTokenizer(train_tokenizer(["ab"] * 10, place / "tokenizer", 262))
        if values.hours:  # first: a process knows only the most memory that it ever had
            report["long"] = _encode_long(place, tokenizer, values.hours)
            print(report["long"], flush=True)
        for (name, config), count in zip(_MODELS.items(), values.recordings, strict=True):
            files = [_write_noise(place / f"{i}.flac", values.seconds, _RATE) for i in range(count)]
            encoder = _open_encoder(config)
            for workers in values.workers:
                found = _feed(_Watched(encoder), files, tokenizer, workers)
                report["results"].append({"model": name, "workers": workers, **found})
    keep_results(values.output, report, lambda: _table(report["results"]))


class _Watched:
    """An encoder, and the seconds in which it encodes."""

    def __init__(self, encoder: UnitEncoder) -> None:
        self._encoder = encoder
        self.sample_rate, self.frame_rate = encoder.sample_rate, encoder.frame_rate
        self.unit_count, self.fingerprint = encoder.unit_count, encoder.fingerprint
        self.busy_s = 0.0

    def encode(self, waveforms: Sequence[np.ndarray]) -> list[np.ndarray | Rejection]:
        start = time.perf_counter()
        units = self._encoder.encode(waveforms)
        self.busy_s += time.perf_counter() - start
        return units


def _feed(
    encoder: _Watched, files: Sequence[pathlib.Path], tokenizer: TextTokenizer, workers: int
) -> dict[str, Any]:
    """Makes utterances of recordings, and returns how long that took and the encoder waited."""
    recordings = [Recording(file.stem, Sound(file)) for file in files]
    tools = Tools(UnitSource(encoder.frame_rate, encoder.unit_count, encoder), tokenizer)
    decoders = Decoders(workers)
    try:
        first = recordings[: max(1, workers)]  # starts the workers, compiles the program
        for _ in prepare_utterances(first, tools, decoders.decode(first, tools)):
            pass
        encoder.busy_s, start = 0.0, time.perf_counter()
        for outcome in prepare_utterances(recordings, tools, decoders.decode(recordings, tools)):
            _check(outcome.result)
        wall_s = time.perf_counter() - start
    finally:
        decoders.close()
    audio_s = sum(soundfile.info(str(file)).duration for file in files)
    return {
        "recordings": len(files),
        "audio_seconds": audio_s,
        "seconds": wall_s,
        "times_real_time": audio_s / wall_s,
        "waiting": 1 - encoder.busy_s / wall_s,
    }


def _encode_long(place: pathlib.Path, tokenizer: TextTokenizer, hours: float) -> dict[str, Any]:
    """Makes utterances of one recording of hours, and returns time and memory."""
    encoder = _open_encoder(_SMALL)
    tools = Tools(UnitSource(encoder.frame_rate, encoder.unit_count, encoder), tokenizer)
    file = _write_noise(place / "short.flac", round(tools.piece_s) + 1, _LONG_RATE)
    for _ in prepare_utterances([Recording("short", Sound(file))], tools):
        pass
    file = _write_noise(place / "long.flac", round(3600 * hours), _LONG_RATE)
    before, start = _most_memory(), time.perf_counter()
    units = pieces = 0
    for outcome in prepare_utterances([Recording("long", Sound(file))], tools):
        units, pieces = units + len(_check(outcome.result).units), pieces + 1
    return {
        "hours": hours,
        "seconds": time.perf_counter() - start,
        "pieces": pieces,
        "units": units,
        "waveform_bytes": round(3600 * hours) * _LONG_RATE * 4,
        "memory_bytes": _most_memory() - before,
    }


def _check(result: Any) -> Any:
    if isinstance(result, Rejection):
        raise RuntimeError(f"a recording of noise is rejected: {result}")
    return result


def _most_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _write_noise(file: pathlib.Path, seconds: int, rate: int) -> pathlib.Path:
    """Writes noise whose loudness changes, in blocks."""
    rng = np.random.default_rng(len(file.stem))
    with soundfile.SoundFile(file, "w", rate, 1, "PCM_16") as opened:
        for _ in range(seconds):
            opened.write(rng.uniform(0.01, 0.3) * rng.uniform(-1, 1, rate))
    return file


def _open_encoder(config: Wav2Vec2Config) -> Any:
    """Returns an encoder of random weights."""
    waveform = np.zeros((1, receptive_field(config)), np.float32)
    params = nn.meta.unbox(jax.jit(Wav2Vec2(config).init)(jax.random.key(0), waveform))
    model = SpeechModel(config, params, head=False)
    centroids = np.random.default_rng(0).normal(size=(_UNITS, config.hidden_size))
    layer = min(6, config.num_hidden_layers)
    quantizer = KMeans(centroids.astype(np.float32))
    return HubertEncoder(FrameModel(model, EncoderOptions(layer=layer)), quantizer)


def _table(results: Sequence[dict[str, Any]]) -> str:
    rows = [["model", "workers", "times real time", "waiting"]]
    for x in results:
        speed, share = f"{x['times_real_time']:.1f}", f"{x['waiting']:.0%}"
        rows.append([x["model"], str(x["workers"]), speed, share])
    return format_rows(rows, 1)


if __name__ == "__main__":
    define_flags()
    cli.run_main(main)
