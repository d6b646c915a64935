r"""Recordings to records: decoded, made units of, aligned, and written for training.

    python -m experiments.prepare_speech --input=LibriSpeech/dev-clean --format=librispeech \
        --encoder=hubert:models/mhubert,set=mhubert-base-25hz,quantizer=km.bin \
        --aligner=pocketsphinx --tokenizer=tokenizer.model --output=data/dev-clean

The output gets `records` (what `experiments.train` reads), `rejects.jsonl` (what became no record,
and why), `statistics.json` and `statistics.html`. Until it is whole, `parts` keeps what is done:
the same command goes on where a killed one was. Several processes or hosts share a corpus by
`--shard=i/n`, i from 0; when all have ended, the command without it joins their parts.

Units, alignments and transcripts that are there already are taken by `--units` (with
`--unit_count` and `--frame_rate`), `--alignment` and `--transcripts`.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags

from data_pipelines.records.storage import METADATA_NAME
from data_pipelines.speech import registry
from data_pipelines.speech.imports import open_alignments, open_transcripts, open_units
from data_pipelines.speech.parts import Decoders, Parts, batched, write_parts
from data_pipelines.speech.preparing import Outcome, Tools, UnitSource, prepare_utterances
from data_pipelines.speech.readers import FORMATS, read_corpus
from data_pipelines.speech.recordings import Recording
from experiments.common import cli
from experiments.common.encoders import define_specification
from experiments.common.outputs import check_writable
from experiments.common.paths import define_path
from lst_jax.extras import check_extra
from lst_jax.files import refuse_to_replace, write_file
from lst_jax.settings import given, quote, require
from lst_jax.speech.plausibility import PlausibilityConfig
from lst_jax.vocabulary import TextTokenizer

_INPUT = define_path("input", "Folder of the corpus, or a manifest in it.", required=True)
_FORMAT = flags.DEFINE_enum("format", None, list(FORMATS), "Layout of the corpus.", required=True)
_TOKENIZER = define_path("tokenizer", "SentencePiece model file.", required=True)
_OUTPUT = define_path("output", "Folder of the results.", required=True)
_ENCODER = define_specification("encoder", "Makes the units: KIND:ARGUMENT,OPTION=VALUE.")
_UNITS = define_path("units", "Units that are there: a file or folder, in place of --encoder.")
_UNIT_COUNT = flags.DEFINE_integer("unit_count", None, "Size of the unit set of --units.", 1, 2**20)
_FRAME_RATE = flags.DEFINE_float("frame_rate", None, "Units a second of --units.", 1, 1000)
_ALIGNER = define_specification("aligner", "Says when words are spoken: KIND:ARGUMENT.")
_ALIGNMENT = define_path("alignment", "Alignments that are there: a file or folder.")
_RECOGNIZER = define_specification("recognizer", "Hears what has no transcript: KIND.")
_TRANSCRIPTS = define_path("transcripts", "What a recognizer heard: a file or folder.")
_SHARD = flags.DEFINE_string("shard", "0/1", "i/n: makes every n-th part, the i-th first.")
_NUM_WORKERS = flags.DEFINE_integer(
    "num_workers", 0, "Processes that decode; 0: the main one does.", 0, 2**10
)
_PART = flags.DEFINE_integer(
    "recordings_per_part", 1000, "Recordings of a part, which is made as a whole.", 1, 2**20
)
_RECORDS_PER_SHARD = flags.DEFINE_integer(
    "records_per_shard", 100_000, "Records a file of the output.", 1, 2**31
)
_PIECE_SECONDS = flags.DEFINE_float(
    "piece_seconds", Tools.piece_s, "Longest recording without words; longer ones are cut.", 1, 3600
)
_MAX_SECONDS = flags.DEFINE_float(
    "max_seconds", Tools.longest_s, "Longest recording of all.", 1, 86_400
)
_LONGEST_SILENCE = flags.DEFINE_float(
    "longest_silence_s",
    PlausibilityConfig.longest_silence_s,
    "Seconds without a word.",
    0.1,
    86_400,
)
_LEAST_SCORE = flags.DEFINE_float(
    "least_score", PlausibilityConfig.least_score, "Least mean score of an alignment.", -1e3, 0
)
_MAX_REJECT_SHARE = flags.DEFINE_float(
    "max_reject_share", 0.01, "Largest share of utterances that become no record.", 0, 1
)
_MAX_UNKNOWN_SHARE = flags.DEFINE_float(
    "max_unknown_share", 0.01, "Largest share of pieces that the tokenizer cannot spell.", 0, 1
)

_SECONDS_BETWEEN_REPORTS = 10.0


def main(argv: list[str]) -> None:
    """Prepares as the flags say and prints a summary."""
    cli.check_no_arguments(argv)
    check_extra("demo", "jinja2", "matplotlib")
    shard, shards = _parse_shard(_SHARD.value)
    root, output = pathlib.Path(_INPUT.value), pathlib.Path(_OUTPUT.value)
    check_writable(output)
    known = any((output / name).is_file() for name in ("settings.json", "parts/settings.json"))
    if output.exists() and not known:
        refuse_to_replace(output)
    # A manifest is read whole before an encoder is opened, which takes long.
    count = sum(1 for _ in read_corpus(root, _FORMAT.value))
    tools = _open_tools()
    settings = _settings(root, tools)
    if (output / "records" / METADATA_NAME).is_file() and not (output / "parts").exists():
        Parts.check_settings(output / "settings.json", settings)
        print(f"{output}/records is complete already")
        return
    Parts.check_settings(output / "settings.json", settings)
    parts = Parts(output / "parts", settings)
    numbers = range(-(-count // _PART.value))
    _make_parts(parts, root, count, shard, shards, tools)
    if shards > 1:
        print(f"shard {shard} of {shards} is done; without --shard this command joins the parts")
        return
    _join(parts, numbers, output, tools)


def _parse_shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    expected = "i/n with 0 ≤ i < n"
    require(found is not None and int(found[1]) < int(found[2]), "--shard", text, expected)
    assert found is not None
    return int(found[1]), int(found[2])


def _open_tools() -> Tools:
    one = (_ENCODER.value is None) != (_UNITS.value is None)
    require(one, "--encoder", _ENCODER.value, "either an encoder or --units")
    tokenizer = TextTokenizer(_TOKENIZER.value)
    options: dict[str, Any] = {}
    for name, flag, open_index in (
        ("alignments", _ALIGNMENT, open_alignments),
        ("transcripts", _TRANSCRIPTS, open_transcripts),
    ):
        options[name] = open_index(pathlib.Path(flag.value)) if flag.value else None
    if _UNITS.value is not None:
        count = given(_UNIT_COUNT.value, "--unit_count", "that of --units")
        rate = given(_FRAME_RATE.value, "--frame_rate", "that of --units")
        units = UnitSource(rate, count, None, open_units(pathlib.Path(_UNITS.value)))
    else:
        for name, flag in (("--unit_count", _UNIT_COUNT), ("--frame_rate", _FRAME_RATE)):
            require(flag.value is None, name, flag.value, "it only beside --units")
        encoder = registry.open_encoder(given(_ENCODER.value, "--encoder", "one"))
        units = UnitSource(encoder.frame_rate, encoder.unit_count, encoder)
    plausibility = PlausibilityConfig(
        longest_silence_s=_LONGEST_SILENCE.value, least_score=_LEAST_SCORE.value
    )
    return Tools(
        units,
        tokenizer,
        registry.open_aligner(_ALIGNER.value) if _ALIGNER.value else None,
        registry.open_recognizer(_RECOGNIZER.value) if _RECOGNIZER.value else None,
        plausibility=plausibility,
        piece_s=_PIECE_SECONDS.value,
        longest_s=_MAX_SECONDS.value,
        **options,
    )


def _settings(root: pathlib.Path, tools: Tools) -> dict[str, Any]:
    """Returns all that decides what parts hold, as JSON values."""
    encoder = tools.units.encoder
    paths = {"units": _UNITS, "alignment": _ALIGNMENT, "transcripts": _TRANSCRIPTS}
    absolute = {
        name: f.value and str(pathlib.Path(f.value).absolute()) for name, f in paths.items()
    }
    return {
        "input": str(root.absolute()),
        "format": _FORMAT.value,
        "tokenizer": tools.tokenizer.fingerprint,
        "encoder": encoder.fingerprint if encoder else None,
        "unit_count": tools.units.unit_count,
        "frame_rate": tools.units.frame_rate,
        "aligner": _ALIGNER.value,
        "recognizer": _RECOGNIZER.value,
        **absolute,
        "piece_seconds": tools.piece_s,
        "max_seconds": tools.longest_s,
        "plausibility": dataclasses.asdict(tools.plausibility),
        "recordings_per_part": _PART.value,
    }


def _make_parts(
    parts: Parts, root: pathlib.Path, count: int, shard: int, shards: int, tools: Tools
) -> None:
    """Makes the parts of a shard that are not there."""
    progress, rejects = _Progress(count, shard, shards), []
    decoders = Decoders(_NUM_WORKERS.value)
    try:
        for number, recordings in enumerate(_read_parts(root)):
            if number % shards != shard:
                continue
            done = parts.summary(number, recordings)
            if done is None:
                decoded = decoders.decode(recordings, tools)
                outcomes = progress.follow(
                    prepare_utterances(recordings, tools, decoded), len(recordings)
                )
                done = parts.write(number, recordings, outcomes)
            rejects += done["rejects"]
            _check_rejects(rejects, progress.end_part(len(recordings), done))
    finally:
        decoders.close()


def _read_parts(root: pathlib.Path) -> Iterator[list[Recording]]:
    return batched(read_corpus(root, _FORMAT.value), _PART.value)


class _Progress:
    """Says how far a shard is."""

    def __init__(self, count: int, shard: int, shards: int) -> None:
        size = _PART.value
        mine = range(shard * size, count, shards * size)
        self._total = sum(min(size, count - begin) for begin in mine)
        self._done = self._outcomes = 0  # recordings and utterances of whole parts
        self._made_hours = 0.0
        self._made = self._pieces = 0  # in this process; of the part that is being made
        self._start = self._last = time.monotonic()

    def follow(self, outcomes: Iterator[Outcome], size: int) -> Iterator[Outcome]:
        """Passes the outcomes of so many recordings on, and says now and then how far it is."""
        for outcome in outcomes:
            yield outcome
            self._made_hours += outcome.duration_s / 3600
            self._pieces = min(self._pieces + 1, size)
            if time.monotonic() - self._last >= _SECONDS_BETWEEN_REPORTS:
                self._report()
        self._made += size
        self._pieces = 0

    def end_part(self, recordings: int, done: dict[str, Any]) -> int:
        """Counts a part that is there; returns how many utterances there are, at least."""
        self._done += recordings
        self._outcomes += len(done["kept"]) + len(done["rejects"])
        return max(self._total, self._outcomes)

    def _report(self) -> None:
        self._last = time.monotonic()
        seconds = self._last - self._start
        done, made = self._done + self._pieces, self._made + self._pieces
        left_s = seconds / made * (self._total - done)
        print(
            f"{done:,} of {self._total:,} recordings, {self._made_hours:.2f} h of audio made, "
            f"{3600 * self._made_hours / seconds:.1f} times real time, {left_s / 60:.0f} min left",
            flush=True,
        )


def _check_rejects(rejects: Sequence[dict[str, str]], total: int) -> None:
    """Writes the rejects among so many utterances where they are too many, and says so."""
    if len(rejects) > _MAX_REJECT_SHARE.value * total:
        first, path = rejects[0], _write_rejects(rejects)
        raise ValueError(
            f"{len(rejects):,} of {total:,} utterances became no record, expected at most "
            f"--max_reject_share={_MAX_REJECT_SHARE.value:g}; the first of {path}, "
            f"{quote(first['id'])}: {first['kind']}, {first['reason']}"
        )


def _write_rejects(rejects: Sequence[dict[str, str]]) -> pathlib.Path:
    lines = "".join(json.dumps(reject, ensure_ascii=False) + "\n" for reject in rejects)
    path = pathlib.Path(_OUTPUT.value) / "rejects.jsonl"
    return write_file(path, lines.encode("utf-8", "backslashreplace"))


def _join(parts: Parts, numbers: range, output: pathlib.Path, tools: Tools) -> None:
    """Writes the records of all parts, and what is to be said of them."""
    from experiments.reports.speech_report import SpeechStatistics, write_speech_report

    rejects = list(itertools.chain.from_iterable(parts.rejects(number) for number in numbers))
    path, kept = _write_rejects(rejects), sum(parts.count(number) for number in numbers)
    _check_rejects(rejects, len(rejects) + kept)
    require(kept > 0, "the number of records", kept, f"one or more: see {path}")
    statistics = SpeechStatistics(tools.units.frame_rate, rejects)
    metadata = write_parts(
        parts,
        numbers,
        output / "records",
        tools,
        statistics.add,
        records_per_shard=_RECORDS_PER_SHARD.value,
        max_unknown_share=_MAX_UNKNOWN_SHARE.value,
    )
    write_speech_report(output, statistics, _INPUT.value)
    parts.finish(output / "settings.json")
    print(f"wrote {output}/records: {len(metadata.shards)} shards, {metadata.summary()}")
    print(statistics.summary())


if __name__ == "__main__":
    cli.run_main(main)
