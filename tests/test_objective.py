"""An objective gives the same loss and gradient however it is computed: term by term, as one, or without autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import limbeck as lb
from limbeck.augment import MixedObjective
from limbeck.presets import PRESETS, as_recipe
from limbeck.recipe import Objective, Recipe
from limbeck.terms._numerics import by_row, row_loss_of, together
from limbeck.terms.catalogue import CATALOGUE

CONTEXT = {"epochs": 4, "classes": 5, "samples": 40}
TERMS = [name for name, info in CATALOGUE.items() if row_loss_of(info.function) is not None]


def batch(dtype: torch.dtype = torch.float64, samples: int = 40, classes: int = 5) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(2, samples, classes, generator=generator, dtype=torch.float64)).to(dtype)
    labels = torch.randint(classes, (samples,), generator=generator)
    return {
        "student_logits": student.requires_grad_(),
        "teacher_logits": teacher,
        "labels": labels,
        "progress": 0.3,
        "epoch": 1,
    }


def term_by_term(recipe: Recipe, fields: dict[str, Any], factors: list[float]) -> Tensor:
    """Each term called by itself, as its public function."""
    values = []
    for term, factor in zip(recipe.terms, factors, strict=True):
        values.append(factor * term.function(**{name: fields[name] for name in term.needs}, **term.options))
    return torch.stack(values).sum(0)


def explicit() -> list[str]:
    found = []
    for name in PRESETS:
        recipe = as_recipe(name)
        plain = recipe.choose is None and recipe.arbitrate is None and recipe.weighting.uniform
        if plain and all(row_loss_of(term.function) and not term.standardise for term in recipe.terms):
            found.append(name)
    return found


def test_the_common_recipes_need_no_autograd_of_their_losses() -> None:
    assert {"erm", "kd", "rld", "dkd", "btkd", "la", "ttm"} <= set(explicit())


@pytest.mark.parametrize("name", explicit())
def test_as_one_is_term_by_term(name: str) -> None:
    recipe, fields = as_recipe(name), batch()
    objective = Objective(recipe, CONTEXT)
    objective.begin_epoch(1)
    wanted = term_by_term(recipe, fields, objective.factors)
    (slope,) = torch.autograd.grad(wanted.mean(), fields["student_logits"])
    loss, losses = objective.forward(fields)
    (same,) = torch.autograd.grad(loss, fields["student_logits"])
    torch.testing.assert_close(losses, wanted.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(same, slope, rtol=1e-10, atol=1e-12)
    assert objective.explicit
    gradient, told = objective.gradient(fields)
    torch.testing.assert_close(gradient, slope, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(told, wanted.detach(), rtol=1e-12, atol=1e-12)
    assert not gradient.requires_grad


@pytest.mark.parametrize("term", TERMS)
def test_a_gradient_is_that_of_the_finite_difference_and_can_be_differentiated_again(term: str) -> None:
    describe = row_loss_of(CATALOGUE[term].function)
    assert describe is not None
    fields = batch(samples=6)
    needed = lb.recipe.Term.named(term).needs
    student = fields["student_logits"]
    fixed = {name: fields[name] for name in needed if name != "student_logits"}
    if term == "rc":  # its target is the student itself, held fixed
        described = describe(student.detach(), **fixed)
        twice = together([(described, 0.5), (described, 2.0)])
    else:
        twice = together([(describe(student, **fixed), 0.5), (describe(student, **fixed), 2.0)])
    assert torch.autograd.gradcheck(lambda z: by_row(z, twice), student)
    assert torch.autograd.gradgradcheck(lambda z: by_row(z, twice), student)


def test_a_long_batch_goes_through_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, fields = as_recipe("rld"), batch()
    whole = Objective(recipe, CONTEXT).gradient(fields)
    monkeypatch.setattr("limbeck.terms._numerics._CHUNK_CPU", 35)
    parts = Objective(recipe, CONTEXT).gradient(fields)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)


def test_half_precision_gets_a_gradient_of_its_own_kind() -> None:
    fields = batch(torch.bfloat16)
    gradient, losses = Objective(as_recipe("kd"), CONTEXT).gradient(fields)
    assert gradient.dtype is torch.bfloat16
    assert losses.dtype is torch.float32


def test_what_has_more_to_differentiate_goes_through_autograd() -> None:
    own = Recipe(terms=["cross_entropy", lambda student_logits: student_logits.square().mean(1)])
    beside = Recipe(terms=["cross_entropy", {"term": "kl_divergence", "weighted": False}])
    for recipe in ("groupdistil", "ctkd", "lskd", "dist", own, beside):
        context = CONTEXT | {"groups": 2, "group_counts": torch.tensor([20, 20])}
        assert not Objective(as_recipe(recipe), context).explicit
    assert not MixedObjective(as_recipe("kd"), CONTEXT).explicit


class Sparse(nn.Module):
    """A student whose embedding has sparse gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(8, 4, sparse=True)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.words(x.long()))


