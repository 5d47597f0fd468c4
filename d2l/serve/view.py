"""`d2l data view`: records as a local page."""

import http.server
import math
import pathlib
import urllib.parse
from collections.abc import Sequence
from typing import Any

from d2l.data.jsonl import read_records
from d2l.data.record import Query, Record, Teacher
from d2l.data.shards import Shards
from d2l.errors import UserError
from d2l.serve.page import TEMPLATE
from d2l.target.tokenizer import Tokenizer
from d2l.target.weights import load_target

ADDRESS = "127.0.0.1"
RECORDS_PER_PAGE = 10
SHOWN = 5  # likeliest tokens that are named


class View:
    """Pages of records.

    Args:
      place: a file of JSON lines or a folder of shards.
      target: the target whose answers are stored; not needed where none are.

    Raises:
      UserError: there are no records, or their answers are those of another target.
    """

    def __init__(self, place: str, target: str | None = None):
        self.title = str(place)
        self.tokenizer: Tokenizer | None = None
        if not pathlib.Path(place).is_dir():
            self.records: Sequence[Record] = list(read_records(place))
        else:
            self.records = Shards(place)
            if self.records.teacher is not None:
                loaded = load_target(target)
                if loaded.weights_hash != self.records.teacher:
                    raise UserError(
                        f"the answers in {place} are those of the target with weights {self.records.teacher[:12]}, "
                        f"{loaded.name} has {loaded.weights_hash[:12]}: name the one that gave them with --target."
                    )
                self.tokenizer = loaded.tokenizer
        if not len(self.records):
            raise UserError(f"{place} holds no record: give one with records.")

    def page(self, number: int = 1, size: int = RECORDS_PER_PAGE) -> str:
        """HTML of page `number`, from 1; numbers beyond the last page show the last."""
        total = len(self.records)
        last = -(-total // size)
        number = min(max(number, 1), last)
        return TEMPLATE.render(
            title=self.title,
            total=total,
            teacher=self.tokenizer is not None,
            number=number,
            last=last,
            records=[self._record(self.records[i]) for i in range((number - 1) * size, min(number * size, total))],
        )

    def _record(self, record: Record) -> dict[str, Any]:
        return vars(record) | {"queries": [self._query(query) for query in record.queries]}

    def _query(self, query: Query) -> dict[str, Any]:
        tokens = [] if query.teacher is None else [self._token(query.teacher, i) for i in range(len(query.teacher[0]))]
        # The target's own answer is also the reference of a generated question: once is enough.
        answers = [a for a in query.answers if not tokens or a != self._text(query.teacher)]
        told = {name: getattr(query, name) for name in ("question", "kind", "start")}
        return told | {"answers": answers, "tokens": tokens}

    def _text(self, teacher: Teacher) -> str:
        return self.tokenizer.decode(teacher.response.tolist()).strip()

    def _token(self, teacher: Teacher, place: int) -> dict[str, Any]:
        """One token of an answer: its text, its probability as a shade, and the likeliest tokens there."""
        name, tokens, logp = self._name, teacher.tokens[place], teacher.logp[place]
        found = [p for token, p in zip(tokens, logp, strict=True) if token == teacher.response[place]]
        # A token that was drawn although it is not among those that are stored.
        said = f"{math.exp(found[0]):.1%}" if found else f"under {math.exp(logp[-1]):.1%}"
        likeliest = [f"{name(t)} {math.exp(p):.1%}" for t, p in zip(tokens[:SHOWN], logp[:SHOWN], strict=True)]
        return {
            "text": self.tokenizer.decode([int(teacher.response[place])], skip_special=False),
            "shade": f"{math.exp(found[0]) if found else 0:.3f}",
            "title": "\n".join([f"{name(teacher.response[place])} {said}", "", *likeliest]),
        }

    def _name(self, token: int) -> str:
        """A token in quotes, with its blanks and line breaks to be seen."""
        return repr(self.tokenizer.decode([int(token)], skip_special=False))


def make_server(view: View, port: int) -> http.server.ThreadingHTTPServer:
    """A server of the pages for this machine alone; `serve_forever` runs it. Port 0 is any free one.

    Raises:
      UserError: the port is taken.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # Other names that resolve to this machine are how foreign pages would read local ones.
            host = self.headers.get("Host", "").rsplit(":", 1)[0]
            url = urllib.parse.urlsplit(self.path)
            if host not in (ADDRESS, "localhost") or url.path != "/":
                self.send_error(404)
                return
            number = urllib.parse.parse_qs(url.query).get("page", ["1"])[0]
            body = view.page(int(number) if number.isdecimal() else 1).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Not a word."""

    try:
        return http.server.ThreadingHTTPServer((ADDRESS, port), Handler)
    except OSError as error:
        raise UserError(f"port {port} cannot be had ({error.strerror}): give another --port, or 0 for any.") from error
