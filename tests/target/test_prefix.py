"""What follows a shared beginning is what follows the whole prompt."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from d2l.target import generate
from d2l.target.decoder import abstract_decoder
from d2l.target.generate import Sampling
from d2l.target.prefix import Branch, PrefixGenerator
from d2l.target.weights import load_target
from tests.target.test_generate import prompts_of


@pytest.fixture(scope="module")
def target(target_folder):
    return load_target(target_folder)


@pytest.fixture(scope="module")
def generator(target):
    return PrefixGenerator(target.config, target.params)


BRANCHES = [Branch(1, [7, 8, 9]), Branch(0, [5]), Branch(2, list(range(40))), Branch(1, [11, 12]), Branch(0, [9] * 17)]


@pytest.mark.parametrize("piece", [generate.PREFILL_PIECE, 32], ids=["one piece", "several pieces"])
def test_generates_what_follows_the_whole_prompt(generator, monkeypatch, piece):
    monkeypatch.setattr(generate, "PREFILL_PIECE", piece)
    monkeypatch.setattr("d2l.target.prefix.PREFILL_PIECE", piece)
    prefixes = prompts_of([50, 3, 71])
    whole = [[*prefixes[branch.prefix], *branch.ids] for branch in BRANCHES]
    expected = generator.generate(whole, max_new_tokens=12)
    stop = expected[2][4]
    read = generator.read(prefixes)

    def said(**options):
        return [after.said for after in generator.generate_after(read, BRANCHES, max_new_tokens=12, **options)]

    assert said() == expected
    stopped = said(stop_ids=[stop])
    assert stopped == generator.generate(whole, max_new_tokens=12, stop_ids=[stop])
    warm = Sampling(temperature=1.5, seed=3)
    sampled = said(sampling=warm)
    assert sampled == generator.generate(whole, max_new_tokens=12, sampling=warm) != expected
    for rows in (1, 2):  # rows that are used again
        assert said(stop_ids=[stop], rows=rows) == stopped
        assert said(sampling=warm, rows=rows) == sampled


@pytest.mark.parametrize("rows", [None, 2])
def test_top_k_is_that_of_a_full_forward(target, generator, rows):
    prefixes = prompts_of([20, 3, 9], seed=1)
    whole = [[*prefixes[branch.prefix], *branch.ids] for branch in BRANCHES]
    stop = generator.generate(whole, max_new_tokens=12)[2][4]
    read = generator.read(prefixes)
    after = generator.generate_after(read, BRANCHES, max_new_tokens=12, stop_ids=[stop], rows=rows, top_k=4)
    decoder = nnx.merge(abstract_decoder(target.config)[0], target.params)
    assert {reply.ended for reply in after} == {True, False}
    for prompt, reply in zip(whole, after, strict=True):
        tokens, logp = reply.best
        full = jax.nn.log_softmax(decoder(jnp.array([[*prompt, *reply.ids]], jnp.int32))[0, len(prompt) - 1 : -1])
        expected, order = jax.lax.top_k(full, 4)
        np.testing.assert_allclose(logp, expected, atol=2e-5)
        np.testing.assert_array_equal(tokens, order)
        assert tokens.shape == logp.shape == (len(reply.ids), 4)
        assert reply.ended == (reply.ids[-1] == stop) and reply.said == [token for token in reply.ids if token != stop]
