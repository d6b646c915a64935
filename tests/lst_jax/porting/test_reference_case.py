"""Cases of the published implementation: the golden one agrees, changed and broken ones do not."""

import dataclasses
import json
import math
import pathlib
import shutil

import numpy as np
import pytest
import safetensors.numpy
import torch

from lst_jax.model.attention import BACKENDS
from lst_jax.porting import torch_model
from lst_jax.porting.reference_case import TOLERANCE, Differences, compare, read_case
from tests.marks import quick

pytestmark = pytest.mark.torch

GOLDEN = pathlib.Path(__file__).parents[2] / "testdata" / "golden_static"


@pytest.fixture
def case(tmp_path):
    """A copy of the golden case that can be changed."""
    return pathlib.Path(shutil.copytree(GOLDEN, tmp_path / "case"))


def change_json(folder, **changes):
    path = folder / "case.json"
    fields = json.loads(path.read_text())
    for name, value in changes.items():
        section = fields["model"] if name in fields["model"] else fields
        if value is None:
            del section[name]
        else:
            section[name] = value
    path.write_text(json.dumps(fields))


def change_arrays(folder, **changes):
    arrays = dict(np.load(folder / "io.npz"))
    for name, change in changes.items():
        arrays[name] = change(arrays[name].copy())
    np.savez(folder / "io.npz", **arrays)


@pytest.mark.parametrize("attention", quick(["blocked", "dense"], "dense"))
def test_the_golden_case_is_reproduced_forward_and_backward(attention):
    assert attention in BACKENDS
    differences = compare(read_case(GOLDEN), attention)
    assert differences.within(TOLERANCE), differences
    # Float32 in another order of summation does far better than the tolerance.
    assert differences.max_abs_logit_diff < 1e-5
    assert differences.max_rel_grad_norm_diff < 1e-5


CASES = {
    "k=1, d=D, mean, last, windows of 1": dict(
        dim_local=16, dim_global=16, cross_attn_k=1, pooling="avg", windows=(1, 1, 1), all=False
    ),
    "k=4, kd<D, small windows": dict(
        dim_local=16, dim_global=72, cross_attn_k=4, pooling="max", windows=(7, 3, 2), all=True
    ),
}


@pytest.fixture(scope="module")
def made_cases(tmp_path_factory):
    """Cases by the PyTorch model: several documents and layers, an eos inside a patch, padding."""
    parent = tmp_path_factory.mktemp("cases")
    for seed, (name, shape) in enumerate(CASES.items()):
        (parent / name).mkdir()
        write_case(parent / name, np.random.default_rng(seed), **shape)
    return parent


def write_case(folder, rng, windows, all, pooling, **shape):
    model = shape | {
        "cross_attn_window_encoder": windows[0],
        "cross_attn_window_decoder": windows[1],
        "local_attention_window": windows[2],
        "pooling": pooling,
        "cross_attn_all_layers_encoder": all,
        "cross_attn_all_layers_decoder": True,
        "n_layers_local_encoder": 2,
        "n_layers_global": 2,
        "n_layers_local_decoder": 2,
    }
    case = {"vocab_size": 60, "eos_id": 2, "n_heads": 2, "multiple_of": 8, "model": model}
    case |= {"rope_theta": 1e4, "norm_eps": 1e-5}
    config = torch_model.LSTConfig(
        vocab_size=60,
        dim_local=shape["dim_local"],
        dim_global=shape["dim_global"],
        num_layers_encoder=2,
        num_layers_global=2,
        num_layers_decoder=2,
        num_heads_local=2,
        num_heads_global=2,
        latent_vectors_per_patch=shape["cross_attn_k"],
        encoder_cross_window=windows[0],
        decoder_cross_window=windows[1],
        local_window=windows[2],
        pooling={"avg": "mean"}.get(pooling, pooling),
        encoder_cross_layers="all" if all else "last",
        cross_residual="double",
        document_cross_masking=False,
        multiple_of=8,
        rope_theta=1e4,
    )
    rows, length, num_patches = 2, 40, 14
    tokens = rng.integers(3, 60, (rows, length))
    tokens[:, 1::2] = tokens[:, 2:3]  # the same tokens again and again: equal maxima
    tokens[0, [4, 9, 25]], tokens[1, [15, 16]], tokens[:, 33:] = 2, 2, 0
    cuts = [np.sort(rng.choice(np.arange(2, 34), num_patches - 2, replace=False)) for _ in "ab"]
    lengths = np.stack([np.diff([0, 1, *cut, length + 1]) for cut in cuts])
    patch_of = np.stack([np.repeat(np.arange(num_patches), row) for row in lengths])
    document_ids = 1 + np.cumsum(tokens == 2, axis=1) - (tokens == 2)

    torch.manual_seed(0)
    network = torch_model.build_model(config)
    for parameter in network.parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.2
        torch.nn.init.normal_(parameter, float(parameter.ndim == 1), scale)
    arrays = (tokens, document_ids, patch_of[:, :-1], patch_of[:, 1:] - 1)
    logits = network(*map(torch.from_numpy, arrays))
    targets, mask = rng.integers(0, 60, (rows, length)), (rng.random((rows, length)) < 0.8)
    nll = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.from_numpy(targets).flatten(), reduction="none"
    ).reshape(rows, length)
    loss = (nll * torch.from_numpy(mask)).sum() / mask.sum()
    loss.backward()
    case["loss"] = loss.item()
    case["grad_norms"] = {n: p.grad.norm().item() for n, p in network.named_parameters()}
    (folder / "case.json").write_text(json.dumps(case))
    state = {name: values.numpy() for name, values in network.state_dict().items()}
    safetensors.numpy.save_file(state, folder / "model.safetensors")
    np.savez(
        folder / "io.npz",
        tokens=tokens,
        targets=targets,
        loss_mask=mask,
        patch_lengths=lengths,
        logits=logits.detach().numpy(),
        nll=nll.detach().numpy(),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_other_shapes_and_several_documents_agree_too(made_cases, name):
    assert compare(read_case(made_cases / name)).within(TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "value"), [("cross_residual", "single"), ("document_cross_masking", True)]
)
def test_our_own_conventions_are_not_the_reference(made_cases, field, value):
    """So the agreement above is no accident of a case that cannot tell them apart."""
    case = read_case(made_cases / list(CASES)[1])
    config = dataclasses.replace(case.config, **{field: value})
    differences = compare(dataclasses.replace(case, config=config), "dense")
    assert differences.max_abs_logit_diff > 10 * TOLERANCE.max_abs_logit_diff


