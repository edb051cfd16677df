"""A recipe in somebody else's loop takes the steps of our own; metrics arrive where they are sent."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import limbeck as lb
from limbeck.callbacks import EarlyStopping
from limbeck.cli import main
from limbeck.errors import ConfigError, DataError, LimbeckError, RecipeError
from limbeck.integrations import (
    CSVMetrics,
    MetricsWatcher,
    MLflowMetrics,
    RowDataset,
    TensorBoardMetrics,
    flat,
    prepare,
)
from limbeck.pilots import Quiet
from limbeck.training import batch_bounds

EPOCHS, BATCH = 3, 32
SETTINGS: dict[str, Any] = {"epochs": EPOCHS, "batch_size": BATCH, "learning_rate": 0.01, "selection": "last"}


@pytest.fixture(scope="module")
def data() -> lb.Data:
    draw = np.random.default_rng(0)
    y = draw.integers(0, 3, 200)
    x = np.eye(3)[y] @ draw.normal(size=(3, 8)) * 2 + draw.normal(size=(200, 8))
    side = np.where(draw.random(200) < 0.3, "left", "right")
    return lb.Data(x.astype(np.float32), y, attributes={"side": side}, groups=["side"])


def network(hidden: int = 6) -> nn.Module:
    torch.manual_seed(hidden)
    return nn.Sequential(nn.Linear(8, hidden), nn.ReLU(), nn.Linear(hidden, 3))


@pytest.fixture(scope="module")
def teacher(data: lb.Data) -> nn.Module:
    return lb.fit(network(24), data, epochs=10, learning_rate=0.01).model


def assert_same(found: nn.Module, expected: nn.Module) -> None:
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, atol=1e-5, rtol=1e-4)


# A loop of one's own --------------------------------------------------------------------------------------------------

RECIPES: list[Any] = [
    "erm",
    "kd",
    "rld",
    "btkd",
    "groupdistil",
    "simkd",
    "dist",
    "rkd",
    "elr",
    "dedier",
    "pll",
    "jtt",
    {"recipe": "dett", "upweight": 3.0},
    {"recipe": "kd", "sampling": "class_balanced"},
]


@pytest.mark.parametrize("recipe", RECIPES, ids=[str(recipe) for recipe in RECIPES])
def test_a_loop_by_hand_takes_the_steps_of_fit(recipe: Any, data: lb.Data, teacher: nn.Module) -> None:
    expected = lb.fit(network(), data, teacher=teacher, recipe=recipe, **SETTINGS)
    training = lb.Training(epochs=EPOCHS, batch_size=BATCH, learning_rate=0.01)
    before = {name: value.clone() for name, value in network().state_dict().items()}
    own = network()
    prepared = prepare(own, data, teacher=teacher, recipe=recipe, epochs=EPOCHS, training=training)
    optimiser = training.make_optimiser([part for part in prepared.parameters() if part.requires_grad])
    for epoch in range(EPOCHS):
        prepared.begin_epoch(epoch)
        prepared.train()
        for group in optimiser.param_groups:
            group["lr"] = 0.01 * training.factor(epoch)
        order = prepared.order(epoch)
        for start, end in batch_bounds(len(order), BATCH):
            optimiser.zero_grad()
            prepared(order[start:end]).backward()
            optimiser.step()
    assert_same(prepared.finish(), expected.model)
    for name, value in own.state_dict().items():
        assert torch.equal(value, before[name])
    found = expected.history[-1]
    assert prepared.validate()["validation_average"] == pytest.approx(found["validation_average"])
    assert prepared.validate()["validation_worst_group"] == pytest.approx(found["validation_worst_group"])
    if found["group_weights"] is not None:
        assert prepared.group_weights is not None
        assert prepared.group_weights.tolist() == pytest.approx(found["group_weights"], rel=1e-5)


def test_what_cannot_be_prepared_is_refused(data: lb.Data, teacher: nn.Module) -> None:
    with pytest.raises(RecipeError, match="none is given: pass teacher="):
        prepare(network(), data, recipe="kd")
    with pytest.raises(RecipeError, match="use source: eval"):
        prepare(network(), data, recipe={"recipe": "jtt", "source": "online"})
    with pytest.raises(RecipeError, match="no groups are declared"):
        prepare(network(), data.with_groups(None), recipe="group_dro")
    with pytest.raises(LimbeckError, match="returns 4 classes"):
        prepare(nn.Linear(8, 4), data)


# Lightning ------------------------------------------------------------------------------------------------------------


def lightning_trainer(folder: Path, **settings: Any) -> Any:
    lightning = pytest.importorskip("lightning")
    return lightning.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        devices=1,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


@pytest.mark.parametrize("recipe", ["rld", "groupdistil", "simkd", "dedier"])
def test_lightning_trains_the_student_that_fit_trains(
    recipe: str, data: lb.Data, teacher: nn.Module, tmp_path: Path
) -> None:
    trainer = lightning_trainer(tmp_path)
    from limbeck.integrations.lightning import RecipeModule

    expected = lb.fit(network(), data, teacher=teacher, recipe=recipe, **SETTINGS)
    prepared = prepare(network(), data, teacher=teacher, recipe=recipe, epochs=EPOCHS)
    trainer.fit(RecipeModule(prepared, lb.Training(batch_size=BATCH, learning_rate=0.01)))
    assert_same(prepared.finish(), expected.model)
    last = expected.history[-1]
    assert float(trainer.callback_metrics["validation_average"]) == pytest.approx(last["validation_average"])
    if recipe == "groupdistil":
        logged = [float(trainer.callback_metrics[f"q/side={name}"]) for name in ("left", "right")]
        assert logged == pytest.approx(last["group_weights"], rel=1e-5)


def test_a_lightning_module_of_ones_own_uses_the_callback(data: lb.Data, teacher: nn.Module, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")
    from limbeck.integrations.lightning import RecipeCallback

    class Own(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, prepared: Any = None) -> None:
            super().__init__()
            self.prepared = prepared
            self.linear = nn.Linear(1, 1)
            self.epochs_seen: list[int] = []

        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            self.epochs_seen.append(self.prepared._epoch)
            return self.prepared(batch["row"], batch["x"])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    def loader() -> Any:
        return torch.utils.data.DataLoader(RowDataset(data.train), batch_size=BATCH)

    module = Own(prepare(network(), data, teacher=teacher, recipe="rld", epochs=EPOCHS))
    start = {name: value.clone() for name, value in module.prepared.model.state_dict().items()}
    lightning_trainer(tmp_path, callbacks=[RecipeCallback()]).fit(module, loader())
    assert sorted(set(module.epochs_seen)) == [0, 1, 2]
    assert not torch.equal(start["0.weight"], module.prepared.model.state_dict()["0.weight"])
    wrong = Own(prepare(network(), data, teacher=teacher, recipe="rld", epochs=EPOCHS + 1))
    with pytest.raises(ConfigError, match="prepared for 4 epochs and the Trainer has max_epochs=3"):
        lightning_trainer(tmp_path, callbacks=[RecipeCallback()]).fit(wrong, loader())
    with pytest.raises(ConfigError, match="Own has no prepared recipe"):
        lightning_trainer(tmp_path, callbacks=[RecipeCallback()]).fit(Own(), loader())


# Hugging Face ---------------------------------------------------------------------------------------------------------


class Tokens(nn.Module):
    """A bag of tokens; called by name and returns what Hugging Face models return."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(width)
        self.embedding = nn.Embedding(20, width)
        self.linear = nn.Linear(width, 2)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.linear(self.embedding(input_ids).mean(1))
        found = {"logits": logits}
        if labels is not None:
            found = {"loss": nn.functional.cross_entropy(logits, labels), **found}
        return found


