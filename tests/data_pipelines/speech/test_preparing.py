"""Recordings to records, with an encoder and an aligner that need no models."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import tracemalloc
from concurrent import futures

import numpy as np
import pytest

from data_pipelines.records.storage import open_records
from data_pipelines.records.types import Utterance
from data_pipelines.speech.audio import write_wav
from data_pipelines.speech.imports import open_alignments, open_transcripts, open_units
from data_pipelines.speech.parts import Decoders, Parts, batched, write_parts
from data_pipelines.speech.preparing import Tools, UnitSource, prepare_utterances
from data_pipelines.speech.readers import read_corpus
from data_pipelines.speech.recordings import Recording, Sound
from lst_jax.speech.interfaces import Alignment, Rejection, TimedText
from tests.data_pipelines.small_corpus import make_tokenizer

_RATE = 8000


class Encoder:
    """Units of how loud each 40 ms are; what is shorter is refused."""

    sample_rate, frame_rate, unit_count, fingerprint = _RATE, 25.0, 50, "0" * 64

    def encode(self, waveforms):
        return [self._encode(waveform) for waveform in waveforms]

    def _encode(self, waveform):
        frames = waveform[: len(waveform) // 320 * 320].reshape(-1, 320)
        if not len(frames):
            return Rejection("too-short", f"{len(waveform)} samples, expected 320")
        return np.minimum(np.abs(frames).mean(axis=1) * 50, 49).astype(np.int32)


class Aligner:
    """Words of equal length."""

    sample_rate = 16_000

    def align(self, waveforms, transcripts):
        found = []
        for waveform, transcript in zip(waveforms, transcripts, strict=True):
            words = transcript.split()
            edges = np.linspace(0, len(waveform) / 16_000, len(words) + 1).tolist()
            timed = map(TimedText, words, edges[:-1], edges[1:], [-0.5] * len(words))
            found.append(Alignment(tuple(timed)))
        return found


class Recognizer:
    """Hears one word wherever it is loud."""

    sample_rate = _RATE

    def recognize(self, waveforms):
        return [
            (TimedText("loud", 0.1, 0.4),) if np.abs(waveform).max() > 0.6 else ()
            for waveform in waveforms
        ]


def _tools(**options):
    units = UnitSource(25.0, 50, Encoder())
    return Tools(**{"units": units, "tokenizer": make_tokenizer(), "aligner": Aligner(), **options})


def _wav(path: pathlib.Path, seconds: float = 1.0, level: float = 0.5) -> Sound:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(round(1000 * seconds))
    write_wav(path, level * rng.uniform(-1, 1, round(seconds * _RATE)), _RATE)
    return Sound(path)


def _one(recording: Recording, **options):
    (outcome,) = prepare_utterances([recording], _tools(**options))
    return outcome.result


def test_a_recording_becomes_an_utterance_with_all_that_is_known(tmp_path):
    sound = _wav(tmp_path / "a.wav", 2.0)
    recording = Recording("a", sound, "the old house", None, "ann", "CC0", "here")
    (outcome,) = prepare_utterances([recording], _tools())
    utterance = outcome.result
    assert utterance.words == ("the", "old", "house")
    assert utterance.unit_counts.sum() == len(utterance.units) == 50
    assert utterance.word_times_ms.tolist() == [[0, 667], [667, 1333], [1333, 2000]]
    known = (utterance.transcript, utterance.speaker, utterance.license, utterance.source)
    assert known == ("the old house", "ann", "CC0", "here")
    assert (outcome.duration_s, outcome.score) == (2.0, -0.5)


def test_without_words_an_utterance_is_one_silence_of_speech(tmp_path):
    utterance = _one(Recording("a", _wav(tmp_path / "a.wav")))
    assert utterance.words == ("[SIL]",)
    assert _one(Recording("a", Sound(tmp_path / "a.wav"), None, ())).words == ("[SIL]",)
    assert utterance.unit_counts.tolist() == [25]
    assert utterance.word_times_ms.tolist() == [[0, 1000]]


def test_long_recordings_without_words_are_cut_where_they_are_quiet(tmp_path):
    path = tmp_path / "a.wav"
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 5 * _RATE)
    samples[round(1.9 * _RATE) : round(1.95 * _RATE)] = 0
    write_wav(path, samples, _RATE)
    pieces = list(prepare_utterances([Recording("a", Sound(path))], _tools(piece_s=2.0)))
    assert [piece.id for piece in pieces] == ["a-00000", "a-00001", "a-00002"]
    assert 1.88 <= pieces[0].duration_s <= 1.96
    assert sum(piece.duration_s for piece in pieces) == pytest.approx(5.0)
    assert all(piece.duration_s <= 2.0 for piece in pieces)


def test_a_recognizer_says_what_nothing_else_does(tmp_path):
    loud = Recording("a", _wav(tmp_path / "a.wav", 1.0, 0.9))
    quiet = Recording("b", _wav(tmp_path / "b.wav", 1.0, 0.2))
    outcomes = list(prepare_utterances([loud, quiet], _tools(recognizer=Recognizer())))
    assert [outcome.result.words for outcome in outcomes] == [
        ("[SIL]", "loud", "[SIL]"),
        ("[SIL]",),
    ]
    assert outcomes[0].result.transcript == "loud"


@pytest.mark.parametrize(
    ("change", "options", "kind"),
    [
        ({"sound": Sound(pathlib.Path("none.wav"))}, {}, "unreadable"),
        ({"transcript": "one two"}, {"aligner": None}, "no-alignment"),
        ({"words": (TimedText("one", 0.0, 0.4),), "transcript": "two"}, {}, "other-words"),
        ({"words": (TimedText("one", 0.5, 0.4),)}, {}, "word-times"),
        ({"transcript": "x " * 30}, {}, "few-units"),
        ({"rejection": Rejection("no-speech", "music")}, {}, "no-speech"),
        ({"duration_s": 1.5}, {}, "duration"),
        ({}, {"longest_s": 0.5}, "too-long"),
    ],
)
def test_what_cannot_be_true_is_rejected_with_a_kind_and_a_reason(tmp_path, change, options, kind):
    recording = Recording("a", _wav(tmp_path / "a.wav"))
    result = _one(dataclasses.replace(recording, **change), **options)
    assert isinstance(result, Rejection)
    assert result.kind == kind
    assert result.reason and "\n" not in result.reason


class _Units:
    """An index that has the same units of every recording, from its file's start."""

    def __init__(self, units, begin_s=0.0):
        self._found = np.array(units), begin_s

    def find(self, name, sound):
        return self._found


