"""Taps, transplants and refitted heads: nothing of the user changes, and the numbers hold."""

from __future__ import annotations

import copy
import threading
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import sklearn
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from limbeck.errors import DataError, RecipeError
from limbeck.heads import (
    FeatureTap,
    LayerTap,
    MapTap,
    TransplantedStudent,
    build_projector,
    find_head,
    find_map_layer,
    fold_standardised,
    layer_at_depth,
    pooled,
    refit_dfr,
    replace_head,
    transplant,
    transplant_weights,
    tune_dfr,
)

torch.set_num_threads(1)
RECENT_SKLEARN = tuple(int(part) for part in sklearn.__version__.split(".")[:2]) >= (1, 8)


# ------------------------------------------------------------------------------------------------------------ networks


class Residual(nn.Module):
    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.shortcut = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        inside = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return F.relu(inside + self.shortcut(x))  # the block's own output is no leaf's output


class ConvNet(nn.Module):
    """A residual network; `stride` sets the size of its last map."""

    def __init__(self, width: int, classes: int = 4, stride: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.stage1 = Residual(width, width, 1)
        self.stage2 = Residual(width, 2 * width, stride)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage2(self.stage1(F.relu(self.stem(x))))
        return self.classifier(self.dropout(self.pool(x).flatten(1)))


class Hidden(nn.Module):
    """Convolution, then two linear layers: no map is averaged straight into the head."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.fc1, self.fc2 = nn.Linear(5 * 16, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(self.features(x).flatten(1))))


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor


class Odd(nn.Module):
    """Returns what it likes, and does something with its logits on the way."""

    def __init__(self, kind: str, width: int = 6, classes: int = 4) -> None:
        super().__init__()
        self.kind, self.classes = kind, classes
        self.encoder = nn.ModuleDict({"body": nn.Sequential(nn.Linear(5, width), nn.ReLU())})
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        hidden = self.encoder["body"](x if mask is None else x * mask)
        logits = self.head(input=hidden) if self.kind == "keyword" else self.head(hidden)
        logits = logits.view(-1, self.classes).log_softmax(dim=1)
        return {
            "tensor": logits,
            "keyword": logits,
            "tuple": (logits, hidden),
            "dict": {"logits": logits, "hidden": hidden},
            "dataclass": Output(logits, hidden),
        }[self.kind]


def mlp(width: int, classes: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, classes))


HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def portrait(module: nn.Module) -> list[Any]:
    """Everything about a module that a visitor might leave changed."""
    found: list[Any] = [sorted(vars(part)) for part in module.modules()]
    found += [
        (name, part.training, [len(vars(part)[hooks]) for hooks in HOOKS]) for name, part in module.named_modules()
    ]
    found += [(name, value.clone().numpy().tobytes()) for name, value in module.state_dict().items()]
    found += [(name, value.requires_grad, value.grad is None) for name, value in module.named_parameters()]
    return found


# ------------------------------------------------------------------------------------------------------------ the head


def test_the_last_linear_layer_is_found_wherever_it_sits() -> None:
    assert find_head(mlp(6))[0] == "2"
    assert find_head(ConvNet(2))[0] == "classifier"
    alone = nn.Linear(3, 2)
    assert find_head(alone) == ("", alone)
    model = Odd("tensor")
    assert find_head(model, "encoder.body.0")[1] is model.encoder["body"][0]


def test_a_missing_head_lists_what_there_is() -> None:
    with pytest.raises(RecipeError, match=r"no linear layer.*0 \(Conv2d\), 1 \(ReLU\)"):
        find_head(nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU()))
    with pytest.raises(RecipeError, match="unknown linear layer 'clasifier': did you mean 'classifier'"):
        find_head(ConvNet(2), "clasifier")


@pytest.mark.parametrize("kind", ["tensor", "keyword", "tuple", "dict", "dataclass"])
def test_a_feature_tap_sees_what_enters_the_head_and_leaves_no_trace(kind: str) -> None:
    model, x = Odd(kind), torch.randn(3, 5)
    before = portrait(model)
    with FeatureTap(model) as tap:
        model(x)
        features = tap.take()
        assert (tap.layer, tap.width) == ("head", 6)
    assert portrait(model) == before
    torch.testing.assert_close(features, model.encoder["body"](x))
    assert features.requires_grad


def test_taps_leave_no_trace_after_an_error_either() -> None:
    model = ConvNet(2)
    before = portrait(model)
    for make in (FeatureTap, MapTap, lambda module: LayerTap(module, ["stage1", "stage2"])):
        with pytest.raises(RuntimeError), make(model):
            model(torch.zeros(1, 7, 8, 8))
        assert portrait(model) == before
    with pytest.raises(RecipeError, match="did you mean 'stage2'"):
        LayerTap(model, ["stage1", "stage3"])
    assert portrait(model) == before
    with pytest.raises(RecipeError, match="unknown layer"):
        MapTap(model, "nowhere")
    assert portrait(model) == before


def test_a_tap_never_shows_an_earlier_pass() -> None:
    model = mlp(6)
    with FeatureTap(model) as tap:
        with pytest.raises(RecipeError, match="saw no forward pass"):
            tap.take()
        model(torch.randn(2, 5))
        tap.take()
        with pytest.raises(RecipeError, match=r"'2'.*saw no forward pass"):
            tap.take()
        model(torch.randn(2, 5))
        with pytest.raises(RuntimeError):
            model(torch.randn(2, 9))  # fails before the head
        with pytest.raises(RecipeError, match="saw no forward pass"):
            tap.take()
    with pytest.raises(RecipeError, match="is closed"):
        tap.take()
    tap.close()


def test_two_taps_on_one_module_do_not_disturb_each_other() -> None:
    model, x = mlp(6), torch.randn(2, 5)
    with FeatureTap(model) as outer:
        with FeatureTap(model) as inner:
            model(x)
            torch.testing.assert_close(inner.take(), outer.take())
        model(x)
        assert outer.take().shape == (2, 6)


def test_a_map_tap_sees_the_block_output_before_pooling() -> None:
    model, x = ConvNet(3).eval(), torch.randn(2, 3, 8, 8)
    before = portrait(model)
    expected = model.stage2(model.stage1(F.relu(model.stem(x))))
    with MapTap(model) as tap:
        model(x)
        torch.testing.assert_close(tap.take(), expected)
    with MapTap(model, "stage1") as tap:
        model(x)
        assert tap.take().shape == (2, 3, 8, 8)
    assert find_map_layer(model, x) == "stage2"
    assert portrait(model) == before


def test_a_map_tap_says_that_there_is_no_map() -> None:
    with MapTap(mlp(6)) as tap:
        mlp(6)(torch.randn(2, 5))
        with pytest.raises(RecipeError, match="no feature map"):
            tap.take()


def test_stage_maps_come_in_the_order_asked_for() -> None:
    model = ConvNet(2)
    with LayerTap(model, ["stage2", "stem"]) as tap:
        model(torch.randn(2, 3, 8, 8))
        later, earlier = tap.take()
    assert (later.shape[1], earlier.shape[1]) == (4, 2)
    odd = Odd("tuple")
    with LayerTap(odd, [""]) as tap:
        odd(torch.randn(2, 5))
        with pytest.raises(RecipeError, match="returns tuple, not a tensor"):
            tap.take()


def test_an_early_layer_by_depth() -> None:
    model, x = ConvNet(2), torch.randn(2, 3, 8, 8)
    before = portrait(model)
    order = [layer_at_depth(model, x, depth) for depth in (0.0, 0.5, 1.0)]
    assert portrait(model) == before
    assert order[0] == "stem"
    assert order[1].startswith("stage")
    assert order[2] == "stage2.shortcut.1"
    with LayerTap(model, [order[1]]) as tap:
        model(x)
        assert pooled(tap.take()[0]).dim() == 2
    assert layer_at_depth(mlp(6), torch.randn(2, 5), 0.5) == "0"
    with pytest.raises(RecipeError, match="depth=2"):
        layer_at_depth(model, x, 2)
    with pytest.raises(RecipeError, match="no early layer"):
        layer_at_depth(nn.Linear(5, 2), torch.randn(2, 5))


def test_pooling_maps_and_sequences() -> None:
    maps, tokens, vectors = torch.randn(2, 3, 4, 5), torch.randn(2, 7, 3), torch.randn(2, 3)
    torch.testing.assert_close(pooled(maps), F.adaptive_avg_pool2d(maps, 1).flatten(1))
    torch.testing.assert_close(pooled(tokens), tokens.mean(dim=1))
    assert pooled(vectors) is vectors


# --------------------------------------------------------------------------------------------------------- transplants


def pairs() -> dict[str, tuple[nn.Module, nn.Module, Tensor, dict[str, Any]]]:
    torch.manual_seed(0)
    x, images = torch.randn(6, 5), torch.randn(6, 3, 8, 8)
    return {
        "vector": (mlp(6), mlp(9), x, {}),
        "equal widths": (mlp(9), mlp(9), x, {}),
        "mlp projector": (mlp(6), mlp(9), x, {"projector": "mlp"}),
        "odd student": (Odd("dict"), Odd("dataclass", 9), x, {}),
        "map": (ConvNet(2), ConvNet(3), images, {"example": images[:2]}),
        "larger teacher map": (ConvNet(2), ConvNet(3, stride=1), images, {"example": images[:2]}),
        "larger student map": (ConvNet(2, stride=1), ConvNet(3), images, {"example": images[:2]}),
        "full convolution": (ConvNet(2), ConvNet(3), images, {"example": images[:2], "projector": "full3x3"}),
        "named": (ConvNet(2), ConvNet(3), images, {"example": images[:2], "student_map": "stage2"}),
        "linear student": (nn.Linear(5, 4), mlp(9), x, {}),
    }


@pytest.mark.parametrize("case", pairs())
def test_nothing_of_the_users_changes_and_only_backbone_and_projector_learn(case: str) -> None:
    student, teacher, x, options = pairs()[case]
    before = portrait(student), portrait(teacher)
    made = transplant(student, teacher, **options)
    assert (portrait(student), portrait(teacher)) == before
    _, head = find_head(teacher)
    frozen = {"head.weight", "head.bias"}
    assert {name for name, value in made.named_parameters() if not value.requires_grad} == frozen
    assert torch.equal(made.head.weight, head.weight)
    assert torch.equal(made.head.bias, head.bias)
    assert made.head.weight.data_ptr() != head.weight.data_ptr()
    start = copy.deepcopy(made.state_dict())
    # all parameters on purpose, with decay and momentum: a frozen head must survive a careless optimiser
    optimiser = torch.optim.SGD(made.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        logits, projected = made.forward_with_features(x)
        optimiser.zero_grad()
        (F.cross_entropy(logits, torch.arange(6) % 4) + projected.pow(2).mean()).backward()
        optimiser.step()
    for name, value in made.named_parameters():
        moved = not torch.equal(value, start[name])
        assert moved == (name not in frozen), name
    assert (portrait(student), portrait(teacher)) == before


@pytest.mark.parametrize("case", pairs())
def test_a_transplanted_student_survives_copies_and_files(case: str) -> None:
    student, teacher, x, options = pairs()[case]
    made = transplant(student, teacher, **options)
    made(x)  # batch norm moves
    made.eval()
    expected = made(x)
    assert not made.training
    torch.testing.assert_close(copy.deepcopy(made)(x), expected)
    again = transplant(student, teacher, **options).eval()
    again.load_state_dict(load(save(made.state_dict())))
    assert torch.equal(again(x), expected)
    assert torch.equal(made(x), expected)


@pytest.mark.parametrize("case", pairs())
def test_the_students_own_head_is_gone(case: str) -> None:
    student, teacher, _, options = pairs()[case]
    made = transplant(student, teacher, **options)
    _, old = find_head(student)
    count = {
        name: sum(p.numel() for p in m.parameters()) for name, m in (("student", student), ("backbone", made.backbone))
    }
    assert count["backbone"] == count["student"] - old.weight.numel() - old.bias.numel()
    assert find_head(made)[1] is made.head


@pytest.mark.parametrize("case", pairs())
def test_its_logits_are_the_teachers_head_on_its_features(case: str) -> None:
    student, teacher, x, options = pairs()[case]
    made = transplant(student, teacher, **options).eval()
    logits, projected = made.forward_with_features(x)
    _, head = find_head(teacher)
    vector = projected.mean(dim=(2, 3)) if made.match == "map" else projected
    torch.testing.assert_close(logits, vector @ head.weight.T + head.bias)
    torch.testing.assert_close(made(x), logits)
    with FeatureTap(student) as tap:
        student.eval()(x)
        own = tap.take()
    features = made.features(x)
    torch.testing.assert_close(features if made.match == "vector" else pooled(features), own)


def test_what_auto_chooses() -> None:
    chosen = {}
    for case, (student, teacher, _, options) in pairs().items():
        made = transplant(student, teacher, **options)
        chosen[case] = (made.match, type(made.projector).__name__, made.teacher_layer)
    assert chosen["vector"] == ("vector", "Linear", "2")
    assert chosen["equal widths"] == ("vector", "Identity", "2")
    assert chosen["mlp projector"] == ("vector", "Sequential", "2")
    assert chosen["odd student"] == ("vector", "Linear", "head")
    assert chosen["map"] == ("map", "Sequential", "stage2")
    images = torch.randn(2, 3, 8, 8)
    assert transplant(ConvNet(2), ConvNet(3)).match == "vector"  # no example: nothing shows where the maps are
    assert transplant(ConvNet(2), Hidden(), example=images).match == "vector"
    assert transplant(ConvNet(2), ConvNet(3), "linear", example=images).match == "vector"


def test_a_head_on_another_kind_of_pooling_is_matched_by_vectors() -> None:
    images = torch.randn(2, 3, 8, 8)
    largest = ConvNet(3)
    largest.pool = nn.AdaptiveMaxPool2d(1)  # the same shapes all along, and not the average
    assert transplant(ConvNet(2), largest, example=images).match == "vector"
    assert transplant(largest, ConvNet(2), example=images).match == "vector"
    with pytest.raises(RecipeError, match="is not the average of the map that 'stage2' returns"):
        transplant(ConvNet(2), largest, match="map", example=images)


def test_maps_are_pooled_to_the_smaller_one() -> None:
    for case, size in (("larger teacher map", 4), ("larger student map", 4), ("map", 4)):
        student, teacher, x, options = pairs()[case]
        made = transplant(student, teacher, **options).eval()
        _, projected = made.forward_with_features(x)
        assert made.teacher_layer is not None
        with LayerTap(teacher, [made.teacher_layer]) as tap:
            teacher.eval()(x)
            (wanted,) = tap.take()
        target = made.target(wanted, projected)
        assert projected.shape == target.shape == (6, 6, size, size)
        torch.testing.assert_close(target, F.adaptive_avg_pool2d(wanted, size))
        torch.testing.assert_close(pooled(target), pooled(wanted))


def test_the_depthwise_projector_layer_by_layer() -> None:
    made = build_projector("depthwise", 10, 16)
    convolutions = [part for part in made if isinstance(part, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size, c.groups, c.bias) for c in convolutions] == [
        (10, 8, (1, 1), 1, None),
        (8, 8, (3, 3), 8, None),
        (8, 16, (1, 1), 1, None),
    ]
    assert [type(part).__name__ for part in made] == ["Conv2d", "BatchNorm2d", "ReLU"] * 3
    assert made(torch.randn(2, 10, 5, 7)).shape == (2, 16, 5, 7)
    full = build_projector("full3x3", 10, 16)
    assert full[3].groups == 1
    assert sum(p.numel() for p in full.parameters()) - sum(p.numel() for p in made.parameters()) == 8 * 8 * 9 - 8 * 9
    assert build_projector("depthwise", 3, 1)(torch.randn(2, 3, 2, 2)).shape == (2, 1, 2, 2)
    assert not any(isinstance(part, nn.Conv2d) for part in build_projector("mlp", 3, 4))


def test_distillation_reaches_the_teachers_features() -> None:
    """DeTT's objective without weights: the projected features approach the teacher's, and so do the logits."""
    torch.manual_seed(0)
    student, teacher, x = mlp(16), mlp(8).eval(), torch.randn(64, 5)
    made = transplant(student, teacher)
    with torch.no_grad(), FeatureTap(teacher) as tap:
        wanted_logits = teacher(x)
        wanted = tap.take()
    optimiser = torch.optim.Adam([p for p in made.parameters() if p.requires_grad], lr=0.02)
    first = (made(x) - wanted_logits).abs().mean().item()
    for _ in range(300):
        optimiser.zero_grad()
        ((made.forward_with_features(x)[1] - wanted) ** 2).mean().backward()
        optimiser.step()
    assert (made(x) - wanted_logits).abs().mean().item() < 0.15 * first


def test_a_table_as_head() -> None:
    weight, bias = torch.randn(4, 9), torch.randn(4)
    made = transplant_weights(mlp(6), weight, bias)
    assert (made.match, made.teacher_layer) == ("vector", None)
    assert torch.equal(made.head.weight, weight)
    assert not made.head.weight.requires_grad
    weight.zero_()
    assert made.head.weight.abs().sum().item() > 0  # a copy
    assert transplant_weights(mlp(6), torch.randn(4, 9)).head.bias is None
    with pytest.raises(RecipeError, match=r"weight \[4, 9\], bias \[3\]"):
        transplant_weights(mlp(6), torch.randn(4, 9), torch.randn(3))


def test_transplanting_twice_and_into_a_transplant() -> None:
    x = torch.randn(3, 5)
    first = transplant(mlp(6), mlp(9)).eval()
    second = transplant(first, mlp(7)).eval()
    logits, projected = second.forward_with_features(x)
    assert (logits.shape, projected.shape) == ((3, 4), (3, 7))
    torch.testing.assert_close(second.features(x), first.forward_with_features(x)[1])


def test_arguments_pass_through_to_the_students_forward() -> None:
    student = Odd("dict")
    made = transplant(student, mlp(9)).eval()
    x, mask = torch.randn(3, 5), torch.tensor([[1.0], [0.0], [1.0]])
    torch.testing.assert_close(made(x, mask=mask), made(x * mask))
    torch.testing.assert_close(made(x=x * mask), made(x * mask))


def test_threads_do_not_mix_their_features() -> None:
    made = transplant(Odd("tensor"), mlp(9)).eval()
    inputs = [torch.randn(200, 5) for _ in range(4)]
    expected = [made(x) for x in inputs]
    wrong: list[int] = []

    def work(place: int) -> None:
        for _ in range(50):
            if not torch.allclose(made(inputs[place]), expected[place]):
                wrong.append(place)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_modes_and_types_follow_the_student() -> None:
    student = mlp(6).double().eval()
    made = transplant(student, mlp(9))
    assert {value.dtype for value in made.state_dict().values()} == {torch.float64}
    assert not any(part.training for part in made.modules())
    mixed = ConvNet(2)
    mixed.stage1.eval()  # a user may freeze the batch norm of one stage
    assert not transplant(mixed, ConvNet(3)).backbone.stage1.training
    assert transplant(mixed, ConvNet(3)).backbone.stage2.training


def test_it_can_be_exported_and_traced() -> None:
    student, teacher, x, options = pairs()["map"]
    made = transplant(student, teacher, **options).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(torch.jit.trace(made, (x,))(x), made(x))
        torch.testing.assert_close(torch.export.export(made, (x,), strict=False).module()(x), made(x))


@pytest.mark.parametrize(
    ("student", "teacher", "options", "message"),
    [
        (mlp(6, 10), mlp(9, 5), {}, "'2' has 10 outputs, the teacher's '2' has 5"),
        (nn.Sequential(nn.Conv2d(3, 4, 1)), mlp(9), {}, "no linear layer"),
        (mlp(6), nn.Sequential(nn.Flatten()), {}, "no linear layer"),
        (mlp(6), mlp(9), {"projector": "depthwise", "match": "vector"}, "'depthwise' works on feature maps"),
        (mlp(6), mlp(9), {"projector": "identity"}, "cannot turn 6 features into 9"),
        (mlp(6), mlp(9), {"projector": "linea"}, "did you mean 'linear'"),
        (mlp(6), mlp(9), {"match": "maps"}, "did you mean 'map'"),
        (ConvNet(2), ConvNet(3), {"match": "map"}, "needs an example"),
        (ConvNet(2), ConvNet(3), {"projector": "depthwise"}, "needs an example"),
        (ConvNet(2), Hidden(), {"match": "map", "example": torch.zeros(2, 3, 8, 8)}, "Use match='vector'"),
        (ConvNet(2), ConvNet(3), {"teacher_map": "stage9", "example": torch.zeros(2, 3, 8, 8)}, "'stage9'"),
        (ConvNet(2), ConvNet(3), {"teacher_map": "stage1", "example": torch.rand(2, 3, 8, 8)}, "is not the average"),
        (
            ConvNet(2),
            ConvNet(3),
            {"match": "map", "projector": "mlp", "example": torch.rand(2, 3, 8, 8)},
            "'mlp' works on vectors",
        ),
    ],
)
def test_impossible_transplants_say_why(
    student: nn.Module, teacher: nn.Module, options: dict[str, Any], message: str
) -> None:
    before = portrait(student), portrait(teacher)
    with pytest.raises(RecipeError, match=message):
        transplant(student, teacher, **options)
    assert (portrait(student), portrait(teacher)) == before


def test_a_head_that_is_bypassed_is_noticed() -> None:
    class Bypass(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head, self.skip = nn.Linear(5, 4), nn.Linear(4, 4), True

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) if self.skip else self.head(self.body(x))

    with pytest.raises(RecipeError, match="did not reach the layer"):
        transplant(Bypass(), mlp(9))(torch.randn(2, 5))


# ------------------------------------------------------------------------------------------------------ replacing, DFR


def test_replace_head_is_a_copy_with_another_last_layer() -> None:
    model, weight, bias = Odd("tensor"), torch.randn(3, 6), torch.randn(3)
    before = portrait(model)
    made = replace_head(model, weight, bias)
    made.classes = 3  # the user's own idea of its logits' shape
    assert portrait(model) == before
    x = torch.randn(2, 5)
    expected = (model.encoder["body"](x) @ weight.T + bias).log_softmax(dim=1)
    torch.testing.assert_close(made(x), expected)
    assert find_head(made)[1].weight.requires_grad
    alone = replace_head(nn.Linear(6, 2), weight)
    assert isinstance(alone, nn.Linear)
    assert (alone.out_features, alone.bias) == (3, None)
    with pytest.raises(RecipeError, match="'head' takes 6 features and the new head 5"):
        replace_head(model, torch.randn(3, 5))


def test_replacing_the_head_of_a_transplanted_student() -> None:
    made = transplant(mlp(6), mlp(9)).eval()
    weight = torch.randn(4, 9)
    new = replace_head(made, weight)
    assert isinstance(new, TransplantedStudent)
    x = torch.randn(2, 5)
    torch.testing.assert_close(new(x), made.forward_with_features(x)[1] @ weight.T)


@given(st.integers(0, 10_000), st.integers(2, 4), st.booleans())
@settings(max_examples=25, deadline=None)
def test_folding_gives_scikit_learns_probabilities(seed: int, classes: int, constant: bool) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(rng.normal(size=4) * 10, rng.uniform(0.1, 20, 4), (60, 4))
    if constant:
        x[:, 2] = 7.0
    y = np.arange(60) % classes
    x[:, 0] += y
    scaler = StandardScaler().fit(x)
    fitted = LogisticRegression(C=0.5).fit(scaler.transform(x), y)
    weight, bias = fold_standardised(fitted.coef_, fitted.intercept_, scaler.mean_, scaler.scale_)
    assert (weight.shape, bias.shape, weight.dtype) == ((classes, 4), (classes,), torch.float64)
    found = (torch.as_tensor(x) @ weight.T + bias).softmax(dim=1)
    np.testing.assert_allclose(found.numpy(), fitted.predict_proba(scaler.transform(x)), atol=1e-9)


def test_folding_two_classes_splits_the_row_in_halves() -> None:
    weight, bias = fold_standardised([[2.0, 4.0]], [1.0], [3.0, 1.0], [2.0, 0.0])
    assert weight.tolist() == [[-0.5, -2.0], [0.5, 2.0]]  # a scale of 0 counts as 1
    assert bias.tolist() == [3.0, -3.0]  # b' = 1 - (1 * 3 + 4 * 1) = -6
    with pytest.raises(RecipeError, match=r"weight \[1, 2\]"):
        fold_standardised([[1.0, 2.0]], [1.0], [0.0], [1.0])


def shortcut_features(
    seed: int, per_cell: tuple[int, ...], classes: int = 2
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A weak core feature, a strong shortcut, six of noise; cells are (label, shortcut), unequal in size."""
    rng = np.random.default_rng(seed)
    cells = [(y, s) for y in range(classes) for s in range(classes)]
    parts = []
    for cell, ((y, s), size) in enumerate(zip(cells, per_cell, strict=True)):
        x = rng.normal(size=(size, 8))
        x[:, 0] += 1.5 * y
        x[:, 1] += 4.0 * s
        parts.append((100 * x + 50, np.full(size, y), np.full(size, cell)))
    x, y, g = (np.concatenate(column) for column in zip(*parts, strict=True))
    return x, y, g


def worst_group(weight: Any, bias: Any, x: np.ndarray, y: np.ndarray, g: np.ndarray) -> float:
    right = (x @ np.asarray(weight).T + np.asarray(bias)).argmax(axis=1) == y
    return min(right[g == group].mean() for group in np.unique(g))


def test_dfr_is_the_average_of_scikit_learns_fits_on_balanced_subsets() -> None:
    x, y, g = shortcut_features(0, (40, 12, 12, 40))
    weight, bias = refit_dfr(x, y, g, classes=2, penalties=(0.3,), refits=1, seed=3)
    # with every group as large as the smallest there is one balanced subset, whatever the seed
    rows = np.concatenate([np.flatnonzero(g == group)[:12] for group in range(4)])
    even = x[rows], y[rows], g[rows]
    found = refit_dfr(*even, classes=2, penalties=(0.3,), refits=4, seed=3)
    scaler = StandardScaler().fit(even[0])
    lasso = {"l1_ratio": 1.0} if RECENT_SKLEARN else {"penalty": "l1"}
    fitted = LogisticRegression(C=0.3, solver="liblinear", tol=1e-8, random_state=3, max_iter=1000, **lasso)
    fitted.fit(scaler.transform(even[0]), even[1])
    probabilities = torch.as_tensor(x) @ found[0].T + found[1]
    np.testing.assert_allclose(
        probabilities.softmax(dim=1).numpy(), fitted.predict_proba(scaler.transform(x)), atol=5e-3
    )
    assert not torch.equal(weight, found[0])
    assert bias.shape == (2,)


def test_dfr_lifts_the_worst_group_above_a_plain_fit() -> None:
    x, y, g = shortcut_features(1, (400, 20, 20, 400))
    test = shortcut_features(2, (300, 300, 300, 300))
    scaler = StandardScaler().fit(x)
    plain = LogisticRegression(C=1.0).fit(scaler.transform(x), y)
    before = worst_group(*fold_standardised(plain.coef_, plain.intercept_, scaler.mean_, scaler.scale_), *test)
    weight, bias = refit_dfr(x, y, g, classes=2, seed=0)
    assert worst_group(weight, bias, *test) > before + 0.2


def test_dfr_with_three_classes_and_unknown_groups() -> None:
    x, y, g = shortcut_features(4, (60, 10, 10, 10, 60, 10, 10, 10, 60), classes=3)
    hidden = np.concatenate((g, np.full(50, -1)))
    noise = np.random.default_rng(0).normal(size=(50, 8)) * 1e6
    found = refit_dfr(
        np.concatenate((x, noise)), np.concatenate((y, np.zeros(50, int))), hidden, classes=3, refits=3, seed=1
    )
    expected = refit_dfr(x, y, g, classes=3, refits=3, seed=1)
    assert found[0].shape == (3, 8)
    torch.testing.assert_close(found[0], expected[0])
    test = shortcut_features(5, (100,) * 9, classes=3)
    assert worst_group(*found, *test) > 0.3


def test_dfr_repeats_with_its_seed_and_not_with_another() -> None:
    x, y, g = shortcut_features(6, (60, 15, 15, 60))
    first, again = (refit_dfr(x, y, g, classes=2, refits=3, seed=7) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    state = np.random.get_state()[1].tolist()  # noqa: NPY002  (that the global generator is not touched)
    other = refit_dfr(x, y, g, classes=2, penalties=(1.0,), refits=3, seed=8)
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002
    same = refit_dfr(x, y, g, classes=2, penalties=(1.0,), refits=3, seed=7)
    assert not torch.allclose(same[0], other[0], rtol=0.05, atol=1e-3 * same[0].abs().max().item())  # other subsets


def test_the_penalty_is_the_first_of_the_best() -> None:
    x, y, g = shortcut_features(8, (80, 40, 40, 80))
    assert tune_dfr(x, y, g, classes=2, penalties=(1e-6, 1.0), seed=0) == 1.0  # the first makes every weight zero
    assert tune_dfr(x, y, g, classes=2, penalties=(1.0, 1.0000001), seed=0) == 1.0


def test_standardising_on_the_training_features() -> None:
    x, y, g = shortcut_features(9, (30, 30, 30, 30))
    train = np.random.default_rng(0).normal(30, 200, (500, 8))
    found = refit_dfr(x, y, g, classes=2, penalties=(0.1,), refits=2, standardise_on=train)
    own = refit_dfr(x, y, g, classes=2, penalties=(0.1,), refits=2)
    assert not torch.allclose(found[0], own[0])
    shifted = refit_dfr(x * 2 + 1, y, g, classes=2, penalties=(0.1,), refits=2, standardise_on=train * 2 + 1)
    torch.testing.assert_close(shifted[0] * 2, found[0], rtol=1e-5, atol=1e-9)


def test_a_refitted_head_goes_into_the_model_and_into_a_student() -> None:
    torch.manual_seed(0)
    teacher, inputs = mlp(9, 2).eval(), torch.randn(120, 5)
    with torch.no_grad(), FeatureTap(teacher) as tap:
        teacher(inputs)
        features = tap.take()
    labels, groups = (inputs[:, 0] > 0).long(), (inputs[:, 0] > 0).long() * 2 + (inputs[:, 1] > 0).long()
    weight, bias = refit_dfr(features, labels, groups, classes=2, refits=3)
    debiased = replace_head(teacher, weight, bias)
    expected = features.double() @ weight.T + bias
    torch.testing.assert_close(debiased(inputs).double(), expected, rtol=1e-4, atol=1e-4)
    student = transplant(mlp(4, 2), debiased)
    torch.testing.assert_close(student.head.weight.double(), weight, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(transplant_weights(mlp(4, 2), weight, bias).head.weight, student.head.weight)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": np.zeros(120, int)}, DataError, r"classes \[1\]"),
        ({"labels": np.full(120, 2)}, DataError, "do not fit 2 classes"),
        ({"groups": np.full(120, -1)}, DataError, r"classes \[0, 1\]"),
        ({"groups": np.zeros(7, int)}, DataError, r"groups \(7,\)"),
        ({"groups": np.arange(120)}, DataError, "one sample"),
        ({"refits": 0}, RecipeError, "refits=0"),
        ({"penalties": ()}, RecipeError, "expected penalties"),
        ({"validation": 1.0}, RecipeError, "validation=1.0"),
    ],
)
def test_dfr_says_what_does_not_fit(change: dict[str, Any], error: type[Exception], message: str) -> None:
    x, y, g = shortcut_features(0, (30, 30, 30, 30))
    arguments: dict[str, Any] = {"features": x, "labels": y, "groups": g, "classes": 2}
    with pytest.raises(error, match=message):
        refit_dfr(**(arguments | change))


def test_a_single_penalty_needs_no_tuning_set() -> None:
    x, y, _ = shortcut_features(0, (6, 6, 6, 6))
    weight, _ = refit_dfr(x, y, np.arange(24), classes=2, penalties=(1.0,), refits=1)
    assert torch.isfinite(weight).all()


def test_hook_dictionaries_are_truly_empty_afterwards() -> None:
    model = ConvNet(2)
    with FeatureTap(model), MapTap(model), LayerTap(model, ["stem"]):
        assert any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    for part in model.modules():
        for hooks in HOOKS:
            assert vars(part)[hooks] == OrderedDict()
