"""Judges: networks that see the input alone, and never the sample that they judge.

A judge is trained by the one loop on soft targets of some folds and gives its log-probabilities on the other one. Minus
the log of the prior that it was trained under, they are the evidence of `limbeck.arbitration.model`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from limbeck.arbitration.model import Floats, Integers
from limbeck.data import Data
from limbeck.errors import ConfigError, TeacherError, unknown_name
from limbeck.loop import Stage, train_stage
from limbeck.models import CNN, MLP
from limbeck.predict import InputReader, batched_logits
from limbeck.recipe import Recipe
from limbeck.selection import selection_rule
from limbeck.teachers import Teacher, collect, require
from limbeck.training import Training, derive_seed

BASES = ("auto", "raw", "features", "teacher")
STEPS = 240
"""Gradient steps that a judge makes at least; with fewer it has not learned the minority, with many more the noise."""
EPOCHS, MOST_EPOCHS = 5, 60
WIDTH = 128
CONVOLVED = 16
"""Images of at least so many pixels a side are judged by a convolutional network, others by a perceptron."""


@dataclass(frozen=True)
class Judge:
    """What judges.

    Args:
        basis: `raw` for the inputs as they are, `features` for an array of one's own, `teacher` for the teacher's
            features; `auto` takes features where they are given and the inputs elsewhere. Not the teacher's, unless
            asked for: a teacher that was trained on these samples knows their labels by heart.
        network: builds the judge; by default a perceptron of two layers of 128, a small convolutional network for
            images of 16 pixels a side or more, and one layer on the teacher's features.
        epochs: on each fold; None for 5, or up to 60 where 240 steps need more.
        learning_rate: of Adam.
        batch_size: samples a step.
    """

    basis: str = "auto"
    network: Callable[[], nn.Module] | None = None
    epochs: int | None = None
    learning_rate: float = 1e-3
    batch_size: int = 128

    def __post_init__(self) -> None:
        if self.basis not in BASES:
            raise ConfigError(unknown_name("basis of the judge", self.basis, BASES))
        if self.epochs is not None and self.epochs < 1:
            raise ConfigError(f"a judge needs at least one epoch, found {self.epochs}")

    def training(self, samples: int) -> Training:
        """How a judge of so many samples is trained."""
        batch = min(self.batch_size, max(samples, 1))
        epochs = self.epochs or min(MOST_EPOCHS, max(EPOCHS, math.ceil(STEPS / max(1, math.ceil(samples / batch)))))
        return Training(
            epochs=epochs, batch_size=batch, optimiser="adam", learning_rate=self.learning_rate, schedule="constant"
        )

    def build(self, data: Data, linear: bool) -> nn.Module:
        """An untrained judge for these inputs."""
        if self.network is not None:
            return self.network()
        shape = data.sample_shape
        if isinstance(shape, dict):
            raise ConfigError(
                f"inputs by name ({', '.join(shape)}) have no network of their own: give judge=Judge(network=…), or "
                "features=[N, D]"
            )
        if len(shape) == 3 and min(shape[1:]) >= CONVOLVED:
            return CNN(shape, data.num_classes, channels=(16, 32, 64))
        return MLP(shape, data.num_classes, hidden=() if linear else (WIDTH, WIDTH))


def as_judge(value: str | Judge | Callable[[], nn.Module]) -> Judge:
    """A judge from the name of a basis, or a function that builds the network."""
    if isinstance(value, Judge):
        return value
    return Judge(basis=value) if isinstance(value, str) else Judge(network=value)


def evidence_data(data: Data, judge: Judge, teacher: Teacher | None, features: Any) -> tuple[Data, str]:
    """The data as the judge sees them, and which basis that is.

    Raises:
        ConfigError: for features that were not given or do not fit.
        TeacherError: where a teacher's features are asked for and there are none.
    """
    basis = judge.basis if judge.basis != "auto" else ("raw" if features is None else "features")
    if basis == "raw":
        return data.with_groups(None), basis
    if basis == "teacher":
        if teacher is None:
            raise TeacherError("the judge's basis is the teacher's features, and no teacher is given: pass teacher=…")
        require(teacher, ["features"], by="the judge")
        values: Any = collect(teacher, data, ("features",))["features"].numpy()
    else:
        if features is None:
            raise ConfigError("the judge's basis is features, and none are given: pass features=[N, D]")
        values = np.asarray(features, np.float32)
    if values.ndim != 2 or len(values) != len(data):
        raise ConfigError(f"features have shape {list(values.shape)} for {len(data):,} samples: expected [N, D]")
    training = values[data.split == 0]
    standard = ((values - training.mean(axis=0)) / (training.std() or 1.0)).astype(np.float32)
    return data.replace(x=standard, normalise=None, groups=None), basis


class CrossFit:
    """Judges in folds over the training part of some data.

    Args:
        data: as the judge sees them, with a training and maybe a validation part.
        judge: what judges.
        folds: two or more; samples of a fold are judged by a network trained on the other ones.
        seed: of folds, initial weights and order.
        linear: one layer, for features that need no more.
    """

    def __init__(self, data: Data, judge: Judge, folds: int, seed: int, *, linear: bool = False) -> None:
        self.train, self.judge, self.seed, self.linear = data.train, judge, seed, linear
        self.validation = data.validation if data.sizes["validation"] else None
        count = len(self.train)
        if not 2 <= folds <= count:
            raise ConfigError(f"folds: found {folds}, expected 2 or more and at most one a training sample")
        self.folds = folds
        self._parts: dict[int, list[tuple[Integers, Data]]] = {}

    def parts(self, partition: int) -> list[tuple[Integers, Data]]:
        """The rows of each fold, and the data of the others with the fold as validation."""
        if partition not in self._parts:
            rng = np.random.default_rng(derive_seed(self.seed, "folds", partition))
            order, made = rng.permutation(len(self.train)), []
            for held in np.array_split(order, self.folds):
                held = np.sort(held)
                split = np.zeros(len(self.train), np.int8)
                split[held] = 1
                made.append((held, self.train.replace(split=split)))
            self._parts = {partition: made}
        return self._parts[partition]

    def log_probabilities(self, weights: Floats, name: str, partition: int = 0) -> tuple[Floats, Floats | None]:
        """Train the judges on soft targets and ask each about what it has not seen.

        Args:
            weights: W `[n, C]` of the training samples; a row's sum is the sample's weight.
            name: of this call, from which its random numbers come.
            partition: which division into folds.

        Returns:
            Log-probabilities of the training samples `[n, C]` and, as the mean over the judges' probabilities, of the
            validation samples, or None.
        """
        found = np.empty(weights.shape)
        beside: list[Floats] = []
        for number, (held, data) in enumerate(self.parts(partition)):
            used = np.flatnonzero(data.split == 0)
            model = self._trained(data, weights[used], f"{name}, fold {number}")
            found[held] = _logs(model, data.validation)
            if self.validation is not None:
                beside.append(_logs(model, self.validation))
        if not beside:
            return found, None
        stacked = np.stack(beside)
        top = stacked.max(axis=0)
        return found, top + np.log(np.exp(stacked - top).mean(axis=0))

    def _trained(self, data: Data, weights: Floats, name: str) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, name))
            model = self.judge.build(data, self.linear)
            training = self.judge.training(len(weights))
            recipe = Recipe(["soft_cross_entropy"], name="judge")
            columns = {"targets": torch.from_numpy(weights.astype(np.float32))}
            context = {"classes": data.num_classes, "samples": len(weights), "epochs": training.epochs}
            rule = selection_rule("last", groups=False)
            stage = Stage(name, model, recipe, training, data, self.seed, rule, [columns], context, {"stage": name})
            return train_stage(stage).model


def _logs(model: nn.Module, data: Data) -> Floats:
    logits = batched_logits(model, InputReader(data), len(data)).double()
    return np.asarray(torch.log_softmax(logits, 1).numpy())
