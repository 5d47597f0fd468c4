"""The supported model families, and Hugging Face's `config.json` read and written."""

import copy
import math
import os
from typing import Any

from d2l.errors import UserError
from d2l.target.config import RopeScaling, TargetConfig

GEMMA = ("gemma2", "gemma3_text")
FAMILIES = ("llama", "mistral", "qwen3", *GEMMA)
QK_NORM = ("qwen3", "gemma3_text")
ROPE_KINDS = ("default", "linear", "llama3")
LAYER_KINDS = ("full_attention", "sliding_attention")
# Far above every model of these families, far below what would fill the memory before a weight is read.
LARGEST_SIZE, MOST_LAYERS = 2**24, 1024


def config_from_hf(fields: dict[str, Any]) -> TargetConfig:
    """Read a `config.json`; defaults and old spellings are those of transformers' own config classes.

    Raises:
      UserError: a family, rope type, bias, activation or quantisation that the decoder does not compute.
    """
    if not isinstance(fields, dict):
        raise UserError("the model's config.json is not a JSON object: give the one that belongs to the weights.")
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
    if fields.get("use_bidirectional_attention"):
        raise UserError("the model's config.json sets use_bidirectional_attention: only causal models are supported.")
    # transformers makes a list of as many layers, and divides by the heads.
    for name, most in {"num_hidden_layers": MOST_LAYERS, "num_attention_heads": LARGEST_SIZE}.items():
        if name in fields:
            _whole(name, fields[name], most)

    # Otherwise it warns, on import, of a missing torch that nothing here needs.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers import CONFIG_MAPPING

    try:
        known = {name: value for name, value in fields.items() if name not in ("dtype", "torch_dtype")}
        hf = CONFIG_MAPPING[model_type].from_dict(copy.deepcopy(known)).to_dict()  # it changes what it reads
    except Exception as error:  # its checks raise exceptions of several libraries
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"the model's config.json cannot be read ({reason}): give a complete one.") from error
    layers = hf["num_hidden_layers"]
    window = hf.get("sliding_window")
    kinds = hf.get("layer_types") or ["sliding_attention" if window else "full_attention"] * layers
    rope, local_base = _rope(hf["rope_parameters"])
    heads = hf["num_attention_heads"]
    kv_heads, head_dim, scalar = (hf.get(n) for n in ("num_key_value_heads", "head_dim", "query_pre_attn_scalar"))
    head_dim = hf["hidden_size"] // (heads or 1) if head_dim is None else head_dim
    act = hf.get("hidden_activation") or hf.get("hidden_act")
    if act not in ("silu", "gelu_pytorch_tanh"):
        raise UserError(f"the activation {act!r} is not supported: it must be silu or gelu_pytorch_tanh.")
    eos = hf.get("eos_token_id")
    config = TargetConfig(
        model_type=model_type,
        vocab_size=hf["vocab_size"],
        hidden_size=hf["hidden_size"],
        intermediate_size=hf["intermediate_size"],
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads if kv_heads is None else kv_heads,
        head_dim=head_dim,
        max_position_embeddings=hf["max_position_embeddings"],
        rms_norm_eps=hf["rms_norm_eps"],
        rope_theta=_number(rope, "rope_theta"),
        tie_word_embeddings=bool(hf.get("tie_word_embeddings")),
        layer_types=tuple(kinds),
        hidden_act=act,
        rope_scaling=_scaling(rope),
        rope_local_base_freq=local_base,
        sliding_window=window if "sliding_attention" in kinds else None,
        query_pre_attn_scalar=float(head_dim if scalar is None else scalar),
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
    _check(config)
    return config


def _whole(name: str, value: Any, most: int = LARGEST_SIZE) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise UserError(f"the model's config.json has {name} {value!r}: it must be a whole number from 1 to {most}.")


def _check(config: TargetConfig) -> None:
    """Refuse what transformers lets through but no model has."""
    for name in (
        "vocab_size hidden_size intermediate_size num_attention_heads num_key_value_heads head_dim "
        "max_position_embeddings"
    ).split():
        _whole(name, getattr(config, name))
    _whole("num_hidden_layers", config.num_hidden_layers, MOST_LAYERS)
    if config.num_attention_heads % config.num_key_value_heads:
        raise UserError(
            f"the model's config.json has {config.num_attention_heads} attention heads and "
            f"{config.num_key_value_heads} key-value heads: the first must be a multiple of the second."
        )
    if config.head_dim % 2:
        raise UserError(f"the model's config.json has head_dim {config.head_dim}: RoPE needs an even one.")
    if len(config.layer_types) != config.num_hidden_layers or not set(config.layer_types) <= set(LAYER_KINDS):
        raise UserError(
            f"the model's config.json has layer_types {sorted(set(config.layer_types))} for {len(config.layer_types)} "
            f"of {config.num_hidden_layers} layers: every layer needs one of {', '.join(LAYER_KINDS)}."
        )
    if "sliding_attention" in config.layer_types:
        _whole("sliding_window", config.sliding_window)
    positive = ("rms_norm_eps", "query_pre_attn_scalar")
    optional = ("attn_logit_softcapping", "final_logit_softcapping")
    numbers = {name: getattr(config, name) for name in positive}
    numbers |= {name: value for name in optional if (value := getattr(config, name)) is not None}
    scaling = config.rope_scaling
    if scaling is not None and scaling.high_freq_factor <= scaling.low_freq_factor:
        raise UserError("the model's config.json has a high_freq_factor that is not above its low_freq_factor.")
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise UserError(f"the model's config.json has {name} {value!r}: it must be a number above 0.")


def _rope(parameters: dict[str, Any]) -> tuple[dict[str, Any], float | None]:
    """RoPE parameters of the full-attention layers, and the base of the sliding ones if it is another."""
    if "rope_type" in parameters:
        return parameters, None
    local = parameters["sliding_attention"]
    if local.get("rope_type", "default") != "default":
        raise UserError(f"the RoPE type {local['rope_type']!r} is not supported for sliding layers: only default is.")
    return parameters["full_attention"], _number(local, "rope_theta")


def _scaling(rope: dict[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", "default")
    if kind not in ROPE_KINDS:
        raise UserError(f"the RoPE type {kind!r} is not supported: it must be one of {', '.join(ROPE_KINDS)}.")
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", _number(rope, "factor"))
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    factor, low, high, original = (_number(rope, name) for name in names)
    return RopeScaling("llama3", factor, low, high, int(original))


def _number(rope: dict[str, Any], name: str) -> float:
    value = rope.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(f"the model's config.json has RoPE {name} {value!r}: it must be a number above 0.")
    return float(value)


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
        fields["query_pre_attn_scalar"] = int(config.query_pre_attn_scalar)  # transformers refuses 256.0
        fields |= {n: getattr(config, n) for n in ("attn_logit_softcapping", "final_logit_softcapping")}
    architecture = {"llama": "Llama", "mistral": "Mistral", "qwen3": "Qwen3", "gemma2": "Gemma2"}
    return fields | {"architectures": [architecture.get(config.model_type, "Gemma3") + "ForCausalLM"]}
