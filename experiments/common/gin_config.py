"""Gin in one place: what it can configure, and how the binaries read files and bindings.

Configurations are the frozen dataclasses of the library and the data pipelines; nothing else knows
of Gin. A binary takes `--gin_file=PATH` (any number, later ones win; `gin_files.py` says where a
path is looked up) and, after all files, `--gin.NAME=VALUE`, where NAME is a macro that a file has
(`NUM_STEPS`) or a parameter (`OptimizerConfig.clip_norm`). A VALUE that is no Python literal and
does not begin with `@` or `%` is a string.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import re
from collections.abc import Iterator, Sequence

import gin
from absl import flags

from data_pipelines.training.dataset import DataConfig, SourceConfig
from experiments.common.evaluators import EvaluationConfig
from experiments.common.experiment import Experiment
from experiments.common.gin_files import Bindings
from experiments.common.paths import define_paths
from lst_jax.config import LSTConfig, ModelConfig, TokenTransformerConfig
from lst_jax.patching import PatchingConfig
from lst_jax.settings import (
    Fraction,
    PositiveInt,
    list_names,
    one_line,
    quote,
    require,
    validate_value,
)
from lst_jax.sharding import MeshConfig
from lst_jax.training.optimizers import OptimizerConfig
from lst_jax.training.step import TrainingConfig

flags.disclaim_key_flags()  # they are those of the binary that asks for them

_FLAG_PREFIX = "--gin."
_BINDING_FLAG = "gin_binding"
_NAME = re.compile(r"(?a:[A-Za-z_][\w.]*/)*(?a:[A-Za-z_][\w.]*)")
_GIN_CALL = re.compile(
    r"\n +In call to configurable '(\w+)' \(.*?\)(?: in scope '([^']*)')?(?=\n|$)"
)


def step_fraction(num_steps: int, fraction: float) -> int:
    """Returns the step at a share of a run, for schedules in a Gin file (a third, say)."""
    num_steps = validate_value(PositiveInt, num_steps, "num_steps")
    return round(num_steps * validate_value(Fraction, fraction, "fraction"))


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
    define_paths("gin_file", "Gin file; may be given several times.")
    flags.DEFINE_multi_string(
        _BINDING_FLAG, [], "NAME=VALUE after all files; --gin.NAME=VALUE is the same."
    )


def rewrite_arguments(argv: Sequence[str]) -> list[str]:
    """Returns `--gin.NAME=VALUE` as a flag that absl can parse; other arguments as they are."""
    return [
        f"--{_BINDING_FLAG}={arg.removeprefix(_FLAG_PREFIX)}"
        if arg.startswith(_FLAG_PREFIX)
        else arg
        for arg in argv
    ]


def parse_flags() -> None:
    """Reads the files and bindings of the flags; see `parse`."""
    parse(flags.FLAGS.gin_file, flags.FLAGS.gin_binding)


def parse(files: Sequence[str], bindings: Sequence[str] = ()) -> None:
    """Makes files and bindings Gin's configuration, in place of the one before.

    Args:
      files: paths, later ones win.
      bindings: `NAME=VALUE` each.

    Raises:
      OSError: there is no such file.
      ValueError: a name is unknown, a binding is not of that form, a file or a macro refers to
        itself, or a macro that a file requires is not set.
    """
    gin.clear_config()
    bound = Bindings()
    for file in files:
        bound.parse_file(file)
    for binding in bindings:
        bound.parse_binding(_format_binding(binding, bound))
    if missing := bound.missing():
        flags_needed = list_names(f"--gin.{name}=VALUE" for name in missing)
        raise ValueError(f"required and not set: {flags_needed}")
    bound.check_references()
    for name, value in bound.items():
        expected = "no value: the tokenizer and UNIT_COUNT determine it"
        require(not name.endswith("Config.vocab_size"), name, value, expected)
    gin.finalize()


def build_experiment() -> Experiment:
    """Returns the run that the configuration describes.

    The model's settings are checked too, which are else only read when the tokenizer is there.

    Raises:
      ValueError: a part is missing, or a value is not valid.
    """
    for field in dataclasses.fields(Experiment):
        if field.default is field.default_factory is dataclasses.MISSING:
            _check_part(field.name)
    with calling_gin():
        experiment = gin.get_configurable("train")()
        model = experiment.model(vocab_size=1)
    is_model = isinstance(model, ModelConfig)
    expected = "@LSTConfig or @TokenTransformerConfig"
    require(is_model, "Experiment.model", experiment.model, expected)
    return experiment


@contextlib.contextmanager
def calling_gin() -> Iterator[None]:
    """Says in one line what is wrong with the settings of what Gin calls.

    Raises:
      ValueError: a parameter is missing, or a value is not valid.
    """
    try:
        yield
    except (TypeError, ValueError) as error:  # a TypeError where a parameter is missing
        raise ValueError(_in_one_line(str(error))) from error
    except RecursionError:
        raise ValueError(
            "a setting is made of itself, as @f() where f has an argument @f()"
        ) from None


def _in_one_line(message: str) -> str:
    """Returns a message without what Gin appends to it, but for the scope, which tells calls."""
    short = _GIN_CALL.sub(lambda call: f" (in {call[2]}/{call[1]})" if call[2] else "", message)
    return one_line(short)


def _check_part(name: str) -> None:
    try:
        gin.query_parameter(f"train.{name}")
    except ValueError:
        raise ValueError(
            f"Experiment.{name} is not set, expected a model, a data and a run file (--gin_file)"
        ) from None


def _format_binding(binding: str, bound: Bindings) -> str:
    """Returns a binding in Gin's syntax."""
    name, equals, value = (part.strip() for part in binding.partition("="))
    if not (_NAME.fullmatch(name) and equals and value):
        raise ValueError(f"binding is {quote(binding)}, expected NAME=VALUE")
    if "." not in name and name not in bound:
        macros = [known for known in bound if "." not in known]
        near = difflib.get_close_matches(name[:80], macros, 3, 0) + macros
        raise ValueError(
            f"--gin.{name[:80]}: no Gin file has a macro of that name, expected one of "
            f"{list_names(dict.fromkeys(near))}, or CONFIGURABLE.PARAMETER"
        )
    return f"{name} = {_format_value(value)}"


def _format_value(value: str) -> str:
    if value[0] in "@%" and value.isprintable():
        return value
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        # A list may hold references, which are no Python literals. A second line would be a
        # statement more.
        is_list = value[0] in "([{" and value.isprintable()
        return value if is_list else repr(value)
    return value
