"""Properties of batches: the same whatever the workers, hosts, prefetching and restarts."""

import dataclasses
import itertools
import json
import multiprocessing
import os
import shutil
import signal

import numpy as np
import pytest
from absl import flags

from data_pipelines.records.storage import TextDocument, Utterance, write_records
from data_pipelines.training.dataset import (
    DataConfig,
    SourceConfig,
    make_training_dataset,
    merge_states,
)
from data_pipelines.training.held_out_records import held_out_mask
from data_pipelines.training.mixture import DocumentKey, DocumentRandom
from lst_jax.batch import batch_arrays, join_batches
from lst_jax.patching import PatchingConfig, aligned_probability
from tests.data_pipelines.small_corpus import make_tokenizer
from tests.lst_jax.batches import assert_same as assert_same_batch
from tests.marks import quick

TOKENIZER = make_tokenizer()
VOCABULARY = TOKENIZER.vocabulary(502)
CURRICULUM = PatchingConfig("curriculum", curriculum_start=2, curriculum_end=10)
NUM_UTTERANCES, NUM_TEXTS = 150, 30


@pytest.fixture(autouse=True, scope="module")
def parsed_flags():
    """Grain reads its own absl flags before it starts workers."""
    flags.FLAGS.mark_as_parsed()


def utterance(number):
    """Its units are all `number`, which tells it apart in a batch."""
    counts = np.random.default_rng(number).integers(1, 9, 25).astype(np.int32)
    silent = np.arange(25) % 3 == 0
    return Utterance(
        f"u{number}",
        tuple("[SIL]" if is_silent else "word" for is_silent in silent),
        np.full((~silent).sum(), 5, np.int32),
        (~silent).astype(np.int32),
        np.full(counts.sum(), number, np.int32),
        counts,
    )


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("records")
    utterances = map(utterance, range(NUM_UTTERANCES))
    write_records(path / "speech", "speech", utterances, TOKENIZER)
    lengths = np.random.default_rng(0).integers(5, 150, NUM_TEXTS)
    texts = [
        TextDocument(f"t{number}", np.full(length, 100 + number, np.int32), int(length))
        for number, length in enumerate(lengths)
    ]
    write_records(path / "text", "text", texts, TOKENIZER)
    return DataConfig(
        sources=tuple(SourceConfig(str(path / kind), kind) for kind in ("speech", "text")),
        batch_size=4,
        patches_per_row=128,
        tokens_per_row=192,
        seed=3,
        open_rows=3,
        patching=CURRICULUM,
    )


def take(dataset, count):
    iterator = iter(dataset)
    try:
        return list(itertools.islice(iterator, count))
    finally:
        iterator.close()


def assert_same(got, expected):
    assert len(got) == len(expected)
    for left, right in zip(got, expected, strict=True):
        assert_same_batch(left, right)


@pytest.fixture(scope="module")
def batches(config):
    """The first batches, made in the simplest way."""
    return take(make_training_dataset(config, VOCABULARY, prefetch=0), 14)


def test_batches_have_the_shapes_and_types_of_the_design(config, batches):
    for batch in batches:
        for name in ("tokens", "targets", "document_ids", "patch_ids", "visible_patch"):
            assert getattr(batch, name).shape == (4, 192)
            assert getattr(batch, name).dtype == np.int32
        assert batch.loss_weights.shape == (4, 192)
        assert batch.loss_weights.dtype == np.float32
        for name in ("speech_examples", "aligned_examples"):
            assert getattr(batch, name).shape == (4,)
            assert getattr(batch, name).dtype == np.int32


def test_prefetching_changes_nothing(config, batches):
    for prefetch in (1, 5):
        assert_same(take(make_training_dataset(config, VOCABULARY, prefetch=prefetch), 14), batches)


@pytest.mark.slow
def test_worker_processes_change_nothing_nor_does_restoring_between_them(config, batches):
    dataset = make_training_dataset(config, VOCABULARY, num_workers=2, prefetch=3)
    iterator = iter(dataset)
    got = [next(iterator) for _ in range(6)]
    state = json.loads(json.dumps(iterator.get_state()))
    got += [next(iterator) for _ in range(8)]
    iterator.close()
    assert_same(got, batches)
    assert all(type(array) is np.ndarray for array in batch_arrays(got[0]).values())
    alone = iter(make_training_dataset(config, VOCABULARY, prefetch=0))
    alone.set_state(state)
    assert_same(list(itertools.islice(alone, 8)), batches[6:])


