"""What each term tells the student of a sample: its effective target, in closed form, for many samples at once.

**A term's own target** is the distribution at which its loss is smallest: what a student would answer (at temperature
1) that had learned this term alone. Cross entropy to that distribution is smallest at the same place, so it stands for
the term whatever the term's temperature is. Where the loss leaves something open, such as how much goes to the classes
that a refined term masks, these classes get an average class's share; where logits are standardised first, which leaves
the student's scale open, it is the teacher's.

**A recipe's target** is the mean of its terms' own targets, each weighted by its factor (averaged over the epochs, so
that a warm-up counts for what it is). For terms at temperature 1 this is exact: the gradient of their sum is that of
cross entropy to the mean, at every student. For a divergence at temperature τ it is what Hinton's factor τ² is there
for: it makes the pull towards the teacher one of weight α beside cross entropy of weight 1-α.

A term that says nothing about classes (FitNet, attention, RKD, CRD, ELR's memory) has no target and takes no part.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from limbeck.ledgers.wide import below, by_class, choose, first_choice, logsumexp, onehot, softmax
from limbeck.recipe import Recipe, Term
from limbeck.terms.basic import standardise
from limbeck.terms.catalogue import CATALOGUE, options
from limbeck.terms.partial import partial_targets
from limbeck.terms.rectified import rectify

_EPSILON = 1e-7  # of `standardise`

EDITS: Mapping[str, str] = MappingProxyType(
    {
        "label": "the given label is the target",
        "smoothed": "the label's certainty is spread over all classes",
        "followed": "the teacher's own output is the target",
        "softened": "the teacher's output, softened, is the target",
        "refined": "the teacher is wrong by the label, which gets the certainty that the teacher has in its own "
        "choice; classes ranked at or above the label are masked, the relations among the others are the teacher's",
        "confidence": "the label gets the certainty of the teacher, the rest is shared evenly",
        "relations": "only the relations among the other classes are the teacher's",
        "two_class": "the teacher is wrong by the label: its certainty is moved from its choice to the label",
        "swap": "the teacher is wrong by the label: its choice and the label change places",
        "onehot_average": "the teacher is wrong by the label: its output is averaged with the label",
        "revised": "the teacher is wrong by the label: its output is mixed with the label until the label wins",
        "posterior": "arbitration's posterior over the true class is the target",
        "candidates": "the truth is among the teacher's likeliest classes; the label is not used",
        "left out": "the teacher is wrong by the label, so what it says of this sample is left out",
        "own": "the term's own target",
        "none": "no term says anything about the classes",
    }
)
"""What a term can do to a target, in words."""


@dataclass(frozen=True)
class Samples:
    """Some training samples, as a term's target is made of them.

    Args:
        labels: `[B]`, int64.
        classes: C.
        teacher: logits `[B, C]`, float32, best laid out `by_class`; None where there are none.
        scale: `[B, 1]`, what one unit of these logits is of the teacher's own (1 unless they are standardised).
        share_right: the share of all training samples that the teacher has right.
        epochs: of the training.
        posterior: arbitration's targets `[B, C]`; None where there was no arbitration.
    """

    labels: Tensor
    classes: int
    teacher: Tensor | None
    scale: Tensor | None = None
    share_right: float = 1.0
    epochs: int = 1
    posterior: Tensor | None = None

    @cached_property
    def probabilities(self) -> Tensor:
        """The teacher's own output `[B, C]`, not to be changed."""
        return self.distribution(self.logits)

    @property
    def logits(self) -> Tensor:
        """The teacher's logits, which the caller knows to be there."""
        assert self.teacher is not None
        return self.teacher

    @property
    def onehot(self) -> Tensor:
        """The labels as distributions `[B, C]`."""
        return onehot(self.labels, self.classes)

    @cached_property
    def first(self) -> Tensor:
        """The teacher's first choice, `[B, 1]`."""
        return first_choice(self.logits)[1]

    @property
    def wrong(self) -> Tensor:
        """Where the teacher's first choice is not the label, bool `[B]`."""
        return self.first.squeeze(1) != self.labels

    def distribution(self, logits: Tensor) -> Tensor:
        """Softmax at temperature 1, in the teacher's own scale."""
        return softmax(logits if self.scale is None else logits * self.scale)


@dataclass(frozen=True)
class Told:
    """What one term tells of some samples.

    Args:
        target: `[B, C]`.
        say: what it counts beside other terms, per unit of its factor: a number or `[B]`.
        edits: names of `EDITS`.
        which: for each sample the place in `edits`, `[B]`; None for the first.
        masked: how many classes beside the label are taken out of the relations, `[B]`.
        withheld: where what the teacher says is kept from the student, bool `[B]`.
    """

    target: Tensor
    say: float | Tensor = 1.0
    edits: tuple[str, ...] = ("followed",)
    which: Tensor | None = None
    masked: Tensor | None = None
    withheld: Tensor | None = None


