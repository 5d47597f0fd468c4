"""Training a small target from nothing, so that it retrieves needles in context.

Letters: Q prompts, T tokens, R response tokens, D hidden.
"""

import contextlib
import os
from collections.abc import Generator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from etils import epath
from flax import nnx

from d2l.data.batch import Batch, NeedleBatches
from d2l.data.niah import NEEDLE, NOISE, QUESTION
from d2l.target.config import TargetConfig
from d2l.target.decoder import Decoder, abstract_decoder
from d2l.target.tokenizer import Tokenizer
from d2l.target.weights import save_target
from d2l.train import losses
from d2l.train.checkpoint import Checkpoints
from d2l.train.feed import Layout, NeedleFeed
from d2l.train.optimizer import OptimizerConfig, learning_rates, make_optimizer, stage_schedule
from d2l.train.run import Update, Work, run
from d2l.train.stages import needle_stage, read_stages
from d2l.train.step import State, init_state
from d2l.train.watch import Profile, Watch
from d2l.train.workdir import new_folder, opened

INIT_STD = 0.02  # of `init_target`
EMBED_STD = 0.09


def train_target(
    config: ml_collections.ConfigDict, workdir: str | os.PathLike[str], *, profile_steps: str = ""
) -> dict[str, float]:
    """Train tokenizer and target as the config says and write them to `workdir/target`, a Hugging Face folder.

    Resumes and stops as `d2l.train.loop.train` does, on one device; raises the same errors.
    """
    fields = config.to_dict()
    stages = read_stages(fields)
    total = sum(stage["steps"] for stage in stages)
    profile = Profile(epath.Path(workdir), profile_steps)
    with contextlib.ExitStack() as stack:
        workdir = stack.enter_context(opened(workdir, fields))

        # ------------------------------------------------------------ tokenizer, decoder, optimiser
        tokenizer = Tokenizer.train(_texts(), fields["vocab_size"])
        target = _config(fields["model"], tokenizer)
        params = widen(init_target(target, fields["seed"]))
        schedule = stage_schedule(stages)
        optimizer = make_optimizer(OptimizerConfig(**fields["optimizer"]), schedule, params)
        rates = learning_rates(schedule, total)
        checkpoints = Checkpoints(workdir, every=fields["checkpoint_every"], keep=fields["keep"])
        stack.callback(checkpoints.close)
        state, _, done = checkpoints.restore(init_state(params, optimizer))

        # ------------------------------------------------------------ data: batch i is a pure function of seed and i
        def work() -> Generator[Work]:
            end = 0
            update = make_update(target, optimizer, fields["lm_weight"], fields["dtype"], fields["seed"])
            for stage in stages:
                first, end = end, end + stage["steps"]
                if done < end:
                    batches = NeedleBatches(needle_stage(stage, teacher=True), tokenizer, fields["seed"])
                    for fed in NeedleFeed(batches, Layout()).feed(max(first, done), end):
                        yield Work(update, fed.batch, fed.scalars, tokens=fed.tokens)

        # ------------------------------------------------------------ loop, and the product
        watch = Watch(workdir, done=done, total=total)
        state, reached = run(state, work(), checkpoints, watch, done=done, total=total, rates=rates, profile=profile)
        if reached == total:
            with new_folder(workdir / "target") as folder:
                save_target(folder, target, state["params"], tokenizer)
        return watch.means()


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
    jump_Q = (far * (window - count_Q + 1).astype(far.dtype)).astype(jnp.int32)
    after_Q = (where * answer_Q.astype(where.dtype)).astype(jnp.int32)
    index_1T = jnp.arange(length)[None, :]
    return index_1T + jnp.where(index_1T >= after_Q[:, None], jump_Q[:, None], 0)


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
        real_R = (batch["response_weight"] > 0).astype(jnp.float32)
        tokens_QT = batch["teacher_tokens"]
        Q, T = tokens_QT.shape

        def hidden(tokens_QT, positions_QT=None):
            return decoder.final_norm(decoder.run_blocks(decoder.embed(tokens_QT), positions_BT=positions_QT)[0])

        def answer(x_QTD, row_R, index_R):
            ce_R, hit_R = losses.cross_entropy(decoder.unembed, x_QTD[row_R, index_R], batch["response_tokens"])
            wrong_Q = jax.ops.segment_max(real_R * (1.0 - hit_R), row_R, num_segments=Q)
            # Of a row without a response the maximum is -inf: shapes may have room for more rows than there are.
            return jnp.sum(ce_R * real_R) / jnp.sum(real_R), jnp.mean(wrong_Q == 0.0, where=wrong_Q >= 0.0)

        row_R, index_R = batch["teacher_row"], batch["teacher_index"]
        count_Q = jnp.sum(batch["teacher_segments"] >= 0, axis=1)
        answer_Q = jax.ops.segment_min(jnp.where(real_R > 0, index_R, T), row_R, num_segments=Q)
        positions_QT = spread(key, count_Q, answer_Q, T, target.max_position_embeddings)
        x_QTD = hidden(tokens_QT, positions_QT)
        ce, exact = answer(x_QTD, row_R, index_R)
        logits_QTV = decoder.unembed(x_QTD[:, :-1])
        next_QT = tokens_QT[:, 1:]
        # Padding stands on the right; the first of it is not predicted either.
        real_QT = (jnp.arange(1, next_QT.shape[1] + 1)[None, :] < count_Q[:, None]).astype(jnp.float32)
        lm_QT = optax.softmax_cross_entropy_with_integer_labels(logits_QTV, next_QT)
        lm = jnp.sum(lm_QT * real_QT) / jnp.sum(real_QT)
        alone, _ = answer(hidden(batch["query_tokens"]), batch["response_row"], batch["response_index"])
        loss = ce + lm_weight * (lm + alone)
        return loss, {"loss": loss, "ce": ce, "lm": lm, "exact": exact}

    def update(state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state["step"])
        group = jax.tree.map(lambda a: a[0, 0], batch)  # one pack
        (_, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state["params"], group, key)
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
        tie_word_embeddings=True,
        layer_types=("full_attention",) * fields["num_hidden_layers"],
        bos_token_id=tokenizer.bos_id,
        eos_token_ids=tokenizer.eos_ids,
        pad_token_id=tokenizer.pad_id,
        **fields,
    )
