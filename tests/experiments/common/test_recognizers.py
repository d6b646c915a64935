"""What recognizers give: a text for each utterance, or a clear error."""

import numpy as np
import pytest

from experiments.common.recognizers import hear, make_recognizer


class Vocoder:
    """Knows the units 0 and 1; a sample for each."""

    unit_count, frame_rate, sample_rate, encoder_fingerprint = 2, 25.0, 16_000, None

    def decode(self, units):
        assert all(sequence.size for sequence in units)
        return [np.zeros(len(sequence), np.float32) for sequence in units]


def speech(*units):
    return np.array(units, np.int32)


def open_one(specification, vocoder=None):
    return make_recognizer(specification, lambda path: lambda units: [path] * len(units), vocoder)


def test_nothing_is_heard_where_nothing_is_said():
    given = []

    def recognizer(utterances):
        given.extend(utterances)
        return ["a", "b"]

    assert hear(recognizer, [speech(), speech(1), speech(), speech(2)]) == ["", "a", "", "b"]
    assert [units.tolist() for units in given] == [[1], [2]]
    assert hear(recognizer, [speech()]) == [""]


@pytest.mark.parametrize("texts", [["a"], ["a", "b", "c"], ["a", 1], 2, None, iter("ab")])
def test_anything_but_a_text_for_each_utterance_is_refused(texts):
    with pytest.raises(ValueError, match="expected a list of 2 texts"):
        hear(lambda utterances: texts, [speech(1), speech(2)])


def test_a_python_function_that_is_no_recognizer_is_refused():
    with pytest.raises(ValueError, match="expected a list of 1 texts"):
        hear(open_one("python:builtins:len,takes=units"), [speech(1)])


def test_a_checkpoint_hears_units():
    assert hear(open_one("lst:runs/asr"), [speech(1)]) == ["runs/asr"]


@pytest.mark.parametrize(("rate", "size"), [(16_000, "48"), (32_000, "52")])
def test_a_recognizer_of_sound_hears_the_units_that_the_vocoder_has(rate, size):
    # Of a wav file without samples there are 44 bytes, and two for each sample.
    listen = open_one(f"command:wc -c {{wav}},rate={rate}", Vocoder())
    sizes = [text.split()[:1] for text in hear(listen, [speech(0, 7, 1), speech(7)])]
    assert sizes == [[size], []]


def test_a_command_may_read_units_and_print_anything():
    assert hear(open_one("command:cat,takes=units"), [speech(3, 17)]) == ["3 17"]
    (text,) = hear(open_one(r"command:printf '\351t\351',takes=units"), [speech(1)])
    assert text == "\N{REPLACEMENT CHARACTER}t\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        ("command:,takes=units", "command is '', expected a command line"),
        ("command:a 'b,takes=units", "command is .*quotation"),
        ("command:cat,takes=letters", "takes of command is 'letters', expected units"),
        ("lst", "expected lst:CHECKPOINT"),
        ("lst:a,rows=3", "an option of lst is 'rows', expected none"),
        ("python:builtins:len", "--vocoder is None, expected one: this recognizer hears sound"),
        ("lts:a", "expected one of the kinds"),
    ],
)
def test_a_recognizer_that_cannot_be_made_is_named(specification, message):
    with pytest.raises(ValueError, match=message):
        open_one(specification)
