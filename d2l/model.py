"""`DocToLora`: a document in, an adapter out, and answers with the document absent.

Letters: L layers, C contexts, R adapter rank, d input or output width of a module,
Q queries, V vocabulary.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from d2l.adapter import Adapter, Factors, place_bias
from d2l.errors import UserError
from d2l.hypernet.chunk import Chunking
from d2l.hypernet.config import HypernetConfig
from d2l.hypernet.features import check_encoder
from d2l.hypernet.hypernet import abstract_hypernet
from d2l.hypernet.reader import batch_chunks, empty_factors, make_listener, make_reader
from d2l.hypernet.store import load_hypernet
from d2l.target.decoder import abstract_decoder
from d2l.target.factors import adapter_layers
from d2l.target.generate import Generator, Sampling
from d2l.target.tokenizer import Message, Tokenizer
from d2l.target.weights import LoadedTarget, load_target

DEFAULT_MAX_CHUNK_LEN = 1024
NOT_FINITE = (
    "holds NaN or infinity: the hypernetwork is damaged or its dtype too narrow; load a sound one, or use "
    "dtype='float32'."
)

Prompt = str | Sequence[Message]


@dataclasses.dataclass(frozen=True)
class Hypernetwork:
    """A trained hypernetwork in memory: its config, parameters and `hypernet.json`."""

    config: HypernetConfig
    params: Any
    description: dict[str, Any]

    @property
    def chunking(self) -> Chunking:
        """How its card says that documents are cut."""
        card = {"max_chunk_len": DEFAULT_MAX_CHUNK_LEN} | self.description["card"]
        return Chunking(
            **{field.name: card[field.name] for field in dataclasses.fields(Chunking) if field.name in card}
        )


def load(
    target: str | pathlib.Path | None = None,
    hypernet: str | pathlib.Path | None = None,
    *,
    ctx_encoder: str | pathlib.Path | None = None,
    dtype: str | jnp.dtype = "float32",
) -> "DocToLora":
    """Load a target language model and, to internalize documents, a hypernetwork trained for it.

    Args:
      target: as in `load_target`; None is SmolLM2-135M-Instruct.
      hypernet: folder written by `d2l train` or `d2l import-checkpoint`; without one there is no `internalize`.
      ctx_encoder: the model that reads documents where it is another than the target.
      dtype: of weights and compute; bfloat16 halves the memory and reads documents about 1.5 times as fast on a CPU.

    Raises:
      UserError: something cannot be loaded, or the hypernetwork belongs to another target or encoder.
    """
    dtype = jnp.dtype(dtype)
    hyper = None if hypernet is None else Hypernetwork(*load_hypernet(hypernet, dtype=dtype))
    loaded = load_target(target, dtype=dtype)
    encoder = None if ctx_encoder is None else load_target(ctx_encoder, dtype=dtype)
    return DocToLora(loaded, hyper, encoder)


class DocToLora:
    """A frozen target with a hypernetwork that writes adapters for it.

    Attributes:
      target: name, config, tokenizer and weights hash; its parameters are those of unstacked layers.
      hypernet: the hypernetwork, or None.
      generator: token-level generation.
    """

    def __init__(self, target: LoadedTarget, hypernet: Hypernetwork | None = None, encoder: LoadedTarget | None = None):
        self.generator = Generator(target.config, target.params)
        self.target = dataclasses.replace(target, params=self.generator.params)
        self.hypernet = hypernet
        self._encoder = self.target
        if encoder is not None:
            self._encoder = dataclasses.replace(encoder, params=Generator(encoder.config, encoder.params).params)
        if hypernet is not None:
            self._check(hypernet)

    def _check(self, hypernet: Hypernetwork) -> None:
        made_for = hypernet.description["target"]
        if made_for["weights_hash"] != self.target.weights_hash:
            raise UserError(
                f"the hypernetwork was trained for {made_for['name']} (weights {made_for['weights_hash'][:12]}), the "
                f"loaded target is {self.target.name} (weights {self.target.weights_hash[:12]}): load the one it names."
            )
        reader = hypernet.description["card"].get("ctx_encoder")
        if reader is not None and self._encoder is self.target:
            raise UserError(
                f"the hypernetwork reads documents through {reader}, which is not the target: give that model as "
                "ctx_encoder."
            )
        check_encoder(hypernet.config, self._encoder.config)

    @property
    def tokenizer(self) -> Tokenizer:
        """The target's tokenizer."""
        return _tokenizer(self.target)

    # ---------------------------------------------------------------- documents

    def internalize(
        self,
        documents: str | Sequence[str],
        *,
        max_chunk_len: int | None = None,
        chunk_overlap: int | None = None,
        keep_chunks: int | None = None,
        chunk_at: str | None = None,
        iterative: bool = False,
    ) -> Adapter:
        """Read documents into an adapter of one context each.

        A document is cut into chunks. They stream through the encoder and the hypernetwork
        about `reader.TOKENS_PER_CALL` tokens at a time, each straight into its rows of the adapter, so peak memory
        does not grow with the document beyond the adapter itself.

        Args:
          documents: one text or several.
          max_chunk_len, chunk_overlap, keep_chunks, chunk_at: as in `Chunking`; None is what the
            hypernetwork's card says.
          iterative: run a per-layer hypernetwork on one target layer after the other, for a smaller peak memory.

        Returns:
          Factors `[L, C, R, d]` in the dtype of the model, R = (most chunks kept + 1) r with the learned bias.

        Raises:
          UserError: no hypernetwork, an empty document, chunks larger than the window, a result that is not finite.
        """
        chunking = self.chunking(
            max_chunk_len=max_chunk_len, chunk_overlap=chunk_overlap, keep_chunks=keep_chunks, chunk_at=chunk_at
        )
        chunks = self._chunks([documents] if isinstance(documents, str) else list(documents), chunking)
        hyper, C = self.hypernet.config, len(chunks)
        if hyper.memory_layers or hyper.relevance or chunking.keep_loudness:
            chunks = self._loudest(chunks, chunking, iterative)
        counts_C = np.array([chunking.kept(len(parts)) for parts in chunks], np.int32)
        buffer = empty_factors(hyper, C, int(counts_C.max()), self.generator.dtype)
        read = self._reader(iterative, loudest=any(len(parts) > chunking.kept(len(parts)) for parts in chunks))
        for batch in batch_chunks(chunks, _tokenizer(self._encoder).pad_id):
            buffer = read(self._encoder.params, self.hypernet.params, buffer, *batch)
        factors, finite = self._finish(self.hypernet.params, buffer, counts_C)
        if not finite:
            raise UserError(f"the generated adapter {NOT_FINITE}")
        ranks = jnp.asarray((counts_C + hyper.use_bias) * hyper.rank)
        return Adapter(factors, ranks, hyper.scale, self.target.name, self.target.weights_hash)

    def chunking(self, **changes: int | str | None) -> Chunking:
        """What the hypernetwork's card says of `Chunking`, with those of `changes` that are not None instead.

        Raises:
          UserError: no hypernetwork, or fields that are unusable or do not fit the window.
        """
        if self.hypernet is None:
            raise UserError("no hypernetwork is loaded: give one as d2l.load(target, hypernet=FOLDER).")
        room = self._encoder.config.max_position_embeddings - sum(map(len, _tokenizer(self._encoder).turn_wrapper))
        card = self.hypernet.chunking
        holder = f"the window of {self._encoder.name}"
        if self.hypernet.config.memory_layers:
            fits = self.hypernet.config.memory_tokens - sum(self.hypernet.config.turn_tokens)
            room, holder = min((room, holder), (fits, "the memory of the hypernetwork"))
        fields = dataclasses.asdict(card) | {"max_chunk_len": min(card.max_chunk_len, room)}
        chunking = Chunking(**fields | {name: value for name, value in changes.items() if value is not None})
        if chunking.max_chunk_len > room:
            raise UserError(
                f"max_chunk_len is {chunking.max_chunk_len}, {holder} has room for {room} tokens beside the chat turn: "
                f"give at most {room}."
            )
        return chunking

    def _chunks(self, documents: list[str], chunking: Chunking) -> list[list[list[int]]]:
        """Token ids of every chunk of every document, each in its chat turn."""
        if not documents:
            raise UserError("no document was given: give at least one text.")
        tokenizer = _tokenizer(self._encoder)
        prefix, suffix = tokenizer.turn_wrapper
        chunks = []
        for index, text in enumerate(documents):
            if not text.strip():
                raise UserError(f"document {index + 1} of {len(documents)} is empty: give a text with words in it.")
            chunks.append([[*prefix, *part, *suffix] for part in chunking.split(*tokenizer.encode_sentences(text))])
        return chunks

    @functools.cache  # noqa: B019 - one model lives as long as its compiled functions
    def _reader(self, iterative: bool, *, loudest: bool):
        """The jitted `(encoder, hypernetwork, buffer, tokens, mask, context, slot) -> buffer`, which is donated."""
        sizes = (self._encoder.config, self.hypernet.config)
        read = make_reader(*sizes, stacked=False, iterative=iterative, loudest=loudest)
        return jax.jit(read, donate_argnums=2)

    def _loudest(self, chunks: list[list[list[int]]], chunking: Chunking, iterative: bool) -> list[list[list[int]]]:
        """The chunks of each document that stay; a memory, which asks for more blocks, is read from these alone."""
        if not any(len(parts) > (1 if chunking.keep_loudness else chunking.kept(len(parts))) for parts in chunks):
            return chunks
        loud = [np.zeros(len(parts)) for parts in chunks]
        for tokens, mask, context, slot in batch_chunks(chunks, _tokenizer(self._encoder).pad_id):
            found = np.asarray(self._listener(iterative)(self._encoder.params, self.hypernet.params, tokens, mask))
            for c, s, value in zip(context, slot, found, strict=True):
                if c >= 0:
                    loud[c][s] = value
        if not all(np.isfinite(values).all() for values in loud):  # no chunk would stay, and the adapter be sound
            raise UserError(f"what tells which chunks stay {NOT_FINITE}")
        kept = []
        for parts, values in zip(chunks, loud, strict=True):
            best = np.argsort(-values, kind="stable")[: chunking.kept(len(parts))]
            kept.append([parts[i] for i in sorted(best) if values[i] >= chunking.keep_loudness * values.max()])
        return kept

    @functools.cache  # noqa: B019 - one model lives as long as its compiled functions
    def _listener(self, iterative: bool):
        """The jitted `make_listener`."""
        sizes = (self._encoder.config, self.hypernet.config)
        return jax.jit(make_listener(*sizes, stacked=False, iterative=iterative))

    @functools.cached_property
    def _finish(self):
        """The jitted `(hypernetwork, buffer, chunk counts) -> (factors, whether all are finite)`."""
        config = self.hypernet.config
        hyper_def = abstract_hypernet(config)[0]

        def finish(hyper, buffer, counts_C):
            bias = nnx.merge(hyper_def, hyper).bias()
            factors = buffer if bias is None else place_bias(buffer, bias, counts_C)
            factors = nnx.merge(hyper_def, hyper).solve(factors)
            return factors, jnp.all(jnp.stack([jnp.all(jnp.isfinite(a)) for a in jax.tree.leaves(factors)]))

        return jax.jit(finish, donate_argnums=1)

    # ---------------------------------------------------------------- answers

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        adapter: Adapter | None = None,
        *,
        contexts: Sequence[int] | None = None,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> str | list[str]:
        """Answer prompts, with the documents of an adapter known but absent.

        Args:
          prompts: a question or several, each a text (a user turn) or a conversation of `{"role", "content"}` messages.
          contexts: the adapter's context that each prompt is about; needed where it has several and there is not one
            prompt for each.
          temperature, top_k, top_p, seed: as in `Sampling`; temperature 0 is greedy.

        Returns:
          A text for one prompt, a list for a list.

        Raises:
          UserError: a prompt longer than the window, an adapter of another target, contexts that do not fit.
        """
        one = isinstance(prompts, str) or bool(prompts and isinstance(prompts[0], dict))
        prompts = [prompts] if one else prompts
        ids = [self._prompt_ids(prompt, max_new_tokens) for prompt in prompts]
        sampling = Sampling(temperature, top_k, top_p, seed)
        out = self.generate_ids(ids, adapter, contexts=contexts, max_new_tokens=max_new_tokens, sampling=sampling)
        texts = [self.tokenizer.decode(tokens) for tokens in out]
        return texts[0] if one else texts

    def generate_ids(
        self,
        prompts: Sequence[Sequence[int]],
        adapter: Adapter | None = None,
        *,
        contexts: Sequence[int] | None = None,
        max_new_tokens: int = 64,
        sampling: Sampling | None = None,
    ) -> list[list[int]]:
        """As `generate`, on token ids, and also past the target's window; stops at the tokenizer's end tokens."""
        return self.generator.generate(
            prompts,
            max_new_tokens=max_new_tokens,
            stop_ids=self.tokenizer.eos_ids,
            adapter=self._for_queries(adapter, contexts, len(prompts)),
            sampling=sampling,
        )

    def stream(
        self,
        prompt: Prompt,
        adapter: Adapter | None = None,
        *,
        context: int | None = None,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[str]:
        """The answer to one prompt as pieces of text, as they come; arguments as in `generate`."""
        decoder = self.tokenizer.stream_decoder()
        tokens = self.generator.stream(
            [self._prompt_ids(prompt, max_new_tokens)],
            max_new_tokens=max_new_tokens,
            stop_ids=self.tokenizer.eos_ids,
            adapter=self._for_queries(adapter, None if context is None else [context], 1),
            sampling=Sampling(temperature, top_k, top_p, seed),
        )
        for _, token in tokens:
            if piece := decoder.step(token):
                yield piece
        if piece := decoder.finish():
            yield piece

    def logits(
        self, tokens_QT: Any, adapter: Adapter | None = None, *, contexts: Sequence[int] | None = None
    ) -> jax.Array:
        """Logits float32 `[Q, T, V]` of token ids int32 `[Q, T]`; rows may be padded on the right."""
        tokens_QT = jnp.asarray(tokens_QT, jnp.int32)
        factors = self._for_queries(adapter, contexts, tokens_QT.shape[0])
        return self._logits(self.target.params, tokens_QT, factors)

    @functools.cached_property
    def _logits(self):
        graphdef = abstract_decoder(self.target.config, stacked=False)[0]
        layers = self.target.config.num_hidden_layers

        def logits(params, tokens_QT, factors):
            per_layer = factors and adapter_layers(factors, layers)
            return nnx.merge(graphdef, params)(tokens_QT, adapter=per_layer)

        return jax.jit(logits)

    def _prompt_ids(self, prompt: Prompt, max_new_tokens: int) -> list[int]:
        if isinstance(prompt, str):
            if not prompt.strip():
                raise UserError("the question is empty: give a text with words in it.")
            ids = self.tokenizer.user_turn(prompt)
        else:
            ids = self.tokenizer.apply_chat(self.tokenizer.conversation(prompt))
        window = self.target.config.max_position_embeddings
        if len(ids) + max_new_tokens > window:
            raise UserError(
                f"the prompt has {len(ids)} tokens and {max_new_tokens} are to be generated, the window of "
                f"{self.target.name} is {window}: shorten it."
            )
        return ids

    def _for_queries(self, adapter: Adapter | None, contexts: Sequence[int] | None, queries: int) -> Factors | None:
        """The adapter's factors as the decoder takes them, one row a query, or one for all."""
        if adapter is None:
            return None
        if adapter.target_hash != self.target.weights_hash:
            raise UserError(
                f"the adapter was made for {adapter.target_name} (weights {adapter.target_hash[:12]}), the loaded "
                f"target is {self.target.name} (weights {self.target.weights_hash[:12]}): make it again for this one."
            )
        C = adapter.num_contexts
        if contexts is None:
            if C not in (1, queries):
                raise UserError(f"the adapter has {C} contexts for {queries} prompts: pair them through `contexts`.")
        elif len(contexts) != queries or not all(0 <= c < C for c in contexts):
            raise UserError(f"contexts is {list(contexts)}: give one of 0..{C - 1} for each of the {queries} prompts.")
        elif C > 1:
            adapter = adapter.select(np.asarray(contexts))
        return adapter.for_decoder(self.generator.dtype)


def _tokenizer(model: LoadedTarget) -> Tokenizer:
    if model.tokenizer is None:
        raise UserError(f"{model.name} has no tokenizer.json: add it to the folder, or work with token ids.")
    return model.tokenizer
