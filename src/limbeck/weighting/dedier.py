"""Early readouts: what the first layers get wrong with confidence is where a shortcut misleads.

Tiwari et al., "Using early readouts to mediate featural bias in distillation" (DEDIER), arXiv 2310.18590.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.weighting.base import per_sample


class Dedier(nn.Module):
    """w_i = exp(beta margin_i^alpha) where an early readout of the student is wrong, 1 where it is right.

    The readout is a linear classifier on an early layer of the student; its margin is the difference of its two largest
    probabilities [text]. loss = mean(w_i loss_i). w carries no gradient.

    [choice] The source is silent, to our knowledge, or varies them by data set: the readout is read afresh in every
    batch; it is trained by the student's optimiser on cross entropy, and its gradient stops at the features, so it
    watches the student without steering it; it starts at zero, so that w starts at 1; beta and alpha below, under
    which a confident mistake weighs exp(3), about 20. The value returned is the weighted loss alone: the readout's
    own loss adds its gradient, not its value.

    Args:
        early_width: width of the early features D.
        classes: number of classes C.
        beta: weight of a fully confident mistake, on a log scale.
        alpha: exponent of the margin: above 1 only the confident mistakes count.
    """

    def __init__(self, early_width: int, classes: int, beta: float = 3.0, alpha: float = 1.0) -> None:
        super().__init__()
        self.beta, self.alpha = beta, alpha
        self.readout = nn.Linear(early_width, classes)
        nn.init.zeros_(self.readout.weight)
        nn.init.zeros_(self.readout.bias)

    def forward(self, losses: Tensor, early_features: Tensor, labels: Tensor) -> Tensor:
        """The scalar loss from `losses` `[B]`, the pooled output `[B, D]` of the early layer and `labels` `[B]`."""
        losses = per_sample(losses, "dedier")
        logits = self.readout(early_features.detach().float())
        reading = F.cross_entropy(logits, labels)
        return (self.weights(logits, labels) * losses).mean() + (reading - reading.detach())

    @torch.no_grad()
    def weights(self, readout_logits: Tensor, labels: Tensor) -> Tensor:
        """The sample weights `[B]` from the readout's logits `[B, C]`."""
        top, order = readout_logits.softmax(dim=1).topk(2, dim=1)
        raised = torch.exp(self.beta * (top[:, 0] - top[:, 1]) ** self.alpha)
        return torch.where(order[:, 0] == labels, 1.0, raised)
