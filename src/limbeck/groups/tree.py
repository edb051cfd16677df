"""A tree over attributes and numbers that separates what a model gets wrong, with each leaf's rule in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from limbeck.data.columns import IntArray
from limbeck.errors import ConfigError, DataError
from limbeck.groups.columns import RuleColumn
from limbeck.groups.seen import Seen, classes_of


@dataclass(frozen=True)
class Leaf:
    """A leaf: its rule, and the errors of the samples that judged it (not those it was grown on)."""

    rule: str
    samples: int
    errors: int


@dataclass(frozen=True, eq=False)
class Nodes:
    """A grown tree as arrays [nodes]: a split's column and threshold, its children; column and children -1 in a leaf.

    Children come after their parent.
    """

    feature: IntArray
    threshold: NDArray[np.float64]
    left: IntArray
    right: IntArray

    @classmethod
    def leaf(cls) -> Nodes:
        """A tree without a split."""
        none = np.full(1, -1, np.int64)
        return cls(none, np.zeros(1), none, none)

    @classmethod
    def split(cls, feature: int, threshold: float, left: Nodes, right: Nodes) -> Nodes:
        """A split above two trees."""
        after = 1 + len(left.feature)

        def joined(own: float, first: Any, second: Any) -> Any:
            return np.concatenate([[own], first, second])

        def moved(children: IntArray, by: int) -> IntArray:
            return np.where(children < 0, -1, children + by)

        return cls(
            joined(feature, left.feature, right.feature).astype(np.int64),
            joined(threshold, left.threshold, right.threshold),
            joined(1, moved(left.left, 1), moved(right.left, after)).astype(np.int64),
            joined(after, moved(left.right, 1), moved(right.right, after)).astype(np.int64),
        )


@dataclass(frozen=True, eq=False)
class TreeRule:
    """A binary tree; a sample goes left where its value is at most the threshold.

    Attributes:
        columns: what the tree may look at.
        feature, threshold, left, right: int or float [nodes]; feature is -1 in a leaf.
        leaf: int64 [nodes], the number of the leaf, -1 elsewhere.
        leaves: in order of their judged error rate, the worst first.
        classes: names of the classes, where labels are columns too; empty elsewhere.
    """

    columns: tuple[RuleColumn, ...]
    feature: IntArray
    threshold: NDArray[np.float64]
    left: IntArray
    right: IntArray
    leaf: IntArray
    leaves: tuple[Leaf, ...]
    classes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(leaf.rule for leaf in self.leaves)

    @property
    def texts(self) -> tuple[str, ...]:
        return self.names

    @property
    def families(self) -> tuple[int, ...]:
        return (0,) * len(self.leaves)

    sees_errors: ClassVar[bool] = False

    @property
    def used(self) -> tuple[RuleColumn, ...]:
        """The columns that a split looks at."""
        return tuple(self.columns[k] for k in np.unique(self.feature[self.feature >= 0]))

    @property
    def reads(self) -> tuple[str, ...]:
        kinds = {"labels" if column.source == "label" else "columns" for column in self.used}
        return tuple(sorted(kinds))

    def assign(self, seen: Seen) -> IntArray:
        seen_columns = seen.required("columns")
        if self.classes:
            seen_columns = seen_columns.with_labels(seen.required("labels"), self.classes)
        if seen_columns.columns != self.columns:
            raise DataError("these samples have other columns than those the tree was grown on: give the same columns")
        return self.leaf[_node_of(self, seen_columns.values)]


@dataclass(frozen=True)
class Tree:
    """An error tree: grown on one half of the samples, judged and pruned on the other.

    The tree (scikit-learn, entropy) predicts whether the model is wrong. Where rules may name the class, a tree within
    each class is grown as well: a shortcut fails on class × cue, of which neither alone says anything, so that no
    greedy tree would begin there. Of the two, the one that better predicts the errors of the other half is kept.

    Two leaves of one split whose error rates cannot be told apart on the other half (Fisher's exact test, corrected for
    the number of splits) become one, from the leaves upwards: the honesty of Athey and Imbens (PNAS 2016, arXiv
    1504.01132), so that no leaf exists by the noise it was found in.

    Args:
        depth: splits from the root to a leaf, at most.
        leaf: samples of the half it is grown on that a leaf needs.
        label: whether rules may name the class. Such a group cannot be told for unlabelled samples.
        columns: attributes, features and extra columns that rules may name; by default all attributes and features.
        prune: the chance, over the whole tree, that a split is kept which makes no difference; 1 keeps every split.
    """

    depth: int = 4
    leaf: int = 20
    label: bool = True
    columns: tuple[str, ...] | None = None
    prune: float = 0.05
    name: ClassVar[str] = "tree"
    needs: ClassVar[tuple[str, ...]] = ("probabilities", "columns", "labels")
    from_errors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.columns is not None:
            object.__setattr__(self, "columns", tuple(self.columns))
        if self.depth < 1 or self.leaf < 1 or not 0 < self.prune <= 1:
            raise ConfigError(
                f"tree: depth {self.depth} and leaf {self.leaf} must be at least 1, prune {self.prune} in 0..1"
            )

    def find(self, seen: Seen, classes: Sequence[str], seed: int) -> TreeRule:
        """Grow a tree on one half, drawn by the seed, and judge it on the other.

        Raises:
            DataError: for fewer than four samples.
        """
        named = classes_of(seen.required("labels"), classes)
        wrong, columns = seen.wrong, seen.required("columns")
        if len(seen) < 4:
            raise DataError(f"an error tree is grown on one half and judged on the other: {len(seen)} samples are few")
        if self.label:
            columns = columns.with_labels(seen.required("labels"), named)
        half = _halves(wrong, seed)
        values = columns.values[half]
        grown = [self._grow(values, wrong[half], seed)]
        if self.label:
            first = columns.values.shape[1] - len(named)
            grown.append(self._grow_within(values, wrong[half], first, seed))
        judge = _Judge(columns.columns, columns.values[~half], wrong[~half], self.prune)
        rules = [judge.honest(nodes, named if self.label else ()) for nodes in grown]
        return max(rules, key=lambda rule: judge.likelihood(rule, values, wrong[half]))

    def _grow(self, values: NDArray[np.float32], wrong: NDArray[np.bool_], seed: int) -> Nodes:
        from sklearn.tree import DecisionTreeClassifier

        model = DecisionTreeClassifier(
            criterion="entropy", max_depth=self.depth, min_samples_leaf=self.leaf, random_state=seed
        )
        tree = model.fit(values, wrong).tree_
        feature = np.where(tree.children_left < 0, -1, tree.feature).astype(np.int64)
        children = (tree.children_left.astype(np.int64), tree.children_right.astype(np.int64))
        return Nodes(feature, tree.threshold.astype(np.float64), *children)

    def _grow_within(self, values: NDArray[np.float32], wrong: NDArray[np.bool_], first: int, seed: int) -> Nodes:
        """A tree within each class, behind splits that tell the classes apart; labels are the columns from `first`."""
        whole = Nodes.leaf()
        for label in range(values.shape[1] - 1, first - 1, -1):
            rows = values[:, label] > 0.5
            own = self._grow(values[rows], wrong[rows], seed) if rows.any() else Nodes.leaf()
            whole = own if label == values.shape[1] - 1 else Nodes.split(label, 0.5, whole, own)
        return whole


def _halves(wrong: NDArray[np.bool_], seed: int) -> NDArray[np.bool_]:
    """A random half with half of the errors."""
    order = np.lexsort((np.random.default_rng(seed).random(len(wrong)), wrong))
    half = np.zeros(len(wrong), bool)
    half[order[::2]] = True
    return half


@dataclass(frozen=True, eq=False)
class _Judge:
    """The judging half."""

    columns: tuple[RuleColumn, ...]
    values: NDArray[np.float32]
    wrong: NDArray[np.bool_]
    prune: float

    def honest(self, nodes: Nodes, classes: tuple[str, ...]) -> TreeRule:
        """The grown tree without the splits that do not hold here, its leaves numbered by their errors here."""
        feature, threshold, left, right = nodes.feature.copy(), nodes.threshold, nodes.left, nodes.right
        reached, errors = self._counts(feature, threshold, left, right)
        level = self.prune if self.prune == 1 else self.prune / max(int((feature >= 0).sum()), 1)
        # Children come after their parent, so that backwards every split is seen after those below it.
        for node in range(len(feature) - 1, -1, -1):
            below = (left[node], right[node])
            if (
                feature[node] >= 0
                and all(feature[child] < 0 for child in below)
                and not _differ([reached[child] for child in below], [errors[child] for child in below], level)
            ):
                feature[node] = -1
        rules = _rules(self.columns, feature, threshold, left, right)
        rates = errors / np.maximum(reached, 1)
        ends = sorted(rules, key=lambda node: (-float(rates[node]), node))
        leaf = np.full(len(feature), -1, np.int64)
        leaf[ends] = np.arange(len(ends))
        leaves = tuple(Leaf(rules[node], int(reached[node]), int(errors[node])) for node in ends)
        return TreeRule(self.columns, feature, threshold, left, right, leaf, leaves, classes)

    def likelihood(self, rule: TreeRule, values: NDArray[np.float32], wrong: NDArray[np.bool_]) -> float:
        """Mean log-likelihood of the errors here under the error rates that the leaves had where the tree was grown."""
        grown = rule.leaf[_node_of(rule, values)]
        samples, errors = (np.bincount(grown, weights=w, minlength=len(rule.leaves)) for w in (None, wrong))
        rate = ((errors + 1) / (samples + 2))[rule.leaf[_node_of(rule, self.values)]]
        return float(np.log(np.where(self.wrong, rate, 1 - rate)).mean())

    def _counts(self, feature: Any, threshold: Any, left: Any, right: Any) -> tuple[IntArray, IntArray]:
        """How many samples pass each node, and how many of them are errors."""
        inside = {0: np.arange(len(self.wrong))}
        for node in range(len(feature)):
            if feature[node] >= 0:
                rows = inside[node]
                goes = self.values[rows, feature[node]] <= threshold[node]
                inside[int(left[node])], inside[int(right[node])] = rows[goes], rows[~goes]
        reached = np.array([len(inside[node]) for node in range(len(feature))])
        return reached, np.array([int(self.wrong[inside[node]].sum()) for node in range(len(feature))])


def _differ(samples: Sequence[int], errors: Sequence[int], level: float) -> bool:
    from scipy.stats import fisher_exact

    table = [[e, n - e] for n, e in zip(samples, errors, strict=True)]
    return bool(fisher_exact(table).pvalue <= level)


def _node_of(tree: TreeRule, values: NDArray[np.float32]) -> IntArray:
    """The leaf node that each row ends in."""
    node = np.zeros(len(values), np.int64)
    rows = np.arange(len(values))
    while (inner := tree.feature[node] >= 0).any():
        at = node[inner]
        goes = values[rows[inner], tree.feature[at]] <= tree.threshold[at]
        node[inner] = np.where(goes, tree.left[at], tree.right[at])
    return node


def _rules(
    columns: tuple[RuleColumn, ...],
    feature: IntArray,
    threshold: NDArray[np.float64],
    left: IntArray,
    right: IntArray,
) -> dict[int, str]:
    """The rule of each leaf node in words: bounds on one quantity put together, values named."""
    found: dict[int, str] = {}
    waiting: list[tuple[int, tuple[tuple[int, float, float], ...]]] = [(0, ())]
    while waiting:
        node, path = waiting.pop()
        if feature[node] < 0:
            found[node] = _in_words(columns, path)
            continue
        at, cut = int(feature[node]), float(threshold[node])
        waiting.append((int(left[node]), (*path, (at, -np.inf, cut))))
        waiting.append((int(right[node]), (*path, (at, cut, np.inf))))
    return found


def _in_words(columns: tuple[RuleColumn, ...], path: Sequence[tuple[int, float, float]]) -> str:
    bounds: dict[int, tuple[float, float]] = {}
    for at, low, high in path:
        before = bounds.get(at, (-np.inf, np.inf))
        bounds[at] = (max(low, before[0]), min(high, before[1]))
    # "x = a" says all about x: "x is not b" beside it would be noise.
    fixed = {columns[at].name for at, (low, _) in bounds.items() if columns[at].value is not None and low >= 0}
    left = [k for k, column in enumerate(columns) if column.source == "label" and k not in bounds]
    # A sample has some class: not being any of the others says which.
    last = columns[left[0]] if len(left) == 1 else None
    parts: list[str] = []
    for at, (low, high) in bounds.items():
        column = columns[at]
        if column.value is not None:
            if low >= 0:
                parts.append(f"{column.name} = {column.value}")
            elif column.source == "label" and last is not None and column.name not in fixed:
                parts.append(f"{last.name} = {last.value}")
                last = None
                fixed.add(column.name)
            elif column.name not in fixed:
                only = column.other
                parts.append(f"{column.name} ≠ {column.value}" if only is None else f"{column.name} = {only}")
        elif np.isinf(low):
            parts.append(f"{column.name} ≤ {high:.4g}")
        elif np.isinf(high):
            parts.append(f"{column.name} > {low:.4g}")
        else:
            parts.append(f"{low:.4g} < {column.name} ≤ {high:.4g}")
    return " and ".join(parts) if parts else "all samples"