@pytest.mark.parametrize(
    ("seconds", "counts"), [(1.0, {22: False, 23: True, 27: True, 28: False}), (60.0, {1503: True})]
)
def test_units_are_as_many_as_the_rate_says_but_two_and_a_share(tmp_path, seconds, counts):
    recording = Recording("a", _wav(tmp_path / "a.wav", seconds))
    for count, fits in counts.items():
        units = UnitSource(25.0, 50, None, _Units([1] * count))
        assert isinstance(_one(recording, units=units, piece_s=seconds), Utterance) == fits


@pytest.mark.parametrize(
    ("change", "options"),
    [
        ({"transcript": "x " * 25}, {}),  # a unit a word
        ({"duration_s": 1.22}, {}),
        ({"duration_s": 0.82}, {}),
        ({}, {"longest_s": 1.0}),
        ({}, {"piece_s": 1.0}),
    ],
)
def test_a_limit_is_met(tmp_path, change, options):
    recording = Recording("a", _wav(tmp_path / "a.wav"))
    assert _one(dataclasses.replace(recording, **change), **options).file_id == "a"
    beyond = [x for x in (1.23, 0.78) if "duration_s" in change]
    for seconds in beyond:
        assert _one(dataclasses.replace(recording, duration_s=seconds)).kind == "duration"


def test_a_unit_is_less_than_their_number(tmp_path):
    units = UnitSource(25.0, 50, None, _Units([50] * 25))
    assert _one(Recording("a", _wav(tmp_path / "a.wav")), units=units).kind == "unit-range"


