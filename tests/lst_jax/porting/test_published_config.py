"""What the published implementation would compute differently."""

import dataclasses

import pytest

from lst_jax.checkpoints.description import DataDescription, ModelDescription
from lst_jax.patching import PatchingConfig
from lst_jax.porting.published_config import published_differences
from lst_jax.unit_encoding import UnitEncoding
from lst_jax.vocabulary import Vocabulary
from tests.lst_jax.training.training_runs import TINY

VOCABULARY = Vocabulary(40, unit_count=502)
SAME = ModelDescription(
    dataclasses.replace(
        TINY, vocab_size=VOCABULARY.size, cross_residual="double", document_cross_masking=False
    ),
    VOCABULARY,
    tokenizer_fingerprint=None,
    data=DataDescription(
        patching=PatchingConfig("static", join_speech_mode=True), visibility="reference"
    ),
)


def change(**changes):
    """The description with other settings, wherever each of them stands."""
    description = SAME
    for name, value in changes.items():
        if name in ("patching", "visibility"):
            data = dataclasses.replace(description.data, **{name: value})
            description = dataclasses.replace(description, data=data)
        elif name in ("unit_count", "units"):
            vocabulary = dataclasses.replace(VOCABULARY, **{name: value})
            model = dataclasses.replace(description.model, vocab_size=vocabulary.size)
            description = dataclasses.replace(description, vocabulary=vocabulary, model=model)
        else:
            model = dataclasses.replace(description.model, **{name: value})
            description = dataclasses.replace(description, model=model)
    return description


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"visibility": None, "patching": None}, []),
        ({"patching": PatchingConfig("none")}, []),
        ({"cross_residual": "single"}, ["cross_residual is 'single' here, 'double' there"]),
        (
            {"document_cross_masking": True},
            ["document_cross_masking is True here, False there"],
        ),
        ({"visibility": "causal"}, ["visibility is 'causal' here, 'reference' there"]),
        (
            {"patching": PatchingConfig("static")},
            ["join_speech_mode is False here, True there: `<s>` is a separate patch"],
        ),
        ({"unit_count": 500}, ["500 units here, 502 there"]),
        (
            {"units": UnitEncoding(pieces=((3, 3),))},
            ["units are joined or deduplicated here, each is an id there"],
        ),
    ],
)
def test_every_other_convention_is_told(changes, expected):
    assert published_differences(change(**changes)) == expected


def test_all_that_differ_are_told():
    assert len(published_differences(change(cross_residual="single", unit_count=3))) == 2
