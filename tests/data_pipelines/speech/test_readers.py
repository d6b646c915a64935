"""Corpora as their publishers lay them out, each in a tiny tree."""

from __future__ import annotations

import gzip
import io
import json
import pathlib
import tarfile

import numpy as np
import pyarrow
import pytest
import soundfile
from pyarrow import parquet

from data_pipelines.speech.readers import FORMATS, read_corpus

_RATE = 8000
_CUT = (
    '{"id": "c", "start": 0, "duration": 1, "supervisions": [{"alignment": %s}],'
    ' "recording": {"sources": [{"type": "file", "source": "a.wav"}]}}'
)
_RECORDING = '{"id": "r", "sources": [{"type": "file", "source": "a.wav"}]}\n'


def _sound(path: pathlib.Path, seconds: float = 1.0, level: float = 0.5) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {"opus": ("OGG", "OPUS"), "ogg": ("OGG", "VORBIS")}.get(path.suffix[1:], (None, None))
    samples = np.full(round(seconds * _RATE), level)
    if path.suffix == ".mp3":
        kind = ("MP3", "MPEG_LAYER_III")
    soundfile.write(path, samples, _RATE, format=kind[0], subtype=kind[1])
    return path


def _bytes(seconds: float = 1.0, level: float = 0.5) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.full(round(seconds * _RATE), level), _RATE, format="FLAC")
    return buffer.getvalue()


def _write(path: pathlib.Path, text: str) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _jsonl(path: pathlib.Path, *objects: object) -> pathlib.Path:
    return _write(path, "".join(json.dumps(item) + "\n" for item in objects))


def _tar(path: pathlib.Path, **files: bytes) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name.replace("__", "."))
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def _librispeech(root: pathlib.Path) -> None:
    for name in ("19-198-0001", "19-198-0000", "103-1-0000"):
        speaker, chapter, _ = name.split("-")
        _sound(root / "dev" / speaker / chapter / f"{name}.flac")
    _write(root / "dev/19/198/19-198.trans.txt", "19-198-0000 NORTHANGER ABBEY\n19-198-0001 THIS\n")
    _write(root / "dev/103/1/103-1.trans.txt", "103-1-0000 CHAPTER ONE\n")


def _librilight(root: pathlib.Path) -> None:
    for name, spans in (("a", [[0.0, 1.0], [1.5, 29.0], [31.0, 33.0]]), ("b", None)):
        _sound(root / f"small/7/book/{name}.flac", 34)
        fields = {"speaker": "7", "voice_activity": spans}
        _write(root / f"small/7/book/{name}.json", json.dumps(fields))


def _mls(root: pathlib.Path) -> None:
    _sound(root / "train/audio/12/34/12_34_000001.flac")
    _sound(root / "train/audio/12/34/12_34_000000.opus")
    _write(root / "train/transcripts.txt", "12_34_000000\tin the morning\n12_34_000001\tat noon\n")


def _peoples_speech(root: pathlib.Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    rows = [
        {"id": name, "audio": {"bytes": _bytes(), "path": name}, "duration_ms": 1000, "text": text}
        for name, text in (("one.flac", "one"), ("two.flac", "two words"), ("three.flac", "three"))
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), root / "a.parquet", row_group_size=2)


def _voxpopuli(root: pathlib.Path) -> None:
    _sound(root / "transcribed_data/en/2009/2009-x_1.ogg")
    _write(
        root / "transcribed_data/en/asr_train.tsv",
        "id\traw_text\tnormalized_text\tspeaker_id\n2009-x_1\t\tthank you\t42\n",
    )


def _common_voice(root: pathlib.Path) -> None:
    _sound(root / "en/clips/common_voice_en_1.mp3")
    _write(
        root / "en/train.tsv",
        'client_id\tpath\tsentence\tage\nabc\tcommon_voice_en_1.mp3\t"Quoted" text.\t\n',
    )