Teller = Callable[[Samples, Mapping[str, Any]], Told]


def _label(samples: Samples, given: Mapping[str, Any]) -> Told:
    return Told(samples.onehot, edits=("label",))


def _smoothed(samples: Samples, given: Mapping[str, Any]) -> Told:
    epsilon = given["epsilon"]
    return Told(samples.onehot * (1.0 - epsilon) + epsilon / samples.classes, edits=("smoothed",))


def _virtual(samples: Samples, given: Mapping[str, Any]) -> Told:
    rest = (1.0 - given["confidence"]) / (samples.classes - 1)
    made = samples.onehot * (given["confidence"] - rest) + rest
    return Told(softmax(made / given["temperature"]), edits=("smoothed",))


def _followed(samples: Samples, given: Mapping[str, Any]) -> Told:
    return Told(samples.probabilities)


def _softened(samples: Samples, given: Mapping[str, Any]) -> Told:
    return Told(softmax(samples.logits * given["gamma"]), edits=("softened",))


def _softened_weighted(samples: Samples, given: Mapping[str, Any]) -> Told:
    say = (torch.log_softmax(samples.logits, 1) * given["gamma"]).logsumexp(1).exp()
    return Told(_softened(samples, given).target, say, ("softened",))


def _decoupled(
    samples: Samples, refined: bool, temperature: float, confidence_temperature: float, alpha: float, beta: float
) -> Told:
    """Certainty and relations apart, in logits: the relations of the kept classes are the teacher's own differences.

    The label's logit is then the one at which its coin, label against all others, falls as the teacher's does.
    """
    teacher, label = samples.logits, samples.labels.unsqueeze(1)
    if not beta:
        kept = torch.zeros_like(teacher, dtype=torch.bool)
    elif refined:
        kept = below(teacher, teacher.gather(1, label))
    else:
        kept = torch.ones_like(teacher, dtype=torch.bool).scatter_(1, label, False)
    count = kept.sum(1, keepdim=True, dtype=torch.int32)
    scaled = teacher / confidence_temperature
    level = logsumexp(choose(kept, scaled, -math.inf))
    level = choose(count > 0, (level - count.clamp(min=1).log()).mul_(confidence_temperature), 0.0)
    target = choose(kept, teacher, level)
    if alpha:
        place = samples.first if refined else label
        certainty = scaled.gather(1, place)
        coin = certainty - logsumexp(scaled.scatter_(1, place, -math.inf))
        # The kept classes and the masked ones are at this level on average: together they are C - 1 times it.
        rest = level + confidence_temperature * math.log(samples.classes - 1)
        target.scatter_(1, label, rest.add_(coin, alpha=confidence_temperature))
    masked = samples.classes - 1 - count.squeeze(1) if beta and refined else None
    if alpha and beta:
        edits, which = (("followed", "refined"), samples.wrong.long()) if refined else (("followed",), None)
    else:
        edits, which = (("confidence",) if alpha else ("relations",)), None
    # Relations say nothing of the label, and where another term does, they do not weaken it.
    return Told(samples.distribution(target), float(alpha), edits, which, masked)


def _refined(samples: Samples, given: Mapping[str, Any]) -> Told:
    own = given["confidence_temperature"]
    temperature = given["temperature"]
    confidence = temperature if own is None else own
    return _decoupled(samples, True, temperature, confidence, given["alpha"], given["beta"])


def _dkd(samples: Samples, given: Mapping[str, Any]) -> Told:
    temperature = given["temperature"]
    return _decoupled(samples, False, temperature, temperature, given["alpha"], given["beta"])


def _part_of(refined: bool, alpha: float, beta: float) -> Teller:
    def told(samples: Samples, given: Mapping[str, Any]) -> Told:
        return _decoupled(samples, refined, given["temperature"], given["temperature"], alpha, beta)

    return told


def _rectified(samples: Samples, given: Mapping[str, Any]) -> Told:
    temperature, variant = given["temperature"], given["variant"]
    if given["space"] == "prob":
        repaired = _rectify(softmax(samples.logits / temperature), samples.labels, variant)
        target = samples.distribution(_log(repaired) * temperature)
    else:
        target = samples.distribution(_rectify(samples.logits, samples.labels, variant))
    wrong = samples.wrong
    balance = _mean_balance(given["balance"], samples.epochs)
    on_wrong = 0.0 if given["eliminate_only"] else 1.0 - balance
    share_wrong = 1.0 - samples.share_right
    say = torch.where(wrong, on_wrong / max(share_wrong, 1e-12), balance / max(samples.share_right, 1e-12))
    if given["eliminate_only"]:
        return Told(target, say, ("followed", "left out"), wrong.long(), withheld=wrong)
    return Told(target, say, ("followed", variant), wrong.long())


