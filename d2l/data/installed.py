"""Documents that come with an operating system and with Python: manual pages, docstrings, packages' own texts."""

import ast
import functools
import gzip
import importlib.metadata
import pathlib
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from typing import NamedTuple

from d2l.data.readers import Unreadable, read_text

MAN = pathlib.Path("/usr/share/man")
DOC = pathlib.Path("/usr/share/doc")
SECTIONS = ("man1", "man5", "man7", "man8")
# Paragraphs on one line each, ragged right, without hyphens.
GROFF = ("groff", "-Tutf8", "-mandoc", "-Kutf8", "-t", "-P-cbou", "-rLL=20000n", "-rHY=0", "-dAD=l")
TEXTS = re.compile(
    r"(readme|news|faq|guide|tutorial|manual|.*\.(md|rst|txt|html?))(\.(md|rst|txt|html?))?(\.gz)?", re.I
)
LEGAL = re.compile(r"copyright|licen[cs]e|changelog|changes|authors|contributors|todo|news", re.I)
# Below the standard library: other packages, and programs that are no library.
OTHERS_ROOTS = ("site-packages", "lib2to3", "idlelib")
TESTS = re.compile(r"tests?|test_.*|.*_tests?|testing|conftest|_vendor")


class Listed(NamedTuple):
    """A document that has not been read yet.

    Attributes:
      group: what it must share its split with.
      read: gives the text, or raises `Unreadable`.
    """

    name: str
    group: str
    read: Callable[[], str]


def man_pages() -> Iterator[Listed]:
    """English manual pages of commands, files and conventions, as groff sets them; aliases are left out."""
    if shutil.which(GROFF[0]) is None:
        raise Unreadable("needs groff: install it")
    for section in SECTIONS:
        for path in sorted((MAN / section).glob("*.gz")):
            if not path.is_symlink():
                group = re.split(r"[-_.0-9]", path.name)[0].lower() or path.name
                yield Listed(f"{section}/{path.name.removesuffix('.gz')}", group, functools.partial(_man_page, path))


def _man_page(path: pathlib.Path) -> str:
    source = gzip.decompress(path.read_bytes())
    if source.startswith(b".so "):
        raise Unreadable("is an alias of another page")
    done = subprocess.run(GROFF, input=source, capture_output=True, check=False, cwd=MAN)
    if done.returncode:
        raise Unreadable(f"cannot be set by groff ({done.stderr.decode(errors='replace').strip()[:200]})")
    lines = [" ".join(line.split()) for line in done.stdout.decode(errors="replace").splitlines()]
    # The first and the last line that are not empty give name and date of the page.
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines).strip().partition("\n")[2].rpartition("\n")[0]).strip()


def python_documents() -> Iterator[Listed]:
    """Python's language reference as far as its help knows it, and docstrings of every module that is installed."""
    from pydoc_data.topics import topics

    for topic in sorted(topics):
        yield Listed(f"python topic {topic}", f"python topic {topic}", functools.partial(str, topics[topic]))
    paths = sysconfig.get_paths()
    for root in dict.fromkeys((paths["stdlib"], paths["purelib"], paths["platlib"])):
        for path in sorted(pathlib.Path(root).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if parts[0] in OTHERS_ROOTS or any(TESTS.fullmatch(part) for part in parts):
                continue
            module = ".".join(parts).removesuffix(".__init__")
            yield Listed(f"python {module}", parts[0], functools.partial(_docstrings, path, module))


def _docstrings(path: pathlib.Path, module: str) -> str:
    """What `help` shows of a module, without importing it."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError) as error:
        raise Unreadable(f"is no Python of this version ({error})") from error
    parts = [f"Module {module}", ast.get_docstring(tree) or ""]

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and child.name[0] != "_":
                signature = "" if isinstance(child, ast.ClassDef) else f"({ast.unparse(child.args)})"
                if docstring := ast.get_docstring(child):
                    parts.append(f"{prefix}{child.name}{signature}\n{docstring}")
                if isinstance(child, ast.ClassDef):
                    visit(child, f"{prefix}{child.name}.")

    visit(tree, f"{module}.")
    return "\n\n".join(filter(None, parts))


def package_documents() -> Iterator[Listed]:
    """What installed packages say of themselves: descriptions of Python packages, texts below the system's docs."""
    found = {dist.metadata["Name"]: dist for dist in importlib.metadata.distributions() if dist.metadata["Name"]}
    for name, dist in sorted(found.items()):
        yield Listed(f"package {name}", name.lower(), functools.partial(_description, dist))
    for path in sorted(DOC.rglob("*")):
        if path.is_file() and not path.is_symlink() and TEXTS.fullmatch(path.name) and not LEGAL.search(path.name):
            place = path.relative_to(DOC)
            group = re.split(r"[-.0-9]", place.parts[0])[0].lower() or place.parts[0]
            yield Listed(f"doc {place}", group, functools.partial(_text, path))


def _description(dist: importlib.metadata.Distribution) -> str:
    text = dist.metadata.get_payload() or dist.metadata["Description"] or ""
    if not isinstance(text, str):
        raise Unreadable("has a description in parts")
    return text


def _text(path: pathlib.Path) -> str:
    return read_text(path)[0]
