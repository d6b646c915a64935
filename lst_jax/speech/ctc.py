"""Connectionist temporal classification: forced alignment and greedy decoding.

A row of T frames is labeled by a path through the 2L + 1 states blank, y₁, blank, …, y_L, blank:
it begins in one of the first two and ends in one of the last two, and from frame to frame it stays,
steps to the next state, or skips a blank between two labels that differ. The alignment is the path
of the largest sum of log-probabilities. Of several, it is the one whose states, read from the last
frame backward, are the largest: every state is entered as early as can be.

Sums are kept in two float32 each, which together have the accuracy of float64 for as long as a row
may be. Memory does not grow with frames times states: a first pass keeps the sums of every
`_BLOCK`-th frame alone; a second goes through the blocks from the last to the first and finds their
back pointers, 2 bits each, for the 2 · `_BLOCK` states from which the path can have come.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lst_jax.settings import quote, require
from lst_jax.shapes import Float, Int32, check_shapes
from lst_jax.speech.interfaces import Rejection

_BLOCK = 512  # frames
_UNREACHABLE = -1e30  # infinities would turn into NaN in `_add`
_LEAST = -1e8  # a log-probability of no path that is taken: far from _UNREACHABLE over any row
_CELLS = 2**26  # frames times states of a batch, a bound on its memory

_Sum = tuple[Array, Array]  # its value rounded to float32, and what that leaves out


@dataclasses.dataclass(frozen=True, eq=False)
class CTCPath:
    """The best path of a row.

    Attributes:
      score: sum of its log-probabilities.
      spans: int32 (L, 2), first frame of each label and the one after its last.
      span_scores: float64 (L,), mean log-probability of each label's frames.
    """

    score: float
    spans: np.ndarray
    span_scores: np.ndarray


def align_ctc(log_probs: np.ndarray, targets: np.ndarray, blank: int = 0) -> CTCPath:
    """Returns the best path of one row; see `align_ctc_rows`.

    Raises:
      ValueError: there is no path, or see there.
    """
    (found,) = align_ctc_rows([log_probs], [targets], blank)
    if isinstance(found, Rejection):
        raise ValueError(f"log_probs: {found.reason}")
    return found


def align_ctc_rows(
    log_probs: Sequence[np.ndarray], targets: Sequence[np.ndarray], blank: int = 0
) -> list[CTCPath | Rejection]:
    """Returns the best path of every row, which does not depend on the others.

    Args:
      log_probs: rows of frames, float (T, V) with T ≥ 1, no NaN, at most 0 up to rounding or a
        constant of the frame; T differs from row to row.
      targets: integers (L,) with L ≥ 0, 0 … V − 1 without the blank, for each row.
      blank: its label.

    Returns:
      A path for each row, or why there is none: "too-short" where T < L + labels that follow an
      equal one, "impossible" where each path has a frame of probability 0.

    Raises:
      ValueError: a row is not as described.
    """
    require(len(log_probs) == len(targets), "targets", len(targets), f"{len(log_probs)}, one a row")
    rows = [np.asarray(row, np.float32) for row in log_probs]
    labels = [np.asarray(row) for row in targets]
    for row, label in zip(rows, labels, strict=True):
        _check_row(row, label, blank)
    found: list[CTCPath | Rejection | None] = [
        _check_length(len(row), label) for row, label in zip(rows, labels, strict=True)
    ]
    waiting = [i for i, rejection in enumerate(found) if rejection is None]
    for batch in _batches(waiting, [len(row) for row in rows], [len(label) for label in labels]):
        states = _align_batch([rows[i] for i in batch], [labels[i] for i in batch], blank)
        for i, path in zip(batch, states, strict=True):
            found[i] = _describe(rows[i], labels[i], path, blank)
    return [result for result in found if result is not None]


def decode_greedy(log_probs: np.ndarray, blank: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns the likeliest label of every frame, with repeats joined and blanks dropped.

    Args:
      log_probs: float (T, V).
      blank: its label.

    Returns:
      Labels int32 (L,), and their spans int32 (L, 2) with the end exclusive.
    """
    best = log_probs.argmax(axis=-1).astype(np.int32)
    first = np.flatnonzero(np.diff(best, prepend=-1))
    spans = np.stack([first, np.append(first[1:], len(best))], axis=1).astype(np.int32)
    spoken = best[first] != blank
    return best[first][spoken], spans[spoken]


def add_star(log_probs: np.ndarray) -> np.ndarray:
    """Returns log-probabilities (…, V + 1) with a label V that matches anything, at 0."""
    return np.pad(log_probs, [(0, 0)] * (log_probs.ndim - 1) + [(0, 1)])


