"""Cases of speech models and of alignment: does this project compute what an oracle computed?

A case of a model is a Hugging Face directory (`data_pipelines.speech.hugging_face`) and `io.npz`:

    input_values (B, n)       normalized waveforms, zeros behind them
    attention_mask (B, n)     1 where a sample is real
    frames (B,)               real frames of each row
    PLACE/hidden_0 …          hidden states (B, L, d), (1, frames, d) where alone; PLACE is `masked`
    PLACE/last, PLACE/logits  (a batch with its mask), `unmasked` (without) or `alone_i` (row i)
    unit_layer ()             with `centroids.npy` (K, d) beside
    alone_i/units (frames,)   and `alone_i/unit_margin`, how much nearer than the next centroid

A case of a vocoder is a directory of one (`data_pipelines.speech.hifigan_checkpoints`) and
`io.npz` with `units (U,)` and `waveform (n,)`, or `dedup_units (U,)` with `durations (U,)` and
`dedup_waveform (n,)`, all by `speaker ()` and `style ()` where the vocoder has them.

A case of alignment is a file `.npz` with, for i = 0, 1, …, `log_probs_i (T, V)`, `targets_i (L,)`,
`score_i ()` and `spans_i (L, 2)`, −1 where several paths are best; the blank is 0.

Nothing is passed over in silence: an array that is missing beside others, or of another shape, is
refused by name, and a number that is not finite is as far off as can be.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.speech.hifigan_checkpoints import read_vocoder
from data_pipelines.speech.hifigan_vocoder import HiFiGANVocoder
from data_pipelines.speech.hugging_face import SpeechModel, read_model
from data_pipelines.speech.vocoder import check_units
from data_pipelines.speech.weights import read_weights
from lst_jax.settings import list_names, require
from lst_jax.speech.ctc import CTCPath, align_ctc_rows
from lst_jax.speech.wav2vec2 import HiddenStates, Wav2Vec2, apply_model
from lst_jax.speech.wav2vec2_config import Padding, frame_count
from lst_jax.strict_json import read_json_object

_FARTHEST = float(np.finfo(np.float32).max)  # in place of NaN and infinities, which JSON has not
_TOLERANCE = 1e-4  # of numbers up to 1 and relative to larger ones
_CLEAR_MARGIN = 1e-3  # under which rounding may decide a unit
_ALIGNMENT = re.compile(r"(?:log_probs|targets|score|spans)_(\d+)")

_Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass
class CaseComparison:
    """What was compared so far.

    Attributes:
      results: by key: the largest absolute difference, or the share that is equal.
      compared: arrays.
      equal: whether all is within what float32 arithmetic in another order explains.
    """

    results: dict[str, float] = dataclasses.field(default_factory=dict)
    compared: int = 0
    equal: bool = True

    def add_difference(self, key: str, difference: float, scale: float) -> None:
        """Counts an array that differs so much, and whose largest number is `scale`."""
        self.compared += 1
        self.results[key] = max(self.results.get(key, 0.0), difference)
        self.equal &= difference <= _TOLERANCE * max(scale, 1.0)

    def add_share(self, key: str, equal: int, total: int, arrays: int) -> None:
        """Counts arrays of which so many of all items are equal; nothing where there is no item."""
        if total:
            self.compared += arrays
            self.results[key] = equal / total
            self.equal &= equal == total


def verify_case(case: pathlib.Path) -> CaseComparison:
    """Compares what this project computes with what a case holds.

    Raises:
      OSError: a file is missing or cannot be read.
      ValueError: the case is of no known kind, or not as described above.
    """
    comparison = CaseComparison()
    if case.is_dir():
        settings = read_json_object(case / "config.json")
        if "model_type" not in settings and "upsample_rates" in settings:
            _compare_vocoder(case, comparison)
        else:
            _compare_model(case, comparison)
    else:
        _compare_alignments(case, comparison)
    if not comparison.compared:
        raise ValueError(f"{case} has nothing to compare, expected arrays of an oracle")
    return comparison


def _compare_model(case: pathlib.Path, comparison: CaseComparison) -> None:
    model, file = read_model(case), case / "io.npz"
    io = _read_io(file)
    waveforms, lengths = _read_inputs(model, io, file)
    places = {name.partition("/")[0] for name in io if "/" in name}
    rows = range(len(waveforms))
    known = {"masked", "unmasked", *(f"alone_{i}" for i in rows)}
    if places - known:
        raise ValueError(
            f"{file} has {list_names(sorted(places - known))}, expected masked, unmasked and "
            f"alone_0 … alone_{len(waveforms) - 1}"
        )
    whole = jnp.full(len(waveforms), waveforms.shape[1], jnp.int32)
    if "masked" in places:
        _require_mask(io, file)
        states = _run(model, "published", waveforms, lengths)
        _compare_states(comparison, model, "masked", io, states, file)
    if "unmasked" in places:
        states = _run(model, "published", waveforms, None)
        _compare_states(comparison, model, "unmasked", io, states, file)
    if not any(f"alone_{i}" in places for i in rows):
        return
    lengths = lengths if "attention_mask" in io else whole
    together = _run(model, "exact", waveforms, lengths)
    units = [0, 0, 0]
    for i in rows:
        if f"alone_{i}" not in places:
            continue
        count = int(together.frames[i])
        inside = jax.tree.map(lambda x, i=i, count=count: x[i : i + 1, :count], _arrays(together))
        alone = _run(model, "published", waveforms[i : i + 1, : int(lengths[i])], None)
        # A row is the same alone and, with exact padding, beside others.
        _compare_states(comparison, model, f"alone_{i}", io, alone, file)
        again = CaseComparison()
        beside = alone._replace(**inside)
        _compare_states(again, model, f"alone_{i}", io, beside, file)
        for key, difference in again.results.items():
            comparison.results[key] = max(comparison.results[key], difference)
        comparison.equal &= again.equal
        for total, found in enumerate(_compare_units(case, i, io, alone, file)):
            units[total] += found
    comparison.add_share("units_equal", units[0], units[1], units[2])


def _compare_vocoder(case: pathlib.Path, comparison: CaseComparison) -> None:
    trained, file = read_vocoder(case), case / "io.npz"
    io, config = _read_io(file), trained.config
    known = ("units", "waveform", "dedup_units", "durations", "dedup_waveform", "speaker", "style")
    others = [name for name in io if name not in known]
    if others:
        raise ValueError(f"{file} has {list_names(others)}, expected {', '.join(known)}")
    ids: dict[str, int | None] = {"speaker": None, "style": None}
    for name in ids:
        if name in io:
            right = io[name].size == 1 and io[name].dtype.kind in "iu"
            require(right, f"{file}: {name}", io[name].shape, "an integer")
            ids[name] = int(io[name].item())
    predict = "dedup_units" in io
    try:
        vocoder = HiFiGANVocoder(trained, **ids, predict_durations=predict)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    for prefix in ("", "dedup_"):
        has = f"{prefix}units" in io
        wanted = {f"{prefix}waveform"} | ({"durations"} if prefix else set())
        there = sorted(wanted & set(io))
        fits = has == bool(there)
        require(
            fits, f"{file}: {prefix}units", sorted(io), f"it where there is its {prefix}waveform"
        )
        if not has:
            continue
        units = io[f"{prefix}units"]
        try:
            check_units(units, config.num_embeddings)
        except ValueError as error:
            raise ValueError(f"{file}: {prefix}{error}") from None
        durations = np.ones(len(units), np.int32)
        if prefix:
            durations = vocoder.durations(units)
            if "durations" in io:
                theirs = io["durations"]
                right = theirs.shape == units.shape and theirs.dtype.kind in "iu"
                described = f"{theirs.dtype} {theirs.shape}"
                require(right, f"{file}: durations", described, f"integers {units.shape}")
                equal = int(np.sum(theirs == durations))
                comparison.add_share("durations_equal", equal, len(units), 1)
        if f"{prefix}waveform" in io:
            theirs = io[f"{prefix}waveform"]
            described = f"{theirs.dtype} {theirs.shape}"
            right = theirs.ndim == 1 and theirs.dtype.kind == "f"
            require(right, f"{file}: {prefix}waveform", described, "floating-point numbers (n,)")
            ours = vocoder.speak(np.repeat(units, durations))
            same = ours.shape == theirs.shape
            expected = f"{ours.shape}, {config.code_hop_size} samples a unit"
            # Other durations than ours make another length, which is a difference.
            require(same or bool(prefix), f"{file}: waveform", theirs.shape, expected)
            difference = _difference(ours, theirs) if same else _FARTHEST
            comparison.add_difference("waveform", difference, 1.0)


def _read_io(file: pathlib.Path) -> _Arrays:
    found = read_weights(file)
    is_archive = isinstance(found, dict) and all(isinstance(x, np.ndarray) for x in found.values())
    require(is_archive, str(file), type(found).__name__, "an archive of arrays (.npz)")
    return found


def _arrays(states: HiddenStates) -> dict[str, Any]:
    return {"hidden": states.hidden, "last": states.last, "logits": states.logits}


def _run(model: SpeechModel, padding: Padding, waveforms: np.ndarray, lengths: Any) -> HiddenStates:
    module = Wav2Vec2(model.config, model.head, padding)
    return jax.jit(functools.partial(apply_model, module))(model.params, waveforms, lengths)


def _read_inputs(
    model: SpeechModel, io: _Arrays, file: pathlib.Path
) -> tuple[np.ndarray, np.ndarray]:
    """Returns waveforms (B, n) float32 and their lengths (B,) int32."""
    if "input_values" not in io:
        raise ValueError(f"{file} has no input_values")
    waveforms = io["input_values"]
    is_batch = waveforms.ndim == 2 and waveforms.dtype.kind == "f" and waveforms.size > 0
    described = f"{waveforms.dtype} {waveforms.shape}"
    require(is_batch, f"{file}: input_values", described, "floating-point numbers (B, n)")
    finite = bool(np.isfinite(waveforms).all())
    require(finite, f"{file}: input_values", float("nan"), "numbers that are finite")
    shape = waveforms.shape
    mask = io.get("attention_mask", np.ones(shape, np.int64))
    lengths = np.sum(mask, axis=-1).astype(np.int32)
    is_mask = mask.shape == shape and np.array_equal(mask, np.arange(shape[1]) < lengths[:, None])
    expected = f"{shape}: ones, then zeros, in every row"
    require(is_mask, f"{file}: attention_mask", f"{mask.dtype} {mask.shape}", expected)
    frames = frame_count(model.config, lengths)
    require(bool(frames.min() > 0), f"{file}: frames", frames.tolist(), "a frame in every row")
    stated = io.get("frames", frames)
    same = np.array_equal(stated, frames)
    require(same, f"{file}: frames", stated.tolist(), f"{frames.tolist()}, by the lengths")
    return waveforms.astype(np.float32), lengths


def _require_mask(io: _Arrays, file: pathlib.Path) -> None:
    if "attention_mask" not in io:
        raise ValueError(f"{file} has masked states and no attention_mask")


def _compare_states(
    comparison: CaseComparison,
    model: SpeechModel,
    place: str,
    io: _Arrays,
    states: HiddenStates,
    file: pathlib.Path,
) -> None:
    """Compares all states of one place over its real frames."""
    depth = model.config.num_hidden_layers
    names = {name.partition("/")[2] for name in io if name.startswith(f"{place}/")}
    expected = {f"hidden_{i}" for i in range(depth + 1)}
    hidden = {name for name in names if name.startswith("hidden_")}
    if hidden and hidden != expected:
        wrong = list_names(sorted(f"{place}/{name}" for name in hidden ^ expected))
        raise ValueError(
            f"{file}: {wrong} is missing or one too many, expected {depth + 1} of them"
        )
    if "logits" in names and states.logits is None:
        raise ValueError(f"{file} has {place}/logits, and the model no lm_head")
    group = place.partition("_")[0]
    ours: dict[str, tuple[Any, ...]] = {f"hidden_{i}": (x,) for i, x in enumerate(states.hidden)}
    # Until version 5 of transformers the last one had passed the final norm.
    ours[f"hidden_{depth}"] += (states.last,)
    ours |= {"last": (states.last,), "logits": (states.logits,)}
    for name, choices in ours.items():
        if name not in names:
            continue
        theirs = io[f"{place}/{name}"]
        shape = np.shape(choices[0])
        right = theirs.shape == shape and theirs.dtype.kind == "f"
        described = f"{theirs.dtype} {theirs.shape}"
        require(right, f"{file}: {place}/{name}", described, f"floating-point numbers {shape}")
        real = np.arange(shape[1]) < np.asarray(states.frames)[:, None]
        if place == "unmasked":
            real[:] = True
        kind = "logits" if name == "logits" else "hidden"
        difference = min(_difference(np.asarray(x)[real], theirs[real]) for x in choices)
        comparison.add_difference(f"{group}_{kind}", difference, _largest(theirs[real]))


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Returns the largest absolute difference, `_FARTHEST` where a number is not finite."""
    largest = float(np.max(np.abs(ours.astype(np.float64) - theirs.astype(np.float64))))
    return largest if largest < _FARTHEST else _FARTHEST  # NaN is not smaller


