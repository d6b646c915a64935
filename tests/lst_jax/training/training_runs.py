"""A tiny model and batches for the trainer's tests."""

import grain
import numpy as np

from lst_jax.batch import Batch
from lst_jax.checkpoints.description import ModelDescription
from lst_jax.config import LSTConfig
from tests.lst_jax.batches import VOCABULARY, random_document, stack_rows

ROWS, P, N = 16, 48, 64
TINY = LSTConfig(
    vocab_size=VOCABULARY.size,
    dim_local=16,
    dim_global=32,
    num_layers_encoder=1,
    num_layers_global=1,
    num_layers_decoder=1,
    num_heads_local=2,
    num_heads_global=2,
    multiple_of=16,
    dtype="float32",
    attention="dense",
)
DESCRIPTION = ModelDescription(TINY, VOCABULARY, tokenizer_fingerprint="0" * 64)


def random_batch(seed: int) -> Batch:
    """Rows of one document each, half of them aligned; row 0 is empty."""
    rng = np.random.default_rng(seed)
    rows = [[random_document(rng, aligned=b % 2 == 0)] for b in range(1, ROWS)]
    return stack_rows([[], *rows], P, N)


def batches(count: int) -> grain.DatasetIterator:
    """`count` different batches, over and over."""
    dataset = grain.MapDataset.source([random_batch(seed) for seed in range(count)])
    return iter(dataset.repeat().to_iter_dataset())
