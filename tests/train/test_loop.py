"""The loop: resumes bit for bit, stops cleanly, and loses nothing."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import ml_collections
import numpy as np
import pytest

from d2l.data.shards import write_records
from d2l.errors import UserError
from d2l.hypernet.store import load_hypernet
from d2l.target.weights import load_target
from d2l.train import loop
from d2l.train.checkpoint import Checkpoints
from d2l.train.chips import CHIPS
from d2l.train.product import export_checkpoint
from d2l.train.stages import StoredStage, read_stages
from tests.data.test_input import record, with_teacher

STAGE = {"warmup": 1, "final": 0.3, "lr_factor": 1.0, "max_chunk_len": 24, "min_tokens": 0, "contexts": 2}


def config_for(target_folder):
    config = ml_collections.ConfigDict(
        {
            "target": str(target_folder),
            "init": "",
            "seed": 0,
            "dtype": "float32",
            "save_dtype": "float32",
            "loss": "ce",
            "l1": 0.0,
            "max_chunk_len": 24,
            "checkpoint_every": 2,
            "keep": 2,
            "hypernet": {
                "target_modules": ("down_proj",),
                "features": "early_exit",
                "layer_idx": 2,
                "aggregator": "direct",
                "num_blocks": 1,
                "latent_size": 16,
                "num_heads": 2,
                "num_kv_heads": 2,
                "head_dim": 8,
                "rank": 2,
                "scale": 4.0,
                "scaler_b_init": 0.1,
            },
            "lr": 1e-3,
            "lr_multipliers": {"scaler_B": 0.2},
            "optimizer": {"b2": 0.95, "clip": 0.3},
            "stages": {
                "one": STAGE | {"order": 0, "steps": 3, "max_tokens": 0},
                "two": STAGE | {"order": 1, "steps": 4, "max_tokens": 60, "max_chunks": 3},
            },
        }
    )
    return config.lock()


@pytest.fixture(scope="module")
def config(target_folder):
    return config_for(target_folder)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """A run that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CHIPS, "cpu", CHIPS["TPU v4"])  # a peak to set the step's FLOPs against
        return workdir, loop.train(config, workdir, profile_steps="2:3")


def environment(**more):
    """Of a process that compiles what these tests compile."""
    same = {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    }
    keep = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    return os.environ | same | keep | more


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def same_result(a, b):
    jax.tree.map(np.testing.assert_array_equal, load_hypernet(a / "hypernet")[1], load_hypernet(b / "hypernet")[1])


def test_a_run_leaves_scalars_checkpoints_and_its_result(whole):
    workdir, metrics = whole
    assert [row["step"] for row in rows(workdir)] == list(range(1, 8))
    assert {"loss", "ce", "l1", "accuracy", "exact", "lr", "grad/head", "grad/scaler_B", "input/wait"} <= set(metrics)
    assert 0.5 < metrics["input/packing"] <= 1 and metrics["speed/tokens_per_second_per_chip"] > 0
    assert 0 < metrics["speed/share_of_peak"] < 1
    assert list((workdir / "tensorboard").iterdir())
    assert list((workdir / "profile").rglob("*.xplane.pb"))
    numbers = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())
    assert numbers == [6, 7]
    description = load_hypernet(workdir / "hypernet")[2]
    assert description["card"]["updates"] == 7 and description["card"]["max_chunk_len"] == 24


def test_a_run_starts_from_another_ones_result(config, whole, tmp_path):
    """With the same function; a hypernetwork of another shape is refused before anything is trained."""
    earlier = whole[0] / "hypernet"
    with config.copy_and_resolve_references().unlocked() as more:
        more.init = str(earlier)
        more.lr = 0.0
        more.hypernet.row_gate = True
    loop.train(more, tmp_path / "gated")
    hyper, params, _ = load_hypernet(tmp_path / "gated" / "hypernet")
    gate = params.pop("gate")
    assert hyper.row_gate and not np.any(gate["weight"]) and np.all(gate["bias"] == 3)
    jax.tree.map(np.testing.assert_array_equal, params, load_hypernet(earlier)[1])

    with more.unlocked():
        more.hypernet.rank = 4
    with pytest.raises(UserError, match="another hypernetwork than config.hypernet: rank is 2 there and 4 here"):
        loop.train(more, tmp_path / "other")


class _Killed(BaseException):
    pass


def _die_after(last, monkeypatch):
    """Lets the next run die when so many updates are dispatched."""
    real = loop.make_step
    done = 0

    def dying(*args):
        step = real(*args)

        def run(*inputs):
            nonlocal done
            if done == last:
                raise _Killed
            done += 1
            return step(*inputs)

        return run

    monkeypatch.setattr(loop, "make_step", dying)


