"""Logits of given responses under a memory, for the KL to another memory.

Letters: R response tokens, T prompt and response tokens, V vocabulary, D hidden.
"""

from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx

from d2l.experiments.baselines.face import Memory
from d2l.experiments.baselines.kv_cache import laid_out
from d2l.model import DocToLora
from d2l.target.decoder import abstract_decoder
from d2l.target.factors import adapter_layers
from d2l.target.generate import bucket


class Forced:
    """The target made to give responses; one compiled function per length bucket."""

    def __init__(self, model: DocToLora):
        self.model = model
        graphdef = abstract_decoder(model.target.config, stacked=False)[0]
        layers = model.target.config.num_hidden_layers

        def logits(params, cache, tokens_1T, positions_1T, index_R, factors):
            decoder = nnx.merge(graphdef, params)
            per_layer = factors and adapter_layers(factors, layers)
            x_1TD, _, _ = decoder.run_blocks(
                decoder.embed(tokens_1T), positions_BT=positions_1T, cache=cache, adapter=per_layer
            )
            return decoder.unembed(decoder.final_norm(x_1TD[:, index_R])[0])

        self._logits = jax.jit(logits)

    def logits(self, memory: Memory, query: str, response: Sequence[int]) -> jax.Array:
        """Logits float32 `[R, V]` at every token of a response of R tokens to a question."""
        prompt = memory.prompt(query).ids
        tokens, positions = laid_out([*prompt, *response[:-1]], memory.cache)
        first, R = len(prompt) - 1, len(response)
        index_R = np.minimum(first + np.arange(bucket(R, 8), dtype=np.int32), first + R - 1)
        generator = self.model.generator
        factors = None if memory.adapter is None else memory.adapter.for_decoder(generator.dtype)
        cache = None if memory.cache is None else memory.cache.with_room(tokens.shape[1])
        return self._logits(generator.params, cache, tokens, positions, index_R, factors)[:R]
