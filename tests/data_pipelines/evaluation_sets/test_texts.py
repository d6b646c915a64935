"""HellaSwag and StoryCloze as they are published in text."""

import json

import pytest

from data_pipelines.evaluation_sets.texts import read_texts
from tests.data_pipelines.evaluation_sets.layouts import (
    STORY_HEADER,
    hellaswag,
    write_hellaswag,
    write_storycloze,
)


def build(draft):
    return draft.build([[i] for i in range(len(draft.sources))])


def test_hellaswag_is_a_prompt_and_four_endings(tmp_path):
    found = read_texts(write_hellaswag(tmp_path / "val.jsonl", 3))
    assert (found.name, found.count, found.stated) == ("HellaSwag", 3, (10_042,))
    item = build(found.drafts[2])
    prompt = "A man is sitting on roof 2. he"
    assert item["prompt"] == {"text": prompt, "units": [0]}
    assert item["endings"][3] == {"text": "starts pulling.", "units": [4]}
    assert (item["id"], item["set"], item["label"]) == ("2", "HellaSwag", 2)
    assert found.drafts[2].sources == (prompt, *hellaswag(2)["endings"])
    with pytest.raises(ValueError, match=r"val.jsonl: .* HellaSwag is 3, expected 10,042"):
        found.check_count("val.jsonl")


def test_storycloze_is_the_same_from_csv_and_from_hugging_face(tmp_path):
    published = read_texts(write_storycloze(tmp_path / "test.csv"))
    assert published.stated == (1_871,)
    item = build(published.drafts[1])
    assert item["prompt"]["text"] == "Ann sat. Ann, of course, ran. She fell. She rose."
    assert [x["text"] for x in item["endings"]] == ["She left.", "It rained."]
    assert (item["id"], item["set"], item["label"]) == ("1-abc", "StoryCloze", 1)
    names = {"InputStoryid": "story_id", "AnswerRightEnding": "answer_right_ending"}
    names |= {f"InputSentence{i}": f"input_sentence_{i}" for i in range(1, 5)}
    names |= {f"RandomFifthSentenceQuiz{i}": f"sentence_quiz{i}" for i in (1, 2)}
    text = (tmp_path / "test.csv").read_text()
    for old, new in names.items():
        text = text.replace(old, new)
    (tmp_path / "hub.csv").write_text(text)
    assert [build(x) for x in read_texts(tmp_path / "hub.csv").drafts] == [
        build(x) for x in published.drafts
    ]


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("How to sew [title] Buy thread.", "How to sew. Buy thread."),
        ("[header] How to sew [title] Buy.[step] Go.  Now", "How to sew. Buy. Go. Now"),
        ("Sew! [title] Buy [substeps] it.", "Sew! Buy it."),
        ("[title] Buy it.", "Buy it."),
        ("It costs [3] cents.", "It costs [3] cents."),
    ],
)
def test_marks_of_hellaswag_are_not_spoken(tmp_path, text, spoken):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(hellaswag(0, ctx=text)) + "\n")
    (draft,) = read_texts(path).drafts
    assert draft.sources[0] == build(draft)["prompt"]["text"] == spoken


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": 4}, "label is 4, expected 0 … 3"),
        ({"label": None}, "label is None, expected 0 … 3"),
        ({"label": True}, "label is True"),
        ({"label": ""}, "label is '', expected"),
        ({"endings": ["a"]}, r"endings is \['a'\], expected two texts"),
        ({"endings": "[1"}, r"endings is '\[1', expected a JSON list of texts"),
        ({"endings": [1, 2]}, r"endings is \[1, 2\]"),
        ({"ctx": " "}, "no ctx, expected one"),
        ({"ctx": 1.5}, "ctx is 1.5, expected text"),
    ],
)
def test_lines_that_are_not_as_published_are_named(tmp_path, changes, message):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(hellaswag(0)) + "\n" + json.dumps(hellaswag(1, **changes)) + "\n")
    with pytest.raises(ValueError, match=f"a.jsonl:2: {message}") as error:
        read_texts(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 450


@pytest.mark.parametrize("label", ["0", "3"])
def test_endings_of_storycloze_are_counted_from_1(tmp_path, label):
    path = write_storycloze(tmp_path / "a.csv", 1)
    path.write_text(path.read_text().replace("rained.,1", f"rained.,{label}"))
    with pytest.raises(ValueError, match=f"AnswerRightEnding is '{label}', expected 1 … 2"):
        read_texts(path)


def test_files_of_other_columns_and_stories_twice_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(ValueError, match=r"a.jsonl has the columns text, expected ctx, endings"):
        read_texts(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"a.jsonl has no stories"):
        read_texts(tmp_path / "a.jsonl")
    path = write_storycloze(tmp_path / "a.csv", 1)
    path.write_text(path.read_text() + path.read_text().removeprefix(STORY_HEADER + "\n"))
    with pytest.raises(ValueError, match=r"a.csv:3: the story '0-abc' is there twice"):
        read_texts(path)