def test_the_units_of_a_part_are_those_nearest_to_its_edges(tmp_path):
    sound = dataclasses.replace(_wav(tmp_path / "a.wav", 2.0), start_s=1.03, end_s=1.53)
    units = UnitSource(25.0, 50, None, _Units(range(50), 1.03))
    assert _one(Recording("x", sound), units=units).units.tolist() == [*range(26, 38)]


def test_a_part_has_the_segments_whose_middle_is_in_it(tmp_path):
    edges = [("a", 0.2, 1.0), ("b", 0.5, 1.5), ("c", 1.5, 2.5)]
    segments = [{"start": start, "end": end, "text": text} for text, start, end in edges]
    transcripts = open_transcripts(_index(tmp_path / "a.json", json.dumps({"segments": segments})))
    sound = dataclasses.replace(_wav(tmp_path / "a.wav", 3.0), start_s=1.0, end_s=2.0)
    (outcome,) = prepare_utterances([Recording("x", sound)], _tools(transcripts=transcripts))
    assert (outcome.result.transcript, outcome.duration_s) == ("b", 0.5)


def test_a_part_has_the_words_whose_middle_is_in_it(tmp_path):
    words = [("a", 0.5, 1.5), ("b", 1.5, 1.7), ("c", 1.5, 2.5)]
    items = [{"word": word, "start": start, "end": end} for word, start, end in words]
    whole = {"segments": [{"start": 0.5, "end": 2.5, "text": "a b c", "words": items}]}
    transcripts = open_transcripts(_index(tmp_path / "a.json", json.dumps(whole)))
    sound = dataclasses.replace(_wav(tmp_path / "a.wav", 3.0), start_s=1.0, end_s=2.0)
    assert _one(Recording("x", sound), transcripts=transcripts).transcript == "a b"


def test_silent_and_too_short_recordings_are_rejected(tmp_path):
    assert _one(Recording("a", _wav(tmp_path / "a.wav", 1.0, 0.0))).kind == "silent"
    assert _one(Recording("b", _wav(tmp_path / "b.wav", 0.02))).kind == "too-short"


def test_marks_and_case_of_the_transcript_stay_where_words_come_with_times(tmp_path):
    words = (TimedText("hello", 0.0, 0.3), TimedText("you're", 0.4, 0.8))
    recording = Recording("a", _wav(tmp_path / "a.wav"), "Hello, you're —", words)
    assert _one(recording).words == ("hello", "[SIL]", "you're", "[SIL]")
    recording = dataclasses.replace(recording, transcript="Hello, You're!")
    assert _one(recording).words == ("Hello,", "[SIL]", "You're!", "[SIL]")


def test_words_of_a_file_may_overlap_and_end_late_as_far_as_they_are_rounded(tmp_path):
    sound = _wav(tmp_path / "a.wav")
    words = (TimedText("a", 0.0, 0.51), TimedText("b", 0.5, 0.505), TimedText("c", 0.6, 1.05))
    result = _one(Recording("a", sound, None, words))
    spoken = [time for word, time in zip(result.words, result.word_times_ms.tolist(), strict=True)
              if word != "[SIL]"]  # fmt: skip
    assert spoken == [[0, 510], [510, 510], [600, 1000]]
    for late in ((TimedText("a", 0.0, 1.2),), (words[2], words[0])):
        assert _one(Recording("a", sound, None, late)).kind == "word-times"


def _index(path: pathlib.Path, text: str | bytes, **more: str) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    for name, contents in more.items():
        path.with_name(name.replace("__", ".")).write_text(contents)
    return path


_UNITS = [3] * 20 + [7] * 5
_SPELLED = " ".join(map(str, _UNITS))