@pytest.fixture(scope="module")
def texts() -> lb.Data:
    draw = np.random.default_rng(1)
    tokens = draw.integers(0, 20, (160, 7))
    return lb.Data(
        {"input_ids": tokens},
        (tokens < 10).sum(1) > 3,
        attributes={"long": np.where(draw.random(160) < 0.4, "yes", "no")},
        groups=["long"],
    )


def hugging_face_trainer(data: lb.Data, prepared: Any, folder: Path, **changes: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from limbeck.integrations.trainer import DistillationMixin

    class InOrder(torch.utils.data.Sampler):  # type: ignore[type-arg]
        def __init__(self) -> None:
            self.epoch = 0

        def __len__(self) -> int:
            return len(data.train)

        def __iter__(self) -> Any:
            order = prepared.order(self.epoch).tolist()
            self.epoch += 1
            return iter(order)

    class DistillationTrainer(DistillationMixin, transformers.Trainer):  # type: ignore[misc, name-defined]
        def _get_train_sampler(self, *arguments: Any) -> Any:
            return InOrder()

    settings = {
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 0.01,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 0.0,
        "optim": "adamw_torch",
        "remove_unused_columns": False,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return DistillationTrainer(
        prepared=prepared,
        args=transformers.TrainingArguments(str(folder), **{**settings, **changes}),
        train_dataset=RowDataset(data.train),
        eval_dataset=RowDataset(data.validation, rows=False),
    )


@pytest.mark.parametrize("recipe", ["kd", "rld", "groupdistil", "ctkd"])
def test_the_hugging_face_trainer_trains_the_student_that_fit_trains(
    recipe: str, texts: lb.Data, tmp_path: Path
) -> None:
    teacher = Tokens(16)
    prepared = prepare(Tokens(4), texts, teacher=teacher, recipe=recipe, epochs=EPOCHS)
    trainer = hugging_face_trainer(texts, prepared, tmp_path)
    trainer.train()
    training = lb.Training(epochs=EPOCHS, batch_size=BATCH, learning_rate=0.01, schedule="constant")
    expected = lb.fit(Tokens(4), texts, teacher=teacher, recipe=recipe, training=training, selection="last")
    assert_same(prepared.finish(), expected.model)
    logits = torch.from_numpy(lb.predict_logits(expected, texts.validation))
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(texts.validation.y))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(loss), rel=1e-4)


