"""The student as the loop calls it: one forward pass gives every field of a batch that a recipe asks of it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from limbeck.heads import FeatureTap, LayerTap, TransplantedStudent, find_map_layer, layer_at_depth, pooled
from limbeck.modes import evaluating
from limbeck.predict import call_model, logits_of

STUDENT_FIELDS = ("student_logits", "student_features", "student_maps", "early_features")


class StudentCalls(nn.Module):
    """Calls a student and reads what its layers hold, by hooks that `close` takes away.

    Args:
        model: the student, any module; or a transplanted one, whose features are then the projected ones.
        needs: the fields of a batch that are asked for; those of `STUDENT_FIELDS` are supplied.
        example: inputs of two samples, to find layers and widths by one pass in evaluation mode.
    """

    def __init__(self, model: nn.Module, needs: frozenset[str], example: Any) -> None:
        super().__init__()
        self.model = model
        self._features = self._maps = self._early = None
        self._transplanted = isinstance(model, TransplantedStudent)
        if "student_features" in needs and not self._transplanted:
            self._features = FeatureTap(model)
        if "student_maps" in needs:
            self._maps = LayerTap(model, [find_map_layer(model, example)])
        if "early_features" in needs:
            self._early = LayerTap(model, [layer_at_depth(model, example)])
        self.context: dict[str, Any] = {}
        with evaluating(model):
            found = self(example)
        if "student_features" in found:
            self.context["student_width"] = found["student_features"].shape[1]
        if "student_maps" in found:
            self.context["student_map_shapes"] = [tuple(found["student_maps"].shape[1:])]
        if "early_features" in found:
            self.context["early_width"] = found["early_features"].shape[1]

    def forward(self, inputs: Any) -> dict[str, Tensor]:
        """The fields by name: `student_logits` `[B, C]` and what else was asked for."""
        if self._transplanted:
            passed = self.model.forward_with_features
            logits, features = passed(**inputs) if isinstance(inputs, dict) else passed(inputs)  # type: ignore[operator]
            found = {"student_logits": logits, "student_features": features}
        else:
            found = {"student_logits": logits_of(call_model(self.model, inputs))}
        if self._features is not None:
            found["student_features"] = self._features.take()
        if self._maps is not None:
            found["student_maps"] = self._maps.take()[0]
        if self._early is not None:
            found["early_features"] = pooled(self._early.take()[0])
        return found

    def close(self) -> None:
        """Take the hooks away: the model is as it was, but for its weights."""
        for tap in (self._features, self._maps, self._early):
            if tap is not None:
                tap.close()
