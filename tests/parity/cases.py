"""What both sides of the parity check compute: tiny models, their weights, inputs, prompts and texts.

Read by Python 3.11 with torch and by Python 3.12 with JAX, so it imports numpy alone.
"""

import zlib
from collections.abc import Mapping

import numpy as np

VOCAB, TOKENS = 96, 24
LENGTHS = (TOKENS, 17)  # the second row is padded on the right

_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 96,
}
_GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 12, "sliding_window": 6, "num_hidden_layers": 4}
_GEMMA3 = _GEMMA | {
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}

# name: (transformers' config class, what differs from _SIZES)
FAMILIES = {
    "llama_default": ("LlamaConfig", {"tie_word_embeddings": False, "rms_norm_eps": 1e-5}),
    "llama_linear": (
        "LlamaConfig",
        {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    ),
    "llama_llama3": ("LlamaConfig", {"tie_word_embeddings": True, "rope_parameters": _LLAMA3}),
    "mistral_sliding": ("MistralConfig", {"tie_word_embeddings": False, "sliding_window": 7}),
    "qwen3": ("Qwen3Config", {"tie_word_embeddings": False, "head_dim": 16}),
    "qwen3_sliding": (
        "Qwen3Config",
        {
            "tie_word_embeddings": True,
            "head_dim": 16,
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 1,
        },
    ),
    "gemma2": (
        "Gemma2Config",
        _GEMMA | {"tie_word_embeddings": True, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0},
    ),
    "gemma3": ("Gemma3TextConfig", _GEMMA3 | {"tie_word_embeddings": True}),
    "gemma3_untied": ("Gemma3TextConfig", _GEMMA3 | {"tie_word_embeddings": False}),
}

# Adapters that peft applies: on which model, on which modules, and the scale s.
ADAPTERS = {
    "llama_default": (("down_proj", "q_proj", "v_proj"), 2 * 4**1.5),
    "gemma2": (("down_proj",), 1.7),
    "qwen3": (("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"), 0.9),
}
ADAPTER_RANK, ADAPTER_CHUNKS = 4, 2


def hf_fields(name: str) -> dict:
    """Keyword arguments of the config class of a family."""
    return _SIZES | FAMILIES[name][1]


def tokens(name: str) -> np.ndarray:
    """Token ids int64 `[2, TOKENS]`; the end of the second row is padding."""
    ids = _random(f"tokens of {name}").randint(3, VOCAB, (len(LENGTHS), TOKENS))
    for row, length in enumerate(LENGTHS):
        ids[row, length:] = 0
    return ids.astype(np.int64)


def random_weights(name: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Float32 weights of a model under its own names; numpy promises that this stream never changes.

    Norms lie around the identity; the rest is wide enough that attention is far from uniform and soft caps bite.
    """
    identity = 0.0 if name.startswith("gemma") else 1.0
    weights = {}
    for key, shape in shapes.items():
        draw = _random(f"{name} {key}").standard_normal(tuple(shape))
        if len(shape) == 1:
            weights[key] = (identity + 0.2 * draw).astype(np.float32)
        else:
            weights[key] = (1.5 * draw / np.sqrt(shape[-1])).astype(np.float32)
    return weights


def random_factors(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Float32 entries of an adapter."""
    return (0.3 * _random(f"adapter {name}").standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


def _random(seed: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(seed.encode()))


NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
PROMPTS = [
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "List three colours.",
    "Translate to German: Good morning, my friend.",
    "What is 17 + 25?",
    "Explain photosynthesis to a child.",
    "Write a Python function that reverses a string.",
    "Who wrote Hamlet?",
    "Give me a recipe for pancakes.",
    "Why is the sky blue?",
    "Summarize: The cat sat on the mat. It was a sunny day, and the cat was happy.",
    "What is the special magic number? Reply with only the number.",
    NOISE * 4 + "The special magic number is 0042. " + NOISE * 4 + "\n\nWhat is the special magic number?",
    "Count from 1 to 20.",
    "Name the planets of the solar system.",
    "Write a haiku about autumn.",
    "What does the word 'naïve' mean?",
    "Convert 98.6 °F to °C.",
    "Is 91 a prime number? Think step by step.",
    "Tell me a story about a dragon and a knight.",
]
TEXTS = [
    "Hello, world!",
    "The special magic number is 0042.",
    "1234567890 3.14159 1,000,000 2026-11-24 10  20   30",
    "   leading and trailing   ",
    "tabs\tand\n\nnew lines\r\n  indented\n\n\n\n",
    "def f(x):\n    return x ** 2 + 1  # comment\n\nprint(f(3))\n",
    '{"key": [1, 2.5e-3, null], "other": "v\\n"}',
    "Ünïcödé: naïve café, Straße, İstanbul, ﬁ, é vs e\u0301",
    "日本語のテキスト。中文文本。한국어 텍스트.",
    "Привет, мир! Γειά σου Κόσμε. مرحبا بالعالم שלום",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 ✨ \U0001f9d1\U0001f3fd‍🚀",
    "it's we'll they've I'd you're I'm DON'T",
    "\u00a0non-breaking\u2003em space\u200bzero width\ufeff",
    "<p class='x'>HTML &amp; entities</p> <!-- c -->",
    "http://example.org/a/b?c=d&e=%20f#g user@example.org",
    "∑_{i=0}^{∞} x² ≠ ½ · ⅔ ① Ⅷ ٣ ४",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa ---------------- ________ ========",
    "\x00\x01\x7f control bytes",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "x" + " " * 37 + "y\n" + " " * 8 + "7" + " " * 3 + "8",
    "",
    " ",
    "\n",
]
CHATS = [
    [{"role": "user", "content": "Hello 123"}],
    [{"role": "system", "content": ""}, {"role": "user", "content": "Ünïcödé  1 2\n\n3 "}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " hi"}],
    [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "日本語 🙂?"},
    ],
]
# Of every SmolLM2 logits row this many entries apart are stored.
LOGIT_STRIDE = 509
LOGIT_PROMPTS = (0, 4, 12)
NEW_TOKENS = 64
