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
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags, logging

from data_pipelines.audio import read_wav, write_wav
from data_pipelines.units import MelKMeansEncoder
from data_pipelines.vocoder import MelVocoder
from experiments import cli
from lst_jax.inference.generation import Generation, GenerationLimits, generate
from lst_jax.inference.sampling import Modality, SamplingConfig
from lst_jax.inference.segments import Segment, split_segments
from lst_jax.trained_model import TrainedModel, load_trained_model
from lst_jax.vocabulary import Vocabulary

_FRAME_RATE = 25
_KINDS = ("text", "wav", "units")
_SHOWN_UNITS = 12

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Workdir of a run (its last checkpoint) or WORKDIR/STEP.", required=True
)
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, "The run's SentencePiece model, where it is no longer at its place."
)
flags.DEFINE_multi_string("text", [], "A prompt of text.")
flags.DEFINE_multi_string("wav", [], "A prompt of speech, a wav file.")
flags.DEFINE_multi_string("units", [], "A prompt of units, such as 3,17,17.")
_PROMPTS = flags.DEFINE_multi_string("prompts", [], "JSONL file of prompts.")
_CONTINUE_AS = flags.DEFINE_enum(
    "continue_as", "same", ["same", "text", "speech", "any"], "Modality of the continuation."
)
_ENCODER = flags.DEFINE_string("encoder", None, "The units' encoder.npz: for wav in and wav out.")
_OUTPUT = flags.DEFINE_string("output", None, "Directory for JSON lines and wav files.")
_SAMPLES = flags.DEFINE_integer("samples", 1, "Continuations of each prompt.", lower_bound=1)
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", 512, "Tokens of a continuation.", lower_bound=1)
_MAX_SECONDS = flags.DEFINE_float("max_seconds", 10.0, "Speech of a continuation.", 0.04)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.7, "0 takes the most probable token.")
_TOP_K = flags.DEFINE_integer("top_k", None, "Draw from the k most probable tokens.")
_TOP_P = flags.DEFINE_float("top_p", 0.95, "Draw from the most probable tokens of this share.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the draws; continuation i has seed + i.", 0)
_BATCH_ROWS = flags.DEFINE_integer("batch_rows", 8, "Rows of a batch.", lower_bound=1)


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
    """What is to be continued.

    Attributes:
      name: for files and lines.
      shown: as it was given.
      tokens: (T,) int32: bos, mode token, text or units, and a mode token where it changes.
      modality: of the continuation; None for both.
    """

    name: str
    shown: str
    tokens: np.ndarray
    modality: Modality | None


def main(argv: list[str]) -> None:
    """Generates as the flags say."""
    cli.check_no_arguments(argv)
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.ERROR)  # Orbax warns of every checkpoint it only reads
    sampling = SamplingConfig(_TEMPERATURE.value, _TOP_K.value, _TOP_P.value)
    given = _given_prompts()
    encoder = MelKMeansEncoder.load(_ENCODER.value) if _ENCODER.value else None
    trained = load_trained_model(_CHECKPOINT.value, _TOKENIZER.value)
    prompts = [_make_prompt(fields, trained, encoder) for fields in given]
    prompts = [prompt for prompt in prompts for _ in range(_SAMPLES.value)]
    vocoder = MelVocoder.from_encoder(encoder) if encoder else None
    writer = _Writer(_OUTPUT.value, vocoder)
    for first in range(0, len(prompts), _BATCH_ROWS.value):
        batch = prompts[first : first + _BATCH_ROWS.value]
        for modality in dict.fromkeys(prompt.modality for prompt in batch):
            numbers = [i for i, prompt in enumerate(batch, first) if prompt.modality == modality]
            generations = _generate(trained, [prompts[i] for i in numbers], numbers, sampling)
            for i, generation in zip(numbers, generations, strict=True):
                segments = split_segments(generation.tokens, trained.vocabulary, trained.tokenizer)
                writer.write(i % _SAMPLES.value, prompts[i], segments, generation)


def _given_prompts() -> list[dict[str, Any]]:
    """The prompts of flags and files, `{kind: value, "id": …}` each."""
    given = [{kind: value} for kind in _KINDS for value in flags.FLAGS[kind].value]
    for path in map(pathlib.Path, _PROMPTS.value):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            given.append(_parse_line(line, f"{path}:{number}"))
    if not given:
        raise ValueError("no prompt, expected --text, --wav, --units or --prompts")
    return [{"id": f"{number}", **fields} for number, fields in enumerate(given)]


