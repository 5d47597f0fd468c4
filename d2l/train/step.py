"""The distillation step: context encoder, hypernetwork, student (and teacher) and loss in one jitted function.

A batch is `{name: [accumulate, groups, ...]}` with the fields of `d2l.data.pack.Packer.finish`. A group is computed on
its own, so that groups are split over chips without a word between them; sums over groups and accumulation steps are
divided once, by the contexts of the whole batch.

Letters: N rows of context tokens, S their length, Q rows of queries, U contexts of a row, R response tokens, D hidden,
C contexts of a group, r adapter rank.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from d2l import mesh
from d2l.adapter import Factors, compose, scaled
from d2l.errors import UserError
from d2l.hypernet.config import HypernetConfig
from d2l.hypernet.features import read_context
from d2l.hypernet.hypernet import abstract_hypernet
from d2l.target.config import TargetConfig
from d2l.target.decoder import REMAT, Decoder, abstract_decoder
from d2l.train import losses

Batch = dict[str, jax.Array]
State = dict[str, Any]
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """What the loss is made of.

    Attributes:
      loss: `ce` on the response, or `kl` against the target with the document in its prompt.
      max_chunks: the most chunks that a context has.
      row_chunks: the most chunks that are packed in a row.
      l1: weight of the mean absolute adapter entry.
      dtype: of all compute but norms, softmaxes and the loss; the masters stay float32.
      remat: what the backward pass of the student's blocks recomputes, a name of `REMAT`; unless `none` the
        hypernetwork's aggregator is recomputed too.
      focus: share of the loss whose tokens are weighted by what the document tells of them (`document_weight`); the
        rest is the plain mean.
      others: whether the tokens that the teacher's likeliest leave out are one more outcome of the KL (`losses.kl`).
      neftune: alpha of the uniform noise on the student's input embeddings, alpha / sqrt(tokens of the prompt * D) at
        most; 0 is none.
    """

    loss: str
    max_chunks: int = 1
    row_chunks: int = 1
    l1: float = 0.0
    dtype: str = "float32"
    remat: str = "none"
    neftune: float = 0.0
    focus: float = 0.0
    others: bool = False

    def __post_init__(self):
        if self.loss not in ("ce", "kl"):
            raise UserError(f"loss is {self.loss!r}: give ce or kl.")
        if self.remat not in REMAT:
            raise UserError(f"remat is {self.remat!r}: give one of {', '.join(REMAT)}.")
        if not 0 <= self.focus <= 1:
            raise UserError(f"focus is {self.focus}: give a share in [0, 1].")


def chunk_mask(group: Batch, row_chunks: int) -> jax.Array:
    """bool `[N, P, S]`, the tokens of each chunk of a group's context rows."""
    return group["ctx_segments"][:, None, :] == jnp.arange(row_chunks)[None, :, None]


def response_contexts(group: Batch) -> jax.Array:
    """int32 `[R]`, the context that each response token is about."""
    row_R, index_R = group["response_row"], group["response_index"]
    return group["query_contexts"][row_R, group["query_slots"][row_R, index_R]]


