"""The README and the pages of docs: what CI and readers rely on."""

import ast
import importlib.util
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FLAGS = (ROOT / "tests" / "testdata" / "flags.txt").read_text(encoding="utf-8")
SETTINGS = {
    "NAME",
    *(
        name
        for file in (ROOT / "experiments" / "configs").rglob("*.gin")
        for name in re.findall(r"^([A-Z]\w*) *=", file.read_text(encoding="utf-8"), re.MULTILINE)
    ),
}


def source_of(module):
    """The file that `python -m` a module of the experiments runs."""
    path = ROOT / "experiments" / module.replace(".", "/")
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = (
    "pip install -e '.[demo]' && python -m experiments.demo --workdir=runs/demo",
    "pip install -e '.[test]' && pytest",
)


def test_it_is_short():
    assert len(README.splitlines()) <= 150


def test_it_has_the_two_commands_word_for_word():
    for command in COMMANDS:
        assert command in README.splitlines()


def test_its_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", README)
    for link in links:
        assert link.startswith("https://") or (ROOT / link).exists(), link


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_binaries_gin_files_and_modules_exist(path):
    page = path.read_text(encoding="utf-8")
    for module in re.findall(r"python -m experiments\.([\w.]+)", page):
        assert source_of(module).exists(), module
    for file in re.findall(r"--gin_file=(experiments/\S+)", page):
        assert (ROOT / file).exists(), file
    for file in re.findall(r"`((?:lst_jax|data_pipelines|experiments|tests)/[\w/.]+)`", page):
        assert (ROOT / file).exists(), file
    for module in re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE):
        assert importlib.util.find_spec(module), module


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_flags_and_settings_exist(path):
    page = path.read_text(encoding="utf-8").replace("\\\n", " ")
    for module, arguments in re.findall(r"python -m experiments\.([\w.]+)([^`&|#\n]*)", page):
        source = source_of(module).read_text()
        for flag in re.findall(r" --([a-z]\w*)(?=[= \n]|$)", arguments):
            shared = flag.startswith("gin_") and "gin_config.define_flags" in source
            known = shared or f"{module} --{flag} " in FLAGS or f'"{flag}"' in source
            assert known, f"{module} has no --{flag}"
    names = {
        *re.findall(r"--gin\.([A-Z]\w+)\b(?!\.)", page),
        *re.findall(r"`([A-Z]+_[A-Z_]+)`", page),
    }
    names = {name for name in names if not name.startswith(("JAX_", "LIBTPU_"))}
    assert names <= SETTINGS, names - SETTINGS


def test_its_python_names_what_the_library_has():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)
        owner = getattr(node, "value", None) if isinstance(node, ast.Attribute) else None
        if isinstance(owner, ast.Name) and owner.id == "lst_jax":
            assert hasattr(importlib.import_module("lst_jax"), node.attr), node.attr
