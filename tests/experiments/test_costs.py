"""Costs: compiling is not counted, peak memory is that of the call alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2l.experiments import costs


def test_a_call_that_compiles_is_made_again():
    calls = []
    double = jax.jit(lambda x: 2 * x)

    def work():
        calls.append(1)
        return double(jnp.ones(7))

    result, _ = costs.measure(work)
    assert len(calls) == 2 and result[0] == 2
    costs.measure(work)
    assert len(calls) == 3
    rehearsed = []
    triple = jax.jit(lambda x: 3 * x)
    costs.measure(lambda: calls.append(1) or triple(jnp.ones(7)), lambda: rehearsed.append(triple(jnp.ones(7))))
    assert len(calls) == 4 and len(rehearsed) == 1


def test_peak_memory_is_that_of_the_block():
    size = 64 << 20
    kept = np.ones(size, np.uint8)  # in use before: not counted
    with costs.peak_memory() as quiet:
        pass
    with costs.peak_memory() as peak:
        assert np.ones(size, np.uint8)[0] == kept[0]  # freed at once, and seen all the same
    if peak.bytes is None:
        pytest.skip("this system cannot set its peak memory back")
    assert 0.95 * size < peak.bytes < 1.5 * size and quiet.bytes < size // 4  # Linux counts pages in batches
