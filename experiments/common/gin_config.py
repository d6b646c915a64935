"""Gin in one place: what it can configure, and how the binaries read files and bindings.

Configurations are the frozen dataclasses of the library and the data pipelines; nothing else knows
of Gin. A binary takes `--gin_file=PATH` (any number, later ones win; paths are also looked up from
the repository's root) and, after all files, `--gin.NAME=VALUE`, where NAME is a macro that a file
has (`NUM_STEPS`) or a parameter (`OptimizerConfig.clip_norm`). A VALUE that is no Python literal
and does not begin with `@` or `%` is a string.
"""

from __future__ import annotations

import ast
import dataclasses
import pathlib
import re
from collections.abc import Iterator, Sequence

import gin
from absl import flags

from data_pipelines.training.dataset import DataConfig, SourceConfig
from experiments.common.evaluators import EvaluationConfig
from experiments.common.experiment import Experiment
from lst_jax.config import LSTConfig, ModelConfig, TokenTransformerConfig
from lst_jax.patching import PatchingConfig
from lst_jax.settings import Fraction, PositiveInt, require, validate_value
from lst_jax.sharding import MeshConfig
from lst_jax.training.optimizers import OptimizerConfig
from lst_jax.training.step import TrainingConfig

flags.disclaim_key_flags()  # they are those of the binary that asks for them

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_FLAG_PREFIX = "--gin."
_BINDING_FLAG = "gin_binding"
_GIN_CALL = re.compile(
    r"\n +In call to configurable '(\w+)' \(.*?\)(?: in scope '([^']*)')?(?=\n|$)"
)


def step_fraction(num_steps: int, fraction: float) -> int:
    """The step at a share of a run, for schedules in a Gin file (a third of the run, say)."""
    num_steps = validate_value(PositiveInt, num_steps, "num_steps")
    return round(num_steps * validate_value(Fraction, fraction, "fraction"))


gin.add_config_file_search_path(str(_ROOT))
gin.external_configurable(Experiment, "train")
gin.external_configurable(step_fraction)
for _configurable in (
    LSTConfig,
    TokenTransformerConfig,
    DataConfig,
    EvaluationConfig,
    SourceConfig,
    PatchingConfig,
    OptimizerConfig,
    TrainingConfig,
    MeshConfig,
):
    gin.external_configurable(_configurable)


def define_flags() -> None:
    """Defines `--gin_file` and the flag that `--gin.NAME=VALUE` is rewritten to."""
    flags.DEFINE_multi_string("gin_file", [], "Gin file; may be given several times.")
    flags.DEFINE_multi_string(
        _BINDING_FLAG, [], "NAME=VALUE after all files; --gin.NAME=VALUE is the same."
    )


def rewrite_arguments(argv: Sequence[str]) -> list[str]:
    """`--gin.NAME=VALUE` as a flag that absl can parse; other arguments as they are."""
    return [
        f"--{_BINDING_FLAG}={arg.removeprefix(_FLAG_PREFIX)}"
        if arg.startswith(_FLAG_PREFIX)
        else arg
        for arg in argv
    ]


def parse_flags() -> None:
    """Reads the files and bindings of the flags; see `parse`."""
    parse(flags.FLAGS["gin_file"].value, flags.FLAGS[_BINDING_FLAG].value)


def parse(files: Sequence[str], bindings: Sequence[str] = ()) -> None:
    """Makes files and bindings Gin's configuration, in place of the one before.

    Args:
      files: paths, later ones win.
      bindings: `NAME=VALUE` each.

    Raises:
      OSError: there is no such file.
      ValueError: a name is unknown, a binding is not of that form, or a macro that a file
        requires is not set.
    """
    gin.clear_config()
    for file in files:
        gin.parse_config_file(_find_file(file))
    for binding in bindings:
        gin.parse_config(_format_binding(binding))
    required = [name for name, value in _assignments() if value == "%gin.REQUIRED"]
    if required:
        flags_needed = ", ".join(f"--gin.{name}=VALUE" for name in required)
        raise ValueError(f"required and not set: {flags_needed}")
    for name, value in _assignments():
        if name.endswith("Config.vocab_size"):
            expected = "no value: the tokenizer and UNIT_COUNT determine it"
            raise ValueError(f"{name} is {value[:80]}, expected {expected}")
    gin.finalize()


def build_experiment() -> Experiment:
    """The run that the configuration describes.

    The model's settings are checked too, which are else only read when the tokenizer is there.

    Raises:
      ValueError: a part is missing, or a value is not valid.
    """
    for field in dataclasses.fields(Experiment):
        if field.default is field.default_factory is dataclasses.MISSING:
            _check_part(field.name)
    try:
        experiment = gin.get_configurable("train")()
        model = experiment.model(vocab_size=1)
    except (TypeError, ValueError) as error:  # a TypeError where a parameter is missing
        raise ValueError(_in_one_line(str(error))) from error
    is_model = isinstance(model, ModelConfig)
    require(is_model, "train.model", experiment.model, "@LSTConfig or @TokenTransformerConfig")
    return experiment


def _in_one_line(message: str) -> str:
    """A message without what Gin appends to it, but for the scope, which tells calls apart."""
    short = _GIN_CALL.sub(lambda call: f" (in {call[2]}/{call[1]})" if call[2] else "", message)
    return " ".join(short.split())


def _check_part(name: str) -> None:
    try:
        gin.query_parameter(f"train.{name}")
    except ValueError:
        raise ValueError(
            f"train.{name} is not set, expected a model, a data and a run file (--gin_file)"
        ) from None


def _find_file(file: str) -> str:
    for path in (pathlib.Path(file), _ROOT / file):
        if path.is_file():
            return str(path)
    raise FileNotFoundError(f"Gin file {file}: no such file")


def _format_binding(binding: str) -> str:
    """A binding in Gin's syntax."""
    name, equals, value = binding.partition("=")
    name, value = name.strip(), value.strip()
    if not (name and equals and value):
        raise ValueError(f"binding is {binding!r}, expected NAME=VALUE")
    if "." not in name:
        _check_macro(name)
    return f"{name} = {_format_value(value)}"


def _format_value(value: str) -> str:
    if value[0] in "@%":
        return value
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError):
        if value[0] in "([{":  # may hold references, which are no Python literals
            return value
        return repr(value)
    return value


def _check_macro(name: str) -> None:
    macros = [known for known, _ in _assignments() if known.isidentifier()]
    if name not in macros:
        raise ValueError(
            f"--gin.{name}: no Gin file has a macro of that name, expected one of "
            f"{', '.join(macros)} or CONFIGURABLE.PARAMETER"
        )


def _assignments() -> Iterator[tuple[str, str]]:
    """Names and values of the one-line statements of the configuration, as Gin prints it."""
    for line in gin.config_str().splitlines():
        name, equals, value = line.partition(" = ")
        if equals and not line.startswith("#"):
            yield name, value
