"""A tokenizer trained on the sample, and files to read: shared by the tests of records."""

from __future__ import annotations

import atexit
import functools
import json
import pathlib
import tempfile

from data_pipelines.corpora.lines import read_lines
from data_pipelines.corpora.reference_jsonl import parse_reference_line
from data_pipelines.tokenizers import train_tokenizer
from lst_jax.vocabulary import TextTokenizer

SAMPLE = pathlib.Path(__file__).parents[1] / "testdata" / "mls_sample.jsonl"


def sample_texts() -> list[str]:
    """The words of the ten sample utterances."""
    return list(read_lines([SAMPLE], lambda line, _: parse_reference_line(line, 502).text))


@functools.cache
def make_tokenizer(vocab_size: int = 400) -> TextTokenizer:
    """A BPE model with Llama 2's settings, in a file that lives as long as the process."""
    folder = tempfile.TemporaryDirectory(prefix="lst-tokenizer-")
    atexit.register(folder.cleanup)
    path = pathlib.Path(folder.name) / "tokenizer"
    return TextTokenizer(train_tokenizer(sample_texts(), path, vocab_size))


def reference_line(interleaved: str, file_id: str = "a") -> bytes:
    """One line of the published format."""
    return json.dumps({"file_id": file_id, "interleaved": interleaved}).encode()


def chain(*blocks: str) -> str:
    """A chain of blocks such as `TEXT the` and `HUBERT 1 2`."""
    return " ".join(f"<LST MODE SEP>{block}" for block in blocks)
