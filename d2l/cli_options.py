"""Options that several commands share."""

from typing import Any

from d2l.errors import UserError


def read_lengths(text: str, *, one: bool = False) -> list[tuple[int, int]]:
    """Ranges like `32-256,1024-2048`."""
    ranges = []
    for part in text.split(","):
        low, dash, high = part.partition("-")
        if not (dash and low.isdecimal() and high.isdecimal() and int(low) <= int(high)):
            raise UserError(f"{part!r} is no range of tokens: give lengths like 32-256.")
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