@pytest.mark.parametrize("last", [2, 3, 5])
def test_resumed_equals_uninterrupted(config, whole, tmp_path, monkeypatch, last):
    """Dies after some updates, inside or between stages; the same command again ends in the same bits."""
    _die_after(last, monkeypatch)
    with pytest.raises(_Killed):
        loop.train(config, tmp_path)
    monkeypatch.undo()
    assert not (tmp_path / "hypernet").exists()
    loop.train(config, tmp_path)
    same_result(whole[0], tmp_path)
    final = {row["step"]: row["loss"] for row in rows(tmp_path)}
    assert final == {row["step"]: row["loss"] for row in rows(whole[0])}


def test_a_workdir_may_be_named_from_here(config, whole, tmp_path, monkeypatch):
    _die_after(3, monkeypatch)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(_Killed):
        loop.train(config, "run")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert export_checkpoint("run", "product") == 2
    loop.train(config, "run")
    same_result(whole[0], tmp_path / "run")


def test_a_finished_run_does_nothing_more(config, whole):
    before = rows(whole[0])
    loop.train(config, whole[0])
    assert rows(whole[0]) == before


def test_sigterm_saves_and_ends(target_folder, whole, tmp_path):
    """A real process; it exits 0 with a checkpoint, and the next one finishes the run."""
    (tmp_path / "conf.py").write_text(
        "from tests.train.test_loop import config_for\n"
        f"def get_config():\n    c = config_for({str(target_folder)!r}).unlock()\n    return c\n"
    )
    command = [sys.executable, "-m", "d2l.cli", "train", "--config", str(tmp_path / "conf.py")]
    command += ["--workdir", str(tmp_path / "w")]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    log = tmp_path / "w" / "metrics.jsonl"
    for _ in range(1200):
        if log.exists() and log.read_text():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()
    assert list((tmp_path / "w" / "checkpoints").iterdir())
    done = subprocess.run(command, env=environment(), capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    same_result(whole[0], tmp_path / "w")


def records_config(target_folder, folder):
    """Distillation from the stored answers of the same target."""
    config = config_for(target_folder).unlock()
    sizes = {"contexts": 6, "chunks": 8, "ctx_rows": 2, "ctx_tokens": 96, "query_rows": 2, "query_tokens": 96}
    more = {"responses": 32, "row_chunks": 4, "row_contexts": 6, "max_chunks": 3, "teacher_top_k": 3, "window": 12}
    stage = {"order": 0, "steps": 5, "warmup": 1, "final": 0.3, "lr_factor": 1.0, "max_chunk_len": 60}
    data = {"data": {"set": {"path": str(folder), "weight": 1.0}}}
    config.loss, config.packs = "kl", 2
    config.stages = ml_collections.ConfigDict({"one": stage | sizes | more | data})
    return config.lock()


def test_a_killed_run_on_records_goes_on_with_the_very_next_example(target_folder, tmp_path, monkeypatch):
    records = (with_teacher(record(i, words=1 + i % 5), [5, 6, 7]) for i in range(60))
    write_records(tmp_path / "r", records, teacher=load_target(target_folder).weights_hash)
    config = records_config(target_folder, tmp_path / "r")
    metrics = loop.train(config, tmp_path / "whole")
    assert {"kl", "ce"} <= set(metrics) and metrics["input/left_out"] == 0 and metrics["input/packing"] > 0.6
    _die_after(3, monkeypatch)
    with pytest.raises(_Killed):
        loop.train(config, tmp_path / "killed")
    monkeypatch.undo()
    loop.train(config, tmp_path / "killed")
    same_result(tmp_path / "whole", tmp_path / "killed")
    assert [row["loss"] for row in rows(tmp_path / "killed")] == [row["loss"] for row in rows(tmp_path / "whole")]


def test_references_are_learned_as_they_stand_where_no_teacher_is_stored(target_folder, tmp_path):
    """The KL to a teacher that is sure of every token is the cross-entropy; stored teachers may stand beside."""
    plain, taught = tmp_path / "plain", tmp_path / "taught"
    write_records(plain, [record(i) for i in range(12)])
    records = (with_teacher(record(i), [5, 6, 7]) for i in range(12))
    write_records(taught, records, teacher=load_target(target_folder).weights_hash)
    config = records_config(target_folder, plain).unlock()
    config.stages["one"] = config.stages["one"].to_dict() | {"references": True}
    loop.train(config, tmp_path / "a")
    assert all(row["kl"] == pytest.approx(row["ce"], rel=1e-5) for row in rows(tmp_path / "a"))
    data = {path.name: {"path": str(path), "weight": 0.5} for path in (plain, taught)}
    config.stages["one"] = config.stages["one"].to_dict() | {"data": data}
    loop.train(config, tmp_path / "b")
    assert all(abs(row["kl"] - row["ce"]) > 1e-3 for row in rows(tmp_path / "b"))


def test_what_does_not_fit_the_target_is_told_before_the_first_step(target_folder, tmp_path):
    write_records(tmp_path / "r", [record(i) for i in range(4)])
    config = records_config(target_folder, tmp_path / "r").unlock()
    with pytest.raises(UserError, match="stores no teacher"):
        loop.train(config, tmp_path / "a")
    config.stages.one.max_chunk_len = 200
    with pytest.raises(UserError, match="do not fit into rows of 96"):
        loop.train(config, tmp_path / "b")
    with pytest.raises(UserError, match="references stand beside stored teachers"):
        StoredStage.of(config.stages.one.to_dict() | {"references": True, "teacher_top_k": 0})
    config.loss = "ce"
    with pytest.raises(UserError, match="ce neither"):
        loop.train(config, tmp_path / "c")
    shard = next((tmp_path / "r").glob("*.array_record"))
    shard.write_bytes(shard.read_bytes()[:-1])
    config.stages.one.max_chunk_len, config.loss = 60, "kl"
    with pytest.raises(UserError, match="truncated or damaged"):
        loop.train(config, tmp_path / "d")


def test_exporting_a_checkpoint_gives_what_the_run_gave(whole, tmp_path):
    assert export_checkpoint(str(whole[0]), str(tmp_path / "latest")) == 7
    jax.tree.map(
        np.testing.assert_array_equal,
        load_hypernet(whole[0] / "hypernet")[1],
        load_hypernet(tmp_path / "latest")[1],
    )
    assert export_checkpoint(str(whole[0]), str(tmp_path / "six"), step=6) == 6
    assert load_hypernet(tmp_path / "six")[2]["card"]["updates"] == 6
    with pytest.raises(UserError, match="has no checkpoint 2"):
        export_checkpoint(str(whole[0]), str(tmp_path / "two"), step=2)
    with pytest.raises(UserError, match="give the workdir of a run"):
        export_checkpoint(str(tmp_path), str(tmp_path / "none"))


def test_profile_steps_are_checked(config, tmp_path):
    for steps in ("3", "5:4", "a:b", "0:2"):
        with pytest.raises(UserError, match="give the first and the last step"):
            loop.train(config, tmp_path / "w", profile_steps=steps)


def test_another_config_is_refused_before_any_work(config, whole):
    other = ml_collections.ConfigDict(config.to_dict() | {"lr": 2e-3})
    with pytest.raises(UserError, match="differ in lr"):
        loop.train(other, whole[0])


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(config, tmp_path, monkeypatch):
    real = loop.make_step
    done = 0

    def poisoned(*args):
        step = real(*args)

        def run(state, target, batch):
            nonlocal done
            state, metrics = step(state, target, batch)
            done += 1
            return state, metrics | ({"loss": jax.device_put(np.float32(np.nan))} if done == 5 else {})

        return run

    monkeypatch.setattr(loop, "make_step", poisoned)
    with pytest.raises(FloatingPointError, match="step 5"):
        loop.train(config, tmp_path)
    assert max(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == 4


def test_full_disk_keeps_the_checkpoint_before(config, whole, tmp_path, monkeypatch):
    real = Checkpoints.save

    def full(self, step, *args, **kwargs):
        if step == 4:
            monkeypatch.setattr(type(self._checkpointer), "save_checkpointables_async", _no_space)
        return real(self, step, *args, **kwargs)

    monkeypatch.setattr(Checkpoints, "save", full)
    with pytest.raises(UserError, match="step 4 could not be written"):
        loop.train(config, tmp_path)
    monkeypatch.undo()
    assert [int(p.name) for p in (tmp_path / "checkpoints").iterdir()] == [2]
    loop.train(config, tmp_path)
    same_result(whole[0], tmp_path)


def _no_space(*_, **__):
    raise OSError(28, "No space left on device")


def test_stages_are_checked(config):
    fields = config.to_dict()
    fields["stages"]["one"]["stepz"] = 3
    with pytest.raises(UserError, match="stage one has the unknown fields .*stepz"):
        read_stages(fields)
    del fields["stages"]["one"]["stepz"], fields["stages"]["two"]["steps"]
    with pytest.raises(UserError, match="stage two lacks .*steps"):
        read_stages(fields)


def test_unwritable_workdir(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        loop.train(config, tmp_path / "file" / "w")


def test_a_stage_may_have_a_loss_of_its_own(config, tmp_path):
    """The second stage is distilled from the target with the document in its prompt, in one run with the first."""
    config.stages["two"] = config.stages["two"].to_dict() | {"loss": "kl", "focus": 0.5}
    loop.train(config, tmp_path)
    one, two = rows(tmp_path)[:3], rows(tmp_path)[3:]
    assert two and not any("kl" in row for row in one) and all("kl" in row for row in two)
    assert all(row["loss"] == row["ce"] for row in one)
    assert all(row["loss"] not in (row["ce"], row["kl"]) for row in two)
