"""The PyTorch model: the Flax model's numbers, the published names, and errors that name files."""

import dataclasses
import functools
import json
import pathlib
import pickle
import shutil
import subprocess
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.tokenizers import train_tokenizer
from lst_jax.batch import padding_rows
from lst_jax.checkpoints.description import DataDescription, ModelDescription, description_to_json
from lst_jax.config import LSTConfig, baseline_of
from lst_jax.model.models import build_model, logits, output_kernel
from lst_jax.patching import PatchingConfig, fill_row, patch_document
from lst_jax.porting import torch_model
from lst_jax.porting.parameter_names import published_from_tree, published_tensors
from lst_jax.porting.port import Checkpoint, write_checkpoint
from lst_jax.porting.tensors import TensorSpec
from lst_jax.vocabulary import TextTokenizer, Vocabulary
from tests.lst_jax.batches import (
    VOCABULARY,
    aligned_lengths,
    random_document,
    random_tokens,
    stack_rows,
)
from tests.marks import quick

pytestmark = pytest.mark.torch

# Threads wait for each other where other processes keep the cores busy.
torch.set_num_threads(1)

GOLDEN = pathlib.Path(__file__).parents[2] / "testdata" / "golden_static"

# The documents of each row: are they patched by words?
LAYOUT = [[False, True], [True, False], [False, False], [True, True], [False], []]
B = len(LAYOUT)
# Room for two random documents; the baseline shares the shapes.
P = N = 66
LST = LSTConfig(
    vocab_size=VOCABULARY.size,
    dim_local=16,
    dim_global=32,
    num_layers_encoder=2,
    num_layers_global=2,
    num_layers_decoder=2,
    num_heads_local=2,
    num_heads_global=2,
    multiple_of=16,
    local_window=7,
    encoder_cross_window=3,
    decoder_cross_window=4,
    dtype="float32",
    attention="dense",  # compiles faster; that backends agree is tested beside them
)
PUBLISHED = dataclasses.replace(
    LST,
    cross_residual="double",
    document_cross_masking=False,
    local_window=512,
    encoder_cross_window=512,
    decoder_cross_window=512,
)
# One encoder layer where no more are needed: they are compiled one by one.
CONFIGS = {
    "ours": LST,
    "published, D = d": dataclasses.replace(
        PUBLISHED, latent_vectors_per_patch=1, dim_global=16, num_layers_encoder=1
    ),
    "one vector, D ≠ d": dataclasses.replace(
        LST,
        latent_vectors_per_patch=1,
        dim_global=24,
        num_layers_encoder=1,
        num_heads_global=3,
        pooling="mean",
    ),
    "published, D ≠ 2d, last of two": dataclasses.replace(
        PUBLISHED,
        dim_global=24,
        encoder_cross_layers="last",
        num_heads_cross=4,
        pooling="mean",
        encoder_cross_window=2,
    ),
    "three vectors, D = 3d, last of one": dataclasses.replace(
        LST,
        latent_vectors_per_patch=3,
        dim_global=48,
        num_layers_encoder=1,
        encoder_cross_layers="last",
        num_heads_local=4,
        decoder_cross_window=512,
        rope_theta=100.0,
        attention="blocked",
    ),
    "four vectors, windows of one": dataclasses.replace(
        LST,
        latent_vectors_per_patch=4,
        num_layers_encoder=1,
        local_window=1,
        encoder_cross_window=1,
        decoder_cross_window=1,
        cross_residual="double",
        norm_eps=1e-2,
        multiple_of=7,
    ),
    "baseline": baseline_of(LST),
}


def read_description(config, data):
    """What the PyTorch file reads in `config.json` of a model."""
    description = ModelDescription(config, VOCABULARY, None, data)
    return torch_model.config_from_json(json.loads(json.dumps(description_to_json(description))))


