"""One table: where each tensor of a PyTorch checkpoint lives in the parameter tree.

A published checkpoint names its tensors `local_encoder.layers.0.attention.wq.weight`, one for each
layer, shaped as `torch.nn.Linear` has them, (out, in). The parameter tree has kernels (in, out),
stacks the layers that are scanned along a leading axis, and pads the vocabulary to a multiple of
128. Everything else is the same numbers: converting is slicing, transposing and trimming.

The unpatched baseline has no published checkpoint; its tensors take the names of the same parts.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import numpy as np

from lst_jax.config import LSTConfig, ModelConfig
from lst_jax.model.models import abstract_params

_ATTENTION = {
    "attention/query/kernel": "wq.weight",
    "attention/key/kernel": "wk.weight",
    "attention/value/kernel": "wv.weight",
    "attention/out/kernel": "wo.weight",
}
_BLOCK = {path: f"attention.{name}" for path, name in _ATTENTION.items()} | {
    "attention_norm/scale": "attention_norm.weight",
    "feed_forward/gate/kernel": "feed_forward.w1.weight",
    "feed_forward/up/kernel": "feed_forward.w3.weight",
    "feed_forward/down/kernel": "feed_forward.w2.weight",
    "feed_forward_norm/scale": "ffn_norm.weight",
}
_CROSS_ATTENTION = _ATTENTION | {
    "query_norm/scale": "cross_attn_norm_q.weight",
    "memory_norm/scale": "cross_attn_norm_kv.weight",
}
_EMBEDDING = "embedding/table"
_OUTPUT = "output_kernel"


@dataclasses.dataclass(frozen=True)
class PublishedTensor:
    """One tensor of a PyTorch checkpoint and its place in the parameter tree.

    Attributes:
      name: in the PyTorch checkpoint.
      shape: there.
      path: keys of the leaf in the parameter tree.
      layer: index along the leaf's leading axis where the leaf stacks layers, else None.
    """

    name: str
    shape: tuple[int, ...]
    path: tuple[str, ...]
    layer: int | None

    def to_published(self, leaf: np.ndarray) -> np.ndarray:
        """Returns the tensor, contiguous, from its leaf, or from its layer of a stacked one."""
        values = leaf.T if _is_transposed(self.path) else leaf
        return np.ascontiguousarray(values[tuple(slice(size) for size in self.shape)])

    def from_published(self, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Returns the leaf, or the layer of a stacked one, of `shape`; what pads it is zero."""
        values = tensor.T if _is_transposed(self.path) else tensor
        padding = [(0, size - there) for size, there in zip(shape, values.shape, strict=True)]
        return np.pad(values, padding) if np.any(padding) else np.ascontiguousarray(values)


@functools.lru_cache(maxsize=16)
def parameter_shapes(config: ModelConfig) -> Mapping[tuple[str, ...], tuple[int, ...]]:
    """Returns the shape of every leaf of the parameter tree, by its keys."""
    leaves: dict[tuple[str, ...], Any] = flax.traverse_util.flatten_dict(
        nn.unbox(abstract_params(config))
    )
    return types.MappingProxyType({path: leaf.shape for path, leaf in leaves.items()})


def published_tensors(config: ModelConfig) -> list[PublishedTensor]:
    """Returns every tensor of a model's PyTorch checkpoint, those of one leaf together.

    Raises:
      ValueError: the model has what the PyTorch model lacks.
    """
    if isinstance(config, LSTConfig) and config.hash_ngram_sizes:
        raise ValueError(
            f"LSTConfig.hash_ngram_sizes is {config.hash_ngram_sizes}, expected none: the PyTorch "
            "model has no embeddings of n-grams"
        )
    names = _lst_names(config) if isinstance(config, LSTConfig) else _baseline_names(config)
    tensors = []
    for path, shape in sorted(parameter_shapes(config).items()):
        found = names["/".join(path)]
        if isinstance(found, str):
            tensors.append(
                PublishedTensor(found, _published_shape(path, shape, config), path, None)
            )
        else:
            own = _published_shape(path, shape[1:], config)
            tensors += [PublishedTensor(name, own, path, i) for i, name in enumerate(found)]
    return tensors


def _is_transposed(path: tuple[str, ...]) -> bool:
    """Returns whether the leaf is a kernel (in, out), which `torch.nn.Linear` has as (out, in)."""
    return path[-1] in ("kernel", _OUTPUT)


