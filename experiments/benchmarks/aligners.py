"""Aligns real sentences whose words were timed before, and compares the word ends.

    pip download --no-deps --no-binary :all: pocketsphinx==5.1.1
    tar xf pocketsphinx-5.1.1.tar.gz
    python -m experiments.benchmarks.aligners \\
        --recordings=pocketsphinx-5.1.1/test/data/librivox \\
        --aligner=pocketsphinx --aligner=ctc:runs/ctc/model

The folder holds `NAME.wav`, `NAME.txt` (what is said) and `NAME.json` (`w`: words with begin `b`
and duration `d`), as the sources of pocketsphinx have them for five sentences of LibriVox. The
reference is pocketsphinx's own, so it says little of pocketsphinx and much of any other aligner.
"""

from __future__ import annotations

import itertools
import pathlib
from typing import Any

import numpy as np
from absl import flags

from data_pipelines.speech.audio import read_audio
from data_pipelines.speech.registry import open_aligner
from experiments.common import cli, machine
from experiments.common.outputs import check_output, keep_results
from experiments.common.paths import define_path
from lst_jax.evaluation.tables import format_rows
from lst_jax.settings import require
from lst_jax.speech.interfaces import Rejection
from lst_jax.strict_json import read_json_object

_RECORDINGS = define_path("recordings", "Folder of recordings with references.", required=True)
_ALIGNER = flags.DEFINE_multi_string(
    "aligner", None, "An aligner; may be given several times.", required=True
)
_OUTPUT = define_path("output", "JSON file to write the results to.")

_REFERENCE = "reference"
_SILENCE = "<"  # how words of no speech begin


def main(argv: list[str]) -> None:
    """Compares as the flags say."""
    cli.check_no_arguments(argv)
    check_output(_OUTPUT.value)
    aligners = {name: open_aligner(name) for name in _ALIGNER.value}
    files = sorted(pathlib.Path(_RECORDINGS.value).glob("*.wav"))
    require(bool(files), "--recordings", _RECORDINGS.value, "a folder with *.wav")
    texts = [file.with_suffix(".txt").read_text(encoding="utf-8") for file in files]
    ends_s = {_REFERENCE: [_reference_ends(file.with_suffix(".json")) for file in files]}
    rejected = {}
    for name, aligner in aligners.items():
        waveforms = [read_audio(file, aligner.sample_rate) for file in files]
        found = aligner.align(waveforms, texts)
        rejected[name] = [x.reason for x in found if isinstance(x, Rejection)]
        ends_s[name] = [
            [] if isinstance(x, Rejection) else [word.end_s for word in x.words] for x in found
        ]
    pairs = [
        {"one": one, "other": other, **_compare(ends_s[one], ends_s[other])}
        for one, other in itertools.combinations(ends_s, 2)
    ]
    values = {
        "command": machine.command_line("alignment"),
        "sentences": len(files),
        "words": sum(map(len, ends_s[_REFERENCE])),
        "rejected": rejected,
        "pairs": pairs,
    }
    keep_results(_OUTPUT.value, values, lambda: _table(pairs))


def _reference_ends(file: pathlib.Path) -> list[float]:
    words = read_json_object(file)["w"]
    return [word["b"] + word["d"] for word in words if not word["t"].startswith(_SILENCE)]


def _compare(one: list[list[float]], other: list[list[float]]) -> dict[str, Any]:
    """Returns how far the ends of the words that both have are apart."""
    both = [(a, b) for a, b in zip(one, other, strict=True) if len(a) == len(b) > 0]
    apart = [1000 * abs(x - y) for a, b in both for x, y in zip(a, b, strict=True)]
    if not apart:
        return {"words": 0}
    return {
        "words": len(apart),
        "median_ms": float(np.median(apart)),
        "p95_ms": float(np.percentile(apart, 95)),
        "within_100_ms": float(np.mean(np.array(apart) <= 100)),
    }


def _table(pairs: list[dict[str, Any]]) -> str:
    rows = [["", "", "words", "median, ms", "95 %, ms", "within 100 ms"]]
    for pair in pairs:
        numbers = [pair.get(name) for name in ("median_ms", "p95_ms", "within_100_ms")]
        cells = [
            "" if x is None else format(x, f)
            for x, f in zip(numbers, (".0f", ".0f", ".0%"), strict=True)
        ]
        rows.append([pair["one"], pair["other"], str(pair["words"]), *cells])
    return format_rows(rows, 2)


if __name__ == "__main__":
    cli.run_main(main)
