"""Options that several commands share."""

import argparse
from typing import Any

from d2l.errors import UserError
from d2l.hypernet.chunk import CHUNK_AT


def add_chunking(sub: argparse.ArgumentParser) -> None:
    """The fields of `d2l.hypernet.chunk.Chunking`."""
    sub.add_argument("--max-chunk-len", type=int, help="tokens of a chunk (default: what the card says)")
    sub.add_argument("--chunk-overlap", type=int, help="tokens that chunks share (default: what the card says)")
    sub.add_argument("--keep-chunks", type=int, help="the loudest chunks that stay, 0 for all (default: the card's)")
    sub.add_argument("--chunk-at", choices=CHUNK_AT, help="where documents are cut (default: what the card says)")


def chunking(args: argparse.Namespace) -> dict[str, int | str | None]:
    """What `add_chunking` read, as keywords of `DocToLora.internalize`."""
    return {name: getattr(args, name) for name in ("max_chunk_len", "chunk_overlap", "keep_chunks", "chunk_at")}


def read_lengths(text: str, *, one: bool = False) -> list[tuple[int, int]]:
    """Ranges like `32-256,1024-2048`."""
    ranges = []
    for part in text.split(","):
        low, dash, high = part.partition("-")
        if not (dash and low.isdecimal() and high.isdecimal() and int(low) <= int(high)):
            raise UserError(f"{part!r} is no range: give two whole numbers, as 32-256.")
        ranges.append((int(low), int(high)))
    if one and len(ranges) != 1:
        raise UserError(f"{text!r} has {len(ranges)} ranges: give one, like 32-256.")
    return ranges


def target_tokenizer(target: str | None) -> Any:
    """The tokenizer of a target, which counts its tokens."""
    from d2l.target.weights import load_target

    tokenizer = load_target(target).tokenizer
    if tokenizer is None:
        raise UserError(f"{target} has no tokenizer: give a target that has one.")
    return tokenizer
