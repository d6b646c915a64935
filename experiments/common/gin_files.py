"""Gin files from any directory: where names are looked up, includes, what files bind.

Gin's own `include` looks a name up as a Python package where it is no file, which a folder of Gin
files is not. So files are read here, and Gin is given the text between their includes.
"""

from __future__ import annotations

import contextlib
import io
import pathlib
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import gin
from gin import config_parser

from lst_jax.local_paths import local_path
from lst_jax.settings import quote

ROOT = pathlib.Path(__file__).resolve().parents[2]
_CONFIGS = ROOT / "experiments" / "configs"
_LARGEST_FILE = 2**20  # bytes; ours have three thousand
_DEEPEST_INCLUDE = 20

REQUIRED = "gin.REQUIRED"


class Macro(NamedTuple):
    """A reference `%name` in a value."""

    name: str

    def __repr__(self) -> str:
        return f"%{self.name}"


class Bindings(dict[str, Any]):
    """What files and bindings set, by name: `NAME`, `Configurable.parameter` with its scope.

    References in values are `Macro`s; those to configurables are None.
    """

    def parse_file(self, name: str) -> None:
        """Makes a file and what it includes a part of Gin's configuration, and takes its bindings.

        Args:
          name: absolute, or relative to the current directory, to the folder that holds the package
            `experiments`, or to `experiments/configs`. What a file includes is looked up in the
            file's own folder, too; the files of `experiments/configs` include each other.

        Raises:
          OSError: there is no such file, or it cannot be read.
          ValueError: a file includes itself, is too large, is not UTF-8, or is not valid.
        """
        self._parse_file(name, ())

    def _parse_file(self, name: str, including: tuple[pathlib.Path, ...]) -> None:
        file = find_file(name, including)
        if file in including or len(including) > _DEEPEST_INCLUDE:
            raise ValueError(f"Gin file {including[-1]} includes {name!s}, which includes it")
        text = _read(file)
        for line, statement in _includes(text, str(file), self):
            # Line numbers stay those of the file.
            self._pass_on(line, str(file))
            if statement is not None:
                self._parse_file(statement, (*including, file))

    def parse_binding(self, text: str) -> None:
        """Makes `NAME = VALUE` in Gin's syntax a part of its configuration."""
        for part, _ in _includes(text, None, self):
            self._pass_on(part, None)

    @staticmethod
    def _pass_on(text: str, file: str | None) -> None:
        with _naming(file, text):
            gin.parse_config(_Source(text, file))

    def missing(self) -> list[str]:
        """Returns the names whose value a file leaves to the user."""
        return [name for name, value in self.items() if Macro(REQUIRED) in _references(value)]

    def check_references(self) -> None:
        """Raises a `ValueError` for a macro that is not set, or that leads to itself."""
        for name in self:
            self._follow(name, ())

    def _follow(self, name: str, path: tuple[str, ...]) -> None:
        if name in path:
            circle = " → ".join(map(quote, [*path[path.index(name) :], name][:5]))
            raise ValueError(f"{quote(name)} refers to itself: {circle}")
        for macro in _references(self[name]):
            if macro.name in self:
                self._follow(macro.name, (*path, name))
            elif macro.name != REQUIRED:
                raise ValueError(f"{name} is %{macro.name[:80]}, expected a macro that is set")


class _Source(io.StringIO):
    """Text with the name of its file, which Gin puts into messages."""

    def __init__(self, text: str, name: str | None) -> None:
        super().__init__(text)
        self.name = name


class _Delegate(config_parser.ParserDelegate):
    """Makes the values that the parser cannot."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> None:
        return None

    def macro(self, macro_name: str) -> Any:  # Gin declares no type, so that it seems to be None
        return Macro(macro_name)


def find_file(name: str, including: Sequence[pathlib.Path] = ()) -> pathlib.Path:
    """Returns the file that a name stands for, in one that others include; see `parse_file`.

    Raises:
      OSError, ValueError: there is none.
    """
    path = local_path(name, "gin_file")
    own = [including[-1].parent] if including else []
    folders = [*own, pathlib.Path.cwd(), ROOT, _CONFIGS]
    if own and own[0].is_relative_to(_CONFIGS):
        folders.remove(pathlib.Path.cwd())
    for folder in folders:
        if (folder / path).is_file():  # the path itself where it is absolute
            return (folder / path).resolve()
    where = "" if path.is_absolute() else f" in {', '.join(map(str, dict.fromkeys(folders)))}"
    by = f", which {including[-1]} includes" if including else ""
    raise FileNotFoundError(f"Gin file {name}{by}: no such file{where}")


def _read(file: pathlib.Path) -> str:
    size = file.stat().st_size
    if size > _LARGEST_FILE:
        raise ValueError(f"Gin file {file} has {size} bytes, expected at most {_LARGEST_FILE}")
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"Gin file {file} is not UTF-8: {error.reason}") from None


@contextlib.contextmanager
def _naming(file: str | None, text: str) -> Iterator[None]:
    """Raises errors of syntax as a `ValueError` that begins with the file, or the binding."""
    try:
        yield
    except (RecursionError, MemoryError):
        raise ValueError(f"{file or quote(text)} is nested too deeply") from None
    except SyntaxError as error:
        where = f"{file}, line {error.lineno}" if file else quote(text)
        raise ValueError(f"{where}: {error.msg}") from None
    except tokenize.TokenError as error:
        raise ValueError(f"{file or quote(text)}: {error.args[0]}") from None


def _includes(text: str, file: str | None, found: Bindings) -> Iterator[tuple[str, str | None]]:
    """Yields the text up to each include, below as many empty lines as precede it, and its file.

    Every binding is put into `found` on the way, those of a text before it is yielded.
    """
    lines = text.splitlines(keepends=True)
    first, bound = 0, set[str]()
    with _naming(file, text):
        statements = list(config_parser.ConfigParser(_Source(text, file), _Delegate()))
    starts = [statement.location.line_num - 1 for statement in statements[1:]] + [len(lines)]
    for statement, end in zip(statements, starts, strict=True):
        if isinstance(statement, config_parser.IncludeStatement):
            here = statement.location.line_num - 1
            yield "\n" * first + "".join(lines[first:here]), statement.filename
            first = end
        elif isinstance(statement, config_parser.BindingStatement):
            name = _name(statement)
            if name in bound:  # across files, the later one is meant
                raise ValueError(f"{file or quote(text)} sets {name} twice, expected it once")
            bound.add(name)
            found[name] = statement.value
    yield "\n" * first + "".join(lines[first:]), None


def _name(statement: config_parser.BindingStatement) -> str:
    """Returns the name that a statement binds, without the module of a configurable."""
    scope = f"{statement.scope}/" if statement.scope else ""
    if not statement.arg_name:
        return scope + statement.selector
    return f"{scope}{statement.selector.rpartition('.')[2]}.{statement.arg_name}"


def _references(value: Any) -> Iterator[Macro]:
    """Yields the macros in a value; recursion is as deep as the parser's was."""
    if isinstance(value, Macro):
        yield value
    elif isinstance(value, Mapping):
        for pair in value.items():
            yield from _references(pair)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _references(item)
