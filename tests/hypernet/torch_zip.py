"""Writes the zip that `torch.save` writes, without torch: names are pickled as globals, storages as persistent ids."""

import io
import pickle
import zipfile

import numpy as np

from d2l.hypernet.unpickle import STORAGES, Record, Tensor


class _Global:
    """Pickles as the global `module.name`."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class _Pickler(pickle._Pickler):  # the Python one, since it lets a global be written by name
    def __init__(self, file, storages, dtype, device):
        super().__init__(file, protocol=2)
        self.storages, self.dtype, self.device = storages, dtype, device

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, _Global):
            self.write(b"c" + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Tensor):
            self._save_tensor(obj.array)
        elif isinstance(obj, Record):
            self._save_record(obj)
        else:
            super().save(obj, save_persistent_id)

    def _save_tensor(self, array):
        kind = self.dtype if array.dtype.kind == "f" else "LongStorage"
        key = str(len(self.storages))
        self.storages[key] = np.ascontiguousarray(array.astype(STORAGES[kind])).tobytes()
        strides = tuple(int(s) // array.itemsize for s in np.ascontiguousarray(array).strides)
        self.save(_Global("torch._utils", "_rebuild_tensor_v2"))
        self.write(b"(")
        self.save(("storage", _Global("torch", kind), key, self.device, array.size))
        self.write(b"Q")
        for value in (0, tuple(array.shape), strides, False, {}):
            self.save(value)
        self.write(b"tR")

    def _save_record(self, record):
        self.save(_Global("ctx_to_lora.records", type(record).__name__))
        self.save(record.args)
        self.write(b"R" if record.args else b"\x81")
        self.save(record.fields)
        self.write(b"b")


def write_torch_zip(path, content, *, prefix="", dtype="FloatStorage", device="cpu"):
    """Write what `read_checkpoint` read, tensors' names prefixed, their values in another type."""
    storages, file = {}, io.BytesIO()
    content = {(prefix if isinstance(v, Tensor) else "") + name: v for name, v in content.items()}
    _Pickler(file, storages, dtype, device).dump(content)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", file.getvalue())
        archive.writestr("archive/byteorder", "little")
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)


def write_pickle_zip(path, data, members=()):
    """Write a zip around any pickle bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        for name, content in dict(members).items():
            archive.writestr(f"archive/{name}", content)
