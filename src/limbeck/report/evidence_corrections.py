"""Where the corrections of a pilot went, and the samples whose targets moved farthest: out of its ledgers."""

from __future__ import annotations

import base64
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from limbeck.data import Data
    from limbeck.ledgers import Ledger

TOP = 12
"""Samples shown one by one."""
PIXELS = 112
"""The longer side of a thumbnail at most."""
FACTS = 12
"""Values of a table's row that are shown."""
_MEANS = ("moved_from_label", "moved_from_teacher", "weight_mean")


def corrections(folder: Path, record: Mapping[str, Any], data: Data) -> dict[str, Any] | None:
    """What the students were told in place of the labels: in numbers for each, in detail for the chosen one.

    Numbers are means over seeds; single samples are those of the first seed.
    """
    from limbeck.ledgers import Ledger, runs_in

    kept = set(runs_in(folder))
    overall: dict[str, Any] = {}
    chosen: list[Ledger] = []
    for row in record["models"]:
        names = [f"{row['key']}-seed{run['seed']}" for run in row["runs"]]
        if row["role"] == "teacher" or not kept.issuperset(names):
            continue
        ledgers = [Ledger.read(folder, name) for name in names]
        overall[row["key"]] = _overall(ledgers)
        if row["key"] == record.get("chosen"):
            chosen = ledgers
    if not overall:
        return None
    found: dict[str, Any] = {"models": overall, "chosen": None}
    if chosen:
        found |= {
            "chosen": record["chosen"],
            "seed": chosen[0].meta["seed"],
            "notes": chosen[0].meta["notes"],
            "by": {by: _summaries([ledger.summary(by) for ledger in chosen], by) for by in ("rule", "label", "group")},
            "top": exhibits(chosen[0].top(TOP), data.train),
        }
        if not chosen[0].meta["groups"]:
            found["by"]["group"] = []
    return found


def _overall(ledgers: Sequence[Ledger]) -> dict[str, Any]:
    def mean(name: str) -> float | None:
        known = [v for one in ledgers if (v := _mean(one.samples[name])) is not None]
        return statistics.fmean(known) if known else None

    return {
        "samples": len(ledgers[0]),
        "overturned": statistics.fmean(float(one.overturned().sum()) for one in ledgers),
        "held_back": statistics.fmean(float(np.asarray(one.samples["held_back"]).sum()) for one in ledgers),
        **{name: mean(name) for name in _MEANS[:2]},
    }


def _mean(column: Any) -> float | None:
    import pyarrow.compute as pc

    found = pc.mean(column).as_py()
    return None if found is None else float(found)


def _summaries(summaries: Sequence[Sequence[Mapping[str, Any]]], by: str) -> list[dict[str, Any]]:
    """One row a rule, label or group: means over seeds; a rule that one seed did not use counts as none there."""
    named: dict[str, list[Mapping[str, Any]]] = {}
    for rows in summaries:
        for row in rows:
            named.setdefault(str(row[by]), []).append(row)
    found = []
    for name, rows in named.items():
        counts = {key: sum(row[key] for row in rows) / len(summaries) for key in ("samples", "overturned", "held_back")}
        means = {}
        for key in _MEANS:
            known = [(row[key], row["samples"]) for row in rows if row[key] is not None]
            total = sum(samples for _, samples in known)
            means[key] = sum(value * samples for value, samples in known) / total if total else None
        found.append({"name": name, **counts, **means})
    return sorted(found, key=lambda row: -row["samples"])


# Single samples -------------------------------------------------------------------------------------------------------


def exhibits(rows: Sequence[Mapping[str, Any]], train: Data) -> list[dict[str, Any]]:
    """Rows of a ledger, each with a picture of its sample or the values of its table row."""
    order = np.argsort(train.ids, kind="stable")
    found = []
    for row in rows:
        place = int(order[np.searchsorted(train.ids, row["id"], sorter=order)])
        found.append({**row, "picture": picture(train, place), "facts": facts(train, place)})
    return found


def picture(data: Data, row: int) -> str | None:
    """A thumbnail of a sample as a data URI; None where the samples are no pictures."""
    from PIL import Image

    if isinstance(data.sample_shape, dict) or len(data.sample_shape) != 3:
        return None
    pixels = np.asarray(data.inputs(np.array([row])))[0]
    image = Image.fromarray(as_pixels(pixels))
    image.thumbnail((PIXELS, PIXELS))
    buffer = io.BytesIO()
    # Small pictures are drawn sharp and compress well; of photographs a JPEG is a third of the size.
    if max(image.size) <= PIXELS // 2:
        image.save(buffer, "PNG", optimize=True)
        return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    image.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def as_pixels(values: NDArray[Any]) -> NDArray[np.uint8]:
    """`[C, H, W]` of any range as `[H, W, 3]` of bytes; other than one or three channels are averaged."""
    if values.dtype != np.uint8:
        low, high = float(values.min()), float(values.max())
        values = ((values - low) / max(high - low, 1e-12) * 255).round().astype(np.uint8)
    if values.shape[0] not in (1, 3):
        values = values.mean(0, keepdims=True).round().astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(values, (3, *values.shape[1:])).transpose(1, 2, 0))


def facts(data: Data, row: int) -> list[list[str]]:
    """Attributes of a sample, then the columns of the table it came from, as names and values."""
    found = [
        [name, str(column.values[column.codes[row]])]
        for name, column in data.attributes.items()
        if column.codes[row] >= 0
    ]
    seen = {name for name, _ in found}
    found += [[name, value] for name, value in _values(data, row) if name not in seen]
    return found[:FACTS]


def _decoded(value: float, mean: float, scale: float) -> str:
    """A standardised number as it was: what 32-bit features lost of it is rounded away."""
    step = 10.0 ** math.floor(math.log10(max(abs(mean), scale, abs(value) * scale, 1e-12)) - 5)
    return f"{round((value * scale + mean) / step) * step:,.10g}"


def _values(data: Data, row: int) -> list[tuple[str, str]]:
    """A sample's features by name, as they were before they were encoded."""
    if isinstance(data.sample_shape, dict) or len(data.sample_shape) != 1:
        return []
    x = np.asarray(data.inputs(np.array([row])))[0]
    if data.encoder is None:
        named = data.feature_names if data.feature_names is not None and len(data.feature_names) <= FACTS else ()
        return [(name, f"{value:.4g}") for name, value in zip(named, x)]
    found, start = [], 0
    for column in data.encoder.columns:
        part = x[start : start + len(column.feature_names)]
        start += len(part)
        if column.missing and part[-1] > 0:
            continue
        if hasattr(column, "categories"):
            taken = part[: len(column.categories)]
            if taken.max(initial=0.0) > 0:
                found.append((column.name, column.categories[int(taken.argmax())]))
        else:
            found.append((column.name, _decoded(float(part[0]), column.mean, column.scale)))
    return found
