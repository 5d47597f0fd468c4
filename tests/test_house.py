"""Rooms import only what lies below them, and no file holds two concepts."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
ROOMS = ["mesh", "target", "adapter", "hypernet", "model", "data", "train", "experiments", "serve", "cli"]
FILES = sorted((ROOT / "d2l").rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downwards(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    if len(parts) < 2 or parts[1] not in ROOMS:
        return
    here = ROOMS.index(parts[1])
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            room = name.split(".")[1] if name.startswith("d2l.") else None
            if room in ROOMS:
                assert ROOMS.index(room) <= here, f"{path} imports {name}"


@pytest.mark.parametrize("folder", ["d2l", "benchmarks", "configs", "launch"])
def test_files_are_short(folder):
    long = {p: n for p in (ROOT / folder).rglob("*.py") if (n := len(p.read_text().splitlines())) > 400}
    assert not long


def test_torch_and_transformers_are_not_imported_at_the_top():
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not {str(name).split(".")[0] for name in names} & {"torch", "transformers", "tensorflow"}, path
