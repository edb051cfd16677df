"""From probabilities to logits and back, zeros included."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.errors import TeacherError, unknown_name

KINDS = ("logits", "probabilities", "log_odds", "features")
"""What a model may return: logits, probabilities, for two classes the log odds of the second, or features only."""

ZERO_MASS = 1e-3
"""The most that the zeros of one row may be given in all, before normalising."""


def logits_from_probabilities(probabilities: Tensor, zero_mass: float = ZERO_MASS) -> Tensor:
    """Logits whose softmax gives back the probabilities: their logarithm, with finite values for zeros.

    A zero in a row of C classes counts as the smaller of the row's smallest positive probability and `zero_mass` / C.
    So no zero outweighs anything the teacher saw, what is made up stays below `zero_mass` of the row, and a row's
    logits depend on that row alone.

    Args:
        probabilities: `[B, C]`, not negative, rows with a positive sum (they need not be normalised).
        zero_mass: see above; .001 puts a zero of two classes 7.6 below a one.

    Returns:
        float32 logits `[B, C]`: log p up to the row's constant.

    Raises:
        TeacherError: for negative values, or a row without any mass.
    """
    values = probabilities.double()
    if bool((values < 0).any()):
        raise TeacherError(f"a probability is negative: {float(values.min()):.3g}")
    values = values / values.sum(-1, keepdim=True)
    positive = values > 0
    if not bool(positive.any(-1).all()):
        raise TeacherError("a row of probabilities has no mass at all")
    smallest = torch.where(positive, values, torch.inf).amin(-1, keepdim=True)
    floor = smallest.clamp_max(zero_mass / values.shape[-1])
    return torch.where(positive, values, floor).log().float()


def as_logits(values: Tensor, kind: str) -> Tensor:
    """Logits `[B, C]` from what a model returned, of one of `KINDS`; log odds `[B]`, `[B, 1]` become (0, log odds)."""
    check_kind(kind)
    if kind == "probabilities":
        return logits_from_probabilities(values)
    if kind == "log_odds":
        odds = values.float().reshape(len(values), -1)
        if odds.shape[1] != 1:
            raise TeacherError(f"log odds are one number a sample, found {odds.shape[1]}: declare logits instead")
        return torch.cat([torch.zeros_like(odds), odds], 1)
    return values.float()


def logits_and_probabilities(values: Tensor, kind: str, want: Sequence[str]) -> dict[str, Tensor]:
    """Those of `logits` and `probabilities` that are wanted, from what a model returned; float32 `[B, C]`."""
    found = {}
    if "logits" in want or kind != "probabilities":
        found["logits"] = as_logits(values, kind)
    if "probabilities" in want:
        found["probabilities"] = values.float() if kind == "probabilities" else found["logits"].softmax(-1)
    return {name: value for name, value in found.items() if name in want}


def check_kind(kind: str) -> None:
    """Raise `TeacherError` for a kind of output that is not one of `KINDS`."""
    if kind not in KINDS:
        raise TeacherError(unknown_name("kind of teacher output", kind, KINDS))


def refuse_probabilities(logits: Tensor, description: str) -> None:
    """Raise `TeacherError` where values declared as logits are probabilities: not negative, every row summing to one.

    A softmax over a softmax is nearly uniform, and distillation from it fails without any error.
    """
    if logits.shape[-1] > 1 and bool((logits >= 0).all()) and bool(((logits.sum(-1) - 1).abs() < 1e-4).all()):
        raise TeacherError(
            f"the output of {description} was declared as logits, but every row is positive and sums to one: "
            "declare kind='probabilities'"
        )
