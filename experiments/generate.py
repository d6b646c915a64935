r"""Continues text, speech or units with a trained model.

    python -m experiments.generate --checkpoint=runs/demo/lst --text='tom went to the'
    python -m experiments.generate --checkpoint=runs/demo/lst --wav=story.wav --continue_as=speech \
        --encoder=runs/demo/corpus/encoder/encoder.npz --output=continued

`--text`, `--wav` and `--units` may be given several times; `--prompts` is a JSON-lines file of
objects with one of `text`, `wav` and `units`, and an `id` if wanted. A continuation is of its
prompt's modality, of the other (`--continue_as=text`, `speech`), or of both as the model chooses
(`any`). With models that are fine-tuned for it, `--wav … --continue_as=text` transcribes and
`--text … --continue_as=speech` speaks. Every continuation is printed when it is there; `--output`
gets `continuations.jsonl`, and with `--encoder` a wav file of each that has speech.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from data_pipelines.speech.audio import read_wav, write_wav
from data_pipelines.speech.units import MelKMeansEncoder
from data_pipelines.speech.vocoder import MelVocoder, decode_known
from experiments.common import cli, sampling_flags
from experiments.common.encoders import load_encoder
from experiments.common.outputs import check_writable
from experiments.common.paths import define_path, define_paths
from lst_jax.evaluation import jsonl
from lst_jax.inference.generation import (
    Generation,
    GenerationLimits,
    generate,
    make_decoder,
    prompt_documents,
)
from lst_jax.inference.sampling import Modality
from lst_jax.inference.segments import Segment, split_segments
from lst_jax.inference.trained_model import TrainedModel, load_trained_model
from lst_jax.paths import local_path
from lst_jax.settings import quote, require
from lst_jax.vocabulary import Vocabulary

_KINDS = ("text", "wav", "units")
_SHOWN_UNITS = 12
_SHOWN_CHARACTERS = 40
_RESULTS = "continuations.jsonl"
_TEXT_TOKENS = 512  # of a continuation, by default

_CHECKPOINT = define_path(
    "checkpoint", "Workdir of a run (its last checkpoint) or WORKDIR/STEP.", required=True
)
_TOKENIZER = define_path(
    "tokenizer", "The run's SentencePiece model, where it is no longer at its place."
)
flags.DEFINE_multi_string("text", [], "A prompt of text.")
define_paths("wav", "A prompt of speech, a wav file.")
flags.DEFINE_multi_string("units", [], "A prompt of units, such as 3,17,17.")
_PROMPTS = define_paths("prompts", "JSONL file of prompts.")
_CONTINUE_AS = flags.DEFINE_enum(
    "continue_as", "same", ["same", "text", "speech", "any"], "Modality of the continuation."
)
_ENCODER = define_path("encoder", "The units' encoder.npz: for wav in and wav out.")
_OUTPUT = define_path("output", "New directory for JSON lines and wav files.")
_SAMPLES = flags.DEFINE_integer("samples", 1, "Continuations of each prompt.", 1, 2**16)
_MAX_TOKENS = flags.DEFINE_integer(
    "max_tokens",
    None,
    f"Tokens of a continuation; by default {_TEXT_TOKENS} of text, and what --max_seconds hold.",
    lower_bound=1,
    upper_bound=2**20,
)
sampling_flags.define_flags(temperature=0.7, top_p=0.95, max_seconds=10.0)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Of the draws; continuation i has seed + i.", lower_bound=0, upper_bound=2**31
)
_BATCH_ROWS = flags.DEFINE_integer(
    "batch_rows", 8, "Rows of a batch, at most.", lower_bound=1, upper_bound=2**20
)


@dataclasses.dataclass(frozen=True)
class _Given:
    """A prompt as it was given.

    Attributes:
      kind: one of `_KINDS`.
      value: text, the name of a wav file, or units, not yet checked.
      name: for files and lines; None where it has none yet.
      origin: the flag, or the file and line.
    """

    kind: str
    value: Any
    name: str | None
    origin: str


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
    """What is to be continued.

    Attributes:
      given: what was asked for.
      tokens: (T,) int32: bos, mode token, text or units, and a mode token where it changes.
      modality: of the continuation; None for both.
    """

    given: _Given
    tokens: np.ndarray
    modality: Modality | None


def main(argv: list[str]) -> None:
    """Generates as the flags say."""
    cli.check_no_arguments(argv)
    sampling, max_units = sampling_flags.sampling(), sampling_flags.max_units()
    _check_output(_OUTPUT.value)
    given = _given_prompts()
    encoder = load_encoder(_ENCODER.value, [_CHECKPOINT.value])
    trained = load_trained_model(_CHECKPOINT.value, _TOKENIZER.value)
    prompts = [_make_prompt(prompt, trained, encoder) for prompt in given]
    decoder = make_decoder(trained.model, trained.vocabulary, trained.patching)
    # All are checked before the first is continued.
    prompt_documents(
        decoder,
        [prompt.tokens for prompt in prompts],
        trained.context_patches,
        [prompt.given.origin for prompt in prompts],
    )
    writer = _Writer(_OUTPUT.value, MelVocoder.from_encoder(encoder) if encoder else None)
    for batch, rows in _batches([prompt for prompt in prompts for _ in range(_SAMPLES.value)]):
        generations = generate(
            trained,
            [prompt.tokens for _, prompt in batch],
            sampling=sampling,
            limits=_limits(batch[0][1].modality, max_units, trained.context_patches),
            modality=batch[0][1].modality,
            seeds=[_SEED.value + number for number, _ in batch],
            batch_rows=trained.mesh.size * -(-rows // trained.mesh.size),
        )
        for (number, prompt), generation in zip(batch, generations, strict=True):
            segments = split_segments(generation.tokens, trained.vocabulary, trained.text_tokenizer)
            writer.write(number % _SAMPLES.value, prompt, segments, generation)


def _limits(
    modality: Modality | None, max_units: int, context_patches: int | None
) -> GenerationLimits:
    text = 0 if modality == "speech" else _TEXT_TOKENS
    speech = 0 if modality == "text" else max_units + 1  # for eos
    return GenerationLimits(
        max_tokens=_MAX_TOKENS.value or text + speech,
        max_units=max_units,
        max_patches=context_patches,
    )


def _batches(prompts: Sequence[Prompt]) -> Iterator[tuple[list[tuple[int, Prompt]], int]]:
    """Batches of numbered prompts of one modality, and the rows that all of them have.

    One number of rows for all, as each is compiled for; the last rows of a batch may stay empty.
    """
    groups: dict[Modality | None, list[tuple[int, Prompt]]] = {}
    for number, prompt in enumerate(prompts):
        groups.setdefault(prompt.modality, []).append((number, prompt))
    rows = min(_BATCH_ROWS.value, max(map(len, groups.values())))
    for group in groups.values():
        for first in range(0, len(group), rows):
            yield group[first : first + rows], rows


def _check_output(output: str | None) -> None:
    if output is None:
        return
    has_results = (pathlib.Path(output) / _RESULTS).exists()
    require(not has_results, "output", output, f"a new directory, without {_RESULTS}")
    check_writable(output)


def _given_prompts() -> list[_Given]:
    """Returns the prompts of flags and files; those without a name are named by number."""
    given = [
        _Given(
            kind,
            _parse_units(value) if kind == "units" else value,
            None,
            f"--{kind}={_cut(value)}",
        )
        for kind in _KINDS
        for value in flags.FLAGS[kind].value or []
    ]
    for path in map(pathlib.Path, _PROMPTS.value):
        given += jsonl.read_lines(path, _parse_fields)
    if not given:
        raise ValueError("no prompt, expected --text, --wav, --units or --prompts")
    named: dict[str, _Given] = {}
    for number, prompt in enumerate(given):
        name = prompt.name or f"{number}"
        if name in named:
            known = named[name].origin
            raise ValueError(f"{prompt.origin}: its id {quote(name)} is already that of {known}")
        named[name] = dataclasses.replace(prompt, name=name)
    return list(named.values())


def _cut(value: str) -> str:
    return value if len(value) <= _SHOWN_CHARACTERS else value[:_SHOWN_CHARACTERS] + "…"


def _parse_fields(fields: Mapping[str, Any], origin: str) -> _Given:
    kinds = [kind for kind in _KINDS if kind in fields]
    if len(kinds) != 1:
        raise ValueError(f"expected an object with one of {', '.join(_KINDS)}")
    (kind,) = kinds
    value = jsonl.field(fields, kind, list if kind == "units" else str)
    if kind == "wav":
        value = str(local_path(value, "wav"))
    name = fields.get("id")
    if name is not None:
        name = str(name) if type(name) is int else jsonl.field(fields, "id", str)
        if pathlib.PurePath(name).name != name or "\0" in name:
            raise ValueError(f"id is {quote(name)}, expected one that can begin a file's name")
    return _Given(kind, value, name, origin)


def _parse_units(text: str) -> list[int]:
    words = text.replace(",", " ").split()
    is_units = bool(words) and all(word.isdecimal() and len(word) <= 100 for word in words)
    require(is_units, "units", text, "numbers such as 3,17,17")
    return [int(word) for word in words]


def _make_prompt(given: _Given, trained: TrainedModel, encoder: MelKMeansEncoder | None) -> Prompt:
    vocabulary = trained.vocabulary
    try:
        ids = _encode(given, trained, encoder)
    except ValueError as error:
        raise ValueError(f"{given.origin}: {error}") from error
    own: Modality = "text" if given.kind == "text" else "speech"
    modality: Modality | None = {"same": own, "any": None}.get(
        _CONTINUE_AS.value, _CONTINUE_AS.value
    )
    switch = [] if modality in (own, None) else [_mode(modality, vocabulary)]
    tokens = np.array([vocabulary.bos_id, _mode(own, vocabulary), *ids, *switch], np.int32)
    return Prompt(given, tokens, modality)


def _encode(given: _Given, trained: TrainedModel, encoder: MelKMeansEncoder | None) -> np.ndarray:
    """Returns the ids of a prompt's text or speech, (T,) integers with T ≥ 1."""
    if given.kind == "text":
        ids = trained.text_tokenizer.encode(given.value.strip())
        if not len(ids):
            raise ValueError(f"text is {quote(given.value)}, expected words")
        return ids
    vocabulary = trained.vocabulary
    if given.kind == "units":
        units = jsonl.parse_units(given.value, "units", vocabulary.unit_count)
    elif encoder is None:
        raise ValueError("a wav file needs --encoder, the units' encoder.npz")
    else:
        units = encoder.encode(read_wav(given.value, encoder.sample_rate), encoder.sample_rate)
    return vocabulary.units_to_ids(units)


