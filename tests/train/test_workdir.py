"""A workdir belongs to one run and one config; what dead runs left is no obstacle."""

import importlib.util
import json
import os
import signal
import subprocess
import sys

import pytest
from etils import epath

from d2l.errors import UserError
from d2l.train import lock, workdir

CONFIG = {"lr": 1e-3, "keep": 2, "stages": {"one": {"steps": 3}}, "modules": ("down_proj",)}
HOLD = (
    "import sys, time; from etils import epath; from d2l.train.lock import {kind} as kind;"
    "held = kind(epath.Path(sys.argv[1]){beat}); print('held', flush=True); time.sleep(100)"
)


def holding(path, kind, beat=""):
    """Another process that holds a lock."""
    command = [sys.executable, "-c", HOLD.format(kind=kind, beat=beat), str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_one_run_at_a_time_until_it_dies(tmp_path):
    process = holding(tmp_path / ".lock", "FileLock")
    with pytest.raises(UserError, match="another run is writing"), workdir.opened(tmp_path, CONFIG):
        pass
    assert not (tmp_path / "config.json").exists()  # nothing was written meanwhile
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with workdir.opened(tmp_path, CONFIG), pytest.raises(UserError, match="another run is writing"):
        lock.lock(epath.Path(tmp_path))
    with workdir.opened(tmp_path, CONFIG):
        pass


def test_a_lease_is_kept_by_the_living_and_taken_from_the_dead(tmp_path, capsys):
    path = epath.Path(tmp_path / "lock.json")
    process = holding(path, "Lease", ", beat=0.1")
    with pytest.raises(UserError, match="another run is writing"):
        lock.Lease(path, beat=0.2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert path.exists()
    held = lock.Lease(path, beat=0.1)
    assert "watching" in capsys.readouterr().out
    assert json.loads(path.read_text())["pid"] == os.getpid()
    held.release()
    assert not path.exists()


def test_a_workdir_belongs_to_one_config(tmp_path):
    with workdir.opened(tmp_path, CONFIG):
        pass
    before = (tmp_path / "config.json").read_bytes()
    assert json.loads(before)["lr"] == 1e-3
    other = CONFIG | {"lr": 2e-3, "stages": {"one": {"steps": 4}}, "new": 1}
    with pytest.raises(UserError, match="differ in lr, new, stages"), workdir.opened(tmp_path, other):
        pass
    fewer = {name: value for name, value in CONFIG.items() if name != "lr"}
    with pytest.raises(UserError, match="differ in lr"), workdir.opened(tmp_path, fewer):
        pass
    # Tuples and lists are the same config, and where a run goes on may change.
    with workdir.opened(tmp_path, json.loads(json.dumps(CONFIG)) | {"mesh": {"data": -1}, "keep": 5}):
        pass
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_workdir_that_cannot_be_written_or_read(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"), workdir.opened(tmp_path / "file" / "w", CONFIG):
        pass
    with pytest.raises(UserError, match="give the workdir of a run"):
        workdir.read_json(epath.Path(tmp_path / "config.json"))


@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is not None, reason="gcsfs is installed")
def test_a_bucket_needs_its_package():
    with pytest.raises(UserError, match="needs gcsfs"), workdir.opened("gs://bucket/run", CONFIG):
        pass
