"""Runs binaries in forked children of one process that has imported what they import.

`python -m tests.experiments.forked` is that process: it reads requests, a JSON object a line, and
writes results. A child has bounds of memory and time, and its own standard streams. Nothing in the
parent starts JAX's backends, whose threads no child would have.
"""

import importlib
import json
import os
import pathlib
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback

ROOT = pathlib.Path(__file__).resolve().parents[2]
_MOST_BYTES = 2 * 2**30  # beyond what the parent has
_MOST_SECONDS = 30
# Of Python and libraries; flags of ours are those of modules of these packages.
_OURS = ("__main__", "experiments.")


class Binaries:
    """The parent of the children, seen from a test."""

    def __init__(self, **environment):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.experiments.forked"],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""} | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def run(self, module, *arguments, folder=".", seconds=_MOST_SECONDS, **environment):
        """The end of `python -m module arguments` in a folder; arguments may be bytes."""
        return self._ask(
            module=module,
            arguments=[os.fsdecode(argument) for argument in arguments],
            folder=str(folder),
            seconds=seconds,
            environment=environment,
        )

    def flags(self, module):
        """Name to type of the flags that a binary defines."""
        done = self._ask(module=module, arguments=None, folder=".", seconds=60, environment={})
        assert done["code"] == 0, done["stderr"]
        return json.loads(done["stdout"].splitlines()[-1])

    def close(self):
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, **request):
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def _serve():
    import jax  # noqa: F401  what binaries import, and what takes long

    importlib.import_module("experiments.reports.demo_report")
    for package in ("lst_jax", "data_pipelines", "experiments/common"):
        for file in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            if not name.endswith(("__init__", "gpu", "torch_model")):
                importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps(_run(json.loads(line))) + "\n")
        answers.flush()


def _run(request):
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.monotonic()
        child = os.fork()
        if not child:
            _be_child(request, out.fileno(), err.fileno())
        status, usage = _wait(child, request["seconds"])
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        return {
            "code": os.waitstatus_to_exitcode(status),
            "stdout": texts[0],
            "stderr": texts[1],
            "seconds": time.monotonic() - start,
            "peak_bytes": usage.ru_maxrss * 1024,
        }


def _wait(child, seconds):
    end = time.monotonic() + seconds
    while True:
        found, status, usage = os.wait4(child, os.WNOHANG)
        if found:
            return status, usage
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            end = float("inf")
        time.sleep(0.002)


def _be_child(request, out, err):
    code = 1
    try:
        os.setpgid(0, 0)
        os.chdir(request["folder"])
        os.environ.update(request["environment"])
        for number, file in ((0, os.open(os.devnull, os.O_RDONLY)), (1, out), (2, err)):
            os.dup2(file, number)
        sys.stdin, sys.stdout, sys.stderr = map(os.fdopen, (0, 1, 2), "rww")
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
        size = pages * os.sysconf("SC_PAGESIZE")
        resource.setrlimit(resource.RLIMIT_AS, (size + _MOST_BYTES,) * 2)
        if request["arguments"] is None:
            _print_flags(request["module"])
        else:
            sys.argv = [request["module"], *request["arguments"]]
            runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _print_flags(module):
    from absl import flags

    loaded = importlib.import_module(module)
    if hasattr(loaded, "__path__"):  # a binary that is a package
        module = f"{module}.__main__"
        loaded = importlib.import_module(module)
    if getattr(getattr(loaded, "define_flags", None), "__module__", None) == module:
        loaded.define_flags()
    table = flags.FLAGS.flags_by_module_dict().items()
    ours = [flag for name, defined in table if name.startswith(_OURS) for flag in defined]
    print(json.dumps({flag.name: flag.flag_type() for flag in ours}))


if __name__ == "__main__":
    _serve()