@functools.cache
def models(name):
    """Random parameters in both models: the Flax tree and the PyTorch module."""
    config = CONFIGS[name]
    shapes = jax.eval_shape(
        lambda: build_model(config).init(jax.random.key(0), stack_rows([[]], P, N))
    )
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        scale = "norm" in jax.tree_util.keystr(path)
        values = 0.3 * rng.standard_normal(leaf.shape, np.float32) + scale
        return values.astype(np.float32)

    params = jax.tree_util.tree_map_with_path(draw, nn.unbox(shapes)["params"])
    module = torch_model.build_model(read_description(config, DataDescription()).model)
    state = {k: torch.from_numpy(v) for k, v in published_from_tree(config, params).items()}
    module.load_state_dict(state, strict=True)
    return params, module


# Fixed weights of the logits in the scalar whose gradients are compared.
PROBE = np.random.default_rng(0).standard_normal((B, N, VOCABULARY.size)).astype(np.float32) / N


@functools.cache
def compiled(name):
    """Flax logits and gradients, jitted once for each configuration."""
    config = CONFIGS[name]
    model = build_model(config)

    def probe(params, batch):
        hidden = model.apply({"params": params}, batch)["hidden"]
        scores = logits(hidden, output_kernel(params), config.vocab_size)
        return (scores * PROBE).sum(), scores

    quickly = {"xla_backend_optimization_level": 0}  # it is compiled for longer than it runs
    return jax.jit(jax.grad(probe, has_aux=True), compiler_options=quickly)


def run_torch(module, batch):
    """PyTorch logits and gradients of the same functions."""
    scores = module(*torch_arrays(batch))
    parameters = dict(module.named_parameters())
    gradients = torch.autograd.grad((scores * torch.from_numpy(PROBE)).sum(), parameters.values())
    named = zip(parameters, gradients, strict=True)
    return scores.detach().numpy(), {name: x.numpy() for name, x in named}


def torch_arrays(batch):
    """What the PyTorch model takes."""
    return (torch.from_numpy(getattr(batch, name)).long() for name in torch_model.Batch._fields)


def random_batch(rng, kind):
    """Rows of two, one and no documents, and padding.

    `kind` is a visibility, or "published": every token is real, and patches of random lengths hold
    ends and beginnings of documents.
    """
    if kind == "published":
        return published_batch(rng)
    rows = [[random_document(rng, aligned) for aligned in row] for row in LAYOUT]
    return stack_rows(rows, P, N, visibility=kind)


def published_batch(rng):
    """Patches that take no notice of where documents end."""
    tokens = rng.integers(3, VOCABULARY.size, (B, N)).astype(np.int32)
    tokens[rng.random(tokens.shape) < 0.1] = VOCABULARY.eos_id
    is_eos = tokens == VOCABULARY.eos_id
    patches = np.cumsum(rng.random((B, N + 1)) < 0.4, axis=1, dtype=np.int32)
    patches -= patches[:, :1]
    return dataclasses.replace(
        padding_rows(P, N, rows=(B,)),
        tokens=tokens,
        document_ids=(1 + np.cumsum(is_eos, axis=1) - is_eos).astype(np.int32),
        patch_ids=patches[:, :-1],
        visible_patch=patches[:, 1:] - 1,
    )


@pytest.mark.parametrize("name", quick(CONFIGS, "ours", "baseline"))
@pytest.mark.parametrize("kind", ["causal", "reference", "published"])
def test_logits_and_gradients_are_those_of_the_flax_model(name, kind):
    params, module = models(name)
    # Drawn once: a maximum that rounding decides would change a gradient.
    batch = random_batch(np.random.default_rng(len(name)), kind)
    gradients, scores = compiled(name)(params, batch)
    our_scores, our_gradients = run_torch(module, batch)
    np.testing.assert_allclose(our_scores, scores, atol=1e-4)
    expected = published_from_tree(CONFIGS[name], gradients)
    assert expected.keys() == our_gradients.keys()
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    for key, gradient in expected.items():
        ours = our_gradients[key]
        np.testing.assert_allclose(ours, gradient, atol=1e-4 * largest, err_msg=key)


@pytest.mark.parametrize("name", CONFIGS)
def test_names_and_shapes_are_the_published_ones(name):
    expected = {tensor.name: tensor.shape for tensor in published_tensors(CONFIGS[name])}
    assert {key: tuple(x.shape) for key, x in models(name)[1].state_dict().items()} == expected


