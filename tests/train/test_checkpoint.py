"""Checkpoints: what is restored, what is kept, and that a real failure to write loses nothing."""

import contextlib
import json
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2l.errors import UserError
from d2l.train.checkpoint import Checkpoints

CONFIG = {"lr": 1e-3, "stages": {"one": {"steps": 3}}, "modules": ("down_proj",)}


def state_of(seed):
    a, b = jax.random.split(jax.random.key(seed))
    return {
        "params": {"head": jax.random.normal(a, (300, 300)), "half": jax.random.normal(b, (8,)).astype(jnp.bfloat16)},
        "step": jnp.int32(seed),
    }


def numbers(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


@contextlib.contextmanager
def opened(workdir, config=CONFIG, **options):
    checkpoints = Checkpoints(workdir, config, **({"every": 1, "keep": 2} | options))
    try:
        yield checkpoints
    finally:
        checkpoints.close()


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert jax.tree.map(lambda x: x.dtype, a) == jax.tree.map(lambda x: x.dtype, b)


def test_the_latest_is_restored_and_only_the_last_are_kept(tmp_path):
    with opened(tmp_path) as checkpoints:
        fresh = state_of(0)
        state, number = checkpoints.restore(fresh)
        assert state is fresh and number == 0
        for step in (1, 2, 3, 5):
            checkpoints.save(step, state_of(step))
    with opened(tmp_path) as checkpoints:
        state, number = checkpoints.restore(state_of(0))
        assert number == 5
        same(state, state_of(5))
    assert numbers(tmp_path) == [3, 5]


def test_a_half_written_checkpoint_is_not_seen(tmp_path):
    with opened(tmp_path) as checkpoints:
        checkpoints.save(1, state_of(1))
    # What a kill in the middle of a save leaves: the folder under the name it has until it is complete.
    (tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp").mkdir()
    with opened(tmp_path) as checkpoints:
        state, number = checkpoints.restore(state_of(0))
        assert number == 1
        same(state, state_of(1))
        checkpoints.save(2, state_of(2))
    assert numbers(tmp_path) == [1, 2]


def test_a_write_that_the_system_refuses_keeps_the_checkpoints_before(tmp_path):
    """Files may not grow past 64 KiB while the second checkpoint is written; its arrays need 360 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(tmp_path) as checkpoints:
        checkpoints.save(1, state_of(1))
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))
        try:
            with pytest.raises(UserError, match="checkpoint of step 2 could not be written"):
                checkpoints.save(2, state_of(2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with opened(tmp_path) as checkpoints:
        state, number = checkpoints.restore(state_of(0))
        assert number == 1
        same(state, state_of(1))
        checkpoints.save(2, state_of(2))
    assert numbers(tmp_path) == [1, 2]


def test_a_workdir_belongs_to_one_config(tmp_path):
    with opened(tmp_path) as checkpoints:
        checkpoints.save(1, state_of(1))
    before = (tmp_path / "config.json").read_bytes()
    assert json.loads(before)["lr"] == 1e-3
    other = CONFIG | {"lr": 2e-3, "stages": {"one": {"steps": 4}}, "new": 1}
    with pytest.raises(UserError, match="differ in lr, new, stages"), opened(tmp_path, other):
        pass
    with (
        pytest.raises(UserError, match="differ in lr"),
        opened(tmp_path, {k: v for k, v in CONFIG.items() if k != "lr"}),
    ):
        pass
    assert (tmp_path / "config.json").read_bytes() == before and numbers(tmp_path) == [1]
    with opened(tmp_path, json.loads(json.dumps(CONFIG))) as checkpoints:  # tuples and lists are the same config
        assert checkpoints.restore(state_of(0))[1] == 1


def test_a_state_of_other_shapes_is_refused(tmp_path):
    with opened(tmp_path) as checkpoints:
        checkpoints.save(1, state_of(1))
        other = state_of(0) | {"params": {"head": jnp.zeros((3, 300)), "half": jnp.zeros(8, jnp.bfloat16)}}
        with pytest.raises(UserError, match="step 1 cannot be read"):
            checkpoints.restore(other)


def test_a_damaged_checkpoint_is_named(tmp_path):
    with opened(tmp_path) as checkpoints:
        checkpoints.save(1, state_of(1))
    for path in (tmp_path / "checkpoints" / "1").rglob("*"):
        if path.is_dir() and path.name == "d":
            shutil.rmtree(path)
    with opened(tmp_path) as checkpoints, pytest.raises(UserError, match="step 1"):
        checkpoints.restore(state_of(0))
