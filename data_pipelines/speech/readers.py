"""Readers of speech corpora as their publishers lay them out: a folder or manifest → recordings.

Every reader yields recordings in an order that depends on the corpus alone, and decodes nothing.
What a manifest must have and has not is an error that names the file and what was expected: no
reader guesses. Names that a manifest gives lead to files below its folder; only manifests that are
lists of paths by design (NeMo, Lhotse) may name others.

The file is over 500 lines since each of the layouts has one short reader, and they are read side by
side.
"""

from __future__ import annotations

import errno
import itertools
import os
import pathlib
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from data_pipelines.speech.manifests import (
    by_key,
    decode_text,
    find_text,
    is_unicode,
    need_objects,
    need_seconds,
    need_text,
    parse_line,
    read_jsonl,
    read_table,
    split_lines,
)
from data_pipelines.speech.recordings import Recording, Sound
from lst_jax.extras import import_extra
from lst_jax.files import check_encoding, check_regular
from lst_jax.settings import list_names, one_line, quote
from lst_jax.speech.interfaces import Rejection, TimedText
from lst_jax.strict_json import read_json_items, read_json_object

SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif")
_ABOUT_NOTHING = (None, None, None)
_CC_BY, _CC0 = "CC BY 4.0", "CC0 1.0"
_PIECE_S = 30.0  # seconds of neighboring voice in Libri-Light that make one recording
# Tags of GigaSpeech: marks belong to the word before them; the others are no speech.
_GIGA_MARKS = {"<COMMA>": ",", "<PERIOD>": ".", "<QUESTIONMARK>": "?", "<EXCLAMATIONPOINT>": "!"}
_GIGA_NO_SPEECH = {"<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>"}


def read_corpus(root: pathlib.Path, format: str) -> Iterator[Recording]:
    """Yields the recordings of a corpus.

    Args:
      root: its folder or, where the format has one, a manifest in it.
      format: one of `FORMATS`.

    Raises:
      FileNotFoundError: there is no such path, or no recording of that layout in it.
      ValueError: in one line, what in the corpus is not as its format has it, or an id twice.
    """
    if not root.exists():
        raise FileNotFoundError(f"input {root}: no such file or folder")
    seen: set[str] = set()
    for recording in FORMATS[format](root):
        if recording.id in seen:
            raise ValueError(f"{root} has the recording {quote(recording.id)} twice, expected once")
        if not recording.id.strip() or "\n" in recording.id or not is_unicode(recording.id):
            raise ValueError(f"{root} has a recording named {quote(recording.id)}, expected a name")
        seen.add(recording.id)
        yield recording
    if not seen:
        raise FileNotFoundError(f"input {root} holds no recording, expected the layout of {format}")


def _read_librispeech(root: pathlib.Path) -> Iterator[Recording]:
    chapters = {path.parent for path in root.rglob("*.flac")}
    for folder in sorted(chapters):
        sounds = _sounds(folder.glob("*.flac"))
        transcripts = by_key(
            (
                line
                for path in sorted(folder.glob("*.trans.txt"))
                for line in split_lines(path, " ", "an id, a space and a transcript")
            ),
            folder / "*.trans.txt",
        )
        _check_same(folder, sounds, transcripts, "*.trans.txt")
        for name, text in sorted(transcripts.items()):
            speaker = name.partition("-")[0]
            yield Recording(name, Sound(sounds[name]), text, None, speaker, _CC_BY, "LibriSpeech")


def _read_librilight(root: pathlib.Path) -> Iterator[Recording]:
    for path in _find(root, "*.flac"):
        about = path.with_suffix(".json")
        if not about.is_file():
            raise FileNotFoundError(f"{about}: no such file, expected it beside {path.name}")
        fields = read_json_object(about)
        name = path.relative_to(root).with_suffix("").as_posix()
        known = (find_text(fields, "speaker", about), "public domain", "Libri-Light")
        spans = fields.get("voice_activity")
        if spans is None:
            yield Recording(name, Sound(path), None, None, *known)
            continue
        for number, (start, end) in enumerate(_join_spans(spans, about)):
            yield Recording(
                f"{name}-{number:05d}", Sound(path, "", None, start, end), None, None, *known
            )


def _join_spans(spans: Any, place: pathlib.Path) -> Iterator[tuple[float, float]]:
    """Yields spans of voice, neighbors joined as long as they are together short enough."""
    expected = "voice_activity of [start, end] in order"
    if not isinstance(spans, list) or not all(isinstance(s, list) and len(s) == 2 for s in spans):
        raise ValueError(f"{place}: voice_activity is {quote(spans)}, expected {expected}")
    joined: list[list[float]] = []
    last = 0.0
    for start, end in (map(need_seconds, span, [place] * 2) for span in spans):
        if not last <= start < end:
            raise ValueError(f"{place}: voice_activity has [{start}, {end}], expected {expected}")
        last = end
        if joined and end - joined[-1][0] <= _PIECE_S:
            joined[-1][1] = end
        else:
            joined.append([start, end])
    for start, end in joined:
        yield start, end


