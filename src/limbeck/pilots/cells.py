"""One cell of a pilot: one model trained with one recipe and one seed, kept in the run folder."""

from __future__ import annotations

import copy
import io
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from limbeck.callbacks import Callback
from limbeck.checkpoint import write_atomically, write_json
from limbeck.errors import CheckpointError
from limbeck.evaluation import evaluate
from limbeck.fitting import fit
from limbeck.heads import TransplantedStudent
from limbeck.ledgers import overhear
from limbeck.models import load_weights
from limbeck.pilots.arms import Arm
from limbeck.pilots.records import KINDS, LEDGER, write_ledger
from limbeck.pilots.sharing import Sharing
from limbeck.predict import predict_logits
from limbeck.selection import SelectionRule

if TYPE_CHECKING:
    from limbeck.data import Data
    from limbeck.loop import Fitted


@dataclass(frozen=True)
class CellFiles:
    """Where the files of a cell are; without a folder nothing is kept."""

    folder: Path | None
    key: str
    seed: int

    def _path(self, kind: str, ending: str) -> Path | None:
        return None if self.folder is None else self.folder / kind / f"{self.key}-seed{self.seed}{ending}"

    @property
    def record(self) -> Path | None:
        """The cell's results; it is written last, so that where it exists the cell is complete."""
        return self._path("cells", ".json")

    @property
    def weights(self) -> Path | None:
        """The model of the selected epoch."""
        return self._path("models", ".safetensors")

    @property
    def predictions(self) -> Path | None:
        """Predicted classes of the test samples `[N]`."""
        return self._path("predictions", ".npy")

    @property
    def all(self) -> list[Path]:
        """Every file that a complete cell may have left, the record last."""
        found = [self.weights, self.predictions, *(self._path(f"{LEDGER}/{kind}", ".parquet") for kind in KINDS)]
        return [path for path in (*found, self.record) if path is not None and path.is_file()]

    def taken_from(self, other: CellFiles) -> None:
        """Have the files of the same cell of another pilot as well: linked, or copied where the disk is another one."""
        if self.folder is None or other.folder is None or self.record is None or self.record.is_file():
            return
        for path in other.all:
            target = self.folder / path.relative_to(other.folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            beside = target.with_name(f".{target.name}.borrowed")
            beside.unlink(missing_ok=True)
            try:
                os.link(path, beside)
            except OSError:
                shutil.copyfile(path, beside)
            os.replace(beside, target)

    @property
    def checkpoints(self) -> Path | None:
        """The state of an unfinished training."""
        return self._path("checkpoints", "")

    def remove_checkpoints(self) -> None:
        """Remove the state of the training, which a finished cell has no use for."""
        if self.checkpoints is not None:
            shutil.rmtree(self.checkpoints, ignore_errors=True)

    def finished(self) -> dict[str, Any] | None:
        """The record of a complete cell, or None.

        Raises:
            CheckpointError: where the file is not what `write_json` left.
        """
        if self.record is None or not self.record.is_file():
            return None
        try:
            found = json.loads(self.record.read_text(encoding="utf-8"))
            assert isinstance(found, dict)
            assert self.predictions is not None
            assert self.predictions.is_file()
        except (ValueError, AssertionError) as error:
            raise CheckpointError(
                f"{self.record}: not a whole record of a cell; remove it to compute the cell again"
            ) from error
        return found


@dataclass
class CellResult:
    """What a cell leaves: its record (plain data), its test predictions, and the model while it is at hand."""

    record: dict[str, Any]
    predictions: np.ndarray[Any, np.dtype[np.int64]]
    teacher: Any = None


def run_cell(
    arm: Arm,
    seed: int,
    data: Data,
    teacher: Any,
    *,
    selection: SelectionRule,
    files: CellFiles,
    callbacks: Sequence[Callback] = (),
    card: Mapping[str, Any] | None = None,
    sharing: Sharing | None = None,
    arms: Sequence[Arm] = (),
) -> CellResult:
    """Train and evaluate one cell, or read it back where it is complete.

    Args:
        arm: what is trained.
        seed: of the training.
        data: of the pilot.
        teacher: what it learns from.
        selection: the rule of it.
        files: where the cell is kept.
        callbacks: told of every epoch.
        card: what the file of the model says of it.
        sharing: where what a teacher says is kept for its students; it is there before the teacher's cell is complete.
        arms: of the pilot, the teacher's students among them.
    """
    if (done := files.finished()) is not None:
        assert files.predictions is not None
        predictions = np.load(files.predictions, allow_pickle=False).astype(np.int64)
        files.remove_checkpoints()  # a kill between the record and this leaves them
        return CellResult(done, predictions, read_teacher(arm, files) if arm.role == "teacher" else None)
    if arm.source is not None:
        return _finished_teacher(arm, seed, data, files, sharing, arms)
    assert arm.model is not None
    assert arm.recipe is not None
    assert arm.training is not None
    teacher = overhear(teacher, views=arm.training.views is not None)
    fitted = fit(
        arm.model,
        data,
        teacher=teacher,
        recipe=arm.recipe,
        training=arm.training,
        seed=seed,
        selection=selection,
        callbacks=callbacks,
        checkpoint=files.checkpoints,
        resume=files.checkpoints is not None,
    )
    notes: list[str] = []
    if files.folder is not None and arm.role != "trial":
        notes = write_ledger(files.folder, arm, seed, fitted, data, teacher)
    if sharing is not None and arm.role == "teacher":
        notes = [*notes, *sharing.write(arm, seed, fitted, arms)]
    return keep_fitted(arm, fitted, seed, data, files, card or {}, notes)


def keep_fitted(
    arm: Arm,
    fitted: Fitted,
    seed: int,
    data: Data,
    files: CellFiles,
    card: Mapping[str, Any],
    notes: Sequence[str] = (),
) -> CellResult:
    """Evaluate what a cell trained, and write its files; `notes` are warnings beside the training's own."""
    record, predictions = _evaluate(fitted.model, data)
    record |= {
        "seed": seed,
        "selected_epoch": fitted.selected_epoch,
        "seconds": fitted.seconds,
        "parameters": sum(part.numel() for part in fitted.model.parameters()),
        "history": fitted.history,
        "details": {name: value for name, value in fitted.details.items() if name != "wrong"},
        "precision": fitted.training.precision,
        "compile": fitted.training.compile,
        "warnings": [*fitted.warnings, *notes],
    }
    if files.weights is not None:
        shown = {name: record["test"][name] for name in ("average", "worst_group", "worst_group_name")}
        fitted.save(files.weights, **card, test=shown, transplanted=isinstance(fitted.model, TransplantedStudent))
    _keep(files, record, predictions)
    return CellResult(record, predictions, fitted if arm.role == "teacher" else None)


def _evaluate(model: Any, data: Data) -> tuple[dict[str, Any], np.ndarray[Any, np.dtype[np.int64]]]:
    counts = None if data.train.groups is None else data.train.groups.counts()
    logits = predict_logits(model, data.test)
    found = {
        "test": evaluate(logits, data.test, training_counts=counts).to_dict(),
        "validation": evaluate(
            predict_logits(model, data.validation), data.validation, training_counts=counts
        ).to_dict(),
    }
    return found, logits.argmax(1).astype(np.int64)


def _finished_teacher(
    arm: Arm, seed: int, data: Data, files: CellFiles, sharing: Sharing | None, arms: Sequence[Arm]
) -> CellResult:
    """Evaluate a teacher that came finished, through what it supplies."""
    from limbeck.teachers import as_teacher, collect

    source = as_teacher(arm.source)
    notes = [] if sharing is None else sharing.write(arm, seed, source, arms)
    teacher = source if sharing is None else sharing.judged(arm, source)
    counts = None if data.train.groups is None else data.train.groups.counts()
    record: dict[str, Any] = {}
    predictions = np.empty(0, np.int64)
    for name, part in (("test", data.test), ("validation", data.validation)):
        logits = collect(teacher, part, ("logits",))["logits"].numpy()
        record[name] = evaluate(logits, part, training_counts=counts).to_dict()
        if name == "test":
            predictions = logits.argmax(1).astype(np.int64)
    module = getattr(source, "module", None)
    parameters = None if module is None else sum(part.numel() for part in module.parameters())
    record |= {"seed": seed, "selected_epoch": None, "seconds": 0.0, "parameters": parameters, "history": []}
    record |= {"details": {}, "warnings": notes, "precision": None, "compile": False}
    _keep(files, record, predictions)
    return CellResult(record, predictions, source)


def read_teacher(arm: Arm, files: CellFiles) -> Any:
    """The teacher of a complete cell: the finished one it came as, or the model that the cell kept."""
    if arm.source is not None:
        return arm.source
    assert files.weights is not None
    assert arm.model is not None
    model = copy.deepcopy(arm.model) if isinstance(arm.model, nn.Module) else arm.model()
    load_weights(model, files.weights)
    return model.eval()


def _keep(files: CellFiles, record: Mapping[str, Any], predictions: np.ndarray[Any, np.dtype[np.int64]]) -> None:
    if files.record is None or files.predictions is None:
        return
    stream = io.BytesIO()
    np.save(stream, predictions.astype(np.int32), allow_pickle=False)
    write_atomically(files.predictions, stream.getvalue())
    write_json(files.record, record)
    files.remove_checkpoints()
