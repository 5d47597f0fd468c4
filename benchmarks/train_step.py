"""Does the train step waste anything? SmolLM2 on this CPU: share of the product rate, growth with the batch, torch.

    python -m benchmarks.train_step [--rounds 5]

One run, all sides in turns, medians of the rounds; torch lives in the environment that `make parity` makes. The three
parts run one after the other in processes of their own, with the allocator's settings of `launch/cpu_env.sh`. Prints
one JSON object:

    share_of_peak  model FLOPs of a step of `configs/niah_smollm2.py` (haystacks to 256 tokens) over its seconds, as a
                   share of the rate of one large bfloat16 product measured in the same round, goal >= 0.55
    r2             of a line through seconds a step over contexts a step
    input_wait     share of the time in which the step waits for its next batch, goal < 0.01
    vs_torch       our examples a second over those of the same step written plainly in torch, each side in its faster
                   dtype, goal >= 1.0: the network of the release's fixtures at SmolLM2's sizes (per-layer activations,
                   Perceiver), one chunk and one query a context
    loss_gap       |our loss - theirs| at the first update in float32: both sides compute the same thing
"""

import argparse
import functools
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from benchmarks.torch_side import DTYPES, ROOT, TorchSide
from configs.niah_smollm2 import get_config
from d2l.data.batch import NeedleBatches
from d2l.errors import UserError
from d2l.experiments.growth import Model, step_flops
from d2l.hypernet.config import HypernetConfig
from d2l.hypernet.hypernet import init_hypernet
from d2l.target.weights import LoadedTarget, load_target
from d2l.train.loop import train
from d2l.train.optimizer import OptimizerConfig, make_optimizer
from d2l.train.sections import hypernet_config
from d2l.train.stages import needle_stage, read_stages
from d2l.train.step import StepConfig, init_state, make_step

CONTEXTS = (8, 16, 24, 32, 48)
COMPARED = 8  # contexts of the step that torch makes too
PEAK = 4096  # rows and columns of the product that the machine's rate is measured with


class Step:
    """One train step, ready to run."""

    def __init__(self, target: LoadedTarget, hyper: HypernetConfig, contexts: int, dtype: str):
        self.target, self.hyper = target, hyper
        self.batches = NeedleBatches(needle_stage(haystacks() | {"contexts": contexts}), target.tokenizer, 0)
        self.params = init_hypernet(hyper, 0)
        optimizer = make_optimizer(OptimizerConfig(), lambda _: jnp.float32(1e-5), self.params)
        self.state = init_state(jax.tree.map(jnp.copy, self.params), optimizer)
        self.step = make_step(hyper, target.config, StepConfig("ce", dtype=dtype), optimizer)

    def __call__(self, index: int = 0) -> tuple[float, float]:
        """Loss and seconds of an update."""
        batch = self.batches[index]
        start = time.perf_counter()
        self.state, metrics = self.step(self.state, self.target.params, batch)
        return float(metrics["loss"]), time.perf_counter() - start

    @property
    def flops(self) -> int:
        parts = step_flops(Model(self.target.config, self.hyper), self.batches.shapes, 1, remat=False, kl=False)
        return sum(parts.values()) - parts["recomputed"]


@functools.cache
def _product():
    a = jax.random.normal(jax.random.key(0), (PEAK, PEAK), jnp.bfloat16)
    return jax.jit(lambda a: a @ a), a


def peak_rate() -> float:
    """FLOP/s of one large bfloat16 product."""
    product, a = _product()
    start = time.perf_counter()
    jax.block_until_ready(product(a))
    return 2 * PEAK**3 / (time.perf_counter() - start)


def growth(rounds: int) -> dict[str, Any]:
    """Share of the product rate at the config's batch, and seconds over contexts."""
    config, target = get_config(), load_target(dtype="bfloat16")
    hyper = hypernet_config(config.hypernet.to_dict(), target.config)
    steps = {contexts: Step(target, hyper, contexts, config.dtype) for contexts in CONTEXTS}
    seconds: dict[int, list[float]] = {contexts: [] for contexts in CONTEXTS}
    shares = []
    full = haystacks()["contexts"]
    for turn in range(rounds + 1):  # the first one compiles
        rate = peak_rate()
        for contexts, step in steps.items():
            taken = step(turn)[1]
            if turn:
                seconds[contexts].append(taken)
        if turn:
            shares.append(steps[full].flops / seconds[full][-1] / rate)
        progress(f"round {turn} of {rounds}: {rate / 1e9:.0f} GFLOP/s, share {shares[-1:]}, {seconds}")
    medians = {contexts: statistics.median(values) for contexts, values in seconds.items()}
    x, y = np.array(list(medians)), np.array(list(medians.values()))
    left = y - np.polyval(np.polyfit(x, y, 1), x)
    return {
        "share_of_peak": statistics.median(shares),
        "r2": float(1 - np.sum(left**2) / np.sum((y - y.mean()) ** 2)),
        "seconds_by_contexts": medians,
        "flops": steps[full].flops,
    }