@pytest.mark.parametrize("kind", ["slamkit", "deduplicated", "spelled", "km", "npy"])
def test_units_that_are_there_are_taken_as_they_are(tmp_path, kind):
    sound = _wav(tmp_path / "clips/a.wav")
    line = {
        "slamkit": {"file_name": "/other/place/a.flac", "units": _UNITS, "duration": 1.0},
        "deduplicated": {"audio": "a.wav", "units": "3 7", "duration": [20, 5]},
        "spelled": {"name": "a", "audio_repr": "".join(f"<Un{unit}>" for unit in _UNITS)},
    }.get(kind)
    path = tmp_path / "units"
    if line:
        path = _index(tmp_path / "units.jsonl", json.dumps(line))
    elif kind == "km":
        path = _index(tmp_path / "a.km", _SPELLED + "\n", a__tsv="/root\nx/a.flac\t16000\n")
    else:
        (path / "sub").mkdir(parents=True)
        np.save(path / "sub/a.npy", np.array(_UNITS, np.int16))
    source = UnitSource(25.0, 50, None, open_units(path))
    assert _one(Recording("a", sound, "one two"), units=source).units.tolist() == _UNITS
    assert _one(Recording("b", sound), units=source).units.tolist() == _UNITS  # by its file
    part = dataclasses.replace(sound, start_s=0.4, end_s=1.0)
    assert _one(Recording("b", part), units=source).units.tolist() == _UNITS[10:]


def test_units_of_another_rate_set_or_recording_are_rejected(tmp_path):
    sound = _wav(tmp_path / "a.wav")
    lines = "".join(json.dumps({"name": n, "units": u}) + "\n" for n, u in (
        ("a", _UNITS * 2), ("b", [50] * 25)))  # fmt: skip
    source = UnitSource(25.0, 50, None, open_units(_index(tmp_path / "u.jsonl", lines)))
    assert _one(Recording("a", sound), units=source).kind == "unit-count"
    other = dataclasses.replace(sound, path=_wav(tmp_path / "c.wav").path)
    assert _one(Recording("b", other), units=source).kind == "unit-range"
    assert _one(Recording("c", other), units=source).kind == "no-units"


_LONG_GRID = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 1.0
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 1.0
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 1.0
            text = "AH0"
    item [2]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 1.0
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 0.2
            text = ""
        intervals [2]:
            xmin = 0.2
            xmax = 0.5
            text = "one"
        intervals [3]:
            xmin = 0.5
            xmax = 1.0
            text = "2"
