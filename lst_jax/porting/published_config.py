"""`params.json` of the published implementation to and from the description of a model.

What its checkpoints cannot say is fixed: cross-attentions add their residual twice and do not mind
documents, a patch is visible one token early, `<s>` joins the first static patch of its run, and
there are 502 speech units after the text pieces and six special ids.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from lst_jax.checkpoints.description import DataDescription, ModelDescription
from lst_jax.config import LSTConfig, Pooling
from lst_jax.patching import PatchingConfig, Strategy
from lst_jax.settings import list_names, quote
from lst_jax.strict_json import parse_json, read_json_object
from lst_jax.vocabulary import Vocabulary

# How the published implementation computes what `LSTConfig` leaves to choose.
PUBLISHED_CONVENTIONS: Mapping[str, Any] = {
    "cross_residual": "double",
    "document_cross_masking": False,
}
PUBLISHED_VISIBILITY = "reference"
PUBLISHED_UNIT_COUNT = 502

POOLINGS: dict[str, Pooling] = {"max": "max", "avg": "mean", "mean": "mean"}
_STRATEGIES: dict[str, Strategy] = {
    "lst_static": "static",
    "lst_align": "aligned",
    "lst_curriculum": "curriculum",
}
_SPECIAL_IDS = Vocabulary(text_size=3).first_unit_id - 3

_LONGEST_MESSAGE = 300  # characters

# Settings of `LSTConfig` by their published names; where one has several, these must agree.
_INTEGER_NAMES = {
    "vocab_size": "vocab_size",
    "dim_global": "dim_global",
    "dim_local_encoder": "dim_local",
    "dim_local_decoder": "dim_local",
    "n_layers_global": "num_layers_global",
    "n_layers_local_encoder": "num_layers_encoder",
    "n_layers_local_decoder": "num_layers_decoder",
    "n_heads_global": "num_heads_global",
    "n_heads_local_encoder": "num_heads_local",
    "n_heads_local_decoder": "num_heads_local",
    "cross_attn_k": "latent_vectors_per_patch",
    "cross_attn_nheads": "num_heads_cross",
    "cross_attn_window_encoder": "encoder_cross_window",
    "cross_attn_window_decoder": "decoder_cross_window",
    "local_attention_window_len": "local_window",
    "multiple_of": "multiple_of",
}
_INTEGERS = (*_INTEGER_NAMES, "patch_size")
_FLOATS = ("rope_theta", "norm_eps")
# Parts of the model that are always there.
_TRUE = (
    *("cross_attn_encoder", "cross_attn_decoder", "cross_attn_all_layers_decoder"),
    "cross_attn_init_by_pooling",
)


def read_params_json(path: pathlib.Path) -> ModelDescription:
    """Returns the description of a published checkpoint's model.

    Args:
      path: of `params.json`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not JSON, lacks settings, or describes a model that `LSTConfig` cannot;
        names the file and the settings in question.
    """
    params = read_json_object(path)
    try:
        model = _model_settings(params)
        problems = _find_problems(model)
        if problems:
            raise ValueError(_join(problems))
        return _describe(model, params)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _join(problems: Sequence[str]) -> str:
    """Returns problems in a line of bounded length, the first one always among them."""
    shown = list(problems[:1])
    for problem in problems[1:]:
        if sum(map(len, shown)) + len(problem) > _LONGEST_MESSAGE:
            break
        shown.append(problem)
    rest = len(problems) - len(shown)
    return "; ".join(shown) + (f"; and {rest} more" if rest else "")


def _describe(model: Mapping[str, Any], params: Mapping[str, Any]) -> ModelDescription:
    """Returns the description of settings that `_find_problems` finds nothing wrong with."""
    patching = PatchingConfig(
        strategy=_STRATEGIES[model["patching_mode"]],
        patch_size=model["patch_size"],
        join_speech_mode=True,
    )
    return ModelDescription(
        model=_lst_config(model),
        vocabulary=Vocabulary(
            text_size=model["vocab_size"] - PUBLISHED_UNIT_COUNT - _SPECIAL_IDS,
            unit_count=PUBLISHED_UNIT_COUNT,
        ),
        tokenizer_fingerprint=None,
        data=DataDescription(patching=patching, visibility=PUBLISHED_VISIBILITY),
        published_params=json.dumps(params),
    )


def make_params_json(description: ModelDescription) -> dict[str, Any]:
    """Returns `params.json` for a model.

    Raises:
      ValueError: the model is not an LST.
    """
    config, data = description.model, description.data
    if not isinstance(config, LSTConfig):
        raise ValueError(
            f"model is a {type(config).__name__}, expected an LSTConfig: the published format has"
            " no unpatched baseline; port it to safetensors"
        )
    original = parse_json(description.published_params or "{}")
    patching = data.patching or PatchingConfig()
    published = {ours: theirs for theirs, ours in reversed(_STRATEGIES.items())}
    # Curriculum and mixed models are static ones in the end; unpatched is static patches of one.
    mode = published.get(patching.strategy, "lst_static")
    patch_size = 1 if patching.strategy == "none" else patching.patch_size
    model = {
        **{theirs: getattr(config, ours) for theirs, ours in _INTEGER_NAMES.items()},
        "cross_attn_nheads": config.cross_attention_heads,
        "dim_token": config.dim_local,
        **dict.fromkeys(_TRUE, True),
        "cross_attn_all_layers_encoder": config.encoder_cross_layers == "all",
        "downsampling_by_pooling": {"mean": "avg"}.get(config.pooling, config.pooling),
        "rope_theta": config.rope_theta,
        "norm_eps": config.norm_eps,
        "attn_bias_type": "local_block_causal",
        "patching_mode": mode,
        "patch_size": patch_size,
    }
    for name, size in (
        ("max_encoder_seq_length", data.tokens_per_row),
        ("max_seqlen", data.patches_per_row),
    ):
        if size is not None:
            model[name] = size
    tokenizer = {"path": data.tokenizer} if data.tokenizer else {}
    patcher = {"patching_mode": mode, "patch_size": patch_size}
    ours = {"tokenizer_args": tokenizer, "patcher_args": patcher}
    return original | {
        "model": model | original.get("model", {}),
        "data": ours | original.get("data", {}),
    }


def published_differences(description: ModelDescription) -> list[str]:
    """Lists where the published implementation computes other things with these parameters."""
    differences = []
    for name, published in PUBLISHED_CONVENTIONS.items():
        value = getattr(description.model, name)
        if value != published:
            differences.append(f"{name} is {value!r} here, {published!r} there")
    visibility = description.data.visibility or PUBLISHED_VISIBILITY
    if visibility != PUBLISHED_VISIBILITY:
        differences.append(f"visibility is {visibility!r} here, {PUBLISHED_VISIBILITY!r} there")
    patching = description.data.patching
    if patching and patching.strategy != "none" and not patching.join_speech_mode:
        differences.append("join_speech_mode is False here, True there: `<s>` is a separate patch")
    if description.vocabulary.unit_count != PUBLISHED_UNIT_COUNT:
        differences.append(
            f"{description.vocabulary.unit_count} units here, {PUBLISHED_UNIT_COUNT} there"
        )
    if not description.vocabulary.units.is_plain:
        differences.append("units are joined or deduplicated here, each is an id there")
    return differences


def _model_settings(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings under "model"; those of patching may stand under "data" alone.

    Raises:
      ValueError: what should be an object is none.
    """
    if "model" not in params:
        raise ValueError("model is missing, expected an object")
    patcher = _object(_object(params, "data"), "patcher_args")
    patching = {name: patcher[name] for name in ("patching_mode", "patch_size") if name in patcher}
    settings = patching | _object(params, "model")
    for name in _INTEGERS:
        value = settings.get(name)
        if isinstance(value, float) and value.is_integer():
            settings[name] = int(value)  # 4.0 is how some writers of JSON put 4
    return settings


