"""The description that a model is rebuilt from: `model.json`."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from lst_jax.checkpoints.layout import CHECKPOINTS, DESCRIPTION
from lst_jax.config import LSTConfig, ModelConfig, TokenTransformerConfig
from lst_jax.vocabulary import TextTokenizer, Vocabulary

# Settings of how a model is computed, which a run may change on the way.
_EXECUTION_FIELDS = ("dtype", "remat", "attention")


_MODEL_KINDS = {kind.__name__: kind for kind in (LSTConfig, TokenTransformerConfig)}


@dataclasses.dataclass(frozen=True)
class ModelDescription:
    """All that evaluation needs besides the parameters.

    Attributes:
      model: configuration of the model.
      vocabulary: the id space it was trained on.
      tokenizer_fingerprint: SHA-256 of the text tokenizer's file (`TextTokenizer.fingerprint`);
        None where a ported checkpoint does not tell.
      data: what else a reader may want to know of the rows it was trained on, as JSON values (for
        instance the patching, the row shape, the tokenizer's path).
    """

    model: ModelConfig
    vocabulary: Vocabulary
    tokenizer_fingerprint: str | None
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.model.vocab_size != self.vocabulary.size:
            raise ValueError(
                f"vocab_size is {self.model.vocab_size}, expected {self.vocabulary.size}, the size "
                f"of {self.vocabulary}"
            )


def check_description(workdir: str | pathlib.Path, description: ModelDescription) -> None:
    """Checks that a run of this description may be, or go on, in a workdir.

    Raises:
      ValueError: the workdir has checkpoints of another model, vocabulary or tokenizer.
    """
    path = pathlib.Path(workdir) / DESCRIPTION
    steps = pathlib.Path(workdir) / CHECKPOINTS
    if path.exists() and any(step.name.isdigit() for step in steps.glob("*")):
        _check_same(path, read_description(workdir), description)


def write_description(workdir: str | pathlib.Path, description: ModelDescription) -> None:
    """Writes `model.json`.

    Raises:
      ValueError: see `check_description`.
    """
    check_description(workdir, description)
    path = pathlib.Path(workdir) / DESCRIPTION
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".json.partial")
        partial.write_text(json.dumps(description_to_json(description), indent=2) + "\n")
        partial.replace(path)


def read_description(path: str | pathlib.Path) -> ModelDescription:
    """The description of the run that wrote `path`, a workdir or a step's directory in it.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is not one that this version can read.
    """
    workdir = pathlib.Path(path).absolute()
    if workdir.parent.name == CHECKPOINTS and workdir.name.isdigit():
        workdir = workdir.parent.parent
    file = workdir / DESCRIPTION
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; expected the workdir of a run")
    return description_from_file(file)


def description_to_json(description: ModelDescription) -> dict[str, Any]:
    """A description as JSON values."""
    fields = dataclasses.asdict(description)
    fields["model"] = {"kind": type(description.model).__name__, **fields["model"]}
    return fields


def description_from_file(file: pathlib.Path) -> ModelDescription:
    """The description in a JSON file that holds what `description_to_json` made.

    Raises:
      ValueError: it is not one that this version can read.
    """
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        model = dict(fields["model"])
        fields["model"] = _MODEL_KINDS[model.pop("kind")](**model)
        fields["vocabulary"] = Vocabulary(**fields["vocabulary"])
        return ModelDescription(**fields)
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} does not describe a model: {error!r}") from error


def check_tokenizer(tokenizer: TextTokenizer, description: ModelDescription) -> None:
    """Checks that a tokenizer is the one that a model was trained with.

    Raises:
      ValueError: it is another, or, where the description names none, of another size.
    """
    expected = description.tokenizer_fingerprint
    if expected is not None and tokenizer.fingerprint != expected:
        raise ValueError(
            f"{tokenizer.model_path} has SHA-256 {tokenizer.fingerprint}; expected {expected}, the "
            "tokenizer of the model"
        )
    if tokenizer.size != description.vocabulary.text_size:
        raise ValueError(
            f"{tokenizer.model_path} has {tokenizer.size} pieces; expected "
            f"{description.vocabulary.text_size}, as the model"
        )


def _check_same(file: pathlib.Path, there: ModelDescription, here: ModelDescription) -> None:
    difference = description_difference(there, here)
    if difference:
        raise ValueError(
            f"workdir {file.parent} holds a run of another model: {difference}; "
            "give another --workdir, or the settings of that run"
        )


def description_difference(there: ModelDescription, here: ModelDescription) -> str | None:
    """Says in what two models differ, None where they are the same."""
    for name in ("model", "vocabulary", "tokenizer_fingerprint"):
        difference = _first_difference(getattr(there, name), getattr(here, name), name)
        if difference:
            return difference
    return None


def _first_difference(there: Any, here: Any, name: str) -> str | None:
    """Says in what two values differ, None where they are the same."""
    if type(there) is not type(here):
        return f"{name} is {type(there).__name__} there and {type(here).__name__} here"
    if not dataclasses.is_dataclass(there):
        return None if there == here else f"{name} is {there!r} there and {here!r} here"
    for field in dataclasses.fields(there):
        old, new = getattr(there, field.name), getattr(here, field.name)
        if old != new and field.name not in _EXECUTION_FIELDS:
            return f"{field.name} is {old!r} there and {new!r} here"
    return None
