"""Every family against what transformers and peft computed, and configs that no model should have."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2l.adapter import Adapter, compose
from d2l.errors import UserError
from d2l.target.config import RopeScaling
from d2l.target.families import config_from_hf, config_to_hf
from d2l.target.weights import load_target, save_target
from tests.parity import cases
from tests.target.folders import config_of, described, logits_of, stored, weights_of, write_folder

LIMIT = 1e-4
FAMILIES = sorted(cases.FAMILIES)


def test_every_family_is_stored():
    assert sorted(described()) == FAMILIES
    for name in FAMILIES:
        assert stored()[name].shape == (sum(cases.LENGTHS), cases.VOCAB)
        assert stored()[name].std() > 1


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_transformers(name, tmp_path):
    target = load_target(write_folder(tmp_path / name, name))
    ours = logits_of(target, cases.tokens(name))
    assert np.abs(ours - stored()[name]).max() <= LIMIT


@pytest.mark.parametrize("name", sorted(cases.ADAPTERS))
def test_logits_with_an_adapter_are_those_of_peft(name, tmp_path):
    target = load_target(write_folder(tmp_path / name, name))
    modules, scale = cases.ADAPTERS[name]
    L, r = target.config.num_hidden_layers, cases.ADAPTER_RANK

    def factors(kind, lead):
        sizes = target.config.module_sizes
        return {
            module: {
                side: jnp.asarray(cases.random_factors(f"{name} {kind} {module}.{side}", (*lead, r, width)))
                for side, width in zip("AB", sizes[module], strict=True)
            }
            for module in modules
        }

    composed, ranks = compose(
        factors("chunks", (cases.ADAPTER_CHUNKS + 1, L)),
        jnp.array([0, 0, 1]),
        jnp.array([0, 1, 0]),
        num_contexts=2,
        max_chunks=cases.ADAPTER_CHUNKS,
        bias=factors("bias", (L,)),
    )
    adapter = Adapter(composed, ranks, scale, target.name, target.weights_hash)
    for context in (0, 1):
        theirs = stored()[f"peft.{name}.{context}"]
        ours = logits_of(target, cases.tokens(name), adapter.select(np.array([context])).for_decoder())
        assert np.abs(ours - theirs).max() <= LIMIT
        assert np.abs(theirs - stored()[name]).max() > 0.1


# What each family adds; without it the stored logits are out of reach, so the comparison above does see it.
FEATURES = {
    "llama_linear": {"rope_scaling": None},
    "llama_llama3": {"rope_scaling": RopeScaling("llama3", 8.0, 1.0, 4.0, 192)},
    "mistral_sliding": {"sliding_window": 8},
    "qwen3_sliding": {"layer_types": ("sliding_attention",) * 3},
    "gemma2": {"attn_logit_softcapping": None},
    "gemma3": {"rope_local_base_freq": None},
    "gemma3_untied": {"query_pre_attn_scalar": 16.0},
}


@pytest.mark.parametrize("name", sorted(FEATURES))
def test_the_comparison_sees_each_feature(name, tmp_path):
    target = load_target(write_folder(tmp_path / name, name))
    changed = dataclasses.replace(target, config=dataclasses.replace(target.config, **FEATURES[name]))
    assert changed.config != target.config
    assert np.abs(logits_of(changed, cases.tokens(name)) - stored()[name]).max() > 100 * LIMIT


@pytest.mark.parametrize("name", FAMILIES)
def test_saved_and_loaded_again(name, tmp_path):
    first = load_target(write_folder(tmp_path / "first", name))
    save_target(tmp_path / "second", first.config, first.params)
    second = load_target(tmp_path / "second")
    assert second.config == first.config
    assert second.weights_hash == first.weights_hash
    jax.tree.map(np.testing.assert_array_equal, second.params, first.params)
    saved = json.loads((tmp_path / "second" / "config.json").read_text())
    assert saved["architectures"] == config_of(name)["architectures"]


def test_config_round_trip_keeps_end_tokens():
    config = config_from_hf(config_of("llama_default") | {"eos_token_id": [2, 5], "bos_token_id": None})
    assert (config.eos_token_ids, config.bos_token_id) == ((2, 5), None)
    assert config_from_hf(config_to_hf(config)) == config


# ---------------------------------------------------------------- configs as hub repositories spell them


def old_spelling(name, **fields):
    """The config with RoPE and layer kinds spelled as before transformers 5."""
    config = config_of(name)
    for key in ("rope_parameters", "layer_types", "_sliding_window_pattern"):
        config.pop(key, None)
    return config | fields


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("llama_default", {"rope_theta": 10000.0, "rope_scaling": None}),
        ("llama_linear", {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}}),
        (
            "llama_llama3",
            {
                "rope_theta": 500000.0,
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 96,
                },
            },
        ),
        ("qwen3", {"rope_theta": 10000.0, "use_sliding_window": False, "sliding_window": None}),
        ("gemma2", {"rope_theta": 10000.0}),
    ],
)
def test_old_spelling_means_the_same(name, fields):
    assert config_from_hf(old_spelling(name, **fields)) == config_from_hf(config_of(name))


def test_gemma3_old_spelling():
    fields = {
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window_pattern": 3,
    }
    config = config_from_hf(old_spelling("gemma3", **fields))
    want = config_from_hf(config_of("gemma3"))
    assert config == want
    assert want.rope_local_base_freq == 10000.0
    assert want.rope_theta == 1000000.0
    assert want.rope_scaling == RopeScaling("linear", 8.0)


def test_text_part_of_a_multimodal_gemma3():
    whole = {"model_type": "gemma3", "vision_config": {"hidden_size": 8}, "text_config": config_of("gemma3")}
    assert config_from_hf(whole) == config_from_hf(config_of("gemma3"))


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"model_type": None}, "architecture"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "yarn"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}, "dynamic"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 0.0}}, "factor"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": -1.0}}, "rope_theta"),
        ({"rope_parameters": 7}, "config.json"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "relu"}, "relu"),
        ({"hidden_size": "32"}, "hidden_size"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"vocab_size": 10**12}, "vocab_size"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "key-value heads"),
        ({"num_key_value_heads": 0}, "num_key_value_heads"),
        ({"head_dim": 7}, "head_dim"),
        ({"head_dim": -8}, "head_dim"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"eos_token_id": "two"}, "eos_token_id"),
    ],
)
def test_config_is_refused(changes, named):
    with pytest.raises(UserError, match=named):
        config_from_hf(config_of("llama_default") | changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sliding_window": None}, "sliding_window"),
        ({"sliding_window": 10**12}, "sliding_window"),
        ({"layer_types": ["full_attention"]}, "layer"),
        ({"layer_types": ["chunked_attention"] * 4}, "layer"),
        ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
        ({"final_logit_softcapping": -1.0}, "final_logit_softcapping"),
        ({"use_bidirectional_attention": True}, "bidirectional"),
    ],
)
def test_gemma_config_is_refused(changes, named):
    with pytest.raises(UserError, match=named):
        config_from_hf(config_of("gemma2") | changes)


@pytest.mark.parametrize("value", [[], "text", 3, None])
def test_config_must_be_an_object(value):
    with pytest.raises(UserError, match="not a JSON object"):
        config_from_hf(value)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("value", [None, "x", -1, 0, 3.5, 10**12, [], {}, [1, 2], True, float("inf")])
def test_no_value_of_any_field_escapes_as_another_error(name, value):
    for field in config_of(name):
        try:
            config = config_from_hf(config_of(name) | {field: value})
        except UserError:
            continue
        assert config.hidden_size == 32 and config.num_hidden_layers == len(config.layer_types)


def test_reading_a_config_leaves_it_alone():
    fields = config_of("gemma3")
    config_from_hf(fields)
    assert fields == config_of("gemma3")


def test_weights_of_the_check_never_change():
    head = weights_of("llama_default")["lm_head.weight"]
    np.testing.assert_allclose(head[0, :3], FIRST_WEIGHTS, rtol=1e-6)


FIRST_WEIGHTS = (-0.68383455, -0.05378421, -0.09300143)
