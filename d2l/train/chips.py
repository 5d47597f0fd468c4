"""What accelerators can do at best: peaks for model FLOP/s used, memory for ahead-of-time compilation.

Numbers are the vendors' own for dense bfloat16. Link rates are those of one inter-chip link, one way, for a TPU, and
of a GPU's NVLink one way.
"""

import dataclasses

import jax

GB, TB, TFLOP = 1e9, 1e12, 1e12


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator as JAX sees it.

    Attributes:
      peak_flops: bfloat16 FLOP/s.
      hbm_bytes: memory.
      hbm_rate: bytes/s from it.
      link_rate: bytes/s of one link, one way.
      torus_axes: axes of the interconnect, two links each; 0 for a switched one.
    """

    peak_flops: float
    hbm_bytes: int
    hbm_rate: float
    link_rate: float
    torus_axes: int = 0


# By JAX's `device_kind`.
CHIPS = {
    "TPU v4": Chip(275 * TFLOP, 32 * 2**30, 1228 * GB, 45 * GB, 3),
    "TPU v5 lite": Chip(197 * TFLOP, 16 * 2**30, 819 * GB, 45 * GB, 2),
    "TPU v5": Chip(459 * TFLOP, 95 * 2**30, 2765 * GB, 90 * GB, 3),
    "TPU v6 lite": Chip(918 * TFLOP, 32 * 2**30, 1640 * GB, 90 * GB, 2),
    "NVIDIA A100-SXM4-40GB": Chip(312 * TFLOP, 40 * 2**30, 1.555 * TB, 300 * GB),
    "NVIDIA A100-SXM4-80GB": Chip(312 * TFLOP, 80 * 2**30, 2.039 * TB, 300 * GB),
    "NVIDIA H100 80GB HBM3": Chip(989 * TFLOP, 80 * 2**30, 3.35 * TB, 450 * GB),
    "NVIDIA H200": Chip(989 * TFLOP, 141 * 10**9, 4.8 * TB, 450 * GB),
}


def peak_flops(device: jax.Device) -> float | None:
    """Peak bfloat16 FLOP/s of a device; None where its kind is not in the table (a CPU, for one)."""
    chip = CHIPS.get(device.device_kind)
    return None if chip is None else chip.peak_flops
