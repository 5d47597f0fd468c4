"""The stages of a config: how long each runs, at which learning rate, on what."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from d2l.data.batch import NeedleStage
from d2l.data.pack import Shapes
from d2l.errors import UserError
from d2l.hypernet.chunk import Chunking

# What every stage says.
COMMON = ("order", "steps", "warmup", "final", "lr_factor")
OWN = ("loss", "focus", "others")  # what a stage may say in place of the config


@dataclasses.dataclass(frozen=True)
class StoredStage:
    """A stage on records from disk.

    Attributes:
      data: `{name: {"path": folder, "weight": share}}`.
      min_chunk_len, max_chunk_len, chunk_at: how documents are cut, in at most `shapes.max_chunks` (`ExampleMaker`).
      shapes: of one group.
      references: in a stage of stored teachers, learn the reference answers of records that store none as they stand.
      window: examples that wait for a place in a pack.
    """

    data: Mapping[str, Mapping[str, Any]]
    max_chunk_len: int
    shapes: Shapes
    min_chunk_len: int = 1
    chunk_at: str = "tokens"
    references: bool = False
    window: int = 0

    def __post_init__(self):
        Chunking(self.max_chunk_len, chunk_at=self.chunk_at)  # raises where they cannot be used
        if self.references and not self.shapes.teacher_top_k:
            raise UserError("references stand beside stored teachers: set teacher_top_k, or leave references out.")

    @classmethod
    def of(cls, stage: Mapping[str, Any]) -> "StoredStage":
        """The stage of a config's fields."""
        shapes = Shapes(**{name: stage[name] for name in _fields(Shapes) if name in stage})
        own = {name: stage[name] for name in _fields(cls) if name in stage}
        return cls(**({"window": 4 * shapes.contexts} | own | {"shapes": shapes}))


def read_stages(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stages of a config in their order, each with its learning rate.

    A stage with `data` trains on records (`StoredStage` and `Shapes` say its fields), any other on needles
    (`NeedleStage`); each may have a `loss`, a `focus` and `others` of its own.

    Raises:
      UserError: a stage lacks a field, or has one that does not exist.
    """
    for name, stage in fields["stages"].items():
        kinds = (StoredStage, Shapes) if "data" in stage else (NeedleStage,)
        known = {*COMMON, *OWN, *(field for kind in kinds for field in _fields(kind))} - {"shapes"}
        needed = {*COMMON, *(field for kind in kinds for field in _fields(kind, needed=True))} - {"shapes"}
        if unknown := set(stage) - known:
            raise UserError(f"stage {name} has the unknown fields {sorted(unknown)}: known are {sorted(known)}.")
        if missing := needed - set(stage):
            raise UserError(f"stage {name} lacks {sorted(missing)}: add them to the config.")
    stages = sorted(fields["stages"].values(), key=lambda stage: stage["order"])
    return [dict(stage) | {"lr": fields["lr"] * stage["lr_factor"]} for stage in stages]


def setting(fields: Mapping[str, Any], stage: Mapping[str, Any], name: str) -> Any:
    """A name of `OWN` for a stage: its own setting, else the config's."""
    return ({"focus": 0.0, "others": False} | dict(fields) | dict(stage))[name]


def needle_stage(stage: Mapping[str, Any], **changes: Any) -> NeedleStage:
    """The data of a stage on needles."""
    return NeedleStage(**({name: stage[name] for name in _fields(NeedleStage) if name in stage} | changes))


def _fields(kind: type, *, needed: bool = False) -> list[str]:
    return [f.name for f in dataclasses.fields(kind) if not needed or f.default is dataclasses.MISSING]
