"""`d2l eval --config`: every method on every case of every suite, item by item, then the report.

An item is a pure function of config and case; a killed evaluation goes on where it was, and only what was measured
in seconds and bytes of memory differs between two runs.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import tqdm

import d2l
from d2l.data.record import Query
from d2l.errors import UserError
from d2l.experiments.baselines.face import Answer, Memory, Method, NotRun
from d2l.experiments.baselines.forced import Forced
from d2l.experiments.baselines.methods import check_method, make_method
from d2l.experiments.items import FOLDER, Items
from d2l.experiments.metrics import METRICS, score, token_kl
from d2l.experiments.report.write import write_report
from d2l.experiments.suites import Case, check_suite, make_cases
from d2l.model import DocToLora
from d2l.train import workdir as workdirs

TEACHER = "in_context"
ALL_METRICS = (*METRICS, "kl")
logger = logging.getLogger(__name__)
FIELDS = {
    "kind": "eval",
    "target": "",
    "hypernet": "",
    "ctx_encoder": "",
    "dtype": "float32",
    "max_new_tokens": 32,
    "metrics": ALL_METRICS,
    "methods": {},
    "suites": {},
}


def check_config(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of an evaluation with defaults filled in.

    Raises:
      UserError: an unknown field, metric, method or option, or nothing to evaluate.
    """
    if fields.get("kind", "eval") != "eval":
        raise UserError(f"the config is of kind {fields['kind']!r}: give one that evaluates, like configs/eval_qa.py.")
    if unknown := [name for name in fields if name not in FIELDS]:
        raise UserError(f"an evaluation has no field {unknown[0]!r}: give some of {', '.join(FIELDS)}.")
    fields = FIELDS | fields
    if unknown := [name for name in fields["metrics"] if name not in ALL_METRICS]:
        raise UserError(f"there is no metric {unknown[0]!r}: give some of {', '.join(ALL_METRICS)}.")
    for what in ("methods", "suites", "metrics"):
        if not fields[what]:
            raise UserError(f"the evaluation has no {what}: give at least one.")
    for name, options in fields["methods"].items():
        check_method(*_split(name, options))
    for name, options in fields["suites"].items():
        check_suite(name, options)
    if "kl" in fields["metrics"] and _method_name(fields, TEACHER) != TEACHER:
        raise UserError(f"the metric kl needs the method {TEACHER}, the teacher: add it, or leave kl out.")
    return fields


def evaluate(fields: dict[str, Any], folder: str | pathlib.Path) -> pathlib.Path:
    """Answer what is not answered yet, and write the report.

    Args:
      fields: of the config, as plain dicts.
      folder: the workdir.

    Returns:
      Where the Markdown report is.

    Raises:
      UserError: a config that cannot be used, or a workdir of another one or of other weights.
    """
    fields = check_config(fields)
    with workdirs.opened(folder, fields):
        folder = pathlib.Path(folder)
        model = d2l.load(
            fields["target"] or None,
            fields["hypernet"] or None,
            ctx_encoder=fields["ctx_encoder"] or None,
            dtype=fields["dtype"],
        )
        _check_weights(folder, model)
        suites = {name: make_cases(name, options, model.tokenizer) for name, options in fields["suites"].items()}
        methods, not_run = _make_methods(model, fields)
        (folder / "not_run.json").write_text(json.dumps(not_run, indent=2, sort_keys=True) + "\n")
        run = Run(model, methods, fields["metrics"])
        for name, cases in suites.items():
            run.suite(name, cases, folder / FOLDER / name)
        return write_report(folder)


def _check_weights(folder: pathlib.Path, model: DocToLora) -> None:
    """Refuse a workdir whose items come from other weights; paths in a config do not say which they were."""
    weights = {"target": model.target.weights_hash}
    if model.hypernet is not None:
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(model.hypernet.params):
            digest.update(np.asarray(leaf).tobytes())
        weights["hypernet"] = digest.hexdigest()
    path = folder / "weights.json"
    if not path.exists():
        new = path.with_suffix(".new")  # whole or not there, should this end here
        new.write_text(json.dumps(weights, indent=2) + "\n")
        new.replace(path)
    elif other := [name for name, value in json.loads(path.read_text()).items() if weights.get(name) != value]:
        raise UserError(f"{folder} holds answers with other weights of the {other[0]}: choose another --workdir.")


