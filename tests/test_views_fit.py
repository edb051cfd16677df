"""Training on views: the student's pixels are the teacher's, wherever its outputs come from, and after a resume too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import limbeck as lb
import limbeck.loop
from limbeck.augment import Augmented, MixedObjective, bind
from limbeck.config import config_from_dict
from limbeck.errors import CheckpointError, ConfigError, RecipeError, StoreError, TeacherError
from limbeck.pilots import run_pilot
from limbeck.predict import InputReader
from limbeck.teachers import Store
from limbeck.views import Crop, Views

STEPS: list[Any] = [{"name": "crop", "padding": 2}, "flip", {"name": "cutout", "size": 2, "probability": 0.5}]
SETTINGS: dict[str, Any] = {"epochs": 3, "batch_size": 32, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def data() -> lb.Data:
    generator = np.random.default_rng(0)
    labels = np.arange(240) % 3
    x = generator.integers(0, 120, (240, 3, 8, 8), dtype=np.uint8)
    x[np.arange(240), labels] += 80
    site = generator.integers(0, 2, 240)
    ids = generator.permutation(1000)[:240]
    normalise = ((0.3, 0.3, 0.3), (0.2, 0.2, 0.2))
    return lb.Data(x, labels, ids=ids, attributes={"site": site}, groups=["site"], normalise=normalise)


def network(width: int = 4, seed: int = 1) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 3)
        )


@pytest.fixture(scope="module")
def teacher(data: lb.Data) -> nn.Module:
    return lb.fit(network(8, 2), data, epochs=2, learning_rate=0.01).model


def weights(fitted: lb.Fitted) -> bytes:
    return b"".join(value.contiguous().numpy().tobytes() for value in fitted.model.state_dict().values())


class Watched(nn.Module):
    """A student that remembers what it was shown in training."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.append(x.detach().clone())
        return self.body(x)


