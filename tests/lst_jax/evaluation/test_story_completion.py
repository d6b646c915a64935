"""Properties of story completion: example files, documents of the four directions, accuracy."""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from lst_jax.checkpoints.train_state import init_state
from lst_jax.config import LSTConfig, baseline_of
from lst_jax.evaluation.story_completion import (
    DIRECTIONS,
    Passage,
    StoryExample,
    build_continuations,
    evaluate_story_completion,
    format_table,
    read_story_examples,
)
from lst_jax.inference.scoring import ScoringShape
from lst_jax.inference.trained_model import TrainedModel
from lst_jax.model.models import build_model
from lst_jax.patching import PatchingConfig
from lst_jax.sharding import MeshConfig, make_mesh
from lst_jax.unit_encoding import UnitEncoding
from lst_jax.vocabulary import TextTokenizer
from tests.marks import quick

UNIT_COUNT = 9
WORDS = [
    *("ann", "lost", "her", "key", "and", "looked", "for", "it"),
    *("under", "the", "bed", "until", "she", "found", "a", "coin"),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "words"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS)] * 20),
        model_prefix=str(path),
        vocab_size=45,
        model_type="bpe",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return TextTokenizer(path.with_suffix(".model"))


@pytest.fixture(scope="module")
def vocabulary(tokenizer):
    return tokenizer.vocabulary(UNIT_COUNT)


def fields(**changes):
    """A good line of an example file."""
    return {
        "id": "17",
        "set": "StoryCloze",
        "prompt": {"text": "ann lost her key", "units": [1, 1, 2, 8, 0]},
        "endings": [
            {"text": "she looked for it", "units": [3, 4]},
            {"text": "she found a bed", "units": [5, 6, 7]},
        ],
        "label": 1,
        **changes,
    }


def write(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def make_example(seed=0, num_endings=2, set_name="StoryCloze", **changes):
    rng = np.random.default_rng(seed)

    def passage():
        text = " ".join(rng.choice(WORDS, rng.integers(1, 6)))
        return Passage(text, rng.integers(0, UNIT_COUNT, rng.integers(1, 12)).astype(np.int32))

    values = {
        "example_id": str(seed),
        "set_name": set_name,
        "prompt": passage(),
        "endings": tuple(passage() for _ in range(num_endings)),
        "label": int(rng.integers(num_endings)),
        "origin": f"examples.jsonl:{seed + 1}",
    }
    return StoryExample(**values | changes)


# Files


def test_examples_come_out_as_they_went_in(tmp_path):
    path = write(tmp_path / "a.jsonl", fields(), fields(id="18", label=0))
    first, second = read_story_examples([path], UNIT_COUNT)
    assert (first.example_id, first.set_name, first.label) == ("17", "StoryCloze", 1)
    assert (second.example_id, second.label) == ("18", 0)
    assert first.prompt.text == "ann lost her key"
    assert [ending.text for ending in first.endings] == ["she looked for it", "she found a bed"]
    assert first.prompt.units.tolist() == [1, 1, 2, 8, 0]
    assert [ending.units.tolist() for ending in first.endings] == [[3, 4], [5, 6, 7]]
    assert first.prompt.units.dtype == np.int32
    assert first.origin == f"{path}:1"


def test_sets_and_numbers_of_endings_are_free(tmp_path):
    ending = {"text": "she looked"}
    first = write(tmp_path / "a.jsonl", fields(set="mine", endings=[ending] * 5, label=4))
    second = write(tmp_path / "b.jsonl", fields(), fields(set="mine", id="18"))
    examples = read_story_examples([first, second], UNIT_COUNT)
    assert [example.set_name for example in examples] == ["mine", "StoryCloze", "mine"]
    assert [len(example.endings) for example in examples] == [5, 2, 2]


def test_text_and_units_may_be_absent_or_null_and_other_fields_are_ignored(tmp_path):
    line = fields(prompt={"text": None, "units": [1]}, topic="keys")
    line["endings"] = [{"units": [3], "voice": 1}, {"units": [4]}]
    (example,) = read_story_examples([write(tmp_path / "a.jsonl", line)], UNIT_COUNT)
    assert example.prompt.text is None
    assert example.endings[0].text is None


ENDING = {"text": "a", "units": [1]}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"id": 17}, "id is 17; expected a string"),
        ({"id": ""}, 'id is ""'),
        ({"set": None}, "set is null"),
        ({"label": 2}, r"label is 2; expected 0 … 1"),
        ({"label": -1}, "label is -1"),
        ({"label": True}, "label is true; expected an integer"),
        ({"label": 1.0}, "label is 1.0; expected an integer"),
        ({"endings": []}, "endings has 0 entries; expected two or more"),
        ({"endings": [ENDING]}, "endings has 1 entries"),
        ({"endings": ENDING}, "endings is .* expected a list"),
        ({"endings": [ENDING, "b"]}, r'endings\[1\] is "b"; expected an object'),
        ({"endings": [ENDING, {}]}, r"endings\[1\] has neither text nor units"),
        ({"endings": [ENDING, {"text": " \n"}]}, r"endings\[1\].text is .* with words"),
        ({"endings": [ENDING, {"units": []}]}, r"endings\[1\].units is \[\]"),
        ({"prompt": {"text": ""}}, 'prompt.text is ""'),
        ({"prompt": {"text": 3}}, "prompt.text is 3"),
        ({"prompt": "ann"}, 'prompt is "ann"; expected an object'),
        ({"prompt": {"units": "1 2"}}, 'prompt.units is "1 2"; expected a list'),
        ({"prompt": {"units": [1, 9]}}, r"prompt.units\[1\] is 9; expected an integer 0 … 8"),
        ({"prompt": {"units": [-1]}}, r"prompt.units\[0\] is -1"),
        ({"prompt": {"units": [10**30]}}, r"prompt.units\[0\] is 1000"),
        ({"prompt": {"units": [1.5]}}, r"prompt.units\[0\] is 1.5"),
        ({"prompt": {"units": [True]}}, r"prompt.units\[0\] is true"),
        ({"prompt": {"units": [[1]]}}, r"prompt.units\[0\] is \[1\]"),
        ({"prompt": {"units": [float("nan")]}}, "not JSON: NaN is no number"),
    ],
)
def test_bad_fields_are_named_with_file_and_line(tmp_path, changes, named):
    path = write(tmp_path / "a.jsonl", fields(id="0"), fields(**changes))
    with pytest.raises(ValueError, match=rf"a.jsonl:2: {named}"):
        read_story_examples([path], UNIT_COUNT)


