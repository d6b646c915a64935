#!/usr/bin/env python3
"""Breaks the code a little, many times, and counts how often the quick tests notice.

    python .ci/mutation.py                  # the sample of the seed in .ci/mutants.json
    python .ci/mutation.py --seed=7         # another sample
    python .ci/mutation.py --only=patching  # of the modules whose path holds the text

cosmic-ray knows the mutants. A place in the code is drawn first and one of its mutants then, so
that a product, which eleven operators may replace, weighs as much as a comparison. What differs
from the code only in annotations of functions, in a cache or in what type checkers are told is not
drawn, since that changes no result, nor is `is` in place of a comparison of numbers, which nobody
writes.

Each mutant runs in a child of a process that has imported the libraries before, against the tests
of its module: those that mirror it first, then those that import it, until one fails. A mutant is
caught if a test fails or does not end. It survives if all pass, or as many as fit into 90 s.

`.ci/mutants.json` has the seed and a verdict for survivors that have been looked at. "equivalent"
mutants do not count; 95 % of all others have to be caught.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import difflib
import functools
import hashlib
import importlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent
VERDICTS = ROOT / ".ci" / "mutants.json"
PACKAGES = ("lst_jax", "data_pipelines")
# Their tests need a newer JAX than there is beside PyTorch's; lane `accelerator` runs them.
TESTED_ELSEWHERE = ("lst_jax/model/attention/mosaic_gpu.py",)
SAMPLE = 60
CAUGHT_SHARE = 0.95
# Seconds of tests after which a mutant has survived, and of a test that does not end.
ENOUGH_SECONDS, HANGING_SECONDS = 90, 240
# What tests import, so that children of the process have it already; no device is touched.
LIBRARIES = (
    *("jax", "flax.linen", "optax", "orbax.checkpoint", "grain.python", "jax.experimental.pallas"),
    *("hypothesis", "numpy", "pydantic", "pytest", "safetensors", "scipy.signal", "sentencepiece"),
)
OUTCOMES = ("caught", "did not end", "survived")
# Tests that look at every module, by no import that can be seen.
EVERYWHERE = (
    "tests/lst_jax/test_defaults.py",
    "tests/lst_jax/test_shapes.py::test_shapes_that_arguments_share_are_checked",
)
IDLE_DECORATORS = (
    *("functools.cache", "functools.lru_cache", "functools.cached_property"),
    "typing.dataclass_transform",
)


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A change of one place.

    Attributes:
      module: path of the file, relative to the root.
      operator: cosmic-ray's name of the kind of change.
      occurrence: which place of the module that the operator could change.
      line: of the place, from 1.
    """

    module: str
    operator: str
    occurrence: int
    line: int


def find_mutants(module: pathlib.Path, name: str) -> dict[tuple[int, ...], list[Mutant]]:
    """Returns the mutants of a file by the place, (line, column) from and to, that they change."""
    import cosmic_ray.plugins
    from cosmic_ray.ast import ast_nodes, get_ast_from_path

    tree = get_ast_from_path(module)
    places: dict[tuple[int, ...], list[Mutant]] = {}
    for operator_name in sorted(cosmic_ray.plugins.operator_names()):
        operator_class = cosmic_ray.plugins.get_operator(operator_name)
        of_identity = "Comparison" in operator_name and "_Is" in operator_name
        if operator_class.arguments() or of_identity:
            continue
        operator = operator_class()
        positions = (p for node in ast_nodes(tree) for p in operator.mutation_positions(node))
        for occurrence, (start, end) in enumerate(positions):
            mutant = Mutant(name, operator_name, occurrence, start[0])
            places.setdefault((*start, *end), []).append(mutant)
    return places


def mutate(code: str, mutant: Mutant) -> str:
    """Returns the code with a mutant's change."""
    import cosmic_ray.plugins
    from cosmic_ray.mutating import mutate_code

    operator = cosmic_ray.plugins.get_operator(mutant.operator)()
    return mutate_code(code, operator, mutant.occurrence)


def meaning(code: str) -> str:
    """Returns the syntax tree as text, without annotations and idle decorators of functions.

    "" if the code has no syntax tree.
    """
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return ""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
            node.decorator_list = [x for x in node.decorator_list if not _is_idle(x)]
        elif isinstance(node, ast.arg):
            node.annotation = None
    return ast.dump(tree)


def _is_idle(decorator: ast.expr) -> bool:
    function = decorator.func if isinstance(decorator, ast.Call) else decorator
    return ast.unparse(function) in IDLE_DECORATORS


