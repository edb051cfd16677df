"""A recipe: what the student learns, whom it listens to, which head it ends in, and the steps around the loop.

Every method is a value of one class, so that any term combines with any weighting and any head. A combination that
makes no sense is refused when the recipe is made (or, where data or teacher decide, before the first step) with the
reason.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from limbeck.errors import RecipeError, unknown_name
from limbeck.heads import PROJECTORS
from limbeck.terms._numerics import RowLoss, by_row, described_ahead, row_loss_of, together, with_gradient
from limbeck.terms.basic import standardise
from limbeck.terms.catalogue import CATALOGUE as TERMS
from limbeck.terms.catalogue import CONTEXT, TermInfo, context_needs, needs, options
from limbeck.weighting.catalogue import WEIGHTINGS

Plain = Mapping[str, Any]
T = TypeVar("T")
ERROR_SOURCES = ("eval", "online", "groups")
SAMPLINGS = ("shuffle", "group_balanced", "class_balanced", "posterior")
NOISES = ("auto", "shared", "per_group")
WITNESSES = ("auto", "always", "never")
SHORTCUTS = ("auto", "declared", "found")
TEACHER_FIELDS = ("teacher_logits", "teachers_logits", "teacher_features", "teacher_maps")


def _public_name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _check_options(kind: str, name: str, function: Callable[..., Any], given: Plain) -> None:
    known = options(function)
    for option in given:
        if option not in known:
            raise RecipeError(f"{kind} {name!r}: " + unknown_name("option", option, known))


class _WithOptions:
    """A value with read-only options, which is copied and sent to other processes as any other value."""

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "options": dict(vars(self)["options"])}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update({**state, "options": MappingProxyType(dict(state["options"]))})


@dataclass(frozen=True)
class Term(_WithOptions):
    """One part of the objective.

    Args:
        function: a per-sample loss returning `[B]`, or a class of `nn.Module` built once per run whose `forward` does.
            The names of its required parameters say which fields of a batch it needs (`limbeck.terms.catalogue`).
        weight: factor on the value.
        options: its hyper-parameters.
        warmup: share of training over which the factor rises from 0 to `weight`: min((e+1)/(warmup·E), 1), e from 0.
        standardise: z-score student and teacher logits first (LSKD, CVPR 2024).
        weighted: False takes the term out of the weighting: its plain mean is added.
        per_sample: False for a term over batch statistics, which returns a scalar.
        minimum_classes: the least number of classes at which it has a gradient.
    """

    function: Callable[..., Any]
    weight: float = 1.0
    options: Plain = field(default_factory=dict)
    warmup: float = 0.0
    standardise: bool = False
    weighted: bool = True
    per_sample: bool = True
    minimum_classes: int = 2
    name: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or _public_name(self.function))
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))
        if not 0.0 <= self.warmup <= 1.0:
            raise RecipeError(f"term {self.name!r}: warmup is a share of training in 0..1, found {self.warmup}")
        _check_options("term", self.name, self.function, self.options)

    @classmethod
    def named(cls, name: str, functions: Plain | None = None, **settings: Any) -> Term:
        """A term of the catalogue, or one of the user's own `functions`, by name.

        Settings that are fields of `Term` are taken as such, the rest are the term's options.

        Raises:
            RecipeError: for an unknown name or option, with the nearest known one.
        """
        own = functions or {}
        if name in own:
            value = own[name]
            info = value if isinstance(value, TermInfo) else TermInfo(function=value, source="user")
        elif name in TERMS:
            info = TERMS[name]
        else:
            raise RecipeError(unknown_name("term", name, [*TERMS, *own]))
        own_fields = {
            key: settings.pop(key) for key in ("weight", "warmup", "standardise", "weighted") if key in settings
        }
        return cls(
            info.function,
            options=settings,
            per_sample=info.per_sample,
            minimum_classes=info.minimum_classes,
            name=name,
            **own_fields,
        )

    @property
    def needs(self) -> tuple[str, ...]:
        """The fields of a batch that it reads."""
        return needs(self.function)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; the inverse of `Term.named`."""
        found: dict[str, Any] = {"term": self.name}
        for name, default in (("weight", 1.0), ("warmup", 0.0), ("standardise", False), ("weighted", True)):
            if getattr(self, name) != default:
                found[name] = getattr(self, name)
        return found | dict(self.options)


