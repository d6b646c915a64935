"""Builds the built-in corpus: stories, tokenizer, speech, units, records and test sets.

Every stage is a directory that appears whole, with the fingerprint of what it was made from. A
build that was interrupted, or whose settings changed, does again only the stages that need it.
What a stage holds depends on the settings, the seed and this code, not on the number of
processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import pathlib
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from data_pipelines import tokenizers
from data_pipelines.microworld import lexicon, speech, stories
from data_pipelines.microworld.speech import VOICES, Voice, synthesize
from data_pipelines.records import payloads, storage, types
from data_pipelines.records.storage import (
    SILENCE,
    Totals,
    Utterance,
    make_text_document,
    make_utterance,
    open_records,
    write_records,
)
from data_pipelines.speech import alignment, audio, units
from data_pipelines.speech.alignment import (
    align_pieces,
    align_units,
    label_frames,
    time_pieces,
    time_words,
)
from data_pipelines.speech.units import MelFeatures, MelKMeansEncoder
from data_pipelines.tokenizers import train_tokenizer
from lst_jax.settings import (
    NaturalInt,
    PositiveInt,
    TextSize,
    UnitCount,
    configuration,
    require,
)
from lst_jax.vocabulary import TextTokenizer

TEST_SETS: tuple[stories.ClozeKind, ...] = ("StoryCloze", "TopicStoryCloze", "HellaSwag")

_FINGERPRINT = "fingerprint"
_LICENSE = "Apache-2.0"  # this program's, whose work the stories are
_SOURCE = "lst-jax microworld"
_TASKS_PER_CHUNK = 8
# A change in one of these, or in the vocabulary, may change what a stage holds.
_MADE_BY = (
    *(alignment, audio, units, lexicon, speech, stories, tokenizers),
    *(payloads, storage, types),
)

_T = TypeVar("_T")
_R = TypeVar("_R")


@configuration
class MicroworldConfig:
    """What the corpus holds.

    Attributes:
      seed: of the stories, the voices and the clustering.
      text_stories: training stories given as text.
      speech_stories: training stories spoken; none of them is among the text stories.
      test_items: items of each of the three test sets.
      fit_stories: spoken stories that the units are fitted on, at most `speech_stories`.
      unit_clusters: k-means clusters.
      unit_count: size of the speech part of the vocabulary, at least `unit_clusters`.
      tokenizer_size: SentencePiece pieces.
      example_count: spoken stories kept as wav files for a report.
    """

    seed: NaturalInt = 0
    text_stories: PositiveInt = 20_000
    speech_stories: PositiveInt = 3_000
    test_items: PositiveInt = 200
    fit_stories: PositiveInt = 300
    unit_clusters: UnitCount = 501
    unit_count: UnitCount = 502
    tokenizer_size: TextSize = 768
    example_count: NaturalInt = 4

    def __post_init__(self) -> None:
        for small, large in (
            ("fit_stories", "speech_stories"),
            ("example_count", "speech_stories"),
            ("unit_clusters", "unit_count"),
        ):
            value, most = getattr(self, small), getattr(self, large)
            require(value <= most, f"MicroworldConfig.{small}", value, f"at most {large} = {most}")


@dataclasses.dataclass(frozen=True)
class MicroworldPaths:
    """Where the parts of a corpus are, below its directory."""

    root: pathlib.Path

    @property
    def text(self) -> pathlib.Path:
        """Text training stories, `{"id": …, "text": …}` a line."""
        return self.root / "text" / "stories.jsonl"

    @property
    def tokenizer(self) -> pathlib.Path:
        """SentencePiece model."""
        return self.root / "tokenizer" / "tokenizer.model"

    @property
    def encoder(self) -> pathlib.Path:
        """Unit encoder, for `MelKMeansEncoder.load`."""
        return self.root / "encoder" / "encoder.npz"

    @property
    def text_records(self) -> pathlib.Path:
        """Record directory of the text training stories."""
        return self.root / "text_records"

    @property
    def speech_records(self) -> pathlib.Path:
        """Record directory of the spoken training stories."""
        return self.root / "speech_records"

    def test_set(self, kind: stories.ClozeKind) -> pathlib.Path:
        """Story-completion items in the format of `lst_jax.evaluation.story_completion`."""
        return self.root / "test_sets" / f"{kind}.jsonl"

    @property
    def spoken_texts(self) -> pathlib.Path:
        """The items' whole stories in the format of `lst_jax.evaluation.spoken_texts`."""
        return self.root / "test_sets" / "spoken_texts.jsonl"

    @property
    def examples(self) -> pathlib.Path:
        """Spoken examples with words, times and units: `examples.json` and the wav files."""
        return self.root / "examples"

    @property
    def stats(self) -> pathlib.Path:
        """What the corpus adds up to."""
        return self.root / "stats" / "stats.json"