@pytest.mark.parametrize("name", ["id", "set", "prompt", "endings", "label"])
def test_missing_fields_are_named(tmp_path, name):
    line = fields()
    del line[name]
    with pytest.raises(ValueError, match=f"a.jsonl:1: {name} is missing; expected"):
        read_story_examples([write(tmp_path / "a.jsonl", line)], UNIT_COUNT)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (b"", "not JSON"),
        (b'{"id": ', "not JSON: .*, column 8"),
        (b'{"id": "\xff"}', "not UTF-8"),
        (b"[1, 2]", r"not a JSON object: found \[1, 2\]"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"label": ' + b"9" * 5000 + b"}", ".* has 5000 digits"),
        (b'{"label": NaN}', "not JSON: NaN is no number"),
        (b'{"label": 1e999}', "number too large: '1e999'"),
        (json.dumps(fields()).encode()[:-1] + b', "label": 0}', "key twice: 'label'"),
        (b'{"prompt": {"text": "a", "text": "b"}}', "key twice: 'text'"),
        (json.dumps(fields(label=10**4200)).encode(), ".* has 4201 digits"),
        (json.dumps(fields(label=10**3000)).encode(), r"label is 10+\.\.\.; expected 0"),
        (json.dumps(fields(id="\ud800")).encode(), "id is .*; expected Unicode"),
        (json.dumps(fields(prompt={"text": "\ud800"})).encode(), r"prompt\.text is .*Unicode"),
    ],
)
def test_lines_that_are_no_examples_are_named(tmp_path, line, named):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(fields()).encode() + b"\n" + line + b"\n")
    with pytest.raises(ValueError, match=f"a.jsonl:2: {named}") as error:
        read_story_examples([path], UNIT_COUNT)
    assert len(str(error.value)) < 300 and "\n" not in str(error.value)


NAMES = st.sampled_from(["id", "set", "prompt", "endings", "text", "units"]) | st.text(max_size=3)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(NAMES, values, max_size=5),
    max_leaves=12,
).map(lambda value: json.dumps(value).encode())


@settings(max_examples=150, deadline=None)
@given(st.binary(min_size=1, max_size=80) | JSON_VALUES)
def test_any_other_bytes_are_refused_with_file_and_line(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "hostile.jsonl"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"hostile.jsonl(:\d+: | is UTF-16)"):
        read_story_examples([path], UNIT_COUNT)


def test_ids_repeat_across_sets_but_not_within_one(tmp_path):
    first = write(tmp_path / "a.jsonl", fields(), fields(set="TopicStoryCloze"))
    assert len(read_story_examples([first], UNIT_COUNT)) == 2
    second = write(tmp_path / "b.jsonl", fields(id="18"), fields())
    with pytest.raises(ValueError, match=r"b.jsonl:2: id '17' .* already used in .*a.jsonl:1"):
        read_story_examples([first, second], UNIT_COUNT)


