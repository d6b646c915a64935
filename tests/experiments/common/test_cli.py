"""How binaries end: exit codes, one line, a console that cannot fail."""

import io
import logging
import os
import signal
import subprocess
import sys

import pytest

from experiments.common import cli
from experiments.common.cli import Console
from tests.experiments.forked import ROOT
from tests.marks import quick

BINARY = """
import sys
from experiments.common import cli
def main(argv):
    {body}
cli.run_main(main)
"""


def run(body):
    return subprocess.run(
        [sys.executable, "-c", BINARY.format(body=body)], capture_output=True, text=True
    )


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("body", "code", "lines"),
    [
        ("print('done')", 0, 0),
        ("raise ValueError('seed is -1\\\\nexpected more')", 2, 1),
        ("open('/nowhere/at/all')", 2, 1),
        ("cli.end_with_error(ArithmeticError('inf'), cli.ExitCode.NOT_FINITE)", 3, 1),
        ("sys.exit(int(cli.ExitCode.STOPPED))", 143, 0),
        ("raise ZeroDivisionError('ours')", 1, None),
    ],
)
def test_every_end_has_its_exit_code(body, code, lines):
    done = run(body)
    assert done.returncode == code, done.stderr
    if lines is not None:
        assert len(done.stderr.splitlines()) == lines
        assert "Traceback" not in done.stderr
    else:
        assert "ZeroDivisionError" in done.stderr


@pytest.mark.multiprocess
def test_an_unknown_flag_is_the_users_error():
    command = [sys.executable, "-c", BINARY.format(body="pass"), "--no_such_flag"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")


@pytest.mark.multiprocess
def test_a_binary_whose_console_vanishes_ends_as_if_it_had_not():
    """Also at its end, when Python writes what is buffered."""
    body = "[print('x' * 100_000) for _ in range(3)], print('x', end='')"
    process = subprocess.Popen(
        [sys.executable, "-c", BINARY.format(body=body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 0)


@pytest.mark.parametrize(
    ("logger", "path", "message", "has_trace", "told"),
    [
        ("absl", "/a/orbax/checkpoint/b.py", "a save failed", True, True),
        ("absl", "/a/orbax/checkpoint/b.py", "no such step", False, False),
        ("absl", "/a/orbaxes/b.py", "a save failed", True, False),
        ("asyncio", "/a/b.py", "Future exception was never retrieved", True, True),
        ("asyncio", "/a/b.py", "Task was destroyed but it is pending", True, False),
    ],
)
def test_only_what_is_raised_as_well_is_kept_from_the_console(
    logger, path, message, has_trace, told
):
    trace = (OSError, OSError(), None) if has_trace else None
    record = logging.LogRecord(logger, logging.ERROR, path, 1, message, (), trace)
    assert cli._is_told(record) == told


def test_a_console_writes_what_it_cannot_encode_in_another_way():
    raw = io.BytesIO()
    console = Console(io.TextIOWrapper(raw, encoding="iso-8859-9"))
    print("S→T", file=console, flush=True)
    assert raw.getvalue() == b"S\\u2192T" + os.linesep.encode()


def test_a_closed_console_takes_everything_and_says_nothing():
    stream = io.StringIO()
    stream.close()
    console = Console(stream)
    print("lost", file=console, flush=True)
    print("lost", file=console, flush=True)


STOPPED = """
import os, signal, time
from experiments.common import cli
from lst_jax.files import new_directory, refuse_to_replace
for name in ("SIGHUP", "SIGINT"):  # which the tests' own shell may ignore
    signal.signal(getattr(signal, name), signal.SIG_DFL)
def main(argv):
    with new_directory("out", refuse_to_replace) as folder:
        (folder / "half").write_text("")
        try:
            {body}
        finally:
            os.kill(os.getpid(), signal.SIGINT)  # a second one, while things are put in order
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
cli.run_main(main)
"""


@pytest.mark.multiprocess
@pytest.mark.parametrize("place", ["{}", "type('', (), {{'__del__': lambda _: {}}})()"])
@pytest.mark.parametrize("name", quick(["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"], "SIGINT"))
def test_signals_end_a_binary_in_one_line_and_leave_nothing(tmp_path, name, place):
    """Also one that comes where nothing can be raised, as in a finalizer."""
    body = place.format(f"os.kill(os.getpid(), signal.{name})") + "; time.sleep(60)"
    command = [sys.executable, "-c", STOPPED.format(body=body)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stderr) == (143, f"stopped by {name}\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.multiprocess
@pytest.mark.parametrize("name", quick(["SIGTERM", "SIGINT", "SIGUSR1"], "SIGUSR1"))
def test_a_signal_while_a_binary_imports_ends_it_in_one_line(tmp_path, name):
    code = f"import os, signal, time\nos.kill(os.getpid(), signal.{name})\ntime.sleep(60)\n"
    (tmp_path / "jax.py").write_text(code)  # what is imported in its place
    done = subprocess.run(
        [sys.executable, "-m", "experiments.describe"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        # Shells start what is in the background with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (done.returncode, done.stderr) == (143, f"stopped by {name}\n")
