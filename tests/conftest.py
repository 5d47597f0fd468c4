"""Every test runs on the CPU, in float32 at full precision, with silent promotion of ranks and dtypes an error."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
# Most programs run once, so compiling fast is worth more than fast code, here and in the processes that tests start;
# those that train use the fixture `optimized`.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import atexit
import dataclasses
import shutil
import tempfile
import zlib

import jax
import jax.numpy as jnp
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_default_matmul_precision", "highest")

# Many tests compile what another one has compiled.
_CACHE = tempfile.mkdtemp(prefix="d2l-tests-")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
jax.config.update("jax_compilation_cache_dir", _CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

from d2l.data.niah import NEEDLE, NOISE, QUESTION  # noqa: E402
from d2l.hypernet.config import HypernetConfig  # noqa: E402
from d2l.target.config import TargetConfig  # noqa: E402
from d2l.target.tokenizer import Tokenizer  # noqa: E402
from d2l.target.weights import save_target  # noqa: E402

# A worker takes a file at a time: those of minutes come first, so that none works alone at the end.
LONGEST = ("test_processes.py", "test_tiny_recipe.py", "test_loop.py", "test_needles.py", "test_hypernet.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="module")
def optimized():
    """A module whose programs run long enough to be worth optimising."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A small tokenizer that knows the words of needle documents."""
    return Tokenizer.train([*NOISE, NEEDLE.format("0123456789"), QUESTION, "system\nuser\nassistant\n"] * 2, 400)


@pytest.fixture(scope="session")
def target_config(tokenizer) -> TargetConfig:
    """SmolLM2 with four layers of width 32."""
    return TargetConfig(
        model_type="llama",
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        query_pre_attn_scalar=8.0,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        rope_theta=1e4,
        tie_word_embeddings=True,
        layer_types=("full_attention",) * 4,
        bos_token_id=tokenizer.bos_id,
        eos_token_ids=tokenizer.eos_ids,
        pad_token_id=tokenizer.pad_id,
    )


def families(config: TargetConfig) -> dict[str, TargetConfig]:
    """The same size with what sets each family apart; windows are shorter than the tests' sequences."""
    both = ("sliding_attention", "full_attention") * 2
    gemma = {"hidden_act": "gelu_pytorch_tanh", "norm_offset": 1.0, "embed_scale": True, "sandwich_norms": True}
    change = dataclasses.replace
    return {
        "llama": config,
        "mistral": change(config, model_type="mistral", layer_types=("sliding_attention",) * 4, sliding_window=5),
        "qwen3": change(config, model_type="qwen3", qk_norm=True, tie_word_embeddings=False),
        "gemma2": change(
            config,
            model_type="gemma2",
            layer_types=both,
            sliding_window=4,
            attn_logit_softcapping=5.0,
            final_logit_softcapping=3.0,
            **gemma,
        ),
        "gemma3": change(
            config,
            model_type="gemma3_text",
            layer_types=both,
            sliding_window=6,
            qk_norm=True,
            rope_local_base_freq=100.0,
            **gemma,
        ),
    }


def lively(params, seed: int = 0):
    """Parameters large enough that outputs differ: matrices times ten, norms perturbed."""

    def change(path, a):
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(str(path).encode()) % (1 << 30))
        return a * 10 if a.ndim > 2 or "embed" in str(path) else a + 0.3 * jax.random.normal(key, a.shape)

    return jax.tree_util.tree_map_with_path(change, params)


def random_adapter(config: TargetConfig, contexts: int, rank: int, modules=("down_proj",), seed: int = 0):
    """Random factors `{module: {"A": [L, C, R, i], "B": [L, C, R, o]}}`."""
    out = {}
    for i, name in enumerate(modules):
        d_in, d_out = config.module_sizes[name]
        a, b = jax.random.split(jax.random.fold_in(jax.random.key(seed), i))
        shape = (config.num_hidden_layers, contexts, rank)
        out[name] = {"A": jax.random.normal(a, (*shape, d_in)), "B": 0.1 * jax.random.normal(b, (*shape, d_out))}
    return out


def hypernet_config(config: TargetConfig, modules=("down_proj",), **changes) -> HypernetConfig:
    """A small hypernetwork for a small target."""
    sizes = config.module_sizes
    fields = {
        "target_modules": tuple(sorted(modules)),
        "d_in": tuple(sizes[name][0] for name in sorted(modules)),
        "d_out": tuple(sizes[name][1] for name in sorted(modules)),
        "num_layers": config.num_hidden_layers,
        "feature_size": config.hidden_size,
        "features": "early_exit",
        "layer_idx": 2,
        "latent_size": 16,
        "num_latents": 5,
        "num_blocks": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "rank": 2,
        "scale": 4.0,
        "scaler_b_init": 0.5,
    }
    return HypernetConfig(**(fields | changes))


@pytest.fixture(scope="session")
def target_folder(target_config, tokenizer, tmp_path_factory):
    """A random small target as a Hugging Face folder."""
    from d2l.train.pretrain import init_target

    folder = tmp_path_factory.mktemp("target") / "tiny"
    save_target(folder, target_config, lively(init_target(target_config, 0)), tokenizer)
    return folder


@pytest.fixture
def tokens(target_config):
    """Token ids `[3, 20]`."""
    return jax.random.randint(jax.random.key(1), (3, 20), 0, target_config.vocab_size, jnp.int32)
