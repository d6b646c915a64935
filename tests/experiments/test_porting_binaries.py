"""The binaries that verify and port, run as a user runs them."""

import dataclasses
import json
import pathlib

import pytest
import safetensors.numpy

from lst_jax.inference.trained_model import load_trained_model
from lst_jax.porting.port import open_checkpoint, write_checkpoint
from tests.binaries import run_binary
from tests.experiments.test_evaluate import write_tokenizer
from tests.lst_jax.porting.checkpoints_of_all_kinds import (
    LST,
    assert_same_bits,
    random_checkpoint,
    read_all,
)

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess, pytest.mark.torch]

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "testdata" / "golden_static"


def run(binary, *arguments):
    return run_binary(f"experiments.{binary}", *arguments)


def test_verify_reference_prints_one_json_line_and_succeeds():
    result = run("verify_reference", f"--case={GOLDEN}")
    assert result.returncode == 0, result.stderr
    (line,) = result.stdout.splitlines()
    differences = json.loads(line)
    assert differences["max_abs_logit_diff"] <= 2e-4
    assert differences["loss_diff"] <= 1e-5
    assert differences["max_rel_grad_norm_diff"] <= 1e-3


def test_verify_reference_fails_where_a_weight_differs(tmp_path):
    for file in GOLDEN.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = safetensors.numpy.load_file(GOLDEN / "model.safetensors")
    tensors["global_transformer.layers.0.attention.wq.weight"][0] += 0.1
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    result = run("verify_reference", f"--case={tmp_path}")
    assert result.returncode == 1
    assert json.loads(result.stdout)["max_abs_logit_diff"] > 2e-4


def test_verify_reference_names_a_missing_case_in_one_line(tmp_path):
    result = run("verify_reference", f"--case={tmp_path / 'none'}")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == f"error: {tmp_path}/none/case.json: No such file or directory\n"


def test_a_published_checkpoint_becomes_a_model_that_can_be_evaluated(tmp_path):
    """Its `params.json` names no tokenizer, so the user does."""
    tokenizer = write_tokenizer(tmp_path / "pieces.model", "the cat saw a dog")
    vocabulary = tokenizer.vocabulary()
    config = dataclasses.replace(
        LST, vocab_size=vocabulary.size, cross_residual="double", document_cross_masking=False
    )
    checkpoint, tensors = random_checkpoint(config=config, vocabulary=vocabulary)
    write_checkpoint(checkpoint, tmp_path / "published", "pytorch")
    (tmp_path / "published" / "config.json").unlink()  # which only our own exports have
    output = tmp_path / "ported"
    result = run(
        "port_checkpoint",
        f"--input={tmp_path / 'published'}",
        f"--output={output}",
        "--to=orbax",
        f"--tokenizer={tokenizer.model_path}",
    )
    assert result.returncode == 0, result.stderr
    assert f"{output}: {len(tensors)} tensors, 0.000 GB (float32) of step 0" in result.stdout
    assert_same_bits(read_all(open_checkpoint(output)), tensors)
    trained = load_trained_model(output)
    assert trained.visibility == "reference"
    assert trained.patching.join_speech_mode
    assert trained.tokenizer.fingerprint == tokenizer.fingerprint


def test_a_model_without_a_named_tokenizer_asks_for_one(tmp_path):
    tokenizer = write_tokenizer(tmp_path / "pieces.model", "the cat saw a dog")
    checkpoint, _ = random_checkpoint()
    description = dataclasses.replace(checkpoint.description, tokenizer_fingerprint=None)
    checkpoint = dataclasses.replace(checkpoint, description=description)
    write_checkpoint(checkpoint, tmp_path / "run", "orbax")
    with pytest.raises(ValueError, match="does not say which tokenizer"):
        load_trained_model(tmp_path / "run")
    with pytest.raises(ValueError, match=f"has {tokenizer.size} pieces; expected 30"):
        load_trained_model(tmp_path / "run", tokenizer.model_path)


def test_an_export_to_the_published_format_says_what_that_computes_otherwise(tmp_path):
    write_checkpoint(random_checkpoint()[0], tmp_path / "run", "orbax")
    arguments = [f"--input={tmp_path / 'run'}", f"--output={tmp_path / 'out'}", "--to=pytorch"]
    result = run("port_checkpoint", *arguments, "--dtype=bfloat16")
    assert result.returncode == 0, result.stderr
    for difference in (
        "cross_residual is 'single' here, 'double' there",
        "document_cross_masking is True here, False there",
        "visibility is 'causal' here, 'reference' there",
    ):
        assert difference in result.stdout
    assert {spec.dtype for spec in open_checkpoint(tmp_path / "out").specs.values()} == {"bfloat16"}


def test_a_step_that_its_run_deletes_meanwhile_gives_the_newest(tmp_path):
    checkpoint, tensors = random_checkpoint()
    for step in (1, 2):
        write_checkpoint(dataclasses.replace(checkpoint, step=step), tmp_path / str(step), "orbax")
    (tmp_path / "2" / "checkpoints" / "2").rename(tmp_path / "1" / "checkpoints" / "2")
    run_folder = (tmp_path / "1").rename(tmp_path / "run")
    (tmp_path / "deleting.py").write_text(
        "import runpy, shutil\nfrom lst_jax.porting import port\n"
        "write = port.write_checkpoint\n"
        "def write_checkpoint(*arguments, **options):\n"
        "    shutil.rmtree('run/checkpoints/2', ignore_errors=True)\n"
        "    write(*arguments, **options)\n"
        "port.write_checkpoint = write_checkpoint\n"
        "runpy.run_module('experiments.port_checkpoint', run_name='__main__')\n"
    )
    arguments = [f"--input={run_folder}", "--output=out", "--to=safetensors"]
    result = run_binary("deleting", *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "checkpoints/2 was deleted while it was read" in result.stderr
    assert " of step 1, as safetensors" in result.stdout
    assert_same_bits(read_all(open_checkpoint(tmp_path / "out")), tensors)


def test_porting_nothing_is_one_line(tmp_path):
    arguments = [f"--input={tmp_path}", f"--output={tmp_path / 'out'}", "--to=orbax"]
    result = run("port_checkpoint", *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {tmp_path}: no checkpoint there; expected ")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
