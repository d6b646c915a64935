"""Recognizers and synthesizers that are commands or Python functions."""

import numpy as np
import pytest

from data_pipelines.speech.registry import open_recognizer, open_synthesizer
from lst_jax.speech.interfaces import TimedText

SOUND = np.linspace(-0.5, 0.5, 8000, dtype=np.float32)


def count(waveforms):
    return [f"heard {len(waveform)}" for waveform in waveforms]


def timed(waveforms):
    return [(TimedText("a", 0.0, 0.1, -0.5),) for _ in waveforms]


def ramp(texts):
    return [SOUND[: 100 * len(text)] for text in texts]


def test_a_command_hears_wav_files_of_its_rate():
    # Of a wav file without samples there are 44 bytes, and two for each sample.
    recognizer = open_recognizer("command:sh -c 'wc -c < {wav}',rate=8000")
    assert recognizer.sample_rate == 8000
    (heard,) = recognizer.recognize([SOUND])
    assert heard == (TimedText("16044", 0.0, 1.0),)
    (nothing,) = open_recognizer("command:true {wav}").recognize([SOUND])
    assert nothing == ()


def test_a_function_hears_waveforms():
    name = f"python:{__name__}"
    heard = open_recognizer(f"{name}:count,rate=8000").recognize([SOUND, SOUND[:4]])
    assert [[word.text for word in words] for words in heard] == [["heard", "8000"], ["heard", "4"]]
    assert heard[0][1].end_s == 1.0
    assert open_recognizer(f"{name}:timed").recognize([SOUND])[0][0].score == -0.5


def test_a_command_speaks_into_a_wav_file(tmp_path):
    copier = tmp_path / "copy.py"
    copier.write_text(
        "import sys, wave\n"
        "text = sys.argv[2] if len(sys.argv) > 2 else sys.stdin.read()\n"
        "with wave.open(sys.argv[1], 'wb') as file:\n"
        "    file.setnchannels(1), file.setsampwidth(2), file.setframerate(8000)\n"
        "    file.writeframes(bytes(200 * len(text)))\n"
    )
    for line in (f"python3 {copier} {{wav}} {{text}}", f"python3 {copier} {{wav}}"):
        synthesizer = open_synthesizer(f"command:{line},rate=16000")
        # What a text holds is no field, no shell's and no option.
        sounds = synthesizer.synthesize(["a {wav}", "$(exit 1)"])
        assert [len(sound) for sound in sounds] == [2 * 700, 2 * 900]
    with pytest.raises(ValueError, match="wrote no wav file of 'a'"):
        open_synthesizer("command:true {wav}").synthesize(["a"])


def test_a_function_speaks():
    synthesizer = open_synthesizer(f"python:{__name__}:ramp")
    assert [len(sound) for sound in synthesizer.synthesize(["ab", "c"])] == [200, 100]
    with pytest.raises(ValueError, match="text is ' ', expected words"):
        synthesizer.synthesize([" "])


def test_espeak_speaks():
    slow, fast = (open_synthesizer(f"espeak:gmw/en-US+f2,rate={rate}") for rate in (100, 300))
    (long,), (short,) = slow.synthesize(["one two"]), fast.synthesize(["one two"])
    assert long.dtype == np.float32 and len(long) > 1.5 * len(short)


@pytest.mark.parametrize(
    ("opener", "text", "message"),
    [
        (open_recognizer, "command:transcribe", "command is 'transcribe', expected one with {wav}"),
        (open_recognizer, "command", "command is '', expected a command line"),
        (open_recognizer, "command:a 'b {wav}", "No closing quotation"),
        (open_recognizer, "command:a {wav},rat=8", "an option of command is 'rat', expected rate"),
        (open_recognizer, "python:os:nothing", "expected package.module:function"),
        (open_recognizer, "python:os:sep", "expected a function"),
        (open_recognizer, f"python:{'x.' * 3000}y:z", "expected package.module:function"),
        (open_synthesizer, "python", "expected package.module:function"),
        (open_synthesizer, "command:a {wav},rate=0", "rate of command is '0', expected an integer"),
        (open_synthesizer, "espeak:xx/yy", "no such voice"),
        (open_synthesizer, "espeak,rate=9", "Voice.rate is 9"),
    ],
)
def test_what_cannot_be_opened_is_refused_in_one_line(opener, text, message):
    with pytest.raises(ValueError, match=message) as error:
        opener(text)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("function", ["builtins:len", "builtins:reversed", "builtins:repr"])
def test_functions_that_answer_something_else_are_refused(function):
    with pytest.raises(ValueError, match="expected"):
        open_recognizer(f"python:{function}").recognize([SOUND])
    with pytest.raises(ValueError, match="expected"):
        open_synthesizer(f"python:{function}").synthesize(["a"])


def test_a_command_that_fails_is_named_with_its_last_line():
    recognizer = open_recognizer("command:sh -c 'echo one >&2; echo two >&2; exit 3' {wav}")
    with pytest.raises(ValueError, match="'sh' failed with status 3: two"):
        recognizer.recognize([SOUND])
