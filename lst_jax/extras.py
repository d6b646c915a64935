"""Packages that only an extra of this project installs; one error says that one is missing."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any


def check_extra(extra: str, *modules: str) -> None:
    """Checks that the modules of an extra are there, before the work that needs them.

    Args:
      extra: name in `pyproject.toml`.
      modules: top-level ones.

    Raises:
      ImportError: some are not installed.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise _missing(extra, ", ".join(missing))


def import_extra(extra: str, module: str) -> Any:
    """Returns a module of an extra.

    Raises:
      ImportError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise _missing(extra, error.name) from error


def _missing(extra: str, names: str | None) -> ImportError:
    return ImportError(f"no {names}, expected the extra {extra}: pip install 'lst-jax[{extra}]'")
