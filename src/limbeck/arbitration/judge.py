"""Judges: networks that see the input alone, and never the sample that they judge.

A judge is trained by the one loop on the given labels of some folds, through noise and prior as they are supposed to
be, and gives the evidence of `limbeck.arbitration.model` on the other one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.arbitration.model import TINY, Floats, Integers, softmax
from limbeck.data import Data
from limbeck.errors import ConfigError, TeacherError, unknown_name
from limbeck.loop import Stage, train_stage
from limbeck.models import CNN, MLP
from limbeck.predict import InputReader, batched_logits
from limbeck.recipe import Recipe, Term
from limbeck.selection import RULES, SelectionRule
from limbeck.teachers import Teacher, collect, require
from limbeck.training import Training, derive_seed

BASES = ("auto", "raw", "features", "teacher")
STEPS = 240
"""Gradient steps that a judge makes at least; the fold that it does not learn from says which epoch is kept."""
EPOCHS, MOST_EPOCHS = 5, 60
FIRST_STEPS = 20
"""Gradient steps after which a network may have learned what is learned first; if not, twice as many, and so on."""
WIDTH = 128
TONED = (0.125, 0.25, 0.5, 1.0)
"""Scales of the evidence at which an epoch is judged; the best counts."""
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

    def evidence(self, offsets: Floats, likely: Floats, name: str, partition: int = 0) -> tuple[Floats, Floats | None]:
        """Train the judges by the likelihood of the given labels, and ask each about what it has not seen.

        The loss is -log Σ_k softmax(z + b)_k L_k, with b what is known of the sample besides (the prior of its stratum,
        what a teacher says) and L_k the probability of its given label in class k. So the outputs z are the evidence
        itself: neither the shortcut (logit adjustment; Menon et al., arXiv 2007.07314) nor the noise (forward
        correction; Patrini et al., arXiv 1609.03683) has to be taken out of them. No posterior is learned from: labels
        would come back to the judges of their own samples through those of the others, and look better explained than
        they are. A judge is that of the epoch under which the labels of its fold are likeliest.

        Args:
            offsets: b of the training samples `[n, C]`.
            likely: L of the training samples `[n, C]`.
            name: of this call, from which its random numbers come.
            partition: which division into folds.

        Returns:
            Log evidence, up to a constant a row, of the training samples `[n, C]` and, as the mean over the judges'
            probabilities, of the validation samples, or None.
        """
        found = np.empty(offsets.shape)
        beside: list[Floats] = []
        shift, likeness = torch.from_numpy(offsets).float(), torch.from_numpy(np.log(np.maximum(likely, TINY))).float()
        for number, (held, data) in enumerate(self.parts(partition)):
            used, left_out = np.flatnonzero(data.split == 0), torch.from_numpy(held)
            rule = _likeliest(shift[left_out], likeness[left_out])
            model = self._trained(data, likelihood_of(shift[used], likeness[used]), rule, f"{name}, fold {number}")
            found[held] = _outputs(model, data.validation)
            if self.validation is not None:
                beside.append(softmax(_outputs(model, self.validation)))
        return found, np.log(np.mean(beside, axis=0) + TINY) if beside else None

    def first_learned(self, reach: float = 0.0) -> tuple[Integers, Integers | None]:
        """Which class a network names after its first steps, of training `[n]` and validation samples `[m]` or None.

        A shortcut is learned first (Nam et al., arXiv 2007.02561; JTT, arXiv 2107.09044, and DeTT find error sets so),
        and wrong labels last (Arpit et al., arXiv 1706.05394). Each sample is named by a network that has not seen its
        label. How many steps that takes depends on the data: after too few it names some classes only, and the others'
        samples look like exceptions.

        Args:
            reach: the share of given labels that it should name; steps are doubled until it does, up to `STEPS`.
        """
        steps = FIRST_STEPS
        while True:
            found, beside = self._after(steps)
            steps *= 2
            if steps > STEPS or (found == self.train.y).mean() >= reach:
                return found, beside

    def _after(self, steps: int) -> tuple[Integers, Integers | None]:
        found, beside = np.empty(len(self.train), np.int64), []
        for number, (held, data) in enumerate(self.parts(0)):
            used = np.flatnonzero(data.split == 0)
            training = self.judge.training(len(used))
            most = steps * training.batch_size
            if len(used) > most:
                rng = np.random.default_rng(derive_seed(self.seed, "first", number))
                used = np.sort(rng.choice(used, most, replace=False))
                split = np.full(len(data), 2, np.int8)
                split[used], split[held] = 0, 1
                data = data.replace(split=split)
            training = replace(training, epochs=math.ceil(steps / math.ceil(len(used) / training.batch_size)))
            right = torch.from_numpy(np.log(np.eye(data.num_classes) + TINY)[data.y[used]]).float()
            loss = likelihood_of(torch.zeros_like(right), right)
            # Not one layer, whatever judges: so few steps would leave it as it began.
            model = self._trained(data, loss, RULES["last"], f"first, fold {number}", training, linear=False)
            found[held] = _outputs(model, data.validation).argmax(axis=1)
            if self.validation is not None:
                beside.append(softmax(_outputs(model, self.validation)))
        return found, np.mean(beside, axis=0).argmax(axis=1) if beside else None

    def _trained(
        self,
        data: Data,
        loss: Callable[..., Tensor],
        rule: SelectionRule,
        name: str,
        training: Training | None = None,
        linear: bool | None = None,
    ) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, name))
            model = self.judge.build(data, self.linear if linear is None else linear)
            count = len(data.train)
            training = training or self.judge.training(count)
            recipe = Recipe([Term(loss)], name="judge")
            context = {"classes": data.num_classes, "samples": count, "epochs": training.epochs}
            stage = Stage(name, model, recipe, training, data, self.seed, rule, [{}], context, {"stage": name})
            return train_stage(stage).model


def likelihood_of(offsets: Tensor, likeness: Tensor) -> Callable[..., Tensor]:
    """-log Σ_k softmax(z + b)_k L_k of the samples whose b and log L these are `[n, C]`, as a term of a recipe."""

    def likelihood(student_logits: Tensor, rows: Tensor) -> Tensor:
        known = student_logits + offsets[rows]
        return known.logsumexp(1) - (known + likeness[rows]).logsumexp(1)

    return likelihood


def _likeliest(offsets: Tensor, likeness: Tensor) -> SelectionRule:
    """The epoch under which the labels of these samples are likeliest, once its evidence is toned down where need be.

    Unscaled, a judge that has learned the minority but is too sure of itself would lose against one that has not.
    """
    loss, rows = likelihood_of(offsets, likeness), torch.arange(len(offsets))
    return SelectionRule(
        "likelihood",
        lambda counts: counts.average,
        "the given labels of the fold that is left out",
        score_logits=lambda logits: max(-float(loss(scale * logits, rows).mean()) for scale in TONED),
    )


def _outputs(model: nn.Module, data: Data) -> Floats:
    return np.asarray(batched_logits(model, InputReader(data), len(data)).double().numpy())
