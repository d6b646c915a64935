"""Properties of porting: nothing is lost, nothing is run, nothing is left half done."""

import copy
import dataclasses
import errno
import itertools
import json
import os
import pathlib
import pickle
import sys
import zipfile

import hypothesis
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
import torch
from hypothesis import strategies as st

from lst_jax.checkpoints.description import write_description
from lst_jax.checkpoints.layout import params_directory, step_directory
from lst_jax.checkpoints.params import params_save_args, restore_params
from lst_jax.checkpoints.train_state import param_shapes
from lst_jax.patching import PatchingConfig
from lst_jax.porting import orbax_step, pytorch_folder, safetensors_folder
from lst_jax.porting.parameter_names import published_tensors, tree_from_published
from lst_jax.porting.port import KINDS, open_checkpoint, write_checkpoint
from lst_jax.porting.published_config import make_params_json, read_params_json
from lst_jax.porting.tensors import TensorSpec
from lst_jax.sharding import MeshConfig, make_mesh
from tests.disks import files_of_at_most
from tests.lst_jax.porting.checkpoints_of_all_kinds import (
    BASELINE,
    DATA,
    LST,
    assert_same_bits,
    random_checkpoint,
    read_all,
)
from tests.marks import quick

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same float32 checkpoint in every kind; not to be changed."""
    parent = tmp_path_factory.mktemp("checkpoints")
    checkpoint, _ = random_checkpoint()
    for kind in KINDS:
        write_checkpoint(checkpoint, parent / kind, kind, max_shard_bytes=4000)
    return parent


def copy_folder(folder, target):
    """A copy whose files can be changed."""
    for file in folder.rglob("*"):
        if file.is_file():
            there = target / file.relative_to(folder)
            there.parent.mkdir(parents=True, exist_ok=True)
            there.write_bytes(file.read_bytes())
    return target


@pytest.mark.parametrize("dtype", quick(["float32", "bfloat16"], "bfloat16"))
def test_any_way_around_is_bitwise(tmp_path, dtype):
    original, tensors = checkpoint, _ = random_checkpoint(dtype=dtype)
    way = ["orbax", "orbax", "safetensors", "safetensors", "pytorch", "pytorch"]
    way += ["orbax", "pytorch", "safetensors", "orbax"]
    assert set(itertools.pairwise(way)) == set(itertools.product(KINDS, KINDS))
    for number, kind in enumerate(way):
        write_checkpoint(checkpoint, tmp_path / str(number), kind, max_shard_bytes=4000)
        checkpoint = open_checkpoint(tmp_path / str(number))
        assert_same_bits(read_all(checkpoint), tensors)
    assert (checkpoint.description, checkpoint.step) == (original.description, original.step)


@pytest.mark.parametrize("kind", ["orbax", "safetensors"])
def test_the_baseline_travels_too(tmp_path, kind):
    checkpoint, tensors = random_checkpoint(config=BASELINE)
    write_checkpoint(checkpoint, tmp_path / "out", kind)
    assert_same_bits(read_all(open_checkpoint(tmp_path / "out")), tensors)
    with pytest.raises(ValueError, match="no unpatched baseline"):
        write_checkpoint(checkpoint, tmp_path / "published", "pytorch")


@hypothesis.given(st.integers(1, 60_000))
@hypothesis.settings(deadline=None, max_examples=15)
def test_shards_hold_every_tensor_once_and_no_more_than_they_may(tmp_path_factory, limit):
    folder = tmp_path_factory.mktemp("shards") / "out"
    checkpoint, tensors = random_checkpoint()
    write_checkpoint(checkpoint, folder, "safetensors", max_shard_bytes=limit)
    shards = [safetensors.numpy.load_file(file) for file in sorted(folder.glob("*.safetensors"))]
    assert sum(len(shard) for shard in shards) == len(tensors)
    for shard in shards:
        assert len(shard) == 1 or sum(x.nbytes for x in shard.values()) <= limit
        assert_same_bits(shard, {name: tensors[name] for name in shard})
    modes = {file.stat().st_mode for file in folder.iterdir()}
    assert len(modes) == 1  # those who may read the configuration may read the tensors
    index = folder / "model.safetensors.index.json"
    assert index.exists() == (len(shards) > 1)
    if index.exists():
        assert json.loads(index.read_text())["metadata"]["total_size"] == checkpoint.num_bytes


def test_a_shard_is_filled_to_the_last_byte_that_it_may_have():
    specs = {
        name: TensorSpec((size,), "float32")
        for name, size in zip("abcd", (2, 3, 1, 9), strict=True)
    }
    for limit, shards in (
        (19, ["a", "bc", "d"]),
        (20, ["ab", "c", "d"]),
        (24, ["abc", "d"]),
        (60, ["abcd"]),
    ):
        planned = safetensors_folder._plan_shards(specs, limit)
        assert ["".join(shard) for shard in planned] == shards


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_is_read_once(tmp_path, kind):
    checkpoint, _ = random_checkpoint()
    read = []

    def recorded(name):
        read.append(name)
        return checkpoint.read(name)

    seen = []
    write_checkpoint(
        dataclasses.replace(checkpoint, read=recorded),
        tmp_path / "out",
        kind,
        on_tensor=seen.append,
    )
    assert sorted(read) == sorted(checkpoint.specs)
    assert sum(spec.num_bytes for spec in seen) == checkpoint.num_bytes


@pytest.mark.slow
def test_a_ported_run_loads_on_any_mesh_as_float32(tmp_path):
    checkpoint, _ = random_checkpoint()
    rng = np.random.default_rng(1)
    tensors = {name: rng.normal(size=spec.shape) for name, spec in checkpoint.specs.items()}
    halves = dataclasses.replace(checkpoint, read=tensors.__getitem__).cast("bfloat16")
    write_checkpoint(halves, tmp_path / "out", "orbax")
    expected = tree_from_published(
        LST, {name: halves.read(name).astype(np.float32) for name in tensors}
    )
    for mesh in (make_mesh(devices=jax.devices()[:1]), make_mesh(MeshConfig(2, 2, 2))):
        params = restore_params(tmp_path / "out", mesh)
        jax.tree.map(np.testing.assert_array_equal, params, expected)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, param_shapes(LST, mesh))
        assert jax.tree.map(lambda leaf: leaf.sharding, params) == shardings


@pytest.mark.slow
@pytest.mark.parametrize("chunks", ["of a layer", "of a leaf"])
@pytest.mark.parametrize("mesh_config", [MeshConfig(1, 1, 1), MeshConfig(1, 4, 2)])
def test_what_training_saves_is_read_whatever_its_mesh_and_chunks(
    tmp_path, monkeypatch, mesh_config, chunks
):
    # A few bytes at a time: layers of one chunk are read in turns.
    monkeypatch.setattr(orbax_step, "_MAX_READ_BYTES", 2000)
    checkpoint, tensors = random_checkpoint()
    size = int(np.prod(dataclasses.astuple(mesh_config)))
    mesh = make_mesh(mesh_config, jax.devices()[:size])
    params = jax.tree.map(
        lambda values, shape: jax.device_put(values, shape.sharding),
        tree_from_published(LST, tensors),
        param_shapes(LST, mesh),
    )
    write_description(tmp_path, checkpoint.description)
    with ocp.StandardCheckpointer() as writer:
        save_args = params_save_args(params) if chunks == "of a layer" else None
        writer.save(params_directory(step_directory(tmp_path, 3)), params, save_args=save_args)
    assert_same_bits(read_all(open_checkpoint(tmp_path)), tensors)


def test_types_are_converted_only_on_demand(tmp_path):
    checkpoint, _ = random_checkpoint(dtype="bfloat16")
    wide = checkpoint.cast("float32")
    write_checkpoint(wide, tmp_path / "wide", "safetensors")
    narrow = open_checkpoint(tmp_path / "wide").cast("bfloat16")
    for name, spec in checkpoint.specs.items():
        there_and_back = narrow.read(name).astype(np.float32)
        np.testing.assert_array_equal(there_and_back, checkpoint.read(name).astype(np.float32))
        assert wide.read(name).dtype == np.float32
        assert wide.specs[name] == TensorSpec(spec.shape, "float32")
    with pytest.raises(ValueError, match="dtype is 'int8', expected one of float32"):
        checkpoint.cast("int8")


# What does not fit ----------------------------------------------------------------------------


def rewrite(folder, kind, change):
    """Applies `change` to the tensors of a folder."""
    if kind == "safetensors":
        (folder / "model.safetensors.index.json").unlink()
        files = sorted(folder.glob("*.safetensors"))
        tensors = {}
        for file in files:
            tensors |= safetensors.numpy.load_file(file)
            file.unlink()
        safetensors.numpy.save_file(change(tensors), folder / "model.safetensors")
    else:
        state = torch.load(folder / "consolidated.pth", weights_only=True)["model"]
        changed = change({name: tensor.numpy() for name, tensor in state.items()})
        state = {name: torch.from_numpy(values) for name, values in changed.items()}
        torch.save({"model": state}, folder / "consolidated.pth")


@pytest.mark.parametrize("kind", ["safetensors", "pytorch"])
def test_all_tensors_that_do_not_fit_are_listed_in_one_error(tmp_path, folders, kind):
    folder = copy_folder(folders / kind, tmp_path / "folder")

    def change(tensors):
        del tensors["local_decoder.norm.weight"]
        tensors["local_decoder.output.weight"] = np.zeros((3, 4), np.float32)
        tensors["local_encoder.layers.0.ffn_norm.weight"] = np.zeros(8, np.int64)
        return tensors | {"rope.freqs": np.zeros(4, np.float32)}

    rewrite(folder, kind, change)
    with pytest.raises(ValueError) as error:
        open_checkpoint(folder)
    message = str(error.value)
    for part in (
        "in 4 places",
        "local_decoder.norm.weight is missing",
        "rope.freqs is not a tensor of this model",
        f"local_decoder.output.weight has shape (3, 4), expected ({LST.vocab_size}, 8)",
        "local_encoder.layers.0.ffn_norm.weight is",
    ):
        assert part in message, message


def test_leaves_of_a_run_that_do_not_fit_are_listed(tmp_path):
    checkpoint, tensors = random_checkpoint()
    params = tree_from_published(LST, tensors)
    params["decoder"]["norm"] = {"bias": np.zeros(8, np.float32)}
    params["output_kernel"] = params["output_kernel"][:-1]
    write_description(tmp_path, checkpoint.description)
    with ocp.StandardCheckpointer() as writer:
        writer.save(params_directory(step_directory(tmp_path, 3)), params)
    with pytest.raises(ValueError) as error:
        open_checkpoint(tmp_path)
    for part in (
        "local_decoder.norm.weight is missing",
        "decoder/norm/bias is not a tensor of this model",
        "local_decoder.output.weight is missing",
        "output_kernel is not a tensor of this model",
    ):
        assert part in str(error.value), error.value


def test_layers_of_different_types_cannot_be_one_leaf(tmp_path):
    checkpoint, _ = random_checkpoint()
    name = "local_decoder.layers.1.attention.wq.weight"
    specs = {**checkpoint.specs, name: TensorSpec(checkpoint.specs[name].shape, "bfloat16")}
    with pytest.raises(ValueError, match="bfloat16, float32, expected one type"):
        write_checkpoint(dataclasses.replace(checkpoint, specs=specs), tmp_path / "out", "orbax")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["empty", "text", "neither file"])
def test_a_folder_that_is_no_checkpoint_is_named(tmp_path, content):
    path = tmp_path / "nothing"
    if content != "empty":
        path.mkdir()
    if content == "text":
        (path / "notes.txt").write_text("hello")
    with pytest.raises(FileNotFoundError, match="nothing: no checkpoint there; expected model"):
        open_checkpoint(path)


# Damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.99])
@pytest.mark.parametrize("kind", ["safetensors", "pytorch"])
def test_a_truncated_file_is_named(tmp_path, folders, kind, kept):
    folder = copy_folder(folders / kind, tmp_path / "folder")
    pattern = "model-00002-of-*.safetensors" if kind == "safetensors" else "consolidated.pth"
    file = next(folder.glob(pattern))
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=file.name):
        open_checkpoint(folder)


def test_damaged_values_of_a_run_are_named(tmp_path, folders):
    folder = copy_folder(folders / "orbax", tmp_path / "folder")
    for file in (folder / "checkpoints").rglob("d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"checkpoints/3 is damaged \(params/"):
        read_all(open_checkpoint(folder))
    with pytest.raises(ValueError, match=r"checkpoints/3 is damaged \(params/"):
        write_checkpoint(open_checkpoint(folder), tmp_path / "out", "safetensors")
    assert not (tmp_path / "out").exists()


def test_flipped_bits_of_a_pth_are_noticed(tmp_path, folders):
    folder = copy_folder(folders / "pytorch", tmp_path / "folder")
    file = folder / "consolidated.pth"
    with zipfile.ZipFile(file) as archive:
        entry = max(archive.infolist(), key=lambda info: info.file_size)
    content = bytearray(file.read_bytes())
    content[entry.header_offset + 2000] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"consolidated.pth is damaged.*checksum"):
        open_checkpoint(folder)


@pytest.mark.parametrize("position", [0.0, 0.4, 0.99])
def test_a_flipped_bit_of_a_shard_is_damage_where_the_sums_are_there(tmp_path, folders, position):
    folder = copy_folder(folders / "safetensors", tmp_path / "folder")
    file = sorted(folder.glob("*.safetensors"))[1]
    content = bytearray(file.read_bytes())
    size = 8 + int.from_bytes(content[:8], "little")  # of the header
    content[size + int(position * (len(content) - size))] ^= 4
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"{file.name} is damaged"):
        open_checkpoint(folder)
    (folder / "SHA256SUMS").unlink()  # earlier exports have none
    open_checkpoint(folder)


@pytest.mark.parametrize("other", ["model.safetensors", "consolidated.pth"])
def test_two_models_in_one_folder_are_refused(tmp_path, folders, other):
    folder = copy_folder(folders / "safetensors", tmp_path / "folder")
    (folder / other).write_bytes(b"stale")
    with pytest.raises(ValueError, match="expected one of them"):
        open_checkpoint(folder)


def test_a_missing_shard_is_named(tmp_path, folders):
    folder = copy_folder(folders / "safetensors", tmp_path / "folder")
    next(folder.glob("model-00002-of-*")).unlink()
    with pytest.raises(FileNotFoundError, match="model-00002-of-"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("[", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"weight_map": 3}', "weight_map is 3, expected an object"),
        ('{"weight_map": {"a": ""}}', "expected files of its folder"),
        ('{"weight_map": {"a": 1}}', "expected files of its folder"),
        ("[" * 10_000, "nested too deeply"),
        ('{"weight_map": {"a": "../../etc/passwd"}}', "expected files of its folder"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "expected files of its folder"),
    ],
)
def test_an_index_that_is_none_is_named(tmp_path, index, message):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=f"index.json.*{message}"):
        open_checkpoint(tmp_path)


def test_tensors_that_only_the_index_has_are_listed(tmp_path, folders):
    folder = copy_folder(folders / "safetensors", tmp_path / "folder")
    index = folder / "model.safetensors.index.json"
    fields = json.loads(index.read_text())
    fields["weight_map"]["ghost"] = next(iter(fields["weight_map"].values()))
    index.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="lists tensors that their files lack: ghost"):
        open_checkpoint(folder)


class Bomb:
    """An object whose unpickling makes a file."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("form", ["zip", "plain pickle", "old torch"])
