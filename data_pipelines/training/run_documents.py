"""The documents of a run: its records, opened, and the order in which streams take them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.records.metadata import RecordMetadata
from data_pipelines.records.storage import open_records
from data_pipelines.training.data_config import DataConfig, drop_newer_defaults, effective_settings
from data_pipelines.training.held_out_records import held_out_mask
from data_pipelines.training.mixture import (
    MixedDrafts,
    SourceStatistics,
    document_weights,
    source_keys,
    spoken_share,
    stream_keys,
)
from data_pipelines.training.packing import RowPacker
from lst_jax.differences import differences
from lst_jax.settings import quote
from lst_jax.vocabulary import Vocabulary


class RunDocuments:
    """What the streams of a run are made of; sent to worker processes.

    Attributes:
      config: what the run trains on.
      encoder_fingerprint: of the encoder that made the units of all sources, None where one of them
        does not say.
    """

    def __init__(
        self, config: DataConfig, vocabulary: Vocabulary, fingerprint: str | None, held_out: bool
    ) -> None:
        """Opens the records; see `make_training_dataset` for arguments and errors."""
        self.config = config
        self._vocabulary = vocabulary
        self._records = [
            open_records(source.path, vocabulary, fingerprint=fingerprint, kind=source.kind)
            for source in config.sources
        ]
        self.encoder_fingerprint = self._common_encoder()
        self._weights = document_weights(
            [
                SourceStatistics(source.kind, opened.metadata.totals, source.weight)
                for source, opened in zip(config.sources, self._records, strict=True)
            ],
            config.speech_text_ratio,
            config.ratio_unit,
            config.interleaved_share,
        )
        self._visited = [
            _visited_records(number, len(opened), config, held_out)
            for number, opened in enumerate(self._records)
        ]

    def _common_encoder(self) -> str | None:
        named = {
            opened.metadata.encoder_fingerprint: number
            for number, opened in enumerate(self._records)
            if opened.metadata.kind == "speech"
        }
        known = [name for name in named if name is not None]
        if len(known) > 1:
            raise ValueError(
                f"sources[{named[known[1]]}] has units of the encoder {known[1]}, expected "
                f"{known[0]}, that of sources[{named[known[0]]}]"
            )
        return known[0] if len(named) == 1 and known else None

    def estimate_steps(self) -> int | None:
        """Returns about how many batches there are, None where they never end.

        The packer alone knows the exact number: how full rows become depends on the documents.
        """
        if self.config.num_epochs is None:
            return None
        config, rows = self.config, np.zeros(2)
        for opened, visited in zip(self._records, self._visited, strict=True):
            share = 1.0 if visited is None else len(visited) / len(opened)
            tokens, patches = _expected_size(opened.metadata, config, self._vocabulary)
            rows += share * np.array([tokens, patches])
        rows *= config.num_epochs / np.array([config.tokens_per_row, config.patches_per_row])
        return max(1, math.ceil(rows.max() / config.batch_size))

    def fingerprint(self) -> dict[str, Any]:
        """Returns what tells these documents from others, as JSON: `config` and `settings`."""
        return {"config": _digest(self._settings), "settings": self._settings}

    def check_fingerprint(self, state: Mapping[str, Any]) -> None:
        """Checks that a state is of a run on these documents.

        Settings that play no part in the batches may differ.

        Raises:
          ValueError: it is not; says in what they differ, where the state tells.
        """
        # The first states had nothing but the digest of all settings, idle ones too.
        if state["config"] in (_digest(self._settings), _digest(self._all_settings)):
            return
        there = state.get("settings")
        if there:
            there = [effective_settings(there[0]), there[1]]
        # The text that a digest is of tells 2 from 2.0, which are one number.
        if there != self._settings:
            raise ValueError(f"the run's data are others: {_difference(there, self._settings)}")

    def packer(self, stream: int) -> RowPacker:
        """Returns the rows of a stream, from its beginning."""
        config = self.config
        keys = stream_keys(
            [
                source_keys(number, len(records), config.seed, config.num_epochs, visited)
                for number, (records, visited) in enumerate(
                    zip(self._records, self._visited, strict=True)
                )
            ],
            self._weights,
            stream,
            config.batch_size,
            endless=config.num_epochs is None,
        )
        drafts = MixedDrafts(
            keys,
            self._records,
            config.seed,
            config.patching,
            self._vocabulary,
            config.interleaved_share,
            config.task,
        )
        return RowPacker(drafts, config.packing, self._vocabulary)

    @functools.cached_property
    def _all_settings(self) -> list[Any]:
        """Returns every setting, as JSON values; where records lie does not matter."""
        fields = dataclasses.asdict(self.config)
        for source, records in zip(fields["sources"], self._records, strict=True):
            source["path"] = records.metadata.identity()
        drop_newer_defaults(fields)
        vocabulary = dataclasses.asdict(self._vocabulary)
        units = vocabulary.pop("units")  # which runs begun before there were others do not name
        if not self._vocabulary.units.is_plain:
            vocabulary["units"] = _digest(units)
        return json.loads(json.dumps([fields, vocabulary]))

    @functools.cached_property
    def _settings(self) -> list[Any]:
        """Returns all that batches depend on."""
        fields, vocabulary = self._all_settings
        return [effective_settings(fields), vocabulary]


def _visited_records(
    source: int, size: int, config: DataConfig, held_out: bool
) -> np.ndarray | None:
    """Returns the numbers of a source's records that are visited; None for all."""
    if not config.held_out_share and not held_out:
        return None
    mask = held_out_mask(source, size, config.held_out_share)
    visited = np.flatnonzero(mask == held_out)
    if not len(visited):
        raise ValueError(
            f"DataConfig.held_out_share is {config.held_out_share}, expected one that divides the "
            f"{size} records of sources[{source}] in two parts, neither of them empty"
        )
    return visited


def _expected_size(
    metadata: RecordMetadata, config: DataConfig, vocabulary: Vocabulary
) -> tuple[float, float]:
    """Returns about how many tokens and patches the documents of some records have."""
    totals, patching = metadata.totals, config.patching
    if metadata.kind == "text":
        text = totals.text_tokens + 3 * totals.documents  # bos, a mode token, eos
        return text, text
    spoken = 1.0 if config.task else spoken_share(totals, config.interleaved_share)
    written = 1.0 if config.task else 1 - spoken
    text = written * totals.text_tokens + 4 * totals.documents
    units = spoken * totals.units / vocabulary.units.units_per_id
    static = units if patching.strategy == "none" else units / patching.patch_size
    silences = totals.silences if patching.silence == "separate" else 0
    aligned = spoken * (totals.words + silences)
    # Of a curriculum it depends on the step how many documents are aligned: half of them, say.
    share = {"aligned": 1.0, "mixed": patching.mixed_aligned_probability, "curriculum": 0.5}
    mixed = share.get(patching.strategy, 0.0)
    return text + units, text + mixed * aligned + (1 - mixed) * static


def _digest(settings: Any) -> str:
    """Tells settings apart."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _difference(there: list[Any] | None, here: list[Any]) -> str:
    """Says in what settings differ; the first states did not keep them."""
    for old, new in zip(there or [], here, strict=False):
        for part in differences(old, new):
            return f"{part.name} is {quote(part.old)} in the checkpoint and {quote(part.new)} here"
    return "the configuration or the records have changed"
