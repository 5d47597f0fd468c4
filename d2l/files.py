"""Writing a folder so that a crash, a kill or a full disk leaves the old one or the new one, never half of one."""

import contextlib
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from d2l.errors import UserError


@contextlib.contextmanager
def atomic_folder(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield an empty folder beside `path` that takes its place when the block ends without an error.

    Its files get the permissions that the umask leaves.

    Raises:
      UserError: nothing could be written (disk full, no permission); what stood at `path` is untouched.
    """
    path = pathlib.Path(path).absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another folder or make room.") from error
    try:
        new = scratch / "new"
        new.mkdir()
        yield new
        for file in filter(pathlib.Path.is_file, new.rglob("*")):
            file.chmod(new.stat().st_mode & 0o666)  # safetensors writes for the owner alone
        if path.exists():
            path.rename(scratch / "old")
        new.rename(path)
    except OSError as error:
        if (scratch / "old").exists() and not path.exists():
            (scratch / "old").rename(path)
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; what was there before is unchanged."
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
