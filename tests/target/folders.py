"""Tiny models for the loading tests: the parity check's own, written as HF folders or GGUF files."""

import functools
import json
import pathlib
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx

from d2l.target.decoder import abstract_decoder
from d2l.target.weights import LoadedTarget
from tests.parity import cases

REFERENCE = pathlib.Path(__file__).parents[1] / "reference"


@functools.cache
def described() -> dict[str, Any]:
    """For every tiny model the `config.json` that transformers wrote, and the names and shapes of its weights."""
    return json.loads((REFERENCE / "families.json").read_text())


@functools.cache
def stored() -> dict[str, np.ndarray]:
    """What transformers and peft computed: logits of the tokens that are no padding, one row after the other."""
    return safetensors.numpy.load_file(REFERENCE / "families.safetensors")


def weights_of(name: str) -> dict[str, np.ndarray]:
    """Weights of a tiny model under transformers' names."""
    return cases.random_weights(name, described()[name]["weights"])


def config_of(name: str) -> dict[str, Any]:
    """A fresh copy of its `config.json`."""
    return json.loads(json.dumps(described()[name]["config"]))


def write_folder(folder: pathlib.Path, name: str, *, weights: dict | None = None, **changes: Any) -> pathlib.Path:
    """A tiny model as an HF folder, with other weights or config fields where given."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_of(name) | changes))
    safetensors.numpy.save_file(weights_of(name) if weights is None else weights, folder / "model.safetensors")
    return folder


def logits_of(target: LoadedTarget, tokens: np.ndarray, adapter: Any = None) -> np.ndarray:
    """Logits of the tokens that are no padding, as `stored` has them."""
    graphdef = abstract_decoder(target.config)[0]
    run = jax.jit(lambda params, tokens, adapter: nnx.merge(graphdef, params)(tokens, adapter=adapter))
    logits = np.asarray(run(target.params, jnp.asarray(tokens, jnp.int32), adapter))
    return np.concatenate([row[:length] for row, length in zip(logits, cases.LENGTHS, strict=True)])


ARCHITECTURES = {"llama": "llama", "qwen3": "qwen3", "gemma2": "gemma2", "gemma3_text": "gemma3"}
GGUF_NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GEMMA_GGUF_NAMES = GGUF_NAMES | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def to_llama_cpp(name: str, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights under llama.cpp's names and in its layout: Llama's q and k rows interleaved, Gemma's 1 + norm."""
    config, gemma = config_of(name), name.startswith("gemma")
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    out = {}
    for key, array in weights.items():
        stem = key.removeprefix("model.").removesuffix(".weight")
        prefix = ""
        if stem.startswith("layers."):
            _, index, stem = stem.split(".", 2)
            prefix = f"blk.{index}."
        count = heads.get(stem.rpartition(".")[2])
        if config["model_type"] == "llama" and count:
            rows = array.shape[0]
            array = array.reshape(count, 2, rows // count // 2, -1).swapaxes(1, 2).reshape(rows, -1)
        if gemma and "norm" in stem:
            array = array + np.float32(1)
        out[prefix + (GEMMA_GGUF_NAMES if gemma else GGUF_NAMES)[stem] + ".weight"] = np.ascontiguousarray(array)
    return out


def gguf_metadata(name: str) -> dict[str, Any]:
    """The keys that llama.cpp's converter writes for a tiny model, without the architecture's prefix."""
    c = config_of(name)
    keys = {
        "context_length": c["max_position_embeddings"],
        "embedding_length": c["hidden_size"],
        "block_count": c["num_hidden_layers"],
        "feed_forward_length": c["intermediate_size"],
        "attention.head_count": c["num_attention_heads"],
        "attention.head_count_kv": c["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": c["rms_norm_eps"],
        "attention.key_length": c["head_dim"],
    }
    rope = c["rope_parameters"]
    rope = rope.get("full_attention", rope)
    keys["rope.freq_base"] = rope["rope_theta"]
    if rope["rope_type"] == "linear":
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": rope["factor"]}
    if c["model_type"].startswith("gemma"):
        keys["attention.sliding_window"] = c["sliding_window"]
    if c["model_type"] == "gemma2":
        keys |= {n: c[n] for n in ("attn_logit_softcapping", "final_logit_softcapping")}
    return keys


def write_gguf(
    path: pathlib.Path,
    architecture: str,
    keys: dict[str, Any],
    tensors: dict[str, np.ndarray | tuple[np.ndarray, gguf.GGMLQuantizationType]],
    plain: dict[str, Any] | None = None,
) -> pathlib.Path:
    """A GGUF file; a tensor with a type is stored as its raw blocks, `plain` keys have no prefix."""
    writer = gguf.GGUFWriter(path, architecture)
    prefixed = {f"{architecture}.{key}": value for key, value in keys.items()}
    for key, value in (prefixed | (plain or {})).items():
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            add = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32, bool: writer.add_bool}
            add[type(value)](key, value)
    for key, array in tensors.items():
        array, kind = array if isinstance(array, tuple) else (array, None)
        writer.add_tensor(key, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