def test_a_pickle_that_wants_to_run_code_is_refused_and_not_run(tmp_path, folders, form):
    folder = copy_folder(folders / "pytorch", tmp_path / "folder")
    file, marker = folder / "consolidated.pth", tmp_path / "ran"
    content = {"model": {"local_decoder.norm.weight": Bomb(marker)}}
    if form == "plain pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ValueError, match=r"consolidated.pth is refused.*run code"):
        open_checkpoint(folder)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state": {}}, r"holds \['state'\], expected"),
        ([1, 2], "holds list, expected"),
        ({"model": {"step": 3}}, "entries that are not tensors: step"),
    ],
)
def test_a_pth_of_another_layout_is_named(tmp_path, content, message):
    torch.save(content, tmp_path / "consolidated.pth")
    with pytest.raises(ValueError, match=message):
        open_checkpoint(tmp_path)


def test_files_of_old_pytorch_and_tensors_with_strides_are_read(tmp_path):
    checkpoint, tensors = random_checkpoint()
    write_checkpoint(checkpoint, tmp_path / "out", "pytorch")
    state = {name: torch.from_numpy(values.T.copy().T) for name, values in tensors.items()}
    file = tmp_path / "out" / "consolidated.pth"
    torch.save({"model": state}, file, _use_new_zipfile_serialization=False)
    assert_same_bits(read_all(open_checkpoint(tmp_path / "out")), tensors)