def _read_mls(root: pathlib.Path) -> Iterator[Recording]:
    for path in _find(root, "transcripts.txt"):
        sounds = _sounds((path.parent / "audio").rglob("*"))
        for name, text in split_lines(path, "\t", "an id, a tab and a transcript"):
            speaker = name.partition("_")[0]
            sound = _look_up(sounds, name, path)
            yield Recording(name, Sound(sound), text, None, speaker, _CC_BY, "MLS")


def _read_peoples_speech(root: pathlib.Path) -> Iterator[Recording]:
    tars = _find(root, "*.tar") if root.is_dir() else []
    if tars:
        yield from _read_peoples_tars(root, tars)
        return
    parquet = import_extra("parquet", "pyarrow.parquet")
    arrow = import_extra("parquet", "pyarrow")
    for path in _find(root, "*.parquet"):
        try:
            file = parquet.ParquetFile(path)
            names = file.schema_arrow.names
            for column in ("id", "audio", "text"):
                if column not in names:
                    raise ValueError(
                        f"{path} has the columns {list_names(names)}, expected {column}"
                    )
            columns = [name for name in ("id", "text", "duration_ms") if name in names]
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group, columns=columns).to_pylist()
                for row, fields in enumerate(rows):
                    name = need_text(fields, "id", f"{path}: row {row} of group {group}")
                    sound = Sound(path, name, (group, row))
                    text = find_text(fields, "text", path)
                    said = fields.get("duration_ms")
                    duration = None if said is None else need_seconds(said, path) / 1000
                    yield Recording(
                        name, sound, text, source="People's Speech", duration_s=duration
                    )
        except (arrow.ArrowException, OSError) as error:
            raise ValueError(one_line(f"{path} cannot be read as Parquet: {error}")) from error


def _read_peoples_tars(root: pathlib.Path, tars: list[pathlib.Path]) -> Iterator[Recording]:
    """Yields what shards hold of their manifests: a line for each document with its utterances."""
    known = by_key(_peoples_lines(root), root)
    for tar in tars:
        for member in _tar_members(tar):
            name = member.name.removeprefix("./")
            text, said, place = _look_up(known, name, tar)
            sound, duration = _tar_sound(tar, member), need_seconds(said, place) / 1000
            text = find_text({"label": text}, "label", place)
            yield Recording(name, sound, text, source="People's Speech", duration_s=duration)


def _peoples_lines(root: pathlib.Path) -> Iterator[tuple[str, tuple[Any, Any, str]]]:
    """Yields what manifests say of each utterance: its name, then text, duration and place."""
    for path in sorted([*root.rglob("*.json"), *root.rglob("*.jsonl")]):
        for place, line in read_jsonl(path):
            fields = line.get("training_data")
            fields = fields if isinstance(fields, dict) else {}
            columns: list[Any] = [fields.get(key) for key in ("name", "label", "duration_ms")]
            if not all(isinstance(x, list) and len(x) == len(columns[0]) for x in columns):
                raise ValueError(
                    f"{place}: training_data is {quote(fields)}, expected lists name, label and "
                    "duration_ms of one length"
                )
            for name, text, said in zip(*columns, strict=True):
                yield str(name).removeprefix("./"), (text, said, place)


def _read_voxpopuli(root: pathlib.Path) -> Iterator[Recording]:
    for path in _find(root, "asr_*.tsv"):
        sounds = _sounds(path.parent.rglob("*.ogg"))
        for place, row in read_table(path, ("id",)):
            name = row["id"]
            text = row.get("raw_text") or row.get("normalized_text") or None
            if text is None:
                raise ValueError(
                    f"{place}: {name} has no raw_text or normalized_text, expected one"
                )
            sound = _look_up(sounds, name, place)
            speaker = row.get("speaker_id") or None
            yield Recording(name, Sound(sound), text, None, speaker, _CC0, "VoxPopuli")


def _read_common_voice(root: pathlib.Path) -> Iterator[Recording]:
    for path in _find(root, "train.tsv"):
        sounds = _sounds((path.parent / "clips").glob("*"))
        for place, row in read_table(path, ("client_id", "path", "sentence")):
            name = row["path"].removesuffix(".mp3")
            sound = _look_up(sounds, name, place)
            speaker = row["client_id"] or None
            sentence = row["sentence"] or None
            yield Recording(name, Sound(sound), sentence, None, speaker, _CC0, "Common Voice")


