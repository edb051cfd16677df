"""When a recipe is expected to help or to harm: every condition is a value, and `GATES` is the one table of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any, Literal

from limbeck.audits.labels import MATERIAL
from limbeck.audits.said import Said, plain
from limbeck.errors import RecipeError
from limbeck.probe.partial import IMBALANCE
from limbeck.recipe import Recipe

Effect = Literal["harm", "help", "caution", "impossible"]

FEW = 30
"""Training samples of a group below which group weights repeat the same few samples."""

FEW_VALIDATION = 10
"""Validation samples below which a group decides nothing, as in evaluation."""

UNEVEN = 0.1
"""How far the plain probe's worst group must lie below its average for a group to count as hard."""

LARGE_STEP = 0.05
"""A group DRO step from which a large loss drives all weight to one group within an epoch (.1 did, .01 did not)."""

LARGE_SCALE = 4.0
"""τ² times weight from which the losses of a term are large."""


@dataclass(frozen=True)
class Measured:
    """The numbers that gates are tested on. nan where something was not measured.

    Attributes:
        classes, samples: of the training part. class_ratio: the largest class over the smallest.
        groups: names; None where none are declared. label_groups: whether they are made of the (observed) label.
        smallest_group, smallest_count: in training.
        unseen_groups: without a validation sample; thin_groups: with fewer than `FEW_VALIDATION`.
        noise, noise_low, noise_high: rate of wrong labels.
        plain_average, plain_worst: by a probe on all samples alike; balanced_*: by one in which every cell weighs the
            same.
        gain_low: lower 95 % limit of what balancing gains in the plain probe's worst group.
        teacher: whether there is one. supplies: what it can supply (of logits, features, maps, head).
        teacher_average, teacher_worst, teacher_worst_high, teacher_group: its cap.
        hurt, helped: groups that copying it hurts or helps. average: "hurts", "helps" or "not distinguishable".
        top2, top2_worst, top2_group: how often the label is in its top two, overall and in the worst group or class.
        memorised: whether it has learned its training labels by heart.
    """

    classes: int
    samples: int
    class_ratio: float
    groups: tuple[str, ...] | None
    label_groups: bool
    smallest_group: str | None
    smallest_count: int
    unseen_groups: tuple[str, ...]
    thin_groups: tuple[str, ...]
    noise: float
    noise_low: float
    noise_high: float
    plain_average: float
    plain_worst: float
    balanced_average: float
    balanced_worst: float
    gain_low: float
    teacher: bool = False
    supplies: tuple[str, ...] = ()
    teacher_average: float = float("nan")
    teacher_worst: float = float("nan")
    teacher_worst_high: float = float("nan")
    teacher_group: str | None = None
    hurt: tuple[str, ...] = ()
    helped: tuple[str, ...] = ()
    average: str = "not distinguishable"
    top2: float = float("nan")
    top2_worst: float = float("nan")
    top2_group: str | None = None
    memorised: bool = False

    @property
    def labels_worst(self) -> float:
        """The worst group by the labels alone, of the better probe."""
        return max(self.plain_worst, self.balanced_worst)

    @property
    def lowered(self) -> bool:
        """Whether copying the teacher lowers the worst group: it hurts one, and ends below what the labels give."""
        return bool(self.hurt) and self.teacher_worst < self.labels_worst

    @property
    def noisy(self) -> bool:
        """Whether wrong labels are common enough to matter."""
        return self.noise_low >= MATERIAL

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; None for nan."""
        values = asdict(self).items()
        return {key: None if isinstance(value, float) and value != value else value for key, value in values}


# What a recipe is -----------------------------------------------------------------------------------------------------

_TAKES_LABEL_SIDE = ("refined_logits", "rectified_bias", "sample_confidence", "masked_correlation", "la", "lr", "rc")
_ROBUST = ("gce", "elr", "label_smoothing")


def _terms(recipe: Recipe) -> set[str]:
    return {term.name for term in recipe.terms}


def listens(recipe: Recipe) -> bool:
    """Takes anything from a teacher that is given."""
    return bool(recipe.teacher_outputs)


def repairs(recipe: Recipe) -> bool:
    """Takes the label's side wherever teacher and label differ."""
    return listens(recipe) and bool(_terms(recipe) & set(_TAKES_LABEL_SIDE))


