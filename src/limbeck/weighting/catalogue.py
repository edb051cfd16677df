"""The weightings by name: one constant, so that nothing depends on what was imported before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from limbeck.errors import RecipeError, unknown_name
from limbeck.weighting.agre import Agre
from limbeck.weighting.balanced import ClassBalanced, GroupBalanced
from limbeck.weighting.base import Weighting
from limbeck.weighting.dedier import Dedier
from limbeck.weighting.group_dro import GroupDRO
from limbeck.weighting.lff import LfF
from limbeck.weighting.uniform import Uniform
from limbeck.weighting.upweight import Upweight


@dataclass(frozen=True, slots=True)
class WeightingInfo:
    """What a recipe must know of a weighting before it is built.

    Attributes:
        name: its name in a recipe.
        factory: builds it; `context` and the options are its keyword arguments.
        source: the paper.
        summary: whom it listens to, in half a sentence.
        fields: the batch fields its call needs beside `losses`.
        optional_fields: batch fields it takes where there are any.
        context: constructor arguments that come from the fit. All other ones are options.
        optional_context: constructor arguments from the fit that it can do without.
        needs_groups: it needs the group of every training sample.
        needs_error_set: it needs the training rows that a biased model gets wrong.
        per_sample: it needs one loss per sample; only `uniform` does not.
        per_teacher: it needs the losses of each of several teachers, `[T, B]`.
        trains: it trains something of its own: `"student_optimiser"` (its parameters belong in the student's
            optimiser),
            `"itself"` (a second network, inside), or None.
    """

    name: str
    factory: Callable[..., Weighting]
    source: str
    summary: str
    fields: tuple[str, ...] = ()
    optional_fields: tuple[str, ...] = ()
    context: tuple[str, ...] = ()
    optional_context: tuple[str, ...] = ()
    needs_groups: bool = False
    needs_error_set: bool = False
    per_sample: bool = True
    per_teacher: bool = False
    trains: str | None = None


WEIGHTINGS: Mapping[str, WeightingInfo] = MappingProxyType(
    {
        info.name: info
        for info in (
            WeightingInfo("uniform", Uniform, "empirical risk minimisation", "every sample alike", per_sample=False),
            WeightingInfo(
                "group_balanced",
                GroupBalanced,
                "reweighting by group size",
                "every group alike",
                fields=("groups",),
                context=("groups",),
                optional_context=("group_counts",),
                needs_groups=True,
            ),
            WeightingInfo(
                "class_balanced",
                ClassBalanced,
                "reweighting by class size",
                "every class alike",
                fields=("labels",),
                context=("classes",),
                optional_context=("class_counts",),
            ),
            WeightingInfo(
                "group_dro",
                GroupDRO,
                "Sagawa et al. 2020, arXiv 1911.08731; with distillation, arXiv 2311.00476",
                "the groups that do worst",
                fields=("groups",),
                context=("groups",),
                optional_context=("group_counts",),
                needs_groups=True,
            ),
            WeightingInfo(
                "upweight",
                Upweight,
                "Liu et al. 2021 (JTT), arXiv 2107.09044; DeTT, arXiv 2302.11187",
                "the samples that an early model gets wrong",
                fields=("rows",),
                context=("error_set",),
                needs_error_set=True,
            ),
            WeightingInfo(
                "lff",
                LfF,
                "Nam et al. 2020, arXiv 2007.02561",
                "the samples that a deliberately biased network finds hard",
                fields=("x", "labels", "rows", "student_logits"),
                context=("student_copy", "samples", "classes", "labels_all"),
                trains="itself",
            ),
            WeightingInfo(
                "dedier",
                Dedier,
                "Tiwari et al. 2023, arXiv 2310.18590",
                "the samples on which the student's early layers are confidently wrong",
                fields=("early_features", "labels"),
                context=("early_width", "classes"),
                trains="student_optimiser",
            ),
            WeightingInfo(
                "agre",
                Agre,
                "Kenfack et al. 2024 (AGRE-KD), arXiv 2411.14984",
                "the teachers that do not pull with a biased model",
                fields=("student_logits", "teachers_logits"),
                optional_fields=("biased_logits",),
                per_teacher=True,
            ),
        )
    }
)


def find_weighting(name: str) -> WeightingInfo:
    """The entry of that name.

    Raises:
        RecipeError: naming the nearest one that exists.
    """
    try:
        return WEIGHTINGS[name]
    except KeyError:
        raise RecipeError(unknown_name("weighting", name, WEIGHTINGS)) from None


def build_weighting(name: str, context: Mapping[str, Any], options: Mapping[str, Any] | None = None) -> Weighting:
    """Build a weighting: what it needs from `context` (which may hold more), the rest from `options`.

    Raises:
        RecipeError: for an unknown name or option, or a context that lacks something.
    """
    info, options = find_weighting(name), dict(options or {})
    missing = [key for key in info.context if key not in context and key not in options]
    if missing:
        raise RecipeError(f"the weighting {name!r} needs {', '.join(missing)} from the fit, which has none")
    bound = {key: context[key] for key in (*info.context, *info.optional_context) if key in context}
    try:
        return info.factory(**(bound | options))
    except TypeError as error:
        raise RecipeError(f"the weighting {name!r} cannot be built with {sorted(options)}: {error}") from error
