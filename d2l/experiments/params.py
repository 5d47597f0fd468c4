"""The parameter table of a config, from shapes alone."""

import math
from typing import Any

import jax

from d2l.hypernet.hypernet import abstract_hypernet
from d2l.target.decoder import abstract_decoder
from d2l.target.shapes import target_shape
from d2l.train.sections import hypernet_config


def parameter_rows(fields: dict[str, Any]) -> list[tuple[str, int, int]]:
    """Part, arrays and parameters of a config's hypernetwork, then of its frozen target.

    Parts are named by their path; `total` ends the hypernetwork, `target (frozen)` the table.

    Raises:
      UserError: the target's shape is not known here, or the config does not fit it.
    """
    target = target_shape(fields["target"])
    hypernet = abstract_hypernet(hypernet_config(fields["hypernet"], target))[1]
    parts: dict[str, tuple[int, int]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(hypernet):
        part = _part(tuple(key.key for key in path))
        arrays, count = parts.get(part, (0, 0))
        parts[part] = (arrays + 1, count + math.prod(leaf.shape))
    rows = [(part, *sizes) for part, sizes in parts.items()]
    return [*rows, ("total", *_sizes(hypernet)), ("target (frozen)", *_sizes(abstract_decoder(target)[1]))]


def _part(path: tuple[str, ...]) -> str:
    """An aggregator's arrays by the module they are in, layers and learned queries apart; all others by group."""
    if path[0] != "aggregator":
        return path[0]
    depth = 2 if path[1] == "modality_projection" else 3
    return ".".join(path[:depth])


def _sizes(tree: Any) -> tuple[int, int]:
    leaves = jax.tree.leaves(tree)
    return len(leaves), sum(math.prod(leaf.shape) for leaf in leaves)


def parameter_table(fields: dict[str, Any]) -> str:
    """`parameter_rows` as text, with each part's share of the hypernetwork."""
    rows = parameter_rows(fields)
    total = dict((part, count) for part, _, count in rows)["total"]
    lines = [f"{'part':<34}{'arrays':>8}{'parameters':>16}{'share':>9}"]
    for part, arrays, count in rows:
        share = "" if part.startswith("target") else f"{count / total:8.2%}"
        lines.append(f"{part:<34}{arrays:>8}{count:>16,}{share:>9}".rstrip())
    return "\n".join(lines)
