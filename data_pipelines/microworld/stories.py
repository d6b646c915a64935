"""Short stories whose ending follows from what happened, and story-completion tests on them.

Every story has two characters, two objects and two places of one topic. Who has which object,
and where, is said once per object and place or equally often for both, so that a *mirrored*
story, in which the two objects (or the two places) change roles, consists of exactly the same
words. Its ending is the wrong ending of the first story. Hence neither the words of a prompt
nor an ending alone, nor both together as bags, say which ending is right; only what is said of
whom, and in which order, does.

Story i of a split depends on (seed, split, i) and on nothing else. A hash of a story's topic,
characters, objects and places decides its split: what a test story is about, mirrored or not,
never comes together in a training story.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import random
from typing import Literal, get_args

from data_pipelines.microworld import lexicon

Split = Literal["train", "validation", "test"]
ClozeKind = Literal["StoryCloze", "TopicStoryCloze", "HellaSwag"]

SPLITS: tuple[Split, ...] = get_args(Split)
CLOZE_KINDS: tuple[ClozeKind, ...] = get_args(ClozeKind)
PLOTS: tuple[str, ...] = ("search", "hide", "trade", "journey")


@dataclasses.dataclass(frozen=True)
class Story:
    """One story.

    Attributes:
      story_id: unique for (seed, split, index).
      topic: name of the topic in lexicon.TOPICS.
      plot: which of PLOTS it follows.
      sentences: 4 to 6 sentences; the last one is the ending. Lower-case words separated by
        single spaces, a full stop after the last word.
    """

    story_id: str
    topic: str
    plot: str
    sentences: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """Everything before the ending."""
        return " ".join(self.sentences[:-1])

    @property
    def ending(self) -> str:
        """The last sentence."""
        return self.sentences[-1]

    @property
    def text(self) -> str:
        """The whole story."""
        return " ".join(self.sentences)


@dataclasses.dataclass(frozen=True)
class Cloze:
    """A prompt with several endings, of which `endings[label]` is the coherent one."""

    cloze_id: str
    kind: ClozeKind
    prompt: str
    endings: tuple[str, ...]
    label: int


@dataclasses.dataclass(frozen=True)
class Situation:
    """All that a story tells, in the order of its telling.

    Attributes:
      topic: index into lexicon.TOPICS.
      plot: one of PLOTS.
      names: the two characters.
      objects: the object that each character is first told about with.
      places: the place of each character; in a journey the first and the last place.
      hero: index of the character that the ending is about.
      activity: index of what the characters do together.
      hero_first: in plots that tell of both characters twice, whether the hero is second time
        told of first.
    """

    topic: int
    plot: str
    names: tuple[str, str]
    objects: tuple[str, str]
    places: tuple[str, str]
    hero: int
    activity: int
    hero_first: bool

    def entities(self) -> str:
        """Canonical name of what the story is about; the same for every mirrored story."""
        parts = (*sorted(self.names), *sorted(self.objects), *sorted(self.places))
        return "/".join((lexicon.TOPICS[self.topic].name, *parts))


def mirror(situation: Situation, objects: bool, places: bool) -> Situation:
    """The situation in which the two objects and/or the two places change roles."""
    return dataclasses.replace(
        situation,
        objects=situation.objects[::-1] if objects else situation.objects,
        places=situation.places[::-1] if places else situation.places,
    )


def tell(situation: Situation) -> tuple[str, ...]:
    """The sentences of a situation; the last one is its ending."""
    topic = lexicon.TOPICS[situation.topic]
    first, second = (
        dict(name=n, object=o, place=p)
        for n, o, p in zip(situation.names, situation.objects, situation.places, strict=True)
    )
    hero, other = (first, second) if situation.hero == 0 else (second, first)
    again = (hero, other) if situation.hero_first else (other, hero)
    activity = topic.activities[situation.activity]
    opening = f"{first['name']} and {second['name']} {topic.setting}"

    def each(template: str, people: tuple[dict[str, str], ...]) -> list[str]:
        return [template.format(**person) for person in people]

    both = (first, second)
    if situation.plot == "search":
        body = [
            *each("{name} wanted the {object} {place}", both),
            *each("{name} looked for the {object} {place}", again),
            "so {name} got the {object} {place}".format(**hero),
        ]
    elif situation.plot == "hide":
        body = [
            *each("{name} left the {object} {place}", both),
            f"then they {activity}",
            "{name} came back".format(**hero),
            "there {name} found the {object} {place}".format(**hero),
        ]
    elif situation.plot == "trade":
        body = [
            *each("{name} stood {place} with the {object}", both),
            "then they traded what they had",
            "now {name} stood {place} with the {theirs}".format(theirs=other["object"], **hero),
        ]
    else:
        body = [
            *each("{name} had the {object}", both),
            f"first they stood {first['place']}",
            f"then they stood {second['place']}",
            f"now {hero['name']} stood {second['place']} with the {hero['object']}",
        ]
    return tuple(f"{sentence}." for sentence in (opening, *body))


def split_of(situation: Situation) -> Split:
    """The one split in which this situation and its mirrored ones may occur."""
    digest = hashlib.sha256(situation.entities().encode()).digest()
    bucket = int.from_bytes(digest[:4], "big") % 10
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"


def generate_story(seed: int, split: Split, index: int) -> Story:
    """Story `index` of a split.

    Args:
      seed: of the corpus.
      split: one of SPLITS.
      index: number of the story in its split, from 0; unbounded.

    Raises:
      ValueError: split is unknown or index negative.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; expected one of {SPLITS}")
    _check_index(index)
    situation = _draw(random.Random(f"story/{seed}/{split}/{index}"), split)
    return Story(
        story_id=f"{split}-{seed}-{index:07d}",
        topic=lexicon.TOPICS[situation.topic].name,
        plot=situation.plot,
        sentences=tell(situation),
    )


