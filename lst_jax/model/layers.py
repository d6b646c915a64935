"""Building blocks of the three modules: norm, projections, rotary embedding, attention, SwiGLU.

Parameters are float32 and carry logical axis names (`sharding.py` maps them to mesh axes);
activations are in the compute dtype, norm statistics, rotations and softmax in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint
from jax import Array

from lst_jax.config import LSTConfig, ModelConfig, hidden_width, padded_size
from lst_jax.model.attention import attend
from lst_jax.model.attention.platform import target
from lst_jax.model.attention.ring import ring_attention
from lst_jax.model.key_ranges import AnyKeyRange, KeyRange, SharedKeyRange
from lst_jax.settings import quote
from lst_jax.shapes import Float, Int32, Shaped, check_shapes

# What each layer keeps of its forward pass for the backward pass; the rest is computed again.
REMAT_POLICIES: dict[str, Callable[..., bool] | None] = {
    "none": None,  # everything is kept, nothing is computed again
    "dots": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
    "full": jax.checkpoint_policies.nothing_saveable,
}

# Layers that are one program without a loop on a CPU; more take long to compile.
_MOST_UNROLLED = 8

# Collections that decoding uses (`inference/`). Whatever attention reads again and again is sown
# into the one as it is made, and found in rings (`attention/ring.py`) in the other.
SOWN = "intermediates"
CACHE = "cache"

Initializer = Callable[[Array, tuple[int, ...], Any], Array]


def truncated_normal(stddev: float | Float[Array, ""]) -> Initializer:
    """Draws normal numbers of deviation `stddev` before truncation at three of them."""

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return stddev * jax.random.truncated_normal(key, -3.0, 3.0, shape, dtype)

    return init


def remat_layer(layer: type[nn.Module], policy: str) -> type[nn.Module]:
    """Wraps `layer` in the rematerialization policy of that name.

    Raises:
      ValueError: the policy is unknown.
    """
    if policy not in REMAT_POLICIES:
        raise ValueError(f"remat is {quote(policy)}, expected one of {sorted(REMAT_POLICIES)}")
    if policy == "none":
        return layer
    return nn.remat(layer, policy=REMAT_POLICIES[policy], prevent_cse=False)


def constrain(x: Shaped[Array, ...], *axes: str | None) -> Shaped[Array, ...]:
    """Names the logical axes of an activation; a no-op where no sharding rules are in force."""
    return with_logical_constraint(x, axes)


def sow(module: nn.Module, name: str, x: Shaped[Array, ...]) -> None:
    """Leaves `x` in the collection `SOWN` if the caller collects it; a no-op otherwise."""
    module.sow(SOWN, name, x, reduce_fn=_newest, init_fn=_nothing)


def _newest(_: Any, new: Any) -> Any:
    return new


def _nothing() -> Any:
    return None


class Linear(nn.Module):
    """`x @ kernel` without bias, in x's dtype.

    Attributes:
      features: output width.
      axes: logical names of the kernel's (input, output) axes.
      stddev: of the truncated normal initialization.
    """

    features: int
    axes: tuple[str | None, str | None]
    stddev: float | Array

    @nn.compact
    @check_shapes
    def __call__(self, x: Float[Array, "*b n"]) -> Float[Array, "*b m"]:
        """Maps (…, in) to (…, features)."""
        init = nn.with_logical_partitioning(truncated_normal(self.stddev), self.axes)
        kernel = self.param("kernel", init, (x.shape[-1], self.features), jnp.float32, unbox=True)
        return _project(x, kernel.astype(x.dtype))


@jax.custom_vjp
def _project(x: Array, kernel: Array) -> Array:
    """Returns x (…, n) @ kernel (n, m)."""
    return x @ kernel


def _project_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _project_backward(saved: tuple[Array, Array], d_out: Array) -> tuple[Array, Array]:
    x, kernel = saved
    rows, d_rows = x.reshape(-1, x.shape[-1]), d_out.reshape(-1, d_out.shape[-1])
    if target().platform != "cpu":
        return d_out @ kernel.T, jax.lax.dot_general(rows, d_rows, (((0,), (0,)), ((), ())))
    # On a CPU XLA fuses what makes an array into a copy of it for each product. So both are made
    # once; and the transposed rows are, by a fast copy: products of columns take up to twice as
    # long as those of rows.
    rows, d_rows = jax.lax.optimization_barrier((rows, d_rows))
    columns = jax.lax.optimization_barrier(rows.T)
    return (d_rows @ kernel.T).reshape(x.shape), columns @ d_rows


_project.defvjp(_project_forward, _project_backward)


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale; statistics in float32."""

    epsilon: float

    @nn.compact
    @check_shapes
    def __call__(self, x: Float[Array, "*b n"]) -> Float[Array, "*b n"]:
        """Maps (…, width) to the same shape and dtype."""
        init = nn.with_logical_partitioning(nn.initializers.ones, ("norm",))
        scale = self.param("scale", init, (x.shape[-1],), jnp.float32, unbox=True)
        wide = x.astype(jnp.float32)
        variance = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        return (wide * jax.lax.rsqrt(variance + self.epsilon) * scale).astype(x.dtype)