def _read_gigaspeech(root: pathlib.Path) -> Iterator[Recording]:
    path = root / "GigaSpeech.json" if root.is_dir() else root
    for audio in read_json_items(path, "audios"):  # of a gigabyte and more
        place = f"{path}: {need_text(audio, 'aid', path)}"
        sound = _below(path.parent, need_text(audio, "path", place), place)
        for segment in need_objects(audio, "segments", place):
            name = need_text(segment, "sid", place)
            start, end = (
                need_seconds(segment.get(key), f"{place}: {name}")
                for key in ("begin_time", "end_time")
            )
            words: list[str] = []
            tags = []
            for word in need_text(segment, "text_tn", f"{place}: {name}").split():
                if word in _GIGA_MARKS and words:
                    words[-1] += _GIGA_MARKS[word]
                elif word in _GIGA_NO_SPEECH:
                    tags.append(word)
                elif word not in _GIGA_MARKS:
                    words.append(word)
            speaker = find_text(segment, "speaker", place)
            yield Recording(
                name,
                Sound(sound, "", None, start, end),
                " ".join(words) or None,
                speaker=None if speaker == "N/A" else speaker,
                source="GigaSpeech",
                duration_s=end - start,
                rejection=None if words else Rejection("no-speech", f"the corpus says {tags}"),
            )


def _read_ljspeech(root: pathlib.Path) -> Iterator[Recording]:
    path = root / "metadata.csv" if root.is_dir() else root
    sounds = _sounds((path.parent / "wavs").glob("*.wav"))
    for name, rest in split_lines(path, "|", "id|raw|normalized"):
        raw, _, normalized = rest.partition("|")
        sound = _look_up(sounds, name, path)
        yield Recording(
            name, Sound(sound), normalized or raw, None, "LJ", "public domain", "LJ Speech"
        )


def _read_webdataset(root: pathlib.Path) -> Iterator[Recording]:
    for path in _find(root, "*.tar"):
        groups = itertools.groupby(
            _tar_members(path), lambda m: re.sub(r"\.[^/]*$", "", m.name, count=1)
        )
        for name, members in groups:
            suffixes = (("." + m.name.rsplit(".", 1)[-1].lower(), m) for m in members)
            parts = by_key(suffixes, f"{path}: {name}")
            sounds = [member for suffix, member in parts.items() if suffix in SOUND_SUFFIXES]
            if len(sounds) != 1:
                raise ValueError(f"{path}: {name} has {len(sounds)} sounds, expected one")
            text, about = None, _ABOUT_NOTHING
            if ".json" in parts:
                fields = parse_line(
                    _tar_bytes(path, parts[".json"]), f"{path}:{parts['.json'].name}"
                )
                text = next((fields[key] for key in ("text", "transcript") if key in fields), None)
                about = _about(fields, path)
            text = find_text({"text": text}, "text", f"{path}:{name}")
            if ".txt" in parts:
                place = f"{path}:{parts['.txt'].name}"
                beside = find_text(
                    {"text": decode_text(_tar_bytes(path, parts[".txt"]), place)}, "text", place
                )
                if text not in (None, beside):
                    raise ValueError(f"{place} and its .json differ, expected one transcript")
                text = beside
            yield Recording(name, _tar_sound(path, sounds[0]), text, None, *about)


def _read_lhotse(root: pathlib.Path) -> Iterator[Recording]:
    cuts = _manifests(root, "cuts")
    if cuts:
        for path in cuts:
            for place, cut in read_jsonl(path):
                sound = _lhotse_sound(cut.get("recording"), path.parent, place)
                parts = need_objects(cut, "supervisions", place)
                start = need_seconds(cut.get("start"), place)
                end = start + need_seconds(cut.get("duration"), place)
                channel = cut.get("channel")
                yield _lhotse_recording(cut, sound, parts, start, end, channel, 0.0, place)
        return
    sounds = by_key(
        (
            (need_text(fields, "id", place), _lhotse_sound(fields, path.parent, place))
            for path in _manifests(root, "recordings")
            for place, fields in read_jsonl(path)
        ),
        root,
    )
    for path in _manifests(root, "supervisions"):
        for place, fields in read_jsonl(path):
            sound = _look_up(sounds, need_text(fields, "recording_id", place), place)
            start = need_seconds(fields.get("start"), place)
            end = start + need_seconds(fields.get("duration"), place)
            channel = fields.get("channel")
            yield _lhotse_recording(fields, sound, [fields], start, end, channel, start, place)


