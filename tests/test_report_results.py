"""Results of pilots that look like real ones, for the tests of the report, and a check that they do."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from limbeck.audits.gates import Finding
from limbeck.audits.said import Said

GROUPS = ("income ≤50K, Female", "income ≤50K, Male", "income >50K, Female", "income >50K, Male")

# Test accuracy by group, of the last group repeated where there are more: what the literature's methods do to Adult.
RECIPES: dict[str, tuple[str, str | None, tuple[float, ...]]] = {
    "erm_teacher": ("teacher", None, (0.975, 0.925, 0.480, 0.640)),
    "group_dro_teacher": ("teacher", None, (0.880, 0.790, 0.765, 0.835)),
    "erm": ("baseline", None, (0.970, 0.920, 0.455, 0.610)),
    "group_dro": ("baseline", None, (0.860, 0.775, 0.735, 0.800)),
    "kd": ("student", "erm_teacher", (0.975, 0.925, 0.440, 0.625)),
    "groupdistil": ("student", "group_dro_teacher", (0.875, 0.785, 0.770, 0.810)),
}
LABELS = {
    "erm_teacher": "ERM teacher",
    "group_dro_teacher": "Group DRO teacher",
    "erm": "erm (no teacher)",
    "group_dro": "group_dro (no teacher)",
}
WEIGHTED = ("group_dro_teacher", "group_dro", "groupdistil")


def pilot_result(
    *,
    recipes: int = 4,
    seeds: int = 3,
    epochs: int = 8,
    groups: tuple[str, ...] = GROUPS,
    classes: tuple[str, ...] = ("≤50K", ">50K"),
    samples: int = 9045,
    seed: int = 0,
    name: str = "adult, income × sex",
) -> dict[str, Any]:
    """The plain dict of a pilot: two teachers, `recipes` students (two of them without a teacher), any size."""
    rng = np.random.default_rng(seed)
    shares = np.asarray([0.286, 0.458, 0.034, 0.222]) if len(groups) == 4 else rng.dirichlet(np.full(len(groups), 1.5))
    counts = {
        split: [max(2, int(n)) for n in shares * samples * factor]
        for split, factor in (("train", 3.0), ("validation", 1.0), ("test", 1.0))
    }
    keys = [*RECIPES, *(f"recipe_{number:02d}" for number in range(5, recipes + 1))][: recipes + 2]
    models = [_model(rng, key, counts, epochs, seeds, len(groups), len(classes), groups) for key in keys]
    return {
        "name": name,
        "created": "2025-11-22T09:30:00+00:00",
        "versions": {"limbeck": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6", "python": "3.11.9"},
        "machine": {"system": "Linux x86_64", "processor": "AMX, 2 cores", "memory": "24 GB", "device": "cpu"},
        "seconds": 87.4,
        "command": "limbeck pilot adult.yaml",
        "data": {
            "name": "adult",
            "samples": {split: int(sum(values)) for split, values in counts.items()},
            "classes": list(classes),
            "groups": list(groups),
            "group_columns": ["income", "sex"],
            "group_counts": counts,
            "injections": [],
        },
        "selection": {"rule": "worst_group", "consumes": "validation labels and validation groups"},
        "settings": {
            "epochs": epochs,
            "batch_size": 256,
            "optimiser": "adamw",
            "learning_rate": 0.001,
            "schedule": "cosine",
            "precision": "float32",
            "clip": None,
        },
        "seeds": list(range(seeds)),
        "models": models,
        "comparisons": _comparisons(models, groups),
        "chosen": max((m for m in models if m["role"] == "student"), key=_validation)["key"],
        "strongest_baseline": max((m for m in models if m["role"] == "baseline"), key=_validation)["key"],
        "verdict": (
            "Distillation beat training without a teacher in the worst group: groupdistil 0.770 against erm 0.455 "
            "(+31.5 points, 95 % interval +27.0 to +36.1, 3 seeds)."
        ),
        "warnings": [
            "The teacher 'ERM teacher' is right in only 48 % of group 'income >50K, Female': a student taught by it "
            "alone inherits that.",
            "3 seeds: the spread over seeds is itself uncertain.",
        ],
    }


def big_result() -> dict[str, Any]:
    """12 recipes, 5 seeds, 40 groups, 10 classes, 100,000 test samples, 60 epochs."""
    groups = tuple(f"branch={branch}, scanner type={scanner}" for branch in range(10) for scanner in "ABCD")
    classes = tuple(f"defect class {number}" for number in range(10))
    return pilot_result(recipes=12, seeds=5, epochs=60, groups=groups, classes=classes, samples=100_000)


def whole_result(**options: Any) -> dict[str, Any]:
    """A pilot's result with all that `gather` measures beside it, and an audit."""
    result = pilot_result(**options)
    return {**result, "evidence": evidence(result)}


