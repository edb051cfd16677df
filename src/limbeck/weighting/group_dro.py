"""Group distributionally robust optimisation: the worse a group does, the more it weighs.

Sagawa, Koh, Hashimoto and Liang, "Distributionally robust neural networks for group shifts", ICLR 2020, arXiv
1911.08731, Algorithm 1 [code]; with distillation losses inside, Vilouras et al., "Group distributionally robust
knowledge distillation", arXiv 2311.00476 [text].
"""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.weighting.base import GroupWeighting, checked_counts, choose

_ABSENT = ("keep", "zero")


class GroupDRO(GroupWeighting):
    """A weight q_g per group, raised by exponentiated gradient ascent on the group losses.

        q_g <- q_g exp(step (L_g + adjustment / sqrt(n_g))), normalised;     loss = sum_g q_g L_g

    L_g is the batch mean of the group. q starts uniform, is updated before the loss is formed and carries no
    gradient. It is kept in log space, with its largest entry at zero, so neither losses of 1e4 nor a long run
    overflow it. In evaluation mode q stands still. With one group the loss is the mean; with `step=0` it is
    `GroupBalanced(absent="zero")`.

    A sample of unknown group (-1) is left out; a batch with no known group has the loss 0, no gradient, and moves q
    only through the adjustment (`absent="zero"`). A group without a training sample (by `group_counts`) has q = 0
    [choice].

    Args:
        groups: number of groups m.
        step: step size of q, eta. The authors' default.
        adjustment: generalisation adjustment C, 0 to 5 in the paper: small groups are raised. Needs `group_counts`.
        group_counts: training samples of each group `[m]`.
        absent: `"keep"` (default): a group that the batch does not hold keeps q_g as it is, before the normalisation;
            `"zero"`: it enters with L_g = 0, as in the authors' code. They differ where `adjustment` is not 0, which
            then raises absent groups too.
        normalise_losses: divide the exponents by their sum, L_g / sum L: a step that does not shrink with the losses,
            for divergences from a confident teacher, under which q would hardly move.

    Raises:
        RecipeError: for an unknown `absent`, counts that do not fit, or an adjustment without counts.
    """

    log_weights: Tensor
    penalty: Tensor

    def __init__(
        self,
        groups: int,
        step: float = 0.01,
        adjustment: float = 0.0,
        group_counts: Tensor | None = None,
        absent: str = "keep",
        normalise_losses: bool = False,
    ) -> None:
        super().__init__(groups)
        if step < 0:
            raise RecipeError(f"step={step} would lower the weight of the worst group: expected 0 or more")
        if adjustment and group_counts is None:
            raise RecipeError(f"adjustment={adjustment} divides by the root of each group's size: give group_counts")
        self.step, self.adjustment, self.normalise_losses = step, adjustment, normalise_losses
        self.absent = choose("absent", absent, _ABSENT)
        counts = checked_counts(group_counts, groups, "group_counts")
        counts = torch.ones(groups) if counts is None else counts
        self.register_buffer("log_weights", torch.where(counts > 0, 0.0, -torch.inf))
        self.register_buffer("penalty", adjustment / counts.clamp(min=1).sqrt())

    @property
    def q(self) -> Tensor:
        """The group weights `[m]`, summing to 1."""
        return self.log_weights.softmax(dim=0)

    @torch.no_grad()
    def sample_weights(self, sums: Tensor, counts: Tensor) -> Tensor:
        """q_g over the number of its samples in the batch, `[m]`; updates q first."""
        present = counts.clamp(min=1)
        if self.training:
            self._ascend(sums / present, counts)
        return self.q / present

    def _ascend(self, means: Tensor, counts: Tensor) -> None:
        risk = means
        if self.adjustment:
            risk = means + (self.penalty * (counts > 0) if self.absent == "keep" else self.penalty)
        if self.normalise_losses:
            risk = risk / risk.sum().clamp(min=torch.finfo(risk.dtype).tiny)
        raised = self.log_weights + self.step * risk
        self.log_weights.copy_(raised - raised.max())
