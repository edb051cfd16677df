"""A teacher computed faster says the same; what is chosen is recorded and used again; memory stays within bounds."""

from __future__ import annotations

import copy
import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import limbeck as lb
from limbeck.callbacks import RunState
from limbeck.engine import Compiled
from limbeck.errors import ConfigError
from limbeck.heads import find_head
from limbeck.teachers import Ensemble, ModuleTeacher, Several, Store, as_teacher, map_classes
from limbeck.teachers.folding import folded
from limbeck.tuning import TEACHER_WAYS, choose_compile, choose_teacher_ways, teacher_ways

CLASSES = 4
NOTHING = dict.fromkeys(TEACHER_WAYS, False)
BIG = {"epochs": 2, "batch_size": 64, "optimiser": "sgd", "learning_rate": 0.05}


def settle(model: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics and weights of batch normalisation as after training: folding must use all four."""
    generator = torch.Generator().manual_seed(seed)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) and part.running_mean is not None:
            part.running_mean.normal_(generator=generator)
            assert part.running_var is not None
            part.running_var.uniform_(0.3, 3.0, generator=generator)
            if part.affine:
                part.weight.data.normal_(generator=generator)
                part.bias.data.normal_(generator=generator)
    return model


class Residual(nn.Module):
    """Convolutions with and without bias, grouped, strided, added to what came in; a linear layer with its own norm."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, groups=2), nn.BatchNorm2d(width, affine=False))
        self.project = nn.Linear(width, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.stem(x)
        maps = torch.relu(maps + self.block(maps))
        return self.head(self.drop(self.norm(self.project(maps.mean((2, 3)))).relu()))


@pytest.fixture(scope="module")
def images() -> lb.Data:
    generator = np.random.default_rng(0)
    labels = np.arange(300) % CLASSES
    pixels = generator.normal(size=(300, 3, 8, 8)).astype(np.float32) + labels[:, None, None, None] * 0.3
    return lb.Data(pixels.astype(np.float32), labels, attributes={"site": labels // 2}, groups=["site"])


def student() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, CLASSES)
    )


def weights(fitted: lb.Fitted) -> bytes:
    return b"".join(value.detach().contiguous().numpy().tobytes() for value in fitted.model.state_dict().values())


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def norms(model: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) for part in model.modules())


# Folding --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_is_folded_computes_the_same(dtype: torch.dtype) -> None:
    model = settle(Residual()).to(dtype).train()
    before, x = state(model), torch.randn(9, 3, 8, 8, dtype=dtype)
    found = folded(model, x[:3])
    assert found is not None
    assert norms(found) == 0
    assert not any(part.training for part in found.modules())
    with torch.no_grad():
        wanted = copy.deepcopy(model).eval()(x)
        torch.testing.assert_close(found(x), wanted, rtol=0, atol=1e-12 if dtype is torch.float64 else 2e-5)
    assert model.training
    assert norms(model) == 3
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert find_head(found)[0] == "head"


class Shared(nn.Module):
    """One convolution called twice: what is folded into it once would be done twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, 1, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(self.conv(x))).mean((2, 3))


class Branching(nn.Module):
    """What it does depends on the values: it cannot be read off."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return y.mean((2, 3)) if x.sum() > 0 else y.amax((2, 3))


class UsedTwice(nn.Module):
    """The output of the convolution is needed as it is, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return (y + self.norm(y)).mean((2, 3))


class Sequence1d(nn.Module):
    """A linear layer over the channels of a sequence, whose norm is over its positions."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(24)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x.flatten(1, 2))).mean(2)


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Flatten())
    model[0].register_forward_hook(lambda _, __, output: output * 2)
    return model