def test_without_pytorch_only_pth_is_an_error(tmp_path, folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"pip install 'lst-jax\[torch\]'"):
        open_checkpoint(folders / "pytorch")
    with pytest.raises(ImportError, match=r"pip install 'lst-jax\[torch\]'"):
        write_checkpoint(open_checkpoint(folders / "orbax"), tmp_path / "out", "pytorch")
    write_checkpoint(open_checkpoint(folders / "orbax"), tmp_path / "fine", "safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["fine"]


# Whole or not at all --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [OSError("disk full"), KeyboardInterrupt(), ValueError("damaged")]
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_port_that_fails_leaves_nothing(tmp_path, kind, error):
    checkpoint, tensors = random_checkpoint()
    last = list(tensors)[-1]

    def failing(name):
        if name == last:
            raise error
        return tensors[name]

    with pytest.raises(type(error)):
        write_checkpoint(dataclasses.replace(checkpoint, read=failing), tmp_path / "out", kind)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", quick([0, 3000, 12_000], 3000, 12_000))
@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_is_an_error_of_the_output_and_leaves_nothing(tmp_path, kind, size):
    """Whichever library says so, and in whatever words."""
    checkpoint, _ = random_checkpoint()
    with files_of_at_most(size), pytest.raises(OSError) as error:
        write_checkpoint(checkpoint, tmp_path / "out", kind)
    assert error.value.errno == errno.EFBIG
    assert error.value.filename.startswith(str(tmp_path / "out"))
    assert "incomplete" not in error.value.filename and not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_that_is_there_is_not_touched(tmp_path, kind):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(FileExistsError, match="out is already there"):
        write_checkpoint(random_checkpoint()[0], tmp_path / "out", kind)
    assert [file.name for file in tmp_path.rglob("*")] == ["out", "mine"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("onnx",), "kind is 'onnx', expected one of orbax"), (("orbax", 0), "max_shard_bytes is 0")],
)
def test_impossible_arguments_are_named(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        write_checkpoint(random_checkpoint()[0], tmp_path / "out", *arguments)


# The published configuration ------------------------------------------------------------------


def test_params_json_says_all_that_the_published_format_can(tmp_path):
    """A model with the published conventions comes back from `params.json` alone."""
    config = dataclasses.replace(
        LST,
        cross_residual="double",
        document_cross_masking=False,
        pooling="mean",
        num_heads_cross=4,
    )
    checkpoint, tensors = random_checkpoint(config=config)
    patching = PatchingConfig("aligned", patch_size=5)
    data = dataclasses.replace(DATA, visibility="reference", patching=patching)
    description = dataclasses.replace(checkpoint.description, data=data)
    checkpoint = dataclasses.replace(checkpoint, description=description)
    write_checkpoint(checkpoint, tmp_path / "out", "pytorch")
    (tmp_path / "out" / "config.json").unlink()
    back = open_checkpoint(tmp_path / "out")
    assert back.description.model == config
    assert back.description.vocabulary == checkpoint.description.vocabulary
    assert back.description.data.visibility == "reference"
    assert back.description.data.patching.strategy == "aligned"
    assert back.description.data.patching.patch_size == 5
    assert_same_bits(read_all(back), tensors)
    # And what the file said besides goes out again as it came in.
    write_checkpoint(back, tmp_path / "again", "pytorch")
    first, second = (
        json.loads((tmp_path / name / "params.json").read_text()) for name in ("out", "again")
    )
    assert first == second


def change_params(tmp_path, **changes):
    config = dataclasses.replace(LST, cross_residual="double", document_cross_masking=False)
    params = make_params_json(random_checkpoint(config=config)[0].description)
    for name, value in changes.items():
        if value is None:
            del params["model"][name]
        else:
            params["model"][name] = value
    path = pathlib.Path(tmp_path / "params.json")
    path.write_text(json.dumps(params))
    return path


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"vocab_size": None, "cross_attn_k": None}, ["lacks vocab_size, cross_attn_k"]),
        (
            {"dim_global": -3, "downsampling_by_pooling": "topk", "rope_theta": "big"},
            ["dim_global is -3", "downsampling_by_pooling is 'topk'", "rope_theta is 'big'"],
        ),
        ({"dim_local_decoder": 16}, ["dim_local_decoder is 16, expected 8"]),
        ({"n_heads_local_decoder": 4}, ["n_heads_local_decoder is 4, expected 2"]),
        ({"cross_attn_all_layers_decoder": False}, ["cross_attn_all_layers_decoder is False"]),
        ({"patching_mode": "entropy"}, ["patching_mode is 'entropy', expected 'lst_static'"]),
        ({"vocab_size": 500}, ["vocab_size is 500, expected at least 511"]),
        ({"n_heads_global": 5}, ["num_heads_global is 5"]),
    ],
)
def test_a_published_configuration_that_is_none_of_ours_is_named(tmp_path, changes, parts):
    path = change_params(tmp_path, **changes)
    with pytest.raises(ValueError) as error:
        read_params_json(path)
    for part in parts:
        assert part in str(error.value)