def _published_shape(
    path: tuple[str, ...], shape: tuple[int, ...], config: ModelConfig
) -> tuple[int, ...]:
    """Returns the shape of a tensor from that of its leaf, or of one layer of it."""
    shape = shape[::-1] if _is_transposed(path) else shape
    return (config.vocab_size, *shape[1:]) if path[-1] in ("table", _OUTPUT) else shape


def tree_from_published(config: ModelConfig, tensors: Mapping[str, np.ndarray]) -> Any:
    """Returns the parameter tree of a PyTorch checkpoint that is in memory.

    Args:
      config: of the model.
      tensors: at least those of `published_tensors(config)`, of these shapes.
    """
    shapes = parameter_shapes(config)
    leaves: dict[tuple[str, ...], Any] = {}
    for tensor in published_tensors(config):
        shape = shapes[tensor.path]
        if tensor.layer is None:
            leaves[tensor.path] = tensor.from_published(tensors[tensor.name], shape)
        else:
            values = tensor.from_published(tensors[tensor.name], shape[1:])
            leaves.setdefault(tensor.path, []).append(values)
    leaves = {path: np.stack(x) if isinstance(x, list) else x for path, x in leaves.items()}
    return flax.traverse_util.unflatten_dict(leaves)


def published_from_tree(config: ModelConfig, params: Any) -> dict[str, np.ndarray]:
    """Returns the tensors of a PyTorch checkpoint from a parameter (or gradient) tree."""
    leaves: dict[tuple[str, ...], Any] = flax.traverse_util.flatten_dict(jax.device_get(params))
    return {
        tensor.name: tensor.to_published(
            leaves[tensor.path] if tensor.layer is None else leaves[tensor.path][tensor.layer]
        )
        for tensor in published_tensors(config)
    }


def _lst_names(config: LSTConfig) -> dict[str, str | list[str]]:
    """Returns, by leaf, the name of its tensor or those of its layers; leaves may be absent."""
    names: dict[str, str | list[str]] = {
        f"encoder/{_EMBEDDING}": "local_encoder.tok_embeddings.weight",
        "encoder/patch_projection/kernel": "local_encoder.patch_embedding_projection.weight",
        "global/patch_projection/kernel": "global_transformer.token_embedding_projection.weight",
        "decoder/patch_projection/kernel": "local_decoder.patch_embedding_projection.weight",
        "decoder/norm/scale": "local_decoder.norm.weight",
        _OUTPUT: "local_decoder.output.weight",
    }
    encoder_layers = range(config.num_layers_encoder)
    for i in encoder_layers:
        names |= _join(f"encoder/layer_{i}", f"local_encoder.layers.{i}", _BLOCK)
    crossed = encoder_layers[-1:] if config.encoder_cross_layers == "last" else encoder_layers
    for i, depth in enumerate(crossed):
        cross = f"local_encoder.cross_attn_layers.{i}"
        names |= _join(f"encoder/cross_attention_{depth}", cross, _CROSS_ATTENTION)
    names |= _stack(
        "global/transformer/layers/block",
        "global_transformer.layers",
        _BLOCK,
        config.num_layers_global,
    )
    stack = "decoder/transformer/layers"
    layers = config.num_layers_decoder
    names |= _stack(f"{stack}/block", "local_decoder.layers", _BLOCK, layers)
    names |= _stack(
        f"{stack}/cross_attention", "local_decoder.cross_attn_layers", _CROSS_ATTENTION, layers
    )
    return names


def _baseline_names(config: ModelConfig) -> dict[str, str | list[str]]:
    names: dict[str, str | list[str]] = {
        _EMBEDDING: "tok_embeddings.weight",
        "norm/scale": "norm.weight",
        _OUTPUT: "output.weight",
    }
    return names | _stack("transformer/layers/block", "layers", _BLOCK, config.num_layers_global)


def _join(path: str, name: str, parts: Mapping[str, str]) -> dict[str, str]:
    return {f"{path}/{part}": f"{name}.{their_part}" for part, their_part in parts.items()}


def _stack(path: str, name: str, parts: Mapping[str, str], layers: int) -> dict[str, list[str]]:
    return {
        f"{path}/{part}": [f"{name}.{i}.{their_part}" for i in range(layers)]
        for part, their_part in parts.items()
    }
