"""The description that a model is rebuilt from: `model.json`.

The file says its `format_version`. Version 2 is written; 1 and 2 are read. In version 1 what is
known of the training rows was a mapping of anything; in version 2 every field has a type, and a
version, field or value that this code does not know is refused by name: a model of which a part
is ignored would be another model.

A field that is absent has its default, and each class says what the default means.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from lst_jax.checkpoints.layout import DESCRIPTION, exists, list_steps, split_path
from lst_jax.config import LSTConfig, TokenTransformerConfig
from lst_jax.differences import differences
from lst_jax.files import write_json
from lst_jax.local_paths import RecordedPath
from lst_jax.patching import PatchingConfig, Visibility
from lst_jax.settings import (
    Name,
    NaturalInt,
    RowSlots,
    configuration,
    list_names,
    quote,
    require,
    validate_fields,
    validate_value,
)
from lst_jax.strict_json import parse_json, read_json_object
from lst_jax.vocabulary import TextTokenizer, Vocabulary

FORMAT_VERSION = 2

# What version 1 kept among the data.
_ELSEWHERE = ("step", "published_params")
# Settings of how a model is computed, which a run may change on the way.
_EXECUTION_FIELDS = ("model.dtype", "model.remat", "model.attention")
_MODEL_KINDS = {kind.__name__: kind for kind in (LSTConfig, TokenTransformerConfig)}


@configuration
class GlobalTransformerOptions:
    """How the global transformer differs from the paper's. There is no such option yet.

    An option that is absent leaves the transformer as the paper has it.
    """


@configuration
class DataDescription:
    """Describes the rows that a model was trained on.

    Attributes:
      patching: how speech was segmented. None: not told.
      visibility: the rule of what a token may use. None: not told.
      tokenizer: path of the text tokenizer when the run began. None: not told, the caller knows.
      patches_per_row: patch slots of a row, the longest context that the model knows. None: not
        told.
      tokens_per_row: token slots of a row. None: not told.
    """

    patching: PatchingConfig | None = None
    visibility: Visibility | None = None
    tokenizer: RecordedPath | None = None
    patches_per_row: RowSlots | None = None
    tokens_per_row: RowSlots | None = None


@configuration
class ModelDescription:
    """All that evaluation needs besides the parameters.

    Attributes:
      model: configuration of the model.
      vocabulary: the id space it was trained on; the file has its `units` apart.
      tokenizer_fingerprint: SHA-256 of the text tokenizer's file (`TextTokenizer.fingerprint`);
        None where a ported checkpoint does not tell.
      data: the rows it was trained on.
      encoder_fingerprint: SHA-256 of the encoder that made the units. None: not told.
      global_transformer: what is special about the global transformer.
      published_params: `params.json` of a ported checkpoint as text, with the settings that no
        field here has, so that it can go out again as it came in. None: there was none.
    """

    model: LSTConfig | TokenTransformerConfig
    vocabulary: Vocabulary
    tokenizer_fingerprint: Name | None
    data: DataDescription = DataDescription()
    encoder_fingerprint: Name | None = None
    global_transformer: GlobalTransformerOptions = GlobalTransformerOptions()
    published_params: Name | None = None

    def __post_init__(self) -> None:
        require(
            self.model.vocab_size == self.vocabulary.size,
            "ModelDescription.model.vocab_size",
            self.model.vocab_size,
            f"{self.vocabulary.size}, the size of {quote(self.vocabulary)}",
        )
        if self.published_params is not None:
            _check_published_params(self.published_params)


def _check_published_params(text: str) -> None:
    """Checks that a text is an object of JSON, its sections objects too."""
    name = "ModelDescription.published_params"
    try:
        params = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{name} is {quote(text)}, expected JSON: {error}") from None
    require(isinstance(params, dict), name, params, "an object as JSON")
    for section in ("model", "data"):
        part = params.get(section, {})
        require(isinstance(part, dict), f"{name}.{section}", part, "an object")


def check_description(workdir: str | pathlib.Path, description: ModelDescription) -> None:
    """Checks that a run of this description may be, or go on, in a workdir.

    Raises:
      ValueError: the workdir has checkpoints of another model, vocabulary or tokenizer.
    """
    path = pathlib.Path(workdir) / DESCRIPTION
    if exists(path) and list_steps(pathlib.Path(workdir)):
        _check_same(path, read_description(workdir), description)


def write_description(workdir: str | pathlib.Path, description: ModelDescription) -> None:
    """Writes `model.json`.

    Raises:
      ValueError: see `check_description`.
    """
    check_description(workdir, description)
    path = pathlib.Path(workdir) / DESCRIPTION
    if jax.process_index() == 0:
        write_json(path, description_to_json(description))


def read_description(path: str | pathlib.Path) -> ModelDescription:
    """Returns the description of the run that wrote `path`, a workdir or a step's directory in it.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is not one that this version can read.
    """
    file = split_path(path)[0] / DESCRIPTION
    if not exists(file):
        raise FileNotFoundError(f"{file}: no such file; expected the workdir of a run")
    return description_from_file(file)


def description_to_json(description: ModelDescription) -> dict[str, Any]:
    """Returns a description as JSON values."""
    fields = dataclasses.asdict(description)
    fields["model"] = {"kind": type(description.model).__name__, **fields["model"]}
    fields["units"] = fields["vocabulary"].pop("units")
    return {"format_version": FORMAT_VERSION, **fields}


def description_from_file(file: pathlib.Path) -> ModelDescription:
    """Returns the description in a JSON file that holds what `description_to_json` made.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is not one that this version can read; names the file, what was found there
        and what was expected.
    """
    return _description_from_json(_current_fields(read_json_object(file), file), file)


def exported_from_file(file: pathlib.Path) -> tuple[ModelDescription, int]:
    """Returns the description and the step in a ported checkpoint's JSON file.

    The file holds what `description_to_json` made and `step`, the optimizer updates that made the
    parameters; 0 where it does not tell.

    Raises:
      OSError, ValueError: see `description_from_file`; the step is no number of steps.
    """
    fields = _current_fields(read_json_object(file), file)
    step = validate_value(NaturalInt, fields.pop("step", 0), f"{file}: step")
    return _description_from_json(fields, file), step


def _current_fields(fields: dict[str, Any], file: pathlib.Path) -> dict[str, Any]:
    """Returns the fields of a file of any version as version 2 names them."""
    version = fields.pop("format_version", 1)  # version 1 did not say
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise ValueError(
            f"{file}: format_version is {quote(version)}, expected 1 … {FORMAT_VERSION}"
        )
    if version == FORMAT_VERSION:
        return fields
    unknown = fields.keys() - {"model", "vocabulary", "tokenizer_fingerprint", "data"}
    if unknown:
        raise ValueError(f"{file}: version 1 has no {list_names(sorted(unknown))}")
    data = fields.get("data", {})
    if not isinstance(data, Mapping):
        raise ValueError(f"{file}: data is {quote(data)}, expected an object")
    rest = {name: value for name, value in data.items() if name not in _ELSEWHERE}
    moved = {name: data[name] for name in _ELSEWHERE if name in data}
    if "published_params" in moved:
        moved["published_params"] = json.dumps(moved["published_params"])
    return {**fields, **moved, "data": rest}


def _description_from_json(fields: dict[str, Any], file: pathlib.Path) -> ModelDescription:
    model = fields.get("model", {})
    if not isinstance(model, Mapping):
        raise ValueError(f"{file}: model is {quote(model)}, expected an object")
    settings = dict(model)
    kind = settings.pop("kind", None)
    if not isinstance(kind, str) or kind not in _MODEL_KINDS:
        expected = " or ".join(map(repr, _MODEL_KINDS))
        raise ValueError(f"{file}: model.kind is {quote(kind)}, expected {expected}")
    built = validate_fields(_MODEL_KINDS[kind], settings, file)
    vocabulary = _vocabulary_from_json(fields.get("vocabulary"), fields.pop("units", {}), file)
    return validate_fields(
        ModelDescription, {**fields, "model": built, "vocabulary": vocabulary}, file
    )


def _vocabulary_from_json(vocabulary: Any, units: Any, file: pathlib.Path) -> Any:
    """Returns the vocabulary with the units that the file has apart, both still to be checked."""
    if isinstance(units, Mapping) and units.get("pieces_fingerprint", "") is None:
        # In the first files of version 2, where every unit was an id.
        units = {name: value for name, value in units.items() if name != "pieces_fingerprint"}
    if not isinstance(vocabulary, Mapping) or "units" in vocabulary:
        raise ValueError(
            f"{file}: vocabulary is {quote(vocabulary)}, expected an object without units"
        )
    return {**vocabulary, "units": units}


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
    """Says in what two models differ, None where they are the same.

    Where one does not tell its encoder, it cannot be shown to be another.
    """
    names = ["model", "vocabulary", "tokenizer_fingerprint", "global_transformer"]
    if None not in (there.encoder_fingerprint, here.encoder_fingerprint):
        names.append("encoder_fingerprint")
    if type(there.model) is not type(here.model):
        old, new = (type(description.model).__name__ for description in (there, here))
        return f"model is {old} there and {new} here"
    for name in names:
        for place, old, new in differences(getattr(there, name), getattr(here, name), name):
            if place not in _EXECUTION_FIELDS:
                return f"{place} is {quote(old)} there and {quote(new)} here"
    return None
