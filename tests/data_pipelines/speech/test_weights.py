"""Properties of the reader of others' arrays: it equals the originals, and runs nothing."""

import collections
import contextlib
import functools
import io
import os
import pickle
import pickletools
import re
import struct
import zipfile

import hypothesis
import joblib
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from sklearn.cluster import KMeans, MiniBatchKMeans

from data_pipelines.speech import pickles, weights
from data_pipelines.speech.pickles import Record, describe
from data_pipelines.speech.weights import read_torch, read_weights

pytestmark = pytest.mark.torch
RANDOM = np.random.default_rng(0)
CENTROIDS = RANDOM.normal(size=(6, 5)).astype(np.float32)


def numbers(tensor):
    """A tensor's values as NumPy has them, exactly."""
    tensor = tensor.detach()
    if tensor.dtype in (torch.bfloat16, torch.float8_e4m3fn):
        return tensor.float().numpy()
    return tensor.numpy()


def make_content():
    x = torch.from_numpy(CENTROIDS)
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    tensors = {
        "transposed": x.T,
        "a part": x[1:, 2:4],
        "repeated": x[0].expand(3, 5),
        "bfloat16": x.bfloat16(),
        "float16": x.half(),
        "float64": x.double(),
        "int64": torch.arange(5),
        "bool": x > 0,
        "float8": x.to(torch.float8_e4m3fn),
        "uint16": torch.arange(4).to(torch.uint16),
        "complex": torch.complex(x, x),
        "parameter": torch.nn.Parameter(x),
        "empty": torch.zeros(0, 3),
        "one number": torch.tensor(2.5),
        **module.state_dict(),
    }
    return tensors, {
        **tensors,
        "state": module.state_dict(),
        "array": CENTROIDS,
        "by columns": np.asfortranarray(CENTROIDS),
        "number": np.float32(3),
        "settings": {"dim": 5, "names": ["a", None, True, 2.5]},
    }


@pytest.mark.parametrize("is_zip", [True, False])
def test_what_torch_saves_is_read_as_torch_reads_it(tmp_path, is_zip):
    tensors, content = make_content()
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=is_zip)
    read = read_torch(tmp_path / "a.pt")
    assert list(read) == list(content)
    for name, tensor in tensors.items():
        assert read[name].shape == tuple(tensor.shape)
        assert np.array_equal(read[name].astype(numbers(tensor).dtype), numbers(tensor)), name
    assert read["bfloat16"].dtype == ml_dtypes.bfloat16
    assert list(read["state"]) == list(content["state"])
    for name in ("array", "by columns", "number"):
        assert np.array_equal(read[name], content[name])
    assert read["settings"] == content["settings"]


@functools.cache
def fit_k_means(kind):
    points = RANDOM.normal(size=(40, 5)).astype(np.float32)
    return kind(4, n_init=1, random_state=np.random.RandomState(3)).fit(points), points


@pytest.mark.parametrize("compress", [0, 3, ("gzip", 3), ("bz2", 3), ("xz", 3), ("lzma", 3)])
@pytest.mark.parametrize("kind", [KMeans, pytest.param(MiniBatchKMeans, marks=pytest.mark.slow)])
def test_a_k_means_of_joblib_is_a_record_of_its_attributes(tmp_path, kind, compress):
    model, points = fit_k_means(kind)
    joblib.dump({"model": model, "twice": [points, points]}, tmp_path / "km", compress=compress)
    read = read_weights(tmp_path / "km")
    assert isinstance(read["model"], Record) and read["model"].name.endswith(kind.__name__)
    for name in ("cluster_centers_", "labels_", "n_clusters", "inertia_", "max_iter"):
        assert np.array_equal(read["model"].attribute(name), getattr(model, name)), name
    assert all(np.array_equal(x, points) for x in read["twice"])


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_protocol_are_read(tmp_path, protocol):
    shared = RANDOM.normal(size=(3, 2))
    content = {
        "arrays": [shared, shared, np.arange(5, dtype=">i2"), np.zeros((2, 0)), shared.T],
        "text": np.array(["ab", "c"]),
        "map": collections.OrderedDict(a=1, b=(2, 3.5, None, True, b"x\xff", 2**70)),
        "set": {1, 2},
    }
    (tmp_path / "p").write_bytes(pickle.dumps(content, protocol))
    read = read_weights(tmp_path / "p")
    for found, given in zip(read["arrays"], content["arrays"], strict=True):
        assert np.array_equal(found, given) and found.dtype == given.dtype
    assert read["arrays"][0] is read["arrays"][1]
    assert read["text"].tolist() == ["ab", "c"]
    assert read["map"] == dict(content["map"]) and read["set"] == {1, 2}