def _object(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns the object under a key, an empty one where there is none."""
    value = values.get(name, {})
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {quote(value)}, expected an object")
    return value


def _lst_config(model: Mapping[str, Any]) -> LSTConfig:
    return LSTConfig(
        **{ours: model[theirs] for theirs, ours in _INTEGER_NAMES.items()},
        pooling=POOLINGS[model["downsampling_by_pooling"]],
        encoder_cross_layers="all" if model["cross_attn_all_layers_encoder"] else "last",
        rope_theta=float(model["rope_theta"]),
        norm_eps=float(model["norm_eps"]),
        **PUBLISHED_CONVENTIONS,
    )


def _find_problems(model: Mapping[str, Any]) -> list[str]:
    """Returns the settings that are missing or that no `LSTConfig` has, one line each."""
    choices = {"downsampling_by_pooling": tuple(POOLINGS), "patching_mode": tuple(_STRATEGIES)}
    choices |= dict.fromkeys(_TRUE, (True,)) | {"cross_attn_all_layers_encoder": (True, False)}
    names = (*_INTEGERS, *_FLOATS, *choices)
    missing = [name for name in names if name not in model]
    if missing:
        return [f"model lacks {list_names(missing)}"]
    problems = []
    for name in _INTEGERS:
        if type(model[name]) is not int or not 1 <= model[name] < 2**31:
            problems.append(f"{name} is {quote(model[name])}, expected a positive integer")
    for name in _FLOATS:
        if type(model[name]) not in (int, float) or not 0 < model[name] < 1e300:
            problems.append(f"{name} is {quote(model[name])}, expected a positive number")
    for name, allowed in choices.items():
        # 1 is not true, although Python finds them equal.
        if not any(type(model[name]) is type(x) and model[name] == x for x in allowed):
            expected = " or ".join(map(repr, allowed))
            problems.append(f"{name} is {quote(model[name])}, expected {expected}")
    for other, of in (
        ("dim_local_decoder", "dim_local_encoder"),
        ("n_heads_local_decoder", "n_heads_local_encoder"),
        ("dim_token", "dim_local_encoder"),
    ):
        if model.get(other) not in (None, model[of]):
            expected = f"{quote(model[of])}, as {of}"
            problems.append(f"{other} is {quote(model[other])}, expected {expected}")
    fewest = PUBLISHED_UNIT_COUNT + _SPECIAL_IDS + 3
    if not problems and model["vocab_size"] < fewest:
        problems.append(
            f"vocab_size is {model['vocab_size']}, expected at least {fewest}: text pieces,"
            f" {_SPECIAL_IDS} special ids, {PUBLISHED_UNIT_COUNT} units"
        )
    return problems
