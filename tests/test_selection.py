"""Selection rules: what each goes by, what it says it consumes, and the choice between finished models."""

from __future__ import annotations

import math

import numpy as np
import pytest
from torch import nn

import limbeck as lb
from limbeck.data import Data
from limbeck.errors import ConfigError, DataError
from limbeck.evaluation import GroupCounts
from limbeck.groups import Discovery, Seen
from limbeck.selection import MINIMUM, RULES, SelectionRule, choose, selection_rule, worst_slice

CLASSES = ("cat", "dog")


@pytest.fixture
def validation() -> Data:
    """Two classes × two sites, 20 samples each, in turn."""
    labels, sites = np.tile([0, 0, 1, 1], 20), np.tile([0, 1, 0, 1], 20)
    data = Data(
        np.random.default_rng(0).normal(size=(80, 3)).astype(np.float32),
        np.array(CLASSES)[labels],
        attributes={"site": np.array(["a", "b"])[sites]},
        groups=["label", "site"],
        ids=np.arange(100, 180),
        split="validation",
        fractions=None,
    )
    return data


def predictions(data: Data, wrong: dict[tuple[int, int], int]) -> np.ndarray:
    """Right everywhere but for so many samples of a (class, site)."""
    found = data.y.copy()
    site = data.attributes["site"].codes
    for (label, where), count in wrong.items():
        rows = np.flatnonzero((data.y == label) & (site == where))[:count]
        found[rows] = 1 - label
    return found


def discovery_of(data: Data, index: np.ndarray, names: tuple[str, ...]) -> Discovery:
    class Fixed:
        """A rule that is the index."""

        families, reads, sees_errors, texts = (0,) * len(names), ("columns",), False, names

        def __init__(self) -> None:
            self.names = names

        def assign(self, seen: Seen) -> np.ndarray:
            return index

    return Discovery("tree", Fixed(), data.ids, data.split, index, lambda _: Seen())


# What a rule goes by --------------------------------------------------------------------------------------------------


def test_each_rule_goes_by_what_it_is_called(validation: Data):
    """Class dog is at .75, its site b at .5; cats are all right."""
    outputs = predictions(validation, {(1, 1): 10})
    scores = {name: rule.judge(validation, outputs) for name, rule in RULES.items()}
    assert scores["average"] == pytest.approx(70 / 80)
    assert scores["worst_class"] == pytest.approx(30 / 40)
    assert scores["class_gap"] == pytest.approx(30 / 40 - 1)
    assert scores["worst_group"] == pytest.approx(10 / 20)
    assert math.isnan(scores["last"])


def test_logits_probabilities_and_classes_are_the_same_to_a_rule(validation: Data):
    predicted = predictions(validation, {(0, 1): 6})
    logits = np.eye(2)[predicted] * 3 - 1
    for rule in ("average", "worst_group"):
        assert RULES[rule].judge(validation, logits) == RULES[rule].judge(validation, predicted)
    with pytest.raises(DataError, match="expected"):
        RULES["average"].judge(validation, predicted[:10])


def test_the_class_gap_ignores_classes_of_few_samples_but_not_where_all_are_small():
    names = ("a", "b", "c")

    def score(correct: list[int], wrong: list[int]) -> float:
        confusion = np.diag(np.array(correct))
        confusion[range(3), [1, 2, 0]] += wrong
        counts = GroupCounts.from_table(np.stack([confusion, np.zeros((3, 3), np.int64)]), ("all",), names)
        return RULES["class_gap"].score(counts)

    assert MINIMUM == 10
    assert score([20, 10, 0], [0, 10, 9]) == pytest.approx(-0.5)
    assert score([20, 10, 0], [0, 10, 10]) == pytest.approx(-1)
    assert score([4, 2, 0], [0, 2, 4]) == pytest.approx(-1)


def test_rules_say_what_they_consume():
    for name, rule in RULES.items():
        assert str(rule) == f"{name} (consumes {rule.consumes})"
        assert ("groups" in rule.consumes) == rule.needs_groups
    assert set(RULES) == {"average", "worst_group", "worst_class", "class_gap", "last"}


# Discovered slices ----------------------------------------------------------------------------------------------------


