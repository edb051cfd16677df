"""Settings chosen on validation: every recipe tries the same number of them, on the same seed, at a cost that is told.

Three ways to go through a space of settings, and one to stop hopeless ones early, which is only done where it is asked
for: successive halving trains every setting for a few epochs first and goes on with the better ones.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from limbeck.errors import ConfigError, require, unknown_name
from limbeck.pilots.arms import Arm
from limbeck.pilots.result import validation_mean
from limbeck.training import derive_seed

TRAINING = ("learning_rate", "weight_decay", "batch_size", "momentum", "clip")
"""Settings of training that may be searched; not the epochs, which all recipes share."""
METHODS = ("grid", "random", "optuna")
Settings = dict[str, Any]


@dataclass(frozen=True)
class Range:
    """Numbers between two limits.

    Args:
        low: the smallest.
        high: the largest.
        log: whether factors count instead of differences.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ConfigError(
                f"search: a range from {self.low} to {self.high}{' by factors' if self.log else ''} is empty: "
                "low must be below high, and above 0 where log is true"
            )

    def at(self, share: float) -> float:
        """The number at a share of the way from low to high."""
        if self.log:
            return math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        return self.low + share * (self.high - self.low)


Choices = tuple[Any, ...] | Range


@dataclass(frozen=True)
class Search:
    """How settings are chosen.

    Args:
        space: what to try, by setting: values, or a `Range`. A setting of training (`learning_rate`, …) is every
            recipe's; an option of recipes (`temperature`, …) goes to those that have it, `kd.temperature` to one.
        method: `grid` tries every combination; `random` draws; `optuna` lets its tree of Parzen estimators propose.
        trials: how many settings every recipe tries; by default the largest grid of any.
        seed: of the draws. The trials train with the first seed of the pilot.
        halve_after: epochs after which only the better part of a recipe's settings goes on; None lets all finish.
        keep: that part.
    """

    space: Mapping[str, Choices]
    method: str = "grid"
    trials: int | None = None
    seed: int = 0
    halve_after: int | None = None
    keep: float = 0.5

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError("search: " + unknown_name("method", self.method, METHODS))
        if not self.space:
            raise ConfigError("search: the space is empty: name at least one setting and its values")
        if self.method == "grid" and any(isinstance(choices, Range) for choices in self.space.values()):
            raise ConfigError("search: a grid needs values, and a range has no end of them: use method: random")
        if self.method != "grid" and self.trials is None:
            raise ConfigError(f"search: {self.method} needs to be told how many trials")
        if not 0 < self.keep < 1:
            raise ConfigError(f"search: keep must be a share between 0 and 1, found {self.keep}")
        if self.method == "optuna" and self.halve_after is not None:
            raise ConfigError("search: optuna decides by itself what to try next: leave halve_after out")
        for name, choices in self.space.items():
            if not isinstance(choices, Range) and not choices:
                raise ConfigError(f"search: the setting {name!r} has no values")

    def of(self, arm: Arm) -> dict[str, Choices]:
        """The part of the space that concerns an arm."""
        found: dict[str, Choices] = {}
        for name, choices in self.space.items():
            recipe, _, option = name.rpartition(".")
            if name in TRAINING or (option in arm.options and recipe in ("", arm.recipe.name if arm.recipe else "")):
                found[option] = choices
        return found

    def check(self, arms: Sequence[Arm]) -> None:
        """Refuse a setting that no arm has.

        Raises:
            ConfigError: naming it and the nearest.
        """
        named = [(arm.recipe.name if arm.recipe else "", arm.options) for arm in arms]
        known = {*TRAINING, *(option for _, options in named for option in options)}
        known |= {f"{recipe}.{option}" for recipe, options in named for option in options}
        for name in self.space:
            if name not in known:
                raise ConfigError("search.space: " + unknown_name("setting", name, sorted(known)))

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        space = {
            name: {"low": choices.low, "high": choices.high, "log": choices.log}
            if isinstance(choices, Range)
            else list(choices)
            for name, choices in self.space.items()
        }
        return {
            "space": space,
            "method": self.method,
            "trials": self.trials,
            "seed": self.seed,
            "halve_after": self.halve_after,
            "keep": self.keep,
        }


