"""Recordings of a corpus before they are decoded: where the sound is and what is known of it."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

import numpy as np

from data_pipelines.speech.audio import read_audio
from lst_jax.extras import import_extra
from lst_jax.settings import one_line
from lst_jax.speech.interfaces import Rejection, TimedText

_LEAST_BYTES = 4000  # a second of Opus has
_USUAL_S = 30.0


@dataclasses.dataclass(frozen=True)
class Sound:
    """Where the sound of a recording is.

    Attributes:
      path: an audio file, a tar archive or a Parquet file.
      member: name in the archive, for messages; "" where the path is the audio file.
      place: of a tar, offset and size in bytes; of a Parquet file, row group and row in it.
      start_s, end_s: the part of the file, in seconds; None ends with it.
      channel: the one that is meant; None averages all.
    """

    path: pathlib.Path
    member: str = ""
    place: tuple[int, int] | None = None
    start_s: float = 0.0
    end_s: float | None = None
    channel: int | None = None

    @property
    def stem(self) -> str:
        """Returns the name of the audio file without folders and suffix."""
        return pathlib.PurePosixPath(self.member or self.path.name).stem

    def load(self, sample_rate: int, longest_s: float) -> np.ndarray:
        """Returns the samples, see `read_audio`; a missing file is a `ValueError`, too.

        Of what is longer than `longest_s`, a second more is read, so that it can be told.
        """
        name = f"{self.path}:{self.member}" if self.member else str(self.path)
        end = min(self.start_s + longest_s + 1, self.end_s or float("inf"))
        part = {"start_s": self.start_s, "end_s": end, "channel": self.channel}
        try:
            source = self.path if self.place is None else self._read_member(*self.place)
            return read_audio(source, sample_rate, name=name, **part)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ValueError(one_line(f"{name} cannot be read: {reason}")) from error

    def _read_member(self, first: int, second: int) -> bytes:
        if self.path.suffix == ".parquet":
            return _read_sounds(self.path, first)[second] or b""
        with self.path.open("rb") as file:
            file.seek(first)
            data = file.read(second)
        if len(data) != second:
            raise ValueError(
                f"{self.path}:{self.member} ends early: it has {len(data)} bytes, expected {second}"
            )
        return data


@functools.lru_cache(maxsize=1)  # recordings come in the order of the rows
def _read_sounds(path: pathlib.Path, row_group: int) -> list[bytes | None]:
    parquet = import_extra("parquet", "pyarrow.parquet")
    column: Any = parquet.ParquetFile(path).read_row_group(row_group, columns=["audio.bytes"])
    return [row and row["bytes"] for row in column.column("audio").to_pylist()]


@dataclasses.dataclass(frozen=True)
class Recording:
    """An utterance of a corpus.

    Attributes:
      id: its name, once in a corpus; never used as a path.
      sound: where its samples are.
      transcript: what is said. None: unknown.
      words: when each word is said, from the start of the sound. None: unknown.
      speaker, license, source: see `Utterance`.
      duration_s: how long it is by its manifest, in seconds. None: it does not say.
      rejection: why the corpus itself says that this is no speech to learn from.
    """

    id: str
    sound: Sound
    transcript: str | None = None
    words: tuple[TimedText, ...] | None = None
    speaker: str | None = None
    license: str | None = None
    source: str | None = None
    duration_s: float | None = None
    rejection: Rejection | None = None

    @property
    def about_s(self) -> float:
        """Returns about how long it is, and rather too much, in seconds; decodes nothing."""
        sound = self.sound
        if self.duration_s is not None:
            return self.duration_s
        if sound.end_s is not None:
            return sound.end_s - sound.start_s
        if sound.path.suffix == ".parquet":
            return _USUAL_S
        try:
            size = sound.place[1] if sound.place else sound.path.stat().st_size
        except OSError:  # it will be a reject
            size = 0
        return size / _LEAST_BYTES
