"""Fits units to recordings: k-means on the hidden states of a HuBERT or wav2vec 2.0 model.

    python -m experiments.fit_units --audio=LibriSpeech/train-clean-100 --unit_count=500 \\
        --features=hubert:models/hubert-base-ls960,layer=9 --output=units.json

writes the centroids to `units.npy` and what else decides the units to `units.json`, which
`--encoder=hubert:models/hubert-base-ls960,set=units.json` takes. Recordings come in an order that
the seed shuffles, until there are `--max_frames`; they lie in a file, which is read once a pass.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import io
import itertools
import pathlib
import tempfile
import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from absl import flags

from data_pipelines.speech.audio import read_audio
from data_pipelines.speech.clustering import fit_k_means
from data_pipelines.speech.hubert_encoder import FrameModel, open_frames
from data_pipelines.speech.registry import parse_specification
from data_pipelines.speech.unit_sets import UnitSet
from experiments.common import cli
from experiments.common.encoders import define_specification
from experiments.common.outputs import check_output
from experiments.common.paths import define_path
from lst_jax.files import format_json, naming_file, write_files
from lst_jax.settings import require
from lst_jax.speech.interfaces import Rejection

_AUDIO = define_path("audio", "Folder of recordings, at any depth.", required=True)
define_specification("features", "hubert:DIR,layer=K[,OPTION=VALUE]…", required=True)
_OUTPUT = define_path("output", "The .json file to write, beside an .npy file.", required=True)
_UNIT_COUNT = flags.DEFINE_integer("unit_count", 500, "Units to fit.", 1, 2**20)
_MAX_FRAMES = flags.DEFINE_integer("max_frames", 2_000_000, "Frames to fit to, at most.", 1)
_MAX_PASSES = flags.DEFINE_integer("max_passes", 100, "Passes over the frames, at most.", 1)
_NUM_WORKERS = flags.DEFINE_integer("num_workers", 2, "Threads that read recordings.", 1, 2**10)
_SEED = flags.DEFINE_integer("seed", 0, "Of the recordings' order and the first centroids.", 0)

_SUFFIXES = frozenset([".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif"])
_BATCH_SECONDS = 600  # of recordings that are in memory at a time


def main(argv: list[str]) -> None:
    """Fits as the flags say."""
    cli.check_no_arguments(argv)
    output = pathlib.Path(_OUTPUT.value)
    require(output.suffix == ".json", "--output", str(output), "a file that ends in .json")
    check_output(output)
    if not output.exists():
        check_output(output.with_suffix(".npy"))  # which replaces none that is there alone
    files = find_recordings(_AUDIO.value, _SEED.value)
    features = flags.FLAGS.features
    specification = parse_specification(features)
    require(specification.kind == "hubert", "--features", features, "hubert:DIR,layer=K")
    frames = open_frames(specification.argument or "", specification.options)
    with tempfile.TemporaryDirectory() as scratch:
        file = pathlib.Path(scratch) / "frames"
        count, recordings = write_features(frames, files, file)
        least = _UNIT_COUNT.value
        require(count >= least, "the number of frames", count, f"at least {least}, the units")
        width = frames.model.config.hidden_size
        centroids = fit_k_means(
            np.memmap(file, np.float32, "r", shape=(count, width)),
            _UNIT_COUNT.value,
            frames.mesh,
            seed=_SEED.value,
            most_passes=_MAX_PASSES.value,
            report=lambda number, mean: print(f"pass {number}: distance {mean:.6g}", flush=True),
        )
    contents = io.BytesIO()
    np.save(contents, centroids)
    arrays = output.with_suffix(".npy")
    options = frames.options
    units = UnitSet(
        model=specification.argument or "",
        frame_rate=frames.frame_rate,
        layer=options.layer,
        normalize=options.normalize,
        quantizer="k-means",
        unit_count=len(centroids),
        pad_samples=options.pad_samples,
        deduplicated=False,
        spelling="[Hu{}]",
        note=f"fitted to {count} frames of {recordings} recordings, seed {_SEED.value}",
        quantizer_file=arrays.name,
        model_sha256=frames.model_sha256,
    )
    write_files({arrays: contents.getvalue(), output: format_json(dataclasses.asdict(units))})
    print(f"wrote {output} and {arrays.name}: {units.unit_count} units, {units.note}")


def find_recordings(folder: str, seed: int) -> list[pathlib.Path]:
    """Returns the recordings under a folder in an order that depends on names and seed alone.

    Raises:
      OSError: there is no such folder.
      ValueError: there is no recording.
    """
    root = pathlib.Path(folder)
    if not root.is_dir():
        raise NotADirectoryError(f"--audio is {folder}, expected a folder")
    found = [path for path in root.rglob("*") if path.suffix.lower() in _SUFFIXES]
    found.sort(key=lambda path: path.relative_to(root).parts)
    kinds = ", ".join(sorted(_SUFFIXES))
    require(bool(found), f"{folder}: recordings", 0, f"files that end in {kinds}")
    return [found[i] for i in np.random.default_rng(seed).permutation(len(found))]


def write_features(
    frames: FrameModel, files: Sequence[pathlib.Path], output: pathlib.Path
) -> tuple[int, int]:
    """Writes the features of recordings, float32 (N, D), one after the other.

    Returns:
      The number of frames N, at most `--max_frames`, and of recordings.
    """
    count = recordings = short = 0
    seconds, start = 0.0, time.monotonic()
    with naming_file(output), output.open("wb") as file:
        for waveforms in _batches(files, frames.model.sample_rate):
            features = dict(frames.run(waveforms, _features))
            for number, waveform in enumerate(waveforms):
                found = features[number]
                if isinstance(found, Rejection):
                    short += 1
                    continue
                found = found[: _MAX_FRAMES.value - count]
                file.write(np.ascontiguousarray(found, "<f4").data)
                count, recordings = count + len(found), recordings + bool(len(found))
                seconds += len(waveform) / frames.model.sample_rate
            speed = seconds / (time.monotonic() - start)
            print(
                f"{seconds / 3600:.2f} hours, {count:,} frames, {speed:.1f} × real time", flush=True
            )
            if count >= _MAX_FRAMES.value:
                break
    if short:
        print(f"{short} recordings are too short for a frame")
    return count, recordings


def _batches(files: Sequence[pathlib.Path], rate: int) -> Iterator[list[np.ndarray]]:
    """Returns recordings in their order, some minutes at a time."""
    with concurrent.futures.ThreadPoolExecutor(_NUM_WORKERS.value) as pool:
        waiting = iter(files)
        reads = [
            pool.submit(read_audio, x, rate)
            for x in itertools.islice(waiting, 2 * _NUM_WORKERS.value)
        ]
        batch, samples = [], 0
        while reads:
            batch.append(reads.pop(0).result())
            reads += [pool.submit(read_audio, x, rate) for x in itertools.islice(waiting, 1)]
            samples += len(batch[-1])
            if samples >= _BATCH_SECONDS * rate:
                yield batch
                batch, samples = [], 0
        if batch:
            yield batch


def _features(_: None, hidden: jax.Array) -> jax.Array:
    return hidden.astype("float32")


if __name__ == "__main__":
    cli.run_main(main)
