"""What kernels are compiled for on a GPU, and with which options."""

from __future__ import annotations

from collections.abc import Iterable

OPTIONS = ("--std=c++17",)
"""Of NVRTC, beside the architecture. No file is included, so no folder is named."""

LEAST = (8, 0)
"""The compute capability that the kernels need: bfloat16 and TF32, copies past registers."""

SPECIFIC = frozenset({90})
"""Architectures compiled with all that only they have, under a name with an ``a``."""


def target(capability: tuple[int, int], supported: Iterable[int]) -> str:
    """What to compile for: machine code ``sm_90a``, or ``compute_90`` for the driver to finish.

    Parameters
    ----------
    capability
        Major and minor number of the device's.
    supported
        What the compiler knows, such as 80, 90, 120.

    Raises
    ------
    ValueError
        It knows none that the device can run.
    """
    own, known = 10 * capability[0] + capability[1], set(supported)
    if own in known:
        return f"sm_{own}a" if own in SPECIFIC else f"sm_{own}"
    lower = [number for number in known if 10 * LEAST[0] + LEAST[1] <= number <= own]
    if not lower:
        raise ValueError(f"the compiler makes nothing for compute capability {own / 10}")
    return f"compute_{max(lower)}"


def largest_cluster(capability: tuple[int, int]) -> int:
    """Blocks that may form a cluster: 16 on data centres' GPUs, 8 on others, 1 before 9.0."""
    major = capability[0]
    if major < 9:
        return 1
    return 16 if major in (9, 10) else 8
