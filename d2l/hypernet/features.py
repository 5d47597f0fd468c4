"""What the hypernetwork reads: activations of a frozen context encoder (SPEC 2)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from d2l import mesh
from d2l.errors import UserError
from d2l.hypernet.config import MEMORY_MODULE, HypernetConfig
from d2l.hypernet.copies import unit_rms
from d2l.target.config import TargetConfig
from d2l.target.decoder import Decoder


def check_encoder(config: HypernetConfig, encoder: TargetConfig) -> None:
    """Raise a `UserError` where the context encoder cannot yield the features that the hypernetwork reads."""
    if encoder.hidden_size != config.feature_size:
        raise UserError(
            f"the context encoder has hidden size {encoder.hidden_size}, the hypernetwork reads features of width "
            f"{config.feature_size}: load the encoder it was trained with."
        )
    layers = encoder.num_hidden_layers
    if config.per_layer and (config.ctx_encoder_last_layer or layers) != config.num_layers:
        raise UserError(
            f"the context encoder yields {config.ctx_encoder_last_layer or layers} per-layer features, the "
            f"hypernetwork writes adapters for {config.num_layers} layers: set ctx_encoder_last_layer to that."
        )
    needed = config.layer_idx if config.features == "early_exit" else (config.ctx_encoder_last_layer or 0)
    if needed > layers:
        raise UserError(f"features of layer {needed} were asked for, the context encoder has {layers} layers.")


def check_turn(config: HypernetConfig, turn: tuple[Sequence[int], Sequence[int]], max_chunk_len: int) -> None:
    """Raise a `UserError` where a memory was made for another chat turn, or has no room for chunks.

    Args:
      turn: token ids of the chat turn before and after a document.
    """
    if not config.memory_layers:
        return
    given = tuple(map(len, turn))
    if given != config.turn_tokens:
        raise UserError(
            f"turn_tokens of the hypernetwork is {config.turn_tokens}, the encoder's chat turn has {given} tokens "
            "before and after a document: set it to that."
        )
    if max_chunk_len + sum(given) > config.memory_tokens:
        raise UserError(
            f"chunks of {max_chunk_len} tokens and {sum(given)} of their chat turn do not fit into a memory of "
            f"{config.memory_tokens}: raise memory_tokens, or lower max_chunk_len."
        )


def context_features(
    encoder: Decoder,
    config: HypernetConfig,
    tokens_NT: jax.Array,
    *,
    positions_NT: jax.Array | None = None,
    segments_NT: jax.Array | None = None,
) -> jax.Array:
    """Features of chunks, one or several packed in each row, without a gradient.

    `per_layer_activations`: `[N, L, T, F]`, the input of each of L blocks, where the last has passed the final norm
    instead of a block's input norm; the L-th block never runs. `early_exit`: `[N, T, F]`, the output of the first
    `layer_idx` blocks after the final norm. `embed_only`: `[N, T, F]`, the embedding output.

    Args:
      positions_NT, segments_NT: as in `Decoder.run_blocks`. Without them a row is one chunk padded on the right: the
        encoder is causal, so real tokens never see the padding.
    """
    place = {"positions_BT": positions_NT, "segments_BT": segments_NT}
    x_NTF = encoder.embed(tokens_NT)
    if config.features == "early_exit":
        x_NTF, _, _ = encoder.run_blocks(x_NTF, num_layers=config.layer_idx, **place)
        x_NTF = encoder.final_norm(x_NTF)
    elif config.per_layer:
        last, _, inputs_LNTF = encoder.run_blocks(x_NTF, num_layers=config.num_layers - 1, collect=True, **place)
        x_NTF = jnp.concatenate([jnp.swapaxes(inputs_LNTF, 0, 1), encoder.final_norm(last)[:, None]], axis=1)
    return jax.lax.stop_gradient(x_NTF)


def read_context(
    encoder: Decoder,
    config: HypernetConfig,
    tokens_NT: jax.Array,
    *,
    positions_NT: jax.Array | None = None,
    segments_NT: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, Any] | None]:
    """What a hypernetwork reads of chunks, without a gradient.

    Args:
      positions_NT, segments_NT: as in `context_features`.

    Returns:
      The features (`context_features`), and with `copy_size` what rows are copied from, each vector with a root mean
      square of 1: `tokens`, the embeddings `[N, T, D]`, and `inputs`, those of each target module at every token
      `{module: [L, N, T, d_in]}`. With `memory_layers` also `memory`: `inputs` `[n, N, T, i]` of `down_proj` and
      `stream` `[n, N, T, D]` of the block in these layers, and `words` `[N, T, D]`, unit vectors along which the
      head tells each token from all others.
    """
    if not (config.copy_size or config.memory_layers):
        place = {"positions_NT": positions_NT, "segments_NT": segments_NT}
        return context_features(encoder, config, tokens_NT, **place), None
    embedded_NTD = encoder.embed(tokens_NT)
    count = config.num_layers if config.copy_size else max(config.layer_idx, 1 + config.memory_layers[-1])
    last_NTD, _, inputs = encoder.run_blocks(
        embedded_NTD,
        positions_BT=positions_NT,
        segments_BT=segments_NT,
        num_layers=count,
        collect=("block", *config.target_modules),
    )
    x_NTF = last_NTD if config.layer_idx == count else inputs["block"][config.layer_idx]
    sources: dict[str, Any] = {}
    if config.copy_size:
        sources["tokens"] = unit_rms(embedded_NTD)
        sources["inputs"] = {name: unit_rms(mesh.reshard(inputs[name], *[None] * 4)) for name in config.target_modules}
    if config.memory_layers:
        layers = list(config.memory_layers)
        sources["memory"] = {
            "inputs": jnp.stack([inputs[MEMORY_MODULE][layer] for layer in layers]),
            "stream": jnp.stack([inputs["block"][layer] for layer in layers]),
            "words": encoder.word_directions(tokens_NT),
        }
    return jax.lax.stop_gradient((encoder.final_norm(x_NTF), sources))
