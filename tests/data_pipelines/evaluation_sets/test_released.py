"""Released evaluation sets: which recordings are a pair, and what is not as it was published."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.evaluation_sets.released import read_released
from tests.data_pipelines.evaluation_sets.layouts import gold_rows, write_gold, write_zerospeech


@pytest.fixture
def root(tmp_path):
    write_zerospeech(tmp_path, sound=False)
    return tmp_path


def items(found):
    return [draft.build([[1], [2]]) for draft in found.drafts]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    root = tmp_path_factory.mktemp("zerospeech")
    write_zerospeech(root, sound=False)
    return root


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(8)), st.sampled_from(["lexical", "syntactic"]))
def test_rows_are_paired_by_name_and_voice_in_any_order(shared, order, task):
    kind = {"lexical": "swuggy", "syntactic": "sblimp"}[task]
    rows = gold_rows(task, 2, "AB")
    write_gold(shared / task / "dev", task, [rows[i] for i in order])
    found = read_released(kind, shared, "dev")
    assert found.count == 2  # over voices
    for draft, item in zip(found.drafts, items(found), strict=True):
        right, wrong = (path.stem for path in draft.sources)
        assert right[:-1] == wrong[:-1] and (right[-1], wrong[-1]) == ("y", "x")
        assert item["correct"] == 0 and item["members"][0]["file"] == f"{task}/dev/{right}"
        assert item["id"] == f"{item['pair']}/{right[2]}"
        category = "agreement" if task == "syntactic" else ("oov", "6-20")[int(right[1])]
        assert item["category"] == category
    assert len({item["id"] for item in items(found)}) == 4
    assert len({item["pair"] for item in items(found)}) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda rows: rows[1:],
            "gold.csv:2: 'l0Ax' has no partner .* expected one with correct = 1",
        ),
        (
            lambda rows: [*rows, rows[0]],
            "gold.csv:10: another row of '0' by voice 'A' has correct = 1",
        ),
        (lambda rows: [], "gold.csv has no rows, expected pairs"),
        (lambda rows: [[*rows[0][:-1], "yes"]], "gold.csv:2: correct is 'yes', expected 0 or 1"),
        (lambda rows: [["0", "none", *rows[0][2:]]], "filename is 'none', expected a recording"),
        (lambda rows: [["0", "../dev/l0Ay", *rows[0][2:]]], "filename is '../dev/l0Ay', expected"),
        (lambda rows: [rows[0][:-1]], "gold.csv:2 has 7 cells, expected 8"),
        (lambda rows: [[*rows[0][:3], "-1", *rows[0][4:]], rows[1]], "frequency is '-1', expected"),
    ],
)
def test_gold_files_whose_pairs_do_not_match_are_refused(root, change, message):
    write_gold(root / "lexical/dev", "lexical", change(gold_rows("lexical", 2, "AB")))
    with pytest.raises(ValueError, match=message) as error:
        read_released("swuggy", root, "dev")
    assert "\n" not in str(error.value)


def test_words_are_in_the_bands_of_the_challenge(root):
    bands = {"": None, "oov": "oov", "0": "oov", "0.5": "oov", "1": "1-5", "5": "1-5", "5.5": "1-5"}
    bands |= {"6": "6-20", "20": "6-20", "21": "21-100", "100": "21-100", "101": ">100"}
    for text, band in bands.items():
        rows = [[*row[:3], text, *row[4:]] for row in gold_rows("lexical", 1, "A")]
        write_gold(root / "lexical/dev", "lexical", rows)
        (item,) = items(read_released("swuggy", root, "dev"))
        assert item["category"] == band


def test_a_missing_column_or_file_is_named(root):
    path = root / "lexical/dev/gold.csv"
    path.write_text(path.read_text().replace("voice", "speaker", 1))
    with pytest.raises(ValueError, match=r"gold.csv has the columns .*speaker.*, expected voice"):
        read_released("swuggy", root, "dev")
    path.write_text('id,"filename')
    with pytest.raises(ValueError, match=r"gold.csv:1 is no row of a CSV file"):
        read_released("swuggy", root, "dev")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"gold.csv"):
        read_released("swuggy", root, "dev")
    with pytest.raises(FileNotFoundError, match=r"lexical/test: no such folder"):
        read_released("swuggy", root, "test")


def test_the_fingerprint_is_of_what_says_which_items_there_are(root):
    before = read_released("swuggy", root, "dev").fingerprint
    assert before == read_released("swuggy", root, "dev").fingerprint and len(before) == 64
    write_gold(root / "lexical/dev", "lexical", gold_rows("lexical", 1, "AB"))
    assert read_released("swuggy", root, "dev").fingerprint != before


@pytest.mark.parametrize("kind", ["swuggy", "sblimp"])
def test_other_counts_than_the_papers_state_are_refused(root, kind):
    found = read_released(kind, root, "dev")
    with pytest.raises(ValueError, match=r"is 2, expected .*000|6,300.*--subset takes a part"):
        found.check_count(root)


def test_recordings_of_a_test_split_without_gold_are_items_alone(tmp_path):
    write_zerospeech(tmp_path, sound=False, split="test")
    (tmp_path / "lexical/test/gold.csv").unlink()
    found = read_released("swuggy", tmp_path, "test")
    found.check_count(tmp_path)  # nobody states how many recordings there are
    names = sorted(path.stem for path in (tmp_path / "lexical/test").glob("*.wav"))
    assert found.count == len(names) == 8
    for name, draft in zip(names, found.drafts, strict=True):
        member = {"units": [1], "file": f"lexical/test/{name}"}
        assert draft.build([[1]]) == {"id": name, "set": "sWUGGY", "members": [member]}
        assert draft.sources == (tmp_path / f"lexical/test/{name}.wav",)
    (tmp_path / "syntactic/dev").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"syntactic/dev/gold.csv"):
        read_released("sblimp", tmp_path, "dev")
    (tmp_path / "empty/lexical/test").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"lexical/test holds no recording"):
        read_released("swuggy", tmp_path / "empty", "test")


def test_stories_are_pairs_of_whole_recordings(tmp_path):
    names = ("10", "9", "sub/9")
    for name in (f"{x}_{kind}" for x in names for kind in ("correct", "incorrect")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.wav").touch()
    found = read_released("topicstorycloze", tmp_path, "test")
    first, second, third = items(found)
    assert (found.name, found.count, found.stated) == ("TopicStoryCloze", 3, (1_871,))
    assert first == {
        **{"id": "9", "set": "TopicStoryCloze", "correct": 0},
        "members": [{"units": [1]}, {"units": [2]}],
    }
    assert (second["id"], third["id"]) == ("10", "sub/9")
    assert [path.stem for path in found.drafts[2].sources] == ["9_correct", "9_incorrect"]
    (tmp_path / "9_correct.flac").touch()
    with pytest.raises(ValueError, match=r"has '9_correct' twice"):
        read_released("storycloze", tmp_path, "test")
    (tmp_path / "9_correct.flac").unlink()
    (tmp_path / "11_correct.wav").touch()
    with pytest.raises(ValueError, match=r"11_correct.wav has no partner"):
        read_released("storycloze", tmp_path, "test")
    (tmp_path / "11_right.wav").touch()
    with pytest.raises(ValueError, match=r"has '11_right.wav', expected N_correct.wav"):
        read_released("storycloze", tmp_path, "test")
    with pytest.raises(ValueError, match="--split is 'dev', expected test of StoryCloze"):
        read_released("storycloze", tmp_path, "dev")
