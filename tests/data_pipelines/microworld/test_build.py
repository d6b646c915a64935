from __future__ import annotations

import dataclasses
import importlib.util
import json
import pathlib
import wave

import numpy as np
import pytest

from data_pipelines.microworld import build
from data_pipelines.microworld.build import (
    TEST_SETS,
    MicroworldConfig,
    build_corpus,
    speech_story,
    story_text,
    story_voice,
    text_story,
)
from data_pipelines.microworld.speech import synthesize
from data_pipelines.records.storage import SILENCE, open_records
from data_pipelines.speech.units import MelKMeansEncoder, load_built_in
from lst_jax.evaluation.spoken_texts import read_spoken_texts
from lst_jax.vocabulary import TextTokenizer
from tests.marks import quick

_CONFIG = MicroworldConfig(
    text_stories=60,
    speech_stories=6,
    test_items=2,
    fit_stories=4,
    unit_clusters=50,
    tokenizer_size=360,
    example_count=1,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> build.MicroworldPaths:
    return build_corpus(_CONFIG, tmp_path_factory.mktemp("corpus"), processes=1)


def _contents(root: pathlib.Path) -> dict[str, bytes]:
    """All files but those that hold measured times."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in ("audio.json", "stats.json")
    }


def test_spoken_and_written_training_stories_are_never_the_same_draw():
    assert {text_story(0, i).story_id for i in range(50)}.isdisjoint(
        speech_story(0, i).story_id for i in range(50)
    )


def test_speech_records_hold_the_words_of_their_stories(corpus):
    tokenizer = TextTokenizer(corpus.tokenizer)
    source = open_records(
        corpus.speech_records, tokenizer.vocabulary(), fingerprint=tokenizer.fingerprint
    )
    assert len(source) == _CONFIG.speech_stories
    for i in range(len(source)):
        utterance, text = source[i], story_text(speech_story(0, i))
        assert [word for word in utterance.words if word != SILENCE] == text.split()
        assert tokenizer.decode(utterance.pieces).strip() == text
        assert utterance.unit_counts.sum() == len(utterance.units)
        assert utterance.words.count(SILENCE) >= len(speech_story(0, i).sentences) - 1


def test_speech_records_hold_the_synthesizers_times(corpus):
    source = open_records(corpus.speech_records)
    encoder = MelKMeansEncoder.load(corpus.encoder)
    assert source.metadata.encoder_fingerprint == encoder.fingerprint
    for i in range(len(source)):
        utterance, story = source[i], speech_story(0, i)
        voice = story_voice(0, story.story_id)
        spoken = synthesize(story_text(story), voice)
        heard = ~utterance.is_silence
        of_words = [(1000 * t.start_s, 1000 * t.end_s) for t in spoken.words]
        np.testing.assert_allclose(utterance.word_times_ms[heard], of_words, atol=0.5)
        # Units are frames of 40 ms, so a word's end in units and in time agree to a frame or so.
        ends = np.cumsum(utterance.unit_counts) * 40
        assert np.abs(ends - utterance.word_times_ms[:, 1])[heard].max() <= 60
        assert utterance.word_times_ms[-1, 1] <= 1000 * spoken.duration_s + 1
        _check_pieces(utterance, spoken)
        assert utterance.transcript == story_text(story)
        assert utterance.speaker == voice.espeak_name
        assert (utterance.license, utterance.source) == ("Apache-2.0", "lst-jax microworld")


def _check_pieces(utterance, spoken):
    """Holds pieces to be cut at phonemes inside their words, and to have the words' units."""
    phonemes = {round(1000 * s) for starts in spoken.phoneme_starts_s for s in starts}
    ends = {round(1000 * timing.end_s) for timing in spoken.words}
    assert set(utterance.piece_times_ms[:, 0].tolist()) <= phonemes | ends
    pieces = iter(range(len(utterance.pieces)))
    for word, count in enumerate(utterance.piece_counts.tolist()):
        of_word = [next(pieces) for _ in range(count)]
        if of_word:
            start, end = utterance.word_times_ms[word]
            assert utterance.piece_times_ms[of_word[0], 0] == start
            assert utterance.piece_times_ms[of_word[-1], 1] == end
            assert utterance.piece_unit_counts[of_word].sum() == utterance.unit_counts[word]


def test_text_records_say_where_they_are_from(corpus):
    document = open_records(corpus.text_records)[3]
    assert (document.license, document.source) == ("Apache-2.0", "lst-jax microworld")


def test_spoken_texts_are_the_test_sets_stories_with_their_right_endings(corpus):
    spoken = {item.example_id: item for item in read_spoken_texts([corpus.spoken_texts], 502)}
    assert len(spoken) == len(TEST_SETS) * _CONFIG.test_items
    for kind in TEST_SETS:
        for line in corpus.test_set(kind).read_text().splitlines():
            item = json.loads(line)
            right = item["endings"][item["label"]]
            assert spoken[item["id"]].text == f"{item['prompt']['text']} {right['text']}"
            assert spoken[item["id"]].units.tolist() == item["prompt"]["units"] + right["units"]


def test_units_of_a_record_are_those_of_its_audio(corpus):
    encoder = MelKMeansEncoder.load(corpus.encoder)
    story = speech_story(0, 1)
    spoken = synthesize(story_text(story), story_voice(0, story.story_id))
    utterance = open_records(corpus.speech_records)[1]
    np.testing.assert_array_equal(encoder.encode([spoken.samples])[0], utterance.units)


def test_text_records_hold_the_text_stories(corpus):
    tokenizer = TextTokenizer(corpus.tokenizer)
    source = open_records(corpus.text_records)
    assert len(source) == _CONFIG.text_stories
    assert tokenizer.decode(source[7].pieces).strip() == story_text(text_story(0, 7))


@pytest.mark.parametrize("kind", TEST_SETS)
def test_prompts_and_endings_are_spoken_apart_by_one_voice(corpus, kind):
    encoder = MelKMeansEncoder.load(corpus.encoder)
    items = [json.loads(line) for line in corpus.test_set(kind).read_text().splitlines()]
    assert len(items) == _CONFIG.test_items
    for item in items:
        assert item["set"] == kind
        assert 0 <= item["label"] < len(item["endings"]) == (4 if kind == "HellaSwag" else 2)
        for passage in (item["prompt"], *item["endings"]):
            spoken = synthesize(passage["text"], story_voice(0, item["id"]))
            units = encoder.encode([spoken.samples])[0]
            assert passage["units"] == units.tolist()


def test_examples_describe_their_wav_files(corpus):
    (example,) = json.loads((corpus.examples / "examples.json").read_text())
    with wave.open(str(corpus.examples / example["wav"])) as file:
        seconds = file.getnframes() / file.getframerate()
    assert len(example["units"]) == sum(example["unit_counts"]) == np.ceil(seconds * 25)
    assert [timing["word"] for timing in example["timings"]] == example["text"].split()


def test_stats_add_up(corpus):
    stats = json.loads(corpus.stats.read_text())
    assert stats["units"] == pytest.approx(stats["speech_hours"] * 3600 * 25, rel=0.02)
    assert 1 <= stats["unit_perplexity"] <= stats["units_used"] <= _CONFIG.unit_clusters
    assert stats["speech_stories"] == 6 and stats["text_stories"] == 60


@pytest.mark.slow
def test_a_build_is_the_same_with_any_number_of_processes(corpus, tmp_path):
    again = build_corpus(_CONFIG, tmp_path, processes=2, progress=lambda line: None)
    assert _contents(again.root) == _contents(corpus.root)


def test_a_build_resumes_with_the_stage_it_lacks(corpus, tmp_path, monkeypatch):
    config = dataclasses.replace(_CONFIG, text_stories=50, speech_stories=1, fit_stories=1)

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build, "_write_examples", fail)
        with pytest.raises(KeyboardInterrupt):
            build_corpus(config, tmp_path, processes=1, progress=lambda line: None)
    assert not (tmp_path / "examples").exists()
    finished = tmp_path / "speech_records" / "audio.json"
    before = finished.stat().st_mtime_ns
    lines: list[str] = []
    paths = build_corpus(config, tmp_path, processes=1, progress=lines.append)
    assert finished.stat().st_mtime_ns == before
    assert [line for line in lines if "there already" in line] == [
        f"{name}: there already"
        for name in ("text", "tokenizer", "text_records", "encoder", "speech_records", "test_sets")
    ]
    assert paths.stats.is_file() and not list(tmp_path.glob("*.incomplete"))


