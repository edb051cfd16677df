"""Groups found where a model fails: the models that a discovery looks through, and the judgement on held-out samples.

    found = lb.discover_groups(data, "tree")          # a plain network is trained for it
    print(found)                                       # which groups are worse out of sample, and by how much
    student = lb.fit(small, found.apply(data), teacher=teacher, recipe="groupdistil")

The methods themselves are in `limbeck.groups` and know arrays only.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import softmax
from torch import nn

from limbeck.data.seeding import uniform
from limbeck.data.splits import TRAIN, VALIDATION
from limbeck.errors import ConfigError, DataError, TeacherError
from limbeck.features import extract
from limbeck.fitting import fit
from limbeck.groups import Discovery, GroupRule, Method, Seen, as_method, judge_groups, merge_small, rule_columns
from limbeck.groups.seen import Floats
from limbeck.models import build
from limbeck.modes import one_thread
from limbeck.recipe import Recipe
from limbeck.teachers import as_teacher, collect
from limbeck.training import Training

if TYPE_CHECKING:
    from limbeck.data import Data
    from limbeck.data.columns import IntArray

ModelFactory = Callable[[], nn.Module]
QUICK = {"name": "mlp", "hidden": [64]}
"""The network that is trained where none is given: small, so that it takes shortcuts, and on any array of numbers."""
TRAINING = Training(epochs=10, batch_size=128, learning_rate=3e-3)
"""How it is trained where nothing is said."""


def discover_groups(
    data: Data,
    method: str | Method = "clusters",
    model: Any = None,
    *,
    biased: Any = None,
    seed: int = 0,
    recipe: str | Recipe = "erm",
    training: Training | None = None,
    folds: int = 2,
    repeats: int = 3,
    minimum: int = 5,
    **options: Any,
) -> Discovery:
    """Find groups in which a model fails, and judge them on samples that nothing was learned from.

    No group label is looked at: where `data` declares groups, they are only compared with what was found. Labels of
    test samples are never looked at to find groups. A model that is trained here learns from training samples, and what
    it says of a training sample comes from models that did not see it (`folds`); the rule is learned from training
    samples, and judged on all validation samples. A finished model saw the training samples, so methods that learn from
    errors then learn from one half of the validation samples, and are judged on the other.

    Args:
        data: with a training and a validation part.
        method: `errors`, `tree`, `clusters`, `mixture` or `disagreement` with `options`, or one of `limbeck.groups`
            that is made already.
        model: whose failures are looked for. None: a small network is trained; a function that builds a network: it is
            trained; what `fit` returned, a module, or any source of `limbeck.teachers.as_teacher`: taken as it is.
        biased: the second model of `errors` and `disagreement`; None: the network is trained again, shortly.
        seed: of everything that is drawn.
        recipe: how a model is trained here; one without a teacher.
        training: settings of it, `TRAINING` by default.
        folds: of cross-fitting, 2 or more.
        repeats: with how many seeds the groups are looked for, to see whether they are the same; 1 leaves it out.
        minimum: training samples a group needs; smaller ones join the largest of their class or tree.
        options: of the method, such as `depth=3` for `tree`.

    Returns:
        The discovery: `print` shows it, `apply` puts its groups where declared ones would be.

    Raises:
        ConfigError: for an unknown method or option, or settings out of range.
        DataError: where the data lack what the method looks at.
    """
    chosen = as_method(method, options)
    if folds < 2 or repeats < 1 or minimum < 1:
        raise ConfigError(
            f"discovery: folds must be at least 2, repeats and minimum at least 1; found {folds}, {repeats}, {minimum}"
        )
    data.check()
    asked = _Asked(chosen, model, biased, recipe, training or TRAINING, folds, minimum)
    with one_thread():
        first, *others = [asked.look(data.with_groups(None), seed + number) for number in range(repeats)]
    labels = data.y[first.held_out]
    quality = judge_groups(
        first.judged[first.held_out],
        first.correct[first.held_out],
        first.rule.names,
        labels=labels,
        truth=None if data.groups is None else data.groups.index[first.held_out],
        runs=[other.judged[first.held_out] for other in others],
        notes=first.notes,
    )
    return Discovery(
        chosen.name,
        first.rule,
        data.ids,
        data.split,
        first.index,
        first.see,
        seed,
        vars(chosen),
        first.learned_from,
        quality,
    )


@dataclass(frozen=True, eq=False)
class _Look:
    """One run: the rule, the groups it gives, and what they are judged by."""

    rule: GroupRule
    index: IntArray
    judged: IntArray
    correct: np.ndarray[Any, np.dtype[np.bool_]]
    held_out: IntArray
    see: Callable[[Data], Seen]
    learned_from: str
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Asked:
    """What is looked for, and with which models."""

    method: Method
    model: Any
    biased: Any
    recipe: str | Recipe
    training: Training
    folds: int
    minimum: int

    @property
    def trained_here(self) -> bool:
        return self.model is None or _builds(self.model)

    def look(self, data: Data, seed: int) -> _Look:
        needs = self.method.needs
        model = self._train(data, seed) if self.trained_here else self.model
        biased = self._biased(data, seed) if "biased" in needs else None
        # Whether the model is right is what groups are judged by, so its predictions are always seen.
        see = partial(_see, self.method, model, biased)
        seen = see(data)
        if self.trained_here and "probabilities" in needs:
            seen = replace(seen, probabilities=self._out_of_fold(data, seen.probabilities, seed, self.training))
        if biased is not None and biased is not self.biased and getattr(self.method, "cross_fit", False):
            out = self._out_of_fold(data, seen.biased, seed, self._short, self.biased)
            seen = replace(seen, biased=out)
        learn, held_out, learned_from = self._parts(data, seed)
        classes = tuple(f"{data.label_name}={name}" for name in data.classes)
        rule = self.method.find(seen.take(learn), classes, seed)
        train = np.flatnonzero(data.split == TRAIN)
        rule = merge_small(rule, rule.assign(seen.take(train)), self.minimum)
        index = rule.assign(seen)
        judged = rule.assign(seen.without("probabilities")) if rule.sees_errors else index
        notes = _notes(rule, seen.take(train))
        return _Look(rule, index, judged, ~seen.wrong, held_out, see, learned_from, notes)

    def _parts(self, data: Data, seed: int) -> tuple[IntArray, IntArray, str]:
        """Which samples a rule is learned from, and which judge it."""
        validation = np.flatnonzero(data.split == VALIDATION)
        if self.trained_here or not self.method.from_errors:
            learned_from = "training samples and their labels"
            return np.flatnonzero(data.split == TRAIN), validation, learned_from
        dealt = _dealt(data, validation, 2, seed, "halves")
        if min(np.bincount(dealt, minlength=2)) < 2:
            raise DataError(
                f"{data.name!r} has {len(validation)} validation samples: a finished model's errors are looked at on "
                "one half of them and judged on the other; give more"
            )
        return validation[dealt == 0], validation[dealt == 1], "one half of the validation samples and their labels"

    # Training ---------------------------------------------------------------------------------------------------

    @property
    def _short(self) -> Training:
        """Short, so that it has learned the shortcut and not yet the exceptions; as `Identify` of a recipe."""
        epochs = getattr(self.method, "identify_epochs", 1)
        return replace(self.training, epochs=epochs, schedule="constant")

    def _biased(self, data: Data, seed: int) -> Any:
        if self.biased is not None and not _builds(self.biased):
            return self.biased
        return self._train(data, seed, self._short, self.biased)

    def _train(self, data: Data, seed: int, training: Training | None = None, factory: Any = None) -> nn.Module:
        """A network of this seed; the last epoch is kept, so that no validation label is looked at."""
        own = factory or (self.model if _builds(self.model) else None)
        builder = own or partial(build, QUICK, inputs_shape=data.sample_shape, classes=data.num_classes)
        chosen = training or self.training
        return fit(builder, data, recipe=self.recipe, training=chosen, seed=seed, selection="last").model

    def _out_of_fold(
        self, data: Data, whole: Floats | None, seed: int, training: Training, factory: Any = None
    ) -> Floats:
        """Probabilities [N, C]: of each training sample by a network that did not see it."""
        assert whole is not None
        found = whole.copy()
        train = np.flatnonzero(data.split == TRAIN)
        fold = _dealt(data, train, self.folds, seed, "folds")
        for number in range(self.folds):
            out = train[fold == number]
            kept = np.ones(len(data), bool)
            kept[out] = False
            part = data.subset(kept)
            part.check()
            network = self._train(part, seed, training, factory)
            found[out] = _probabilities(network, data.subset(out))
        return found


def _dealt(data: Data, rows: IntArray, parts: int, seed: int, stream: str) -> IntArray:
    """Which part each row is in, every class dealt evenly, in an order drawn by (seed, id)."""
    order = np.lexsort((uniform(seed, f"discovery {stream}", data.ids[rows]), data.y[rows]))
    dealt = np.empty(len(rows), np.int64)
    dealt[order] = np.arange(len(rows)) % parts
    return dealt


def _builds(model: Any) -> bool:
    """Whether a model is a function that builds one, to be trained here."""
    kinds = (types.FunctionType, types.MethodType, partial, type)
    return isinstance(model, kinds)


# Looking ------------------------------------------------------------------------------------------------------------


def _see(method: Method, model: Any, biased: Any, data: Data) -> Seen:
    """What a method's rule reads of data, by models that are finished."""
    needs = method.needs
    return Seen(
        labels=data.y,
        probabilities=_probabilities(model, data),
        biased=_probabilities(biased, data) if "biased" in needs else None,
        embeddings=_embeddings(model, data, method.name) if "embeddings" in needs else None,
        columns=rule_columns(data, getattr(method, "columns", None)) if "columns" in needs else None,
    )