def test_the_worst_slice_is_looked_at_whatever_groups_are_declared(validation: Data):
    half = (np.arange(80) % 8 < 4).astype(np.int64)
    found = discovery_of(validation, half, ("even", "odd"))
    outputs = predictions(validation, {})
    outputs[np.flatnonzero(half == 0)[:10]] ^= 1
    rule = worst_slice(found)
    assert rule.judge(validation, outputs) == pytest.approx(30 / 40)
    assert rule.judge(validation.with_groups(None), outputs) == pytest.approx(30 / 40)
    assert "no group label" in rule.consumes
    assert "attributes and features" in str(rule)
    # Joined by id, so that the order of the samples does not count.
    order = np.random.default_rng(0).permutation(80)
    assert rule.judge(validation.subset(order), outputs[order]) == pytest.approx(30 / 40)


def test_in_training_the_data_must_carry_the_found_groups():
    rng = np.random.default_rng(0)
    data = Data(rng.normal(size=(200, 3)).astype(np.float32), rng.integers(0, 2, 200), name="small")
    index = (data.x[:, 0] > 0).astype(np.int64)
    found = discovery_of(data, index, ("low", "high"))
    fitted = lb.fit(nn.Linear(3, 2), found.apply(data), epochs=2, selection=worst_slice(found))
    assert fitted.selection == "worst_slice"
    scores = [record["validation_worst_group"] for record in fitted.history]
    assert fitted.selected_epoch == int(np.argmax(scores)) + 1
    with pytest.raises(ConfigError, match="groups"):
        lb.fit(nn.Linear(3, 2), data, epochs=1, selection=worst_slice(found))
    declared = data.with_groups(rng.integers(0, 2, 200))
    with pytest.raises(ConfigError, match=r"found\.apply\(data\)"):
        lb.fit(nn.Linear(3, 2), declared, epochs=1, selection=worst_slice(found))


# Choosing between models ----------------------------------------------------------------------------------------------


def test_the_choice_names_the_model_and_what_was_looked_at(validation: Data):
    outputs = {
        "even": predictions(validation, {(0, 0): 4, (0, 1): 4, (1, 0): 4, (1, 1): 4}),
        "good on average": predictions(validation, {(1, 1): 12}),
        "biased on dogs": predictions(validation, {(1, 0): 8, (1, 1): 8}),
    }
    choice = choose(outputs, validation, "average")
    assert choice.name == "good on average"
    assert choice.scores["even"] == pytest.approx(64 / 80)
    assert choose(outputs, validation, "worst_group").name == "even"
    assert choose(outputs, validation, "worst_class").name == "even"
    assert choose(outputs, validation, "class_gap").name == "even"
    assert choose(outputs, validation).rule.name == "worst_group"
    assert choose(outputs, validation.with_groups(None)).rule.name == "average"
    assert str(choice).startswith("chosen by average: good on average (0.850); next ")
    assert str(choice).endswith("Consumed: validation labels.")
    found = discovery_of(validation, validation.attributes["site"].codes, ("site a", "site b"))
    assert choose(outputs, validation.with_groups(None), worst_slice(found)).name == "even"


def test_a_rule_of_ones_own_is_a_name_a_function_and_what_it_looks_at(validation: Data):
    dogs = SelectionRule("dogs", lambda counts: float(counts.class_accuracy[1]), "validation labels of dogs")
    outputs = {"a": predictions(validation, {(0, 0): 20}), "b": predictions(validation, {(1, 0): 1})}
    choice = choose(outputs, validation, dogs)
    assert choice.name == "a"
    assert "validation labels of dogs" in str(choice)


def test_a_score_that_is_not_known_is_never_the_best(validation: Data):
    unknown = SelectionRule("odd", lambda counts: math.nan if counts.average == 1 else counts.average, "nothing much")
    outputs = {"right": predictions(validation, {}), "wrong": predictions(validation, {(0, 0): 3})}
    assert choose(outputs, validation, unknown).name == "wrong"


def test_what_cannot_be_chosen_by_is_refused(validation: Data):
    outputs = {"a": predictions(validation, {})}
    plain = validation.with_groups(None)
    for arguments, message in (
        (({}, validation, "average"), "no model to choose from"),
        ((outputs, validation, "last"), "chooses epochs"),
        ((outputs, validation, "worst_grup"), "did you mean 'worst_group'"),
        ((outputs, plain, "worst_group"), "needs the groups"),
    ):
        with pytest.raises(ConfigError, match=message):
            choose(*arguments)
    with pytest.raises(ConfigError, match="needs the groups"):
        selection_rule("worst_group", groups=False)
    assert selection_rule(None, groups=True).name == "worst_group"
