"""Text to token ids and back, and the target's chat template.

Text never becomes a control token: a document that contains `<|im_end|>` is encoded letter by letter, in `encode` and
inside a chat turn alike.
"""

import bisect
import datetime
import functools
import json
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import jinja2
import jinja2.sandbox
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from d2l.errors import UserError

Message = dict[str, str]
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
# A mark of its end, what closes around it, and white space; or a line's end.
SENTENCE_ENDS = re.compile(r"[.!?]+[\"')\]]*(?=\s)|[\u3002\uff01\uff1f]+|\n\s*")
# Our own small targets talk ChatML without a default system turn.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTROL, USER_DEFINED = 3, 4  # token types of GGUF
TEMPLATE_CODE_ERRORS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError)  # of expressions in one


class Tokenizer:
    """A `tokenizers.Tokenizer` with a chat template.

    Attributes:
      core: the wrapped tokenizer; special tokens in text are encoded as text.
      chat_template: Jinja source, or None.
      bos_id, eos_ids, pad_id: ids of the control tokens; generation stops at any of `eos_ids`.
    """

    def __init__(
        self,
        core: tokenizers.Tokenizer,
        *,
        chat_template: str | None,
        bos_id: int | None,
        eos_ids: Sequence[int],
        pad_id: int | None,
    ):
        self.core = core
        self.core.encode_special_tokens = True
        self.core.no_truncation()
        self.core.no_padding()
        self.chat_template = chat_template
        self.bos_id, self.eos_ids = bos_id, tuple(eos_ids)
        self.pad_id = pad_id if pad_id is not None else (self.eos_ids[0] if self.eos_ids else 0)
        controls = {token.content: i for i, token in core.get_added_tokens_decoder().items()}
        self._controls = controls
        ordered = sorted(map(re.escape, controls), key=len, reverse=True)
        self._control_pattern = re.compile(f"({'|'.join(ordered)})") if ordered else None

    @property
    def vocab_size(self) -> int:
        return self.core.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, without anything before or after it."""
        return self.core.encode(text, add_special_tokens=False).ids

    def encode_sentences(self, text: str) -> tuple[list[int], list[int]]:
        """Ids as `encode` gives them, and the places in them where a sentence or a line begins, but for the first."""
        encoded = self.core.encode(text, add_special_tokens=False)
        begins = [begin for begin, _ in encoded.offsets]
        ends = (found.end() for found in SENTENCE_ENDS.finditer(text))
        starts = {bisect.bisect_left(begins, end) for end in ends}
        return encoded.ids, sorted(starts - {0, len(begins)})

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of ids."""
        return self.core.decode(list(ids), skip_special_tokens=skip_special)

    def stream_decoder(self) -> "StreamDecoder":
        """A decoder that takes one id at a time."""
        return StreamDecoder(self.core)

    def apply_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
        """Ids of a conversation in the model's own template.

        Args:
          messages: `{"role": ..., "content": ...}` in order.

        Raises:
          UserError: the model has no template, or its template rejects these messages.
        """
        # Mark each content, render, and only then look for control tokens: what the template wrote is a control token,
        # what a user wrote is not. The spaces show whether the template trims the content.
        if any(not isinstance(message.get(key), str) for message in messages for key in ("role", "content")):
            raise UserError("a message lacks its role or content: give each as {'role': ..., 'content': ...} texts.")
        marks = [f" \ue000{i}\ue001 " for i in range(len(messages))]
        masked = [message | {"content": mark} for message, mark in zip(messages, marks, strict=True)]
        rendered = self._render(masked, add_generation_prompt)
        ids: list[int] = []
        parts = self._control_pattern.split(rendered) if self._control_pattern else [rendered]
        for i, part in enumerate(parts):
            if i % 2:
                ids.append(self._controls[part])
                continue
            text = re.sub("( ?)\ue000(\\d+)\ue001( ?)", lambda found: _content(found, messages), part)
            if text:
                ids += self.encode(text)
        return ids

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        if self.chat_template is None:
            raise UserError("the target has no chat template: give a chat model, or a folder whose tokenizer has one.")
        try:
            return _compile(self.chat_template).render(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                bos_token=self._token(self.bos_id),
                eos_token=self._token(self.eos_ids[0] if self.eos_ids else None),
            )
        except (jinja2.TemplateError, *TEMPLATE_CODE_ERRORS) as error:
            raise UserError(f"the target's chat template rejects these messages: {error}.") from error

    def _token(self, index: int | None) -> str:
        return "" if index is None else self.core.id_to_token(index)

    @functools.cached_property
    def turn_wrapper(self) -> tuple[list[int], list[int]]:
        """Ids before and after the text of a user turn with an empty system turn and a generation prompt (SPEC 2).

        Templates that reject a system turn (Gemma) get none.
        """
        user = {"role": "user", "content": "\ue002"}
        try:
            ids = self.apply_chat([{"role": "system", "content": ""}, user])
        except UserError:
            ids = self.apply_chat([user])
        mark = self.encode("\ue002")
        for start in range(len(ids) - len(mark) + 1):
            if ids[start : start + len(mark)] == mark:
                return ids[:start], ids[start + len(mark) :]
        raise UserError("the target's chat template changes the user's text: it cannot wrap a document.")

    def user_turn(self, text: str) -> list[int]:
        """Ids of `text` as a user turn, wrapped as documents are: how questions are asked in training and in use."""
        prefix, suffix = self.turn_wrapper
        return prefix + self.encode(text) + suffix

    def conversation(self, messages: Sequence[Message]) -> list[Message]:
        """The messages after an empty system turn, as in `turn_wrapper`, unless they begin with a system turn."""
        if messages and messages[0]["role"] == "system":
            return list(messages)
        whole = [{"role": "system", "content": ""}, *messages]
        try:
            self._render(whole, True)
        except UserError:
            return list(messages)
        return whole

    def document_turn(self, document: str, question: str) -> list[int]:
        """Ids of the teacher's prompt: document, blank line and question in one user turn."""
        prefix, suffix = self.turn_wrapper
        return prefix + self.encode(document) + self.encode("\n\n") + self.encode(question) + suffix

    def save(self, folder: str | pathlib.Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, as `from_folder` and transformers read them."""
        folder = pathlib.Path(folder)
        self.core.save(str(folder / "tokenizer.json"))
        fields = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "chat_template": self.chat_template,
            "bos_token": self._token(self.bos_id) or None,
            "eos_token": self._token(self.eos_ids[0]) if self.eos_ids else None,
            "pad_token": self._token(self.pad_id),
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(fields, indent=2) + "\n")

    @classmethod
    def from_folder(cls, folder: str | pathlib.Path, eos_ids: Sequence[int] = ()) -> "Tokenizer":
        """Read a Hugging Face folder; `eos_ids` of the model's config are added to the tokenizer's own."""
        folder = pathlib.Path(folder)
        try:
            core = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            config_file = folder / "tokenizer_config.json"
            fields = json.loads(config_file.read_text()) if config_file.exists() else {}
            template = fields.get("chat_template")
            if isinstance(template, list):  # several named templates
                template = next((t["template"] for t in template if t["name"] == "default"), None)
            if (folder / "chat_template.jinja").exists():
                template = (folder / "chat_template.jinja").read_text()

            def index(name: str) -> int | None:
                token = fields.get(name)
                token = token["content"] if isinstance(token, dict) else token
                return None if token is None else core.token_to_id(token)

            eos = [i for i in (index("eos_token"), *eos_ids) if i is not None]
            bos, pad = index("bos_token"), index("pad_token")
        except Exception as error:  # tokenizers raises a bare Exception on a damaged file
            raise UserError(f"the tokenizer in {folder} cannot be read ({error}): fetch it again.") from error
        return cls(core, chat_template=template, bos_id=bos, eos_ids=tuple(dict.fromkeys(eos)), pad_id=pad)

    @classmethod
    def from_gguf(cls, metadata: dict[str, Any]) -> "Tokenizer":
        """Build the tokenizer that a GGUF file describes.

        Raises:
          UserError: a kind or pre-tokenizer that is not supported, keys that are missing or do not fit together.
        """
        kind = metadata.get("tokenizer.ggml.model")
        if kind not in ("gpt2", "llama"):
            raise UserError(f"the GGUF's tokenizer is of kind {kind!r}: supported are gpt2 and llama.")
        try:
            return cls._from_gguf(kind, metadata)
        except UserError:
            raise
        except Exception as error:  # tokenizers raises a bare Exception on a vocabulary that does not fit together
            reason = f"no {error}" if isinstance(error, KeyError) else error
            raise UserError(f"the GGUF's tokenizer is damaged ({reason}): fetch the file again.") from error

    @classmethod
    def _from_gguf(cls, kind: str, metadata: dict[str, Any]) -> "Tokenizer":
        tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
        vocab = {token: i for i, token in enumerate(tokens)}
        if kind == "gpt2":
            merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
            core = tokenizers.Tokenizer(models.BPE(vocab, merges, ignore_merges=False))
            _set_byte_level(core, metadata.get("tokenizer.ggml.pre", "default"))
        else:
            core = _sentencepiece(vocab, metadata)
        typed = list(zip(tokens, types, strict=True))
        core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, k in typed if k == CONTROL])
        core.add_tokens([AddedToken(t, normalized=False) for t, k in typed if k == USER_DEFINED])
        ids = {name: metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "eot", "padding")}
        if lost := [name for name, i in ids.items() if i is not None and not 0 <= i < len(tokens)]:
            raise UserError(f"the GGUF's {lost[0]} token is {ids[lost[0]]}, outside its vocabulary of {len(tokens)}.")
        return cls(
            core,
            chat_template=metadata.get("tokenizer.chat_template"),
            bos_id=ids["bos"],
            eos_ids=tuple(dict.fromkeys(i for i in (ids["eos"], ids["eot"]) if i is not None)),
            pad_id=ids["padding"],
        )

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """A byte-level BPE tokenizer with single digits and a ChatML template, for small targets of one's own."""
        core = tokenizers.Tokenizer(models.BPE())
        _set_byte_level(core, "smollm")
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        core.train_from_iterator(texts, trainer)
        ids = {name: core.token_to_id(name) for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")}
        return cls(
            core,
            chat_template=CHATML,
            bos_id=ids["<|im_start|>"],
            eos_ids=(ids["<|im_end|>"],),
            pad_id=ids["<|endoftext|>"],
        )


class StreamDecoder:
    """Turns ids into text as they come, holding back the bytes of an unfinished character."""

    def __init__(self, core: tokenizers.Tokenizer):
        self._core = core
        self._stream = decoders.DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._sent = 0

    def step(self, index: int) -> str:
        """The text that this id completes, often empty."""
        self._ids.append(index)
        text = self._stream.step(self._core, index) or ""
        self._sent += len(text)
        return text

    def finish(self) -> str:
        """What was held back to the end: characters that never became whole."""
        return self._core.decode(self._ids, skip_special_tokens=True)[self._sent :]


@functools.cache
def _compile(source: str) -> jinja2.Template:
    """The template in a sandbox, with the helpers that Hugging Face templates expect."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )

    def raise_exception(message: str):
        raise jinja2.TemplateError(message)

    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(source)


def _content(found: re.Match, messages: Sequence[Message]) -> str:
    content = messages[int(found[2])]["content"]
    content = content if found[1] else content.lstrip()
    return content if found[3] else content.rstrip()


def _set_byte_level(core: tokenizers.Tokenizer, pre: str) -> None:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

    def split(pattern):
        return pre_tokenizers.Sequence(
            [pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated"), byte_level]
        )

    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    kinds = {
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2]),
        "gpt-2": gpt2,
        "llama-bpe": split(LLAMA3_SPLIT),
        "qwen2": split(QWEN2_SPLIT),
    }
    if pre not in kinds:
        raise UserError(f"the GGUF's pre-tokenizer {pre!r} is not supported: it must be one of {', '.join(kinds)}.")
    core.pre_tokenizer = kinds[pre]
    core.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        core.normalizer = normalizers.NFC()


def _sentencepiece(vocab: dict[str, int], metadata: dict[str, Any]) -> tokenizers.Tokenizer:
    """A SentencePiece BPE vocabulary: a pair merges where its join is a piece, best score first."""
    scores = metadata["tokenizer.ggml.scores"]
    merges = []
    for piece, index in vocab.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocab and right in vocab:
                merges.append((-scores[index], vocab[left], vocab[right], left, right))
    unknown = metadata["tokenizer.ggml.tokens"][metadata.get("tokenizer.ggml.unknown_token_id", 0)]
    model = models.BPE(vocab, [m[3:] for m in sorted(merges)], unk_token=unknown, fuse_unk=True, byte_fallback=True)
    core = tokenizers.Tokenizer(model)
    steps = [normalizers.Replace(" ", "▁")]
    strip = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        steps.insert(0, normalizers.Prepend("▁"))
        strip.append(decoders.Strip(" ", 1, 0))
    core.normalizer = normalizers.Sequence(steps)
    core.decoder = decoders.Sequence(strip)
    return core