def test_a_published_configuration_may_say_how_it_patches_under_data_and_in_floats(tmp_path):
    path = change_params(tmp_path, patching_mode="lst_align", patch_size=6.0)
    params = json.loads(path.read_text())
    expected = read_params_json(path)
    assert expected.data.patching.patch_size == 6
    patching = {name: params["model"].pop(name) for name in ("patching_mode", "patch_size")}
    params["data"]["patcher_args"] = patching
    path.write_text(json.dumps(params))
    found = read_params_json(path)
    assert found.model == expected.model
    assert found.data.patching == expected.data.patching
    change_params(tmp_path, patch_size=6.5)
    with pytest.raises(ValueError, match=r"patch_size is 6.5, expected a positive integer"):
        read_params_json(path)


PUBLISHED = make_params_json(random_checkpoint()[0].description)
PUBLISHED_PLACES = [
    ("model",),
    ("data",),
    *(("model", name) for name in PUBLISHED["model"]),
    ("data", "patcher_args"),
]


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(
    st.sampled_from(PUBLISHED_PLACES),
    st.sampled_from(["abc", "x" * 10**5, -5, 0, 2.5, 1e300, None, [1], {"a": {}}, True, 10**30]),
)
def test_any_other_value_of_a_published_setting_is_named_or_kept(tmp_path_factory, place, value):
    params = copy.deepcopy(PUBLISHED)
    section = params
    for name in place[:-1]:
        section = section[name]
    section[place[-1]] = value
    path = tmp_path_factory.getbasetemp() / "params.json"
    path.write_text(json.dumps(params))
    try:
        description = read_params_json(path)
    except ValueError as error:
        message = str(error)
        assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 500
        assert place[-1] in message or "num_heads" in message or "vocab_size" in message
        return
    again = make_params_json(description)
    for section, kept in params.items():
        assert again[section] == again[section] | kept


