"""Batches of a stage on the devices, made ahead by a thread.

A batch is `{name: [accumulate, groups, ...]}`; a process makes the groups that its devices hold.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from d2l.data.batch import NeedleBatches
from d2l.data.examples import ExampleMaker
from d2l.data.mixture import mixture, open_sources
from d2l.data.pack import Batch, Packer, stack_groups
from d2l.data.stream import PackStream
from d2l.errors import UserError
from d2l.mesh import GROUP_AXES
from d2l.target.weights import LoadedTarget
from d2l.train.stages import StoredStage

AHEAD = 2  # batches that are ready before they are asked for


def place(tree: Any, shardings: Any) -> Any:
    """Arrays that every process holds as a whole, on the devices; each process copies what its own devices hold."""

    def one(a: Any, sharding: jax.sharding.Sharding) -> jax.Array:
        a = np.asarray(a)
        return jax.make_array_from_callback(a.shape, sharding, lambda index: a[index])

    return jax.tree.map(one, tree, shardings)


@dataclasses.dataclass(frozen=True)
class Fed:
    """One batch.

    Attributes:
      batch: on the devices.
      cursor: where the input stands after it, on the devices; None for needles, whose batches are named by the step.
      scalars: `input/packing`, the used share of token positions, and `input/left_out`, of this process' groups.
      tokens: used positions of the whole batch, as this process' groups let expect.
    """

    batch: Any
    cursor: jax.Array | None
    scalars: dict[str, float]
    tokens: float


@dataclasses.dataclass(frozen=True)
class Layout:
    """How packs lie on the devices: pack p of a step is group p // accumulate of accumulation p % accumulate."""

    accumulate: int = 1
    groups: int = 1
    mesh: Mesh | None = None

    @property
    def packs(self) -> int:
        return self.accumulate * self.groups

    def local_groups(self) -> list[int]:
        """The groups that this process' devices hold."""
        if self.mesh is None:
            return list(range(self.groups))
        sharding = NamedSharding(self.mesh, P(GROUP_AXES))
        slices = sharding.addressable_devices_indices_map((self.groups,)).values()
        return sorted({group for (part,) in slices for group in range(*part.indices(self.groups))})

    def place(self, local: np.ndarray, axis: int, factor: int = 1) -> jax.Array:
        """An array whose `axis` runs over this process' groups (`factor` entries each) as the global one."""
        if self.mesh is None:
            return jax.device_put(local)
        shape = list(local.shape)
        shape[axis] = self.groups * factor
        first = {group: i * factor for i, group in enumerate(self.local_groups())}

        def part(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[axis].indices(shape[axis])
            begin = first[start // factor]
            return local[(slice(None),) * axis + (slice(begin, begin + stop - start),)]

        sharding = NamedSharding(self.mesh, P(*(None,) * axis, GROUP_AXES))
        return jax.make_array_from_callback(tuple(shape), sharding, part)

    def whole(self) -> jax.sharding.Sharding:
        """Every device with the whole array."""
        if self.mesh is None:
            return jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return NamedSharding(self.mesh, P())

    def fed(self, batch: Batch, cursor: np.ndarray | None = None, **scalars: float) -> Fed:
        """A batch of this process' groups, and its cursor, on the devices."""
        used = sum(int(np.sum(a >= 0)) for name, a in batch.items() if name.endswith("_segments"))
        size = sum(a.size for name, a in batch.items() if name.endswith("_segments"))
        return Fed(
            jax.tree.map(lambda a: self.place(a, 1), batch),
            None if cursor is None else self.place(cursor, 0, self.accumulate),
            {"input/packing": used / size} | scalars,
            used * self.groups / len(self.local_groups()),
        )


class NeedleFeed:
    """Batches of needles, where batch i is a pure function of seed and i."""

    def __init__(self, batches: NeedleBatches, layout: Layout):
        self._batches, self._layout = batches, layout

    def cursor(self) -> None:
        """There is none."""

    def feed(self, first: int, last: int, cursor: np.ndarray | None = None) -> Iterator[Fed]:
        """The batches of updates `first` .. `last - 1` of the whole run."""
        local = self._layout.local_groups()
        for batch in self._batches.iterate(first, last):
            yield self._layout.fed({name: a[:, local] for name, a in batch.items()})


class StoredFeed:
    """Packs of examples from records on disk.

    Raises:
      UserError: records that cannot be used, or a teacher that is missing, unwanted or another target's.
    """

    def __init__(self, stage: StoredStage, target: LoadedTarget, seed: int, loss: str, layout: Layout):
        shapes = stage.shapes
        self._stage, self._layout, self._pad = stage, layout, target.tokenizer.pad_id
        if (loss == "kl") != bool(shapes.teacher_rows or shapes.teacher_top_k):
            raise UserError(
                f"a stage of the loss {loss} has teacher_rows {shapes.teacher_rows} and teacher_top_k "
                f"{shapes.teacher_top_k}: kl needs one of them (computed in the step, or stored), ce neither."
            )
        wrapper = sum(map(len, target.tokenizer.turn_wrapper))
        if stage.max_chunk_len + wrapper > shapes.ctx_tokens:
            raise UserError(
                f"chunks of {stage.max_chunk_len} tokens and {wrapper} of their chat turn do not fit into rows of "
                f"{shapes.ctx_tokens}: raise ctx_tokens, or lower max_chunk_len."
            )
        sources = open_sources(stage.data)
        for name, (shards, _) in sources.items():
            allowed = {target.weights_hash} | ({None} if stage.references else set())
            if shapes.teacher_top_k and shards.teacher not in allowed:
                raise UserError(
                    f"the source {name} stores {'answers of another target' if shards.teacher else 'no teacher'}, this "
                    f"run's target is {target.weights_hash}: generate the data with it, or set teacher_rows (or "
                    "references, to learn reference answers as they stand)."
                )
        maker = ExampleMaker(
            target.tokenizer,
            seed,
            stage.max_chunk_len,
            shapes.max_chunks,
            stage.min_chunk_len,
            chunk_at=stage.chunk_at,
            stored_teacher=shapes.teacher_top_k,
            references=stage.references,
            teacher_prompts=bool(shapes.teacher_rows),
        )
        self._examples = mixture(list(sources.values()), seed).map_with_index(maker)

    def cursor(self) -> jax.ShapeDtypeStruct:
        """Shape of the cursor."""
        shape = (self._layout.packs, 1 + self._stage.window)
        return jax.ShapeDtypeStruct(shape, np.int32, sharding=self._layout.whole())

    def feed(self, first: int, last: int, cursor: np.ndarray | None = None) -> Iterator[Fed]:
        """As many batches, from the beginning or from a whole cursor on."""
        accumulate, packs = self._layout.accumulate, self._layout.packs
        slots = [group * accumulate + a for group in self._layout.local_groups() for a in range(accumulate)]
        stream = PackStream(
            self._examples, slots, packs, lambda: Packer(self._stage.shapes, self._pad), self._stage.window
        )
        with contextlib.closing(stream):
            if cursor is not None:
                stream.set_state(cursor[slots])
            with contextlib.closing(grain.experimental.ThreadPrefetchDatasetIterator(stream, AHEAD)) as ahead:
                for _ in range(first, last):
                    packed = stack_groups(next(ahead), accumulate)
                    yield self._layout.fed(packed, ahead.get_state(), **{"input/left_out": float(stream.left_out)})