def copies(recipe: Recipe) -> bool:
    """Learns what the teacher says, its mistakes included."""
    return listens(recipe) and not repairs(recipe)


def weighs_groups(recipe: Recipe) -> bool:
    """Uses the groups of training (or, refitting a head, of validation) samples."""
    return recipe.needs_groups or (recipe.identify is not None and not recipe.identify.trains)


def seeks_errors(recipe: Recipe) -> bool:
    """Gives weight to what a model gets wrong."""
    return (recipe.identify is not None and recipe.identify.trains) or recipe.weighting.name in ("lff", "dedier")


KINDS: Mapping[str, Callable[[Recipe], bool]] = MappingProxyType(
    {
        "any": lambda recipe: True,
        "copies the teacher": copies,
        "repairs the teacher": repairs,
        "transplants the head": lambda recipe: recipe.head is not None,
        "partial labels": lambda recipe: "partial_label" in _terms(recipe),
        "averages labels": lambda recipe: recipe.rounds > 1,
        "weighs groups": weighs_groups,
        "refits on validation": lambda recipe: recipe.refit is not None,
        "seeks errors": seeks_errors,
        "gives up improbable labels": lambda recipe: "gce" in _terms(recipe),
        "robust to wrong labels": lambda recipe: bool(_terms(recipe) & set(_ROBUST)),
        "group DRO": lambda recipe: recipe.weighting.name == "group_dro",
    }
)
"""Families of recipes, told from what a recipe does and not from its name."""


# The table ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gate:
    """One condition.

    Attributes:
        name: for reports.
        recipes: the family it is about, a key of `KINDS`.
        effect: "harm", "help", "caution" (worth knowing, changes no rank) or "impossible".
        test: from the measured numbers and the recipe to whether it applies.
    """

    name: str
    recipes: str
    effect: Effect
    test: Callable[[Measured, Recipe], bool]

    def applies(self, measured: Measured, recipe: Recipe) -> bool:
        """Whether it is about this recipe and its condition holds."""
        return KINDS[self.recipes](recipe) and self.test(measured, recipe)

    def reason(self, measured: Measured) -> str:
        """Why, with the measured numbers: the sentence `gate.<name>` of `words.yaml`."""
        return Said(f"gate.{self.name}", _shown(measured))


