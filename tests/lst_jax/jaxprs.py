"""What a traced function is made of, the insides of its loops, branches and kernels included."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
from jax.extend import core


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of a trace.

    Attributes:
      equation: of the jaxpr.
      times: how often it runs, as far as loops say so.
      scope: names of the modules and scopes that it is in, joined by slashes.
      users: the operations of the same jaxpr that read its results.
    """

    equation: core.JaxprEqn
    times: int
    scope: str
    users: tuple[core.JaxprEqn, ...]

    @property
    def name(self) -> str:
        return self.equation.primitive.name


def operations(jaxpr, times: int = 1, scope: str = "") -> Iterator[Operation]:
    """Yields the operations of a jaxpr and of all jaxprs inside."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    users: dict = {}
    for equation in jaxpr.eqns:
        for variable in equation.invars:
            if not isinstance(variable, core.Literal):
                users.setdefault(variable, []).append(equation)
    for equation in jaxpr.eqns:
        inside = f"{scope}/{equation.source_info.name_stack}"
        read_by = tuple(user for x in equation.outvars for user in users.get(x, ()))
        yield Operation(equation, times, inside, read_by)
        repeats = equation.params["length"] if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(getattr(inner, "jaxpr", inner), "eqns"):
                    yield from operations(inner, times * repeats, inside)


def trace(function, *arguments) -> list[Operation]:
    """Returns the operations of a function of arrays or of their shapes."""
    return list(operations(jax.make_jaxpr(function)(*arguments)))
