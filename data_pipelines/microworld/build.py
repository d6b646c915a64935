"""Builds the built-in corpus: stories, tokenizer, speech, units, records and test sets.

Every stage is a directory that appears whole, with the fingerprint of what it was made from. A
build that was interrupted, or whose settings changed, does again only the stages that need it.
What a stage holds depends on the settings, the seed and this code, not on the number of
processes.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib.util
import json
import logging
import pathlib
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from data_pipelines.microworld import stories
from data_pipelines.microworld.corpus import (
    TEST_SETS,
    MicroworldConfig,
    MicroworldPaths,
    speech_story,
    story_text,
    story_voice,
    text_story,
)
from data_pipelines.microworld.speaking import (
    LICENSE,
    SOURCE,
    SpokenUnits,
    Task,
    make_record,
    one_thread,
    run_pool,
    speak_frames,
    speak_units,
)
from data_pipelines.microworld.speech import synthesize
from data_pipelines.records.storage import (
    Totals,
    make_text_document,
    open_records,
    write_records,
)
from data_pipelines.records.types import Utterance
from data_pipelines.speech import audio
from data_pipelines.speech.alignment import align_units
from data_pipelines.speech.units import MelFeatures, MelKMeansEncoder, load_built_in
from data_pipelines.tokenizers import train_tokenizer
from lst_jax.files import new_directory, read_numbered_lines, write_file, write_json
from lst_jax.strict_json import parse_object, read_json_object
from lst_jax.vocabulary import TextTokenizer

LOGGER = logging.getLogger("data_pipelines")

_FINGERPRINT = "fingerprint"


def build_corpus(
    config: MicroworldConfig,
    workdir: str | pathlib.Path,
    *,
    processes: int = 2,
    progress: Callable[[str], None] = LOGGER.info,
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
      FileExistsError: a stage's place is taken by something else.
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
    for path, _ in stages:  # before the first takes minutes
        if path.exists() and _read_marker(path)[:1] != [key]:
            _check_stage(path)
    with one_thread():
        for path, make in stages:
            _run_stage(path, key, make, progress)
    return paths


def _fingerprint(config: MicroworldConfig) -> str:
    """Returns what changes with the settings and the code that turns them into a corpus."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(config)).encode())
    if _has_built_in_units(config):
        digest.update(load_built_in().fingerprint.encode())
    for name, source in sorted(_sources(__name__, {}).items()):
        digest.update(name.encode())
        digest.update(source)
    return digest.hexdigest()


def _sources(name: str, found: dict[str, bytes]) -> dict[str, bytes]:
    """Returns the source of a module and of all modules of this project that it stands on."""
    try:
        spec = None if name in found else importlib.util.find_spec(name)
    except ModuleNotFoundError:  # a name in a module
        spec = None
    if spec is None or spec.origin is None:
        return found
    found[name] = pathlib.Path(spec.origin).read_bytes()
    for node in ast.walk(ast.parse(found[name])):
        if isinstance(node, ast.ImportFrom) and node.module:
            # A name that is imported may be a module, too.
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for imported in names:
            if re.match(r"(data_pipelines|lst_jax)\.[a-z_.]+$", imported):
                _sources(imported, found)
    return found


def _run_stage(
    path: pathlib.Path,
    key: str,
    make: Callable[[pathlib.Path], str],
    progress: Callable[[str], None],
) -> None:
    """Makes a directory whole or not at all, unless it is there with the same key."""
    if _read_marker(path)[:1] == [key]:
        progress(f"{path.name}: there already")
        return
    started = time.monotonic()
    with new_directory(path, _check_stage) as folder:
        summary = make(folder)
        files = sorted(entry.name for entry in folder.iterdir())
        write_file(folder / _FINGERPRINT, "\n".join([key, *files]) + "\n")
    progress(f"{path.name}: {summary} ({time.monotonic() - started:.1f} s)")


def _read_marker(path: pathlib.Path) -> list[str]:
    """Returns the key of a stage that is there and the names of its files; nothing where none is.

    Earlier versions wrote no names.
    """
    marker = path / _FINGERPRINT
    lines = marker.read_bytes().decode(errors="replace").splitlines() if marker.is_file() else []
    return lines if lines and re.fullmatch("[0-9a-f]{64}", lines[0]) else []


def _check_stage(path: pathlib.Path) -> None:
    """Raises a `FileExistsError` for a directory that no build made, or that holds other things."""
    key, *files = _read_marker(path) or [""]
    entries = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else [path.name]
    others = [name for name in entries if name not in ((_FINGERPRINT, *files) if key else ())]
    if others and (files or not key):
        raise FileExistsError(
            f"{path} holds {others[0]!r}, which is not of the corpus, expected a directory that "
            "may be replaced"
        )


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
        make_text_document(name, text, tokenizer, license=LICENSE, source=SOURCE)
        for name, text in _read_stories(paths)
    )
    metadata = write_records(out, "text", documents, tokenizer)
    return f"{metadata.totals.text_tokens} tokens"


def _fit_encoder(config: MicroworldConfig, processes: int, out: pathlib.Path) -> str:
    if _has_built_in_units(config):
        encoder = load_built_in()
        encoder.save(out / "encoder.npz")
        return f"{encoder.unit_count} units, the built-in ones"
    features = MelFeatures()
    log_mels, labels = [], []
    with run_pool(processes) as run:
        for frames, spoken in run(speak_frames, _story_tasks(config, config.fit_stories)):
            log_mels.append(frames)
            labels.append(spoken)
    encoder = MelKMeansEncoder.fit(
        features, log_mels, labels, unit_count=config.unit_clusters, seed=config.seed
    )
    encoder.save(out / "encoder.npz")
    return f"{encoder.unit_count} units from {sum(map(len, log_mels))} frames"


