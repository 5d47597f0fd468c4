"""The supported model families, and Hugging Face's `config.json` read and written."""

import logging
from typing import Any

from d2l.errors import UserError
from d2l.target.config import RopeScaling, TargetConfig

GEMMA = ("gemma2", "gemma3_text")
FAMILIES = ("llama", "mistral", "qwen3", *GEMMA)
QK_NORM = ("qwen3", "gemma3_text")
ROPE_KINDS = ("default", "linear", "llama3")


def config_from_hf(fields: dict[str, Any]) -> TargetConfig:
    """Read a `config.json`; defaults and old spellings are those of transformers' own config classes.

    Raises:
      UserError: a family, rope type, bias, activation or quantisation that the decoder does not compute.
    """
    model_type = fields.get("model_type")
    if model_type == "gemma3" and isinstance(fields.get("text_config"), dict):
        fields = fields["text_config"] | {"model_type": "gemma3_text"}
        model_type = "gemma3_text"
    if model_type not in FAMILIES:
        raise UserError(f"the architecture {model_type!r} is not supported: give one of {', '.join(FAMILIES)}.")
    if fields.get("quantization_config"):
        raise UserError("the model's config.json has a quantization_config: give the unquantised weights or a GGUF.")
    for name in ("attention_bias", "mlp_bias"):
        if fields.get(name):
            raise UserError(f"the model's config.json sets {name}: linear layers with a bias are not supported.")

    logging.getLogger("transformers").setLevel(logging.ERROR)
    from transformers import CONFIG_MAPPING

    try:
        hf = CONFIG_MAPPING[model_type].from_dict(dict(fields)).to_dict()
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise UserError(f"the model's config.json cannot be read ({error}): give a complete one.") from error
    layers = hf["num_hidden_layers"]
    window = hf.get("sliding_window")
    kinds = hf.get("layer_types") or ["sliding_attention" if window else "full_attention"] * layers
    rope, local_base = _rope(hf["rope_parameters"])
    heads = hf["num_attention_heads"]
    head_dim = hf.get("head_dim") or hf["hidden_size"] // heads
    act = hf.get("hidden_activation") or hf.get("hidden_act")
    if act not in ("silu", "gelu_pytorch_tanh"):
        raise UserError(f"the activation {act!r} is not supported: it must be silu or gelu_pytorch_tanh.")
    eos = hf.get("eos_token_id")
    return TargetConfig(
        model_type=model_type,
        vocab_size=hf["vocab_size"],
        hidden_size=hf["hidden_size"],
        intermediate_size=hf["intermediate_size"],
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=hf.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        max_position_embeddings=hf["max_position_embeddings"],
        rms_norm_eps=hf["rms_norm_eps"],
        rope_theta=float(rope["rope_theta"]),
        tie_word_embeddings=bool(hf.get("tie_word_embeddings")),
        layer_types=tuple(kinds),
        hidden_act=act,
        rope_scaling=_scaling(rope),
        rope_local_base_freq=local_base,
        sliding_window=window if "sliding_attention" in kinds else None,
        query_pre_attn_scalar=float(hf.get("query_pre_attn_scalar") or head_dim),
        attn_logit_softcapping=hf.get("attn_logit_softcapping"),
        final_logit_softcapping=hf.get("final_logit_softcapping"),
        norm_offset=1.0 if model_type in GEMMA else 0.0,
        embed_scale=model_type in GEMMA,
        sandwich_norms=model_type in GEMMA,
        qk_norm=model_type in QK_NORM,
        bos_token_id=hf.get("bos_token_id"),
        eos_token_ids=tuple(eos) if isinstance(eos, list | tuple) else () if eos is None else (eos,),
        pad_token_id=hf.get("pad_token_id"),
    )


def _rope(parameters: dict[str, Any]) -> tuple[dict[str, Any], float | None]:
    """RoPE parameters of the full-attention layers, and the base of the sliding ones if it is another."""
    if "rope_type" in parameters:
        return parameters, None
    return parameters["full_attention"], float(parameters["sliding_attention"]["rope_theta"])


def _scaling(rope: dict[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", "default")
    if kind not in ROPE_KINDS:
        raise UserError(f"the RoPE type {kind!r} is not supported: it must be one of {', '.join(ROPE_KINDS)}.")
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", float(rope["factor"]))
    return RopeScaling(
        "llama3",
        float(rope["factor"]),
        float(rope["low_freq_factor"]),
        float(rope["high_freq_factor"]),
        int(rope["original_max_position_embeddings"]),
    )


def config_to_hf(config: TargetConfig) -> dict[str, Any]:
    """The `config.json` that `config_from_hf` and transformers read as this config."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        rope |= {"rope_type": config.rope_scaling.kind, "factor": config.rope_scaling.factor}
        if config.rope_scaling.kind == "llama3":
            names = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
            rope |= {name: getattr(config.rope_scaling, name) for name in names}
    if config.rope_local_base_freq is not None:
        local = {"rope_type": "default", "rope_theta": config.rope_local_base_freq}
        rope = {"full_attention": rope, "sliding_attention": local}
    names = (
        "model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
        "head_dim max_position_embeddings rms_norm_eps tie_word_embeddings bos_token_id pad_token_id"
    ).split()
    fields = {name: getattr(config, name) for name in names}
    fields |= {"rope_parameters": rope, "eos_token_id": list(config.eos_token_ids) or None, "dtype": "float32"}
    fields["hidden_activation" if config.model_type in GEMMA else "hidden_act"] = config.hidden_act
    if config.model_type != "llama":
        fields["sliding_window"] = config.sliding_window
    if config.model_type not in ("llama", "mistral"):
        fields["layer_types"] = list(config.layer_types)
        fields["use_sliding_window"] = config.sliding_window is not None
    if config.model_type in GEMMA:
        for name in ("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"):
            fields[name] = getattr(config, name)
    architecture = {"llama": "Llama", "mistral": "Mistral", "qwen3": "Qwen3", "gemma2": "Gemma2"}
    return fields | {"architectures": [architecture.get(config.model_type, "Gemma3") + "ForCausalLM"]}
