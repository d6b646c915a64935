"""Training a SentencePiece model with the settings of Llama 2's."""

from __future__ import annotations

import io
import pathlib
import re
from collections.abc import Iterable
from typing import Literal

import sentencepiece

from lst_jax.files import write_file

ModelType = Literal["bpe", "unigram"]

_MAX_LINE_BYTES = 2**30  # SentencePiece leaves out longer lines without a word
_LIMIT = re.compile(r"too high .*<= (\d+)")
_MINIMUM = re.compile(r"smaller than required_chars\. \d+ vs (\d+)")


def train_tokenizer(
    texts: Iterable[str],
    output_prefix: str | pathlib.Path,
    vocab_size: int,
    *,
    model_type: ModelType = "bpe",
    byte_fallback: bool = True,
    character_coverage: float = 0.99995,
) -> pathlib.Path:
    """Trains a SentencePiece model; the same texts give the same file.

    As in Llama 2: unk 0, bos 1, eos 2, digits apart, text left as it is, a space before it.

    Args:
      texts: what to train on; line breaks part sentences.
      output_prefix: the model becomes the file `<output_prefix>.model`.
      vocab_size: number of pieces, the three above and the 256 bytes of `byte_fallback` among
        them.
      model_type: "bpe" or "unigram".
      byte_fallback: whether characters without a piece become bytes instead of unk.
      character_coverage: share of the text's characters that get pieces, in (0, 1].

    Returns:
      Path of the model file.

    Raises:
      ValueError: an argument is out of range, the texts are empty, or they do not allow that
        many pieces (or need more).
    """
    if model_type not in ("bpe", "unigram"):
        raise ValueError(f"model_type is {model_type!r}, expected 'bpe' or 'unigram'")
    if pathlib.Path(f"{output_prefix}.model").name == ".model":
        raise ValueError(f"output_prefix is {str(output_prefix)!r}, expected a file's path")
    if vocab_size < 1:
        raise ValueError(f"vocab_size is {vocab_size}, expected at least 1")
    if not 0 < character_coverage <= 1:
        raise ValueError(f"character_coverage is {character_coverage}, expected in (0, 1]")
    sentences = [line for text in texts for line in text.splitlines() if line.strip()]
    if not sentences:
        raise ValueError("texts are empty, expected some to train a tokenizer on")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            vocab_size=vocab_size,
            model_type=model_type,
            byte_fallback=byte_fallback,
            character_coverage=character_coverage,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            max_sentence_length=_MAX_LINE_BYTES,
            num_threads=1,  # the order in which threads finish must not matter
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(_explain(error, vocab_size)) from error
    return write_file(f"{output_prefix}.model", model.getvalue())


def _explain(error: RuntimeError, vocab_size: int) -> str:
    if limit := _LIMIT.search(str(error)):
        return f"vocab_size is {vocab_size}, but these texts allow at most {limit[1]} pieces"
    if minimum := _MINIMUM.search(str(error)):
        return f"vocab_size is {vocab_size}, but these texts need more than {minimum[1]} pieces"
    return f"SentencePiece cannot train on these texts: {error}"
