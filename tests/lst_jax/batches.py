"""Random documents and batches for the model's tests."""

import numpy as np

from lst_jax import batch
from lst_jax.batch import Batch
from lst_jax.patching import Document, PatchingConfig, fill_row, patch_document
from lst_jax.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text_size=40, unit_count=20)


def random_tokens(rng: np.random.Generator, segments: int = 3, longest: int = 9) -> np.ndarray:
    """bos, segments of text and speech in turn, eos."""
    v = VOCABULARY
    tokens = [v.bos_id]
    speech = bool(rng.integers(2))
    for _ in range(segments):
        length = int(rng.integers(1, longest + 1))
        if speech:
            tokens += [v.speech_mode_id, *(v.first_unit_id + rng.integers(0, 20, length))]
        else:
            tokens += [v.text_mode_id, *rng.integers(3, 40, length)]
        speech = not speech
    return np.array([*tokens, v.eos_id], np.int32)


def random_document(rng: np.random.Generator, aligned: bool, patch_size: int = 3) -> Document:
    """A document whose speech is in static patches, or in "words" of 1 … 5 units."""
    tokens = random_tokens(rng)
    config = PatchingConfig("aligned" if aligned else "static", patch_size)
    return patch_document(tokens, config, VOCABULARY, aligned_lengths(rng, tokens, aligned))


def aligned_lengths(rng: np.random.Generator, tokens: np.ndarray, aligned: bool):
    """Random word lengths over the speech runs, 1 for all other tokens; None if not aligned."""
    if not aligned:
        return None
    is_unit = VOCABULARY.is_unit(tokens)
    begins = ~is_unit | (rng.random(len(tokens)) < 0.3)
    begins[1:] |= ~is_unit[:-1]
    return np.diff(np.flatnonzero(begins), append=len(tokens)).astype(np.int32)


def assert_same(left: Batch, right: Batch) -> None:
    """Holds that two batches, or rows, are the same in all their arrays."""
    assert left.num_patches == right.num_patches
    for name, array in batch.batch_arrays(right).items():
        np.testing.assert_array_equal(getattr(left, name), array, err_msg=name)


def stack_rows(rows: list[list[Document]], num_patches: int, num_tokens: int, **kwargs) -> Batch:
    """A batch of rows of documents."""
    return batch.stack_rows([fill_row(row, num_patches, num_tokens, **kwargs) for row in rows])
