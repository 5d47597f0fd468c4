"""The release's fixtures, number for number, and its checkpoints imported."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import d2l
from benchmarks.release_parity import parity
from d2l.errors import UserError
from d2l.hypernet.release import import_checkpoint, read_release
from d2l.hypernet.store import load_hypernet
from d2l.hypernet.unpickle import Record, Tensor, read_checkpoint
from tests.hypernet.torch_zip import write_torch_zip

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
CASES = ("llama_per_layer", "gemma2_per_layer", "qwen3_early_exit")


@pytest.mark.parametrize("case", CASES)
def test_computes_what_the_release_computes(case):
    errors = parity(FIXTURES / case)
    assert set(errors) == {"features", "lora", "combined", "logits", "base_logits"}
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("case", CASES[:2])
def test_iterative_equals_the_release_too(case):
    assert max(parity(FIXTURES / case, iterative=True).values()) < 1e-5


@pytest.mark.parametrize("case", ("mistral", "gemma3", "llama_embed", "other_encoder"))
def test_computes_what_the_release_computes_with_other_options(case):
    errors = parity(FIXTURES / "variants" / case)
    # The adapters of mistral change every module by 45 B^T A, which magnifies rounding in the logits of both sides.
    assert max(errors.values()) < (1e-4 if case == "mistral" else 2e-5), errors


def _case(folder, change):
    """A folder like the Llama fixture, its numbers changed."""
    folder.mkdir()
    for name in ("base", "pytorch_model.bin"):
        (folder / name).symlink_to(FIXTURES / "llama_per_layer" / name)
    io = safetensors.numpy.load_file(FIXTURES / "llama_per_layer" / "io.safetensors")
    change(io)
    safetensors.numpy.save_file({name: np.ascontiguousarray(a) for name, a in io.items()}, folder / "io.safetensors")
    return folder


def test_parity_script_fails_on_other_numbers(tmp_path):
    folder = _case(tmp_path / "case", lambda io: io.update({"out.logits": io["out.logits"] + np.float32(1e-3)}))
    done = subprocess.run([sys.executable, "-m", "benchmarks.release_parity", str(folder)], capture_output=True)
    assert done.returncode == 1
    errors = json.loads(done.stdout)
    assert errors["logits"] == pytest.approx(1e-3, rel=0.01) and errors["lora"] < 1e-5


def test_parity_of_chunks_padded_on_the_left(tmp_path):
    def turn(io):
        for row, length in enumerate(io["in.ctx_attn_mask"].sum(1)):
            shift = io["in.ctx_ids"].shape[1] - length
            for name in ("in.ctx_ids", "in.ctx_attn_mask"):
                io[name][row] = np.roll(io[name][row], shift)
            io["out.ctx_features"][row] = np.roll(io["out.ctx_features"][row], shift, axis=1)

    assert max(parity(_case(tmp_path / "case", turn)).values()) < 1e-5


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda io: io.pop("in.n_queries"), "lacks in.n_queries"),
        (lambda io: io.pop("out.lora.down_proj.B"), "has nothing for out.lora.down_proj.B"),
        (lambda io: io.update({"out.logits": io["out.logits"][:, :-1]}), "for out.logits, expected"),
        (lambda io: io.update({"in.n_ctx_chunks": io["in.n_ctx_chunks"] + 1}), "do not fit each other"),
        (lambda io: io.update({"in.ctx_ids": io["in.ctx_ids"] + 256}), "token ids"),
    ],
)
def test_parity_refuses_a_folder_that_does_not_fit(change, told, tmp_path):
    with pytest.raises(UserError, match=told):
        parity(_case(tmp_path / "case", change))


@pytest.mark.parametrize("arguments", [[], ["nowhere"], ["tests/fixtures"]])
def test_parity_script_explains_bad_input(arguments):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.release_parity", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("case", CASES)
def test_import_checkpoint_writes_a_hypernetwork_that_loads(case, tmp_path):
    folder = FIXTURES / case
    import_checkpoint(folder / "pytorch_model.bin", folder / "base", tmp_path / "out")
    model = d2l.load(folder / "base", tmp_path / "out")
    config, params, _ = read_release(folder / "pytorch_model.bin")
    assert model.hypernet.config == config
    jax.tree.map(np.testing.assert_array_equal, params, model.hypernet.params)
    assert config.scale == pytest.approx(2 * config.rank**1.5)


def test_refuses_another_target(tmp_path):
    with pytest.raises(UserError, match="give the model it was trained for"):
        import_checkpoint(
            FIXTURES / "qwen3_early_exit" / "pytorch_model.bin", _smaller_base(tmp_path), tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


def _smaller_base(tmp_path):
    """The Llama base with one layer less."""
    import dataclasses

    from d2l.target.weights import load_target, save_target

    base = load_target(FIXTURES / "llama_per_layer" / "base")
    config = dataclasses.replace(base.config, num_hidden_layers=3, layer_types=base.config.layer_types[:3])
    params = base.params | {"layers": jax.tree.map(lambda a: a[:3], base.params["layers"])}
    save_target(tmp_path / "base", config, params)
    return tmp_path / "base"


@pytest.fixture
def content():
    """A checkpoint's content, as `write_torch_zip` takes it."""
    return read_checkpoint(FIXTURES / "llama_per_layer" / "pytorch_model.bin")