def test_a_run_restored_at_any_step_goes_on_bitwise_the_same(config, batches):
    dataset = make_training_dataset(config, VOCABULARY, prefetch=0)
    iterator = iter(dataset)
    other = iter(make_training_dataset(config, VOCABULARY, prefetch=2))
    for step in range(12):
        state = json.loads(json.dumps(iterator.get_state()))
        assert state["step"] == step
        other.set_state(state)
        assert other.get_state() == state
        assert_same([next(other), next(other)], batches[step : step + 2])
        next(iterator)
    other.close()


def test_hosts_hold_consecutive_rows_of_the_same_batches(config, batches):
    hosts = [
        take(make_training_dataset(config, VOCABULARY, host_index=host, host_count=2), 5)
        for host in range(2)
    ]
    joined = [join_batches(shares) for shares in zip(*hosts, strict=True)]
    assert_same(joined, batches[:5])


def test_states_of_hosts_can_be_divided_among_others(config, batches):
    iterators = [
        iter(make_training_dataset(config, VOCABULARY, host_index=host, host_count=4))
        for host in range(4)
    ]
    for iterator in iterators:
        list(itertools.islice(iterator, 3))
    states = [iterator.get_state() for iterator in iterators]
    for iterator in iterators:
        iterator.close()
    alone = iter(make_training_dataset(config, VOCABULARY))
    alone.set_state(merge_states(states))
    assert_same([next(alone)], batches[3:4])
    with pytest.raises(ValueError, match="no stream 1"):
        alone.set_state(states[0])
    next(alone)
    with pytest.raises(ValueError, match="step"):
        merge_states([states[0], alone.get_state()])
    alone.close()


def test_the_aligned_examples_of_step_u_are_those_whose_draw_is_below_its_probability(
    config, batches
):
    # No utterance comes a second time before all have come once.
    assert sum(batch.speech_examples.sum() for batch in batches) < NUM_UTTERANCES
    random = DocumentRandom(config.seed)
    draws = [
        random.generator(DocumentKey(0, 0, record)).random() for record in range(NUM_UTTERANCES)
    ]
    for step, batch in enumerate(batches):
        probability = aligned_probability(CURRICULUM, step)
        chosen = [draws[speaker] < probability for speaker in speakers(batch)]
        assert batch.speech_examples.sum() == len(chosen) > 0
        assert batch.aligned_examples.sum() == sum(chosen)


def speakers(batch):
    """The utterance of each example with speech."""
    found = []
    for tokens, ids in zip(batch.tokens, batch.document_ids, strict=True):
        for document in range(1, ids.max() + 1):
            units = tokens[(ids == document) & VOCABULARY.is_unit(tokens)]
            if len(units):
                found.append(int(units[0]) - VOCABULARY.first_unit_id)
    return found


@pytest.mark.parametrize("strategy", ["static", "aligned"])
def test_rows_of_the_1b_shape_are_nearly_full(tmp_path, strategy):
    rng = np.random.default_rng(0)
    write_records(tmp_path / "speech", "speech", map(spoken_like_the_sample, range(200)), TOKENIZER)
    lengths = np.clip(rng.lognormal(np.log(300), 0.8, 200), 50, 2000).astype(int)
    texts = (TextDocument("t", np.full(n, 7, np.int32), n) for n in lengths.tolist())
    write_records(tmp_path / "text", "text", texts, TOKENIZER)
    config = DataConfig(
        sources=tuple(SourceConfig(str(tmp_path / kind), kind) for kind in ("speech", "text")),
        batch_size=2,
        patches_per_row=4096,
        tokens_per_row=5632,
        speech_text_ratio=0.5,
        ratio_unit="tokens",
        patching=PatchingConfig(strategy),
    )
    batches = take(make_training_dataset(config, VOCABULARY), 12)
    patch_ids = np.concatenate([batch.patch_ids for batch in batches])
    tokens = np.concatenate([batch.document_ids for batch in batches]) > 0
    patches = np.where(tokens, patch_ids, -1).max(axis=1) + 1
    assert patches.mean() >= 0.97 * 4096
    assert tokens.mean() >= 0.85