def test_empty_and_missing_files_are_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.touch()
    with pytest.raises(ValueError, match=r"a.jsonl: the file is empty"):
        read_story_examples([path], UNIT_COUNT)
    with pytest.raises(FileNotFoundError, match=r"b.jsonl"):
        read_story_examples([tmp_path / "b.jsonl"], UNIT_COUNT)
    with pytest.raises(ValueError, match="unit_count is 0"):
        read_story_examples([path], 0)


# Documents


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_documents_are_bos_mode_prompt_then_a_mode_token_only_where_it_changes(
    direction, vocabulary, tokenizer
):
    example = make_example(3, num_endings=3)
    prompt_modality, ending_modality = direction.split("-")
    modes = {"S": vocabulary.speech_mode_id, "T": vocabulary.text_mode_id}

    def encode(passage, modality):
        if modality == "S":
            return vocabulary.units_to_ids(passage.units).tolist()
        return tokenizer.encode(passage.text).tolist()

    expected = [vocabulary.bos_id, modes[prompt_modality]]
    expected += encode(example.prompt, prompt_modality)
    if prompt_modality != ending_modality:
        expected.append(modes[ending_modality])
    continuations = build_continuations(example, direction, vocabulary, tokenizer)
    assert len(continuations) == 3
    for continuation, ending in zip(continuations, example.endings, strict=True):
        assert continuation.prompt.tolist() == expected
        assert continuation.ending.tolist() == encode(ending, ending_modality)


def test_joined_units_compete_as_their_ids(vocabulary, tokenizer):
    example = make_example(3)
    said = example.prompt.units[:2].tolist()
    units = UnitEncoding(True, 1.0, (tuple(said),))
    joined = dataclasses.replace(vocabulary, units=units)
    plain, merged = (
        build_continuations(example, "S-S", v, tokenizer) for v in (vocabulary, joined)
    )
    for one, other in zip(plain, merged, strict=True):
        for ids, expected in ((other.prompt[2:], one.prompt[2:]), (other.ending, one.ending)):
            expected = vocabulary.ids_to_units(expected)
            assert ids.tolist() == joined.units_to_ids(expected).tolist()
    assert merged[0].prompt[2] == vocabulary.size


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["", " ", "\n", "  "]))
def test_text_after_text_is_the_encoding_of_the_whole(vocabulary, tokenizer, seed, space):
    example = make_example(seed)
    padded = [Passage(space + ending.text + space, None) for ending in example.endings]
    story = make_example(
        seed, prompt=Passage(example.prompt.text + space, None), endings=tuple(padded)
    )
    for continuation, ending in zip(
        build_continuations(story, "T-T", vocabulary, tokenizer), example.endings, strict=True
    ):
        whole = np.concatenate([continuation.prompt[2:], continuation.ending])
        assert whole.tolist() == tokenizer.encode(f"{example.prompt.text} {ending.text}").tolist()


@pytest.mark.parametrize(
    ("changes", "direction", "named"),
    [
        ({"prompt": Passage("ann", None)}, "S-T", "prompt, for direction S-T: it has no units"),
        (
            {"endings": (Passage("ann", None), Passage(None, np.ones(1, np.int32)))},
            "T-T",
            r"endings\[1\], for direction T-T: it has no text",
        ),
        ({"prompt": Passage(None, np.array([9]))}, "S-S", "prompt, .* 9, expected 0 … 8"),
        ({"prompt": Passage("\ud800", None)}, "T-T", "prompt, .* not valid Unicode"),
        ({"prompt": Passage("\x01", None)}, "T-T", "prompt, .* has no pieces"),
    ],
)
def test_what_a_direction_needs_and_lacks_is_named_with_its_place(
    changes, direction, named, vocabulary, tokenizer
):
    example = make_example(4, **changes)
    with pytest.raises(ValueError, match=rf"examples.jsonl:5: example '4', {named}"):
        build_continuations(example, direction, vocabulary, tokenizer)


@pytest.mark.parametrize("direction", ["S→S", "", "s-s", "S-S-S", "S"])
def test_unknown_directions_are_named(direction, vocabulary, tokenizer):
    with pytest.raises(ValueError, match="expected one of S-S, T-T, S-T, T-S"):
        build_continuations(make_example(), direction, vocabulary, tokenizer)


# Accuracy


