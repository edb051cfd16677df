"""What a student can learn: per-sample losses and refinements of a teacher's output, usable alone in anybody's loop.

Every term takes tensors and returns one loss a sample, `[B]`; whoever calls it takes the mean, or weighs the samples
first:

    loss = refined_logits(student_logits, teacher_logits, labels, temperature=4.0).mean()

Common to all of them: float16 and bfloat16 are computed in float32, float64 stays float64; a teacher's tensors never
receive a gradient and no input is changed; values and gradients are finite for logits of ±1e4, for ties, and where
every class is masked. `dist` and `rkd` are statistics of the batch and return one number. Classes (`CTKD`, `FitNet`,
`CRD`, `ELR`) are modules with parameters or a memory of the training samples. `catalogue` lists them by the names that
recipes use.
"""

from limbeck.terms.basic import cross_entropy, kl_divergence, label_smoothing, standardise, tf_kd
from limbeck.terms.catalogue import CATALOGUE, CONTEXT, FIELDS, TermInfo, context_needs, needs, options
from limbeck.terms.contrast import CRD
from limbeck.terms.features import FitNet, at, feature_mse, rkd
from limbeck.terms.logits import CTKD, dist, nkd, ttm, wttm
from limbeck.terms.noise import ELR, gce
from limbeck.terms.partial import partial_label, partial_targets
from limbeck.terms.rectified import la, lr, rc, rectified_bias, rectify
from limbeck.terms.refined import decoupled, masked_correlation, nckd, refined_logits, sample_confidence, tckd
from limbeck.terms.soft import expected_refined_logits, soft_cross_entropy

__all__ = [
    "CATALOGUE",
    "CONTEXT",
    "CRD",
    "CTKD",
    "ELR",
    "FIELDS",
    "FitNet",
    "TermInfo",
    "at",
    "context_needs",
    "cross_entropy",
    "decoupled",
    "dist",
    "expected_refined_logits",
    "feature_mse",
    "gce",
    "kl_divergence",
    "la",
    "label_smoothing",
    "lr",
    "masked_correlation",
    "nckd",
    "needs",
    "nkd",
    "options",
    "partial_label",
    "partial_targets",
    "rc",
    "rectified_bias",
    "rectify",
    "refined_logits",
    "rkd",
    "sample_confidence",
    "soft_cross_entropy",
    "standardise",
    "tckd",
    "tf_kd",
    "ttm",
    "wttm",
]
