"""Sampling: what comes out does not depend on how rows are batched, padded or read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from d2l.errors import UserError
from d2l.target import generate
from d2l.target.decoder import abstract_decoder
from d2l.target.generate import Generator, Sampling, bucket, sample
from d2l.target.weights import load_target
from tests.conftest import random_adapter

guess_next = jax.jit(generate.guess_next)


@pytest.fixture(scope="module")
def target(target_folder):
    return load_target(target_folder)


@pytest.fixture(scope="module")
def generator(target):
    return Generator(target.config, target.params)


def prompts_of(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 300, n).tolist() for n in lengths]


@pytest.fixture(scope="module")
def likeliest(target):
    """The likeliest token after each one of a row, by one forward pass without cache: ids `[1, 64]` to `[1, 64]`."""
    decoder = nnx.merge(abstract_decoder(target.config)[0], target.params)
    return jax.jit(lambda tokens, adapter: jnp.argmax(decoder(tokens, adapter=adapter), axis=-1))


def greedy(likeliest, prompt, continuation, adapter=None):
    """What greedy decoding says after the prompt and after each token of `continuation` but the last."""
    ids = [*prompt, *continuation]
    row = jnp.array([ids + [0] * (64 - len(ids))], jnp.int32)
    return likeliest(row, adapter)[0, len(prompt) - 1 : len(ids) - 1].tolist()


def test_batch_equals_each_alone_equals_full_forward(likeliest, generator):
    prompts = prompts_of([3, 17, 40, 9, 33])
    together = generator.generate(prompts, max_new_tokens=6)
    assert together == [generator.generate([p], max_new_tokens=6)[0] for p in prompts]
    assert [len(ids) for ids in together] == [6] * 5
    assert together == [greedy(likeliest, p, ids) for p, ids in zip(prompts, together, strict=True)]


def test_adapters_of_rows_of_their_own_and_of_all(target, likeliest, generator):
    prompts = prompts_of([5, 12, 30])
    adapter = random_adapter(target.config, 3, 2)
    plain = generator.generate(prompts, max_new_tokens=5)
    adapted = generator.generate(prompts, max_new_tokens=5, adapter=adapter)
    rows = [jax.tree.map(lambda a, i=i: a[:, i : i + 1], adapter) for i in range(3)]
    assert adapted == [greedy(likeliest, *each) for each in zip(prompts, adapted, rows, strict=True)]
    shared = generator.generate(prompts, max_new_tokens=5, adapter=rows[0])
    assert shared == [greedy(likeliest, p, ids, rows[0]) for p, ids in zip(prompts, shared, strict=True)]
    assert plain != adapted != shared


def test_long_prompts_in_pieces_equal_one_pass(generator, monkeypatch):
    prompts = prompts_of([100, 7, 65])
    whole = generator.generate(prompts, max_new_tokens=6)
    monkeypatch.setattr(generate, "PREFILL_PIECE", 32)
    assert generator.generate(prompts, max_new_tokens=6) == whole


def test_stop_tokens_end_their_row_only(generator):
    prompts = prompts_of([3, 17])
    free = generator.generate(prompts, max_new_tokens=8)
    stop = free[0][2]
    stopped = generator.generate(prompts, max_new_tokens=8, stop_ids=[stop])
    for ours, theirs in zip(stopped, free, strict=True):
        assert ours == (theirs[: theirs.index(stop)] if stop in theirs else theirs)


def test_stream_is_generate_token_by_token(generator):
    prompts = prompts_of([3, 17])
    streamed = [[], []]
    for row, token in generator.stream(prompts, max_new_tokens=5):
        streamed[row].append(token)
    assert streamed == generator.generate(prompts, max_new_tokens=5)


def test_seeds_and_temperature(generator):
    prompts = prompts_of([3, 17])

    def draw(**options):
        return generator.generate(prompts, max_new_tokens=12, sampling=Sampling(**options))

    hot = draw(temperature=1.5, seed=3)
    assert hot == draw(temperature=1.5, seed=3)
    assert hot != draw(temperature=1.5, seed=4)
    greedy_ids = generator.generate(prompts, max_new_tokens=12)
    assert draw(temperature=1.5, top_k=1, seed=3) == greedy_ids
    assert draw(temperature=1.5, top_p=1e-6, seed=3) == greedy_ids
    assert draw(temperature=1e-4, seed=3) == greedy_ids


@pytest.mark.parametrize(("top_k", "top_p", "allowed"), [(0, 1.0, {0, 1, 2, 3}), (2, 1.0, {0, 1}), (0, 0.75, {0, 1})])
def test_sampling_follows_the_distribution_it_was_cut_to(top_k, top_p, allowed):
    probs = np.array([0.5, 0.3, 0.15, 0.05])
    rows = 4000
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(probs, jnp.float32))[None], (rows, 4))
    options = {"temperature": 1.0, "top_k": top_k, "top_p": top_p, "seed": 7}
    drawn = sample(logits, {k: jnp.asarray(v) for k, v in options.items()}, jnp.zeros(rows, jnp.int32))
    share = np.bincount(np.asarray(drawn), minlength=4) / rows
    expected = np.where([i in allowed for i in range(4)], probs, 0)
    np.testing.assert_allclose(share, expected / expected.sum(), atol=0.03)
    assert set(np.nonzero(share)[0]) == allowed


def test_one_decode_step_compiles_for_many_lengths(target):
    generator = Generator(target.config, target.params)
    for lengths in ([3], [20], [30]):
        generator.generate(prompts_of(lengths), max_new_tokens=20)
    # Prompts of up to 32 tokens with caches of 32 or 64 slots.
    assert generator._prefill._cache_size() == 2
    assert generator._continue._cache_size() == 2


@pytest.fixture(scope="module")
def guesser(target):
    return Generator(target.config, target.params, guess=True)


def test_guesses_change_no_token(target, generator, guesser):
    for prompt in prompts_of([1, 40]):
        for adapter in (None, random_adapter(target.config, 1, 2)):
            for sampling in (None, Sampling(temperature=0.3, seed=5)):
                options = {"adapter": adapter, "sampling": sampling}
                expected = generator.generate([prompt], max_new_tokens=40, **options)
                assert guesser.generate([prompt], max_new_tokens=40, **options) == expected
                assert guesser.generate([prompt], max_new_tokens=1, **options) == [expected[0][:1]]
                options["stop_ids"] = [expected[0][9]]
                stopped = generator.generate([prompt], max_new_tokens=40, **options)
                assert guesser.generate([prompt], max_new_tokens=40, **options) == stopped


def test_guesses_save_steps_where_a_text_repeats_itself(target, monkeypatch):
    # With nothing added to the embedding, a token follows from the one before it, and a cycle from that.
    def silent(path, array):
        return array * 0 if any(key.key in ("o_proj", "down_proj") for key in path) else array

    params = jax.tree_util.tree_map_with_path(silent, target.params)
    plain, guesser = (Generator(target.config, params, guess=guess) for guess in (False, True))
    pairs = []
    real = guesser._pair
    monkeypatch.setattr(guesser, "_pair", lambda *args: pairs.append(0) or real(*args))
    tokens = plain.generate([[1, 2, 3]], max_new_tokens=120)
    assert guesser.generate([[1, 2, 3]], max_new_tokens=120) == tokens
    assert len(set(tokens[0])) < 60 and len(pairs) < 100


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_a_guess_follows_the_longest_match(ids):
    slots = np.array(ids + [9] * (13 - len(ids)), np.int32)
    guess = int(guess_next(slots, np.int32(len(ids))))
    ends = range(len(ids) - 1)
    common = [next((n for n in range(3) if end < n or ids[end - n] != ids[-1 - n]), 3) for end in ends]
    if common and max(common):
        assert guess == ids[max(end for end in ends if common[end] == max(common)) + 1]


@given(st.integers(1, 100_000), st.sampled_from([1, 32]), st.sampled_from([4, 8]))
def test_buckets_hold_their_sizes_and_waste_little(size, smallest, parts):
    found = bucket(size, smallest, parts)
    assert found >= size and found % smallest == 0
    assert found - size < max(found / (parts + 1), smallest)
    assert bucket(found, smallest, parts) == found


def test_bad_arguments_are_named(generator):
    for options in ({"temperature": -1}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.5}, {"temperature": float("nan")}):
        with pytest.raises(UserError, match=next(iter(options))):
            Sampling(**options)
    with pytest.raises(UserError, match="max_new_tokens"):
        generator.generate([[1]], max_new_tokens=0)
    with pytest.raises(UserError, match="empty"):
        generator.generate([[1], []])
