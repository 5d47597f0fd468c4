"""Training a small target from nothing, so that it retrieves needles in context.

Letters: Q prompts, T tokens, R response tokens, D hidden.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import nnx

from d2l.data.batch import Batch, NeedleBatches
from d2l.data.niah import NEEDLE, NOISE, QUESTION
from d2l.target.config import TargetConfig
from d2l.target.decoder import Decoder, abstract_decoder
from d2l.target.tokenizer import Tokenizer
from d2l.target.weights import save_target
from d2l.train import losses
from d2l.train.checkpoint import Checkpoints
from d2l.train.loop import needle_stage, read_stages
from d2l.train.optimizer import OptimizerConfig, make_optimizer, stage_schedule
from d2l.train.run import Update, run
from d2l.train.step import State, init_state

INIT_STD = 0.02  # of `init_target`
EMBED_STD = 0.09


def train_target(config: ml_collections.ConfigDict, workdir: str | pathlib.Path) -> dict[str, float]:
    """Train tokenizer and target as the config says and write them to `workdir/target`, a Hugging Face folder.

    Resumes and stops as `d2l.train.loop.train` does; raises the same errors.
    """
    workdir = pathlib.Path(workdir)
    fields = config.to_dict()
    stages = read_stages(fields)
    total = sum(stage["steps"] for stage in stages)
    checkpoints = Checkpoints(workdir, fields, every=fields["checkpoint_every"], keep=fields["keep"])

    # ---------------------------------------------------------------- tokenizer, decoder, optimiser
    tokenizer = Tokenizer.train(_texts(), fields["vocab_size"])
    target = _config(fields["model"], tokenizer)
    params = widen(init_target(target, fields["seed"]))
    schedule = stage_schedule(stages)
    optimizer = make_optimizer(OptimizerConfig(**fields["optimizer"]), schedule, params)
    state, done = checkpoints.restore(init_state(params, optimizer))

    # ---------------------------------------------------------------- data: batch i is a pure function of seed and i
    def updates() -> Iterator[tuple[Update, Any]]:
        first = 0
        update = make_update(target, optimizer, fields["lm_weight"], fields["dtype"], fields["seed"])
        for stage in stages:
            last = first + stage["steps"]
            if done < last:
                data = NeedleBatches(needle_stage(stage, teacher=True), tokenizer, fields["seed"])
                for batch in data.iterate(max(first, done), last):
                    yield update, batch
            first = last

    # ---------------------------------------------------------------- loop, and the product
    state, reached, metrics = run(workdir, state, updates(), checkpoints, done=done, total=total, schedule=schedule)
    if reached == total:
        save_target(workdir / "target", target, state["params"], tokenizer)
    return metrics


def init_target(config: TargetConfig, seed: int) -> Any:
    """Float32 parameters of a fresh decoder, a pure function of config and seed."""

    def init(key):
        return nnx.to_pure_dict(nnx.state(Decoder(config, nnx.Rngs(params=key))))

    return jax.jit(init)(jax.random.key(seed))


def widen(params: Any) -> Any:
    """The same random matrices with variance 1 / fan-in, half that deviation where they write to the residual stream.

    The usual deviation of 0.02 is that of wide models; at width 128 it makes the start several times as slow.
    """

    def scale(path, leaf):
        name = str(path[-1].key)
        if name == "embed_tokens":
            return leaf * (EMBED_STD / INIT_STD)
        if leaf.ndim < 3:
            return leaf
        half = 0.5 if name in ("o_proj", "down_proj") else 1.0
        return leaf * (half * leaf.shape[-1] ** -0.5 / INIT_STD)

    return jax.tree_util.tree_map_with_path(scale, params)


def spread(key: jax.Array, count_Q: jax.Array, answer_Q: jax.Array, length: int, window: int) -> jax.Array:
    """Positions int32 `[Q, length]` of prompts of `count_Q` tokens that jump once before the answer.

    Where and how far is random, the last position staying in the window. So short prompts, which cost little, teach
    the target to look back over any distance.
    """
    where, far = jax.random.uniform(key, (2, *count_Q.shape))
    jump_Q = (far * (window - count_Q + 1)).astype(jnp.int32)
    index_1T = jnp.arange(length)[None, :]
    return index_1T + jnp.where(index_1T >= (where * answer_Q).astype(jnp.int32)[:, None], jump_Q[:, None], 0)


def make_update(
    target: TargetConfig, optimizer: optax.GradientTransformation, lm_weight: float, dtype: str, seed: int
) -> Update:
    """The jitted `(state, batch) -> (state, metrics)`.

    The loss is the cross-entropy of the answer after document and question, plus `lm_weight` times that of every token
    of those prompts, plus `lm_weight` times that of the answer to the question alone, which teaches the form of an
    answer that cannot be known.
    """

    def loss_fn(params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        cast = jax.tree.map(lambda a: a.astype(jnp.dtype(dtype)), params)
        decoder = nnx.merge(abstract_decoder(target)[0], cast)
        mask_QR = batch["response_mask"]

        def hidden(tokens_QT, positions_QT=None):
            return decoder.final_norm(decoder.run_blocks(decoder.embed(tokens_QT), positions_BT=positions_QT)[0])

        def answer(x_QTD, index_QR):
            x_QRD = jnp.take_along_axis(x_QTD, index_QR[:, :, None], axis=1)
            ce_N, hit_N = losses.cross_entropy(
                decoder.unembed, x_QRD.reshape(-1, x_QRD.shape[-1]), batch["response_tokens"].reshape(-1)
            )
            exact = jnp.mean(jnp.all((hit_N.reshape(mask_QR.shape) > 0) | ~mask_QR, axis=1).astype(jnp.float32))
            return jnp.sum(ce_N * mask_QR.reshape(-1)) / jnp.sum(mask_QR), exact

        tokens_QT, index_QR = batch["teacher_tokens"], batch["teacher_index"]
        count_Q = index_QR.max(axis=1) + 1
        positions_QT = spread(key, count_Q, index_QR[:, 0], tokens_QT.shape[1], target.max_position_embeddings)
        x_QTD = hidden(tokens_QT, positions_QT)
        ce, exact = answer(x_QTD, index_QR)
        logits_QTV = decoder.unembed(x_QTD[:, :-1])
        next_QT = tokens_QT[:, 1:]
        # Padding stands on the right; the first of it is not predicted either.
        real_QT = (jnp.arange(1, next_QT.shape[1] + 1)[None, :] < count_Q[:, None]).astype(jnp.float32)
        lm_QT = optax.softmax_cross_entropy_with_integer_labels(logits_QTV, next_QT)
        lm = jnp.sum(lm_QT * real_QT) / jnp.sum(real_QT)
        alone, _ = answer(hidden(batch["query_tokens"]), batch["response_index"])
        loss = ce + lm_weight * (lm + alone)
        return loss, {"loss": loss, "ce": ce, "lm": lm, "exact": exact}

    def update(state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state["step"])
        (_, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state["params"], batch, key)
        updates, opt_state = optimizer.update(grads, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "opt_state": opt_state, "step": state["step"] + 1}, metrics

    return jax.jit(update, donate_argnums=0)


def _texts() -> list[str]:
    """What the tokenizer learns its words from."""
    return [*NOISE, " ".join(NOISE), NEEDLE.format("0123456789"), QUESTION, "system\nuser\nassistant\n"] * 2


def _config(fields: dict[str, Any], tokenizer: Tokenizer) -> TargetConfig:
    """A Llama of the config's sizes."""
    return TargetConfig(
        model_type="llama",
        vocab_size=tokenizer.vocab_size,
        num_key_value_heads=fields["num_attention_heads"],
        head_dim=fields["hidden_size"] // fields["num_attention_heads"],
        query_pre_attn_scalar=fields["hidden_size"] // fields["num_attention_heads"],
        rms_norm_eps=1e-5,
        rope_theta=10_000.0,
        tie_word_embeddings=True,
        layer_types=("full_attention",) * fields["num_hidden_layers"],
        bos_token_id=tokenizer.bos_id,
        eos_token_ids=tokenizer.eos_ids,
        pad_token_id=tokenizer.pad_id,
        **fields,
    )