def test_sparse_gradients_are_left_to_an_optimiser_that_takes_them() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(8, (60, 3), generator=generator).numpy()
    data = lb.Data(x.astype("float32"), (x[:, 0] > 3).astype("int64"))
    fitted = lb.fit(Sparse, data, recipe="erm", epochs=2, optimiser="sgd", learning_rate=0.1)
    assert len(fitted.history) == 2


AHEAD = ("erm", "kd", "rld", "dkd", "la", "ttm")


@pytest.mark.parametrize("name", AHEAD)
def test_what_is_told_ahead_is_what_each_batch_says(name: str) -> None:
    recipe, fields = as_recipe(name), batch()
    objective = Objective(recipe, CONTEXT)
    objective.begin_epoch(0)
    whole = objective.ahead({"labels": fields["labels"], "teacher_logits": fields["teacher_logits"]}, 5)
    assert whole is not None
    for part in (slice(0, 16), slice(16, 40), slice(1, 40, 2)):
        some = {key: value[part] if isinstance(value, Tensor) else value for key, value in fields.items()}
        wanted, losses = objective.gradient(some)
        gradient, told = objective.gradient(some, whole.part(part))
        # Where a part begins moves sums by a rounding.
        torch.testing.assert_close(gradient, wanted, rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(told, losses, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", ["btkd", "rc", "groupdistil", "lskd"])
def test_what_looks_at_its_batch_is_not_told_ahead(name: str) -> None:
    context = CONTEXT | {"groups": 2, "group_counts": torch.tensor([20, 20])}
    columns = {key: value for key, value in batch().items() if isinstance(value, Tensor)} | {"progress": 0.0}
    assert Objective(as_recipe(name), context).ahead(columns, 5) is None


def test_columns_too_large_to_order_are_told_batch_by_batch() -> None:
    objective = Objective(as_recipe("kd"), CONTEXT)
    assert objective.ahead({"labels": batch()["labels"]}, 5) is None


def test_our_optimisers_step_is_torchs() -> None:
    for kind in ("sgd", "adam", "adamw"):
        ends = []
        for bare in (True, False):
            torch.manual_seed(0)
            model = nn.Linear(4, 3)
            training = lb.Training(optimiser=kind, learning_rate=0.1, weight_decay=0.01)
            optimiser = training.make_optimiser(list(model.parameters()))
            step = training.stepper(optimiser) if bare else optimiser.step
            for _ in range(3):
                for parameter in model.parameters():
                    parameter.grad = torch.ones_like(parameter)
                step()
            ends.append([part.detach().clone() for part in model.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_an_optimiser_of_ones_own_keeps_its_hooks() -> None:
    seen = []

    def own(parameters: Any) -> torch.optim.Optimizer:
        optimiser = torch.optim.SGD(parameters, lr=0.1)
        optimiser.register_step_post_hook(lambda *_: seen.append(1))
        return optimiser

    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)).numpy()
    lb.fit(nn.Linear(3, 2), lb.Data(x, (x[:, 0] > 0).astype("int64")), recipe="erm", epochs=2, optimiser=own)
    assert len(seen) == 2