def draw(modules: Mapping[str, str], count: int, seed: int) -> list[tuple[Mutant, str]]:
    """Draws mutants of different places, with the code of each.

    What is drawn at a place depends on its line alone, so that a sample, and with it the verdicts,
    stays as it is where code elsewhere changes.

    Args:
      modules: code by path, relative to the root.
      count: of mutants at most.
      seed: of the draw.
    """
    places: dict[str, list[Mutant]] = {}
    for name, code in modules.items():
        lines = code.splitlines()
        for (line, column, *_, end), mutants in sorted(find_mutants(ROOT / name, name).items()):
            text = lines[line - 1].lstrip()
            column -= len(lines[line - 1]) - len(text)
            key = f"{seed} {name} {column} {end - column} {text}"
            while key in places:
                key += "again"
            places[key] = mutants
    drawn: list[tuple[Mutant, str]] = []
    for key in sorted(places, key=lambda key: hashlib.sha256(key.encode()).digest()):
        if len(drawn) == count:
            break
        mutant = random.Random(key).choice(places[key])
        code = mutate(modules[mutant.module], mutant)
        if meaning(code) not in ("", meaning(modules[mutant.module])):
            drawn.append((mutant, code))
    return drawn


def tests_of(module: str) -> list[str]:
    """Returns the files of tests that reach a module.

    Those of every module come first, then those that mirror it, then those that import it, then
    those that import what imports it, and so on; of each kind those beside it first.
    """
    path = pathlib.PurePath(module)
    mirror = pathlib.PurePath("tests", path.parent)
    importers = _importers()
    distance, ring = {}, {module}
    while ring:
        distance |= dict.fromkeys(ring, 1 + max(distance.values(), default=-1))
        ring = {x for name in ring for x in importers.get(name, ())} - distance.keys()

    def rank(test: str) -> tuple[bool, float, bool, str]:
        named = pathlib.PurePath(test).stem.startswith(f"test_{path.stem}")
        beside = mirror in pathlib.PurePath(test).parents
        return not (named and beside), distance.get(test, len(distance)), not beside, test

    tests = [x for x in _files("tests") if pathlib.PurePath(x).name.startswith("test_")]
    reached = (x for x in tests if x in distance or mirror in pathlib.PurePath(x).parents)
    return [*EVERYWHERE, *sorted(set(reached) - set(EVERYWHERE), key=rank)]


def _files(folder: str) -> list[str]:
    """Returns Python files of a package, or the tests of the packages, relative to the root."""
    folders = [f"tests/{name}" for name in PACKAGES] if folder == "tests" else [folder]
    paths = (path for name in folders for path in (ROOT / name).rglob("*.py"))
    return sorted(str(path.relative_to(ROOT)) for path in paths)


@functools.cache
def _importers() -> dict[str, set[str]]:
    """Returns which files import each file."""
    importers: dict[str, set[str]] = {}
    for name in (*(x for package in PACKAGES for x in _files(package)), *_files("tests")):
        tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
        dotted: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                dotted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                dotted |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        for target in dotted:
            base = target.replace(".", "/")
            for file in (f"{base}.py", f"{base}/__init__.py"):
                importers.setdefault(file, set()).add(name)
    return importers


class _Enough:
    """A plugin of pytest that ends a session after some seconds."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def pytest_runtest_logfinish(self) -> None:
        if time.monotonic() > self.end:
            os._exit(0)


def run_tests(tree: pathlib.Path, tests: Sequence[str], log: pathlib.Path) -> int:
    """Runs tests of a tree in this process, a child, and ends it with pytest's exit status."""
    os.setsid()
    os.chdir(tree)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.path.insert(0, str(tree))
    os.environ["PYTHONPATH"] = str(tree)
    import pytest

    options = ["-n0", "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", "--tb=line"]
    status = pytest.main([*options, *tests], plugins=[_Enough(ENOUGH_SECONDS)])
    os._exit(int(status))


def try_mutant(tree: pathlib.Path, mutant: Mutant, code: str, log: pathlib.Path) -> int:
    """Runs the quick tests of a mutant's module in a child; returns the index of an outcome."""
    path = tree / mutant.module
    right = path.read_text(encoding="utf-8")
    path.write_text(code, encoding="utf-8")
    try:
        child = os.fork()
        if not child:
            try:
                run_tests(tree, tests_of(mutant.module), log)
            finally:
                os._exit(70)
        status = _wait(child)
    finally:
        path.write_text(right, encoding="utf-8")
    if status is None:
        return OUTCOMES.index("did not end")
    # 5: pytest found no test.
    return OUTCOMES.index("survived" if status in (0, 5) else "caught")


def _wait(child: int) -> int | None:
    """Returns the exit status of a child; None if it had to be ended."""
    end = time.monotonic() + HANGING_SECONDS
    pid = status = 0
    while not pid and time.monotonic() < end:
        time.sleep(0.05)
        pid, status = os.waitpid(child, os.WNOHANG)
    # What tests have started does not outlive them.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if not pid:
        os.waitpid(child, 0)
        return None
    return os.waitstatus_to_exitcode(status)


