"""Interval attention: the one attention primitive of the model.

Every mask of the LST says: query i may read the keys in [start_i, end_i), with start and end
non-decreasing in i.

| attention         | query                 | start                              | end             |
|-------------------|-----------------------|------------------------------------|-----------------|
| token self        | token t               | max(document's first token,        | t + 1           |
|                   |                       | t - W + 1)                         |                 |
| encoder cross     | patch p (k queries)   | first token of patch               | end of patch p  |
|                   |                       | max(p - W_enc + 1, document's 1st) |                 |
| global            | patch p               | document's first patch             | p + 1           |
| decoder cross     | token t               | k max(visible - W_dec + 1,         | k (visible + 1) |
|                   |                       | document's first patch)            |                 |

So a mask is two int32 vectors and `attend` serves all four. An empty range gives zeros, and zero
gradients. Backends compute the same function:

| backend    | made of                  | for                                                     |
|------------|--------------------------|---------------------------------------------------------|
| dense      | XLA, a full score matrix | the oracle of the tests                                 |
| blocked    | XLA, loops over blocks   | CPUs; works everywhere (on GPUs it is `lockstep`)       |
| lockstep   | XLA, all blocks at once  | GPUs where no kernel serves                             |
| pallas_tpu | Pallas (Mosaic)          | TPUs; interpreted elsewhere                             |
| mosaic_gpu | Pallas (Mosaic GPU)      | Hopper GPUs; interpreted on CPUs                        |
| triton     | Pallas (Triton)          | GPUs since Ampere, while JAX has it; interpreted on CPUs|
| gpu        | the best of the four     | GPUs: the first that passed its numerics on this card   |
| auto       | the platform's best      | platform of the mesh in force, or of the default device |
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable

import jax
from jax import Array
from jax.sharding import PartitionSpec

from lst_jax.model.attention.platform import target
from lst_jax.model.key_ranges import KeyRange
from lst_jax.settings import quote
from lst_jax.shapes import Float
from lst_jax.sharding import ambient_mesh_axes

_Attention = Callable[[Array, Array, Array, KeyRange], Array]

# Modules of this package, imported when they are first used: Pallas takes a while to load. Each has
# a function of its name, such as `dense_attention`, that takes and gives what `attend` does, with
# softmax and sums in float32.
_MODULES = ("dense", "blocked", "lockstep", "pallas_tpu", "mosaic_gpu", "triton", "gpu")
_BEST = {"tpu": "pallas_tpu", "gpu": "gpu", "cpu": "blocked"}

BACKENDS = ("auto", *_MODULES)


# Without `check_shapes`: its shapes are checked always, below.
def attend(
    q: Float[Array, "B Q H D"],
    k: Float[Array, "B K H D"],
    v: Float[Array, "B K H D"],
    key_range: KeyRange,
    backend: str = "blocked",
) -> Float[Array, "B Q H D"]:
    """Computes softmax attention: query i reads the keys of its range, scaled by 1/sqrt(D).

    Under a mesh (`sharding.mesh_context`) each device runs the backend on the rows and heads that
    the rules give it; attention needs no communication between them.

    Args:
      q: (B, Q, H, D) queries.
      k: (B, K, H, D) keys.
      v: (B, K, H, D) values.
      key_range: start and end, each (B, Q) int32, non-decreasing along Q, within 0 … K.
      backend: a name in `BACKENDS`.

    Returns:
      (B, Q, H, D) in q's dtype; zeros where the range is empty.

    Raises:
      ValueError: unknown backend, or shapes that do not fit together.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend is {quote(backend)}, expected one of {BACKENDS}")
    if k.shape != v.shape or q.ndim != 4 or q.shape[:1] + q.shape[2:] != k.shape[:1] + k.shape[2:]:
        raise ValueError(
            f"shapes of q, k, v are {q.shape}, {k.shape}, {v.shape}, expected (B, Q, H, D), "
            "(B, K, H, D) twice"
        )
    if key_range.start.shape != q.shape[:2] or key_range.end.shape != q.shape[:2]:
        raise ValueError(
            f"shape of key_range is {key_range.start.shape}, expected {q.shape[:2]}, as in q"
        )
    if backend == "auto":
        backend = best_backend(target().platform)
    module = importlib.import_module(f"{__name__}.{backend}")
    return _over_mesh(getattr(module, f"{backend}_attention"))(q, k, v, key_range)


def best_backend(platform: str) -> str:
    """Returns the backend that "auto" stands for on a platform, such as "cpu", "gpu" or "tpu"."""
    return _BEST.get(platform, "blocked")


def _over_mesh(attention: _Attention) -> _Attention:
    """Runs `attention` on each device's rows and heads where a mesh of several is set."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return attention
    batch, _, heads, _ = ambient_mesh_axes("batch", None, "heads", None)
    arrays = PartitionSpec(batch, None, heads, None)
    ranges = PartitionSpec(batch, None)
    # check_vma=False: the loops carry accumulators that start as replicated zeros.
    return functools.partial(
        jax.shard_map,
        in_specs=(arrays, arrays, arrays, ranges),
        out_specs=arrays,
        check_vma=False,
    )(attention)
