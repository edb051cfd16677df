"""Learning from failure: samples on which a deliberately biased network struggles weigh more.

Nam et al., "Learning from failure: de-biasing classifier from biased classifier", NeurIPS 2020, arXiv 2007.02561.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from limbeck.errors import RecipeError
from limbeck.weighting.base import choose, per_sample

_OPTIMISERS = ("adam", "sgd")
_ADAM_DECAYS = (0.9, 0.999)
_ADAM_EPSILON = 1e-8
_EPSILON = 1e-8  # as in the authors' code

Inputs = Tensor | Mapping[str, Tensor]


class LfF(nn.Module):
    """Relative difficulty W = L_B / (L_B + L_D) of a sample for a biased network B and the student D.

    L_B and L_D are cross entropies, smoothed per sample by an exponential moving average and divided by the largest
    of their class in the training set [code]. loss = mean(W_i loss_i), for whichever losses the terms give.

    B is trained alongside, inside this module, one step a call, on the generalised cross entropy (1 - p_y^q)/q, which
    prefers what is easy. The released code descends on q times that; under Adam the factor is without effect. B's
    weights, its optimiser's moments and the moving averages are all in the state dict. B's parameters do not ask for
    a gradient: no other optimiser moves them. In evaluation mode nothing moves. For a single process: over several, B
    would drift apart.

    Args:
        student_copy: an untrained network of the student's architecture; it is copied. It is called with `x`, by
            keyword where that is a mapping, and returns logits `[B, C]`, or has them as `logits` or as the first of a
            tuple. Where a parameter is frozen it stays frozen.
        samples: number of training samples n.
        classes: number of classes C.
        labels_all: label of every training row, int64 `[n]`.
        q: exponent of the generalised cross entropy.
        smoothing: share of the old average that is kept at each visit.
        optimiser: of B, `"adam"` (default) or `"sgd"`; the authors give B the student's, so set all of these alike.
        learning_rate, momentum, weight_decay: of B's optimiser. Momentum is for `"sgd"`.

    Raises:
        RecipeError: for labels that do not fit, values out of range, or a network without a trainable parameter.
    """

    biased: nn.Module
    labels_all: Tensor
    biased_losses: Tensor
    student_losses: Tensor
    seen: Tensor
    first_moment: Tensor
    second_moment: Tensor
    steps: Tensor

    def __init__(
        self,
        student_copy: nn.Module,
        samples: int,
        classes: int,
        labels_all: Tensor,
        q: float = 0.7,
        smoothing: float = 0.7,
        optimiser: str = "adam",
        learning_rate: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__()
        if tuple(labels_all.shape) != (samples,):
            raise RecipeError(
                f"labels_all has shape {list(labels_all.shape)}: expected a label per sample, [{samples}]"
            )
        if not 0 < q <= 1 or not 0 <= smoothing < 1:
            raise RecipeError(f"lff: q={q} must lie in (0, 1] and smoothing={smoothing} in [0, 1)")
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            raise RecipeError(
                "lff trains a second network in each process and would differ between ranks: use one process"
            )
        self.classes, self.q, self.smoothing = classes, q, smoothing
        self.optimiser = choose("optimiser", optimiser, _OPTIMISERS)
        self.learning_rate, self.momentum, self.weight_decay = learning_rate, momentum, weight_decay
        self.trained = tuple(name for name, value in student_copy.named_parameters() if value.requires_grad)
        if not self.trained:
            raise RecipeError(
                "lff: the student's copy has no trainable parameter, so it cannot become the biased network"
            )
        self.biased = copy.deepcopy(student_copy).requires_grad_(False)
        values = self._values()
        size = sum(value.numel() for value in values)
        device = values[0].device
        self.register_buffer("labels_all", labels_all.detach().clone())
        self.register_buffer("biased_losses", torch.zeros(samples))
        self.register_buffer("student_losses", torch.zeros(samples))
        self.register_buffer("seen", torch.zeros(samples, dtype=torch.bool))
        self.register_buffer("first_moment", torch.zeros(size, device=device))
        self.register_buffer("second_moment", torch.zeros(size if optimiser == "adam" else 0, device=device))
        self.register_buffer("steps", torch.zeros((), device=device))

    def forward(self, losses: Tensor, x: Inputs, labels: Tensor, rows: Tensor, student_logits: Tensor) -> Tensor:
        """The scalar loss from `losses` `[B]`; `rows` `[B]` are the samples' places in the training set."""
        losses = per_sample(losses, "lff")
        biased_logits = self._step(x, labels) if self.training else self._biased_logits(x, {})
        weights = self._weights(biased_logits.detach(), student_logits.detach().float(), labels, rows)
        return (weights * losses).mean()

    @torch.no_grad()
    def _weights(self, biased_logits: Tensor, student_logits: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        biased = self._difficulty(self.biased_losses, biased_logits, labels, rows)
        student = self._difficulty(self.student_losses, student_logits, labels, rows)
        if self.training:
            self.seen.index_fill_(0, rows, True)
        return biased / (biased + student + _EPSILON)

    def _difficulty(self, averages: Tensor, logits: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        """The samples' smoothed losses `[B]` over the largest of their class; moves the averages in training."""
        current = F.cross_entropy(logits, labels, reduction="none")
        smoothed = torch.lerp(current, averages[rows], self.smoothing)
        smoothed = torch.where(self.seen[rows], smoothed, current)
        averages = averages.index_copy_(0, rows, smoothed) if self.training else averages
        largest = averages.new_zeros(self.classes).scatter_reduce(0, self.labels_all, averages, "amax")
        return smoothed / largest[labels].clamp(min=_EPSILON)

    def _values(self) -> list[Tensor]:
        values = dict(self.biased.named_parameters())
        return [values[name] for name in self.trained]

    def _biased_logits(self, x: Inputs, values: dict[str, Tensor]) -> Tensor:
        output = functional_call(self.biased, values, *(((), dict(x)) if isinstance(x, Mapping) else ((x,),)))
        return _logits(output).float()

    def _step(self, x: Inputs, labels: Tensor) -> Tensor:
        """One optimiser step of the biased network; its logits `[B, C]` before the step."""
        values = self._values()
        leaves = [value.detach().requires_grad_() for value in values]
        with torch.enable_grad():
            logits = self._biased_logits(x, dict(zip(self.trained, leaves, strict=True)))
            log_p = -F.cross_entropy(logits, labels, reduction="none")
            loss = (-torch.expm1(self.q * log_p) / self.q).mean()  # 1 - p^q without cancellation near p = 1
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        with torch.no_grad():
            gradient = torch.cat([part.reshape(-1) for part in gradients]).float()
            if self.weight_decay:
                gradient = gradient + self.weight_decay * torch.cat([value.reshape(-1) for value in values]).float()
            parts = torch.split(self._direction(gradient), [value.numel() for value in values])
            for value, part in zip(values, parts, strict=True):
                value.sub_(part.view_as(value), alpha=self.learning_rate)
        return logits

    def _direction(self, gradient: Tensor) -> Tensor:
        if self.optimiser == "sgd":
            return self.first_moment.mul_(self.momentum).add_(gradient)
        first, second = _ADAM_DECAYS
        self.steps.add_(1)
        self.first_moment.lerp_(gradient, 1 - first)
        self.second_moment.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        scale = (self.second_moment / (1 - second**self.steps)).sqrt_().add_(_ADAM_EPSILON)
        return self.first_moment / (1 - first**self.steps) / scale


def _logits(output: Any) -> Tensor:
    found = output
    if isinstance(output, Mapping):
        found = output.get("logits")
    elif hasattr(output, "logits"):
        found = output.logits
    elif isinstance(output, tuple | list) and output:
        found = output[0]
    if not isinstance(found, Tensor) or found.dim() != 2:
        raise RecipeError(f"lff: the student's copy returned {type(output).__name__}, without logits [B, C] in it")
    return found