@dataclass(frozen=True)
class Weighting(_WithOptions):
    """Who is listened to: the factory of a weighting, called once per run, and its options."""

    factory: Callable[..., Any]
    options: Plain = field(default_factory=dict)
    name: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or _public_name(self.factory))
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))
        _check_options("weighting", self.name, self.factory, self.options)

    @classmethod
    def named(cls, name: str, functions: Plain | None = None, **settings: Any) -> Weighting:
        """A weighting of the catalogue, or one of the user's own, by name."""
        own = functions or {}
        if name in own:
            return cls(own[name], settings, name)
        if name not in WEIGHTINGS:
            raise RecipeError(unknown_name("weighting", name, [*WEIGHTINGS, *own]))
        return cls(WEIGHTINGS[name].factory, settings, name)

    @property
    def needs(self) -> tuple[str, ...]:
        """The fields of a batch that it reads, `losses` aside."""
        return tuple(name for name in needs(self.factory) if name != "losses")

    @property
    def context(self) -> tuple[str, ...]:
        """What its constructor takes from the run."""
        return context_needs(self.factory)

    @property
    def per_teacher(self) -> bool:
        """Whether it weighs the losses of several teachers, `[T, B]`."""
        return self.name in WEIGHTINGS and WEIGHTINGS[self.name].per_teacher

    @property
    def uniform(self) -> bool:
        """Whether every sample counts the same, so that a batch statistic may be added to its result."""
        return self.name == "uniform"

    def to_dict(self) -> dict[str, Any]:
        """Plain data; the inverse of `Weighting.named`."""
        return {"name": self.name} | dict(self.options)


@dataclass(frozen=True)
class Head:
    """End the student in the teacher's last layer, copied and frozen, behind a projector (SimKD, DeTT).

    Args:
        projector: one of `limbeck.heads.PROJECTORS`.
        match: `vector`, `map`, or `auto`: the map before pooling where both have one.
        student_layer, teacher_layer: names of the linear layers that make the logits, where they are not the last ones.
    """

    projector: str = "auto"
    match: str = "auto"
    student_layer: str | None = None
    teacher_layer: str | None = None

    def __post_init__(self) -> None:
        if self.projector not in PROJECTORS:
            raise RecipeError(unknown_name("projector", self.projector, PROJECTORS))
        if self.match not in ("auto", "vector", "map"):
            raise RecipeError(unknown_name("match", self.match, ("auto", "vector", "map")))


