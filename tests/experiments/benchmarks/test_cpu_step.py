"""The benchmark of the CPU's step: what it counts as products, and what it refuses."""

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks.cpu_step import count_products, split_devices
from tests.binaries import run_binary


def test_products_are_counted_as_often_as_loops_run_them():
    def function(x, kernels):
        def layer(h, kernel):
            return jax.jit(jnp.matmul)(h, kernel), None

        h, _ = jax.lax.scan(layer, x, kernels)
        # Nobody can say how often such a loop turns.
        h = jax.lax.while_loop(lambda h: h[0, 0] > 0, lambda h: h @ kernels[0], h)
        return jnp.einsum("bmk,bkn->bmn", h[None], kernels[:1, :, :2])

    jaxpr = jax.make_jaxpr(function)(jnp.zeros((3, 4)), jnp.zeros((5, 4, 4)))
    assert count_products(jaxpr.jaxpr) == {(1, 3, 4, 4): 5, (1, 3, 4, 2): 1}


@pytest.mark.parametrize(
    ("rows", "cores", "devices"), [(4, 2, 2), (1, 2, 1), (4, 3, 2), (6, 16, 6), (5, 1, 1)]
)
def test_rows_divide_among_the_devices(rows, cores, devices):
    assert split_devices(rows, cores) == devices


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_mistake_is_one_line():
    result = run_binary("experiments.benchmarks.cpu_step", "--shapes=huge")
    assert result.returncode == 2
    assert result.stderr.strip() == "error: shapes is 'huge', expected some of demo,larger"
