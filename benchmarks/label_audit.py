"""How well the label audit finds wrong labels, and how well it knows how many there are.

    LIMBECK_DATA=... python benchmarks/label_audit.py --cache runs/features [--seeds 0 1 2] [--sets cifar pacs acs]
    python benchmarks/label_audit.py --table docs/audit.md

CIFAR-10N's five sets of human labels, injected noise on CIFAR-10, PACS and ACS employment. All methods see the same
cross-fitted probabilities of the same linear probe; cleanlab is compared where it is installed. Truth is used for
scoring alone. The CIFAR-10 features come from a ResNet-56 that was trained on the *clean* labels of the same images, so
these numbers are optimistic for every method alike; PACS and ACS have no such help. A seed draws the folds, the noise,
and 10,000 of CIFAR-10's images or 20,000 people. One JSON a data set, noise and seed.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from sklearn.metrics import average_precision_score

import limbeck as lb
from limbeck.audits import confident_flags, cross_fit, estimate_noise, guard, label_score, suspicious
from limbeck.audits.whole import JUDGE
from limbeck.data.inject import noise_matrix
from pll_rounds import cifar_features

try:
    from cleanlab.count import compute_confident_joint, estimate_latent  # type: ignore[import-not-found]
    from cleanlab.filter import find_label_issues  # type: ignore[import-not-found]
    from cleanlab.rank import get_label_quality_scores  # type: ignore[import-not-found]

    CLEANLAB = True
except ImportError:
    CLEANLAB = False

Array = NDArray[Any]
Record = dict[str, Any]
RESULTS = Path(__file__).parent / "results" / "label_audit"
HUMAN = ("aggre", "random1", "random2", "random3", "worse")
INJECTED = (("symmetric", 0.2), ("symmetric", 0.4), ("pair", 0.3))


def drawn(labels: Array, pattern: str, rate: float, seed: int) -> Array:
    """Wrong labels of one seed."""
    matrix = noise_matrix(pattern, int(labels.max()) + 1, rate)  # type: ignore[arg-type]
    above = np.random.default_rng(seed).random(len(labels))[:, None] > matrix.cumsum(1)[labels, :-1]
    return np.asarray(above.sum(1), np.int64)


def problems(name: str, folder: Path, cache: Path, seed: int) -> Iterator[tuple[str, Array, Array, Array, Record]]:
    """(noise, features, true labels, given labels, further columns) of one data set."""
    if name == "cifar":
        x, y, test = cifar_features(folder, cache)
        rows = np.sort(np.random.default_rng(seed).choice(np.setdiff1d(np.arange(len(y)), test), 10_000, replace=False))
        x, y = x[rows], y[rows]
        head = load_file(folder / "cifar10_resnet56.safetensors")
        logits = x @ head["linear.weight"].T + head["linear.bias"]
        teacher = np.exp(logits - logits.max(1, keepdims=True))
        more = {"teacher": teacher / teacher.sum(1, keepdims=True)}
        with np.load(folder / "cifar_n_labels.npz", allow_pickle=False) as stored:
            for kind in HUMAN:
                yield f"human {kind}", x, y, stored[f"c10_{kind}"][rows].astype(np.int64), more
    elif name == "pacs":
        with np.load(folder / "pacs_efflite0_pca256.npz", allow_pickle=False) as stored:
            x, y = stored["x"].astype(np.float32), stored["y"].astype(np.int64)
            more = {"groups": stored["domain"].astype(np.int64), "group_names": [str(d) for d in stored["domains"]]}
    else:
        data = lb.load("acs-employment", train_years=[2015], test_years=[2016], samples=40_000, seed=seed)
        seen = data.subset(data.split < 2)
        x, y, p = np.asarray(seen.x), seen.y, seen.columns["predicted_probability"]
        disability = seen.attributes["disability"]
        more = {
            "groups": disability.codes,
            "group_names": [f"disability={value}" for value in disability.values],
            "teacher": np.column_stack([1 - p, p]),
            "minority": (y == 1) & (disability.codes == 1),
        }
        yield "none", x, y, y, more
        yield "symmetric 0.35", x, y, drawn(y, "symmetric", 0.35, seed), more
    for pattern, rate in INJECTED[: 1 if name == "acs" else None]:
        yield f"{pattern} {rate}", x, y, drawn(y, pattern, rate, seed), more


def measure(x: Array, y: Array, given: Array, more: Record, seed: int) -> Record:
    classes = int(y.max()) + 1
    groups = more.get("groups")
    cells = given if groups is None else given * (int(groups.max()) + 1) + groups
    plain = cross_fit(x, given, classes=classes, seed=seed, cells=cells).probabilities
    judge = cross_fit(x, given, classes=classes, seed=seed, cells=cells, balance=JUDGE).probabilities
    matrix = estimate_noise(plain, given).matrix
    found: Record = {"wrong": float((given != y).mean()), "samples": len(y)}
    if (given != y).any():
        found["ranking"] = rankings(plain, judge, matrix, given, y, more)
    found["flags"] = flags(plain, judge, matrix, given, y, more)
    found["noise"] = noise(plain, judge, given, y)
    return found


def rankings(plain: Array, judge: Array, matrix: Array, given: Array, y: Array, more: Record) -> Record:
    """Area under precision–recall: over all samples, and by given class and by group."""
    scores = {
        "limbeck: posterior": label_score(judge, given, "posterior", matrix),
        "posterior, plain probe": label_score(plain, given, "posterior", matrix),
        "normalised margin": label_score(plain, given, "normalised_margin"),
        "self-confidence": label_score(plain, given, "self_confidence"),
        "adjusted margin": label_score(plain, given, "adjusted_margin"),
    }
    if "teacher" in more:
        scores["teacher's own confidence in the label"] = 1 - more["teacher"][np.arange(len(given)), given]
    if CLEANLAB:
        for method in ("self_confidence", "normalized_margin", "confidence_weighted_entropy"):
            scores[f"cleanlab: {method}"] = 1 - get_label_quality_scores(given, plain, method=method)
    wrong = given != y
    found = {}
    for name, score in scores.items():
        by_class = by_part(wrong, score, given)
        found[name] = {
            "area": float(average_precision_score(wrong, score)),
            "class_mean": float(np.mean(list(by_class.values()))),
            "class_least": float(np.min(list(by_class.values()))),
            "classes": by_class,
        }
        if "groups" in more:
            found[name]["groups"] = by_part(wrong, score, more["groups"], more["group_names"])
    return found


def by_part(wrong: Array, score: Array, part: Array, names: list[str] | None = None) -> dict[str, float]:
    """The area in each class or group that has a wrong label."""
    return {
        str(k) if names is None else names[k]: float(average_precision_score(wrong[part == k], score[part == k]))
        for k in np.unique(part)
        if wrong[part == k].any()
    }


def flags(plain: Array, judge: Array, matrix: Array, given: Array, y: Array, more: Record) -> Record:
    """What is flagged: share, precision, recall, and the share of right labels flagged, of a minority too."""
    groups = more.get("groups")
    ours = suspicious(judge, given, matrix)
    guarded = guard(ours.flagged, ours.score, given, groups, suggested=ours.suggested)
    alone = suspicious(plain, given, matrix)
    sets = {
        "limbeck: posterior and guard": guarded.allowed,
        "limbeck: posterior, no guard": ours.flagged,
        "posterior of the plain probe, no guard": alone.flagged,
        "confident learning": confident_flags(plain, given)[0],
    }
    if CLEANLAB:
        sets["cleanlab: prune by noise rate"] = find_label_issues(given, plain)
        sets["cleanlab: both"] = find_label_issues(given, plain, filter_by="both")
    wrong = given != y
    found: Record = {"held_back": int(guarded.held_back.sum())}
    for name, flagged in sets.items():
        entry: Record = {
            "share": float(flagged.mean()),
            "precision": float(wrong[flagged].mean()) if flagged.any() else None,
            "recall": float(flagged[wrong].mean()) if wrong.any() else None,
            "right_flagged": float(flagged[~wrong].mean()),
        }
        if "minority" in more:
            small = more["minority"]
            entry["right_flagged_minority"] = float(flagged[small & ~wrong].mean())
        found[name] = entry
    return found


def noise(plain: Array, judge: Array, given: Array, y: Array) -> Record:
    """Noise rate and error of the matrix: mean over classes of the total variation distance to the true row."""
    classes = plain.shape[1]
    counted = np.zeros((classes, classes))
    np.add.at(counted, (y, given), 1)
    truth = counted / counted.sum(1, keepdims=True)
    estimates = {
        "limbeck: anchors": estimate_noise(plain, given),
        "anchors, the judge's probabilities": estimate_noise(judge, given),
        "confident joint": estimate_noise(plain, given, method="confident_joint"),
    }
    found: Record = {}
    for name, estimate in estimates.items():
        inside = (estimate.low <= truth) & (truth <= estimate.high)
        found[name] = {
            "rate": estimate.rate,
            "low": estimate.rate_low,
            "high": estimate.rate_high,
            "error": float(np.abs(estimate.matrix - truth).sum(1).mean() / 2),
            "covered": float(inside.mean()),
        }
    if CLEANLAB:
        _, matrix, _ = estimate_latent(compute_confident_joint(given, plain), given)
        found["cleanlab"] = {"error": float(np.abs(matrix.T - truth).sum(1).mean() / 2)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sets", nargs="+", choices=("cifar", "pacs", "acs"), default=["pacs", "acs", "cifar"])
    parser.add_argument("--cache", type=Path, default=Path("runs/features"))
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--table", type=Path, help="Only write the tables of the results into this document.")
    options = parser.parse_args()
    if options.table is None:
        folder = Path(os.environ["LIMBECK_DATA"])
        options.output.mkdir(parents=True, exist_ok=True)
        for name in options.sets:
            for seed in options.seeds:
                for kind, *problem in problems(name, folder, options.cache, seed):
                    target = options.output / f"{name}-{kind.replace(' ', '-')}-{seed}.json"
                    if not target.is_file():
                        record = {"data": name, "labels": kind, "seed": seed, **measure(*problem, seed)}
                        target.write_text(json.dumps(record, indent=1) + "\n")
                        print(target.name, json.dumps(record["noise"])[:200], flush=True)
    shown = tables([json.loads(file.read_text()) for file in sorted(options.output.glob("*.json"))])
    if options.table is None:
        print(shown)
        return
    before, _, rest = options.table.read_text().partition("<!-- label tables: begin -->")
    _, _, after = rest.partition("<!-- label tables: end -->")
    options.table.write_text(f"{before}<!-- label tables: begin -->\n\n{shown}\n\n<!-- label tables: end -->{after}")


def tables(records: list[Record]) -> str:
    """Markdown: means over seeds, ± standard deviation."""
    found: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        found[record["data"], record["labels"]].append(record)
    parts = [
        ("Ranking: area under precision–recall over all labels", "ranking", ("area",)),
        ("Flags: precision, recall", "flags", ("precision", "recall")),
        ("Flags: share of all right labels that are flagged", "flags", ("right_flagged",)),
        ("Flags: the same among right labels of employed people with a disability", "flags",
         ("right_flagged_minority",)),
        ("Noise matrix: mean total variation distance of a row from the truth, rate found", "noise",
         ("error", "rate")),
    ]  # fmt: skip
    shown = [f"#### {title}\n\n{_table(found, section, keys)}" for title, section, keys in parts]
    by_group = f"#### Ranking by group: area under precision–recall\n\n{_group_table(found)}"
    return "\n\n".join([shown[0], by_group, *shown[1:]])


def _group_table(found: dict[tuple[str, str], list[Record]]) -> str:
    """One row a data set and group, and one for the given classes of each data set without groups: mean and least."""
    lines, names = [], list(dict.fromkeys(name for runs in found.values() for name in runs[0].get("ranking", {})))
    for (data, kind), runs in found.items():
        ranking = [run["ranking"] for run in runs if "ranking" in run]
        if not ranking:
            continue
        groups = next(iter(ranking[0].values())).get("groups")
        for part in groups or ["class_mean", "class_least"]:
            cells = []
            for name in names:
                entries = [each.get(name, {}) for each in ranking]
                cells.append(_spread([entry.get("groups", {}).get(part) if groups else entry.get(part)
                                      for entry in entries]))  # fmt: skip
            titles = {"class_mean": "mean of the given classes", "class_least": "the worst of them"}
            title = part if groups else titles[part]
            lines.append(f"| {data}, {kind}: {title} | {' | '.join(cells)} |")
    return "\n".join([f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|", *lines])


def _table(found: dict[tuple[str, str], list[Record]], section: str, keys: tuple[str, ...]) -> str:
    problems = {
        problem: runs
        for problem, runs in found.items()
        if any(keys[0] in entry for run in runs for entry in run.get(section, {}).values() if isinstance(entry, dict))
    }
    names = list(dict.fromkeys(
        name for runs in problems.values() for name, entry in runs[0].get(section, {}).items()
        if isinstance(entry, dict) and any(key in entry for key in keys)
    ))  # fmt: skip
    head = [f"{data}, {kind} ({np.mean([run['wrong'] for run in runs]):.3f} wrong)"
            for (data, kind), runs in problems.items()]  # fmt: skip
    lines = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for title, runs in zip(head, problems.values(), strict=True):
        cells = []
        for name in names:
            entries = [run.get(section, {}).get(name) for run in runs]
            cells.append(", ".join(_spread([entry.get(key) for entry in entries if entry]) for key in keys))
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    spread = f" ± {np.std(known, ddof=1):.3f}" if len(known) > 1 else ""
    return f"{np.mean(known):.3f}{spread}"


if __name__ == "__main__":
    main()
