"""What a report says, as numbers: one pass over a pilot's plain result, before any word or drawing.

Means and spreads over seeds are computed here for display only; what decides (comparisons, verdict) is taken from the
result as it is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from limbeck.errors import DataError
from limbeck.evaluation import wilson, worst_group_interval

SMALL_GROUP = 10
"""Fewer test samples than this and a group is never called the worst, where the result states no other minimum."""

CURVES = ("loss", "validation_average", "validation_worst_group")
GROUP_CURVES = ("group_weights", "group_losses")
"""Quantities that a run's history records at each epoch: one number, or one for each group."""

Plain = Mapping[str, Any]


@dataclass(frozen=True)
class Estimate:
    """A quantity measured once a seed. `spread` is over seeds; `low` and `high` bound it over test samples (95 %).

    All are None where undefined: an empty group has no accuracy, and one seed has no spread.
    """

    mean: float | None
    spread: float | None = None
    low: float | None = None
    high: float | None = None
    values: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Run:
    """One seed of one model."""

    seed: int | None
    selected_epoch: int | None
    seconds: float | None
    test: Plain
    validation: Plain
    history: Sequence[Plain]

    @cached_property
    def curves(self) -> dict[str, dict[int, Any]]:
        """What was recorded over epochs, by quantity and epoch; a value that ran away is a gap, not a number."""
        found: dict[str, dict[int, Any]] = {field: {} for field in (*CURVES, *GROUP_CURVES)}
        for entry in self.history:
            for field in CURVES:
                if (value := _number(entry.get(field))) is not None:
                    found[field][entry["epoch"]] = value
            for field in GROUP_CURVES:
                if entry.get(field) is not None:
                    found[field][entry["epoch"]] = [_number(value) for value in entry[field]]
        return found


@dataclass(frozen=True)
class Model:
    """One row of the results: a teacher, the plain student or a student with a recipe, over all its seeds."""

    key: str
    label: str
    role: str
    teacher: str | None
    parameters: int | None
    recipe: Any
    training: Any
    runs: tuple[Run, ...]
    average: Estimate
    worst: Estimate
    gap: Estimate
    worst_names: tuple[tuple[str, int], ...]
    """The group that was worst, with the number of seeds it was, the most frequent first."""
    groups: tuple[Estimate, ...]
    calibration: Estimate
    group_calibration: tuple[float | None, ...]
    nll: Estimate
    seconds: float | None

    @property
    def worst_name(self) -> str | None:
        """The group that was worst in most seeds."""
        return self.worst_names[0][0] if self.worst_names else None

    @cached_property
    def curves(self) -> dict[str, dict[int, Any]]:
        """Means over the seeds that recorded a quantity at an epoch: a number, or one for each group."""
        found: dict[str, dict[int, Any]] = {}
        for field in (*CURVES, *GROUP_CURVES):
            epochs = sorted({epoch for run in self.runs for epoch in run.curves[field]})
            values = {
                epoch: [run.curves[field][epoch] for run in self.runs if epoch in run.curves[field]] for epoch in epochs
            }
            if field in CURVES:
                found[field] = {epoch: _mean(one) for epoch, one in values.items()}
            else:
                found[field] = {epoch: [_mean(each) for each in zip(*one)] for epoch, one in values.items()}
        return found

    def validation_mean(self, metric: str) -> float | None:
        """Mean over seeds of a validation metric, `average` or `worst_group`."""
        return _mean([_number(run.validation.get(metric)) for run in self.runs])

    def confusion(self, group: int | None = None) -> list[list[int]]:
        """Test samples by true class (rows) and predicted class, summed over seeds; of one group where given."""
        tables = [_confusion(run.test, group) for run in self.runs]
        return [[sum(cells) for cells in zip(*rows, strict=True)] for rows in zip(*tables, strict=True)]


@dataclass(frozen=True)
class Comparison:
    """Two models on the same test samples, as the pilot decided it."""

    model: str
    against: str
    metric: str
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    verdict: str
    group: str | None = None
    value: float | None = None
    reference: float | None = None
    more_seeds: int | None = None
    more_samples: int | None = None
    advice: Plain | None = None
    """What would tell an undecided difference: `limbeck.evaluation.power.Advice.to_dict()`."""

    @property
    def tone(self) -> str:
        """`better`, `worse`, `same` or, where nothing was measured, `unknown`: for a mark and a word beside it."""
        tones = {"better": "better", "worse": "worse", "not distinguishable": "same"}
        text = self.verdict.strip().lower()
        return next((tone for words, tone in tones.items() if text.startswith(words)), "unknown")


