"""How long a pilot of 8 recipes × 5 seeds takes, against the same 40 trainings as plain scripts, one after another.

    python benchmarks/pilot_wall_time.py [--epochs 10 30] [--workers 2] [--seeds 5]

UCI Adult, a student of 9,000 parameters, and for each seed one teacher of 90,000. A plain script is what somebody would
write: a fresh process that reads the data, trains with `lb.fit` (one recipe, one seed, torch's own number of threads),
prints how it does by group and saves the weights; the teachers' scripts first, each student's reads its teacher back.
The pilot is the command `limbeck pilot` with the same trainings, and with all else that it does: comparisons, ledger,
audit log, report.

What is timed is wall time, so the machine must do nothing else. Written to `benchmarks/results/pilot_wall_time.json`;
exit code 1 where the pilot takes more than 0.6 of the scripts' time, or where a student's accuracy differs by more than
the number of threads explains.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

RESULTS = Path(__file__).parent / "results" / "pilot_wall_time.json"
RECIPES = ("erm", "group_dro", "group_balanced", "kd", "rld", "btkd", "dett", "groupdistil")
WITHOUT_TEACHER = RECIPES[:3]
TEACHER, STUDENT = [256, 256], [96]
BATCH, RATE = 256, 0.001
MERGED = {"race": {"not White": ["Amer-Indian-Eskimo", "Asian-Pac-Islander", "Black", "Other"]}}
GROUPS = ["label", "sex", "race"]
TARGET, SAME = 0.6, 0.01
"""The largest ratio of the times, and the largest difference of a recipe's mean accuracy between the two ways."""


def train(recipe: str, seed: int, epochs: int, folder: Path) -> None:
    """A plain script: one training."""
    import torch

    import limbeck as lb
    from limbeck.models import MLP, load_weights

    data = lb.load("adult", groups=GROUPS)
    for attribute, values in MERGED.items():
        data = data.merge_values(attribute, values)

    def network(hidden: list[int]) -> torch.nn.Module:
        return MLP(data.sample_shape, data.num_classes, hidden=hidden)

    teacher = None
    if recipe not in ("teacher", *WITHOUT_TEACHER):
        teacher = network(TEACHER)
        load_weights(teacher, folder / f"teacher-{seed}.safetensors")
    fitted = lb.fit(
        lambda: network(TEACHER if recipe == "teacher" else STUDENT),
        data,
        teacher=teacher,
        recipe="group_dro" if recipe == "teacher" else recipe,
        epochs=epochs,
        batch_size=BATCH,
        learning_rate=RATE,
        seed=seed,
    )
    table = lb.evaluate(fitted, data.test)
    print(table)
    fitted.save(folder / f"{recipe}-{seed}.safetensors")
    (folder / f"{recipe}-{seed}.json").write_text(json.dumps({"average": table.summary["average"]}))


def scripts(seeds: int, epochs: int, folder: Path) -> tuple[float, dict[str, list[float]]]:
    """Seconds of all scripts, and the test accuracy of each recipe by seed."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    started = time.perf_counter()
    for seed in range(seeds):
        for recipe in ("teacher", *RECIPES):
            command = [sys.executable, __file__, "--train", recipe, str(seed), str(epochs), str(folder)]
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    taken = time.perf_counter() - started
    found = {
        recipe: [json.loads((folder / f"{recipe}-{seed}.json").read_text())["average"] for seed in range(seeds)]
        for recipe in RECIPES
    }
    return taken, found


def pilot(seeds: int, epochs: int, workers: int, folder: Path) -> tuple[float, dict[str, list[float]]]:
    """Seconds of the pilot, and the test accuracy of each recipe by seed."""
    config = {
        "name": "wall-time",
        "data": {"name": "adult", "merge": MERGED, "groups": GROUPS},
        "teachers": {"big": {"model": {"name": "mlp", "hidden": TEACHER}, "recipe": "group_dro"}},
        "student": {"name": "mlp", "hidden": STUDENT},
        "recipes": list(RECIPES),
        "training": {"epochs": epochs, "batch_size": BATCH, "learning_rate": RATE},
        "seeds": list(range(seeds)),
    }
    path = folder / "pilot.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "limbeck", "pilot", str(path), "--output", str(folder / "run"), "--quiet"]
    started = time.perf_counter()
    subprocess.run([*command, "--workers", str(workers)], check=True, stdout=subprocess.DEVNULL)
    taken = time.perf_counter() - started
    rows = json.loads((folder / "run" / "result.json").read_text())["models"]
    found = {row["key"]: [run["test"]["average"] for run in row["runs"]] for row in rows if row["key"] in RECIPES}
    return taken, found


def main() -> int:
    """Print one line for each length of training; 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, nargs="+", default=[10, 30])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--train", nargs=4, metavar=("RECIPE", "SEED", "EPOCHS", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        recipe, seed, epochs, folder = arguments.train
        train(recipe, int(seed), int(epochs), Path(folder))
        return 0
    failed, measured = False, []
    for epochs in arguments.epochs:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            by_pilot, its = pilot(arguments.seeds, epochs, arguments.workers, folder)
            by_scripts, theirs = scripts(arguments.seeds, epochs, folder)
        apart = max(abs(statistics.mean(its[recipe]) - statistics.mean(theirs[recipe])) for recipe in RECIPES)
        ratio = by_pilot / by_scripts
        failed |= ratio > TARGET or apart > SAME
        row: dict[str, Any] = {"epochs": epochs, "trainings": len(RECIPES) * arguments.seeds}
        row |= {"pilot_seconds": round(by_pilot, 1), "scripts_seconds": round(by_scripts, 1), "ratio": round(ratio, 3)}
        row |= {"workers": arguments.workers, "largest_difference_of_accuracy": round(apart, 4)}
        measured.append(row)
        print(
            f"{row['trainings']} trainings of {epochs} epochs and {arguments.seeds} teachers: "
            f"pilot {by_pilot:.0f} s, scripts {by_scripts:.0f} s, ratio {ratio:.2f}; "
            f"mean accuracies at most {100 * apart:.2f} points apart",
            flush=True,
        )
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    versions = {name: metadata.version(name) for name in ("limbeck", "torch")}
    kept = {"machine": machine, "versions": versions, "load_before": os.getloadavg()[2], "measured": measured}
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