def spoken_like_the_sample(number):
    """35 to 50 words of 5.8 units in the mean, silences of 3.8 before, between and after."""
    rng = np.random.default_rng(number)
    num_words = int(rng.integers(35, 51))
    unit_counts = rng.geometric(1 / 3.8, 2 * num_words + 1).astype(np.int32)
    unit_counts[1::2] = 1 + rng.poisson(4.8, num_words)
    piece_counts = np.zeros(2 * num_words + 1, np.int32)
    piece_counts[1::2] = 1 + rng.poisson(0.3, num_words)
    return Utterance(
        f"u{number}",
        ("[SIL]", *(["word", "[SIL]"] * num_words)),
        np.full(piece_counts.sum(), 5, np.int32),
        piece_counts,
        rng.integers(0, 502, unit_counts.sum(), np.int32),
        unit_counts,
    )


@pytest.mark.parametrize("largest_gap", [0.0, 0.3])
def test_an_epoch_holds_every_unit_and_text_token_once(config, largest_gap):
    config = dataclasses.replace(
        config, num_epochs=1, interleaved_share=0.0, largest_gap=largest_gap, open_rows=2
    )
    rows = take(make_training_dataset(config, VOCABULARY), None)
    targets = np.concatenate([b.targets[b.loss_weights > 0] for b in rows])
    units = targets[VOCABULARY.is_unit(targets)] - VOCABULARY.first_unit_id
    expected = [len(utterance(number).units) for number in range(NUM_UTTERANCES)]
    np.testing.assert_array_equal(np.bincount(units), expected)
    text = targets[(targets >= 100) & (targets < VOCABULARY.text_size)] - 100
    lengths = np.random.default_rng(0).integers(5, 150, NUM_TEXTS)
    np.testing.assert_array_equal(np.bincount(text), lengths)
    assert (targets == VOCABULARY.eos_id).sum() == NUM_UTTERANCES + NUM_TEXTS


def test_utterances_without_words_are_learned_whole_in_static_patches(tmp_path, config):
    nothing, silence = np.zeros(0, np.int32), np.zeros(1, np.int32)
    records = [utterance(number) for number in range(20)]
    for number in (0, 5):  # unit n is in utterance n alone
        units, counts = np.full(37, number, np.int32), np.array([37], np.int32)
        records[number] = Utterance("w", ("[SIL]",), nothing, silence, units, counts)
    write_records(tmp_path / "speech", "speech", records, TOKENIZER)
    source = SourceConfig(str(tmp_path / "speech"), "speech")
    patching = PatchingConfig("aligned")
    config = dataclasses.replace(
        config, sources=(source,), num_epochs=1, patching=patching, largest_gap=1.0
    )
    learned = np.zeros(2, np.int64)
    for batch in take(make_training_dataset(config, VOCABULARY, prefetch=0), None):
        for place, number in enumerate((0, 5)):
            unit = VOCABULARY.first_unit_id + number
            learned[place] += ((batch.targets == unit) & (batch.loss_weights > 0)).sum()
            for tokens, patches in zip(batch.tokens, batch.patch_ids, strict=True):
                sizes = np.unique(patches[tokens == unit], return_counts=True)[1]
                assert not len(sizes) or sizes.max() == patching.patch_size
    assert learned.tolist() == [37, 37]


@pytest.mark.slow
def test_epochs_end_alike_with_workers(config):
    config = dataclasses.replace(config, num_epochs=1)
    expected = take(make_training_dataset(config, VOCABULARY), None)
    assert_same(take(make_training_dataset(config, VOCABULARY, num_workers=2), None), expected)


def test_every_token_is_a_patch_of_the_baseline(config):
    config = dataclasses.replace(
        config, patches_per_row=192, patching=PatchingConfig("none"), interleaved_share=0.0
    )
    for batch in take(make_training_dataset(config, VOCABULARY), 3):
        real = batch.document_ids > 0
        for row in range(4):
            np.testing.assert_array_equal(
                batch.patch_ids[row][real[row]], np.arange(real[row].sum())
            )
        assert batch.aligned_examples.sum() == 0


