"""How every binary starts and how it reports a user's mistake: one line, exit status 1."""

from __future__ import annotations

import os
import sys
import tokenize
import traceback
from collections.abc import Callable

from absl import app, flags, logging

# What bad input raises: values out of place, files that are not there, modules and syntax of gin
# files. Gin's two other errors are told apart by their text.
_USER_ERRORS = (ValueError, OSError, ImportError, SyntaxError, tokenize.TokenError)
_GIN_MARKS = ("Required bindings for", "No values supplied by Gin")


def run_main(main: Callable[[list[str]], object]) -> None:
    """Parses the flags, runs `main(argv)` and exits.

    A mistake of the user's — an error of the kinds that bad flags, files and configurations
    raise — becomes one line `error: …` on stderr and exit status 1. With `LST_DEBUG=1` in the
    environment the traceback comes before it.

    Args:
      main: takes the arguments that are not flags, the program's name first.
    """

    def guarded(argv: list[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # Orbax tells much
        try:
            main(argv)
        except (*_USER_ERRORS, RuntimeError, TypeError) as error:
            if not is_user_error(error):
                raise
            if os.environ.get("LST_DEBUG"):
                traceback.print_exc()
            print(f"error: {describe_error(error)}", file=sys.stderr)
            sys.exit(1)

    app.run(guarded, flags_parser=_parse_flags)


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        print(f"error: {describe_error(error)}", file=sys.stderr)
        sys.exit(1)


def check_no_arguments(argv: list[str]) -> None:
    """Rejects arguments that are not flags, such as what a shell makes of an unquoted pattern.

    Raises:
      ValueError: there are some.
    """
    if len(argv) > 1:
        raise ValueError(f"unexpected argument {argv[1]!r}; is a flag's pattern not quoted?")


def is_user_error(error: BaseException) -> bool:
    """Whether the error says what the user should change, rather than that the code is wrong."""
    return isinstance(error, _USER_ERRORS) or any(mark in str(error) for mark in _GIN_MARKS)


def describe_error(error: BaseException) -> str:
    """One line that says what went wrong."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
