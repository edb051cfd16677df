"""Known faults for experiments: shortcuts, label noise, rare groups.

Each function takes data and a seed and gives new data, with a record of what was done in `data.injections` and the
truth beside it in `data.columns["true_label"]`. What happens to a sample is a function of (seed, id) alone: it does not
depend on which other samples are there. Labels of the test split are never touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from limbeck.data import seeding
from limbeck.data.columns import Column, IntArray, some
from limbeck.data.data import Data
from limbeck.data.inputs import CHUNK
from limbeck.data.splits import SPLITS, TEST, TRAIN, split_codes
from limbeck.errors import DataError, unknown_name

Floats = NDArray[np.float64]
Pattern = Literal["symmetric", "pair", "asymmetric", "superclass"]

#: Ten mean colours, RGB in 0..255, of the coloured MNIST of Nam et al. 2020, "Learning from failure".
PALETTE = (
    (220, 20, 60),
    (0, 128, 128),
    (253, 233, 16),
    (0, 149, 182),
    (237, 145, 33),
    (145, 30, 188),
    (70, 240, 240),
    (250, 197, 187),
    (210, 245, 60),
    (128, 0, 0),
)
#: Their names in `data.attributes["colour"]`.
COLOURS = ("crimson", "teal", "yellow", "cerulean", "orange", "purple", "cyan", "pink", "lime", "maroon")
#: Standard deviation of the colour around its mean, by severity 1 to 5.
COLOUR_NOISE = {1: 0.05, 2: 0.02, 3: 0.01, 4: 0.005, 5: 0.002}
_NOT_TEST = ("train", "validation")


# -- wrong labels ------------------------------------------------------------------------------------------------


def label_noise(
    data: Data,
    pattern: Pattern = "symmetric",
    *,
    rate: float,
    seed: int = 0,
    group: Mapping[str, float] | None = None,
    splits: Sequence[str] = _NOT_TEST,
    features: Any = None,
    clusters: Sequence[int] | None = None,
) -> Data:
    """Wrong labels, drawn for each sample from the row of `noise_matrix` that belongs to its label.

    The validation labels are wrong as well unless `splits` says otherwise: whoever has wrong training labels has no
    clean validation set either.

    Args:
        data: whose labels `data.y` are changed.
        pattern: where wrong labels go, see `noise_matrix`.
        rate: probability η of a wrong label, 0..1.
        seed: of the draw.
        group: another rate for some groups of `data.groups`, by name.
        splits: "train", "validation" or both.
        features: float [N, F], from which the clusters of pattern "superclass" are made (those of training samples).
        clusters: the cluster of each class instead, C numbers.

    Returns:
        Data with new labels, `columns["true_label"]` (int64 [N], kept if it is there already) and a record. Groups
        over the label follow the new label, as they would for somebody who knows no other.

    Raises:
        DataError: test among the splits, a rate outside 0..1, an unknown pattern or group, no features for clusters.
    """
    chosen = _rows(data, splits)
    if pattern == "superclass" and clusters is None:
        if features is None:
            raise DataError(
                "pattern 'superclass' clusters the classes by their features: give features=[N, F] or clusters=[C]"
            )
        training = np.flatnonzero(data.split == TRAIN)
        if len(features) != len(data):
            raise DataError(f"features has {len(features):,} rows for {len(data):,} samples: give one a sample")
        clusters = superclasses(np.asarray(features)[training], data.y[training], data.num_classes).tolist()
    rates = _group_rates(data, rate, group)
    wrong = data.y.copy()
    draw = seeding.uniform(seed, f"label_noise {pattern}", data.ids)
    for value in sorted(set(rates[chosen].tolist())):
        cumulative = np.cumsum(noise_matrix(pattern, data.num_classes, value, clusters), axis=1)
        rows = np.flatnonzero(chosen & (rates == value))
        above = draw[rows, None] >= cumulative[data.y[rows], :-1]
        wrong[rows] = above.sum(axis=1)
    record = {
        "kind": "label_noise",
        "pattern": pattern,
        "rate": float(rate),
        "group_rates": {name: float(value) for name, value in (group or {}).items()},
        "clusters": None if clusters is None else [int(c) for c in clusters],
        "splits": list(splits),
        "seed": int(seed),
        "samples": int(chosen.sum()),
        "changed": int((wrong != data.y).sum()),
    }
    return data.replace(y=wrong, columns=_with_truth(data), injections=[*data.injections, record])


def noise_matrix(pattern: Pattern, classes: int, rate: float, clusters: Sequence[int] | None = None) -> Floats:
    """The probability [C, C] of each given label (column) for each true one (row), with η = `rate`.

    * symmetric: η/(C−1) on every wrong class.
    * pair: η on the next class (the last one's next is the first).
    * asymmetric: η/C on every wrong class and η/C more on the next class (Jeong & Chung 2025, arXiv 2402.10482).
    * superclass: η spread evenly over the other classes of the same cluster; none for a class alone in its cluster.

    Raises:
        DataError: a rate outside 0..1, an unknown pattern, clusters absent or not one a class.
    """
    if not 0 <= rate <= 1:
        raise DataError(f"the noise rate is {rate}: expected a share between 0 and 1")
    same, following = np.eye(classes), np.roll(np.eye(classes), 1, axis=1)
    if pattern == "symmetric":
        moved = (1 - same) / (classes - 1)
    elif pattern == "pair":
        moved = following
    elif pattern == "asymmetric":
        moved = (1 - same + following) / classes
    elif pattern == "superclass":
        if clusters is None or len(clusters) != classes:
            raise DataError(
                f"pattern 'superclass' needs one cluster for each of the {classes} classes, found {clusters}"
            )
        inside = (np.asarray(clusters)[:, None] == np.asarray(clusters)) & (same == 0)
        others = inside.sum(axis=1, keepdims=True)
        moved = inside / np.maximum(others, 1)
    else:
        raise DataError(unknown_name("noise pattern", pattern, ["symmetric", "pair", "asymmetric", "superclass"]))
    return np.asarray(rate * moved + np.diag(1 - rate * moved.sum(axis=1)))


def superclasses(features: Any, labels: IntArray, classes: int) -> IntArray:
    """Clusters of similar classes, int64 [C], numbered from 0 in the order of their first class.

    Complete linkage on 1 − mean cosine between the samples of two classes, cut at .8 of the largest merge.

    Args:
        features: float [N, F].
        labels: int64 [N].
        classes: C.

    Raises:
        DataError: a class without samples, or features that are not [N, F].
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    values = np.asarray(features, np.float64)
    if values.ndim != 2 or len(values) != len(labels):
        raise DataError(f"features have shape {list(values.shape)} for {len(labels):,} labels: expected [N, F]")
    counts = np.bincount(labels, minlength=classes)
    if (counts == 0).any():
        raise DataError(f"class {some(np.flatnonzero(counts == 0))} has no sample to be clustered by")
    units = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    sums = np.zeros((classes, values.shape[1]))
    np.add.at(sums, labels, units)
    # The mean cosine over all pairs of two classes is the product of their mean unit vectors.
    means = sums / counts[:, None]
    distance = 1 - means @ means.T
    np.fill_diagonal(distance, 0)
    merges = linkage(squareform(np.maximum((distance + distance.T) / 2, 0), checks=False), method="complete")
    found = fcluster(merges, 0.8 * merges[:, 2].max(), criterion="distance")
    firsts, inverse = np.unique(found, return_index=True, return_inverse=True)[1:]
    return np.asarray(np.argsort(np.argsort(firsts))[inverse], np.int64)


# -- shortcuts ---------------------------------------------------------------------------------------------------


def coloured(
    data: Data,
    *,
    aligned: float = 0.95,
    severity: int = 2,
    noise: float | None = None,
    seed: int = 0,
) -> Data:
    """Coloured digits: a share `aligned` of each class in its own colour, the rest in one of the others.

    In training and validation; in test every colour is as likely for every class. The colour of a sample is
    clip(mean + N(0, noise), 0, 1), times its grey intensity (Nam et al. 2020, "Learning from failure", section 3.1).
    It follows the true label where one is kept, so that wrong labels can be injected before or after.

    Args:
        data: grey images [N, 1, H, W], uint8 or float in [0, 1]; at most ten classes.
        aligned: share of the own colour, 0..1.
        severity: 1 to 5, noise .05, .02, .01, .005, .002.
        noise: the standard deviation itself, instead of a severity.
        seed: of colours and their noise.

    Returns:
        Data with x [N, 3, H, W], attributes "colour" and "aligned" (yes, no) and a record; `normalise` is that of the
        training pixels for uint8 images.

    Raises:
        DataError: other inputs, more than ten classes, a share outside 0..1, an unknown severity.
    """
    x = _grey(data)
    colours = _palette(data)
    if noise is None:
        if severity not in COLOUR_NOISE:
            raise DataError(f"severity is {severity!r}: expected 1 to 5, or noise=… of your own")
        noise = COLOUR_NOISE[severity]
    elif not (math.isfinite(noise) and noise >= 0):
        raise DataError(f"noise is {noise}: expected a standard deviation of at least 0, of colours in [0, 1]")
    code = _shortcut_codes(data, "coloured", aligned, seed, data.num_classes)
    jitter = np.stack([seeding.normal(seed, f"coloured {c}", data.ids) for c in range(3)], axis=1)
    shade = np.clip(colours[code] + noise * jitter, 0, 1).astype(np.float32)
    painted = _painted(x, lambda part, rows: part * shade[rows, :, None, None])
    record = {"noise": float(noise), "colours": list(COLOURS[: data.num_classes])}
    return _with_shortcut(data, painted, "coloured", "colour", COLOURS, code, aligned, seed, record)


def background_patch(
    data: Data, *, strength: float = 0.99, patch: int | None = None, merge: int = 2, seed: int = 0
) -> Data:
    """Digits, neighbours merged to one class, before a coloured background or with a coloured corner.

    Args:
        data: grey images [N, 1, H, W], uint8 or float in [0, 1].
        strength: share of each class with its own colour in training and validation (.995, .99, .95); in test colours
            are uniform.
        patch: pixels of a square in the upper left corner (4 or 2 in the usual variants); not given, the whole
            background, through which the digit shows white.
        merge: how many neighbouring classes become one (2 makes five classes of ten digits; 1 leaves them).
        seed: of the colours.

    Returns:
        Data with x [N, 3, H, W], fewer classes, attributes "colour" and "aligned" and a record.

    Raises:
        DataError: other inputs, too many classes, a share outside 0..1, an unusable patch or merge.
    """
    if not 1 <= merge < data.num_classes:
        raise DataError(f"merge is {merge} for {data.num_classes} classes: expected 1 to {data.num_classes - 1}")
    if merge > 1:
        data = _merged(data, merge)
    x = _grey(data)
    if patch is not None and not 1 <= patch <= min(x.shape[2:]):
        raise DataError(
            f"patch is {patch} pixels for images of {x.shape[2]}×{x.shape[3]}: expected at least 1 and no more"
        )
    colours = _palette(data)
    code = _shortcut_codes(data, "background_patch", strength, seed, data.num_classes)
    shade = colours[code].astype(np.float32)[:, :, None, None]
    if patch is None:
        painted = _painted(x, lambda part, rows: part + (_white(x) - part) * shade[rows])
    else:
        painted = np.repeat(x, 3, axis=1)
        painted[:, :, :patch, :patch] = _like(x, np.broadcast_to(_white(x) * shade, (*shade.shape[:2], patch, patch)))
    record = {"patch": patch, "merge": merge, "colours": list(COLOURS[: data.num_classes])}
    return _with_shortcut(data, painted, "background_patch", "colour", COLOURS, code, strength, seed, record)


def shortcut(data: Data, *, aligned: float = 0.95, strength: float = 1.0, seed: int = 0) -> Data:
    """An easy feature that agrees with the label for a share of training and validation, and is random in test.

    Vectors [N, D] get C more features, one of them `strength` and the others 0. Images [N, C, H, W] get ⌈C/W⌉ blank
    rows on top, with one lit pixel a class.

    Args:
        data: any array inputs.
        aligned: share of each class whose shortcut shows its own class, 0..1; of the others it shows another one,
            each as likely.
        strength: value of the feature; of images the brightness 0..1 of the pixel.
        seed: of the draw.

    Returns:
        Data with wider x, attributes "shortcut" (the class shown) and "aligned" (yes, no), and a record.

    Raises:
        DataError: inputs of another shape, a share outside 0..1, an unusable strength.
    """
    x = data.x
    images = isinstance(x, np.ndarray) and x.ndim == 4
    if not isinstance(x, np.ndarray) or x.ndim not in (2, 4):
        raise DataError("a shortcut is added to arrays [N, D] or [N, C, H, W]: other inputs have no place for it")
    if not math.isfinite(strength) or strength == 0 or (images and not 0 < strength <= 1):
        raise DataError(f"strength is {strength}: expected a number other than 0, for images above 0 and at most 1")
    count = data.num_classes
    code = _shortcut_codes(data, "shortcut", aligned, seed, count)
    samples = np.arange(len(data))
    names = None
    if images:
        width = x.shape[3]
        strip = np.zeros((len(data), x.shape[1], math.ceil(count / width), width), np.float32)
        strip[samples, :, code // width, code % width] = _white(x) * strength
        widened = np.concatenate([_like(x, strip), x], axis=2)
    else:
        strip = np.zeros((len(data), count), np.float32)
        strip[samples, code] = strength
        widened = np.concatenate([x, strip], axis=1)
        if data.feature_names is not None:
            names = [*data.feature_names, *(f"shortcut={name}" for name in data.classes)]
    return _with_shortcut(
        data, widened, "shortcut", "shortcut", data.classes, code, aligned, seed, {"strength": float(strength)}, names
    )


def observed_alignment(data: Data, shortcut: str = "colour") -> Data:
    """The attribute "aligned" as somebody sees it who knows the labels in `data.y` only.

    The injections set it by the true label; after label noise the two differ.

    Args:
        data: with an attribute whose k-th value belongs to class k ("colour" or "shortcut").
        shortcut: its name.

    Raises:
        DataError: there is no such attribute.
    """
    if shortcut not in data.attributes:
        raise DataError(unknown_name("attribute", shortcut, data.attributes))
    aligned = Column(("no", "yes"), (data.attributes[shortcut].codes == data.y).astype(np.int64))
    return data.replace(attributes={**data.attributes, "aligned": aligned})


# -- rare groups -------------------------------------------------------------------------------------------------


def subsample_group(
    data: Data, group: str | int, *, keep: float | int, seed: int = 0, splits: Sequence[str] = _NOT_TEST
) -> Data:
    """Make one group rarer.

    Args:
        data: with groups.
        group: its name or number.
        keep: the share (float, 0..1) or the number (int) of its samples that stay, in each split by itself. A smaller
            share keeps a part of what a larger one keeps.
        seed: of the choice.
        splits: "train", "validation" or both.

    Raises:
        DataError: no groups, an unknown group, nothing or more than there is to keep, test among the splits.
    """
    if data.groups is None:
        raise DataError("data has no groups to subsample: declare them with data.with_groups([…])")
    code = _group_code(data, group)
    chosen = _rows(data, splits)
    stays = np.ones(len(data), bool)
    draw = seeding.uniform(seed, "subsample_group", data.ids)
    for split in split_codes(list(splits)):
        rows = np.flatnonzero(chosen & (data.split == split) & (data.groups.index == code))
        share = isinstance(keep, float)
        if isinstance(keep, bool) or not (0 < keep <= 1 if share else keep > 0):
            raise DataError(f"keep is {keep!r}: expected a share above 0 and at most 1.0, or a whole number of samples")
        count = max(1, round(keep * len(rows))) if share else int(keep)
        if count > len(rows) and (len(rows) or not share):
            raise DataError(
                f"group {data.groups.names[code]!r} has {len(rows):,} {SPLITS[split]} samples: cannot keep {keep}"
            )
        stays[rows[np.argsort(draw[rows], kind="stable")[count:]]] = False
    record = {
        "kind": "subsample_group",
        "group": data.groups.names[code],
        "keep": keep,
        "splits": list(splits),
        "seed": int(seed),
        "removed": int((~stays).sum()),
    }
    # A rarer group is a data set of its own: no positions in a parent.
    kept = data.subset(stays).replace(injections=[*data.injections, record])
    kept.parent_rows = None
    return kept


# -- inside ------------------------------------------------------------------------------------------------------


def _rows(data: Data, splits: Sequence[str]) -> NDArray[np.bool_]:
    codes = split_codes(list(splits) if not isinstance(splits, str) else splits)
    if TEST in codes:
        raise DataError("splits name test: nothing is injected into test labels; use train, validation or both")
    return np.isin(data.split, codes)


def _group_rates(data: Data, rate: float, group: Mapping[str, float] | None) -> Floats:
    rates = np.full(len(data), float(rate))
    for name, value in (group or {}).items():
        if data.groups is None:
            raise DataError("rates by group are given and the data have no groups: use data.with_groups([…])")
        if not 0 <= value <= 1:
            raise DataError(f"the noise rate of group {name!r} is {value}: expected a share between 0 and 1")
        rates[data.groups.index == _group_code(data, name)] = value
    return rates


def _group_code(data: Data, group: str | int) -> int:
    names = data.groups.names if data.groups is not None else ()
    if isinstance(group, int | np.integer) and 0 <= int(group) < len(names):
        return int(group)
    if group not in names:
        raise DataError(unknown_name("group", group, names))
    return names.index(str(group))


def _true_label(data: Data) -> IntArray:
    return np.asarray(data.columns.get("true_label", data.y), np.int64)


def _with_truth(data: Data) -> dict[str, NDArray[Any]]:
    return {"true_label": data.y.copy(), **data.columns}


def _shortcut_codes(data: Data, stream: str, aligned: float, seed: int, count: int) -> IntArray:
    """The class each sample's shortcut points to: by `aligned` in train and validation, uniform in test."""
    if not 0 <= aligned <= 1:
        raise DataError(f"the aligned share is {aligned}: expected a number between 0 and 1")
    truth = _true_label(data)
    own = seeding.uniform(seed, f"{stream} aligned", data.ids) < aligned
    other = (truth + 1 + seeding.integers(seed, f"{stream} other", data.ids, count - 1)) % count
    anything = seeding.integers(seed, f"{stream} test", data.ids, count)
    return np.where(data.split == TEST, anything, np.where(own, truth, other))


def _with_shortcut(
    data: Data,
    x: NDArray[Any],
    kind: str,
    attribute: str,
    values: Sequence[str],
    code: IntArray,
    aligned: float,
    seed: int,
    record: dict[str, Any],
    feature_names: Sequence[str] | None = None,
) -> Data:
    agrees = (code == _true_label(data)).astype(np.int64)
    attributes = {
        **data.attributes,
        attribute: Column(tuple(values[: data.num_classes]), code),
        "aligned": Column(("no", "yes"), agrees),
    }
    learned = data.split != TEST
    full = {
        "kind": kind,
        "aligned": float(aligned),
        "seed": int(seed),
        **record,
        "aligned_samples": int(agrees[learned].sum()),
        "samples": int(learned.sum()),
    }
    return data.replace(
        x=x,
        feature_names=feature_names,
        normalise=channel_statistics(x[data.split == TRAIN]) if x.dtype == np.uint8 else None,
        attributes=attributes,
        columns=_with_truth(data),
        injections=[*data.injections, full],
    )


def channel_statistics(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation of each channel of uint8 images [N, C, H, W] scaled to [0, 1]; None of no image.

    A constant channel gets standard deviation 1.
    """
    if not len(images):
        return None
    values = np.arange(256) / 255
    means, deviations = [], []
    for channel in range(images.shape[1]):
        shares = np.bincount(np.ascontiguousarray(images[:, channel]).ravel(), minlength=256) / images[:, channel].size
        mean = float(shares @ values)
        deviation = math.sqrt(float(shares @ (values - mean) ** 2))
        means.append(round(mean, 6))
        deviations.append(round(deviation, 6) or 1.0)
    return tuple(means), tuple(deviations)


def _merged(data: Data, merge: int) -> Data:
    parts = [data.classes[start : start + merge] for start in range(0, data.num_classes, merge)]
    columns = {**data.columns, "unmerged_label": _true_label(data)}
    if "true_label" in columns:
        columns["true_label"] = _true_label(data) // merge
    return data.replace(y=data.y // merge, classes=["+".join(part) for part in parts], columns=columns)


def _grey(data: Data) -> NDArray[Any]:
    x = data.x
    if not isinstance(x, np.ndarray) or x.ndim != 4 or x.shape[1] != 1:
        shape = list(x.shape) if isinstance(x, np.ndarray) else type(x).__name__
        raise DataError(f"colours need grey images [N, 1, H, W], found {shape}")
    if x.dtype != np.uint8 and (float(x.min()) < 0 or float(x.max()) > 1):
        raise DataError(
            f"colours need grey images in [0, 1], found values from {x.min():g} to {x.max():g}: rescale them"
        )
    return x


def _palette(data: Data) -> Floats:
    if data.num_classes > len(PALETTE):
        raise DataError(f"there are {data.num_classes} classes and {len(PALETTE)} colours: use fewer classes")
    return np.array(PALETTE[: data.num_classes]) / 255


def _painted(x: NDArray[Any], paint: Callable[[NDArray[np.float32], slice], NDArray[np.float32]]) -> NDArray[Any]:
    """Colour images [N, 3, H, W] of grey ones, a few thousand at a time: in floats they take four times the room."""
    out = np.empty((len(x), 3, *x.shape[2:]), x.dtype)
    for start in range(0, len(x), CHUNK):
        rows = slice(start, start + CHUNK)
        out[rows] = _like(x, paint(x[rows].astype(np.float32), rows))
    return out


def _white(x: NDArray[Any]) -> float:
    return 255.0 if x.dtype == np.uint8 else 1.0


def _like(x: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
    """Values of the scale of x, in its type."""
    return np.rint(values).astype(np.uint8) if x.dtype == np.uint8 else values.astype(np.float32)