def _has_built_in_units(config: MicroworldConfig) -> bool:
    """Returns whether the built-in encoder was fitted on what these settings say.

    The fit is not the same to the bit on every processor. So the default corpus has the units of
    one fit, everywhere.
    """
    fitted = ("seed", "fit_stories", "unit_clusters")
    return all(getattr(config, name) == getattr(MicroworldConfig(), name) for name in fitted)


def _write_speech_records(
    config: MicroworldConfig,
    paths: MicroworldPaths,
    processes: int,
    progress: Callable[[str], None],
    out: pathlib.Path,
) -> str:
    tokenizer = TextTokenizer(paths.tokenizer)
    audio_s, synthesis_cpu_s, started = 0.0, 0.0, time.monotonic()

    def utterances(spoken: Iterable[SpokenUnits]) -> Iterator[Any]:
        nonlocal audio_s, synthesis_cpu_s
        for i, result in enumerate(spoken):
            audio_s += result.audio_s
            synthesis_cpu_s += result.synthesis_cpu_s
            if i and i % 500 == 0:
                left = (time.monotonic() - started) * (config.speech_stories / i - 1)
                progress(f"spoke {i} of {config.speech_stories} stories, {left:.0f} s left")
            story_id = speech_story(config.seed, i).story_id
            yield make_record(story_id, result, tokenizer)

    with run_pool(processes, paths.encoder) as run:
        spoken = run(speak_units, _story_tasks(config, config.speech_stories))
        metadata = write_records(
            out,
            "speech",
            utterances(spoken),
            tokenizer,
            unit_count=config.unit_count,
            encoder_fingerprint=MelKMeansEncoder.load(paths.encoder).fingerprint,
        )
    write_json(out / "audio.json", {"audio_s": audio_s, "synthesis_cpu_s": synthesis_cpu_s})
    return f"{audio_s / 3600:.2f} hours, {metadata.totals.units} units"


def _write_test_sets(
    config: MicroworldConfig, paths: MicroworldPaths, processes: int, out: pathlib.Path
) -> str:
    stories_told: list[dict[str, Any]] = []
    fingerprint = MelKMeansEncoder.load(paths.encoder).fingerprint
    with run_pool(processes, paths.encoder) as run:
        for kind in TEST_SETS:
            items = [stories.generate_cloze(kind, config.seed, i) for i in range(config.test_items)]
            tasks = [
                Task(text, story_voice(config.seed, item.cloze_id))
                for item in items
                for text in (item.prompt, *item.endings)
            ]
            spoken = run(speak_units, tasks)
            lines = [_test_line(item, spoken, fingerprint) for item in items]
            _write_lines(out / f"{kind}.jsonl", lines)
            stories_told += map(_spoken_text, lines)
    _write_lines(out / paths.spoken_texts.name, stories_told)
    return f"{len(TEST_SETS)} sets of {config.test_items} items"


def _test_line(
    item: stories.Cloze, spoken: Iterator[SpokenUnits], fingerprint: str
) -> dict[str, Any]:
    """Returns one line of a test set; takes the units of its prompt and endings from `spoken`."""
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
        "encoder_fingerprint": fingerprint,
    }


def _spoken_text(line: dict[str, Any]) -> dict[str, Any]:
    """Returns the prompt and right ending of a test set's line as one utterance."""
    parts = [line["prompt"], line["endings"][line["label"]]]
    return {
        "id": line["id"],
        "text": " ".join(part["text"] for part in parts),
        "units": [unit for part in parts for unit in part["units"]],
        "encoder_fingerprint": line["encoder_fingerprint"],
    }


def _write_examples(config: MicroworldConfig, paths: MicroworldPaths, out: pathlib.Path) -> str:
    encoder = MelKMeansEncoder.load(paths.encoder)
    examples = []
    for i, task in enumerate(_story_tasks(config, config.example_count)):
        spoken = synthesize(task.text, task.voice)
        heard = encoder.assign(encoder.features.log_mels(spoken.samples, spoken.sample_rate))
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
                "timings": [
                    {"word": timing.text, "start_s": timing.start_s, "end_s": timing.end_s}
                    for timing in spoken.words
                ],
                "words": words,
                "unit_counts": unit_counts.tolist(),
                "units": heard.tolist(),
            }
        )
    write_json(out / "examples.json", examples)
    return f"{len(examples)} wav files"


def _write_stats(config: MicroworldConfig, paths: MicroworldPaths, out: pathlib.Path) -> str:
    speech_source = open_records(paths.speech_records)
    totals: Totals = speech_source.metadata.totals
    spoken = read_json_object(paths.speech_records / "audio.json")
    counts = np.zeros(config.unit_count, np.int64)
    for i in range(len(speech_source)):
        record = speech_source[i]
        assert isinstance(record, Utterance)  # as every record of this source
        counts += np.bincount(record.units, minlength=config.unit_count)
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
    write_json(out / "stats.json", stats)
    return (
        f"{stats['speech_hours']:.2f} hours of speech, {stats['units_per_word']:.2f} units a word, "
        f"{stats['units_used']} units used"
    )


def _story_tasks(config: MicroworldConfig, count: int) -> Iterator[Task]:
    for i in range(count):
        story = speech_story(config.seed, i)
        yield Task(story_text(story), story_voice(config.seed, story.story_id))


def _read_stories(paths: MicroworldPaths) -> Iterator[tuple[str, str]]:
    """Yields id and text of every text training story."""
    for _, line in read_numbered_lines(paths.text):
        fields = parse_object(line)
        yield fields["id"], fields["text"]


def _write_lines(path: pathlib.Path, lines: Iterable[dict[str, Any]]) -> None:
    write_file(path, "".join(json.dumps(line) + "\n" for line in lines))