def group_sums(params: Any, decoder: Decoder, group: Batch, hyper: HypernetConfig, step: StepConfig) -> Metrics:
    """Loss and its parts summed over the contexts of one group, float32 scalars.

    The mean over a query's response tokens and a context's queries (SPEC 5) is in `response_weight`.
    """
    dtype = jnp.dtype(step.dtype)
    hypernet = nnx.merge(abstract_hypernet(hyper)[0], params)

    # ---- contexts to adapters
    features, sources = jax.tree.map(
        lambda a: a.astype(dtype),
        read_context(
            decoder,
            hyper,
            group["ctx_tokens"],
            positions_NT=group["ctx_positions"],
            segments_NT=group["ctx_segments"],
        ),
    )
    mask_NPS = chunk_mask(group, step.row_chunks)
    chunks = hypernet(features, mask_NPS, sources=sources, chunks_C=group["chunk_place"], remat=step.remat != "none")
    memories = {name: ab for name, ab in chunks.items() if "@" in name}
    chunks = {name: ab for name, ab in chunks.items() if "@" not in name}
    factors, gate_QTR = adapters_of_rows(chunks, hypernet.bias(), group, step.max_chunks)
    if memories:
        factors = factors | memories_of_rows(memories, hypernet.solve, group, step.max_chunks)
    adapter = jax.tree.map(lambda a: a.astype(dtype), scaled(factors, hyper.scale))

    # ---- queries under the adapters of their contexts
    def responses(prompts: str, row_R, index_R, noise: float = 0.0, **kwargs):
        x_QTD = decoder.embed(group[f"{prompts}_tokens"])
        if noise:
            x_QTD = x_QTD + noise * neftune_noise(group["noise_key"], group[f"{prompts}_segments"], x_QTD)
        place = {"positions_BT": group[f"{prompts}_positions"], "segments_BT": group[f"{prompts}_segments"]}
        x_QTD, _, _ = decoder.run_blocks(x_QTD, **place, **kwargs)
        return decoder.final_norm(x_QTD[row_R, index_R][None])[0]

    student_RD = responses(
        "query",
        group["response_row"],
        group["response_index"],
        noise=step.neftune,
        adapter=adapter,
        gate_BTR=gate_QTR,
        remat=step.remat,
    )

    # ---- losses
    weight_R, query_R = group["response_weight"], group["response_query"]
    ce_R, hit_R = losses.cross_entropy(decoder.unembed, student_RD, group["response_tokens"])
    missed_R = jnp.where(weight_R > 0, 1.0 - hit_R, 0.0)
    wrong_q = jax.ops.segment_max(missed_R, query_R, num_segments=len(missed_R))
    weight_q = jax.ops.segment_sum(weight_R, query_R, num_segments=len(missed_R))
    sums = {
        "ce": jnp.sum(weight_R * ce_R),
        "accuracy": jnp.sum(weight_R * hit_R),
        "exact": jnp.sum(jnp.where(wrong_q == 0, weight_q, 0.0)),
        "l1": losses.l1(
            chunks | memories, hypernet.bias(), group["chunk_context"], group["context_weight"], step.max_chunks
        ),
    }
    loss_R = ce_R
    if step.loss == "kl":
        if "teacher_top_tokens" in group:
            top = group["teacher_top_tokens"], group["teacher_top_logp"]
        else:
            teacher_RD = responses("teacher", group["teacher_row"], group["teacher_index"])
            top = losses.teacher_top_k(decoder.unembed, jax.lax.stop_gradient(teacher_RD))
        loss_R = losses.kl(decoder.unembed, student_RD, *top, others=step.others)
        sums["kl"] = jnp.sum(weight_R * loss_R)
    loss = sums[step.loss]
    if step.focus:
        without_RD = responses("query", group["response_row"], group["response_index"])
        if step.loss == "kl":
            missing_R = losses.kl(decoder.unembed, without_RD, *top, others=step.others)
            missing_R -= losses.entropy(top[1], others=step.others)
        else:
            missing_R, _ = losses.cross_entropy(decoder.unembed, without_RD, group["response_tokens"])
        focused_R = document_weight(jax.lax.stop_gradient(missing_R), weight_R, query_R)
        loss = (1.0 - step.focus) * loss + step.focus * jnp.sum(focused_R * loss_R)
    return sums | {"loss": loss + step.l1 * sums["l1"]}


def document_weight(missing_R: jax.Array, weight_R: jax.Array, query_R: jax.Array) -> jax.Array:
    """Weights of response tokens in proportion to what the target lacks without the document (not in the paper).

    Most tokens of an answer follow from the question and the tokens before; few say what only the document tells, and
    their gradient is small in the mean of all.

    Args:
      missing_R: nats; the KL of the target without the document from that with it, or its cross-entropy.
      weight_R: of the plain mean; a query's weights keep their sum.
      query_R: int32, the query that each token answers.

    Returns:
      float32 `[R]`; the plain weights where nothing is missing in a query.
    """
    missing_R = jnp.where(weight_R > 0, jnp.maximum(missing_R, 0.0), 0.0)
    share_q = jax.ops.segment_sum(missing_R, query_R, num_segments=len(query_R))
    whole_q = jax.ops.segment_sum(weight_R, query_R, num_segments=len(query_R))
    share_R, whole_R = share_q[query_R], whole_q[query_R]
    return jnp.where(share_R > 0, whole_R * missing_R / jnp.where(share_R > 0, share_R, 1.0), weight_R)


