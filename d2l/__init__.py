"""Doc-to-LoRA in JAX: a document becomes LoRA weights in one forward pass (arXiv 2602.15902).

import d2l

model = d2l.load(hypernet="checkpoints/niah_smollm2")
adapter = model.internalize(text)
model.generate("What is the special magic number?", adapter)
"""

from d2l.adapter import Adapter
from d2l.errors import UserError
from d2l.model import DocToLora, load

__all__ = ["Adapter", "DocToLora", "UserError", "load"]
