"""The reader of torch pickles builds tensors and records and runs nothing else."""

import copyreg
import os
import pathlib
import pickle
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2l.errors import UserError
from d2l.hypernet.unpickle import Record, Tensor, read_checkpoint
from tests.hypernet.torch_zip import write_pickle_zip, write_torch_zip

FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "llama_per_layer" / "pytorch_model.bin"


class _Touch:
    """Unpickles by calling a function that leaves a trace."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def test_reads_a_fixture():
    content = read_checkpoint(FIXTURE)
    assert content["head.weight"].array.shape == (4, 32, 160)
    assert content["head.weight"].array.dtype == np.float32
    assert content["hypernet_config"].fields["lora_config"].fields["target_modules"] == {"down_proj"}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("function", [os.system, eval, exec, getattr, __import__, os.mkdir, open, pickle.loads])
def test_refuses_any_other_callable(function, protocol, tmp_path):
    trace = tmp_path / "trace"
    argument = f"mkdir {trace}" if function is os.system else str(trace)
    path = tmp_path / "pytorch_model.bin"
    write_pickle_zip(path, pickle.dumps({"a": _Touch(function, argument)}, protocol=protocol))
    with pytest.raises(UserError, match="neither a tensor nor a record"):
        read_checkpoint(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    "opcodes",
    [
        b"\x80\x04\x8c\x0bctx_to_lora\x8c\x0fos.system.thing\x93.",  # a dotted name below an allowed module
        b"cctx_to_lora_evil\nsystem\n.",  # a module that only begins like an allowed one
        b"cpeft.utils\n__import__('os').system\n.",
        b"ctorch\nload\n.",
        b"ctorch._utils\n_rebuild_device_tensor_from_numpy\n.",
        b"ccopyreg\n_reconstructor\n.",
        b"cbuiltins\ngetattr\n.",
        b"(ios\nsystem\n.",
    ],
)
def test_refuses_names_that_look_allowed(opcodes, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    write_pickle_zip(path, opcodes)
    with pytest.raises(UserError, match="neither a tensor nor a record"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "opcodes",
    [
        b"cctx_to_lora.a\nB\n}(Vx\nI1\nub.",  # BUILD on a record class
        b"cctx_to_lora.a\nB\n)R(}}(V__setstate__\nI1\nutb.",  # BUILD with slots
        b"ctorch._utils\n_rebuild_tensor_v2\n}(Vfunction\nI1\nub.",  # BUILD on the tensor builder
        b"ctorch\nFloatStorage\n(V1\ntR.",  # a call of a tag
        b"ctorch._utils\n_rebuild_tensor_v2\n(I1\nI0\n(I4\nt(I1\nttR.",  # no storage
        b"Vnot a storage\nQ.",
        b"\x82\x01.",  # an extension code that nobody registered
        b"",
        b".",
    ],
)
def test_refuses_to_be_changed_or_misled(opcodes, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    write_pickle_zip(path, opcodes)
    with pytest.raises(UserError, match="not a whole checkpoint"):
        read_checkpoint(path)


def _tensor_pickle(numel, offset, size, stride):
    def number(n):
        return b"I" + str(n).encode() + b"\n"

    def numbers(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = b"(Vstorage\nctorch\nFloatStorage\nV0\nVcuda:3\n" + number(numel) + b"tQ"
    body = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + numbers(size) + numbers(stride)
    return b"}(Vt\n" + body + b"I00\n}tRu."


@settings(max_examples=200, deadline=None)
@given(
    offset=st.integers(-2, 30),
    size=st.lists(st.integers(-1, 7), max_size=3),
    data=st.data(),
)
def test_tensors_stay_within_their_storage(offset, size, data, tmp_path_factory):
    stride = data.draw(st.lists(st.integers(-1, 25), min_size=len(size), max_size=len(size)))
    flat = np.arange(24, dtype=np.float32)
    path = tmp_path_factory.mktemp("zip") / "pytorch_model.bin"
    write_pickle_zip(path, _tensor_pickle(24, offset, size, stride), {"data/0": flat.tobytes()})
    fits = min([offset, *size, *stride]) >= 0
    count = int(np.prod(size)) if fits else 0
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if not fits or (count and last >= 24):
        with pytest.raises(UserError):
            read_checkpoint(path)
        return
    array = read_checkpoint(path)["t"].array
    assert array.shape == tuple(size)
    for index in np.ndindex(*size):
        assert array[index] == offset + sum(i * s for i, s in zip(index, stride, strict=True))


def test_expanded_tensors_take_no_more_memory_than_a_small_one(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    write_pickle_zip(path, _tensor_pickle(1, 0, [6, 7], [0, 0]), {"data/0": np.float32(3).tobytes()})
    np.testing.assert_array_equal(read_checkpoint(path)["t"].array, np.full((6, 7), 3, np.float32))
    write_pickle_zip(path, _tensor_pickle(1, 0, [1 << 20, 1 << 20], [0, 0]), {"data/0": np.float32(3).tobytes()})
    with pytest.raises(UserError, match="not a whole checkpoint"):
        read_checkpoint(path)


def test_dtypes_may_be_named_and_not_called(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    write_pickle_zip(path, b"}(Va\nctorch\nfloat32\nu.")
    assert set(read_checkpoint(path)) == {"a"}
    write_pickle_zip(path, b"}(Va\nctorch\nfloat32\n(V1\ntRu.")
    with pytest.raises(UserError, match="calls float32"):
        read_checkpoint(path)


def test_extension_code_that_the_process_has_used_is_not_run(tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "pytorch_model.bin"
    copyreg.add_extension("posix", "mkdir", 240)
    try:
        assert pickle.loads(b"\x80\x02\x82\xf0.") is os.mkdir
        write_pickle_zip(path, b"\x80\x02}(Va\n\x82\xf0(V" + str(trace).encode() + b"\ntRu.")
        with pytest.raises(UserError, match="extension code 240"):
            read_checkpoint(path)
        assert not trace.exists()
    finally:
        copyreg.remove_extension("posix", "mkdir", 240)


@pytest.mark.parametrize("opcodes", [b"}r\xff\xff\xff\x7f.", b"}p99999999\n."])
def test_refuses_a_memo_larger_than_the_pickle(opcodes, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    write_pickle_zip(path, opcodes)
    with pytest.raises(UserError, match="memoises"):
        read_checkpoint(path)


def test_storage_of_another_size_missing_or_compressed(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    data = _tensor_pickle(4, 0, [4], [1])
    for members in ({"data/0": b"12345678"}, {}, {"data/0": b"1" * 64}):
        write_pickle_zip(path, data, members)
        with pytest.raises(UserError, match="not a whole checkpoint"):
            read_checkpoint(path)
    import zipfile

    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", bytes(16))
    with pytest.raises(UserError, match="compressed"):
        read_checkpoint(path)


def test_files_that_are_no_checkpoint(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    with pytest.raises(UserError, match="cannot read"):
        read_checkpoint(path)
    with pytest.raises(UserError, match="cannot read"):
        read_checkpoint(tmp_path)
    for content in (b"", b"PK", pickle.dumps({"a": 1}), struct.pack("<Q", 1 << 40)):
        path.write_bytes(content)
        with pytest.raises(UserError, match="not a whole checkpoint"):
            read_checkpoint(path)
    write_pickle_zip(path, pickle.dumps([1, 2], protocol=2))
    with pytest.raises(UserError, match="holds a list"):
        read_checkpoint(path)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_truncated(part, tmp_path):
    whole = FIXTURE.read_bytes()
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(UserError, match="not a whole checkpoint"):
        read_checkpoint(path)


def test_round_trip(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    content = read_checkpoint(FIXTURE)
    write_torch_zip(path, content)
    again = read_checkpoint(path)
    assert set(again) == set(content)
    for name, value in content.items():
        if isinstance(value, Tensor):
            np.testing.assert_array_equal(again[name].array, value.array)
        else:
            assert isinstance(again[name], Record) == isinstance(value, Record)