def _gigaspeech(root: pathlib.Path) -> None:
    _sound(root / "audio/podcast/P0.opus", 5)
    segments = [
        {"sid": "P0S0", "speaker": "N/A", "begin_time": 0.5, "end_time": 1.5,
         "text_tn": "AS THEY'RE LEAVING <COMMA> CAN KASH <QUESTIONMARK>"},
        {"sid": "P0S1", "speaker": "S", "begin_time": 2, "end_time": 3, "text_tn": "<MUSIC>"},
    ]  # fmt: skip
    audio = {"aid": "P0", "path": "audio/podcast/P0.opus", "segments": segments}
    _write(root / "GigaSpeech.json", json.dumps({"audios": [audio]}))


def _ljspeech(root: pathlib.Path) -> None:
    _sound(root / "wavs/LJ001-0001.wav")
    _write(root / "metadata.csv", "LJ001-0001|In 1465, print|In fourteen sixty-five, print\n")


def _webdataset(root: pathlib.Path) -> None:
    _tar(
        root / "a.tar",
        x__flac=_bytes(),
        x__txt=b"one\n",
        y__flac=_bytes(),
        y__json=b'{"text": "two", "speaker": 5, "license": "CC0"}',
        z__flac=_bytes(),
    )


def _lhotse(root: pathlib.Path) -> None:
    _sound(root / "a.wav", 3)
    sources = [{"type": "file", "channels": [0], "source": "a.wav"}]
    _jsonl(root / "recordings.jsonl", {"id": "r", "sources": sources})
    words = [["hello", 1.1, 0.3], ["you", 1.5, 0.2]]
    supervision = {
        "id": "s", "recording_id": "r", "start": 1.0, "duration": 1.5, "channel": 0,
        "text": "hello you", "speaker": "m", "alignment": {"word": words},
    }  # fmt: skip
    with gzip.open(root / "supervisions.jsonl.gz", "wt") as file:
        file.write(json.dumps(supervision))


def _nemo(root: pathlib.Path) -> None:
    _sound(root / "a.wav")
    _sound(root / "b.wav", 3)
    _tar(root / "audio_0.tar", c__wav=_bytes())
    _jsonl(
        root / "manifest.json",
        {"audio_filepath": "a.wav", "duration": 1.0, "text": "one"},
        {"audio_filepath": "b.wav", "duration": 1.0, "offset": 2.0, "text": ""},
        {"audio_filepath": "c.wav", "duration": 1.0, "text": "three", "shard_id": 0},
    )


def _folder(root: pathlib.Path) -> None:
    _sound(root / "x/a.wav")
    _write(root / "x/a.txt", "Hello there.\n")
    _sound(root / "b.mp3")
    _write(root / "notes.md", "no recording")


def _podcasts(root: pathlib.Path) -> None:
    _sound(root / "audio/show_1/e1.ogg", 2)
    words = [
        {"startTime": "0.100s", "endTime": "0.500s", "word": "really"},
        {"startTime": "0.500s", "endTime": "0.900s", "word": "good."},
    ]
    first = {"transcript": "really good.", "confidence": 0.9, "words": words}
    last = {"words": [{**words[0], "speakerTag": 1}]}
    results = [{"alternatives": [first]}, {"alternatives": [{}]}, {"alternatives": [last]}]
    _write(root / "json/show_1/e1.json", json.dumps({"results": results}))


_TREES = {name.removeprefix("_"): tree for name, tree in list(globals().items()) if callable(tree)}
# What is read: id, transcript, speaker, seconds.
_EXPECTED = {
    "librispeech": [
        ("103-1-0000", "CHAPTER ONE", "103", 1),
        ("19-198-0000", "NORTHANGER ABBEY", "19", 1),
        ("19-198-0001", "THIS", "19", 1),
    ],
    "librilight": [
        ("small/7/book/a-00000", None, "7", 29),
        ("small/7/book/a-00001", None, "7", 2),
        ("small/7/book/b", None, "7", 34),
    ],
    "mls": [("12_34_000000", "in the morning", "12", 1), ("12_34_000001", "at noon", "12", 1)],
    "peoples_speech": [
        ("one.flac", "one", None, 1),
        ("two.flac", "two words", None, 1),
        ("three.flac", "three", None, 1),
    ],
    "voxpopuli": [("2009-x_1", "thank you", "42", 1)],
    "common_voice": [("common_voice_en_1", '"Quoted" text.', "abc", 1)],
    "gigaspeech": [("P0S0", "AS THEY'RE LEAVING, CAN KASH?", None, 1), ("P0S1", None, "S", 1)],
    "ljspeech": [("LJ001-0001", "In fourteen sixty-five, print", "LJ", 1)],
    "webdataset": [("x", "one", None, 1), ("y", "two", "5", 1), ("z", None, None, 1)],
    "lhotse": [("s", "hello you", "m", 1.5)],
    "nemo": [("a.wav", "one", None, 1), ("b.wav@2", None, None, 1), ("c.wav", "three", None, 1)],
    "folder": [("b", None, None, 1), ("x/a", "Hello there.", None, 1)],
    "podcasts": [("audio/show_1/e1", "really good.", None, 2)],
}