def test_the_published_case_is_reproduced():
    case = json.loads((GOLDEN / "case.json").read_text())
    with np.load(GOLDEN / "io.npz") as file:
        io = {name: torch.from_numpy(file[name]) for name in file.files}
    shape = case["model"]
    module = torch_model.LatentSpeechTextTransformer(
        torch_model.LSTConfig(
            vocab_size=case["vocab_size"],
            dim_local=shape["dim_local"],
            dim_global=shape["dim_global"],
            num_layers_encoder=shape["n_layers_local_encoder"],
            num_layers_global=shape["n_layers_global"],
            num_layers_decoder=shape["n_layers_local_decoder"],
            num_heads_local=case["n_heads"],
            num_heads_global=case["n_heads"],
            latent_vectors_per_patch=shape["cross_attn_k"],
            cross_residual="double",
            document_cross_masking=False,
            multiple_of=case["multiple_of"],
            rope_theta=case["rope_theta"],
            norm_eps=case["norm_eps"],
        )
    )
    weights = safetensors.torch.load_file(GOLDEN / "model.safetensors")
    module.load_state_dict(weights, strict=True)

    tokens = io["tokens"].long()
    is_eos = (tokens == case["eos_id"]).long()
    slots = torch.arange(io["patch_lengths"].shape[1])
    patch_of = torch.stack([slots.repeat_interleave(row) for row in io["patch_lengths"]])
    documents = 1 + is_eos.cumsum(1) - is_eos
    scores = module(tokens, documents, patch_of[:, :-1], patch_of[:, 1:] - 1)
    assert (scores - io["logits"]).abs().max() < 2e-4
    nll = F.cross_entropy(scores.transpose(1, 2), io["targets"].long(), reduction="none")
    assert (nll - io["nll"]).abs().max() < 2e-4
    loss = nll[io["loss_mask"]].mean()
    assert abs(loss.item() - case["loss"]) < 1e-5
    loss.backward()
    norms = {name: p.grad.norm().item() for name, p in module.named_parameters()}
    assert norms == pytest.approx(case["grad_norms"], rel=1e-3)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    patch_size=st.integers(1, 5),
    strategy=st.sampled_from(["none", "static", "aligned", "curriculum"]),
    join=st.booleans(),
    visibility=st.sampled_from(["causal", "reference"]),
)
def test_batches_are_those_of_the_data_pipeline(seed, patch_size, strategy, join, visibility):
    rng = np.random.default_rng(seed)
    patching = PatchingConfig(strategy, patch_size, join_speech_mode=join)
    config = read_description(LST, patching_data(patching, visibility))
    rows, lengths, expected = [], [], []
    for _ in range(2):
        rows.append([hostile_tokens(rng) for _ in range(rng.integers(3))])
        # The words of a document are known from its bos on.
        aligned = [
            strategy in ("aligned", "curriculum") and x[0] == VOCABULARY.bos_id for x in rows[-1]
        ]
        lengths.append(
            [aligned_lengths(rng, *pair) for pair in zip(rows[-1], aligned, strict=True)]
        )
        pairs = zip(rows[-1], lengths[-1], strict=True)
        documents = [patch_document(x, patching, VOCABULARY, words) for x, words in pairs]
        expected.append(fill_row(documents, 100, 100, visibility))
    batch = torch_model.make_batch(rows, config, lengths, num_tokens=100, num_patches=100)
    for name, ours in batch._asdict().items():
        np.testing.assert_array_equal(
            ours, np.stack([getattr(row, name) for row in expected]), name
        )
    if strategy != "aligned":
        lengths = None
    tight = torch_model.make_batch(rows, config, lengths)
    used = max(1, *(sum(map(len, row)) for row in rows))
    assert all(array.shape == (2, used) for array in tight)