@pytest.mark.parametrize(
    "model",
    [
        Shared(),
        UsedTwice(),
        hooked(),
        nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten()),
        nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU(), nn.BatchNorm2d(3), nn.Flatten()),
    ],
    ids=["shared", "used twice", "hooked", "no statistics", "relu between"],
)
def test_what_cannot_be_folded_is_left_alone(model: nn.Module) -> None:
    x = torch.randn(4, 3, 8, 8)
    assert folded(settle(model), x) is None
    # Nor does it keep another pair from being folded.
    beside = settle(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), model)).eval()
    found = folded(beside, x)
    assert found is not None
    assert norms(found) == norms(model)
    torch.testing.assert_close(found(x), beside(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "model", [Branching(), Sequence1d(), nn.Sequential(nn.Flatten(), nn.Linear(192, 2))],
    ids=["branching", "over positions", "nothing to fold"],
)  # fmt: skip
def test_a_network_that_cannot_be_read_or_would_say_something_else_is_used_as_it_is(model: nn.Module) -> None:
    assert folded(settle(model), torch.randn(4, 3, 8, 8)) is None


def test_a_teacher_computed_otherwise_is_the_same_teacher(images: lb.Data) -> None:
    model = settle(Residual())
    before, module_ids = state(model), [id(part) for part in model.modules()]
    teacher, x, ids = ModuleTeacher(model, maps="stem.0"), torch.randn(6, 3, 8, 8), torch.arange(6)
    want = ("logits", "features", "maps")
    for how in ({"fold": True}, {"channels_last": True}, {"fold": True, "channels_last": True}):
        other = teacher.computed(how, x)
        assert other.fingerprint() == teacher.fingerprint()
        assert other.module is model
        assert isinstance(other, ModuleTeacher)
        assert norms(other._folded) == (0 if "fold" in how else 3)
        for asked in (("logits",), want):
            found, wanted = other.outputs(x, ids, asked), teacher.outputs(x, ids, asked)
            for name in wanted:
                torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=2e-5)
        assert all(torch.equal(a, b) for a, b in zip(other.head(), teacher.head(), strict=True))
    half = teacher.computed({"autocast": True}, x).outputs(x, ids, ("logits",))["logits"]
    off = float((half - teacher.outputs(x, ids, ("logits",))["logits"]).abs().max())
    assert 1e-5 < off < 0.2
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [id(part) for part in model.modules()] == module_ids
    assert all(parameter.is_contiguous() for parameter in model.parameters())


def test_teachers_made_of_teachers_pass_it_on() -> None:
    x, ids = torch.randn(5, 3, 8, 8), torch.arange(5)
    members = [ModuleTeacher(settle(Residual(), seed)) for seed in range(2)]
    mapped = map_classes(members[0], [1, 0, 3, 2])
    for whole, want in ((Ensemble(members), "logits"), (Several(members), "teachers_logits"), (mapped, "logits")):
        other = whole.computed({"fold": True}, x)
        assert other.fingerprint() == whole.fingerprint()
        inner = getattr(other, "teachers", None) or (other.teacher,)
        assert all(norms(member._folded) == 0 for member in inner)
        torch.testing.assert_close(
            other.outputs(x, ids, (want,))[want], whole.outputs(x, ids, (want,))[want], rtol=1e-4, atol=2e-5
        )
    assert all(norms(member._folded) == 3 for member in members)


# What is chosen -------------------------------------------------------------------------------------------------------


@pytest.fixture
def timings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """Times that trials find, in order; more trials than times are an error."""
    times: list[tuple[float, float]] = []

    def timed(run: Any) -> tuple[float, float]:
        run()
        return times.pop(0)

    monkeypatch.setattr("limbeck.tuning._timed", timed)
    return times


def chosen(found: dict[str, Any]) -> set[str]:
    return {name for name in TEACHER_WAYS if found[name]}


def ask(wanted: dict[str, bool | None], calls: int) -> dict[str, Any]:
    x = torch.randn(4, 3, 8, 8)
    return choose_teacher_ways(wanted, ModuleTeacher(settle(Residual())), ("logits",), x, torch.arange(4), calls)


