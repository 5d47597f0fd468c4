"""The adapter: what a document becomes, a LoRA for every target layer and module.

Letters: L layers, C contexts, K chunks of a context, N chunks of all contexts, r rank of one chunk, R = (K + 1) r or
K r composed rank, Q queries, i and o input and output width of a module.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from d2l.errors import UserError
from d2l.files import atomic_folder

Factors = dict[str, dict[str, jax.Array]]
FORMAT = "d2l-adapter-1"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adapter:
    """LoRA weights of C contexts: y = W x + scale * B^T (A x) (SPEC 4).

    Attributes:
      factors: `{module: {"A": [L, C, R, d_in], "B": [L, C, R, d_out]}}`; rows past a context's own rank are zero.
        A memory (`d2l/hypernet/memory.py`) has entries of single layers beside them: `down_proj@22`, where L is 1 and
        R its own.
      ranks: int32 `[C]`, rows that each context really uses.
      scale: s, already multiplied by any user factor.
      target_name, target_hash: the language model that the adapter was made for.
    """

    factors: Factors
    ranks: jax.Array
    scale: float = dataclasses.field(metadata={"static": True})
    target_name: str = dataclasses.field(default="", metadata={"static": True})
    target_hash: str = dataclasses.field(default="", metadata={"static": True})

    @property
    def num_contexts(self) -> int:
        return self.ranks.shape[0]

    @property
    def rank(self) -> int:
        """Padded rank R of the modules, without that of a memory."""
        return next(ab["A"].shape[2] for name, ab in self.factors.items() if "@" not in name)

    @property
    def nbytes(self) -> int:
        """Bytes of all factors, padding included."""
        return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(self.factors))

    def select(self, contexts_Q: jax.Array | np.ndarray) -> "Adapter":
        """The adapters of the given contexts, in that order; a context may serve several queries."""
        index = jnp.asarray(contexts_Q)
        factors = jax.tree.map(lambda a: jnp.take(a, index, axis=1), self.factors)
        return dataclasses.replace(self, factors=factors, ranks=jnp.take(self.ranks, index))

    def scaled(self, factor: float) -> "Adapter":
        """The same adapter, `factor` times as strong; 0 gives the target back."""
        return dataclasses.replace(self, scale=self.scale * factor)

    def for_decoder(self, dtype: jnp.dtype | None = None) -> Factors:
        """The form that the decoder takes: B multiplied by the scale."""
        factors = scaled(self.factors, self.scale)
        return factors if dtype is None else jax.tree.map(lambda a: a.astype(dtype), factors)

    def save(self, folder: str | pathlib.Path) -> None:
        """Write `adapter.safetensors` and `adapter.json`; an interrupted save leaves an earlier one whole."""
        tensors = {f"{name}.{key}": np.asarray(a) for name, ab in self.factors.items() for key, a in ab.items()}
        description = {
            "format": FORMAT,
            "target": {"name": self.target_name, "weights_hash": self.target_hash},
            "scale": self.scale,
            "ranks": np.asarray(self.ranks).tolist(),
        }
        with atomic_folder(folder) as new:
            safetensors.numpy.save_file(tensors, new / "adapter.safetensors")
            (new / "adapter.json").write_text(json.dumps(description, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | pathlib.Path, *, target_hash: str | None = None) -> "Adapter":
        """Read what `save` wrote.

        Args:
          target_hash: hash of the weights that the adapter is to be used with; None skips the comparison.

        Raises:
          UserError: files missing, damaged or of another kind, or an adapter made for another target.
        """
        folder = pathlib.Path(folder)
        try:
            description = json.loads((folder / "adapter.json").read_text())
            tensors = safetensors.numpy.load_file(folder / "adapter.safetensors")
        except FileNotFoundError as error:
            raise UserError(
                f"{folder} holds no adapter ({pathlib.Path(error.filename or folder).name} is missing): give a folder "
                "that `d2l internalize --out` wrote."
            ) from error
        except (ValueError, safetensors.SafetensorError) as error:
            raise UserError(f"the adapter in {folder} is damaged ({error}): make it again.") from error
        if not isinstance(description, dict) or description.get("format") != FORMAT:
            raise UserError(f"{folder}/adapter.json is not of format {FORMAT}: make the adapter again.")
        try:
            target, scale = description["target"], float(description["scale"])
            ranks = jnp.asarray(description["ranks"], jnp.int32)
            target_name, weights_hash = target["name"], target["weights_hash"]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{folder}/adapter.json is damaged ({error!r}): make the adapter again.") from error
        if target_hash is not None and weights_hash != target_hash:
            raise UserError(
                f"the adapter in {folder} was made for {target_name} (weights {weights_hash[:12]}), the "
                f"loaded target has weights {target_hash[:12]}: load that target or internalize the document again."
            )
        factors: Factors = {}
        for key, array in sorted(tensors.items()):
            name, _, kind = key.rpartition(".")
            factors.setdefault(name, {})[kind] = jnp.asarray(array)
        if not factors or any(set(ab) != {"A", "B"} for ab in factors.values()):
            raise UserError(f"the adapter in {folder} lacks A or B factors: make it again.")
        if not all(jnp.isfinite(a).all() for a in jax.tree.leaves(factors)):
            raise UserError(f"the adapter in {folder} holds NaN or infinity: make it again.")
        return cls(factors, ranks, scale, target_name, weights_hash)


def scaled(factors: Factors, scale: float) -> Factors:
    """The same factors with B multiplied by a scale."""
    return {name: ab | {"B": ab["B"] * scale} for name, ab in factors.items()}


def compose(
    chunks: Factors,
    context_N: jax.Array,
    slot_N: jax.Array,
    *,
    num_contexts: int,
    max_chunks: int,
    bias: Factors | None,
) -> tuple[Factors, jax.Array]:
    """Concatenate the chunks of each context along the rank, then append the learned bias once (SPEC 4).

    Args:
      chunks: `{module: {"A": [N, L, r, d_in], "B": [N, L, r, d_out]}}`.
      context_N: int32, the context of each chunk; negative for padding chunks, which vanish.
      slot_N: int32, the place of each chunk in its context, 0..K-1.
      bias: `{module: {"A": [L, r, d_in], "B": [L, r, d_out]}}` or None.

    Returns:
      Factors `[L, C, R, d]` with R = (max_chunks + 1) r (without bias max_chunks r), and the ranks `[C]` in use.
    """

    def empty(a_NLrd: jax.Array, slots: int) -> jax.Array:
        _, L, r, d = a_NLrd.shape
        return jnp.zeros((L, num_contexts, slots * r, d), a_NLrd.dtype)

    buffer = {
        name: {key: empty(a, max_chunks + has_bias(name, bias)) for key, a in ab.items()} for name, ab in chunks.items()
    }
    factors = place(buffer, chunks, context_N, slot_N)
    kept_N = jnp.where(context_N < 0, num_contexts, context_N)  # past the end: dropped
    counts_C = jnp.zeros(num_contexts, jnp.int32).at[kept_N].add(1, mode="drop")
    if bias is not None:
        factors = place_bias(factors, bias, counts_C)
    return factors, (counts_C + int(bias is not None)) * next(iter(chunks.values()))["A"].shape[2]


def has_bias(name: str, bias: Mapping[str, Any] | None) -> int:
    """1 where factors of this name have room for a learned bias, else 0."""
    return int(bias is not None and name in bias)


def place(buffer: Factors, chunks: Factors, context_N: jax.Array, slot_N: jax.Array) -> Factors:
    """Write chunks `[N, L, r, d]` into rows slot * r .. slot * r + r - 1 of their contexts in `[L, C, R, d]`.

    Chunks of a negative context are dropped; no two others may share context and slot.
    """

    def write(buffer_LCRd, chunk_NLrd):
        C, r = buffer_LCRd.shape[1], chunk_NLrd.shape[2]
        rows_Nr = slot_N[:, None] * r + jnp.arange(r)[None, :]
        # Dropped ones past the end, each at a place of its own: unless all are unique, JAX differentiates through an
        # integer array of the buffer's shape, which says who wrote last.
        index_N = jnp.where(context_N < 0, C + jnp.arange(len(context_N)), context_N)
        chunk_LNrd = jnp.swapaxes(chunk_NLrd, 0, 1).astype(buffer_LCRd.dtype)
        place = buffer_LCRd.at[:, index_N[:, None], rows_Nr]
        return place.set(chunk_LNrd, mode="drop", unique_indices=True)

    return jax.tree.map(write, buffer, chunks)


def loudness(chunks: Factors) -> jax.Array:
    """How much chunks `[..., L, r, d]` change the target: ||B^T A||_F over layers and modules, float32 `[...]`."""

    def squared(ab: dict[str, jax.Array]) -> jax.Array:
        gram = (jnp.einsum("...ri,...si->...rs", a, a, preferred_element_type=jnp.float32) for a in ab.values())
        return jnp.sum(jnp.multiply(*gram), axis=(-3, -2, -1))  # ||B^T A||^2 = <A A^T, B B^T>

    return jnp.sqrt(jnp.maximum(sum(map(squared, chunks.values())), 0.0))


def keep_loudest(buffer: Factors, chunks: Factors, context_N: jax.Array) -> Factors:
    """The loudest chunks of each context, of those in `[L, C, S r, d]` and new ones `[N, L, r, d]`; the loudest first.

    Args:
      context_N: int32, the context of each new chunk; those of a negative one are dropped.

    Returns:
      Factors of the shapes and dtypes of `buffer`, whose free places are zeros, the last of all.
    """
    r = next(iter(chunks.values()))["A"].shape[2]
    old = jax.tree.map(lambda a: jnp.moveaxis(a.reshape(*a.shape[:2], -1, r, a.shape[3]), 0, 2), buffer)
    new = jax.tree.map(lambda a, b: a.astype(b.dtype), chunks, buffer)
    old_CS, new_N = loudness(old), loudness(new)
    C, S = old_CS.shape
    new_CN = jnp.where(context_N[None] == jnp.arange(C)[:, None], new_N[None], -1.0)
    _, pick_CS = jax.lax.top_k(jnp.concatenate([old_CS, new_CN], axis=1), S)
    from_old_CS111 = (pick_CS < S)[..., None, None, None]

    def pick(buffer_LCRd, old_CSLrd, new_NLrd):
        kept = jnp.take_along_axis(old_CSLrd, jnp.minimum(pick_CS, S - 1)[..., None, None, None], axis=1)
        come = jnp.take(new_NLrd, jnp.maximum(pick_CS - S, 0), axis=0)
        return jnp.moveaxis(jnp.where(from_old_CS111, kept, come), 2, 0).reshape(buffer_LCRd.shape)

    return jax.tree.map(pick, buffer, old, new)


def place_bias(buffer: Factors, bias: Factors, counts_C: jax.Array) -> Factors:
    """Append the learned bias `[L, r, d]` to every context, after its `counts_C` chunks."""
    C = counts_C.shape[0]
    with_bias = {name: buffer[name] for name in bias}
    copies = jax.tree.map(lambda a: jnp.broadcast_to(a[None], (C, *a.shape)), bias)
    return buffer | place(with_bias, copies, jnp.arange(C), counts_C)


def merge(params: dict, adapter: Adapter, context: int = 0) -> dict:
    """Stacked target parameters with W + s B^T A in place of W for one context; float32 sums, the dtype of W."""
    layers = {name: dict(value) if isinstance(value, dict) else value for name, value in params["layers"].items()}
    for name, ab in adapter.factors.items():
        name, _, layer = name.partition("@")
        group = layers["self_attn"] if name in layers["self_attn"] else layers["mlp"]
        delta_Loi = adapter.scale * jnp.einsum("lro,lri->loi", ab["B"][:, context], ab["A"][:, context])
        wide = group[name].astype(jnp.float32)
        wide = wide.at[int(layer)].add(delta_Loi[0]) if layer else wide + delta_Loi.astype(jnp.float32)
        group[name] = wide.astype(group[name].dtype)
    return params | {"layers": layers}