@dataclasses.dataclass(frozen=True)
class _Task:
    """A text to speak."""

    text: str
    voice: Voice


@dataclasses.dataclass(frozen=True, eq=False)
class _SpokenUnits:
    """A spoken text: its units, shared between words and silences, its times, what it took."""

    task: _Task
    units: np.ndarray
    words: tuple[str, ...]
    unit_counts: np.ndarray
    frame_rate: float
    timings: tuple[alignment.WordTiming, ...]
    phoneme_starts_s: tuple[tuple[float, ...], ...]
    audio_s: float
    synthesis_cpu_s: float


def build_corpus(
    config: MicroworldConfig,
    workdir: str | pathlib.Path,
    *,
    processes: int = 2,
    progress: Callable[[str], None] = print,
) -> MicroworldPaths:
    """Builds the corpus, or what is missing of it.

    Args:
      config: what it holds.
      workdir: its directory; made where missing.
      processes: that speak and encode; the result does not depend on it.
      progress: called with a line now and then.

    Returns:
      Where everything is.

    Raises:
      ValueError: the tokenizer or the units cannot be trained on so little data.
      ImportError: a package of the demo extra is missing.
    """
    if processes < 1:
        raise ValueError(f"processes is {processes}, expected at least 1")
    paths = MicroworldPaths(pathlib.Path(workdir))
    paths.root.mkdir(parents=True, exist_ok=True)
    key = _fingerprint(config)
    stages: tuple[tuple[pathlib.Path, Callable[[pathlib.Path], str]], ...] = (
        (paths.text.parent, lambda out: _write_text(config, out)),
        (paths.tokenizer.parent, lambda out: _train_tokenizer(config, paths, out)),
        (paths.text_records, lambda out: _write_text_records(config, paths, out)),
        (paths.encoder.parent, lambda out: _fit_encoder(config, processes, out)),
        (
            paths.speech_records,
            lambda out: _write_speech_records(config, paths, processes, progress, out),
        ),
        (
            paths.test_set("StoryCloze").parent,
            lambda out: _write_test_sets(config, paths, processes, out),
        ),
        (paths.examples, lambda out: _write_examples(config, paths, out)),
        (paths.stats.parent, lambda out: _write_stats(config, paths, out)),
    )
    with _one_thread():
        for path, make in stages:
            _run_stage(path, key, make, progress)
    return paths


def story_voice(seed: int, story_id: str) -> Voice:
    """The voice of a story or of a test item (prompt and endings alike)."""
    return random.Random(f"voice/{seed}/{story_id}").choice(VOICES)


def speech_story(seed: int, index: int) -> stories.Story:
    """Spoken training story `index`; spoken ones have odd numbers in the training split."""
    return stories.generate_story(seed, "train", 2 * index + 1)


def text_story(seed: int, index: int) -> stories.Story:
    """Training story `index` given as text; these have even numbers in the training split."""
    return stories.generate_story(seed, "train", 2 * index)


def story_text(story: stories.Story) -> str:
    """The story's sentences as one text."""
    return " ".join(story.sentences)


