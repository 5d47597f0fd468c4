"""The public PyTorch release's checkpoints as our own (SakanaAI/doc-to-lora).

Sizes are read from the pickled config, never from the release's YAML files. Names differ little: the release's
`aggregator.perceiver.` is our `aggregator.`, its `layers.N.layers.` our `pre_head.N.`; a tensor without a place, or a
place without a tensor, is an error that names it.
"""

import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from d2l.errors import UserError
from d2l.hypernet.aggregator import layer_order
from d2l.hypernet.config import HypernetConfig
from d2l.hypernet.features import check_encoder
from d2l.hypernet.hypernet import abstract_hypernet
from d2l.hypernet.store import save_hypernet
from d2l.hypernet.unpickle import Record, Tensor, read_checkpoint
from d2l.target.config import TargetConfig
from d2l.target.weights import load_target

HEAD_DIM = 128  # of the release's Perceiver; not in its config
# Fields that older checkpoints lack, and what they then mean. The fields use_per_rank_bias, use_light_weight_lora and
# use_token_mixing are pickled but computed nowhere in the release; tensors that they might have left are errors.
DEFAULTS = {"num_pre_head_layers": 4, "use_bias": True}


def import_checkpoint(checkpoint: str | pathlib.Path, base: str | pathlib.Path, out: str | pathlib.Path) -> None:
    """Convert `pytorch_model.bin` to a hypernetwork folder for the target `base`, in float32.

    Raises:
      UserError: an unreadable, hostile or unsupported checkpoint, or a target that it was not made for.
    """
    config, params, about = read_release(checkpoint)
    target = load_target(base)
    check_target(config, target.config)
    if about["ctx_encoder"] is None:
        check_encoder(config, target.config)
    card = {"source": "checkpoint of the PyTorch release", "file": pathlib.Path(checkpoint).name} | about
    save_hypernet(out, config, params, target_name=target.name, target_hash=target.weights_hash, card=card)


def check_target(config: HypernetConfig, target: TargetConfig) -> None:
    """Raise a `UserError` where the adapters of a hypernetwork do not fit a target."""
    sizes = {name: target.module_sizes.get(name) for name in config.target_modules}
    asked = dict(zip(config.target_modules, zip(config.d_in, config.d_out, strict=True), strict=True))
    if sizes != asked or target.num_hidden_layers != config.num_layers:
        raise UserError(
            f"the checkpoint is for {config.num_layers} layers with {asked}, the base has {target.num_hidden_layers} "
            f"layers with {sizes}: give the model it was trained for."
        )


def read_release(checkpoint: str | pathlib.Path) -> tuple[HypernetConfig, Any, dict[str, Any]]:
    """Config, float32 parameters, and about whom they were trained with.

    The last is `{"ctx_encoder": name, or None for the target itself, "ctx_encoder_quantized": bool}`: the release may
    read documents with a 4-bit encoder, which here runs in full precision.

    Raises as `import_checkpoint`.
    """
    content = read_checkpoint(checkpoint)
    missing = [name for name in ("hypernet_config", "ctx_encoder_args") if not isinstance(content.get(name), Record)]
    if missing:
        raise UserError(f"{checkpoint} has no {' and no '.join(missing)}: give a checkpoint of a hypernetwork.")
    try:
        tensors = {
            name.removeprefix("_orig_mod.").replace("._orig_mod.", "."): value.array
            for name, value in content.items()
            if isinstance(value, Tensor)
        }
        encoder = content["ctx_encoder_args"].fields
        encoder_name = encoder.get("ctx_encoder_model_name_or_path")
        about = {
            "ctx_encoder": None if encoder_name == content.get("base_model_name_or_path") else encoder_name,
            "ctx_encoder_quantized": bool(encoder.get("quantize_ctx_encoder")),
        }
        config = _config(content["hypernet_config"].fields, encoder, tensors)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"the config pickled in {checkpoint} cannot be read ({error!r}): fetch it again.") from error
    return config, _params(config, tensors, str(checkpoint)), about


def _config(hyper: dict[str, Any], encoder: dict[str, Any], tensors: dict[str, np.ndarray]) -> HypernetConfig:
    hyper = DEFAULTS | {name: value for name, value in hyper.items() if value is not None}
    aggregator, lora = hyper["aggregator_config"].fields, hyper["lora_config"].fields
    _check_sizes(hyper, aggregator, lora, len(tensors))
    if _plain(aggregator["aggregator_type"]) != "perceiver" or not aggregator.get("per_rank_gen", True):
        raise UserError("the checkpoint's aggregator is not a Perceiver with one query a rank: that is not supported.")
    if hyper.get("extra_modules"):
        raise UserError("the checkpoint writes extra_modules (norms), which is not supported: give one without them.")
    layers = hyper["layer_indices"]
    layers = layers.array.tolist() if isinstance(layers, Tensor) else list(layers)
    if layers != list(range(len(layers))):
        raise UserError(f"the checkpoint adapts the layers {layers}: only all layers, in order, are supported.")
    modules = tuple(sorted(lora["target_modules"]))
    d_in, d_out = hyper["feature_sizes"]
    kind = str(_plain(encoder["ctx_encoder_type"])).lower()
    names = {"embedding_only": "embed_only", "embed_only": "embed_only"}
    attention = "aggregator.perceiver.encoder.layers.0.self_attn."
    return HypernetConfig(
        target_modules=modules,
        d_in=tuple(d_in[name] for name in modules),
        d_out=tuple(d_out[name] for name in modules),
        num_layers=len(layers),
        feature_size=aggregator["feature_size"],
        rank=lora["r"],
        scale=float(lora["lora_alpha"]),
        features=names.get(kind, kind),
        layer_idx=encoder.get("layer_idx") if kind == "early_exit" else None,
        ctx_encoder_last_layer=encoder.get("ctx_encoder_last_layer") if kind == "per_layer_activations" else None,
        latent_size=hyper["latent_size"],
        num_latents=aggregator["n_latent_queries"],
        num_blocks=aggregator["num_blocks"],
        num_self_attn_per_block=aggregator["num_self_attn_per_block"],
        shared_weights=aggregator["shared_weights"],
        num_heads=tensors[attention + "q_proj.weight"].shape[0] // HEAD_DIM,
        num_kv_heads=tensors[attention + "k_proj.weight"].shape[0] // HEAD_DIM,
        head_dim=HEAD_DIM,
        num_pre_head_layers=hyper["num_pre_head_layers"],
        per_layer_processing=bool(hyper["per_layer_processing"]),
        use_bias=bool(hyper["use_bias"]),
    )


