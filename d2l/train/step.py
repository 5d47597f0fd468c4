"""The distillation step: context encoder, hypernetwork, student (and teacher) and loss in one jitted function.

Letters: C chunks, Q queries, T tokens, R response tokens, D hidden.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from d2l.adapter import Adapter, compose
from d2l.hypernet.config import HypernetConfig
from d2l.hypernet.features import context_features
from d2l.hypernet.hypernet import abstract_hypernet
from d2l.target.config import TargetConfig
from d2l.target.decoder import abstract_decoder
from d2l.train import losses

Batch = dict[str, jax.Array]
State = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """What the loss is made of.

    Attributes:
      loss: `ce` on the response, or `kl` against the target with the document in its prompt.
      l1: weight of the mean absolute adapter entry.
      num_contexts, max_chunks: contexts of a batch, and the most chunks that one of them has.
      dtype: of all compute but norms, softmaxes and the loss; the masters stay float32.
      remat: recompute the student's blocks in the backward pass.
    """

    loss: str
    num_contexts: int
    max_chunks: int
    l1: float = 0.0
    dtype: str = "float32"
    remat: bool = False


def loss_fn(
    params: Any, frozen: Any, batch: Batch, hyper: HypernetConfig, target: TargetConfig, step: StepConfig
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss of one batch (fields in `d2l.data.batch.Batch`) and its parts, all scalars.

    The mean over a query's response tokens, a context's queries and contexts (SPEC 5) is folded into `query_weight`,
    which sums to one.
    """
    dtype = jnp.dtype(step.dtype)
    params = jax.tree.map(lambda a: a.astype(dtype), params)
    hypernet = nnx.merge(abstract_hypernet(hyper)[0], params)
    decoder = nnx.merge(abstract_decoder(target)[0], frozen)

    features = context_features(decoder, hyper, batch["ctx_tokens"]).astype(dtype)
    chunks = hypernet(features, batch["ctx_mask"])
    factors, ranks = compose(
        chunks,
        batch["chunk_context"],
        batch["chunk_slot"],
        num_contexts=step.num_contexts,
        max_chunks=step.max_chunks,
        bias=hypernet.bias(),
    )
    adapter = Adapter(factors, ranks, hyper.scale).select(batch["query_context"])

    def response(tokens_QT, index_QR, **kwargs):
        x_QTD, _, _ = decoder.run_blocks(decoder.embed(tokens_QT), **kwargs)
        x_QRD = jnp.take_along_axis(x_QTD, index_QR[:, :, None], axis=1)
        return decoder.final_norm(x_QRD).reshape(-1, x_QRD.shape[-1])

    mask_QR = batch["response_mask"].astype(jnp.float32)
    weight_QR = mask_QR / jnp.maximum(mask_QR.sum(axis=1, keepdims=True), 1.0) * batch["query_weight"][:, None]
    student_ND = response(
        batch["query_tokens"], batch["response_index"], adapter=adapter.for_decoder(dtype), remat=step.remat
    )
    ce_N, hit_N = losses.cross_entropy(decoder.unembed, student_ND, batch["response_tokens"].reshape(-1))
    ce = jnp.sum(weight_QR * ce_N.reshape(mask_QR.shape))
    wrong_Q = jnp.any((hit_N.reshape(mask_QR.shape) == 0) & (mask_QR > 0), axis=1)
    metrics = {
        "ce": ce,
        "exact": jnp.sum(batch["query_weight"] * (1.0 - wrong_Q.astype(jnp.float32))),
        "l1": losses.l1(factors),
    }
    if step.loss == "kl":
        teacher_ND = jax.lax.stop_gradient(response(batch["teacher_tokens"], batch["teacher_index"]))
        top = losses.teacher_top_k(decoder.unembed, teacher_ND)
        kl_N = losses.kl(decoder.unembed, student_ND, *top)
        metrics["kl"] = jnp.sum(weight_QR * kl_N.reshape(mask_QR.shape))
    loss = metrics[step.loss] + step.l1 * metrics["l1"]
    return loss, metrics | {"loss": loss}


def make_step(
    hyper: HypernetConfig, target: TargetConfig, step: StepConfig, optimizer: optax.GradientTransformation
) -> Callable[[State, Any, Batch], tuple[State, dict[str, jax.Array]]]:
    """The jitted update `(state, frozen target parameters, batch) -> (state, metrics)`; the state is donated.

    `state` is `{"params", "opt_state", "step"}`. Metrics are float32 scalars on the device, with the gradient norm of
    every parameter group under `grad/`.
    """

    def update(state: State, frozen: Any, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (_, metrics), grads = grad_fn(state["params"], frozen, batch, hyper, target, step)
        updates, opt_state = optimizer.update(grads, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        metrics |= {f"grad/{name}": optax.tree.norm(part) for name, part in grads.items()}
        return {"params": params, "opt_state": opt_state, "step": state["step"] + 1}, metrics

    return jax.jit(update, donate_argnums=0)


def init_state(params: Any, optimizer: optax.GradientTransformation) -> State:
    """A train state at step 0."""
    return {"params": params, "opt_state": optimizer.init(params), "step": jnp.zeros((), jnp.int32)}
