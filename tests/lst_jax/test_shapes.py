"""Signatures declare shapes, and with `LST_JAX_CHECK_SHAPES=1` every call is held to them."""

import ast
import dataclasses
import functools
import os
import pathlib
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lst_jax
from lst_jax import shapes
from lst_jax.batch import padding_rows
from lst_jax.config import LSTConfig
from lst_jax.model.attention import BACKENDS
from lst_jax.model.attention.dense import dense_attention
from lst_jax.model.attention.ring import ring_attention
from lst_jax.model.key_ranges import KeyRange
from lst_jax.model.losses import token_nll
from lst_jax.model.models import build_model
from lst_jax.model.pooling import pool_patches
from lst_jax.patching import visible_patches
from lst_jax.shapes import Float, Int32, Shaped, check_shapes

PACKAGE = pathlib.Path(lst_jax.__file__).parent
TINY = LSTConfig(
    vocab_size=32,
    dim_local=8,
    dim_global=16,
    num_layers_encoder=1,
    num_layers_global=1,
    num_layers_decoder=1,
    num_heads_local=2,
    num_heads_global=2,
    local_window=4,
)


def like(*shape, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(shape, dtype)


def floats(*shape):
    return like(*shape, dtype=jnp.float32)


POOLED = {
    "h": floats(2, 6, 4),
    "patch_ids": like(2, 6),
    "patch_start": like(2, 3),
    "patch_end": like(2, 3),
}


def pool(pooling="max", **changed):
    function = functools.partial(pool_patches, pooling=pooling)
    return jax.eval_shape(lambda arrays: function(**arrays), {**POOLED, **changed})


def test_arguments_that_fit_together_pass():
    assert shapes.CHECKED  # of conftest.py, for all tests
    assert pool().shape == (2, 3, 4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"patch_ids": like(2, 5)}, r'patch_ids is int32\[2,5\], expected Int32 "B N"'),
        ({"patch_end": like(2, 4)}, r'patch_end is int32\[2,4\], expected Int32 "B P"'),
        ({"h": floats(2, 6)}, r'h is float32\[2,6\], expected Float "B N d"'),
        ({"patch_start": floats(2, 3)}, r'patch_start is float32\[2,3\], expected Int32 "B P"'),
        ({"h": like(2, 6, 4)}, r'h is int32\[2,6,4\], expected Float "B N d"'),
    ],
)
def test_an_argument_of_another_shape_or_type_is_refused_at_trace_time(changed, message):
    with pytest.raises(ValueError, match=rf"^pool_patches: {message}, beside ") as refused:
        pool(**changed)
    assert len(str(refused.value)) < 500 and "\n" not in str(refused.value)


def test_a_wrong_shape_is_refused_inside_compiled_functions_and_their_gradients():
    kernel, targets = jnp.zeros((4, 128)), jnp.zeros((2, 5), jnp.int32)

    @jax.jit
    def loss(hidden):
        return token_nll(hidden, kernel, targets, 100).sum()

    assert jax.grad(loss)(jnp.zeros((2, 5, 4))).shape == (2, 5, 4)
    with pytest.raises(ValueError, match=r"token_nll: targets is int32\[2,5\]"):
        jax.grad(loss)(jnp.zeros((2, 6, 4)))


def test_fields_of_an_argument_are_held_to_its_letters():
    q, k = jnp.zeros((1, 3, 2, 4)), jnp.zeros((1, 5, 2, 4))
    good, short = jnp.zeros((1, 3), jnp.int32), jnp.zeros((1, 2), jnp.int32)
    dense_attention(q, k, k, KeyRange(good, good))
    with pytest.raises(ValueError, match=r"dense_attention: key_range.end is int32\[1,2\]"):
        dense_attention(q, k, k, KeyRange(good, short))
    past = k.swapaxes(1, 2), k.swapaxes(1, 2)[:, :, :4]
    with pytest.raises(ValueError, match=r"ring_attention: past\[1\] is float32\[1,2,4,4\]"):
        ring_attention(q, past, None, KeyRange(good, good))


def test_modules_refuse_wrong_shapes_when_they_are_traced():
    model = build_model(TINY)
    batch = padding_rows(num_patches=4, num_tokens=8, rows=(2,))
    jax.eval_shape(model.init, jax.random.key(0), batch)
    short = dataclasses.replace(batch, patch_ids=batch.patch_ids[:, 1:])
    with pytest.raises(
        ValueError, match=r'batch.patch_ids is int32\[2,7\], expected Int32 "\*b N"'
    ):
        jax.eval_shape(model.init, jax.random.key(0), short)


def test_numpy_arrays_are_checked_too():
    lengths = np.array([1, 2], np.int32)
    visible_patches(lengths, np.array([True, False]))
    with pytest.raises(ValueError, match=r'provable is bool\[3\], expected Bool "Q"'):
        visible_patches(lengths, np.array([True, False, True]))


