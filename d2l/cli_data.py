"""The `d2l data` commands: documents, published sets and made ones as records.

What `--out` names decides the form: `FILE.jsonl` is JSON lines, anything else a folder of ArrayRecord shards, which
training reads.
"""

import argparse
import dataclasses
import functools
import itertools
import logging
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from d2l.cli_options import read_lengths, target_tokenizer
from d2l.errors import UserError

ANSWER_FORMS = "value; spaced, tokens as in a text; sentence; continued, which trains on a sentence from its value on"
SPLITS = ("train", "validation", "test")


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare them; `command(name, run, text, model=False)` makes the parser of one."""
    parser = command("data", None, "make and check data sets", model=False)
    kinds = parser.add_subparsers(dest="data", required=True, metavar="KIND")

    def kind(name: str, run: Callable[..., None], text: str, *, out: bool = True, tokens: bool = True):
        sub = kinds.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        if out:
            sub.add_argument("--out", required=True, help="FILE.jsonl, or a folder of shards")
        if tokens:
            sub.add_argument("--target", help="whose tokenizer counts the tokens (default: SmolLM2-135M-Instruct)")
        return sub

    sub = kind("documents", documents, "files, folders and globs as records without questions")
    sub.add_argument("places", nargs="+", help="text, HTML, PDF, DOCX or EPUB; folders; globs like docs/**/*.md")
    sub.add_argument("--split", choices=SPLITS, default="train", help="the split that they are")
    _add_passages(sub)

    sub = kind("corpus", corpus, "the documents installed on this machine, split by packages")
    sub.add_argument("--kinds", default="man,python,packages")
    sub.add_argument("--split", choices=SPLITS, default="train", help="which documents of the corpus")
    sub.add_argument("--limit", type=int, help="most documents of each kind, all splits together")
    _add_passages(sub)

    sub = kind("wikipedia", wikipedia, "articles of a MediaWiki dump")
    sub.add_argument("dump", help="pages-articles.xml, or .xml.bz2, as Wikipedia gives them")
    sub.add_argument("--split", choices=SPLITS, default="train", help="which articles")
    _add_passages(sub)

    sub = kind("cloze", cloze, "questions about any texts: names, years and numbers that stand in them", tokens=False)
    sub.add_argument("records", help="FILE.jsonl or a folder of shards; their own questions are left out")
    sub.add_argument(
        "--queries", type=int, default=3, help="most questions about a text; texts without any are left out"
    )
    sub.add_argument("--plain", action="store_true", help="only questions without a blank; few sentences give one")
    _add_asked(sub)

    sub = kind("questions", questions, "questions about any texts without answers, for `d2l selfgen`", tokens=False)
    sub.add_argument("records", help="FILE.jsonl or a folder of shards; their own questions are left out")
    sub.add_argument(
        "--queries", type=int, default=3, help="most questions about a text; texts without any are left out"
    )
    _add_closed_qa(sub)

    sub = kind("unrelated", unrelated, "pages about invented people with questions that they have nothing to do with")
    sub.add_argument("--split", choices=SPLITS, default="train", help="splits share neither pages nor questions")
    sub.add_argument("--samples", type=int, default=1000)
    sub.add_argument("--lengths", default="64-512", help="tokens, as 64-512")
    sub.add_argument("--queries", type=int, default=2, help="questions about a page")
    _add_asked(sub)

    sub = kind("biographies", biographies, "pages about invented people, with questions")
    sub.add_argument("--split", choices=SPLITS, default="train", help="splits share no names, towns and phrasings")
    sub.add_argument("--samples", type=int, default=1000)
    sub.add_argument("--lengths", default="64-512", help="tokens, as 64-512")
    sub.add_argument("--queries", type=int, help="most questions about a page (default: all)")
    sub.add_argument("--kinds", help="of questions, as fact,who,multi_hop,contradiction (default: all)")
    _add_asked(sub)

    sub = kind("ruler", ruler, "the needle tasks of RULER: keys, values and haystacks of several kinds")
    sub.add_argument("--tasks", default="single_1,single_2,single_3,multikey_1")
    sub.add_argument("--split", choices=SPLITS, default="train", help="splits share no nouns of keys and no texts")
    sub.add_argument("--samples", type=int, default=1000, help="of each task")
    sub.add_argument("--lengths", default="32-256", help="tokens, as 32-256")
    sub.add_argument("--needles", help="keys with a value, as 1-8, instead of the tasks' own number")
    sub.add_argument("--queries", type=int, default=1, help="most questions about a document, for training")
    sub.add_argument(
        "--answers",
        default="value",
        help=f"{ANSWER_FORMS}; joined, a sentence without a space before the value; quoted, the "
        "document's own, joined; the first two ask for values alone",
    )
    sub.add_argument(
        "--words",
        default="ruler",
        help="of keys: ruler; few, which keys share; vocabulary, any of the target's, which a document's keys share",
    )
    sub.add_argument("--seed", type=int, default=0)

    sub = kind("qa", qa, "a published question-answering set", tokens=False)
    sub.add_argument(
        "name", help="squad, drop, ropes, pwc, 2wikimqa_e, multifieldqa_en_e, qasper_e, babilong_qaN, plain"
    )
    sub.add_argument("--place", required=True, help="file, folder, hf:OWNER/NAME or tfds:NAME")
    sub.add_argument("--split", choices=SPLITS, default="train")

    sub = kind("repoqa", repoqa, "find a function by its description in a window of code")
    sub.add_argument("--place", required=True, help="a folder of Python files, or RepoQA's JSON")
    sub.add_argument("--tokens", type=int, default=1024, help="length of the window")
    sub.add_argument("--samples", type=int, default=100, help="functions of a folder; RepoQA's JSON is taken whole")
    sub.add_argument("--seed", type=int, default=0)

    sub = kind("babilong", babilong, "stories of small events between the sentences of other texts")
    sub.add_argument("places", nargs="+", help="documents whose sentences are the background")
    sub.add_argument("--tasks", default="qa1,qa2,qa3")
    sub.add_argument("--samples", type=int, default=100, help="of each task")
    sub.add_argument("--lengths", default="256-1024", help="tokens, as 256-1024")
    sub.add_argument("--seed", type=int, default=0)

    sub = kind("overlap", overlap, "refuse test contexts that are trained on", out=False, tokens=False)
    sub.add_argument("train", help="records: FILE.jsonl or a folder of shards")
    sub.add_argument("test", nargs="+", help="records")

    sub = kind("view", view, "a local page of records, their questions, answers and probabilities", out=False)
    sub.add_argument("records", help="FILE.jsonl or a folder of shards")
    sub.add_argument("--html", help="write all records to this file, and serve nothing")
    sub.add_argument("--port", type=int, default=8000, help="of the page; 0 is any free one")


def _add_passages(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--max-tokens", type=int, help="cut longer documents to passages of at most so many tokens")
    sub.add_argument("--min-tokens", type=int, default=1, help="leave shorter passages out")


def _add_asked(sub: argparse.ArgumentParser) -> None:
    _add_closed_qa(sub)
    sub.add_argument("--answers", default="value", help=ANSWER_FORMS)


def _add_closed_qa(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--closed-qa", type=float, default=0.0, help="share of questions that ask for a short answer")
    sub.add_argument("--seed", type=int, default=0)


# ---------------------------------------------------------------- commands


def documents(args: argparse.Namespace) -> None:
    from d2l.data.documents import read_documents
    from d2l.data.record import Record

    records = (Record(d.name, d.text, (), "documents", args.split) for d in read_documents(args.places))
    _write(args, _passages(args, records))


def corpus(args: argparse.Namespace) -> None:
    from d2l.data.corpus import read_corpus

    logging.getLogger("d2l.data.corpus").setLevel(logging.INFO)
    logging.basicConfig(format="%(message)s")
    records = read_corpus(args.kinds.split(","), args.limit)
    _write(args, _passages(args, (record for record in records if record.split == args.split)))


def wikipedia(args: argparse.Namespace) -> None:
    from d2l.data.wikipedia import read_wikipedia

    _write(args, _passages(args, (record for record in read_wikipedia(args.dump) if record.split == args.split)))


def cloze(args: argparse.Namespace) -> None:
    import numpy as np

    from d2l.data.cloze import ask_about

    records = (
        ask_about(
            record, np.random.default_rng((args.seed, number)), args.queries, answers=args.answers, plain=args.plain
        )
        for number, record in enumerate(_read(args.records))
    )
    _write(args, _asked(args, records))


def questions(args: argparse.Namespace) -> None:
    import numpy as np

    from d2l.data.open_questions import ask_openly

    records = (
        ask_openly(record, np.random.default_rng((args.seed, number)), args.queries)
        for number, record in enumerate(_read(args.records))
    )
    _write(args, _asked(args, records))


def unrelated(args: argparse.Namespace) -> None:
    from d2l.data.biographies.generate import unrelated as make

    ((low, high),) = read_lengths(args.lengths, one=True)
    tokenizer = target_tokenizer(args.target)
    pages = make(args.split, args.seed, tokenizer, low, high, queries=args.queries, answers=args.answers)
    _write(args, _asked(args, itertools.islice(pages, args.samples)))


def biographies(args: argparse.Namespace) -> None:
    from d2l.data.biographies.generate import biographies as make
    from d2l.data.biographies.questions import KINDS
    from d2l.data.record import Record

    ((low, high),) = read_lengths(args.lengths, one=True)
    kinds = KINDS if args.kinds is None else args.kinds.split(",")
    if unknown := set(kinds) - set(KINDS):
        raise UserError(f"--kinds has {sorted(unknown)[0]!r}: give some of {', '.join(KINDS)}.")

    tokenizer = target_tokenizer(args.target)
    pages = make(args.split, args.seed, args.samples, tokenizer, low, high, answers=args.answers)

    def chosen(page: Record) -> Record:
        queries = tuple(query for query in page.queries if query.kind in kinds)
        return dataclasses.replace(page, queries=queries[: args.queries])

    _write(args, _asked(args, map(chosen, pages)))


def ruler(args: argparse.Namespace) -> None:
    from d2l.data.ruler import ruler_at

    ((low, high),) = read_lengths(args.lengths, one=True)
    tokenizer = target_tokenizer(args.target)
    needles = None if args.needles is None else read_lengths(args.needles, one=True)[0]
    options = {
        "needles": needles,
        "queries": args.queries,
        "answers": args.answers,
        "short": args.answers in ("value", "spaced"),
        "words": args.words,
    }
    items = itertools.product(range(args.samples), args.tasks.split(","))
    make = functools.partial(ruler_at, tokenizer=tokenizer, min_tokens=low, max_tokens=high, **options)
    _write(args, (make(task, args.split, args.seed, index) for index, task in items))


def qa(args: argparse.Namespace) -> None:
    from d2l.data.qa.load import load_qa

    _write(args, load_qa(args.name, args.place, args.split))


def repoqa(args: argparse.Namespace) -> None:
    from d2l.data.qa.repoqa import load_repoqa, make_repoqa

    tokenizer = target_tokenizer(args.target)
    if pathlib.Path(args.place).is_dir():
        options = {"tokens": args.tokens, "samples": args.samples, "seed": args.seed}
        _write(args, make_repoqa(args.place, tokenizer, **options))
    else:
        _write(args, load_repoqa(args.place, tokenizer, args.tokens))


def babilong(args: argparse.Namespace) -> None:
    from d2l.data.background import sentences_of
    from d2l.data.documents import read_documents
    from d2l.data.qa.babilong import babilong_at

    ((low, high),) = read_lengths(args.lengths, one=True)
    background = [sentence for document in read_documents(args.places) for sentence in sentences_of(document.text)]
    make = functools.partial(babilong_at, background=background, tokenizer=target_tokenizer(args.target))
    _write(
        args,
        (
            make(task, args.seed, index, min_tokens=low, max_tokens=high)
            for task in args.tasks.split(",")
            for index in range(args.samples)
        ),
    )


def overlap(args: argparse.Namespace) -> None:
    from d2l.data.qa.overlap import check_overlap

    train = list(_read(args.train))
    test = [record for place in args.test for record in _read(place)]
    check_overlap(train, test)
    print(f"none of {len(test):,} test contexts is among {len(train):,} of training")


def view(args: argparse.Namespace) -> None:
    from d2l.serve.view import View, make_server

    pages = View(args.records, args.target)
    if args.html is not None:
        try:
            pathlib.Path(args.html).write_text(pages.page(size=len(pages.records)), encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {args.html}: {error.strerror}; choose another place.") from error
        print(f"{args.html}: {len(pages.records):,} records")
        return
    with make_server(pages, args.port) as server:
        print(f"http://{server.server_name}:{server.server_port}/ shows {args.records}; Ctrl-C ends it", flush=True)
        server.serve_forever()


# ---------------------------------------------------------------- what commands share


def _passages(args: argparse.Namespace, records: Iterable[Any]) -> Iterator[Any]:
    """Records as they are, or one a passage."""
    from d2l.data.passages import cut

    if args.max_tokens is None:
        yield from records
        return
    tokenizer = target_tokenizer(args.target)
    for record in records:
        for number, text in enumerate(cut(record.context, tokenizer, args.max_tokens, args.min_tokens)):
            yield dataclasses.replace(record, id=f"{record.id}#{number}", context=text)


def _asked(args: argparse.Namespace, records: Iterable[Any]) -> Iterator[Any]:
    """Those that have questions, a share of which asks for a short answer."""
    import numpy as np

    from d2l.data.selfgen.answers import mix_instructions
    from d2l.data.selfgen.config import check_closed_qa

    check_closed_qa(args.closed_qa)
    if args.queries is not None and args.queries < 1:
        raise UserError(f"--queries is {args.queries}: give 1 or more.")
    for number, record in enumerate(records):
        rng = np.random.default_rng((args.seed, number))
        if record.queries:
            yield dataclasses.replace(record, queries=tuple(mix_instructions(record.queries, args.closed_qa, rng)))


def _write(args: argparse.Namespace, records: Iterable[Any]) -> None:
    from d2l.data import jsonl, shards

    count = (jsonl if args.out.endswith(".jsonl") else shards).write_records(args.out, records)
    print(f"{args.out}: {count:,} records")


def _read(place: str) -> Iterable[Any]:
    """The records of a file or a folder that `_write` wrote."""
    from d2l.data.jsonl import read_records
    from d2l.data.shards import Shards

    if pathlib.Path(place).is_dir():
        shards = Shards(place)
        return (shards[number] for number in range(len(shards)))
    if not place.endswith(".jsonl"):
        raise UserError(f"{place} holds no records: give a FILE.jsonl or a folder of shards.")
    return read_records(place)
