"""Short stories whose ending follows from what happened, and story-completion tests on them.

A story has two characters and, of one topic, two objects and two places. What happens assigns
them roles: who ends up with an object, which object, in which place. The ending names the
outcome, and depends on two of the three roles, as PLOTS says.

A *mirrored* story exchanges the two entities of some of these roles. Its prompt consists of
exactly the same words, is drawn exactly as often, and its ending is a wrong ending of the first
story. Hence neither an ending alone, nor the words of prompt and ending without their order, say
which ending is right; only what is said of whom, and in which order, does. (Order helps by
itself: choosing the ending whose entities the prompt mentions last is right in 79 % of the
StoryCloze and 63 % of the HellaSwag items, by chance it were 50 and 25.)

Story i of a split depends on (seed, split, i) and on nothing else. A hash of a story's topic,
characters, objects and places decides its split: those that a test story mentions, mirrored or
not, never come together in a training story.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import random
from typing import Literal, get_args

from data_pipelines.microworld import lexicon

Split = Literal["train", "validation", "test"]
ClozeKind = Literal["StoryCloze", "TopicStoryCloze", "HellaSwag"]

SPLITS: tuple[Split, ...] = get_args(Split)
CLOZE_KINDS: tuple[ClozeKind, ...] = get_args(ClozeKind)
# The roles of each plot that the ending depends on.
PLOTS: dict[str, tuple[str, str]] = {
    "race": ("hero", "object"),
    "loss": ("object", "place"),
    "trade": ("object", "place"),
    "gift": ("hero", "place"),
}


@dataclasses.dataclass(frozen=True)
class Story:
    """One story.

    Attributes:
      story_id: unique for (seed, split, index).
      topic: name of the topic in lexicon.TOPICS.
      plot: which of PLOTS it follows.
      sentences: 5 or 6 sentences; the last one is the ending. Lower-case words separated by
        single spaces, a full stop after the last word.
    """

    story_id: str
    topic: str
    plot: str
    sentences: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """Returns everything before the ending."""
        return " ".join(self.sentences[:-1])

    @property
    def ending(self) -> str:
        """Returns the last sentence."""
        return self.sentences[-1]

    @property
    def text(self) -> str:
        """Returns the whole story."""
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
    """All that a story tells.

    Attributes:
      topic: index into lexicon.TOPICS.
      plot: one of PLOTS.
      names: the two characters, in the order of the opening sentence.
      hero: index of the character that the ending is about.
      objects: the object that the hero ends up with, and another one.
      places: where the characters are first, and where they are at the end.
      activity: index of what the characters do together, None for nothing.
      inverted: the decisive events are told in the other order, or from the other side.
    """

    topic: int
    plot: str
    names: tuple[str, str]
    hero: int
    objects: tuple[str, str]
    places: tuple[str, str]
    activity: int | None
    inverted: bool

    def entities(self) -> str:
        """Returns the canonical name of what the story mentions; mirrored stories share it."""
        objects = self.objects[:1] if self.plot == "gift" else self.objects
        places = () if self.plot == "race" else self.places
        mentioned = (*sorted(self.names), *sorted(objects), *sorted(places))
        return "/".join((lexicon.TOPICS[self.topic].name, *mentioned))


def mirror(situation: Situation, roles: tuple[str, ...]) -> Situation:
    """Returns the situation in which the entities of each given role change places."""
    changes = {
        "hero": 1 - situation.hero,
        "object": situation.objects[::-1],
        "place": situation.places[::-1],
    }
    fields = {"hero": "hero", "object": "objects", "place": "places"}
    return dataclasses.replace(situation, **{fields[role]: changes[role] for role in roles})


def tell(situation: Situation) -> tuple[str, ...]:
    """Returns the sentences of a situation; the last one is its ending."""
    topic = lexicon.TOPICS[situation.topic]
    opening = [f"{situation.names[0]} and {situation.names[1]} {topic.setting}"]
    if situation.activity is not None:
        opening.append(f"they {topic.activities[situation.activity]}")
    hero = situation.names[situation.hero]
    events = _race(situation) if situation.plot == "race" else _walk(situation)
    ending = (
        f"so {hero} won the {situation.objects[0]}"
        if situation.plot == "race"
        else f"now {hero} stood {situation.places[1]} with the {situation.objects[0]}"
    )
    return tuple(f"{sentence}." for sentence in (*opening, *events, ending))


def split_of(situation: Situation) -> Split:
    """Returns the one split in which this situation and its mirrored ones may occur."""
    digest = hashlib.sha256(situation.entities().encode()).digest()
    bucket = int.from_bytes(digest[:4], "big") % 10
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"


def generate_story(seed: int, split: Split, index: int) -> Story:
    """Generates story `index` of a split.

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
    """Generates test item `index` of one kind, about a situation of the test split.

    * StoryCloze: two endings; the wrong one is that of a mirrored story.
    * TopicStoryCloze: two endings; the wrong one ends a story of the same plot with other
      characters on another topic.
    * HellaSwag: four endings; the wrong ones are those of all mirrored stories.

    Raises:
      ValueError: kind is unknown or index negative.
    """
    if kind not in CLOZE_KINDS:
        raise ValueError(f"kind is {kind!r}; expected one of {CLOZE_KINDS}")
    _check_index(index)
    rng = random.Random(f"cloze/{kind}/{seed}/{index}")
    situation = _draw(rng, "test")
    *prompt, ending = tell(situation)
    one, two = PLOTS[situation.plot]
    swapped = [tell(mirror(situation, roles))[-1] for roles in ((one,), (two,), (one, two))]
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
    """Returns every word that a story can contain, without full stops."""
    texts = list(lexicon.NAMES)
    for number, topic in enumerate(lexicon.TOPICS):
        texts += [*topic.objects, *topic.places]
        choices = itertools.product(PLOTS, range(len(topic.activities)), (False, True))
        for plot, activity, inverted in choices:
            texts += tell(
                Situation(
                    topic=number,
                    plot=plot,
                    names=(lexicon.NAMES[0], lexicon.NAMES[1]),
                    hero=0,
                    objects=(topic.objects[0], topic.objects[1]),
                    places=(topic.places[0], topic.places[1]),
                    activity=activity,
                    inverted=inverted,
                )
            )
    return frozenset(word.rstrip(".") for text in texts for word in text.split())