@pytest.fixture(scope="module", params=quick(["lst", "baseline"], "baseline"))
def evaluate(request, tokenizer, vocabulary):
    config = LSTConfig(
        vocab_size=vocabulary.size,
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
    patching = PatchingConfig("curriculum" if is_lst else "none")
    mesh = make_mesh(MeshConfig(data=2, fsdp=2), jax.devices()[:4])
    model = build_model(config)
    params = init_state(config, optax.sgd(0.1), 0, mesh).params

    def run(examples, scale=1.0, **options):
        scaled = jax.tree.map(lambda leaf: leaf * scale, params)
        return evaluate_story_completion(
            TrainedModel(model, scaled, mesh, vocabulary, patching, tokenizer=tokenizer),
            examples,
            shape=ScoringShape(
                batch_rows=4, patches_per_row=128, tokens_per_row=256 if is_lst else 128
            ),
            **options,
        )

    return run


def test_table_counts_what_the_scores_say(evaluate):
    examples = [make_example(seed, 2 + seed % 3, f"set{seed % 2}") for seed in range(20)]
    results = evaluate(examples)
    assert [(entry.set_name, entry.group) for entry in results.table] == [
        (name, direction) for name in ("set0", "set1") for direction in DIRECTIONS
    ]
    for entry in results.table:
        group = [
            scores
            for scores in results.scores
            if (scores.set_name, scores.group) == (entry.set_name, entry.group)
        ]
        assert entry.n == len(group) == 10
        right = sum(np.argmax(scores.log_probabilities) == scores.label for scores in group)
        assert entry.accuracy == pytest.approx(right / 10)
        right = sum(np.argmax(scores.normalized) == scores.label for scores in group)
        assert entry.normalized_accuracy == pytest.approx(right / 10)
        chance = np.mean([1 / len(scores.log_probabilities) for scores in group])
        assert entry.chance == pytest.approx(chance)
        assert entry.interval[0] <= entry.accuracy <= entry.interval[1]
    by_id = {(scores.example_id, scores.group): scores for scores in results.scores}
    for example in examples:
        units = tuple(len(ending.units) for ending in example.endings)
        assert by_id[example.example_id, "T-S"].token_counts == units


def test_scores_do_not_depend_on_what_else_is_evaluated(evaluate):
    examples = [make_example(seed) for seed in range(8)]
    together = evaluate(examples)
    alone = evaluate(examples[5:6], directions=["T-S"])
    (expected,) = [s for s in together.scores if (s.example_id, s.group) == ("5", "T-S")]
    assert alone.scores[0].log_probabilities == pytest.approx(expected.log_probabilities, abs=1e-4)


def test_moving_the_right_ending_moves_its_score(evaluate):
    example = make_example(11, 4, label=0)
    turned = make_example(11, 4, label=3, endings=(*example.endings[1:], example.endings[0]))
    first, second = (evaluate([e], directions=["S-S"]) for e in (example, turned))
    assert first.table[0].accuracy == second.table[0].accuracy


def test_a_model_that_knows_nothing_is_at_chance_by_its_ties(evaluate):
    # Zero weights give every token the same probability, so endings of equal length tie.
    units = [np.array([i, i + 1, 0], np.int32) for i in range(4)]
    endings = tuple(Passage(None, unit) for unit in units)
    examples = [make_example(seed, 4, endings=endings, label=seed % 4) for seed in range(8)]
    (entry,) = evaluate(examples, scale=0.0, directions=["S-S"]).table
    assert entry.accuracy == entry.normalized_accuracy == entry.chance == 0.25


def test_equal_endings_share_the_credit(evaluate):
    ending = Passage("she found it", np.array([1, 2], np.int32))
    examples = [make_example(seed, endings=(ending, ending), label=1) for seed in range(6)]
    for entry in evaluate(examples).table:
        assert entry.accuracy == entry.normalized_accuracy == 0.5


def test_table_is_aligned_and_json_holds_everything(evaluate):
    examples = [
        make_example(seed, set_name="a long set name" * (seed % 2) or "x") for seed in range(4)
    ]
    results = evaluate(examples)
    lines = format_table(results).splitlines()
    assert len(lines) == 1 + 2 * 4
    assert len({len(line) for line in lines}) == 1
    assert "S→T" in lines[3]
    values = json.loads(json.dumps(results.as_dict(with_scores=True)))
    assert len(values["results"]) == 8
    assert len(values["scores"]) == 16
    assert set(values["results"][0]) == {
        *("set_name", "direction", "n", "chance", "accuracy", "interval"),
        *("normalized_accuracy", "normalized_interval"),
    }
    assert "scores" not in results.as_dict(with_scores=False)


@pytest.mark.parametrize("directions", [[], ["S-S", "S-S"]])
def test_directions_are_given_once_each(evaluate, directions):
    with pytest.raises(ValueError, match="directions is"):
        evaluate([make_example()], directions=directions)


def test_no_examples_are_refused(evaluate):
    with pytest.raises(ValueError, match="examples is empty"):
        evaluate([])
