"""Recipes in the Hugging Face Trainer (the extra `hf`).

    from transformers import Trainer, TrainingArguments
    from limbeck.integrations import RowDataset, prepare
    from limbeck.integrations.trainer import DistillationMixin

    class DistillationTrainer(DistillationMixin, Trainer):
        pass

    prepared = prepare(small, data, teacher=teacher, recipe="kd", epochs=3)
    arguments = TrainingArguments("out", num_train_epochs=3, remove_unused_columns=False)
    trainer = DistillationTrainer(prepared=prepared, args=arguments, train_dataset=RowDataset(data.train))
    trainer.train()
    student = prepared.finish()

`data` holds what the model is called with by name, such as `x={"input_ids": …, "attention_mask": …}`.
"""

from __future__ import annotations

from typing import Any

from limbeck.errors import ConfigError, DataError
from limbeck.integrations.preparation import Prepared

ROW = "row"
"""The entry of a batch that says which training samples it holds."""


class DistillationMixin:
    """Before `Trainer` in a class's bases: the loss of a training batch is the recipe's.

    A training batch has the entry `row` (`RowDataset` gives it, and `remove_unused_columns=False` keeps it); a batch
    without it, as in evaluation, is left to the Trainer.

    Args:
        prepared: what `limbeck.integrations.prepare` gave; its student is trained.
        arguments, keywords: the Trainer's own.
    """

    args: Any
    state: Any
    optimizer: Any

    def __init__(self, *arguments: Any, prepared: Prepared, **keywords: Any) -> None:
        keywords.setdefault("model", prepared.model)
        self.prepared = prepared
        super().__init__(*arguments, **keywords)
        # The recipe's loss is a mean over its batch: the Trainer is to divide it by the accumulation steps, as it does
        # for models that do not count items themselves.
        self.model_accepts_loss_kwargs = False
        if self.args.world_size > 1:
            raise ConfigError("a prepared recipe is for one process; limbeck.fit runs on several under torchrun")
        if self.args.remove_unused_columns:
            raise ConfigError(
                f"TrainingArguments: remove_unused_columns=False is needed, so that {ROW!r} stays in a batch"
            )
        if self.args.num_train_epochs != prepared.epochs:
            raise ConfigError(
                f"the recipe was prepared for {prepared.epochs} epochs and num_train_epochs is "
                f"{self.args.num_train_epochs:g}: warm-ups and schedules go by it, so make them equal"
            )

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **keywords: Any) -> Any:
        """The recipe's loss of a training batch; the Trainer's own for a batch without rows."""
        if ROW not in inputs:
            if model.training:
                raise DataError(f"a training batch has no {ROW!r}: give RowDataset(data.train) as the train_dataset")
            return super().compute_loss(model, inputs, return_outputs=return_outputs, **keywords)  # type: ignore[misc]
        epoch = min(int(self.state.epoch or 0), self.prepared.epochs - 1)
        self.prepared.begin_epoch(epoch)
        named = {name: value for name, value in inputs.items() if name not in (ROW, "labels")}
        loss, logits = self.prepared.loss(inputs[ROW], named)
        return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss

    def create_optimizer(self, *arguments: Any, **keywords: Any) -> Any:
        """The Trainer's optimiser, with what terms or weighting learn."""
        optimiser = super().create_optimizer(*arguments, **keywords)  # type: ignore[misc]
        known = {id(part) for group in optimiser.param_groups for part in group["params"]}
        own = [part for part in self.prepared.objective.parameters() if part.requires_grad and id(part) not in known]
        if own:
            optimiser.add_param_group({"params": own, "weight_decay": 0.0})
        return optimiser