def input_wait(rounds: int) -> dict[str, float]:
    """Share of the time of `d2l train` that goes into waiting for batches, the first two updates left out."""
    config, stage, updates = get_config(), haystacks(), 2 * rounds
    config.stages = {
        "haystack": {name: stage[name] for name in stage if name != "lr"} | {"steps": updates, "warmup": 2}
    }
    config.checkpoint_every = updates
    with tempfile.TemporaryDirectory() as workdir:
        train(config, workdir)
        rows = [json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    return {"input_wait": statistics.mean(row["input/wait"] for row in rows[2:])}


def compare(rounds: int) -> dict[str, Any]:
    """The step of the fixtures' network here and in torch, on one batch."""
    targets = {dtype: load_target(dtype=dtype) for dtype in DTYPES}
    target = targets["bfloat16"]
    sizes = {
        name: (size,) for name, size in zip(("d_in", "d_out"), target.config.module_sizes["down_proj"], strict=True)
    }
    hyper = HypernetConfig(
        target_modules=("down_proj",),
        num_layers=target.config.num_hidden_layers,
        feature_size=target.config.hidden_size,
        rank=4,
        scale=16.0,
        latent_size=32,
        num_latents=6,
        num_blocks=2,
        scaler_b_init=0.01,
        **sizes,
    )
    ours = {dtype: Step(targets[dtype], hyper, COMPARED, dtype) for dtype in DTYPES}
    theirs = TorchSide("benchmarks.torch_train")
    seconds: dict[str, list[float]] = {}
    losses = {}
    with tempfile.TemporaryDirectory() as folder:
        write_case(pathlib.Path(folder), ours["float32"])
        for turn in range(rounds + 1):
            for dtype in DTYPES:
                losses["ours", dtype, turn], taken = ours[dtype]()
                answer = theirs.ask("step", folder, dtype)
                losses["torch", dtype, turn] = answer["loss"]
                if turn:
                    seconds.setdefault(f"ours {dtype}", []).append(taken)
                    seconds.setdefault(f"torch {dtype}", []).append(answer["seconds"])
            progress(f"round {turn} of {rounds}: {seconds}")
    theirs.close()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    fastest = {side: min(medians[f"{side} {dtype}"] for dtype in DTYPES) for side in ("ours", "torch")}
    return {
        "vs_torch": fastest["torch"] / fastest["ours"],
        "loss_gap": abs(losses["ours", "float32", 0] - losses["torch", "float32", 0]),
        "compared_seconds": medians,
    }


def write_case(folder: pathlib.Path, step: Step) -> None:
    """Parameters and batch of a step as torch reads them."""
    named = jax.tree_util.tree_leaves_with_path(step.params)
    params = {".".join(key.key for key in path): np.asarray(a) for path, a in named}
    safetensors.numpy.save_file(params, folder / "params.safetensors")
    group = {name: a[0, 0] for name, a in step.batches[0].items()}
    names = ("ctx_tokens", "query_tokens", "response_row", "response_index", "response_tokens")
    batch = {name: group[name].astype(np.int64) for name in names}
    batch |= {"ctx_mask": group["ctx_segments"] >= 0, "response_weight": group["response_weight"]}
    batch["scale"] = np.float32([step.hyper.scale])
    safetensors.numpy.save_file(batch, folder / "batch.safetensors")


def haystacks() -> dict[str, Any]:
    """The stage of `configs/niah_smollm2.py` whose haystacks end at 256 tokens."""
    return next(stage for stage in read_stages(get_config().to_dict()) if stage["max_tokens"] == 256)


def progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


PARTS = {"growth": growth, "input_wait": input_wait, "compare": compare}


def measure(part: str, rounds: int) -> dict[str, Any]:
    """What a part prints, run in a process of its own."""
    # One arena of glibc, where jemalloc is missing: no checkpoint is written here after which it would grow.
    run = 'source launch/cpu_env.sh; MALLOC_ARENA_MAX=1 exec "$@"'
    command = [sys.executable, "-m", "benchmarks.train_step", "--part", part, "--rounds", str(rounds)]
    done = subprocess.run(["bash", "-c", run, "bash", *command], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--part", choices=PARTS, help="only one of the parts, in this process")
    args = parser.parse_args()
    if args.rounds < 2:
        raise UserError("give 2 rounds or more.")
    if args.part:
        print(json.dumps(PARTS[args.part](args.rounds)))
    else:
        print(json.dumps(functools.reduce(dict.__or__, (measure(part, args.rounds) for part in PARTS)), indent=2))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"benchmarks.train_step: {error}", file=sys.stderr)
        sys.exit(2)
