"""Properties of minimal pairs: files, the documents that compete, accuracy by set and category."""

import json

import jax
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lst_jax.checkpoints.train_state import init_state
from lst_jax.config import LSTConfig, baseline_of
from lst_jax.evaluation import choices
from lst_jax.evaluation.choices import ChoiceScores, format_table, summarize
from lst_jax.evaluation.minimal_pairs import (
    KIND,
    SpeechPair,
    build_continuations,
    check_submission,
    evaluate_minimal_pairs,
    format_submission,
    read_speech_pairs,
)
from lst_jax.evaluation.statistics import wilson_interval
from lst_jax.inference.scoring import ScoringShape
from lst_jax.inference.trained_model import TrainedModel
from lst_jax.model.models import build_model
from lst_jax.patching import PatchingConfig
from lst_jax.sharding import MeshConfig, make_mesh
from lst_jax.vocabulary import Vocabulary
from tests.marks import quick

UNIT_COUNT = 9
VOCABULARY = Vocabulary(text_size=20, bos_id=1, eos_id=2, unit_count=UNIT_COUNT)


def fields(**changes):
    """A good line of a file."""
    return {
        "id": "17-en-US-A",
        "set": "sWUGGY",
        "category": "oov",
        "members": [{"units": [3, 4, 8]}, {"units": [3, 0]}],
        "correct": 1,
        **changes,
    }


def write(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def make_pair(seed=0, *, set_name="sWUGGY", category=None, **changes):
    rng = np.random.default_rng(seed)

    def member():
        return rng.integers(0, UNIT_COUNT, rng.integers(2, 12)).astype(np.int32)

    values = {
        "example_id": str(seed),
        "set_name": set_name,
        "category": category,
        "members": (member(), member()),
        "correct": int(rng.integers(2)),
        "origin": f"pairs.jsonl:{seed + 1}",
    }
    return SpeechPair(**values | changes)


# Files


def test_pairs_come_out_as_they_went_in(tmp_path):
    plain = fields(id="18", set="sBLIMP", correct=0, category=None, voice="A")
    plain["members"][1]["text"] = "other keys play no part"
    bare = fields(id="19")
    del bare["category"]
    path = write(tmp_path / "a.jsonl", fields(), plain, bare)
    first, second, third = read_speech_pairs([path], UNIT_COUNT)
    assert (first.example_id, first.set_name, first.category) == ("17-en-US-A", "sWUGGY", "oov")
    assert [member.tolist() for member in first.members] == [[3, 4, 8], [3, 0]]
    assert all(member.dtype == np.int32 for member in first.members)
    assert (first.correct, second.correct) == (1, 0)
    assert second.category is third.category is None
    assert (first.origin, second.origin) == (f"{path}:1", f"{path}:2")


def test_ids_repeat_across_sets_but_not_within_one(tmp_path):
    first = write(tmp_path / "a.jsonl", fields(), fields(set="sBLIMP"))
    assert len(read_speech_pairs([first], UNIT_COUNT)) == 2
    second = write(tmp_path / "b.jsonl", fields(id="18"), fields())
    with pytest.raises(ValueError, match=r"b.jsonl:2: id '17-en-US-A' .* used in .*a.jsonl:1"):
        read_speech_pairs([first, second], UNIT_COUNT)


MEMBER = {"units": [1]}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"id": 17}, "id is 17; expected a string"),
        ({"set": ""}, 'set is ""; expected a string, not empty'),
        ({"category": ""}, 'category is ""; expected a string, not empty'),
        ({"category": 3}, "category is 3; expected a string"),
        ({"correct": 2}, "correct is 2; expected 0 or 1"),
        ({"correct": -1}, "correct is -1"),
        ({"correct": True}, "correct is true; expected an integer"),
        ({"correct": None}, "correct is null; expected an integer"),
        ({"members": MEMBER}, "members is .* expected a list"),
        ({"members": [MEMBER]}, "members has 1 entries; expected two"),
        ({"members": [MEMBER] * 3}, "members has 3 entries; expected two"),
        ({"members": [MEMBER, [1, 2]]}, r"members\[1\] is \[1, 2\]; expected an object"),
        ({"members": [{"text": "a"}, MEMBER]}, r"members\[0\].units is missing; expected a list"),
        ({"members": [MEMBER, {"units": []}]}, r"members\[1\].units is \[\]; .* not empty"),
        ({"members": [MEMBER, {"units": None}]}, r"members\[1\].units is null"),
        ({"members": [MEMBER, {"units": "1 2"}]}, r'members\[1\].units is "1 2"'),
        ({"members": [MEMBER, {"units": [1, 9]}]}, r"units\[1\] is 9; expected an integer 0 … 8"),
        ({"members": [{"units": [True]}, MEMBER]}, r"members\[0\].units\[0\] is true"),
        ({"members": [{"units": [1.0]}, MEMBER]}, r"members\[0\].units\[0\] is 1.0"),
    ],
)
def test_bad_fields_are_named_with_file_and_line(tmp_path, changes, named):
    path = write(tmp_path / "a.jsonl", fields(id="0"), fields(**changes))
    with pytest.raises(ValueError, match=rf"a.jsonl:2: .*{named}"):
        read_speech_pairs([path], UNIT_COUNT)


