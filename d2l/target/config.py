"""Shape and options of a target language model, read from Hugging Face's `config.json` names."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched.

    Attributes:
      kind: `linear` (every frequency divided by `factor`) or `llama3` (low frequencies divided by `factor`, high ones
        kept, those between interpolated).
      factor: the stretch, > 0.
      low_freq_factor, high_freq_factor, original_max_position_embeddings: of `llama3` alone.
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclasses.dataclass(frozen=True)
class TargetConfig:
    """One decoder-only language model of the Llama, Mistral, Qwen 3, Gemma 2 or Gemma 3 text family.

    Names are those of Hugging Face's `config.json`; the fields after `tie_word_embeddings` are what the families
    differ in, spelled out so that the decoder asks for features and never for a family's name.

    Attributes:
      layer_types: one of `full_attention`, `sliding_attention` per layer.
      sliding_window: tokens a `sliding_attention` layer sees, itself included; None if every layer is full.
      rope_local_base_freq: RoPE base of the sliding layers when it differs from `rope_theta` (Gemma 3).
      rope_scaling: applies to full-attention layers (and to all layers where `rope_local_base_freq` is None).
      query_pre_attn_scalar: attention logits are multiplied by this to the power -1/2.
      norm_offset: RMSNorm multiplies by (norm_offset + weight); 1 for Gemma, whose product is taken in float32.
      embed_scale: embeddings are multiplied by sqrt(hidden_size) (Gemma).
      sandwich_norms: norms after attention and MLP too (Gemma 2 and 3).
      qk_norm: RMSNorm over head_dim on queries and keys, before RoPE (Qwen 3, Gemma 3).
      hidden_act: `silu` or `gelu_pytorch_tanh`.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    layer_types: tuple[str, ...]
    hidden_act: str = "silu"
    rope_scaling: RopeScaling | None = None
    rope_local_base_freq: float | None = None
    sliding_window: int | None = None
    query_pre_attn_scalar: float = 64.0
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    norm_offset: float = 0.0
    embed_scale: bool = False
    sandwich_norms: bool = False
    qk_norm: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None

    @property
    def module_sizes(self) -> dict[str, tuple[int, int]]:
        """(d_in, d_out) of every linear layer that can carry an adapter, by its name."""
        d_model, d_ff = self.hidden_size, self.intermediate_size
        d_q, d_kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        return {
            "q_proj": (d_model, d_q),
            "k_proj": (d_model, d_kv),
            "v_proj": (d_model, d_kv),
            "o_proj": (d_q, d_model),
            "gate_proj": (d_model, d_ff),
            "up_proj": (d_model, d_ff),
            "down_proj": (d_ff, d_model),
        }
