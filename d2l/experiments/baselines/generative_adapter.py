"""Streaming memory in the manner of Generative Adapter (Chen et al., 2024).

The document goes by in chunks. For every adapted module a small matrix gathers outer products of two projections of
the layer's inputs, S += (W2 h)(W3 h)^T, so what is kept does not grow with the document. At the end its singular values
are set to 1 and the module computes W x + B S^T (A x).

Letters: L layers, T tokens, D hidden, m and r sizes of S, i and o input and output width of a module.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from d2l.adapter import Adapter
from d2l.errors import UserError
from d2l.experiments.baselines.face import Memory, Method, Prompt
from d2l.experiments.baselines.in_context import joined
from d2l.experiments.baselines.weights import load_weights
from d2l.hypernet.chunk import split_tokens
from d2l.model import DocToLora
from d2l.target.config import TargetConfig
from d2l.target.decoder import abstract_decoder
from d2l.target.generate import bucket


def weight_shapes(config: TargetConfig, modules: Sequence[str], inner: int, rank: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights by name."""
    L, D = config.num_hidden_layers, config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {}
    for name in modules:
        if name not in config.module_sizes:
            raise UserError(f"there is no module {name!r}: give some of {', '.join(config.module_sizes)}.")
        d_in, d_out = config.module_sizes[name]
        sizes = {"norm": (L, D), "A": (L, inner, d_in), "W2": (L, inner, D), "W3": (L, rank, D), "B": (L, d_out, rank)}
        shapes |= {f"{name}.{key}": shape for key, shape in sizes.items()}
    return shapes


def generative_adapter(
    model: DocToLora,
    max_new_tokens: int,
    *,
    weights: str = "",
    modules: tuple[str, ...] = ("o_proj",),
    inner: int = 1024,
    rank: int = 128,
    chunk_tokens: int = 1024,
    scale: float = 1.0,
) -> Method:
    """Adapters out of outer products.

    Args:
      weights: safetensors file with the weights of `weight_shapes`.
      inner, rank: m and r.
      chunk_tokens: tokens that are read at a time.
    """
    config = model.target.config
    loaded = load_weights(weights, weight_shapes(config, modules, inner, rank), "Generative Adapter")
    params = {name: {key: loaded[f"{name}.{key}"] for key in ("norm", "A", "W2", "W3", "B")} for name in modules}
    graphdef = abstract_decoder(config, stacked=False)[0]

    @jax.jit
    def read(target, params, sums, tokens_1T, real_T):
        decoder = nnx.merge(graphdef, target)
        _, _, inputs_L1TD = decoder.run_blocks(decoder.embed(tokens_1T), collect=True)
        x_LTD = inputs_L1TD[:, 0].astype(jnp.float32)
        h_LTD = x_LTD * jax.lax.rsqrt(jnp.mean(jnp.square(x_LTD), axis=-1, keepdims=True) + 1e-6)
        h_LTD = jnp.where(real_T[None, :, None], h_LTD, 0.0)

        def add(sum_Lmr, own):
            normed_LTD = h_LTD * own["norm"][:, None, :]
            keys_LTm = jnp.einsum("ltd,lmd->ltm", normed_LTD, own["W2"])
            return sum_Lmr + jnp.einsum("ltm,ltd,lrd->lmr", keys_LTm, normed_LTD, own["W3"])

        return {name: add(sums[name], own) for name, own in params.items()}

    @jax.jit
    def finish(params, sums):
        factors = {}
        for name, own in params.items():
            U_LmR, _, V_LRr = jnp.linalg.svd(sums[name], full_matrices=False)
            A_LRi = jnp.einsum("lmR,lmi->lRi", U_LmR, own["A"])
            B_LRo = jnp.einsum("lRr,lor->lRo", V_LRr, own["B"])
            factors[name] = {"A": A_LRi[:, None], "B": B_LRo[:, None]}
        return jax.tree.map(lambda a: a.astype(model.generator.dtype), factors)

    def remember(documents: Sequence[str], queries: Sequence[str]) -> Memory:
        sums = {name: jnp.zeros((config.num_hidden_layers, inner, rank)) for name in modules}
        prefix, suffix = model.tokenizer.turn_wrapper
        for part in split_tokens(model.tokenizer.encode(joined(documents)), chunk_tokens):
            ids = [*prefix, *part, *suffix]
            tokens = np.zeros((1, bucket(len(ids), 32)), np.int32)
            tokens[0, : len(ids)] = ids
            sums = read(model.generator.params, params, sums, tokens, np.arange(tokens.shape[1]) < len(ids))
        factors = finish(params, sums)
        ranks = jnp.array([min(inner, rank)], jnp.int32)
        adapter = Adapter(factors, ranks, scale, model.target.name, model.target.weights_hash)
        return Memory(lambda query: Prompt(model.tokenizer.user_turn(query)), adapter=adapter)

    return Method(model, max_new_tokens, remember, adapts=True)