@pytest.mark.parametrize("name", ["id", "set", "members", "correct"])
def test_missing_fields_are_named(tmp_path, name):
    line = fields()
    del line[name]
    with pytest.raises(ValueError, match=f"a.jsonl:1: {name} is missing; expected"):
        read_speech_pairs([write(tmp_path / "a.jsonl", line)], UNIT_COUNT)


NAMES = st.sampled_from([*fields(), "units"]) | st.text(max_size=3)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(NAMES, values, max_size=5),
    max_leaves=12,
)
HOSTILE = st.binary(min_size=1, max_size=80) | JSON_VALUES.map(lambda x: json.dumps(x).encode())
BAD_FIELD = st.tuples(st.sampled_from(["id", "set", "members", "correct"]), JSON_VALUES)


@settings(max_examples=100, deadline=None)
@example(b"\xfe\xff")
@given(HOSTILE)
def test_any_other_bytes_are_refused_with_file_and_line(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "hostile.jsonl"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"hostile.jsonl(:\d+: | is UTF-16)"):
        read_speech_pairs([path], UNIT_COUNT)


@settings(max_examples=100, deadline=None)
@given(BAD_FIELD)
def test_a_line_with_one_odd_value_is_a_pair_or_refused_with_its_place(tmp_path_factory, change):
    path = write(tmp_path_factory.getbasetemp() / "odd.jsonl", fields(**dict([change])))
    try:
        (pair,) = read_speech_pairs([path], UNIT_COUNT)
    except ValueError as error:
        assert str(error).startswith(f"{path}:1: ")
    else:
        assert pair.correct in (0, 1) and min(member.size for member in pair.members) > 0


def test_empty_and_missing_files_are_named(tmp_path):
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(ValueError, match=r"a.jsonl: the file is empty"):
        read_speech_pairs([tmp_path / "a.jsonl"], UNIT_COUNT)
    with pytest.raises(FileNotFoundError, match=r"b.jsonl"):
        read_speech_pairs([tmp_path / "b.jsonl"], UNIT_COUNT)
    with pytest.raises(ValueError, match="unit_count is 0"):
        read_speech_pairs([tmp_path / "a.jsonl"], 0)


# Documents


def test_every_unit_is_scored_after_bos_and_the_speech_token():
    pair = make_pair(3)
    for member, continuation in zip(
        pair.members, build_continuations(pair, VOCABULARY), strict=True
    ):
        assert continuation.prompt.tolist() == [VOCABULARY.bos_id, VOCABULARY.speech_mode_id]
        assert VOCABULARY.ids_to_units(continuation.ending).tolist() == member.tolist()


def test_a_unit_that_the_model_lacks_is_named_with_its_place():
    members = (np.array([1], np.int32), np.array([9], np.int32))
    with pytest.raises(ValueError, match=r"pairs.jsonl:1: pair '0': .* 9, expected 0 … 8"):
        build_continuations(make_pair(members=members), VOCABULARY)


# Accuracy


def scores(first, second, correct, *, set_name="a", category=None, counts=(1, 1)):
    return ChoiceScores(set_name, "0", category, correct, (first, second), counts)


def test_the_likelier_member_wins_and_ties_count_half():
    (result,) = summarize(
        [
            scores(-1.0, -2.0, 0),
            scores(-1.0, -2.0, 1),
            scores(-2.0, -1.0, 1),
            scores(-3.0, -3.0, 0),
        ],
        KIND,
    ).table
    assert (result.set_name, result.group, result.n) == ("a", None, 4)
    assert result.accuracy == 2.5 / 4
    assert result.interval == wilson_interval(2.5, 4)


def test_per_unit_a_long_member_can_win_that_loses_by_the_sum():
    (result,) = summarize([scores(-4.0, -3.0, 0, counts=(4, 2))], KIND).table
    assert (result.accuracy, result.normalized_accuracy) == (0, 1)
    assert result.normalized_interval == wilson_interval(1, 1)


