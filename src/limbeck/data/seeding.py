"""Random numbers that belong to a sample: functions of (seed, stream, id) and of nothing else.

A draw does not depend on which other samples are present, on their order or on any global state, so
a subset of the data gets the very splits and the very noise that it has within the whole.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from limbeck.errors import DataError

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniform(seed: int, stream: str, ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """One number in the open interval (0, 1) for each id.

    The id, offset by a 64-bit key made from (seed, stream), goes through the finaliser of SplitMix64
    twice (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", figure 16).

    Args:
        seed: any integer.
        stream: names the use, so that two uses with the same seed are independent.
        ids: sample ids [N].

    Returns:
        float64 [N], multiples of 2⁻⁵³ shifted by 2⁻⁵⁴.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise DataError(f"seed is {seed!r}: expected an integer")
    digest = hashlib.blake2b(f"{int(seed)}|{stream}".encode(), digest_size=16).digest()
    first, second = (np.uint64(int.from_bytes(part, "little")) for part in (digest[:8], digest[8:]))
    with np.errstate(over="ignore"):
        state = ids.astype(np.int64).view(np.uint64) * _GOLDEN + first
        state = _mix(_mix(state) + second)
    return ((state >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def normal(seed: int, stream: str, ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """One standard normal number for each id, float64 [N]."""
    return np.asarray(ndtri(uniform(seed, stream, ids)))


def integers(seed: int, stream: str, ids: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """One of 0..count-1 for each id, each as likely, int64 [N]."""
    return np.minimum((uniform(seed, stream, ids) * count).astype(np.int64), count - 1)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