@dataclass(frozen=True)
class Identify:
    """Where the error set is from: what a plain student gets wrong after a short training (JTT, DeTT), or groups.

    Args:
        epochs: how long that student is trained; short, so that it has learned the shortcut and not yet the exceptions.
        source: `eval` takes the errors of a clean pass afterwards, `online` those met while training in its last epoch
            (as JTT's code collects them), `groups` the members of `groups`, for which nothing is trained.
        groups: names of groups, declared or found; `*` stands for any text, as in `label=*: wrong`. They imply
            `source="groups"`.
    """

    epochs: int = 1
    source: str = "eval"
    groups: Sequence[str] = ()

    def __post_init__(self) -> None:
        groups = (self.groups,) if isinstance(self.groups, str) else tuple(map(str, self.groups))
        object.__setattr__(self, "groups", groups)
        if groups and self.source == "eval":
            object.__setattr__(self, "source", "groups")
        if self.epochs < 1:
            raise RecipeError(f"identification needs at least one epoch, found {self.epochs}")
        if self.source not in ERROR_SOURCES:
            raise RecipeError(unknown_name("source of the error set", self.source, ERROR_SOURCES))
        if self.source == "groups" and not groups:
            raise RecipeError(
                "identify: the error set is to be made of groups, and none is named: add groups: [name, …]"
            )
        if groups and (self.source != "groups" or self.epochs != 1):
            extra = "epochs" if self.source == "groups" else "source"
            raise RecipeError(
                f"identify: the error set is made of the groups named, for which nothing is trained: leave {extra} out"
            )

    @property
    def trains(self) -> bool:
        """Whether a plain student is trained to find the error set."""
        return self.source != "groups"

    def members(self, names: Sequence[str]) -> list[int]:
        """The numbers of the groups named, among `names`, each once and in order.

        Raises:
            RecipeError: for a name that no group has, with the nearest one.
        """
        found: set[int] = set()
        for wanted in self.groups:
            written = re.compile(".*".join(map(re.escape, wanted.split("*"))), re.DOTALL)
            numbers = [number for number, name in enumerate(names) if written.fullmatch(name)]
            if not numbers:
                raise RecipeError("identify: " + unknown_name("group", wanted, names))
            found.update(numbers)
        return sorted(found)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, of what there is to say: groups, or how the error set is found."""
        if self.groups:
            return {"groups": list(self.groups)}
        return {"epochs": self.epochs, "source": self.source}


@dataclass(frozen=True)
class Refit:
    """Refit the last layer afterwards on group-balanced held-out samples (DFR)."""

    penalties: tuple[float, ...] = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)
    refits: int = 20

    def __post_init__(self) -> None:
        object.__setattr__(self, "penalties", tuple(float(value) for value in self.penalties))


@dataclass(frozen=True)
class Arbitrate:
    """Ask first who is wrong, the teacher or the label (`limbeck.arbitration`): the student's targets are the answer.

    Args:
        attribute: what the label may be tied to: a name or several; None for what the groups are made of besides it.
        judge: what it stands on: `raw`, `teacher` (its features) or `auto`; an array of features is for
            `limbeck.arbitrate`, whose result `limbeck.fit` takes.
        folds, rounds, noise: see `limbeck.arbitrate`.
        gamma: how far the weights even out the cells (attribute, class), 0 to 1.
        protect: classes or groups by name with the share that may be corrected.
        witness: `auto` hears a teacher that is given and has not learned the labels by heart, `always` needs one and
            hears it, `never` does not.
        shortcut: what the weights even out beside the class: `declared` has nothing where no attribute is named or
            declared, `found` takes the class that a network learns first, `auto` takes that where none is.
    """

    attribute: str | tuple[str, ...] | None = None
    judge: str = "auto"
    folds: int = 2
    rounds: int = 5
    gamma: float = 0.7
    noise: str = "auto"
    protect: Plain = field(default_factory=dict)
    witness: str = "auto"
    shortcut: str = "auto"

    def __post_init__(self) -> None:
        if self.noise not in NOISES:
            raise RecipeError("arbitrate: " + unknown_name("noise", self.noise, NOISES))
        if self.witness not in WITNESSES:
            raise RecipeError("arbitrate: " + unknown_name("witness", self.witness, WITNESSES))
        if self.shortcut not in SHORTCUTS:
            raise RecipeError("arbitrate: " + unknown_name("shortcut", self.shortcut, SHORTCUTS))
        if self.shortcut == "found" and self.attribute is not None:
            raise RecipeError("arbitrate: the attribute is named, and to be found (shortcut: found): leave out one")
        if self.attribute is not None:
            names = [self.attribute] if isinstance(self.attribute, str) else self.attribute
            object.__setattr__(self, "attribute", tuple(names))
        object.__setattr__(self, "protect", dict(self.protect))
        if not 0.0 <= self.gamma <= 1.0:
            raise RecipeError(f"arbitrate: gamma is 0 (cells as they are) to 1 (all cells alike), found {self.gamma}")
        if self.folds < 2 or self.rounds < 1:
            raise RecipeError(f"arbitrate: needs two folds and a round at least, found {self.folds} and {self.rounds}")


@dataclass(frozen=True)
class Choose:
    """Train each of a few recipes alike, and one student from those that validation prefers (`limbeck.choosing`).

    Args:
        candidates: recipes, simpler ones first; what a teacher or the data cannot support is left out.
        margin: of the expected worst-group accuracy: a candidate so far below the best has 1/e of its say; 0 keeps the
            best one alone.
    """

    candidates: tuple[Any, ...] = ()
    margin: float = 0.03

    def __post_init__(self) -> None:
        from limbeck.presets import as_recipe

        candidates = tuple(as_recipe(value) for value in self.candidates)
        object.__setattr__(self, "candidates", candidates)
        names = [candidate.name for candidate in candidates]
        if not names or len(set(names)) < len(names):
            raise RecipeError(f"choose: candidates need a name of their own each, and one at least: found {names}")
        if any(candidate.choose is not None for candidate in candidates):
            raise RecipeError("choose: a candidate chooses among candidates of its own: list those instead")
        if self.margin < 0:
            raise RecipeError(f"choose: margin is a share of 0 or more, found {self.margin}")


def _as_term(value: Any, functions: Plain | None) -> Term:
    if isinstance(value, Term):
        return value
    if isinstance(value, str):
        return Term.named(value, functions)
    if isinstance(value, TermInfo):
        return Term(value.function, per_sample=value.per_sample, minimum_classes=value.minimum_classes)
    if isinstance(value, Mapping):
        settings = dict(value)
        if "term" not in settings:
            raise RecipeError(
                f"a term is written {{term: name, option: value, …}}: found {dict(value)!r} without 'term'"
            )
        return Term.named(settings.pop("term"), functions, **settings)
    if callable(value):
        known = next((name for name, info in TERMS.items() if info.function is value), None)
        return Term.named(known) if known else Term(value)
    raise RecipeError(f"a term is a name, a mapping, a function or a Term: found {value!r}")


def _as_weighting(value: Any, functions: Plain | None) -> Weighting:
    if isinstance(value, Weighting):
        return value
    if isinstance(value, str):
        return Weighting.named(value, functions)
    if isinstance(value, Mapping):
        settings = dict(value)
        if "name" not in settings:
            raise RecipeError(
                f"a weighting is written {{name: …, option: value}}: found {dict(value)!r} without 'name'"
            )
        return Weighting.named(settings.pop("name"), functions, **settings)
    if isinstance(value, nn.Module):
        raise RecipeError(
            f"a weighting holds state of one run, so a recipe takes its class, not an instance: write "
            f"Weighting({type(value).__name__}, {{options}}) or its name"
        )
    if callable(value):
        known = next((name for name, info in WEIGHTINGS.items() if info.factory is value), None)
        return Weighting.named(known) if known else Weighting(value)
    raise RecipeError(f"a weighting is a name, a mapping, a class or a Weighting: found {value!r}")


def _as_part(kind: str, cls: type[T], value: Any) -> T | None:
    if value is None or isinstance(value, cls):
        return value
    if isinstance(value, str) and cls is Head and value == "transplant":
        return cls()
    if isinstance(value, Mapping):
        settings = dict(value)
        names = [entry.name for entry in dataclasses.fields(cls)]  # type: ignore[arg-type]
        for key in settings:
            if key not in names:
                raise RecipeError(f"{kind}: " + unknown_name("option", key, names))
        return cls(**settings)
    raise RecipeError(f"{kind}: expected a mapping or {cls.__name__}, found {value!r}")


@dataclass(frozen=True)
class Recipe:
    """Terms, weighting, head, and the steps around the loop.

    Args:
        terms: what the student learns: names, mappings, functions or `Term`s.
        weighting: whom it listens to: a name, a mapping, a class or a `Weighting`.
        head: None, "transplant" or a `Head`: end in the teacher's frozen last layer.
        sampling: `shuffle` (each sample once an epoch), `group_balanced` / `class_balanced` (with replacement, a
            sample of a group of n_g drawn with weight N/n_g), or `posterior` (with the weights of `arbitrate`).
        identify: train a biased model first and hand its error set to the weighting; or name the groups it is made of.
        refit: refit the last layer afterwards on held-out, group-balanced samples.
        rounds: more than one repeats: round 1 is a plain student (or the teacher that is given), round t has the
            student of round t-1 as its teacher.
        start: `own` keeps the student's own initial weights, `teacher` begins at the teacher's where shapes agree.
        arbitrate: ask first who is wrong, the teacher or the label; gives the field `targets`.
        choose: train several recipes and one student from the best of them; terms and weighting here are unused.
        name: how tables call it.

    Raises:
        RecipeError: where the parts do not fit each other.
    """

    terms: Sequence[Any] = ("cross_entropy",)
    weighting: Any = "uniform"
    head: Any = None
    sampling: str = "shuffle"
    identify: Any = None
    refit: Any = None
    rounds: int = 1
    start: str = "own"
    arbitrate: Any = None
    choose: Any = None
    name: str = "custom"
    functions: dataclasses.InitVar[Plain | None] = None

    def __post_init__(self, functions: Plain | None) -> None:
        if isinstance(self.terms, (str, Mapping, Term)) or callable(self.terms):
            object.__setattr__(self, "terms", (self.terms,))
        terms = tuple(_as_term(value, functions) for value in self.terms)
        object.__setattr__(self, "terms", terms)
        object.__setattr__(self, "weighting", _as_weighting(self.weighting, functions))
        object.__setattr__(self, "head", _as_part("head", Head, self.head))
        object.__setattr__(self, "identify", _as_part("identify", Identify, self.identify))
        object.__setattr__(self, "refit", _as_part("refit", Refit, self.refit))
        object.__setattr__(self, "arbitrate", _as_part("arbitrate", Arbitrate, self.arbitrate))
        object.__setattr__(self, "choose", _as_part("choose", Choose, self.choose))
        self._check_itself()

    def _check_itself(self) -> None:
        if not self.terms:
            raise RecipeError(f"recipe {self.name!r} has no term: name at least one, such as 'cross_entropy'")
        if self.sampling not in SAMPLINGS:
            raise RecipeError(unknown_name("sampling", self.sampling, SAMPLINGS))
        if self.start not in ("own", "teacher"):
            raise RecipeError(unknown_name("start", self.start, ("own", "teacher")))
        if self.rounds < 1:
            raise RecipeError(f"recipe {self.name!r}: rounds must be at least 1, found {self.rounds}")
        for term in self.terms:
            if not term.per_sample and term.weighted and not self.weighting.uniform:
                raise RecipeError(
                    f"recipe {self.name!r}: {term.name!r} is a statistic of the whole batch, so "
                    f"{self.weighting.name!r} cannot "
                    f"weigh it per sample; take the term out of the weighting (weighted: false), use the weighting "
                    f"'uniform', or a per-sample term such as 'kl_divergence'"
                )
        if not any(term.per_sample and term.weighted for term in self.terms) and not self.weighting.uniform:
            raise RecipeError(
                f"recipe {self.name!r}: no term is left for the weighting {self.weighting.name!r} to weigh; "
                "keep one term "
                "weighted, or use the weighting 'uniform'"
            )
        if (
            "error_set" in self.weighting.context
            and self.identify is None
            and "error_set" not in self.weighting.options
        ):
            raise RecipeError(
                f"recipe {self.name!r}: the weighting {self.weighting.name!r} needs an error set; add "
                "identify: {epochs: 1} so that one is found, or identify: {groups: [name, …]}"
            )
        if self.identify is not None and "error_set" not in self.weighting.context:
            raise RecipeError(
                f"recipe {self.name!r}: identify finds an error set, but the weighting {self.weighting.name!r} "
                "does not use "
                "one; use the weighting 'upweight'"
            )
        uses = "targets" in self.needs or self.sampling == "posterior"
        if self.arbitrate is not None and not uses and self.choose is None:
            raise RecipeError(
                f"recipe {self.name!r}: arbitrate makes a posterior, and nothing uses it; use the term "
                "'soft_cross_entropy', or sampling 'posterior'"
            )
        if self.refit is not None and self.head is not None:
            raise RecipeError(
                f"recipe {self.name!r}: a transplanted head is frozen, so it cannot be refitted; use one of the two"
            )

    # What it asks of the world ------------------------------------------------------------------------------------

    @property
    def needs(self) -> frozenset[str]:
        """All fields of a batch that its parts read."""
        found = {name for term in self.terms for name in term.needs}
        if self.weighting.per_teacher:
            found.discard("teacher_logits")
        return frozenset(found | set(self.weighting.needs))

    @property
    def needs_teacher(self) -> bool:
        """Whether somebody must give a teacher (more rounds make their own)."""
        asks = self.head is not None or any(name in self.needs for name in TEACHER_FIELDS)
        asks = asks or (
            self.arbitrate is not None and (self.arbitrate.judge == "teacher" or self.arbitrate.witness == "always")
        )
        return asks and self.rounds == 1 and self.choose is None

    @property
    def takes_teacher(self) -> bool:
        """Whether it learns from a teacher where there is one, and does without where there is none."""
        return self.choose is not None and any(part.teacher_outputs for part in self.choose.candidates)

    @property
    def teacher_outputs(self) -> frozenset[str]:
        """What a teacher must supply: of logits, features, maps, head."""
        if self.takes_teacher:
            return frozenset({"logits"})
        wanted = {
            "teacher_logits": "logits",
            "teachers_logits": "teachers_logits",
            "teacher_features": "features",
            "teacher_maps": "maps",
        }
        found = {wanted[name] for name in self.needs if name in wanted}
        if self.arbitrate is not None and self.arbitrate.witness == "always":
            found.add("logits")
        return frozenset(found | ({"head"} if self.head is not None else set()))

    @property
    def needs_groups(self) -> bool:
        """Whether every training sample's group must be known."""
        context = {*self.weighting.context, *(name for term in self.terms for name in context_needs(term.function))}
        return (
            "groups" in self.needs
            or self.sampling == "group_balanced"
            or self.refit is not None
            or bool({"groups", "group_counts"} & context - set(self.weighting.options))
        )

    def check(self, *, classes: int, groups: Sequence[str] | None, teacher: bool | None = None) -> list[str]:
        """Hold the recipe against the task, before any training.

        Args:
            classes: how many classes there are.
            groups: the names of the declared groups, or None.
            teacher: whether a teacher is given; None does not look.

        Returns:
            Warnings: what still works, but not as its paper had in mind.

        Raises:
            RecipeError: saying why and what to use instead.
        """
        warnings = []
        if self.arbitrate is None and ("targets" in self.needs or self.sampling == "posterior"):
            raise RecipeError(
                f"recipe {self.name!r} learns from a posterior over the true class, and nothing makes one: add "
                "arbitrate: {}"
            )
        if self.needs_groups and not groups:
            raise RecipeError(
                f"recipe {self.name!r} needs the group of every training sample, and no groups are declared: "
                "declare them "
                "(groups: [column, …]), or use a recipe without groups such as 'dett', 'jtt' or 'erm'"
            )
        if self.identify is not None and not self.identify.trains:
            if not groups:
                raise RecipeError(
                    f"recipe {self.name!r} makes its error set of groups ({', '.join(self.identify.groups)}), and "
                    "there are none: declare them (groups: [column, …]), let them be found (groups: {discover: "
                    "errors}), or write identify: {epochs: 1} so that a plain student finds the error set"
                )
            try:
                self.identify.members(groups)
            except RecipeError as error:
                raise RecipeError(f"recipe {self.name!r}: {error}") from None
        if teacher is False and self.needs_teacher:
            raise RecipeError(
                f"recipe {self.name!r} learns from a teacher, and none is given: pass teacher=…, or use a "
                "recipe without one "
                "such as 'erm' or 'group_dro'"
            )
        for term in self.terms:
            if classes < term.minimum_classes:
                raise RecipeError(
                    f"recipe {self.name!r}: the term {term.name!r} has no gradient at {classes} classes (it needs "
                    f"{term.minimum_classes} or more); leave it out, or use 'sample_confidence' or 'kl_divergence'"
                )
            if term.options.get("k", 0) >= classes or (
                term.name == "partial_label" and "k" not in term.options and classes <= 2
            ):
                raise RecipeError(
                    f"recipe {self.name!r}: {term.name!r} gives the label to {term.options.get('k', 2)} of "
                    f"{classes} classes, which "
                    "says nothing; use fewer candidates (k), or a recipe such as 'gce' or 'kd' at two classes"
                )
            if term.standardise and classes == 2:
                raise RecipeError(
                    f"recipe {self.name!r}: standardised logits of two classes are ±0.7071 whatever they were, so "
                    f"{term.name!r} has no gradient; leave standardise out"
                )
            if classes == 2 and term.name in TERMS and TERMS[term.name].note_two_classes:
                warnings.append(f"{self.name}: {TERMS[term.name].note_two_classes}")
        return warnings

    # To and from plain data ---------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `Recipe.from_dict` turns back into an equal recipe."""
        found: dict[str, Any] = {"name": self.name, "terms": [term.to_dict() for term in self.terms]}
        found["weighting"] = self.weighting.to_dict()
        if self.identify is not None:
            found["identify"] = self.identify.to_dict()
        for name in ("head", "refit", "arbitrate"):
            if (part := getattr(self, name)) is not None:
                values = dataclasses.asdict(part)
                found[name] = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        if self.choose is not None:
            candidates = [candidate.to_dict() for candidate in self.choose.candidates]
            found["choose"] = {"candidates": candidates, "margin": self.choose.margin}
        for name, default in (("sampling", "shuffle"), ("rounds", 1), ("start", "own")):
            if getattr(self, name) != default:
                found[name] = getattr(self, name)
        return found

    @classmethod
    def from_dict(cls, values: Plain, functions: Plain | None = None) -> Recipe:
        """A recipe from plain data.

        Args:
            values: the fields of a recipe.
            functions: the user's own terms and weightings by the name that `values` calls them.

        Raises:
            RecipeError: naming the key or value that cannot be used, and the nearest known one.
        """
        names = [entry.name for entry in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                raise RecipeError("recipe: " + unknown_name("key", key, names))
        return cls(**dict(values), functions=functions)

    def replace(self, **changes: Any) -> Recipe:
        """A copy with some parts changed, checked anew: how methods are combined."""
        functions = changes.pop("functions", None)
        return dataclasses.replace(self, **changes, functions=functions)


class Objective(nn.Module):
    """A recipe made ready for one run: calls each term with the fields it names and lets the weighting reduce them.

    What terms and weighting learn or remember is its state (`state_dict`), and its parameters belong to the optimiser.
    """

    def __init__(self, recipe: Recipe, context: Mapping[str, Any]) -> None:
        super().__init__()
        self.recipe = recipe
        self.parts = nn.ModuleDict()
        self._calls: list[tuple[Term, Callable[..., Tensor], tuple[str, ...]]] = []
        epochs = int(context["epochs"])
        self._warmups = [term.warmup * epochs for term in recipe.terms]
        for index, term in enumerate(recipe.terms):
            call = self._build(f"term_{index}", "term", term.name, term.function, term.options, context)
            self._calls.append((term, call, term.needs))
        weighting = recipe.weighting
        self.weighting = self._build(
            "weighting", "weighting", weighting.name, weighting.factory, weighting.options, context
        )
        self._weighting_needs = weighting.needs
        # The plain mean in one operation: at a linear head every call of a step is felt.
        self._uniform, self._teachers_apart = weighting.uniform, weighting.per_teacher
        self.needs = recipe.needs
        self.factors = [term.weight for term in recipe.terms]
        self._described = self._joint_terms()
        self.share = 1.0
        """This process's share of the global batch, times the number of processes: 1 where there is one."""

    def _build(
        self, key: str, kind: str, name: str, function: Callable[..., Any], given: Plain, context: Mapping[str, Any]
    ) -> Callable[..., Tensor]:
        if not isinstance(function, type):
            return partial(function, **given) if given else function
        arguments = {}
        for field_name in context_needs(function):
            if field_name in given:
                continue
            if context.get(field_name) is None:
                if options(function)[field_name] is not inspect.Parameter.empty:
                    continue
                raise RecipeError(
                    f"{kind} {name!r} needs {field_name!r}, which this run does not have ({CONTEXT[field_name]})"
                )
            arguments[field_name] = context[field_name]
        built = function(**arguments, **given)
        if isinstance(built, nn.Module):
            self.parts[key] = built
        return built  # type: ignore[no-any-return]

    def _joint_terms(self) -> dict[int, Callable[..., RowLoss]]:
        """By position, the terms that are computed as one: a step has less to do, and the losses are the same."""
        found: dict[int, Callable[..., RowLoss]] = {}
        for index, term in enumerate(self.recipe.terms):
            describe = row_loss_of(term.function)
            if describe is not None and term.per_sample and term.weighted and not term.standardise:
                found[index] = partial(describe, **term.options) if term.options else describe
        return found

    def begin_epoch(self, epoch: int) -> None:
        """Set the terms' factors for this epoch (counted from 0)."""
        self.factors = [
            term.weight * (min((epoch + 1) / warmup, 1.0) if warmup > 0 else 1.0)
            for (term, _, _), warmup in zip(self._calls, self._warmups, strict=True)
        ]

    @property
    def group_weights(self) -> Tensor | None:
        """The weighting's group weights q `[G]`, where it has any."""
        found = getattr(self.weighting, "q", None)
        return found if isinstance(found, Tensor) else None

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The loss of a batch.

        Args:
            batch: the fields by name.

        Returns:
            The scalar loss, and the per-sample losses `[B]` that were weighted, without gradient.
        """
        if self._teachers_apart:
            return self._per_teacher(batch)
        losses, beside = self._terms(batch)
        if beside is not None and self.share != 1.0:
            beside = beside * self.share
        if losses is None:
            assert beside is not None
            return beside, beside.detach().expand(batch["labels"].shape[0])
        loss = self._weigh(losses, batch)
        return (loss if beside is None else loss + beside), losses.detach()

    @property
    def explicit(self) -> bool:
        """Whether `gradient` says all that there is to differentiate."""
        return self._uniform and not self._teachers_apart and len(self._described) == len(self._calls)

    def ahead(self, columns: Mapping[str, Any], classes: int) -> RowLoss | None:
        """The loss of a whole epoch but for the student's part, for an objective that is `explicit`.

        Args:
            columns: the fields by name, one row a sample, in the order of the epoch.
            classes: C.

        Returns:
            None where a term looks at its batch, or at more than is in `columns`.
        """
        terms = self.recipe.terms
        if not self.explicit or not all(described_ahead(term.function) for term in terms):
            return None
        if not {name for term in terms for name in term.needs} <= {*columns, "student_logits"}:
            return None
        labels = columns["labels"]
        shape_only = torch.zeros((), device=labels.device).expand(len(labels), classes)
        with torch.no_grad():
            return self._together({**columns, "student_logits": shape_only}, ahead=True)

    @torch.no_grad()
    def gradient(self, batch: Mapping[str, Any], loss: RowLoss | None = None) -> tuple[Tensor, Tensor]:
        """The gradient of the loss by `student_logits`, without autograd, for an objective that is `explicit`.

        Args:
            batch: the fields by name.
            loss: this batch's part of what `ahead` returned.

        Returns:
            The gradient `[B, C]`, and the per-sample losses `[B]`.
        """
        logits = batch["student_logits"]
        losses, gradient = with_gradient(logits.detach(), self._together(batch) if loss is None else loss)
        assert gradient is not None
        return gradient.mul_(self.share / len(losses)).to(logits.dtype), losses

    def _together(self, batch: Mapping[str, Any], ahead: bool = False) -> RowLoss:
        parts = [
            (describe(**{name: batch[name] for name in self._calls[index][2]}), self.factors[index])
            for index, describe in self._described.items()
        ]
        return together(parts, ahead)

    def _weigh(self, losses: Tensor, batch: Mapping[str, Any]) -> Tensor:
        if self._uniform:
            loss = losses.mean()
        else:
            loss = self.weighting(losses, **{name: batch[name] for name in self._weighting_needs})
        if self.share != 1.0 and not getattr(self.weighting, "spans_processes", False):
            loss = loss * self.share
        return loss

    def _per_teacher(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The terms with each teacher in turn, for a weighting of teachers."""
        teachers = batch["teachers_logits"].transpose(0, 1)
        parts = [self._terms(batch | {"teacher_logits": logits}) for logits in teachers.unbind(0)]
        losses = torch.stack([part for part, _ in parts if part is not None])
        loss = self._weigh(losses, batch | {"teachers_logits": teachers})
        for _, beside in parts:
            loss = loss if beside is None else loss + beside / len(parts)
        return loss, losses.detach().mean(0)

    def _terms(self, batch: Mapping[str, Any]) -> tuple[Tensor | None, Tensor | None]:
        """The per-sample losses under the weighting `[B]`, and the scalar beside it."""
        losses: Tensor | None = None
        beside: Tensor | None = None
        z_scored: dict[str, Tensor] = {}
        if len(self._described) > 1:
            losses = by_row(batch["student_logits"], self._together(batch))
        for index, ((term, call, names), factor) in enumerate(zip(self._calls, self.factors)):
            if len(self._described) > 1 and index in self._described:
                continue
            arguments = {name: batch[name] for name in names}
            if term.standardise:
                for name in ("student_logits", "teacher_logits"):
                    if name in arguments:
                        if name not in z_scored:
                            z_scored[name] = standardise(batch[name])
                        arguments[name] = z_scored[name]
            value = call(**arguments)
            if term.per_sample and not term.weighted:
                value = value.mean()
            if term.per_sample and term.weighted:
                losses = _plus(losses, value, factor)
            else:
                beside = _plus(beside, value, factor)
        return losses, beside


def _plus(total: Tensor | None, value: Tensor, factor: float) -> Tensor:
    """total + factor·value, in one operation each way."""
    if total is None:
        return value if factor == 1.0 else value * factor
    return torch.add(total, value, alpha=factor)
