"""Many probes at once: each is the student that `fit` gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import limbeck as lb
from limbeck.data import inject
from limbeck.errors import ConfigError, DataError, LimbeckError, RecipeError
from limbeck.loop import Fitted, Stage
from limbeck.probes import Cell, losses, train_cells
from limbeck.probes.arrange import arrange
from limbeck.probes.losses import MAPPED, ROW_BY_ROW, in_order
from limbeck.probes.network import layers_of
from limbeck.probes.stages import Sources, can_be_together, steps
from limbeck.probes.together import train_stages
from limbeck.selection import SelectionRule
from limbeck.terms.catalogue import CATALOGUE
from limbeck.weighting.catalogue import WEIGHTINGS

CLASSES, WIDTH = 4, 12
Student = Callable[[], nn.Module]


def linear() -> nn.Module:
    return nn.Linear(WIDTH, CLASSES)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 10), nn.ReLU(), nn.Linear(10, CLASSES))


def with_dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 10), nn.BatchNorm1d(10), nn.Dropout(0.2), nn.Linear(10, CLASSES))


def made() -> lb.Data:
    generator = np.random.default_rng(0)
    labels = np.arange(500) % CLASSES
    centres = generator.normal(size=(CLASSES, WIDTH)).astype(np.float32)
    inputs = centres[labels] + generator.normal(scale=1.2, size=(500, WIDTH)).astype(np.float32)
    site = (generator.random(500) < 0.2).astype(int)
    return lb.Data(inputs, labels, attributes={"site": site}, groups=["site"])


@pytest.fixture(scope="module")
def data() -> lb.Data:
    return made()


TOGETHER = [
    name
    for name, preset in sorted(lb.PRESETS.items())
    if can_be_together(Cell(linear, made(), preset.build(), training=lb.Training()))
]
"""The presets that are not `limbeck.fit`'s alone."""