def evidence(result: dict[str, Any], samples: int = 400) -> dict[str, Any]:
    """What `gather` would have measured."""
    rng = np.random.default_rng(1)
    groups, classes = result["data"]["groups"], result["data"]["classes"]
    small = [model for model in result["models"] if model["role"] != "teacher"]
    by_key = {model["key"]: model for model in result["models"]}
    chosen = result["chosen"]
    teacher = by_key[chosen]["teacher"]
    key_models = dict.fromkeys([teacher, chosen, "erm", result["strongest_baseline"]])
    total = result["data"]["samples"]["train"]
    group = rng.integers(0, len(groups), samples) if groups else np.zeros(0, int)
    label = rng.integers(0, len(classes), samples)
    return {
        "format": 1,
        "notes": [],
        "cost": {
            "machine": {"system": "Linux x86_64", "processor": "x86_64", "threads": 1},
            "models": {model["key"]: _cost(model["role"] == "teacher") for model in result["models"]},
        },
        "changes": {
            model["key"]: _changes(model, [by_key[model["teacher"] or teacher], by_key["erm"]], groups)
            for model in (small if groups else ())
        },
        "standings": [_standing(model, bool(groups)) for model in small],
        "feature_space": {
            "total": result["data"]["samples"]["test"],
            "id": list(range(1000, 1000 + samples)),
            "label": label.tolist(),
            "group": group.tolist(),
            "models": {
                key: {
                    "seed": 0,
                    "features": 32,
                    "share": 0.612,
                    "x": rng.normal(label, 0.6).round(3).tolist(),
                    "y": rng.normal(0, 0.8, samples).round(3).tolist(),
                    "predicted": np.where(rng.random(samples) < 0.85, label, (label + 1) % len(classes)).tolist(),
                }
                for key in key_models
            },
        },
        "corrections": {
            "models": {
                model["key"]: _told(total, 0.0 if model["role"] == "baseline" else 0.08, model["role"] != "baseline")
                for model in small
            },
            "chosen": chosen,
            "seed": 0,
            "notes": ["targets are those of the samples as they are, without augmentation or mixing"],
            "by": {
                "rule": [_part("kl_divergence: followed", 0.9 * total, 0.03), _part("none", 0.1 * total, 0.0)],
                "label": [_part(name, total / len(classes), 0.02 * n) for n, name in enumerate(classes)],
                "group": [_part(name, total / max(len(groups), 1), 0.03 * n) for n, name in enumerate(groups)],
            },
            "top": [_top(n, groups, classes) for n in range(12)],
        },
        "audits": {"group_dro_teacher": _audit(groups)},
    }