def _rectify(values: Tensor, labels: Tensor, variant: str) -> Tensor:
    """The edit of the loss itself, which goes row by row."""
    return by_class(rectify(values.contiguous(), labels, variant))


def _mean_balance(fixed: float | None, epochs: int) -> float:
    if fixed is not None:
        return fixed
    return sum(math.cos(math.pi / 2 * epoch / epochs) ** 2 for epoch in range(epochs)) / epochs


def _log(probabilities: Tensor) -> Tensor:
    return probabilities.clamp(min=torch.finfo(torch.float32).tiny).log()


def _swapped(samples: Samples, given: Mapping[str, Any]) -> Told:
    target = samples.distribution(_rectify(samples.logits, samples.labels, "swap"))
    return Told(target, edits=("followed", "swap"), which=samples.wrong.long())


def _revised(samples: Samples, given: Mapping[str, Any]) -> Told:
    temperature, label, wrong = given["temperature"], samples.labels.unsqueeze(1), samples.wrong
    p = softmax(samples.logits / temperature)
    beta = given["eta"] / (p.amax(1, keepdim=True) - p.gather(1, label) + 1.0)
    revised = (p * beta).scatter_add(1, label, 1.0 - beta)
    kept = p if given["loss"] == "kl" else (p + samples.onehot) / 2  # cross entropy and logits side by side
    target = samples.distribution(_log(choose(wrong.unsqueeze(1), revised, kept)) * temperature)
    return Told(target, edits=("followed", "revised"), which=wrong.long())


def _candidates(samples: Samples, given: Mapping[str, Any]) -> Told:
    k, weights = given["k"], given["weights"]
    if weights is not None and given["loss"] == "gce":
        # Σ w_j (1 - p_j^q)/q is smallest at p_j ∝ w_j^(1/(1-q)); at q = 1 the largest weights take all.
        q, most = given["q"], max(weights)
        raised = [float(w == most) if q == 1.0 else (w / most) ** (1.0 / (1.0 - q)) for w in weights]
        weights = [value / sum(raised) for value in raised]
    return Told(partial_targets(samples.logits, k, weights), edits=("candidates",))


def _posterior(samples: Samples, given: Mapping[str, Any]) -> Told:
    assert samples.posterior is not None
    return Told(samples.posterior / samples.posterior.sum(1, keepdim=True), edits=("posterior",))


def _expected(samples: Samples, given: Mapping[str, Any]) -> Told:
    """The refined target of each of the likeliest classes, by the posterior."""
    assert samples.posterior is not None
    shares, places = samples.posterior.sort(dim=1, descending=True, stable=True)
    shares = shares[:, : given["likely"]]
    shares = shares / shares.sum(1, keepdim=True)
    target = torch.zeros_like(samples.posterior)
    for rank in range(shares.shape[1]):
        of_class = replace(samples, labels=places[:, rank])
        told = _decoupled(of_class, True, given["temperature"], given["temperature"], given["alpha"], given["beta"])
        target.addcmul_(told.target, shares[:, rank : rank + 1])
    return Told(target, float(given["alpha"]), ("posterior",))


TELLERS: Mapping[str, Teller] = MappingProxyType(
    {
        "cross_entropy": _label,
        "gce": _label,
        "rc": _label,
        "nkd": _label,
        "label_smoothing": _smoothed,
        "tf_kd": _virtual,
        "kl_divergence": _followed,
        "ctkd": _followed,
        "dist": _followed,
        "ttm": _softened,
        "wttm": _softened_weighted,
        "refined_logits": _refined,
        "sample_confidence": _part_of(True, 1.0, 0.0),
        "masked_correlation": _part_of(True, 0.0, 1.0),
        "decoupled": _dkd,
        "tckd": _part_of(False, 1.0, 0.0),
        "nckd": _part_of(False, 0.0, 1.0),
        "rectified_bias": _rectified,
        "la": _swapped,
        "lr": _revised,
        "partial_label": _candidates,
        "feature_mse": _followed,
        "soft_cross_entropy": _posterior,
        "expected_refined_logits": _expected,
    }
)
"""The target of each term of the catalogue that has one."""


@dataclass(frozen=True)
class Speaker:
    """A term of a recipe, ready to say what it tells."""

    term: Term
    tell: Teller
    given: Mapping[str, Any]
    factor: float

    def told(self, samples: Samples) -> Told:
        """What it tells of these samples."""
        if self.term.standardise and samples.teacher is not None:
            scores = standardise(samples.teacher)
            scale = samples.teacher.std(1, keepdim=True) + _EPSILON
            samples = replace(samples, teacher=scores, scale=scale)
        return self.tell(samples, self.given)


