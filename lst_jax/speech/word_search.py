"""The likeliest words of a list, by the log-probabilities of a CTC model's letters.

The words are a tree of letters, each ended by the delimiter. A path goes through the tree as
CTC's does through the labels of one word, and from a delimiter back to the root. Every word is as
likely as any other, which costs each word the logarithm of their number, so that a path of many
short words is no better for being cut up. The best path is exact: nothing is pruned.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lst_jax.settings import require

_IMPOSSIBLE = -np.inf
_NOTHING = -1  # the word between two delimiters, or before the first


class WordSearch:
    """A list of words, to look for the best of them."""

    def __init__(self, words: Sequence[Sequence[int]], delimiter: int, blank: int) -> None:
        """Builds the tree.

        Args:
          words: labels of each, one or more and none of them the blank. Of equal words the first
            is found.
          delimiter: label between words.
          blank: CTC's.
        """
        children: dict[tuple[int, int], int] = {}
        parents, labels = [0], [blank]  # of the root
        ends: dict[int, int] = {}  # words by their last node, the delimiter
        for number, word in enumerate([(), *words], start=_NOTHING):
            good = number == _NOTHING or (len(word) > 0 and blank not in word)
            require(good, f"words[{number}]", list(word), "labels without the blank, one or more")
            node = 0
            for label in (*word, delimiter):
                child = children.setdefault((node, label), len(parents))
                if child == len(parents):
                    parents.append(node)
                    labels.append(label)
                node = child
            ends.setdefault(node, number)
        self._parents, self._labels = np.array(parents), np.array(labels)
        # A label that follows its like needs a blank between.
        self._steps = self._labels != self._labels[self._parents]
        self._ends, self._words = np.array(list(ends)), np.array(list(ends.values()))
        self._costs = np.where(self._words == _NOTHING, 0.0, np.log(max(len(words), 1)))
        self._blank = blank

    def search(self, log_probs: np.ndarray) -> list[int]:
        """Returns the numbers of the words in the best path through float (T, V), T ≥ 1."""
        parents = self._parents
        # Of each node the best path that is on its label, and on the blank behind it; the root's
        # label is the delimiter that came before. With each the frame at which its word began.
        label = np.full(len(parents), _IMPOSSIBLE)
        label[0] = 0.0
        blank = np.full(len(parents), _IMPOSSIBLE)
        label_from, blank_from = np.zeros((2, len(parents)), np.int64)
        ended: list[tuple[int, int]] = []  # by frame, the word that ends there and its beginning
        for frame, scores in enumerate(log_probs.astype(np.float64)):
            on_label, on_label_from = _better(
                (np.where(self._steps, label[parents], _IMPOSSIBLE), label_from[parents]),
                (blank[parents], blank_from[parents]),
            )
            on_label, on_label_from = _better((label, label_from), (on_label, on_label_from))
            blank, blank_from = _better((blank, blank_from), (label, label_from))
            blank, label = blank + scores[self._blank], on_label + scores[self._labels]
            label_from = on_label_from
            best = int(np.argmax(label[self._ends] - self._costs))
            end = self._ends[best]
            ended.append((int(self._words[best]), int(label_from[end])))
            label[0], label_from[0] = label[end] - self._costs[best], frame + 1
        # The last word needs no delimiter.
        last = parents[self._ends]
        final, final_from = _better((label, label_from), (blank, blank_from))
        best = int(np.argmax(final[last] - self._costs))
        word, start = int(self._words[best]), int(final_from[last[best]])
        found = [word]
        while start > 0:
            word, start = ended[start - 1]
            found.append(word)
        return [word for word in reversed(found) if word != _NOTHING]


def _better(
    one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the larger scores, the first where they are equal, and what goes with them."""
    first = one[0] >= other[0]
    return np.where(first, one[0], other[0]), np.where(first, one[1], other[1])