def _check_sizes(hyper: dict[str, Any], aggregator: dict[str, Any], lora: dict[str, Any], num_tensors: int) -> None:
    """Refuse sizes that this many tensors cannot have, before anything is laid out after them."""
    sizes = {"r": lora["r"], "latent_size": hyper["latent_size"], "feature_size": aggregator["feature_size"]}
    sizes |= {name: aggregator[name] for name in ("n_latent_queries", "num_blocks")}
    counts = {name: aggregator[name] for name in ("num_blocks", "num_self_attn_per_block")}
    counts["num_pre_head_layers"] = hyper["num_pre_head_layers"]
    for name, size in (sizes | counts).items():
        most = num_tensors if name in counts else 1 << 24
        if type(size) is not int or not (name in sizes) <= size <= most:
            raise UserError(f"the checkpoint's config has {name} {size!r:.50}: give a whole checkpoint of the release.")


def _plain(value: Any) -> Any:
    """An enum's value, whether it was pickled as such or as a string."""
    return value.args[0] if isinstance(value, Record) and value.args else value


def _params(config: HypernetConfig, tensors: dict[str, np.ndarray], source: str) -> Any:
    left = dict(tensors)
    missing = []

    def take(path, leaf):
        name = _release_name(".".join(key.key for key in path), config)
        if name not in left:
            missing.append(name)
            return None
        array = left.pop(name)
        if not config.per_layer_processing and re.fullmatch(r"layers\.\d+\.mlp\.[25]\.weight", name):
            array = array.T
        if array.size != np.prod(leaf.shape) or (array.ndim == len(leaf.shape) and array.shape != leaf.shape):
            raise UserError(f"{source} has {name} of shape {array.shape}, its config asks for {leaf.shape}.")
        if not np.isfinite(array.astype(np.float32)).all():
            raise UserError(f"{name} in {source} holds NaN or infinity: fetch it again.")
        return jnp.asarray(array.astype(np.float32).reshape(leaf.shape))

    params = jax.tree_util.tree_map_with_path(take, abstract_hypernet(config)[1])
    if not config.use_bias:  # the release stores the bias also where it is not used
        left = {name: array for name, array in left.items() if not name.startswith(("bias_A.", "bias_B."))}
    left = {name: array for name, array in left.items() if not _is_alias(name, array, config, tensors)}
    if missing or left:
        parts = [f"lacks {', '.join(sorted(missing)[:5])}"] if missing else []
        parts += [f"has tensors that its config does not use: {', '.join(sorted(left)[:5])}"] if left else []
        raise UserError(f"{source} {' and '.join(parts)}: give a whole checkpoint of the release.")
    return params


def _is_alias(name: str, array: np.ndarray, config: HypernetConfig, tensors: dict[str, np.ndarray]) -> bool:
    """True for a second name of a shared layer, which torch stores once per place that it runs at."""
    found = re.fullmatch(r"(aggregator\.perceiver\.encoder\.layers\.)(\d+)(\..*)", name)
    if not (found and config.shared_weights):
        return False
    order = layer_order(config.num_blocks, config.num_self_attn_per_block, True)
    place = int(found[2])
    if place >= len(order):
        return False
    original = tensors.get(f"{found[1]}{order[place]}{found[3]}")
    return original is not None and np.array_equal(original, array)


def _release_name(name: str, config: HypernetConfig) -> str:
    """The release's name of one of our parameters."""
    group, _, rest = name.partition(".")
    if group == "head":
        return "head.weight"
    if group == "pre_head":
        index, _, part = rest.partition(".")
        if config.per_layer_processing:
            stem, places = f"layers.{index}.layers.", {"norm_in": 0, "w1": 1, "b1": 1, "w2": 3, "b2": 3, "norm_out": 4}
        else:
            stem, places = f"layers.{index}.mlp.", {"norm_in": 0, "w1": 2, "b1": 2, "w2": 5, "b2": 5, "norm_out": 6}
        part, _, leaf = part.partition(".")
        return f"{stem}{places[part]}.{'bias' if leaf == 'bias' or part in ('b1', 'b2') else 'weight'}"
    if group != "aggregator":
        return name
    rest = re.sub(r"^(encoder|decoder)\.latents$", r"\1.latents_q", rest)
    rest = re.sub(r"^(encoder|decoder)\.norm$", r"\1.layernorm", rest)
    return f"aggregator.perceiver.{rest}" + ("" if rest.endswith("latents_q") else ".weight")
