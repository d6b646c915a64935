"""FLOPs of a traced program: matrix products, before a compiler has seen it.

A multiply-add counts as two. The body of a scan counts as often as it turns, a rematerialized part
as often as it stands in the trace, the larger branch of a conditional. The numbers are of the whole
program, all devices together, with padding that the program itself has and none that XLA adds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from jax.extend import core


class TracedFlops(NamedTuple):
    """Matrix FLOPs of a program.

    Attributes:
      flops: of dots and convolutions, each loop of unknown length turning once.
      unknown: primitives whose work the trace does not tell: `while` loops that have products, and
        kernels (as nothing).
    """

    flops: float
    unknown: frozenset[str] = frozenset()


def jaxpr_flops(jaxpr: core.Jaxpr | core.ClosedJaxpr) -> TracedFlops:
    """Returns the FLOPs of a jaxpr, as of `jax.jit(f).trace(…).jaxpr`."""
    inner = jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
    parts = [_equation_flops(equation) for equation in inner.eqns]
    unknown = frozenset().union(*(part.unknown for part in parts))
    return TracedFlops(sum(part.flops for part in parts), unknown)


def _equation_flops(equation: Any) -> TracedFlops:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return TracedFlops(_dot_flops(equation))
    if name == "conv_general_dilated":
        return TracedFlops(_convolution_flops(equation))
    if name.startswith("pallas_call"):
        return TracedFlops(0.0, frozenset([name]))
    bodies = [jaxpr_flops(body) for body in _bodies(params)]
    if not bodies:
        return TracedFlops(0.0)
    if name == "cond":
        return max(bodies)
    flops = sum(body.flops for body in bodies) * _turns(name, params)
    unknown = frozenset().union(*(body.unknown for body in bodies))
    return TracedFlops(flops, unknown | {name} if name == "while" and flops else unknown)


def _turns(name: str, params: dict[str, Any]) -> int:
    """Returns how often an equation runs its body, all devices together."""
    if name == "scan":
        return params["length"]
    if name == "shard_map":  # whose body is one device's part
        # `newly_manual_axes` since JAX 0.10.2
        axes = next(params[key] for key in params if key.endswith("manual_axes"))
        return math.prod(params["mesh"].shape[axis] for axis in axes)
    return 1


def _bodies(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.Jaxpr | core.ClosedJaxpr):
                yield item


def _dot_flops(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    lhs, (out,) = equation.invars[0].aval.shape, equation.outvars
    return 2.0 * math.prod(out.aval.shape) * math.prod(lhs[axis] for axis in contracted)


def _convolution_flops(equation: Any) -> float:
    """Returns the FLOPs with every tap, also those that fall into padding."""
    kernel, (out,) = equation.invars[1].aval.shape, equation.outvars
    features = equation.params["dimension_numbers"].rhs_spec[0]
    return 2.0 * math.prod(out.aval.shape) * math.prod(kernel) / kernel[features]
