"""Shape of a wav2vec 2.0, HuBERT or mHuBERT model, by the names of Hugging Face's `config.json`.

    config = config_from_json(json_values, "model/config.json")
    frame_count(config, 16_000)  # 49 frames of a second at the usual strides

Nothing here loads JAX: processes that cut and bucket recordings use it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from lst_jax.config import Epsilon
from lst_jax.settings import (
    Bounds,
    NaturalInt,
    UnrolledDepth,
    VocabularySize,
    Width,
    configuration,
    list_names,
    quote,
    require,
    validate_fields,
)

Padding = Literal["exact", "published"]
_Taps = Annotated[int, Bounds(least=1, most=2**12)]
_Count = TypeVar("_Count")  # an integer, or an array of integers


@configuration
class Wav2Vec2Config:
    """What decides the computation; defaults are Hugging Face's, HuBERT base.

    Attributes:
      model_type: which of the two families a file is of; they compute the same.
      vocab_size: outputs of the CTC head, where there is one.
      pad_token_id: the head's blank.
      hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: of the transformer.
      layer_norm_eps: of its norms and the projection's; norms between convolutions have 1e-5.
      hidden_act, feat_extract_activation: "gelu" is the exact one, by the error function.
      feat_extract_norm: "group" normalizes the first convolution's channels over time, "layer" the
        frames after each convolution.
      feat_proj_layer_norm: whether frames are normalized before they are projected.
      conv_dim, conv_kernel, conv_stride: channels, taps and stride of each convolution.
      conv_bias: whether convolutions have biases.
      num_conv_pos_embeddings, num_conv_pos_embedding_groups: taps and groups of the positional
        convolution.
      conv_pos_batch_norm: whether it has a batch norm before it, and no weight norm.
      do_stable_layer_norm: whether the transformer's norms are before attention and feed-forward.
    """

    model_type: Literal["wav2vec2", "hubert"] = "hubert"
    vocab_size: VocabularySize = 32
    pad_token_id: NaturalInt | None = 0
    hidden_size: Width = 768
    num_hidden_layers: UnrolledDepth = 12
    num_attention_heads: Width = 12
    intermediate_size: Width = 3072
    layer_norm_eps: Epsilon = 1e-5
    hidden_act: Literal["gelu"] = "gelu"
    feat_extract_activation: Literal["gelu"] = "gelu"
    feat_extract_norm: Literal["group", "layer"] = "group"
    feat_proj_layer_norm: bool = True
    conv_dim: tuple[Width, ...] = (512,) * 7
    conv_kernel: tuple[_Taps, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: tuple[_Taps, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = False
    num_conv_pos_embeddings: _Taps = 128
    num_conv_pos_embedding_groups: Width = 16
    conv_pos_batch_norm: bool = False
    do_stable_layer_norm: bool = False

    def __post_init__(self) -> None:
        name, layers = type(self).__name__, len(self.conv_dim)
        require(0 < layers <= 32, f"{name}.conv_dim", self.conv_dim, "1 … 32 convolutions")
        for field in ("conv_kernel", "conv_stride"):
            value = getattr(self, field)
            require(len(value) == layers, f"{name}.{field}", value, f"{layers}, as in conv_dim")
        for field in ("num_attention_heads", "num_conv_pos_embedding_groups"):
            value = getattr(self, field)
            expected = f"a divisor of hidden_size = {self.hidden_size}"
            require(self.hidden_size % value == 0, f"{name}.{field}", value, expected)
        fits = self.model_type == "hubert" or (
            self.feat_proj_layer_norm and not self.conv_pos_batch_norm
        )
        require(fits, f"{name}.model_type", self.model_type, "'hubert', which alone has the option")


def frame_count(config: Wav2Vec2Config, samples: _Count) -> _Count:
    """Returns the frames of so many samples, at least 0; a number, or an array of integers."""
    count: Any = samples
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        count = (count - kernel) // stride + 1
    return count * (count > 0)


def samples_per_frame(config: Wav2Vec2Config) -> int:
    """Returns the samples from one frame to the next: 320 at 50 Hz, 640 at 25 Hz."""
    return math.prod(config.conv_stride)


def receptive_field(config: Wav2Vec2Config) -> int:
    """Returns the samples that a frame is made of, which are the least that give one.

    Frame t sees the samples from t · `samples_per_frame` on. The positional convolution then joins
    `num_conv_pos_embeddings` frames, and attention all of them.
    """
    field = 1
    for kernel, stride in zip(config.conv_kernel[::-1], config.conv_stride[::-1], strict=True):
        field = (field - 1) * stride + kernel
    return field


def config_from_json(values: Mapping[str, Any], source: object) -> Wav2Vec2Config:
    """Returns the configuration that a `config.json` of Hugging Face's holds.

    Settings of training, of heads other than CTC's and of the library itself change nothing here
    and are passed over; so is any other setting that is off (false, 0, null or empty).

    Args:
      values: the object in the file.
      source: its path, for messages.

    Raises:
      ValueError: it is of another family, a value is not as `Wav2Vec2Config` has it, or a setting
        is on that this model does not have.
    """
    known = dict(values)
    family = known.get("model_type")
    if family not in ("wav2vec2", "hubert"):
        raise ValueError(
            f"{source}: model_type is {quote(family)}, expected 'wav2vec2' or 'hubert'"
        )
    count = known.pop("num_feat_extract_layers", None)
    fields = {name: known.pop(name) for name in _FIELDS if name in known}
    if fields.get("vocab_size", 0) is None:  # of a model without a head
        del fields["vocab_size"]
    if family == "wav2vec2":  # whose models pass over what only the other's have
        fields |= {"feat_proj_layer_norm": True, "conv_pos_batch_norm": False}
    config = validate_fields(Wav2Vec2Config, fields, source)
    layers = len(config.conv_dim)
    same = count is None or count == layers
    require(same, f"{source}: num_feat_extract_layers", count, f"{layers}, as in conv_dim")
    others = [name for name, value in known.items() if value and not _is_passed_over(name)]
    if others:
        raise ValueError(
            f"{source}: {list_names(others)} = {quote(known[others[0]])} is a setting that this "
            "model does not have, expected it off or absent"
        )
    return config


_FIELDS = tuple(Wav2Vec2Config.__dataclass_fields__)
# What is of no consequence for hidden states and logits. By how names begin or end,
_PREFIXES = ("mask_", "codevector_", "num_codevector", "tdnn_", "ctc_", "xvector_", "_")
_SUFFIXES = ("dropout", "_dropout_prob", "_token_id", "_penalty", "_version")
# and by name: training and heads; adapters' sizes, of no consequence without `add_adapter`; what
# every configuration of the library has.
_OTHERS = """
initializer_range layerdrop apply_spec_augment contrastive_logits_temperature num_negatives
proj_codevector_dim diversity_loss_weight classifier_proj_size use_weighted_layer_sum
gradient_checkpointing freeze_feat_extract_train
adapter_kernel_size adapter_stride num_adapter_layers output_hidden_size
architectures auto_map chunk_size_feed_forward dtype torch_dtype return_dict output_attentions
output_hidden_states torchscript use_bfloat16 tie_word_embeddings tie_encoder_decoder use_cache
id2label label2id num_labels problem_type finetuning_task tokenizer_class prefix
task_specific_params name_or_path attn_implementation max_length min_length do_sample
early_stopping num_beams num_beam_groups temperature top_k top_p typical_p no_repeat_ngram_size
encoder_no_repeat_ngram_size num_return_sequences output_scores return_dict_in_generate
remove_invalid_values
"""
_NAMES = frozenset(_OTHERS.split())


def _is_passed_over(name: str) -> bool:
    return name in _NAMES or name.startswith(_PREFIXES) or name.endswith(_SUFFIXES)