def test_many_problems_of_a_published_configuration_are_a_line_of_bounded_length(tmp_path):
    path = change_params(tmp_path, **dict.fromkeys(PUBLISHED["model"], "x" * 1000))
    with pytest.raises(
        ValueError, match=r"params\.json: vocab_size is 'x.*; and \d+ more$"
    ) as error:
        read_params_json(path)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("text", ["[" * 10_000, '{"model": NaN}', '{"model": 1e999}', "\xff"])
@pytest.mark.parametrize("name", ["params.json", "config.json"])
def test_configurations_that_are_hostile_json_are_refused_in_a_line(tmp_path, folders, name, text):
    folder = copy_folder(folders / "pytorch", tmp_path / "folder")
    (folder / "config.json").unlink()
    (folder / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=f"{name}: ") as error:
        open_checkpoint(folder)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("kind", ["safetensors", "pytorch"])
@pytest.mark.parametrize("step", ["abc", "../../outside", -5, 2.5, None, [3], True])
def test_a_step_that_is_none_never_becomes_a_path(tmp_path, folders, kind, step):
    folder = copy_folder(folders / kind, tmp_path / "folder")
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"step": step}))
    with pytest.raises(ValueError, match=r"config\.json: step is .*, expected an integer, 0 … "):
        write_checkpoint(open_checkpoint(folder), tmp_path / "out", "orbax")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("content", ["", "[]", '{"data": {}}', '{"model": 3}', '{"kind": "lst"}'])
@pytest.mark.parametrize("name", ["params.json", "config.json"])
def test_a_configuration_that_does_not_describe_a_model_is_named(tmp_path, folders, content, name):
    folder = copy_folder(folders / "pytorch", tmp_path / "folder")
    (folder / "config.json").unlink()
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name}: "):
        open_checkpoint(folder)


def test_a_folder_without_a_configuration_is_named(tmp_path, folders):
    folder = copy_folder(folders / "safetensors", tmp_path / "folder")
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither config.json nor params.json"):
        open_checkpoint(folder)


def test_published_names_of_every_kind_are_those_of_the_table(folders):
    names = [tensor.name for tensor in published_tensors(LST)]
    for kind in KINDS:
        assert list(open_checkpoint(folders / kind).specs) == names


def test_a_pth_file_that_cannot_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    (tmp_path / "consolidated.pth").write_bytes(b"x")

    def fail(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("torch.load", fail)
    with pytest.raises(PermissionError):
        pytorch_folder.PyTorchFolder(tmp_path)
