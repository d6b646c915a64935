"""Defaults, bounds and constants of all modules, frozen: no digit of one changes unseen.

After a change that is meant,

    python -m tests.lst_jax.test_defaults

writes the list again; what CHANGELOG.md must say is then in the diff.
"""

import ast
import dataclasses
import importlib
import inspect
import pathlib
import typing

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
FROZEN = ROOT / "tests" / "testdata" / "defaults.txt"
PLAIN = (bool, int, float, str)
TORCH = "lst_jax.porting.torch_model"
# What the version of JAX decides.
VERSIONED = ("lst_jax.model.attention.mosaic_gpu._NAMES",)
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("lst_jax", "data_pipelines")
    for path in (ROOT / package).rglob("*.py")
    if path.name != "__init__.py"
)


def is_plain(value, *others):
    """Tells numbers and words, and what is made of them, from what has no lasting form."""
    if isinstance(value, dict):
        value = (*value, *value.values())
    elif dataclasses.is_dataclass(value) and type(value).__module__ in MODULES:
        value = (*vars(value).values(),)
    if isinstance(value, tuple | list):
        return all(is_plain(item, type(None)) for item in value)
    return type(value) in (*PLAIN, *others)


def defaults_of(name, function):
    """A line for each parameter that has a plain default."""
    for parameter in inspect.signature(function).parameters.values():
        if type(parameter.default) in PLAIN:
            yield f"{name}.{parameter.name} = {parameter.default!r}"


def lines_of_class(name, kind):
    annotations = vars(kind).get("__annotations__", {})
    bounded = [field for field, text in annotations.items() if "Bounds(" in str(text)]
    hints = typing.get_type_hints(kind, include_extras=True) if bounded else {}
    yield from (f"{name}.{field}: {hints[field]!r}" for field in bounded)
    for field, value in vars(kind).items():
        if field in annotations and is_plain(value):
            yield f"{name}.{field} = {value!r}"
        elif inspect.isfunction(value) and not hasattr(kind, "__dataclass_fields__"):
            yield from defaults_of(f"{name}.{field}", value)


def lines_of(module_name):
    """A line for each plain value of a module that is a default, a bound or a constant."""
    module, lines = importlib.import_module(module_name), []
    for node in ast.parse(pathlib.Path(module.__file__).read_text(encoding="utf-8")).body:
        targets = getattr(node, "targets", [getattr(node, "target", ast.Pass())])
        names = {x.id for y in targets for x in ast.walk(y) if isinstance(x, ast.Name)}
        names |= {getattr(node, "name", "__")}
        for name in names:
            full, value = f"{module_name}.{name}", getattr(module, name, None)
            if typing.get_origin(value) is typing.Annotated:
                lines.append(f"{full}: {value!r}")
            elif inspect.isclass(value):
                lines += lines_of_class(full, value)
            elif inspect.isfunction(inspect.unwrap(value)):
                lines += defaults_of(full, inspect.unwrap(value))
            # A bool is what an environment has made of it.
            elif is_plain(value) and not isinstance(value, bool) and not name.startswith("__"):
                lines += [f"{full} = {value!r}"] * (full not in VERSIONED)
    return sorted(lines)


def frozen(module_name):
    lines = FROZEN.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith(f"{module_name}.")]


@pytest.mark.parametrize(
    "modules", [[x for x in MODULES if x != TORCH], pytest.param([TORCH], marks=pytest.mark.torch)]
)
def test_defaults_bounds_and_constants_are_those_that_were_frozen(modules):
    for module in modules:
        assert lines_of(module) == frozen(module), "python -m tests.lst_jax.test_defaults"


if __name__ == "__main__":
    FROZEN.write_text("".join(f"{x}\n" for m in MODULES for x in lines_of(m)), encoding="utf-8")