def _fingerprint(config: MicroworldConfig) -> str:
    """Changes with the settings and with the code that turns them into a corpus."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(config)).encode())
    for module in (*_MADE_BY, sys.modules[TextTokenizer.__module__]):
        digest.update(pathlib.Path(str(module.__file__)).read_bytes())
    digest.update(pathlib.Path(__file__).read_bytes())
    return digest.hexdigest()


def _run_stage(
    path: pathlib.Path,
    key: str,
    make: Callable[[pathlib.Path], str],
    progress: Callable[[str], None],
) -> None:
    """Makes a directory whole or not at all, unless it is there with the same key."""
    marker = path / _FINGERPRINT
    if marker.is_file() and marker.read_text(encoding="utf-8") == key:
        progress(f"{path.name}: there already")
        return
    started = time.monotonic()
    partial = path.with_name(f"{path.name}.incomplete")
    for old in (partial, path):
        if old.exists():
            shutil.rmtree(old)
    partial.mkdir()
    summary = make(partial)
    (partial / _FINGERPRINT).write_text(key, encoding="utf-8")
    partial.rename(path)
    progress(f"{path.name}: {summary} ({time.monotonic() - started:.1f} s)")


def _write_text(config: MicroworldConfig, out: pathlib.Path) -> str:
    told = (text_story(config.seed, i) for i in range(config.text_stories))
    lines = ({"id": story.story_id, "text": story_text(story)} for story in told)
    _write_lines(out / "stories.jsonl", lines)
    return f"{config.text_stories} stories"


def _train_tokenizer(config: MicroworldConfig, paths: MicroworldPaths, out: pathlib.Path) -> str:
    texts = (text for _, text in _read_stories(paths))
    train_tokenizer(texts, out / "tokenizer", config.tokenizer_size)
    return f"{config.tokenizer_size} pieces"


def _write_text_records(config: MicroworldConfig, paths: MicroworldPaths, out: pathlib.Path) -> str:
    tokenizer = TextTokenizer(paths.tokenizer)
    documents = (
        make_text_document(name, text, tokenizer, license=_LICENSE, source=_SOURCE)
        for name, text in _read_stories(paths)
    )
    metadata = write_records(out, "text", documents, tokenizer, overwrite=True)
    return f"{metadata.totals.text_tokens} tokens"


def _fit_encoder(config: MicroworldConfig, processes: int, out: pathlib.Path) -> str:
    features = MelFeatures()
    log_mels, labels = [], []
    with _pool(processes) as run:
        for frames, spoken in run(_speak_frames, _story_tasks(config, config.fit_stories)):
            log_mels.append(frames)
            labels.append(spoken)
    encoder = MelKMeansEncoder.fit(
        features, log_mels, labels, unit_count=config.unit_clusters, seed=config.seed
    )
    encoder.save(out / "encoder.npz")
    return f"{encoder.unit_count} units from {sum(map(len, log_mels))} frames"


def _write_speech_records(
    config: MicroworldConfig,
    paths: MicroworldPaths,
    processes: int,
    progress: Callable[[str], None],
    out: pathlib.Path,
) -> str:
    tokenizer = TextTokenizer(paths.tokenizer)
    audio_s, synthesis_cpu_s, started = 0.0, 0.0, time.monotonic()

    def utterances(spoken: Iterable[_SpokenUnits]) -> Iterator[Any]:
        nonlocal audio_s, synthesis_cpu_s
        for i, result in enumerate(spoken):
            audio_s += result.audio_s
            synthesis_cpu_s += result.synthesis_cpu_s
            if i and i % 500 == 0:
                left = (time.monotonic() - started) * (config.speech_stories / i - 1)
                progress(f"spoke {i} of {config.speech_stories} stories, {left:.0f} s left")
            story_id = speech_story(config.seed, i).story_id
            yield _make_record(story_id, result, tokenizer)

    with _pool(processes, paths.encoder) as run:
        spoken = run(_speak_units, _story_tasks(config, config.speech_stories))
        metadata = write_records(
            out,
            "speech",
            utterances(spoken),
            tokenizer,
            unit_count=config.unit_count,
            encoder_fingerprint=MelKMeansEncoder.load(paths.encoder).fingerprint,
            overwrite=True,
        )
    _write_json(out / "audio.json", {"audio_s": audio_s, "synthesis_cpu_s": synthesis_cpu_s})
    return f"{audio_s / 3600:.2f} hours, {metadata.totals.units} units"


def _write_test_sets(
    config: MicroworldConfig, paths: MicroworldPaths, processes: int, out: pathlib.Path
) -> str:
    stories_told: list[dict[str, Any]] = []
    with _pool(processes, paths.encoder) as run:
        for kind in TEST_SETS:
            items = [stories.generate_cloze(kind, config.seed, i) for i in range(config.test_items)]
            tasks = [
                _Task(text, story_voice(config.seed, item.cloze_id))
                for item in items
                for text in (item.prompt, *item.endings)
            ]
            spoken = run(_speak_units, tasks)
            lines = [_test_line(item, spoken) for item in items]
            _write_lines(out / f"{kind}.jsonl", lines)
            stories_told += map(_spoken_text, lines)
    _write_lines(out / paths.spoken_texts.name, stories_told)
    return f"{len(TEST_SETS)} sets of {config.test_items} items"


def _test_line(item: stories.Cloze, spoken: Iterator[_SpokenUnits]) -> dict[str, Any]:
    """One line of a test set; takes the units of its prompt and endings from `spoken`."""
    passages = [
        {"text": text, "units": next(spoken).units.tolist()}
        for text in (item.prompt, *item.endings)
    ]
    return {
        "id": item.cloze_id,
        "set": item.kind,
        "prompt": passages[0],
        "endings": passages[1:],
        "label": item.label,
    }


def _spoken_text(line: dict[str, Any]) -> dict[str, Any]:
    """Prompt and right ending of a test set's line as one utterance."""
    parts = [line["prompt"], line["endings"][line["label"]]]
    return {
        "id": line["id"],
        "text": " ".join(part["text"] for part in parts),
        "units": [unit for part in parts for unit in part["units"]],
    }