@functools.partial(jax.jit, static_argnames="blank")
@check_shapes
def best_states(
    log_probs: Float[Array, "B T V"],
    frames: Int32[Array, " B"],
    targets: Int32[Array, "B L"],
    lengths: Int32[Array, " B"],
    *,
    blank: int = 0,
) -> Int32[Array, "B T"]:
    """Returns the best path of every row, padding or not.

    Args:
      log_probs: float32 or less; what is padding does not matter. T is at most `_BLOCK` or a
        multiple of it.
      frames: of each row.
      targets: its labels.
      lengths: number of its labels. Frames are enough for them.
      blank: its label.

    Returns:
      States 0 … 2L: 2i + 1 is label i, an even one a blank. −1 where there is padding.
    """
    align = functools.partial(_align_row, blank=blank)
    return jax.vmap(align)(log_probs.astype(jnp.float32), frames, targets, lengths)


def _align_row(log_probs: Array, frames: Array, targets: Array, length: Array, blank: int) -> Array:
    num_states = 2 * len(targets) + 1
    num_states += -num_states % 4  # pointers of four states are a byte
    labels = jnp.full(num_states, blank, jnp.int32).at[1 : 2 * len(targets) : 2].set(targets)
    skips = (labels != blank) & (labels != jnp.roll(labels, 2)) & (jnp.arange(num_states) >= 3)
    block = min(_BLOCK, len(log_probs))
    window = min(num_states, 2 * block + 4)
    emissions = jnp.maximum(log_probs, _LEAST).reshape(-1, block, log_probs.shape[-1])
    real = (jnp.arange(len(log_probs)) < frames).reshape(-1, block)

    def step(sums: _Sum, emission: Array, is_real: Array, skips: Array) -> tuple[_Sum, Array]:
        high, low = sums
        pointer = jnp.zeros(len(skips), jnp.uint8)
        for size in (1, 2):  # a tie is for the shortest
            other_high = jnp.pad(sums[0][:-size], (size, 0), constant_values=_UNREACHABLE)
            other_low = jnp.pad(sums[1][:-size], (size, 0))
            better = _is_more((other_high, other_low), (high, low)) & is_real
            better &= skips if size == 2 else True
            high, low = jnp.where(better, other_high, high), jnp.where(better, other_low, low)
            pointer = jnp.where(better, jnp.uint8(size), pointer)
        high, low = _add((high, low), emission)
        kept = (jnp.where(is_real, high, sums[0]), jnp.where(is_real, low, sums[1]))
        return kept, pointer

    def pass_block(sums: _Sum, given: tuple[Array, Array]) -> tuple[_Sum, _Sum]:
        def frame(sums: _Sum, given: tuple[Array, Array]) -> tuple[_Sum, None]:
            return step(sums, given[0][labels], given[1], skips)[0], None

        return jax.lax.scan(frame, sums, given)[0], sums

    def trace_block(state: Array, given: tuple[Array, Array, _Sum]) -> tuple[Array, Array]:
        emission, is_real, before = given
        # Nothing below can get to `state` within the block.
        lowest = jnp.clip(state - window + 1, 0, num_states - window)

        def cut(x: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(x, lowest, window)

        own_labels, own_skips = cut(labels), cut(skips)

        def frame(sums: _Sum, given: tuple[Array, Array]) -> tuple[_Sum, Array]:
            sums, pointer = step(sums, given[0][own_labels], given[1], own_skips)
            shifted = pointer.reshape(-1, 4) << jnp.arange(0, 8, 2, dtype=jnp.uint8)
            return sums, jnp.sum(shifted, axis=1, dtype=jnp.uint8)

        def back(at: Array, pointers: Array) -> tuple[Array, Array]:
            pointer = pointers[at // 4] >> (2 * (at % 4)).astype(jnp.uint8) & 3
            return at - pointer.astype(jnp.int32), at

        start = (cut(before[0]), cut(before[1]))
        pointers = jax.lax.scan(frame, start, (emission, is_real))[1]
        first, states = jax.lax.scan(back, state - lowest, pointers, reverse=True)
        return first + lowest, states + lowest

    start = (jnp.full(num_states, _UNREACHABLE).at[0].set(0.0), jnp.zeros(num_states))
    (high, low), before = jax.lax.scan(pass_block, start, (emissions, real))
    last, label = 2 * length, jnp.maximum(2 * length - 1, 0)
    on_label = _is_more((high[label], low[label]), (high[last], low[last]))
    state = jnp.where(on_label, label, last)
    states = jax.lax.scan(trace_block, state, (emissions, real, before), reverse=True)[1]
    return jnp.where(real, states, -1).reshape(-1)


def _is_more(one: _Sum, other: _Sum) -> Array:
    return (one[0] > other[0]) | ((one[0] == other[0]) & (one[1] > other[1]))


def _add(total: _Sum, term: Array) -> _Sum:
    """Adds with the error of every rounding kept (Knuth, TAOCP vol. 2, 4.2.2)."""
    high, low = total
    rounded = high + term
    part = rounded - high
    error = (high - (rounded - part)) + (term - part) + low
    result = rounded + error
    return result, error - (result - rounded)


def _check_row(log_probs: np.ndarray, targets: np.ndarray, blank: int) -> None:
    shape = log_probs.shape
    require(len(shape) == 2 and min(shape) > 0, "shape of log_probs", shape, "(T, V), T and V ≥ 1")
    require(not np.isnan(log_probs).any(), "log_probs", float("nan"), "numbers")
    classes = shape[1]
    require(0 <= blank < classes, "blank", blank, f"0 … {classes - 1}, columns of log_probs")
    integers = targets.ndim == 1 and (targets.dtype.kind in "iu" or not targets.size)
    require(integers, "targets", f"{targets.dtype} {targets.shape}", "integers (L,)")
    wrong = targets[(targets < 0) | (targets >= classes) | (targets == blank)]
    if wrong.size:
        raise ValueError(
            f"targets holds {quote(int(wrong[0]))}, expected 0 … {classes - 1} without the blank "
            f"{blank}"
        )


def _check_length(frames: int, targets: np.ndarray) -> Rejection | None:
    """Returns why so few frames have no path, if they do not."""
    repeats = int(np.sum(targets[1:] == targets[:-1]))
    least = max(len(targets) + repeats, 1)
    if frames >= least:
        return None
    return Rejection(
        "too-short",
        f"{frames} frames, expected at least {least} for {len(targets)} labels of which {repeats} "
        "follow an equal one",
    )


def _batches(rows: Sequence[int], frames: list[int], labels: list[int]) -> Iterator[list[int]]:
    """Yields rows of one padded size together, as many as fit."""

    def size(i: int) -> tuple[int, int]:
        return _padded_frames(frames[i]), _padded(labels[i])

    for (length, width), group in itertools.groupby(sorted(rows, key=size), size):
        most = max(_CELLS // (length * (2 * width + 1)), 1)
        group = list(group)
        yield from (group[i : i + most] for i in range(0, len(group), most))


def _padded(size: int) -> int:
    """Returns the next of 16, 24, 32, 48, 64, …: few sizes are few compilations."""
    power = 16
    while power < size:
        power *= 2
    return power * 3 // 4 if power > 16 and size <= power * 3 // 4 else power


def _padded_frames(frames: int) -> int:
    padded = _padded(frames)
    return padded + (-padded % _BLOCK if padded > _BLOCK else 0)


def _align_batch(
    rows: Sequence[np.ndarray], labels: Sequence[np.ndarray], blank: int
) -> Iterator[np.ndarray]:
    """Yields the states of each row."""
    size = 1 << (len(rows) - 1).bit_length()  # a few numbers of rows, too
    length, width = _padded_frames(max(map(len, rows))), _padded(max(map(len, labels)))
    classes = max(row.shape[1] for row in rows)
    log_probs = np.zeros((size, length, classes), np.float32)
    targets = np.full((size, width), blank, np.int32)
    frames, lengths = np.zeros(size, np.int32), np.zeros(size, np.int32)
    for i, (row, label) in enumerate(zip(rows, labels, strict=True)):
        log_probs[i, : len(row), : row.shape[1]] = row
        targets[i, : len(label)] = label
        frames[i], lengths[i] = len(row), len(label)
    states = np.asarray(best_states(log_probs, frames, targets, lengths, blank=blank))
    return (path[: len(row)] for path, row in zip(states, rows, strict=False))


def _describe(
    log_probs: np.ndarray, targets: np.ndarray, states: np.ndarray, blank: int
) -> CTCPath | Rejection:
    spoken = states % 2 == 1
    labels = np.full(len(states), blank)
    labels[spoken] = targets[states[spoken] // 2]
    emissions = log_probs[np.arange(len(states)), labels].astype(np.float64)
    score = float(emissions.sum())
    if score == -np.inf:
        return Rejection("impossible", "every path has a frame of probability 0")
    ends = np.searchsorted(states, 2 * np.arange(len(targets)) + 2)  # they never fall
    starts = np.searchsorted(states, 2 * np.arange(len(targets)) + 1)
    sums = np.concatenate([[0.0], np.cumsum(emissions)])
    means = (sums[ends] - sums[starts]) / (ends - starts)
    return CTCPath(score, np.stack([starts, ends], axis=1).astype(np.int32), means)
