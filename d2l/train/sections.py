"""What the sections of a config mean: the hypernetwork, and the step of a stage."""

from collections.abc import Mapping
from typing import Any

from d2l.errors import UserError
from d2l.hypernet.config import HypernetConfig
from d2l.hypernet.features import check_encoder
from d2l.target.config import TargetConfig
from d2l.train.stages import setting
from d2l.train.step import StepConfig


def hypernet_config(fields: dict[str, Any], target: TargetConfig) -> HypernetConfig:
    """The hypernetwork of a config's `hypernet` section, with the sizes that follow from the target."""
    modules = tuple(sorted(fields.get("target_modules", ("down_proj",))))
    sizes = target.module_sizes
    if unknown := set(modules) - set(sizes):
        raise UserError(f"target_modules names {sorted(unknown)}: give some of {', '.join(sizes)}.")
    derived = {
        "target_modules": modules,
        "d_in": tuple(sizes[name][0] for name in modules),
        "d_out": tuple(sizes[name][1] for name in modules),
        "num_layers": target.num_hidden_layers,
        "feature_size": target.hidden_size,
    }
    config = HypernetConfig(**(dict(fields) | derived))
    check_encoder(config, target)
    return config


def step_config(fields: Mapping[str, Any], stage: Mapping[str, Any]) -> StepConfig:
    """The step of a stage."""
    return StepConfig(
        setting(fields, stage, "loss"),
        max_chunks=stage.get("max_chunks", 1),
        row_chunks=stage.get("row_chunks", 1),
        l1=fields["l1"],
        dtype=fields["dtype"],
        remat=fields.get("remat", "none"),
        neftune=fields.get("neftune", 0.0),
        focus=setting(fields, stage, "focus"),
        others=setting(fields, stage, "others"),
    )
