"""The lane that breaks the code and counts how often tests notice."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
CI = ROOT / ".ci"

pytestmark = pytest.mark.skipif(not CI.is_dir(), reason="only a checkout has .ci")


@pytest.fixture(scope="module")
def mutation():
    spec = importlib.util.spec_from_file_location("mutation", CI / "mutation.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutation"] = module
    spec.loader.exec_module(module)
    return module


def test_what_changes_no_result_is_no_mutant(mutation):
    code = "@functools.lru_cache(maxsize=8)\ndef f(x: int | None) -> int:\n    return x + 1\n"
    same = "def f(x: int & None) -> int:\n    return x + 1\n"
    other = code.replace("x + 1", "x - 1")
    assert mutation.meaning(code) == mutation.meaning(same) != mutation.meaning(other)
    assert mutation.meaning("def f(:") == ""
    # The annotations of a class are read, by dataclasses.
    assert mutation.meaning("class A:\n    x: int") != mutation.meaning("class A:\n    x: float")


def test_a_mutant_is_known_by_its_lines_wherever_they_are(mutation):
    was, became = mutation.change("a\n  x = 1\n", "a\n  x = 2\n")
    assert (was, became) == ("x = 1", "x = 2")
    entry = {"module": "m.py", "was": was, "became": became, "verdict": "equivalent: so"}
    mutant = mutation.Mutant("m.py", "core/NumberReplacer", 3, 2)
    assert mutation.verdict_of(mutant, was, became, [entry]) == "equivalent: so"
    assert mutation.verdict_of(mutant, was, "x = 0", [entry]) is None
    elsewhere = mutation.Mutant("n.py", "core/NumberReplacer", 3, 2)
    assert mutation.verdict_of(elsewhere, was, became, [entry]) is None


def test_a_sample_stays_where_code_elsewhere_changes(mutation, monkeypatch, tmp_path):
    pytest.importorskip("cosmic_ray")
    monkeypatch.setattr(mutation, "ROOT", tmp_path)
    lines = [f"x{i} = {i} + {i} * y" for i in range(20)]

    def draw(lines, count, seed=0):
        code = "\n".join(lines)
        (tmp_path / "m.py").write_text(code)
        drawn = mutation.draw({"m.py": code}, count, seed)
        return [mutation.change(code, mutated) for _, mutated in drawn]

    sample = draw(lines, 99)
    assert draw(lines, 9) == sample[:9] != draw(lines, 9, seed=1)
    less = draw(["z = 1 < 2", *lines[:4], "", *lines[5:]], 999)
    assert [x for x in less if x in sample] == [x for x in sample if x[0] != lines[4]]


def test_equivalent_mutants_do_not_count(mutation):
    assert mutation.share_caught(57, 3) == 0.95
    assert mutation.share_caught(0, 0) == 1.0


def test_every_module_has_tests_and_those_that_mirror_it_come_first(mutation):
    for package in mutation.PACKAGES:
        for module in mutation._files(package):
            tests = mutation.tests_of(module)
            assert tests and len(set(tests)) == len(tests), module
            mirror = f"tests/{module.rpartition('/')[0]}/test_{pathlib.Path(module).name}"
            if (ROOT / mirror).exists():
                assert tests[len(mutation.EVERYWHERE)] == mirror


def test_every_verdict_is_of_a_line_that_is_there_and_says_why():
    known = json.loads((CI / "mutants.json").read_text(encoding="utf-8"))
    assert isinstance(known["seed"], int)
    for entry in known["survivors"]:
        lines = {line.strip() for line in (ROOT / entry["module"]).read_text().splitlines()}
        assert set(entry["was"].splitlines()) <= lines, f"{entry['was']} is gone: drop its verdict"
        kind, _, why = entry["verdict"].partition(": ")
        assert kind in ("equivalent", "missed") and len(why) > 10


_ENDINGS = {
    "return x + 1": "survived",
    "return x - 1": "caught",
    "while True: pass": "did not end",
}


@pytest.mark.slow
def test_tests_that_fail_or_do_not_end_notice_and_leave_the_tree_as_it_was(tmp_path):
    code = f"""
import pathlib, pytest, sys
sys.path.insert(0, {str(CI)!r})
import mutation
tree = pathlib.Path({str(tmp_path)!r})
mutation.tests_of = lambda module: ["test_small.py"]
mutant = mutation.Mutant("small.py", "", 0, 1)
for line in {list(_ENDINGS)!r}:
    code = f"def f(x):\\n    {{line}}\\n"
    mutation.HANGING_SECONDS = 3 if "True" in line else 60
    print(mutation.OUTCOMES[mutation.try_mutant(tree, mutant, code, tree / "log")], flush=True)
"""
    right = "def f(x):\n    return 1 + x\n"
    (tmp_path / "small.py").write_text(right)
    test = "import small\n\ndef test_f():\n    assert small.f(1) == 2\n"
    (tmp_path / "test_small.py").write_text(test)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")
    command = [sys.executable, "-B", "-c", code]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert process.stdout.splitlines() == list(_ENDINGS.values())
    assert (tmp_path / "small.py").read_text() == right
