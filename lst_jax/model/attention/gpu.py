"""The attention backend of a GPU: the first kernel that passed its numerics on this card.

| kernel     | for                                                     | where it lives            |
|------------|---------------------------------------------------------|---------------------------|
| mosaic_gpu | Hopper; bfloat16, heads of at most 128 features         | Pallas (Mosaic GPU)       |
| triton     | Ampere and later, where JAX still has Pallas's Triton   | Pallas (Triton)           |
| blocked    | everything else                                         | XLA                       |

A kernel that cannot be imported, does not support the call, fails to compile or differs from the
dense backend is passed over with one line of the log. The check runs once for each dtype and head
width, on this process's first GPU, when attention is first traced. Where a computation is compiled
for GPUs that are not there (`experiments/aot/compile.py`), nothing can run, so nothing is checked.
"""

from __future__ import annotations

import concurrent.futures
import functools
import importlib
import logging

from jax import Array

from lst_jax.model.attention.blocked import blocked_attention
from lst_jax.model.attention.numerics import Attention, check_numerics
from lst_jax.model.attention.platform import Target, target
from lst_jax.model.key_ranges import KeyRange
from lst_jax.shapes import Float, check_shapes

# In the order of preference.
KERNELS = ("mosaic_gpu", "triton")


@check_shapes
def gpu_attention(
    q: Float[Array, "B Q H D"],
    k: Float[Array, "B K H D"],
    v: Float[Array, "B K H D"],
    key_range: KeyRange,
) -> Float[Array, "B Q H D"]:
    """Computes interval attention by this card's best kernel, or by XLA where none serves."""
    kernel = best_kernel(q.dtype.name, q.shape[-1], target())
    attention = blocked_attention if kernel is None else _load(kernel)
    return attention(q, k, v, key_range)


@functools.cache
def best_kernel(dtype: str, width: int, gpu: Target) -> str | None:
    """Names the kernel for heads of `width` features in `dtype`; None: the blocked backend.

    The log gets a line for each choice that is not the first of `KERNELS`, with the reasons.
    """
    reasons = []
    for kernel in KERNELS:
        reason = _why_not(kernel, dtype, width, gpu)
        if reason is None:
            chosen = kernel
            break
        reasons.append(f"{kernel}: {reason}")
    else:
        chosen = None
    if reasons:
        logging.getLogger(__name__).warning(
            "GPU attention for heads of %d in %s takes the %s backend (%s)",
            width,
            dtype,
            chosen or "blocked",
            "; ".join(reasons),
        )
    return chosen


def _why_not(kernel: str, dtype: str, width: int, gpu: Target) -> str | None:
    """Returns why a kernel does not serve, in at most one line; None if it does."""
    try:
        module = importlib.import_module(f"lst_jax.model.attention.{kernel}")
        reason = module.unsupported(dtype, width, gpu.capability)
        if reason is None and gpu.present:
            # In a separate thread: the caller may be tracing, under a mesh of other devices.
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                reason = pool.submit(check_numerics, _load(kernel), dtype, width).result()
    except Exception as error:  # whatever a kernel dies of, another one serves
        reason = f"{type(error).__name__}: {error}"
    return None if reason is None else " ".join(reason.split())[:200]


def _load(kernel: str) -> Attention:
    return getattr(
        importlib.import_module(f"lst_jax.model.attention.{kernel}"), f"{kernel}_attention"
    )
