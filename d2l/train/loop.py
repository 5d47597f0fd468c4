"""Training a hypernetwork: reads top to bottom, from a config to checkpoints and scalars."""

import collections
import dataclasses
import json
import math
import pathlib
import signal
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import tensorboardX
import tqdm

from d2l.data.batch import Batch, NeedleBatches, NeedleStage
from d2l.errors import UserError
from d2l.hypernet.config import HypernetConfig
from d2l.hypernet.features import check_encoder
from d2l.hypernet.hypernet import init_hypernet
from d2l.hypernet.store import load_hypernet, save_hypernet
from d2l.target.config import TargetConfig
from d2l.target.weights import load_target
from d2l.train.checkpoint import Checkpoints
from d2l.train.optimizer import OptimizerConfig, make_optimizer, stage_schedule
from d2l.train.step import StepConfig, init_state, make_step

RECENT = 20  # steps that the progress line averages over


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
    stages = [{"name": name} | stage for name, stage in fields["stages"].items()]
    stages.sort(key=lambda stage: stage["order"])
    total = sum(stage["steps"] for stage in stages)

    # ---------------------------------------------------------------- checkpoints first: a wrong workdir costs no time
    checkpoints = Checkpoints(workdir, fields, every=fields["checkpoint_every"], keep=fields["keep"])

    # ---------------------------------------------------------------- frozen target, hypernetwork, optimiser
    target = load_target(fields["target"] or None, dtype=jnp.dtype(fields["dtype"]))
    hyper = hypernet_config(fields["hypernet"], target.config)
    params = load_hypernet(fields["init"])[1] if fields["init"] else init_hypernet(hyper, fields["seed"])
    schedule = stage_schedule([stage | {"lr": fields["lr"] * stage["lr_factor"]} for stage in stages])
    multipliers = tuple(fields["lr_multipliers"].items())
    optimizer = make_optimizer(OptimizerConfig(**fields["optimizer"], multipliers=multipliers), schedule, params)
    state, done = checkpoints.restore(init_state(params, optimizer))

    # ---------------------------------------------------------------- data
    def batches() -> Iterator[tuple[Any, Batch]]:
        """(step function, batch) of every update still to do; batch i is a pure function of the seed and i."""
        first = 0
        for stage in stages:
            last = first + stage["steps"]
            if done < last:
                needles = NeedleStage(
                    **{f.name: stage[f.name] for f in dataclasses.fields(NeedleStage) if f.name in stage}
                )
                source = NeedleBatches(needles, target.tokenizer, fields["seed"])
                step = make_step(
                    hyper,
                    target.config,
                    StepConfig(fields["loss"], needles.contexts, needles.max_chunks, fields["l1"], fields["dtype"]),
                    optimizer,
                )
                for batch in source.iterate(max(first, done), last):
                    yield step, batch
            first = last

    # ---------------------------------------------------------------- loop
    stop = _StopSignal()
    writer = tensorboardX.SummaryWriter(str(workdir / "tensorboard"))
    log = (workdir / "metrics.jsonl").open("a")
    progress = tqdm.tqdm(total=total, initial=done, unit="step", disable=None)
    recent: collections.deque[dict[str, float]] = collections.deque(maxlen=RECENT)
    began = time.monotonic()
    waiting: tuple[int, dict[str, jax.Array]] | None = None

    def report(step: int, metrics: dict[str, jax.Array]) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not math.isfinite(values["loss"]):
            raise FloatingPointError(
                f"the loss of step {step} is {values['loss']}: the last checkpoint before it is kept; lower config.lr."
            )
        values |= {"lr": float(schedule(step - 1)), "seconds": time.monotonic() - began}
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        log.write(json.dumps({"step": step} | values) + "\n")
        log.flush()
        recent.append(values)
        progress.update()
        progress.set_postfix({name: f"{_mean(recent, name):.3f}" for name in ("loss", "exact")}, refresh=False)

    try:
        for step_fn, batch in batches():
            state, metrics = step_fn(state, target.params, batch)
            done += 1
            if waiting is not None:
                report(*waiting)  # of the step before, while this one runs
            waiting = (done, metrics)
            if done % checkpoints.every == 0 or done == total or stop.asked:
                report(*waiting)  # never save a state whose loss was not finite
                waiting = None
                checkpoints.save(done, state)
            if stop.asked:
                break
    finally:
        progress.close()
        writer.close()
        log.close()
        checkpoints.close()
        stop.restore()

    # ---------------------------------------------------------------- the product
    if done == total:
        card = {"config": fields, "updates": done}
        save_hypernet(
            workdir / "hypernet",
            hyper,
            state["params"],
            target_name=target.name,
            target_hash=target.weights_hash,
            card=card,
            dtype=jnp.dtype(fields["save_dtype"]),
        )
    return {name: _mean(recent, name) for name in recent[-1]} if recent else {}


def _mean(rows: collections.deque[dict[str, float]], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)


class _StopSignal:
    """Remembers a SIGTERM, so that the loop can save before it ends."""

    def __init__(self):
        self.asked = False
        self._before = signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_):
        self.asked = True

    def restore(self) -> None:
        signal.signal(signal.SIGTERM, self._before)
