"""Teachers: what each supplies, what it refuses, and that it is left as it was found."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from limbeck.data import Data
from limbeck.errors import LimbeckError, TeacherError
from limbeck.models.networks import CNN, CifarResNet
from limbeck.teachers import (
    Ensemble,
    ModuleTeacher,
    PredictorTeacher,
    Several,
    TableTeacher,
    Teacher,
    as_teacher,
    collect,
    logits_from_probabilities,
    map_classes,
    require,
)
from limbeck.teachers.fingerprints import fingerprint_of

CLASSES = ("ash", "birch", "cedar")


def make_data(count: int = 60, width: int = 5, classes: Sequence[str] = CLASSES, seed: int = 0) -> Data:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(count, width)).astype(np.float32)
    y = np.concatenate([np.arange(len(classes)), generator.integers(0, len(classes), count - len(classes))])
    ids = generator.permutation(count) * 3 + 100
    return Data(x, y, ids=ids, classes=list(classes), fractions=(1.0, 0.0, 0.0))


def make_images(count: int = 12) -> Data:
    generator = np.random.default_rng(1)
    pixels = generator.integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)
    labels = np.arange(count) % 3
    return Data(pixels, labels, classes=list(CLASSES), normalise=((0.5,) * 3, (0.25,) * 3), fractions=(1.0, 0.0, 0.0))


def make_mlp(classes: int = 3, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, classes))


def inputs(data: Data) -> Tensor:
    return torch.from_numpy(np.asarray(data.x))


def answer(teacher: Teacher, data: Data, *want: str) -> dict[str, Tensor]:
    return teacher.outputs(inputs(data), torch.from_numpy(data.ids), want)


class Fake(nn.Module):
    """Returns whatever it is told to, from a linear layer."""

    def __init__(self, wrap: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(5, 3)
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.linear(x))


class Answer:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


# The defects seen elsewhere -------------------------------------------------------------------------------------------


def test_a_teacher_in_train_mode_answers_in_evaluation_mode_and_its_batch_norm_does_not_move() -> None:
    data, module = make_data(), make_mlp()
    expected = copy.deepcopy(module).eval()(inputs(data)).detach()
    module.train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    found = answer(ModuleTeacher(module), data, "logits")["logits"]
    assert torch.equal(found, expected)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_each_part_of_a_teacher_gets_its_own_mode_back_even_after_an_error() -> None:
    module = make_mlp().train()
    module[1].eval()
    modes = [part.training for part in module.modules()]
    teacher = ModuleTeacher(module)
    teacher.outputs(torch.zeros(2, 5), torch.zeros(2), ["logits", "features"])
    with pytest.raises(RuntimeError):
        teacher.outputs(torch.zeros(2, 4), torch.zeros(2), ["logits", "features"])
    assert [part.training for part in module.modules()] == modes


def test_no_gradient_reaches_a_teacher_and_its_outputs_have_no_graph() -> None:
    data, module = make_data(), make_mlp()
    x = inputs(data).requires_grad_()
    found = ModuleTeacher(module).outputs(x, data.ids, ["logits", "features", "probabilities"])
    assert not any(value.requires_grad for value in found.values())
    assert all(part.grad is None and part.requires_grad for part in module.parameters())
    recorded: list[bool] = []
    module[0].register_forward_hook(lambda *_: recorded.append(torch.is_grad_enabled()))
    answer(ModuleTeacher(module), data, "logits")
    assert recorded == [False], "nor does it take the memory of one"
    # Outputs may take part in a student's graph, which tensors of inference mode may not.
    (torch.ones(3, requires_grad=True) * found["logits"]).sum().backward()


def test_asking_a_teacher_leaves_no_hook_and_no_attribute_on_the_module_or_its_class() -> None:
    module = CNN((3, 8, 8), 3, channels=[4, 6])
    before = [(sorted(vars(part)), len(part._forward_hooks), len(part._forward_pre_hooks)) for part in module.modules()]
    own = set(dir(type(module)))
    teacher = ModuleTeacher(module)
    teacher.outputs(torch.zeros(2, 3, 8, 8), None, ["logits", "features", "maps"])
    with pytest.raises(RuntimeError):
        teacher.outputs(torch.zeros(2, 5, 8, 8), None, ["logits", "features", "maps"])
    with pytest.raises(RuntimeError):
        ModuleTeacher(module).outputs(torch.zeros(2, 5, 8, 8), None, ["features", "maps"])
    after = [(sorted(vars(part)), len(part._forward_hooks), len(part._forward_pre_hooks)) for part in module.modules()]
    assert before == after
    assert set(dir(type(module))) == own


def test_a_module_whose_eval_returns_nothing_and_whose_train_changes_weights_is_only_borrowed() -> None:
    class Merging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 3)

        def train(self, mode: bool = True) -> None:  # type: ignore[override]
            self.linear.weight.data += 1

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x)

    module = Merging()
    weight = module.linear.weight.detach().clone()
    answer(ModuleTeacher(module), make_data(), "logits")
    assert torch.equal(module.linear.weight, weight)


def test_label_spaces_that_disagree_are_refused_before_training_with_the_way_out() -> None:
    data = make_data()
    with pytest.raises(TeacherError, match=r"has 4 classes.*have 3 \(ash, birch, cedar\).*map_classes"):
        ModuleTeacher(make_mlp(4)).check(data)
    with pytest.raises(TeacherError, match=r"in another order \(birch, ash, cedar\)"):
        ModuleTeacher(make_mlp(), class_names=["birch", "ash", "cedar"]).check(data)
    with pytest.raises(TeacherError, match="class 2 is 'oak' for the teacher and 'cedar' in the data"):
        ModuleTeacher(make_mlp(), class_names=["ash", "birch", "oak"]).check(data)
    ModuleTeacher(make_mlp(), class_names=CLASSES).check(data)


def test_a_softmax_output_declared_as_logits_is_refused() -> None:
    data = make_data()
    module = nn.Sequential(nn.Linear(5, 3), nn.Softmax(1))
    with pytest.raises(TeacherError, match="sums to one: declare kind='probabilities'"):
        ModuleTeacher(module).check(data)
    teacher = ModuleTeacher(module, kind="probabilities")
    teacher.check(data)
    assert "head" not in teacher.supplies
    torch.testing.assert_close(answer(teacher, data, "logits")["logits"].softmax(1), module(inputs(data)).detach())


def test_an_answer_that_depends_on_the_batch_or_on_chance_is_refused() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.dropout(self.linear(x), 0.5, training=True)

    companions = nn.Sequential(nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, 3))
    for module in (Noisy(), companions):
        with pytest.raises(TeacherError, match="function of the sample alone"):
            ModuleTeacher(module).check(make_data())


# Modules --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda z: z,
        lambda z: (z, None),
        lambda z: {"logits": z, "loss": None},
        Answer,
    ],
    ids=["tensor", "tuple", "mapping", "attribute"],
)
def test_every_kind_of_output_is_understood(wrap: Any) -> None:
    data, module = make_data(), Fake(wrap)
    teacher = ModuleTeacher(module)
    teacher.check(data)
    torch.testing.assert_close(answer(teacher, data, "logits")["logits"], module.linear(inputs(data)).detach())


def test_features_and_head_give_back_the_logits() -> None:
    data, module = make_data(), make_mlp()
    teacher = ModuleTeacher(module)
    assert teacher.supplies == {"logits", "probabilities", "features", "head"}
    found = answer(teacher, data, "logits", "features", "probabilities")
    weight, bias = teacher.head()
    torch.testing.assert_close(found["features"] @ weight.T + bias, found["logits"])
    torch.testing.assert_close(found["probabilities"], found["logits"].softmax(1))
    weight.zero_()
    assert module[4].weight.abs().sum() > 0, "the head is a copy"


def test_a_head_that_does_not_make_the_logits_is_refused() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return 3.0 * self.linear(x)

    teacher = ModuleTeacher(Scaled())
    teacher.check(make_data(), ["logits"])
    with pytest.raises(TeacherError, match="not its last layer applied to its features"):
        teacher.check(make_data(), ["logits", "features", "head"])


@pytest.mark.parametrize("module", [CNN((3, 8, 8), 3, channels=[4, 6]), CifarResNet((3, 8, 8), 3, depth=8)])
def test_maps_are_those_that_are_pooled_to_the_features(module: nn.Module) -> None:
    data = make_images()
    teacher = ModuleTeacher(module)
    require(teacher, ["teacher_maps", "features", "head"], by="recipe 'simkd'")
    teacher.check(data, ["logits", "features", "maps", "head"])
    found = collect(teacher, data, ["maps", "features"], batch_size=5)
    assert found["maps"].ndim == 4
    torch.testing.assert_close(found["maps"].mean((2, 3)), found["features"])


def test_several_map_layers_come_by_number_and_one_by_its_plain_name() -> None:
    module = CNN((3, 8, 8), 3, channels=[4, 6])
    found = collect(ModuleTeacher(module, maps=["stages.0", "stages.4"]), make_images(), ["maps"])
    assert {name: value.shape[1] for name, value in found.items()} == {"maps.0": 4, "maps.1": 6}
    assert list(collect(ModuleTeacher(module, maps="stages.0"), make_images(), ["maps"])) == ["maps"]


def test_features_of_a_named_layer() -> None:
    data, module = make_data(), make_mlp()
    inner = ModuleTeacher(module, layer="0", classes=3)
    torch.testing.assert_close(answer(inner, data, "features")["features"], inputs(data))
    relu = ModuleTeacher(module, layer="2", classes=3)
    assert "head" not in relu.supplies
    torch.testing.assert_close(
        answer(relu, data, "features")["features"], answer(ModuleTeacher(module), data, "features")["features"]
    )


def test_what_cannot_be_told_about_a_module_is_asked_for() -> None:
    with pytest.raises(TeacherError, match="unknown layer 'linaer': did you mean 'linear'"):
        ModuleTeacher(Fake(lambda z: z), layer="linaer")
    with pytest.raises(TeacherError, match="how many classes"):
        ModuleTeacher(nn.Identity())
    with pytest.raises(TeacherError, match="did you mean 'probabilities'"):
        ModuleTeacher(make_mlp(), kind="probability")
    teacher = ModuleTeacher(nn.Identity(), classes=5)
    assert teacher.supplies == {"logits", "probabilities"}
    with pytest.raises(TeacherError, match="classes and was declared with 4"):
        ModuleTeacher(nn.Identity(), classes=4).check(make_data(classes=("a", "b", "c", "d")))


def test_one_log_odds_becomes_two_logits() -> None:
    module = nn.Linear(5, 1)
    data = make_data(classes=("no", "yes"))
    found = collect(ModuleTeacher(module, kind="log_odds"), data, ["probabilities", "logits"])
    odds = module(inputs(data)).detach()[:, 0]
    torch.testing.assert_close(found["probabilities"][:, 1], odds.sigmoid())
    assert (found["logits"][:, 0] == 0).all()


def test_values_that_are_not_finite_are_named_by_id() -> None:
    data = make_data()
    bad = int(data.ids[0])

    class Breaks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = x[:, :3].clone()
            logits[(x == inputs(data)[0]).all(1), 1] = torch.nan
            return logits

    with pytest.raises(TeacherError, match=rf"not finite for 1 of \d+ samples \(ids {bad}\)"):
        ModuleTeacher(Breaks(), classes=3).check(data)


def test_a_module_that_fails_says_on_which_inputs() -> None:
    with pytest.raises(TeacherError, match=r"the module Sequential fails on inputs of shape \(32, 7\)"):
        ModuleTeacher(make_mlp()).check(make_data(width=7))


def test_a_fingerprint_changes_with_weights_buffers_and_architecture_and_with_nothing_else() -> None:
    module = make_mlp()
    teacher = ModuleTeacher(module)
    first = teacher.fingerprint()
    assert first == ModuleTeacher(copy.deepcopy(module).train()).fingerprint()
    answer(teacher, make_data(), "logits", "features")
    assert first == teacher.fingerprint()
    with torch.no_grad():
        module[0].weight[0, 0] += 1e-6
    second = teacher.fingerprint()
    module[1].running_mean[0] += 1e-6
    third = teacher.fingerprint()
    module[2] = nn.Tanh()
    assert len({first, second, third, teacher.fingerprint()}) == 4


def test_a_fingerprint_does_not_confuse_structures() -> None:
    found = [
        fingerprint_of(["a", "b"]),
        fingerprint_of(["ab"]),
        fingerprint_of("a", "b"),
        fingerprint_of(("a", "b")),
        fingerprint_of({"a": "b"}),
        fingerprint_of(np.zeros(2)),
        fingerprint_of(np.zeros(4, np.float32)),
        fingerprint_of(torch.zeros(2, dtype=torch.float64)),
        fingerprint_of([0.0, 0.0]),
        fingerprint_of([0, 0]),
    ]
    assert len(set(found)) == len(found)
    ring: list[Any] = []
    ring.append(ring)
    assert fingerprint_of(ring) == fingerprint_of(ring)


# What cannot be supplied ----------------------------------------------------------------------------------------------


def test_an_impossible_combination_fails_with_reason_and_way_out() -> None:
    data = make_data()
    table = TableTeacher({"id": data.ids, "probabilities": np.full((60, 3), 1 / 3)})
    with pytest.raises(TeacherError) as caught:
        require(table, ["features", "head"], by="recipe 'dett'")
    text = str(caught.value)
    assert text.startswith(
        "the table of probabilities given as arrays supplies logits and probabilities; recipe 'dett' "
    )
    assert "needs features (the input of the last layer) and the last layer: give the model itself" in text
    with pytest.raises(TeacherError, match="did you mean 'teacher_features'"):
        require(table, ["teacher_feature"])
    with pytest.raises(TeacherError, match="the last layer"):
        table.head()
    require(table, ["teacher_logits", "probabilities"])


def test_anything_with_the_members_of_a_teacher_is_one() -> None:
    class Service:
        supplies = frozenset({"logits"})
        classes = 3
        class_names = None

        def fingerprint(self) -> str:
            return "service 1"

        def outputs(self, x: Any, ids: Any, want: Sequence[str]) -> dict[str, Tensor]:
            return {"logits": x[:, :3]}

        def head(self) -> tuple[Tensor, Tensor]:
            raise TeacherError("no head")

        def check(self, data: Data, want: Sequence[str] | None = None) -> None:
            return None

    service = Service()
    assert as_teacher(service) is service
    data = make_data()
    assert torch.equal(collect(service, data)["logits"], inputs(data)[:, :3])
    with pytest.raises(TeacherError, match="a Service supplies logits; recipe 'dett' needs features"):
        require(service, ["features"], by="recipe 'dett'")
    with pytest.raises(TeacherError, match="takes no options"):
        as_teacher(service, layer="x")


# From probabilities to logits -----------------------------------------------------------------------------------------

rows = st.lists(st.lists(st.integers(0, 1000), min_size=4, max_size=4).filter(any), min_size=1, max_size=5)


@given(rows)
@settings(max_examples=60, deadline=None)
def test_logits_give_back_probabilities_up_to_the_mass_of_zeros(counts: list[list[int]]) -> None:
    probabilities = torch.tensor(counts, dtype=torch.float64)
    probabilities /= probabilities.sum(1, keepdim=True)
    logits = logits_from_probabilities(probabilities)
    assert torch.isfinite(logits).all()
    back = logits.double().softmax(1)
    # All zeros together hold at most .001, and no more than that is taken from the rest.
    assert float((back - probabilities).abs().max()) <= 1e-3 + 1e-6
    assert float((back * (probabilities == 0)).sum(1).max()) <= 1e-3 + 1e-6
    for row, logit in zip(probabilities, logits):
        order = row.argsort()
        assert (logit[order].diff() >= -1e-6).all(), "no zero outweighs anything the teacher saw"


def test_positive_probabilities_are_exact_and_a_one_hot_row_stays_finite() -> None:
    values = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64)
    torch.testing.assert_close(logits_from_probabilities(values), values.log().float())
    one_hot = logits_from_probabilities(torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(one_hot, torch.tensor([[0.0, float(np.log(5e-4))]]))
    tiny = logits_from_probabilities(torch.tensor([[1.0, 1e-12, 0.0]], dtype=torch.float64))
    assert tiny[0, 1] == tiny[0, 2]


def test_a_row_of_logits_depends_on_that_row_alone() -> None:
    values = torch.tensor([[0.9, 0.1, 0.0], [0.5, 0.49999, 1e-5], [1.0, 0.0, 0.0]], dtype=torch.float64)
    whole = logits_from_probabilities(values)
    assert torch.equal(whole, torch.cat([logits_from_probabilities(row[None]) for row in values]))


def test_negative_and_empty_rows_are_refused() -> None:
    with pytest.raises(TeacherError, match="negative"):
        logits_from_probabilities(torch.tensor([[1.1, -0.1]]))
    with pytest.raises(TeacherError, match="no mass"):
        logits_from_probabilities(torch.tensor([[0.0, 0.0]]))


# Predictors -----------------------------------------------------------------------------------------------------------


def test_columns_of_a_scikit_model_follow_its_classes() -> None:
    data = make_data(200)
    names = np.array(["cedar", "ash", "birch"])  # not the data's order; scikit-learn sorts them
    lookup = {name: index for index, name in enumerate(data.classes)}
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(data.x, np.array(data.classes)[data.y])
    teacher = PredictorTeacher(model, classes=names.tolist())
    assert teacher.class_names == tuple(names)
    with pytest.raises(TeacherError, match="in another order"):
        teacher.check(data)
    mapped = map_classes(teacher, data.classes)
    mapped.check(data)
    expected = model.predict_proba(data.x)[:, [list(model.classes_).index(name) for name in lookup]]
    found = collect(mapped, data, ["probabilities", "logits"])
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-6)
    np.testing.assert_allclose(found["logits"].softmax(1), expected, atol=1e-6)


def test_a_class_that_a_scikit_model_never_saw_has_no_probability() -> None:
    data = make_data(200)
    seen = data.y != 1
    model = RandomForestClassifier(5, random_state=0).fit(data.x[seen], data.y[seen])
    assert list(model.classes_) == [0, 2]
    teacher = PredictorTeacher(model, classes=data.classes)
    teacher.check(data)
    found = collect(teacher, data, ["probabilities", "logits"])
    assert (found["probabilities"][:, 1] == 0).all()
    np.testing.assert_allclose(found["probabilities"][:, [0, 2]], model.predict_proba(data.x), atol=1e-7)
    assert torch.isfinite(found["logits"]).all()


def test_class_codes_outside_the_data_are_refused() -> None:
    data = make_data(200)
    model = LogisticRegression().fit(data.x, data.y + 1)
    with pytest.raises(TeacherError, match=r"knows the class codes 1, 2, 3; 3 are not in 0\.\.2"):
        PredictorTeacher(model, classes=data.classes)
    with pytest.raises(TeacherError, match="has no classes_: fit it first"):
        PredictorTeacher(LogisticRegression())
    with pytest.raises(TeacherError, match="has no predict_proba"):
        PredictorTeacher(object())


def test_lightgbm_maps_its_classes_and_its_fingerprint_follows_its_trees() -> None:
    lightgbm = pytest.importorskip("lightgbm")
    data = make_data(200)
    names = np.array(data.classes)[data.y]

    def fitted(seed: int) -> Any:
        settings = {
            "n_estimators": 3,
            "num_leaves": 4,
            "n_jobs": 1,
            "verbose": -1,
            "subsample": 0.5,
            "subsample_freq": 1,
        }
        return lightgbm.LGBMClassifier(random_state=seed, **settings).fit(data.x, names)

    first = PredictorTeacher(fitted(0), classes=data.classes)
    first.check(data)
    expected = first.model.predict_proba(data.x)
    assert list(first.model.classes_) == sorted(data.classes)
    np.testing.assert_allclose(collect(first, data, ["probabilities"])["probabilities"], expected, atol=1e-6)
    prints = [first.fingerprint(), PredictorTeacher(fitted(0), classes=data.classes).fingerprint()]
    assert prints[0] == prints[1] != PredictorTeacher(fitted(1), classes=data.classes).fingerprint()


def test_a_scikit_fingerprint_follows_what_was_fitted() -> None:
    data = make_data(200)
    kinds = [
        lambda part: LogisticRegression().fit(data.x[:part], data.y[:part]),
        lambda part: RandomForestClassifier(4, random_state=0).fit(data.x[:part], data.y[:part]),
    ]
    for fit in kinds:
        prints = [PredictorTeacher(fit(part)).fingerprint() for part in (200, 200, 190)]
        assert prints[0] == prints[1] != prints[2]


def test_other_columns_than_those_fitted_on_are_refused() -> None:
    pandas = pytest.importorskip("pandas")
    plain = make_data(200)
    names = ["a", "b", "c", "d", "e"]
    data = Data(plain.x, plain.y, classes=list(CLASSES), feature_names=names, fractions=(1.0, 0.0, 0.0))
    model = LogisticRegression().fit(pandas.DataFrame(plain.x, columns=names), plain.y)
    PredictorTeacher(model, classes=CLASSES).check(data)
    swapped = LogisticRegression().fit(pandas.DataFrame(plain.x, columns=names[::-1]), plain.y)
    with pytest.raises(TeacherError, match=r"fitted on other columns.*the order differs"):
        PredictorTeacher(swapped, classes=CLASSES).check(data)
    turned = PredictorTeacher(swapped, classes=CLASSES, prepare=lambda x, ids: x.numpy()[:, ::-1])
    turned.check(data)


# Several --------------------------------------------------------------------------------------------------------------


def members() -> list[ModuleTeacher]:
    return [ModuleTeacher(make_mlp(seed=seed)) for seed in range(3)]


def test_an_ensemble_averages_probabilities_or_logits() -> None:
    data, parts = make_data(), members()
    single = [answer(part, data, "logits")["logits"].double() for part in parts]
    weights = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    mixture = sum(weight * logits.softmax(1) for weight, logits in zip(weights, single))
    found = answer(Ensemble(parts, weights=[2, 1, 1]), data, "logits", "probabilities")
    torch.testing.assert_close(found["probabilities"].double(), mixture, atol=1e-6, rtol=0)
    torch.testing.assert_close(found["logits"].double(), mixture.log(), atol=1e-5, rtol=0)
    mean = sum(weight * logits for weight, logits in zip(weights, single))
    found = answer(Ensemble(parts, weights=[2, 1, 1], average="logits"), data, "logits")
    torch.testing.assert_close(found["logits"].double(), mean, atol=1e-5, rtol=0)
    Ensemble(parts).check(data)


def test_an_ensemble_refuses_what_does_not_fit() -> None:
    with pytest.raises(TeacherError, match="disagree on the classes"):
        Ensemble([ModuleTeacher(make_mlp(3)), ModuleTeacher(make_mlp(4))])
    named = [ModuleTeacher(make_mlp(), class_names=names) for names in (CLASSES, CLASSES[::-1])]
    with pytest.raises(TeacherError, match=r"3: ash, birch, cedar and 3: cedar, birch, ash"):
        Ensemble(named)
    for weights in ([1, 1], [1, -1, 1], [0, 0, 0]):
        with pytest.raises(TeacherError, match="as many weights"):
            Ensemble(members(), weights=weights)
    with pytest.raises(TeacherError, match="at least one"):
        Ensemble([])
    with pytest.raises(TeacherError, match="choose one teacher"):
        require(Ensemble(members()), ["features"])


def test_several_teachers_are_kept_apart() -> None:
    data = make_data()
    several = as_teacher([make_mlp(seed=0), make_mlp(seed=1)])
    assert isinstance(several, Several)
    several.check(data)
    found = collect(several, data, ["teachers_logits"], batch_size=7)["teachers_logits"]
    assert found.shape == (2, 60, 3)
    for index, teacher in enumerate(several.teachers):
        torch.testing.assert_close(found[index], answer(teacher, data, "logits")["logits"])
    with pytest.raises(TeacherError, match=r"needs logits: average them with Ensemble\(\[\.\.\.\]\)"):
        require(several, ["teacher_logits"], by="recipe 'kd'")
    with pytest.raises(TeacherError, match=r"give several teachers: Several"):
        require(several.teachers[0], ["teachers_logits"], by="recipe 'agre_kd'")


# Classes --------------------------------------------------------------------------------------------------------------


def test_classes_are_mapped_by_name_by_index_and_merged() -> None:
    data = make_data()
    teacher = ModuleTeacher(make_mlp(4), class_names=["oak", "cedar", "birch", "ash"])
    logits = answer(teacher, data, "logits")["logits"]
    picked = map_classes(teacher, data.classes, drop=True)
    picked.check(data)
    found = answer(picked, data, "logits", "probabilities", "features")
    assert torch.equal(found["logits"], logits[:, [3, 2, 1]])
    weight, bias = picked.head()
    torch.testing.assert_close(found["features"] @ weight.T + bias, found["logits"])
    by_index = map_classes(teacher, [3, 2, 1], drop=True)
    assert torch.equal(answer(by_index, data, "logits")["logits"], found["logits"])
    merged = map_classes(
        teacher, {"ash": "ash", "oak": "birch", "birch": "birch", "cedar": "cedar"}, classes=data.classes
    )
    expected = logits.softmax(1)
    expected = torch.stack([expected[:, 3], expected[:, 0] + expected[:, 2], expected[:, 1]], 1)
    torch.testing.assert_close(answer(merged, data, "probabilities")["probabilities"], expected)
    torch.testing.assert_close(answer(merged, data, "logits")["logits"].softmax(1), expected)
    assert "head" not in merged.supplies
    merged.check(data)
    assert len({teacher.fingerprint(), picked.fingerprint(), merged.fingerprint()}) == 3


def test_forgotten_doubled_and_unknown_classes_are_refused() -> None:
    teacher = ModuleTeacher(make_mlp(4), class_names=["oak", "cedar", "birch", "ash"])
    with pytest.raises(TeacherError, match=r"classes oak of .* are not mentioned"):
        map_classes(teacher, CLASSES)
    with pytest.raises(TeacherError, match=r"classes ash of .* are mapped twice"):
        map_classes(teacher, ["ash", "ash", "cedar"], drop=True)
    with pytest.raises(TeacherError, match="did you mean 'birch'"):
        map_classes(teacher, ["ash", "brich", "cedar"])
    with pytest.raises(TeacherError, match=r"no class of .* is mapped to cedar"):
        map_classes(teacher, {"ash": 0, "birch": 1}, classes=CLASSES, drop=True)
    with pytest.raises(TeacherError, match=r"0\.\.3, the mapping asks for 9"):
        map_classes(teacher, [9])
    with pytest.raises(TeacherError, match="has no class names"):
        map_classes(ModuleTeacher(make_mlp()), CLASSES)


# as_teacher and collect -----------------------------------------------------------------------------------------------


def test_whatever_is_at_hand_becomes_a_teacher(tmp_path: Any) -> None:
    data = make_data()
    module = make_mlp()

    class Fitted:
        model = module

    assert as_teacher(module).module is module  # type: ignore[attr-defined]
    assert as_teacher(Fitted()).module is module  # type: ignore[attr-defined]
    assert isinstance(as_teacher(LogisticRegression().fit(data.x, data.y)), PredictorTeacher)
    table = {"id": data.ids, "probabilities": np.full((60, 3), 1 / 3)}
    assert isinstance(as_teacher(table), TableTeacher)
    np.savez(tmp_path / "table.npz", **table)
    assert isinstance(as_teacher(tmp_path / "table.npz"), TableTeacher)
    with pytest.raises(TeacherError, match="cannot teach"):
        as_teacher(3.5)
    with pytest.raises(TeacherError, match="weights without their network"):
        as_teacher(tmp_path / "model.safetensors")
    with pytest.raises(TeacherError, match="pickle, which runs code"):
        as_teacher("model.pkl")
    with pytest.raises(LimbeckError, match="there is no"):
        as_teacher(tmp_path / "nothing.parquet")


def test_one_pass_is_in_the_order_of_the_data_and_within_its_limit() -> None:
    data, module = make_data(), make_mlp()
    expected = copy.deepcopy(module).eval()(inputs(data)).detach()
    for batch_size in (1, 7, 60, 1000):
        torch.testing.assert_close(collect(ModuleTeacher(module), data, batch_size=batch_size)["logits"], expected)
    part = data.subset(np.array([5, 3, 40]))
    torch.testing.assert_close(collect(ModuleTeacher(module), part)["logits"], expected[[5, 3, 40]])
    assert collect(ModuleTeacher(module), data, max_bytes=60 * 3 * 4)["logits"].shape == (60, 3)
    with pytest.raises(TeacherError, match=r"Store\.write"):
        collect(ModuleTeacher(module), data, max_bytes=60 * 3 * 4 - 1)


def test_a_mapped_table_and_an_ensemble_of_tables_are_asked_for_their_ids_before_training() -> None:
    data = make_data()
    rows = np.full((59, 3), 1 / 3)
    table = TableTeacher({"id": data.ids[1:], "p": rows}, classes=data.classes)
    for teacher in (table, map_classes(table, data.classes), Ensemble([table, table]), Several([table])):
        with pytest.raises(TeacherError, match=rf"no row for 1 of 60 ids of the data 'data' \({data.ids[0]}\)"):
            teacher.check(data)
        teacher.check(data.subset(np.arange(1, 60)))


def test_named_inputs_reach_a_module_by_name() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embedding = nn.Embedding(20, 4)
            self.linear = nn.Linear(4, 3)

        def forward(self, tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
            vectors = self.embedding(tokens) * mask[..., None]
            return {"logits": self.linear(vectors.sum(1))}

    generator = np.random.default_rng(0)
    x = {"tokens": generator.integers(0, 20, (30, 6)), "mask": generator.random((30, 6)).astype(np.float32)}
    data = Data(x, np.arange(30) % 3, classes=list(CLASSES), fractions=(1.0, 0.0, 0.0))
    module = Reader()
    teacher = ModuleTeacher(module)
    teacher.check(data, ["logits", "features", "head"])
    expected = module(torch.from_numpy(x["tokens"]), torch.from_numpy(x["mask"]))["logits"].detach()
    torch.testing.assert_close(collect(teacher, data)["logits"], expected)


def test_a_teacher_in_bfloat16_takes_and_gives_float32() -> None:
    data, module = make_data(), make_mlp()
    exact = collect(ModuleTeacher(module), data)["logits"]
    teacher = ModuleTeacher(copy.deepcopy(module).bfloat16())
    teacher.check(data, ["logits", "features", "head"])
    found = collect(teacher, data, ["logits", "features"])
    assert {value.dtype for value in found.values()} == {torch.float32}
    torch.testing.assert_close(found["logits"], exact, atol=0.05, rtol=0.05)


def test_a_backbone_without_classes_supplies_features_only() -> None:
    data = make_data()
    backbone = ModuleTeacher(make_mlp()[:3], kind="features")
    assert (backbone.supplies, backbone.classes) == ({"features"}, 0)
    backbone.check(data)
    expected = collect(ModuleTeacher(make_mlp()), data, ["features"])["features"]
    torch.testing.assert_close(collect(backbone, data, ["features"])["features"], expected)
    with pytest.raises(TeacherError, match=r"supplies features .* recipe 'kd' needs logits"):
        require(backbone, ["teacher_logits"], by="recipe 'kd'")
    images = make_images()
    maps = ModuleTeacher(CNN((3, 8, 8), 3, channels=[4, 6]).stages, kind="features")
    whole = ModuleTeacher(CNN((3, 8, 8), 3, channels=[4, 6]))
    whole.module.stages.load_state_dict(maps.module.state_dict())  # type: ignore[operator, union-attr]
    torch.testing.assert_close(
        collect(maps, images, ["features"])["features"], collect(whole, images, ["features"])["features"]
    )
