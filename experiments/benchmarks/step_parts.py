"""The training step taken apart: the model's modules and the loss, each with its backward pass.

Parts pass named arrays to each other, those that the model returns, and no array has two readers.
So the parts run one after another give the step's loss, and in reverse order its gradient; each is
a separate jitted function, which can be timed alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

from lst_jax.batch import Batch
from lst_jax.checkpoints.train_state import TrainState
from lst_jax.config import LSTConfig, ModelConfig, TokenTransformerConfig, padded_size
from lst_jax.model.global_transformer import GlobalTransformer
from lst_jax.model.key_ranges import LSTKeyRanges, lst_key_ranges
from lst_jax.model.losses import token_nll
from lst_jax.model.models import build_model, hidden_states, output_kernel
from lst_jax.model.patch_decoder import PatchDecoder
from lst_jax.model.patch_encoder import PatchEncoder
from lst_jax.sharding import batch_sharding

Arrays = dict[str, Array]
Ranges = LSTKeyRanges | None
Apply = Callable[[Any, Mapping[str, Array], Batch, Ranges], Arrays]
# Runs a compiled function on arguments, as often as it likes, and returns its last result.
Runner = Callable[["Part", Callable[..., Any], tuple[Any, ...]], Any]
Compiler = Callable[..., Callable[..., Any]]


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the forward pass.

    Attributes:
      name: for tables.
      flops: its name in `lst_jax.model.flops.forward_flops`.
      params: its entries of the parameter tree.
      inputs: names of the arrays that it reads of other parts.
      apply: `(params, inputs, batch, key ranges of the LST) -> outputs`, arrays by name, all with
        the rows first.
    """

    name: str
    flops: str
    params: tuple[str, ...]
    inputs: tuple[str, ...]
    apply: Apply


def model_parts(config: ModelConfig) -> tuple[Part, ...]:
    """Returns the parts in the order of the forward pass; the last gives `nll` (B, N).

    Each parameter of the model belongs to one of them.
    """
    modules = _lst_parts(config) if isinstance(config, LSTConfig) else _baseline_parts(config)

    def predict(params: Any, arrays: Mapping[str, Array], batch: Batch, ranges: Ranges) -> Arrays:
        kernel = output_kernel(params)
        return {"nll": token_nll(arrays["hidden"], kernel, batch.targets, config.vocab_size)}

    return (*modules, Part("loss", "output", ("output_kernel",), ("hidden",), predict))


def _lst_parts(config: LSTConfig) -> tuple[Part, ...]:
    def encode(params: Any, _: Mapping[str, Array], batch: Batch, ranges: Ranges) -> Arrays:
        arguments = batch.tokens, batch.patch_ids, ranges
        states, latents = _apply(PatchEncoder(config), params["encoder"], *arguments)
        return {"token_states": states, "latents": latents}

    def transform(params: Any, arrays: Mapping[str, Array], batch: Batch, ranges: Ranges) -> Arrays:
        assert ranges is not None  # of an LST
        module = GlobalTransformer(config)
        patches = _apply(module, params["global"], arrays["latents"], ranges.global_self)
        return {"patches": patches}

    def decode(params: Any, arrays: Mapping[str, Array], batch: Batch, ranges: Ranges) -> Arrays:
        arguments = arrays["token_states"], arrays["patches"], ranges
        return {"hidden": _apply(PatchDecoder(config), params["decoder"], *arguments)}

    return (
        Part("encoder", "encoder", ("encoder",), (), encode),
        Part("global", "global", ("global",), ("latents",), transform),
        Part("decoder", "decoder", ("decoder",), ("token_states", "patches"), decode),
    )


def _apply(module: nn.Module, params: Any, *arguments: Any) -> Any:
    return module.apply({"params": params}, *arguments)


def _baseline_parts(config: TokenTransformerConfig) -> tuple[Part, ...]:
    model = build_model(config)
    kernel_shape = (config.dim_global, padded_size(config.vocab_size))

    def transform(params: Any, _: Mapping[str, Array], batch: Batch, ranges: Ranges) -> Arrays:
        # The model declares the projection that the loss applies, and does not read it.
        params = {**params, "output_kernel": jnp.zeros(kernel_shape)}
        return {"hidden": hidden_states(model, params, batch)}

    return (Part("transformer", "global", ("embedding", "transformer", "norm"), (), transform),)


def backpropagate(
    config: ModelConfig,
    params: Any,
    shardings: Any,
    batch: Batch,
    mesh: jax.sharding.Mesh,
    compiler: Compiler,
    run: Runner,
) -> tuple[Array, Any]:
    """Returns the mean loss of a batch and its gradient, one part after another.

    Call it inside `mesh_context`.

    Args:
      config: of the model.
      params: its parameters.
      shardings: where each of them, and so its gradient, lies.
      batch: of B rows.
      mesh: the device mesh.
      compiler: compiles a jitted function for the arguments that follow it.
      run: called once for each part, with what its forward and backward pass is compiled to and the
        arguments of the real step.

    Returns:
      Scalar loss in nats, and gradients like `params`.
    """
    parts, rows = model_parts(config), batch_sharding(mesh)
    ranges = None
    if isinstance(config, LSTConfig):
        ranges = jax.jit(lst_key_ranges, static_argnums=1, out_shardings=rows)(batch, config)
    arrays: Arrays = {}
    calls = []
    for part in parts:
        own = {name: params[name] for name in part.params}
        given = own, {name: arrays[name] for name in part.inputs}, batch, ranges
        # Zeros of the outputs' shapes; what they lead back to is thrown away.
        zeros = {
            name: jnp.zeros(x.shape, x.dtype, device=rows)
            for name, x in jax.eval_shape(part.apply, *given).items()
        }
        function = compiler(_part_step(part, shardings, mesh), *given, zeros)
        arrays |= jax.block_until_ready(function(*given, zeros)[0])
        calls.append((part, function, given, tuple(zeros)))
    weights = batch.loss_weights / jnp.maximum(jnp.sum(batch.loss_weights), 1)
    cotangents: Arrays = {"nll": jax.device_put(weights, rows)}
    gradients: dict[str, Any] = {}
    while calls:
        part, function, given, outputs = calls.pop()
        own = {name: cotangents.pop(name) for name in outputs}
        _, d_params, d_inputs = run(part, function, (*given, own))
        gradients |= d_params
        cotangents |= d_inputs
    return jnp.sum(arrays["nll"] * weights), gradients


def _part_step(part: Part, shardings: Any, mesh: jax.sharding.Mesh) -> Any:
    """Makes the jitted step of a part: its outputs and gradients from its inputs and cotangents."""

    def step(params: Any, inputs: Arrays, batch: Batch, ranges: Ranges, cotangents: Arrays) -> Any:
        outputs, pull_back = jax.vjp(lambda p, x: part.apply(p, x, batch, ranges), params, inputs)
        return outputs, *pull_back(cotangents)

    rows = batch_sharding(mesh)
    own = {name: shardings[name] for name in part.params}
    return jax.jit(step, out_shardings=(rows, own, rows))


def make_update(optimizer: optax.GradientTransformation, shardings: TrainState) -> Any:
    """Makes `(params, opt_state, gradients) -> (params, opt_state)`, the first two donated."""

    def update(params: Any, opt_state: Any, gradients: Any) -> tuple[Any, Any]:
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    out = shardings.params, shardings.opt_state
    return jax.jit(update, out_shardings=out, donate_argnums=(0, 1))
