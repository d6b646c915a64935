"""What the Pallas kernels of TPUs and GPUs share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def dot(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    """Multiplies matrices over an axis of each, in float32; transposes nothing beforehand."""
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def on_platform(platform: str, call: Callable[..., Callable[..., Any]], *arrays: Array) -> Any:
    """Runs a kernel where it is made for; its interpreter stands in wherever else it is lowered.

    Args:
      platform: "tpu" or "cuda".
      call: `pallas_call` without `interpret`.
      arrays: the kernel's.
    """
    kernels = {platform: call(interpret=False)}
    return jax.lax.platform_dependent(*arrays, **kernels, default=call(interpret=True))