def test_a_set_comes_before_its_categories_and_counts_pairs_without_one_too():
    results = summarize(
        [
            scores(-1.0, -2.0, 0, category="oov"),
            scores(-1.0, -2.0, 1, set_name="b"),
            scores(-1.0, -2.0, 1),
            scores(-1.0, -2.0, 0, category="4"),
            scores(-1.0, -2.0, 1, category="oov"),
        ],
        KIND,
    )
    found = [(entry.set_name, entry.group, entry.n, entry.accuracy) for entry in results.table]
    assert found == [
        ("a", None, 4, 0.5),
        ("a", "oov", 2, 0.5),
        ("a", "4", 1, 1.0),
        ("b", None, 1, 0.0),
    ]
    lines = format_table(results).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [line.split()[:3] for line in lines[1:3]] == [["a", "all", "50.0"], ["a", "oov", "50.0"]]


def test_a_scorer_that_knows_how_likely_units_are_finds_the_likelier_members(monkeypatch):
    """Units are independent and unit u has probability ∝ 2^−u, so the sums are known by hand."""
    log_p = np.log(0.5) * np.arange(UNIT_COUNT) - np.log(2 - 0.5 ** (UNIT_COUNT - 1))

    def score(trained, continuations, **options):
        return np.array([log_p[c.ending - VOCABULARY.first_unit_id].sum() for c in continuations])

    monkeypatch.setattr(choices, "score_continuations", score)

    def pair(name, first, second, correct):
        members = (np.array(first, np.int32), np.array(second, np.int32))
        return make_pair(example_id=name, members=members, correct=correct)

    results = evaluate_minimal_pairs(
        TrainedModel(None, None, None, VOCABULARY, PatchingConfig("none")),
        [
            pair("likelier", [0, 1], [0, 2], 0),
            pair("unlikelier", [0, 1], [0, 2], 1),
            pair("same in another order", [3, 5], [5, 3], 1),
            pair("one very unlikely unit", [8], [1, 1, 1], 1),
            pair("more units, each likelier", [0, 0, 0, 0, 0], [3], 0),
        ],
    )
    assert results.scores[0].log_probabilities == pytest.approx(
        (log_p[[0, 1]].sum(), log_p[[0, 2]].sum())
    )
    assert results.scores[3].token_counts == (1, 3)
    (result,) = results.table
    assert result.accuracy == (1 + 0 + 0.5 + 1 + 0) / 5
    assert result.normalized_accuracy == (1 + 0 + 0.5 + 1 + 1) / 5


@pytest.fixture(scope="module", params=quick(["lst", "baseline"], "baseline"))
def evaluate(request):
    config = LSTConfig(
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
    is_lst = request.param == "lst"
    config = config if is_lst else baseline_of(config)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2), jax.devices()[:4])
    model = build_model(config)
    params = init_state(config, optax.sgd(0.1), 0, mesh).params

    def run(pairs, scale=1.0):
        scaled = jax.tree.map(lambda leaf: leaf * scale, params)
        patching = PatchingConfig("curriculum" if is_lst else "none")
        return evaluate_minimal_pairs(
            TrainedModel(model, scaled, mesh, VOCABULARY, patching),
            pairs,
            shape=ScoringShape(
                batch_rows=4, patches_per_row=128, tokens_per_row=256 if is_lst else 128
            ),
        )

    return run


def test_exchanging_the_members_changes_nothing(evaluate):
    pairs = [make_pair(seed, category=f"c{seed % 2}") for seed in range(20)]
    turned = [
        make_pair(seed, category=p.category, members=p.members[::-1], correct=1 - p.correct)
        for seed, p in enumerate(pairs)
    ]
    first, second = evaluate(pairs), evaluate(turned)
    assert first.table == second.table
    for one, other in zip(first.scores, second.scores, strict=True):
        assert one.log_probabilities == pytest.approx(other.log_probabilities[::-1], abs=1e-4)


def test_calling_the_other_member_right_gives_the_rest(evaluate):
    pairs = [make_pair(seed) for seed in range(20)]
    inverted = [make_pair(seed, correct=1 - pair.correct) for seed, pair in enumerate(pairs)]
    (one,), (other,) = evaluate(pairs).table, evaluate(inverted).table
    assert one.accuracy + other.accuracy == pytest.approx(1)
    assert one.normalized_accuracy + other.normalized_accuracy == pytest.approx(1)


