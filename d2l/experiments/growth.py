"""How a train step's cost grows with chips, context length and target size: formulas, checked against counted FLOPs.

Letters as in `Shapes`, for one pack: N rows of S context tokens, K chunks, Q rows of T query tokens, R response tokens.
"""

import dataclasses
import math

from d2l.data.pack import Shapes
from d2l.hypernet.aggregator import MLP_FACTOR
from d2l.hypernet.config import HypernetConfig
from d2l.target.attention import MAX_UNROLLED_BLOCKS, QUERY_BLOCK
from d2l.target.config import TargetConfig
from d2l.train.losses import ROWS


@dataclasses.dataclass(frozen=True)
class Model:
    """A target with its hypernetwork."""

    target: TargetConfig
    hyper: HypernetConfig

    @property
    def block_params(self) -> int:
        """Weights of the matrices of one block."""
        return sum(d_in * d_out for d_in, d_out in self.target.module_sizes.values())

    @property
    def heads_width(self) -> int:
        return self.target.num_attention_heads * self.target.head_dim

    @property
    def features(self) -> int:
        """Features that the aggregator reads, each on its own."""
        return self.hyper.num_layers if self.hyper.per_layer else 1


def attention_flops(model: Model, length: int) -> int:
    """Logits and values of one row through one block; a block of queries meets the keys up to its own end."""
    size = max(QUERY_BLOCK, math.ceil(length / MAX_UNROLLED_BLOCKS))
    ends = [min(start + size, length) for start in range(0, length, size)]
    pairs = sum((end - start) * end for start, end in zip([0, *ends], ends, strict=False))
    return 4 * pairs * model.heads_width


def blocks_flops(model: Model, rows: int, length: int, layers: int, rank: int = 0) -> int:
    """`layers` blocks forward over rows of tokens, with an adapter of `rank` rows a token."""
    sizes = zip(model.hyper.d_in, model.hyper.d_out, strict=True)
    adapter = rank * sum(d_in + d_out for d_in, d_out in sizes)
    return layers * rows * (2 * length * (model.block_params + adapter) + attention_flops(model, length))


def aggregator_flops(model: Model, shapes: Shapes) -> tuple[int, int]:
    """The aggregator forward, and the part of it whose input needs no gradient."""
    h, S, chunks = model.hyper, shapes.ctx_tokens, shapes.row_chunks
    Z, d_q, d_kv = h.latent_size, h.num_heads * h.head_dim, h.num_kv_heads * h.head_dim
    mlp = 3 * MLP_FACTOR * Z * Z
    width = MLP_FACTOR * h.feature_size

    def layer(queries: int, keys: int, pairs: int) -> int:
        return 2 * (queries * (2 * Z * d_q + mlp) + 2 * keys * Z * d_kv + 2 * pairs * d_q)

    outputs = chunks * h.num_modules * h.rank * (1 if h.per_layer else h.num_layers)
    first = 2 * S * 2 * h.feature_size * width
    row = first + 2 * S * width * Z
    if h.aggregator == "perceiver":
        latents = chunks * h.num_latents
        blocks = layer(latents, S, latents * S) + h.num_self_attn_per_block * layer(
            latents, latents, latents * h.num_latents
        )
        row += h.num_blocks * blocks + layer(outputs, latents, outputs * h.num_latents)
    else:
        row += h.num_blocks * layer(outputs, S, outputs * S)
    return model.features * shapes.ctx_rows * row, model.features * shapes.ctx_rows * first


def step_flops(model: Model, shapes: Shapes, packs: int, *, remat: bool, kl: bool) -> dict[str, int]:
    """FLOPs of one train step by part; `recomputed` is what remat adds, all others are model FLOPs."""
    h, t = model.hyper, model.target
    read = {"per_layer_activations": h.num_layers - 1, "early_exit": h.layer_idx, "embed_only": 0}[h.features]
    aggregator, leaf = aggregator_flops(model, shapes)
    rank = shapes.row_contexts * (shapes.max_chunks + h.use_bias) * h.rank
    rows = shapes.chunks * h.num_layers * h.num_modules * h.rank
    head = 2 * rows * h.latent_size * (2 * h.num_pre_head_layers * MLP_FACTOR * h.latent_size + h.d_lora)
    student = blocks_flops(model, shapes.query_rows, shapes.query_tokens, t.num_hidden_layers, rank)
    weights = 2 * shapes.query_rows * shapes.query_tokens * t.num_hidden_layers * model.block_params
    blocks = -(-shapes.responses // ROWS)
    logits = 2 * blocks * -(-shapes.responses // blocks) * t.hidden_size * t.vocab_size
    # The last product of a block is recomputed only where a norm follows it.
    last = 0 if t.sandwich_norms else t.num_hidden_layers * shapes.query_rows * _last_product(model, shapes, rank)
    teacher = blocks_flops(model, shapes.teacher_rows, shapes.teacher_tokens, t.num_hidden_layers)
    parts = {
        "encoder": blocks_flops(model, shapes.ctx_rows, shapes.ctx_tokens, read),
        "hypernetwork": 3 * (aggregator + head) - leaf,
        # Frozen weights have no gradient of their own: a product costs two, not three.
        "student": 3 * student - weights,
        "teacher": teacher + (logits if shapes.teacher_rows else 0),
        # Cross-entropy is reported beside the KL, which alone has a gradient.
        "output head": (3 if kl else 2) * logits,
        "recomputed": (aggregator + student - last if remat else 0) + (logits if blocks > 1 else 0),
    }
    return {name: packs * flops for name, flops in parts.items()}


def _last_product(model: Model, shapes: Shapes, rank: int) -> int:
    """`down_proj` of one block over a query row; of an adapter the step back to the hidden size."""
    d_in, d_out = model.target.module_sizes["down_proj"]
    adapter = rank * d_out if "down_proj" in model.hyper.target_modules else 0
    return 2 * shapes.query_tokens * (d_in * d_out + adapter)
