"""Marks for tests that run for many cases, of which a few are enough to notice most mistakes."""

from collections.abc import Iterable

import pytest


def quick(cases: Iterable, *names: object) -> list:
    """Returns cases for `parametrize`, marked as slow but for those named."""

    def slow(case: object) -> object:
        return pytest.param(*(case if isinstance(case, tuple) else [case]), marks=pytest.mark.slow)

    return [case if case in names else slow(case) for case in cases]
