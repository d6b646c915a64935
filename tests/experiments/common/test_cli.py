"""Tests of what a binary takes for a user's mistake."""

from __future__ import annotations

import tokenize

import gin
import pytest

from experiments.common import cli

# All that gin and missing files were seen to raise.
KINDS = (
    ValueError,
    TypeError,
    RuntimeError,
    OSError,
    ImportError,
    SyntaxError,
    tokenize.TokenError,
)


@gin.configurable(module="cli_test")
def needs(value=gin.REQUIRED):
    return value


def raised(function, *arguments):
    with pytest.raises(KINDS) as error:
        function(*arguments)
    return error.value


@pytest.mark.parametrize(
    "binding",
    [
        "cli_test.nothing.x = 1",
        "cli_test.needs.x = 1",
        "cli_test.needs.value = [",
        "x y",
        "cli_test.needs.value = @nothing",
        "import nothing.at_all",
        "include 'nowhere.gin'",
    ],
)
def test_gin_files_that_are_wrong_are_the_users_mistake(binding):
    error = raised(gin.parse_config, binding)
    assert cli.is_user_error(error)
    assert "\n" not in cli.describe_error(error)


def test_unset_requirements_are_the_users_mistake():
    assert cli.is_user_error(raised(needs))
    with gin.unlock_config():
        gin.parse_config("cli_test.needs.value = %cli_test_macro")
    assert cli.is_user_error(raised(needs))
    gin.clear_config()


@pytest.mark.parametrize("error", [TypeError("f() takes 1"), RuntimeError("no"), KeyError("k")])
def test_errors_of_the_program_are_not(error):
    assert not cli.is_user_error(error)


def test_missing_files_are_told_by_name(tmp_path):
    error = raised((tmp_path / "nowhere").read_bytes)
    assert cli.describe_error(error) == f"{tmp_path / 'nowhere'}: No such file or directory"
