"""The tiny recipe in its shortened form: a target from nothing, then its hypernetwork; resume and refusals."""

import importlib.util
import json
import math
import pathlib

import pytest

import d2l
from d2l.experiments.niah import evaluate
from d2l.train.loop import train
from d2l.train.pretrain import train_target

pytestmark = pytest.mark.usefixtures("optimized")
CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
# Nothing without the document can do better: four digits that nobody told, then a known end of turn.
NO_DOCUMENT = 4 / 5 * math.log(10)


def config_of(name: str, **changes):
    """A config of `configs/`, with its fields replaced by `changes` (dotted names as keys)."""
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.update_from_flattened_dict(changes)
    return config.lock()


def only_stage(config, name: str, **changes):
    """The config with one of its stages, changed."""
    with config.unlocked():
        for other in set(config.stages) - {name}:
            del config.stages[other]
    config.stages[name].update(changes)
    return config


def target_config(steps: int, **changes):
    config = config_of("niah_tiny_target", **changes)
    return only_stage(config, "short", steps=steps, contexts=64, max_tokens=0, warmup=5)


def hypernet_config(target: pathlib.Path, steps: int, **changes):
    config = config_of("niah_tiny", target=str(target), **changes)
    return only_stage(config, "needle", steps=steps, contexts=32, warmup=5)


@pytest.fixture(scope="module")
def trained(optimized, tmp_path_factory):
    """A workdir with a target, and the means of its last updates."""
    workdir = tmp_path_factory.mktemp("target")
    return workdir, train_target(target_config(90), workdir)


def test_target_retrieves_in_context(trained):
    workdir, metrics = trained
    assert metrics["ce"] < 0.6 * NO_DOCUMENT  # at any distance in the window
    model = d2l.load(str(workdir / "target"), dtype="float32")
    rows = evaluate(model, methods=("in_context", "no_context"), lengths=[(0, 11)], samples=40, seed=5)
    found = {row["method"]: row["exact_match"] for row in rows}
    assert found["in_context"] >= 0.15  # one of 10,000 numbers
    assert found["no_context"] <= 0.05


def test_exact_match_is_a_share_where_shapes_have_room_for_more_rows(tmp_path):
    config = only_stage(config_of("niah_tiny_target"), "full", steps=1, warmup=0)
    assert 0.0 <= train_target(config, tmp_path)["exact"] <= 1.0


def test_hypernetwork_learns_what_the_prompt_lacks(trained, tmp_path):
    metrics = train(hypernet_config(trained[0] / "target", 120), tmp_path)
    assert metrics["ce"] < 0.8 * NO_DOCUMENT
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 121))
    assert list((tmp_path / "tensorboard").glob("events*"))
