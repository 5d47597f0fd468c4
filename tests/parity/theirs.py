"""The transformers, torch and peft side of the parity check; runs in the parity environment.

python -m tests.parity.theirs families|peft|smollm2 FOLDER
"""

import argparse
import json
import os
import pathlib

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import peft
import tokenizers
import torch
import transformers
from safetensors.numpy import load_file, save_file

from tests.parity import cases

transformers.utils.logging.disable_progress_bar()


def make_families(folder: pathlib.Path) -> None:
    """Every tiny model as an HF folder, its logits, and the names and shapes of its weights."""
    logits, described = {}, {}
    for name, (kind, _) in cases.FAMILIES.items():
        config = getattr(transformers, kind)(**cases.hf_fields(name))
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        shapes = {key: tuple(tensor.shape) for key, tensor in model.named_parameters()}
        weights = cases.random_weights(name, shapes)
        _, left = model.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()}, strict=False)
        assert not left, left
        shard = "20KB" if name in ("llama_default", "gemma2") else "5GB"
        model.save_pretrained(folder / name, max_shard_size=shard)
        described[name] = {
            "config": json.loads((folder / name / "config.json").read_text()),
            "weights": {key: list(shape) for key, shape in shapes.items()},
        }
        logits[name] = _logits(model, cases.tokens(name))
    save_file(logits, folder / "logits.safetensors")
    (folder / "families.json").write_text(json.dumps(described))


def apply_adapters(folder: pathlib.Path) -> None:
    """Logits of the tiny models with one of our adapters applied by peft, context by context."""
    logits = {}
    for name in cases.ADAPTERS:
        factors = load_file(folder / "adapters" / name / "adapter.safetensors")
        described = json.loads((folder / "adapters" / name / "adapter.json").read_text())
        modules = sorted({key.split(".")[0] for key in factors})
        for context, rank in enumerate(described["ranks"]):
            model = transformers.AutoModelForCausalLM.from_pretrained(folder / name, attn_implementation="eager")
            config = peft.LoraConfig(r=rank, lora_alpha=described["scale"] * rank, target_modules=modules)
            model = peft.get_peft_model(model, config).eval()
            for key, parameter in model.named_parameters():
                if ".lora_" not in key:
                    continue
                layer = int(key.split(".layers.")[1].split(".")[0])
                module = next(m for m in modules if f".{m}." in key)
                if ".lora_A." in key:
                    value = factors[f"{module}.A"][layer, context, :rank]
                else:
                    value = factors[f"{module}.B"][layer, context, :rank].T
                parameter.data = torch.from_numpy(np.ascontiguousarray(value))
            logits[f"{name}.{context}"] = _logits(model, cases.tokens(name))
    save_file(logits, folder / "peft.safetensors")


def run_smollm2(folder: pathlib.Path) -> None:
    """Token ids, logits and greedy continuations of SmolLM2 from the GGUF file that `gguf.json` names."""
    path = pathlib.Path(json.loads((folder / "gguf.json").read_text()))
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    # The GGUF reader of transformers forgets the digit split that SmolLM2's own tokenizer.json has (llama.cpp knows it
    # as pre-tokenizer "smollm"); it matters where several blanks precede a digit.
    pre = tokenizers.pre_tokenizers
    tokenizer.backend_tokenizer.pre_tokenizer = pre.Sequence(
        [pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)]
    )

    def chat_ids(messages):
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)

    texts = [tokenizer(text, add_special_tokens=False).input_ids for text in cases.TEXTS]
    prompts = [chat_ids([{"role": "user", "content": prompt}]) for prompt in cases.PROMPTS]
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        dtype=torch.float32,
        quantization_config=transformers.GgufConfig(dequantize=True),  # else every product unpacks its blocks again
    ).eval()
    model.generation_config.eos_token_id = None  # continue past the end token, for NEW_TOKENS each
    tokenizer.padding_side = "left"
    padded = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
    with torch.inference_mode():
        out = model.generate(**padded, max_new_tokens=cases.NEW_TOKENS, do_sample=False)
    replies = [row[padded["input_ids"].shape[1] :].tolist() for row in out]
    # Logits reach 38 here, and in float32 torch's own two kinds of attention differ by 1.2e-4: compare in float64.
    logits = {f"float32.{i}": _logits(model, np.array([prompts[i]])) for i in cases.LOGIT_PROMPTS}
    model.set_attn_implementation("eager")
    logits |= {f"eager.{i}": _logits(model, np.array([prompts[i]])) for i in cases.LOGIT_PROMPTS}
    model.double()
    logits |= {f"float64.{i}": _logits(model, np.array([prompts[i]])) for i in cases.LOGIT_PROMPTS}
    save_file(logits, folder / "smollm2.safetensors")
    found = {"texts": texts, "chats": [chat_ids(chat) for chat in cases.CHATS], "prompts": prompts, "replies": replies}
    (folder / "smollm2.json").write_text(json.dumps(found))


def _logits(model: torch.nn.Module, tokens: np.ndarray) -> np.ndarray:
    """Float32 logits; padding, where there is any, is masked."""
    ids = torch.from_numpy(tokens)
    mask = torch.ones_like(ids)
    if len(tokens) == len(cases.LENGTHS):
        mask = torch.tensor([[t < length for t in range(ids.shape[1])] for length in cases.LENGTHS]).long()
    with torch.inference_mode():
        return model(ids, attention_mask=mask).logits.float().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("folder", type=pathlib.Path)
    args = parser.parse_args()
    PARTS[args.part](args.folder)


PARTS = {"families": make_families, "peft": apply_adapters, "smollm2": run_smollm2}
if __name__ == "__main__":
    main()
