"""Whom the student listens to: weightings turn one loss per sample into the scalar loss."""

from limbeck.weighting.agre import Agre
from limbeck.weighting.balanced import ClassBalanced, GroupBalanced, sampling_weights
from limbeck.weighting.base import GroupWeighting, Weighting, sum_across_ranks
from limbeck.weighting.catalogue import WEIGHTINGS, WeightingInfo, build_weighting, find_weighting
from limbeck.weighting.dedier import Dedier
from limbeck.weighting.group_dro import GroupDRO
from limbeck.weighting.lff import LfF
from limbeck.weighting.uniform import Uniform
from limbeck.weighting.upweight import Upweight

__all__ = [
    "WEIGHTINGS",
    "Agre",
    "ClassBalanced",
    "Dedier",
    "GroupBalanced",
    "GroupDRO",
    "GroupWeighting",
    "LfF",
    "Uniform",
    "Upweight",
    "Weighting",
    "WeightingInfo",
    "build_weighting",
    "find_weighting",
    "sampling_weights",
    "sum_across_ranks",
]