def test_another_configuration_refuses_the_state_but_moved_records_do_not(
    config, batches, tmp_path
):
    iterator = iter(make_training_dataset(config, VOCABULARY, prefetch=0))
    next(iterator)
    state = iterator.get_state()
    state = json.loads(json.dumps(state))
    patching = dataclasses.replace(config.patching, patch_size=3)
    for change, named in (
        ({"seed": 4}, f"seed is {config.seed} in the checkpoint and 4 here"),
        ({"patching": patching}, r"patching\.patch_size is \d in the checkpoint and 3 here"),
        ({"sources": config.sources[:1]}, r"sources\[1\] is .* and unknown here"),
    ):
        changed = dataclasses.replace(config, **change)
        with pytest.raises(ValueError, match=f"the run's data are others: {named}"):
            iter(make_training_dataset(changed, VOCABULARY)).set_state(state)
        with pytest.raises(ValueError, match="the configuration or the records have changed"):
            earlier = {name: value for name, value in state.items() if name != "settings"}
            iter(make_training_dataset(changed, VOCABULARY)).set_state(earlier)
    sources = []
    for source in config.sources:
        link = tmp_path / source.kind
        link.symlink_to(source.path)
        sources.append(dataclasses.replace(source, path=str(link)))
    moved = dataclasses.replace(config, sources=tuple(sources))
    iterator = iter(make_training_dataset(moved, VOCABULARY, prefetch=0))
    iterator.set_state(state)
    assert_same([next(iterator)], batches[1:2])


def test_a_state_goes_on_whatever_kind_its_numbers_were_written_as(config):
    config = dataclasses.replace(config, interleaved_share=1)
    iterator = iter(make_training_dataset(config, VOCABULARY, prefetch=0))
    state = json.loads(json.dumps(iterator.get_state()))
    # An int once, so that its text had another digest.
    state["settings"][0]["interleaved_share"] = int(state["settings"][0]["interleaved_share"])
    iterator.set_state({**state, "config": "the digest of 1, not of 1.0"})
    state["settings"][0]["interleaved_share"] = 0.5
    with pytest.raises(ValueError, match=r"interleaved_share is 0.5 in the checkpoint and 1.0"):
        iterator.set_state({**state, "config": "another"})


SPEECH_ONLY, TEXT_ONLY, TWO_TEXTS = "speech alone", "text alone", "two of text"

# A base, a setting, other values of it, and whether it plays no part in the batches.
CHANGES = [
    ("static", "patching.curriculum_end", 40, True),
    ("mixed", "patching.curriculum_end", 40, True),
    ("aligned", "patching.curriculum_end", 40, True),
    ("curriculum", "patching.curriculum_end", 40, False),
    ("curriculum", "patching.curriculum_start", 9, False),
    ("static", "patching.mixed_aligned_probability", 0.9, True),
    ("curriculum", "patching.mixed_aligned_probability", 0.9, True),
    ("mixed", "patching.mixed_aligned_probability", 0.9, False),
    ("static", "patching.silence", "merged", True),
    ("none", "patching.silence", "merged", True),
    ("aligned", "patching.silence", "merged", False),
    ("curriculum", "patching.silence", "merged", False),
    ("none", "patching.patch_size", 7, True),
    ("aligned", "patching.patch_size", 7, True),
    ("static", "patching.patch_size", 7, False),
    ("mixed", "patching.patch_size", 7, False),
    ("none", "patching.join_speech_mode", True, True),
    ("aligned", "patching.join_speech_mode", True, True),
    ("static", "patching.join_speech_mode", True, False),
    ("none", "visibility", "reference", True),
    ("static", "visibility", "reference", False),
    ("static", "speech_text_ratio", 3.0, False),
    (SPEECH_ONLY, "speech_text_ratio", 3.0, True),
    (SPEECH_ONLY, "ratio_unit", "words", True),
    ("static", "ratio_unit", "words", False),
    (SPEECH_ONLY, "interleaved_share", 0.3, False),
    ("asr", "interleaved_share", 0.3, True),
    (TEXT_ONLY, "interleaved_share", 0.3, True),
    (TEXT_ONLY, "visibility", "reference", True),
    (TEXT_ONLY, "patching.patch_size", 7, True),
    (TEXT_ONLY, "patching.strategy", "aligned", True),
    (TWO_TEXTS, "speech_text_ratio", 3.0, True),
    (TWO_TEXTS, "sources.0.weight", 9.0, False),
    ("static", "sources.0.weight", 9.0, True),
    ("static", "open_rows", 2, False),
    ("static", "largest_gap", 0.5, False),
    ("static", "num_epochs", 1, False),
    ("static", "seed", 4, False),
    ("static", "held_out_share", 0.5, False),
]


def base_of(config, name):
    if name in ("static", "mixed", "aligned", "curriculum"):
        return dataclasses.replace(config, patching=dataclasses.replace(CURRICULUM, strategy=name))
    speech, text = config.sources
    config = dataclasses.replace(config, patching=PatchingConfig())
    if name == "none":
        patching = PatchingConfig("none")
        return dataclasses.replace(config, patches_per_row=192, patching=patching)
    if name == "asr":
        return dataclasses.replace(config, sources=(speech,), task="asr")
    sources = {SPEECH_ONLY: (speech,), TEXT_ONLY: (text,), TWO_TEXTS: (text, text)}[name]
    return dataclasses.replace(config, sources=sources)


