"""A window of steps traced by JAX's profiler, for xprof or TensorBoard's profile plugin.

Steps are annotated by the loop; the model's parts carry the names of their modules, the loss and
the optimizer those of their scopes in `training.step`.
"""

from __future__ import annotations

import pathlib

import jax

from lst_jax.checkpoints.train_state import TrainState
from lst_jax.settings import quote
from lst_jax.training.log import report


class ProfilerWindow:
    """A hook that traces steps `first` to `last`, both included, on every process.

    A run that ends inside the window leaves a trace until its end; one that begins behind its first
    step leaves none. The last step of the window waits for the devices, so its time is longer.
    """

    def __init__(self, directory: str | pathlib.Path, first: int, last: int) -> None:
        self._directory = pathlib.Path(directory)
        self._first, self._last = first, last
        self._tracing = False

    def before_step(self, step: int) -> None:
        """Begins the trace before the first step of the window."""
        if step == self._first:
            jax.profiler.start_trace(str(self._directory))
            self._tracing = True

    def after_step(self, step: int, state: TrainState) -> None:
        """Ends the trace when the devices have finished the last step of the window."""
        if self._tracing and step == self._last:
            jax.block_until_ready(state.step)
            self.close()

    def close(self) -> None:
        """Writes the trace if one has begun."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
            report(f"trace of steps {self._first} to {self._last} in {self._directory}")


def parse_steps(text: str) -> tuple[int, int]:
    """Returns first and last step of `FIRST:LAST`.

    Raises:
      ValueError: it is not of that form.
    """
    first, colon, last = text.partition(":")
    valid = (
        colon
        and len(text) < 32
        and first.isdecimal()
        and last.isdecimal()
        and 1 <= int(first) <= int(last)
    )
    if not valid:
        raise ValueError(
            f"profile_steps is {quote(text)}, expected FIRST:LAST with 1 ≤ FIRST ≤ LAST"
        )
    return int(first), int(last)
