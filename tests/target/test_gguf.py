"""GGUF files: every tensor type, llama.cpp's layout, its metadata, and files that are damaged or of another kind."""

import gguf
import jax
import ml_dtypes
import numpy as np
import pytest

from d2l.errors import UserError
from d2l.target.config import RopeScaling
from d2l.target.gguf import GGUF, TYPES
from d2l.target.weights import load_target
from tests.parity import cases
from tests.target.folders import (
    ARCHITECTURES,
    config_of,
    gguf_metadata,
    logits_of,
    stored,
    to_llama_cpp,
    weights_of,
    write_folder,
    write_gguf,
)

KINDS = gguf.GGMLQuantizationType
ONE_TO_ONE = ["llama_default", "llama_linear", "qwen3", "gemma2"]


def write_tiny(path, name, **changes):
    tensors = to_llama_cpp(name, weights_of(name)) | changes.pop("tensors", {})
    keys = gguf_metadata(name) | changes.pop("keys", {})
    keys = {key: value for key, value in keys.items() if value is not None}
    architecture = changes.pop("architecture", ARCHITECTURES[config_of(name)["model_type"]])
    tensors = {key: value for key, value in tensors.items() if value is not None}
    return write_gguf(path, architecture, keys, tensors, **changes)


@pytest.mark.parametrize("name", ONE_TO_ONE)
def test_gguf_and_folder_are_the_same_model(name, tmp_path):
    folder = load_target(write_folder(tmp_path / "folder", name))
    file = load_target(write_tiny(tmp_path / "model.gguf", name))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-7), file.params, folder.params)
    assert file.tokenizer is None
    assert file.name == "model"
    # Gemma 2's file does not say that its queries are scaled by other than head_dim.
    if name != "gemma2":
        assert np.abs(logits_of(file, cases.tokens(name)) - stored()[name]).max() <= 1e-4


def test_rows_of_q_and_k_are_permuted_back(tmp_path):
    name = "llama_default"
    plain = {
        key.replace("self_attn.q_proj", "attn_q"): value
        for key, value in to_llama_cpp(name, weights_of(name)).items()
        if "attn_q" in key
    }
    permuted = load_target(write_tiny(tmp_path / "model.gguf", name)).params["layers"]["self_attn"]["q_proj"][0]
    assert not np.allclose(permuted, plain["blk.0.attn_q.weight"])
    np.testing.assert_array_equal(permuted, weights_of(name)["model.layers.0.self_attn.q_proj.weight"])


def test_gemma3_metadata(tmp_path):
    config = load_target(write_tiny(tmp_path / "model.gguf", "gemma3")).config
    assert config.model_type == "gemma3_text"
    assert config.rope_theta == 1e6
    assert config.rope_local_base_freq == 1e4
    assert config.rope_scaling == RopeScaling("linear", 8.0)
    assert config.sliding_window == 6
    assert config.qk_norm and config.sandwich_norms and config.embed_scale and config.norm_offset == 1.0


# ---------------------------------------------------------------- Llama 3's stretched RoPE


