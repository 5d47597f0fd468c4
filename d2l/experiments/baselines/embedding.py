"""Retrieval by an embedding model: the target's own hidden states, or a model of sentence-transformers."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from d2l.errors import UserError
from d2l.experiments.baselines.face import Method, NotRun
from d2l.experiments.baselines.retrieval import Ranker, retrieval
from d2l.model import DocToLora
from d2l.target.decoder import abstract_decoder
from d2l.target.generate import bucket

EMBEDDERS = ("target", "sentence-transformers")


def target_embedder(model: DocToLora) -> Callable[[str], np.ndarray]:
    """Mean of the target's last hidden states over a text's tokens that its window holds, unit float32 `[D]`."""
    graphdef = abstract_decoder(model.target.config, stacked=False)[0]
    most = model.target.config.max_position_embeddings

    @jax.jit
    def embed(params, tokens_1T, length):
        decoder = nnx.merge(graphdef, params)
        x_1TD, _, _ = decoder.run_blocks(decoder.embed(tokens_1T))
        x_TD = decoder.final_norm(x_1TD)[0].astype(jnp.float32)
        # The first token is an attention sink, the same for every text.
        real_T = (jnp.arange(x_TD.shape[0]) > 0) & (jnp.arange(x_TD.shape[0]) < length)
        sum_D = jnp.sum(jnp.where(real_T[:, None], x_TD, 0.0), axis=0)
        return sum_D / jnp.linalg.norm(sum_D)

    first = model.tokenizer.pad_id if model.tokenizer.bos_id is None else model.tokenizer.bos_id

    def run(text: str) -> np.ndarray:
        ids = [first, *model.tokenizer.encode(text)][:most]
        tokens = np.zeros((1, bucket(len(ids), 32)), np.int32)
        tokens[0, : len(ids)] = ids
        return np.asarray(embed(model.generator.params, tokens, len(ids)))

    return run


def sentence_embedder(name: str) -> Callable[[str], np.ndarray]:
    """A model of the package sentence-transformers, unit float32 `[D]`."""
    try:
        import sentence_transformers
    except ImportError as error:
        raise NotRun("it needs the package sentence-transformers: pip install 'd2l[embedding]'.") from error
    try:
        loaded = sentence_transformers.SentenceTransformer(name)
    except OSError as error:
        raise NotRun(f"the weights of {name} cannot be had: give the folder of a model as `weights`.") from error
    return lambda text: loaded.encode(text, normalize_embeddings=True)


def embedding_ranker(embed: Callable[[str], np.ndarray], texts: Sequence[str]) -> Ranker:
    """Cosines of all texts with a query, each text against the mean of all: what all have in common tells nothing."""
    vectors = np.stack([embed(text) for text in texts])
    centre = vectors.mean(axis=0) if len(texts) > 1 else np.zeros_like(vectors[0])
    vectors = vectors - centre
    norms = np.linalg.norm(vectors, axis=1)

    def scores(query: str) -> np.ndarray:
        return (vectors @ (embed(query) - centre)) / np.maximum(norms, 1e-9)

    return scores


def embedding(
    model: DocToLora,
    max_new_tokens: int,
    *,
    count: int = 3,
    passage_tokens: int = 64,
    embedder: str = "target",
    weights: str = "sentence-transformers/all-MiniLM-L6-v2",
) -> Method:
    """As `bm25`, by cosine of embeddings.

    Args:
      embedder: `target` or `sentence-transformers`.
      weights: which model of sentence-transformers.
    """
    if embedder not in EMBEDDERS:
        raise UserError(f"there is no embedder {embedder!r}: give one of {', '.join(EMBEDDERS)}.")
    embed = target_embedder(model) if embedder == "target" else sentence_embedder(weights)
    return retrieval(model, max_new_tokens, lambda texts: embedding_ranker(embed, texts), count, passage_tokens)