def test_files_of_numpy_are_read(tmp_path):
    np.save(tmp_path / "a", CENTROIDS.T)
    np.savez(tmp_path / "b", x=CENTROIDS, y=3)
    assert np.array_equal(read_weights(tmp_path / "a.npy"), CENTROIDS.T)
    read = read_weights(tmp_path / "b.npz")
    assert np.array_equal(read["x"], CENTROIDS) and read["y"] == 3


# Nothing is run -----------------------------------------------------------------------------------


class Bomb:
    """An object whose unpickling makes a folder."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


class Evaluating(Bomb):
    def __reduce__(self):
        return eval, (f"__import__('os').mkdir({self.marker!r})",)


class Nested(Bomb):
    """Hides the pickle within what `torch` and `numpy` would load."""

    def __reduce__(self):
        inner = pickle.dumps(Bomb(self.marker))
        return torch.storage._load_from_bytes, (inner,)


class Iterated(Bomb):
    def __reduce__(self):
        return map, (os.mkdir, [self.marker])


class Stateful(Bomb):
    """Sets its state by a call."""

    def __reduce__(self):
        return collections.OrderedDict, (), None, None, iter([(1, Bomb(self.marker))])


WRITERS = {
    "torch": torch.save,
    "old torch": lambda x, p: torch.save(x, p, _use_new_zipfile_serialization=False),
    "joblib": joblib.dump,
    "squeezed joblib": lambda x, p: joblib.dump(x, p, compress=("gzip", 1)),
    "pickle": lambda x, p: p.write_bytes(pickle.dumps(x)),
    "old pickle": lambda x, p: p.write_bytes(pickle.dumps(x, 0)),
    "npy": lambda x, p: np.save(p.open("wb"), np.array([x], object)),
    "npz": lambda x, p: np.savez(p.open("wb"), a=np.array([x], object)),
    "joblib's object array": lambda x, p: joblib.dump(np.array([x], object), p),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", [Bomb, Evaluating, Nested, Iterated, Stateful])
def test_a_file_that_wants_to_run_code_is_refused_in_a_line_and_not_run(tmp_path, kind, writer):
    file, marker = tmp_path / "weights.bin", tmp_path / "ran"
    WRITERS[writer]({"w": CENTROIDS, "x": kind(marker)}, file)
    with pytest.raises(ValueError) as raised:
        read_weights(file)
    message = str(raised.value)
    assert str(file) in message and "\n" not in message and len(message) < 500
    if "object" not in message:
        assert "which is not run" in message or "array of a type other" in message, message
    assert not marker.exists()


STEPS = {
    "code by a class": b"cposix\nsystem\n(S'touch ran'\nt\x81.",
    "code by an old class": b"(S'touch ran'\nios\nsystem\n.",
    "code by an old object": b"(cos\nsystem\nS'touch ran'\no.",
    "code by a setter": b"cposix\nsystem\n)\x81(S'touch ran'\ntb.",
    "an extension": b"\x82\x01.",
    "a reference": b"Pstorage\n.",
    "a storage from nowhere": b"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nK\x04tQ.",
    "a number called": b"K\x01)R.",
    "a call of what a call gave": b"ccollections\nOrderedDict\n)R)R.",
    "a name of numbers": b"K\x01K\x02\x93.",
    "a mark as value": b"(.",
    "nothing": b".",
    "a memo of nothing": b"q\x00.",
    "a key of tuples": b"))" + b"2\x86" * 200 + b"K\x01}2s.",
    "a large memo": b"Nr\xff\xff\xff\xff0K\x01a.",
    "a large text": b"\x8d" + struct.pack("<Q", 2**62) + b"x.",
    "a large number": b"\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
    "an array of nothing": b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nS'V9'\n"
    b"\x85RS''\n\x86R.",
    "a huge array": b"cnumpy.core.numeric\n_frombuffer\n(C\x01xcnumpy\ndtype\nS'u1'\n\x85R"
    b"\x8a\x06\x00\x00\x00\x00\x00\x01\x85S'C'\ntR.",
}


@pytest.mark.parametrize("steps", STEPS)
def test_no_step_of_a_pickle_does_more_than_lay_out_arrays(tmp_path, monkeypatch, steps):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p").write_bytes(STEPS[steps])
    try:
        found = read_weights(tmp_path / "p")
    except ValueError as error:
        assert str(tmp_path / "p") in str(error) and len(str(error)) < 500
    else:  # an instance is made by no call, and stays a description
        assert isinstance(found, Record), found
    assert not (tmp_path / "ran").exists()


def laughing(levels):
    """Lists of lists: 10 ** levels items that take a line a level."""
    return (
        b"]" + b"q\x00](" + b"h\x00" * 10 + b"e"
        if levels == 0
        else (laughing(levels - 1) + b"q\x00](" + b"h\x00" * 10 + b"e")
    )


def test_what_grows_without_end_costs_little(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "_MOST_STEPS", 100_000)
    (tmp_path / "p").write_bytes(laughing(60) + b".")
    assert describe(read_weights(tmp_path / "p")) == "a list"
    (tmp_path / "p").write_bytes(b"N" * 200_000 + b".")
    with pytest.raises(ValueError, match="steps to read"):
        read_weights(tmp_path / "p")
    (tmp_path / "p").write_bytes(b"(" * 10 + b"N" + b"\x85" * 90_000 + b".")
    assert describe(read_weights(tmp_path / "p")) == "a tuple"


def rewrite(file, changes):
    """Changes a torch archive's members, with right checksums."""
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            change = changes.get(name.partition("/")[2], lambda data: data)
            archive.writestr(name, change(data))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"data/0": lambda data: data[:-4]}, "it has 116 bytes for storage 0, expected 120"),
        ({"data/0": lambda data: data + bytes(4)}, "it has 124 bytes for storage 0, expected 120"),
        ({"data.pkl": lambda data: data.replace(b"K\0K\x06", b"K\1K\x06")}, "over 31 numbers"),
        ({"data.pkl": lambda data: data.replace(b"K\x06K\x05", b"K\x07K\x05")}, "over 35 numbers"),
        ({"data.pkl": lambda data: data.replace(b"K\x05K\x01", b"K\x06K\x01")}, "over 35 numbers"),
        ({"data.pkl": lambda data: data[:40]}, "damaged"),
        ({"byteorder": lambda data: b"middle"}, "damaged"),
    ],
)
def test_a_tensor_is_within_its_storage(tmp_path, changes, reason):
    torch.save({"x": torch.from_numpy(CENTROIDS)}, tmp_path / "a.pt")
    rewrite(tmp_path / "a.pt", changes)
    with pytest.raises(ValueError, match=reason):
        read_torch(tmp_path / "a.pt")


