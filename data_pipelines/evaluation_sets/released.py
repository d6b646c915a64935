"""Spoken evaluation sets as they were released: folders of recordings.

| kind               | layout                                                                   |
|--------------------|--------------------------------------------------------------------------|
| `swuggy`           | `lexical/SPLIT/*.wav` and `gold.csv` of ZeroSpeech 2021                  |
| `sblimp`           | `syntactic/SPLIT/*.wav` and `gold.csv` of ZeroSpeech 2021                |
| `storycloze`       | `N_correct.wav` and `N_incorrect.wav`, whole stories, in any folders     |
| `topicstorycloze`  | the same                                                                 |

All become minimal pairs (`lst_jax/evaluation/minimal_pairs.py`). A row of `gold.csv` is a
recording; the two rows of one `id` and `voice` (and `type` and `subtype` of sBLIMP) are a pair, and
the pairs of one `id` are versions of it, which count by their mean, as in the challenge. The test
splits are released without `gold.csv`: their recordings become items alone, for a submission.
Counts are those of the benchmark's paper (Nguyen et al., 2020), and of StoryCloze's test file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data_pipelines.evaluation_sets.items import ReleasedSet, UnencodedItem
from data_pipelines.speech.manifests import by_key, read_csv
from data_pipelines.speech.readers import SOUND_SUFFIXES
from lst_jax.settings import list_names, quote


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A kind of set.

    Attributes:
      name: of the set.
      task: folder in ZeroSpeech's layout; "" for folders of stories.
      names: columns of `gold.csv` that name a pair; with `voice` they name a version of it.
      stated: number of pairs, by split.
    """

    name: str
    task: str
    names: tuple[str, ...]
    stated: Mapping[str, tuple[int, ...]]


# sWUGGY: words of the training set alone, or those and as many that it lacks.
KINDS = {
    "swuggy": _Kind(
        "sWUGGY", "lexical", ("id",), {"dev": (5_000, 10_000), "test": (20_000, 40_000)}
    ),
    "sblimp": _Kind(
        "sBLIMP",
        "syntactic",
        ("type", "subtype", "id"),
        {"dev": (6_300,), "test": (63_000,)},
    ),
    "storycloze": _Kind("StoryCloze", "", (), {"test": (1_871,)}),
    "topicstorycloze": _Kind("TopicStoryCloze", "", (), {"test": (1_871,)}),
}
_STORY = re.compile(r"(.+)_(correct|incorrect)")
# Occurrences of a word in LibriSpeech that the challenge counts together: first one, and name.
_BANDS = ((0, "oov"), (1, "1-5"), (6, "6-20"), (21, "21-100"), (101, ">100"))


def read_released(kind: str, root: pathlib.Path, split: str) -> ReleasedSet:
    """Reads which items a set has.

    Args:
      kind: one of `KINDS`.
      root: folder of the set; of ZeroSpeech's, the one that has `lexical` or `syntactic`.
      split: "dev" or "test".

    Raises:
      OSError: a file is not there or cannot be read.
      ValueError: in one line, what is not as it was published.
    """
    found = KINDS[kind]
    if split not in found.stated:
        raise ValueError(
            f"--split is {quote(split)}, expected {list_names(found.stated)} of {found.name}"
        )
    if found.task:
        return _read_zerospeech(found, root, split)
    return _read_stories(found, root)


def _read_zerospeech(kind: _Kind, root: pathlib.Path, split: str) -> ReleasedSet:
    folder = root / kind.task / split
    gold = folder / "gold.csv"
    if split == "test" and not gold.exists():
        return _read_unpaired(kind, folder)
    columns = ("filename", "voice", "correct", *kind.names)
    sounds = _sounds(folder)
    rows: dict[tuple[str, ...], dict[str, tuple[str, dict[str, str]]]] = {}
    for place, row in read_csv(gold, columns):
        name, correct = row["filename"], row["correct"]
        if correct not in ("0", "1"):
            raise ValueError(f"{place}: correct is {quote(correct)}, expected 0 or 1")
        if _stem(name) not in sounds:
            raise ValueError(f"{place}: filename is {quote(name)}, expected a recording beside it")
        version = rows.setdefault(tuple(row[c] for c in (*kind.names, "voice")), {})
        if correct in version:
            raise ValueError(
                f"{place}: another row of {quote(' '.join(row[c] for c in kind.names))} by voice "
                f"{quote(row['voice'])} has correct = {correct}, expected one with each of 0 and 1 "
                f"({version[correct][0]})"
            )
        version[correct] = place, row
    drafts = []
    for key, version in rows.items():
        if len(version) < 2:
            ((place, row),) = version.values()
            raise ValueError(
                f"{place}: {quote(row['filename'])} has no partner of the same "
                f"{', '.join(kind.names)} and voice, expected one with correct = "
                f"{1 - int(row['correct'])}"
            )
        members = [version["1"][1], version["0"][1]]
        place = version["1"][0]
        category = _band(members[0], place) if kind.task == "lexical" else members[0]["type"]
        pair = "/".join(key[:-1])
        names = [f"{kind.task}/{split}/{row['filename']}" for row in members]
        sources = tuple(sounds[_stem(row["filename"])] for row in members)
        about = {"set": kind.name, "category": category or None, "pair": pair}
        drafts.append(_draft(f"{pair}/{key[-1]}", about, sources, names))
    if not drafts:
        raise ValueError(f"{gold} has no rows, expected pairs of recordings")
    pairs = {key[:-1] for key in rows}
    fingerprint = hashlib.sha256(gold.read_bytes()).hexdigest()
    return ReleasedSet(kind.name, drafts, len(pairs), kind.stated[split], fingerprint)


