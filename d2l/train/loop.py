"""Training a hypernetwork: reads top to bottom, from a config to checkpoints and scalars."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Generator, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from d2l.data.batch import NeedleBatches
from d2l.errors import UserError
from d2l.hypernet.config import HypernetConfig
from d2l.hypernet.features import check_turn
from d2l.hypernet.hypernet import init_hypernet
from d2l.hypernet.sink import project_out, sink_directions
from d2l.hypernet.store import load_hypernet
from d2l.mesh import make_mesh, param_shardings, split_packs
from d2l.target.decoder import abstract_decoder
from d2l.target.quantize import quantize_target
from d2l.target.weights import LoadedTarget, load_target
from d2l.train import noise, reading, relevance
from d2l.train.apart import with_part
from d2l.train.checkpoint import Checkpoints, abstract
from d2l.train.chips import peak_flops
from d2l.train.feed import Layout, NeedleFeed, StoredFeed, place
from d2l.train.flops import count_flops
from d2l.train.optimizer import OptimizerConfig, learning_rates, make_optimizer, stage_schedule
from d2l.train.processes import meet, together
from d2l.train.product import Product, make_card
from d2l.train.run import Work, run
from d2l.train.sections import hypernet_config, step_config
from d2l.train.stages import StoredStage, needle_stage, read_stages, setting
from d2l.train.step import check_mesh, init_state, make_step
from d2l.train.watch import Profile, Watch
from d2l.train.workdir import opened


def train(
    config: ml_collections.ConfigDict, workdir: str | os.PathLike[str], *, profile_steps: str = ""
) -> dict[str, float]:
    """Train a hypernetwork as the config says and write it to `workdir/hypernet`.

    The same command again goes on from the latest checkpoint, also on other devices; SIGTERM saves one and returns.

    Args:
      workdir: a folder, or `gs://BUCKET/PATH`.
      profile_steps: `A:B` writes an xprof trace of these updates to `workdir/profile`.

    Returns:
      The means of the last metrics.

    Raises:
      UserError: an unusable config, records that are damaged, a workdir of another config or another run, a full disk.
      FloatingPointError: the loss stopped being finite; the message names the step.
    """
    fields = config.to_dict()
    stages = read_stages(fields)
    total = sum(stage["steps"] for stage in stages)
    card = make_card(fields, total)
    profile = Profile(epath.Path(workdir), profile_steps)

    with contextlib.ExitStack() as stack:
        # ------------------------------------------------------------ devices and workdir first: no time is lost
        mesh = _mesh(fields)
        layout = Layout(*split_packs(fields.get("packs", 1), mesh), mesh)
        workdir = stack.enter_context(opened(workdir, fields))

        # ------------------------------------------------------------ frozen target, and data before any computing
        target = together(lambda: _load(fields, layout))
        hyper = hypernet_config(fields["hypernet"], target.config)
        if mesh is not None:
            check_mesh(mesh, target.config, hyper)
            if steps := fields.get("relevance_steps", 0):
                raise UserError(
                    f"relevance_steps is {steps}, which no mesh can do yet: train relevance on one device, then set "
                    "config.init to what it wrote."
                )
        for stage in stages:
            together(lambda stage=stage: check_turn(hyper, target.tokenizer.turn_wrapper, stage["max_chunk_len"]))
        product = Product(hyper, target.name, target.weights_hash)
        together(lambda: product.claim(workdir), first_only=True)
        feeds = together(lambda: [_feed(stage, target, fields, layout) for stage in stages])
        ends = np.cumsum([stage["steps"] for stage in stages]).tolist()

        # ------------------------------------------------------------ hypernetwork, optimiser
        schedule = stage_schedule(stages)
        multipliers = tuple(fields["lr_multipliers"].items())
        shapes = jax.eval_shape(lambda: init_hypernet(hyper, fields["seed"]))
        project = _project(fields, hyper, target, mesh)
        settings = OptimizerConfig(**fields["optimizer"], multipliers=multipliers)
        optimizer = make_optimizer(settings, schedule, shapes, project=project)
        rates = learning_rates(schedule, total)
        if mesh is not None:
            stack.enter_context(jax.set_mesh(mesh))
        state = _init(fields, hyper, optimizer, mesh, project)

        # ------------------------------------------------------------ where an earlier run stopped
        checkpoints = Checkpoints(
            workdir, every=fields["checkpoint_every"], keep=fields["keep"], keep_best=fields.get("keep_best", 0)
        )
        stack.callback(checkpoints.close)

        def cursor_of(number: int) -> Any:
            for stage, feed, end in zip(stages, feeds, ends, strict=True):
                if end - stage["steps"] < number < end:
                    return feed.cursor()
            return None  # between two stages: the next one begins

        state, cursor, done = checkpoints.restore(state, cursor_of)
        if not done:
            state |= {"params": _prepared(state["params"], hyper, target, stages[0], feeds[0], fields)}
        abstract_state = abstract(state)

        # ------------------------------------------------------------ updates, stage by stage
        def work() -> Generator[Work]:
            for stage, feed, end in zip(stages, feeds, ends, strict=True):
                first = max(end - stage["steps"], done)
                if first >= end:
                    continue
                settings = step_config(fields, stage)
                step = make_step(hyper, target.config, settings, optimizer)
                update = _Update(step, target.params)
                start = None if cursor is None or first > done else np.asarray(jax.device_get(cursor))
                cost = 0.0
                for fed in feed.feed(first, end, start):
                    if not cost and (peak := peak_flops(jax.devices()[0])):
                        plain = make_step(hyper, target.config, dataclasses.replace(settings, remat="none"), optimizer)
                        cost = count_flops(plain, abstract_state, target.params, fed.batch) / peak / jax.device_count()
                    yield Work(update, fed.batch, fed.scalars, fed.cursor, fed.tokens / jax.device_count(), cost)

        # ------------------------------------------------------------ loop, and the product
        watch = Watch(workdir, done=done, total=total)
        state, reached = run(state, work(), checkpoints, watch, done=done, total=total, rates=rates, profile=profile)
        if reached == total:
            product.save(workdir / "hypernet", state["params"], card, jnp.dtype(fields["save_dtype"]))
        return watch.means()


def _mesh(fields: dict[str, Any]) -> Mesh | None:
    """The mesh of a config; none for one device of one process unless the config has one."""
    if "mesh" in fields:
        return make_mesh(fields["mesh"])
    if jax.process_count() > 1:
        raise UserError(f"{jax.process_count()} processes train as one, but the config has no mesh: add config.mesh.")
    return None


def _load(fields: dict[str, Any], layout: Layout) -> LoadedTarget:
    """The frozen target, on the mesh where there is one; no device then ever holds all of it."""
    source, dtype, mesh = fields["target"] or None, jnp.dtype(fields["dtype"]), layout.mesh
    if kind := fields.get("quantize", ""):  # in the host's memory
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            target = load_target(source, dtype=dtype)
            params = quantize_target(target.params, kind)
        shardings = jax.tree.map(lambda _: layout.whole(), params) if mesh is None else param_shardings(mesh, params)
        return dataclasses.replace(target, params=place(params, shardings))
    if mesh is None:
        return load_target(source, dtype=dtype)

    def sharding(path: tuple[str, ...], shape: tuple[int, ...]) -> jax.sharding.Sharding:
        return param_shardings(mesh, {path[-1]: jax.ShapeDtypeStruct(shape, dtype)})[path[-1]]

    return load_target(source, dtype=dtype, sharding=sharding)


def _feed(
    stage: dict[str, Any], target: LoadedTarget, fields: dict[str, Any], layout: Layout
) -> NeedleFeed | StoredFeed:
    """The input of a stage."""
    if target.tokenizer is None:
        raise UserError(f"{target.name} has no tokenizer: give a target that has one.")
    loss = setting(fields, stage, "loss")
    if "data" in stage:
        return StoredFeed(StoredStage.of(stage), target, fields["seed"] + stage["order"], loss, layout)
    needles = needle_stage(stage, teacher=loss == "kl")
    counts = {"accumulate": layout.accumulate, "groups": layout.groups}
    return NeedleFeed(NeedleBatches(needles, target.tokenizer, fields["seed"], **counts), layout)


def _project(
    fields: dict[str, Any], hyper: HypernetConfig, target: LoadedTarget, mesh: Mesh | None
) -> Callable[[Any], Any] | None:
    """What `project_sink` asks for: A rows without the direction of the attention sink."""
    if not fields.get("project_sink", False):
        return None
    if mesh is not None:
        raise UserError("project_sink cuts A rows out of a head that a mesh shards: leave out one of the two.")
    first = target.tokenizer.turn_wrapper[0][0]

    def directions(frozen: Any) -> dict[str, jax.Array]:
        decoder = nnx.merge(abstract_decoder(target.config)[0], frozen)
        return sink_directions(decoder, target.config, hyper.target_modules, first)

    return functools.partial(project_out, config=hyper, directions=jax.jit(directions)(target.params))


def _init(
    fields: dict[str, Any], hyper: HypernetConfig, optimizer: Any, mesh: Mesh | None, project: Any
) -> dict[str, Any]:
    """The train state at step 0, each part where it belongs."""
    project = project or (lambda params: params)

    def fresh() -> dict[str, Any]:
        return init_state(project(init_hypernet(hyper, fields["seed"])), optimizer)

    if fields["init"]:
        state = init_state(project(_earlier(fields, hyper)), optimizer)
        return state if mesh is None else place(state, param_shardings(mesh, state))
    if mesh is None:
        return fresh()
    return jax.jit(fresh, out_shardings=param_shardings(mesh, jax.eval_shape(fresh)))()


def _earlier(fields: dict[str, Any], hyper: HypernetConfig) -> Any:
    """The parameters of the hypernetwork to start from; gates, a memory and what it lacks of one are fresh ones."""
    earlier, params, _ = load_hypernet(fields["init"])
    start = {"row_gate": hyper.row_gate, "scaler_b_init": hyper.scaler_b_init}
    fresh_ones = ("memory_value_map", "memory_skip_first", "relevance")
    start |= {name: True for name in fresh_ones if getattr(hyper, name)}
    if not earlier.memory_layers:
        names = [field.name for field in dataclasses.fields(hyper) if field.name.startswith(("memory_", "turn_"))]
        start |= {name: getattr(hyper, name) for name in names}
    if new_noise := hyper.memory_noise and not earlier.memory_noise:  # another regression, so its ridge begins anew
        start |= {name: getattr(hyper, name) for name in ("memory_noise", "memory_ridge")}
    if dataclasses.replace(earlier, **start) != hyper or (earlier.row_gate and not hyper.row_gate):
        given, wanted = dataclasses.asdict(earlier), dataclasses.asdict(hyper)
        other = [f"{key} is {given[key]} there and {wanted[key]} here" for key in given if given[key] != wanted[key]]
        raise UserError(f"{fields['init']} is another hypernetwork than config.hypernet: {'; '.join(other)}.")
    fresh = init_hypernet(hyper, fields["seed"])
    kept = {name: dict(params.get(name, {})) for name in ("gate", "memory", "relevance") if name in fresh}
    if new_noise and kept.get("memory"):
        del kept["memory"]["log_ridge"]
    return params | {name: dict(fresh[name]) | leaves for name, leaves in kept.items()}


def _prepared(params: Any, hyper: HypernetConfig, target: LoadedTarget, stage: dict, feed: Any, fields: dict) -> Any:
    """The parameters with a memory's noise, if it knows nothing of it yet, and after what parts learn by themselves:
    `reading_steps` updates of a memory, and `relevance_steps` of which chunks stay."""
    step = step_config(fields, stage)
    parts = (
        ("reading", "memory", "memory_layers", reading.TRAINED, reading.reading_sums),
        ("relevance", "relevance", "relevance", relevance.TRAINED, relevance.relevance_sums),
    )
    counts = {name: fields.get(f"{name}_steps", 0) for name, *_ in parts}
    for name, part, field, *_ in parts:
        if counts[name] and part not in params:
            raise UserError(
                f"{name}_steps is {counts[name]}, but the hypernetwork has no {part}: set {field}, or leave it out."
            )
    if hyper.relevance and not (counts["relevance"] or np.any(params["relevance"]["weight"])):
        raise UserError(
            "relevance is set, but was never learned, so that the longest chunks would stay: set relevance_steps, or "
            "init to a hypernetwork that has learned it."
        )

    def batches(count: int) -> Iterator[Any]:
        return (fed.batch for fed in feed.feed(0, count))

    if hyper.memory_layers and hyper.memory_noise and not np.any(params["memory"]["noise_out"]):
        count = min(noise.BATCHES, stage["steps"])
        print(f"measuring the noise of the memory's keys over {count} batches", flush=True)
        params = noise.with_noise(params, target.params, batches(count), hyper, target.config, step)

    for name, part, _, names, sums in parts:
        if not (steps := counts[name]):
            continue

        def report(number: int, means: dict[str, float], name: str = name, steps: int = steps) -> None:
            told = "  ".join(f"{key} {mean:.4f}" for key, mean in means.items())
            print(f"{name} {number}/{steps}  {told}", flush=True)

        last = target.params, batches(steps), steps, hyper, target.config, step, report
        params = with_part(params, part, names, sums, *last)
    return params


class _Update:
    """The jitted step with the frozen target; all processes have compiled it before any of them runs it."""

    def __init__(self, step: Any, frozen: Any):
        self._step, self._frozen, self._compiled = step, frozen, jax.process_count() == 1

    def __call__(self, state: Any, batch: Any) -> tuple[Any, dict[str, jax.Array]]:
        if not self._compiled:
            self._step.lower(state, self._frozen, batch).compile()  # kept by JAX for the call
            meet()
            self._compiled = True
        return self._step(state, self._frozen, batch)