def test_scores_do_not_depend_on_what_else_is_evaluated(evaluate):
    pairs = [make_pair(seed) for seed in range(8)]
    together = evaluate(pairs).scores[5]
    (alone,) = evaluate(pairs[5:6]).scores
    assert alone.log_probabilities == pytest.approx(together.log_probabilities, abs=1e-4)


def test_an_untrained_model_is_at_chance_where_right_members_are_drawn_at_random(evaluate):
    (result,) = evaluate([make_pair(seed) for seed in range(200)]).table
    assert result.interval[0] < 0.5 < result.interval[1]


def test_a_model_that_knows_nothing_is_at_chance_by_its_ties(evaluate):
    # Zero weights give every token the same probability, so members of equal length tie.
    members = (np.array([1, 2, 3], np.int32), np.array([1, 2, 4], np.int32))
    (result,) = evaluate([make_pair(i, members=members) for i in range(6)], scale=0.0).table
    assert result.accuracy == result.normalized_accuracy == 0.5


def test_members_with_the_same_units_tie(evaluate):
    members = (np.array([1, 2], np.int32),) * 2
    (result,) = evaluate([make_pair(i, members=members) for i in range(3)]).table
    assert result.accuracy == result.normalized_accuracy == 0.5


def test_json_holds_everything(evaluate):
    results = evaluate([make_pair(0, category="x"), make_pair(1)])
    values = json.loads(json.dumps(results.as_dict(with_scores=True)))
    assert [entry["category"] for entry in values["results"]] == [None, "x"]
    assert set(values["results"][0]) == {
        *("set_name", "category", "n", "chance", "accuracy", "interval"),
        *("normalized_accuracy", "normalized_interval"),
    }
    assert len(values["scores"]) == 2
    assert "scores" not in results.as_dict(with_scores=False)


def test_a_submission_has_a_line_for_every_file_with_its_sum_or_mean(tmp_path):
    names = iter("abcd")

    def member():
        return {"units": [1, 2], "file": f"lexical/dev/{next(names)}"}

    def pairs(*lines):
        return read_speech_pairs([write(tmp_path / "a.jsonl", *lines)], UNIT_COUNT)

    read = pairs(*(fields(id=name, pair="1", members=[member(), member()]) for name in "xy"))
    check_submission(read)
    scored = [
        ChoiceScores("sWUGGY", "x", None, 1, (-3.0, -1.5), (2, 1), "1"),
        ChoiceScores("sWUGGY", "y", None, 1, (-1.0, -0.5), (2, 5), "1"),
    ]
    results = summarize(scored, KIND)
    sums = format_submission(read, results, "sum")
    means = format_submission(read, results, "mean")
    assert sums == {"lexical/dev.txt": "a -3.0\nb -1.5\nc -1.0\nd -0.5\n"}
    assert means == {"lexical/dev.txt": "a -1.5\nb -1.5\nc -0.5\nd -0.1\n"}
    assert results.table[0].n == 1 and results.table[0].accuracy == 1
    twice = fields(id="z", members=[{"units": [1], "file": "lexical/dev/a"}] * 2)
    with pytest.raises(ValueError, match=r"a.jsonl:1: file 'lexical/dev/a' is already"):
        check_submission(pairs(twice))
    with pytest.raises(ValueError, match=r"a.jsonl:1: a member has no file"):
        check_submission(pairs(fields()))
    for file in ("a", "../dev/a", "lexical/dev/../a", "lexical/dev/a b", 3):
        with pytest.raises(ValueError, match=r"members\[0\].file is .*; expected TASK"):
            pairs(fields(members=[{"units": [1], "file": file}] * 2))


def test_a_member_alone_has_a_score_for_a_submission_and_no_accuracy(tmp_path):
    line = {"id": "a", "set": "s", "members": [{"units": [1, 2], "file": "lexical/test/a"}]}
    path = write(tmp_path / "a.jsonl", line)
    with pytest.raises(ValueError, match="members has 1 entries; expected two: one alone is for"):
        read_speech_pairs([path], UNIT_COUNT)
    read = read_speech_pairs([path], UNIT_COUNT, unpaired=True)
    check_submission(read)
    assert len(build_continuations(read[0], VOCABULARY)) == 1
    results = summarize([ChoiceScores("s", "a", None, read[0].correct, (-3.0,), (2,))], KIND)
    assert results.table == ()
    assert format_submission(read, results, "mean") == {"lexical/test.txt": "a -1.5\n"}
    assert results.as_dict(with_scores=True)["scores"][0]["correct"] is None


def test_no_pairs_are_refused(evaluate):
    with pytest.raises(ValueError, match="pairs is empty"):
        evaluate([])