PICTURE = "data:image/png;base64," + (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def _cost(teacher: bool) -> dict[str, Any]:
    times = (3.21, 101.0) if teacher else (0.31, 7.9)
    latency = [
        {"batch": batch, "median": ms, "low": 0.97 * ms, "high": 1.06 * ms, "passes": 30}
        for batch, ms in zip((1, 64), times, strict=True)
    ]
    return {
        "parameters": 66_434 if teacher else 6_274,
        "size": 265_736 if teacher else 25_096,
        "latency": latency,
        "joules": 0.021 if teacher else 0.0017,
    }


def _changes(model: dict[str, Any], others: list[dict[str, Any]], groups: list[str]) -> list[dict[str, Any]]:
    """What `group_changes` says of each group."""
    found = []
    for group, name in enumerate(groups):
        against = {}
        for other in others:
            if other is model:
                continue
            rates = [
                [run["test"]["group_correct"][group] / run["test"]["group_total"][group] for run in one["runs"]]
                for one in (model, other)
            ]
            entry = _difference(model["key"], other["key"], "group", name, *rates)
            wanted = ("reference", "difference", "low", "high", "p", "adjusted_p", "verdict")
            against[other["key"]] = {key: entry[key] for key in wanted}
        found.append({"group": name, "samples": 100, "accuracy": None, "against": against})
    return found


def _standing(model: dict[str, Any], groups: bool) -> dict[str, Any]:
    """What `pareto_front` says of a model."""
    average, worst = (
        float(np.mean([run["test"][name] for run in model["runs"]])) for name in ("average", "worst_group")
    )
    found = {"key": model["key"], "average": average, "average_low": average - 0.02, "average_high": average + 0.02}
    if groups:
        found |= {"worst_group": worst, "worst_low": worst - 0.07, "worst_high": worst + 0.05, "group": "some"}
    else:
        found |= dict.fromkeys(("worst_group", "worst_low", "worst_high", "group"))
    return {**found, "seeds": len(model["runs"]), "front": worst > 0.7, "front_share": 0.62, "level": 0.95}


def _told(total: int, share: float, taught: bool) -> dict[str, Any]:
    return {
        "samples": total,
        "overturned": share * total,
        "held_back": 12.0 if taught else 0.0,
        "moved_from_label": 0.21 if taught else 0.0,
        "moved_from_teacher": 0.03 if taught else None,
    }


def _part(name: str, samples: float, share: float) -> dict[str, Any]:
    row = {"name": name, "samples": samples, "overturned": share * samples, "held_back": 0.0}
    return {**row, "moved_from_label": 2 * share, "moved_from_teacher": share, "weight_mean": 1.0}


def _top(n: int, groups: list[str], classes: list[str]) -> dict[str, Any]:
    label, other = classes[n % len(classes)], classes[(n + 1) % len(classes)]
    ranks = {}
    for who, first in (("teacher", 0.9), ("target", 0.8)):
        for rank, (name, share) in enumerate(((other, first), (label, 1 - first), (None, None)), start=1):
            ranks |= {f"{who}_{rank}": name, f"{who}_{rank}_probability": share}
    return {
        "run": "groupdistil-seed0",
        "id": 7_000 + n,
        "label": label,
        "group": groups[n % len(groups)] if groups else None,
        **ranks,
        "teacher_label_probability": 0.1,
        "moved_from_label": 0.8,
        "moved_from_teacher": 0.1,
        "rule": "kl_divergence: followed",
        "masked": None,
        "weight_first": 1.0,
        "weight_last": 1.0,
        "weight_mean": 1.0,
        "held_back": False,
        "reviewed": False,
        "picture": PICTURE if n % 2 else None,
        "facts": [["age", str(30 + n)], ["occupation", "Machine operator inspector"]],
    }


def _audit(groups: list[str]) -> dict[str, Any]:
    def entry(recipe: str, verdict: str, worst: float, reasons: list[Finding]) -> dict[str, Any]:
        found = [reason.to_dict() for reason in reasons]
        return {"recipe": recipe, "verdict": verdict, "average": 0.85, "worst": worst, "reasons": found}

    reached = {"worst": 0.77, "low": 0.7, "high": 0.82, "average": 0.85, "group": groups[-1] if groups else "yes"}
    said = [
        Said("cap.copy", {**reached, "basis": Said("basis.held_out")}),
        Said("cap.hurts", {"group": reached["group"], "teacher": 0.61, "labels": 0.74}),
    ]
    weighed = Said("gate.group weights help", {"balanced_worst": 0.7, "plain_worst": 0.5})
    helps = Finding("group weights help", "help", weighed)
    harms = Finding("error set of wrong labels", "harm", Said("gate.error set of wrong labels", {"noise": 0.12}))
    return {
        "data": {"name": "adult", "fingerprint": "f", "groups": groups},
        "verdicts": [str(sentence) for sentence in said],
        "said": [sentence.to_dict() for sentence in said],
        "advice": [
            entry("groupdistil", "use", 0.77, [helps]),
            entry("kd", "no difference expected", 0.5, []),
            entry("rld", "avoid", 0.4, [harms]),
        ],
    }


def _model(
    rng: np.random.Generator,
    key: str,
    counts: dict[str, list[int]],
    epochs: int,
    seeds: int,
    groups: int,
    classes: int,
    group_names: tuple[str, ...],
) -> dict[str, Any]:
    role, teacher, rates = RECIPES.get(key, ("student", "erm_teacher", (0.9, 0.85, 0.6, 0.75)))
    goal = np.resize(np.asarray(rates), groups)
    if groups > len(rates):
        goal = np.clip(goal + rng.normal(0, 0.05, groups), 0.05, 0.99)
    runs = []
    for seed in range(seeds):
        level = np.clip(goal + rng.normal(0, 0.012, groups), 0.02, 0.995)
        history = [_epoch(rng, epoch, epochs, level, counts, key) for epoch in range(epochs)]
        selected = 1 + int(np.argmax([entry["validation_worst_group"] for entry in history]))
        runs.append(
            {
                "seed": seed,
                "selected_epoch": selected,
                "seconds": round(float(rng.uniform(3, 6)), 3),
                "test": _metrics(rng, level, counts["test"], classes, group_names),
                "validation": _metrics(rng, level, counts["validation"], classes, group_names),
                "history": history,
            }
        )
    return {
        "key": key,
        "role": role,
        "label": LABELS.get(key, key),
        "recipe": {
            "name": key,
            "terms": [{"term": "cross_entropy", "weight": 1.0}],
            "weighting": {"name": "group_dro", "step": 0.01} if key in WEIGHTED else {"name": "uniform"},
        },
        "training": {"epochs": epochs, "optimiser": "adamw"},
        "teacher": teacher,
        "parameters": 66_434 if role == "teacher" else 6_274,
        "runs": runs,
    }


def _metrics(
    rng: np.random.Generator, level: np.ndarray, counts: list[int], classes: int, names: tuple[str, ...]
) -> dict[str, Any]:
    tables = np.zeros((len(counts), classes, classes), dtype=int)
    for group, total in enumerate(counts):
        truth = np.full(total, group // 2 % classes) if classes == 2 else rng.integers(0, classes, total)
        right = rng.random(total) < level[group]
        wrong = (truth + rng.integers(1, classes, total)) % classes
        np.add.at(tables[group], (truth, np.where(right, truth, wrong)), 1)
    correct, total = np.trace(tables, axis1=1, axis2=2), tables.sum(axis=(1, 2))
    accuracy = correct / total
    worst = int(np.argmin(accuracy))
    average = float(correct.sum() / total.sum())
    return {
        "group_correct": correct.tolist(),
        "group_total": total.tolist(),
        "confusion": tables.sum(axis=0).tolist(),
        "group_confusion": tables.tolist(),
        "nll": float(0.3 + 0.5 * (1 - average) + rng.normal(0, 0.005)),
        "calibration_error": float(abs(rng.normal(0.03, 0.01))),
        "group_calibration_error": [*np.abs(rng.normal(0.05, 0.02, len(counts))).tolist(), None],
        "unknown_total": 0,
        "minimum": 10,
        "average": average,
        "average_training_weighted": average,
        "worst_group": float(accuracy[worst]),
        "worst_group_name": names[worst],
        "gap": float(average - accuracy[worst]),
    }


def _epoch(
    rng: np.random.Generator, epoch: int, epochs: int, level: np.ndarray, counts: dict[str, list[int]], key: str
) -> dict[str, Any]:
    progress = 1 - np.exp(-4 * (epoch + 1) / epochs)
    accuracy = np.clip(level * progress + 0.2 * (1 - progress) + rng.normal(0, 0.01, len(level)), 0, 1)
    share = np.asarray(counts["validation"]) / sum(counts["validation"])
    losses = 1.2 * (1 - accuracy)
    weights = np.exp(2 * losses * (epoch + 1) / epochs)
    recorded = key in WEIGHTED or key.startswith("recipe_")
    return {
        "epoch": epoch + 1,
        "loss": float(losses @ share),
        "learning_rate": float(0.001 * (1 + np.cos(np.pi * epoch / epochs)) / 2),
        "validation_average": float(accuracy @ share),
        "validation_worst_group": float(accuracy.min()),
        "group_losses": losses.tolist() if recorded else None,
        "group_weights": (weights / weights.sum()).tolist() if recorded else None,
    }


def _validation(model: dict[str, Any]) -> float:
    return float(np.mean([run["validation"]["worst_group"] for run in model["runs"]]))


def _comparisons(models: list[dict[str, Any]], groups: tuple[str, ...]) -> list[dict[str, Any]]:
    """Each student against the two without a teacher: average, worst group, single groups."""
    entries = []
    by_key = {model["key"]: model for model in models}
    for reference in ("erm", "group_dro"):
        for model in models:
            if model["role"] == "teacher" or model["key"] == reference:
                continue
            for metric in ("average", "worst_group"):
                pair = [[run["test"][metric] for run in one["runs"]] for one in (model, by_key[reference])]
                entries.append(_difference(model["key"], reference, metric, None, *pair))
            for group, name in enumerate(groups):
                pair = [
                    [run["test"]["group_correct"][group] / run["test"]["group_total"][group] for run in one["runs"]]
                    for one in (model, by_key[reference])
                ]
                entries.append(_difference(model["key"], reference, "group", name, *pair))
    return entries


def _difference(
    model: str, against: str, metric: str, group: str | None, ours: list[float], theirs: list[float]
) -> dict[str, Any]:
    difference = float(np.mean(ours) - np.mean(theirs))
    low, high = difference - 0.045, difference + 0.045
    verdict = "better" if low > 0 else "worse" if high < 0 else "not distinguishable"
    undecided = verdict == "not distinguishable"
    return {
        "model": model,
        "against": against,
        "metric": metric,
        "group": group,
        "value": float(np.mean(ours)),
        "reference": float(np.mean(theirs)),
        "difference": difference,
        "low": low,
        "high": high,
        "p": 0.2 if undecided else 0.0001,
        "adjusted_p": 0.41 if undecided else 0.0004,
        "verdict": verdict,
        "more_seeds": 7 if undecided else None,
        "more_samples": 12_345 if undecided and metric != "average" else None,
    }


def test_the_results_are_plain_json_and_consistent() -> None:
    result = pilot_result()
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    for model in result["models"]:
        for run in model["runs"]:
            test = run["test"]
            assert np.asarray(test["group_confusion"]).sum(axis=0).tolist() == test["confusion"]
            assert test["group_total"] == result["data"]["group_counts"]["test"]
            assert test["average"] == sum(test["group_correct"]) / sum(test["group_total"])


def test_the_big_result_is_big() -> None:
    result = big_result()
    assert len(result["models"]) == 14
    assert len(result["data"]["groups"]) == 40
    assert sum(result["data"]["group_counts"]["test"]) > 99_000
