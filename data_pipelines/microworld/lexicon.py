"""The words of the built-in corpus: characters, and topics with their own things and places.

Objects, places and activities belong to one topic each, so that an ending gives its topic away
even in speech. Within a topic the words are chosen to sound unlike each other.
"""

from __future__ import annotations

import dataclasses

NAMES: tuple[str, ...] = (
    "anna",
    "ben",
    "lucy",
    "oscar",
    "nina",
    "peter",
    "ruby",
    "jack",
    "emma",
    "victor",
    "grace",
    "tom",
)


@dataclasses.dataclass(frozen=True)
class Topic:
    """What a story of one topic may mention.

    Attributes:
      name: the topic's own name.
      setting: verb phrase that says where the characters are ("worked on the farm").
      activities: verb phrases of what two characters do together there.
      objects: nouns for things that a character can hold.
      places: prepositional phrases of three words, for where something can be.
    """

    name: str
    setting: str
    activities: tuple[str, ...]
    objects: tuple[str, ...]
    places: tuple[str, ...]


TOPICS: tuple[Topic, ...] = (
    Topic(
        name="farm",
        setting="worked on the farm",
        activities=("fed the hungry goats", "milked a brown cow"),
        objects=("bucket", "saddle", "pumpkin", "feather", "ladder", "rope"),
        places=("in the barn", "by the gate", "near the tractor", "behind the stable"),
    ),
    Topic(
        name="beach",
        setting="played at the beach",
        activities=("swam in the sea", "built a sand castle"),
        objects=("shell", "towel", "kite", "surfboard", "bottle", "crab"),
        places=("under the pier", "near the lighthouse", "on the rocks", "in the boat"),
    ),
    Topic(
        name="kitchen",
        setting="cooked in the kitchen",
        activities=("baked some bread", "washed all the dishes"),
        objects=("spoon", "kettle", "pancake", "honey", "apron", "knife"),
        places=("on the table", "by the oven", "under the sink", "in the cupboard"),
    ),
    Topic(
        name="school",
        setting="learned at the school",
        activities=("read a long poem", "solved a hard problem"),
        objects=("pencil", "ruler", "notebook", "backpack", "eraser", "globe"),
        places=("at the desk", "in the classroom", "near the blackboard", "behind the gym"),
    ),
    Topic(
        name="garden",
        setting="dug in the garden",
        activities=("watered the flowers", "pulled out many weeds"),
        objects=("shovel", "tomato", "rose", "carrot", "hose", "worm"),
        places=("under the hedge", "by the fountain", "near the fence", "in the greenhouse"),
    ),
    Topic(
        name="market",
        setting="shopped at the market",
        activities=("counted their money", "talked with a baker"),
        objects=("melon", "basket", "cheese", "lantern", "fish", "scarf"),
        places=("on the corner", "behind the wagon", "at the bakery", "in the square"),
    ),
    Topic(
        name="winter",
        setting="walked through the snow",
        activities=("skated around the pond", "drank hot chocolate"),
        objects=("sled", "mitten", "blanket", "snowball", "coat", "icicle"),
        places=("on the hill", "in the cabin", "near the snowman", "by the chimney"),
    ),
    Topic(
        name="music",
        setting="sang in the choir",
        activities=("practiced a happy song", "danced to the music"),
        objects=("drum", "violin", "trumpet", "guitar", "flute", "bell"),
        places=("on the stage", "by the piano", "behind the curtain", "in the balcony"),
    ),
    Topic(
        name="forest",
        setting="camped in the forest",
        activities=("followed a young deer", "climbed up a tree"),
        objects=("acorn", "mushroom", "compass", "axe", "tent", "berry"),
        places=("in the cave", "by the river", "under the oak", "on the bridge"),
    ),
    Topic(
        name="train",
        setting="waited at the station",
        activities=("watched the fast trains", "asked the driver questions"),
        objects=("ticket", "suitcase", "newspaper", "umbrella", "camera", "map"),
        places=("on the platform", "in the tunnel", "at the counter", "near the clock"),
    ),
)
