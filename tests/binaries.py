"""Binaries, run as `python -m` runs them, without the seconds in which Python imports JAX.

One process a test worker has imported the libraries and made no device. A binary is a fork of it,
which imports the modules of this project itself. What tests of these binaries compare does not
depend on XLA's settings, so they are those of `conftest.py`, and so are variables that JAX reads
when it is imported.
"""

import logging
import multiprocessing
import os
import pathlib
import resource
import runpy
import subprocess
import sys
import tempfile
import threading

ROOT = pathlib.Path(__file__).resolve().parents[1]
LIBRARIES = (
    "pytest absl.app gin grain jax flax.linen optax orbax.checkpoint scipy jiwer tensorboardX"
)
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["pytest", *LIBRARIES.split()])  # pytest is `__main__` here


class Binary:
    """A run of a binary, as much of `subprocess.Popen` as tests need.

    Attributes:
      stdout: what it says there and on stderr, line by line.
      returncode: of the ended process; minus the signal that ended it.
    """

    def __init__(self, module, *arguments, cwd=ROOT, environment=None, devices=1):
        reader, writer = _SERVER.Pipe(duplex=False)
        with reader, writer:
            self._process = _start([module, *arguments], cwd, environment, devices, [writer])
            self.stdout = os.fdopen(os.dup(reader.fileno()), encoding="utf-8")

    @property
    def pid(self):
        return self._process.pid

    @property
    def returncode(self):
        return self._process.exitcode

    def send_signal(self, which):
        os.kill(self.pid, which)

    def wait(self, timeout):
        return _wait(self._process, timeout)

    def communicate(self, timeout):
        """The rest of what it says, when it has ended or is ended, and None for stderr."""
        timer = threading.Timer(timeout, self._process.kill)
        timer.start()
        with self.stdout:
            said = self.stdout.read()
        self.wait(timeout)
        timer.cancel()
        return said, None


def run_binary(
    module,
    *arguments,
    cwd=ROOT,
    environment=None,
    devices=1,
    timeout=300,
    largest_file=resource.RLIM_INFINITY,
):
    """Runs a binary to its end.

    Args:
      module: such as "experiments.train".
      arguments: what follows on the command line.
      cwd: the folder in which it runs.
      environment: variables that differ from those of this process.
      devices: the number of virtual CPU devices.
      timeout: seconds.
      largest_file: bytes beyond which no file grows, as on a disk that is full.

    Returns:
      The `subprocess.CompletedProcess` with text.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = [pathlib.Path(folder, name) for name in ("stdout", "stderr")]
        process = _start([module, *arguments], cwd, environment, devices, paths, largest_file)
        code = _wait(process, timeout)
        said = [path.read_text(encoding="utf-8") for path in paths]
    return subprocess.CompletedProcess(process.name, code, *said)


def _start(command, cwd, environment, devices, outputs, largest_file=resource.RLIM_INFINITY):
    flags = [x for x in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in x]
    flags.append(f"--xla_force_host_platform_device_count={devices}")
    variables = {**os.environ, "XLA_FLAGS": " ".join(flags), **(environment or {})}
    command = [str(argument) for argument in command]
    process = _SERVER.Process(
        target=_become,
        args=(command, str(cwd), variables, outputs, largest_file),
        name=" ".join(command),
    )
    process.start()
    return process


def _wait(process, timeout):
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise subprocess.TimeoutExpired(process.name, timeout)
    return process.exitcode


def _become(command, cwd, variables, outputs, largest_file):
    """Makes this process `python -m` a module."""
    multiprocessing.current_process().name = "MainProcess"  # nobody's worker
    for number, output in enumerate(outputs, start=1):
        if isinstance(output, pathlib.Path):
            output = output.open("wb")
        os.dup2(output.fileno(), number)
    if len(outputs) == 1:
        os.dup2(1, 2)
    # As of a console, line by line: a test may wait for one.
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    logging.getLogger().handlers.clear()  # of a stderr that is gone: Orbax logs when imported
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    sys.path[:0] = [cwd]
    sys.argv = command
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)
