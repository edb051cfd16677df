"""The trial: recipes measured on the data at hand, as linear students on the witness's features, in place of reasoning.

What a recipe does to the worst group depends on how wrong the teacher is, how many labels are wrong, and how much of
that the loss and the weights carry into the student. A linear student that is trained by the recipe itself shows all of
it at once, in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from limbeck.audits.cap import Reach, Resampled, resample
from limbeck.audits.crossfit import deal_folds
from limbeck.audits.noise import Floats, Integers
from limbeck.audits.said import Said
from limbeck.data.columns import Groups
from limbeck.data.splits import TEST, TRAIN, VALIDATION
from limbeck.errors import ConfigError, RecipeError
from limbeck.presets import as_recipe
from limbeck.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

    from limbeck.data import Data
    from limbeck.training import Training

MOST = 20_000
"""Samples that recipes are tried on; of more, so many are drawn."""

FOLDS = 4

EPOCHS, STEPS = 8, 400
"""A linear student takes about `STEPS` steps in `EPOCHS` epochs, however many samples there are."""

LEARNING_RATE = 5e-3

PLAIN = "erm"


@dataclass(frozen=True)
class Tried:
    """One recipe.

    Attributes:
        recipe: its name.
        reach: average and worst group of its students, each sample judged by one that it did not train.
        gain: its worst group (its average, where no groups are declared) minus that of the plain student, with its
            interval.
        behind: how far it is behind the best recipe tried, with its interval; 0 for the best.
    """

    recipe: str
    reach: Reach
    gain: float
    gain_low: float
    gain_high: float
    behind: float
    behind_low: float
    behind_high: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; None for nan."""
        values = {key: None if value != value else value for key, value in asdict(self).items() if key != "reach"}
        return {**values, "reach": self.reach.to_dict()}


@dataclass(frozen=True, eq=False)
class Trial:
    """Recipes tried on the same folds of the same samples.

    Attributes:
        tried: one each, the best first.
        metric: "worst" or "average".
        best: the name of the best.
        student: what was trained, in words.
        left_out: why a recipe could not be tried, by name.
        samples, folds: what was tried on, and in how many parts.
        corrected: whether accuracies are corrected for label noise.
    """

    tried: tuple[Tried, ...]
    metric: str
    best: str
    student: str
    left_out: Mapping[str, str]
    samples: int
    folds: int
    corrected: bool

    def of(self, recipe: str) -> Tried | None:
        """The recipe of that name, where it was tried."""
        return next((entry for entry in self.tried if entry.recipe == recipe), None)

    def value(self, entry: Tried) -> float:
        """What a recipe reached, by the metric of the trial."""
        return entry.reach.worst if self.metric == "worst" else entry.reach.average

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "metric": self.metric,
            "best": self.best,
            "student": self.student,
            "samples": self.samples,
            "folds": self.folds,
            "corrected": self.corrected,
            "tried": [entry.to_dict() for entry in self.tried],
            "left_out": dict(self.left_out),
        }