def change_setting(config, name, value):
    head, _, rest = name.partition(".")
    if head == "sources":
        number = int(rest.partition(".")[0])
        source = dataclasses.replace(config.sources[number], weight=value)
        sources = (*config.sources[:number], source, *config.sources[number + 1 :])
        return dataclasses.replace(config, sources=sources)
    if rest:
        value = dataclasses.replace(config.patching, **{rest: value})
    return dataclasses.replace(config, **{head: value})


@pytest.mark.parametrize(("base", "name", "value", "idle"), quick(CHANGES, *CHANGES[::3]))
def test_a_run_goes_on_with_another_setting_exactly_where_it_changes_no_batch(
    config, base, name, value, idle
):
    first = base_of(config, base)
    second = change_setting(first, name, value)
    datasets = [make_training_dataset(each, VOCABULARY, prefetch=0) for each in (first, second)]
    pairs = zip(*(take(dataset, 10) for dataset in datasets), strict=True)
    arrays = [map(batch_arrays, pair) for pair in pairs]
    same = all(np.array_equal(a[name], b[name]) for a, b in arrays for name in a)
    assert same is idle
    one, other = map(iter, datasets)
    next(one)
    state = json.loads(json.dumps(one.get_state()))
    # As earlier versions wrote it, idle settings and all.
    settings = [dataclasses.asdict(first), state["settings"][1]]
    for source, kept in zip(settings[0]["sources"], state["settings"][0]["sources"], strict=True):
        source["path"] = kept["path"]
    earlier = {**state, "config": "of all settings", "settings": json.loads(json.dumps(settings))}
    for found in (state, earlier):
        if idle:
            other.set_state(found)
            assert_same([next(other)], [next(iter_at(datasets[0], state))])
        else:
            with pytest.raises(ValueError, match="the run's data are others"):
                other.set_state(found)


def iter_at(dataset, state):
    iterator = iter(dataset)
    iterator.set_state(state)
    return iterator


# --- the end of the data


@pytest.mark.parametrize(
    "strategy", quick(["static", "aligned", "mixed", "curriculum", "none"], "mixed", "none")
)
@pytest.mark.parametrize(("epochs", "share"), [(1, 1.0), (3, 0.0), (2, 0.5)])
def test_the_number_of_steps_is_known_before_they_are_made(config, strategy, epochs, share):
    """To a sixth and two steps: the open rows at the end are not full."""
    base = base_of(config, strategy)
    changed = dataclasses.replace(
        base, batch_size=2, num_epochs=epochs, interleaved_share=share, held_out_share=0.2
    )
    dataset = make_training_dataset(changed, VOCABULARY)
    steps = len(take(dataset, None))
    assert abs(dataset.documents.estimate_steps() - steps) <= 2 + steps / 6
    endless = dataclasses.replace(changed, num_epochs=None)
    assert make_training_dataset(endless, VOCABULARY).documents.estimate_steps() is None


# --- processes


def test_a_worker_that_is_killed_ends_the_run_in_a_line_that_names_its_rows(config):
    iterator = iter(make_training_dataset(config, VOCABULARY, num_workers=2, prefetch=1))
    next(iterator)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    os.kill(workers[1].pid, signal.SIGKILL)
    with pytest.raises(
        ChildProcessError, match=r"the data worker of rows (0 … 1|2 … 3) was"
    ) as error:
        for _ in range(20):
            next(iterator)
    message = str(error.value)
    assert "signal SIGKILL" in message and "\n" not in message and len(message) < 300
    iterator.close()
    assert not [worker for worker in workers if worker.is_alive()]


@pytest.mark.slow
def test_an_error_in_a_worker_is_that_of_the_record(config, tmp_path):
    """A damaged record is named as in one process."""
    shutil.copytree(config.sources[0].path, tmp_path / "speech")
    (shard,) = (tmp_path / "speech").glob("*.array_record")
    contents = bytearray(shard.read_bytes())
    contents[64:4096] = bytes(4032)
    shard.write_bytes(contents)
    sources = (SourceConfig(str(tmp_path / "speech"), "speech"),)
    changed = dataclasses.replace(config, sources=sources)
    with pytest.raises(ValueError, match=rf"{shard.name}"):
        take(make_training_dataset(changed, VOCABULARY, num_workers=2), 20)


