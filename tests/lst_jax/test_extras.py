"""Packages of extras, where they are not installed."""

import sys

import pytest

from lst_jax.extras import check_extra, import_extra


def test_what_is_there_is_imported():
    check_extra("any", "json", "os")
    assert import_extra("any", "os.path") is sys.modules["os.path"]


def test_what_is_missing_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "json", None)
    expected = r"no json, no_such_package, expected .* demo: pip install 'lst-jax\[demo\]'"
    with pytest.raises(ImportError, match=expected):
        check_extra("demo", "os", "json", "no_such_package")
    with pytest.raises(ImportError, match=r"no json, expected the extra demo"):
        import_extra("demo", "json")
