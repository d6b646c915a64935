"""Tiny models with random bits for parameters, in every kind of checkpoint."""

import numpy as np

from lst_jax.checkpoints.description import DataDescription, ModelDescription
from lst_jax.config import LSTConfig, baseline_of
from lst_jax.patching import PatchingConfig
from lst_jax.porting.parameter_names import published_tensors
from lst_jax.porting.port import Checkpoint
from lst_jax.porting.tensors import DTYPES, TensorSpec
from lst_jax.vocabulary import Vocabulary

VOCABULARY = Vocabulary(30)
LST = LSTConfig(
    vocab_size=VOCABULARY.size,
    dim_local=8,
    dim_global=24,
    num_layers_encoder=2,
    num_layers_global=3,
    num_layers_decoder=2,
    num_heads_local=2,
    num_heads_global=2,
    multiple_of=8,
)
BASELINE = baseline_of(LST)
DATA = DataDescription(
    patching=PatchingConfig("static", patch_size=4),
    visibility="causal",
    patches_per_row=8,
    tokens_per_row=12,
)


def random_bits(rng: np.random.Generator, shape, dtype: str) -> np.ndarray:
    """Numbers of any kind: negative zeros, infinities, NaNs with payloads, denormals."""
    dtype = DTYPES[dtype]
    special = np.array([0.0, -0.0, np.inf, -np.inf, 1e-40], np.float32).astype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    values = np.frombuffer(rng.bytes(size), dtype).reshape(shape).copy()
    chosen = rng.random(shape) < 0.1
    values[chosen] = rng.choice(special, int(chosen.sum()))
    return values


def random_checkpoint(config=LST, dtype: str = "float32", vocabulary=VOCABULARY):
    """A checkpoint of step 3 in memory, and its tensors."""
    rng = np.random.default_rng(0)
    tensors = {t.name: random_bits(rng, t.shape, dtype) for t in published_tensors(config)}
    specs = {name: TensorSpec(values.shape, dtype) for name, values in tensors.items()}
    description = ModelDescription(config, vocabulary, "0" * 64, DATA)
    return Checkpoint("memory", description, 3, specs, tensors.__getitem__), tensors


def assert_same_bits(tensors, expected):
    """Equal to the bit, names and types included."""
    assert tensors.keys() == expected.keys()
    for name, values in expected.items():
        assert tensors[name].dtype == values.dtype
        assert tensors[name].shape == values.shape
        assert tensors[name].tobytes() == values.tobytes(), name


def read_all(checkpoint) -> dict[str, np.ndarray]:
    """Every tensor, by published name."""
    return {name: checkpoint.read(name) for name in checkpoint.specs}