@pytest.mark.slow
def test_the_reference_is_left_where_a_patch_is_seen_later():
    case = read_case(GOLDEN)
    visible = np.maximum(case.batch.visible_patch - 1, 0)
    changed = dataclasses.replace(
        case, batch=dataclasses.replace(case.batch, visible_patch=visible)
    )
    assert not compare(changed).within(TOLERANCE)


@pytest.mark.slow
def test_one_changed_gradient_norm_and_the_loss_are_noticed():
    case = read_case(GOLDEN)
    names = list(case.grad_norms)
    smallest = min(names, key=case.grad_norms.get)
    norms = {**case.grad_norms, smallest: 1.002 * case.grad_norms[smallest]}
    changed = dataclasses.replace(case, grad_norms=norms, loss=case.loss + 3e-5)
    differences = compare(changed)
    assert differences.max_abs_logit_diff <= TOLERANCE.max_abs_logit_diff
    assert differences.loss_diff > TOLERANCE.loss_diff
    assert differences.max_rel_grad_norm_diff > TOLERANCE.max_rel_grad_norm_diff


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Differences)])
def test_no_tolerance_lets_numbers_pass_that_are_not_finite(field, value):
    assert not dataclasses.replace(Differences(0, 0, 0), **{field: value}).within(TOLERANCE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": None}, r"case.json does not describe a case: KeyError\('loss'\)"),
        ({"dim_local": None}, r"case.json does not describe a case: KeyError\('dim_local'\)"),
        ({"pooling": "topk"}, "pooling is 'topk', expected one of"),
        ({"cross_attn_all_layers_decoder": False}, "cross_attn_all_layers_decoder is false"),
        ({"n_layers_global": 3}, r"global_transformer.layers.2.ffn_norm.weight is missing"),
        ({"dim_global": 32}, "latent_vectors_per_patch is 2"),
        ({"grad_norms": {"a": 1.0}}, "grad_norms and parameters differ in .*'a'"),
    ],
)
def test_a_configuration_that_does_not_fit_is_named(case, changes, message):
    change_json(case, **changes)
    with pytest.raises(ValueError, match=message):
        read_case(case)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("patch_lengths", lambda x: x + 1, "patch_lengths that sum to"),
        ("patch_lengths", lambda x: np.pad(x, ((0, 0), (1, 0))), "zeros last"),
        ("tokens", lambda x: x + 800, "tokens are .* expected 0 … 807"),
        ("targets", lambda x: x[:, 1:], "targets has shape"),
        ("logits", lambda x: x[..., 1:], "logits has shape"),
    ],
)
def test_arrays_that_do_not_fit_are_named(case, name, change, message):
    change_arrays(case, **{name: change})
    with pytest.raises(ValueError, match=message):
        read_case(case)


@pytest.mark.slow
def test_slots_behind_the_last_patch_change_nothing(case):
    """Rows with fewer patches than others end with patches of length zero."""
    change_arrays(case, patch_lengths=lambda x: np.pad(x, ((0, 0), (0, 3))))
    assert compare(read_case(case), "dense").within(TOLERANCE)


@pytest.mark.parametrize("name", ["io.npz", "model.safetensors", "case.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_missing_and_truncated_files_are_named(case, name, damage):
    content = (case / name).read_bytes()
    (case / name).unlink()
    if damage == "truncated":
        (case / name).write_bytes(content[: len(content) // 2])
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        read_case(case)
    assert name in f"{error.value} {getattr(error.value, 'filename', '')}"


def test_half_precision_parameters_are_read_as_float32(case):
    tensors = safetensors.numpy.load_file(case / "model.safetensors")
    halves = {name: values.astype(np.float16) for name, values in tensors.items()}
    safetensors.numpy.save_file(halves, case / "model.safetensors")
    table = read_case(case).params["encoder"]["embedding"]["table"]
    assert table.dtype == np.float32
    expected = halves["local_encoder.tok_embeddings.weight"].astype(np.float32)
    np.testing.assert_array_equal(table[: len(expected)], expected)
