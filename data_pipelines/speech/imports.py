"""What users have made already: unit files, alignments and transcripts of other programs.

Each is an index from the names of recordings to where their part is; a part is read when it is
asked for. A recording is looked up by its id and then by the name of its sound file, both without
folders and suffix where there is none with them. Nothing that a file says becomes a path.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from data_pipelines.speech.manifests import (
    by_key,
    decode_text,
    is_unicode,
    need_seconds,
    parse_line,
)
from data_pipelines.speech.recordings import Sound
from data_pipelines.speech.weights import read_weights
from lst_jax.files import check_encoding, check_regular, read_numbered_lines
from lst_jax.settings import quote
from lst_jax.speech.interfaces import TimedText
from lst_jax.strict_json import read_json_object

_NAMES = ("file_name", "audio_filepath", "file_id", "audio", "name", "id")
_UNITS = ("units", "audio_repr", "hubert")
_SPELLED = re.compile(r"<Un(\d+)>|\[Hu(\d+)\]|(\d+)")
_ENTIRELY_SPELLED = re.compile(r"(?:\s|<Un\d+>|\[Hu\d+\]|\b\d+\b)*")
_MOST_UNITS = 2**27  # of a recording, repeats written out
# Words between which a TextGrid or CTM puts silence and noise.
_NO_WORDS = {"", "sil", "sp", "spn", "<eps>", "<sil>", "[sil]", "[noise]"}


class Index:
    """Parts by the names of recordings."""

    def __init__(self, noun: str, source: pathlib.Path) -> None:
        """Makes an empty index; `noun` is what its parts are."""
        self._noun, self._source = noun, source
        self._parts: dict[str, Callable[[], Any]] = {}
        self._stems: dict[str, str | None] = {}  # names without folders; None: of several

    def add(self, name: str, part: Callable[[], Any]) -> None:
        """Adds a part.

        Raises:
          ValueError: there is one of that name.
        """
        if name in self._parts:
            raise ValueError(f"{self._source} has {self._noun} of {quote(name)} twice")
        self._parts[name] = part
        stem = name.rsplit("/", 1)[-1]
        self._stems[stem] = None if stem in self._stems else name

    def find(self, name: str, sound: Sound) -> tuple[Any, float] | None:
        """Returns what there is of a recording.

        Args:
          name: its id.
          sound: where it is.

        Returns:
          The part, and how many seconds the recording begins after it: parts that are named as the
          sound's file are of the whole file. None: there is none.
        """
        if name in self._parts:
            return self._parts[name](), 0.0
        for stem, begin in ((_stem(name), 0.0), (sound.stem, sound.start_s)):
            found = self._stems.get(stem)
            if found is not None:
                return self._parts[found](), begin
        return None

    def __len__(self) -> int:
        return len(self._parts)


@dataclasses.dataclass(frozen=True)
class Heard:
    """What a recognizer heard.

    Attributes:
      text: of the whole recording.
      words: with times; None where it says no times of words.
      segments: (start, end, text); empty where there are none.
    """

    text: str
    words: tuple[TimedText, ...] | None
    segments: tuple[tuple[float, float, str], ...]


def open_units(path: pathlib.Path) -> Index:
    """Opens units that are there: int64 (U,) by recording, not deduplicated.

    Args:
      path: JSONL of SlamKit or textless-lib (a name under `file_name`, `audio` or the like; units
        as a list or as text; `duration`, a list, says how often each is repeated), a fairseq `.km`
        file with its manifest `.tsv` beside it, or a folder of `.npy` files.

    Raises:
      FileNotFoundError: it is not there, or holds nothing.
      ValueError: it is something else, in one line.
    """
    index = Index("units", path)
    if path.is_dir():
        for file in sorted(path.rglob("*.npy")):
            index.add(
                file.relative_to(path).with_suffix("").as_posix(), lambda file=file: _npy(file)
            )
    elif path.suffix == ".km":
        manifest = path.with_suffix(".tsv")
        names = [line for _, line in read_numbered_lines(manifest)][1:]
        lines = list(_offsets(path))
        if len(names) != len(lines):
            raise ValueError(f"{path} has {len(lines)} lines, expected {len(names)} as {manifest}")
        for name, (place, offset) in zip(names, lines, strict=True):
            index.add(
                _stem(decode_text(name, manifest).split("\t")[0]),
                lambda place=place, offset=offset: _spelled(
                    decode_text(_line(path, offset), place), place
                ),
            )
    else:
        for place, offset in _offsets(path):
            name = _first(parse_line(_line(path, offset), place), _NAMES, place)
            if not isinstance(name, str):
                raise ValueError(f"{place}: a name is {quote(name)}, expected text")
            index.add(
                _stem(name), lambda place=place, offset=offset: _jsonl(_line(path, offset), place)
            )
    return _not_empty(index, path)


def open_alignments(path: pathlib.Path) -> Index:
    """Opens alignments that are there: a tuple of `TimedText` by recording.

    Args:
      path: a file, or a folder of files: `.TextGrid` (the tier `words`, or the first one), `.ctm`
        (name, channel, start, length, word and perhaps a confidence, which is no score), or `.json`
        of WhisperX.

    Raises:
      FileNotFoundError, ValueError: see `open_units`.
    """
    index = Index("an alignment", path)
    for file, name in _files(path, (".TextGrid", ".ctm", ".json")):
        if file.suffix == ".TextGrid":
            index.add(name, lambda file=file: _text_grid(file))
        elif file.suffix == ".json":
            index.add(name, lambda file=file: _whisper(read_json_object(file), file).words)
        else:
            for recording, words in _ctm(file).items():
                index.add(recording, lambda words=words: tuple(words))
    return _not_empty(index, path)


def open_transcripts(path: pathlib.Path) -> Index:
    """Opens what recognizers heard: a `Heard` by recording.

    Args:
      path: a file, or a folder of files: `.json` of Whisper or WhisperX, one a recording, or
        `.jsonl` of NeMo (`audio_filepath`, `pred_text` or `text`, `timestamp`).

    Raises:
      FileNotFoundError, ValueError: see `open_units`.
    """
    index = Index("a transcript", path)
    for file, name in _files(path, (".json", ".jsonl")):
        lines = list(_offsets(file))
        # Lines of objects, whatever the suffix.
        if file.suffix == ".jsonl" or (len(lines) > 1 and _line(file, 0).rstrip().endswith(b"}")):
            for place, offset in lines:
                fields = parse_line(_line(file, offset), place)
                name = _first(fields, _NAMES, place)
                if not isinstance(name, str):
                    raise ValueError(f"{place}: a name is {quote(name)}, expected text")
                index.add(
                    _stem(name),
                    lambda file=file, place=place, offset=offset: _nemo(
                        parse_line(_line(file, offset), place), place
                    ),
                )
        else:
            index.add(name, lambda file=file: _whisper(read_json_object(file), file))
    return _not_empty(index, path)


def _npy(file: pathlib.Path) -> np.ndarray:
    return _check_units(read_weights(file), None, file)


def _jsonl(line: bytes, place: str) -> np.ndarray:
    fields = parse_line(line, place)
    units = _first(fields, _UNITS, place)
    values = _spelled(units, place) if isinstance(units, str) else _integers(units)
    lengths = fields.get("duration", fields.get("durations"))
    if isinstance(lengths, list):
        return _check_units(values, lengths, place)
    if lengths is not None:  # of the whole recording
        need_seconds(lengths, place)
    return _check_units(values, None, place)


def _integers(values: Any) -> Any:
    """Returns a list of integers as an array, anything else as it is."""
    is_list = isinstance(values, list) and all(type(x) is int and abs(x) < 2**63 for x in values)
    return np.array(values, np.int64) if is_list else values


def _spelled(text: str, place: object) -> np.ndarray:
    if not _ENTIRELY_SPELLED.fullmatch(text):
        raise ValueError(f"{place}: units are {quote(text)}, expected 1 2 3, <Un1> or [Hu1]")
    found = ["".join(groups) for groups in _SPELLED.findall(text)]
    return _check_units(np.array([int(unit[:18]) for unit in found], np.int64), None, place)


def _check_units(units: Any, lengths: list[Any] | None, place: object) -> np.ndarray:
    is_array = isinstance(units, np.ndarray)
    if not is_array or units.ndim != 1 or not units.size or units.dtype.kind not in "iu":
        found = f"{units.dtype} {units.shape}" if is_array else quote(units)
        raise ValueError(f"{place}: units are {found}, expected whole numbers in a row")
    if lengths is None:
        return units.astype(np.int64)
    repeats = _integers(lengths)
    if not isinstance(repeats, np.ndarray) or repeats.shape != units.shape:
        raise ValueError(f"{place}: {len(lengths)} durations, expected {units.size} whole numbers")
    if (repeats < 1).any() or repeats.sum(dtype=np.float64) > _MOST_UNITS:
        raise ValueError(f"{place}: durations sum to {repeats.sum()}, expected at least 1 each")
    return np.repeat(units.astype(np.int64), repeats)


def _text_grid(file: pathlib.Path) -> tuple[TimedText, ...]:
    """Returns the words of a TextGrid; long and short ones hold the same values in one order."""
    check_regular(file)
    data = file.read_bytes()
    wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{file} is neither UTF-8 nor UTF-16, expected a TextGrid") from None
    found = re.findall(r'"((?:[^"]|"")*)"|(?<![\w.\[])(-?\d[\d.eE+-]*)(?![\w\]])', text)
    values = iter(found)

    def number() -> float:
        quoted, digits = next(values)
        try:
            if abs(value := float(digits)) < 1e9:
                return value
        except ValueError:
            pass
        raise ValueError(f"{file}: found {quote(digits or quoted)}, expected a number below 1e9")

    tiers: list[tuple[str, list[tuple[float, float, str]]]] = []
    try:
        if [next(values)[0] for _ in range(2)] != ["ooTextFile", "TextGrid"]:
            raise ValueError(
                f"{file} is no TextGrid: expected ooTextFile and TextGrid at its start"
            )
        _, _, count = number(), number(), int(number())
        for _ in range(count):
            kind, name = next(values)[0], next(values)[0]
            _, _, size = number(), number(), int(number())
            entries = []
            for _ in range(size):
                start, end = number(), number() if kind == "IntervalTier" else 0.0
                entries.append((start, end, next(values)[0].replace('""', '"')))
            if kind == "IntervalTier":
                tiers.append((name, entries))
    except StopIteration:
        raise ValueError(f"{file} ends early, expected a whole TextGrid") from None
    if not tiers:
        raise ValueError(f"{file} has no tier of intervals, expected one of words")
    words = by_key((t for t in tiers if t[0] == "words"), file).get("words", tiers[0][1])
    return tuple(TimedText(t.strip(), a, b) for a, b, t in words if _is_word(t))


def _ctm(file: pathlib.Path) -> dict[str, list[TimedText]]:
    found: dict[str, list[TimedText]] = {}
    for number, line in read_numbered_lines(file):
        place = f"{file}:{number}"
        cells = decode_text(line, place).split()
        if not cells or cells[0].startswith(";;"):
            continue
        if len(cells) < 5:
            raise ValueError(
                f"{place} has {len(cells)} cells, expected name channel start length word"
            )
        start, length = need_seconds(cells[2], place), need_seconds(cells[3], place)
        words = found.setdefault(cells[0], [])
        if _is_word(cells[4]):
            words.append(TimedText(cells[4], start, start + length))
    return found


def _whisper(fields: Mapping[str, Any], place: object) -> Heard:
    segments = fields.get("segments")
    if not isinstance(segments, list) or not all(isinstance(s, dict) for s in segments):
        raise ValueError(f"{place}: segments is {quote(segments)}, expected a list of objects")
    words: list[TimedText] = []
    texts: list[tuple[float, float, str]] = []
    timed = bool(segments)
    for segment in segments:
        has_words = isinstance(segment.get("words"), list)
        timed &= has_words
        if has_words:
            words += _words(segment["words"], "word", place)
        text = _clean(segment.get("text", "" if has_words else None), place)
        if text:
            start, end = (need_seconds(segment.get(name), place) for name in ("start", "end"))
            texts.append((start, end, text))
    whole = " ".join(text for _, _, text in texts)
    return Heard(whole, tuple(words) if timed else None, tuple(texts))


def _nemo(fields: Mapping[str, Any], place: str) -> Heard:
    text = _clean(_first(fields, ("pred_text", "text"), place), place)
    times = fields.get("timestamp") or {}
    if not isinstance(times, dict):
        raise ValueError(f"{place}: timestamp is {quote(times)}, expected an object")
    words = _words(times["word"], "word", place) if "word" in times else None
    segments = [
        (word.start_s, word.end_s, word.text)
        for word in _words(times.get("segment") or [], "segment", place)
    ]
    return Heard(text, tuple(words) if words is not None else None, tuple(segments))


def _words(items: Any, key: str, place: object) -> list[TimedText]:
    """Returns words; one without times gets those between its neighbors."""
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError(f"{place}: words are {quote(items)}, expected a list of objects")
    found = []
    for item in items:
        text = _clean(item.get(key), place)
        if not text:
            continue
        known = item.get("start") is not None and item.get("end") is not None
        start, end = (need_seconds(item[k], place) if known else -1.0 for k in ("start", "end"))
        found.append(TimedText(text, start, end))
    later = 0.0
    ends = []  # of words without times, which WhisperX has for numbers: where the next one starts
    for word in reversed(found):
        later = word.start_s if word.start_s >= 0 else later
        ends.append(later)
    last = 0.0
    for number, (word, end) in enumerate(zip(found, reversed(ends), strict=True)):
        if word.start_s < 0:
            found[number] = TimedText(word.text, last, max(last, end))
        last = found[number].end_s
    return found


def _files(path: pathlib.Path, suffixes: tuple[str, ...]) -> Iterator[tuple[pathlib.Path, str]]:
    """Yields files, each with its name without suffix, below a folder or alone."""
    if not path.is_dir():
        check_regular(path)
        if path.suffix not in suffixes:
            raise ValueError(f"{path} has the suffix {quote(path.suffix)}, expected {suffixes}")
        yield path, path.stem
        return
    for file in sorted(path.rglob("*")):
        if file.suffix in suffixes and file.is_file():
            yield file, file.relative_to(path).with_suffix("").as_posix()


def _offsets(path: pathlib.Path) -> Iterator[tuple[str, int]]:
    """Yields every line's place and offset in bytes."""
    check_encoding(path)
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            yield f"{path}:{number}", offset
            offset += len(line)


def _line(path: pathlib.Path, offset: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.readline()


def _not_empty(index: Index, path: pathlib.Path) -> Index:
    if not len(index):
        raise FileNotFoundError(f"{path} holds nothing of a known form, expected some")
    return index


def _first(fields: Mapping[str, Any], keys: tuple[str, ...], place: object) -> Any:
    for key in keys:
        if fields.get(key) is not None:
            return fields[key]
    raise ValueError(f"{place}: none of {', '.join(keys)}, expected one")


def _clean(value: Any, place: object) -> str:
    if not isinstance(value, str) or not is_unicode(value):
        raise ValueError(f"{place}: a text is {quote(value)}, expected text")
    return " ".join(value.split())


def _is_word(text: str) -> bool:
    return text.strip().lower() not in _NO_WORDS


def _stem(name: str) -> str:
    return (
        pathlib.PurePosixPath(name).name.rsplit(".", 1)[0] if "." in name else name.split("/")[-1]
    )