@dataclass(frozen=True)
class Summary:
    """A pilot's result, ready to be shown."""

    result: Plain
    name: str
    verdict: str
    models: tuple[Model, ...]
    groups: tuple[str, ...]
    classes: tuple[str, ...]
    group_counts: Mapping[str, Sequence[int]]
    samples: Mapping[str, int]
    seeds: tuple[int, ...]
    comparisons: tuple[Comparison, ...]
    warnings: tuple[str, ...]
    minimum: int
    shown: Mapping[str, str]
    """From a group's own name to the one it is shown by."""
    evidence: Plain
    """What `limbeck.report.evidence.gather` measured beside the result; empty where it did not."""

    @classmethod
    def from_result(cls, result: Plain) -> Summary:
        """Read the plain dict of `PilotResult.to_dict()`.

        Raises:
            DataError: naming the key that is missing or does not fit the others.
        """
        data = _get(result, "data", Mapping, "result")
        named = [str(group) for group in _get(data, "groups", Sequence, "data")]
        groups = _distinct(named)
        shown = dict(zip(named, groups, strict=True))
        classes = _distinct([str(label) for label in _get(data, "classes", Sequence, "data")])
        group_counts = _get(data, "group_counts", Mapping, "data")
        for split, counts in group_counts.items():
            _same_length(counts, groups, f"data.group_counts.{split}", "data.groups")
        entries = _get(result, "models", Sequence, "result")
        evidence = result.get("evidence") or {}
        models = tuple(_model(entry, f"models[{n}]", shown) for n, entry in enumerate(entries))
        repeated = [key for key, times in Counter(model.key for model in models).items() if times > 1]
        if repeated:
            raise DataError(f"result: two models have the key {repeated[0]!r}; keys must differ")
        labels = _distinct([model.label for model in models])
        models = tuple(replace(model, label=label) for model, label in zip(models, labels, strict=True))
        tests = [run.test for model in models for run in model.runs]
        return cls(
            result=result,
            name=str(result.get("name") or data.get("name") or "pilot"),
            verdict=str(_get(result, "verdict", str, "result")),
            models=models,
            groups=groups,
            classes=classes,
            group_counts=group_counts,
            samples=_get(data, "samples", Mapping, "data"),
            seeds=tuple(result.get("seeds") or ()),
            comparisons=tuple(_comparison(entry, n, shown) for n, entry in enumerate(result.get("comparisons") or ())),
            warnings=tuple(str(warning) for warning in result.get("warnings") or ()),
            minimum=int(next((test["minimum"] for test in tests if test.get("minimum")), SMALL_GROUP)),
            shown=shown,
            evidence=evidence,
        )

    def model(self, key: str | None) -> Model | None:
        """The model with a key, if there is one."""
        return next((model for model in self.models if model.key == key), None)

    @property
    def teachers(self) -> tuple[Model, ...]:
        """The models distilled from."""
        return tuple(model for model in self.models if model.role == "teacher")

    @property
    def students(self) -> tuple[Model, ...]:
        """All small models, with and without a teacher."""
        return tuple(model for model in self.models if model.role != "teacher")

    @property
    def baselines(self) -> tuple[Model, ...]:
        """The small models that learn from no teacher."""
        return tuple(model for model in self.models if model.role == "baseline")

    @property
    def metric(self) -> str:
        """What decides: `worst_group`, or `average` where no groups are declared."""
        return "worst_group" if self.groups else "average"

    @property
    def selection_rule(self) -> str:
        """The rule by which epochs (and the best student) are chosen, always on validation."""
        return str((self.result.get("selection") or {}).get("rule", "worst_group"))

    @cached_property
    def plain(self) -> Model | None:
        """The student trained on the labels alone, everything else's yardstick."""
        named = [model for model in self.baselines if model.key == "erm"]
        return next(iter((*named, *self.baselines)), None)

    @cached_property
    def best(self) -> Model | None:
        """The distilled student the pilot chose on *validation*; the test samples choose nothing."""
        distilled = [model for model in self.students if model.role == "student"]
        chosen = self.model(self.result.get("chosen"))
        return chosen if chosen in distilled else self._best_on_validation(distilled)

    @cached_property
    def best_without_teacher(self) -> Model | None:
        """The best student without a teacher on validation, where that is not the plain one."""
        strongest = self.model(self.result.get("strongest_baseline"))
        best = strongest if strongest in self.baselines else self._best_on_validation(self.baselines)
        return best if best is not self.plain else None

    @cached_property
    def teacher(self) -> Model | None:
        """The teacher of the best student, or the first one."""
        of_best = self.model(self.best.teacher) if self.best else None
        return of_best or next(iter(self.teachers), None)

    @cached_property
    def key_models(self) -> tuple[Model, ...]:
        """The few models the summary is about: teacher, best student, plain student, best without a teacher."""
        wanted = (self.teacher, self.best, self.plain, self.best_without_teacher)
        return tuple(model for model in wanted if model is not None)

    @cached_property
    def front(self) -> tuple[Model, ...]:
        """The small models than which no other is better in one of average and worst group and no worse in the other.

        By means over seeds, from the best worst group to the best average. Teachers are not for use and do not count.
        """
        measured = [
            (model, model.average.mean, model.worst.mean)
            for model in self.students
            if model.average.mean is not None and model.worst.mean is not None
        ]
        kept = [
            (average, model)
            for model, average, worst in measured
            if not any(a >= average and w >= worst and (a > average or w > worst) for _, a, w in measured)
        ]
        return tuple(model for _, model in sorted(kept, key=lambda pair: pair[0]))

    def leading(self, limit: int) -> tuple[Model, ...]:
        """At most `limit` models, in the order of the result: the key models, then the best on validation."""
        ranked = sorted(self.models, key=lambda model: -self._validation_score(model))
        chosen: list[Model] = []
        for model in (*self.key_models, *ranked):
            if model not in chosen and len(chosen) < limit:
                chosen.append(model)
        return tuple(model for model in self.models if model in chosen)

    def compare(self, model: Model, against: Model | None, metric: str) -> Comparison | None:
        """The pilot's comparison of two models; their plain difference, without a verdict, where it made none."""
        if against is None or model is against:
            return None
        for entry in self.comparisons:
            if (entry.model, entry.against, entry.metric) == (model.key, against.key, metric):
                return entry
        first, second = (one.worst if metric == "worst_group" else one.average for one in (model, against))
        if first.mean is None or second.mean is None:
            return None
        return Comparison(model.key, against.key, metric, first.mean - second.mean, None, None, None, "")

    def cost(self, model: Model | None) -> Plain | None:
        """What was measured of a model's cost: `limbeck.evaluation.Cost.to_dict()`."""
        found = ((self.evidence.get("cost") or {}).get("models") or {}).get(model.key) if model else None
        return found if isinstance(found, Mapping) else None

    def compare_groups(self, model: Model, against: Model) -> tuple[Comparison, ...]:
        """The pilot's comparisons of two models in single groups."""
        return tuple(
            entry
            for entry in self.comparisons
            if (entry.model, entry.against, entry.metric) == (model.key, against.key, "group")
        )

    def changes(self, model: Model, than: Model) -> list[Comparison | None]:
        """What each group gains or loses under a model in another one's place; None where nothing was measured.

        Where it was measured, by intervals that hold for all groups at once (`limbeck.evaluation.group_changes`); else
        by the pilot's comparisons, and the plain difference where it made none.
        """
        measured = (self.evidence.get("changes") or {}).get(model.key) or ()
        if len(measured) == len(self.groups) and all(than.key in row["against"] for row in measured):
            asked = {"model": model.key, "against": than.key, "metric": "group"}
            entries = [_comparison(asked | row["against"][than.key], n, {}) for n, row in enumerate(measured)]
            return [replace(entry, group=name) for entry, name in zip(entries, self.groups, strict=True)]
        tested = {entry.group: entry for entry in self.compare_groups(model, than)}
        found: list[Comparison | None] = []
        for name, ours, theirs in zip(self.groups, model.groups, than.groups, strict=True):
            if name in tested:
                found.append(tested[name])
            elif ours.mean is None or theirs.mean is None:
                found.append(None)
            else:
                difference = ours.mean - theirs.mean
                found.append(Comparison(model.key, than.key, "group", difference, None, None, None, ""))
        return [None if one is None else replace(one, group=name) for one, name in zip(found, self.groups, strict=True)]

    def standing(self, model: Model) -> Plain | None:
        """Where a small model stands: `limbeck.evaluation.Standing.to_dict()`."""
        return next((one for one in self.evidence.get("standings") or () if one["key"] == model.key), None)

    def test_count(self, group: int) -> int:
        """Test samples of a group."""
        return int(self.group_counts["test"][group]) if "test" in self.group_counts else 0

    def is_small(self, group: int) -> bool:
        """Whether a group has too few test samples to be called the worst."""
        return self.test_count(group) < self.minimum

    def is_untrained(self, group: int) -> bool:
        """Whether no training sample belongs to a group."""
        return "train" in self.group_counts and int(self.group_counts["train"][group]) == 0

    @property
    def unknown(self) -> int:
        """Test samples of unknown group: they count in the average and in no group."""
        return max((int(run.test.get("unknown_total") or 0) for model in self.models for run in model.runs), default=0)

    def _best_on_validation(self, models: Sequence[Model]) -> Model | None:
        return max(models, key=self._validation_score, default=None)

    def _validation_score(self, model: Model) -> float:
        value = model.validation_mean("average" if self.selection_rule == "average" else "worst_group")
        return -math.inf if value is None else value


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Names fit to be shown: on one line, and no two alike, for charts and tables tell things apart by name."""
    lines = [" ".join(name.split()) for name in names]
    times = Counter(lines)
    return tuple(name if times[name] == 1 else f"{name} ({n})" for n, name in enumerate(lines, start=1))


def _model(model: Any, where: str, groups: Mapping[str, str]) -> Model:
    if not isinstance(model, Mapping):
        raise DataError(f"{where}: found {type(model).__name__}, expected a mapping")
    runs = tuple(
        _run(run, f"{where}.runs[{position}]", groups)
        for position, run in enumerate(_get(model, "runs", Sequence, where))
    )
    tests = [run.test for run in runs]
    key = str(_get(model, "key", str, where))
    named = [test["worst_group_name"] for test in tests if groups and test.get("worst_group_name") is not None]
    parameters = model.get("parameters")
    return Model(
        key=key,
        label=str(model.get("label") or key),
        role=str(model.get("role") or "student"),
        teacher=model.get("teacher"),
        parameters=None if parameters is None else int(parameters),
        recipe=model.get("recipe"),
        training=model.get("training"),
        runs=runs,
        average=_average(tests),
        worst=_worst(tests) if groups else Estimate(None, values=(None,) * len(tests)),
        gap=_estimate([_number(test.get("gap")) if groups else None for test in tests]),
        worst_names=tuple(Counter(groups.get(str(name), str(name)) for name in named).most_common()),
        groups=tuple(_group_estimate(tests, group) for group in range(len(groups))),
        calibration=_estimate([_number(test.get("calibration_error")) for test in tests]),
        group_calibration=tuple(_mean([_group_score(test, group) for test in tests]) for group in range(len(groups))),
        nll=_estimate([_number(test.get("nll")) for test in tests]),
        seconds=_mean([run.seconds for run in runs]),
    )


def _average(tests: Sequence[Plain]) -> Estimate:
    samples = sum(int(total) for total in tests[0]["group_total"]) if tests else 0
    samples += int(tests[0].get("unknown_total") or 0) if tests else 0
    return _estimate([_number(test.get("average")) for test in tests], samples)


def _worst(tests: Sequence[Plain]) -> Estimate:
    """The lowest accuracy in each seed. The interval knows that a group was picked for being the worst.

    Seeds may have different worst groups, whose mean is lower than the lowest mean of a group: so the interval too is
    each seed's own, and then the mean of these.
    """
    estimate = _estimate([_number(test.get("worst_group")) for test in tests])
    if not tests:
        return estimate
    minimum = int(tests[0].get("minimum") or SMALL_GROUP)
    own = [worst_group_interval(test["group_correct"], test["group_total"], minimum=minimum) for test in tests]
    low, high = np.mean(own, axis=0)
    return Estimate(estimate.mean, estimate.spread, _number(low), _number(high), estimate.values)


def _group_score(test: Plain, group: int) -> float | None:
    scores = test.get("group_calibration_error") or ()
    return _number(scores[group]) if group < len(scores) else None


def _run(run: Any, where: str, groups: Mapping[str, str]) -> Run:
    test = _get(run, "test", Mapping, where)
    for key in ("group_correct", "group_total"):
        counts = _get(test, key, Sequence, f"{where}.test")
        if groups:
            # Without declared groups an evaluation holds one, of all samples.
            _same_length(counts, groups, f"{where}.test.{key}", "data.groups")
    for position, entry in enumerate(run.get("history") or ()):
        _get(entry, "epoch", int, f"{where}.history[{position}]")
    epoch = run.get("selected_epoch")
    return Run(
        seed=run.get("seed"),
        selected_epoch=None if epoch is None else int(epoch),
        seconds=_number(run.get("seconds")),
        test=test,
        validation=run.get("validation") or {},
        history=tuple(run.get("history") or ()),
    )


def _comparison(entry: Any, position: int, groups: Mapping[str, str]) -> Comparison:
    where = f"comparisons[{position}]"
    return Comparison(
        model=str(_get(entry, "model", str, where)),
        against=str(_get(entry, "against", str, where)),
        metric=str(_get(entry, "metric", str, where)),
        difference=_number(entry.get("difference")),
        low=_number(entry.get("low")),
        high=_number(entry.get("high")),
        p=_number(entry.get("adjusted_p", entry.get("p"))),
        verdict=str(entry.get("verdict") or ""),
        group=None if entry.get("group") is None else groups.get(str(entry["group"]), str(entry["group"])),
        value=_number(entry.get("value")),
        reference=_number(entry.get("reference")),
        more_seeds=entry.get("more_seeds"),
        more_samples=entry.get("more_samples"),
        advice=entry.get("advice"),
    )


def _group_estimate(tests: Sequence[Plain], group: int) -> Estimate:
    totals = [int(test["group_total"][group]) for test in tests]
    rates = [
        int(test["group_correct"][group]) / total if total else None for test, total in zip(tests, totals, strict=True)
    ]
    # All seeds are measured on the same test samples: the samples of one run bound the rate, not their sum.
    return _estimate(rates, min(totals, default=0))


def _estimate(values: Sequence[float | None], samples: int = 0) -> Estimate:
    """Mean and spread over seeds, and the interval over `samples` test samples where the quantity is a rate."""
    mean = _mean(values)
    known = [value for value in values if value is not None]
    spread = None
    if len(known) > 1 and mean is not None:
        spread = math.sqrt(sum((value - mean) ** 2 for value in known) / (len(known) - 1))
    if mean is None or not samples:
        return Estimate(mean, spread, values=tuple(values))
    low, high = wilson(min(mean * samples, samples), samples)
    return Estimate(mean, spread, float(low), float(high), tuple(values))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _confusion(test: Plain, group: int | None) -> Sequence[Sequence[int]]:
    if group is None:
        return test.get("confusion") or ()
    tables = test.get("group_confusion") or ()
    return tables[group] if group < len(tables) else ()


def _number(value: Any) -> float | None:
    return None if value is None or not math.isfinite(float(value)) else float(value)


def _get(mapping: Any, key: str, kind: type, where: str) -> Any:
    if not isinstance(mapping, Mapping):
        raise DataError(f"{where}: found {type(mapping).__name__}, expected a mapping (PilotResult.to_dict())")
    if key not in mapping:
        raise DataError(f"{where}: {key!r} is missing; expected the plain dict of PilotResult.to_dict()")
    value = mapping[key]
    if not isinstance(value, kind) or (kind is Sequence and isinstance(value, str)):
        raise DataError(f"{where}.{key}: found {type(value).__name__}, expected {kind.__name__.lower()}")
    return value


def _same_length(values: Any, names: Collection[str], where: str, of: str) -> None:
    if len(values) != len(names):
        raise DataError(f"{where}: {len(values)} entries, expected {len(names)}, one for each of {of}")
