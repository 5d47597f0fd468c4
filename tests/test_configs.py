"""The experiments' configs: the paper's numbers, published sizes, and meshes that divide."""

import ast
import math
import os
import pathlib
import subprocess
import sys

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType

from d2l.cli_config import read_config, read_hypernet_config
from d2l.data.pack import batch_shapes
from d2l.errors import UserError
from d2l.experiments.params import parameter_rows, parameter_table
from d2l.experiments.programs import stage_shapes
from d2l.hypernet.hypernet import abstract_hypernet
from d2l.mesh import AXES, param_shardings, split_packs
from d2l.target.decoder import abstract_decoder
from d2l.target.shapes import target_shape
from d2l.train.sections import hypernet_config
from d2l.train.stages import read_stages

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
MAIN = ("gemma2_2b_main", "mistral_7b_main", "qwen3_4b_main")
NIAH = ("gemma2_2b_niah", "mistral_7b_niah", "qwen3_4b_niah")


def load(name: str) -> dict:
    return read_hypernet_config(str(CONFIGS / f"{name}.py"), [])


TRAINING = sorted(path for path in CONFIGS.glob("*.py") if not path.stem.startswith("eval_"))


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_every_config_says_what_it_is_and_how_it_is_run(path):
    config = read_config(str(path), [])
    doc = ast.get_docstring(ast.parse(path.read_text()))
    assert f"d2l train --config configs/{path.name} --workdir " in doc
    assert config.stages


def test_a_config_builds_on_others_wherever_the_command_runs(tmp_path):
    path = CONFIGS / "niah_smollm2_far.py"
    assert "from configs import" in path.read_text()
    command = [sys.executable, "-P", "-m", "d2l.cli", "params", "--config", str(path)]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(command, cwd=tmp_path, env=env, check=True, capture_output=True)


@pytest.mark.parametrize("name", MAIN + NIAH)
def test_the_papers_configs_name_numbers_hardware_and_an_override(name):
    doc = ast.get_docstring(ast.parse((CONFIGS / f"{name}.py").read_text()))
    for word in ("paper section", "Expected", "hours", "Useful override: --config."):
        assert word in doc
    override = doc.split("Useful override: ")[1].split()[0].rstrip(".,")
    assert read_config(str(CONFIGS / f"{name}.py"), [override])


@pytest.mark.parametrize(
    "name, hypernet, target",
    [
        ("gemma2_2b_main", 309_468_064, 2_614_341_888),
        ("mistral_7b_main", 568_444_928, 7_241_732_096),
        ("qwen3_4b_main", 415_232_064, 4_022_468_096),
    ],
)
def test_parameters_are_the_published_ones(name, hypernet, target):
    rows = {part: count for part, _, count in parameter_rows(load(name))}
    assert rows["total"] == hypernet
    assert rows["target (frozen)"] == target
    assert sum(rows.values()) == 2 * hypernet + target  # the parts make up the total
    assert f"{hypernet:,}" in parameter_table(load(name))


@pytest.mark.parametrize("name", MAIN)
def test_main_has_the_papers_numbers(name):
    fields = load(name)
    assert (fields["loss"], fields["l1"], fields["neftune"]) == ("kl", 0.1, 5.0)
    one, many = read_stages(fields)
    assert (one["steps"], one["lr"], one["max_chunks"]) == (80_000, 4e-5, 1)
    assert (many["steps"], many["lr"], many["max_chunks"], many["max_chunk_len"]) == (20_000, 2e-5, 8, 512)
    for stage in fields["stages"]:
        shapes = stage_shapes(fields, stage)
        assert fields["packs"] * shapes.ctx_rows * shapes.ctx_tokens >= 200_000
        assert batch_shapes(shapes)["teacher_top_logp"].shape == (1, 1, shapes.responses, 16)
        assert sum(source["weight"] for source in fields["stages"][stage]["data"].values()) == pytest.approx(1)


@pytest.mark.parametrize("name", NIAH)
def test_niah_has_the_papers_numbers(name):
    fields = load(name)
    (stage,) = read_stages(fields)
    assert stage["steps"] * stage["contexts"] == 640_000
    assert (stage["min_tokens"], stage["max_tokens"], stage["lr"]) == (32, 256, 4e-5)
    assert (fields["loss"], fields["neftune"], fields["max_chunk_len"]) == ("ce", 0.0, 1024)
    assert fields["hypernet"]["layer_idx"] == target_shape(fields["target"]).num_hidden_layers // 4


@pytest.mark.parametrize(
    "name, chips",
    [
        *((name, chips) for name in ("gemma2_2b_main", "gemma2_2b_niah") for chips in (8, 16, 64)),
        *((name, chips) for name in (*MAIN[1:], *NIAH[1:]) for chips in (64, 256)),
    ],
)
def test_meshes_divide_models_and_packs(name, chips):
    fields = load(name)
    known = [fields["mesh"][axis] for axis in AXES if fields["mesh"][axis] != -1]
    sizes = [size if size != -1 else chips // (known[0] * known[1]) for size in (fields["mesh"][a] for a in AXES)]
    mesh = AbstractMesh(tuple(sizes), AXES, axis_types=(AxisType.Explicit,) * 3)
    target = target_shape(fields["target"])
    for tree in (abstract_decoder(target)[1], abstract_hypernet(hypernet_config(fields["hypernet"], target))[1]):
        shardings = param_shardings(mesh, tree)
        pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True)
        held = sum(math.prod(sharding.shard_shape(array.shape)) for array, sharding in pairs)
        whole = sum(array.size for array in jax.tree.leaves(tree))
        split = mesh.shape["fsdp"] * mesh.shape["model"]
        assert held < whole / split + 0.02 * whole  # all but small vectors
    assert split_packs(fields["packs"], mesh)[0] >= 1


def test_shapes_of_unknown_targets_are_refused():
    with pytest.raises(UserError, match="shape of org/none is not known.*gemma-2-2b-it"):
        target_shape("org/none")
