"""Cases of speech: those of the oracle agree, altered ones differ or are refused by name."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import safetensors.numpy

from experiments.inspection.speech_cases import verify_case
from tests.binaries import run_binary

CASES = pathlib.Path(__file__).parents[2] / "testdata" / "speech"


@pytest.fixture
def hubert(tmp_path):
    return pathlib.Path(shutil.copytree(CASES / "tiny_hubert", tmp_path / "case"))


@pytest.fixture
def alignments(tmp_path):
    """A file of one unique path and of one among several."""
    log_probs = np.log(np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]], np.float32))
    even = np.log(np.full((2, 2), 0.5, np.float32))
    arrays = {"log_probs_0": log_probs, "targets_0": np.array([1, 1])}
    arrays |= {"score_0": np.float64(np.log([0.9, 0.8, 0.7]).sum())}
    arrays |= {"spans_0": np.array([[0, 1], [2, 3]])}
    arrays |= {"log_probs_1": even, "targets_1": np.array([1])}
    arrays |= {"score_1": np.float64(2 * np.log(0.5)), "spans_1": np.array([[-1, -1]])}
    np.savez(tmp_path / "ctc.npz", **arrays)
    return tmp_path / "ctc.npz"


def change(file, **changes):
    """Changes arrays, `/` as `__` in names; None removes one."""
    arrays = dict(np.load(file))
    for name, value in changes.items():
        name = name.replace("__", "/")
        arrays[name] = value(arrays.get(name))
        if arrays[name] is None:
            del arrays[name]
    np.savez(file, **arrays)


@pytest.mark.slow
def test_one_json_line_has_the_keys_of_what_was_compared(hubert):
    result = run_binary("experiments.verify_speech", f"--case={hubert}")
    assert result.returncode == 0, result.stderr
    (line,) = result.stdout.splitlines()
    found = json.loads(line)
    assert found.pop("units_equal") == 1 and found.pop("compared") == 4 * 5 + 2
    assert found.keys() == {"masked_hidden", "unmasked_hidden", "alone_hidden"}
    assert all(0 < x < 1e-4 for x in found.values())


@pytest.mark.slow
def test_a_case_with_a_head_has_logits_and_no_units():
    comparison = verify_case(CASES / "tiny_wav2vec2_ctc")
    places = ("masked", "unmasked", "alone")
    assert comparison.equal and comparison.compared == 20
    assert comparison.results.keys() == {
        f"{place}_{kind}" for place in places for kind in ("hidden", "logits")
    }


def altered(x):
    x = x.copy()
    x[0, 3, 5] += 0.01
    return x


def not_a_number(x):
    x = x.copy()
    x[0, 3, 5] = np.nan
    return x


@pytest.mark.slow
@pytest.mark.parametrize(
    "key, changes",
    [
        ("masked_hidden", {"masked__hidden_2": altered}),
        ("unmasked_hidden", {"unmasked__last": not_a_number}),
        ("alone_hidden", {"alone_1__hidden_0": altered}),
        ("alone_hidden", {"alone_0__hidden_3": lambda x: x * np.inf}),
    ],
)
def test_an_altered_state_is_a_difference_and_nothing_else_is(hubert, key, changes):
    change(hubert / "io.npz", **changes)
    comparison = verify_case(hubert)
    wrong = {name for name, x in comparison.results.items() if x > 1e-3 and name != "units_equal"}
    assert wrong == {key} and not comparison.equal
    assert json.loads(json.dumps(comparison.results)) == comparison.results  # no NaN


@pytest.mark.slow
def test_an_altered_weight_is_a_difference_everywhere_and_an_altered_unit_is_counted(hubert):
    change(hubert / "io.npz", alone_1__units=lambda x: (x + (np.arange(len(x)) == 2)) % 20)
    comparison = verify_case(hubert)
    margins = np.concatenate([np.load(hubert / "io.npz")[f"alone_{i}/unit_margin"] for i in (0, 1)])
    clear = int((margins > 1e-3).sum())
    assert comparison.results["units_equal"] == 1 - 1 / clear and not comparison.equal
    tensors = safetensors.numpy.load_file(hubert / "model.safetensors")
    tensors["feature_extractor.conv_layers.3.conv.weight"][0, 1, 2] += 0.1
    safetensors.numpy.save_file(tensors, hubert / "model.safetensors")
    results = verify_case(hubert).results
    places = ("masked", "unmasked", "alone")
    assert all(results[f"{place}_hidden"] > 1e-3 for place in places)
    result = run_binary("experiments.verify_speech", f"--case={hubert}")
    assert result.returncode == 4 and json.loads(result.stdout)["compared"] == 22


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"frames": lambda x: x - 1}, "frames is [26, 18], expected [27, 19], by the lengths"),
        pytest.param(
            {"masked__hidden_1": lambda _: None},
            "masked/hidden_1 is missing or one too many",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"masked__hidden_4": lambda _: np.zeros(3)},
            "masked/hidden_4 is missing or one too many",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"masked__hidden_1": lambda x: x[:, :20]},
            "masked/hidden_1 is 'float32 (2, 20, 24)'",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"unmasked__last": lambda x: x[..., :5]},
            "unmasked/last is 'float32 (2, 27, 5)'",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"alone_1__last": lambda x: x.astype(int)},
            "alone_1/last is 'int64 (1, 19, 24)'",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"masked__logits": lambda _: np.zeros(3)},
            "has masked/logits, and the model no lm_head",
            marks=pytest.mark.slow,
        ),
        ({"alone_2__last": lambda _: np.zeros(3)}, "has alone_2, expected masked, unmasked and"),
        ({"attention_mask": lambda x: x[:, ::-1]}, "attention_mask is 'int64 (2, 9000)'"),
        ({"attention_mask": lambda _: None}, "frames is [27, 19], expected [27, 27]"),
        ({"input_values": lambda _: None}, "has no input_values"),
        ({"input_values": lambda x: x * np.nan}, "input_values is nan, expected numbers"),
        pytest.param(
            {"alone_0__units": lambda x: x[:5]},
            "alone_0/units is 'int64 (5,)', expected numbers (27",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"alone_0__unit_margin": lambda x: x * np.nan},
            "alone_0/unit_margin is nan, expected",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"unit_layer": lambda _: np.int64(4)},
            "unit_layer is 4, expected an integer, 0 … 3",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"unit_layer": lambda _: None},
            "is without unit_layer, expected all of them",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused_by_name(hubert, changes, message):
    change(hubert / "io.npz", **changes)
    with pytest.raises(ValueError) as error:
        verify_case(hubert)
    assert f"{hubert / 'io.npz'}" in str(error.value) and message in str(error.value)


def test_alignments_are_compared_by_scores_and_by_spans_where_the_path_is_unique(alignments):
    comparison = verify_case(alignments)
    assert comparison.equal and comparison.compared == 3
    assert comparison.results["alignment_spans_equal"] == 1
    assert comparison.results["alignment_score"] < 1e-6
    change(alignments, log_probs_1=lambda x: x * 100, score_1=lambda x: x * 100 + 1e-3)
    assert not verify_case(alignments).equal  # however large a score is
    change(alignments, spans_0=lambda x: x + 1)
    assert verify_case(alignments).results["alignment_spans_equal"] == 0
    change(alignments, score_1=lambda x: x - 0.011)
    assert verify_case(alignments).results["alignment_score"] == pytest.approx(0.01, rel=1e-3)
    change(alignments, score_1=lambda x: x * np.nan)
    assert verify_case(alignments).results["alignment_score"] > 1e38
    change(
        alignments, targets_1=lambda _: np.array([1, 1]), spans_1=lambda _: np.zeros((2, 2), int)
    )
    assert verify_case(alignments).results["alignment_score"] > 1e38  # there is no such path


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"score_1": lambda _: None}, "is without score_1, expected log_probs_i, targets_i"),
        ({"spans_0": lambda x: x[:1]}, "shapes of log_probs, targets, score, spans_0 is"),
        ({"log_probs_0": lambda x: x * np.nan}, "log_probs is nan, expected numbers"),
        ({"targets_0": lambda _: np.array([1, 7])}, "targets holds 7, expected 0 … 1 without"),
    ],
)
def test_alignments_that_do_not_fit_are_refused_by_name(alignments, changes, message):
    change(alignments, **changes)
    with pytest.raises(ValueError) as error:
        verify_case(alignments)
    assert str(alignments) in str(error.value) and message in str(error.value)


def test_a_case_of_nothing_is_refused(tmp_path):
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(ValueError, match="expected an archive of arrays"):
        verify_case(tmp_path / "one.npy")
    with pytest.raises(OSError, match=r"none"):
        verify_case(tmp_path / "none")
