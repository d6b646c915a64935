"""The package's front, and what importing parts of it costs."""

import ast
import collections
import importlib.metadata
import pathlib
import re
import subprocess
import sys

import pytest

import lst_jax


def test_every_name_of_the_front_can_be_imported():
    for name in lst_jax._HOMES:
        assert getattr(lst_jax, name).__name__ == name
    assert set(lst_jax.__all__) == {*lst_jax._HOMES, "__version__"} == set(dir(lst_jax))


def test_type_checkers_see_the_names_that_are_there():
    tree = ast.parse(pathlib.Path(lst_jax.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.asname: node.module.removeprefix("lst_jax.")
        for node in block.body
        for alias in node.names
        if alias.asname == alias.name
    }
    assert seen == lst_jax._HOMES


def test_the_version_is_that_of_the_package():
    assert lst_jax.__version__ == importlib.metadata.version("lst-jax")
    assert (pathlib.Path(lst_jax.__file__).parent / "py.typed").exists()


@pytest.mark.multiprocess
def test_data_pipelines_do_not_load_jax_into_their_workers():
    code = (
        "import sys, data_pipelines.training.packing, data_pipelines.records.storage;"
        "import lst_jax.patching;"
        "sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_libraries_print_nothing():
    """They log; what is printed is a binary's. `torch_model.py` is one, in exported folders."""
    root = pathlib.Path(lst_jax.__file__).parent.parent
    for package in ("lst_jax", "data_pipelines"):
        for file in (root / package).rglob("*.py"):
            names = [x.id for x in ast.walk(ast.parse(file.read_text())) if isinstance(x, ast.Name)]
            assert "print" not in names or file.name == "torch_model.py", file


def test_no_two_modules_or_classes_have_one_name():
    """But the classes of `torch_model.py`, which stands alone, and of alternative backends."""
    root = pathlib.Path(lst_jax.__file__).parent.parent
    names = collections.Counter()
    for package in ("lst_jax", "data_pipelines", "experiments"):
        for file in (root / package).rglob("*.py"):
            names.update({file.stem} - {"__init__"})
            if file.name != "torch_model.py":
                text = file.read_text(encoding="utf-8")
                names.update(re.findall(r"^class ([A-Z]\w*)", text, re.MULTILINE))
    assert not [name for name, count in names.items() if count > 1], "in two places"


def test_imports_go_one_way():
    """lst_jax imports neither of the others; data pipelines what needs no JAX, and speech."""

    root = pathlib.Path(lst_jax.__file__).parent.parent
    shared = (
        "vocabulary",
        "unit_encoding",
        "patching",
        "batch",
        "local_paths",
        "settings",
        "strict_json",
        "differences",
        "extras",
        "files",
        "speech.interfaces",
    )
    speech = (
        "speech",
        "shapes",
        "sharding",
        "porting",
    )  # models of speech run where files are read
    allowed = {"lst_jax": {"lst_jax"}, "data_pipelines": {"data_pipelines", "lst_jax"}}
    for package, names in allowed.items():
        for file in (root / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                modules = [node.module] if isinstance(node, ast.ImportFrom) else []
                modules += [a.name for a in node.names] if isinstance(node, ast.Import) else []
                for module in modules:
                    top = module.split(".")[0]
                    ours = {"lst_jax", "data_pipelines", "experiments", "tests"}
                    assert top not in ours - names, f"{file} imports {module}"
                    if package == "data_pipelines" and top == "lst_jax":
                        name = module.removeprefix("lst_jax.")
                        is_speech = file.parent.name == "speech" and name.split(".")[0] in speech
                        assert name in shared or is_speech, file