def _write_examples(config: MicroworldConfig, paths: MicroworldPaths, out: pathlib.Path) -> str:
    encoder = MelKMeansEncoder.load(paths.encoder)
    examples = []
    for i, task in enumerate(_story_tasks(config, config.example_count)):
        spoken = synthesize(task.text, task.voice)
        heard = encoder.encode(spoken.samples, spoken.sample_rate)
        words, unit_counts = align_units(spoken.words, heard.size, encoder.frame_rate)
        name = f"example-{i}.wav"
        audio.write_wav(out / name, spoken.samples, spoken.sample_rate)
        examples.append(
            {
                "id": speech_story(config.seed, i).story_id,
                "wav": name,
                "text": task.text,
                "voice": dataclasses.asdict(task.voice),
                "sample_rate": spoken.sample_rate,
                "frame_rate": encoder.frame_rate,
                "timings": [dataclasses.asdict(timing) for timing in spoken.words],
                "words": words,
                "unit_counts": unit_counts.tolist(),
                "units": heard.tolist(),
            }
        )
    _write_json(out / "examples.json", examples)
    return f"{len(examples)} wav files"


def _write_stats(config: MicroworldConfig, paths: MicroworldPaths, out: pathlib.Path) -> str:
    speech_source = open_records(paths.speech_records)
    totals: Totals = speech_source.metadata.totals
    spoken = json.loads((paths.speech_records / "audio.json").read_text(encoding="utf-8"))
    counts = np.zeros(config.unit_count, np.int64)
    for i in range(len(speech_source)):
        counts += np.bincount(speech_source[i].units, minlength=config.unit_count)
    text: Totals = open_records(paths.text_records).metadata.totals
    frequency = counts[counts > 0] / counts.sum()
    stats = {
        "speech_stories": totals.documents,
        "speech_hours": spoken["audio_s"] / 3600,
        "synthesis_audio_s_per_cpu_s": spoken["audio_s"] / spoken["synthesis_cpu_s"],
        "units": totals.units,
        "spoken_words": totals.words,
        "silences": totals.silences,
        "units_per_word": totals.mean_word_length,
        "units_per_silence": totals.mean_silence_length,
        "spoken_text_tokens": totals.text_tokens,
        "units_used": int((counts > 0).sum()),
        "unit_perplexity": float(np.exp(-(frequency * np.log(frequency)).sum())),
        "text_stories": text.documents,
        "text_words": text.words,
        "text_tokens": text.text_tokens,
        "text_pieces": TextTokenizer(paths.tokenizer).size,
        "test_items": {kind: config.test_items for kind in TEST_SETS},
    }
    _write_json(out / "stats.json", stats)
    return (
        f"{stats['speech_hours']:.2f} hours of speech, {stats['units_per_word']:.2f} units a word, "
        f"{stats['units_used']} units used"
    )


