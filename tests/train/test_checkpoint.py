"""Checkpoints: what is restored, what is kept, and that neither a failure to write nor damage loses more than one."""

import contextlib
import gc
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from d2l.errors import UserError
from d2l.mesh import make_mesh
from d2l.train.checkpoint import Checkpoints, abstract, digest, read_params

# Where one read of a checkpoint fails Orbax drops the others, and Python tells of them when it collects garbage.
orbax_drops_reads = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def state_of(seed):
    a, b = jax.random.split(jax.random.key(seed))
    return {
        "params": {"head": jax.random.normal(a, (300, 300)), "half": jax.random.normal(b, (8,)).astype(jnp.bfloat16)},
        "step": jnp.int32(seed),
    }


def cursor_of(number):
    return jnp.arange(6, dtype=jnp.int32).reshape(2, 3) + number


def numbers(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


@contextlib.contextmanager
def opened(workdir, **options):
    checkpoints = Checkpoints(epath.Path(workdir), **({"every": 1, "keep": 2} | options))
    try:
        yield checkpoints
    finally:
        checkpoints.close()


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert jax.tree.map(lambda x: x.dtype, a) == jax.tree.map(lambda x: x.dtype, b)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A workdir with the checkpoints 1 and 2."""
    workdir = tmp_path_factory.mktemp("two")
    with opened(workdir) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state_of(step), cursor_of(step), loss=1.0)
    return workdir


def test_the_latest_is_restored_with_its_cursor(tmp_path, two):
    with opened(tmp_path) as checkpoints:
        fresh = state_of(0)
        assert checkpoints.restore(fresh) == (fresh, None, 0)
    with opened(two) as checkpoints:
        state, cursor, number = checkpoints.restore(state_of(0), lambda number: abstract(cursor_of(number)))
        assert number == 2
        same(state, state_of(2))
        same(cursor, cursor_of(2))
        assert checkpoints.restore(state_of(0))[1:] == (None, 2)  # an input that needs no cursor


def test_the_last_and_the_best_are_kept(tmp_path):
    with opened(tmp_path, keep_best=1) as checkpoints:
        for step, loss in enumerate((3.0, 1.0, 2.0, 5.0, 4.0), 1):
            checkpoints.save(step, state_of(step), loss=loss)
    assert numbers(tmp_path) == [2, 4, 5]
    params = abstract(state_of(0)["params"])
    for options, number in (({}, 5), ({"best": True}, 2), ({"step": 4}, 4)):
        found, step = read_params(epath.Path(tmp_path), params, **options)
        assert step == number
        same(found, state_of(number)["params"])
    with pytest.raises(UserError, match=r"no checkpoint 3: it has \[2, 4, 5\]"):
        read_params(epath.Path(tmp_path), params, step=3)


def test_a_donated_state_is_saved_as_it_was(tmp_path):
    state = state_of(3)
    with opened(tmp_path) as checkpoints:
        checkpoints.save(3, state, loss=0.0)
        jax.jit(lambda s: jax.tree.map(lambda a: a * 0, s), donate_argnums=0)(state)
    with opened(tmp_path) as checkpoints:
        same(checkpoints.restore(state_of(0))[0], state_of(3))


def test_another_mesh_reads_it(tmp_path):
    eight, four = make_mesh({"data": 2, "fsdp": 4}), make_mesh({"fsdp": 2, "model": 2}, jax.devices()[4:])

    def place(state, mesh, spec):
        sharding = {"params": {"head": NamedSharding(mesh, spec), "half": NamedSharding(mesh, P())}}
        return jax.device_put(state, sharding | {"step": NamedSharding(mesh, P())})

    with opened(tmp_path) as checkpoints:
        checkpoints.save(7, place(state_of(7), eight, P("fsdp")), loss=0.0)
    target = place(state_of(0), four, P("model", "fsdp"))
    with opened(tmp_path) as checkpoints:
        state = checkpoints.restore(target)[0]
    same(jax.device_get(state), jax.device_get(state_of(7)))
    assert state["params"]["head"].sharding == target["params"]["head"].sharding
    same(jax.device_get(digest(state)), jax.device_get(digest(state_of(7))))


def test_a_half_written_checkpoint_is_not_seen(tmp_path, two):
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    # What a kill in the middle of a save leaves: the folder under the name it has until it is complete.
    (tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp").mkdir()
    with opened(tmp_path) as checkpoints:
        assert checkpoints.restore(state_of(0))[2] == 2
        checkpoints.save(3, state_of(3), loss=0.0)
    assert numbers(tmp_path) == [2, 3]


@orbax_drops_reads
def test_any_damage_leads_to_the_checkpoint_before(tmp_path, two, caplog):
    """Every file of the latest checkpoint in turn is cut, emptied, removed and changed."""
    files = [p.relative_to(two) for p in (two / "checkpoints" / "2" / "state").rglob("*") if p.is_file()]
    changes = {
        "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        "removed": lambda path: path.unlink(),
        "changed": lambda path: path.write_bytes(bytes(b ^ (i % 97 == 48) for i, b in enumerate(path.read_bytes()))),
    }
    seen = set()
    for number, (file, change) in enumerate((file, change) for file in files for change in changes):
        workdir = tmp_path / str(number)
        shutil.copytree(two, workdir)
        changes[change](workdir / file)
        caplog.clear()
        with opened(workdir) as checkpoints:
            state, _, step = checkpoints.restore(state_of(0))
            same(state, state_of(step))
            assert (step == 2) == (not caplog.messages)
            if step == 1:
                seen.add(change)
                assert "2 is damaged and left out" in caplog.text
                checkpoints.save(2, state_of(2), loss=0.0)  # the run comes by again
                checkpoints.wait()
                same(checkpoints.restore(state_of(0))[0], state_of(2))
    assert seen == set(changes)
    gc.collect()


@orbax_drops_reads
def test_where_all_are_damaged_nothing_begins_anew(tmp_path, two):
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    for path in (tmp_path / "checkpoints").rglob("d"):
        shutil.rmtree(path)
    with opened(tmp_path) as checkpoints, pytest.raises(UserError, match=r"no checkpoint of \[1, 2\]"):
        checkpoints.restore(state_of(0))
    assert numbers(tmp_path) == [1, 2]
    gc.collect()


@orbax_drops_reads
def test_a_state_of_other_shapes_is_refused(two):
    other = state_of(0) | {"params": {"head": jnp.zeros((3, 300)), "half": jnp.zeros(8, jnp.bfloat16)}}
    with opened(two) as checkpoints, pytest.raises(UserError, match="another version's shapes"):
        checkpoints.restore(other)
    gc.collect()


def test_a_write_that_the_system_refuses_keeps_the_checkpoints_before(tmp_path):
    """Files may not grow past 64 KiB while the second checkpoint is written; its arrays need 360 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(tmp_path) as checkpoints:
        checkpoints.save(1, state_of(1), loss=0.0)
        checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))
        try:
            with pytest.raises(UserError, match="checkpoint of step 2 could not be written"):
                checkpoints.save(2, state_of(2), loss=0.0)
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with opened(tmp_path) as checkpoints:
        state, _, number = checkpoints.restore(state_of(0))
        assert number == 1
        same(state, state_of(1))
        checkpoints.save(2, state_of(2), loss=0.0)
    assert numbers(tmp_path) == [1, 2]
