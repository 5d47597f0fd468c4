"""Shape and options of a hypernetwork: everything that its weights alone do not tell."""

import dataclasses

from d2l.errors import UserError

FEATURES = ("per_layer_activations", "early_exit", "embed_only")
AGGREGATORS = ("perceiver", "direct")
MEMORY_MODULE = "down_proj"  # whose inputs are the keys of a memory


@dataclasses.dataclass(frozen=True)
class HypernetConfig:
    """Hypernetwork of Doc-to-LoRA (paper section 3 and appendix; defaults are those of the main experiment).

    Attributes:
      target_modules: linear layers of the target that get an adapter, sorted by name.
      d_in, d_out: input and output width of each target module, in the order of `target_modules`.
      num_layers: layers L of the target.
      rank: rank r of one chunk's adapter.
      scale: s of y = W x + s B^T (A x); the release uses 2 r^1.5.
      features: what is read from the context encoder, one of `FEATURES`.
      layer_idx: blocks run by `early_exit`.
      ctx_encoder_last_layer: `per_layer_activations` reads the first `ctx_encoder_last_layer - 1` blocks; None: all
        but the last.
      feature_size: hidden size of the context encoder, which may be another model than the target.
      latent_size: Z, width of the hypernetwork.
      aggregator: `perceiver` (latents between features and output queries) or `direct` (output queries attend to the
        features themselves, in `num_blocks` layers).
      num_latents: N learned latents of `perceiver`.
      num_blocks: cross-attention layers of the encoder (`perceiver`) or of the whole aggregator (`direct`).
      num_self_attn_per_block: self-attention layers after each cross-attention layer.
      shared_weights: every block after the first uses one set of weights, and all blocks one set of self-attention
        weights.
      num_heads, num_kv_heads, head_dim: attention of the aggregator.
      num_pre_head_layers: residual MLPs between aggregator and head.
      per_layer_processing: those MLPs have weights of their own for every target layer.
      use_bias: a learned adapter, the same for all documents, is appended once.
      scaler_b_init: initial `scaler_B`; 0 in the paper, 0.01 lets gradients into the aggregator from step 0.
      row_gate: every B row is multiplied by a number in (0, 1) that its embedding decides, so that a chunk without
        anything to say can be silent; not in the paper, whose rows all have about the same length.
      copy_size: width of the pointers by which every row also copies from the document (`copies`); 0 has none, as in
        the paper.
      memory_layers: layers that also get a row for every token of the document (`memory`); none in the paper.
      memory_tokens: rows of a chunk in each of these, so the most tokens of a chunk in its chat turn.
      memory_strength, memory_ridge: where a memory's strength (of the residual stream's length) and ridge begin.
      memory_size: width of the translation between keys in the document and in answers; 0 has none, better beside
        `memory_noise` (`docs/memory.md`).
      memory_noise: directions in which a key differs between document and answer (`noise_maps`), which the regression
        counts for less; training begins with measuring them.
      memory_value_map: what a memory says passes through a learned matrix; a layer far below the head, where the
        direction of a word means that it was read, does not say it without (`docs/memory.md`).
      memory_skip_first: rows do not answer to the first token of a text, the attention sink, which is many times longer
        than others and the same in every prompt; keys never have a part along it, but weights and noise maps add one.
      turn_tokens: tokens of the chat turn before and after a document, which a memory says nothing of.
      relevance: which chunks of a document stay is told by a learned direction in the features (`relevance`) instead of
        by how loud they are.
    """

    target_modules: tuple[str, ...]
    d_in: tuple[int, ...]
    d_out: tuple[int, ...]
    num_layers: int
    feature_size: int
    rank: int = 8
    scale: float = 2 * 8**1.5
    features: str = "per_layer_activations"
    layer_idx: int | None = None
    ctx_encoder_last_layer: int | None = None
    latent_size: int = 512
    aggregator: str = "perceiver"
    num_latents: int = 8
    num_blocks: int = 8
    num_self_attn_per_block: int = 0
    shared_weights: bool = False
    num_heads: int = 16
    num_kv_heads: int = 4
    head_dim: int = 128
    num_pre_head_layers: int = 1
    per_layer_processing: bool = True
    use_bias: bool = True
    scaler_b_init: float = 0.0
    row_gate: bool = False
    copy_size: int = 0
    memory_layers: tuple[int, ...] = ()
    memory_tokens: int = 0
    memory_size: int = 32
    memory_strength: float = 0.2
    memory_ridge: float = 0.1
    memory_noise: int = 0
    memory_value_map: bool = False
    memory_skip_first: bool = False
    turn_tokens: tuple[int, int] = (0, 0)
    relevance: bool = False

    def __post_init__(self):
        if self.features not in FEATURES:
            raise UserError(f"features is {self.features!r}: give one of {', '.join(FEATURES)}.")
        if self.aggregator not in AGGREGATORS:
            raise UserError(f"aggregator is {self.aggregator!r}: give one of {', '.join(AGGREGATORS)}.")
        if self.target_modules != tuple(sorted(self.target_modules)) or not self.target_modules:
            raise UserError(f"target_modules is {self.target_modules}: give at least one, sorted by name.")
        if self.features == "early_exit" and self.layer_idx is None:
            raise UserError("features is early_exit without layer_idx: say how many blocks the encoder runs.")
        if self.copy_size and (self.features != "early_exit" or set(self.d_out) != {self.feature_size}):
            raise UserError(
                f"copy_size is {self.copy_size} with features {self.features} and target_modules "
                f"{', '.join(self.target_modules)}: it needs early_exit, and modules that write to the residual stream "
                "(down_proj, o_proj)."
            )
        if self.memory_layers:
            self._check_memory()

    def _check_memory(self) -> None:
        if self.features != "early_exit" or MEMORY_MODULE not in self.target_modules:
            raise UserError(
                f"memory_layers is {self.memory_layers} with features {self.features} and target_modules "
                f"{', '.join(self.target_modules)}: it needs early_exit and {MEMORY_MODULE}."
            )
        if sorted(set(self.memory_layers)) != list(self.memory_layers) or not (
            0 <= self.memory_layers[0] and self.memory_layers[-1] < self.num_layers
        ):
            raise UserError(
                f"memory_layers is {self.memory_layers}: give layers of the target, ascending, 0 to "
                f"{self.num_layers - 1}."
            )
        widest = dict(zip(self.target_modules, self.d_in, strict=True))[MEMORY_MODULE]
        if not 0 <= self.memory_noise < widest:
            raise UserError(
                f"memory_noise is {self.memory_noise}: give fewer directions than an input of {MEMORY_MODULE} has "
                f"numbers, {widest}."
            )
        if self.memory_tokens <= sum(self.turn_tokens):
            raise UserError(
                f"memory_tokens is {self.memory_tokens}, the chat turn alone has {sum(self.turn_tokens)}: give the "
                "most tokens of a chunk in its turn."
            )

    @property
    def num_modules(self) -> int:
        return len(self.target_modules)

    @property
    def per_layer(self) -> bool:
        """True if the encoder yields one feature per target layer."""
        return self.features == "per_layer_activations"

    @property
    def d_lora(self) -> int:
        """Width of the head: the widest module's A row and B row, end to end."""
        return max(i + o for i, o in zip(self.d_in, self.d_out, strict=True))