def _largest(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(np.max(np.abs(finite), initial=0))


def _compare_units(
    case: pathlib.Path, row: int, io: _Arrays, states: HiddenStates, file: pathlib.Path
) -> tuple[int, int, int]:
    """Returns how many units of a row are equal, of how many, in how many arrays."""
    name, margin_name = f"alone_{row}/units", f"alone_{row}/unit_margin"
    if name not in io and margin_name not in io:
        return 0, 0, 0
    missing = [x for x in (name, margin_name, "unit_layer") if x not in io]
    if missing:
        raise ValueError(f"{file} is without {list_names(missing)}, expected all of them for units")
    depth = len(states.hidden) - 1
    layer = io["unit_layer"]
    inside = layer.shape == () and layer.dtype.kind in "iu" and 0 <= int(layer) <= depth
    require(inside, f"{file}: unit_layer", layer.tolist(), f"an integer, 0 … {depth}")
    features = np.asarray(states.hidden[int(layer)][0], np.float64)
    centroids = read_weights(case / "centroids.npy")
    found = np.asarray(centroids if isinstance(centroids, np.ndarray) else ())
    fits = found.shape == (len(found), features.shape[1]) and found.dtype.kind == "f"
    fits = fits and len(found) > 0 and bool(np.isfinite(found).all())
    expected = f"finite numbers (K, {features.shape[1]})"
    require(fits, str(case / "centroids.npy"), found.shape, expected)
    theirs, margin = io[name], io[margin_name]
    for label, x, kinds in ((name, theirs, "iu"), (margin_name, margin, "f")):
        right = x.shape == features.shape[:1] and x.dtype.kind in kinds
        described = f"{x.dtype} {x.shape}"
        require(right, f"{file}: {label}", described, f"numbers ({len(features)},), one a frame")
    good = bool(np.isfinite(margin).all() and margin.min() >= 0)
    require(good, f"{file}: {margin_name}", float(margin.min()), "finite distances, at least 0")
    centroids = found.astype(np.float64)
    distances = np.square(centroids).sum(1) - 2 * features @ centroids.T
    clear = margin > _CLEAR_MARGIN
    equal = distances.argmin(1) == theirs
    return int(equal[clear].sum()), int(clear.sum()), 1


def _compare_alignments(file: pathlib.Path, comparison: CaseComparison) -> None:
    io = _read_io(file)
    count = len({match[1] for name in io if (match := _ALIGNMENT.fullmatch(name))})
    kinds = ("log_probs", "targets", "score", "spans")
    missing = [f"{kind}_{i}" for i in range(count) for kind in kinds if f"{kind}_{i}" not in io]
    if not count or missing:
        raise ValueError(
            f"{file} is without {list_names(missing or ['log_probs_0'])}, expected log_probs_i, "
            "targets_i, score_i and spans_i for i = 0, 1, …"
        )
    rows = [[io[f"{kind}_{i}"] for i in range(count)] for kind in kinds]
    for i, (log_probs, targets, score, spans) in enumerate(zip(*rows, strict=True)):
        shapes = log_probs.ndim == 2, targets.ndim == 1, score.shape == ()
        wanted = all(shapes) and spans.shape == (len(targets), 2) and spans.dtype.kind in "iu"
        numbers = log_probs.dtype.kind == "f" and score.dtype.kind == "f"
        found = [x.shape for x in (log_probs, targets, score, spans)]
        expected = "(T, V), (L,), () and (L, 2) of numbers"
        require(wanted and numbers, f"{file}: shapes of {', '.join(kinds)}_{i}", found, expected)
    try:
        paths = align_ctc_rows(rows[0], rows[1])
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    equal = unique = 0
    for path, score, spans in zip(paths, rows[2], rows[3], strict=True):
        found = np.array(path.score if isinstance(path, CTCPath) else -np.inf)
        same_nothing = not isinstance(path, CTCPath) and score == -np.inf
        difference = 0.0 if same_nothing else _difference(found, score)
        comparison.add_difference("alignment_score", difference, 1.0)  # both are of float64
        if (spans != -1).any():
            unique += 1
            equal += isinstance(path, CTCPath) and np.array_equal(path.spans, spans)
    comparison.add_share("alignment_spans_equal", int(equal), unique, unique)