def divisors(theta, factor, half, *, low=1.0, high=4.0, original=8192):
    """What llama.cpp's converter writes into rope_freqs.weight: its own loop over wavelengths."""
    out = []
    for i in range(half):
        wavelength = 2 * np.pi * theta ** (i / half)
        if wavelength < original / high:
            out.append(1.0)
        elif wavelength > original / low:
            out.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            out.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(out, np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_rope_is_read_from_its_divisors(factor, tmp_path):
    keys = {"rope.freq_base": 5e5}
    tensors = {"rope_freqs.weight": divisors(5e5, factor, 4)}
    config = load_target(write_tiny(tmp_path / "m.gguf", "llama_default", keys=keys, tensors=tensors)).config
    assert config.rope_scaling == RopeScaling("llama3", factor, 1.0, 4.0, 8192)


def test_other_divisors_are_refused(tmp_path):
    tensors = {"rope_freqs.weight": np.array([1.0, 2.0, 4.0, 8.0], np.float32)}
    with pytest.raises(UserError, match="not Llama 3's"):
        load_target(write_tiny(tmp_path / "m.gguf", "llama_default", tensors=tensors))


# ---------------------------------------------------------------- tensor types


def random_blocks(kind, rows, cols, random):
    """Raw blocks of a type, float16 scales small and finite, everything else random bits."""
    per_block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.randint(0, 256, (rows, cols // per_block, size)).astype(np.uint8)
    scales = {KINDS.Q4_K: (0, 2), KINDS.Q5_K: (0, 2), KINDS.Q6_K: (208,)}[kind]
    for start in scales:
        value = random.uniform(0.001, 0.01, blocks.shape[:2]).astype(np.float16)
        blocks[..., start : start + 2] = value[..., None].view(np.uint8)
    return blocks.reshape(rows, -1)


def unpack_k(kind, row):
    """One row of K-quant blocks by the format's definition, value by value."""
    per_block, size = gguf.GGML_QUANT_SIZES[kind]
    out = []
    for block in row.reshape(-1, size):
        half = lambda start, block=block: float(block[start : start + 2].view(np.float16)[0])  # noqa: E731
        if kind == KINDS.Q6_K:
            low, high, scales, d = block[:128], block[128:192], block[192:208].view(np.int8), half(208)
            for i in range(per_block):
                part, within = divmod(i, 128)
                quarter, j = divmod(within, 32)
                byte = int(low[part * 64 + (quarter % 2) * 32 + j])
                nibble = byte >> 4 if quarter >= 2 else byte & 15
                top = (int(high[part * 32 + j]) >> (2 * quarter)) & 3
                out.append(d * int(scales[i // 16]) * ((nibble | top << 4) - 32))
            continue
        d, dmin, packed = half(0), half(2), [int(b) for b in block[4:16]]
        quants = block[48:] if kind == KINDS.Q5_K else block[16:]
        for i in range(per_block):
            sub, j = divmod(i, 32)
            if sub < 4:
                scale, least = packed[sub] & 63, packed[sub + 4] & 63
            else:
                scale = packed[sub + 4] & 15 | (packed[sub - 4] >> 6) << 4
                least = packed[sub + 4] >> 4 | (packed[sub] >> 6) << 4
            byte = int(quants[sub // 2 * 32 + j])
            value = byte >> 4 if sub % 2 else byte & 15
            if kind == KINDS.Q5_K:
                value |= (int(block[16 + j]) >> sub & 1) << 4
            out.append(d * scale * value - dmin * least)
    return np.array(out)


@pytest.mark.parametrize("kind", [KINDS.Q4_K, KINDS.Q5_K, KINDS.Q6_K], ids=lambda kind: kind.name)
def test_k_quants_are_unpacked_by_the_book(kind, tmp_path):
    random = np.random.RandomState(7)
    rows, cols = 96, 256  # the embeddings of a model that is 256 wide
    blocks = random_blocks(kind, rows, cols, random)
    path = write_gguf(tmp_path / "m.gguf", "qwen3", TINY_KEYS, {"token_embd.weight": (blocks, kind)})
    read = GGUF(path).tensors["embed_tokens"]
    assert read.shape == (rows, cols)
    array = read()
    assert array.dtype == np.float32
    np.testing.assert_allclose(array[0], unpack_k(kind, blocks[0]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(array[-1], unpack_k(kind, blocks[-1]), rtol=1e-5, atol=1e-6)


TINY_KEYS = {
    "context_length": 128,
    "embedding_length": 256,
    "block_count": 1,
    "feed_forward_length": 64,
    "attention.head_count": 4,
    "attention.layer_norm_rms_epsilon": 1e-6,
}
HALF = 2**-11  # relative error of a float16: of a block's scale
# Largest error of a block's value, in units of the block's largest absolute value: half a step, for Q4_0 a whole one
# at the end that has no level of its own, and the rounding of the scale.
STEP = {
    "F32": 0,
    "F16": HALF,
    "BF16": 2**-8,
    "Q8_0": 0.5 / 127 + HALF,
    "Q4_0": 1 / 8 + HALF,
    "Q4_1": 1 / 15 + 4 * HALF,
}


@pytest.mark.parametrize("kind", STEP)
def test_simple_types_come_back_within_a_step(kind, tmp_path):
    array = np.random.RandomState(3).standard_normal((96, 256)).astype(np.float32)
    quants = gguf.quants.quantize(array, KINDS[kind])
    if kind in ("F32", "F16"):
        tensor = quants
    else:
        tensor = (quants, KINDS[kind])
    path = write_gguf(tmp_path / "m.gguf", "qwen3", TINY_KEYS, {"token_embd.weight": tensor})
    back = GGUF(path).tensors["embed_tokens"]()
    largest = np.abs(array.reshape(96, -1, 32)).max(-1, keepdims=True)
    error = np.abs(back - array).reshape(96, -1, 32) / largest
    assert error.max() <= STEP[kind] * (1 + 1e-6)
    assert back.dtype == np.float32 and back.shape == (96, 256)


def test_every_supported_type_is_tested_here():
    assert sorted(TYPES) == sorted([*STEP, "Q4_K", "Q5_K", "Q6_K"])


def test_whole_model_in_eight_bits(tmp_path):
    name = "llama_default"
    tensors, rounded = {}, {}
    for key, array in to_llama_cpp(name, weights_of(name)).items():
        if array.ndim == 2 and array.shape[1] % 32 == 0:
            quants = gguf.quants.quantize(array, KINDS.Q8_0)
            tensors[key] = (quants, KINDS.Q8_0)
            rounded[key] = gguf.quants.dequantize(quants, KINDS.Q8_0)
    quantised = load_target(write_tiny(tmp_path / "q8.gguf", name, tensors=tensors))
    exact = load_target(write_tiny(tmp_path / "f32.gguf", name, tensors=rounded))
    jax.tree.map(np.testing.assert_array_equal, quantised.params, exact.params)
    assert quantised.weights_hash != exact.weights_hash  # the hash is of what is stored
    error = np.abs(logits_of(quantised, cases.tokens(name)) - stored()[name])
    assert error.max() > 1e-4
    assert error.mean() < 0.1


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float32])
def test_straight_to_the_wanted_dtype(dtype, tmp_path):
    target = load_target(write_tiny(tmp_path / "m.gguf", "qwen3"), dtype=dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(target.params)} == {np.dtype(dtype)}


# ---------------------------------------------------------------- refused


def test_unsupported_type_is_named(tmp_path):
    blocks = np.zeros((96, 32 // 32 * 22), np.uint8)
    tensors = {"token_embd.weight": (blocks, KINDS.Q5_0)}
    with pytest.raises(UserError, match="token_embd.weight as Q5_0.*Q4_K"):
        load_target(write_tiny(tmp_path / "m.gguf", "llama_default", tensors=tensors))


def test_unsupported_architecture_is_named(tmp_path):
    with pytest.raises(UserError, match="phi3.*llama"):
        load_target(write_tiny(tmp_path / "m.gguf", "llama_default", architecture="phi3"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tensors": {"token_embd.weight": None}}, "token_embd.weight"),
        ({"tensors": {"blk.1.attn_q.weight": None}}, "lacks layers.1.self_attn.q_proj"),
        ({"tensors": {"blk.0.attn_q.bias": np.zeros(32, np.float32)}}, "blk.0.attn_q.bias"),
        ({"tensors": {"blk.0.ffn_gate_exps.weight": np.zeros((2, 48, 32), np.float32)}}, "ffn_gate_exps"),
        ({"tensors": {"blk.7.attn_norm.weight": np.zeros(32, np.float32)}}, "does not use: layers.7"),
        ({"tensors": {"blk.0.ffn_up.weight": np.zeros((40, 32), np.float32)}}, r"up_proj of shape \(40, 32\)"),
        ({"tensors": {"output_norm.weight": np.full(32, np.nan, np.float32)}}, "NaN or infinity in norm"),
        ({"keys": {"embedding_length": None}}, "embedding_length"),
        ({"keys": {"block_count": None}}, "block_count"),
        ({"keys": {"attention.head_count": None}}, "head_count"),
        ({"keys": {"attention.head_count": 0}}, "head_count 0"),
        ({"keys": {"attention.head_count": "four"}}, "head_count 'four'"),
        ({"keys": {"block_count": 10**9}}, "num_hidden_layers"),
        ({"keys": {"rope.scaling.type": "yarn"}}, "yarn"),
        ({"plain": {"split.count": 2}}, "split"),
    ],
)
def test_bad_files_are_refused(changes, named, tmp_path):
    with pytest.raises(UserError, match=named):
        load_target(write_tiny(tmp_path / "m.gguf", "llama_default", **changes))


@pytest.mark.parametrize("keep", [0, 3, 20, 200, 2000, -1])
def test_truncated_file(keep, tmp_path):
    whole = write_tiny(tmp_path / "m.gguf", "llama_default").read_bytes()
    assert len(whole) > 3000
    (tmp_path / "part.gguf").write_bytes(whole[:keep])
    with pytest.raises(UserError, match="part.gguf is not a whole GGUF file"):
        load_target(tmp_path / "part.gguf")


def test_not_a_gguf(tmp_path):
    (tmp_path / "text.gguf").write_text("hello " * 100)
    with pytest.raises(UserError, match="text.gguf is not a whole GGUF file"):
        load_target(tmp_path / "text.gguf")
    with pytest.raises(UserError, match="there is no file"):
        load_target(tmp_path / "none.gguf")
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(UserError, match="folder.gguf"):
        load_target(tmp_path / "folder.gguf")


def test_flipped_bytes_never_escape_as_another_error(tmp_path):
    whole = bytearray(write_tiny(tmp_path / "m.gguf", "llama_default", plain={"general.name": "x"}).read_bytes())
    random = np.random.RandomState(11)
    refused = 0
    for trial in range(60):
        broken = bytearray(whole)
        for place in random.randint(0, 1500, 3):  # header, metadata and tensor descriptions
            broken[place] = random.randint(0, 256)
        path = tmp_path / f"{trial}.gguf"
        path.write_bytes(broken)
        try:
            load_target(path)
        except UserError:
            refused += 1
        path.unlink()
    assert refused > 20