@pytest.fixture(scope="module")
def teachers(data: lb.Data) -> list[nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return [lb.fit(mlp(), data, epochs=3, seed=7).model, lb.fit(linear(), data, epochs=2, seed=8).model]


def deviation(found: Fitted, expected: Fitted) -> float:
    """The largest difference of two results: final weights, losses and validation losses of every epoch."""
    pairs = zip(found.model.state_dict().values(), expected.model.state_dict().values(), strict=True)
    weights = max(float((a - b).abs().max()) for a, b in pairs)
    names = ("loss", "validation_loss", "learning_rate")
    records = list(zip(found.history, expected.history, strict=True))
    for record, other in records:
        assert record.keys() == other.keys()
        for name in ("epoch", "validation_average", "validation_worst_group", "validation_worst_group_name"):
            assert record[name] == other[name], name
        for name in ("group_losses", "group_weights"):
            assert record[name] == pytest.approx(other[name], abs=1e-5), name
    return max([weights, *(abs(a[name] - b[name]) for a, b in records for name in names)])


def agree(found: Fitted, expected: Fitted) -> None:
    assert deviation(found, expected) < 1e-5
    assert found.selected_epoch == expected.selected_epoch
    assert found.selection == expected.selection
    assert found.earlier.keys() == expected.earlier.keys()
    for name, stage in found.earlier.items():
        assert deviation(stage, expected.earlier[name]) < 1e-5
    assert found.details.keys() == expected.details.keys()
    assert found.warnings == expected.warnings
    assert found.recipe.to_dict() == expected.recipe.to_dict()
    # How it is computed may differ, what is computed not.
    said = [result.training.to_dict() for result in (found, expected)]
    assert [{**one, "precision": "", "compile": ""} for one in said[:1]] == [
        {**one, "precision": "", "compile": ""} for one in said[1:]
    ]
    assert not found.model.training


def one_by_one(
    student: Student,
    data: lb.Data,
    recipes: Sequence[Any],
    seeds: Sequence[int],
    teacher: Any,
    **settings: Any,
) -> list[Fitted]:
    return [
        lb.fit(student, data, teacher=teacher, recipe=recipe, seed=seed, **settings)
        for recipe in recipes
        for seed in seeds
    ]


# The same as fit ------------------------------------------------------------------------------------------------------


def test_most_presets_can_be_together() -> None:
    alone = set(lb.PRESETS) - set(TOGETHER)
    assert {"at", "fitnet", "dedier", "dfr"} <= alone, "maps, early layers and a refit are not"
    assert len(TOGETHER) >= 30


@pytest.mark.parametrize("name", TOGETHER)
def test_every_preset_as_a_linear_probe_is_what_fit_gives(name: str, data: lb.Data, teachers: list[nn.Module]) -> None:
    teacher = teachers if name == "agre_kd" else teachers[0]
    settings = {"epochs": 2, "batch_size": 32, "learning_rate": 0.01}
    found = lb.fit_probes(linear, data, teacher=teacher, recipes=[name], seeds=2, **settings)
    for one, expected in zip(found, one_by_one(linear, data, [name], (0, 1), teacher, **settings), strict=True):
        agree(one, expected)


def test_all_presets_at_once_with_small_networks(data: lb.Data, teachers: list[nn.Module]) -> None:
    recipes = [name for name in TOGETHER if name not in ("agre_kd", "rkd", "crd", "lff")]
    settings = {"epochs": 2, "batch_size": 30, "learning_rate": 0.01, "selection": "average"}
    found = lb.fit_probes(mlp, data, teacher=teachers[0], recipes=recipes, seeds=[3, 11], **settings)
    expected = one_by_one(mlp, data, recipes, (3, 11), teachers[0], **settings)
    for one, other in zip(found, expected, strict=True):
        agree(one, other)


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("schedule", ["cosine", "constant", "step", "exponential"])
def test_optimisers_and_schedules(optimiser: str, schedule: str, data: lb.Data) -> None:
    settings = {"epochs": 4, "batch_size": 50, "learning_rate": 0.02, "weight_decay": 0.03}
    training = lb.Training(optimiser=optimiser, schedule=schedule, **settings)
    found = lb.fit_probes(linear, data, recipes=["erm"], seeds=2, training=training, selection="last")
    for seed in (0, 1):
        agree(found[seed], lb.fit(linear, data, training=training, seed=seed, selection="last"))


def test_settings_that_differ_are_trained_in_one_problem(data: lb.Data) -> None:
    trainings = [lb.Training(learning_rate=rate, weight_decay=decay) for rate in (0.1, 0.01) for decay in (0.0, 0.3)]
    trainings.append(lb.Training(optimiser="sgd", learning_rate=0.1, momentum=0.5, schedule="constant"))
    found = lb.fit_probes(mlp, data, recipes=["erm", "gce"], seeds=2, training=trainings, epochs=2)
    position = 0
    for training in trainings:
        for recipe in ("erm", "gce"):
            for seed in (0, 1):
                agree(found[position], lb.fit(mlp, data, recipe=recipe, training=training, epochs=2, seed=seed))
                position += 1
    assert position == len(found)


def test_noise_draws_share_the_features(data: lb.Data) -> None:
    draws = [inject.label_noise(data, rate=rate, seed=seed) for rate, seed in ((0.3, 0), (0.3, 1), (0.6, 2))]
    found = lb.fit_probes(linear, draws, recipes=["gce", "label_smoothing"], seeds=2, epochs=2)
    cells = [Cell(linear, draw, lb.Recipe(), seed=0) for draw in draws]
    blocks, alone = arrange([next(steps(cell, None, Sources())) for cell in cells])
    assert len(blocks) == 1
    assert not alone, "draws over the same features belong to one block"
    expected = [
        lb.fit(linear, draw, recipe=recipe, epochs=2, seed=seed)
        for draw in draws
        for recipe in ("gce", "label_smoothing")
        for seed in (0, 1)
    ]
    for one, other in zip(found, expected, strict=True):
        agree(one, other)


def test_a_mixture_of_what_can_and_what_cannot_be_together(data: lb.Data, teachers: list[nn.Module]) -> None:
    """Terms of the user's own, statistics of the batch, terms with a state, weightings, one term twice, warm-up."""

    def own(student_logits: Tensor, labels: Tensor, progress: float) -> Tensor:
        # Depends on the whole batch, so that it must not meet the rows of another network.
        return (student_logits.logsumexp(1) - student_logits.gather(1, labels[:, None])[:, 0]) * (
            1 + student_logits.detach().mean() + progress
        )

    recipes: list[lb.Recipe] = [
        lb.Recipe([own], name="own"),
        lb.Recipe([lb.Term.named("dist", weighted=False), "cross_entropy"], "class_balanced", name="beside"),
        lb.Recipe([{"term": "kl_divergence", "temperature": 2.0}] * 2 + ["elr"], name="twice"),
        lb.Recipe([{"term": "kl_divergence", "temperature": 2.0}] * 2, name="twice again"),
        lb.Recipe([{"term": "refined_logits", "warmup": 0.9}, "cross_entropy"], "group_dro", name="warm"),
        lb.Recipe(["ctkd", {"term": "cross_entropy", "weighted": False, "weight": 0.3}], name="learns"),
        lb.Recipe([{"term": "cross_entropy", "weighted": False}, "gce"], name="unweighted"),
        lb.Recipe([{"term": "cross_entropy", "weighted": False}], name="only beside"),
        lb.Recipe(["feature_mse", "cross_entropy"], name="features"),
        lb.Recipe(["cross_entropy"], sampling="class_balanced", name="drawn"),
    ]
    teacher = linear()
    settings = {"epochs": 2, "batch_size": 32}
    for student, by in ((linear, teacher), (mlp, teachers[0])):
        found = lb.fit_probes(student, data, teacher=by, recipes=recipes, seeds=2, **settings)
        for one, other in zip(found, one_by_one(student, data, recipes, (0, 1), by, **settings), strict=True):
            agree(one, other)


def test_what_must_be_trained_alone_gives_the_bytes_of_fit(data: lb.Data) -> None:
    found = lb.fit_probes(with_dropout, data, recipes=["erm", "jtt"], seeds=2, epochs=2)
    for one, other in zip(found, one_by_one(with_dropout, data, ["erm", "jtt"], (0, 1), None, epochs=2), strict=True):
        assert deviation(one, other) == 0
    refitted = lb.fit_probes(linear, data, recipes=[{"recipe": "dfr", "refits": 2}], seeds=1, epochs=1)[0]
    assert deviation(refitted, lb.fit(linear, data, recipe={"recipe": "dfr", "refits": 2}, epochs=1)) == 0
    clipped = lb.fit_probes(linear, data, recipes=["erm"], seeds=1, epochs=2, clip=0.1)
    assert deviation(clipped[0], lb.fit(linear, data, epochs=2, clip=0.1)) == 0


def test_a_rule_over_logits_selects_as_in_fit(data: lb.Data) -> None:
    rule = SelectionRule("late", None, "nothing", score_logits=lambda logits: -float(logits.abs().mean()))
    found = lb.fit_probes(linear, data, recipes=["erm"], seeds=1, epochs=3, selection=rule)
    expected = lb.fit(linear, data, epochs=3, selection=rule)
    assert found[0].selected_epoch == expected.selected_epoch
    assert deviation(found[0], expected) == 0


def test_a_last_batch_of_one_and_a_batch_larger_than_the_data(data: lb.Data) -> None:
    count = len(data.train)
    for batch in (count - 1, count // 2, 10 * count):
        found = lb.fit_probes(linear, data, recipes=["erm", "gce"], seeds=2, epochs=2, batch_size=batch)
        for one, other in zip(
            found, one_by_one(linear, data, ["erm", "gce"], (0, 1), None, epochs=2, batch_size=batch), strict=True
        ):
            agree(one, other)


# How it is done -------------------------------------------------------------------------------------------------------


def stages_of(data: lb.Data, recipes: Sequence[str], seeds: int, **settings: Any) -> list[Stage]:
    training = lb.Training(**settings)
    teacher = linear()
    cells = [
        Cell(linear, data, lb.Recipe(**_parts(name)), teacher, training, seed)
        for name in recipes
        for seed in range(seeds)
    ]
    sources = Sources()
    return [next(steps(cell, None, sources)) for cell in cells]


def _parts(name: str) -> dict[str, Any]:
    recipe = lb.PRESETS[name].build()
    return {"terms": recipe.terms, "weighting": recipe.weighting, "sampling": recipe.sampling, "name": name}


def test_streams_share_an_order_and_columns_a_recipe(data: lb.Data) -> None:
    stages = stages_of(data, ["erm", "kd", "groupdistil"], 3)
    blocks, alone = arrange(stages)
    assert not alone
    assert sorted(len(block) * len(block[0]) for block in blocks) == [3, 6]
    for block in blocks:
        for stream in block:
            assert len({(stages[place].seed, stages[place].recipe.sampling) for place in stream}) == 1
        for column in zip(*block, strict=True):
            assert len({stages[place].recipe.name for place in column}) == 1


def test_a_bound_on_memory_cuts_the_problem_and_not_the_result(data: lb.Data) -> None:
    settings = {"recipes": ["erm", "gce", "label_smoothing"], "seeds": 3, "epochs": 2}
    whole = lb.fit_probes(linear, data, **settings)
    parts = lb.fit_probes(linear, data, **settings, max_bytes=1)
    blocks, _ = arrange(stages_of(data, ["erm", "gce"], 2), max_bytes=1)
    assert [len(block) * len(block[0]) for block in blocks] == [1] * 4
    for one, other in zip(whole, parts, strict=True):
        assert deviation(one, other) < 1e-6


def test_what_is_computed_once_may_take_no_memory_too(data: lb.Data, teachers: list[nn.Module]) -> None:
    settings = {"teacher": teachers[0], "recipes": ["kd", "rld", "pll", "gce"], "seeds": 2, "epochs": 2}
    whole = lb.fit_probes(linear, data, **settings, batch_size=16)
    parts = lb.fit_probes(linear, data, **settings, batch_size=16, max_bytes=1)
    for one, other in zip(whole, parts, strict=True):
        assert deviation(one, other) < 1e-6


def test_losses_are_computed_for_some_columns_at_a_time(
    data: lb.Data, teachers: list[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"teacher": teachers[0], "recipes": ["kd", "dkd", "rld", "pll", "gce", "erm"], "seeds": 2, "epochs": 2}
    whole = lb.fit_probes(linear, data, **settings, batch_size=16)
    for columns in (4, 1, 0):  # none: so large that nothing is written down
        monkeypatch.setattr(losses, "_AT_A_TIME", columns * 2 * 16 * CLASSES)
        parts = lb.fit_probes(linear, data, **settings, batch_size=16)
        for one, other in zip(whole, parts, strict=True):
            assert deviation(one, other) < 1e-6


def test_a_network_that_begins_with_an_activation(data: lb.Data) -> None:
    def student() -> nn.Module:
        return nn.Sequential(nn.Tanh(), nn.Linear(WIDTH, CLASSES))

    found = lb.fit_probes(student, data, recipes=["erm", "gce"], seeds=2, epochs=2, batch_size=32)
    expected = one_by_one(student, data, ["erm", "gce"], (0, 1), None, epochs=2, batch_size=32)
    for one, other in zip(found, expected, strict=True):
        agree(one, other)


def test_columns_that_share_a_term_follow_each_other() -> None:
    names = ["kd", "gce", "erm", "label_smoothing", "dkd", "lskd", "rld"]
    recipes = [lb.PRESETS[name].build() for name in names]
    places = dict(zip(names, in_order(recipes), strict=True))
    assert sorted(places.values()) == list(range(len(names)))
    sharing = sorted(places[name] for name in ("kd", "erm", "dkd", "lskd", "rld"))
    assert sharing == [0, 1, 2, 3, 4], "cross entropy is the term they share"
    assert abs(places["dkd"] - places["rld"]) == 1, "their other terms are of one family"


def test_a_bound_on_memory_holds_for_rounds_too(data: lb.Data) -> None:
    settings = {"recipes": ["multi_round", "erm", "born_again"], "seeds": 2, "epochs": 1}
    whole = lb.fit_probes(linear, data, **settings)
    parts = lb.fit_probes(linear, data, **settings, max_bytes=3 * 4 * len(data.train) * CLASSES)
    for one, other in zip(whole, parts, strict=True):
        assert one.earlier.keys() == other.earlier.keys()
        assert deviation(one, other) < 1e-6


def test_a_teacher_is_asked_once_for_all(data: lb.Data) -> None:
    calls = 0

    class Counting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal calls
            calls += len(x)
            return super().forward(x)

    lb.fit_probes(linear, data, teacher=Counting(WIDTH, CLASSES), recipes=["kd", "rld", "dkd"], seeds=4, epochs=1)
    assert calls < 2 * len(data.train)


@pytest.mark.parametrize("function", sorted(ROW_BY_ROW, key=lambda function: function.__name__))
def test_row_by_row_terms_look_at_one_row(function: Callable[..., Tensor]) -> None:
    generator = torch.Generator().manual_seed(3)
    fields: dict[str, Any] = {
        name: 3 * torch.randn(40, 5, generator=generator)
        for name in ("student_logits", "teacher_logits", "student_features", "teacher_features")
    }
    fields["labels"] = torch.randint(5, (40,), generator=generator)
    info = next(info for info in CATALOGUE.values() if info.function is function)
    term = lb.Term(function, per_sample=info.per_sample)
    given = {name: fields[name] for name in term.needs}
    whole = function(**given)
    alone = torch.cat([function(**{name: value[row : row + 1] for name, value in given.items()}) for row in range(40)])
    torch.testing.assert_close(whole, alone, rtol=1e-5, atol=1e-6)


def test_mapped_weightings_are_those_of_the_catalogue() -> None:
    known = {info.factory for info in WEIGHTINGS.values()}
    assert set(MAPPED) <= known


def test_networks_that_can_be_stacked() -> None:
    for model in (
        linear(),
        mlp(),
        nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(3, 2), nn.GELU()), nn.Linear(2, 2)),
    ):
        assert layers_of(model) is not None
    shared = nn.Linear(3, 3)
    hooked = linear()
    hooked.register_forward_hook(lambda *_: None)
    half = nn.Linear(3, 2)
    half.bias.requires_grad_(False)
    for model in (
        with_dropout(),
        nn.Sequential(shared, shared),
        hooked,
        half,
        nn.Sequential(nn.Linear(3, 2), nn.ReLU()),
        nn.Linear(3, 2).double(),
        nn.Linear(3, 2).requires_grad_(False),
        nn.Conv2d(1, 1, 1),
    ):
        assert layers_of(model) is None


# What a caller can rely on --------------------------------------------------------------------------------------------


def test_the_same_call_gives_the_same_bytes_and_leaves_the_caller_alone(
    data: lb.Data, teachers: list[nn.Module]
) -> None:
    student = linear()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    settings = {"teacher": teachers[0], "recipes": ["kd", "elr", "groupdistil"], "seeds": 2, "epochs": 2}
    torch.manual_seed(5)
    first = lb.fit_probes(student, data, **settings)
    expected = torch.rand(3)
    torch.manual_seed(5)
    again = lb.fit_probes(student, data, **settings)
    assert torch.equal(expected, torch.rand(3)), "the caller's generator must be left alone"
    for one, other in zip(first, again, strict=True):
        assert deviation(one, other) == 0
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name])


