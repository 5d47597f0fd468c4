"""A task adapter in the manner of Text-to-LoRA (Charakorn et al., 2025): a description's one embedding becomes a LoRA.

A hypernetwork reads the embedding of a text together with learned embeddings of layer and module, and writes A and B.
All of a document has to pass through a single vector, which tells what it is about, and not what it says.

Letters: L layers, M modules, E size of the text's embedding, Z latent.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from d2l.adapter import Adapter
from d2l.errors import UserError
from d2l.experiments.baselines.embedding import target_embedder
from d2l.experiments.baselines.face import Memory, Method, Prompt
from d2l.experiments.baselines.in_context import joined
from d2l.experiments.baselines.weights import load_weights
from d2l.model import DocToLora
from d2l.target.config import TargetConfig


def weight_shapes(config: TargetConfig, modules: Sequence[str], latent: int, rank: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights by name."""
    shapes: dict[str, tuple[int, ...]] = {
        "text.weight": (latent, config.hidden_size),
        "text.bias": (latent,),
        "layer": (config.num_hidden_layers, latent),
        "module": (len(modules), latent),
        "mlp.in.weight": (4 * latent, 2 * latent),
        "mlp.in.bias": (4 * latent,),
        "mlp.out.weight": (latent, 4 * latent),
        "mlp.out.bias": (latent,),
    }
    for name in modules:
        if name not in config.module_sizes:
            raise UserError(f"there is no module {name!r}: give some of {', '.join(config.module_sizes)}.")
        d_in, d_out = config.module_sizes[name]
        shapes |= {f"{name}.A": (rank * d_in, latent), f"{name}.B": (rank * d_out, latent)}
    return shapes


def text_to_lora(
    model: DocToLora,
    max_new_tokens: int,
    *,
    weights: str = "",
    modules: tuple[str, ...] = ("q_proj", "v_proj"),
    latent: int = 512,
    rank: int = 8,
    scale: float = 2.0,
    description: str = "",
) -> Method:
    """A LoRA out of a text's embedding by the target itself.

    Args:
      weights: safetensors file with the weights of `weight_shapes`.
      latent: Z.
      description: of the task; "" takes the documents.
    """
    config = model.target.config
    params = load_weights(weights, weight_shapes(config, modules, latent, rank), "Text-to-LoRA")
    embed = target_embedder(model)

    @jax.jit
    def write(params, text_E):
        text_Z = params["text.weight"] @ text_E + params["text.bias"]
        places_LMZ = params["layer"][:, None, :] + params["module"][None, :, :]
        x_LMZ = jnp.concatenate([places_LMZ, jnp.broadcast_to(text_Z[None, None], places_LMZ.shape)], axis=-1)
        hidden = jax.nn.silu(jnp.einsum("lmi,oi->lmo", x_LMZ, params["mlp.in.weight"]) + _row(params["mlp.in.bias"]))
        out_LMZ = jnp.einsum("lmi,oi->lmo", hidden, params["mlp.out.weight"]) + _row(params["mlp.out.bias"])
        factors = {}
        for m, name in enumerate(modules):
            factors[name] = {
                key: (out_LMZ[:, m] @ params[f"{name}.{key}"].T)
                .reshape(config.num_hidden_layers, 1, rank, -1)
                .astype(model.generator.dtype)
                for key in ("A", "B")
            }
        return factors

    def remember(documents: Sequence[str], queries: Sequence[str]) -> Memory:
        text = description or joined(documents)
        cut = max(0, 1 + len(model.tokenizer.encode(text)) - config.max_position_embeddings)
        factors = write(params, embed(text))
        adapter = Adapter(factors, jnp.array([rank], jnp.int32), scale, model.target.name, model.target.weights_hash)
        return Memory(lambda query: Prompt(model.tokenizer.user_turn(query), cut), adapter=adapter)

    return Method(model, max_new_tokens, remember, adapts=True)


def _row(bias: jax.Array) -> jax.Array:
    return bias[None, None, :]
