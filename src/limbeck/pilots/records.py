"""What a pilot leaves for those who ask later: the ledger of each cell, and the log of who ran what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.audit_log import AuditLog, logged
from limbeck.errors import LimbeckError
from limbeck.ledgers import Ledger
from limbeck.pilots.arms import Arm, identity
from limbeck.selection import SelectionRule

if TYPE_CHECKING:
    from limbeck.data import Data
    from limbeck.loop import Fitted

LOG, LEDGER = "audit.jsonl", "ledger"
KINDS = ("samples", "epochs")
"""Of tables in a ledger."""


def write_ledger(folder: Path, arm: Arm, seed: int, fitted: Fitted, data: Data, teacher: Any) -> list[str]:
    """Add a finished cell to the ledger of the run folder.

    Returns:
        A warning where it cannot be made: a student is not lost for the want of a record.
    """
    try:
        Ledger.of(fitted, data, teacher, run=f"{arm.key}-seed{seed}").write(folder / LEDGER)
    except LimbeckError as error:
        return [f"{arm.label}: no ledger was written: {error}"]
    return []


class Records:
    """The audit log of a pilot; without a folder nothing is kept.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.log = None if folder is None else AuditLog(folder / LOG)

    def begin(
        self,
        name: str,
        data: Data,
        arms: Sequence[Arm],
        seeds: Sequence[int],
        rule: SelectionRule,
        configuration: Mapping[str, Any] | None,
    ) -> None:
        """Somebody starts the pilot, or goes on with it."""
        if self.log is None:
            return
        self.log.append(
            "pilot started",
            pilot=name,
            configuration=None if configuration is None else dict(configuration),
            data={"name": data.name, "fingerprint": data.fingerprint()},
            arms={arm.key: identity(arm) for arm in arms},
            seeds=list(seeds),
            selection=rule.name,
        )

    def cell(self, arm: Arm, seed: int, record: Mapping[str, Any]) -> None:
        """A cell is complete; one that is in the log already, read back after a restart, is not logged again."""
        if self.log is None or self.folder is None:
            return
        if logged(self.log.entries(), "cell finished", cell=arm.key, seed=seed):
            return
        stem = f"{arm.key}-seed{seed}"
        names = [f"cells/{stem}.json", f"models/{stem}.safetensors", f"predictions/{stem}.npy"]
        names += [f"{LEDGER}/{kind}/{stem}.parquet" for kind in KINDS]
        self.log.append(
            "cell finished",
            cell=arm.key,
            seed=seed,
            recipe=None if arm.recipe is None else arm.recipe.name,
            teachers=list(arm.teachers),
            selected_epoch=record.get("selected_epoch"),
            files={name: self.folder / name for name in names if (self.folder / name).is_file()},
        )

    def end(self, verdict: str) -> None:
        """The result is written."""
        if self.log is None or self.folder is None:
            return
        names = [name for name in ("result.json", "predictions.parquet") if (self.folder / name).is_file()]
        self.log.append("pilot finished", verdict=verdict, files={name: self.folder / name for name in names})