def hostile_tokens(rng):
    """A document, or any sequence of ids in which the ids that matter are frequent."""
    if rng.integers(2):
        return random_tokens(rng)
    v = VOCABULARY
    special = [v.bos_id, v.eos_id, v.text_mode_id, v.speech_mode_id, v.speech_mode_id, 7]
    choices = special + list(range(v.first_unit_id, v.first_unit_id + 10))
    return rng.choice(choices, rng.integers(1, 40))


def patching_data(patching, visibility):
    return DataDescription(patching, visibility)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), name=st.sampled_from(["ours", "baseline"]), data=st.data())
def test_logits_do_not_change_whatever_tokens_follow(seed, name, data):
    rng = np.random.default_rng(seed)
    patching = PatchingConfig("none" if name == "baseline" else "static", 3)
    config = read_description(LST, patching_data(patching, "causal"))
    before, tokens = random_tokens(rng), random_tokens(rng)
    cut = data.draw(st.integers(1, len(tokens)))
    other = np.concatenate([tokens[:cut], random_tokens(rng)[1:]])
    rows = [[before, tokens], [before, tokens[:cut]], [before, other]]
    with torch.inference_mode():
        ours, prompt, changed = models(name)[1](*torch_model.make_batch(rows, config))
    seen = len(before) + cut
    np.testing.assert_allclose(prompt[:seen], ours[:seen], atol=1e-4)
    np.testing.assert_allclose(changed[:seen], ours[:seen], atol=1e-4)


def test_queries_that_read_nothing_give_zeros_and_zero_gradients():
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, n, 4, generator=rng, requires_grad=True) for n in (3, 5, 5))
    mask = torch.zeros(1, 3, 5, dtype=torch.bool)
    mask[0, 1, 2] = True
    out = torch_model.attend(q, k, v, mask)
    assert (out[:, :, [0, 2]] == 0).all()
    torch.testing.assert_close(out[:, :, 1], v[:, :, 2])
    out.sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in (q, k, v))
    assert (v.grad[:, :, [0, 1, 3, 4]] == 0).all()


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory):
    texts = ["the dog and the cat sat by the river", "a dog ran by the little river"] * 3
    return train_tokenizer(texts, tmp_path_factory.mktemp("tokenizer") / "bpe", 330)


@pytest.fixture(scope="module")
def checkpoint(tokenizer_path):
    """A checkpoint in memory, of random parameters."""
    tokenizer = TextTokenizer(tokenizer_path)
    vocabulary = tokenizer.vocabulary(unit_count=20)
    config = dataclasses.replace(LST, vocab_size=vocabulary.size)
    data = patching_data(PatchingConfig("static", 3), "causal")
    description = ModelDescription(config, vocabulary, tokenizer.fingerprint, data)
    rng = np.random.default_rng(0)
    tensors = {
        tensor.name: 0.2 * rng.standard_normal(tensor.shape, np.float32)
        for tensor in published_tensors(config)
    }
    specs = {name: TensorSpec(x.shape, "float32") for name, x in tensors.items()}
    return Checkpoint("memory", description, 3, specs, tensors.__getitem__)


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    """A folder as it is exported; tests read it only."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    write_checkpoint(checkpoint, folder, "safetensors")
    return folder


@pytest.fixture
def folder(exported, tmp_path):
    """A copy of the exported folder that a test may damage."""
    return shutil.copytree(exported, tmp_path / "model")


@pytest.fixture
def sharded(checkpoint, tmp_path):
    """The folder in shards."""
    write_checkpoint(checkpoint, tmp_path / "model", "safetensors", max_shard_bytes=20_000)
    return tmp_path / "model"


@pytest.fixture
def consolidated(checkpoint, tmp_path):
    """The folder with `consolidated.pth`."""
    write_checkpoint(checkpoint, tmp_path / "model", "pytorch")
    return tmp_path / "model"


def state_of(folder):
    """The tensors, copied: the file that they would be mapped from may change."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    return {name: tensor.clone() for name, tensor in tensors.items()}