def speakers(recipe: Recipe, epochs: int, *, teacher: bool, posterior: bool = False) -> tuple[list[Speaker], list[str]]:
    """The terms of a recipe that have a target, and a note on each that has none.

    Args:
        recipe: the recipe.
        epochs: of the training; a warm-up is averaged over them.
        teacher: whether the teacher's logits are known.
        posterior: whether arbitration's targets are known.
    """
    found: list[Speaker] = []
    notes: list[str] = []
    for term in recipe.terms:
        tell = _teller(term)
        if term.name == "feature_mse" and recipe.head is None:
            tell = None  # without the teacher's last layer, features say nothing of classes
        if tell is None:
            notes.append(f"{term.name}: says nothing about classes, or not by a known rule; it is in no target")
            continue
        asks = tell is not _label and ("teacher_logits" in term.needs or term.name == "feature_mse")
        if asks and not teacher:
            notes.append(f"{term.name}: the teacher's logits are not known; it is in no target")
            continue
        if "targets" in term.needs and not posterior:
            notes.append(f"{term.name}: arbitration's targets are not known; it is in no target")
            continue
        given = {name: value for name, value in options(term.function).items() if value is not inspect.Parameter.empty}
        found.append(Speaker(term, tell, {**given, **term.options}, _mean_factor(term, epochs)))
    return found, notes


def _teller(term: Term) -> Teller | None:
    info = CATALOGUE.get(term.name)
    if info is not None and info.function is term.function:
        return TELLERS.get(term.name)
    own = getattr(term.function, "target", None)
    if own is None:
        return None

    def told(samples: Samples, given: Mapping[str, Any]) -> Told:
        named = {"teacher_logits": samples.teacher, "labels": samples.labels, "classes": samples.classes}
        names = inspect.signature(own).parameters
        return Told(
            own(**{name: value for name, value in (named | dict(given)).items() if name in names}), 1.0, ("own",)
        )

    return told


def _mean_factor(term: Term, epochs: int) -> float:
    warm = term.warmup * epochs
    if warm <= 0:
        return term.weight
    return term.weight * sum(min((epoch + 1) / warm, 1.0) for epoch in range(epochs)) / epochs


@dataclass(frozen=True)
class Mixed:
    """What a recipe tells of some samples: `target` `[B, C]` (NaN where nothing), the `rule` by its place in `rules_of`
    `[B]`, `masked` `[B]` or None, `withheld` bool `[B]`."""

    target: Tensor
    rule: Tensor
    masked: Tensor | None
    withheld: Tensor


def rules_of(found: Sequence[Speaker]) -> list[str]:
    """The names of all rules that these terms can apply, `term: edit`, in the order that `Mixed.rule` counts in."""
    names = [f"{speaker.term.name}: {edit}" for speaker in found for edit in EDITS]
    return [*names, "none"]


def mixed(found: Sequence[Speaker], samples: Samples) -> Mixed:
    """The recipe's target, and for each sample the rule that moved it farthest from the label."""
    size, edits = len(samples.labels), list(EDITS)
    rule = torch.full((size,), len(found) * len(edits), dtype=torch.int32)
    withheld = torch.zeros(size, dtype=torch.bool)
    masked: Tensor | None = None
    if not found:
        return Mixed(torch.full((size, samples.classes), torch.nan), rule, None, withheld)
    every = [speaker.told(samples) for speaker in found]
    # [B, 1], or [1, 1] where it is the same for all samples
    say = [
        torch.as_tensor(told.say, dtype=torch.float32).reshape(-1, 1) * speaker.factor
        for speaker, told in zip(found, every, strict=True)
    ]
    says = sum(say[1:], say[0])
    target = every[0].target * say[0]
    for told, part in zip(every[1:], say[1:], strict=True):
        target.addcmul_(told.target, part)
    target.div_(says.clamp(min=torch.finfo(torch.float32).tiny))
    farthest, label = torch.full((size,), -1.0), samples.labels.unsqueeze(1)
    for place, told in enumerate(every):
        moved = (1.0 - told.target.gather(1, label)).mul_(say[place]).squeeze(1)
        codes = torch.tensor([place * len(edits) + edits.index(edit) for edit in told.edits], dtype=torch.int32)
        own = codes[0].expand(size) if told.which is None else codes[told.which]
        if told.withheld is not None:
            withheld |= told.withheld
            moved = torch.where(told.withheld, torch.inf, moved)
        rule = choose(moved > farthest, own, rule)
        farthest = torch.maximum(moved, farthest)
        masked = told.masked if told.masked is not None else masked
    # Terms of relations alone have no say beside others; where there are no others, theirs is the target.
    heard = says > 0
    if not heard.all():
        quiet = torch.stack([told.target for told in every]).mean(0)
        target = torch.where(heard, target, quiet)
    target[withheld & ~heard.squeeze(1)] = torch.nan
    return Mixed(target, rule, masked, withheld)
