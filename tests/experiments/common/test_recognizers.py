"""What recognizers give: a text for each utterance, or a clear error."""

import numpy as np
import pytest

from experiments.common.recognizers import command_recognizer, function_recognizer, hear


class Vocoder:
    """Knows the units 0 and 1; a sample for each."""

    unit_count, frame_rate, sample_rate = 2, 25.0, 16_000

    def decode(self, units):
        assert units.size
        return np.zeros(len(units), np.float32)


def speech(*units):
    return np.array(units, np.int32)


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
        hear(function_recognizer("builtins:len"), [speech(1)])


def test_a_command_gets_the_units_that_the_vocoder_has():
    # Of a wav file without samples there are 44 bytes, and two for each sample.
    listen = command_recognizer("wc -c {wav}", Vocoder())
    sizes = [text.split()[:1] for text in hear(listen, [speech(0, 7, 1), speech(7)])]
    assert sizes == [["48"], []]


def test_a_command_may_read_units_and_print_anything():
    assert hear(command_recognizer("cat", None), [speech(3, 17)]) == ["3 17"]
    (text,) = hear(command_recognizer(r"printf '\351t\351'", None), [speech(1)])
    assert text == "\N{REPLACEMENT CHARACTER}t\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("command", ["", "a 'b"])
def test_a_command_that_cannot_be_parsed_is_named(command):
    with pytest.raises(ValueError, match="recognizer_command is "):
        command_recognizer(command, None)
