"""Rows for training a vocoder: units and samples that belong together, whatever came before."""

import numpy as np
import pytest

from data_pipelines.speech.vocoder_examples import (
    VocoderBatches,
    VocoderDataConfig,
    VoiceClip,
    fit_samples,
)

_HOP = 4


def clip_of(length, speaker):
    units = np.random.default_rng(length).integers(0, 3, length).astype(np.int32)
    # Each sample tells its unit and its place.
    samples = np.repeat(units + 10 * np.arange(length), _HOP).astype(np.float32)
    return VoiceClip(samples, units, speaker)


CLIPS = [clip_of(50, 0), None, clip_of(7, 2)]


def batches(**changes):
    config = VocoderDataConfig(**{"batch_size": 6, "row_units": 16, "row_runs": 8} | changes)
    return VocoderBatches(lambda i: CLIPS[i], len(CLIPS), _HOP, config)


def test_rows_are_pieces_of_clips_and_their_units():
    seen, parts, varied = set(), {0: set(), 2: set()}, False
    made = batches()
    for _ in range(8):
        batch = next(made)
        assert len(batch.units) == 6
        varied |= len({row.tobytes() for row in batch.waveforms}) > 1
        for row in zip(*batch, strict=True):
            units, length, samples, speaker, runs, durations = row
            seen.add((int(speaker), int(length)))
            real = samples[: length * _HOP].reshape(-1, _HOP)
            np.testing.assert_array_equal(real % 10, np.repeat(units[:length, None], _HOP, 1))
            assert (np.diff(real[:, 0] // 10) == 1).all()
            assert not samples[length * _HOP :].any() and not units[length:].any()
            whole = CLIPS[int(speaker)].units
            kept = durations > 0
            assert (np.diff(runs[kept]) != 0).all() and kept[0]
            spoken = " ".join(map(str, np.repeat(runs[kept], durations[kept])))
            assert spoken in " ".join(map(str, whole))
            assert speaker == 0 or spoken == " ".join(map(str, whole))
            parts[int(speaker)].add(spoken)
    assert seen == {(0, 16), (2, 7)} and len(parts[0]) > 8 and varied


def test_every_piece_of_a_clip_is_drawn_from_its_first_unit_to_its_last():
    units = np.array([0, 0, 1, 2, 0, 1, 1], np.int32)
    clip = VoiceClip(np.arange(28, dtype=np.float32), units)
    config = VocoderDataConfig(batch_size=40, row_units=5, row_runs=3)
    batch = next(VocoderBatches(lambda _: clip, 1, _HOP, config))
    assert {int(row[0]) for row in batch.waveforms} == {0, 4, 8}
    runs = {(*row.tolist(), *lasts.tolist()) for row, lasts in zip(*batch[4:], strict=True)}
    assert runs == {(0, 1, 2, 2, 1, 1), (1, 2, 0, 1, 1, 1), (2, 0, 1, 1, 1, 2)}


def test_a_batch_is_a_function_of_its_number_and_the_seed():
    first, again, other = batches(), batches(), batches(seed=1)
    next(first)
    again.set_state(first.get_state())
    one, two, three = next(first), next(again), next(other)
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert not np.array_equal(one.units, three.units)


def test_without_a_clip_that_can_be_used_there_is_no_batch():
    empty = VocoderBatches(lambda _: None, 3, _HOP, VocoderDataConfig())
    with pytest.raises(ValueError, match="recordings is '16 in a row unfit', expected some that"):
        next(empty)


def test_units_have_their_samples_and_the_last_ones_zeros():
    assert fit_samples(np.ones(9), np.zeros(3), 4).tolist() == [1] * 9 + [0] * 3
    assert fit_samples(np.ones(9), np.zeros(2), 4).tolist() == [1] * 8
