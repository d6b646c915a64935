"""Stories with endings to choose from, as they are published in text: HellaSwag, StoryCloze.

Files are JSON lines or CSV with a header; which set one is of, its columns say:

| set        | columns, or keys                                                              |
|------------|-------------------------------------------------------------------------------|
| HellaSwag  | `ctx`, `endings` (in CSV a JSON list), `label` from 0                         |
| StoryCloze | `InputSentence1` … `InputSentence4`, `RandomFifthSentenceQuiz1` and `…2`,     |
|            | `AnswerRightEnding` from 1; or the same as Hugging Face names them            |

HellaSwag's marks are no words and are not spoken: `[title]` ends a sentence, `[header]`, `[step]`
and others are left out. The texts of the items are those that are spoken.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from data_pipelines.evaluation_sets.items import ReleasedSet, UnencodedItem
from data_pipelines.speech.manifests import need_text, read_csv, read_jsonl
from lst_jax.settings import list_names, quote
from lst_jax.strict_json import parse_json

_TITLE = re.compile(r"([.!?:;,]?)\s*\[title\]\s*")
_MARK = re.compile(r"\[[a-z ]*\]")


@dataclasses.dataclass(frozen=True)
class _Columns:
    """Where a set has its stories.

    Attributes:
      name: of the set.
      id: column of a story's name; "" where its line is its name.
      prompt: columns that together are the story.
      endings: columns of an ending each; one alone is a list of them.
      label: column of the right ending's number.
      first: number of the first ending.
      stated: stories of the file that evaluations use.
    """

    name: str
    id: str
    prompt: tuple[str, ...]
    endings: tuple[str, ...]
    label: str
    first: int
    stated: int


_STORY_CLOZE = _Columns(
    "StoryCloze",
    "InputStoryid",
    tuple(f"InputSentence{i}" for i in range(1, 5)),
    ("RandomFifthSentenceQuiz1", "RandomFifthSentenceQuiz2"),
    "AnswerRightEnding",
    1,
    1_871,
)
_SETS = (
    _Columns("HellaSwag", "", ("ctx",), ("endings",), "label", 0, 10_042),
    _STORY_CLOZE,
    dataclasses.replace(
        _STORY_CLOZE,
        id="story_id",
        prompt=tuple(f"input_sentence_{i}" for i in range(1, 5)),
        endings=("sentence_quiz1", "sentence_quiz2"),
        label="answer_right_ending",
    ),
)


def read_texts(path: pathlib.Path) -> ReleasedSet:
    """Reads a file of stories; its drafts have texts to be spoken, the prompt first.

    Raises:
      OSError: the file cannot be read.
      ValueError: in one line that names file and line, what is not as it was published.
    """
    drafts: dict[str, UnencodedItem] = {}
    columns: _Columns | None = None
    for number, (place, fields) in enumerate(_read_rows(path)):
        columns = columns or _find_columns(fields, path)
        draft = _read_story(columns, number, place, fields)
        if draft.id in drafts:
            raise ValueError(f"{place}: the story {quote(draft.id)} is there twice, expected once")
        drafts[draft.id] = draft
    if columns is None:
        raise ValueError(f"{path} has no stories, expected one a line")
    fingerprint = hashlib.sha256(path.read_bytes()).hexdigest()
    stories = list(drafts.values())
    return ReleasedSet(columns.name, stories, len(stories), (columns.stated,), fingerprint)


def _read_rows(path: pathlib.Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if path.suffix.lower() == ".csv":
        return read_csv(path, ())
    return read_jsonl(path)


def _find_columns(fields: Mapping[str, Any], path: pathlib.Path) -> _Columns:
    for columns in _SETS:
        if {*columns.prompt, *columns.endings} <= set(fields):
            return columns
    expected = " or ".join(", ".join((*x.prompt, *x.endings, x.label)) for x in _SETS[:2])
    raise ValueError(f"{path} has the columns {list_names(fields)}, expected {expected}")


def _read_story(
    columns: _Columns, number: int, place: str, fields: Mapping[str, Any]
) -> UnencodedItem:
    name = need_text(fields, columns.id, place) if columns.id else str(number)
    prompt = " ".join(need_text(fields, key, place) for key in columns.prompt)
    key, *others = columns.endings
    if others:
        endings: Any = [need_text(fields, column, place) for column in columns.endings]
    else:
        endings = fields.get(key)
        if isinstance(endings, str):
            try:
                endings = parse_json(endings)
            except ValueError as error:
                raise ValueError(
                    f"{place}: {key} is {quote(endings)}, expected a JSON list of texts: {error}"
                ) from None
        is_texts = isinstance(endings, list) and all(isinstance(x, str) for x in endings)
        if not is_texts or len(endings) < 2:
            raise ValueError(f"{place}: {key} is {quote(endings)}, expected two texts or more")
    label = fields.get(columns.label)
    text = str(label) if type(label) in (int, str) else ""
    last = columns.first + len(endings) - 1
    if not (text.isdecimal() and len(text) < 9 and columns.first <= int(text) <= last):
        raise ValueError(
            f"{place}: {columns.label} is {quote(label)}, expected {columns.first} … {last}, the "
            "right ending's number"
        )
    texts = tuple(_spoken(text) for text in (prompt, *endings))
    right = int(text) - columns.first

    def build(units: list[list[int]]) -> dict[str, Any]:
        passages = [{"text": t, "units": u} for t, u in zip(texts, units, strict=True)]
        about = {"id": name, "set": columns.name, "prompt": passages[0]}
        return {**about, "endings": passages[1:], "label": right}

    return UnencodedItem(name, texts, build)


def _spoken(text: str) -> str:
    """Returns a text without the marks of HellaSwag."""
    text = _TITLE.sub(lambda found: f"{found[1] or '.'} ", text)
    return " ".join(_MARK.sub(" ", text).split()).removeprefix(". ")