def test_errors_come_before_any_training(data: lb.Data) -> None:
    with pytest.raises(RecipeError, match="learns from a teacher"):
        lb.fit_probes(linear, data, recipes=["erm", "kd"])
    with pytest.raises(RecipeError, match=r"rdl.*rld"):
        lb.fit_probes(linear, data, recipes=["rdl"])
    with pytest.raises(ConfigError, match=r"learning_rat.*learning_rate"):
        lb.fit_probes(linear, data, recipes=["erm"], learning_rat=1.0)
    with pytest.raises(LimbeckError, match="at least one"):
        lb.fit_probes(linear, data, recipes=[])
    with pytest.raises(LimbeckError, match="cannot take a batch"):
        lb.fit_probes(lambda: nn.Linear(3, CLASSES), data, recipes=["erm"])
    apart = np.where(data.y == 3, 1, np.arange(len(data.y)) % 2)
    with pytest.raises(DataError, match="no training sample"):
        lb.fit_probes(linear, lb.Data(data.x, data.y, split=apart, fractions=None), recipes=["erm", "gce"])
    no_groups = lb.Data(data.x, data.y)
    with pytest.raises((DataError, RecipeError), match="groups"):
        lb.fit_probes(linear, no_groups, recipes=["group_dro"])


def test_a_loss_that_is_no_number_is_said_with_the_recipe(data: lb.Data) -> None:
    with pytest.raises(LimbeckError, match=r"gce.*loss is nan|erm.*loss is (nan|inf)"):
        lb.fit_probes(linear, data, recipes=["erm", "gce"], seeds=1, optimiser="sgd", learning_rate=1e37, epochs=3)


def test_no_cells_is_no_work() -> None:
    assert train_cells([]) == []
    assert train_stages([]) == []


def test_a_plain_cell_is_a_fit(data: lb.Data) -> None:
    recipe = lb.PRESETS["erm"].build().replace(name="erm")
    training = replace(lb.Training(), epochs=2)
    agree(train_cells([Cell(linear, data, recipe, training=training)])[0], lb.fit(linear, data, epochs=2))
