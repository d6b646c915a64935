"""Prompts of text, speech and units, as flags and files give them, and their tokens."""

from __future__ import annotations

import dataclasses
import pathlib
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.speech.audio import read_audio
from lst_jax.evaluation import jsonl
from lst_jax.inference.sampling import Modality
from lst_jax.inference.trained_model import TrainedModel
from lst_jax.local_paths import local_path
from lst_jax.settings import quote, require
from lst_jax.speech.interfaces import Rejection, UnitEncoder
from lst_jax.vocabulary import Vocabulary

KINDS = ("text", "wav", "units")
_SHOWN_CHARACTERS = 40
_LONGEST_NAME = 240  # bytes; what follows an id in a file's name has fewer than 15


@dataclasses.dataclass(frozen=True)
class GivenPrompt:
    """A prompt as it was given.

    Attributes:
      kind: one of `KINDS`.
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

    given: GivenPrompt
    tokens: np.ndarray
    modality: Modality | None


def read_prompts(given: Mapping[str, Sequence[str]], files: Sequence[str]) -> list[GivenPrompt]:
    """Returns the prompts of flags and files; those without a name are named by number.

    Args:
      given: what the flag of each kind has.
      files: JSONL files of objects with one kind, and an `id` if wanted.

    Raises:
      OSError: a file cannot be read.
      ValueError: there is no prompt, two have one name, or one is not valid.
    """
    prompts = [
        GivenPrompt(
            kind,
            _parse_units(value) if kind == "units" else value,
            None,
            f"--{kind}={_cut(value)}",
        )
        for kind in KINDS
        for value in given[kind]
    ]
    for path in map(pathlib.Path, files):
        prompts += jsonl.read_lines(path, _parse_fields)
    if not prompts:
        raise ValueError("no prompt, expected --text, --wav, --units or --prompts")
    named: dict[str, GivenPrompt] = {}
    for number, prompt in enumerate(prompts):
        name = prompt.name or f"{number}"
        key = unicodedata.normalize("NFC", name).casefold()  # as some file systems tell names apart
        if key in named:
            known = f"{quote(named[key].name)}, that of {named[key].origin}"
            raise ValueError(
                f"{prompt.origin}: its id {quote(name)} is already there as {known}, expected "
                "another, by more than case"
            )
        named[key] = dataclasses.replace(prompt, name=name)
    return list(named.values())


def _cut(value: str) -> str:
    return value if len(value) <= _SHOWN_CHARACTERS else value[:_SHOWN_CHARACTERS] + "…"


def _parse_fields(fields: Mapping[str, Any], origin: str) -> GivenPrompt:
    kinds = [kind for kind in KINDS if kind in fields]
    if len(kinds) != 1:
        raise ValueError(f"expected an object with one of {', '.join(KINDS)}")
    (kind,) = kinds
    value = jsonl.field(fields, kind, list if kind == "units" else str)
    if kind == "wav":
        value = str(local_path(value, "wav"))
    name = fields.get("id")
    if name is not None:
        name = str(name) if type(name) is int else jsonl.field(fields, "id", str)
        is_name = pathlib.PurePath(name).name == name and name.isprintable()
        if not is_name or len(name.encode()) > _LONGEST_NAME:
            expected = f"one that can begin a file's name, at most {_LONGEST_NAME} bytes"
            raise ValueError(f"id is {quote(name)}, expected {expected}")
    return GivenPrompt(kind, value, name, origin)


def _parse_units(text: str) -> list[int]:
    words = text.replace(",", " ").split()
    is_units = bool(words) and all(word.isdecimal() and len(word) <= 100 for word in words)
    require(is_units, "units", text, "numbers such as 3,17,17")
    return [int(word) for word in words]


def make_prompt(
    given: GivenPrompt,
    trained: TrainedModel,
    encoder: UnitEncoder | None,
    continue_as: str,
) -> Prompt:
    """Returns a prompt's tokens.

    Args:
      given: what was asked for.
      trained: whose vocabulary and tokenizer are used.
      encoder: makes units of a wav file.
      continue_as: "same", "text", "speech" or "any".

    Raises:
      OSError: a wav file cannot be read.
      ValueError: the prompt is empty, has units that the model lacks, or needs an encoder.
    """
    vocabulary = trained.vocabulary
    try:
        ids = _encode(given, trained, encoder)
    except ValueError as error:
        raise ValueError(f"{given.origin}: {error}") from error
    own: Modality = "text" if given.kind == "text" else "speech"
    modality: Modality | None = {"same": own, "any": None}.get(continue_as, continue_as)
    switch = [] if modality in (own, None) else [_mode(modality, vocabulary)]
    tokens = np.array([vocabulary.bos_id, _mode(own, vocabulary), *ids, *switch], np.int32)
    return Prompt(given, tokens, modality)


def _encode(given: GivenPrompt, trained: TrainedModel, encoder: UnitEncoder | None) -> np.ndarray:
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
        raise ValueError("a wav file needs --encoder, that of the units")
    else:
        (units,) = encoder.encode([read_audio(given.value, encoder.sample_rate)])
        if isinstance(units, Rejection):
            raise ValueError(f"wav is {quote(given.value)}: {units.reason}")
    return vocabulary.units_to_ids(units)


def _mode(modality: Modality, vocabulary: Vocabulary) -> int:
    return vocabulary.text_mode_id if modality == "text" else vocabulary.speech_mode_id