@pytest.mark.parametrize("layout", ["folder", "sharded", "consolidated"])
def test_every_layout_loads_the_same_parameters(checkpoint, layout, request):
    folder = request.getfixturevalue(layout)
    module = torch_model.load_model(folder)
    # Nothing of the files is needed any more.
    for file in folder.iterdir():
        file.write_bytes(b"")
    assert module.state_dict().keys() == checkpoint.specs.keys()
    for name, parameter in module.named_parameters():
        np.testing.assert_array_equal(parameter.detach(), checkpoint.read(name))
        assert parameter.requires_grad


def test_checkpoints_of_bfloat16_keep_their_values(checkpoint, tmp_path):
    write_checkpoint(checkpoint.cast("bfloat16"), tmp_path / "half", "safetensors")
    name = "local_decoder.output.weight"
    expected = torch.from_numpy(checkpoint.read(name)).to(torch.bfloat16)
    assert torch.equal(torch_model.load_model(tmp_path / "half").state_dict()[name], expected)


def test_bfloat16_stays_near_float32(exported):
    config = torch_model.read_config(exported)
    first = config.vocabulary.first_unit_id
    prompt = np.array([1, config.vocabulary.speech_mode_id, *range(first, first + 7)])
    batch = torch_model.make_batch([[prompt]], config)
    with torch.inference_mode():
        full = torch_model.load_model(exported)(*batch)
        half = torch_model.load_model(exported, torch.bfloat16)
        scores = half(*batch)
    assert all(parameter.dtype == torch.bfloat16 for parameter in half.parameters())
    assert scores.dtype == torch.float32
    assert 0 < (scores - full).abs().max() < 0.1


def test_all_tensors_that_do_not_fit_are_listed_at_once(folder):
    state = state_of(folder)
    del state["local_decoder.norm.weight"]
    state["local_decoder.extra"] = torch.zeros(3)
    state["local_decoder.output.weight"] = torch.zeros(5, 16)
    safetensors.torch.save_file(state, folder / "model.safetensors")
    with pytest.raises(ValueError) as error:
        torch_model.load_model(folder)
    size = torch_model.read_config(folder).vocabulary.size
    for part in (
        "missing local_decoder.norm.weight (16,)",
        "surplus local_decoder.extra (3,)",
        f"local_decoder.output.weight is (5, 16), expected ({size}, 16)",
    ):
        assert part in str(error.value)


def test_tensors_of_integers_are_refused(folder):
    state = state_of(folder)
    state["local_decoder.norm.weight"] = torch.ones(16, dtype=torch.int8)
    safetensors.torch.save_file(state, folder / "model.safetensors")
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match=r"local_decoder.norm.weight.*int8"):
        torch_model.load_model(folder)


@pytest.mark.parametrize("damage", ["truncated", "header", "empty", "absent"])
def test_a_damaged_shard_is_named(sharded, damage):
    shard = sorted(sharded.glob("*.safetensors"))[1]
    content = shard.read_bytes()
    if damage == "absent":
        shard.unlink()
    else:
        changed = {"truncated": content[:-100], "header": b"\xff" * 40, "empty": b""}[damage]
        shard.write_bytes(changed)
    with pytest.raises((ValueError, FileNotFoundError), match=shard.name):
        torch_model.load_model(sharded)


