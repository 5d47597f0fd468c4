"""RepoQA (Liu et al., 2024): find the function that a description means, in a window of a repository's code.

The published set is read from its JSON; the same task is also made of any folder of Python files, where the first
paragraph of a function's docstring is its description and the docstring is taken out of the code.
"""

import ast
import dataclasses
import gzip
import json
import pathlib
import re
from collections.abc import Iterator, Mapping

import numpy as np

from d2l.data.record import Query, Record
from d2l.errors import UserError
from d2l.target.tokenizer import Tokenizer

CODE = "This is what a function of the code does:\n{}\n\nRepeat the function as it stands there, and nothing else."
NAME = "This is what a function of the code does:\n{}\n\nWhat is the function called? Reply with its name only."
COMMENT = {"python": "#"}  # `//` in the other languages of the set
MIN_WORDS = 6
LINES = (4, 60)


@dataclasses.dataclass(frozen=True)
class Needle:
    """The function to find: characters `start` to `end` of the file at `path`."""

    path: str
    name: str
    description: str
    start: int
    end: int


def load_repoqa(path: str | pathlib.Path, tokenizer: Tokenizer, tokens: int) -> Iterator[Record]:
    """Records of the published set, one a needle.

    The k-th of a repository's n needles stands at (k + 0.5) / n of its window, as far as there is code around it.

    Args:
      path: `repoqa-DATE.json`, or with `.gz`: repositories by language.
      tokens: length of the window of code.

    Raises:
      UserError: the file cannot be read, or lacks a field of the set.
    """
    path = pathlib.Path(path)
    try:
        data = path.read_bytes()
        languages = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}): give RepoQA's JSON.") from error
    try:
        for language, repositories in languages.items():
            for repository in repositories:
                files, needles = repository["content"], repository["needles"]
                for number, given in enumerate(needles):
                    source = files[given["path"]].encode()
                    start, end = (len(source[: given[name]].decode()) for name in ("start_byte", "end_byte"))
                    needle = Needle(given["path"], given["name"], given["description"], start, end)
                    depth = (number + 0.5) / len(needles)
                    name = f"{language}/{repository['repo']}/{needle.path}:{needle.name}@{needle.start}"
                    context = window(files, needle, depth, tokens, tokenizer, COMMENT.get(language, "//"))
                    yield _record(name, context, needle, files[needle.path], "repoqa")
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not RepoQA's JSON ({error!r}): repositories hold content and needles.") from error


def make_repoqa(
    folder: str | pathlib.Path, tokenizer: Tokenizer, *, tokens: int, samples: int, seed: int
) -> Iterator[Record]:
    """The same task from the Python files below a folder: `samples` functions, each once, at random depths.

    Raises:
      UserError: the folder has fewer described functions.
    """
    files: dict[str, str] = {}
    needles: list[Needle] = []
    for path in sorted(pathlib.Path(folder).rglob("*.py")):
        name = path.relative_to(folder).as_posix()
        try:
            files[name] = path.read_text()
            needles += described_functions(name, files[name])
        except (SyntaxError, ValueError):  # Python of another version, or no text: no needles, and no hay
            files.pop(name, None)
    if len(needles) < samples:
        raise UserError(f"{folder} has {len(needles)} functions with a docstring: ask for no more than these.")
    rng = np.random.default_rng(seed)
    for index in rng.permutation(len(needles))[:samples]:
        needle = needles[index]
        source, needle = _without_docstring(files[needle.path], needle)
        context = window(files | {needle.path: source}, needle, float(rng.uniform()), tokens, tokenizer, "#")
        yield _record(f"{needle.path}:{needle.name}@{needle.start}", context, needle, source, "repoqa_style")


def described_functions(path: str, source: str) -> list[Needle]:
    """Functions of a Python file whose docstring says in words what they do, without their name."""
    starts = [0]
    for line in _lines(source):
        starts.append(starts[-1] + len(line))
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or len(node.body) < 2:
            continue
        description = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
        lines = node.end_lineno - node.lineno
        docstring, after = node.body[:2]
        if (
            # The docstring has lines of its own, which can be taken out.
            docstring.col_offset == after.col_offset
            and docstring.end_lineno < after.lineno
            and len(description.split()) >= MIN_WORDS
            and LINES[0] <= lines <= LINES[1]
            and not re.search(rf"\b{node.name}\b", description)
        ):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            found.append(Needle(path, node.name, description, starts[first - 1], starts[node.end_lineno]))
    return found


def _without_docstring(source: str, needle: Needle) -> tuple[str, Needle]:
    """The file without the needle's docstring, and where the needle now ends."""
    lines = _lines(source)
    line = source[: needle.start].count("\n") + 1
    node = next(
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name == needle.name
        and min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) == line
    )
    docstring = node.body[0]
    removed = lines[docstring.lineno - 1 : docstring.end_lineno]
    kept = lines[: docstring.lineno - 1] + lines[docstring.end_lineno :]
    return "".join(kept), dataclasses.replace(needle, end=needle.end - sum(map(len, removed)))


def window(
    files: Mapping[str, str], needle: Needle, depth: float, tokens: int, tokenizer: Tokenizer, comment: str
) -> str:
    """Whole lines around a needle, about `tokens` tokens with it at `depth` in [0, 1]; files follow one another.

    Every file begins with a comment that gives its path. Where the code ends on one side, the other side has more.

    Raises:
      UserError: the needle alone has more tokens.
    """
    lines: list[str] = []
    for path, source in files.items():
        at = len(lines) + 1
        lines += [f"{comment} Path: {path}\n", *_lines(source)]
        lines[-1] = lines[-1].rstrip("\n") + "\n"
        if path == needle.path:
            first = at + source[: needle.start].count("\n")
            last = at + source[: max(needle.end - 1, needle.start)].count("\n") + 1
    room = tokens - len(tokenizer.encode("".join(lines[first:last])))
    if room < 0:
        raise UserError(f"{needle.name} of {needle.path} has more than {tokens} tokens: give a longer window.")
    before = _fill(lines[:first][::-1], int(room * depth), tokenizer)
    after = _fill(lines[last:], room - sum(before), tokenizer)
    before = _fill(lines[:first][::-1], room - sum(after), tokenizer)
    return "".join(lines[first - len(before) : last + len(after)])


def _fill(lines: list[str], room: int, tokenizer: Tokenizer) -> list[int]:
    """Tokens of the first lines that fit into `room`."""
    counts: list[int] = []
    for line in lines:
        count = len(tokenizer.encode(line))
        if sum(counts) + count > room:
            break
        counts.append(count)
    return counts


def _lines(source: str) -> list[str]:
    """Lines with their ends, as Python counts them: form feeds end none."""
    return re.findall(r"[^\n]*\n|[^\n]+", source)


def _record(name: str, context: str, needle: Needle, source: str, task: str) -> Record:
    code = source[needle.start : needle.end].strip("\n")
    queries = (
        Query(CODE.format(needle.description), (code,), "code"),
        Query(NAME.format(needle.description), (needle.name,), "name"),
    )
    return Record(name, context, queries, task, "test")
