"""Config files of the command line."""

import logging
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from d2l.errors import UserError


def read_config(path: str, overrides: Sequence[str]) -> Any:
    """The config of a file with `--config.x=` overrides; types are those of the config."""
    from absl import flags
    from ml_collections import config_flags

    if not pathlib.Path(path).is_file():
        raise UserError(f"there is no config {path}: give a file like configs/niah_tiny.py.")
    logging.getLogger("absl").setLevel(logging.ERROR)
    root = str(pathlib.Path(path).resolve().parent.parent)  # configs/X.py may build on `from configs import Y`
    if root not in sys.path:
        sys.path.append(root)
    values = flags.FlagValues()
    argv = ["d2l", f"--config={path}", *overrides]
    config_flags.DEFINE_config_file("config", lock_config=True, flag_values=values, sys_argv=argv)
    try:
        rest = values(argv)
    except (KeyError, AttributeError) as error:
        raise UserError(f"{path} has no field {error}: override one that stands in it.") from error
    except (flags.Error, ValueError, TypeError, SyntaxError, ImportError) as error:
        raise UserError(f"the config cannot be used ({str(error).strip().splitlines()[0]}): see {path}.") from error
    if len(rest) > 1:
        raise UserError(f"unknown argument {rest[1]!r}: override fields of the config as --config.lr=1e-4.")
    return values.config


def read_hypernet_config(path: str, overrides: Sequence[str]) -> dict[str, Any]:
    """As `read_config`, of a config that trains a hypernetwork, as a plain dict."""
    config = read_config(path, overrides).to_dict()
    if config.get("kind", "hypernet") != "hypernet":
        raise UserError(f"{path} trains a {config['kind']}, not a hypernetwork: give a config that does.")
    return config