def test_every_format_has_a_tree_here():
    assert set(_EXPECTED) == set(FORMATS)


@pytest.mark.parametrize("format", _EXPECTED)
def test_every_layout_gives_its_recordings_in_order_with_their_sound(tmp_path, format):
    _TREES[format](tmp_path / "corpus")
    found = list(read_corpus(tmp_path / "corpus", format))
    seconds = [len(item.sound.load(_RATE, 100.0)) / _RATE for item in found]
    told = [
        (item.id, item.transcript, item.speaker, pytest.approx(length, abs=0.02))
        for item, length in zip(found, seconds, strict=True)
    ]
    assert told == _EXPECTED[format]


def test_shards_of_peoples_speech_find_their_transcripts_in_the_manifest(tmp_path):
    _tar(
        tmp_path / "train/clean/clean_000000.tar", **{"./a/1__flac": _bytes(), "b__flac": _bytes()}
    )
    names = ["b.flac", "a/1.flac", "of another shard.flac"]
    lists = {"name": names, "label": ["two", "one", "x"], "duration_ms": [1000, 1010, 5]}
    _jsonl(tmp_path / "train/clean.json", {"identifier": "doc", "training_data": lists})
    found = list(read_corpus(tmp_path, "peoples_speech"))
    assert [(item.id, item.transcript, item.duration_s) for item in found] == [
        ("a/1.flac", "one", 1.01),
        ("b.flac", "two", 1.0),
    ]
    assert len(found[0].sound.load(_RATE, 9.0)) == _RATE
    _jsonl(tmp_path / "train/clean.json", {"training_data": lists | {"label": ["two"]}})
    with pytest.raises(ValueError, match=r"clean\.json:1: training_data is .*, expected lists"):
        list(read_corpus(tmp_path, "peoples_speech"))
    _jsonl(tmp_path / "train/clean.json", *[{"training_data": lists}] * 2)
    with pytest.raises(ValueError, match=r"'b\.flac' twice"):
        list(read_corpus(tmp_path, "peoples_speech"))
    _tar(tmp_path / "x/b.tar", x__flac=_bytes(), x__txt=b"one", x__json=b'{"text": "two"}')
    with pytest.raises(ValueError, match=r"x\.txt and its \.json differ"):
        list(read_corpus(tmp_path / "x", "webdataset"))


def test_words_with_times_count_from_the_start_of_their_sound(tmp_path):
    for format in ("lhotse", "podcasts"):
        _TREES[format](tmp_path / format)
    (cut,) = read_corpus(tmp_path / "lhotse", "lhotse")
    assert [(w.text, round(w.start_s, 6), round(w.end_s, 6)) for w in cut.words] == [
        ("hello", 0.1, 0.4),
        ("you", 0.5, 0.7),
    ]
    (episode,) = read_corpus(tmp_path / "podcasts", "podcasts")
    assert [(w.text, w.start_s, w.end_s) for w in episode.words] == [
        ("really", 0.1, 0.5),
        ("good.", 0.5, 0.9),
    ]


def test_what_a_corpus_says_is_no_speech_is_a_rejection(tmp_path):
    _gigaspeech(tmp_path)
    kinds = [item.rejection and item.rejection.kind for item in read_corpus(tmp_path, "gigaspeech")]
    assert kinds == [None, "no-speech"]


