"""What a run trains on, and which of its settings the batches depend on."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from data_pipelines.training.documents import Task
from data_pipelines.training.mixture import RatioUnit
from data_pipelines.training.packing import OpenRows, PackingConfig, RowSize
from lst_jax.local_paths import PathText
from lst_jax.patching import PatchingConfig, Visibility
from lst_jax.settings import (
    BatchRows,
    Bounds,
    Fraction,
    PositiveFloat,
    PositiveInt,
    Seed64,
    configuration,
    require,
)

# Tokens; six arrays of them are made at once. The largest batches that models are trained with have
# a quarter of it.
_LARGEST_BATCH = 2**28


@configuration
class SourceConfig:
    """One source of documents.

    Attributes:
      path: a record directory, or a glob pattern for several.
      kind: what it must hold.
      weight: its share of the amount of its kind, relative to the other sources of that kind.
    """

    path: PathText
    kind: Literal["speech", "text"]
    weight: PositiveFloat = 1.0


# A share of records that something is left of.
Share = Annotated[float, Bounds(least=0, below=1)]


@configuration
class DataConfig:
    """What a run trains on.

    Attributes:
      sources: at least one.
      batch_size: rows of the global batch, B.
      patches_per_row: P.
      tokens_per_row: N, equal to P where the strategy is `none`.
      seed: of everything random, 0 … 2⁶⁴ − 1.
      speech_text_ratio: amount of speech for an amount 1 of text, see `document_weights`.
      ratio_unit: what that is counted in, `words` or `tokens`.
      interleaved_share: share of the utterances that are interleaved with their text, drawn again
        in each epoch; the others are speech throughout.
      patching: how speech is segmented.
      visibility: see `fill_row`.
      open_rows: rows that the packer of each stream keeps open.
      largest_gap: see `PackingConfig`.
      num_epochs: how often every record is visited; None forever.
      task: what utterances are made into instead, "asr" or "tts"
        (`data_pipelines.training.documents`); None interleaves them. A task's documents do without
        text sources.
      held_out_share: share of every source's records that training never sees, 0 ≤ share < 1
        (`data_pipelines.training.held_out_records`).
    """

    sources: tuple[SourceConfig, ...]
    batch_size: BatchRows
    patches_per_row: RowSize
    tokens_per_row: RowSize
    seed: Seed64 = 0
    speech_text_ratio: PositiveFloat = 0.5
    ratio_unit: RatioUnit = "tokens"
    interleaved_share: Fraction = 1.0
    patching: PatchingConfig = dataclasses.field(default_factory=PatchingConfig)
    visibility: Visibility = "causal"
    open_rows: OpenRows = 8
    largest_gap: Fraction = 0.05
    num_epochs: PositiveInt | None = None
    task: Task | None = None
    held_out_share: Share = 0.0

    def __post_init__(self) -> None:
        require(len(self.sources) > 0, "DataConfig.sources", self.sources, "at least one source")
        require(
            self.batch_size * self.tokens_per_row <= _LARGEST_BATCH,
            "DataConfig.batch_size",
            self.batch_size,
            f"at most {_LARGEST_BATCH // self.tokens_per_row} rows of {self.tokens_per_row} tokens",
        )
        require(
            self.patching.strategy != "none" or self.patches_per_row == self.tokens_per_row,
            "DataConfig.patches_per_row",
            self.patches_per_row,
            f"tokens_per_row = {self.tokens_per_row} where every token is a patch",
        )
        kinds = {source.kind for source in self.sources}
        speech = self.task is None or kinds == {"speech"}
        expected = f"only speech for task {self.task!r}"
        require(speech, "DataConfig.sources", self.sources, expected)

    @property
    def packing(self) -> PackingConfig:
        """Returns the part that shapes rows."""
        return PackingConfig(
            num_patches=self.patches_per_row,
            num_tokens=self.tokens_per_row,
            open_rows=self.open_rows,
            largest_gap=self.largest_gap,
            patching=self.patching,
            visibility=self.visibility,
        )


def effective_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns those of a run's data settings that its batches depend on.

    A run may go on although a setting that plays no part has changed, an end of the curriculum that
    follows the number of steps, for instance.

    Args:
      settings: a `DataConfig` as nested mappings, as this version or an earlier one wrote it, or
        what this function made of one.
    """
    kept = {**settings, "sources": [dict(source) for source in settings["sources"]]}
    kinds = [source["kind"] for source in kept["sources"]]
    patching = kept.pop("patching", {})
    strategy = patching.get("strategy", "none")
    if "speech" in kinds:  # every token of text is a patch
        idle = _idle_patching(strategy)
        kept["patching"] = {name: v for name, v in patching.items() if name not in idle}
    if "speech" not in kinds or strategy == "none":
        kept.pop("visibility", None)  # such a patch is proven by its token
    drop_newer_defaults(kept)
    for source in kept["sources"]:
        if kinds.count(source["kind"]) == 1:  # it has all of its kind's amount
            source.pop("weight", None)
    if len(set(kinds)) == 1:
        kept.pop("speech_text_ratio", None)
    if len(kinds) == 1:
        kept.pop("ratio_unit", None)
    if "speech" not in kinds or (kept.get("task") and len(kinds) == 1):
        kept.pop("interleaved_share", None)
    return kept


def drop_newer_defaults(settings: dict[str, Any]) -> None:
    """Leaves out what is newer than the first runs where it says what was so before."""
    if not settings.get("held_out_share"):
        settings.pop("held_out_share", None)
    patching = settings.get("patching", {})
    for name, default in (("aligned_by", "words"), ("boundary_noise", 0.0)):
        if patching.get(name) == default:
            del patching[name]


def _idle_patching(strategy: str) -> list[str]:
    """Returns the settings of `PatchingConfig` that play no part in a strategy's training rows."""
    idle = []
    if strategy != "curriculum":
        idle += ["curriculum_start", "curriculum_end"]
    if strategy != "mixed":
        idle.append("mixed_aligned_probability")
    if strategy in ("none", "static"):
        idle += ["silence", "aligned_by", "boundary_noise"]
    if strategy in ("none", "aligned"):  # no run of units is ever cut in equal parts
        idle += ["patch_size", "join_speech_mode"]
    return idle
