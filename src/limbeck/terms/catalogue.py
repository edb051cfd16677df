"""What there is to learn from, by name; and what a term asks for, read from its signature.

A term is a callable returning one loss a sample. The names of its required parameters say which fields of a batch it
needs; what has a default is an option. A class of `nn.Module` holds state: it is built once a run, its constructor's
parameters naming what it needs to know of the run (or options), and its `forward` follows the rule above. The same
holds for weightings.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from limbeck.errors import RecipeError, unknown_name
from limbeck.terms.basic import cross_entropy, kl_divergence, label_smoothing, tf_kd
from limbeck.terms.contrast import CRD
from limbeck.terms.features import FitNet, at, feature_mse, rkd
from limbeck.terms.logits import CTKD, dist, nkd, ttm, wttm
from limbeck.terms.noise import ELR, gce
from limbeck.terms.partial import partial_label
from limbeck.terms.rectified import la, lr, rc, rectified_bias
from limbeck.terms.refined import decoupled, masked_correlation, nckd, refined_logits, sample_confidence, tckd
from limbeck.terms.soft import expected_refined_logits, soft_cross_entropy

FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "student_logits": "the student's logits [B, C]",
        "teacher_logits": "the teacher's logits [B, C]",
        "teachers_logits": "the logits of several teachers [T, B, C]",
        "labels": "the given labels [B]",
        "targets": "a distribution over classes for each sample, from arbitration [B, C]",
        "groups": "the group of each sample [B], -1 where unknown",
        "ids": "the stable id of each sample [B]",
        "rows": "the position of each sample in the training split [B]",
        "x": "the inputs",
        "student_features": "the input of the student's last linear layer [B, D_S]",
        "teacher_features": "the input of the teacher's last linear layer [B, D_T]",
        "student_maps": "the student's feature map before pooling [B, D, H, W], or a list of maps",
        "teacher_maps": "the teacher's feature map before pooling [B, D, H, W], or a list of maps",
        "progress": "the share of training behind us, e/E with e counted from 0",
        "epoch": "the epoch, counted from 0",
        "early_features": "what an early layer of the student computes [B, D]",
        "losses": "the per-sample losses [B] (weightings only)",
    }
)
"""The fields that a batch can have."""

CONTEXT: Mapping[str, str] = MappingProxyType(
    {
        "classes": "the number of classes",
        "samples": "the number of training samples",
        "groups": "the number of groups",
        "group_counts": "the training samples of each group [G]",
        "class_counts": "the training samples of each class [C]",
        "labels_all": "the training labels by row [n]",
        "epochs": "the number of epochs",
        "student_width": "the width of the student's features",
        "teacher_width": "the width of the teacher's features",
        "student_map_shapes": "the shapes of the student's feature maps",
        "teacher_map_shapes": "the shapes of the teacher's feature maps",
        "error_set": "the training rows that a biased model gets wrong, bool [n]",
        "early_width": "the width of the student's early features",
        "student_copy": "an untrained copy of the student",
    }
)
"""What the constructor of a stateful term or weighting can ask of the run."""


@dataclass(frozen=True)
class TermInfo:
    """What is known about a term before it is ever called.

    Args:
        function: the function, or the class of a stateful term.
        source: the paper.
        per_sample: False for a statistic of the whole batch, which returns a scalar and cannot be weighted per sample.
        minimum_classes: the fewest classes at which it has a gradient at all.
        trusts: who is taken to be right where teacher and label disagree.
        note: what to know before choosing it.
        note_two_classes: what is left of it at two classes, where that is less than the whole.
    """

    function: Callable[..., Any]
    source: str
    per_sample: bool = True
    minimum_classes: int = 2
    trusts: str = ""
    note: str = ""
    note_two_classes: str = ""


CATALOGUE: Mapping[str, TermInfo] = MappingProxyType(
    {
        "cross_entropy": TermInfo(cross_entropy, "", trusts="label"),
        "label_smoothing": TermInfo(label_smoothing, "Szegedy et al., CVPR 2016", trusts="label"),
        "gce": TermInfo(
            gce, "Zhang & Sabuncu, NeurIPS 2018, arXiv 1805.07836", trusts="label, less where it is improbable"
        ),
        "elr": TermInfo(
            ELR,
            "Liu et al., NeurIPS 2020, arXiv 2007.00151",
            trusts="the student's own earlier outputs",
            note="beside cross entropy; remembers one distribution a training sample",
        ),
        "tf_kd": TermInfo(tf_kd, "Yuan et al., CVPR 2020, arXiv 1909.11723", trusts="label", note="needs no teacher"),
        "kl_divergence": TermInfo(
            kl_divergence, "Hinton et al., arXiv 1503.02531", trusts="teacher", note="the factor τ² is included"
        ),
        "sample_confidence": TermInfo(
            sample_confidence,
            "Sun et al., ICCV 2025, arXiv 2408.07703",
            trusts="label, as sure as the teacher is of anything",
        ),
        "masked_correlation": TermInfo(
            masked_correlation,
            "Sun et al., ICCV 2025, arXiv 2408.07703",
            minimum_classes=3,
            trusts="teacher, among the classes it ranks below the label",
        ),
        "refined_logits": TermInfo(
            refined_logits,
            "Sun et al., ICCV 2025, arXiv 2408.07703",
            trusts="label",
            note="RLD; beside cross entropy, with a warm-up over the first twelfth of training",
            note_two_classes="only the sample confidence is left of refined_logits: there is one other class",
        ),
        "tckd": TermInfo(tckd, "Zhao et al., CVPR 2022, arXiv 2203.08679", trusts="teacher"),
        "nckd": TermInfo(nckd, "Zhao et al., CVPR 2022, arXiv 2203.08679", minimum_classes=3, trusts="teacher"),
        "decoupled": TermInfo(
            decoupled,
            "Zhao et al., CVPR 2022, arXiv 2203.08679",
            trusts="teacher",
            note="DKD; beside cross entropy, with a warm-up over the first twelfth of training",
            note_two_classes="only the target class (TCKD) is left of decoupled: there is one other class",
        ),
        "rectified_bias": TermInfo(
            rectified_bias,
            "AAAI 2025, arXiv 2412.09874",
            trusts="label",
            note="BTKD; beside cross entropy; its weights refer to the right and wrong samples of the batch",
        ),
        "la": TermInfo(la, "Wen et al., arXiv 1911.07471", trusts="label", note="used alone"),
        "lr": TermInfo(lr, "Lan et al., arXiv 2404.03693", trusts="label"),
        "rc": TermInfo(
            rc, "baseline of arXiv 2408.07703", trusts="label", note="weight .1 beside cross entropy and KD"
        ),
        "partial_label": TermInfo(
            partial_label,
            "Jeong & Chung, ICLR 2025, arXiv 2402.10482",
            trusts="the teacher's top two",
            note="PLL; does not use the label",
            note_two_classes="partial_label with k = 2 names both classes and teaches nothing but one half: use k = 1",
        ),
        "nkd": TermInfo(
            nkd,
            "Yang et al., ICCV 2023, arXiv 2303.13005",
            trusts="both",
            note="beside cross entropy",
            note_two_classes="only the target class is left of nkd: there is one other class",
        ),
        "ttm": TermInfo(
            ttm, "Zheng & Yang, ICLR 2024, arXiv 2402.11148", trusts="teacher", note="beside cross entropy"
        ),
        "wttm": TermInfo(
            wttm, "Zheng & Yang, ICLR 2024, arXiv 2402.11148", trusts="teacher", note="beside cross entropy"
        ),
        "ctkd": TermInfo(
            CTKD,
            "Li et al., AAAI 2023, arXiv 2211.16231",
            trusts="teacher",
            note="learns the temperature against the student",
        ),
        "dist": TermInfo(
            dist,
            "Huang et al., NeurIPS 2022, arXiv 2205.10536",
            per_sample=False,
            trusts="teacher",
            note="weight 2 beside cross entropy",
            note_two_classes="only the correlation over samples is left of dist: two classes always correlate to ±1",
        ),
        "feature_mse": TermInfo(
            feature_mse,
            "Chen et al., SimKD, CVPR 2022, arXiv 2203.14001; DeTT, arXiv 2302.11187",
            trusts="teacher",
            note="with the teacher's transplanted head",
        ),
        "fitnet": TermInfo(
            FitNet,
            "Romero et al., ICLR 2015, arXiv 1412.6550",
            trusts="teacher",
            note="weight 100 beside cross entropy",
        ),
        "at": TermInfo(
            at,
            "Zagoruyko & Komodakis, ICLR 2017, arXiv 1612.03928",
            trusts="teacher",
            note="weight 1000 beside cross entropy",
        ),
        "rkd": TermInfo(
            rkd,
            "Park et al., CVPR 2019, arXiv 1904.05068",
            per_sample=False,
            trusts="teacher",
            note="beside cross entropy; memory grows with the cube of the batch",
        ),
        "soft_cross_entropy": TermInfo(
            soft_cross_entropy,
            "soft targets of Hinton et al., arXiv 1503.02531, section 2",
            trusts="the posterior of arbitration",
            note="needs the step `arbitrate`",
        ),
        "expected_refined_logits": TermInfo(
            expected_refined_logits,
            "Sun et al., ICCV 2025, arXiv 2408.07703, as an expectation",
            trusts="the posterior of arbitration",
            note="beside soft_cross_entropy; needs the step `arbitrate`",
            note_two_classes="only the sample confidence is left of it: there is one other class",
        ),
        "crd": TermInfo(
            CRD,
            "Tian et al., ICLR 2020, arXiv 1910.10699",
            trusts="teacher",
            note="weight .8 beside cross entropy; remembers two embeddings a training sample",
        ),
    }
)
"""All terms by the name that recipes and configuration files call them."""


def needs(function: Callable[..., Any]) -> tuple[str, ...]:
    """The fields of a batch that a term or weighting reads: every parameter that is a field or has no default.

    Args:
        function: a function, a class whose instances are called (`forward` of an `nn.Module`, else `__call__`), or an
            instance.

    Raises:
        RecipeError: where a required parameter is no field, with the nearest one that is.
    """
    found = []
    for parameter in _called_with(function):
        if parameter.name in FIELDS:
            found.append(parameter.name)
        elif parameter.default is inspect.Parameter.empty:
            raise RecipeError(
                f"{_name(function)}: {unknown_name('batch field', parameter.name, FIELDS)} (a parameter without a "
                "default names a field of the batch; give it a default if it is an option)"
            )
    return tuple(found)


def context_needs(function: Callable[..., Any]) -> tuple[str, ...]:
    """What the constructor of a stateful term or weighting takes from the run; nothing for a plain function."""
    if not isinstance(function, type):
        return ()
    return tuple(parameter.name for parameter in _parameters(function) if parameter.name in CONTEXT)


def options(function: Callable[..., Any]) -> dict[str, Any]:
    """What can be set by name, with the defaults (`inspect.Parameter.empty` where there is none).

    Of a function these are its parameters that have a default and are no field; of a class all its constructor's
    parameters, as what it would take from the run can be given by hand as well.
    """
    if isinstance(function, type):
        return {parameter.name: parameter.default for parameter in _parameters(function)}
    return {
        parameter.name: parameter.default
        for parameter in _called_with(function)
        if parameter.name not in FIELDS and parameter.default is not inspect.Parameter.empty
    }


def _called_with(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of the call that takes a batch, without `self`."""
    if isinstance(function, type):
        return _parameters(getattr(function, "forward", None) or function.__call__)[1:]
    return _parameters(getattr(function, "forward", None) or function)


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    open_ended = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [entry for entry in inspect.signature(function).parameters.values() if entry.kind not in open_ended]


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", type(function).__name__))
