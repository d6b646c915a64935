"""What a cell's last checkpoint is measured by besides story completion: other binaries' results.

| kind      | binary            | metrics                                                      |
|-----------|-------------------|--------------------------------------------------------------|
| `pairs`   | `evaluate_pairs`  | `pairs/SET`, the share of minimal pairs that are right       |
| `asr`     | `evaluate_asr`    | `asr/wer`, `asr/cer`, error rates of recognition             |
| `tts`     | `evaluate_tts`    | `tts/wer`, `tts/cer`, error rates of what synthesis says     |
| `patches` | `analyze_patches` | `patches/within`, `patches/between`, `patches/silhouette`,   |
|           |                   | and their gains over the untrained model, `…_gain`           |
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Literal, get_args

from data_pipelines.records.storage import open_records
from lst_jax.checkpoints.description import ModelDescription
from lst_jax.evaluation.minimal_pairs import read_speech_pairs
from lst_jax.evaluation.spoken_texts import read_spoken_texts
from lst_jax.local_paths import PathText
from lst_jax.settings import configuration, require
from lst_jax.strict_json import read_json_object

MeasureKind = Literal["pairs", "asr", "tts", "patches"]
KINDS: tuple[MeasureKind, ...] = get_args(MeasureKind)

_BINARIES = dict(
    zip(KINDS, ("evaluate_pairs", "evaluate_asr", "evaluate_tts", "analyze_patches"), strict=True)
)
_SIMILARITIES = ("within", "between", "silhouette")
# Metrics that are known without the files; sets of pairs are not.
METRICS: Mapping[MeasureKind, tuple[str, ...]] = {
    "asr": ("wer", "cer"),
    "tts": ("wer", "cer"),
    "patches": (*_SIMILARITIES, *(f"{name}_gain" for name in _SIMILARITIES)),
}


@configuration
class Measure:
    """A measurement of every cell.

    Attributes:
      kind: see the module.
      files: what it is measured on: JSONL files, or patterns of record directories for "patches".
      flags: further ones of the binary, `--NAME=VALUE`.
    """

    kind: MeasureKind
    files: tuple[PathText, ...]
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        name, one = f"Measure.files of {self.kind}", self.kind == "patches"
        expected = "one pattern of record directories" if one else "one file or more"
        require(len(self.files) == 1 if one else bool(self.files), name, self.files, expected)
        for flag in self.flags:
            require(flag.startswith("--"), "Measure.flags", flag, "--NAME=VALUE")

    def check_metric(self, name: str) -> None:
        """Checks that it gives the metric `kind/name`.

        Raises:
          ValueError: it does not. Names of sets of pairs are not checked.
        """
        known = METRICS.get(self.kind)
        if known is not None:
            expected = f"one of {', '.join(f'{self.kind}/{x}' for x in known)}"
            require(name in known, "Comparison.metric", f"{self.kind}/{name}", expected)

    def check_files(self, description: ModelDescription) -> None:
        """Checks that the files are what the binary reads, for a model.

        Raises:
          OSError, ValueError: they are not.
        """
        vocabulary = description.vocabulary
        if self.kind == "pairs":
            read_speech_pairs(self.files, vocabulary.unit_count)
        elif self.kind == "patches":
            fingerprint = description.tokenizer_fingerprint
            open_records(self.files[0], vocabulary, fingerprint=fingerprint, kind="speech")
        else:
            read_spoken_texts(self.files, vocabulary.unit_count)

    def output(self, folder: pathlib.Path) -> pathlib.Path:
        """Returns where the binary writes, in the folder of a cell."""
        return folder / (self.kind if self.kind == "patches" else f"{self.kind}.json")

    def command(self, run: pathlib.Path, folder: pathlib.Path) -> list[str]:
        """Returns module and flags of the binary, for the run of a cell and its folder."""
        data = "records" if self.kind == "patches" else "data"
        return [
            f"experiments.{_BINARIES[self.kind]}",
            f"--checkpoint={run}",
            *(f"--{data}={path}" for path in self.files),
            *self.flags,
            f"--output={self.output(folder)}",
        ]

    def read(self, folder: pathlib.Path) -> tuple[dict[str, float], dict[str, float]]:
        """Returns the metrics in the folder of a cell, and the chances of those that have one."""
        output = self.output(folder)
        if self.kind == "patches":
            found = read_json_object(output / "analysis.json")
            first = found["embeddings"]["trained"]["layers"][0]
            gains = found["gain_over"]["untrained"]
            values = {name: first[name]["value"] for name in _SIMILARITIES}
            values |= {f"{name}_gain": gains[name]["value"] for name in _SIMILARITIES}
            return self._named(values), {}
        results = read_json_object(output)["results"]
        if self.kind == "pairs":
            sets = [entry for entry in results if entry["category"] is None]
            chances = {entry["set_name"]: entry["chance"] for entry in sets}
            values = {entry["set_name"]: entry["accuracy"] for entry in sets}
            return self._named(values), self._named(chances)
        errors = results[0]["errors"]
        return self._named({"wer": errors["wer"]["rate"], "cer": errors["cer"]["rate"]}), {}

    def _named(self, values: Mapping[str, float]) -> dict[str, float]:
        return {f"{self.kind}/{name}": value for name, value in values.items()}