def _probabilities(model: Any, data: Data) -> Floats:
    logits = collect(as_teacher(model), data, ("logits",))["logits"].numpy()
    if logits.shape[1] != data.num_classes:
        raise TeacherError(
            f"the model tells {logits.shape[1]} classes apart, the data {data.name!r} have {data.num_classes}: "
            "groups are looked for in the failures of a model for the same classes"
        )
    return np.asarray(softmax(logits.astype(np.float64), axis=1))


def _embeddings(model: Any, data: Data, method: str) -> Floats:
    try:
        return np.asarray(extract(model, data, progress=False).x, np.float64)
    except (ConfigError, TeacherError) as error:
        raise TeacherError(
            f"{method} looks at embeddings, and this model shows none ({error}): "
            "give a module, or take 'tree' or 'errors'"
        ) from error


def _notes(rule: GroupRule, training: Seen) -> tuple[str, ...]:
    """What a reader of the groups must know."""
    notes = []
    if "labels" in rule.reads and "biased" in rule.reads:
        notes.append(
            "the groups read the label: what one model gets wrong is hard for others too, so part of a gap is by "
            "construction"
        )
    if training.biased is not None and training.labels is not None:
        share = float((training.biased.argmax(1) != training.labels).mean())
        if share == 0:
            notes.append("the biased model makes no error in training: the error set is empty; train it for less")
    if rule.sees_errors:
        notes.append("the groups are defined by the model's own errors; judged as told without its prediction")
    if len(rule.names) == 1:
        notes.append("there is one group: nothing separates the errors from the rest")
    return tuple(notes)


__all__: Sequence[str] = ["QUICK", "TRAINING", "discover_groups"]
