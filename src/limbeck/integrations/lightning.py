"""Recipes in Lightning (the extra `lightning`).

    from lightning import Trainer
    from limbeck.integrations import prepare
    from limbeck.integrations.lightning import RecipeModule

    module = RecipeModule(prepare(small, data, teacher=teacher, recipe="rld", epochs=10))
    Trainer(max_epochs=10).fit(module)
    student = module.prepared.finish()

In a LightningModule of your own, keep what `prepare` gives as an attribute, return `self.prepared(batch["row"])` (or
`self.prepared(rows, inputs)`) from `training_step`, and give the Trainer a `RecipeCallback`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from limbeck.errors import ConfigError, require
from limbeck.integrations.preparation import Prepared
from limbeck.training import Training, batch_bounds

lightning = require("lightning", "lightning")


class RecipeCallback(lightning.Callback):  # type: ignore[misc, name-defined]
    """Tells a prepared recipe which epoch it is, and logs its group weights.

    Args:
        prepared: what `prepare` gave; by default the attribute `prepared` of the module that is trained.
    """

    def __init__(self, prepared: Prepared | None = None) -> None:
        self._prepared = prepared

    def _of(self, module: Any) -> Prepared:
        found = self._prepared or getattr(module, "prepared", None)
        if not isinstance(found, Prepared):
            raise ConfigError(
                f"{type(module).__name__} has no prepared recipe: keep what limbeck.integrations.prepare gives as its "
                "attribute 'prepared', or give it to RecipeCallback"
            )
        return found

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse a loop that the recipe was not prepared for."""
        prepared = self._of(pl_module)
        if trainer.world_size > 1:
            raise ConfigError("a prepared recipe is for one process; limbeck.fit runs on several under torchrun")
        if trainer.max_epochs != prepared.epochs:
            raise ConfigError(
                f"the recipe was prepared for {prepared.epochs} epochs and the Trainer has max_epochs="
                f"{trainer.max_epochs}: warm-ups and schedules go by it, so make them equal"
            )

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Say which epoch begins."""
        self._of(pl_module).begin_epoch(trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the group weights q, where there are any."""
        prepared = self._of(pl_module)
        groups = prepared.data.groups
        if prepared.group_weights is not None and groups is not None:
            for name, weight in zip(groups.names, prepared.group_weights.tolist(), strict=True):
                pl_module.log(f"q/{name}", weight)


class RecipeModule(lightning.LightningModule):  # type: ignore[misc, name-defined]
    """A prepared recipe as a module that a Trainer takes as it is, with loaders, optimiser and schedule.

    Args:
        prepared: what `prepare` gave.
        training: optimiser, learning rate, schedule and batch size.
    """

    def __init__(self, prepared: Prepared, training: Training | None = None) -> None:
        super().__init__()
        self.prepared, self.training_settings = prepared, training or Training()

    def configure_callbacks(self) -> list[Any]:
        """The callback that keeps the epoch."""
        return [RecipeCallback()]

    def forward(self, inputs: Any) -> Any:
        """The student's output."""
        return self.prepared.model(inputs)

    def train_dataloader(self) -> DataLoader[Tensor]:
        """Batches of rows, in the order of the recipe's sampling."""
        sampler = _Batches(self, self.training_settings.batch_size)
        rows = torch.arange(len(self.prepared.data.train))
        return DataLoader(rows, batch_sampler=sampler, collate_fn=torch.stack)  # type: ignore[arg-type]

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """The recipe's loss."""
        loss: Tensor = self.prepared(batch)
        self.log("loss", loss, on_step=False, on_epoch=True, batch_size=len(batch))
        return loss

    def on_train_epoch_end(self) -> None:
        """Validate: average and worst group."""
        for name, value in self.prepared.validate().items():
            self.log(name, value, prog_bar=True)

    def configure_optimizers(self) -> Any:
        """The optimiser and, by epoch, the schedule of the settings."""
        settings = self.training_settings
        settings = Training(**{**vars(settings), "epochs": self.prepared.epochs})
        optimiser = settings.make_optimiser([part for part in self.prepared.parameters() if part.requires_grad])
        return {"optimizer": optimiser, "lr_scheduler": torch.optim.lr_scheduler.LambdaLR(optimiser, settings.factor)}


class _Batches(Sampler[list[int]]):
    """The batches of the epoch that the Trainer is in."""

    def __init__(self, module: RecipeModule, batch_size: int) -> None:
        self._module, self._batch_size = module, batch_size

    def __len__(self) -> int:
        return len(batch_bounds(len(self._module.prepared.data.train), self._batch_size))

    def __iter__(self) -> Iterator[list[int]]:
        order = self._module.prepared.order(self._module.current_epoch)
        for start, end in batch_bounds(len(order), self._batch_size):
            yield order[start:end].tolist()