def watch(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The batches that the objective is given."""
    batches: list[dict[str, Any]] = []

    def watched(original: Any) -> Any:
        def call(self: Any, batch: dict[str, Any], *ahead: Any) -> Any:
            batches.append(dict(batch))
            return original(self, batch, *ahead)

        return call

    for name in ("forward", "gradient"):
        monkeypatch.setattr(limbeck.loop.Objective, name, watched(getattr(limbeck.loop.Objective, name)))
    return batches


# The teacher's pixels are the student's -------------------------------------------------------------------------------


@pytest.mark.parametrize("views", [1, 2, "online"])
@pytest.mark.parametrize("mixing", [[], ["mixup"], ["mixup", "cutmix"]])
def test_the_teacher_speaks_of_the_very_pixels_the_student_sees(
    data: lb.Data, teacher: nn.Module, views: Any, mixing: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = watch(monkeypatch)
    student = lb.fit(
        Watched, data, teacher=teacher, recipe="kd", views={"views": views, "augment": STEPS + mixing}, **SETTINGS
    )
    shown = student.model.seen
    assert len(shown) == len(batches) == 3 * 5
    clean = InputReader(data.train)
    for pixels, batch in zip(shown, batches, strict=True):
        with torch.no_grad():
            assert torch.allclose(batch["teacher_logits"], teacher(pixels), atol=1e-5)
        assert not torch.equal(pixels, clean(batch["rows"]))
    by_view = [torch.zeros(len(data.train), 3, 8, 8) for _ in range(3)]
    for number, (pixels, batch) in enumerate(zip(shown, batches, strict=True)):
        by_view[number // 5][batch["rows"]] = pixels
    assert torch.equal(by_view[0], by_view[1]) is (views == 1)
    assert torch.equal(by_view[0], by_view[2]) is (views in (1, 2))


@pytest.mark.parametrize("views", [2, "online"])
def test_a_mixed_target_is_that_of_the_sample_and_of_its_partner(
    data: lb.Data, teacher: nn.Module, views: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = watch(monkeypatch)
    plain = {"views": views, "augment": [*STEPS, {"name": "cutmix", "teacher": "mixed"}]}
    lb.fit(Watched, data, teacher=teacher, recipe="kd", views=plain, **SETTINGS)
    bound = bind(plain, data.train)
    for number, batch in enumerate(batches):
        view = bound.views.of_epoch(number // 5)
        seen = bound.batch(batch["rows"], view)
        partner, share = batch["mixed"]
        assert seen.mix is not None
        assert torch.equal(share, seen.mix.share)
        labels = torch.from_numpy(data.train.y)
        assert torch.equal(partner["labels"], labels[seen.mix.partners])
        with torch.no_grad():
            assert torch.allclose(batch["teacher_logits"], teacher(bound.before_mixing(batch["rows"], view)), atol=1e-5)
            assert torch.allclose(
                partner["teacher_logits"], teacher(bound.before_mixing(seen.mix.partners, view)), atol=1e-5
            )


def test_equals_a_loop_written_by_hand(data: lb.Data, teacher: nn.Module) -> None:
    plain = {"views": 2, "augment": [*STEPS, "mixup"]}
    fitted = lb.fit(network(), data, teacher=teacher, recipe="kd", views=plain, selection="last", optimiser="sgd",
                    schedule="constant", **SETTINGS)  # fmt: skip
    bound, labels = bind(plain, data.train), torch.from_numpy(data.train.y)
    options = {term.name: (term.weight, term.options) for term in fitted.recipe.terms}
    temperature = options["kl_divergence"][1].get("temperature", 4.0)
    model = network().train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for epoch in range(3):
        order = limbeck.loop.epoch_order(len(labels), 0, epoch)
        for start in range(0, len(labels), 32):
            rows = order[start : start + 32]
            seen = bound.batch(rows, epoch % 2)
            assert seen.mix is not None
            logits, share = model(seen.inputs), seen.mix.share
            with torch.no_grad():
                target = teacher(seen.inputs)
            one_hot = F.one_hot(labels, 3).float()
            soft = share[:, None] * one_hot[rows] + (1 - share[:, None]) * one_hot[seen.mix.partners]
            hard = -(soft * logits.log_softmax(1)).sum(1)
            kd = F.kl_div(
                (logits / temperature).log_softmax(1), (target / temperature).softmax(1), reduction="none"
            ).sum(1)
            loss = options["cross_entropy"][0] * hard + options["kl_divergence"][0] * temperature**2 * kd
            optimiser.zero_grad()
            loss.mean().backward()
            optimiser.step()
    for found, wanted in zip(fitted.model.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.allclose(found, wanted, atol=2e-5)


def test_mixed_teacher_losses_have_the_gradient_of_the_mixed_probabilities(data: lb.Data) -> None:
    recipe = lb.Recipe(terms=["kl_divergence"])
    objective = MixedObjective(recipe, {"epochs": 1})
    own, other, share = torch.randn(5, 3), torch.randn(5, 3), torch.rand(5)
    student = torch.randn(5, 3, requires_grad=True)
    fields = {"student_logits": student, "teacher_logits": own, "labels": torch.zeros(5, dtype=torch.int64)}
    loss, _ = objective(fields | {"mixed": ({"teacher_logits": other, "labels": fields["labels"]}, share)})
    loss.backward()
    found = student.grad.clone()
    student.grad = None
    temperature = 4.0
    target = share[:, None] * (own / temperature).softmax(1) + (1 - share[:, None]) * (other / temperature).softmax(1)
    (-(temperature**2) * (target * (student / temperature).log_softmax(1)).sum(1).mean()).backward()
    assert torch.allclose(found, student.grad, atol=1e-6)


# Whatever the outputs are stored in -----------------------------------------------------------------------------------


def test_a_store_of_the_views_gives_the_student_of_the_live_teacher(
    tmp_path: Path, data: lb.Data, teacher: nn.Module
) -> None:
    views = Views([*STEPS, "mixup"], views=2)
    bound = bind(views, data.train, seed=5)
    store = Store.write(tmp_path / "store", limbeck.teachers.as_teacher(teacher), data.train, views=2, augment=bound)
    settings = {"recipe": "kd", "seed": 5, **SETTINGS}
    stored = lb.fit(network(), data, teacher=store, views=views, **settings)
    asked = lb.fit(network(), data, teacher=teacher, views=views, **settings)
    assert weights(stored) == weights(asked)
    with pytest.raises(StoreError, match=r"view 2 was asked .*holds views 0\.\.1"):
        lb.fit(network(), data, teacher=store, views=Views([*STEPS, "mixup"], views=3), **settings)
    with pytest.raises(StoreError, match="online"):
        lb.fit(network(), data, teacher=store, views=Views([*STEPS, "mixup"]), **settings)
    with pytest.raises(StoreError, match="of another augmentation"):
        lb.fit(network(), data, teacher=store, views=views, **{**settings, "seed": 6})
    with pytest.raises(StoreError, match="the student sees images as the data have them"):
        lb.fit(network(), data, teacher=store, **settings)
    clean = Store.write(tmp_path / "clean", limbeck.teachers.as_teacher(teacher), data.train)
    with pytest.raises(StoreError, match="without augmentation"):
        lb.fit(network(), data, teacher=clean, views=views, **settings)


def test_a_table_teaches_mixed_images_and_no_others(data: lb.Data, teacher: nn.Module) -> None:
    with torch.no_grad():
        probabilities = teacher(InputReader(data)(torch.arange(len(data)))).softmax(1).numpy()
    table = {"id": data.ids} | {name: probabilities[:, c] for c, name in enumerate(data.classes)}
    settings = {"recipe": "kd", **SETTINGS}
    mixed = {"augment": [{"name": "mixup", "teacher": "mixed"}]}
    from_table = lb.fit(network(), data, teacher=table, views=mixed, **settings)
    from_model = lb.fit(network(), data, teacher=teacher, views=mixed, **settings)
    for found, wanted in zip(from_table.model.parameters(), from_model.model.parameters(), strict=True):
        assert torch.allclose(found, wanted, atol=1e-4)
    for augment in (["flip"], ["mixup"], ["flip", {"name": "mixup", "teacher": "mixed"}]):
        with pytest.raises(TeacherError, match="goes by id"):
            lb.fit(network(), data, teacher=table, views={"augment": augment}, **settings)


@pytest.mark.parametrize("recipe", ["dett", "simkd", "crd", "multi_round", "groupdistil"])
@pytest.mark.parametrize("views", [2, "online"])
def test_other_recipes_train_on_views(data: lb.Data, teacher: nn.Module, recipe: str, views: Any) -> None:
    fitted = lb.fit(network(), data, teacher=teacher, recipe=recipe, views={"views": views, "augment": STEPS}, epochs=1)
    assert np.isfinite(fitted.history[-1]["loss"])


def test_several_teachers_are_asked_live(data: lb.Data, teacher: nn.Module) -> None:
    both = [teacher, network(8, 3)]
    one = lb.fit(network(), data, teacher=both, recipe="agre_kd", views={"augment": STEPS}, epochs=1)
    two = lb.fit(network(), data, teacher=both, recipe="agre_kd", views={"augment": STEPS, "views": 1}, epochs=1)
    for found, wanted in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert torch.allclose(found, wanted, atol=1e-5)


# The same again -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("views", [2, "online"])
def test_resume_equals_the_straight_run_byte_for_byte(
    tmp_path: Path, data: lb.Data, teacher: nn.Module, views: Any
) -> None:
    plain = {"views": views, "augment": [*STEPS, {"name": "colour_jitter"}, "mixup", "cutmix"]}
    settings = {"teacher": teacher, "recipe": "kd", "views": plain, **SETTINGS}
    straight = lb.fit(network(), data, **settings)

    class CrashError(Exception):
        pass

    class CrashAfter:
        def on_start(self, run: Any) -> None: ...

        def on_epoch(self, run: Any) -> None:
            self.seen = getattr(self, "seen", 0) + 1
            if self.seen == 3:
                raise CrashError

        def on_end(self, run: Any) -> None: ...

    with pytest.raises(CrashError):
        lb.fit(network(), data, callbacks=[CrashAfter()], checkpoint=tmp_path, **settings)
    resumed = lb.fit(network(), data, checkpoint=tmp_path, resume=True, **settings)
    assert weights(resumed) == weights(straight)
    other = {**settings, "views": {**plain, "augment": ["flip"]}}
    with pytest.raises(CheckpointError, match="training"):
        lb.fit(network(), data, checkpoint=tmp_path, resume=True, **other)


def test_without_augmentation_nothing_is_said_of_views(data: lb.Data) -> None:
    assert "views" not in lb.Training().to_dict()
    assert lb.Training(views={"augment": ["flip"], "views": 2}).to_dict()["views"]["views"] == 2


def test_validation_is_never_augmented(data: lb.Data) -> None:
    fitted = lb.fit(network(), data, views={"augment": [{"name": "cutout", "size": 99, "fill": 0.0}]}, **SETTINGS)
    right = lb.predict_logits(fitted, data.validation).argmax(1) == data.validation.y
    chosen = fitted.history[fitted.selected_epoch - 1]
    assert chosen["validation_average"] == pytest.approx(right.mean())


@pytest.mark.slow
def test_two_processes_see_what_one_sees(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, sys, numpy as np, torch
            from torch import nn
            import limbeck as lb
            generator = np.random.default_rng(0)
            labels = np.arange(160) % 2
            x = generator.normal(size=(160, 1, 6, 6)).astype(np.float32) + labels[:, None, None, None]
            data = lb.Data(x, labels)
            torch.manual_seed(0)
            teacher, student = (nn.Sequential(nn.Flatten(), nn.Linear(36, 2)) for _ in range(2))
            views = {"views": sys.argv[2] if sys.argv[2] == "online" else 2, "augment": ["crop", "flip", "mixup"]}
            found = lb.fit(student, data, teacher=teacher, recipe="kd", epochs=2, batch_size=32, views=views)
            if os.environ.get("RANK", "0") == "0":
                np.save(sys.argv[1], found.model[1].weight.detach().numpy())
            """
        )
    )
    for views in ("2", "online"):
        found = []
        for count in (1, 2):
            target = tmp_path / f"{count}-{views}.npy"
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            command = [sys.executable, str(script), str(target), views]
            if count == 2:
                command[1:1] = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            found.append(np.load(target))
        assert np.allclose(found[0], found[1], atol=1e-5)