def test_the_default_corpus_has_the_built_in_units(tmp_path):
    """Wherever it is built: a fit is not the same to the bit on every processor."""
    for config in (MicroworldConfig(), MicroworldConfig(speech_stories=9000, test_items=1)):
        build._fit_encoder(config, 1, tmp_path)
        made = MelKMeansEncoder.load(tmp_path / "encoder.npz")
        assert made.fingerprint == load_built_in().fingerprint
    for change in ({"seed": 1}, {"fit_stories": 299}, {"unit_clusters": 500}):
        assert not build._has_built_in_units(dataclasses.replace(MicroworldConfig(), **change))


def test_other_settings_are_built_anew(tmp_path):
    config = dataclasses.replace(
        _CONFIG, text_stories=50, speech_stories=1, fit_stories=1, test_items=1
    )
    quiet = {"processes": 1, "progress": lambda line: None}
    first = _contents(build_corpus(config, tmp_path, **quiet).root)
    second = _contents(build_corpus(dataclasses.replace(config, seed=1), tmp_path, **quiet).root)
    assert first.keys() == second.keys()
    assert first["text/stories.jsonl"] != second["text/stories.jsonl"]


STAGE_MODULES = [
    *("data_pipelines.microworld.build", "data_pipelines.microworld.speaking"),
    *("data_pipelines.microworld.stories", "data_pipelines.microworld.lexicon"),
    *("data_pipelines.tokenizers", "data_pipelines.records.payloads"),
    *("data_pipelines.records.writing", "data_pipelines.records.metadata"),
    *("data_pipelines.records.types", "data_pipelines.speech.units"),
    *("data_pipelines.speech.alignment", "lst_jax.vocabulary", "lst_jax.settings"),
]


