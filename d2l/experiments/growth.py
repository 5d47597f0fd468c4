"""How a train step's cost grows with chips, context length and target size: formulas, checked against counted FLOPs.

Letters as in `Shapes`, for one pack: N rows of S context tokens, K chunks, Q rows of T query tokens, R response tokens.
"""

import dataclasses
import math

from d2l.data.pack import Shapes
from d2l.errors import UserError
from d2l.hypernet.aggregator import MLP_FACTOR
from d2l.hypernet.config import HypernetConfig
from d2l.target.attention import MAX_UNROLLED_BLOCKS, QUERY_BLOCK
from d2l.target.config import TargetConfig
from d2l.train.chips import Chip
from d2l.train.losses import ROWS
from d2l.train.step import shares_adapter

BF16, F32 = 2, 4  # bytes


@dataclasses.dataclass(frozen=True)
class Model:
    """A target with its hypernetwork."""

    target: TargetConfig
    hyper: HypernetConfig

    def __post_init__(self):
        if self.hyper.copy_size:
            raise UserError(f"copy_size is {self.hyper.copy_size}: these formulas are of hypernetworks without copies.")

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
    shared = shares_adapter(shapes.row_contexts, shapes.chunks, shapes.max_chunks, h.use_bias)
    own = shapes.row_contexts * (shapes.max_chunks + h.use_bias)
    rank = (shapes.chunks + h.use_bias if shared else own) * h.rank
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


@dataclasses.dataclass(frozen=True)
class Cost:
    """One train step on one chip, in seconds at the chip's peaks, and the bytes it holds.

    Attributes:
      compute: products.
      gather: sending parameters to where they are used, and their gradients back, over the group axes.
      exchange: sums over the model axis.
      held: bytes of parameters, optimiser state and the activations of one pack.
    """

    compute: float
    gather: float
    exchange: float
    held: float

    @property
    def bound(self) -> str:
        """What the step takes longest for."""
        return max(("compute", "gather", "exchange"), key=lambda name: getattr(self, name))


def step_cost(
    model: Model, shapes: Shapes, packs: int, chip: Chip, *, shards: int, model_axis: int, params: tuple[int, int]
) -> Cost:
    """Cost of a step with remat, a stored teacher and bfloat16 compute, on `shards * model_axis` chips.

    A transfer runs over all links of a chip in a full torus; a v5e slice smaller than 16x16 has no links around, and
    takes up to twice as long.

    Args:
      shards: parts that the packs are split into.
      params: of the hypernetwork and of the target.
    """
    t, h = model.target, model.hyper
    hyper, target = params
    turns = packs / shards
    links = 2 * chip.torus_axes * chip.link_rate
    blocks = t.num_hidden_layers * model.block_params
    ctx, query = shapes.ctx_rows * shapes.ctx_tokens, shapes.query_rows * shapes.query_tokens

    # Every pass gathers the blocks: encoder, student, student again on the way back. The hypernetwork is gathered once
    # and its gradient summed once, which sends it twice.
    gathered = turns * BF16 * (3 * blocks + 3 * hyper) / model_axis + BF16 * t.vocab_size * t.hidden_size
    # Two sums of a block's output for each token and pass, forward and back; a sum sends what it adds twice.
    summed = turns * 2 * 2 * BF16 * t.hidden_size * t.num_hidden_layers * (ctx + 3 * query)
    summed *= (model_axis - 1) / model_axis

    widths = sum(h.d_in) + sum(h.d_out)
    rank = (shapes.max_chunks + h.use_bias) * h.rank
    adapters = (shapes.contexts + shapes.query_rows * shapes.row_contexts) * rank * h.num_layers * widths
    activations = model.features * ctx * h.feature_size + t.num_hidden_layers * query * t.hidden_size
    held = (4 * F32 * hyper + BF16 * target) / (shards * model_axis)
    held += 2 * BF16 * (hyper + adapters) / model_axis + BF16 * (activations + t.vocab_size * t.hidden_size)
    held += 3 * F32 * min(ROWS, shapes.responses) * t.vocab_size / model_axis
    flops = sum(step_flops(model, shapes, packs, remat=True, kl=True).values())
    return Cost(
        compute=flops / (shards * model_axis) / chip.peak_flops,
        gather=gathered / links if shards > 1 else 0.0,
        exchange=summed / links,
        held=held,
    )
