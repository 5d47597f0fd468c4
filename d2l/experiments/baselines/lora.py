"""A LoRA of one document, trained to answer as the target does with the document in its prompt.

Letters: Q queries, b queries of a batch, T tokens of prompt and response, M response tokens, k teacher tokens kept,
L layers, R rank, D hidden.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from d2l.adapter import Adapter, Factors
from d2l.errors import UserError
from d2l.model import DocToLora
from d2l.target.config import TargetConfig
from d2l.target.decoder import abstract_decoder, stack_params
from d2l.target.generate import bucket
from d2l.train import losses


@dataclasses.dataclass(frozen=True)
class LoraTraining:
    """How it is trained; the defaults are the release's.

    Attributes:
      rank, modules, scale: of the LoRA, y = W x + scale B^T (A x).
      epochs: passes over the queries.
      batch: queries of a step; 0 takes all at once.
      lr: of AdamW at the start; it falls to 0 along a cosine.
    """

    rank: int = 8
    modules: tuple[str, ...] = ("down_proj",)
    scale: float = 2 * 8**1.5
    epochs: int = 300
    batch: int = 0
    lr: float = 1e-4
    weight_decay: float = 0.01
    seed: int = 0

    def __post_init__(self):
        if self.rank < 1 or self.epochs < 1 or self.batch < 0:
            raise UserError(
                f"rank is {self.rank}, epochs {self.epochs}, batch {self.batch}: give 1 or more (batch 0 takes all)."
            )


@dataclasses.dataclass(frozen=True)
class Lesson:
    """One question and what the teacher answered.

    Attributes:
      prompt: token ids of the question without the document.
      response: token ids of the answer with its end token.
      top: the teacher's likeliest tokens at each, int32 `[M, k]`, and their log-probabilities, float32 `[M, k]`.
    """

    prompt: list[int]
    response: list[int]
    top: tuple[np.ndarray, np.ndarray]


def stack_lessons(lessons: Sequence[Lesson]) -> dict[str, np.ndarray]:
    """All lessons as rows: tokens `[Q, T]`, index and weight `[Q, M]`, top_tokens and top_logp `[Q, M, k]`."""
    most = max(len(lesson.response) for lesson in lessons)
    width = bucket(max(len(lesson.prompt) + len(lesson.response) for lesson in lessons), 32)
    Q, M, k = len(lessons), bucket(most, 8), lessons[0].top[0].shape[1]
    rows = {
        "tokens": np.zeros((Q, width), np.int32),
        "index": np.zeros((Q, M), np.int32),
        "weight": np.zeros((Q, M), np.float32),
        "top_tokens": np.zeros((Q, M, k), np.int32),
        "top_logp": np.zeros((Q, M, k), np.float32),
    }
    for q, lesson in enumerate(lessons):
        start, count = len(lesson.prompt), len(lesson.response)
        rows["tokens"][q, : start + count] = [*lesson.prompt, *lesson.response]
        rows["index"][q, :count] = start - 1 + np.arange(count)
        rows["weight"][q, :count] = 1 / count
        rows["top_tokens"][q, :count], rows["top_logp"][q, :count] = lesson.top
    return rows


def init_lora(config: TargetConfig, training: LoraTraining) -> Factors:
    """A uniform in +-1/sqrt(d_in), B zero, float32 `[L, 1, R, d]`: the LoRA that changes nothing."""
    factors = {}
    for i, name in enumerate(training.modules):
        if name not in config.module_sizes:
            raise UserError(f"there is no module {name!r}: give some of {', '.join(config.module_sizes)}.")
        d_in, d_out = config.module_sizes[name]
        key = jax.random.fold_in(jax.random.key(training.seed), i)
        shape = (config.num_hidden_layers, 1, training.rank)
        bound = 1 / math.sqrt(d_in)
        factors[name] = {
            "A": jax.random.uniform(key, (*shape, d_in), minval=-bound, maxval=bound),
            "B": jnp.zeros((*shape, d_out)),
        }
    return factors


def make_lora_step(config: TargetConfig, scale: float, optimizer: optax.GradientTransformation) -> Callable:
    """The jitted `(lora, opt_state, stacked target parameters, rows) -> (lora, opt_state, KL)`."""
    graphdef = abstract_decoder(config)[0]

    def loss(lora, frozen, rows):
        decoder = nnx.merge(graphdef, frozen)
        adapter = {name: {"A": ab["A"], "B": ab["B"] * scale} for name, ab in lora.items()}
        x_bTD, _, _ = decoder.run_blocks(decoder.embed(rows["tokens"]), adapter=adapter)
        x_bMD = decoder.final_norm(jnp.take_along_axis(x_bTD, rows["index"][..., None], axis=1))
        flat = {name: rows[name].reshape(-1, *rows[name].shape[2:]) for name in ("weight", "top_tokens", "top_logp")}
        kl = losses.kl(decoder.unembed, x_bMD.reshape(-1, x_bMD.shape[-1]), flat["top_tokens"], flat["top_logp"])
        return jnp.sum(flat["weight"] * kl) / rows["tokens"].shape[0]

    def step(lora, opt_state, frozen, rows):
        value, grads = jax.value_and_grad(loss)(lora, frozen, rows)
        with jax.numpy_dtype_promotion("standard"):  # optax adds integers and floats
            updates, opt_state = optimizer.update(grads, opt_state, lora)
        return optax.apply_updates(lora, updates), opt_state, value

    return jax.jit(step, donate_argnums=(0, 1))


class LoraTrainer:
    """Trains LoRAs of one target; steps of equal shapes are compiled once."""

    def __init__(self, model: DocToLora, training: LoraTraining):
        self.model, self.training = model, training
        self._steps: dict[int, tuple[Callable, optax.GradientTransformation]] = {}

    def train(self, lessons: Sequence[Lesson], *, steps: int | None = None) -> tuple[Adapter, list[float]]:
        """The LoRA of some lessons, in the dtype of the target, and the loss of every step.

        Args:
          steps: stop after so many; the schedule is that of all.
        """
        t, config = self.training, self.model.target.config
        rows, Q = stack_lessons(lessons), len(lessons)
        b = min(t.batch or Q, Q)
        per_epoch = -(-Q // b)
        total = t.epochs * per_epoch
        step, optimizer = self._step(total)
        frozen = stack_params(self.model.generator.params, config)
        lora = init_lora(config, t)
        opt_state = optimizer.init(lora)
        rng = np.random.default_rng(t.seed)
        values = []
        for number in range(total if steps is None else min(steps, total)):
            if number % per_epoch == 0:
                order = np.resize(rng.permutation(Q), per_epoch * b)  # the last batch is filled from the first
            chosen = order[number % per_epoch * b :][:b]
            lora, opt_state, value = step(lora, opt_state, frozen, {name: a[chosen] for name, a in rows.items()})
            values.append(value)
        dtype = self.model.generator.dtype
        factors = jax.tree.map(lambda a: a.astype(dtype), lora)
        adapter = Adapter(
            factors, jnp.array([t.rank], jnp.int32), t.scale, self.model.target.name, self.model.target.weights_hash
        )
        return adapter, [float(value) for value in values]

    def _step(self, total: int) -> tuple[Callable, optax.GradientTransformation]:
        if total not in self._steps:
            t = self.training
            optimizer = optax.adamw(optax.cosine_decay_schedule(t.lr, total), weight_decay=t.weight_decay)
            self._steps[total] = make_lora_step(self.model.target.config, t.scale, optimizer), optimizer
        return self._steps[total]
