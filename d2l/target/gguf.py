"""One GGUF file as a target model: tensors under Hugging Face's names, config and tokenizer metadata."""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from d2l.errors import UserError

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q5_K", "Q6_K")
MODEL_TYPES = {"llama": "llama", "qwen3": "qwen3", "gemma2": "gemma2", "gemma3": "gemma3_text"}
TOP_NAMES = {"token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head"}
BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GEMMA_BLOCK_NAMES = BLOCK_NAMES | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
# llama.cpp stores Llama 3's stretched frequencies as a tensor of divisors; these are the only ones Meta released.
LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


class GGUF:
    """An open GGUF file.

    Attributes:
      metadata: every key of the file.
      hf_config: the fields of a `config.json` that describe this model.
      tensors: for every tensor its name (Hugging Face's, without `model.` and `.weight`), and a function that
        dequantises it to float32 in Hugging Face's layout.
      stored: the bytes as stored, by the same names, for hashing.
    """

    def __init__(self, path: str | pathlib.Path):
        path = pathlib.Path(path)
        try:
            reader = _reader_class()(path)
            self.metadata = {name: field.contents() for name, field in reader.fields.items()}
        except FileNotFoundError as error:
            raise UserError(f"there is no file {path}: give a GGUF file that exists.") from error
        except Exception as error:  # the reader raises whatever numpy or struct met in a damaged file
            raise UserError(f"{path.name} is not a whole GGUF file ({error}): fetch it again.") from error
        arch = self.metadata.get("general.architecture")
        if arch not in MODEL_TYPES:
            raise UserError(f"{path.name} has architecture {arch!r}: supported are {', '.join(MODEL_TYPES)}.")
        if self.metadata.get("split.count", 1) > 1:
            raise UserError(f"{path.name} is one part of a split GGUF: join the parts with llama-gguf-split --merge.")
        self.arch = arch
        self.tensors: dict[str, Callable[[], np.ndarray]] = {}
        self.stored: dict[str, np.ndarray] = {}
        rope_factors = None
        names = GEMMA_BLOCK_NAMES if arch.startswith("gemma") else BLOCK_NAMES
        for tensor in reader.tensors:
            if tensor.tensor_type.name not in TYPES:
                raise UserError(
                    f"{path.name} stores {tensor.name} as {tensor.tensor_type.name}: supported types are "
                    f"{', '.join(TYPES)}."
                )
            if tensor.name == "rope_freqs.weight":
                rope_factors = np.asarray(tensor.data, np.float32)
                continue
            name = _hf_name(tensor.name, names)
            if name is None:
                raise UserError(f"{path.name} has a tensor {tensor.name} that a {arch} model does not have.")
            self.stored[name] = tensor.data
            self.tensors[name] = _Dequantise(self, tensor, name)
        if "embed_tokens" not in self.stored:
            raise UserError(f"{path.name} has no token_embd.weight: fetch a complete file.")
        self.hf_config = self._config(rope_factors)

    def _get(self, key: str, default: Any = None) -> Any:
        value = self.metadata.get(f"{self.arch}.{key}", default)
        if value is None:
            raise UserError(f"the GGUF file lacks {self.arch}.{key}: fetch a complete one.")
        return value

    def _count(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if not isinstance(value, int) or value < 1:
            raise UserError(f"the GGUF file has {self.arch}.{key} {value!r}: it must be a whole number from 1.")
        return value

    def _number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        if not isinstance(value, int | float):
            raise UserError(f"the GGUF file has {self.arch}.{key} {value!r}: it must be a number.")
        return float(value)

    def _config(self, rope_factors: np.ndarray | None) -> dict[str, Any]:
        heads, width = self._count("attention.head_count"), self._count("embedding_length")
        fields = {
            "model_type": MODEL_TYPES[self.arch],
            "vocab_size": int(self.stored["embed_tokens"].shape[0]),
            "hidden_size": width,
            "intermediate_size": self._get("feed_forward_length"),
            "num_hidden_layers": self._count("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._count("attention.head_count_kv", heads),
            "head_dim": self._count("attention.key_length", width // heads),
            "max_position_embeddings": self._get("context_length"),
            "rms_norm_eps": self._number("attention.layer_norm_rms_epsilon"),
            "rope_theta": self._number("rope.freq_base", 1e6 if self.arch == "gemma3" else 1e4),
            "tie_word_embeddings": "lm_head" not in self.stored,
            "bos_token_id": self.metadata.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self.metadata.get("tokenizer.ggml.eos_token_id"),
            "pad_token_id": self.metadata.get("tokenizer.ggml.padding_token_id"),
        }
        if self.arch == "gemma2":
            fields["attn_logit_softcapping"] = self._get("attn_logit_softcapping", 50.0)
            fields["final_logit_softcapping"] = self._get("final_logit_softcapping", 30.0)
            # Not in the file: Gemma 2 27B alone scales by hidden_size / heads.
            fields["query_pre_attn_scalar"] = (
                width // heads if fields["num_hidden_layers"] == 46 else fields["head_dim"]
            )
        if self.arch == "gemma3":
            fields["query_pre_attn_scalar"] = (
                width // heads if fields["num_hidden_layers"] == 62 else fields["head_dim"]
            )
        if self.arch.startswith("gemma"):
            fields["sliding_window"] = self._get("attention.sliding_window", 4096)
        scaling = self.metadata.get(f"{self.arch}.rope.scaling.type")
        if scaling == "linear":
            fields["rope_scaling"] = {"rope_type": "linear", "factor": self._number("rope.scaling.factor")}
        elif scaling not in (None, "none"):
            raise UserError(f"the GGUF file stretches RoPE by {scaling!r}: supported are linear and llama3.")
        if rope_factors is not None:
            factor = float(rope_factors.max())
            if not np.allclose(
                rope_factors, _llama3_divisors(fields["rope_theta"], factor, rope_factors.size), rtol=1e-3
            ):
                raise UserError(
                    "the GGUF file stretches RoPE by factors that are not Llama 3's: they are not supported."
                )
            fields["rope_scaling"] = LLAMA3_ROPE | {"rope_type": "llama3", "factor": factor}
        return fields


def _reader_class() -> type:
    import gguf

    class Reader(gguf.GGUFReader):
        """Slices a plain view of the memory map: a slice of a `numpy.memmap` costs several times as much."""

        @property
        def data(self) -> np.ndarray:
            return self._data

        @data.setter
        def data(self, value: np.memmap) -> None:
            self._data = value.view(np.ndarray)

    return Reader


class _Dequantise:
    """Dequantises one tensor when called; holds the file's memory map, no copy."""

    def __init__(self, file: GGUF, tensor: Any, name: str):
        self.file, self.tensor, self.name = file, tensor, name
        self.shape = tuple(int(n) for n in reversed(tensor.shape))

    def __call__(self) -> np.ndarray:
        import gguf

        array = gguf.quants.dequantize(self.tensor.data, self.tensor.tensor_type)
        if self.file.arch.startswith("gemma") and "norm" in self.name:
            return array - 1.0  # llama.cpp stores Gemma's 1 + weight
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(self.name.rpartition(".")[2])
        if self.file.arch == "llama" and heads is not None:
            # llama.cpp interleaves the two RoPE halves of every head's rows; put them one after the other again.
            rows, cols = array.shape
            count = self.file.hf_config[heads]
            return array.reshape(count, rows // count // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols)
        return array


def _llama3_divisors(theta: float, factor: float, count: int) -> np.ndarray:
    """What llama3 scaling divides each of `count` rotary frequencies by."""
    low, high = LLAMA3_ROPE["low_freq_factor"], LLAMA3_ROPE["high_freq_factor"]
    turns = LLAMA3_ROPE["original_max_position_embeddings"] * theta ** (-np.arange(count) / count) / (2 * np.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return 1 / (kept + (1 - kept) / factor)


def _hf_name(name: str, block_names: dict[str, str]) -> str | None:
    stem = name.removesuffix(".weight")
    if stem in TOP_NAMES:
        return TOP_NAMES[stem]
    prefix, _, rest = stem.partition(".")
    index, _, part = rest.partition(".")
    if prefix != "blk" or not index.isdigit() or part not in block_names:
        return None
    return f"layers.{index}.{block_names[part]}"