@pytest.mark.parametrize(
    "module", quick(STAGE_MODULES, "data_pipelines.microworld.build", "data_pipelines.tokenizers")
)
def test_a_change_in_the_code_that_makes_a_stage_makes_it_stale(monkeypatch, module):
    before = build._fingerprint(_CONFIG)
    assert build._fingerprint(_CONFIG) == before
    changed = importlib.util.find_spec(module).origin
    read = pathlib.Path.read_bytes
    monkeypatch.setattr(
        pathlib.Path, "read_bytes", lambda path: read(path) + b"#" * (str(path) == changed)
    )
    assert build._fingerprint(_CONFIG) != before


def test_a_stage_replaces_only_what_a_build_made(tmp_path):
    def run(key):
        def make(folder):
            (folder / "a").write_text(key)
            return "made"

        build._run_stage(tmp_path / "text", key, make, lambda line: None)
        return (tmp_path / "text" / "a").read_text()

    first, second = "1" * 64, "2" * 64
    assert run(first) == first
    assert run(second) == second
    (tmp_path / "text" / "thesis.txt").write_text("years of work")
    assert run(second) == second  # nothing to do
    with pytest.raises(FileExistsError, match=r"text holds 'thesis\.txt'"):
        run(first)
    assert (tmp_path / "text" / "thesis.txt").read_text() == "years of work"
    # As an earlier version left it, with no names of files.
    (tmp_path / "text" / "fingerprint").write_text(second)
    (tmp_path / "text" / "thesis.txt").unlink()
    assert run(first) == first


@pytest.mark.parametrize("marker", [None, "", "my notes", "1" * 63])
@pytest.mark.parametrize("stage", ["text", "stats"])
def test_a_directory_that_no_build_made_is_never_replaced(tmp_path, stage, marker):
    """It is looked at before the first stage is made, too."""
    folder = tmp_path / stage
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    if marker is not None:
        (folder / "fingerprint").write_text(marker)
    with pytest.raises(FileExistsError, match="which is not of the corpus"):
        build_corpus(_CONFIG, tmp_path, processes=1, progress=lambda line: None)
    assert (folder / "thesis.txt").read_text() == "years of work"
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    "change",
    [
        {"speech_stories": 0},
        {"fit_stories": 7},
        {"unit_clusters": 503},
        {"test_items": 0},
        {"seed": -1},
        {"text_stories": 1.5},
    ],
)
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(_CONFIG, **change)


def test_too_many_pieces_for_the_text_are_refused(tmp_path):
    config = dataclasses.replace(_CONFIG, tokenizer_size=50_000)
    with pytest.raises(ValueError, match="50000"):
        build_corpus(config, tmp_path, processes=1, progress=lambda line: None)
    assert not (tmp_path / "tokenizer").exists()
