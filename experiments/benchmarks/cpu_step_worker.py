"""One side of `cpu_step`: makes a commit's own training step and runs it when it is told to.

Run as a file, with the commit's root on the path, so that the code under test is that commit's and
this is not part of it. It relies on names that have not changed since 564c667, of modules that have
moved once. Standard input has a number of steps a line, and standard
output one JSON list a line: first the losses of the first steps, then seconds of the steps.
"""

from __future__ import annotations

import importlib
import itertools
import json
import pathlib
import pickle
import sys
import time
from collections.abc import Iterator
from typing import Any

NESTED = "lst_jax.training.step", "lst_jax.training.optimizers", "lst_jax.checkpoints.train_state"
FLAT = "lst_jax.trainer", "lst_jax.optimizers", "lst_jax.train_state"


def steps(task: dict[str, Any]) -> Iterator[float]:
    """Yields the loss of one step after another, from new parameters."""
    # Imports are of the working directory's commit. What it does not have must not be looked for:
    # an editable installation of another one would be found.
    import jax

    from lst_jax.config import LSTConfig
    from lst_jax.sharding import MeshConfig, make_mesh, mesh_context, shard_batch

    flat = pathlib.Path("lst_jax/trainer.py").exists()
    names = FLAT if flat else NESTED
    trainer, optimizers, states = map(importlib.import_module, names)
    mesh = make_mesh(MeshConfig(data=jax.device_count(), fsdp=1))
    model = LSTConfig(**task["model"])
    optimizer = optimizers.OptimizerConfig(**task["optimizer"])
    training = trainer.TrainingConfig(num_steps=task["num_steps"])
    arguments = [model, optimizer, training, task["first_unit_id"]]
    batches = task["batches"]
    if flat:  # batches were mappings
        arguments.append(task["num_patches"])
    else:
        batch_type = importlib.import_module("lst_jax.batch").Batch
        batches = [batch_type(**batch, num_patches=task["num_patches"]) for batch in batches]
    step = trainer.make_train_step(*arguments, mesh)
    transform = optimizers.make_optimizer(optimizer, training.num_steps)
    state = states.init_state(model, transform, 0, mesh)
    with mesh_context(mesh):
        batches = [shard_batch(batch, mesh) for batch in batches]
        while True:
            for batch in batches:
                state, sums = step(state, batch)
                sums = jax.device_get(sums)
                total = sums["text_nll"] + sums["speech_nll"]
                yield float(total / (sums["text_weight"] + sums["speech_weight"]))


def products(task: dict[str, Any]) -> Iterator[float]:
    """Yields after all matrix products of a step, in NumPy."""
    import numpy as np

    rng = np.random.default_rng(0)
    pairs = []
    for batch, m, k, n, count in task["products"]:
        arrays = [rng.normal(size=(batch, *shape)) for shape in ((m, k), (k, n), (m, n))]
        pairs.append((*(np.float32(array) for array in arrays), count))
    while True:
        for a, b, out, count in pairs:
            for _ in range(count):
                np.matmul(a, b, out=out)
        yield 0.0


def attention(task: dict[str, Any]) -> Iterator[float]:
    """Yields after all attentions of a step, forward and backward."""
    import jax
    import jax.numpy as jnp

    from lst_jax.batch import Batch
    from lst_jax.config import LSTConfig
    from lst_jax.model.attention import attend
    from lst_jax.model.key_ranges import lst_key_ranges

    config = LSTConfig(**task["model"])
    batches = [Batch(**batch, num_patches=task["num_patches"]) for batch in task["batches"]]
    ranges = [jax.tree.map(jnp.asarray, lst_key_ranges(batch, config)) for batch in batches]
    (rows, tokens), patches = batches[0].tokens.shape, task["num_patches"]
    latents = patches * config.latent_vectors_per_patch
    local = config.num_heads_local, config.dim_local // config.num_heads_local
    cross = config.cross_attention_heads, config.dim_local // config.cross_attention_heads
    wide = config.num_heads_global, config.dim_global // config.num_heads_global
    layers = config.num_layers_encoder + config.num_layers_decoder
    reads = config.num_layers_encoder if config.encoder_cross_layers == "all" else 1
    kinds = {
        "token_self": (tokens, tokens, local, layers),
        "encoder_cross": (latents, tokens, cross, reads),
        "global_self": (patches, patches, wide, config.num_layers_global),
        "decoder_cross": (tokens, latents, cross, config.num_layers_decoder),
    }

    @jax.jit
    def run(q: Any, k: Any, key_range: Any) -> Any:
        out, pull = jax.vjp(lambda q, k, v: attend(q, k, v, key_range, config.attention), q, k, k)
        return pull(out)

    inputs = {
        name: [jnp.full((rows, length, *heads), 0.1) for length in (queries, keys)]
        for name, (queries, keys, heads, _) in kinds.items()
    }
    while True:
        for found in ranges:
            for name, (*_, count) in kinds.items():
                for _ in range(count):
                    jax.block_until_ready(run(*inputs[name], getattr(found, name)))
            yield 0.0


def main() -> None:
    """Runs the task in the file that is named."""
    task = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())
    run = {"step": steps, "products": products, "attention": attention}[sys.argv[2]](task)
    print(json.dumps([next(run) for _ in range(task["losses"])]), flush=True)
    for line in sys.stdin:
        times = [time.perf_counter()]
        for _ in range(int(line)):
            next(run)
            times.append(time.perf_counter())
        print(json.dumps([b - a for a, b in itertools.pairwise(times)]), flush=True)


if __name__ == "__main__":
    main()
