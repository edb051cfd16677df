"""The catalogue says of every term what is true of it, and signatures are read as the naming rule says."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import limbeck.terms
from limbeck.errors import RecipeError
from limbeck.terms import CATALOGUE, CONTEXT, FIELDS, TermInfo, context_needs, needs, options

STATEFUL = {"elr", "ctkd", "fitnet", "crd"}


def own_term(student_logits: Tensor, labels: Tensor, strength: float = 2.0) -> Tensor:
    return strength * student_logits.gather(1, labels[:, None])[:, 0]


class OwnModule(nn.Module):
    def __init__(self, classes: int, rate: float = 0.1, samples: int = 3, **rest: float) -> None:
        super().__init__()

    def forward(self, student_logits: Tensor, rows: Tensor, epoch: int = 0) -> Tensor:
        return student_logits.sum(1)


class OwnCallable:
    def __init__(self, groups: int, *, step: float) -> None:
        self.step = step

    def __call__(self, losses: Tensor, groups: Tensor) -> Tensor:
        return losses.mean()


def test_needs_are_required_parameters_and_fields() -> None:
    assert needs(own_term) == ("student_logits", "labels")
    assert needs(partial(own_term, strength=3.0)) == ("student_logits", "labels")
    assert needs(OwnModule) == ("student_logits", "rows", "epoch")
    assert needs(OwnModule(2)) == ("student_logits", "rows", "epoch")
    assert needs(OwnCallable) == ("losses", "groups")
    assert needs(OwnCallable(2, step=1.0)) == ("losses", "groups")


def test_context_and_options_of_a_class() -> None:
    assert context_needs(OwnModule) == ("classes", "samples")
    assert context_needs(own_term) == ()
    assert context_needs(OwnModule(2)) == ()
    empty = inspect.Parameter.empty
    assert options(OwnModule) == {"classes": empty, "rate": 0.1, "samples": 3}
    assert options(OwnCallable) == {"groups": empty, "step": empty}
    assert options(own_term) == {"strength": 2.0}


def test_a_required_parameter_that_is_no_field_is_named() -> None:
    def typo(student_logit: Tensor) -> Tensor:
        return student_logit

    with pytest.raises(RecipeError, match="typo: unknown batch field 'student_logit': did you mean 'student_logits'"):
        needs(typo)


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_entry_is_usable(name: str) -> None:
    info = CATALOGUE[name]
    assert set(needs(info.function)) <= set(FIELDS)
    assert needs(info.function)
    assert set(context_needs(info.function)) <= set(CONTEXT)
    given = {key for key, default in options(info.function).items() if default is inspect.Parameter.empty}
    assert given <= set(context_needs(info.function)), "an option without a default that the run cannot supply"
    assert isinstance(info.function, type) == (name in STATEFUL)
    assert info.minimum_classes in (2, 3)
    assert info.trusts
    assert info.source or name == "cross_entropy"
    assert getattr(limbeck.terms, info.function.__name__) is info.function
    assert info.function.__name__.lower() == name
    assert info.per_sample == (name not in ("dist", "rkd"))


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_entry_documents_itself(name: str) -> None:
    function = CATALOGUE[name].function
    text = inspect.getdoc(function) or ""
    arguments = inspect.getdoc(function.forward) or "" if isinstance(function, type) else text
    assert "`[B" in arguments or "scalar" in arguments or "as `" in text
    if "as `" not in text:
        for option in options(function):
            assert f"{option}:" in text, f"{name}: {option} is not described"


def test_the_catalogue_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        CATALOGUE["mine"] = TermInfo(own_term, "")  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        CATALOGUE["rkd"].per_sample = True  # type: ignore[misc]


def test_everything_public_is_exported() -> None:
    for name in limbeck.terms.__all__:
        assert hasattr(limbeck.terms, name)
    assert limbeck.terms.__all__ == sorted(limbeck.terms.__all__)


def test_the_room_imports_torch_and_errors_only() -> None:
    folder = Path(limbeck.terms.__file__).parent
    allowed = {
        "torch",
        "limbeck",
        "__future__",
        "collections",
        "dataclasses",
        "functools",
        "inspect",
        "math",
        "types",
        "typing",
    }
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                assert name.split(".")[0] in allowed, f"{file.name} imports {name}"
                if name.startswith("limbeck"):
                    assert name.startswith(("limbeck.terms", "limbeck.errors")), f"{file.name} imports {name}"


@pytest.mark.parametrize("name", sorted(STATEFUL))
def test_a_stateful_term_is_built_from_its_context(name: str) -> None:
    torch.manual_seed(0)
    known = {
        "classes": 3,
        "samples": 6,
        "labels_all": torch.arange(6) % 3,
        "student_width": 4,
        "teacher_width": 5,
        "student_map_shapes": [(2, 4, 4)],
        "teacher_map_shapes": [(3, 2, 2)],
    }
    fields = {
        "student_logits": torch.randn(2, 3),
        "teacher_logits": torch.randn(2, 3),
        "student_features": torch.randn(2, 4),
        "teacher_features": torch.randn(2, 5),
        "student_maps": torch.randn(2, 2, 4, 4),
        "teacher_maps": torch.randn(2, 3, 2, 2),
        "rows": torch.tensor([1, 4]),
        "epoch": 0,
    }
    function = CATALOGUE[name].function
    term = function(**{key: known[key] for key in context_needs(function)})
    losses = term(**{key: fields[key] for key in needs(function)})
    assert losses.shape == (2,)
    assert isinstance(term, nn.Module)