def _mode(modality: Modality, vocabulary: Vocabulary) -> int:
    return vocabulary.text_mode_id if modality == "text" else vocabulary.speech_mode_id


class _Writer:
    """Keeps continuations in files and prints them."""

    def __init__(self, output: str | None, vocoder: MelVocoder | None) -> None:
        self._directory = pathlib.Path(output) if output else None
        self._vocoder = vocoder
        if self._directory:
            self._directory.mkdir(parents=True, exist_ok=True)
            (self._directory / _RESULTS).write_text("")

    def write(
        self, sample: int, prompt: Prompt, segments: Sequence[Segment], generation: Generation
    ) -> None:
        asked = prompt.given
        name = f"{asked.name}-{sample}"
        wav = self._write_wav(name, segments)
        shown = " | ".join(
            repr(segment.text) if segment.units is None else _show_units(segment.units)
            for segment in segments
        )
        sound = f"  {wav}" if wav else ""
        given = _show_units(asked.value) if asked.kind == "units" else asked.value
        if self._directory:
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
                "wav": wav and wav.name,
                "log_prob": float(generation.log_probs.sum()),
                "stop_reason": generation.stop_reason,
                "token_steps": generation.steps.token_steps,
                "global_steps": generation.steps.global_steps,
            }
            with (self._directory / _RESULTS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(fields, ensure_ascii=False) + "\n")
        # Kept before it is shown.
        ending = f"({generation.stop_reason}){sound}"
        print(f"{given!r} → {shown or 'nothing'}  {ending}", flush=True)

    def _write_wav(self, name: str, segments: Sequence[Segment]) -> pathlib.Path | None:
        units = [segment.units for segment in segments if segment.units is not None]
        if not (self._directory and self._vocoder and units):
            return None
        samples = decode_known(self._vocoder, np.concatenate(units))
        if not samples.size:
            return None
        path = self._directory / f"{name}.wav"
        write_wav(path, samples, self._vocoder.sample_rate)
        return path


def _show_units(units: Sequence[int] | np.ndarray) -> str:
    first = " ".join(map(str, units[:_SHOWN_UNITS]))
    dots = " …" if len(units) > _SHOWN_UNITS else ""
    return f"[{first}{dots}] {len(units) / sampling_flags.FRAME_RATE:.1f} s"


if __name__ == "__main__":
    cli.run_main(main)
