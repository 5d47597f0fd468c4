"""Reading the release's `pytorch_model.bin` without torch and without running anything that it names.

The file is a zip of one pickle and one raw file per storage. The unpickler here builds tensors, dicts, sets and inert
records; every other name that a pickle asks for is refused before anything of it is called.
"""

import io
import math
import pathlib
import pickle
import pickletools
import struct
import zipfile
from typing import Any

import ml_dtypes
import numpy as np

from d2l.errors import UserError

# What may become a record: its class name and its state, never an instance of the real class.
RECORD_MODULES = ("ctx_to_lora", "peft")
STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
# Types of tensors may be named too; they are tags that nothing reads.
DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
MAX_PICKLE_BYTES = 16 << 20  # the release's own are about 20 KB
MAX_EXPANDED = 1 << 16  # values of a tensor that is larger than its storage, by strides of 0
# What reading a damaged or hostile file may raise; RuntimeError covers encrypted members and deep nesting.
DAMAGED = (
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    struct.error,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


class _Sealed(type):
    """Classes that a pickle cannot change."""

    def __setattr__(cls, name, value):
        raise pickle.UnpicklingError(f"the pickle tries to change {cls.__name__}.{name}")


class Record(metaclass=_Sealed):
    """A plain record of the pickle.

    Attributes:
      args: what its class was called with (an enum's value).
      fields: its state.
    """

    __slots__ = ("args", "fields")

    def __init__(self, *args: Any):
        self.args, self.fields = args, {}

    def __new__(cls, *args: Any):
        self = super().__new__(cls)
        self.args, self.fields = args, {}
        return self

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError(f"a record has a state of type {type(state).__name__}")
        self.fields = state


class _Dict(dict, metaclass=_Sealed):
    """An `OrderedDict` of the pickle, whose attributes (torch's version numbers of modules) are dropped."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _Inert:
    """A callable or a tag that a pickle may use but not change."""

    __slots__ = ("function", "name")

    def __init__(self, name: str, function: Any = None):
        self.name, self.function = name, function

    def __call__(self, *args: Any) -> Any:
        if self.function is None:
            raise pickle.UnpicklingError(f"the pickle calls {self.name}")
        return self.function(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError(f"the pickle tries to change {self.name}")


class _Storage:
    """The flat array of one storage."""

    __slots__ = ("array",)

    def __init__(self, array: np.ndarray):
        self.array = array

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("the pickle tries to change a storage")


class Tensor:
    """A tensor of the pickle: `array`, a read-only view of its storage."""

    __slots__ = ("array",)

    def __init__(self, array: np.ndarray):
        self.array = array

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("the pickle tries to change a tensor")


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """The view of a storage that `torch._utils._rebuild_tensor_v2` makes, within bounds."""
    numbers = (offset, *size, *stride)
    if not isinstance(storage, _Storage) or len(size) != len(stride):
        raise pickle.UnpicklingError("a tensor without a storage")
    if not all(type(n) is int and n >= 0 for n in numbers) or len(size) > 16:
        raise pickle.UnpicklingError("a tensor with a size that is not a natural number")
    count, last = math.prod(size), offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    flat = storage.array
    if count and (last >= flat.size or count > max(flat.size, MAX_EXPANDED)):
        raise pickle.UnpicklingError("a tensor that reaches past its storage")
    if not count:
        return Tensor(np.zeros(size, flat.dtype))
    steps = [step * flat.itemsize for step in stride]
    return Tensor(np.lib.stride_tricks.as_strided(flat[offset:], size, steps, writeable=False))


def _rebuild_parameter(data: Any, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise pickle.UnpicklingError("a parameter that is no tensor")
    return data


class _Refused(Exception):
    """The pickle names something that is neither a tensor nor a record."""


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, archive: "_Archive"):
        super().__init__(io.BytesIO(data))
        self._archive = archive
        self._records: dict[tuple[str, str], type] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return _Dict
        if (module, name) in (("builtins", "set"), ("__builtin__", "set")):
            return set
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Inert(name, _rebuild_tensor)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _Inert(name, _rebuild_parameter)
        if module == "torch" and (name in STORAGES or name in DTYPES):
            return _Inert(name)
        if module.partition(".")[0] in RECORD_MODULES and name.isidentifier():
            return self._records.setdefault((module, name), _Sealed(name, (Record,), {"__slots__": ()}))
        raise _Refused(ascii(f"{module}.{name}"[:200])[1:-1])

    def persistent_load(self, pid: Any) -> _Storage:
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage" and isinstance(pid[1], _Inert)):
            raise pickle.UnpicklingError("a storage of unknown form")
        _, kind, key, _, numel = pid
        return self._archive.storage(kind.name, str(key), numel)


def _check_opcodes(data: bytes) -> None:
    """Refuse the two things of a pickle that never ask `find_class` and never meet the end of the data.

    An extension code that this process has used before comes out of a cache; a memo index is allocated up to itself.
    """
    for opcode, arg, _ in pickletools.genops(data):
        if opcode.name.startswith("EXT"):
            raise pickle.UnpicklingError(f"the pickle asks for the extension code {arg}")
        if opcode.name.endswith("PUT") and arg > len(data):
            raise pickle.UnpicklingError(f"the pickle memoises at {arg}")


class _Archive:
    """The zip around the pickle; every member is stored, not compressed, as torch writes it."""

    def __init__(self, path: pathlib.Path):
        self._zip = zipfile.ZipFile(path)
        self._left = path.stat().st_size  # no member is read twice, so more than this means overlapping members
        names = [name for name in self._zip.namelist() if name.rpartition("/")[2] == "data.pkl"]
        if len(names) != 1:
            raise UserError(f"{path} is a zip without one data.pkl: give a pytorch_model.bin of the release.")
        self._root = names[0].removesuffix("data.pkl")
        if self._root + "byteorder" in self._zip.namelist() and self.read("byteorder", 16) != b"little":
            raise UserError(f"{path} was saved on a big-endian machine: save it again on a little-endian one.")
        self._storages: dict[str, _Storage] = {}

    def read(self, name: str, most: int) -> bytes:
        info = self._zip.getinfo(self._root + name)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > most:
            raise pickle.UnpicklingError(f"the member {name} is compressed or larger than {most:,} bytes")
        self._left -= info.file_size
        if self._left < 0:
            raise pickle.UnpicklingError("the members are larger than the file")
        return self._zip.read(info)

    def storage(self, kind: str, key: str, numel: Any) -> _Storage:
        if kind not in STORAGES or type(numel) is not int or numel < 0:
            raise pickle.UnpicklingError(f"a storage of kind {kind} and size {numel}")
        if key not in self._storages:
            dtype = np.dtype(STORAGES[kind])
            data = self.read(f"data/{key}", numel * dtype.itemsize)
            if len(data) != numel * dtype.itemsize:
                raise pickle.UnpicklingError(f"the storage {key} has {len(data)} bytes, not {numel * dtype.itemsize}")
            self._storages[key] = _Storage(np.frombuffer(data, dtype) if data else np.zeros(0, dtype))
        storage = self._storages[key]
        if storage.array.dtype != STORAGES[kind]:
            raise pickle.UnpicklingError(f"the storage {key} is asked for in two types")
        return storage


def read_checkpoint(path: str | pathlib.Path) -> dict[str, Any]:
    """The dict of a `pytorch_model.bin`: `Tensor`s, `Record`s, and plain values.

    Storages tagged for any device are read as they are.

    Raises:
      UserError: no such file, not a zip of torch, damaged, or a pickle that names anything but tensors and records;
        nothing that it names is imported or run.
    """
    path = pathlib.Path(path)
    try:
        archive = _Archive(path)
        data = archive.read("data.pkl", MAX_PICKLE_BYTES)
        _check_opcodes(data)
        value = _Unpickler(data, archive).load()
    except UserError:
        raise
    except _Refused as error:
        raise UserError(
            f"{path} names {error}, which is neither a tensor nor a record of the release: it was not run; do not "
            "trust this file."
        ) from None
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error}): give a pytorch_model.bin.") from error
    except DAMAGED as error:
        raise UserError(f"{path} is not a whole checkpoint of the release ({error!s:.200}): fetch it again.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, not a checkpoint: give a pytorch_model.bin.")
    return dict(value)