def test_sources_of_two_encoders_are_not_mixed(tmp_path):
    for number, encoder in enumerate(("a", "b", None)):
        write_records(
            tmp_path / f"{number}",
            "speech",
            map(utterance, range(5)),
            TOKENIZER,
            encoder_fingerprint=encoder and encoder * 64,
        )

    def encoder_of(*numbers):
        sources = tuple(SourceConfig(str(tmp_path / f"{n}"), "speech") for n in numbers)
        changed = DataConfig(sources, batch_size=1, patches_per_row=128, tokens_per_row=192)
        return make_training_dataset(changed, VOCABULARY).documents.encoder_fingerprint

    assert encoder_of(0) == encoder_of(0, 0) == "a" * 64
    assert encoder_of(2) is None and encoder_of(0, 2) is None
    with pytest.raises(ValueError, match=r"sources\[1\] has units of the encoder bbb"):
        encoder_of(0, 1)


def test_bad_arguments_are_named(config):
    for change, name in [
        ({"sources": ()}, "sources"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -1}, "seed"),
        ({"num_epochs": 0}, "num_epochs"),
        ({"patching": PatchingConfig("none")}, "patches_per_row"),
        ({"patches_per_row": 2}, "patches_per_row"),
    ]:
        with pytest.raises(ValueError, match=name):
            dataclasses.replace(config, **change)
    for arguments, name in [
        ({"num_workers": 3}, "num_workers is 3"),
        ({"num_workers": -1}, "num_workers"),
        ({"num_workers": 2, "host_count": 4}, "num_workers"),
        ({"host_count": 3}, "host_count"),
        ({"host_index": 1}, "host_index"),
        ({"num_workers": 1, "prefetch": 0}, "prefetch"),
        ({"prefetch": -1}, "prefetch"),
    ]:
        with pytest.raises(ValueError, match=name):
            make_training_dataset(config, VOCABULARY, **arguments)
    with pytest.raises(ValueError, match="num_epochs"):
        epoch = dataclasses.replace(config, num_epochs=1)
        make_training_dataset(epoch, VOCABULARY, host_count=2)


def records_in(batches):
    """Numbers of the utterances and of the texts that batches hold."""
    tokens = np.unique(np.concatenate([batch.tokens.ravel() for batch in batches]))
    units = tokens - VOCABULARY.first_unit_id
    return (
        {int(unit) for unit in units if 0 <= unit < NUM_UTTERANCES},
        {int(token) - 100 for token in tokens if 100 <= token < 100 + NUM_TEXTS},
    )


def test_training_never_sees_what_is_held_out_and_sees_all_else(config):
    """Whatever seed, epochs and hosts; an epoch has every other record."""
    sizes = (NUM_UTTERANCES, NUM_TEXTS)
    expected = [
        set(np.flatnonzero(held_out_mask(number, size, 0.2))) for number, size in enumerate(sizes)
    ]
    assert all(expected)
    for seed in (3, 4):
        changed = dataclasses.replace(
            config, seed=seed, held_out_share=0.2, num_epochs=2, interleaved_share=0.0
        )
        training = records_in(list(make_training_dataset(changed, VOCABULARY)))
        held_out = records_in(list(make_training_dataset(changed, VOCABULARY, held_out=True)))
        for number, size in enumerate(sizes):
            assert held_out[number] == expected[number]
            assert training[number] == set(range(size)) - expected[number]


def test_a_run_without_a_held_out_share_is_that_of_earlier_versions(config, batches):
    """Its state says nothing of the share, so that runs begun before go on."""
    iterator = iter(make_training_dataset(config, VOCABULARY))
    assert "held_out_share" not in iterator.get_state()["settings"][0]
    changed = dataclasses.replace(config, held_out_share=0.2)
    other = iter(make_training_dataset(changed, VOCABULARY))
    with pytest.raises(ValueError, match=r"held_out_share is unknown in the checkpoint and 0\.2"):
        other.set_state(iterator.get_state())
    for each in (iterator, other):
        each.close()


@pytest.mark.parametrize(("share", "held_out"), [(0.0, True), (1e-9, True), (1 - 1e-9, False)])
def test_a_part_without_records_is_an_error(config, share, held_out):
    changed = dataclasses.replace(config, held_out_share=share)
    with pytest.raises(ValueError, match="neither of them empty"):
        make_training_dataset(changed, VOCABULARY, held_out=held_out)