# Variants of an arm ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """An arm with other settings.

    Args:
        key: of the arm it becomes.
        base: key of the arm it comes from.
        settings: by name.
        epochs: fewer than the arm's, for a first look; None for all.
    """

    key: str
    base: str
    settings: Settings
    epochs: int | None = None

    def of(self, arm: Arm) -> Arm:
        """The arm with the settings."""
        assert arm.training is not None
        training = {name: value for name, value in self.settings.items() if name in TRAINING}
        if self.epochs is not None:
            training["epochs"] = self.epochs
        options = {name: value for name, value in self.settings.items() if name not in TRAINING}
        recipe = arm.vary(options) if options and arm.vary is not None else arm.recipe
        trial = self.key != self.base
        return replace(
            arm,
            key=self.key,
            label=f"{arm.label}, {described(self.settings)}" if trial else arm.label,
            role="trial" if trial else arm.role,
            recipe=recipe,
            training=replace(arm.training, **training),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"key": self.key, "base": self.base, "settings": self.settings, "epochs": self.epochs}


def described(settings: Mapping[str, Any]) -> str:
    """Settings in a line."""
    shown = {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in settings.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items())


# Ways through a space -------------------------------------------------------------------------------------------------


class Sampler(Protocol):
    """Proposes settings of one arm."""

    def ask(self) -> Settings | None:
        """The next settings to try; None where there is nothing left."""

    def tell(self, settings: Settings, score: float) -> None:
        """How settings did on validation."""


class _Listed:
    """Settings that are known beforehand."""

    def __init__(self, listed: Iterable[Settings]) -> None:
        self._left = iter(listed)

    def ask(self) -> Settings | None:
        """The next of the list."""
        return next(self._left, None)

    def tell(self, settings: Settings, score: float) -> None:
        """Nothing: the list does not depend on it."""


class _Optuna:
    """Optuna's tree-structured Parzen estimator, seeded."""

    def __init__(self, space: Mapping[str, Choices], trials: int, seed: int) -> None:
        optuna = require("optuna", "optuna")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space, self._left = space, trials
        self._study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
        self._trial: Any = None

    def ask(self) -> Settings | None:
        """What the study proposes, given what it was told."""
        if not self._left:
            return None
        self._left -= 1
        self._trial = self._study.ask()
        return {name: self._suggest(name, choices) for name, choices in self._space.items()}

    def _suggest(self, name: str, choices: Choices) -> Any:
        if isinstance(choices, Range):
            return self._trial.suggest_float(name, choices.low, choices.high, log=choices.log)
        # By place: optuna wants choices that it can store, and values may be anything.
        return choices[self._trial.suggest_categorical(name, list(range(len(choices))))]

    def tell(self, settings: Settings, score: float) -> None:
        """Let the study know."""
        self._study.tell(self._trial, score)


def sampler(search: Search, arm: Arm, budget: int) -> Sampler:
    """The way through an arm's space."""
    space = search.of(arm)
    seed = derive_seed(search.seed, "search", arm.key)
    if search.method == "optuna":
        return _Optuna(space, budget, seed % (1 << 32))
    if search.method == "grid":
        return _Listed(_grid(space)[:budget])
    return _Listed(_drawn(space, budget, seed))


def _grid(space: Mapping[str, Choices]) -> list[Settings]:
    values = [choices for choices in space.values() if not isinstance(choices, Range)]
    return [dict(zip(space, combination, strict=True)) for combination in itertools.product(*values)]


def _drawn(space: Mapping[str, Choices], count: int, seed: int) -> list[Settings]:
    """Distinct settings; all there are where there are fewer."""
    if not any(isinstance(choices, Range) for choices in space.values()):
        every = _grid(space)
        order = np.random.default_rng(seed).permutation(len(every))[:count]
        return [every[place] for place in order]
    rng = np.random.default_rng(seed)
    return [
        {
            name: choices.at(rng.random()) if isinstance(choices, Range) else choices[rng.integers(len(choices))]
            for name, choices in space.items()
        }
        for _ in range(count)
    ]


# The course of a search -----------------------------------------------------------------------------------------------


@dataclass
class Trial:
    """Settings that an arm tried, and how they did.

    Args:
        variant: the arm with the settings.
        score: on validation, by the pilot's rule.
        seconds: of training.
    """

    variant: Variant
    score: float
    seconds: float