def run_trial(
    seen: Data,
    features: NDArray[Any],
    groups: Groups,
    recipes: Sequence[Recipe],
    log_probabilities: Floats | None = None,
    *,
    matrix: Floats | None = None,
    student: nn.Module | Callable[[], nn.Module] | None = None,
    training: Training | None = None,
    folds: int = FOLDS,
    seed: int = 0,
) -> Trial:
    """Train every recipe on all folds but two, keep the epoch that is best on one of these, and judge on the other.

    Args:
        seen: the samples to try on, N. Their groups are what recipes are told, where they are declared.
        features: `[N, D]` of the witness.
        groups: in which accuracy is measured: the declared ones, or one a class.
        recipes: those to try; the plain student is tried beside them.
        log_probabilities: the teacher's `[N, C]`; None without a teacher.
        matrix: p(given | true) `[C, C]`: accuracies are then corrected for label noise. None: they are on given labels.
        student: what is trained, on the inputs as they are; None: a linear layer on the features, standardised.
        training: how; None: see `EPOCHS`.
        folds: 3 or more.
        seed: of folds, samples and students.

    Raises:
        ConfigError: fewer than three folds.
    """
    from limbeck.probes import fit_probes

    if folds < 3:
        raise ConfigError(f"folds: a trial trains on all but two, so three are needed, found {folds}")
    part = _drawn(len(seen), seed)
    data = seen.subset(part)
    left_out = {recipe.name: _why_not(recipe, data, log_probabilities is not None) for recipe in recipes}
    wanted = {PLAIN: as_recipe(PLAIN), **{each.name: each for each in recipes if not left_out[each.name]}}
    cells = groups.index[part] * data.num_classes + data.y
    fold = deal_folds(cells, folds, seed)
    base, described = data, Said("trial.given")
    if student is None:
        described = Said("trial.linear")
        x = _standardised(np.asarray(features)[part])
        base, student = data.replace(x=x, feature_names=None), partial(_linear, x.shape[1], data.num_classes)
    fitted = fit_probes(
        student,
        [base.replace(split=_split(fold, number, folds)) for number in range(folds)],
        teacher=None if log_probabilities is None else _table(data, log_probabilities[part]),
        recipes=list(wanted.values()),
        seeds=[seed],
        training=training or _training(len(data) * (folds - 2) // folds),
    )
    answers = {name: np.empty(len(data), np.int64) for name in wanted}
    for place, one in enumerate(fitted):
        number, name = divmod(place, len(wanted))
        rows = np.flatnonzero(fold == number)
        answers[list(wanted)[name]][rows] = _predicted(one.model, base.subset(rows))
    found = resample(answers, data.y, groups.take(part), classes=data.classes, matrix=matrix, seed=seed)
    metric = "average" if seen.groups is None else "worst"
    tried = _tried(found, list(wanted), metric)
    why = {name: reason for name, reason in left_out.items() if reason}
    return Trial(tried, metric, tried[0].recipe, described, why, len(data), folds, matrix is not None)


def _why_not(recipe: Recipe, seen: Data, taught: bool) -> str:
    """Why a recipe cannot be tried; empty where it can."""
    names = None if seen.groups is None else seen.groups.names
    try:
        recipe.check(classes=seen.num_classes, groups=names, teacher=taught)
    except RecipeError as error:
        return str(error)
    if recipe.needs_groups and seen.groups is not None and seen.groups.unknown:
        return "the group of some samples is not known"
    if recipe.teacher_outputs - {"logits"}:
        return f"a linear student of other features has no use for the teacher's {_and(recipe.teacher_outputs)}"
    if recipe.refit is not None:
        return "it refits the last layer, and a linear student has no other"
    steps = [name for name in ("arbitrate", "choose") if getattr(recipe, name) is not None]
    if (
        steps
        or recipe.weighting.name in ("dedier",)
        or (recipe.identify is not None and recipe.identify.source == "online")
    ):
        return "it is more than a loss and weights, and is not tried in passing"
    # A group is dealt to the folds evenly: with as many samples as folds, some are in every part to train on.
    counts = np.zeros(0, np.int64) if seen.groups is None else seen.groups.counts()
    if recipe.needs_groups and counts.min(initial=FOLDS) < FOLDS:
        return "it weighs groups, and one has too few samples for every fold"
    if recipe.identify is not None and not recipe.identify.trains and seen.groups is not None:
        named = recipe.identify.members(seen.groups.names)
        if min(counts[named].max(), np.delete(counts, named).max(initial=0)) < FOLDS:
            return "its error set, or what is not in it, has too few samples for every fold"
    return ""


def _and(outputs: frozenset[str] | set[str]) -> str:
    return " and ".join(sorted(outputs - {"logits"}))


def _drawn(count: int, seed: int) -> Integers:
    if count <= MOST:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, MOST, replace=False)).astype(np.int64)


def _standardised(x: NDArray[Any]) -> NDArray[np.float32]:
    values = x.astype(np.float64)
    deviation = values.std(0)
    # The labels of no sample are looked at here, so all of them may set the scale.
    scale = np.where(deviation > 1e-7 * (1 + np.abs(values.mean(0))), deviation, 1.0)
    return np.ascontiguousarray((values - values.mean(0)) / scale, np.float32)


def _training(samples: int) -> Training:
    from limbeck.training import Training

    batch = int(np.clip(samples * EPOCHS // STEPS, 16, 512))
    return Training(epochs=EPOCHS, batch_size=batch, learning_rate=LEARNING_RATE)


def _split(fold: Integers, number: int, folds: int) -> NDArray[np.int8]:
    held_out, choosing = fold == number, fold == (number + 1) % folds
    return np.where(held_out, TEST, np.where(choosing, VALIDATION, TRAIN)).astype(np.int8)


def _linear(width: int, classes: int) -> nn.Module:
    from torch import nn

    return nn.Linear(width, classes)


def _table(data: Data, log_probabilities: Floats) -> Any:
    from limbeck.teachers import TableTeacher

    columns = {name: np.exp(log_probabilities[:, k]) for k, name in enumerate(data.classes)}
    return TableTeacher({"id": data.ids, **columns})


def _predicted(model: nn.Module, data: Data) -> Integers:
    from limbeck.predict import predict_logits

    return np.asarray(predict_logits(model, data).argmax(1), np.int64)


def _tried(found: Resampled, names: Sequence[str], metric: str) -> tuple[Tried, ...]:
    value, drawn = {}, {}
    for name in names:
        worst = metric == "worst"
        value[name], drawn[name] = (
            found.worst(name) if worst else (float(found.point[name][-1]), found.replicates[name][:, -1])
        )
    order = sorted(names, key=lambda name: -value[name])
    best = order[0]
    rows = []
    for name in order:
        gain, behind = drawn[name] - drawn[PLAIN], drawn[best] - drawn[name]
        low, high = np.nanquantile(gain, [0.025, 0.975])
        least, most = np.nanquantile(behind, [0.025, 0.975])
        rows.append(
            Tried(
                name,
                found.reach(name),
                value[name] - value[PLAIN],
                float(low),
                float(high),
                value[best] - value[name],
                float(least),
                float(most),
            )
        )
    return tuple(rows)