"""
_SHORT_GRID = (
    'File type = "ooTextFile"\nObject class = "TextGrid"\n\n0\n1.0\n<exists>\n1\n"IntervalTier"\n'
    '"words"\n0\n1.0\n3\n0\n0.2\n""\n0.2\n0.5\n"one"\n0.5\n1.0\n"2"\n'
)
_TWO_TIERS = _SHORT_GRID.replace("\n1\n", "\n2\n", 1) + '"IntervalTier"\n"words"\n0\n1\n0\n'
_CLAIM = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000000,)}"
_CLAIMING = b"\x93NUMPY\x01\x00" + len(_CLAIM).to_bytes(2, "little") + _CLAIM + bytes(100)
_WHISPERX = {
    "segments": [
        {"start": 0.2, "end": 1.0, "text": " one 2",
         "words": [{"word": "one", "start": 0.2, "end": 0.5, "score": 0.9}, {"word": "2"},
                   {"word": "x", "start": 1.0, "end": 1.0}][:2]}
    ]
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "contents", "end"),
    [
        ("s/a.TextGrid", _LONG_GRID, 1.0),
        ("a.TextGrid", _SHORT_GRID, 1.0),
        ("all.ctm", ";; made\na 1 0.2 0.3 one 0.9\na 1 0.5 0.5 2\nb 1 0 1 x\n", 1.0),
        ("a.json", json.dumps(_WHISPERX), 0.5),
    ],
)
def test_alignments_that_are_there_are_taken_as_they_are(tmp_path, name, contents, end):
    sound = _wav(tmp_path / "a.wav")
    _index(tmp_path / "made" / name, contents)
    alignments = open_alignments(tmp_path / "made")
    (words, begin) = alignments.find("a", sound)
    assert [(w.text, w.start_s, w.end_s) for w in words] == [("one", 0.2, 0.5), ("2", 0.5, end)]
    assert begin == 0
    recording = Recording("a", sound, "One 2.")
    result = _one(recording, alignments=alignments, aligner=None)
    assert [word for word in result.words if word != "[SIL]"] == ["One", "2."]
    other = dataclasses.replace(recording, transcript="one three")
    assert _one(other, alignments=alignments).kind == "other-words"


def test_transcripts_give_words_or_a_recording_for_each_segment(tmp_path):
    sound = _wav(tmp_path / "a.wav", 3.0)
    whisper = {
        "text": "one two",
        "segments": [
            {"start": 0.0, "end": 1.0, "text": " one"},
            {"start": 1.5, "end": 2.5, "text": " two"},
        ],
    }
    _index(tmp_path / "w/a.json", json.dumps(whisper))
    transcripts = open_transcripts(tmp_path / "w")
    found = list(prepare_utterances([Recording("a", sound)], _tools(transcripts=transcripts)))
    assert [(o.id, o.result.transcript, o.duration_s) for o in found] == [
        ("a-00000", "one", 1.0),
        ("a-00001", "two", 1.0),
    ]
    part = Recording("a/x", dataclasses.replace(sound, start_s=1.2, end_s=3.0))
    (late,) = prepare_utterances([part], _tools(transcripts=transcripts))
    assert (late.result.transcript, late.duration_s) == ("two", 1.0)
    nemo = {
        "audio_filepath": "x/a.wav",
        "pred_text": "one two",
        "timestamp": {
            "word": [
                {"word": "one", "start": 0.1, "end": 0.4},
                {"word": "two", "start": 1, "end": 2},
            ]
        },
    }
    transcripts = open_transcripts(_index(tmp_path / "n.jsonl", json.dumps(nemo)))
    result = _one(Recording("a", sound), transcripts=transcripts, aligner=None)
    assert result.words == ("[SIL]", "one", "[SIL]", "two", "[SIL]")
    words = {"segments": [{**_WHISPERX["segments"][0], "text": "one 2"}]}
    _index(tmp_path / "w/a.json", json.dumps(words))
    result = _one(Recording("a", sound), transcripts=open_transcripts(tmp_path / "w"))
    assert result.transcript == "one 2"
    # As `fetch_speech` writes them: words alone.
    _index(tmp_path / "w/a.json", json.dumps({"segments": [{"words": nemo["timestamp"]["word"]}]}))
    result = _one(Recording("a", sound), transcripts=open_transcripts(tmp_path / "w"))
    assert result.transcript == "one two"
    unheard = Recording("b", _wav(tmp_path / "b.wav"))
    assert _one(unheard, transcripts=transcripts).words == ("[SIL]",)


@pytest.mark.parametrize(
    ("open_index", "name", "contents", "message"),
    [
        (open_units, "u.jsonl", '{"name": "a"}', "none of units, audio_repr, hubert"),
        (open_units, "u.jsonl", '{"units": [1]}', "none of file_name"),
        (open_units, "u.jsonl", '{"name": "a", "units": "1 x"}', "expected 1 2 3"),
        (open_units, "u.jsonl", '{"name": "a", "units": [1.5]}', "whole numbers"),
        (open_units, "u.jsonl", '{"name": "a", "units": [1, [2]]}', "whole numbers"),
        (open_units, "u.jsonl", '{"name": "a", "units": [9223372036854775808]}', "whole numbers"),
        (open_units, "u.jsonl", '{"name": "a", "units": [1], "duration": "x"}', "time is 'x'"),
        (open_units, "u.jsonl", '{"name": "a", "units": [1], "duration": [[1]]}', "1 durations"),
        (open_units, "a.npy", _CLAIMING, "npy"),
        (open_units, "a.npy", "PK\x03\x04", "npy"),
        (open_units, "u.jsonl", '{"name": "a", "units": [1], "duration": [0]}', "at least 1"),
        (open_units, "u.jsonl", '{"name": "a", "units": [1]}\n' * 2, "'a' twice"),
        (open_alignments, "a.TextGrid", "nothing", "ends early|no TextGrid"),
        (open_alignments, "a.TextGrid", _SHORT_GRID[:-20], "ends early"),
        (open_alignments, "a.TextGrid", _SHORT_GRID.replace("\n1\n", "\n1e400\n", 1), "below 1e9"),
        (open_alignments, "a.TextGrid", _TWO_TIERS, "'words' twice"),
        (open_alignments, "a.TextGrid", None, "No such file"),
        (open_alignments, "a.ctm", "a 1 0.5 one", "has 4 cells"),
        (open_alignments, "a.ctm", b"a 1 0.5 1 \xe9", "not UTF-8"),
        (open_alignments, "a.ctm", "a 1 1_0 1 one", "a time is '1_0'"),
        (open_alignments, "a.ctm", "a 1 x 1 one", "a time is 'x'"),
        (open_alignments, "a.json", '{"segments": 3}', "expected a list of objects"),
        (open_alignments, "a.txt", "", "has the suffix '.txt'"),
        (open_transcripts, "a.json", "{", "not JSON"),
        (open_transcripts, "a.jsonl", '{"audio_filepath": "a"}', "none of pred_text, text"),
        (open_transcripts, "a.jsonl", "no JSON at all", "not JSON"),
        (open_transcripts, "a.jsonl", "{}".encode("utf-16"), "UTF-16"),
    ],
)
def test_a_file_of_another_form_is_named_in_one_line(tmp_path, open_index, name, contents, message):
    path = tmp_path / name
    if contents is not None:
        _index(path, contents)
    path = path.parent if path.suffix == ".npy" else path
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        open_index(path).find("a", Sound(tmp_path / "a.wav"))
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_many_words_without_times_take_no_longer_than_those_with(tmp_path):
    words = [{"word": "a"}] * 20_000 + [{"word": "b", "start": 1, "end": 2}]
    segment = {"start": 0, "end": 2, "text": "a", "words": words}
    path = _index(tmp_path / "a.json", json.dumps({"segments": [segment]}))
    (words, _) = open_alignments(path).find("a", Sound(tmp_path / "a.wav"))
    assert (words[0].start_s, words[0].end_s, words[19_999].end_s) == (0, 1, 1)


def test_arrays_that_would_run_something_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([print], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"a\.npy .*dtype object"):
        open_units(tmp_path).find("a", Sound(tmp_path / "a.wav"))


def _corpus(root: pathlib.Path) -> list[Recording]:
    for number in range(11):
        _wav(root / f"{number:02d}.wav", 0.5 + 0.1 * number, 0.0 if number == 4 else 0.5)
        if number % 3:
            (root / f"{number:02d}.txt").write_text(f"word {number}")
    return list(read_corpus(root, "folder"))


def _make(output: pathlib.Path, recordings, numbers=range(4), num_workers=0, aligner=None):
    tools = _tools(aligner=aligner or Aligner())
    parts = Parts(output / "parts", {"made": "by a test"})
    decoders = Decoders(num_workers)
    try:
        for number, part in enumerate(batched(recordings, 3)):
            if number in numbers and parts.summary(number, part) is None:
                decoded = decoders.decode(part, tools)
                parts.write(number, part, prepare_utterances(part, tools, decoded))
    finally:
        decoders.close()
    return parts, tools


def _finish(output: pathlib.Path, parts: Parts, tools: Tools) -> dict[str, bytes]:
    write_parts(parts, range(4), output / "records", tools, lambda *seen: None)
    return {path.name: path.read_bytes() for path in sorted((output / "records").iterdir())}


def test_parts_made_in_any_order_and_after_a_failure_give_the_same_records(tmp_path):
    recordings = _corpus(tmp_path / "corpus")
    whole = _finish(tmp_path / "a", *_make(tmp_path / "a", recordings))

    class Failing(Aligner):
        calls = 0

        def align(self, *arguments):
            Failing.calls += 1
            if Failing.calls == 3:
                raise KeyboardInterrupt
            return super().align(*arguments)

    with pytest.raises(KeyboardInterrupt):
        _make(tmp_path / "b", recordings, aligner=Failing())
    assert 0 < len(list((tmp_path / "b/parts").glob("*.records"))) < 4
    _make(tmp_path / "b", recordings, numbers=[3, 1])
    assert _finish(tmp_path / "b", *_make(tmp_path / "b", recordings)) == whole
    opened = open_records(tmp_path / "b/records", fingerprint=make_tokenizer().fingerprint)
    assert len(opened) == 10
    assert opened.metadata.encoder_fingerprint == "0" * 64


@pytest.mark.parametrize(("ahead", "ahead_s"), [(3, 99), (99, 1.5), (99, 99)])
def test_what_workers_decode_goes_to_its_own_recording(tmp_path, monkeypatch, ahead, ahead_s):
    monkeypatch.setattr("data_pipelines.speech.parts._AHEAD", ahead)
    monkeypatch.setattr("data_pipelines.speech.parts._AHEAD_S", ahead_s)
    recordings = _corpus(tmp_path / "corpus")
    decoders = Decoders(0)
    decoders._pool = futures.ThreadPoolExecutor(2)
    there = [len(next(iter(x.values()))) if isinstance(x, dict) else x.kind
             for x in decoders.decode(recordings, _tools())]  # fmt: skip
    decoders.close()
    lengths = [round((0.5 + 0.1 * number) * _RATE) for number in range(11)]
    assert there == [*lengths[:4], "silent", *lengths[5:]]


@pytest.mark.slow
def test_a_long_recording_takes_little_more_memory_than_its_samples(tmp_path):
    seconds = 1200
    sound = _wav(tmp_path / "long.wav", seconds)
    tracemalloc.start()
    try:
        outcomes = list(prepare_utterances([Recording("a", sound)], _tools(aligner=None)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(outcomes) > seconds // 30
    assert sum(len(x.result.units) for x in outcomes) == pytest.approx(25 * seconds, abs=60)
    assert peak < 1.6 * 4 * seconds * _RATE


@pytest.mark.slow
@pytest.mark.multiprocess
def test_the_number_of_workers_plays_no_part(tmp_path):
    recordings = _corpus(tmp_path / "corpus")
    whole = _finish(tmp_path / "a", *_make(tmp_path / "a", recordings))
    assert _finish(tmp_path / "b", *_make(tmp_path / "b", recordings, num_workers=2)) == whole


def test_parts_of_other_settings_or_recordings_are_refused(tmp_path):
    recordings = _corpus(tmp_path / "corpus")
    parts, _ = _make(tmp_path / "a", recordings)
    with pytest.raises(ValueError, match="made = 'by a test', expected 'otherwise'"):
        Parts(tmp_path / "a/parts", {"made": "otherwise"})
    with pytest.raises(ValueError, match="the corpus has changed"):
        parts.summary(0, recordings[1:4])


def test_a_refused_start_leaves_nothing_and_a_damaged_part_is_named(tmp_path):
    recordings = _corpus(tmp_path / "corpus")
    parts = Parts(tmp_path / "a", {"made": "by a test"})
    outcomes = iter(prepare_utterances(recordings[:3], _tools(aligner=Aligner())))
    with pytest.raises(ZeroDivisionError):
        parts.write(0, recordings[:3], (1 // 0 for _ in outcomes))
    assert not (tmp_path / "a").exists()
    parts.write(0, recordings[:3], outcomes)
    Parts(tmp_path / "a", {"made": "by a test"})
    with pytest.raises(ValueError, match="of another run"):
        Parts(tmp_path / "a", {"made": "otherwise"})
    for name in ("0000000.records", "0000000.json"):
        file = tmp_path / "a" / name
        file.write_bytes(b"{}" + file.read_bytes()[3:] if name.endswith("records") else b"{}")
        with pytest.raises(ValueError, match=rf"{name} .*expected (what was written|recordings)"):
            list(parts.read(0))
