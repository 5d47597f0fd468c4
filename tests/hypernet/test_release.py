"""The release's fixtures, number for number, and its checkpoints imported."""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import d2l
from benchmarks.release_parity import parity
from d2l.errors import UserError
from d2l.hypernet.release import import_checkpoint, read_release
from d2l.hypernet.store import load_hypernet
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


def test_parity_script_fails_on_other_numbers(tmp_path):
    folder = tmp_path / "case"
    folder.mkdir()
    for name in ("base", "pytorch_model.bin"):
        (folder / name).symlink_to(FIXTURES / "llama_per_layer" / name)
    import safetensors.numpy

    io = safetensors.numpy.load_file(FIXTURES / "llama_per_layer" / "io.safetensors")
    io["out.logits"] = io["out.logits"] + 1e-3
    safetensors.numpy.save_file(io, folder / "io.safetensors")
    done = subprocess.run([sys.executable, "-m", "benchmarks.release_parity", str(folder)], capture_output=True)
    assert done.returncode == 1


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
    from d2l.hypernet.unpickle import read_checkpoint

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


def test_unsupported_options_are_refused(content, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    content["hypernet_config"].fields["use_token_mixing"] = True
    write_torch_zip(path, content)
    with pytest.raises(UserError, match="use_token_mixing"):
        read_release(path)


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
