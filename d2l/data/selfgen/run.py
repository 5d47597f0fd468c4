"""Self-generated distillation data: from documents to records with the target's answers (paper section 4.2)."""

import collections
import dataclasses
import hashlib
import json
import logging
import pathlib
import shutil
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from d2l.data.record import Query, Record
from d2l.data.selfgen.answers import answer, mix_instructions
from d2l.data.selfgen.chat import Chat
from d2l.data.selfgen.config import SelfgenConfig
from d2l.data.selfgen.parts import Parts, check_same, write_file
from d2l.data.selfgen.questions import ask_questions
from d2l.data.selfgen.sources import read_work
from d2l.data.shards import write_records
from d2l.errors import UserError
from d2l.target.weights import LoadedTarget

FORMAT = "d2l-selfgen-1"
MANIFEST, THROUGHPUT = "manifest.json", "throughput.json"
RECORDS_PER_FILE = 8192
# Pairs of question and answer, answers, and documents of which nothing is left.
DROPPED = ("malformed", "duplicate", "unfinished answer", "empty answer", "documents without answers")

logger = logging.getLogger(__name__)


def selfgen(
    places: Sequence[str],
    out: str | pathlib.Path,
    target: LoadedTarget,
    config: SelfgenConfig,
    *,
    question_model: LoadedTarget | None = None,
    shard: tuple[int, int] = (0, 1),
) -> dict[str, Any] | None:
    """Ask about documents, let the target answer with the document in its prompt, and store what it says.

    Writes a folder of shards that training reads, with `manifest.json` (plan, counts, hashes; a pure function of the
    arguments) and `throughput.json` (tokens and seconds). The same call again goes on where it was stopped.

    Args:
      places: documents or records, as `read_work` takes them.
      question_model: asks the questions; None: the target does.
      shard: (i, n) makes only every n-th part from i on; when all of them are made, a call without shards collects
        them. The shards share the file system of `out`.

    Returns:
      The manifest, or None for a shard of several.

    Raises:
      UserError: unusable places, models or options, or an `out` that another command made.
    """
    out = pathlib.Path(out).absolute()
    answerer = Chat(target, config.batch_tokens)
    asker = answerer if question_model is None else Chat(question_model, config.batch_tokens)
    if config.top_k > target.config.vocab_size:
        raise UserError(f"top_k is {config.top_k}, {target.name} knows {target.config.vocab_size} tokens: give fewer.")
    work = read_work(places, asker, answerer, config)
    plan = _plan(config, target, question_model or target, work.sha256)
    if (out / MANIFEST).exists():
        manifest = json.loads((out / MANIFEST).read_text())
        check_same(out, manifest, plan)
        shutil.rmtree(_parts_folder(out), ignore_errors=True)
        logger.info("%s is complete", out)
        return manifest
    if out.exists() and not _parts_folder(out).is_dir():
        raise UserError(f"{out} stands already and holds no self-generated data: give another --out.")

    # ---------------------------------------------------------------- parts
    size, records = config.part_size, work.records
    count = -(-len(records) // size)
    parts = Parts(_parts_folder(out), plan, count)
    if work.truncated:
        logger.warning("%d documents are too long for the window and lose their middle", work.truncated)
    for number in parts.missing(*shard):
        began = time.perf_counter()
        made, counts, rates = make_part(asker, answerer, records[number * size : (number + 1) * size], config, number)
        parts.save(number, made, counts, rates)
        logger.info(
            "part %d of %d: %d documents, %d answers, %d tokens generated, %.0f s, %.0f tokens/s",
            *(number + 1, count, len(made), sum(len(record.queries) for record in made)),
            *(rates["question_tokens"] + rates["answer_tokens"], time.perf_counter() - began, _speed(rates)),
        )
    if shard[1] > 1:
        logger.info("%d of %d parts are missing still", len(parts.missing()), count)
        return None

    # ---------------------------------------------------------------- all of them together
    counts = parts.counts()
    if not counts["records"]:
        raise UserError(f"no question about {len(records)} documents was answered: try another model or more tokens.")
    shards = -(-counts["records"] // RECORDS_PER_FILE)
    write_records(out, parts.records(), shards=shards, teacher=target.weights_hash)
    totals = {name: counts[name] for name in ("records", "queries", "response_tokens")}
    manifest = plan | {
        "given": {"documents": work.given, "passages": len(records), "truncated": work.truncated},
        **totals,
        "dropped": {"documents without questions": work.without_questions} | {name: counts[name] for name in DROPPED},
        "files": {path.name: _sha256(path) for path in sorted(out.iterdir())},
    }
    rates = parts.rates()
    throughput = dict(rates) | {"tokens_per_second": round(_speed(rates), 1)}
    write_file(out / THROUGHPUT, (json.dumps(throughput, indent=2) + "\n").encode())
    write_file(out / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())  # last: it says that all is there
    parts.remove()
    return manifest


def make_part(
    asker: Chat, answerer: Chat, records: Sequence[Record], config: SelfgenConfig, number: int
) -> tuple[list[Record], collections.Counter[str], collections.Counter[str]]:
    """Records with questions and the target's answers, in the order of `records`; those left without any are dropped.

    Args:
      number: of the part; a part draws from seeds of its own.

    Returns:
      Records; what was counted: `records`, `queries`, `response_tokens`, and what was left out, by reason; and
      tokens and seconds, `question_tokens`, `question_seconds`, `answer_tokens`, `answer_seconds`.
    """
    counts: collections.Counter[str] = collections.Counter()
    rates: collections.Counter[str] = collections.Counter()
    done: list[Record | None] = [None] * len(records)
    for place, group in enumerate(answerer.groups([record.context for record in records])):
        rng = np.random.default_rng((config.seed, number, place))
        contexts = [records[i].context for i in group]

        # ---- questions
        began = time.perf_counter()
        read = None
        queries: list[Sequence[Query]] = [records[i].queries for i in group]
        if config.questions == "generate":
            read = asker.read(contexts)
            questions, tokens = ask_questions(asker, read, contexts, config, rng, counts)
            queries = [[Query(question, ()) for question in asked] for asked in questions]
            rates["question_tokens"] += tokens
        rates["question_seconds"] += time.perf_counter() - began

        # ---- answers
        began = time.perf_counter()
        if read is None or asker is not answerer:
            read = answerer.read(contexts)
        mixed = [mix_instructions(asked, config.closed_qa, rng) for asked in queries]
        asked = [(document, query) for document, several in enumerate(mixed) for query in several]
        answered = answer(answerer, read, asked, config, int(rng.integers(1 << 30)), counts)
        kept: list[list[Query]] = [[] for _ in group]
        for (document, _), query in zip(asked, answered, strict=True):
            if query is not None:
                kept[document].append(query)
                rates["answer_tokens"] += len(query.teacher.response)
        rates["answer_seconds"] += time.perf_counter() - began
        for i, several in zip(group, kept, strict=True):
            if several:
                done[i] = dataclasses.replace(records[i], queries=tuple(several))

    made = [record for record in done if record is not None]
    counts["documents without answers"] += len(records) - len(made)
    counts["records"] += len(made)
    counts["queries"] += sum(len(record.queries) for record in made)
    counts["response_tokens"] += sum(len(q.teacher.response) for record in made for q in record.queries)
    return made, counts, rates


def _plan(config: SelfgenConfig, target: LoadedTarget, question_model: LoadedTarget, sha256: str) -> dict[str, Any]:
    """Everything that the records depend on."""

    def model(loaded: LoadedTarget) -> dict[str, str]:
        dtype = str(loaded.params["embed_tokens"].dtype)
        return {"name": loaded.name, "weights_hash": loaded.weights_hash, "dtype": dtype}

    return {
        "format": FORMAT,
        "config": dataclasses.asdict(config),
        "target": model(target),
        "question_model": model(question_model),
        "documents_sha256": sha256,
    }


def _parts_folder(out: pathlib.Path) -> pathlib.Path:
    return out.with_name(f"{out.name}.parts")


def _speed(rates: collections.Counter[str]) -> float:
    """Generated tokens a second."""
    seconds = rates["question_seconds"] + rates["answer_seconds"]
    return (rates["question_tokens"] + rates["answer_tokens"]) / seconds if seconds else 0.0


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
