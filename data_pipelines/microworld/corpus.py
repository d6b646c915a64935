"""The built-in corpus: what it holds, where its parts are, and which story is which."""

from __future__ import annotations

import dataclasses
import pathlib
import random

from data_pipelines.microworld import stories
from data_pipelines.microworld.speech import VOICES, Voice
from lst_jax.settings import (
    NaturalInt,
    PositiveInt,
    TextSize,
    UnitCount,
    configuration,
    require,
)

TEST_SETS: tuple[stories.ClozeKind, ...] = ("StoryCloze", "TopicStoryCloze", "HellaSwag")


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
        """Returns the text training stories, `{"id": …, "text": …}` a line."""
        return self.root / "text" / "stories.jsonl"

    @property
    def tokenizer(self) -> pathlib.Path:
        """Returns the SentencePiece model."""
        return self.root / "tokenizer" / "tokenizer.model"

    @property
    def encoder(self) -> pathlib.Path:
        """Returns the unit encoder, for `MelKMeansEncoder.load`."""
        return self.root / "encoder" / "encoder.npz"

    @property
    def text_records(self) -> pathlib.Path:
        """Returns the record directory of the text training stories."""
        return self.root / "text_records"

    @property
    def speech_records(self) -> pathlib.Path:
        """Returns the record directory of the spoken training stories."""
        return self.root / "speech_records"

    def test_set(self, kind: stories.ClozeKind) -> pathlib.Path:
        """Makes story-completion items in the format of `lst_jax.evaluation.story_completion`."""
        return self.root / "test_sets" / f"{kind}.jsonl"

    @property
    def spoken_texts(self) -> pathlib.Path:
        """Returns the items' whole stories in the format of `lst_jax.evaluation.spoken_texts`."""
        return self.root / "test_sets" / "spoken_texts.jsonl"

    @property
    def examples(self) -> pathlib.Path:
        """Returns the spoken examples: `examples.json`, with times and units, and wav files."""
        return self.root / "examples"

    @property
    def stats(self) -> pathlib.Path:
        """Returns what the corpus adds up to."""
        return self.root / "stats" / "stats.json"


def story_voice(seed: int, story_id: str) -> Voice:
    """Returns the voice of a story or of a test item (prompt and endings alike)."""
    return random.Random(f"voice/{seed}/{story_id}").choice(VOICES)


def speech_story(seed: int, index: int) -> stories.Story:
    """Returns spoken training story `index`; these have odd numbers."""
    return stories.generate_story(seed, "train", 2 * index + 1)


def text_story(seed: int, index: int) -> stories.Story:
    """Returns training story `index` given as text; these have even numbers."""
    return stories.generate_story(seed, "train", 2 * index)


def story_text(story: stories.Story) -> str:
    """Returns the story's sentences as one text."""
    return " ".join(story.sentences)