def test_settings_say_what_is_tried() -> None:
    assert teacher_ways("float32", False) == NOTHING
    assert teacher_ways("bfloat16", False) == NOTHING
    assert teacher_ways("auto", False) == NOTHING | {"channels_last": None, "autocast": None}
    assert teacher_ways("float32", "auto") == NOTHING | {"fold": None, "compile": None}
    assert teacher_ways("float32", True) == NOTHING | {"fold": True, "compile": True}
    by_hand = {"autocast": True, "channels_last": False, "teacher": {"channels_last": True, "autocast": False}}
    assert teacher_ways(by_hand, {"fold": True}) == NOTHING | {"channels_last": True, "fold": True}


def test_without_auto_nothing_is_timed(timings: list[tuple[float, float]]) -> None:
    assert chosen(ask(dict(NOTHING), 10**9)) == set()
    assert chosen(ask({**NOTHING, "fold": True}, 10**9)) == {"fold"}


def test_each_way_is_kept_where_it_pays_on_top_of_the_others(
    timings: list[tuple[float, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.compile", lambda module, **_: module)
    undecided = dict.fromkeys(TEACHER_WAYS)
    # As it is, channels_last, autocast, fold, compile: seconds of the first call and of the others.
    timings[:] = [(0.0, 1.0), (0.0, 0.5), (0.0, 0.49), (0.0, 0.4), (30.0, 0.34)]
    found = ask(undecided, 1000)
    assert chosen(found) == {"channels_last", "fold", "compile"}
    assert [entry["milliseconds"] for entry in found["measured"]] == [1000.0, 500.0, 490.0, 400.0, 340.0]
    assert found["measured"][3]["ways"] == NOTHING | {"channels_last": True, "fold": True}
    # What compiling takes is a part of it: 100 calls do not earn 30 s.
    timings[:] = [(0.0, 1.0), (0.0, 0.5), (0.0, 0.49), (0.0, 0.4), (30.0, 0.35)]
    monkeypatch.setattr("limbeck.tuning.WORTH_COMPILING", 10.0)
    assert chosen(ask(undecided, 100)) == {"channels_last", "fold"}
    timings[:] = [(0.0, 1.0)]
    found = ask(undecided, 4)
    assert chosen(found) == set()
    assert found["note"] == "nothing tried: the teacher takes 4.0 s in all"


def test_a_way_that_fails_is_not_taken_and_said(
    timings: list[tuple[float, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        def call(*_: Any, **__: Any) -> Any:
            raise RuntimeError("no working C++ compiler\nmore lines")

        return call

    monkeypatch.setattr("torch.compile", broken)
    timings[:] = [(0.0, 1.0), (0.0, 0.5)]
    found = ask({**NOTHING, "fold": None, "compile": None}, 1000)
    assert chosen(found) == {"fold"}
    assert "no working C++ compiler" in found["measured"][-1]["note"]
    fixed = ask({**NOTHING, "compile": True}, 1000)
    assert chosen(fixed) == set()
    assert "it cannot be compiled" in fixed["note"]


def test_the_student_is_compiled_where_it_pays_within_the_run(
    timings: list[tuple[float, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.compile", lambda module, **_: module)
    model, x, plain = student(), torch.randn(8, 3, 8, 8), {"autocast": False, "channels_last": False}
    before = state(model)
    needs = frozenset({"student_logits", "student_features"})
    for steps, tried, expected in ((10, False, False), (1000, True, False), (100_000, True, True)):
        timings[:] = [(0.0, 0.1), (40.0, 0.06)][: 2 if tried else 1]
        found = choose_compile("auto", model, needs, x, steps, plain)
        assert found["student"] is expected, steps
        assert ("student_measured" in found) is tried
    assert choose_compile(True, model, needs, x, 1, plain) == {"student": True}
    assert choose_compile({"student": True, "fold": True}, model, needs, x, 1, plain)["student"] is True
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert choose_compile(True, model, needs, x, 1, plain)["student"] is False
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ConfigError, match="compile 'atuo': did you mean 'auto'"):
        lb.Training(compile="atuo")
    with pytest.raises(ConfigError, match="teacher_memory must not be below 0, found -1"):
        lb.Training(teacher_memory=-1)


@pytest.fixture
def trying(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is tried, and what is new always seems to pay."""
    monkeypatch.setattr("limbeck.tuning.WORTH_TRYING", 0.0)
    monkeypatch.setattr("limbeck.tuning.WORTH_COMPILING", 0.0)
    monkeypatch.setattr("torch.compile", lambda module, **_: module)
    falling = itertools.count(1)

    def timed(run: Any) -> tuple[float, float]:
        run()
        return 0.0, 0.5 ** next(falling)

    monkeypatch.setattr("limbeck.tuning._timed", timed)


def no_timing(*_: Any) -> Any:
    raise AssertionError("timed")


def test_a_choice_is_recorded_and_given_to_another_run_makes_the_same_bytes(
    images: lb.Data, trying: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = settle(Residual())
    before = state(teacher)
    settings: dict[str, Any] = {**BIG, "teacher": teacher, "recipe": "kd"}
    first = lb.fit(student(), images, precision="auto", compile="auto", **settings)
    precision, compiled = first.training.precision, first.training.compile
    assert isinstance(precision, dict)
    assert isinstance(compiled, dict)
    assert precision["teacher"]["channels_last"]
    assert compiled["student"]
    assert compiled["teacher"]
    assert compiled["fold"]
    monkeypatch.setattr("limbeck.tuning._timed", no_timing)
    monkeypatch.setattr("limbeck.engine._milliseconds", no_timing)
    again = lb.fit(student(), images, precision=precision, compile=compiled, **settings)
    assert weights(again) == weights(first)
    assert again.training.to_dict()["compile"]["fold"]
    # Folded by hand, nothing else: a teacher off by rounding, and no more.
    plain = lb.fit(student(), images, **settings)
    fold = lb.fit(student(), images, compile={"fold": True}, **settings)
    assert weights(fold) == weights(lb.fit(student(), images, compile={"fold": True}, **settings))
    for a, b in zip(plain.model.parameters(), fold.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert plain.training.compile is False
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


class Stop:
    """Breaks a run off after its first epoch."""

    def on_start(self, run: RunState) -> None: ...

    def on_epoch(self, run: RunState) -> None:
        raise KeyboardInterrupt

    def on_end(self, run: RunState) -> None: ...


class StopLater(Stop):
    """Breaks off in the second epoch, after the first was kept."""

    def on_epoch(self, run: RunState) -> None:
        if len(run.history) == 2:
            raise KeyboardInterrupt


def test_a_resumed_run_times_nothing_and_ends_in_the_same_bytes(
    images: lb.Data, trying: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {**BIG, "epochs": 3, "teacher": settle(Residual()), "recipe": "kd", "compile": "auto"}
    with pytest.raises(KeyboardInterrupt):
        lb.fit(student(), images, checkpoint=tmp_path / "run", callbacks=[StopLater()], **settings)
    shutil.copytree(tmp_path / "run", tmp_path / "kept")
    resumed = lb.fit(student(), images, checkpoint=tmp_path / "run", resume=True, **settings)
    monkeypatch.setattr("limbeck.tuning._timed", no_timing)
    again = lb.fit(student(), images, checkpoint=tmp_path / "kept", resume=True, **settings)
    assert weights(again) == weights(resumed)
    compiled = again.training.compile
    assert isinstance(compiled, dict)
    assert compiled["fold"]
    straight = lb.fit(student(), images, **{**settings, "compile": compiled})
    assert weights(straight) == weights(again)


def test_where_nothing_compiles_training_goes_on_as_it_is(images: lb.Data, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(module: nn.Module, **_: Any) -> Any:
        def call(inputs: Any) -> Any:
            raise RuntimeError("InvalidCxxCompiler")

        return call

    monkeypatch.setattr("torch.compile", broken)
    settings: dict[str, Any] = {**BIG, "recipe": "kd", "teacher": nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES))}
    found = lb.fit(student(), images, compile=True, **settings)
    assert isinstance(found.training.compile, dict)
    assert found.training.compile["student"] is False
    assert "InvalidCxxCompiler" in found.training.compile["student_note"]
    assert weights(found) == weights(lb.fit(student(), images, **settings))


def test_a_mistake_of_the_module_is_not_hidden_by_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.compile", lambda module, **_: module)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        Compiled(nn.Linear(3, 2))(torch.ones(1, 4))


@pytest.mark.slow
def test_compiled_for_real_gives_the_student_of_the_plain_run(images: lb.Data) -> None:
    settings: dict[str, Any] = {**BIG, "teacher": settle(Residual()), "recipe": "kd", "batch_size": 60}
    plain = lb.fit(student(), images, **settings)
    found = lb.fit(student(), images, compile=True, **settings)
    assert found.training.compile == {"student": True, "teacher": True, "fold": True}
    for a, b in zip(plain.model.parameters(), found.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


# Outputs that are not held --------------------------------------------------------------------------------------------


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each reading of a store takes."""
    found: list[int] = []
    gather = Store.gather

    def counted(self: Store, rows: Any = None, **more: Any) -> dict[str, Tensor]:
        found.append(len(rows if rows is not None else more["ids"]))
        return gather(self, rows, **more)

    monkeypatch.setattr(Store, "gather", counted)
    return found


@pytest.mark.parametrize("dtype", ["float32", "float16", "topk:2"])
@pytest.mark.parametrize("recipe", ["kd", "groupdistil", "simkd"])
def test_a_store_read_by_batches_gives_the_bytes_of_one_held_in_memory(
    recipe: str, dtype: str, images: lb.Data, tmp_path: Path, gathered: list[int]
) -> None:
    teacher = as_teacher(settle(Residual()))
    store = Store.write(tmp_path / "store", teacher, images.train, ("logits", "features", "head"), dtype=dtype)
    settings: dict[str, Any] = {**BIG, "teacher": store, "recipe": recipe}
    gathered.clear()
    held = lb.fit(student(), images, **settings)
    assert max(gathered) == len(images.train)
    gathered.clear()
    read = lb.fit(student(), images, teacher_memory=1e-6, **settings)
    assert weights(read) == weights(held)
    assert [record["loss"] for record in read.history] == [record["loss"] for record in held.history]
    # The check before training looks at 32 rows; nothing else is ever larger than a batch.
    assert max(gathered) <= 64
    assert sum(gathered) >= 2 * len(images.train)
    assert read.warnings == held.warnings


def test_views_of_a_store_are_read_by_batches_too(images: lb.Data, tmp_path: Path, gathered: list[int]) -> None:
    from limbeck.augment import bind

    views = {"views": 2, "augment": ["flip", "mixup"]}
    bound = bind(views, images.train, seed=3)
    teacher = as_teacher(settle(Residual()))
    store = Store.write(tmp_path / "store", teacher, images.train, views=2, augment=bound)
    settings: dict[str, Any] = {**BIG, "teacher": store, "recipe": "kd", "views": views, "seed": 3}
    held = lb.fit(student(), images, **settings)
    gathered.clear()
    read = lb.fit(student(), images, teacher_memory=0, **settings)
    assert weights(read) == weights(held)
    assert max(gathered) <= 64


@pytest.mark.parametrize("recipe", ["kd", "dett", "agre_kd"])
def test_a_teacher_without_a_store_is_asked_in_every_step_and_that_is_said(recipe: str, images: lb.Data) -> None:
    models: Sequence[nn.Module] = [settle(Residual(), seed) for seed in range(2)]
    teacher: Any = list(models) if recipe == "agre_kd" else models[0]
    settings: dict[str, Any] = {**BIG, "teacher": teacher, "recipe": recipe}
    held = lb.fit(student(), images, **settings)
    asked = lb.fit(student(), images, teacher_memory=0, **settings)
    for a, b in zip(held.model.parameters(), asked.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    note = next(text for text in asked.warnings if "asked again in every step" in text)
    assert "Store.write" in note
    assert not any("asked again" in text for text in held.warnings)