def _params(path):
    return read_release(path)[1]


def test_compiled_names_and_bfloat16_and_cuda_tags(content, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    write_torch_zip(path, content, prefix="_orig_mod.", dtype="BFloat16Storage", device="cuda:0")
    ours, theirs = _params(path), _params(FIXTURES / "llama_per_layer" / "pytorch_model.bin")
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16).astype(jnp.float32)), ours, theirs
    )


def test_older_checkpoints_lack_fields(content, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    fields = content["hypernet_config"].fields
    for name in ("num_pre_head_layers", "use_bias", "use_per_rank_bias"):
        del fields[name]
    one = {name: value for name, value in content.items() if name.startswith("layers.0.")}
    content |= {name.replace("layers.0.", f"layers.{i}.", 1): value for name, value in one.items() for i in range(4)}
    write_torch_zip(path, content)
    config, params, _ = read_release(path)
    assert config.num_pre_head_layers == 4 and config.use_bias
    np.testing.assert_array_equal(params["pre_head"]["0"]["w1"], params["pre_head"]["3"]["w1"])


def test_missing_left_over_and_misshapen_tensors_are_named(content, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    scaler = content.pop("scaler_A.down_proj")
    write_torch_zip(path, content)
    with pytest.raises(UserError, match=r"lacks scaler_A\.down_proj"):
        read_release(path)
    write_torch_zip(path, content | {"scaler_A.down_proj": scaler, "surprise": scaler})
    with pytest.raises(UserError, match="does not use: surprise"):
        read_release(path)
    write_torch_zip(path, content | {"scaler_A.down_proj": content["head.weight"]})
    with pytest.raises(UserError, match=r"scaler_A\.down_proj of shape"):
        read_release(path)


def test_flags_that_the_release_never_reads_change_nothing(content, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    for name in ("use_per_rank_bias", "use_light_weight_lora", "use_token_mixing"):
        content["hypernet_config"].fields[name] = True
    write_torch_zip(path, content)
    config, params, _ = read_release(path)
    plain, expected, _ = read_release(FIXTURES / "llama_per_layer" / "pytorch_model.bin")
    assert config == plain
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_unsupported_options_are_refused(content, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    fields = content["hypernet_config"].fields
    for group, name, value, told in (
        (fields, "extra_modules", ["norm"], "extra_modules"),
        (fields["aggregator_config"].fields, "aggregator_type", "pooler", "not a Perceiver"),
        (fields["aggregator_config"].fields, "num_blocks", 10**9, "num_blocks 1000000000"),
        (fields["lora_config"].fields, "r", "4", "has r '4'"),
    ):
        before, group[name] = group[name], value
        write_torch_zip(path, content)
        with pytest.raises(UserError, match=told):
            read_release(path)
        group[name] = before


def _rename(content, old, new):
    """The tensors below `old`, again below `new`."""
    return {new + name.removeprefix(old): value for name, value in content.items() if name.startswith(old)}


def test_shared_weights_and_self_attention(content, tmp_path):
    path, stem = tmp_path / "pytorch_model.bin", "aggregator.perceiver.encoder.layers."
    content["hypernet_config"].fields["aggregator_config"].fields |= {
        "num_blocks": 3,
        "num_self_attn_per_block": 1,
        "shared_weights": True,
    }
    # Places: cross-attention at 0, 2 and 4 (2 again), self-attention at 1, 3 and 5 (1 again).
    decoder = "aggregator.perceiver.decoder.layers.0."
    second, own = _rename(content, f"{stem}1.", f"{stem}2."), _rename(content, decoder, f"{stem}1.")
    content |= second | own
    del content[f"{stem}1.input_context_layernorm.weight"]
    for place, original in ((3, 1), (4, 2), (5, 1)):
        content |= _rename(content, f"{stem}{original}.", f"{stem}{place}.")
    write_torch_zip(path, content)
    config, params, _ = read_release(path)
    layers = params["aggregator"]["encoder"]["layers"]
    assert config.shared_weights and set(layers) == {"0", "1", "2"}
    for index, name in (("1", f"{decoder}self_attn.q_proj.weight"), ("2", f"{stem}4.self_attn.q_proj.weight")):
        np.testing.assert_array_equal(layers[index]["self_attn"]["q_proj"], content[name].array)
    content[f"{stem}4.mlp.up_proj.weight"] = content[f"{stem}0.mlp.up_proj.weight"]
    write_torch_zip(path, content)
    with pytest.raises(UserError, match=r"does not use: .*layers\.4\.mlp\.up_proj\.weight"):
        read_release(path)


def test_residual_mlps_of_all_layers_in_common(content, tmp_path):
    path, own = tmp_path / "pytorch_model.bin", "layers.0.layers."
    content["hypernet_config"].fields["per_layer_processing"] = False
    for old, new in ((0, 0), (1, 2), (3, 5), (4, 6)):
        for kind in ("weight", "bias"):
            array = content.pop(f"{own}{old}.{kind}").array
            if old in (1, 3):  # layer 0's, as a linear layer stores it
                array = array[0].T if kind == "weight" else array[0, 0, 0, 0]
            content[f"layers.0.mlp.{new}.{kind}"] = Tensor(array)
    write_torch_zip(path, content)
    ours, theirs = _params(path)["pre_head"]["0"], _params(FIXTURES / "llama_per_layer" / "pytorch_model.bin")
    theirs = theirs["pre_head"]["0"]
    for name in ("w1", "b1", "w2", "b2"):
        np.testing.assert_array_equal(ours[name], theirs[name][0])
    jax.tree.map(np.testing.assert_array_equal, ours["norm_out"], theirs["norm_out"])


def test_without_learned_bias(content, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    content["hypernet_config"].fields["use_bias"] = False
    write_torch_zip(path, content)
    config, params, _ = read_release(path)
    assert not config.use_bias and "bias_A" not in params


def test_encoder_kind_layer_and_name_are_the_pickled_ones(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    content = read_checkpoint(FIXTURES / "qwen3_early_exit" / "pytorch_model.bin")
    encoder = content["ctx_encoder_args"].fields
    encoder |= {"layer_idx": 3, "ctx_encoder_last_layer": 9}
    write_torch_zip(path, content)
    config, _, about = read_release(path)
    assert (config.features, config.layer_idx, config.ctx_encoder_last_layer) == ("early_exit", 3, None)
    assert about == {"ctx_encoder": None, "ctx_encoder_quantized": False}
    encoder |= {"ctx_encoder_type": Record("embed_only"), "ctx_encoder_model_name_or_path": "org/reader"}
    write_torch_zip(path, content)
    config, _, about = read_release(path)
    assert (config.features, config.layer_idx, about["ctx_encoder"]) == ("embed_only", None, "org/reader")
    encoder |= {"ctx_encoder_model_name_or_path": content["base_model_name_or_path"]}
    write_torch_zip(path, content)
    assert read_release(path)[2]["ctx_encoder"] is None


def test_an_encoder_with_more_layers_than_the_target(content, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    encoder = content["ctx_encoder_args"].fields
    encoder |= {"ctx_encoder_model_name_or_path": "org/reader", "ctx_encoder_last_layer": 4}
    write_torch_zip(path, content)
    import_checkpoint(path, FIXTURES / "llama_per_layer" / "base", tmp_path / "out")
    config, _, description = load_hypernet(tmp_path / "out")
    assert config.ctx_encoder_last_layer == 4 and description["card"]["ctx_encoder"] == "org/reader"


def test_interrupted_import_keeps_the_earlier_folder(tmp_path, monkeypatch):
    folder = FIXTURES / "llama_per_layer"
    import_checkpoint(folder / "pytorch_model.bin", folder / "base", tmp_path / "out")
    before = load_hypernet(tmp_path / "out")[1]

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(UserError, match="No space left"):
        import_checkpoint(folder / "pytorch_model.bin", folder / "base", tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, before, load_hypernet(tmp_path / "out")[1])
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