@dataclass
class Course:
    """What a search did: the trials of each arm, and what was chosen."""

    trials: dict[str, list[Trial]] = field(default_factory=dict)

    def chosen(self) -> list[Variant]:
        """For each arm its best settings among those that were trained in full; the first of equals."""
        found = []
        for key, trials in self.trials.items():
            full = [trial for trial in trials if trial.variant.epochs is None]
            found.append(Variant(key, key, max(full, key=lambda trial: trial.score).variant.settings))
        return found

    def to_dict(self, search: Search, rule: str, seed: int) -> dict[str, Any]:
        """Plain data for the record of a pilot."""
        return {
            **search.to_dict(),
            "rule": rule,
            "trained_with_seed": seed,
            "seconds": sum(trial.seconds for trials in self.trials.values() for trial in trials),
            "chosen": {variant.base: variant.settings for variant in self.chosen()},
            "tried": {
                key: [
                    {
                        "settings": trial.variant.settings,
                        "epochs": trial.variant.epochs,
                        "score": trial.score,
                        "seconds": trial.seconds,
                    }
                    for trial in trials
                ]
                for key, trials in self.trials.items()
            },
        }


class Runner(Protocol):
    """Trains variants and gives the record of each, in their order."""

    def __call__(self, variants: Sequence[Variant]) -> list[dict[str, Any]]:
        """One record a variant."""


def planned(search: Search, arm: Arm, arms: Sequence[Arm]) -> float:
    """How many trainings of an arm the search takes, one for a few epochs counted by its share."""
    space = search.of(arm)
    if not space or arm.training is None:
        return 0.0
    sizes = [size for other in arms if (size := _size(search.of(other))) is not None]
    budget = search.trials if search.trials is not None else max(sizes, default=1)
    own = _size(space)
    count = budget if own is None or search.method == "optuna" else min(budget, own)
    if search.halve_after is None:
        return float(count)
    return count * min(1.0, search.halve_after / arm.training.epochs) + max(1, math.ceil(search.keep * count))


def run_search(search: Search, arms: Sequence[Arm], rule: str, run: Runner) -> tuple[Course, list[str]]:
    """Try settings for every arm.

    Args:
        search: how.
        arms: students and baselines.
        rule: the selection rule by whose validation score settings are compared.
        run: trains variants.

    Returns:
        The course, and warnings where an arm had fewer settings to try than others.
    """
    search.check(arms)
    arms = [arm for arm in arms if search.of(arm)]
    sizes = {arm.key: _size(search.of(arm)) for arm in arms}
    finite = [size for size in sizes.values() if size is not None]
    budget = search.trials if search.trials is not None else max(finite, default=1)
    samplers = {arm.key: sampler(search, arm, budget) for arm in arms}
    course = Course({arm.key: [] for arm in arms})
    by_key = {arm.key: arm for arm in arms}
    number = itertools.count()

    def rounds(asked: Mapping[str, list[Settings]], epochs: int | None) -> None:
        variants = [
            Variant(f"trial{next(number):03d}-{key}", key, settings, epochs)
            for key, listed in asked.items()
            for settings in listed
        ]
        for variant, record in zip(variants, run(variants), strict=True):
            score = validation_mean({"runs": [record]}, rule)
            course.trials[variant.base].append(Trial(variant, score, record["seconds"]))
            if epochs is None:
                samplers[variant.base].tell(variant.settings, score)

    if search.method == "optuna":
        # One proposal an arm and round, so that each knows what came of the ones before.
        while asked := {key: [settings] for key in by_key if (settings := samplers[key].ask()) is not None}:
            rounds(asked, None)
    else:
        asked = {key: list(iter(samplers[key].ask, None)) for key in by_key}
        if search.halve_after is not None:
            rounds(asked, search.halve_after)
            asked = {key: _better(trials, search.keep) for key, trials in course.trials.items()}
        rounds(asked, None)
    tried = {key: len(trials) for key, trials in course.trials.items()}
    most = max(tried.values())
    warnings = [
        f"search: {by_key[key].label} tried {count} setting{'s' * (count != 1)}, others up to {most}: "
        "it has no more in this space"
        for key, count in tried.items()
        if count < most
    ]
    return course, warnings


def _better(trials: Sequence[Trial], keep: float) -> list[Settings]:
    count = max(1, math.ceil(keep * len(trials)))
    kept = sorted(range(len(trials)), key=lambda place: -trials[place].score)[:count]
    return [trials[place].variant.settings for place in sorted(kept)]


def _size(space: Mapping[str, Choices]) -> int | None:
    if any(isinstance(choices, Range) for choices in space.values()):
        return None
    return len(_grid(space))
