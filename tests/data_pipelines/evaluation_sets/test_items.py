"""Drafts become items: rejected with a reason, and resumed bitwise."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.evaluation_sets.items import (
    UnencodedItem,
    choose_voice,
    load_recordings,
    speak_texts,
    write_set,
)
from data_pipelines.speech.audio import write_wav
from lst_jax.speech.interfaces import Rejection


class Encoder:
    """As many units as a text has letters."""

    sample_rate, frame_rate, unit_count, fingerprint = 16_000, 25.0, 9, "ab" * 32

    def encode(self, waveforms):
        return [
            np.full(len(x) // 640, len(x) // 640 % 9, np.int32)
            if len(x) >= 640
            else Rejection("too-short", "no frame")
            for x in waveforms
        ]


class Voice:
    """Says a letter in a frame; some texts it does not say."""

    sample_rate = 16_000

    def synthesize(self, texts):
        if "break" in texts:
            raise RuntimeError("the voice\nbroke")
        loud = [0.0 if text == "hush" else 0.5 for text in texts]
        return [np.full(640 * len(t), x, np.float32) for t, x in zip(texts, loud, strict=True)]


def draft(name, *texts):
    return UnencodedItem(name, texts, lambda units: {"id": name, "units": units})


def write(output, drafts, load=None, **options):
    options = {"items_per_part": 2, "max_reject_share": 0.5, **options}
    load = load or speak_texts([Voice()], 0, Encoder())
    settings = {"items_per_part": options["items_per_part"]}
    return write_set(
        output, drafts, settings, load, Encoder(), **{"progress": lambda *_: None} | options
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


DRAFTS = [draft(f"é{i}", "a" * (i + 1), "b") for i in range(6)] + [draft("bad", "ok", "hush")]


def test_items_have_their_units_and_rejects_their_reasons(tmp_path):
    drafts = [*DRAFTS, draft("broken", "break"), draft("dots", "…")]
    assert write(tmp_path, drafts) == (6, 3)
    lines = [json.loads(x) for x in (tmp_path / "items.jsonl").read_text().splitlines()]
    assert lines[2] == {
        **{"id": "é2", "units": [[3, 3, 3], [1]], "encoder_fingerprint": Encoder.fingerprint}
    }
    rejects = [json.loads(x) for x in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert rejects == [
        {
            "id": "bad",
            "kind": "silent",
            "reason": "'hush': its loudest sample is 0, expected 0.0001",
        },
        {"id": "broken", "kind": "synthesizer", "reason": "the voice broke"},
        {"id": "dots", "kind": "no-words", "reason": "a text is '…', expected words"},
    ]
    assert sorted(contents(tmp_path)) == ["items.jsonl", "rejects.jsonl", "settings.json"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sets")


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 6), st.integers(1, 8))
def test_what_was_interrupted_ends_with_the_same_bytes(folder, until, items_per_part):
    whole = folder / f"whole-{until}-{items_per_part}"
    killed = folder / f"killed-{until}-{items_per_part}"
    speak, spoken = speak_texts([Voice()], 0, Encoder()), []

    def load(draft):
        if len(spoken) == until:
            raise KeyboardInterrupt
        spoken.append(draft.id)
        return speak(draft)

    write(whole, DRAFTS, items_per_part=items_per_part)
    if not (killed / "items.jsonl").exists():
        with pytest.raises(KeyboardInterrupt):
            write(killed, DRAFTS, load, items_per_part=items_per_part)
        assert not (killed / "items.jsonl").exists()
    kept = len(list((killed / "parts").glob("0*.json"))) * items_per_part
    again = []

    def count(draft):
        again.append(draft.id)
        return speak(draft)

    assert write(killed, DRAFTS, count, items_per_part=items_per_part) == (6, 1)
    assert contents(killed) == contents(whole)
    assert len(again) <= len(DRAFTS) - kept
    # What is whole is left as it is, and what is of other settings is refused.
    assert write(killed, DRAFTS, None, items_per_part=items_per_part) == (6, 1)
    with pytest.raises(ValueError, match="choose another --output"):
        write(killed, DRAFTS, items_per_part=items_per_part + 1)


def test_too_many_rejects_end_it_with_the_first_of_them(tmp_path):
    with pytest.raises(ValueError, match=r"1 of 7 items .*=0.1; the first, 'bad': silent, 'hush'"):
        write(tmp_path, DRAFTS, max_reject_share=0.1)
    assert [path.name for path in tmp_path.iterdir()] == ["parts"]
    kept = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert kept == ["000000000.json", "000000002.json", "000000004.json", "settings.json"]
    said = []
    share = {"max_reject_share": 1 / 7, "progress": lambda *x: said.append(x)}
    assert write(tmp_path, DRAFTS, **share) == (6, 1)
    assert said == [(2, 7), (4, 7), (6, 7), (7, 7)]


def test_what_a_synthesizer_gives_is_one_sound_a_text_at_the_encoder_s_rate(tmp_path):
    class Slow(Voice):
        sample_rate = 8000

    class More(Voice):
        def synthesize(self, texts):
            return [*super().synthesize(texts), *super().synthesize(["more"])]

    sounds = speak_texts([Slow()], 0, Encoder())(draft("a", "one", "two"))
    assert [len(x) for x in sounds] == [3 * 1280] * 2
    assert speak_texts([More()], 0, Encoder())(draft("a", "one", "two")) == Rejection(
        "synthesizer", "it returned 3 waveforms, expected 2"
    )


def test_where_every_part_has_rejects_nothing_is_left(tmp_path):
    with pytest.raises(ValueError, match="2 of 3 items were rejected"):
        write(tmp_path / "out", [draft("a", "hush"), draft("b", "break"), draft("c", "ok")])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["parts/mine.txt", "items.jsonl", "a"])
def test_a_folder_of_something_else_is_left_as_it_is(tmp_path, name):
    (tmp_path / "parts").mkdir()
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        write(tmp_path, DRAFTS)
    assert (tmp_path / name).read_text() == "mine"


def test_a_voice_is_of_the_item_and_the_seed_alone(tmp_path):
    names = [str(i) for i in range(200)]
    assert {choose_voice(name, 1, 3) for name in names} == {0}
    chosen = [choose_voice(name, 3, 3) for name in names]
    assert min(chosen.count(voice) for voice in range(3)) > 40
    assert chosen != [choose_voice(name, 3, 4) for name in names]

    class Deep(Voice):
        def synthesize(self, texts):
            return [(x / 2).astype(np.float32) for x in super().synthesize(texts)]

    load = speak_texts([Voice(), Deep()], 3, Encoder())
    for name in names[:20]:
        sounds = load(draft(name, "one", "two", "three"))
        assert isinstance(sounds, list)
        assert {x[0] for x in sounds} == {0.5 / (1 + choose_voice(name, 2, 3))}


def test_recordings_that_cannot_be_read_or_encoded_are_rejected(tmp_path):
    for name, samples in {"good": 6400, "short": 100}.items():
        write_wav(tmp_path / f"{name}.wav", np.full(samples, 0.1, np.float32), 16_000)
    (tmp_path / "broken.wav").write_bytes(b"RIFF nothing")
    sources = [tmp_path / f"{name}.wav" for name in ("good", "short", "broken", "none")]
    drafts = [
        UnencodedItem(x.stem, (sources[0], x), lambda units: {"units": units}) for x in sources
    ]
    load = load_recordings(Encoder())
    assert write(tmp_path / "out", drafts, load, max_reject_share=1.0) == (1, 3)
    lines = (tmp_path / "out/rejects.jsonl").read_text().splitlines()
    kinds = {x["id"]: x["kind"] for x in map(json.loads, lines)}
    assert kinds == {"short": "too-short", "broken": "unreadable", "none": "unreadable"}
