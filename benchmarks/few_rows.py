"""Is the CPU's own product of few rows worth having? Against XLA's, on the matrices of SmolLM2's MLP.

    python -m benchmarks.few_rows [--rounds 12]

A chain of 30 pairs of bfloat16 matrices, 1,536 x 576 and 576 x 1,536, all of whose results are used: what is not used,
XLA leaves out. Both sides take turns; XLA gets a single row twice, at which it is fastest. Prints one JSON object: for
each number of rows the medians in milliseconds, GB of weights a second, and `ratio`, XLA's time over ours.
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from d2l.target.few_rows import few_rows_product

WIDE, NARROW, PAIRS = 1536, 576, 30
ROWS = (1, 2, 4, 8, 16, 32)


def xla(x_Ni: jax.Array, w_oi: jax.Array) -> jax.Array:
    return jnp.einsum("ni,oi->no", x_Ni, w_oi)


def ours(x_Ni: jax.Array, w_oi: jax.Array) -> jax.Array:
    return few_rows_product(x_Ni, w_oi).astype(x_Ni.dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    args = parser.parse_args()
    rng = np.random.default_rng(0)

    def matrix(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape) / shape[1] ** 0.5, jnp.bfloat16)

    weights = [(matrix(WIDE, NARROW), matrix(NARROW, WIDE)) for _ in range(PAIRS)]

    def chain(product):
        def run(weights, x_Ni):
            for up, down in weights:
                x_Ni = product(product(x_Ni, up), down)
            return x_Ni

        return jax.jit(run)

    sides = {"ours": chain(ours), "xla": chain(xla)}
    nbytes = sum(w.nbytes for pair in weights for w in pair)
    result = {}
    for rows in ROWS:
        x_Ni = matrix(rows, NARROW)
        inputs = {"ours": x_Ni, "xla": jnp.concatenate([x_Ni, x_Ni]) if rows == 1 else x_Ni}
        seconds = {name: [] for name in sides}
        for number in range(args.rounds + 1):
            for name, run in sides.items():
                began = time.perf_counter()
                run(weights, inputs[name]).block_until_ready()
                if number:  # the first one compiles
                    seconds[name].append(time.perf_counter() - began)
        median = {name: statistics.median(values) for name, values in seconds.items()}
        result[rows] = {
            **{f"{name}_ms": round(1e3 * value, 2) for name, value in median.items()},
            **{f"{name}_gb_per_s": round(nbytes / value / 1e9, 1) for name, value in median.items()},
            "ratio": round(median["xla"] / median["ours"], 2),
        }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
