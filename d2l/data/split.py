"""Which split a document belongs to: a pure function of its name."""

import hashlib

# Shares of documents that are held out.
VALIDATION = TEST = 0.05


def split_of(name: str) -> str:
    """`train`, `validation` or `test` of a document, or of the group that must stay together."""
    place = draw(f"split {name}")
    if place < TEST:
        return "test"
    return "validation" if place < TEST + VALIDATION else "train"


def draw(name: str) -> float:
    """A number in [0, 1) that a name has everywhere and always."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest()) / 2**48