@check_shapes
def rotary(
    x: Float[Array, "B L H D"], theta: float, positions: Int32[Array, " L"] | Int32[Array, "B L"]
) -> Float[Array, "B L H D"]:
    """Applies the rotary embedding to interleaved pairs (2i, 2i + 1).

    Args:
      x: (B, L, H, D) queries or keys, D even.
      theta: base of the geometric series of wave lengths.
      positions: (L,) or (B, L) int32.

    Returns:
      (B, L, H, D) in x's dtype; rotated in float32.
    """
    width = x.shape[-1]
    frequencies = theta ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    return _rotate(x, jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :])


@jax.custom_vjp
def _rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotates the pairs of x (B, L, H, D) by angles of cosines and sines ([B,] L, 1, D / 2)."""
    even, odd = x[..., 0::2].astype(jnp.float32), x[..., 1::2].astype(jnp.float32)
    rotated = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return rotated.reshape(x.shape).astype(x.dtype)


def _rotate_forward(x: Array, cos: Array, sin: Array) -> tuple[Array, tuple[Array, Array]]:
    return _rotate(x, cos, sin), (cos, sin)


def _rotate_backward(saved: tuple[Array, Array], d_out: Array) -> tuple[Array | None, ...]:
    # The transpose of a rotation rotates back. Derived, it would add up two arrays half of zeros.
    cos, sin = saved
    return _rotate(d_out, cos, -sin), None, None


_rotate.defvjp(_rotate_forward, _rotate_backward)


def layer_stddev(width: int, depth: int | Float[Array, ""]) -> float | Float[Array, ""]:
    """Returns the initial deviation in layer `depth` (from 0): width^-1/2 / sqrt(2 (depth + 1))."""
    return (2.0 * width * (depth + 1)) ** -0.5


class Attention(nn.Module):
    """Multi-head attention of `queries` over `memory` by key ranges.

    In decoding the collection `CACHE` holds keys and values of what came before in rings; queries
    then read those, and the memory besides.

    Attributes:
      width: d, of queries, memory and result.
      num_heads: heads H; the width must divide by it.
      config: attention backend and rotary base.
      depth: layer index, for the initialization.
      use_rotary: rotate queries and keys by their positions (self-attention only).
    """

    width: int
    num_heads: int
    config: ModelConfig
    depth: int | Array
    use_rotary: bool

    def setup(self) -> None:
        stddev = layer_stddev(self.width, self.depth)
        self.query = Linear(self.width, ("embed", "heads"), stddev)
        self.key = Linear(self.width, ("embed", "heads"), stddev)
        self.value = Linear(self.width, ("embed", "heads"), stddev)
        self.out = Linear(self.width, ("heads", "embed"), stddev)

    @check_shapes
    def __call__(
        self,
        queries: Float[Array, "B Q d"],
        memory: Float[Array, "B K d"] | None,
        key_range: AnyKeyRange,
    ) -> Float[Array, "B Q d"]:
        """Maps queries (B, Q, d), memory (B, K, d), ranges (B, Q) to (B, Q, d).

        With a cache, the memory is what is at the queries' own positions (self-attention, which
        is causal), or None where all is in the cache.
        """
        cached = self.has_variable(CACHE, "keys")
        if isinstance(key_range, SharedKeyRange):
            positions = key_range.positions
        elif cached:
            positions = key_range.end - 1  # a causal query reads up to its own position
        else:
            positions = jnp.arange(queries.shape[1], dtype=jnp.int32)
        q = self._heads(self.query(queries), positions)
        new = (
            None
            if memory is None
            else self.keys_values(memory, positions if self.use_rotary else None)
        )
        if cached:
            past = self.get_variable(CACHE, "keys"), self.get_variable(CACHE, "values")
            out = ring_attention(q, past, new, key_range)
        elif new is None:
            raise ValueError("memory is None, expected what queries read where there is no cache")
        else:
            k, v = new
            if isinstance(key_range, SharedKeyRange):
                k, v = key_range.spread(k), key_range.spread(v)
                key_range = KeyRange(key_range.start, key_range.end)
            out = attend(q, k, v, key_range, self.config.attention)
        return self.out(out.reshape(queries.shape))

    @check_shapes
    def keys_values(
        self,
        memory: Float[Array, "B K d"],
        positions: Int32[Array, "B K"] | Int32[Array, " K"] | None = None,
    ) -> tuple[Float[Array, "B K H D"], Float[Array, "B K H D"]]:
        """Maps memory (B, K, d) at positions (B, K) or (K,) to keys and values (B, K, H, D)."""
        k, v = self._heads(self.key(memory), positions), self._heads(self.value(memory))
        sow(self, "keys", k)
        sow(self, "values", v)
        return k, v

    def _heads(self, x: Array, positions: Array | None = None) -> Array:
        """Maps (B, L, d) to (B, L, H, D), rotated by the positions where there are any."""
        x = x.reshape(*x.shape[:2], self.num_heads, self.width // self.num_heads)
        x = constrain(x, "batch", "length", "heads", None)
        if self.use_rotary and positions is not None:
            x = rotary(x, self.config.rope_theta, positions)
        return x


class FeedForward(nn.Module):
    """SwiGLU: `down(silu(gate x) * up x)`."""

    config: ModelConfig
    depth: int | Array

    @nn.compact
    @check_shapes
    def __call__(self, x: Float[Array, "B L d"]) -> Float[Array, "B L d"]:
        """Maps (B, L, d) to (B, L, d)."""
        width = x.shape[-1]
        hidden = hidden_width(width, self.config.multiple_of)
        stddev = layer_stddev(width, self.depth)
        gate = Linear(hidden, ("embed", "hidden"), stddev, name="gate")(x)
        up = Linear(hidden, ("embed", "hidden"), stddev, name="up")(x)
        product = constrain(_gated(gate, up), "batch", "length", "hidden")
        stddev = layer_stddev(hidden, self.depth)
        return Linear(width, ("hidden", "embed"), stddev, name="down")(product)


@jax.custom_vjp
def _gated(gate: Array, up: Array) -> Array:
    """Returns silu(gate) * up; the backward pass needs no more than these two."""
    return nn.silu(gate) * up


def _gated_forward(gate: Array, up: Array) -> tuple[Array, tuple[Array, Array]]:
    return _gated(gate, up), (gate, up)


def _gated_backward(saved: tuple[Array, Array], d_out: Array) -> tuple[Array, Array]:
    gate, up = saved
    sigmoid = nn.sigmoid(gate)
    silu = gate * sigmoid
    return d_out * up * (sigmoid + silu * (1 - sigmoid)), d_out * silu


_gated.defvjp(_gated_forward, _gated_backward)


class Block(nn.Module):
    """Pre-norm transformer block: `h += attention(norm h); h += feed_forward(norm h)`."""

    num_heads: int
    config: ModelConfig
    depth: int | Array

    @nn.compact
    @check_shapes
    def __call__(self, h: Float[Array, "B Q d"], key_range: AnyKeyRange) -> Float[Array, "B Q d"]:
        """Maps (B, Q, d) to (B, Q, d)."""
        epsilon = self.config.norm_eps
        x = RMSNorm(epsilon, name="attention_norm")(h)
        heads, width = self.num_heads, h.shape[-1]
        attention = Attention(width, heads, self.config, self.depth, True, name="attention")
        h = h + attention(x, x, key_range)
        x = RMSNorm(epsilon, name="feed_forward_norm")(h)
        h = h + FeedForward(self.config, self.depth, name="feed_forward")(x)
        return constrain(h, "batch", "length", "embed_activation")


class CrossAttention(nn.Module):
    """Pre-norm cross-attention with its residual: `h + attention(norm h, norm memory)`.

    With `config.cross_residual == "double"` the residual is added twice, as the published
    checkpoints were trained.
    """

    config: LSTConfig
    depth: int | Array

    def setup(self) -> None:
        config = self.config
        self.query_norm = RMSNorm(config.norm_eps)
        self.memory_norm = RMSNorm(config.norm_eps)
        self.attention = Attention(
            config.dim_local, config.cross_attention_heads, config, self.depth, False
        )

    @check_shapes
    def __call__(
        self,
        h: Float[Array, "B Q d"],
        memory: Float[Array, "B K d"] | None,
        key_range: AnyKeyRange,
    ) -> Float[Array, "B Q d"]:
        """Maps h (B, Q, d), memory (B, K, d) to (B, Q, d); without memory, the cache has it."""
        residual = 2 * h if self.config.cross_residual == "double" else h
        memory = None if memory is None else self.memory_norm(memory)
        return residual + self.attention(self.query_norm(h), memory, key_range)

    @check_shapes
    def keys_values(
        self, memory: Float[Array, "B K d"]
    ) -> tuple[Float[Array, "B K H D"], Float[Array, "B K H D"]]:
        """Returns what queries will read of memory (B, K, d): keys and values (B, K, H, D)."""
        return self.attention.keys_values(self.memory_norm(memory))


class TransformerLayers(nn.Module):
    """`num_layers` blocks, scanned over a stacked leading parameter axis.

    Attributes:
      num_layers, num_heads: of the stack.
      config: model configuration.
      cross: a cross-attention over a fixed memory comes before every block (the patch decoder).
    """

    num_layers: int
    num_heads: int
    config: ModelConfig
    cross: bool = False

    @nn.compact
    @check_shapes
    def __call__(
        self,
        h: Float[Array, "B Q d"],
        key_range: AnyKeyRange,
        memory: Float[Array, "B K d"] | None = None,
        memory_range: AnyKeyRange | None = None,
    ) -> Float[Array, "B Q d"]:
        """Maps h (B, Q, d), memory (B, K, d) to (B, Q, d); without memory, the cache has it."""
        layer = remat_layer(_ScannedLayer, self.config.remat)
        stack = nn.scan(
            layer,
            variable_axes={"params": 0, SOWN: 0, CACHE: 0},
            split_rngs={"params": True},
            # Flax declares no type, so that a checker takes the default's.
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=self.num_layers,
            unroll=self._unroll(),
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(self.num_heads, self.config, self.cross, name="layers")
        depths = jnp.arange(self.num_layers, dtype=jnp.float32)
        return stack(h, depths, key_range, memory, memory_range)[0]

    def _unroll(self) -> int:
        """Returns the layers of one turn of the loop.

        On a CPU a loop zeroes and copies the buffers of what it keeps of each layer for the
        backward pass, and straight code does not. Where layers are computed again it would take
        the second time for the first, as `remat_layer` relies on the loop.
        """
        straight = target().platform == "cpu" and self.config.remat == "none"
        return min(self.num_layers, _MOST_UNROLLED) if straight else 1


class _ScannedLayer(nn.Module):
    num_heads: int
    config: ModelConfig
    cross: bool

    @nn.compact
    def __call__(
        self,
        h: Array,
        depth: Array,
        key_range: AnyKeyRange,
        memory: Array | None,
        memory_range: AnyKeyRange | None,
    ) -> tuple[Array, None]:
        if self.cross:
            assert isinstance(self.config, LSTConfig) and memory_range is not None
            cross = CrossAttention(self.config, depth, name="cross_attention")
            h = cross(h, memory, memory_range)
        return Block(self.num_heads, self.config, depth, name="block")(h, key_range), None


def padded_vocabulary_init(stddev: float, vocab_size: int, axis: int) -> Initializer:
    """Returns `truncated_normal` with zeros at the ids from `vocab_size` on, which pad `axis`.

    Their gradients are zero, so they stay zero, and checkpoint formats without them lose nothing.
    """

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        values = truncated_normal(stddev)(key, shape, dtype)
        is_real = jnp.expand_dims(jnp.arange(shape[axis]) < vocab_size, 1 - axis)
        return jnp.where(is_real, values, 0)

    return init


class Embedding(nn.Module):
    """Token embeddings; the table's rows are padded to a multiple of `config.LANE`."""

    vocab_size: int
    features: int
    dtype: Any

    @nn.compact
    @check_shapes
    def __call__(self, tokens: Int32[Array, "B N"]) -> Float[Array, "B N d"]:
        """Maps (B, N) int32 to (B, N, features)."""
        init = nn.with_logical_partitioning(
            padded_vocabulary_init(self.features**-0.5, self.vocab_size, axis=0),
            ("vocab", "embed"),
        )
        shape = (padded_size(self.vocab_size), self.features)
        table = self.param("table", init, shape, jnp.float32, unbox=True)
        # Whole rows on every device: else each would look up the tokens of all of them.
        table = constrain(table.astype(self.dtype), "vocab", "embed_activation")
        x = jnp.take(table, tokens, axis=0)
        return constrain(x, "batch", "length", "embed_activation")
