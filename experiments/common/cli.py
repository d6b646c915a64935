"""How every binary starts and ends: a console that cannot fail, one line for a mistake, exit codes.

| code | meaning                                                                        |
|------|--------------------------------------------------------------------------------|
| 0    | the work is done; for training, the last step                                  |
| 1    | an error of ours, with its traceback, or in one line a killed worker           |
| 2    | an error of the user's: a flag, setting, file or value, in one line            |
| 3    | the loss or a gradient is not finite; the same run would end there again       |
| 4    | what was compared is not equal                                                 |
| 75   | another run holds the lock                                                     |
| 143  | stopped by a signal: start it again; training has saved a checkpoint           |
"""

from __future__ import annotations

import enum
import io
import logging as python_logging
import os
import pathlib
import signal
import sys
import threading
import tokenize
import traceback
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from types import FrameType
from typing import Any, NoReturn, TextIO

from absl import app, flags, logging

from experiments.common.paths import check_output_is_no_input
from lst_jax.settings import one_line, quote
from lst_jax.training.signals import STOP_SIGNALS

_OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"
# What bad input raises: values out of place, files that are not there, modules and syntax of gin
# files, sizes that no memory holds. Gin's and XLA's are told apart by their text.
_USER_ERRORS = (ValueError, OSError, ImportError, SyntaxError, tokenize.TokenError, MemoryError)
_MARKS = ("Required bindings for", "No values supplied by Gin", _OUT_OF_MEMORY)
_KILLED = (ChildProcessError, BrokenProcessPool)  # no setting or file can mend that


class ExitCode(enum.IntEnum):
    """What a scheduler can tell from the end of a binary."""

    DONE = 0
    OUR_ERROR = 1
    USER_ERROR = 2
    NOT_FINITE = 3
    DIFFERENT = 4
    LOCKED = 75
    STOPPED = 143


class Console:
    """A standard stream that never raises: what cannot be written or encoded is not.

    A console may vanish (a closed ssh connection, `| head`) while work of hours goes on.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Writes if there is still someone to read it."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Writes what is buffered."""
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, call: Callable[[], object]) -> None:
        try:
            call()
        except (OSError, ValueError):  # ValueError: the stream was closed
            self._discard()

    def _discard(self) -> None:
        """Sends everything to nowhere from now on, what is buffered at the process' end, too."""
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
        except (OSError, ValueError):
            self._stream = open(os.devnull, "w")  # noqa: SIM115, PTH123  it lives with the process


def run_main(main: Callable[[list[str]], object]) -> None:
    """Parses the flags, runs `main(argv)` and exits.

    A mistake of the user's — an error of the kinds that bad flags, files and configurations
    raise — becomes one line `error: …` on stderr and exit code 2. With `LST_DEBUG=1` in the
    environment the traceback comes before it.

    A signal of `STOP_SIGNALS` ends it in one line, once what it was about to write is removed; one
    that comes meanwhile, or when the work is done, is passed over. Training has its own answer.

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
            killed = isinstance(error, _KILLED)
            end_with_error(error, ExitCode.OUR_ERROR if killed else ExitCode.USER_ERROR)
        finally:
            sys.stdout.flush()

    # Before stderr is another object: Orbax logged as it was imported, to a handler that must go.
    logging.use_absl_handler()
    if not os.environ.get("LST_DEBUG"):
        logging.get_absl_handler().python_handler.addFilter(lambda record: not _is_told(record))
    sys.stdout, sys.stderr = Console(sys.stdout), Console(sys.stderr)
    sys.excepthook, sys.unraisablehook = _show_exception, _show_unraisable
    _show_library_log()
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _stop)
    try:
        app.run(guarded, flags_parser=_parse_flags)
    except KeyboardInterrupt as stop:
        print(f"stopped by {stop or signal.SIGINT.name}", file=sys.stderr)
        sys.exit(int(ExitCode.STOPPED))
    finally:
        _pass_over_signals()


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    _pass_over_signals()  # from now on things are put in order
    raise KeyboardInterrupt(signal.Signals(number).name)


def _pass_over_signals() -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_with_error(error: BaseException, code: ExitCode) -> NoReturn:
    """Says in one line what went wrong, and exits."""
    print(f"error: {describe_error(error)}", file=sys.stderr)
    sys.exit(int(code))


def _show_exception(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Shows what nobody caught."""
    if not _is_late_news(error):
        sys.__excepthook__(kind, error, trace)


def _show_unraisable(caught: sys.UnraisableHookArgs) -> None:
    """Shows what was raised where nobody can catch it; a signal is sent once more."""
    if isinstance(caught.exc_value, KeyboardInterrupt):
        number = signal.Signals[str(caught.exc_value) or "SIGINT"]
        signal.signal(number, _stop)
        again = threading.Timer(0.05, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()
    elif not _is_late_news(caught.exc_value):
        sys.__unraisablehook__(caught)


def _is_late_news(error: BaseException | None) -> bool:
    """Returns whether TensorStore's threads told an event loop that Orbax has closed.

    That follows an error that is told anyway.
    """
    return type(error) is RuntimeError and str(error) == "Event loop is closed"


def _is_told(record: python_logging.LogRecord) -> bool:
    """Returns whether a library logs, with traceback, what it raises or has raised as well.

    Orbax does so for every thread of a save, asyncio for every write after the first that failed.
    """
    if record.name == "asyncio":
        return "exception was never retrieved" in record.getMessage()
    return bool(record.exc_info) and "orbax" in pathlib.Path(record.pathname).parts


def _show_library_log() -> None:
    """Shows the packages' own lines, plain and between the binary's, on stdout."""
    handler = python_logging.StreamHandler(sys.stdout)
    handler.setFormatter(python_logging.Formatter("%(message)s"))
    for package in ("lst_jax", "data_pipelines"):
        logger = python_logging.getLogger(package)
        logger.addHandler(handler)
        logger.setLevel(python_logging.INFO)
        logger.propagate = False


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
        check_output_is_no_input()
        return rest
    except (flags.Error, ValueError) as error:
        end_with_error(error, ExitCode.USER_ERROR)


def check_no_arguments(argv: list[str]) -> None:
    """Rejects arguments that are not flags, such as what a shell makes of an unquoted pattern.

    Raises:
      ValueError: there are some.
    """
    if len(argv) > 1:
        raise ValueError(f"unexpected argument {quote(argv[1])}; is a flag's pattern not quoted?")


def is_user_error(error: BaseException) -> bool:
    """Returns whether the error is one that the user can mend, rather than a fault of the code."""
    known = (*_USER_ERRORS, *_KILLED)
    return isinstance(error, known) or any(mark in str(error) for mark in _MARKS)


def describe_error(error: BaseException) -> str:
    """Returns one line that says what went wrong."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return one_line(f"{error.filename}: {error.strerror}")
    is_memory = _OUT_OF_MEMORY in str(error) and not isinstance(error, OSError)  # or of a disk
    if isinstance(error, MemoryError) or is_memory:
        return one_line(f"not enough memory, expected smaller sizes: {error}")
    return one_line(str(error)) or type(error).__name__