def _lhotse_recording(
    fields: Mapping[str, Any],
    sound: pathlib.Path,
    parts: list[Any],
    start: float,
    end: float,
    channel: Any,
    origin: float,
    place: str,
) -> Recording:
    """Returns a recording of supervisions, whose words' times count from `origin`."""
    texts = [text for part in parts if (text := find_text(part, "text", place))]
    words: list[TimedText] = []
    for part in parts:
        alignment = part.get("alignment") or {}
        items = alignment.get("word", []) if isinstance(alignment, dict) else alignment
        for item in items if isinstance(items, list) else [items]:
            if not isinstance(item, list) or len(item) < 3 or not isinstance(item[0], str):
                raise ValueError(
                    f"{place}: a word is {quote(item)}, expected [word, start, length]"
                )
            begin = need_seconds(item[1], place) - origin
            words.append(TimedText(item[0], begin, begin + need_seconds(item[2], place)))
    if isinstance(channel, list):
        channel = channel[0] if len(channel) == 1 else None
    speaker = next((find_text(part, "speaker", place) for part in parts), None)
    return Recording(
        need_text(fields, "id", place),
        Sound(sound, "", None, start, end, channel),
        " ".join(texts) or None,
        tuple(word for word in words if word.text) or None,
        speaker,
        duration_s=end - start,
    )


def _lhotse_sound(fields: Any, folder: pathlib.Path, place: str) -> pathlib.Path:
    sources = fields.get("sources") if isinstance(fields, dict) else None
    if not isinstance(sources, list) or len(sources) != 1 or not isinstance(sources[0], dict):
        raise ValueError(f"{place}: sources is {quote(sources)}, expected one")
    if sources[0].get("type") != "file":  # commands are never run, nothing is downloaded
        raise ValueError(
            f"{place}: a source is of type {quote(sources[0].get('type'))}, expected file"
        )
    return folder / need_text(sources[0], "source", place)


def _read_nemo(root: pathlib.Path) -> Iterator[Recording]:
    paths = [root] if root.is_file() else sorted([*root.glob("*.json"), *root.glob("*.jsonl")])
    for path in paths:
        shards: dict[int, dict[str, Sound]] = {}
        for place, fields in read_jsonl(path):
            name = need_text(fields, "audio_filepath", place)
            start = need_seconds(fields.get("offset", 0), place)
            said = fields.get("duration")
            duration = None if said is None else need_seconds(said, place)
            shard = fields.get("shard_id")
            if shard is None:
                sound = Sound(path.parent / name)
            else:
                number = int(need_seconds(shard, place))
                if number not in shards:
                    shards[number] = _nemo_shard(path.parent, number, place)
                sound = _look_up(shards[number], name, place)
            if "offset" in fields:
                end = None if duration is None else start + duration
                sound = Sound(sound.path, sound.member, sound.place, start, end)
            stem = name if not start else f"{name}@{start:g}"
            text = find_text(fields, "text", place)
            yield Recording(stem, sound, text, None, *_about(fields, place), duration)


def _nemo_shard(folder: pathlib.Path, number: int, place: str) -> dict[str, Sound]:
    found = sorted(folder.glob(f"*_{number}.tar"))
    if len(found) != 1:
        raise ValueError(f"{place}: {len(found)} files *_{number}.tar beside it, expected one")
    members = _tar_members(found[0])
    return by_key(((member.name, _tar_sound(found[0], member)) for member in members), found[0])


def _read_folder(root: pathlib.Path) -> Iterator[Recording]:
    for path in _find(root, "*"):
        if path.suffix.lower() not in SOUND_SUFFIXES:
            continue
        beside = [path.with_suffix(suffix) for suffix in (".txt", ".lab")]
        texts = {" ".join(_read_text(file).split()) for file in beside if os.path.lexists(file)}
        if len(texts) > 1:
            raise ValueError(f"{beside[0]} and {beside[1].name} differ, expected one transcript")
        text = next(iter(texts), None)
        if text == "":
            raise ValueError(f"{beside[0]} is blank, expected a transcript, or no such file")
        yield Recording(path.relative_to(root).with_suffix("").as_posix(), Sound(path), text)


def _read_text(path: pathlib.Path) -> str:
    check_encoding(path)
    return decode_text(path.read_bytes(), path)


