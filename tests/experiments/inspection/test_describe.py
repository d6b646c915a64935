"""What `experiments.describe` says of a configuration, against what the model is and does."""

import dataclasses
import functools
import json
import math
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments.aot.attention_estimates import typical_batch
from experiments.common.step_config import PRESETS, baseline, preset
from experiments.inspection.memory import activation_bytes, device_bytes
from experiments.inspection.modules import module_table
from experiments.inspection.overview import abstract_mesh, describe, format_description
from lst_jax.checkpoints.train_state import init_state, param_shapes, state_shardings
from lst_jax.config import padded_size
from lst_jax.model.flops import forward_flops, training_flops
from lst_jax.model.models import count_parameters
from lst_jax.sharding import MeshConfig, make_mesh
from lst_jax.training.optimizers import make_optimizer
from tests.experiments.train_commands import ROOT
from tests.marks import quick

pytestmark = pytest.mark.slow

TINY = preset("tiny")
ONE = abstract_mesh(MeshConfig(fsdp=1))


def with_model(**changes):
    return dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, **changes))


STEPS = {
    "tiny": TINY,
    "baseline": baseline(TINY),
    "three encoder layers": with_model(num_layers_encoder=3),
    "read once": with_model(num_layers_encoder=3, encoder_cross_layers="last"),
    "one vector a patch": with_model(latent_vectors_per_patch=1),
    "one width": with_model(dim_local=192, latent_vectors_per_patch=1, num_heads_cross=6),
    "three vectors of another width": with_model(latent_vectors_per_patch=3),
}


@functools.cache
def table(name):
    """Modules by path, and the typical rows that their FLOPs are of."""
    step = STEPS[name]
    batch = typical_batch(step.vocabulary, step.patching, step.num_patches, step.num_tokens)
    params = param_shapes(step.model, ONE)
    modules = module_table(step.model, batch, params)
    return {"/".join(module.path): module for module in modules}, batch


@pytest.mark.parametrize("name", quick(STEPS, "read once", "baseline"))
def test_flops_of_modules_are_those_of_the_model(name):
    step, (modules, batch) = STEPS[name], table(name)
    rows = len(batch.tokens)
    names = {"output": "output_kernel", "global": "transformer" if name == "baseline" else "global"}
    for part, flops in forward_flops(step.model, batch).items():
        module = modules[names.get(part, part)]
        assert module.forward_flops == pytest.approx(float(flops) / rows, rel=1e-5), part
    whole = float(training_flops(step.model, batch)) / rows
    assert 3 * modules[""].forward_flops == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("name", STEPS)
def test_every_parameter_is_in_the_table_once(name):
    step, modules = STEPS[name], table(name)[0]
    padding = padded_size(step.model.vocab_size) - step.model.vocab_size
    width = modules["output_kernel"].inputs[0][-1]
    assert modules[""].parameters == count_parameters(step.model) + 2 * width * padding
    leaves = [module for module in modules.values() if module.shardings]
    assert sum(module.parameters for module in leaves) == modules[""].parameters
    names = [(*module.path, name) for module in leaves for name in module.shardings]
    tree = param_shapes(step.model, ONE)
    assert len(names) == len(set(names)) == len(jax.tree.leaves(tree))


def test_shapes_are_those_of_the_step():
    modules = table("tiny")[0]
    assert modules["global"].outputs == ((1, 256, 192),)
    assert modules["decoder"].inputs[:2] == ((1, 352, 96), (1, 256, 192))
    assert modules["global/transformer/layers/block"].layers == 3
    assert modules["output_kernel"].outputs == ((1, 352, TINY.model.vocab_size),)


@pytest.mark.parametrize("mesh_config", [MeshConfig(2, 4, 1), MeshConfig(1, 4, 2)])
def test_memory_is_what_a_device_holds(mesh_config):
    optimizer = make_optimizer(TINY.optimizer, TINY.training.num_steps)
    shapes = state_shardings(TINY.model, optimizer, abstract_mesh(mesh_config))[0]
    state = init_state(TINY.model, optimizer, 0, make_mesh(mesh_config))
    device = jax.devices()[3]
    for planned, real in ((shapes.params, state.params), (shapes.opt_state, state.opt_state)):
        shards = [shard for leaf in jax.tree.leaves(real) for shard in leaf.addressable_shards]
        held = sum(shard.data.nbytes for shard in shards if shard.device == device)
        assert device_bytes(planned) == held < sum(leaf.nbytes for leaf in jax.tree.leaves(real))