def _check_index(index: int) -> None:
    if index < 0:
        raise ValueError(f"index is {index}; expected a number from 0")


def _race(situation: Situation) -> list[str]:
    """Returns what two characters run for, and who is faster."""
    hero, other = situation.names[situation.hero], situation.names[1 - situation.hero]
    prize, spare = situation.objects
    events = [f"they ran to win the {prize}", f"there was no {spare} to win"]
    if situation.inverted:
        return [*reversed(events), f"{other} ran behind {hero}"]
    return [*events, f"{hero} ran ahead of {other}"]


def _walk(situation: Situation) -> list[str]:
    """Returns how the hero comes to an object, and where both characters go afterwards."""
    hero, other = situation.names[situation.hero], situation.names[1 - situation.hero]
    thing, spare = situation.objects
    if situation.plot == "loss":
        events = [f"{hero} still had the {thing}", f"{hero} had no {spare} left"]
        if situation.inverted:
            events.reverse()
    elif situation.plot == "trade":
        events = [f"{hero} traded the {spare} for the {thing}"]
    elif situation.inverted:
        events = [f"{hero} got the {thing} from {other}"]
    else:
        events = [f"{other} gave the {thing} to {hero}"]
    start, goal = situation.places
    return [*events, f"first they stood {start}", f"then they stood {goal}"]


def _draw(rng: random.Random, split: Split, plots: tuple[str, ...] = tuple(PLOTS)) -> Situation:
    """Draws situations of the given plots until one belongs to the split."""
    while True:
        topic = rng.randrange(len(lexicon.TOPICS))
        plot = rng.choice(plots)
        activities = range(len(lexicon.TOPICS[topic].activities))
        situation = Situation(
            topic=topic,
            plot=plot,
            names=_pair(rng, lexicon.NAMES),
            hero=rng.randrange(2),
            objects=_pair(rng, lexicon.TOPICS[topic].objects),
            places=_pair(rng, lexicon.TOPICS[topic].places),
            activity=None if plot == "loss" else rng.choice((None, *activities)),
            inverted=rng.random() < 0.5,
        )
        if split_of(situation) == split:
            return situation


def _draw_elsewhere(rng: random.Random, situation: Situation) -> Situation:
    """Draws a test situation of the same plot, with another topic and other characters."""
    while True:
        drawn = _draw(rng, "test", (situation.plot,))
        strangers = not set(drawn.names) & set(situation.names)
        if strangers and drawn.topic != situation.topic:
            return drawn


def _pair(rng: random.Random, choices: tuple[str, ...]) -> tuple[str, str]:
    first, second = rng.sample(choices, 2)
    return first, second
