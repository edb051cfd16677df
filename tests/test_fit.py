"""The loop: reproducible to the byte, resumable, and leaving everything it was given as it was."""

from __future__ import annotations

import copy
import math
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import limbeck as lb
from limbeck.callbacks import EarlyStopping, RunState
from limbeck.errors import CheckpointError, ConfigError, DataError, LimbeckError, RecipeError, TeacherError
from limbeck.training import batch_bounds, epoch_order

CLASSES = 4


def make_data(samples: int = 600, classes: int = CLASSES, seed: int = 0, groups: bool = True) -> lb.Data:
    generator = np.random.default_rng(seed)
    labels = np.arange(samples) % classes
    centres = generator.normal(size=(classes, 12)).astype(np.float32)
    inputs = centres[labels] + generator.normal(scale=1.2, size=(samples, 12)).astype(np.float32)
    site = (generator.random(samples) < 0.2).astype(int)
    return lb.Data(inputs, labels, attributes={"site": site}, groups=["site"] if groups else None)


def network(width: int = 8, classes: int = CLASSES, seed: int = 1) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(12, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, classes)
        )


def weights(model: nn.Module) -> bytes:
    return b"".join(value.detach().contiguous().numpy().tobytes() for value in model.state_dict().values())


@pytest.fixture(scope="module")
def data() -> lb.Data:
    return make_data()


@pytest.fixture(scope="module")
def teacher(data: lb.Data) -> lb.Fitted:
    return lb.fit(network(32), data, epochs=3)


def test_learns_what_scikit_learn_learns(data: lb.Data) -> None:
    from sklearn.linear_model import LogisticRegression

    reference = LogisticRegression(max_iter=1000).fit(data.train.x, data.train.y).score(data.test.x, data.test.y)
    fitted = lb.fit(nn.Linear(12, CLASSES), data, epochs=40, learning_rate=0.02, selection="last")
    assert lb.evaluate(fitted, data.test).to_dict()["average"] == pytest.approx(reference, abs=0.04)
    assert reference > 0.6


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(data: lb.Data, teacher: lb.Fitted) -> None:
    first, again, other = (
        lb.fit(network(), data, teacher=teacher, recipe="groupdistil", epochs=2, seed=seed) for seed in (3, 3, 4)
    )
    assert weights(first.model) == weights(again.model)
    assert first.history == again.history
    assert weights(first.model) != weights(other.model)


def test_the_callers_random_numbers_and_callbacks_change_nothing(data: lb.Data) -> None:
    class Noisy:
        def on_start(self, run: RunState) -> None:
            torch.rand(7)

        def on_epoch(self, run: RunState) -> None:
            torch.rand(11)

        def on_end(self, run: RunState) -> None: ...

    torch.manual_seed(5)
    plain = lb.fit(network(), data, epochs=2)
    expected = torch.rand(3)
    torch.manual_seed(5)
    noisy = lb.fit(network(), data, epochs=2, callbacks=[Noisy()])
    assert weights(plain.model) == weights(noisy.model)
    assert torch.equal(expected, torch.rand(3)), "fit must leave the caller's generator alone"


