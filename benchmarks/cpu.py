"""Is it fast on a CPU? SmolLM2 against transformers + torch, and documents of up to 131,072 tokens.

    python -m benchmarks.cpu [--rounds 5] [--lengths 2048,...,131072]

Both sides run in one go and take turns, each in float32 and in bfloat16, of which the faster counts; medians of the
rounds. torch lives in the environment that `make parity` makes. Prints one JSON object:

    prefill_ratio      our seconds over theirs for a prompt of 1,024 tokens, goal <= 1.3
    decode_ratio       our tokens per second over theirs, greedy, one row, another question each round, goal >= 2
    internalize_ratio  our seconds to internalize 1,024 tokens over theirs for that prefill, goal <= 1.0
    linear_r2          of a line through seconds over document tokens, goal >= 0.99
    memory_growth      peak memory of the longest document over that of 8,192 tokens, the adapters' own bytes taken off
                       both, goal <= 1.3

The hypernetwork has the shape of `configs/niah_smollm2.py` and random weights: time does not depend on them.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import d2l
from benchmarks.torch_side import DTYPES, ROOT, TorchSide
from configs.niah_smollm2 import get_config
from d2l.data.niah import NOISE
from d2l.errors import UserError
from d2l.hypernet.hypernet import init_hypernet
from d2l.hypernet.store import save_hypernet
from d2l.target.generate import Generator
from d2l.target.tokenizer import Tokenizer
from d2l.target.weights import load_target
from d2l.train.sections import hypernet_config

PROMPT, DECODED = 1024, 96
QUESTIONS = (
    "Write a short story about a fox who learned to sing.",
    "What is the capital of France, and what is it known for?",
    "Explain to a child how a rainbow forms.",
    "Give me five tips for a first visit to Japan.",
    "Why do leaves change their colour in autumn?",
)
LENGTHS = (2048, 4096, 8192, 16384, 32768, 65536, 131072)
BASE_LENGTH = 8192  # memory is compared with that of a document of so many tokens
WAYS = ("loop", "generate")
OUR_WAYS = ("", " without guesses")


def text_of(tokenizer: Tokenizer, tokens: int) -> str:
    """A text of exactly `tokens` tokens."""
    block = " ".join(NOISE) + "\n"
    ids = tokenizer.encode(block * (tokens // len(tokenizer.encode(block)) + 2))[:tokens]
    text = tokenizer.decode(ids)
    assert len(tokenizer.encode(text)) == tokens
    return text


def write_hypernet(folder: pathlib.Path) -> None:
    """A fresh hypernetwork for the default target."""
    target = load_target()
    config = hypernet_config(get_config().hypernet, target.config)
    params = init_hypernet(config, 0)
    card = {"data": "none: random weights"}
    save_hypernet(folder, config, params, target_name=target.name, target_hash=target.weights_hash, card=card)


class Ours:
    """Our side: the same model in both dtypes."""

    def __init__(self, hypernet: pathlib.Path):
        self.models = {dtype: d2l.load(hypernet=hypernet, dtype=dtype) for dtype in DTYPES}
        self.generators = {}
        for dtype, model in self.models.items():
            plain = Generator(model.target.config, model.generator.params, guess=False)
            self.generators |= {(dtype, OUR_WAYS[0]): model.generator, (dtype, OUR_WAYS[1]): plain}

    def prefill(self, dtype: str, ids: list[int]) -> float:
        start = time.perf_counter()
        self.models[dtype].generator.generate([ids], max_new_tokens=1)
        return time.perf_counter() - start

    def decode(self, dtype: str, ids: list[int], count: int, way: str) -> float:
        stream = self.generators[dtype, way].stream([ids], max_new_tokens=count + 1)
        next(stream)
        start = time.perf_counter()
        assert len(list(stream)) == count
        return time.perf_counter() - start

    def internalize(self, dtype: str, text: str) -> float:
        start = time.perf_counter()
        jax.block_until_ready(self.models[dtype].internalize(text, max_chunk_len=PROMPT).factors)
        return time.perf_counter() - start


def compare(hypernet: pathlib.Path, rounds: int) -> dict[str, Any]:
    """Both sides in turns; ratios of medians and the medians themselves."""
    theirs, ours = TorchSide("benchmarks.torch_cpu"), Ours(hypernet)
    tokenizer = ours.models["float32"].tokenizer
    text = text_of(tokenizer, PROMPT)
    long, (prefix, suffix) = tokenizer.encode(text), tokenizer.turn_wrapper
    questions = [[*prefix, *tokenizer.encode(question), *suffix] for question in QUESTIONS]
    seconds: dict[str, list[float]] = {}
    for turn in range(rounds + 1):  # the first one compiles and warms up
        taken, short = {}, questions[turn % len(questions)]
        for dtype in DTYPES:
            taken[f"ours prefill {dtype}"] = ours.prefill(dtype, long)
            taken[f"torch prefill {dtype}"] = theirs.ask("prefill", dtype, long)
            taken[f"ours internalize {dtype}"] = ours.internalize(dtype, text)
            for way in OUR_WAYS:
                taken[f"ours decode {dtype}{way}"] = ours.decode(dtype, short, DECODED, way)
            for way in WAYS:
                taken[f"torch decode {dtype} {way}"] = theirs.ask("decode", dtype, short, DECODED, way)
        progress(f"round {turn} of {rounds}: " + ", ".join(f"{k} {v:.2f}" for k, v in taken.items()))
        if turn:
            for key, value in taken.items():
                seconds.setdefault(key, []).append(value)
    theirs.close()
    medians = {key: statistics.median(values) for key, values in seconds.items()}

    def fastest(what: str) -> float:
        return min(value for key, value in medians.items() if key.startswith(what))

    return {
        "prefill_ratio": fastest("ours prefill") / fastest("torch prefill"),
        "decode_ratio": fastest("torch decode") / fastest("ours decode"),
        "internalize_ratio": fastest("ours internalize") / fastest("torch prefill"),
        "medians": {
            "prefill_tokens": PROMPT,
            "decode_tokens": DECODED,
            "rounds": rounds,
            "seconds": medians,
            "tokens_per_second": {k: DECODED / v for k, v in medians.items() if " decode " in k},
        },
    }


def internalize_once(hypernet: pathlib.Path, tokens: int) -> dict[str, float]:
    """One document in this fresh process: seconds of the second time, all compiled, and peak memory in bytes."""
    model = d2l.load(hypernet=hypernet, dtype="bfloat16")
    text = text_of(model.tokenizer, tokens)
    # Loading needs more than internalizing a short document does: start the peak over at the present size.
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = peak_bytes()
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        adapter = jax.block_until_ready(model.internalize(text, max_chunk_len=PROMPT))
        seconds.append(time.perf_counter() - start)
        adapter_bytes = adapter.nbytes
        del adapter
    return {
        "tokens": tokens,
        "first_seconds": seconds[0],
        "seconds": seconds[1],
        "peak_bytes": peak_bytes(),
        "loaded_bytes": before,
        "adapter_bytes": adapter_bytes,
    }


def peak_bytes() -> int:
    """Largest resident size of this process (Linux). Not `ru_maxrss`, which starts at that of the parent process."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def scale(hypernet: pathlib.Path, lengths: Sequence[int]) -> dict[str, Any]:
    """Time and memory over the length of a document, each length in a process of its own."""
    rows = []
    for tokens in lengths:
        command = [sys.executable, "-m", "benchmarks.cpu", "--one", str(tokens), "--hypernet", str(hypernet)]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout))
        progress(f"{rows[-1]}")
    x, y = np.array([row["tokens"] for row in rows]), np.array([row["seconds"] for row in rows])
    left = y - np.polyval(np.polyfit(x, y, 1), x)
    used = {row["tokens"]: row["peak_bytes"] - row["adapter_bytes"] for row in rows}
    return {
        "linear_r2": float(1 - np.sum(left**2) / np.sum((y - y.mean()) ** 2)),
        "memory_growth": used[max(used)] / used[BASE_LENGTH],
        "documents": rows,
    }


def progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lengths", type=lambda text: [int(part) for part in text.split(",")], default=LENGTHS)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--hypernet", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if args.one:
        print(json.dumps(internalize_once(args.hypernet, args.one)))
        return 0
    if args.rounds < 1 or BASE_LENGTH not in args.lengths or len(args.lengths) < 3:
        raise UserError(f"give 1 round or more, and at least three lengths, {BASE_LENGTH} among them.")
    with tempfile.TemporaryDirectory() as folder:
        hypernet = pathlib.Path(folder) / "hypernet"
        write_hypernet(hypernet)
        print(json.dumps(compare(hypernet, args.rounds) | scale(hypernet, args.lengths), indent=2))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"benchmarks.cpu: {error}", file=sys.stderr)
        sys.exit(2)