def generate_cloze(kind: ClozeKind, seed: int, index: int) -> Cloze:
    """Test item `index` of one kind, about a situation of the test split.

    * StoryCloze: two endings; the wrong one has the other object, the other place or both.
    * TopicStoryCloze: two endings; the wrong one ends a story of the same plot with other
      characters on another topic.
    * HellaSwag: four endings, with either object and either place.

    Raises:
      ValueError: kind is unknown or index negative.
    """
    if kind not in CLOZE_KINDS:
        raise ValueError(f"kind is {kind!r}; expected one of {CLOZE_KINDS}")
    _check_index(index)
    rng = random.Random(f"cloze/{kind}/{seed}/{index}")
    situation = _draw(rng, "test")
    *prompt, ending = tell(situation)
    swapped = [tell(mirror(situation, *swap))[-1] for swap in _SWAPS]
    if kind == "StoryCloze":
        wrong = [rng.choice(swapped)]
    elif kind == "TopicStoryCloze":
        wrong = [tell(_draw_elsewhere(rng, situation))[-1]]
    else:
        wrong = rng.sample(swapped, len(swapped))
    label = rng.randrange(len(wrong) + 1)
    return Cloze(
        cloze_id=f"{kind}-{seed}-{index:06d}",
        kind=kind,
        prompt=" ".join(prompt),
        endings=(*wrong[:label], ending, *wrong[label:]),
        label=label,
    )


@functools.cache
def vocabulary() -> frozenset[str]:
    """Every word that a story can contain, without full stops."""
    sentences = []
    for number, topic in enumerate(lexicon.TOPICS):
        sentences += [*topic.objects, *topic.places, *lexicon.NAMES]
        for plot in PLOTS:
            for activity in range(len(topic.activities)):
                situation = Situation(
                    topic=number,
                    plot=plot,
                    names=lexicon.NAMES[:2],
                    objects=topic.objects[:2],
                    places=topic.places[:2],
                    hero=0,
                    activity=activity,
                    hero_first=True,
                )
                sentences += tell(situation)
    return frozenset(word.rstrip(".") for sentence in sentences for word in sentence.split())


_SWAPS = ((True, False), (False, True), (True, True))


def _check_index(index: int) -> None:
    if index < 0:
        raise ValueError(f"index is {index}; expected a number from 0")


def _draw(rng: random.Random, split: Split) -> Situation:
    """Draws situations until one belongs to the split."""
    while True:
        topic = rng.randrange(len(lexicon.TOPICS))
        situation = Situation(
            topic=topic,
            plot=rng.choice(PLOTS),
            names=_pair(rng, lexicon.NAMES),
            objects=_pair(rng, lexicon.TOPICS[topic].objects),
            places=_pair(rng, lexicon.TOPICS[topic].places),
            hero=rng.randrange(2),
            activity=rng.randrange(len(lexicon.TOPICS[topic].activities)),
            hero_first=rng.random() < 0.5,
        )
        if split_of(situation) == split:
            return situation


def _draw_elsewhere(rng: random.Random, situation: Situation) -> Situation:
    """Draws a test situation of the same plot, with another topic and other characters."""
    while True:
        drawn = dataclasses.replace(_draw(rng, "test"), plot=situation.plot)
        if drawn.topic != situation.topic and not set(drawn.names) & set(situation.names):
            return drawn


def _pair(rng: random.Random, choices: tuple[str, ...]) -> tuple[str, str]:
    first, second = rng.sample(choices, 2)
    return first, second
