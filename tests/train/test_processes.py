"""Two real processes train as one process does; one is killed, and the same command goes on and loses no update."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from d2l.errors import UserError
from d2l.hypernet.store import load_hypernet
from d2l.train import loop, processes
from tests.train.test_loop import config_for, environment, rows

ROOT = pathlib.Path(__file__).parents[2]
DEVICES = 8
STEPS = 10


def config_of(target_folder):
    """Eight packs on eight devices, whoever holds them."""
    config = config_for(target_folder).unlock()
    config.mesh, config.packs = {"data": -1}, DEVICES
    del config.stages.one
    config.stages.two.update({"contexts": DEVICES, "steps": STEPS})
    return config.lock()


def launch(folder, target_folder):
    (folder / "conf.py").write_text(
        "from tests.train.test_processes import config_of\n"
        f"def get_config():\n    return config_of({str(target_folder)!r}).unlock()\n"
    )
    return subprocess.Popen(
        [ROOT / "launch" / "local.sh", "2", "--config", folder / "conf.py", "--workdir", folder / "w"],
        env=environment(DEVICES=str(DEVICES // 2), PYTHON=sys.executable, PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_two_processes_one_killed_equal_one_process(target_folder, tmp_path):
    launcher, log = launch(tmp_path, target_folder), tmp_path / "w" / "metrics.jsonl"
    for _ in range(6000):
        if (log.exists() and log.read_text().count("\n") >= 5) or launcher.poll() is not None:
            break
        time.sleep(0.05)
    assert launcher.poll() is None, launcher.communicate()[1]
    members = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True, check=True)
    os.kill(int(members.stdout.split()[1]), signal.SIGKILL)
    launcher.communicate(timeout=60)  # no process is left waiting
    assert launcher.returncode != 0
    assert not (tmp_path / "w" / "hypernet").exists()

    launcher = launch(tmp_path, target_folder)
    out, errors = launcher.communicate(timeout=500)
    assert launcher.returncode == 0, errors
    assert sum(line.startswith("{") for line in out.splitlines()) == 1  # the first process alone tells the result

    loop.train(config_of(target_folder), tmp_path / "alone")
    split, alone = rows(tmp_path / "w"), rows(tmp_path / "alone")
    assert [row["step"] for row in split] == [row["step"] for row in alone] == list(range(1, STEPS + 1))
    np.testing.assert_allclose([row["loss"] for row in split], [row["loss"] for row in alone], rtol=1e-5)
    ours, theirs = (load_hypernet(tmp_path / name / "hypernet")[1] for name in ("w", "alone"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), ours, theirs)


def test_how_processes_are_joined_is_checked():
    for given, message in (
        (("host:1", 2, None), "go together"),
        (("host:1", 2, 2), "count them from 0"),
        (("host", 2, 0), "HOST:PORT"),
    ):
        with pytest.raises(UserError, match=message):
            processes.join(*given)
