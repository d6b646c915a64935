"""Training the pieces that join speech units: byte-pair encoding by SentencePiece."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import numpy as np
import sentencepiece

from data_pipelines.records.storage import RecordSource
from data_pipelines.records.types import Utterance
from lst_jax.settings import require
from lst_jax.unit_encoding import UnitEncoding, drop_repeats
from lst_jax.vocabulary import Vocabulary

_FIRST_CHARACTER = 0xF0000  # of Unicode's private range, whose characters mean nothing
_MOST_UNITS = 0xFFFD
_LONGEST_SEQUENCE = 2**30  # SentencePiece leaves out longer ones without a word
_LIMIT = re.compile(r"too high .*<= (\d+)")


def choose_unit_sequences(records: RecordSource, count: int, seed: int) -> list[np.ndarray]:
    """Returns the units of at most `count` utterances of some records, chosen at random.

    Raises:
      ValueError: the records hold no speech.
    """
    require(records.metadata.kind == "speech", "records", records.metadata.kind, "speech")
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(records))
    chosen = (records[int(number)] for number in order[:count])
    return [record.units for record in chosen if isinstance(record, Utterance)]


def train_unit_encoding(
    sequences: Sequence[np.ndarray],
    unit_count: int,
    *,
    vocab_size: int | None = None,
    deduplicated: bool = False,
) -> UnitEncoding:
    """Returns a unit vocabulary; the same sequences give the same one.

    Each unit is a character to SentencePiece. Pieces have at most 16 units, its default.

    Args:
      sequences: the units of utterances, (U,) each.
      unit_count: units of the encoder, which are all ids, whether the sequences have them or not.
      vocab_size: ids, units and pieces together; None: no unit is joined.
      deduplicated: whether a run of equal units is one unit, before units are joined.

    Raises:
      ValueError: there are no units, too few ids, or more than the sequences allow.
    """
    total = sum(map(len, sequences))
    require(total > 0, "sequences", sequences, "some units to learn from")
    runs = [drop_repeats(units) for units in sequences] if deduplicated else sequences
    run_length = total / sum(map(len, runs))
    pieces = () if vocab_size is None else _train_pieces(runs, unit_count, vocab_size)
    encoding = UnitEncoding(deduplicated, run_length, pieces)
    vocabulary = Vocabulary(3, unit_count=unit_count, units=encoding)
    num_ids = sum(len(vocabulary.units_to_ids(units)) for units in sequences)
    return UnitEncoding(deduplicated, run_length, pieces, units_per_id=total / num_ids)


def _train_pieces(
    sequences: Sequence[np.ndarray], unit_count: int, vocab_size: int
) -> tuple[tuple[int, ...], ...]:
    require(unit_count <= _MOST_UNITS, "unit_count", unit_count, f"at most {_MOST_UNITS} to join")
    require(vocab_size > unit_count, "vocab_size", vocab_size, f"over {unit_count}, the units")
    # SentencePiece counts unk and the units that there are.
    num_others = 1 + len(np.unique(np.concatenate(sequences)))
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(_spell(units) for units in sequences),
            model_writer=model,
            model_type="bpe",
            vocab_size=num_others + vocab_size - unit_count,
            character_coverage=1.0,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            normalization_rule_name="identity",
            split_by_unicode_script=False,
            split_by_number=False,
            split_by_whitespace=False,
            max_sentence_length=_LONGEST_SEQUENCE,
            num_threads=1,  # the order in which threads finish must not matter
            minloglevel=2,
        )
    except RuntimeError as error:
        limit = _LIMIT.search(str(error))
        most = int(limit[1]) - num_others + unit_count if limit else None
        raise ValueError(
            f"vocab_size is {vocab_size}, but these units allow at most {most} ids"
            if limit
            else f"SentencePiece cannot train on these units: {error}"
        ) from error
    trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    # In the order of learning; single units follow.
    learned = [trained.id_to_piece(i) for i in range(1, trained.get_piece_size())]
    return tuple(_units(piece) for piece in learned if len(piece) > 1)


def _spell(units: np.ndarray) -> str:
    return "".join(map(chr, (units + _FIRST_CHARACTER).tolist()))


def _units(piece: str) -> tuple[int, ...]:
    return tuple(ord(character) - _FIRST_CHARACTER for character in piece)
