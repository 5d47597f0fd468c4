"""The notebooks run from top to bottom, and their claims hold."""

import json
import pathlib

ROOT = pathlib.Path(__file__).parents[1]


def test_the_document_is_not_in_the_prompt(monkeypatch):
    monkeypatch.chdir(ROOT / "colabs")
    cells = json.loads(pathlib.Path("document_not_in_the_prompt.ipynb").read_text())["cells"]
    names = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert names["without_document"] == names["needle"].answer
    assert names["needle"].answer not in names["neither"]
    assert names["kept"]["adapter"] < 0.2 * names["kept"]["document in the prompt"]
    assert names["answers"] == [number.answer for number in names["numbers"]]