def adapters_of_rows(
    chunks: Factors, bias: Factors | None, group: Batch, max_chunks: int
) -> tuple[Factors, jax.Array | None]:
    """The adapters of a group's query rows, and which of their ranks each token uses.

    Rows that name many contexts, or contexts of few chunks, all use one adapter: every chunk of the group and the
    learned bias, end to end. Elsewhere that would be the larger one, and each row has the adapters of its own contexts.

    Args:
      chunks, bias: as in `adapter.compose`.

    Returns:
      Factors `[L, Q or 1, R, d]`, and the gate `[Q, T, R]`, or None where all ranks are used.
    """
    contexts_QU, slots_QT, context_N = group["query_contexts"], group["query_slots"], group["chunk_context"]
    U, N, C = contexts_QU.shape[1], len(context_N), len(group["context_weight"])
    first = next(iter(chunks.values()))["A"]
    r, extra = first.shape[2], int(bias is not None)
    if not shares_adapter(U, N, max_chunks, extra):
        factors, _ = compose(chunks, context_N, group["chunk_slot"], num_contexts=C, max_chunks=max_chunks, bias=bias)

        def of_rows(a_LCRd: jax.Array) -> jax.Array:
            a_LQURd = jnp.take(a_LCRd, contexts_QU, axis=1)
            return a_LQURd.reshape(*a_LQURd.shape[:2], -1, a_LQURd.shape[4])  # ranks of a row, end to end

        rows = jax.tree.map(of_rows, factors)
        if U == 1:
            return rows, None
        return rows, jnp.repeat(jax.nn.one_hot(slots_QT, U, dtype=first.dtype), (max_chunks + extra) * r, axis=2)

    context_QT = jnp.take_along_axis(contexts_QU, slots_QT, axis=1)
    own_QTN = context_QT[:, :, None] == context_N[None, None]  # a chunk that is not there has context -1
    gate_QTN = jnp.pad(own_QTN, ((0, 0), (0, 0), (0, extra)), constant_values=True)

    def end_to_end(a_NLrd: jax.Array, *bias_Lrd: jax.Array) -> jax.Array:
        a_LRd = jnp.swapaxes(a_NLrd, 0, 1).reshape(a_NLrd.shape[1], N * r, -1)
        return jnp.concatenate([a_LRd, *(b.astype(a_LRd.dtype) for b in bias_Lrd)], axis=1)[:, None]

    factors = jax.tree.map(end_to_end, chunks, *([] if bias is None else [bias]))
    return factors, jnp.repeat(gate_QTN.astype(first.dtype), r, axis=2)