def _parse_line(line: str, origin: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{origin}: not a JSON value: {error}") from error
    kinds = [kind for kind in _KINDS if isinstance(fields, dict) and kind in fields]
    if len(kinds) != 1:
        raise ValueError(f"{origin}: expected an object with one of {', '.join(_KINDS)}")
    kind = kinds[0]
    value = fields[kind]
    if kind == "units" and isinstance(value, list):
        value = ",".join(map(str, value))
    if not isinstance(value, str):
        raise ValueError(f"{origin}: {kind} is {value!r}, expected a string")
    return {kind: value} | ({"id": str(fields["id"])} if "id" in fields else {})


def _make_prompt(
    fields: Mapping[str, str], trained: TrainedModel, encoder: MelKMeansEncoder | None
) -> Prompt:
    vocabulary = trained.vocabulary
    (kind,) = fields.keys() & set(_KINDS)
    value = fields[kind]
    if kind == "text":
        ids = trained.tokenizer.encode(value.strip())
        if not len(ids):
            raise ValueError(f"text is {value!r}, expected words")
    elif kind == "units":
        ids = vocabulary.units_to_ids(_parse_units(value))
    else:
        if encoder is None:
            raise ValueError(f"wav {value} needs --encoder, the units' encoder.npz")
        ids = vocabulary.units_to_ids(
            encoder.encode(read_wav(value, encoder.sample_rate), encoder.sample_rate)
        )
    own: Modality = "text" if kind == "text" else "speech"
    modality: Modality | None = {"same": own, "any": None}.get(
        _CONTINUE_AS.value, _CONTINUE_AS.value
    )
    switch = [] if modality in (own, None) else [_mode(modality, vocabulary)]
    tokens = np.array([vocabulary.bos_id, _mode(own, vocabulary), *ids, *switch], np.int32)
    shown = value if kind != "units" else _show_units(vocabulary.ids_to_units(ids))
    return Prompt(fields["id"], shown, tokens, modality)


def _mode(modality: Modality, vocabulary: Vocabulary) -> int:
    return vocabulary.text_mode_id if modality == "text" else vocabulary.speech_mode_id


def _parse_units(text: str) -> np.ndarray:
    words = text.replace(",", " ").split()
    if not words or not all(word.isdigit() for word in words):
        raise ValueError(f"units is {text!r}, expected numbers such as 3,17,17")
    return np.array([int(word) for word in words], np.int64)


def _generate(
    trained: TrainedModel,
    prompts: Sequence[Prompt],
    numbers: Sequence[int],
    sampling: SamplingConfig,
) -> list[Generation]:
    limits = GenerationLimits(
        max_tokens=_MAX_TOKENS.value,
        max_units=max(1, round(_MAX_SECONDS.value * _FRAME_RATE)),
        max_patches=trained.context_patches,
    )
    return generate(
        trained.model,
        trained.params,
        [prompt.tokens for prompt in prompts],
        vocabulary=trained.vocabulary,
        patching=trained.patching,
        mesh=trained.mesh,
        sampling=sampling,
        limits=limits,
        modality=prompts[0].modality,
        seeds=[_SEED.value + number for number in numbers],
        batch_rows=trained.mesh.size * -(-len(prompts) // trained.mesh.size),
    )


class _Writer:
    """Prints continuations and keeps them in files."""

    def __init__(self, output: str | None, vocoder: MelVocoder | None) -> None:
        self._directory = pathlib.Path(output) if output else None
        self._vocoder = vocoder
        if self._directory:
            self._directory.mkdir(parents=True, exist_ok=True)
            (self._directory / "continuations.jsonl").write_text("")

    def write(
        self, sample: int, prompt: Prompt, segments: Sequence[Segment], generation: Generation
    ) -> None:
        name = f"{prompt.name}-{sample}"
        wav = self._write_wav(name, segments)
        shown = " | ".join(
            repr(segment.text) if segment.units is None else _show_units(segment.units)
            for segment in segments
        )
        sound = f"  {wav}" if wav else ""
        print(
            f"{prompt.shown!r} → {shown or 'nothing'}  ({generation.stop_reason}){sound}",
            flush=True,
        )
        if self._directory:
            fields = {
                "id": prompt.name,
                "sample": sample,
                "prompt": prompt.shown,
                "segments": [
                    {"text": segment.text}
                    if segment.units is None
                    else {"units": segment.units.tolist()}
                    for segment in segments
                ],
                "wav": wav and wav.name,
                "log_prob": float(generation.log_probs.sum()),
                "stop_reason": generation.stop_reason,
                "token_steps": generation.steps.token_steps,
                "global_steps": generation.steps.global_steps,
            }
            with (self._directory / "continuations.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(fields, ensure_ascii=False) + "\n")

    def _write_wav(self, name: str, segments: Sequence[Segment]) -> pathlib.Path | None:
        units = [segment.units for segment in segments if segment.units is not None]
        if not (self._directory and self._vocoder and units):
            return None
        path = self._directory / f"{name}.wav"
        joined = np.concatenate(units)
        # A vocabulary may have a unit more than the encoder, which no speech has taught.
        samples = self._vocoder.decode(joined[joined < self._vocoder.unit_count])
        write_wav(path, samples, self._vocoder.sample_rate)
        return path


def _show_units(units: np.ndarray) -> str:
    first = " ".join(map(str, units[:_SHOWN_UNITS].tolist()))
    dots = " …" if len(units) > _SHOWN_UNITS else ""
    return f"[{first}{dots}] {len(units) / _FRAME_RATE:.1f} s"


if __name__ == "__main__":
    cli.run_main(main)