def _story_tasks(config: MicroworldConfig, count: int) -> Iterator[_Task]:
    for i in range(count):
        story = speech_story(config.seed, i)
        yield _Task(story_text(story), story_voice(config.seed, story.story_id))


def _speak_frames(task: _Task) -> tuple[np.ndarray, np.ndarray]:
    """Log-mel frames (U, M) of a spoken text and what is said in each (U,)."""
    features = MelFeatures()
    spoken = synthesize(task.text, task.voice)
    frames = features.log_mels(spoken.samples, spoken.sample_rate)
    return frames, label_frames(spoken.words, len(frames), features.frame_rate)


class _Worker:
    """What a process that encodes keeps between tasks."""

    encoder: MelKMeansEncoder | None = None


def _one_thread() -> contextlib.AbstractContextManager[Any]:
    """Keeps matrix products to one thread: for the work at hand more are slower, and the order of
    their sums would depend on the number of cores."""
    try:
        import threadpoolctl
    except ImportError as error:
        raise ImportError(
            "the built-in corpus needs the package threadpoolctl: pip install 'lst-jax[demo]'"
        ) from error
    return threadpoolctl.threadpool_limits(1)


def _start_worker(encoder_path: pathlib.Path | None) -> None:
    _one_thread()
    _Worker.encoder = None if encoder_path is None else MelKMeansEncoder.load(encoder_path)


def _speak_units(task: _Task) -> _SpokenUnits:
    encoder = _Worker.encoder
    if encoder is None:
        raise RuntimeError("a process was asked for units before it was given an encoder")
    started = time.process_time()
    spoken = synthesize(task.text, task.voice)
    synthesis_cpu_s = time.process_time() - started
    heard = encoder.encode(spoken.samples, spoken.sample_rate)
    words, unit_counts = align_units(spoken.words, heard.size, encoder.frame_rate)
    if SILENCE in (timing.word for timing in spoken.words):
        raise ValueError(f"text is {task.text!r}, expected no word {SILENCE!r}")
    return _SpokenUnits(
        task,
        heard,
        words,
        unit_counts,
        encoder.frame_rate,
        spoken.words,
        spoken.phoneme_starts_s,
        spoken.duration_s,
        synthesis_cpu_s,
    )


def _make_record(story_id: str, spoken: _SpokenUnits, tokenizer: TextTokenizer) -> Utterance:
    """Returns the record of a spoken story, with all that the synthesizer knows of it."""
    utterance = make_utterance(story_id, spoken.words, spoken.units, spoken.unit_counts, tokenizer)
    letters = [sum(map(str.isalnum, tokenizer.piece(piece))) for piece in utterance.pieces.tolist()]
    ends = np.cumsum(utterance.piece_counts[~utterance.is_silence]).tolist()
    of_words = [letters[start:end] for start, end in itertools.pairwise([0, *ends])]
    piece_times_ms = time_pieces(spoken.timings, spoken.phoneme_starts_s, of_words)
    return dataclasses.replace(
        utterance,
        piece_unit_counts=align_pieces(
            piece_times_ms, utterance.piece_counts, utterance.unit_counts, spoken.frame_rate
        ),
        word_times_ms=time_words(spoken.timings, spoken.words, spoken.audio_s),
        piece_times_ms=piece_times_ms,
        transcript=spoken.task.text,
        speaker=spoken.task.voice.espeak_name,
        license=_LICENSE,
        source=_SOURCE,
    )


@contextlib.contextmanager
def _pool(
    processes: int, encoder_path: pathlib.Path | None = None
) -> Iterator[Callable[[Callable[[_T], _R], Iterable[_T]], Iterator[_R]]]:
    """Yields a `map` over processes that keeps the order; one process is this one."""
    if processes == 1:
        _start_worker(encoder_path)
        yield map
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, _start_worker, (encoder_path,)) as pool:
        yield lambda task, items: pool.imap(task, items, _TASKS_PER_CHUNK)


def _read_stories(paths: MicroworldPaths) -> Iterator[tuple[str, str]]:
    """Id and text of every text training story."""
    with paths.text.open(encoding="utf-8") as file:
        for line in file:
            fields = json.loads(line)
            yield fields["id"], fields["text"]


def _write_lines(path: pathlib.Path, lines: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line) + "\n")


def _write_json(path: pathlib.Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