@pytest.mark.parametrize("counts_items", [False, True])
def test_gradients_that_are_accumulated_are_those_of_the_whole_batch(
    counts_items: bool, texts: lb.Data, tmp_path: Path
) -> None:
    class Counting(Tokens):
        def forward(self, input_ids: Tensor, labels: Tensor | None = None, **keywords: Any) -> dict[str, Tensor]:
            return super().forward(input_ids, labels)

    prepared = prepare((Counting if counts_items else Tokens)(4), texts, teacher=Tokens(16), recipe="kd", epochs=EPOCHS)
    trainer = hugging_face_trainer(
        texts, prepared, tmp_path, per_device_train_batch_size=BATCH // 2, gradient_accumulation_steps=2
    )
    trainer.train()
    training = lb.Training(epochs=EPOCHS, batch_size=BATCH, learning_rate=0.01, schedule="constant")
    expected = lb.fit(Tokens(4), texts, teacher=Tokens(16), recipe="kd", training=training, selection="last")
    assert_same(prepared.finish(), expected.model)


def test_a_trainer_that_does_not_fit_the_recipe_is_refused(texts: lb.Data, tmp_path: Path) -> None:
    prepared = prepare(Tokens(4), texts, epochs=EPOCHS)
    with pytest.raises(ConfigError, match="remove_unused_columns=False is needed"):
        hugging_face_trainer(texts, prepared, tmp_path, remove_unused_columns=True)
    with pytest.raises(ConfigError, match="prepared for 3 epochs and num_train_epochs is 5"):
        hugging_face_trainer(texts, prepared, tmp_path, num_train_epochs=5)
    trainer = hugging_face_trainer(texts, prepared, tmp_path)
    trainer.train_dataset = RowDataset(texts.train, rows=False)
    with pytest.raises(DataError, match=r"give RowDataset\(data.train\)"):
        trainer.train()


# Metrics --------------------------------------------------------------------------------------------------------------


def test_an_epochs_numbers_are_named_and_what_is_none_is_left_out() -> None:
    record = {"epoch": 3, "loss": 0.5, "group_losses": [1.0, None], "group_weights": None}
    record |= {"validation_worst_group_name": "left", "learning_rate": 0.1, "broken": math.nan, "flag": True}
    assert flat(record, ["left"]) == {"loss": 0.5, "group_losses/left": 1.0, "learning_rate": 0.1}
    assert flat({"group_weights": [0.5, 0.5]}, ["a"]) == {"group_weights/a": 0.5, "group_weights/1": 0.5}