# Refusals, before training --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "augment", "message"),
    [
        ("group_dro", ["mixup"], "weighting 'group_dro' reads groups"),
        ("groupdistil", ["cutmix"], "reads groups"),
        ("jtt", ["mixup"], "reads rows"),
        ({"terms": ["cross_entropy", "elr"]}, ["mixup"], "the term 'elr' reads rows"),
        ({"terms": ["cross_entropy"], "sampling": "group_balanced"}, ["mixup"], "partners come from all"),
        ({"terms": ["cross_entropy", "dist"]}, [{"name": "mixup", "teacher": "mixed"}], "one number a batch"),
    ],
)
def test_a_recipe_that_needs_one_sample_a_row_refuses_mixing(
    data: lb.Data, teacher: nn.Module, recipe: Any, augment: list[Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        lb.fit(network(), data, teacher=teacher, recipe=recipe, views={"augment": augment}, epochs=1)


def test_a_batch_statistic_of_the_recomputed_teacher_goes_with_mixing(data: lb.Data, teacher: nn.Module) -> None:
    recipe = {"terms": ["cross_entropy", "dist"]}
    lb.fit(network(), data, teacher=teacher, recipe=recipe, views={"augment": ["mixup"]}, epochs=1)


def test_tables_have_no_augmentation() -> None:
    data = lb.Data(np.random.default_rng(0).normal(size=(60, 5)), np.arange(60) % 2)
    with pytest.raises(ConfigError, match="is for images"):
        lb.fit(nn.Linear(5, 2), data, views={"augment": ["flip"]}, epochs=1)


# Pilots ---------------------------------------------------------------------------------------------------------------

PILOT: dict[str, Any] = {
    "name": "views",
    "teachers": {"big": {"model": {"name": "cnn", "channels": [4]}, "training": {"augment": None}}},
    "student": {"name": "cnn", "channels": [2]},
    "recipes": [{"recipe": "kd", "teacher": "big"}],
    "training": {"epochs": 1, "batch_size": 64, "views": 2, "augment": [{"name": "crop", "padding": 1}, "mixup"]},
    "seeds": [0],
}


@pytest.fixture(scope="module")
def pilot(data: lb.Data, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(path, x=data.x, y=data.y, site=data.attributes["site"].codes)
    return {**PILOT, "data": {"npz": str(path), "attributes": ["site"], "groups": ["site"]}}


def test_a_pilot_trains_on_views_and_they_are_part_of_what_it_is(pilot: dict[str, Any], tmp_path: Path) -> None:
    result = run_pilot(config_from_dict(pilot), output=tmp_path / "run")
    assert {model["key"] for model in result.to_dict()["models"]} == {"teacher-big", "erm", "kd"}
    arms = json.loads((tmp_path / "run" / "run.json").read_text())["plan"]["arms"]
    assert Views.of(arms["kd"]["training"]["views"]) == Views([Crop(padding=1), "mixup"], views=2)
    assert "views" not in arms["teacher-big"]["training"]
    again = {**pilot, "training": {**pilot["training"], "views": 1}}
    with pytest.raises(ConfigError, match="another pilot"):
        run_pilot(config_from_dict(again), output=tmp_path / "run")


def test_a_pilot_refuses_before_training_what_its_fits_would_refuse(pilot: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="reads groups"):
        run_pilot(config_from_dict({**pilot, "recipes": ["group_dro"]}), output=tmp_path / "run")
    with pytest.raises(ConfigError, match="did you mean 'mixup'"):
        run_pilot(config_from_dict({**pilot, "training": {"augment": ["mixpu"]}}))
    flat = {**pilot, "data": {"name": "digits"}}
    with pytest.raises(ConfigError, match="is for images"):
        run_pilot(config_from_dict(flat))


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"views": 3}, "add 'augment'"),
        ({"views": "onlin", "augment": ["flip"]}, "expected 'online'"),
        ({"views": True, "augment": ["flip"]}, "expected 'online'"),
        ({"augment": "flip"}, "expected a list"),
        ({"augment": []}, "at least 1"),
        ({"augment": [{"padding": 2}]}, r"training\.augment\[0\].*'name'"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_with_its_place(training: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_from_dict({**PILOT, "data": {"name": "digits"}, "training": training})


def test_a_batch_without_mixing_has_no_partners(data: lb.Data) -> None:
    bound = bind({"augment": ["flip"]}, data.train)
    rows = torch.arange(4)
    columns = {"ids": torch.from_numpy(data.train.ids), "labels": torch.from_numpy(data.train.y)}
    assert Augmented(bound).fields(bound.batch(rows, 0), rows, 0, columns, ["labels"]) == {}
