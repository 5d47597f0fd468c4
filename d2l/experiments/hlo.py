"""Collectives of a compiled program, read from its HLO text.

An instruction inside a loop counts as often as the loop runs; XLA's cost analysis counts it once.
"""

import collections
import functools
import re

KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
BITS = {"pred": 8, "bf16": 16, "f8e4m3fn": 8, "f8e5m2": 8}  # others end in their bits: f32, s8, u4

COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
    r"|(?:branch_computations|called_computations)=\{([^}]*)\}"
)
ARRAY = re.compile(r"\b(pred|bf16|[a-z]\w*?\d+\w*)\[([\d,]*)\]")
CHANNEL = re.compile(r"channel_id=(\d+)")
TRIPS = re.compile(r'known_trip_count"?:?\{"?n"?:"?(\d+)')

Instructions = dict[str, tuple[str, str, str]]


def collectives(text: str) -> dict[str, dict[str, int]]:
    """How often each kind of collective runs in one execution of the program, and the bytes that it handles.

    Args:
      text: of an optimised module (`compiled.as_text()`), which is the program of one device.

    Returns:
      `{kind: {"count", "bytes"}}`; bytes are those of one device: the whole result of a gather, the whole operand of a
      scatter or sum.

    Raises:
      ValueError: a loop that holds a collective has no constant length.
    """
    module, entry = _parse(text)
    runs = _runs(module, entry)
    # A TPU spreads an asynchronous collective over what it overlaps with, inner loops too; all parts carry its channel.
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for computation, instructions in module.items():
        for name, (shape, op, rest) in instructions.items():
            kind = op.removesuffix("-start")
            if kind not in KINDS or computation not in runs:
                continue
            channel = CHANNEL.search(rest)
            key = (kind, channel[1] if channel else f"{computation} {name}")
            size = max(_sizes(shape, flat=op == kind) + _sizes(_operands(rest, instructions), flat=op == kind))
            count, largest = found.get(key, (runs[computation], 0))
            found[key] = (min(count, runs[computation]), max(largest, size))
    totals = {kind: {"count": 0, "bytes": 0} for kind, _ in sorted(found)}
    for (kind, _), (count, size) in found.items():
        totals[kind]["count"] += count
        totals[kind]["bytes"] += count * size
    return totals


def _runs(module: dict[str, Instructions], entry: str) -> dict[str, int]:
    """How often each computation that holds a collective, or calls one that does, runs."""

    @functools.cache
    def holds(name: str) -> bool:
        return any(
            op.removesuffix("-start") in KINDS or any(holds(callee) for callee in _callees(rest) if callee in module)
            for _, op, rest in module[name].values()
        )

    runs: dict[str, int] = collections.Counter()

    def walk(name: str, times: int) -> None:
        runs[name] += times
        for _, op, rest in module[name].values():
            for callee in _callees(rest):
                if callee in module and holds(callee):
                    walk(callee, times * (_trips(rest, module) if op == "while" else 1))

    walk(entry, 1)
    return runs


def _parse(text: str) -> tuple[dict[str, Instructions], str]:
    """Instructions `{name: (shape, opcode, operands and attributes)}` of every computation, and the entry's name."""
    module: dict[str, Instructions] = {}
    entry, current = "", None
    for line in text.splitlines():
        if match := COMPUTATION.match(line):
            current = module.setdefault(match[2], {})
            entry = match[2] if match[1] else entry
        elif current is not None and (match := INSTRUCTION.match(line)):
            current[match[1]] = (match[2], match[3], match[4])
    return module, entry


def _callees(rest: str) -> list[str]:
    names = []
    for one, several in CALLED.findall(rest):
        names += [one] if one else [name.strip().lstrip("%") for name in several.split(",")]
    return names


def _operands(rest: str, instructions: Instructions) -> str:
    """Shapes of an instruction's operands, as text."""
    names = re.findall(r"%?([\w.\-]+)", rest.partition(")")[0])
    return " ".join(instructions[name][0] for name in names if name in instructions)


def _sizes(shape: str, *, flat: bool) -> list[int]:
    """Bytes of a shape: of the whole tuple, or of each of its arrays (an asynchronous start has operand and result)."""
    sizes = []
    for dtype, dims in ARRAY.findall(shape):
        bits = BITS.get(dtype) or int(re.search(r"(\d+)$", dtype)[1])
        count = 1
        for dim in filter(None, dims.split(",")):
            count *= int(dim)
        sizes.append(count * bits // 8)
    return [sum(sizes)] if flat else sizes


def _trips(rest: str, module: dict[str, Instructions]) -> int:
    """How often a `while` runs: as XLA says, or the constant that its condition compares with."""
    if match := TRIPS.search(rest):
        return int(match[1])
    condition = re.search(r"condition=%?([\w.\-]+)", rest)[1]
    constants = {
        int(match[1])
        for shape, op, arguments in module[condition].values()
        if op == "constant" and shape.startswith("s32[]") and (match := re.match(r"(\d+)\)", arguments))
    }
    if len(constants) != 1:
        raise ValueError(f"the loop with condition {condition} has no constant length.")
    return constants.pop()
