"""The `d2l` command: parse, call, print. Bad input is one sentence on standard error and exit code 2."""

import argparse
import json
import os
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

from d2l import cli_data, cli_eval, cli_plan, cli_selfgen
from d2l.cli_config import read_config
from d2l.cli_model import load_model
from d2l.cli_options import add_chunking, chunking, read_lengths, target_tokenizer
from d2l.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args, rest = _parser().parse_known_args(argv)
    if rest and getattr(args, "config", None) is None:
        print(f"d2l {args.command}: unknown argument {rest[0]!r}: see d2l {args.command} --help.", file=sys.stderr)
        return 2
    args.rest = rest
    try:
        return args.run(args) or 0
    except UserError as error:
        print(f"d2l: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"d2l: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="d2l", description="Doc-to-LoRA: documents as LoRA weights, in JAX.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run, text: str, *, model: bool = True, document: bool = False) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        if model:
            sub.add_argument("--target", help="model folder, .gguf file or hub name (default: SmolLM2-135M-Instruct)")
            sub.add_argument("--ctx-encoder", help="the model that reads documents, where it is another")
            sub.add_argument("--hypernet", help="hypernetwork folder (default: the shipped one)")
            sub.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto")
        if document:
            add_chunking(sub)
        return sub

    sub = command("demo", demo, "answer about a document in three ways, with times and bytes", document=True)
    sub.add_argument("--document", help="file to read instead of a haystack with a needle")
    sub.add_argument("--question", help="what to ask about --document")
    sub.add_argument("--tokens", type=int, default=1024, help="length of the haystack")
    sub.add_argument("--seed", type=int, default=0, help="which haystack")
    sub.add_argument("--max-new-tokens", type=int, default=48)

    sub = command("internalize", internalize, "write the adapter of one or several documents", document=True)
    sub.add_argument("documents", nargs="+", help="text, HTML, PDF, DOCX or EPUB files, or - for standard input")
    sub.add_argument("--out", required=True, help="adapter folder to write")

    sub = command("ask", ask, "answer questions with an adapter")
    sub.add_argument("questions", nargs="+")
    _add_answering(sub)

    sub = command("chat", chat, "talk with an adapter, line by line")
    _add_answering(sub)

    sub = command("train", train, "train what a config describes; the same command again resumes", model=False)
    sub.add_argument("--config", required=True, help="configs/X.py; override fields as --config.lr=1e-4")
    sub.add_argument("--workdir", required=True, help="folder or gs://BUCKET/PATH for checkpoints, logs and the result")
    sub.add_argument("--profile-steps", default="", metavar="A:B", help="write an xprof trace of these steps")
    sub.add_argument("--coordinator", metavar="HOST:PORT", help="of several processes, where no cluster tells it")
    sub.add_argument("--num-processes", type=int)
    sub.add_argument("--process-id", type=int)

    sub = command("export-checkpoint", export_checkpoint, "write a checkpoint's hypernetwork", model=False)
    sub.add_argument("workdir", help="of d2l train")
    sub.add_argument("--out", required=True, help="hypernetwork folder to write")
    sub.add_argument("--step", type=int, help="which checkpoint (default: the latest)")
    sub.add_argument("--best", action="store_true", help="the one with the least training loss")

    sub = command("average", average, "write the mean of the weights of stages of one training", model=False)
    sub.add_argument("hypernets", nargs="+", help="two folders or more")
    sub.add_argument("--out", required=True, help="hypernetwork folder to write")

    cli_plan.add_commands(command)
    cli_data.add_commands(command)
    cli_selfgen.add_command(command)

    sub = command("import-checkpoint", import_checkpoint, "convert a checkpoint of the PyTorch release", model=False)
    sub.add_argument("checkpoint", help="pytorch_model.bin")
    sub.add_argument("--base", required=True, help="the target it was trained for")
    sub.add_argument("--out", required=True, help="hypernetwork folder to write")

    sub = command("niah", niah, "write a needle-in-a-haystack data set as JSON lines", model=False)
    sub.add_argument("--target", help="whose tokenizer counts the tokens")
    sub.add_argument("--out", required=True)
    sub.add_argument("--samples", type=int, default=200)
    sub.add_argument("--lengths", default="32-256", help="tokens, as 32-256")
    sub.add_argument("--seed", type=int, default=0)

    cli_eval.add_commands(command)
    return parser


def _add_answering(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--adapter", help="folder written by d2l internalize; without it the target answers alone")
    sub.add_argument("--context", type=int, help="which document of an adapter of several, from 0")
    sub.add_argument("--scale", type=float, default=1.0, help="strength of the adapter")
    sub.add_argument("--max-new-tokens", type=int, default=256)
    sub.add_argument("--temperature", type=float, default=0.0)
    sub.add_argument("--top-k", type=int, default=0)
    sub.add_argument("--top-p", type=float, default=1.0)
    sub.add_argument("--seed", type=int, default=0)


# ---------------------------------------------------------------- commands


def demo(args: argparse.Namespace) -> None:
    if (args.document is None) != (args.question is None):
        raise UserError("--document and --question go together: give both, or none for the built-in haystack.")
    from d2l.data.niah import needle_at
    from d2l.experiments.demo import compare, table

    document = None if args.document is None else _read(args.document)
    model = load_model(args, hypernet=True)
    if document is None:
        needle = needle_at(args.seed, 0, model.tokenizer, args.tokens - args.tokens // 16, args.tokens)
        document, question = needle.document, needle.question
        place = next(line for line in document.splitlines() if needle.answer in line)
        print(f"A haystack of {needle.length:,} tokens; at {needle.depth:.0%} of it stands: {place}")
    else:
        question = args.question
        print(f"{args.document}: {len(model.tokenizer.encode(document)):,} tokens")
    print(f"Question: {question}\n", flush=True)
    lines = compare(model, document, question, max_new_tokens=args.max_new_tokens, **chunking(args))
    print(table(lines))
    if len(lines) == 2:
        print(f"\nIn context: does not fit the window of {model.target.config.max_position_embeddings:,} tokens.")
    print("\nD2L answered with the document absent: only the adapter, made in one forward pass, knows it.")


def internalize(args: argparse.Namespace) -> None:
    texts = [_read(name) for name in args.documents]
    model = load_model(args, hypernet=True)
    began = time.perf_counter()
    adapter = model.internalize(texts, **chunking(args))
    adapter.save(args.out)
    seconds = time.perf_counter() - began
    tokens = sum(len(model.tokenizer.encode(text)) for text in texts)
    print(
        f"{args.out}: {adapter.num_contexts} document(s), {tokens:,} tokens, rank {adapter.rank}, "
        f"{adapter.nbytes / 1e6:,.1f} MB, {seconds:.1f} s"
    )


def ask(args: argparse.Namespace) -> None:
    model, adapter = _load_answering(args)
    contexts = None if args.context is None else [args.context] * len(args.questions)
    for answer in model.generate(args.questions, adapter, contexts=contexts, **_sampling(args)):
        print(answer)


def chat(args: argparse.Namespace) -> None:
    model, adapter = _load_answering(args)
    messages: list[dict[str, str]] = []
    if sys.stdin.isatty():
        print("Ask; an empty line or end of file ends the chat.")
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if not line.strip():
            return
        messages.append({"role": "user", "content": line})
        answer = ""
        for piece in model.stream(messages, adapter, context=args.context, **_sampling(args)):
            answer += piece
            print(piece, end="", flush=True)
        print(flush=True)
        messages.append({"role": "assistant", "content": answer})


def train(args: argparse.Namespace) -> None:
    config = read_config(args.config, args.rest)
    kind = config.get("kind", "hypernet")
    if kind not in ("hypernet", "target"):
        raise UserError(f"{args.config} has kind {kind!r}: it must be hypernet or target.")
    from d2l.train import processes

    processes.join(args.coordinator, args.num_processes, args.process_id)
    if kind == "hypernet":
        from d2l.train.loop import train as run
    else:
        from d2l.train.pretrain import train_target as run
    metrics = run(config, args.workdir, profile_steps=args.profile_steps)
    if processes.leads():
        print(json.dumps({name: round(value, 5) for name, value in metrics.items()}))


def export_checkpoint(args: argparse.Namespace) -> None:
    from d2l.train.product import export_checkpoint as export

    step = export(args.workdir, args.out, step=args.step, best=args.best)
    print(f"{args.out}: hypernetwork of step {step} written")


def average(args: argparse.Namespace) -> None:
    from d2l.hypernet.store import average_hypernets

    average_hypernets(args.hypernets, args.out)
    print(f"{args.out}: mean of {len(args.hypernets)} hypernetworks written")


def import_checkpoint(args: argparse.Namespace) -> None:
    from d2l.hypernet.release import import_checkpoint as convert

    convert(pathlib.Path(args.checkpoint), args.base, pathlib.Path(args.out))
    print(f"{args.out}: hypernetwork written")


def niah(args: argparse.Namespace) -> None:
    from d2l.data.niah import write_dataset

    ((low, high),) = read_lengths(args.lengths, one=True)
    if args.samples < 1:
        raise UserError(f"--samples is {args.samples}: give 1 or more.")
    tokenizer = target_tokenizer(args.target)
    write_dataset(args.out, tokenizer, samples=args.samples, min_tokens=low, max_tokens=high, seed=args.seed)
    print(f"{args.out}: {args.samples} needles of {low}-{high} tokens")


# ---------------------------------------------------------------- what commands share


def _load_answering(args: argparse.Namespace) -> tuple[Any, Any]:
    from d2l.adapter import Adapter

    # Before the model: a folder that holds no adapter should not cost a load.
    adapter = None if args.adapter is None else Adapter.load(args.adapter).scaled(args.scale)
    return load_model(args, hypernet=False), adapter


def _sampling(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in ("max_new_tokens", "temperature", "top_k", "top_p", "seed")}


def _read(name: str) -> str:
    """The text of a document, or standard input for `-`."""
    if name != "-":
        from d2l.data.documents import read_document

        return read_document(name).text
    try:
        text = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not UTF-8 (byte {error.start}): convert it to UTF-8 first.") from error
    if not text.strip():
        raise UserError("standard input is empty: give a text with words in it.")
    return text


if __name__ == "__main__":
    sys.exit(main())
