"""What differs is found wherever it is, and nothing else is."""

import copy
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lst_jax.differences import ABSENT, Difference, differences
from lst_jax.patching import PatchingConfig

SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
NESTED = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
    max_leaves=12,
)


@given(NESTED)
def test_a_value_does_not_differ_from_itself(value):
    assert list(differences(value, copy.deepcopy(value), "x")) == []


@given(NESTED, NESTED)
def test_there_are_differences_exactly_where_values_are_not_equal(there, here):
    found = list(differences(there, here))
    assert bool(found) == (there != here)
    assert all(old != new for _, old, new in found)


def test_places_are_named():
    there = {"model": PatchingConfig("static", 4), "sources": [{"path": "a"}, {"path": "b"}]}
    changed = dataclasses.replace(there["model"], patch_size=5)
    here = {"model": changed, "sources": [{"path": "a"}, {"path": "c"}, {"path": "d"}], "seed": 1}
    assert list(differences(there, here)) == [
        Difference("model.patch_size", 4, 5),
        Difference("sources[1].path", "b", "c"),
        Difference("sources[2]", ABSENT, {"path": "d"}),
        Difference("seed", ABSENT, 1),
    ]


@pytest.mark.parametrize("other", [{"patch_size": 4}, None, 4])
def test_values_of_different_kinds_differ_as_a_whole(other):
    config = PatchingConfig("static", 4)
    assert list(differences(config, other, "patching")) == [Difference("patching", config, other)]
