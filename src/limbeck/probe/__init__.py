"""Linear probes on frozen features: closed forms, the theory of label averaging, partial labels.

Self-distillation of a linear probe is exact mathematics (arXiv 2402.10482): `self_distillation` gives every round,
`partial_label_student` the one-round student, `block_model` and `minimum_rounds` the theory, `estimate_block` the
theory beside what happens, `choose_partial_labels` what to use, `picture_data` the numbers of the pictures. All of it
is numpy in float64.
"""

from limbeck.data.inject import noise_matrix
from limbeck.probe.block import BlockModel, MinimumRounds, block_model, minimum_rounds
from limbeck.probe.choice import PartialLabelChoice, PartialLabelScore, choose_partial_labels
from limbeck.probe.distillation import SelfDistillation, self_distillation
from limbeck.probe.estimate import BlockEstimate, estimate_block, estimate_noise_matrix
from limbeck.probe.features import Features
from limbeck.probe.partial import (
    PartialLabelStudent,
    partial_label_student,
    partial_label_warnings,
    partial_labels,
)
from limbeck.probe.pictures import picture_data

__all__ = [
    "BlockEstimate",
    "BlockModel",
    "Features",
    "MinimumRounds",
    "PartialLabelChoice",
    "PartialLabelScore",
    "PartialLabelStudent",
    "SelfDistillation",
    "block_model",
    "choose_partial_labels",
    "estimate_block",
    "estimate_noise_matrix",
    "minimum_rounds",
    "noise_matrix",
    "partial_label_student",
    "partial_label_warnings",
    "partial_labels",
    "picture_data",
    "self_distillation",
]
