"""The public checks pass for everything that the library ships, and fail for parts that break a rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import limbeck as lb
from limbeck.terms.catalogue import CATALOGUE
from limbeck.testing import ConformanceError, check_recipe, check_term, check_weighting
from limbeck.weighting.catalogue import WEIGHTINGS


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_every_term(name: str) -> None:
    check_term(name)


@pytest.mark.parametrize("name", sorted(WEIGHTINGS))
def test_every_weighting(name: str) -> None:
    check_weighting(name)


@pytest.mark.parametrize("name", sorted(lb.PRESETS))
def test_every_preset(name: str) -> None:
    check_recipe(name)


COMBINATIONS: list[Any] = [
    {"recipe": "rld", "weighting": "group_dro", "head": "transplant", "name": "rld, group DRO, transplanted head"},
    {
        "recipe": "pll",
        "weighting": {"name": "upweight", "upweight": 5.0},
        "identify": {"epochs": 1},
        "name": "pll, DeTT's upweighting",
    },
    {"recipe": "btkd", "weighting": "group_dro", "sampling": "group_balanced", "name": "btkd, group DRO"},
    {"recipe": "dett", "weighting": "group_dro", "identify": None, "name": "dett, group DRO"},
    {"recipe": "groupdistil", "refit": {"refits": 2}, "name": "groupdistil, DFR"},
    {"recipe": "rld", "weighting": "lff", "standardise": True, "name": "rld standardised, LfF"},
    {
        "name": "all terms",
        "terms": ["cross_entropy", {"term": "dist", "weighted": False}, "nkd"],
        "weighting": "class_balanced",
    },
]


@pytest.mark.parametrize("recipe", COMBINATIONS, ids=lambda recipe: recipe["name"])
def test_combinations(recipe: Any) -> None:
    check_recipe(recipe)


def kd_by_hand(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0) -> Tensor:
    p, q = (teacher_logits / temperature).softmax(1), (student_logits / temperature).softmax(1)
    return temperature**2 * (p * (p.log() - q.log())).sum(1)


def test_a_reference_is_compared() -> None:
    check_term("kl_divergence", reference=kd_by_hand)
    with pytest.raises(ConformanceError, match="differs from the reference"):
        check_term("kl_divergence", reference=lambda **fields: 1.01 * kd_by_hand(**fields))


# Parts that break a rule, as seen elsewhere --------------------------------------------------------------------------


def _shared(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    return ((student_logits - teacher_logits) ** 2).sum(1)


def _reduced(student_logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(student_logits, labels)


def _logged(student_logits: Tensor, labels: Tensor) -> Tensor:
    return -student_logits.float().softmax(1).gather(1, labels[:, None]).squeeze(1).log()


def _changing(student_logits: Tensor, labels: Tensor) -> Tensor:
    labels.clamp_(max=1)
    return F.cross_entropy(student_logits, labels, reduction="none")


def _half(student_logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(student_logits.half(), labels, reduction="none")


def _constant(student_logits: Tensor, labels: Tensor) -> Tensor:
    return (student_logits - student_logits).sum(1) + labels * 0.0


@pytest.mark.parametrize(
    ("term", "rule"),
    [
        (_shared, "a gradient reaches teacher_logits"),
        (_reduced, r"returned shape \[\], expected \[8\]"),
        (_logged, "not finite for logits of ±1e4"),
        (_changing, "changed its input labels"),
        (_half, "computes in torch.float16"),
        (_constant, "no gradient reaches the student"),
    ],
)
def test_a_term_that_breaks_a_rule(term: Callable[..., Tensor], rule: str) -> None:
    with pytest.raises(ConformanceError, match=rule):
        check_term(term)


class Forgetful(nn.Module):
    """Keeps its state in a plain attribute, so that a resume loses it."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.q = torch.ones(groups)

    def forward(self, losses: Tensor, groups: Tensor) -> Tensor:
        self.q = self.q + 0.1 * torch.zeros_like(self.q).index_add_(0, groups, losses.detach())
        return (self.q[groups] * losses).mean()


def test_weightings_that_break_a_rule() -> None:
    with pytest.raises(ConformanceError, match="state must be in parameters or buffers"):
        check_weighting(Forgetful)
    with pytest.raises(ConformanceError, match="no scalar"):
        check_weighting(lambda losses: losses)
    check_weighting(lambda losses: losses.mean(), reference=lambda losses: losses.mean())
    with pytest.raises(ConformanceError, match="differs from the reference"):
        check_weighting(lambda losses: losses.mean(), reference=lambda losses: losses.sum())


def my_term(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, strength: float = 2.0) -> Tensor:
    """A user's own: cross entropy where the teacher is right, and nothing where it is wrong."""
    right = teacher_logits.detach().argmax(1) == labels
    return strength * right * F.cross_entropy(student_logits.float(), labels, reduction="none")


def test_a_users_own_term_by_function_and_by_name() -> None:
    check_term(my_term)
    check_recipe(lb.Recipe([my_term], "group_dro", functions={}), functions={"my_term": my_term})
    named = {"name": "mine", "terms": [{"term": "my_file.my_term", "strength": 1.0}], "weighting": "class_balanced"}
    check_recipe(named, functions={"my_file.my_term": my_term})