def _read_unpaired(kind: _Kind, folder: pathlib.Path) -> ReleasedSet:
    """Reads recordings of which nobody says which are right, or pairs."""
    sounds = _sounds(folder)
    if not sounds:
        raise FileNotFoundError(f"input {folder} holds no recording, expected some")
    about = {"set": kind.name}
    drafts = [
        _draft(name, about, (path,), [f"{kind.task}/{folder.name}/{name}"])
        for name, path in sounds.items()
    ]
    return ReleasedSet(kind.name, drafts, len(drafts), (), _fingerprint(sounds))


def _read_stories(kind: _Kind, root: pathlib.Path) -> ReleasedSet:
    stories: dict[str, dict[str, pathlib.Path]] = {}
    for path in _sounds(root, deep=True).values():
        matched = _STORY.fullmatch(path.relative_to(root).with_suffix("").as_posix())
        if matched is None:
            raise ValueError(
                f"{root} has {quote(path.name)}, expected N_correct.wav and N_incorrect.wav alone"
            )
        stories.setdefault(matched[1], {})[matched[2]] = path
    if not stories:
        raise FileNotFoundError(f"input {root} holds no recording, expected N_correct.wav")
    drafts = []
    for name, members in sorted(stories.items(), key=lambda story: (len(story[0]), story[0])):
        if len(members) < 2:
            (path,) = members.values()
            raise ValueError(f"{path} has no partner, expected N_correct and N_incorrect of each N")
        sources = members["correct"], members["incorrect"]
        drafts.append(_draft(name, {"set": kind.name}, sources, None))
    return ReleasedSet(kind.name, drafts, len(drafts), kind.stated["test"], _fingerprint(stories))


def _fingerprint(names: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(names).encode("utf-8", "backslashreplace")).hexdigest()


def _draft(
    name: str,
    about: Mapping[str, Any],
    sources: tuple[pathlib.Path, ...],
    files: Sequence[str] | None,
) -> UnencodedItem:
    """Returns the draft of a minimal pair whose first member is the right one, or of one alone."""
    correct = {"correct": 0} if len(sources) == 2 else {}

    def build(units: list[list[int]]) -> dict[str, Any]:
        members: list[dict[str, Any]] = [{"units": each} for each in units]
        for member, file in zip(members, files or (), strict=files is not None):
            member["file"] = file
        return {"id": name, **about, "members": members, **correct}

    return UnencodedItem(name, sources, build)


def _sounds(folder: pathlib.Path, *, deep: bool = False) -> dict[str, pathlib.Path]:
    """Returns recordings by their paths below a folder, without suffix."""
    if not folder.is_dir():
        raise FileNotFoundError(f"input {folder}: no such folder")
    found = sorted(folder.rglob("*") if deep else folder.iterdir())
    sounds = [path for path in found if path.suffix.lower() in SOUND_SUFFIXES]
    names = (path.relative_to(folder).with_suffix("").as_posix() for path in sounds)
    return by_key(zip(names, sounds, strict=True), folder)


def _stem(name: str) -> str:
    """Returns a name of `gold.csv` without a suffix, which some releases have."""
    path = pathlib.PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in SOUND_SUFFIXES else name


def _band(row: Mapping[str, str], place: str) -> str | None:
    """Returns how often a word was heard in training, as the challenge counts; None: not known."""
    text = row.get("frequency", "")
    if text in ("", "oov"):
        return text or None
    try:
        frequency = float(text)
    except ValueError:
        frequency = -1.0
    if not 0 <= frequency < float("inf"):
        raise ValueError(f"{place}: frequency is {quote(text)}, expected a count")
    return next(name for first, name in reversed(_BANDS) if frequency >= first)
