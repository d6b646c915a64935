"""What binaries refuse: in one line, soon, in little memory, and with nothing left behind."""

import copy
import json
import os
import random
import re
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipelines.speech.audio import write_wav
from data_pipelines.speech.units import BUILT_IN
from tests.experiments.forked import ROOT, Binaries
from tests.marks import quick
from tests.test_version1 import VERSION1

# Every binary and its flags that hold text but no path. What else holds text is a path, so that a
# new flag must be put here or be defined by `experiments.common.paths`.
TEXTS = {
    "analyze_patches": set(),
    "aot_compile": {"gin_binding", "topology", "mesh", "xla_option"},
    "build_corpus": set(),
    "compare_losses": {"gin_a", "gin_b", "gin_binding", "mesh_a", "mesh_b"},
    "convert_set": set(),
    "demo": {"gin_binding"},
    "describe": {"gin_binding", "mesh"},
    "evaluate": {"coordinator_address", "directions"},
    "evaluate_asr": {"coordinator_address"},
    "evaluate_pairs": {"coordinator_address"},
    "evaluate_speech_quality": set(),
    "evaluate_tts": {"coordinator_address"},
    "fetch_speech": set(),
    "fit_units": set(),
    "generate": {"text", "units"},
    "launch": {
        *("gin_binding", "topology", "volume", "name", "image", "env", "project", "zone"),
        "cluster",
    },
    "make_spoken_set": set(),
    "port_checkpoint": set(),
    "prepare_data": set(),
    "prepare_speech": {"shard"},
    "study": {"cell", "cells", "device", "gin_binding", "mesh", "topology"},
    "train": {"coordinator_address", "gin_binding", "profile_steps"},
    "train_ctc": {"gin_binding"},
    "train_tokenizer": set(),
    "train_unit_vocabulary": set(),
    "train_vocoder": {"gin_binding"},
    "verify_reference": set(),
    "verify_speech": set(),
}
FILES_OF_BINARIES = [path for path in ROOT.glob("experiments/*.py") if "__" not in path.name]
PACKAGES = [path.parent for path in ROOT.glob("experiments/*/__main__.py")]
NAMES = sorted(path.stem for path in FILES_OF_BINARIES + PACKAGES)
NO_PATHS = (
    *("", "gs://bucket/a", "s3://bucket/a", "hdfs://a", "file:///a", "GS://a", "gs:/a"),
    *("x" * 256, "x/" * 3000, b"\xff", "~nobody-has-this-name/a"),
)
RUN, TOKENIZER = VERSION1 / "lst_run", VERSION1 / "tokenizer.model"
MODEL = [f"--checkpoint={RUN}", f"--tokenizer={TOKENIZER}"]
# Arguments that are refused for their last reason alone, as late as can be.
REFUSED = {
    "analyze_patches": [*MODEL, "--records=none", "--output=out"],
    "aot_compile": ["--topology=v9:9x9", "--gin_file=models/tiny.gin"],
    "build_corpus": ["--test_items=0", "--text_stories=0", "--output=out"],
    "compare_losses": ["--gin_file=none.gin"],
    "convert_set": ["--set=swuggy", "--input=none", "--encoder=mel:none", "--output=out"],
    "demo": ["--workdir=out", "--gin.NUM_STEPS=x"],
    "describe": ["--gin_file=models/tiny.gin", "--gin_file=none.gin"],
    "evaluate": [*MODEL, "--data=none", "--output=out"],
    "evaluate_asr": [*MODEL, "--data=none", "--output=out"],
    "evaluate_pairs": [*MODEL, "--data=none", "--output=out"],
    "evaluate_speech_quality": [
        *("--data=none", "--output=out", "--recognizer=python:os:getcwd,takes=units"),
    ],
    "evaluate_tts": [
        *MODEL,
        "--data=none",
        "--output=out",
        "--recognizer=python:os:getcwd,takes=units",
    ],
    "fetch_speech": ["--output=out", "--sdist=none"],
    "fit_units": ["--audio=none", "--features=hubert:none,layer=1", "--output=out.json"],
    "generate": [*MODEL, "--units=999999", "--output=out"],
    "launch": [
        *("--target=slurm", "--topology=h100:1x8", "--workdir=/mnt/lst/out", "--dry_run"),
        "--gin_file=none.gin",
    ],
    "make_spoken_set": [
        *("--input=none", "--synthesizer=espeak", "--encoder=mel:none", "--output=out"),
    ],
    "port_checkpoint": [f"--input={RUN}", "--output=out", "--to=safetensors", "--tokenizer=none"],
    "prepare_data": ["--input=none", "--format=text", f"--tokenizer={TOKENIZER}", "--output=out"],
    "prepare_speech": [
        *("--input=none", "--format=folder", f"--tokenizer={TOKENIZER}", "--output=out"),
    ],
    "study": ["plan", "--gin_file=studies/pilot.gin", "--gin.CORPUS=none", "--workdir=out"],
    "train": [
        *(f"--gin_file={name}.gin" for name in ("models/tiny", "data/speech_text", "runs/tiny")),
        f"--gin.TOKENIZER={TOKENIZER}",
        f"--gin.SPEECH_RECORDS={VERSION1}/speech_records",
        f"--gin.TEXT_RECORDS={VERSION1}/text_records",
        *("--gin.UNIT_COUNT=20", "--gin.INITIAL_CHECKPOINT=none", "--workdir=out"),
    ],
    "train_ctc": ["--gin_file=ctc/small.gin", "--gin.RECORDINGS=none", "--workdir=out"],
    "train_tokenizer": ["--input=none", "--format=text", "--vocab_size=99", "--output=out"],
    "train_unit_vocabulary": ["--records=none", "--deduplicate", "--output=out"],
    "train_vocoder": [
        *("--gin_file=vocoder/small.gin", "--gin.ENCODER='mel:none'", "--workdir=out"),
    ],
    "verify_reference": ["--case=none"],
    "verify_speech": ["--case=none"],
}
HOSTILE = (
    *("false", "no", "off", "7", "abc", "2.5", "-1", "2.0", "1e3", "nan", "inf", "-inf", "1e999"),
    *("0", "-0", "None", "True", "()", "[]", "{}", "''", "(1, 2)", "1j", "...", "0x10", "1_0"),
    *("9" * 5000, "x" * 100_000, "(" * 5000, "-" * 100_000 + "1", "1" + "+1" * 50_000, "/", "~"),
    *("%SEED", "%X", "@X", "@LSTConfig()", "@train()", "%gin.REQUIRED", "[1]\nSEED = 2", "\x1b[2J"),
    *("10000000", "100000000", "1000000000000", "2147483648", "1048576", "65536", "gs://a/b"),
)
GIN_NAMES = sorted(
    {
        name
        for file in (ROOT / "experiments" / "configs").rglob("*.gin")
        for name in re.findall(r"^([\w./]+) = ", file.read_text(), re.MULTILINE)
    }
    - {"INITIAL_CHECKPOINT"}
)
JSON_VALUES = (
    *(None, True, False, 0, -1, 2.5, 1e308, 10**7, 10**12, 10**400, "", "abc", "x" * 100_000),
    *([], {}, [[]], "../../x", "gs://a", "a\0b", "\ud800", [1] * 1000, {"a": 1}, "1e3", -2.0),
)
COUNTS = [5, pytest.param(300, marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def binaries():
    parent = Binaries()
    yield parent
    parent.close()


@pytest.fixture
def refused(binaries, tmp_path):
    """Runs a binary in an empty folder, and checks its refusal."""
    folder = tmp_path / "folder"
    folder.mkdir()

    def run(name, *arguments, names=()):
        done = binaries.run(f"experiments.{name}", *arguments, folder=folder, seconds=30)
        # A warning: data of version 1 have no sums to check them by.
        lines = [x for x in done["stderr"].splitlines() if not x.endswith("read unchecked")]
        assert done["code"] == 2, (arguments, done)
        assert len(lines) == 1 and lines[0].startswith("error: "), (arguments, lines)
        assert len(lines[0]) < 500 and "Traceback" not in done["stdout"]
        assert done["peak_bytes"] < 2 * 2**30
        assert list(folder.iterdir()) == [], arguments
        for text in names:
            assert text in lines[0]

    return run


def fuzz(examples, *strategies):
    """`given` with so many examples, the same in every run."""

    def decorate(check):
        checks = (HealthCheck.too_slow, HealthCheck.large_base_example, HealthCheck.data_too_large)
        bounds = settings(
            max_examples=examples,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=checks,
        )
        bounds(given(*strategies)(check))()

    return decorate


def flag(name, value):
    """An argument as the system passes it on, which has no NUL."""
    text = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
    return os.fsencode(f"--{name}=") + text.replace(b"\0", b"")


def values():
    numbers = st.one_of(st.integers(), st.floats()).map(str)
    return st.one_of(st.sampled_from(HOSTILE), st.text(max_size=20), numbers, st.binary())


@pytest.mark.slow
def test_every_flag_that_names_a_file_is_defined_as_a_path(binaries):
    assert NAMES == sorted(TEXTS) == sorted(REFUSED)
    for name, texts in TEXTS.items():
        found = binaries.flags(f"experiments.{name}").items()
        assert {flag for flag, kind in found if kind.endswith("string") or "list" in kind} == texts
        assert any(kind.endswith("path") for _, kind in found)


@pytest.mark.slow
def test_every_binary_refuses_for_the_reason_that_it_is_given(refused):
    reasons = {"aot_compile": "v9:9x9", "compare_losses": "sides is []"}
    reasons |= {"demo": "expected none: the demo sets it", "generate": "units[0] is 999999"}
    reasons |= {"build_corpus": "_stories is 0"}
    for name, arguments in REFUSED.items():
        reason = reasons.get(name, "none")
        refused(name, *arguments, names=[reason])


@pytest.mark.parametrize("name", quick(NAMES, "train"))
def test_no_flag_takes_a_path_that_is_none(binaries, refused, name):
    kinds = binaries.flags(f"experiments.{name}")
    paths = [flag for flag, kind in kinds.items() if kind.endswith("path")]
    for i, value in enumerate(NO_PATHS):
        # Every path flag and every value once, not each with each.
        for path in paths if i == 1 else paths[i % len(paths) :][:1]:
            refused(name, flag(path, value), names=[f"--{path}=", "expected a local path"])


@pytest.mark.parametrize("name", ["TOKENIZER", "SPEECH_RECORDS", "INITIAL_CHECKPOINT"])
@pytest.mark.parametrize("value", ["gs://bucket/a", "''", "s3://bucket/*"])
def test_no_setting_takes_a_path_that_is_none(refused, name, value):
    refused("train", *REFUSED["train"], f"--gin.{name}={value}", names=["a local path"])


@pytest.mark.parametrize("examples", COUNTS)
def test_any_value_of_any_flag_is_taken_or_refused(binaries, refused, examples):
    flags = [(x, f) for x in NAMES for f in binaries.flags(f"experiments.{x}") if x != "train"]

    @fuzz(2 * examples, st.sampled_from(flags), values())
    def check(which, value):
        name, option = which
        refused(name, *REFUSED[name], flag(option, value))


@pytest.mark.parametrize("examples", COUNTS)
def test_any_value_of_any_setting_is_taken_or_refused(refused, examples):
    @fuzz(examples, st.sampled_from(GIN_NAMES), values())
    def check(name, value):
        refused("train", *REFUSED["train"], flag(f"gin.{name}", value))


@pytest.mark.parametrize("examples", COUNTS)
def test_any_name_of_a_setting_is_taken_or_refused(refused, examples):
    names = st.one_of(values(), st.from_regex(r"[A-Za-z_/.]+", fullmatch=True))

    @fuzz(examples, names)
    def check(name):
        name = name if isinstance(name, bytes) else name.encode("utf-8", "surrogatepass")
        refused("train", *REFUSED["train"], flag("gin_binding", name + b"=1"))


JUNK = {
    "empty": b"",
    "zeros": bytes(1000),
    "text": b"hello\n" * 10,
    "random": random.Random(0).randbytes(5000),
    "zip": b"PK\x03\x04" + bytes(100),
    "pickle": b"\x80\x04\x95garbage",
}
# A file of version 1 that is replaced, and what reads it.
READERS = {
    "tokenizer.model": ("prepare_data", "--tokenizer={}", f"--input={TOKENIZER}"),
    "encoder.npz": ("generate", "--encoder=mel:{}"),
    "speech.wav": ("generate", "--encoder=mel:{}", "--wav={}"),
    "lines.jsonl": ("evaluate", "--data={}"),
    "utterances.jsonl": ("prepare_data", "--input={}", "--format=reference_jsonl"),
    "settings.gin": ("train", "--gin_file={}"),
    "lst_run/checkpoints/2/params/_METADATA": ("generate", "--checkpoint={}/lst_run"),
    "lst_run/checkpoints/2/params/manifest.ocdbt": ("port_checkpoint", "--input={}/lst_run"),
    "lst_safetensors/model.safetensors": ("port_checkpoint", "--input={}/lst_safetensors"),
    "pytorch/consolidated.pth": ("port_checkpoint", "--input={}/pytorch"),
    "text_records/text-00000-of-00001.array_record": (
        *("train", "--gin.TEXT_RECORDS={}/text_records", "--gin.INITIAL_CHECKPOINT=None"),
    ),
    "sdist.tar.gz": ("fetch_speech", "--sdist={}"),
    "case/case.json": ("verify_reference", "--case={}/case"),
    "case/config.json": ("verify_speech", "--case={}/case"),
    "vocoder/config.json": ("generate", "--vocoder=hifigan:{}/vocoder"),
    "alignments.npz": ("verify_speech", "--case={}"),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("junk", ["text", *(pytest.param(x, marks=pytest.mark.slow) for x in JUNK)])
def test_what_is_no_file_of_its_kind_is_refused(refused, tmp_path, name, junk):
    copied = tmp_path / "copied"
    shutil.copytree(VERSION1, copied)
    file = copied / name
    assert file.exists() or len(file.relative_to(copied).parts) < 3
    file.parent.mkdir(exist_ok=True)
    (file.parent / "params.json").write_text("{}")
    file.write_bytes(JUNK[junk])
    binary, *options = READERS[name]
    arguments = [option.format(copied if "{}/" in option else file) for option in options]
    refused(binary, *REFUSED[binary], *arguments)


@pytest.mark.parametrize(("name", "option"), [("evaluate", "data="), ("generate", "encoder=mel:")])
def test_devices_and_pipes_are_no_files(refused, tmp_path, name, option):
    """They have no end, or nobody writes: reading them would take all memory, or for ever."""
    os.mkfifo(tmp_path / "pipe")
    arguments = REFUSED[name] if name == "generate" else MODEL
    for path in ("/dev/zero", tmp_path / "pipe"):
        refused(name, *arguments, f"--{option}{path}", names=[f"{path} is a device, a pipe"])


def test_no_output_replaces_an_input_or_what_holds_no_results(refused, tmp_path):
    file, link = tmp_path / "lines.jsonl", tmp_path / "link"
    link.symlink_to(file)
    file.write_text(text := "one\ntwo\n")
    for output, reason in ((link, "expected another than --data"), (file, "expected another")):
        refused("evaluate", *MODEL, f"--data={file}", f"--output={output}", names=[reason])
    refused("evaluate", *MODEL, "--data=none", f"--output={file}", names=["not JSON"])
    others = {
        "aot_compile": file,
        "fit_units": tmp_path / "units.json",
        "prepare_speech": tmp_path,
        "train_tokenizer": tmp_path / "tokens",
        "train_unit_vocabulary": file,
    }
    for name in ("units.npy", "tokens.model"):
        (tmp_path / name).write_text(text)
    for name, output in others.items():
        named = ["exists and is not empty"] if output == tmp_path else [str(output.with_suffix(""))]
        refused(name, *REFUSED[name], f"--output={output}", names=named)
    refused("generate", *MODEL, f"--prompts={file}", f"--output={file}", names=["--prompts"])
    assert file.read_text() == text


@pytest.mark.parametrize("shape", [(10**15,), (10**9, 10**6), (2**62, 4), (10**5, 10**5)])
def test_arrays_larger_than_their_file_are_refused(refused, tmp_path, shape):
    header = repr({"descr": "<f4", "fortran_order": False, "shape": shape}).encode()
    array = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(100)
    file = tmp_path / "encoder.npz"
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("format", "features", "mean", "projection", "centroids", "unit_log_mels"):
            archive.writestr(f"{name}.npy", array)
    refused("generate", *REFUSED["generate"], f"--encoder=mel:{file}", names=["encoder.npz is not"])


def places(value, place=()):
    """Where the values of a JSON value are, but those far back in lists."""
    yield place
    items = value.items() if isinstance(value, dict) else ()
    items = list(enumerate(value))[:3] if isinstance(value, list) else items
    for key, item in items:
        yield from places(item, (*place, key))


@st.composite
def damaged(draw, value):
    """The bytes of a JSON value in which something is replaced, missing, too much, or no JSON."""
    value = copy.deepcopy(value)
    *outer, last = draw(st.sampled_from([place for place in places(value) if place]))
    inside = value
    for key in outer:
        inside = inside[key]
    how = draw(
        st.sampled_from(["set", "set", "set", "delete", "add", "cut", "deep", "NaN", "UTF-16"])
    )
    if how == "delete":
        del inside[last]
    elif how == "add" and isinstance(inside, dict):
        inside["unknown"] = draw(st.sampled_from(JSON_VALUES))
    elif how in ("set", "add"):
        inside[last] = draw(st.sampled_from(JSON_VALUES))
    text = json.dumps(value)
    others = {"cut": text[: len(text) // 2], "deep": "[" * 10**5, "NaN": f'{{"a": NaN, {text[1:]}'}
    encoding = "utf-16" if how == "UTF-16" else "utf-8"
    return others.get(how, text).encode(encoding)


STORY = {
    "id": "1",
    "set": "s",
    "prompt": {"text": "the quick"},
    "label": 0,
    "endings": [{"text": "brown fox"}, {"text": "lazy dog"}],
}
MEMBERS = [{"units": [1, 2]}, {"units": [2, 1]}]
PAIR = {"id": "1", "set": "s", "category": "c", "members": MEMBERS, "correct": 0}
LINES = {
    "evaluate": ("--data", STORY),
    "evaluate_pairs": ("--data", PAIR),
    "evaluate_asr": ("--data", {"id": "1", "text": "the quick", "units": [1, 2, 3]}),
    "evaluate_speech_quality": (
        "--data",
        {"id": "1", "sample": 0, "prompt": {"text": "a"}, "segments": [{"units": [1, 2]}]},
    ),
    "generate": ("--prompts", {"id": "a", "units": [1, 2]}),
    "make_spoken_set": (
        "--input",
        {"ctx": "the quick", "endings": ["brown fox", "lazy dog"], "label": 0},
    ),
    "prepare_data": ("--input", {"file_id": "a", "text": "the quick"}),
    "train_ctc": (
        "--gin.RECORDINGS",
        {"audio": "a.wav", "text": "the", "words": [{"word": "the", "start_s": 0, "end_s": 1}]},
    ),
}


@pytest.mark.parametrize("examples", COUNTS)
def test_any_line_of_json_is_taken_or_refused(refused, tmp_path, examples):
    """A second line that is none refuses what the first does not."""
    file = tmp_path / "lines.jsonl"

    @fuzz(examples, st.data(), st.sampled_from(sorted(LINES)))
    def check(data, name):
        option, value = LINES[name]
        file.write_bytes(data.draw(damaged(value)) + b"\n{}\n")
        formats = ["--format=text_jsonl"] if name == "prepare_data" else []
        refused(name, *REFUSED[name], *formats, f"{option}={file}")


FILES = {
    "lst_run/model.json": ("generate", "--checkpoint="),
    "baseline_run/model.json": ("evaluate", "--checkpoint="),
    "lst_safetensors/config.json": ("port_checkpoint", "--input="),
    "text_records/metadata.json": ("train", "--gin.TEXT_RECORDS="),
    "vocoder/config.json": ("generate", "--vocoder=hifigan:"),
}


@pytest.mark.parametrize("examples", COUNTS)
def test_any_description_is_taken_or_refused(refused, tmp_path, examples):
    copied = tmp_path / "copied"
    shutil.copytree(VERSION1, copied)
    shutil.copytree(BUILT_IN / "vocoder", copied / "vocoder")
    read = {name: json.loads((copied / name).read_text()) for name in FILES}

    @fuzz(examples, st.data(), st.sampled_from(sorted(FILES)))
    def check(data, name):
        binary, option = FILES[name]
        (copied / name).write_bytes(data.draw(damaged(read[name])))
        arguments = [x for x in REFUSED[binary] if not x.startswith(option)]
        if binary == "train":  # what data are read for is wrong as late as this
            arguments += ["--gin.INITIAL_CHECKPOINT=None", "--gin.EVAL_STORIES=('none',)"]
            arguments += ["--gin.EVAL_EVERY=1"]
        refused(binary, *arguments, f"{option}{(copied / name).parent}")


WORDS = [{"word": "the", "start": 0.1, "end": 0.3}, {"word": "house", "start": 0.3, "end": 0.5}]
HEARD = {"segments": [{"start": 0.1, "end": 0.5, "text": "the house", "words": WORDS}]}
GRID = """File type = "ooTextFile"\nObject class = "TextGrid"\n\n0\n0.5\n<exists>\n1
"IntervalTier"\n"words"\n0\n0.5\n2\n0.1\n0.3\n"the"\n0.3\n0.5\n"house"\n"""
UNITS = ["--unit_count=9", "--frame_rate=25", "--units={}"]
CUT = {
    "id": "c",
    "start": 0,
    "duration": 0.5,
    "supervisions": [{"id": "s", "text": "the", "alignment": {"word": [["the", 0.1, 0.2]]}}],
    "recording": {"id": "r", "sources": [{"type": "file", "source": "a.wav"}]},
}
SPOKEN = {"begin_time": 0, "end_time": 0.5, "sid": "s", "text_tn": "THE HOUSE"}
# A file of a corpus, what it holds, and the arguments that read it.
CORPUS = {
    "units.jsonl": ({"file_id": "a", "units": [1] * 12, "duration": [1] * 12}, UNITS),
    "units/units.km": ("1 2 3 4 5 6 7 8 7 6 5 4\n", UNITS),
    "words.json": (HEARD, ["--alignment={}"]),
    "words.TextGrid": (GRID, ["--alignment={}"]),
    "words.ctm": ("a 1 0.1 0.2 the 0.9\na 1 0.3 0.2 house\n", ["--alignment={}"]),
    "heard.json": (HEARD, ["--transcripts={}"]),
    "heard.jsonl": ({"audio_filepath": "a.wav", "pred_text": "the"}, ["--transcripts={}"]),
    "cuts.jsonl": (CUT, ["--input={}", "--format=lhotse"]),
    "manifest.json": (
        {"audio_filepath": "a.wav", "duration": 0.5, "offset": 0, "text": "the", "shard_id": 0},
        ["--input={}", "--format=nemo"],
    ),
    "GigaSpeech.json": (
        {"audios": [{"aid": "A", "path": "a.wav", "segments": [SPOKEN]}]},
        ["--input={}", "--format=gigaspeech"],
    ),
    "x_0.tar": (None, ["--input={}", "--format=webdataset"]),
    "folder/a.wav": (None, []),
}


@st.composite
def spoiled(draw, data):
    """Bytes of which some are others, a number is a hostile text, or all another encoding."""
    how = draw(st.sampled_from(["flip", "flip", "number", "cut", "utf-16", "BOM"]))
    if how == "number" and (places := [m.span() for m in re.finditer(rb"[0-9.]+", data)]):
        start, end = draw(st.sampled_from(places))
        value = draw(st.sampled_from([x for x in HOSTILE if len(x) < 10_000])).encode()
        return data[:start] + value + data[end:]
    if how == "flip":
        changed = bytearray(data)
        for place in draw(st.lists(st.integers(0, min(len(data), 600) - 1), min_size=1)):
            changed[place] = draw(st.integers(0, 255))
        return bytes(changed)
    texts = {"utf-16": data.decode("latin-1").encode("utf-16"), "BOM": b"\xef\xbb\xbf" + data}
    return texts.get(how, data[: len(data) // 2])


@pytest.mark.parametrize("examples", [5, pytest.param(60, marks=pytest.mark.slow)])
def test_any_file_of_a_corpus_is_taken_or_refused(binaries, tmp_path, examples):
    root, folder = tmp_path / "corpus", tmp_path / "folder"
    (root / "folder").mkdir(parents=True)
    (root / "units").mkdir()
    folder.mkdir()
    write_wav(root / "a.wav", np.random.default_rng(0).normal(0, 0.1, 8000), 16_000)
    sound = (root / "a.wav").read_bytes()
    (root / "units/units.tsv").write_text("/\na.wav\t8000\n")
    with tarfile.open(root / "x_0.tar", "w") as archive:
        archive.add(root / "a.wav", "a.wav")
    packed = {"x_0.tar": (root / "x_0.tar").read_bytes(), "folder/a.wav": sound}
    given = [f"--tokenizer={TOKENIZER}", "--shard=0/2", "--max_reject_share=1", "--output=out"]
    given += [f"--input={root}/folder", "--format=folder"]
    (root / "good.jsonl").write_text(json.dumps(CORPUS["units.jsonl"][0]))
    given += [option.format(root / "good.jsonl") for option in UNITS]

    @fuzz(examples, st.data(), st.sampled_from(sorted(CORPUS)))
    def check(data, name):
        value, options = CORPUS[name]
        (root / "folder/a.wav").write_bytes(sound)
        if isinstance(value, dict):
            contents = data.draw(damaged(value))
        else:
            contents = data.draw(spoiled(packed[name] if value is None else value.encode()))
        (root / name).write_bytes(contents)
        arguments = [*given, *(option.format(root / name) for option in options)]
        done = binaries.run("experiments.prepare_speech", *arguments, folder=folder, seconds=30)
        lines = done["stderr"].splitlines()
        assert done["code"] in (0, 2) and done["peak_bytes"] < 2 * 2**30, (contents, done)
        if done["code"] == 2:
            assert len(lines) == 1 and len(lines[0]) < 500 and str(root) in lines[0], lines
            assert not list(folder.iterdir())
        shutil.rmtree(folder / "out", ignore_errors=True)
