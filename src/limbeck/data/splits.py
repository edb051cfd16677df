"""Which samples train, validate and test: declared splits read, missing ones made."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from limbeck.data.columns import IntArray, encode, some
from limbeck.data.seeding import uniform
from limbeck.errors import DataError

SPLITS = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = 0, 1, 2
_MEANING = {
    **dict.fromkeys(("train", "training", "tr"), TRAIN),
    **dict.fromkeys(("validation", "valid", "val", "dev"), VALIDATION),
    **dict.fromkeys(("test", "testing", "te"), TEST),
}

Fractions = tuple[float, float, float]


def read_split(values: object, ids: IntArray) -> NDArray[np.int8]:
    """A declared split as int8 [N]: 0 train, 1 validation, 2 test.

    Args:
        values: one a sample, as names (train, training; validation, valid, val, dev; test, testing; any case)
            or as 0, 1, 2; or one name for all samples.
        ids: sample ids [N], for error messages.

    Raises:
        DataError: a missing or unknown value, naming the ids that have it.
    """
    if isinstance(values, str):
        values = [values] * len(ids)
    found, codes = encode(values, "split")
    if len(codes) != len(ids):
        raise DataError(f"split has {len(codes)} values for {len(ids)} samples: give one a sample")
    if (codes < 0).any():
        raise DataError(
            f"split is missing for ids {some(ids[codes < 0])}: name train, validation or test for each sample"
        )
    meaning = np.empty(len(found), np.int8)
    for code, value in enumerate(found):
        if isinstance(value, bool) or (isinstance(value, int) and value not in (0, 1, 2)):
            place = None
        else:
            place = value if isinstance(value, int) else _MEANING.get(str(value).strip().lower())
        if place is None:
            raise DataError(
                f"split is {value!r} for ids {some(ids[codes == code])}: "
                f"expected train, validation or test (or 0, 1, 2)"
            )
        meaning[code] = place
    return meaning[codes]


def check_fractions(fractions: Sequence[float]) -> Fractions:
    """Three shares that sum to one.

    Raises:
        DataError: another number of shares, a negative one, no training share, or another sum.
    """
    shares = tuple(float(share) for share in fractions)
    good = len(shares) == 3 and all(math.isfinite(s) and s >= 0 for s in shares) and shares[0] > 0
    if not good or abs(sum(shares) - 1) > 1e-6:
        raise DataError(
            f"fractions are {list(fractions)}: expected the shares of train, validation and test, "
            f"none negative, train above 0, together 1"
        )
    return shares[0], shares[1], shares[2]


def make_split(strata: IntArray, within: IntArray, ids: IntArray, fractions: Fractions, seed: int) -> NDArray[np.int8]:
    """A stratified random split, int8 [N], a function of (seed, ids, strata, within) and not of the order of rows.

    Each stratum is shared out by the largest remainder, so that its shares are right to a sample; a stratum of
    three or more samples is in every split that has a share, a smaller one in training first and in test second.
    Inside a stratum the samples, ordered by `within` and then at random, are dealt evenly
    (systematic sampling), so that the shares of `within` are kept as well.

    Args:
        strata: int [N], such as the group.
        within: int [N], such as the label.
        ids: sample ids [N], unique.
        fractions: shares of train, validation and test.
        seed: of the order inside a stratum.
    """
    order = np.lexsort((uniform(seed, "split", ids), within, strata))
    starts = np.flatnonzero(np.diff(strata[order], prepend=strata[order][:1] - 1))
    split = np.empty(len(ids), np.int8)
    for rows in np.split(order, starts[1:]):
        split[rows] = _deal(share_out(len(rows), fractions))
    return split


def cut_validation(
    split: NDArray[np.int8], strata: IntArray, within: IntArray, ids: IntArray, fractions: Fractions, seed: int
) -> NDArray[np.int8]:
    """The same split with validation cut from train, its share `fractions[1] / (fractions[0] + fractions[1])`."""
    rows = np.flatnonzero(split == TRAIN)
    share = fractions[1] / (fractions[0] + fractions[1])
    result = split.copy()
    result[rows] = make_split(strata[rows], within[rows], ids[rows], (1 - share, share, 0.0), seed)
    return result


def share_out(count: int, fractions: Fractions) -> tuple[int, int, int]:
    """Whole numbers nearest to count × fractions with the right sum (largest remainder), none empty if it can be."""
    exact = [count * share for share in fractions]
    whole = [math.floor(value + 1e-9) for value in exact]
    by_remainder = sorted((TRAIN, TEST, VALIDATION), key=lambda s: whole[s] - exact[s])
    for s in by_remainder[: count - sum(whole)]:
        whole[s] += 1
    # Training comes first: a group without a training sample cannot be learned; then test: it must be judged.
    wanted = [s for s in (TRAIN, TEST, VALIDATION) if fractions[s] > 0][:count]
    for s in wanted:
        if whole[s] == 0:
            donors = [d for d in range(3) if whole[d] > (d in wanted)]
            whole[max(donors, key=lambda d: whole[d])] -= 1
            whole[s] = 1
    return whole[TRAIN], whole[VALIDATION], whole[TEST]


def split_codes(names: str | Sequence[str]) -> list[int]:
    """The codes of split names.

    Raises:
        DataError: a name that is not a split.
    """
    codes = []
    for name in [names] if isinstance(names, str) else names:
        if name not in SPLITS:
            raise DataError(f"unknown split {name!r}: expected train, validation or test")
        codes.append(SPLITS.index(name))
    return codes


def _deal(counts: tuple[int, int, int]) -> NDArray[np.int8]:
    """The splits of consecutive samples, each spread as evenly as it can be."""
    places = np.concatenate([(np.arange(count) + 0.5) / max(count, 1) for count in counts])
    names = np.repeat(np.arange(3, dtype=np.int8), counts)
    return names[np.argsort(places, kind="stable")]