def test_cuts_of_lhotse_count_words_from_the_cut(tmp_path):
    _sound(tmp_path / "a.wav", 3)
    part = {"id": "p", "start": 0.0, "duration": 1.0, "text": "hi", "alignment": {
        "word": [["hi", 0.2, 0.3]]}}  # fmt: skip
    cut = {"id": "c", "start": 1.0, "duration": 1.0, "channel": 0, "supervisions": [part],
           "recording": {"sources": [{"type": "file", "source": "a.wav"}]}}  # fmt: skip
    _jsonl(tmp_path / "cuts.jsonl", cut)
    (found,) = read_corpus(tmp_path, "lhotse")
    assert (found.words[0].start_s, found.sound.start_s, found.sound.end_s) == (0.2, 1.0, 2.0)


@pytest.mark.parametrize(
    ("format", "file", "contents", "message"),
    [
        ("librispeech", "dev/19/198/19-198.trans.txt", "19-198-0000 A\n", "no transcript of 19-"),
        ("librispeech", "dev/103/1/103-1.trans.txt", "103-1-0000\n", "trans.txt:1: the line is"),
        ("librispeech", "dev/103/1/103-1.trans.txt", "103-1-0000 A\n../x B\n", "named '../x'"),
        ("librilight", "small/7/book/b.json", '{"voice_activity": [[2, 1]]}', "in order"),
        ("mls", "train/transcripts.txt", "9_9_9\ta\n", "nothing is named '9_9_9'"),
        ("peoples_speech", "b.parquet", "no table", "b.parquet cannot be read as Parquet"),
        ("voxpopuli", "transcribed_data/en/asr_b.tsv", "name\n", "expected id"),
        ("common_voice", "en/train.tsv", "client_id\tpath\n", "expected sentence"),
        ("common_voice", "en/train.tsv", "client_id\tpath\tsentence\na\n", "has 1 cells"),
        ("gigaspeech", "GigaSpeech.json", '{"audios": [{"aid": "A", "path": "../x"}]}', "below"),
        ("ljspeech", "metadata.csv", "LJ9|a|b\n", "nothing is named 'LJ9'"),
        ("webdataset", "b.tar", "no archive", "b.tar cannot be read as an uncompressed tar"),
        ("lhotse", "recordings.jsonl", '{"id": "r", "sources": [{"type": "url"}]}', "type 'url'"),
        ("lhotse", "recordings.jsonl", "{", "recordings.jsonl:1: not JSON"),
        ("lhotse", "cuts.jsonl", _CUT % '{"word": 5}', "a word is 5, expected [word"),
        ("lhotse", "cuts.jsonl", _CUT % '{"word": [[null, 0, 1]]}', "a word is [None, 0, 1]"),
        ("lhotse", "recordings.jsonl", '{"id": "\\ud800"}', "id is '\\ud800', expected text"),
        ("nemo", "manifest.json", '{"audio_filepath": "x.wav", "shard_id": 7}', "expected one"),
        ("nemo", "manifest.json", '{"text": "x"}', "no audio_filepath"),
        ("folder", "x/a.txt", " \n", "a.txt is blank"),
        ("podcasts", "json/show_1/e1.json", '{"results": 3}', "expected a list of objects"),
        # Two truths, of which none is taken.
        ("librispeech", "dev/103/1/103-1.trans.txt", "103-1-0000 A\n103-1-0000 B\n", "0000' twice"),
        ("librispeech", "dev/103/1/x.trans.txt", "103-1-0000 B\n", "'103-1-0000' twice"),
        ("mls", "train/audio/12/12_34_000000.wav", "", "'12_34_000000' twice"),
        ("common_voice", "en/train.tsv", "client_id\tpath\tsentence\tpath\n", "'path' twice"),
        ("common_voice", "en/clips/common_voice_en_1.wav", "", "' twice"),
        ("lhotse", "recordings.jsonl", _RECORDING * 2, "'r' twice"),
        ("folder", "x/a.lab", "other words", "a.txt and a.lab differ"),
        ("podcasts", "json/show_2/e1.json", "{}", "'e1' twice"),
    ],
)  # fmt: skip
def test_what_is_not_as_the_layout_has_it_is_one_line(tmp_path, format, file, contents, message):
    _TREES[format](tmp_path)
    _write(tmp_path / file, contents)
    with pytest.raises((ValueError, OSError)) as error:
        list(read_corpus(tmp_path, format))
    assert message in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_ids_come_once_and_an_empty_folder_is_refused(tmp_path):
    _sound(tmp_path / "a.wav")
    _sound(tmp_path / "a.flac")
    with pytest.raises(ValueError, match="'a' twice"):
        list(read_corpus(tmp_path, "folder"))
    with pytest.raises(FileNotFoundError, match="holds no recording"):
        list(read_corpus(tmp_path, "mls"))
    with pytest.raises(FileNotFoundError, match="no such file"):
        list(read_corpus(tmp_path / "none", "folder"))