def _make_methods(model: DocToLora, fields: dict[str, Any]) -> tuple[dict[str, Method], dict[str, str]]:
    """The methods that can run, the teacher first, and why the others cannot."""
    methods: dict[str, Method] = {}
    not_run: dict[str, str] = {}
    for name in sorted(fields["methods"], key=lambda name: name != TEACHER):
        kind, options = _split(name, fields["methods"][name])
        try:
            methods[name] = make_method(model, kind, fields["max_new_tokens"], options)
        except NotRun as error:
            logger.warning("%s is not run: %s", name, error)
            not_run[name] = str(error)
    return methods, not_run


def _split(name: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Which method an entry of a config is, and its options; an entry of that name need not say it."""
    options = dict(options)
    return options.pop("method", name), options


def _method_name(fields: dict[str, Any], name: str) -> str | None:
    return _split(name, fields["methods"][name])[0] if name in fields["methods"] else None


# The teacher's response to a query of a case, and its logits there.
Teach = Callable[[Query], tuple[list[int], jax.Array]]


@dataclasses.dataclass
class Run:
    """Methods that answer cases, and what they share: the teacher of each question."""

    model: DocToLora
    methods: dict[str, Method]
    metrics: Sequence[str]

    @functools.cached_property
    def _forced(self) -> Forced:
        return Forced(self.model)

    def suite(self, name: str, cases: Sequence[Case], folder: pathlib.Path) -> None:
        """Answer all cases of a suite, case by case, each with all methods."""
        items = {
            key: Items(folder / f"{key}.jsonl", [case for case in cases if method.adapts or case.scale == 1])
            for key, method in self.methods.items()
        }
        responses: dict[tuple[Any, ...], list[int]] = {}
        for case in tqdm.tqdm(cases, desc=name, disable=None, leave=False):
            teach = functools.cache(functools.partial(self._teacher_logits, case, responses))
            for key, method in self.methods.items():
                if case.scale != 1 and not method.adapts:
                    continue
                if case not in items[key]:
                    items[key].add(case, self._answer(key, method, case, teach))
                if key == TEACHER:
                    for query, row in zip(case.queries, items[key].rows[case.id], strict=True):
                        responses[case.documents, query.question, query.start] = row["tokens"]

    def _answer(self, key: str, method: Method, case: Case, teach: Teach) -> list[dict[str, Any]]:
        memory, update = method.update(case.documents, [query.question for query in case.queries])
        memory = memory.scaled(case.scale) if case.scale != 1 else memory
        rows = []
        for number, query in enumerate(case.queries):
            begun = self._begun(memory, query)
            answer = method.recall(begun, update, query.question)
            scores = score(answer.text, query.answers, [name for name in self.metrics if name != "kl"])
            if "kl" in self.metrics:
                response, logits = (answer.tokens, None) if key == TEACHER else teach(query)
                scores["kl"] = 0.0 if logits is None else self._kl(begun, query, response, logits)
            rows.append(_row(case, number, query, answer, scores))
        return rows

    def _begun(self, memory: Memory, query: Query) -> Memory:
        return memory.begun(self.model.tokenizer.encode(query.start)) if query.start else memory

    def _teacher_logits(self, case: Case, responses: dict, query: Query) -> tuple[list[int], jax.Array]:
        """What the target answers with the documents in its prompt, with its end, and its logits there."""
        tokens = responses[case.documents, query.question, query.start]
        method = self.methods[TEACHER]
        response = tokens if len(tokens) == method.max_new_tokens else [*tokens, self.model.tokenizer.eos_ids[0]]
        memory = self._begun(method.remember(case.documents, [query.question]), query)
        return response, self._forced.logits(memory, query.question, response)

    def _kl(self, memory: Memory, query: Query, response: list[int], teacher: jax.Array) -> float:
        """Mean over the teacher's response."""
        return float(token_kl(teacher, self._forced.logits(memory, query.question, response)).mean())


def _row(case: Case, number: int, query: Query, answer: Answer, scores: dict[str, float]) -> dict[str, Any]:
    return {
        "case": case.id,
        "query": number,
        "group": case.group,
        "length": case.length,
        "depth": case.depth,
        "scale": case.scale,
        "kind": query.kind,
        "question": query.question,
        "start": query.start,
        "references": list(query.answers),
        "answer": answer.text,
        "tokens": answer.tokens,
        "scores": scores,
        "adapter_bytes": answer.adapter_bytes,
        "kv_bytes": answer.kv_bytes,
        "prompt_tokens": answer.prompt_tokens,
        "cut_tokens": answer.cut_tokens,
        "measured": {
            "update_seconds": answer.update.seconds,
            "answer_seconds": answer.answer.seconds,
            "first_token_seconds": answer.first_token_seconds,
            "update_peak_bytes": answer.update.peak_bytes,
            "answer_peak_bytes": answer.answer.peak_bytes,
        },
    }
