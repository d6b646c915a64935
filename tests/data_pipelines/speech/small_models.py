"""The shape of a CTC model that is small enough for every test."""

from lst_jax.speech.wav2vec2_config import Wav2Vec2Config

SMALL_CTC = Wav2Vec2Config(
    model_type="wav2vec2",
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    conv_dim=(8, 16),
    conv_kernel=(40, 16),
    conv_stride=(20, 16),
    feat_extract_norm="layer",
    do_stable_layer_norm=True,
    num_conv_pos_embeddings=8,
    num_conv_pos_embedding_groups=2,
)