def change(right: str, wrong: str) -> tuple[str, str]:
    """Returns the lines that differ, without their indentation: as they are, and as they became."""
    lines = list(difflib.ndiff(right.splitlines(), wrong.splitlines()))
    was, became = ([x[2:].strip() for x in lines if x.startswith(sign)] for sign in ("- ", "+ "))
    return "\n".join(was), "\n".join(became)


def verdict_of(mutant: Mutant, was: str, became: str, verdicts: Sequence[Mapping]) -> str | None:
    """Returns the verdict of a mutant, which is known by its lines and not by their numbers."""
    for entry in verdicts:
        if (entry["module"], entry["was"], entry["became"]) == (mutant.module, was, became):
            return entry["verdict"]
    return None


def share_caught(caught: int, missed: int) -> float:
    """Returns the share of mutants that are caught, of those that are not equivalent."""
    return caught / (caught + missed) if caught + missed else 1.0


def copy_tree(target: pathlib.Path) -> None:
    """Copies what Git tracks or would track, as it is now."""
    command = [
        "git",
        "-C",
        str(ROOT),
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def judge(
    drawn: Sequence[tuple[Mutant, str]], work: pathlib.Path, workers: int, minutes: float
) -> Iterator[tuple[int, str]]:
    """Runs the tests of each mutant in one of several copies of the tree, while there is time.

    Yields:
      The number of a mutant and its outcome, in the order of their ends.
    """
    for name in LIBRARIES:
        importlib.import_module(name)
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    free = [work / f"tree{i}" for i in range(workers)]
    for tree in free:
        copy_tree(tree)
    waiting, running = list(reversed(range(len(drawn)))), {}
    end = time.monotonic() + 60 * minutes
    while waiting or running:
        if time.monotonic() > end:
            waiting.clear()
        while waiting and free:
            number, tree = waiting.pop(), free.pop()
            mutant, code = drawn[number]
            pid = os.fork()
            if not pid:
                status = 70
                try:
                    status = try_mutant(tree, mutant, code, work / f"{number}.log")
                finally:
                    os._exit(status)
            running[pid] = number, tree
        pid, status = os.wait()
        number, tree = running.pop(pid)
        free.append(tree)
        outcome = os.waitstatus_to_exitcode(status)
        if outcome not in range(len(OUTCOMES)):
            raise RuntimeError(f"mutant {drawn[number][0]} ended with exit status {outcome}")
        yield number, OUTCOMES[outcome]


def main() -> int:
    """Draws, runs, prints; the exit status says whether enough mutants were caught."""
    known = json.loads(VERDICTS.read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=known["seed"])
    parser.add_argument("--count", type=int, default=SAMPLE)
    parser.add_argument("--only", default="", help="text in the path of the module")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=9, help="after which no mutant is begun")
    arguments = parser.parse_args()
    files = {name for package in PACKAGES for name in _files(package) if arguments.only in name}
    names = sorted(files - set(TESTED_ELSEWHERE))
    modules = {name: (ROOT / name).read_text(encoding="utf-8") for name in names}
    drawn = draw(modules, arguments.count, arguments.seed)
    print(f"seed {arguments.seed}: {len(drawn)} mutants of {len(modules)} modules", flush=True)
    # What fails without a mutant would seem to catch all of them.
    subprocess.run([sys.executable, "-m", "pytest", "-q", "-n0", *EVERYWHERE], cwd=ROOT, check=True)
    begin, caught, missed, equivalent = time.monotonic(), 0, 0, 0
    with tempfile.TemporaryDirectory() as work:
        for number, outcome in judge(
            drawn, pathlib.Path(work), arguments.workers, arguments.minutes
        ):
            mutant, code = drawn[number]
            minutes = (time.monotonic() - begin) / 60
            print(f"{minutes:5.1f} min  {mutant.module}:{mutant.line} {mutant.operator}: ", end="")
            if outcome != "survived":
                caught += 1
                print(outcome, flush=True)
                continue
            was, became = change(modules[mutant.module], code)
            verdict = verdict_of(mutant, was, became, known["survivors"])
            is_equivalent = verdict is not None and verdict.startswith("equivalent")
            equivalent, missed = equivalent + is_equivalent, missed + (not is_equivalent)
            entry = {"module": mutant.module, "was": was, "became": became}
            print(f"SURVIVED\n{json.dumps(entry | {'verdict': verdict}, indent=1)}", flush=True)
    share = share_caught(caught, missed)
    if caught + missed + equivalent < len(drawn):
        print(f"time was up: {len(drawn) - caught - missed - equivalent} mutants were not tried")
    print(f"lane-version: seed=={arguments.seed}")
    print(
        f"mutants: {caught} caught, {missed} survived, {equivalent} equivalent; {share:.1%} caught"
    )
    print(f"{caught} passed")
    return 0 if share >= CAUGHT_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
