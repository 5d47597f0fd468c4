"""The transformers + torch side of `benchmarks.cpu`: reads one JSON request a line, answers with seconds.

Runs in the parity environment. `{"model": [file, dtype]}` loads; `{"prefill": [dtype, ids]}` reads a prompt and picks
the next token; `{"decode": [dtype, ids, count, way]}` times `count` tokens after the first, `way` is `loop` (the
forward pass and the key-value cache, nothing else) or `generate` (what users call).
"""

import json
import os
import pathlib
import sys
import time

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import torch
import transformers

MODELS = {}


def load(file: str, dtype: str) -> float:
    """Load a GGUF file, dequantised, in a dtype."""
    path = pathlib.Path(file)
    start = time.perf_counter()
    MODELS[dtype] = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        dtype=getattr(torch, dtype),
        quantization_config=transformers.GgufConfig(dequantize=True),
    ).eval()
    assert next(MODELS[dtype].parameters()).dtype == getattr(torch, dtype)
    return time.perf_counter() - start


def _read(model: torch.nn.Module, ids: list[int]) -> tuple[torch.Tensor, object]:
    out = model(torch.tensor([ids]), use_cache=True, logits_to_keep=1)
    return out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values


def prefill(dtype: str, ids: list[int]) -> float:
    """Seconds from a prompt to its next token."""
    start = time.perf_counter()
    _read(MODELS[dtype], ids)[0].item()
    return time.perf_counter() - start


def decode(dtype: str, ids: list[int], count: int, way: str) -> float:
    """Seconds of `count` greedy tokens after the first."""
    model = MODELS[dtype]
    if way == "loop":
        token, cache = _read(model, ids)
        start = time.perf_counter()
        for _ in range(count):
            out = model(token, past_key_values=cache, use_cache=True)
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            cache = out.past_key_values
        token.item()
        return time.perf_counter() - start
    model.generation_config.eos_token_id = None
    times = []

    class Clock(transformers.generation.streamers.BaseStreamer):
        def put(self, value):
            times.append(time.perf_counter())

        def end(self):
            pass

    prompt = torch.tensor([ids])
    model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=count + 1,
        do_sample=False,
        pad_token_id=0,
        streamer=Clock(),
    )
    assert len(times) == count + 2, len(times)  # the prompt, then every token
    return times[-1] - times[1]


def main() -> None:
    requests = {"model": load, "prefill": prefill, "decode": decode}
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        ((name, args),) = json.loads(line).items()
        with torch.inference_mode():
            print(json.dumps(requests[name](*args)), file=answers, flush=True)


if __name__ == "__main__":
    main()
