"""A folder is the old one or the new one, whatever goes wrong in between."""

import os
import resource

import numpy as np
import pytest
import safetensors.numpy

from d2l.errors import UserError
from d2l.files import atomic_folder


def write(folder, text):
    with atomic_folder(folder) as new:
        (new / "a.txt").write_text(text)


def content(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_the_new_folder_takes_the_old_ones_place(tmp_path):
    write(tmp_path / "x" / "out", "one")
    assert content(tmp_path / "x" / "out") == {"a.txt": "one"}
    with atomic_folder(tmp_path / "x" / "out") as new:
        (new / "b.txt").write_text("two")
        assert content(tmp_path / "x" / "out") == {"a.txt": "one"}  # still whole while the new one is written
    assert content(tmp_path / "x" / "out") == {"b.txt": "two"}
    assert os.listdir(tmp_path / "x") == ["out"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_an_interrupted_write_leaves_the_old_folder_and_no_litter(tmp_path, error):
    write(tmp_path / "out", "one")
    with pytest.raises(error), atomic_folder(tmp_path / "out") as new:
        (new / "a.txt").write_text("half")
        raise error
    assert content(tmp_path / "out") == {"a.txt": "one"}
    assert os.listdir(tmp_path) == ["out"]


def test_a_write_that_the_system_refuses_leaves_the_old_folder(tmp_path):
    write(tmp_path / "out", "one")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(UserError, match="File too large; what was there before is unchanged"):
            write(tmp_path / "out", "x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert content(tmp_path / "out") == {"a.txt": "one"}
    assert os.listdir(tmp_path) == ["out"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*file/out"):
        write(tmp_path / "file" / "out", "one")


def test_a_file_in_the_folders_place_is_replaced_whole(tmp_path):
    (tmp_path / "out").write_text("a file")
    write(tmp_path / "out", "one")
    assert content(tmp_path / "out") == {"a.txt": "one"}


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    with atomic_folder(tmp_path / "out") as new:
        safetensors.numpy.save_file({"a": np.zeros(2, np.float32)}, new / "a.safetensors")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "out" / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