class Pair(NamedTuple):
    rows: Int32[jax.Array, " B"]
    other: "Pair | None" = None


def test_results_optional_arguments_and_containers_are_checked():
    @check_shapes
    def halve(
        x: Float[jax.Array, "n m"],
        rows: Int32[jax.Array, " n"] | None = None,
        many: dict[str, Shaped[jax.Array, " n *d"]] | None = None,
        pair: Pair | None = None,
        several: list[Pair] | None = None,
    ) -> Float[jax.Array, " n"]:
        return x[: len(x) // 2, 0] if rows is None else x[:, 0]

    x, rows = jnp.zeros((4, 3)), jnp.zeros(4, jnp.int32)
    with pytest.raises(ValueError, match=r'halve: return is float32\[2\], expected Float "n"'):
        halve(x)
    different = [Pair(rows), Pair(rows[:3])]
    assert halve(x, rows, {"a": x}, Pair(rows), different).shape == (4,)
    with pytest.raises(ValueError, match=r"several\[1\].rows is float32\[4,3\]"):
        halve(x, rows, several=[Pair(rows), Pair(x)])
    with pytest.raises(ValueError, match=r"rows is int32\[3\]"):
        halve(x, rows[:3])
    with pytest.raises(ValueError, match=r"many\['a'\] is int32\[3\]"):
        halve(x, rows, {"a": rows[:3]})
    with pytest.raises(ValueError, match=r"pair is 3, expected Pair"):
        halve(x, rows, None, 3)
    with pytest.raises(TypeError, match="unexpected keyword"):
        halve(x, lines=rows)


def python(code, **variables):
    environment = {k: v for k, v in os.environ.items() if k != shapes.VARIABLE}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env={**environment, **variables}, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_without_the_variable_functions_are_given_back_as_they_are():
    for variables in ({}, {shapes.VARIABLE: "0"}):
        code = (
            "import sys\n"
            "import lst_jax.model.models, lst_jax.patching\n"
            "from lst_jax.shapes import CHECKED, check_shapes\n"
            "assert not CHECKED and check_shapes(print) is print\n"
            "assert not hasattr(lst_jax.patching.patch_document, '__wrapped__')\n"
            "assert 'jaxtyping' not in sys.modules"
        )
        assert python(code, **variables).returncode == 0


def test_data_workers_do_not_load_jax_to_check_shapes():
    code = (
        "import sys, numpy as np\n"
        "from lst_jax.patching import visible_patches\n"
        "visible_patches(np.ones(2, np.int32), np.ones(2, bool))\n"
        "assert 'jax' not in sys.modules"
    )
    result = python(code, **{shapes.VARIABLE: "1"})
    assert result.returncode == 0, result.stderr


def test_another_value_of_the_variable_is_refused():
    result = python("import lst_jax.shapes", **{shapes.VARIABLE: "yes"})
    assert "ValueError: LST_JAX_CHECK_SHAPES is 'yes', expected 1 (shapes are" in result.stderr


# What makes and reads batches and runs the model.
DECLARING = [
    "patching.py",
    "inference/sampling.py",
    *(f"model/{name}.py" for name in ("global_transformer", "key_ranges", "layers", "losses")),
    *(f"model/{name}.py" for name in ("models", "patch_decoder", "patch_encoder", "pooling")),
    *(f"model/attention/{name}.py" for name in ("ring", "blocks", *BACKENDS[1:])),
]


@pytest.mark.parametrize("name", DECLARING)
def test_public_functions_declare_the_shapes_of_arrays(name):
    tree = ast.parse((PACKAGE / name).read_text())
    classes = [x for x in tree.body if isinstance(x, ast.ClassDef) and x.name[0] != "_"]
    bare = []
    for body in (tree.body, *(c.body for c in classes)):
        for node in body:
            if isinstance(node, ast.FunctionDef) and (node.name[0] != "_" or "call" in node.name):
                hints = [a.annotation for a in [*node.args.args, *node.args.kwonlyargs]]
                for hint in filter(None, [*hints, node.returns]):
                    kinds = ast.unparse(hint).split(" | ")
                    bare += [node.name] * bool({"Array", "jax.Array", "np.ndarray"} & set(kinds))
    assert not bare


@pytest.mark.parametrize("name", DECLARING)
def test_shapes_that_arguments_share_are_checked(name):
    unchecked = []
    for node in ast.parse((PACKAGE / name).read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name[0] != "_":
            hints = [ast.unparse(a.annotation) for a in node.args.args if a.annotation]
            checked = any("check_shapes" in ast.unparse(x) for x in node.decorator_list)
            unchecked += [node.name] * (sum("[Array, 'B" in x for x in hints) > 1 and not checked)
    assert not unchecked