def rows_of(path: Path) -> dict[tuple[int, str], float]:
    with path.open(newline="", encoding="utf-8") as stream:
        return {(int(row["epoch"]), row["metric"]): float(row["value"]) for row in csv.DictReader(stream)}


def trained(data: lb.Data, metrics: Any, **settings: Any) -> lb.Fitted:
    return lb.fit(network(), data, recipe="group_dro", callbacks=[metrics], **{**SETTINGS, **settings})


def expected_values(fitted: lb.Fitted) -> dict[tuple[int, str], float]:
    return {
        (record["epoch"], name): value
        for record in fitted.history
        for name, value in flat(record, ["side=left", "side=right"]).items()
    }


def test_csv_holds_every_number_of_every_epoch_also_after_a_resume(data: lb.Data, tmp_path: Path) -> None:
    metrics = CSVMetrics(tmp_path / "metrics", run="my run/1", groups=["side=left", "side=right"])
    folder = tmp_path / "checkpoint"
    stopped = EarlyStopping("loss", patience=0)
    lb.fit(network(), data, recipe="group_dro", callbacks=[metrics, stopped], checkpoint=folder, **SETTINGS)
    path = tmp_path / "metrics" / "my-run-1.csv"
    assert {epoch for epoch, _ in rows_of(path)} == {1}
    fitted = trained(data, metrics, checkpoint=tmp_path / "whole")
    assert rows_of(path) == expected_values(fitted)
    again = trained(data, metrics, checkpoint=tmp_path / "whole", resume=True)
    assert rows_of(path) == expected_values(again)
    assert any(name == "group_weights/side=left" for _, name in rows_of(path))


def test_tensorboard_holds_every_number(data: lb.Data, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    metrics = TensorBoardMetrics(tmp_path, groups=["side=left", "side=right"])
    trained(data, metrics)
    fitted = trained(data, metrics)
    events = EventAccumulator(str(tmp_path / "group_dro")).Reload()
    found = {(event.step, tag): event.value for tag in events.Tags()["scalars"] for event in events.Scalars(tag)}
    expected = expected_values(fitted)
    assert set(found) == set(expected)
    assert found == pytest.approx(expected, rel=1e-6)


def test_mlflow_holds_every_number_and_its_own_run_is_left_alone(data: lb.Data, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    metrics = MLflowMetrics(store, "trial", groups=["side=left", "side=right"])
    fitted = trained(data, metrics)
    assert mlflow.active_run() is None
    client = mlflow.tracking.MlflowClient(tracking_uri=store)
    (run,) = client.search_runs([client.get_experiment_by_name("trial").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params == {"recipe": "group_dro", "epochs": "3"}
    expected = expected_values(fitted)
    for name in run.data.metrics:
        for entry in client.get_metric_history(run.info.run_id, name):
            assert expected.pop((entry.step, name.replace("side-", "side="))) == pytest.approx(entry.value)
    assert not expected


def test_a_pilot_writes_the_metrics_of_its_cells_by_a_flag(tmp_path: Path) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(
        "name: small\ndata: {name: digits}\nstudent: {name: mlp, hidden: [4]}\nrecipes: [label_smoothing]\n"
        "training: {epochs: 2}\nseeds: [0]\n"
    )
    folder = tmp_path / "run"
    command = ["pilot", str(config), "--output", str(folder), "--quiet", "--metrics", "csv"]
    for _ in range(2):  # the second time the cells are read back
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.output
    files = sorted(path.name for path in (folder / "metrics" / "csv").iterdir())
    assert files == ["erm-no-teacher-seed-0.csv", "label_smoothing-no-teacher-seed-0.csv"]
    found = rows_of(folder / "metrics" / "csv" / files[1])
    assert {epoch for epoch, _ in found} == {1, 2}
    with pytest.raises(ConfigError, match="did you mean 'csv'"):
        MetricsWatcher(Quiet(), ["cvs"], folder)
