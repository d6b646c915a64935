"""Items of an evaluation set: drafts without units, made into lines of a file, a part at a time.

A part's file appears whole and depends on its drafts alone, so a killed run goes on where it was
and ends with the same bytes. An item of which any recording fails is rejected as a whole, with a
reason.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from data_pipelines.speech.audio import float_samples, resample
from data_pipelines.speech.parts import Parts
from data_pipelines.speech.preparing import decode, find_silence
from data_pipelines.speech.recordings import Recording, Sound
from lst_jax.files import refuse_to_replace, write_file, write_json
from lst_jax.settings import one_line, quote, require
from lst_jax.speech.interfaces import Rejection, Synthesizer, UnitEncoder
from lst_jax.strict_json import read_json_object

ITEMS, REJECTS, SETTINGS = "items.jsonl", "rejects.jsonl", "settings.json"
_LONGEST_S = 600.0  # of a recording


@dataclasses.dataclass(frozen=True)
class UnencodedItem:
    """An item before its units are known.

    Attributes:
      id: its name, once in its set.
      sources: what is made units of: the path of a recording, or a text to be spoken.
      build: makes the item of the units of each, as JSON values.
    """

    id: str
    sources: tuple[Any, ...]
    build: Callable[[list[list[int]]], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class ReleasedSet:
    """A set as it was found.

    Attributes:
      name: of the set.
      drafts: its items, in order.
      count: what the papers count: items, or pairs over their voices.
      stated: the counts that they state; several where a release has parts, none of what has no
        pairs.
      fingerprint: SHA-256, hexadecimal, of what says which items there are.
    """

    name: str
    drafts: Sequence[UnencodedItem]
    count: int
    stated: tuple[int, ...]
    fingerprint: str

    def check_count(self, source: object) -> None:
        """Raises a `ValueError` unless there are as many as the papers state."""
        expected = " or ".join(f"{count:,}" for count in self.stated)
        require(
            not self.stated or self.count in self.stated,
            f"{source}: the number of items of {self.name}",
            self.count,
            f"{expected}, as published; --subset takes a part",
        )


# From a draft to the waveforms of its sources, at the encoder's rate, or why there are none.
Load = Callable[[UnencodedItem], "list[np.ndarray] | Rejection"]


def load_recordings(encoder: UnitEncoder) -> Load:
    """Returns what reads sources that are paths."""

    def load(draft: UnencodedItem) -> list[np.ndarray] | Rejection:
        waveforms = []
        for path in draft.sources:
            found = decode(Recording(path.name, Sound(path)), [encoder.sample_rate], _LONGEST_S)
            if isinstance(found, Rejection):
                return dataclasses.replace(found, reason=f"{path.name}: {found.reason}")
            waveforms.append(found[encoder.sample_rate])
        return waveforms

    return load


def choose_voice(item_id: str, count: int, seed: int) -> int:
    """Returns which of so many voices speaks an item; by its name, whatever other items there are.

    Args:
      item_id: name of the item.
      count: of the voices.
      seed: another one gives another choice.
    """
    digest = hashlib.sha256(f"{seed}:{item_id}".encode("utf-8", "backslashreplace")).digest()
    return int.from_bytes(digest[:8], "big") % count


def speak_texts(synthesizers: Sequence[Synthesizer], seed: int, encoder: UnitEncoder) -> Load:
    """Returns what speaks sources that are texts, all of a draft by one voice.

    Args:
      synthesizers: voices to choose from.
      seed: of the choice.
      encoder: hears them.
    """

    def load(draft: UnencodedItem) -> list[np.ndarray] | Rejection:
        for text in draft.sources:
            if not any(map(str.isalnum, text)):
                return Rejection("no-words", f"a text is {quote(text)}, expected words")
        synthesizer = synthesizers[choose_voice(draft.id, len(synthesizers), seed)]
        try:
            sounds = [float_samples(x) for x in synthesizer.synthesize([*draft.sources])]
        except (Exception, SystemExit) as error:  # whatever one of the user's raises for an item
            reason = one_line(str(error)) or type(error).__name__
            return Rejection("synthesizer", reason)
        if len(sounds) != len(draft.sources):
            reason = f"it returned {len(sounds)} waveforms, expected {len(draft.sources)}"
            return Rejection("synthesizer", reason)
        for text, sound in zip(draft.sources, sounds, strict=True):
            if silence := find_silence(sound):
                return Rejection(silence.kind, f"{quote(text)}: {silence.reason}")
        return [resample(x, synthesizer.sample_rate, encoder.sample_rate) for x in sounds]

    return load


def make_items(
    drafts: Sequence[UnencodedItem], load: Load, encoder: UnitEncoder
) -> Iterator[dict[str, Any] | Rejection]:
    """Yields the item of each draft, or why there is none.

    Args:
      drafts: as many as are encoded together.
      load: gives their waveforms.
      encoder: makes units of these.
    """
    loaded = [load(draft) for draft in drafts]
    waveforms = [w for found in loaded if not isinstance(found, Rejection) for w in found]
    encoded = iter(encoder.encode(waveforms) if waveforms else [])
    for draft, found in zip(drafts, loaded, strict=True):
        if isinstance(found, Rejection):
            yield found
            continue
        units: list[list[int]] = []
        rejection = None
        for result in [next(encoded) for _ in found]:
            if isinstance(result, Rejection):
                rejection = rejection or result
            else:
                units.append(result.tolist())
        yield rejection or {
            **draft.build(units),
            "encoder_fingerprint": encoder.fingerprint,
        }


def write_set(
    output: pathlib.Path,
    drafts: Sequence[UnencodedItem],
    settings: dict[str, Any],
    load: Load,
    encoder: UnitEncoder,
    *,
    items_per_part: int,
    max_reject_share: float,
    progress: Callable[[int, int], None],
) -> tuple[int, int]:
    """Writes the items of drafts, and what became none, to a folder.

    Args:
      output: the folder; it has parts while the work goes on.
      drafts: in the order of the file.
      settings: all that decides what the items are, as JSON values.
      load, encoder: see `make_items`.
      items_per_part: drafts whose items appear together.
      max_reject_share: largest share of drafts that become no item.
      progress: is called after every part with the drafts done and in all.

    Returns:
      The number of items and of rejects.

    Raises:
      FileExistsError: the folder holds something else.
      ValueError: the folder has items of other settings, or too many drafts become none.
    """
    folder = output / "parts"
    begun = any((place / SETTINGS).is_file() for place in (output, folder))
    was_there = output.exists()
    if was_there and not begun:  # nothing there is of such a run
        refuse_to_replace(output)
    if not folder.exists() and (output / ITEMS).is_file():
        Parts.check_settings(output / SETTINGS, settings)
        return _count_lines(output / ITEMS), _count_lines(output / REJECTS)
    for path in (output / SETTINGS, folder / SETTINGS):
        Parts.check_settings(path, settings)
    write_json(folder / SETTINGS, settings)
    lines: list[str] = []
    rejects: list[dict[str, str]] = []
    rejecting: list[pathlib.Path] = []
    for begin in range(0, len(drafts), items_per_part):
        part = drafts[begin : begin + items_per_part]
        path = folder / f"{begin:09d}.json"
        if not path.is_file():
            write_json(path, _make_part(part, load, encoder))
        done = read_json_object(path)
        lines += done["items"]
        rejects += done["rejects"]
        rejecting += [path] if done["rejects"] else []
        if len(rejects) > max_reject_share * len(drafts):
            for rejected in rejecting:  # they are tried again, when the cause may have gone
                rejected.unlink()
            if len(rejecting) * items_per_part > begin:  # no part is left
                shutil.rmtree(folder)
                if not was_there:
                    output.rmdir()
            first = rejects[0]
            raise ValueError(
                f"{len(rejects):,} of {len(drafts):,} items were rejected, expected at most "
                f"--max_reject_share={max_reject_share:g}; the first, {quote(first['id'])}: "
                f"{first['kind']}, {first['reason']}"
            )
        progress(begin + len(part), len(drafts))
    rejected = [json.dumps(reject, ensure_ascii=False) for reject in rejects]
    for name, texts in ((REJECTS, rejected), (ITEMS, lines)):
        text = "".join(f"{line}\n" for line in texts)
        write_file(output / name, text.encode("utf-8", "backslashreplace"))
    write_json(output / SETTINGS, settings)
    shutil.rmtree(folder)
    return len(lines), len(rejects)


def _count_lines(path: pathlib.Path) -> int:
    return path.read_bytes().count(b"\n")


def _make_part(
    drafts: Sequence[UnencodedItem], load: Load, encoder: UnitEncoder
) -> dict[str, list[Any]]:
    items: list[str] = []
    rejects: list[dict[str, str]] = []
    for draft, made in zip(drafts, make_items(drafts, load, encoder), strict=True):
        if isinstance(made, Rejection):
            rejects.append({"id": draft.id, "kind": made.kind, "reason": made.reason})
        else:
            items.append(json.dumps(made, ensure_ascii=False))
    return {"items": items, "rejects": rejects}