def memories_of_rows(
    memories: Factors, solve: Callable[[Factors], Factors], group: Batch, max_chunks: int
) -> dict[str, dict[str, jax.Array]]:
    """The memories of a group's query rows: those of a row's contexts end to end, with a gate for each token's own.

    Args:
      memories: keys and values of chunks, `{name: {"A": [N, 1, m, i], "B": [N, 1, m, o]}}`.
      solve: keys of whole contexts to A rows (`Hypernet.solve`).

    Returns:
      `{name: {"A": [1, Q, R, i], "B": [1, Q, R, o], "gate": [1, Q, T, R]}}`, R = U * max_chunks * m.
    """
    contexts_QU, slots_QT = group["query_contexts"], group["query_slots"]
    place = {"num_contexts": len(group["context_weight"]), "max_chunks": max_chunks, "bias": None}
    factors = solve(compose(memories, group["chunk_context"], group["chunk_slot"], **place)[0])

    def of_rows(a_1CRd: jax.Array) -> jax.Array:
        a_1QURd = jnp.take(a_1CRd, contexts_QU, axis=1)
        return a_1QURd.reshape(*a_1QURd.shape[:2], -1, a_1QURd.shape[4])

    rows = jax.tree.map(of_rows, factors)
    own_QTU = jax.nn.one_hot(slots_QT, contexts_QU.shape[1], dtype=next(iter(factors.values()))["A"].dtype)
    return {
        name: ab | {"gate": jnp.repeat(own_QTU, ab["A"].shape[2] // contexts_QU.shape[1], axis=2)[None]}
        for name, ab in rows.items()
    }


def shares_adapter(row_contexts: int, chunks: int, max_chunks: int, bias: int) -> bool:
    """Whether one adapter of all chunks of a group, and the learned bias or not, is no larger than one for each row."""
    return row_contexts > 1 and chunks + bias <= row_contexts * (max_chunks + bias)


def neftune_noise(key: jax.Array, segments_QT: jax.Array, x_QTD: jax.Array) -> jax.Array:
    """Uniform noise within +-1 / sqrt(tokens of the segment * D), in the dtype of x (Jain et al., 2023)."""
    tokens_QT = jnp.sum(segments_QT[:, :, None] == segments_QT[:, None, :], axis=2)
    size_QT1 = jax.lax.rsqrt(tokens_QT[..., None].astype(jnp.float32) * x_QTD.shape[-1])
    noise_QTD = size_QT1 * jax.random.uniform(key, x_QTD.shape, minval=-1.0, maxval=1.0)
    return noise_QTD.astype(x_QTD.dtype)


def loss_fn(
    params: Any, frozen: Any, groups: Batch, hyper: HypernetConfig, target: TargetConfig, step: StepConfig
) -> tuple[jax.Array, Metrics]:
    """Loss of groups `{name: [groups, ...]}` and its parts, summed over their contexts."""
    params = mesh.gather(jax.tree.map(lambda a: a.astype(jnp.dtype(step.dtype)), params))
    # The layers are gathered one by one, where they run.
    frozen = frozen | mesh.gather({name: a for name, a in frozen.items() if name != "layers"})

    def one(group: Batch) -> Metrics:
        return group_sums(params, nnx.merge(abstract_decoder(target)[0], frozen), group, hyper, step)

    sums = jax.tree.map(jnp.sum, jax.vmap(one)(groups))
    return sums["loss"], sums


def gradients(
    params: Any,
    frozen: Any,
    batch: Batch,
    hyper: HypernetConfig,
    target: TargetConfig,
    step: StepConfig,
    number: jax.Array | int = 0,
) -> tuple[Any, Metrics]:
    """Gradient of the mean loss over the contexts of a batch, and that loss and its parts.

    Args:
      number: of the update; each one, and each group of it, draws noise of its own.
    """
    accumulate, groups, _ = batch["context_weight"].shape
    total = jnp.sum(batch["context_weight"])
    if step.neftune:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), number), (accumulate, groups))
        batch = batch | {"noise_key": mesh.reshard(keys, None, mesh.GROUP_AXES)}

    def of_groups(groups: Batch) -> tuple[Any, Metrics]:
        return jax.grad(loss_fn, has_aux=True)(params, frozen, groups, hyper, target, step)

    if accumulate == 1:
        grads, sums = of_groups(jax.tree.map(lambda a: a[0], batch))
    else:
        first = jax.tree.map(lambda a: a[0], batch)
        zeros = (
            jax.tree.map(jnp.zeros_like, params),
            jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(of_groups, first)[1]),
        )
        (grads, sums), _ = jax.lax.scan(
            lambda carry, groups: (jax.tree.map(jnp.add, carry, of_groups(groups)), None), zeros, batch
        )
    return jax.tree.map(lambda a: a / total, (grads, sums))


def check_mesh(on: jax.sharding.Mesh, target: TargetConfig, hyper: HypernetConfig) -> None:
    """Raise a `UserError` where a mesh's model axis does not divide the heads or widths of both models, or at a memory,
    whose regressions JAX (0.12) cannot split."""
    if hyper.memory_layers:
        raise UserError("memory_layers is set, and a memory cannot be trained on a mesh yet: leave out one of the two.")
    mesh.check_divisible(
        on,
        num_attention_heads=target.num_attention_heads,
        num_key_value_heads=target.num_key_value_heads,
        intermediate_size=target.intermediate_size,
        hypernet_num_heads=hyper.num_heads,
        hypernet_num_kv_heads=hyper.num_kv_heads,
    )


def make_step(
    hyper: HypernetConfig, target: TargetConfig, step: StepConfig, optimizer: optax.GradientTransformation
) -> Callable[[State, Any, Batch], tuple[State, Metrics]]:
    """The jitted update `(state, frozen target parameters, batch) -> (state, metrics)`; the state is donated.

    `state` is `{"params", "opt_state", "step"}`. Metrics are float32 scalars on the device, with the gradient norm of
    every parameter group under `grad/`. Call and lower it under `jax.set_mesh` where arrays live on a mesh.
    """

    def update(state: State, frozen: Any, batch: Batch) -> tuple[State, Metrics]:
        grads, metrics = gradients(state["params"], frozen, batch, hyper, target, step, state["step"])
        updates, opt_state = optimizer.update(grads, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        metrics |= {f"grad/{name}": optax.tree.norm(part) for name, part in grads.items()}
        return {"params": params, "opt_state": opt_state, "step": state["step"] + 1}, metrics

    return jax.jit(update, donate_argnums=0)


def init_state(params: Any, optimizer: optax.GradientTransformation) -> State:
    """A train state at step 0."""
    return {"params": params, "opt_state": optimizer.init(params), "step": jnp.zeros((), jnp.int32)}
