"""Continuations of prompts: in which batches, how long at most, and where they go."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from data_pipelines.speech.audio import write_wav
from data_pipelines.speech.vocoder import decode_known
from experiments.common import sampling_flags
from experiments.common.outputs import check_writable
from experiments.common.prompts import Prompt
from lst_jax.files import append_line
from lst_jax.inference.generation import Generation, GenerationLimits
from lst_jax.inference.sampling import Modality
from lst_jax.inference.segments import Segment
from lst_jax.settings import require
from lst_jax.speech.interfaces import Vocoder

TEXT_TOKENS = 512  # of a continuation, by default
_RESULTS = "continuations.jsonl"
_SHOWN_UNITS = 12


def continuation_limits(
    modality: Modality | None,
    max_tokens: int | None,
    max_units: int,
    context_patches: int | None,
) -> GenerationLimits:
    """Returns how long a continuation may be.

    Args:
      modality: of the continuation; None for both.
      max_tokens: None for `TEXT_TOKENS` of text and `max_units` of speech.
      max_units: of speech.
      context_patches: that the model was trained with.
    """
    text = 0 if modality == "speech" else TEXT_TOKENS
    speech = 0 if modality == "text" else max_units + 1  # for eos
    return GenerationLimits(
        max_tokens=max_tokens or text + speech, max_units=max_units, max_patches=context_patches
    )


def make_batches(
    prompts: Sequence[Prompt], batch_rows: int
) -> Iterator[tuple[list[tuple[int, Prompt]], int]]:
    """Yields batches of numbered prompts of one modality, and the rows that all of them have.

    One number of rows for all, as each is compiled for; the last rows of a batch may stay empty.
    """
    groups: dict[Modality | None, list[tuple[int, Prompt]]] = {}
    for number, prompt in enumerate(prompts):
        groups.setdefault(prompt.modality, []).append((number, prompt))
    rows = min(batch_rows, max(map(len, groups.values())))
    for group in groups.values():
        for first in range(0, len(group), rows):
            yield group[first : first + rows], rows


def check_output(output: str | None) -> None:
    """Checks that the directory can be made or written to, and has no results yet.

    Raises:
      OSError: it cannot.
      ValueError: it has results.
    """
    if output is None:
        return
    has_results = (pathlib.Path(output) / _RESULTS).exists()
    require(not has_results, "output", output, f"a new directory, without {_RESULTS}")
    check_writable(output)


class ContinuationWriter:
    """Keeps continuations in files and prints them."""

    def __init__(self, output: str | None, vocoder: Vocoder | None) -> None:
        self._directory = pathlib.Path(output) if output else None
        self._vocoder = vocoder

    def write(
        self, sample: int, prompt: Prompt, segments: Sequence[Segment], generation: Generation
    ) -> None:
        """Adds one continuation to the file, writes its sound, and prints it.

        Args:
          sample: number of the continuation among those of its prompt.
          prompt: what was continued.
          segments: the continuation.
          generation: where it comes from.
        """
        asked = prompt.given
        fields = {
            "id": asked.name,
            "sample": sample,
            "prompt": {asked.kind: asked.value},
            "segments": [
                {"text": segment.text}
                if segment.units is None
                else {"units": segment.units.tolist()}
                for segment in segments
            ],
            "tokens": generation.tokens.tolist(),
            "wav": None,
            "log_prob": float(generation.log_probs.sum()),
            "stop_reason": generation.stop_reason,
            "token_steps": generation.steps.token_steps,
            "global_steps": generation.steps.global_steps,
        }
        wav = self._keep(fields, segments) if self._directory else None
        # Kept before it is shown.
        shown = " | ".join(
            repr(segment.text) if segment.units is None else _show_units(segment.units)
            for segment in segments
        )
        given = _show_units(asked.value) if asked.kind == "units" else asked.value
        sound = f"  {wav}" if wav else ""
        print(f"{given!r} → {shown or 'nothing'}  ({generation.stop_reason}){sound}", flush=True)

    def _keep(self, fields: dict[str, Any], segments: Sequence[Segment]) -> pathlib.Path | None:
        """Writes the sound and the line that names it, or nothing; returns where the sound is."""
        assert self._directory is not None
        wav, made = None, not self._directory.exists()
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            wav = self._write_wav(f"{fields['id']}-{fields['sample']}", segments)
            line = json.dumps(fields | {"wav": wav and wav.name}, ensure_ascii=False)
            append_line(self._directory / _RESULTS, line)
        except OSError:
            if wav:
                wav.unlink()
            if made:
                self._directory.rmdir()
            raise
        return wav

    def _write_wav(self, name: str, segments: Sequence[Segment]) -> pathlib.Path | None:
        units = [segment.units for segment in segments if segment.units is not None]
        if not (self._vocoder and units):
            return None
        samples = decode_known(self._vocoder, np.concatenate(units))
        if not samples.size:
            return None
        assert self._directory is not None
        path = self._directory / f"{name}.wav"
        write_wav(path, samples, self._vocoder.sample_rate)
        return path


def _show_units(units: Sequence[int] | np.ndarray) -> str:
    first = " ".join(map(str, units[:_SHOWN_UNITS]))
    dots = " …" if len(units) > _SHOWN_UNITS else ""
    return f"[{first}{dots}] {len(units) / sampling_flags.FRAME_RATE:.1f} s"
