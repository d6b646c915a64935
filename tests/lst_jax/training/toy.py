"""A straight line through points, trained by the same loop as the LST: what the loop must not know.

Also what the loop's tests need of any model: it compiles in no time.
"""

import dataclasses

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

from lst_jax.checkpoints.train_state import TrainState
from lst_jax.sharding import make_mesh, replicated
from lst_jax.training.hooks import Start, Trainable
from lst_jax.training.loop import train
from lst_jax.training.step import TrainingConfig
from lst_jax.training.writers import open_jsonl

MESH = make_mesh(devices=jax.devices()[:1])
TRAINING = TrainingConfig(num_steps=12, log_every=1, checkpoint_every=4, keep_checkpoints=9)


@dataclasses.dataclass
class ToyProgress:
    """Error and time since the last record."""

    error: float = 0.0
    pause: float = 0.0
    seconds: float = 0.0

    def add(self, sums, seconds):
        self.error += float(sums["error"])
        self.seconds += seconds

    def add_pause(self, seconds):
        self.pause += seconds

    def take_record(self, step, context):
        record = {"step": step, "error": self.error, "seconds": self.seconds, "pause": self.pause}
        self.error = self.seconds = self.pause = 0.0
        return record

    def to_json(self):
        return dataclasses.asdict(self)


def points(count=None):
    """Batches of 8 points, different ones at every step, `count` of them or without end."""

    def batch(seed):
        x = np.random.default_rng(seed).normal(size=(8, 4)).astype(np.float32)
        return {"x": x, "y": x.sum(axis=1)}

    dataset = grain.MapDataset.source([batch(seed) for seed in range(count or 50)])
    return iter((dataset if count else dataset.repeat()).to_iter_dataset())


def toy(learning_rate=0.1, breaks_at=None):
    """The model; the update of step `breaks_at` makes its parameters infinite."""
    optimizer = optax.adam(learning_rate)

    def create():
        params = {"w": jnp.zeros(4)}
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    def loss(params, batch):
        return jnp.sum((batch["x"] @ params["w"] - batch["y"]) ** 2)

    def step(state, batch):
        error, gradient = jax.value_and_grad(loss)(state.params, batch)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if breaks_at is not None:
            broken = jnp.where(state.step + 1 == breaks_at, jnp.inf, 0.0)
            params = jax.tree.map(lambda leaf: leaf + broken, params)
        return TrainState(state.step + 1, params, opt_state), sums(error)

    def sums(error):
        return {"error": error, "weight": jnp.ones(())}

    place = replicated(MESH)
    create = jax.jit(create, out_shardings=place)
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        jax.eval_shape(create),
    )
    return Trainable(
        name="line",
        shapes=shapes,
        start=lambda iterator: Start(create(), ToyProgress(), "from step 0"),
        step=jax.jit(step, donate_argnums=0),
        loss=jax.jit(lambda params, batch: sums(loss(params, batch))),
        losses=("error",),
        weights=("weight",),
        advice="",
        make_progress=ToyProgress,
        rate_context=lambda batch: None,
    )


def train_toy(workdir, iterator=None, *, model=None, training=None, writers=(open_jsonl,), **doors):
    """Trains the line; `training` has the settings that differ from `TRAINING`."""
    config = dataclasses.replace(TRAINING, **(training or {}))
    iterator = points() if iterator is None else iterator
    return train(model or toy(), config, iterator, workdir, MESH, writers=writers, **doors)