@pytest.mark.parametrize("layout", ["folder", "sharded"])
def test_a_flipped_bit_is_damage_where_the_sums_are_there(layout, request):
    folder = request.getfixturevalue(layout)
    shard = max(folder.glob("*.safetensors"), key=lambda file: file.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[-100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=f"{shard.name} is damaged"):
        torch_model.load_model(folder)
    (folder / "SHA256SUMS").unlink()
    torch_model.load_model(folder)


@pytest.mark.parametrize("other", ["model.safetensors", "consolidated.pth"])
def test_two_models_in_one_folder_are_refused(sharded, other):
    (sharded / other).write_bytes(b"stale")
    with pytest.raises(ValueError, match=f"{other}.*several models"):
        torch_model.load_model(sharded)


def test_logits_that_are_not_finite_are_an_error_and_no_tokens(folder, capsys):
    state = state_of(folder)
    state["local_decoder.norm.weight"][0] = torch.nan
    safetensors.torch.save_file(state, folder / "model.safetensors")
    (folder / "SHA256SUMS").unlink()
    assert torch_model.main([str(folder), "--units=1,2,3"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == f"error: {folder}: the model's logits are not finite; is it broken?\n"


class Malicious:
    """Pickles as a call; a reader that follows it would create the file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


@pytest.mark.parametrize(
    "damage", ["truncated", "code", "old pickle", "no model", "no tensors", "empty"]
)
def test_a_damaged_or_dangerous_consolidated_file_is_named(consolidated, tmp_path, damage):
    file, trap = consolidated / "consolidated.pth", tmp_path / "trap"
    state = torch_model.load_model(consolidated).state_dict()
    content = {
        "code": {"model": state, "extra": Malicious(trap)},
        "no model": state,
        "no tensors": {"model": {"a": 1}},
    }
    if damage in content:
        torch.save(content[damage], file)
    elif damage == "old pickle":
        file.write_bytes(pickle.dumps({"model": Malicious(trap)}))
    else:
        file.write_bytes(file.read_bytes()[: -1000 if damage == "truncated" else 0])
    with pytest.raises(ValueError, match=file.name):
        torch_model.load_model(consolidated)
    assert not trap.exists()


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "../a"}}'],
)
def test_a_damaged_index_is_named(sharded, content):
    file = sharded / "model.safetensors.index.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=file.name):
        torch_model.load_model(sharded)


def test_missing_folders_and_files_are_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        torch_model.load_model(tmp_path / "nowhere")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors.*consolidated\.pth"):
        torch_model.load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        torch_model.load_model(folder)


@pytest.mark.parametrize(
    ("section", "change", "named"),
    [
        ("model", {"dim_local": "16"}, "dim_local='16'"),
        ("model", {"dim_local": True}, "dim_local=True"),
        ("model", {"num_layers_global": 0}, "num_layers_global=0"),
        ("model", {"num_layers_global": 10**6}, "num_layers_global=1000000: .* at most 1024"),
        ("model", {"dim_global": 10**6}, "dim_global=1000000: .* at most 65536"),
        ("model", {"num_heads_local": 3}, "num_heads_local=3"),
        ("model", {"num_heads_cross": 5}, "num_heads_cross=5"),
        ("model", {"dim_global": 16}, "latent_vectors_per_patch=2"),
        ("model", {"pooling": "min"}, "pooling='min'"),
        ("model", {"pooling": ["max"]}, "pooling="),
        ("model", {"norm_eps": 0}, "norm_eps=0"),
        ("model", {"rope_theta": None}, "rope_theta=None"),
        ("model", {"document_cross_masking": "no"}, "document_cross_masking='no'"),
        ("model", {"kind": "BLT"}, "kind='BLT'"),
        ("model", {"experts": 8}, "experts"),
        ("model", {"hash_ngram_sizes": [3]}, "hash_ngram_sizes"),
        ("model", {"vocab_size": 7}, "vocab_size=7"),
        ("vocabulary", {"unit_count": -1}, "unit_count=-1"),
        ("vocabulary", {"bos_id": -1}, "bos_id=-1"),
        ("data", {"visibility": "all"}, "visibility='all'"),
        ("data", {"patching": 4}, "patching=4"),
        ("data", {"patching": {"patch_size": 0}}, "patch_size=0"),
        ("model", {"norm_eps": float("nan")}, "NaN is no number"),
        ("model", {"rope_theta": float("inf")}, "Infinity is no number"),
        ("units", {"deduplicated": True}, "units=\"{'deduplicated': True"),
        ("units", {"pieces": [[3, 4]] * 999, "run_length": 1.0}, "units=\"{'pieces': "),
        ("units", {"pieces_fingerprint": "0"}, "units="),
        ("global_transformer", {"window": 8}, "global_transformer={'window': 8}"),
    ],
)
def test_impossible_configurations_are_named(folder, section, change, named):
    fields = json.loads((folder / "config.json").read_text())
    fields[section] |= change
    (folder / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=named) as error:
        torch_model.read_config(folder)
    assert "config.json" in str(error.value)


@pytest.mark.parametrize("version", [0, 3, "2", True, None])
def test_a_configuration_of_another_version_is_named(folder, version):
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"format_version": version}))
    with pytest.raises(ValueError, match=r"config\.json: format_version="):
        torch_model.read_config(folder)


def test_a_configuration_of_version_1_is_read(folder):
    """It had no version, and kept the step among the data."""
    now = torch_model.read_config(folder)
    fields = json.loads((folder / "config.json").read_text())
    names = ("model", "vocabulary", "tokenizer_fingerprint")
    first = {name: fields[name] for name in names}
    first["data"] = {**fields["data"], "step": fields["step"]}
    (folder / "config.json").write_text(json.dumps(first))
    assert torch_model.read_config(folder) == now


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"model": {"kind": "LSTConfig"}}', "[" * 10_000, '{"model": 1, "model": 2}'],
)
def test_a_damaged_configuration_is_named(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json"):
        torch_model.read_config(folder)


@pytest.mark.parametrize(
    ("rows", "options", "named"),
    [
        ([], {}, "rows"),
        ([[np.zeros(0, int)]], {}, "document"),
        ([[np.zeros((2, 2), int)]], {}, "document"),
        ([[np.zeros(2)]], {}, "document"),
        ([[np.array([-1])]], {}, "document"),
        ([[np.array([VOCABULARY.size])]], {}, "document"),
        ([[np.ones(3, int)]], {"num_tokens": 2}, "num_tokens=2"),
        ([[np.ones(3, int)]], {"num_patches": 2}, "num_patches=2"),
        ([[np.ones(3, int)]], {"aligned_lengths": []}, "aligned_lengths"),
        ([[np.ones(3, int)]], {"aligned_lengths": [[]]}, "aligned_lengths"),
        ([[np.ones(3, int)]], {"aligned_lengths": [[[1, 1]]]}, "aligned_lengths"),
        ([[np.ones(3, int)]], {"aligned_lengths": [[[1, 2]]]}, "aligned_lengths"),
        ([[np.ones(3, int)]], {"aligned_lengths": [[[1, 3, -1]]]}, "aligned_lengths"),
        ([[np.ones(3, int)]], {"aligned_lengths": [[[1.5, 1.5]]]}, "aligned_lengths"),
        ([[np.ones(3, int)]], {"aligned_lengths": [[[[3]]]]}, "aligned_lengths"),
    ],
)
def test_impossible_batches_are_named(rows, options, named):
    config = torch_model.Config(
        read_description(LST, DataDescription()).model,
        torch_model.Vocabulary(40, unit_count=20),
        torch_model.Patching(),
    )
    with pytest.raises(ValueError, match=named):
        torch_model.make_batch(rows, config, **options)


def test_a_batch_of_nothing_has_one_slot_of_each_kind():
    config = torch_model.Config(
        read_description(LST, DataDescription()).model,
        torch_model.Vocabulary(40, unit_count=20),
        torch_model.Patching(),
    )
    batch = torch_model.make_batch([[], []], config)
    assert [x.tolist() for x in batch] == [[[0]] * 2, [[0]] * 2, [[1]] * 2, [[-1]] * 2]


def test_batches_need_a_known_patching():
    config = torch_model.Config(
        read_description(LST, DataDescription()).model, torch_model.Vocabulary(40, unit_count=20)
    )
    with pytest.raises(ValueError, match="patching"):
        torch_model.make_batch([[np.ones(3, int)]], config)


def test_the_vocabulary_is_the_library_s():
    ours, theirs = torch_model.Vocabulary(40, unit_count=20), Vocabulary(40, unit_count=20)
    for name in ("text_mode_id", "speech_mode_id", "first_unit_id", "size"):
        assert getattr(ours, name) == getattr(theirs, name)


def test_the_command_prints_the_model_s_five_most_likely_tokens(exported, tokenizer_path, capsys):
    arguments = [f"--tokenizer={tokenizer_path}", "--units=3,17,17", "--text=the dog", "--units=9"]
    assert torch_model.main([str(exported), *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()

    tokenizer = TextTokenizer(tokenizer_path)
    v = tokenizer.vocabulary(unit_count=20)
    prompt = [v.bos_id, v.speech_mode_id, *v.units_to_ids([3, 17, 17])]
    prompt += [v.text_mode_id, *tokenizer.encode("the dog"), v.speech_mode_id, v.first_unit_id + 9]
    config = torch_model.read_config(exported)
    with torch.inference_mode():
        scores = torch_model.load_model(exported)(
            *torch_model.make_batch([[np.array(prompt)]], config)
        )
    probabilities, tokens = scores[0, -1].softmax(-1).topk(5)
    for line, probability, token in zip(lines, probabilities, tokens.tolist(), strict=True):
        assert float(line.split()[0]) == pytest.approx(probability.item(), abs=1e-4)
        assert line[8:] == described(token, v, tokenizer)


def described(token, v, tokenizer):
    if v.is_unit(token):
        return f"unit {v.ids_to_units([token])[0]}"
    names = {v.bos_id: "<bos>", v.eos_id: "<eos>", v.text_mode_id: "<t>", v.speech_mode_id: "<s>"}
    if token in names:
        return names[token]
    if token >= v.text_size:
        return f"reserved {token}"
    return repr(tokenizer.piece(token).replace("\u2581", " "))


def test_every_token_has_a_name(tokenizer_path):
    tokenizer = TextTokenizer(tokenizer_path)
    theirs = tokenizer.vocabulary(unit_count=20)
    ours = torch_model.Vocabulary(theirs.text_size, theirs.bos_id, theirs.eos_id, 20)
    config = torch_model.Config(
        dataclasses.replace(read_description(LST, DataDescription()).model, vocab_size=ours.size),
        ours,
    )
    pieces = torch_model.Tokenizer(tokenizer_path, config)
    for token in range(ours.size):
        expected = described(token, theirs, tokenizer)
        assert torch_model.describe_token(token, ours, pieces) == expected
    assert torch_model.describe_token(7, ours, None) == "text 7"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nowhere"], "nowhere"),
        ([], "folder"),
        (["FOLDER", "--unit=3"], "--unit=3"),
        (["FOLDER", "--units=3,x"], "units='3,x'"),
        (["FOLDER", "--units=20"], "units"),
        (["FOLDER", "--units=-1"], "units"),
        (["FOLDER", "--text=the dog"], "--tokenizer"),
        (["FOLDER", "--text=" + "the dog" * 999], "--tokenizer"),
        (["FOLDER", "--tokenizer=nowhere.model"], "nowhere.model"),
        (["FOLDER", "--tokenizer=FOLDER/config.json"], "config.json"),
        (["FOLDER", "--tokenizer=OTHER"], "SHA-256"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(
    exported, tmp_path, tokenizer_path, capsys, arguments, named
):
    names = {"FOLDER": str(exported), "OTHER": str(tmp_path / "other.model")}
    # A field that readers skip: the same pieces in another file.
    content = pathlib.Path(tokenizer_path).read_bytes() + b"\xf8\x07\x01"
    (tmp_path / "other.model").write_bytes(content)
    for name, path in names.items():
        arguments = [argument.replace(name, path) for argument in arguments]
    assert torch_model.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1 and len(captured.err) < 500
    assert named in captured.err


@pytest.mark.slow
@pytest.mark.multiprocess
def test_the_file_runs_alone(exported, tmp_path):
    """A copy of the file, where JAX and this package cannot be imported."""
    copy = shutil.copy(torch_model.__file__, tmp_path / "torch_model.py")
    code = (
        "import runpy, sys\n"
        "for name in ('lst_jax', 'jax', 'flax', 'optax', 'orbax', 'tensorstore', 'ml_dtypes',\n"
        "             'sentencepiece'):\n"
        "    sys.modules[name] = None\n"
        f"sys.argv = ['torch_model.py', {str(exported)!r}, '--units=3,17,17,9']\n"
        f"runpy.run_path({str(copy)!r}, run_name='__main__')\n"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 5
