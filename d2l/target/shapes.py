"""The shape of a target without its weights: for counting parameters and compiling ahead of time."""

import json
import pathlib

from d2l.errors import UserError
from d2l.target.config import TargetConfig
from d2l.target.families import config_from_hf
from d2l.target.gguf import GGUF
from d2l.target.weights import DEFAULT_TARGET, default_file

# The published `config.json` of the paper's targets, named as on the hub.
PUBLISHED = pathlib.Path(__file__).parents[2] / "configs" / "models"


def target_shape(source: str | None) -> TargetConfig:
    """The config of what `load_target` would load, with no weight read.

    Args:
      source: as in `load_target`; of hub names those whose `config.json` stands in `configs/models`.

    Raises:
      UserError: the shape is nowhere on this machine.
    """
    if not source or source == DEFAULT_TARGET:
        return config_from_hf(GGUF(default_file()).hf_config)
    path = pathlib.Path(source)
    if path.suffix == ".gguf":
        return config_from_hf(GGUF(path).hf_config)
    file = path / "config.json" if path.is_dir() else PUBLISHED / f"{path.name}.json"
    try:
        return config_from_hf(json.loads(file.read_text()))
    except FileNotFoundError as error:
        known = ", ".join(sorted(file.stem for file in PUBLISHED.glob("*.json")))
        raise UserError(
            f"the shape of {source} is not known: give a model folder, a .gguf file or one of {known}."
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is not JSON ({error}): give the config.json of a model.") from error