def test_a_flipped_byte_of_a_tensor_is_noticed(tmp_path):
    torch.save({"x": torch.from_numpy(CENTROIDS)}, file := tmp_path / "a.pt")
    data = bytearray(file.read_bytes())
    data[data.index(CENTROIDS.tobytes()) + 7] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match="the checksum of data/0 is wrong"):
        read_torch(file)


def test_a_tensor_repeated_beyond_its_file_is_refused(tmp_path):
    torch.save({"x": torch.zeros(1).expand(2**40)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="over 1 numbers of a storage of 1"):
        read_torch(tmp_path / "a.pt")


def test_numbers_of_the_other_byte_order_are_read(tmp_path):
    tensors = {"x": torch.from_numpy(CENTROIDS)}
    torch.save(tensors, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    data = (tmp_path / "old.pt").read_bytes()
    pattern = re.compile(rb"(?<=little_endianq.)\x88", re.DOTALL)
    data = pattern.sub(b"\x89", data)  # False
    swapped = data.replace(CENTROIDS.tobytes(), CENTROIDS.astype(">f4").tobytes())
    (tmp_path / "old.pt").write_bytes(swapped)
    assert np.array_equal(read_torch(tmp_path / "old.pt")["x"], CENTROIDS)
    torch.save({"x": torch.from_numpy(CENTROIDS)}, tmp_path / "a.pt")
    swap = {"byteorder": lambda _: b"big", "data/0": lambda _: CENTROIDS.astype(">f4").tobytes()}
    rewrite(tmp_path / "a.pt", swap)
    assert np.array_equal(read_torch(tmp_path / "a.pt")["x"], CENTROIDS)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b"\x04\x22\x4d\x18xxxx", "compressed by lz4"),
        (b"ZF0x1", "joblib before 0.10"),
        (b"\0" * 257 + b"ustar" + b"\0" * 800, "a tar archive"),
        (b"version https://git-lfs.github.com/spec/v1\n", "damaged, or no file of arrays"),
        (b"\x1f\x8b" + b"x" * 50, "damaged"),
        (b"PK\x03\x04", "damaged|no archive"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path, data, reason):
    (tmp_path / "f").write_bytes(data)
    with pytest.raises(ValueError, match=reason):
        read_weights(tmp_path / "f")


def test_programs_and_lists_are_no_checkpoints(tmp_path):
    torch.save([torch.zeros(3)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="it holds a list, expected a mapping of tensors"):
        read_torch(tmp_path / "list.pt")
    with zipfile.ZipFile(tmp_path / "program.pt", "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}))
        archive.writestr("a/constants.pkl", pickle.dumps(()))
    with zipfile.ZipFile(tmp_path / "two.pt", "w") as archive:
        for name in "ab":
            archive.writestr(f"{name}/data.pkl", pickle.dumps({}))
    for name in ("program", "two"):
        with pytest.raises(ValueError, match="TorchScript"):
            read_torch(tmp_path / f"{name}.pt")


@pytest.mark.parametrize("compress", [("gzip", 3), ("bz2", 3), ("xz", 3)])
def test_a_file_unfolds_to_no_more_than_it_may(tmp_path, monkeypatch, compress):
    joblib.dump(CENTROIDS, tmp_path / "km", compress=compress)
    monkeypatch.setattr(weights, "_LARGEST_EXPANSION", 100)
    with pytest.raises(ValueError, match="it unfolds to over 100 bytes, or is cut"):
        read_weights(tmp_path / "km")


def sample(kind):
    file = io.BytesIO()
    content = {"w": CENTROIDS, "n": 3}
    if kind == "joblib":
        joblib.dump(content, file)
    elif kind == "pickle":
        pickle.dump(content, file)
    else:
        content = {"w": torch.from_numpy(CENTROIDS), "n": 3}
        torch.save(content, file, _use_new_zipfile_serialization=kind == "torch")
    return file.getvalue()


@pytest.mark.parametrize("kind", ["torch", "old torch", "joblib", "pickle"])
@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(data=st.data())
def test_damaged_files_are_read_or_refused_in_a_line(tmp_path_factory, kind, data):
    good = sample(kind)
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(0, 3))):
        bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    bad = bytes(bad[: data.draw(st.one_of(st.just(len(bad)), st.integers(0, len(bad))))])
    file = tmp_path_factory.getbasetemp() / "damaged"
    file.write_bytes(bad)
    try:
        read_weights(file)
    except ValueError as error:
        assert str(file) in str(error) and "\n" not in str(error) and len(str(error)) < 500


CODES = st.sampled_from([code.code.encode("latin-1") for code in pickletools.opcodes])
NAMES = st.sampled_from(
    [
        b"cos\nmkdir\n",
        b"S'ran'\n",
        b"cbuiltins\neval\n",
        b"cnumpy\ndtype\n",
        b"S'f4'\n",
        b"K\x02",
        b"(",
        b")",
    ]
)


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(steps=st.lists(st.one_of(NAMES, CODES, st.binary(max_size=4)), max_size=30))
def test_no_row_of_steps_runs_anything(tmp_path_factory, steps):
    folder = tmp_path_factory.getbasetemp()
    (folder / "p").write_bytes(b"".join([b"\x80\x02", *steps, b"."]))
    with contextlib.chdir(folder):
        try:
            read_weights(folder / "p")
        except ValueError as error:
            assert "\n" not in str(error) and len(str(error)) < 500
    assert not (folder / "ran").exists()