@functools.cache
def kept(remat, attention="auto", num_layers=3):
    model = dataclasses.replace(
        TINY.model, remat=remat, attention=attention, num_layers_global=num_layers
    )
    params = param_shapes(model, ONE)
    return activation_bytes(model, params, TINY.num_tokens, TINY.num_patches)


def test_what_is_kept_for_the_backward_pass_follows_the_policy():
    assert kept("none") > 2 * kept("dots") > 4 * kept("full")
    # Another layer under "full" keeps its input, float32.
    assert kept("full", num_layers=4) - kept("full") == 256 * 192 * 4
    # Dense attention keeps whole squares.
    assert kept("none", "dense") > kept("none") + 3 * 4 * 4 * 256 * 256


def test_a_description_adds_up_and_its_text_has_what_its_values_have():
    training = dataclasses.replace(TINY.training, accumulation_steps=2)
    step = dataclasses.replace(TINY, num_rows=16, training=training)
    description = describe(step, ONE)
    memory, flops = description["memory"], description["flops"]
    assert memory["activations_estimate"] == 8 * kept("none")
    assert memory["gradients"] == memory["parameters"]
    assert 0 < memory["optimizer"] - 2 * memory["parameters"] < 100  # and counters
    assert flops["step"] == 3 * flops["forward"] == 48 * table("tiny")[0][""].forward_flops
    assert json.loads(json.dumps(description))["settings"]["model"]["dim_global"] == 192
    text = format_description(description)
    for part in ("dim_global = 192", "256 patches, 352 tokens", "cross_attention", "estimate"):
        assert part in text
    shallow = format_description(description, depth=1)
    assert "decoder" in shallow
    assert "cross_attention" not in shallow


@pytest.mark.parametrize("name", PRESETS)
def test_shapes_of_every_preset_divide_among_a_pod(name):
    mesh = abstract_mesh(MeshConfig(data=-1, fsdp=4, tensor=2), 8)
    assert dict(mesh.shape) == {"data": 1, "fsdp": 4, "tensor": 2}
    step = preset(name)
    shapes = state_shardings(step.model, make_optimizer(step.optimizer, 200_000), mesh)[0]
    sizes = [math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes)]
    assert device_bytes(shapes) >= np.sum(sizes) / 8


@pytest.mark.parametrize(
    ("mesh", "devices", "message"),
    [
        (MeshConfig(fsdp=3), None, "8 rows, expected a multiple of 3"),
        (MeshConfig(fsdp=1, tensor=8), None, "num_heads_global is 4"),
        (MeshConfig(fsdp=4), 6, "sizes that fill 6 devices"),
        (MeshConfig(fsdp=-1, tensor=4), 6, "sizes that fill 6 devices"),
    ],
)
def test_a_mesh_that_does_not_fit_is_named(mesh, devices, message):
    with pytest.raises(ValueError, match=message):
        describe(TINY, abstract_mesh(mesh, devices))


# Linux counts the memory of the process that starts a program as the program's, too, and a test
# worker has gigabytes; so another process starts it.
MEASURE = """
import resource, subprocess, sys
said = subprocess.run(sys.argv[1:], check=True, stdout=subprocess.PIPE).stdout
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime, used.ru_maxrss)
sys.stdout.buffer.write(said)
"""


@pytest.mark.multiprocess
def test_the_largest_model_is_described_in_seconds_and_little_memory():
    files = ["--gin_file=experiments/configs/models/7b.gin", "--mesh=fsdp=128,tensor=1", "--json"]
    command = [sys.executable, "-u", "-c", MEASURE, sys.executable, "-m", "experiments.describe"]
    done = subprocess.run(
        [*command, *files], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    used, said = done.stdout.split("\n", 1)
    seconds, kibibytes = map(float, used.split())
    description = json.loads(said)
    assert description["parameters"] == 6_979_643_392
    assert description["settings"]["model"]["dim_global"] == 4096
    assert description["mesh"] == {"data": 1, "fsdp": 128, "tensor": 1}
    assert seconds < 60
    assert 2**15 < kibibytes < 2**20  # the parameters alone would be 26 GiB