def test_equals_a_loop_written_by_hand(data: lb.Data, teacher: lb.Fitted) -> None:
    student = nn.Linear(12, CLASSES)
    fitted = lb.fit(
        student,
        data,
        teacher=teacher,
        recipe={"recipe": "kd", "alpha": 0.7, "temperature": 3.0},
        epochs=3,
        batch_size=64,
        optimiser="sgd",
        learning_rate=0.05,
        schedule="constant",
        selection="last",
        seed=9,
    )
    model = copy.deepcopy(student)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    x, y = torch.from_numpy(data.train.x), torch.from_numpy(data.train.y)
    with torch.no_grad():
        targets = teacher.model.eval()(x)
    for epoch in range(3):
        order = epoch_order(len(x), 9, epoch)
        for start, end in batch_bounds(len(x), 64):
            rows = order[start:end]
            out = model(x[rows])
            kl = F.kl_div(F.log_softmax(out / 3, 1), F.softmax(targets[rows] / 3, 1), reduction="batchmean") * 9
            loss = 0.7 * kl + 0.3 * F.cross_entropy(out, y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    for ours, theirs in zip(fitted.model.parameters(), model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_group_dro_in_the_loop_is_sagawas_algorithm(data: lb.Data) -> None:
    """q and the weights against algorithm 1 written out, shuffled and with uniform sampling."""
    student = nn.Linear(12, CLASSES)
    fitted = lb.fit(
        student,
        data,
        recipe={"recipe": "group_dro", "step": 0.1, "sampling": "shuffle"},
        epochs=2,
        batch_size=50,
        optimiser="sgd",
        learning_rate=0.1,
        schedule="constant",
        selection="last",
    )
    model, q = copy.deepcopy(student), torch.full((2,), 0.5)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    assert data.train.groups is not None
    x, y, g = torch.from_numpy(data.train.x), torch.from_numpy(data.train.y), torch.from_numpy(data.train.groups.index)
    for epoch in range(2):
        order = epoch_order(len(x), 0, epoch)
        for start, end in batch_bounds(len(x), 50):
            rows = order[start:end]
            losses = F.cross_entropy(model(x[rows]), y[rows], reduction="none")
            means = torch.stack(
                [losses[g[rows] == k].mean() if (g[rows] == k).any() else losses.new_zeros(()) for k in (0, 1)]
            )
            q = q * torch.exp(0.1 * means.detach())
            q = q / q.sum()
            optimiser.zero_grad()
            (q * means).sum().backward()
            optimiser.step()
    assert fitted.history[-1]["group_weights"] == pytest.approx(q.tolist(), abs=1e-5)
    for ours, theirs in zip(fitted.model.parameters(), model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_groupdistil_identities(data: lb.Data, teacher: lb.Fitted) -> None:
    """α=0 is group DRO; η=0 is group-balanced KD; one group is KD (methods, section 5)."""
    common: dict[str, Any] = {"epochs": 2, "selection": "last", "teacher": teacher}
    dro = {"recipe": "group_dro", "absent": "keep"}
    pairs: list[tuple[Any, Any, lb.Data]] = [
        ({"recipe": "groupdistil", "alpha": 0.0}, dro, data),
        (
            {"recipe": "groupdistil", "step": 0.0, "sampling": "shuffle"},
            {"recipe": "kd", "weighting": {"name": "group_balanced", "absent": "zero"}},
            data,
        ),
        (
            {"recipe": "groupdistil", "sampling": "shuffle"},
            "kd",
            data.replace(groups=np.zeros(len(data), np.int64), group_names=["all"]),
        ),
    ]
    for one, other, samples in pairs:
        a = lb.fit(network(), samples, recipe=one, **common)
        b = lb.fit(network(), samples, recipe=other, **common)
        for left, right in zip(a.model.parameters(), b.model.parameters(), strict=True):
            assert torch.allclose(left, right, atol=1e-5), (one, other)


def test_dett_without_upweighting_is_simkd(data: lb.Data, teacher: lb.Fitted) -> None:
    dett = lb.fit(network(), data, teacher=teacher, recipe={"recipe": "dett", "upweight": 1.0}, epochs=2)
    simkd = lb.fit(network(), data, teacher=teacher, recipe="simkd", epochs=2)
    assert weights(dett.model) == weights(simkd.model)


def test_dett_keeps_the_transplanted_head_and_trains_the_projector(data: lb.Data, teacher: lb.Fitted) -> None:
    """A public re-implementation forgot the projector in the optimiser."""
    fitted = lb.fit(network(), data, teacher=teacher, recipe="dett", epochs=2)
    head = teacher.model[-1]
    assert torch.equal(fitted.model.head.weight, head.weight)
    assert torch.equal(fitted.model.head.bias, head.bias)
    start = lb.heads.transplant(network(), teacher.model)
    assert fitted.model.projector.weight.shape == start.projector.weight.shape == (32, 8)
    longer = lb.fit(network(), data, teacher=teacher, recipe="dett", epochs=4, selection="last")
    assert not torch.equal(fitted.model.projector.weight, longer.model.projector.weight)
    assert set(fitted.details["error_set"]) >= {"size", "share", "by_group"}


# What is left as it was ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["kd", "rld", "btkd", "pll", "dett", "groupdistil", "crd"])
def test_teacher_and_student_are_left_as_they_were(data: lb.Data, recipe: str) -> None:
    """Teacher in train mode, its batch norm moving, its parameters collecting gradients: all seen elsewhere."""
    big, small = network(32).train(), network().train()
    before = weights(big), weights(small)
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for m in (big, small) for part in m.modules()]
    fitted = lb.fit(small, data, teacher=big, recipe=recipe, epochs=1)
    assert (weights(big), weights(small)) == before
    assert all(part.training for part in big.modules())
    assert all(parameter.grad is None for model in (big, small) for parameter in model.parameters())
    assert hooks == [len(p._forward_hooks) + len(p._forward_pre_hooks) for m in (big, small) for p in m.modules()]
    assert not any(part.training for part in fitted.model.modules())
    if recipe != "dett":
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in fitted.model.modules())


def test_validation_puts_the_student_back_into_training_mode(data: lb.Data) -> None:
    """Elsewhere validation left the student in evaluation mode: from epoch 2 batch norm was frozen."""
    fitted = lb.fit(network(), data, epochs=3, selection="last")
    steps = 3 * len(batch_bounds(len(data.train), 128))
    assert int(fitted.model[1].num_batches_tracked) == steps


def test_a_second_run_does_not_change_the_first_ones_behaviour(data: lb.Data, teacher: lb.Fitted) -> None:
    first = lb.fit(network(), data, teacher=teacher, recipe="dett", epochs=1)
    x = torch.from_numpy(data.test.x)
    before = first(x)
    lb.fit(network(6), data, teacher=teacher, recipe="dett", epochs=1)
    assert torch.equal(before, first(x))


def test_the_callers_optimiser_settings_are_not_touched(data: lb.Data) -> None:
    made: list[torch.optim.Optimizer] = []

    def own(parameters: Any) -> torch.optim.Optimizer:
        made.append(torch.optim.Adagrad(parameters, lr=0.3))
        return made[-1]

    training = lb.Training(epochs=2, optimiser=own)
    lb.fit(network(), data, training=training)
    second = lb.fit(network(), data, training=training)
    assert [round(record["learning_rate"], 6) for record in second.history] == [0.3, 0.15]


# Any module, any data -------------------------------------------------------------------------------------------------


class Returns(nn.Module):
    """A module that returns its logits in a given way."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.wrap = nn.Linear(12, CLASSES), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.layer(x))


class Output:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


@pytest.mark.parametrize("wrap", [lambda z: z, lambda z: (z, None), lambda z: {"logits": z}, Output])
def test_any_way_of_returning_logits(data: lb.Data, teacher: lb.Fitted, wrap: Callable[[Tensor], Any]) -> None:
    fitted = lb.fit(Returns(wrap), data, teacher=teacher, recipe="rld", epochs=1)
    assert lb.evaluate(fitted, data.test).to_dict()["average"] > 0


def test_inputs_as_a_mapping() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.layer = nn.Embedding(10, 4), nn.Linear(7, 3)

        def forward(self, tokens: Tensor, numbers: Tensor) -> Tensor:
            return self.layer(torch.cat([self.embedding(tokens).mean(1), numbers], 1))

    generator = np.random.default_rng(0)
    x = {"tokens": generator.integers(0, 10, (200, 5)), "numbers": generator.normal(size=(200, 3)).astype(np.float32)}
    data = lb.Data(x, np.arange(200) % 3)
    assert len(lb.fit(Two(), data, epochs=2).history) == 2


def test_images_as_bytes_are_normalised_batch_by_batch() -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (120, 3, 8, 8), dtype=np.uint8)
    labels = np.arange(120) % 2
    data = lb.Data(
        images, labels, normalise=([0.5, 0.4, 0.3], [0.2, 0.2, 0.2]), split=["train"] * 80 + ["validation"] * 40
    )
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    mean = np.array([0.5, 0.4, 0.3], np.float32).reshape(3, 1, 1)
    floats = lb.Data(
        ((images / 255 - mean) / 0.2).astype(np.float32), labels, split=["train"] * 80 + ["validation"] * 40
    )
    as_bytes, as_floats = (lb.fit(net, part, epochs=2).model[1].weight for part in (data, floats))
    assert torch.allclose(as_bytes, as_floats, atol=1e-5)


def test_a_last_batch_of_one_does_not_break_batch_norm() -> None:
    data = make_data(samples=645)
    assert len(data.train) % 128 == 1 or len(data.train) > 0
    assert batch_bounds(257, 128) == [(0, 128), (128, 257)]
    assert batch_bounds(1, 128) == [(0, 1)]
    covered = [row for start, end in batch_bounds(1000, 37) for row in range(start, end)]
    assert covered == list(range(1000))


def test_balanced_sampling_draws_groups_equally(data: lb.Data) -> None:
    assert data.train.groups is not None
    groups = torch.from_numpy(data.train.groups.index)
    weights = lb.weighting.sampling_weights("group_balanced", groups)
    rows = torch.cat([epoch_order(len(groups), 0, epoch, weights) for epoch in range(60)])
    share = (groups[rows] == 1).double().mean().item()
    assert share == pytest.approx(0.5, abs=4 * math.sqrt(0.25 / len(rows)))


def test_order_is_a_permutation_that_changes_with_epoch_and_seed() -> None:
    orders = [tuple(epoch_order(50, seed, epoch).tolist()) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len(set(orders)) == 4


# Resuming -------------------------------------------------------------------------------------------------------------

STAGES = ["erm", "groupdistil", "dett", "pll", "multi_round", "lff", "elr", "ctkd", "dedier", "crd", "jtt"]


class CrashError(Exception):
    pass


class CrashAfter:
    """Stops the run as a power cut would, after a number of epochs over all stages."""

    def __init__(self, epochs: int) -> None:
        self.left = epochs

    def on_start(self, run: RunState) -> None:
        if self.left == 0:
            raise CrashError

    def on_epoch(self, run: RunState) -> None:
        self.left -= 1

    def on_end(self, run: RunState) -> None: ...


class CrashAtStartOf(CrashAfter):
    def on_epoch(self, run: RunState) -> None:
        super().on_epoch(run)
        if self.left < 0:
            raise CrashError


@pytest.mark.parametrize("recipe", STAGES)
def test_resume_equals_the_straight_run_byte_for_byte(
    tmp_path: Path, data: lb.Data, teacher: lb.Fitted, recipe: str
) -> None:
    settings: dict[str, Any] = {"recipe": recipe, "epochs": 3, "seed": 2}
    if lb.PRESETS[recipe].build().needs_teacher:
        settings["teacher"] = teacher
    straight = lb.fit(network(), data, **settings)
    crashes = 0
    for epochs in (1, 2):
        try:
            lb.fit(network(), data, checkpoint=tmp_path, resume=True, callbacks=[CrashAtStartOf(epochs)], **settings)
        except CrashError:
            crashes += 1
    resumed = lb.fit(network(), data, checkpoint=tmp_path, resume=True, **settings)
    assert crashes, "the run must have been interrupted"
    assert weights(resumed.model) == weights(straight.model)
    assert resumed.history == straight.history
    assert resumed.selected_epoch == straight.selected_epoch


SCRIPT = """
import sys, torch
sys.path.insert(0, {tests!r})
from test_fit import make_data, network
import limbeck as lb
data = make_data(samples=3000)
fitted = lb.fit(network(), data, recipe="group_dro", epochs=16, batch_size=32, checkpoint=sys.argv[1], resume=True)
fitted.save(sys.argv[2])
"""


def test_kill_9_in_the_middle_and_resume_gives_the_same_student(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(SCRIPT.format(tests=str(Path(__file__).parent))))
    arguments = [sys.executable, str(script), str(tmp_path / "checkpoint"), str(tmp_path / "resumed.safetensors")]
    killed = subprocess.Popen(arguments)
    state = tmp_path / "checkpoint" / "student.safetensors"
    while killed.poll() is None and not state.exists():
        pass
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "resumed.safetensors").exists(), "it ended before it was killed"
    assert state.exists()
    subprocess.run(arguments, check=True)
    straight = [sys.executable, str(script), str(tmp_path / "other"), str(tmp_path / "straight.safetensors")]
    subprocess.run(straight, check=True)
    assert (tmp_path / "resumed.safetensors").read_bytes() == (tmp_path / "straight.safetensors").read_bytes()


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, data: lb.Data) -> None:
    lb.fit(network(), data, epochs=1, checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match=r"another run \(different: .*seed.*\)"):
        lb.fit(network(), data, epochs=1, seed=1, checkpoint=tmp_path, resume=True)


def test_a_truncated_checkpoint_is_refused(tmp_path: Path, data: lb.Data) -> None:
    lb.fit(network(), data, epochs=1, checkpoint=tmp_path)
    path = tmp_path / "student.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        lb.fit(network(), data, epochs=1, checkpoint=tmp_path, resume=True)


def test_the_checkpoint_holds_the_student_and_not_the_teacher(
    tmp_path: Path, data: lb.Data, teacher: lb.Fitted
) -> None:
    """Elsewhere the teacher was saved inside, and resuming failed where it was missing."""
    lb.fit(network(), data, teacher=teacher, recipe="kd", epochs=1, checkpoint=tmp_path)
    from limbeck.checkpoint import load_tensors

    tensors, _ = load_tensors(tmp_path / "student.safetensors")
    names = {name.removeprefix("model.") for name in tensors if name.startswith("model.")}
    assert names == set(network().state_dict())
    assert not [name for name, value in tensors.items() if value.shape == teacher.model[0].weight.shape]


def test_early_stopping_stops_at_the_same_epoch_after_a_resume(tmp_path: Path, data: lb.Data) -> None:
    straight = lb.fit(network(), data, epochs=30, callbacks=[EarlyStopping(patience=2)])
    assert len(straight.history) < 30
    settings: dict[str, Any] = {"epochs": 30, "checkpoint": tmp_path, "resume": True}
    with pytest.raises(CrashError):
        lb.fit(network(), data, callbacks=[EarlyStopping(patience=2), CrashAtStartOf(2)], **settings)
    resumed = lb.fit(network(), data, callbacks=[EarlyStopping(patience=2)], **settings)
    again = lb.fit(network(), data, callbacks=[EarlyStopping(patience=2)], **settings)
    assert resumed.history == straight.history == again.history


# Selection ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "key"), [("average", "validation_average"), ("worst_group", "validation_worst_group")]
)
def test_the_selected_epoch_is_the_best_on_validation(data: lb.Data, rule: str, key: str) -> None:
    fitted = lb.fit(network(), data, epochs=6, selection=rule, learning_rate=0.05)
    values = [record[key] for record in fitted.history]
    assert fitted.selected_epoch == values.index(max(values)) + 1
    found = lb.evaluate(fitted, data.validation).to_dict()
    assert found[key.removeprefix("validation_")] == pytest.approx(max(values))


def test_the_default_rule_follows_the_groups(data: lb.Data) -> None:
    assert lb.fit(network(), data, epochs=1).selection == "worst_group"
    assert lb.fit(network(), make_data(groups=False), epochs=1).selection == "average"


# Precision ------------------------------------------------------------------------------------------------------------


def test_automatic_precision_is_recorded_and_reused(tmp_path: Path, data: lb.Data) -> None:
    fitted = lb.fit(network(), data, epochs=1, precision="auto", checkpoint=tmp_path)
    choice = fitted.training.precision
    assert isinstance(choice, dict)
    assert {"autocast", "channels_last", "measured"} <= set(choice)
    resumed = lb.fit(network(), data, epochs=1, precision="auto", checkpoint=tmp_path, resume=True)
    assert resumed.training.precision == choice
    assert weights(resumed.model) == weights(fitted.model)
    again = lb.fit(network(), data, epochs=1, precision=choice)
    assert weights(again.model) == weights(fitted.model)


def test_bfloat16_trains_and_differs(data: lb.Data) -> None:
    half, full = (lb.fit(network(), data, epochs=2, precision=p) for p in ("bfloat16", "float32"))
    assert all(value.dtype != torch.bfloat16 for value in half.model.state_dict().values())
    assert weights(half.model) != weights(full.model)
    assert abs(half.history[-1]["loss"] - full.history[-1]["loss"]) < 0.1


# Refused before training ----------------------------------------------------------------------------------------------


def bad(data: lb.Data, teacher: lb.Fitted) -> dict[str, tuple[Callable[[], Any], type[Exception], str]]:
    plain = make_data(groups=False)
    two = lb.Data(data.x, data.y % 2, groups=["label"])
    table = {"id": data.ids, "p0": np.full(len(data), 0.25), "p1": np.full(len(data), 0.25)}
    absent = lb.Data(
        data.x[:40],
        np.arange(40) % 2,
        attributes={"a": [0] * 20 + [1] * 20},
        groups="a",
        split=[0] * 20 + [1] * 10 + [2] * 10,
    )
    return {
        "no teacher": (lambda: lb.fit(network(), data, recipe="kd"), RecipeError, "teacher=.*'erm'"),
        "no groups": (lambda: lb.fit(network(), plain, recipe="group_dro"), RecipeError, "needs the group of every"),
        "rule without groups": (lambda: lb.fit(network(), plain, selection="worst_group"), ConfigError, "'average'"),
        "unknown recipe": (lambda: lb.fit(network(), data, recipe="grup_dro"), RecipeError, "'group_dro'"),
        "unknown option": (
            lambda: lb.fit(network(), data, recipe={"recipe": "kd", "temprature": 1}),
            RecipeError,
            "'temperature'",
        ),
        "unknown setting": (lambda: lb.fit(network(), data, epoch=3), ConfigError, "'epochs'"),
        "unknown optimiser": (lambda: lb.fit(network(), data, optimiser="adamx"), ConfigError, "'adam"),
        "unknown schedule": (lambda: lb.fit(network(), data, schedule="cosin"), ConfigError, "'cosine'"),
        "no epochs": (lambda: lb.fit(network(), data, epochs=0), ConfigError, "at least 1"),
        "student's classes": (lambda: lb.fit(nn.Linear(12, 3), data), LimbeckError, "3 classes.* 4"),
        "student's inputs": (lambda: lb.fit(nn.Linear(11, 4), data), LimbeckError, r"cannot take.*\(2, 12\)"),
        "teacher's classes": (
            lambda: lb.fit(network(), data, teacher=nn.Linear(12, 3), recipe="kd"),
            TeacherError,
            "3",
        ),
        "two classes, masked term": (
            lambda: lb.fit(
                nn.Linear(12, 2), two, teacher=nn.Linear(12, 2), recipe={"name": "m", "terms": ["masked_correlation"]}
            ),
            RecipeError,
            "no gradient at 2 classes.*sample_confidence",
        ),
        "two classes, two candidates": (
            lambda: lb.fit(nn.Linear(12, 2), two, teacher=nn.Linear(12, 2), recipe="pll"),
            RecipeError,
            "2 of 2 classes",
        ),
        "two classes, standardised": (
            lambda: lb.fit(nn.Linear(12, 2), two, teacher=nn.Linear(12, 2), recipe="lskd"),
            RecipeError,
            "no gradient; leave standardise out",
        ),
        "a batch statistic, weighted": (
            lambda: lb.Recipe(["dist"], "group_dro"),
            RecipeError,
            "statistic of the whole batch.*weighted: false",
        ),
        "nothing to weigh": (
            lambda: lb.Recipe([{"term": "cross_entropy", "weighted": False}], "group_dro"),
            RecipeError,
            "no term is left",
        ),
        "upweighting without an error set": (lambda: lb.Recipe(["cross_entropy"], "upweight"), RecipeError, "identify"),
        "an error set for nothing": (
            lambda: lb.Recipe(["cross_entropy"], identify={"epochs": 1}),
            RecipeError,
            "'upweight'",
        ),
        "a refitted transplant": (
            lambda: lb.Recipe(["feature_mse"], head="transplant", refit={}),
            RecipeError,
            "frozen",
        ),
        "a table cannot be transplanted": (
            lambda: lb.fit(network(), data, teacher=table | {"p2": table["p0"], "p3": table["p0"]}, recipe="dett"),
            TeacherError,
            "table",
        ),
        "a group without training samples": (
            lambda: lb.fit(nn.Linear(12, 2), absent, recipe="group_dro"),
            DataError,
            "a=1",
        ),
        "a weighting's instance": (
            lambda: lb.Recipe(["cross_entropy"], lb.weighting.GroupDRO(2)),
            RecipeError,
            "class",
        ),
        "resume without a folder": (lambda: lb.fit(network(), data, resume=True), CheckpointError, "checkpoint="),
        "no student": (lambda: lb.fit("small", data), LimbeckError, "torch module"),
        "unknown projector": (lambda: lb.Head("lineer"), RecipeError, "'linear'"),
    }


CASES = [
    "no teacher",
    "no groups",
    "rule without groups",
    "unknown recipe",
    "unknown option",
    "unknown setting",
    "unknown optimiser",
    "unknown schedule",
    "no epochs",
    "student's classes",
    "student's inputs",
    "teacher's classes",
    "two classes, masked term",
    "two classes, two candidates",
    "two classes, standardised",
    "a batch statistic, weighted",
    "nothing to weigh",
    "upweighting without an error set",
    "an error set for nothing",
    "a refitted transplant",
    "a table cannot be transplanted",
    "a group without training samples",
    "a weighting's instance",
    "resume without a folder",
    "no student",
    "unknown projector",
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_clear_error_before_training(
    case: str, data: lb.Data, teacher: lb.Fitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, kind, message = bad(data, teacher)[case]

    def step(*_: Any, **__: Any) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr("limbeck.fitting.train_stage", step)
    with pytest.raises(kind, match=message):
        call()


def test_a_loss_that_is_no_number_stops_the_run(data: lb.Data) -> None:
    with pytest.raises(LimbeckError, match=r"training loss is .* in epoch 1.*learning rate"):
        lb.fit(network(), data, epochs=2, learning_rate=1e30, optimiser="sgd")


def test_a_student_that_is_all_last_layer_has_nothing_to_train_under_a_transplanted_one() -> None:
    data = lb.load("digits")
    teacher = lb.fit(nn.Linear(64, 10), data, epochs=1)
    with pytest.raises(lb.LimbeckError, match=r"simkd, student: nothing is left to train.*projector"):
        lb.fit(nn.Linear(64, 10), data, teacher=teacher, recipe="simkd", epochs=1)