def test_a_damaged_member_and_a_missing_file_are_named(tmp_path):
    _webdataset(tmp_path)
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(data.replace(b"fLaC", b"junk"))
    first = next(read_corpus(tmp_path, "webdataset"))
    with pytest.raises(ValueError, match=r"a\.tar:x\.flac cannot be read"):
        first.sound.load(_RATE, 10.0)
    (tmp_path / "a.tar").write_bytes(data[:600])
    with pytest.raises(ValueError, match=r"a\.tar:x\.flac ends early"):
        first.sound.load(_RATE, 10.0)
    (tmp_path / "a.tar").unlink()
    with pytest.raises(ValueError, match=r"cannot be read: No such file"):
        first.sound.load(_RATE, 10.0)


def _claim(path: pathlib.Path, size: bytes = b"", kind: bytes = b"0", count: int = 1, **headers):
    """Writes a tar of so many members of zeros, whose first header has another size or kind."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for number in range(count):
            member = tarfile.TarInfo(f"{number}.wav")
            member.size, member.pax_headers = 1000, headers
            archive.addfile(member, io.BytesIO(bytes(1000)))
    data = path.read_bytes()
    if size or kind != b"0":
        header = bytearray(data[:512])
        header[124:136], header[156:157] = size or header[124:136], kind
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        data = bytes(header) * (2000 if kind == b"L" else 1) + data[512:]
    path.write_bytes(data)


@pytest.mark.parametrize(
    "claims",
    [
        {"size": b"77777777777\0"},  # 8 GB
        {"size": b"\x80" + b"\xff" * 11},  # more than 64 bits have
        {"size": b"\xff" * 10 + b"\xfe\0", "count": 2},  # -512: the next header is this one again
        {"size": b"00000000000\0", "kind": b"L"},  # a long name of a long name of …
        {"GNU.sparse.map": "0,5,x"},
        {"GNU.sparse.size": "x"},
    ],
)
def test_a_tar_that_claims_anything_is_named_in_one_line(tmp_path, claims):
    _claim(tmp_path / "a.tar", **claims)
    with pytest.raises(ValueError, match=r"a\.tar cannot be read as an uncompressed tar") as error:
        list(read_corpus(tmp_path, "webdataset"))
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_a_compressed_manifest_unfolds_to_no_more_than_a_line_may_have(tmp_path, monkeypatch):
    monkeypatch.setattr("data_pipelines.speech.manifests._LONGEST_LINE", 1000)
    (tmp_path / "cuts.jsonl.gz").write_bytes(gzip.compress(bytes(1001)))
    with pytest.raises(ValueError, match=r"cuts\.jsonl\.gz:1 has more bytes, expected at most"):
        list(read_corpus(tmp_path, "lhotse"))


def test_links_that_lead_nowhere_are_faults_and_not_nothing(tmp_path):
    _sound(tmp_path / "a.wav")
    (tmp_path / "b.wav").symlink_to(tmp_path / "none.wav")
    _, second = read_corpus(tmp_path, "folder")
    with pytest.raises(ValueError, match=r"b\.wav cannot be read: No such file"):
        second.sound.load(_RATE, 10.0)
    (tmp_path / "a.txt").symlink_to(tmp_path / "a.txt")
    with pytest.raises((OSError, RuntimeError), match=r"a\.txt"):
        list(read_corpus(tmp_path, "folder"))


@pytest.mark.parametrize("name", ["\udcff", "a\nb", " "])
def test_names_that_cannot_be_written_are_refused(tmp_path, name):
    (tmp_path / f"{name}.wav").touch()
    with pytest.raises(ValueError, match="has a recording named"):
        list(read_corpus(tmp_path, "folder"))
