"""Beside transformers' PyTorch: other shapes and names, and the full base size (lane `speech`)."""

import functools
import pathlib

import jax
import numpy as np
import pytest
import torch
import transformers

from data_pipelines.speech.hugging_face import SpeechModel, read_model, write_model
from data_pipelines.speech.registry import open_language_model
from experiments.inspection.speech_cases import verify_case
from lst_jax.speech.wav2vec2 import Wav2Vec2, apply_model

pytestmark = pytest.mark.torch

SMALL = dict(
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=40,
    conv_dim=(12,) * 7,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
)
LENGTHS = np.array([9000, 6500], np.int32)
SHAPES = {
    "hubert": ("Hubert", SMALL),
    "odd taps": ("Hubert", SMALL | {"num_conv_pos_embeddings": 9, "conv_bias": True}),
    "no projection norm": ("Hubert", SMALL | {"feat_proj_layer_norm": False}),
    "batch norm": ("Hubert", SMALL | {"conv_pos_batch_norm": True}),
    "stable hubert": (
        "Hubert",
        SMALL | {"do_stable_layer_norm": True, "feat_extract_norm": "layer"},
    ),
    "wav2vec2": ("Wav2Vec2", SMALL),
    "stable wav2vec2": (
        "Wav2Vec2",
        SMALL | {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True},
    ),
    "25 Hz": (
        "Hubert",
        SMALL | {"conv_stride": (5, 2, 2, 2, 2, 2, 4), "conv_kernel": (10, 3, 3, 3, 3, 2, 4)},
    ),
}


def make(name, head=False):
    """Returns transformers' model with every parameter drawn."""
    family, settings = SHAPES[name]
    config = getattr(transformers, f"{family}Config")(**settings)
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}{'ForCTC' if head else 'Model'}")(config).eval()
    with torch.no_grad():
        for x in (*model.parameters(), *model.buffers()):
            if x.dtype == torch.float32:
                x.add_(0.1 * torch.randn_like(x).abs())
    return model


def waveforms(seconds=None):
    rng = np.random.default_rng(0)
    if seconds:
        return rng.normal(size=(1, seconds * 16_000)).astype(np.float32)
    x = rng.normal(size=(2, 9000)).astype(np.float32)
    return np.where(np.arange(9000) < LENGTHS[:, None], x, 0).astype(np.float32)


def run(model, padding, x, lengths=None):
    module = Wav2Vec2(model.config, model.head, padding)
    return jax.jit(functools.partial(apply_model, module))(model.params, x, lengths)


def theirs(model, x, mask=None):
    with torch.no_grad():
        mask = None if mask is None else torch.tensor(mask)
        return model(torch.tensor(x), attention_mask=mask, output_hidden_states=True)


@pytest.mark.parametrize("name", SHAPES)
def test_every_hidden_state_is_that_of_transformers(name, tmp_path):
    oracle = make(name)
    oracle.save_pretrained(tmp_path / "model")
    model, x = read_model(tmp_path / "model"), waveforms()
    mask = (np.arange(9000) < LENGTHS[:, None]).astype(np.int64)
    masked = run(model, "published", x, LENGTHS)
    exact = run(model, "exact", x, LENGTHS)
    for states, want in (
        (masked, theirs(oracle, x, mask)),
        (run(model, "published", x), theirs(oracle, x)),
    ):
        for ours, expected in zip(states.hidden, want.hidden_states, strict=True):
            for row, count in enumerate(states.frames):
                difference = np.abs(ours[row, :count] - expected[row, :count].numpy())
                assert difference.max() < 1e-4
        np.testing.assert_allclose(states.last[0], want.last_hidden_state[0], atol=1e-4)
    for row, length in enumerate(LENGTHS):
        want = theirs(oracle, x[row : row + 1, :length])
        for ours, expected in zip(exact.hidden, want.hidden_states, strict=True):
            np.testing.assert_allclose(
                ours[row, : exact.frames[row]], expected[0].numpy(), atol=1e-4
            )


@pytest.mark.parametrize("name", ["stable hubert", "wav2vec2"])
def test_what_is_written_is_opened_by_transformers(name, tmp_path):
    oracle = make(name, head=True)
    oracle.save_pretrained(tmp_path / "theirs")
    model = read_model(tmp_path / "theirs")
    labels = {chr(97 + i): i for i in range(26)}
    model = SpeechModel(model.config, model.params, True, normalize=True, labels=labels)
    write_model(tmp_path / "ours", model)
    again, report = type(oracle).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "ours")
    assert extractor.do_normalize and extractor.sampling_rate == 16_000
    want = theirs(oracle, waveforms()).logits.numpy()
    np.testing.assert_allclose(theirs(again.eval(), waveforms()).logits.numpy(), want, atol=1e-4)
    np.testing.assert_allclose(run(model, "published", waveforms()).logits, want, atol=1e-4)


