"""Groups: declared over attributes and the label, numbered by hand, or found where a model fails.

The types live in `limbeck.data.columns`, because `Data` is built from them and rooms import in one direction only.

A discovery is a method (`Errors`, `Tree`, `Clusters`, `Mixture`, `Disagreement`: values with their options) that learns
a rule from arrays (`Seen`), and the rule puts any sample into a group by what is known of it. `judge_groups` says on
samples that nothing was learned from whether a group is really worse. `limbeck.discover_groups` does all of it for a
model and data; nothing here needs torch.
"""

from limbeck.data.columns import MAX_GROUPS, Column, Groups, declare
from limbeck.groups.clusters import Clusters
from limbeck.groups.columns import RuleColumn, RuleColumns, rule_columns
from limbeck.groups.errors import Disagreement, Errors, error_set
from limbeck.groups.found import Discovery
from limbeck.groups.information import (
    Information,
    Stability,
    stability,
    within_class_adjusted_rand,
    within_class_information,
)
from limbeck.groups.methods import METHODS, as_method
from limbeck.groups.mixture import Mixture
from limbeck.groups.quality import NOTHING_FOUND, DiscoveryQuality, Slice, judge_groups
from limbeck.groups.rules import GroupRule, Method, merge_small
from limbeck.groups.seen import Seen
from limbeck.groups.tree import Leaf, Tree

__all__ = [
    "MAX_GROUPS",
    "METHODS",
    "NOTHING_FOUND",
    "Clusters",
    "Column",
    "Disagreement",
    "Discovery",
    "DiscoveryQuality",
    "Errors",
    "GroupRule",
    "Groups",
    "Information",
    "Leaf",
    "Method",
    "Mixture",
    "RuleColumn",
    "RuleColumns",
    "Seen",
    "Slice",
    "Stability",
    "Tree",
    "as_method",
    "declare",
    "error_set",
    "judge_groups",
    "merge_small",
    "rule_columns",
    "stability",
    "within_class_adjusted_rand",
    "within_class_information",
]