@dataclass(frozen=True)
class Finding:
    """A gate that applies to a recipe on these data."""

    gate: str
    effect: Effect
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; `said` is the reason apart from its language, where it is known so."""
        return {**asdict(self), "said": plain(self.reason)}


def _large_losses(recipe: Recipe) -> bool:
    for term in recipe.terms:
        if term.weighted and term.name in ("refined_logits", "rectified_bias"):
            temperature = float(term.options.get("temperature", 4.0))
            if temperature**2 * term.weight * float(term.options.get("beta", 1.0)) >= LARGE_SCALE:
                return True
    return False


def _dro_step(recipe: Recipe) -> float:
    normalised = bool(recipe.weighting.options.get("normalise_losses", False))
    return 0.0 if normalised else float(recipe.weighting.options.get("step", 0.01))


GATES: tuple[Gate, ...] = (
    Gate(
        "teacher too wrong on a group",
        "copies the teacher",
        "harm",
        lambda m, r: m.lowered,
    ),
    Gate(
        "teacher uneven",
        "copies the teacher",
        "caution",
        lambda m, r: bool(m.hurt) and not m.lowered,
    ),
    Gate(
        "teacher worse than the labels",
        "copies the teacher",
        "harm",
        lambda m, r: m.average == "hurts",
    ),
    Gate(
        "teacher too wrong to transplant",
        "transplants the head",
        "harm",
        lambda m, r: m.teacher and m.teacher_worst_high < 0.5,
    ),
    Gate(
        "teacher knows more than the labels",
        "copies the teacher",
        "help",
        lambda m, r: bool(m.helped) and not m.lowered and m.average != "hurts",
    ),
    Gate(
        "label outside the top two",
        "partial labels",
        "harm",
        lambda m, r: m.teacher and 1 - m.top2 > m.noise_high,
    ),
    Gate(
        "teacher has learned the labels by heart",
        "partial labels",
        "caution",
        lambda m, r: m.memorised,
    ),
    Gate(
        "imbalanced classes",
        "averages labels",
        "harm",
        lambda m, r: m.class_ratio > IMBALANCE,
    ),
    Gate(
        "averaging of wrong labels",
        "averages labels",
        "help",
        lambda m, r: m.noisy and m.classes > 2 and m.class_ratio <= IMBALANCE,
    ),
    Gate(
        "too few samples in a group",
        "weighs groups",
        "caution",
        lambda m, r: m.smallest_count < FEW,
    ),
    Gate(
        "groups missing from validation",
        "weighs groups",
        "caution",
        lambda m, r: bool(m.unseen_groups),
    ),
    Gate(
        "validation too thin to refit on",
        "refits on validation",
        "harm",
        lambda m, r: bool(m.unseen_groups or m.thin_groups),
    ),
    Gate(
        "group weights over wrong labels",
        "weighs groups",
        "caution",
        lambda m, r: m.noisy and m.label_groups,
    ),
    Gate(
        "group weights help",
        "weighs groups",
        "help",
        lambda m, r: m.gain_low > 0,
    ),
    Gate(
        "error set of wrong labels",
        "seeks errors",
        "harm",
        lambda m, r: m.noisy,
    ),
    Gate(
        "wrong labels",
        "robust to wrong labels",
        "help",
        lambda m, r: m.noisy,
    ),
    Gate(
        "hard groups given up",
        "gives up improbable labels",
        "harm",
        lambda m, r: m.groups is not None and m.plain_worst < m.plain_average - UNEVEN,
    ),
    Gate(
        "repairs what was right",
        "repairs the teacher",
        "harm",
        lambda m, r: m.noisy and bool(m.helped) and not m.lowered,
    ),
    Gate(
        "weights that collapse",
        "group DRO",
        "harm",
        lambda m, r: _dro_step(r) >= LARGE_STEP and _large_losses(r),
    ),
)
"""Every gate there is, apart from what a recipe itself refuses (`Recipe.check`) and what a teacher cannot supply."""


def findings(recipe: Recipe, measured: Measured) -> tuple[Finding, ...]:
    """Everything that the measured numbers say about one recipe, the impossible first."""
    found = _impossible(recipe, measured)
    found += [Finding(g.name, g.effect, g.reason(measured)) for g in GATES if g.applies(measured, recipe)]
    return tuple(found)


def _impossible(recipe: Recipe, measured: Measured) -> list[Finding]:
    groups = None if measured.groups is None else list(measured.groups)
    found = []
    try:
        warnings = recipe.check(classes=measured.classes, groups=groups, teacher=measured.teacher)
        found += [Finding("two classes under a masked term", "caution", warning) for warning in warnings]
    except RecipeError as error:
        found.append(Finding("refused by the recipe", "impossible", str(error)))
    lacking = sorted(recipe.teacher_outputs - set(measured.supplies)) if measured.teacher else []
    if lacking:
        told = {"needs": lacking, "supplies": list(measured.supplies)}
        found.append(Finding("not supplied", "impossible", Said("gate.not supplied", told)))
    return found


def _shown(measured: Measured) -> dict[str, Any]:
    """What the sentences of the gates may name."""
    m = measured
    better = m.balanced_average if m.balanced_worst > m.plain_worst else m.plain_average
    return {
        **{entry.name: getattr(m, entry.name) for entry in fields(m) if isinstance(getattr(m, entry.name), float)},
        "hurt": list(m.hurt),
        "helped": list(m.helped),
        "teacher_group": m.teacher_group or Said("name.worst_group"),
        "labels_worst": m.labels_worst,
        "labels_average": better,
        "top2_miss": 1 - m.top2,
        "top2_worst_miss": 1 - m.top2_worst,
        "top2_group": m.top2_group or Said("name.all"),
        "smallest_group": m.smallest_group or Said("name.group"),
        "smallest_count": m.smallest_count,
        "unseen_groups": list(m.unseen_groups),
        "too_thin": list(m.unseen_groups + m.thin_groups),
    }