def test_files_of_torch_are_read_as_those_of_safetensors(tmp_path):
    oracle = make("hubert")
    oracle.save_pretrained(tmp_path)
    first = read_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    for kind in (torch.float32, torch.float16, torch.bfloat16):
        state = {name: x.to(kind) for name, x in oracle.state_dict().items()}
        torch.save(state, tmp_path / "pytorch_model.bin")
        second = read_model(tmp_path)
        bound = {torch.float32: 0, torch.float16: 1e-3, torch.bfloat16: 1e-2}[kind]
        for x, y in zip(*map(jax.tree.leaves, (first.params, second.params)), strict=True):
            np.testing.assert_allclose(x, y, rtol=bound, atol=bound)


@pytest.mark.parametrize("name", ["hubert", "stable hubert", "stable wav2vec2"])
def test_layer_k_is_what_the_layer_itself_returns_and_a_hidden_state_of_that_number(name, tmp_path):
    """fairseq and textless-lib take the output of layer k, before any final norm."""
    oracle, x = make(name), waveforms()[:1]
    outputs = {}
    for k, layer in enumerate(oracle.encoder.layers, start=1):

        def keep(_, __, output, k=k):
            outputs[k] = output[0] if isinstance(output, tuple) else output

        layer.register_forward_hook(keep)
    want = theirs(oracle, x)
    oracle.save_pretrained(tmp_path / "model")
    model = read_model(tmp_path / "model")
    stable = model.config.do_stable_layer_norm
    for k, output in outputs.items():
        module = Wav2Vec2(model.config)
        states = jax.jit(functools.partial(apply_model, module, layer=k))(model.params, x)
        assert len(states.hidden) == k + 1
        np.testing.assert_allclose(states.hidden[k], output.numpy(), atol=1e-4)
        if k < len(outputs) or not stable:
            np.testing.assert_allclose(states.hidden[k], want.hidden_states[k], atol=1e-4)
    last = run(model, "exact", x).last
    np.testing.assert_allclose(last, want.last_hidden_state.numpy(), atol=1e-4)
    differs = np.abs(last - outputs[len(outputs)].numpy()).max() > 1e-2
    assert differs == stable


def test_base_size_is_that_of_transformers_at_every_layer(tmp_path):
    torch.manual_seed(0)
    oracle = transformers.HubertModel(transformers.HubertConfig()).eval()
    oracle.save_pretrained(tmp_path)
    x = waveforms(seconds=2)
    states, want = run(read_model(tmp_path), "exact", x), theirs(oracle, x)
    for ours, expected in zip(states.hidden, want.hidden_states, strict=True):
        np.testing.assert_allclose(ours, expected.numpy(), atol=1e-4)


def test_a_case_made_now_agrees(tmp_path):
    oracle, x = make("batch norm"), waveforms()
    oracle.save_pretrained(tmp_path)
    mask = (np.arange(9000) < LENGTHS[:, None]).astype(np.int64)
    arrays = {"input_values": x, "attention_mask": mask, "frames": np.array([27, 20])}
    places = {"masked": theirs(oracle, x, mask), "unmasked": theirs(oracle, x)}
    places |= {f"alone_{i}": theirs(oracle, x[i : i + 1, :n]) for i, n in enumerate(LENGTHS)}
    for place, found in places.items():
        for k, hidden in enumerate(found.hidden_states):
            arrays[f"{place}/hidden_{k}"] = hidden.numpy()
        arrays[f"{place}/last"] = found.last_hidden_state.numpy()
    np.savez(pathlib.Path(tmp_path, "io.npz"), **arrays)
    comparison = verify_case(tmp_path)
    assert comparison.equal and comparison.compared == 20


def test_a_causal_model_scores_texts_as_transformers_does(tmp_path):
    """Its loss is the mean over the tokens behind bos."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: i for i, word in enumerate(("<s>", "<unk>", "ann", "sat", "down"))}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<s>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=5, n_embd=8, n_layer=2, n_head=2, n_positions=6)
    model = transformers.GPT2LMHeadModel(config).eval()
    for part in (tokenizer, model):
        part.save_pretrained(tmp_path)
    found = open_language_model(f"transformers:{tmp_path}").score(["ann sat", "", "down"])
    for text, score in zip(("ann sat", "down"), (found[0], found[2]), strict=True):
        ids = torch.tensor([[0, *(words[word] for word in text.split())]])
        with torch.no_grad():
            loss = model(ids, labels=ids).loss
        assert score.token_count == ids.numel() - 1
        assert score.log_probability == pytest.approx(-float(loss) * score.token_count, abs=1e-5)
    assert (found[1].log_probability, found[1].token_count) == (0.0, 0)
    with pytest.raises(ValueError, match="tokens of a text is 9, expected ≤ 6"):
        open_language_model(f"transformers:{tmp_path}").score(["ann " * 8])
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="expected a folder of a causal model"):
        open_language_model(f"transformers:{tmp_path}")
