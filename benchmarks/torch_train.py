"""The torch side of `benchmarks.train_step`: the same distillation step written plainly, with autograd.

Runs in the parity environment; reads one JSON request a line, answers with the seconds and the loss of an update.
`{"model": [gguf file, dtype]}` loads the frozen target; `{"step": [folder, dtype]}` makes one update of the
hypernetwork whose weights are `folder/params.safetensors` (it stays loaded) on the batch in `folder/batch.safetensors`.

Features are those of the main experiment (per-layer activations), read by a Perceiver; one chunk and one query a
context; cross-entropy on the response; AdamW. bfloat16 is autocast over float32 masters.

Letters: C contexts, T context tokens, L layers, r rank, Q queries, Z latent width.
"""

import contextlib
import json
import os
import pathlib
import sys
import time

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import safetensors.torch
import torch
import torch.nn.functional as F
import transformers

HEAD_DIM, RMS_EPS = 128, 1e-6
MODELS, STATES = {}, {}


def load(file: str, dtype: str) -> None:
    """Load a GGUF file, dequantised, in a dtype, frozen."""
    path = pathlib.Path(file)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        dtype=getattr(torch, dtype),
        quantization_config=transformers.GgufConfig(dequantize=True),
    )
    MODELS[dtype] = model.eval().requires_grad_(False)


def context_features(model, tokens_CT: torch.Tensor) -> torch.Tensor:
    """`[L * C, T, D]`: the input of every block, the last after the final norm; the last block does not run."""
    body = model.model
    layers = body.layers
    body.layers = layers[:-1]
    with torch.no_grad():
        states = body(tokens_CT, output_hidden_states=True, use_cache=False).hidden_states
    body.layers = layers
    return torch.cat(states)


def rms(x, weight):
    return F.rms_norm(x, x.shape[-1:], weight, RMS_EPS)


def gated_mlp(x, p, name):
    gate, up, down = (p[f"{name}.{part}_proj"] for part in ("gate", "up", "down"))
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


def resampler(ctx, p, name, mask):
    """Learned queries that read a context through cross-attention layers."""
    x = p[f"{name}.latents"].expand(ctx.shape[0], -1, -1)
    for i in range(sum(key.startswith(f"{name}.layers.") and key.endswith("q_proj") for key in p)):
        layer = f"{name}.layers.{i}"
        read = rms(ctx, p[f"{layer}.input_context_layernorm"])
        heads = [
            F.linear(source, p[f"{layer}.self_attn.{part}_proj"]).unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)
            for part, source in (("q", rms(x, p[f"{layer}.input_latents_layernorm"])), ("k", read), ("v", read))
        ]
        out = F.scaled_dot_product_attention(*heads, attn_mask=mask, enable_gqa=True).transpose(1, 2).flatten(2)
        x = x + rms(F.linear(out, p[f"{layer}.self_attn.o_proj"]), p[f"{layer}.post_attention_layernorm"])
        x = x + rms(
            gated_mlp(rms(x, p[f"{layer}.pre_ff_layernorm"]), p, f"{layer}.mlp"), p[f"{layer}.post_ff_layernorm"]
        )
    return rms(x, p[f"{name}.norm"])


def generate_factors(features, mask_CT, p):
    """A `[L, C, 2r, d_in]` and B `[L, C, 2r, d_out]`: the chunk's rows, then the learned ones."""
    C = mask_CT.shape[0]
    L, _, d_in = p["bias_A.down_proj"].shape
    ctx = gated_mlp(features, p, "aggregator.modality_projection")
    latents = resampler(ctx, p, "aggregator.encoder", mask_CT.repeat(L, 1)[:, None, None, :])
    e = resampler(latents, p, "aggregator.decoder", None).unflatten(0, (L, C))
    norm_in, norm_out = ([p[f"pre_head.0.norm_{end}.{part}"] for part in ("scale", "bias")] for end in ("in", "out"))
    h = torch.einsum("lcri,lio->lcro", F.layer_norm(e, e.shape[-1:], *norm_in), p["pre_head.0.w1"])
    h = F.silu(h + p["pre_head.0.b1"][:, None, None])
    h = torch.einsum("lcri,lio->lcro", h, p["pre_head.0.w2"]) + p["pre_head.0.b2"][:, None, None]
    e = e + F.layer_norm(h, h.shape[-1:], *norm_out)
    rows = torch.einsum("lcrz,lzd->lcrd", e / e.norm(dim=-1, keepdim=True), p["head"])
    A = rows[..., :d_in] * p["scaler_A.down_proj"][:, None, :, None]
    B = rows[..., d_in:] * p["scaler_B.down_proj"][:, None, :, None]

    def with_bias(generated, bias):
        return torch.cat([generated, bias[:, None].expand(-1, C, -1, -1)], dim=2)

    return with_bias(A, p["bias_A.down_proj"]), with_bias(B, p["bias_B.down_proj"])


@contextlib.contextmanager
def adapted(model, A, B, scale):
    """y = W x + s B^T (A x) at every `down_proj`."""

    def add(layer):
        def hook(module, args, out):
            low = args[0] @ A[layer].to(args[0].dtype).transpose(1, 2)
            return out + scale * (low @ B[layer].to(args[0].dtype))

        return hook

    hooks = [layer.mlp.down_proj.register_forward_hook(add(i)) for i, layer in enumerate(model.model.layers)]
    yield
    for hook in hooks:
        hook.remove()


def loss_of(model, p, batch, scale):
    """Mean over contexts of the mean cross-entropy of the response."""
    A, B = generate_factors(context_features(model, batch["ctx_tokens"]), batch["ctx_mask"], p)
    with adapted(model, A, B, scale):
        x = model.model(batch["query_tokens"], use_cache=False).last_hidden_state
    logits = model.lm_head(x[batch["response_row"], batch["response_index"]]).float()
    ce = F.cross_entropy(logits, batch["response_tokens"], reduction="none")
    return (ce * batch["response_weight"]).sum() / batch["ctx_tokens"].shape[0]


def step(folder: str, dtype: str) -> dict[str, float]:
    """One update."""
    if (folder, dtype) not in STATES:
        params = safetensors.torch.load_file(f"{folder}/params.safetensors")
        params = {name: a.requires_grad_() for name, a in params.items()}
        optimizer = torch.optim.AdamW(params.values(), lr=1e-5, weight_decay=0.01)
        STATES[folder, dtype] = params, optimizer, safetensors.torch.load_file(f"{folder}/batch.safetensors")
    params, optimizer, batch = STATES[folder, dtype]
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        loss = loss_of(MODELS[dtype], params, batch, float(batch["scale"]))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return {"loss": loss.item(), "seconds": time.perf_counter() - start}


def main() -> None:
    requests = {"model": load, "step": step}
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        ((name, args),) = json.loads(line).items()
        print(json.dumps(requests[name](*args)), file=answers, flush=True)


if __name__ == "__main__":
    main()
