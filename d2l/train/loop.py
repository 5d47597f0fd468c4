"""Training a hypernetwork: reads top to bottom, from a config to checkpoints and scalars."""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import ml_collections

from d2l.data.batch import NeedleBatches, NeedleStage
from d2l.errors import UserError
from d2l.hypernet.config import HypernetConfig
from d2l.hypernet.features import check_encoder
from d2l.hypernet.hypernet import init_hypernet
from d2l.hypernet.store import load_hypernet, save_hypernet
from d2l.target.config import TargetConfig
from d2l.target.weights import load_target
from d2l.train.checkpoint import Checkpoints
from d2l.train.optimizer import OptimizerConfig, make_optimizer, stage_schedule
from d2l.train.run import Update, run
from d2l.train.step import StepConfig, init_state, make_step

# What a stage of a config says beside the fields of `NeedleStage`.
STAGE_FIELDS = ("order", "steps", "warmup", "final", "lr_factor")


def read_stages(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stages of a config in their order, each with its learning rate.

    Raises:
      UserError: a stage lacks a field, or has one that does not exist.
    """
    known = {*STAGE_FIELDS, *(f.name for f in dataclasses.fields(NeedleStage))}
    needed = {*STAGE_FIELDS, *(f.name for f in dataclasses.fields(NeedleStage) if f.default is dataclasses.MISSING)}
    for name, stage in fields["stages"].items():
        if unknown := set(stage) - known:
            raise UserError(f"stage {name} has the unknown fields {sorted(unknown)}: known are {sorted(known)}.")
        if missing := needed - set(stage):
            raise UserError(f"stage {name} lacks {sorted(missing)}: add them to the config.")
    stages = sorted(fields["stages"].values(), key=lambda stage: stage["order"])
    return [dict(stage) | {"lr": fields["lr"] * stage["lr_factor"]} for stage in stages]


def needle_stage(stage: Mapping[str, Any], **changes: Any) -> NeedleStage:
    """The data of one stage."""
    names = [f.name for f in dataclasses.fields(NeedleStage) if f.name in stage]
    return NeedleStage(**({name: stage[name] for name in names} | changes))


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


def train(config: ml_collections.ConfigDict, workdir: str | pathlib.Path) -> dict[str, float]:
    """Train a hypernetwork as the config says and write it to `workdir/hypernet`.

    The same command again goes on from the latest checkpoint; SIGTERM saves one and returns.

    Returns:
      The means of the last metrics.

    Raises:
      UserError: an unusable config, a workdir of another config, a full disk.
      FloatingPointError: the loss stopped being finite; the message names the step.
    """
    workdir = pathlib.Path(workdir)
    fields = config.to_dict()
    stages = read_stages(fields)
    total = sum(stage["steps"] for stage in stages)

    # ---------------------------------------------------------------- checkpoints first: a wrong workdir costs no time
    checkpoints = Checkpoints(workdir, fields, every=fields["checkpoint_every"], keep=fields["keep"])

    # ---------------------------------------------------------------- frozen target, hypernetwork, optimiser
    target = load_target(fields["target"] or None, dtype=jnp.dtype(fields["dtype"]))
    hyper = hypernet_config(fields["hypernet"], target.config)
    params = load_hypernet(fields["init"])[1] if fields["init"] else init_hypernet(hyper, fields["seed"])
    schedule = stage_schedule(stages)
    multipliers = tuple(fields["lr_multipliers"].items())
    optimizer = make_optimizer(OptimizerConfig(**fields["optimizer"], multipliers=multipliers), schedule, params)
    state, done = checkpoints.restore(init_state(params, optimizer))

    # ---------------------------------------------------------------- data: batch i is a pure function of seed and i
    def updates() -> Iterator[tuple[Update, Any]]:
        first = 0
        for stage in stages:
            last = first + stage["steps"]
            if done < last:
                needles = needle_stage(stage, teacher=fields["loss"] == "kl")
                loss = StepConfig(fields["loss"], needles.contexts, needles.max_chunks, fields["l1"], fields["dtype"])
                step = make_step(hyper, target.config, loss, optimizer)

                def update(state, batch, step=step):
                    return step(state, target.params, batch)

                for batch in NeedleBatches(needles, target.tokenizer, fields["seed"]).iterate(max(first, done), last):
                    yield update, batch
            first = last

    # ---------------------------------------------------------------- loop
    state, reached, metrics = run(workdir, state, updates(), checkpoints, done=done, total=total, schedule=schedule)

    # ---------------------------------------------------------------- the product
    if reached == total:
        save_hypernet(
            workdir / "hypernet",
            hyper,
            state["params"],
            target_name=target.name,
            target_hash=target.weights_hash,
            card={
                "config": fields,
                "updates": reached,
                "max_chunk_len": fields["max_chunk_len"],
            },
            dtype=jnp.dtype(fields["save_dtype"]),
        )
    return metrics
