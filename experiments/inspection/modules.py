"""The modules of a model as a table: what goes in and out, parameters, FLOPs, shardings.

Nothing is computed. Modules are watched while JAX traces them. FLOPs are the model's for the
documents of a batch, as `lst_jax.model.flops` counts them for a whole module: a product with
weights counts the real tokens or patches that it is applied to, attention the pairs of its key
ranges. Which of them an array's axis holds is told from a trace whose numbers of tokens and patches
are prime.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.sharding import PartitionSpec

from lst_jax.batch import Batch
from lst_jax.config import LSTConfig, ModelConfig
from lst_jax.model.key_ranges import KeyRange, lst_key_ranges, token_key_range
from lst_jax.model.layers import Attention, Linear
from lst_jax.model.models import build_model
from lst_jax.sharding import abstract_batch

Path = tuple[str, ...]
Shapes = tuple[tuple[int, ...], ...]

OUTPUT = ("output_kernel",)
_TOKENS, _PATCHES = 101, 103  # of the trace that tells axes


class Module(NamedTuple):
    """A line of the table.

    Attributes:
      path: names from the model's root; empty for the model.
      kind: the module's class.
      inputs, outputs: shapes of the arrays that go in and come out, of one row.
      layers: copies that are stacked, each with parameters; 1 outside of a stack.
      parameters: of the module and all inside, over all layers, padding of the vocabulary included.
      forward_flops: of the module and all inside, over all layers, for one typical row.
      shardings: of each parameter that is its own, by name. The output projection, which is the
        model's own, has its line.
    """

    path: Path
    kind: str
    inputs: Shapes
    outputs: Shapes
    layers: int
    parameters: int
    forward_flops: float
    shardings: dict[str, PartitionSpec]


@dataclasses.dataclass(frozen=True)
class _Call:
    kind: type[nn.Module]
    inputs: Shapes
    outputs: Shapes


def module_table(
    config: ModelConfig,
    batch: Batch,
    params: Mapping[str, Any],
) -> list[Module]:
    """Returns every module of a model, each after the one that it is in.

    Args:
      config: of the model.
      batch: of typical rows.
      params: a tree of `jax.ShapeDtypeStruct`s with their shardings.
    """
    num_tokens = batch.tokens.shape[1]
    calls = trace_modules(config, params, num_tokens, batch.num_patches)
    work = _Work(config, params, batch)
    own_flops = {path: work.flops(path, call) for path, call in work.calls.items()}
    own_flops[OUTPUT] = work.output_flops()
    calls[OUTPUT] = _Call(Linear, calls[()].outputs[:1], ((1, num_tokens, config.vocab_size),))
    return [
        Module(
            path,
            "output projection" if path == OUTPUT else call.kind.__name__.lstrip("_"),
            call.inputs,
            call.outputs,
            _num_layers(_subtree(params, path), path),
            sum(leaf.size for leaf in jax.tree.leaves(_subtree(params, path))),
            sum(flops for other, flops in own_flops.items() if other[: len(path)] == path),
            _own_specs(_subtree(params, path), path) if path else {},
        )
        for path, call in calls.items()
    ]


def trace_modules(
    config: ModelConfig, params: Any, num_tokens: int, num_patches: int
) -> dict[Path, _Call]:
    """Returns the calls of a model's modules over one row, by path; outer ones come first."""
    calls: dict[Path, _Call] = {}

    def watch(call: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        path = context.module.path
        if context.method_name != "__call__" or path in calls:
            return call(*arguments, **keywords)
        kind = type(context.module)
        calls[path] = _Call(kind, (), ())  # its place is before what it calls
        result = call(*arguments, **keywords)
        calls[path] = _Call(kind, _shapes(arguments), _shapes(result))
        return result

    model = build_model(config)
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    batch = abstract_batch(num_patches, num_tokens, 1)
    with nn.intercept_methods(watch):
        jax.eval_shape(lambda p, b: model.apply({"params": p}, b), params, batch)
    return calls


class _Work:
    """FLOPs of single modules for the documents of a batch, a mean row of it."""

    def __init__(
        self,
        config: ModelConfig,
        params: Mapping[str, Any],
        batch: Batch,
    ) -> None:
        self._vocab_size = config.vocab_size
        self._params = params
        is_lst = isinstance(config, LSTConfig)
        self.calls = trace_modules(config, params, _TOKENS, _PATCHES if is_lst else _TOKENS)

        @jax.jit
        def count(batch: Batch) -> tuple[dict[int, Array], dict[Any, Array]]:
            tokens = _sum(batch.document_ids > 0)
            if not isinstance(config, LSTConfig):
                pairs = _num_keys(token_key_range(batch.document_ids, None))
                return {_TOKENS: tokens}, {f"{_TOKENS}, {_TOKENS}": pairs}
            ranges = lst_key_ranges(batch, config)
            k = config.latent_vectors_per_patch
            patches = _sum(ranges.patch_end > ranges.patch_start)
            return {_TOKENS: tokens, _PATCHES: patches, k * _PATCHES: k * patches}, {
                f"{_TOKENS}, {_TOKENS}": _num_keys(ranges.token_self),
                f"{k * _PATCHES}, {_TOKENS}": _num_keys(ranges.encoder_cross),
                f"{_TOKENS}, {k * _PATCHES}": _num_keys(ranges.decoder_cross),
                f"{_PATCHES}, {_PATCHES}": _num_keys(ranges.global_self),
            }

        rows = len(batch.tokens)
        totals = count(batch)
        # Real positions along an axis, and key-query pairs between two axes, of a mean row.
        self._lengths, self._pairs = jax.tree.map(lambda total: float(total) / rows, totals)

    def flops(self, path: Path, call: _Call) -> float:
        """Returns what a module computes itself, without the modules in it, over all layers."""
        if call.kind is Linear:
            kernel = _subtree(self._params, path)["kernel"]
            return 2.0 * kernel.size * self._lengths[call.inputs[0][1]]
        if call.kind is Attention:
            kernel = _subtree(self._params, path)["query"]["kernel"]
            layers = kernel.size // math.prod(kernel.shape[-2:])
            width, axes = call.inputs[0][2], f"{call.inputs[0][1]}, {call.inputs[1][1]}"
            return 4.0 * width * self._pairs[axes] * layers
        return 0.0

    def output_flops(self) -> float:
        """Returns what the output projection computes, which the loss applies."""
        width = self.calls[()].outputs[0][2]
        return 2.0 * width * self._vocab_size * self._lengths[_TOKENS]


def _sum(counts: Array) -> Array:
    return jnp.sum(counts.astype(jnp.float32))


def _num_keys(ranges: KeyRange) -> Array:
    return _sum(ranges.end - ranges.start)


def _shapes(values: Any) -> Shapes:
    return tuple(tuple(leaf.shape) for leaf in jax.tree.leaves(values) if hasattr(leaf, "shape"))


def _subtree(tree: Any, path: Path) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _leaves(tree: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if not isinstance(tree, Mapping):
        yield path, tree
        return
    for name, branch in tree.items():
        yield from _leaves(branch, (*path, name))


def _num_layers(tree: Any, path: Path) -> int:
    """Returns how many layers are stacked in the parameters of a module of a scan."""
    if "layers" not in path:
        return 1
    return next(leaf.shape[0] for _, leaf in _leaves(tree, path))


def _own_specs(tree: Any, path: Path) -> dict[str, PartitionSpec]:
    if not isinstance(tree, Mapping):
        return {path[-1]: tree.sharding.spec}
    own = {name: leaf for name, leaf in tree.items() if not isinstance(leaf, Mapping)}
    return {name: leaf.sharding.spec for name, leaf in own.items()}
