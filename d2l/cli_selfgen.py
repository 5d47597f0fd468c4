"""`d2l selfgen`: documents to distillation data, by the target itself."""

import argparse
import dataclasses
import logging
from collections.abc import Callable

from d2l.cli_model import pick_dtype
from d2l.errors import UserError


def add_command(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare it; `command(name, run, text, model=False)` makes its parser."""
    sub = command("selfgen", selfgen, "let the target ask and answer about documents, and store it", model=False)
    sub.add_argument("documents", nargs="+", help="files, folders, globs; FILE.jsonl or folders of records")
    sub.add_argument("--out", required=True, help="folder of records to write; the same command again resumes")
    sub.add_argument("--target", help="model folder, .gguf file or hub name (default: SmolLM2-135M-Instruct)")
    sub.add_argument("--question-model", help="the model that asks (default: the target)")
    sub.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto")
    sub.add_argument("--questions", choices=("generate", "keep"), default="generate", help="keep: those of the records")
    sub.add_argument("--per-round", type=int, default=5, help="questions asked for in each of two rounds")
    sub.add_argument("--passage-tokens", type=int, default=512, help="documents are cut to passages of at most so many")
    sub.add_argument("--question-temperature", type=float, default=0.0)
    sub.add_argument("--temperature", type=float, default=0.0, help="of answers; 0 is greedy")
    sub.add_argument("--max-new-tokens", type=int, default=96, help="the longest answer")
    sub.add_argument(
        "--unfinished", default="drop", help="drop answers that would be longer, or keep what there is, without an end"
    )
    sub.add_argument("--top-k", type=int, default=16, help="likeliest tokens stored for each token of an answer")
    sub.add_argument("--closed-qa", type=float, default=0.3, help="share of questions that ask for a short answer")
    sub.add_argument("--limit", type=int, help="passages, or records with questions, to draw from all")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--part-size", type=int, default=32, help="passages that are finished and written together")
    sub.add_argument("--batch-tokens", type=int, default=16384, help="positions of the KV cache that a batch takes")
    sub.add_argument("--shard", default="0/1", metavar="I/N", help="make every N-th part from I on, for N processes")


def selfgen(args: argparse.Namespace) -> None:
    from d2l.data.selfgen.config import SelfgenConfig

    config = SelfgenConfig(**{field.name: getattr(args, field.name) for field in dataclasses.fields(SelfgenConfig)})
    shard = _shard(args.shard)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("d2l.data.selfgen").setLevel(logging.INFO)

    from d2l.data.selfgen.run import selfgen as run
    from d2l.target.weights import load_target

    dtype = pick_dtype(args.dtype)
    target = load_target(args.target, dtype=dtype)
    asker = None if args.question_model is None else load_target(args.question_model, dtype=dtype)
    manifest = run(args.documents, args.out, target, config, question_model=asker, shard=shard)
    if manifest is None:
        print(f"{args.out}: the parts of shard {args.shard} are made; without --shard, the command collects all")
        return
    dropped = ", ".join(f"{count:,} {name}" for name, count in manifest["dropped"].items() if count)
    print(
        f"{args.out}: {manifest['records']:,} documents, {manifest['queries']:,} questions, "
        f"{manifest['response_tokens']:,} answer tokens; dropped: {dropped or 'nothing'}"
        + (f"; truncated: {manifest['given']['truncated']:,}" if manifest["given"]["truncated"] else "")
    )


def _shard(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise UserError(f"--shard is {text!r}: give I/N with 0 <= I < N, as 0/4.")
    return int(index), int(count)