def _read_podcasts(root: pathlib.Path) -> Iterator[Recording]:
    abouts = by_key(((path.stem, path) for path in _find(root, "*.json")), root)
    for path in _find(root, "*"):
        if path.suffix.lower() not in SOUND_SUFFIXES:
            continue
        about = _look_up(abouts, path.stem, path)
        words: list[TimedText] = []
        for result in need_objects(read_json_object(about), "results", about):
            for best in need_objects(result, "alternatives", about)[:1]:
                # The last result repeats all words with their speakers, and has no transcript.
                if "transcript" in best:
                    words += [
                        _podcast_word(word, about) for word in need_objects(best, "words", about)
                    ]
        text = " ".join(word.text for word in words) or None
        yield Recording(
            path.relative_to(root).with_suffix("").as_posix(),
            Sound(path),
            text,
            tuple(words) or None,
        )


def _podcast_word(fields: Mapping[str, Any], place: pathlib.Path) -> TimedText:
    start, end = (
        need_seconds(re.sub(r"s$", "", need_text(fields, key, place)), place)
        for key in ("startTime", "endTime")
    )
    return TimedText(need_text(fields, "word", place), start, end)


FORMATS: dict[str, Callable[[pathlib.Path], Iterator[Recording]]] = {
    "librispeech": _read_librispeech,
    "librilight": _read_librilight,
    "mls": _read_mls,
    "peoples_speech": _read_peoples_speech,
    "voxpopuli": _read_voxpopuli,
    "common_voice": _read_common_voice,
    "gigaspeech": _read_gigaspeech,
    "ljspeech": _read_ljspeech,
    "webdataset": _read_webdataset,
    "lhotse": _read_lhotse,
    "nemo": _read_nemo,
    "folder": _read_folder,
    "podcasts": _read_podcasts,
}


def _find(root: pathlib.Path, pattern: str) -> list[pathlib.Path]:
    """Returns the files of a pattern below a folder, or the one file that was named."""
    if root.is_file():
        return [root]
    # A link that leads nowhere is a fault, not nothing.
    return sorted(path for path in root.rglob(pattern) if not path.is_dir())


def _sounds(paths: Iterable[pathlib.Path]) -> dict[str, pathlib.Path]:
    """Returns sound files by their names without suffix."""
    found = sorted(path for path in paths if path.suffix.lower() in SOUND_SUFFIXES)
    return by_key(((path.stem, path) for path in found), found and found[0].parent)


def _look_up(table: Mapping[str, Any], name: str, place: object) -> Any:
    if name not in table:
        raise ValueError(f"{place}: nothing is named {quote(name)}, expected its file")
    return table[name]


def _check_same(
    folder: pathlib.Path, sounds: Mapping[str, Any], texts: Mapping[str, str], where: str
) -> None:
    for name in sounds:
        if name not in texts:
            raise ValueError(f"{folder / where} has no transcript of {name}, expected one")
    for name in texts:
        _look_up(sounds, name, folder / where)


def _below(folder: pathlib.Path, name: str, place: object) -> pathlib.Path:
    """Returns the path of a name that a manifest gives, below its folder."""
    path = pathlib.PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ValueError(f"{place}: a path is {quote(name)}, expected one below {folder}")
    return folder / path


def _manifests(root: pathlib.Path, name: str) -> list[pathlib.Path]:
    if root.is_file():
        return [root] if name in root.name else []
    return sorted([*root.rglob(f"*{name}*.jsonl"), *root.rglob(f"*{name}*.jsonl.gz")])


def _tar_members(path: pathlib.Path) -> list[tarfile.TarInfo]:
    check_regular(path)
    size, members = path.stat().st_size, []
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                inside = 0 <= member.size <= size - member.offset_data and member.sparse is None
                if not inside:  # before tarfile looks for the next one, perhaps back here
                    raise ValueError(f"{member.name} claims {member.size} bytes, or is sparse")
                members += [member] if member.isreg() else []
    except (tarfile.TarError, *_OF_DAMAGE) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # of a place before 0
            raise
        message = f"{path} cannot be read as an uncompressed tar: {error}"
        raise ValueError(one_line(message)) from error
    return members


# What tarfile raises of headers that claim anything.
_OF_DAMAGE = (EOFError, ValueError, OverflowError, RecursionError, OSError)


def _tar_sound(path: pathlib.Path, member: tarfile.TarInfo) -> Sound:
    return Sound(path, member.name, (member.offset_data, member.size))


def _tar_bytes(path: pathlib.Path, member: tarfile.TarInfo) -> bytes:
    with path.open("rb") as file:
        file.seek(member.offset_data)
        return file.read(member.size)


def _about(fields: Mapping[str, Any], place: object) -> tuple[str | None, str | None, str | None]:
    """Returns speaker, license and source, as far as they are known."""
    speaker, license, source = (
        find_text(fields, key, place) for key in ("speaker", "license", "source")
    )
    return speaker, license, source
