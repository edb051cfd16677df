"""Is a pilot that is killed again and again the pilot that never was?

    python benchmarks/crashes.py [--kills 50] [--ray-kills 10] [--writes 1] [--seed 0] [--keep FOLDER]
    python benchmarks/crashes.py --table docs/pilots.md

Two small pilots on the digits with a shortcut (cells of several stages: an error set found first, three rounds, a
transplanted head; and a search of settings that stops hopeless ones early), two seeds, two processes. Each is run twice
without an interruption, which must agree, and then over and over in an empty folder: `kill -9`, the same command again,
perhaps killed again, until it ends by itself. Of ten kills

* eight come at a moment drawn evenly over the time that the uninterrupted pilot works, counted from when a cell has
  been written to; two at a moment drawn over the time before that, in which Python, torch and the data are loaded;
* eight hit all processes of the pilot at once; two only the one that was started, whose others must end by themselves.

On Ray (a local cluster of two nodes with one core each) kills hit the driver, which is started again, and a node, whose
cells go to the other one; the pilot then has to end by itself, and the node comes back for the next kill.

And one that leaves nothing to chance: a smaller pilot in one process is killed before each single thing that it does to
a file of its folder (opening to write, renaming, removing, making a folder), at the first, at the second, and so on.

Afterwards everything must be as in the uninterrupted run: the same files in the run folder, no more and no less, byte
for byte. What tells the time is left out, and nothing else: in `result.json` and `cells/*.json` the values named
`seconds` and `created`, and `cost.json`, which holds latencies; `report.html`, which shows these, must be there in
whole. The audit log differs as it should, naming every start: its chain must hold, and it must name every cell exactly
once. Nothing may be left in the folder for temporary files.

Every pilot is written to `benchmarks/results/crashes.json` as it ends. Exit code 1 where anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from limbeck.audit_log import AuditLog
from limbeck.config import config_from_dict
from limbeck.pilots import run_pilot

RESULTS = Path(__file__).parent / "results" / "crashes.json"
TIMES = ("seconds", "created")
"""Values of `result.json` and `cells/*.json` that tell the time, by name."""
AT_START, ALONE = 5, 5
"""One kill in so many comes before the pilot is at work; one in so many hits only the process that was started."""
AGAIN = 0.6
"""How likely a pilot that was killed is killed again."""
QUICKER = 0.8
"""After a pilot that ended before its kill, the machine is taken to be quicker than when it was timed."""
PATIENCE = 900
"""Seconds that a pilot of half a minute may take on a busy machine."""

_BASE: dict[str, Any] = {
    "data": {
        "name": "digits",
        "groups": ["aligned"],
        "inject": [
            {"kind": "label_noise", "pattern": "symmetric", "rate": 0.1},
            {"kind": "shortcut", "aligned": 0.95},
        ],
    },
    "teachers": {"big": {"model": {"name": "mlp", "hidden": [256, 256]}, "recipe": "group_dro"}},
    "student": {"name": "mlp", "hidden": [96]},
    "seeds": [0, 1],
}
PILOTS: dict[str, dict[str, Any]] = {
    "stages": _BASE
    | {
        "recipes": [
            {"recipe": "dett", "teacher": "big"},
            {"recipe": "groupdistil", "teacher": "big"},
            {"recipe": "multi_round", "rounds": 3},
        ],
        "training": {"epochs": 12, "batch_size": 32},
    },
    "search": _BASE
    | {
        "recipes": [{"recipe": "dett", "teacher": "big"}, {"recipe": "groupdistil", "teacher": "big"}],
        "training": {"epochs": 8, "batch_size": 32},
        "search": {"space": {"dett.upweight": [5, 20], "groupdistil.temperature": [2, 4]}, "halve_after": 4},
    },
}
STEP_BY_STEP = _BASE | {
    "recipes": [{"recipe": "dett", "teacher": "big"}],
    "training": {"epochs": 2, "batch_size": 256},
    "seeds": [0],
    "search": {"space": {"dett.upweight": [5, 20]}},
}
"""The pilot that is killed at each of its writes."""
IN_TURN = ("stages", "search", "stages")


# What a run folder says -----------------------------------------------------------------------------------------------


def timeless(value: Any) -> Any:
    """Plain data without what tells the time."""
    if isinstance(value, dict):
        return {key: timeless(entry) for key, entry in value.items() if key not in TIMES}
    return [timeless(entry) for entry in value] if isinstance(value, list) else value


def content(folder: Path) -> dict[str, str]:
    """What must be equal, by file."""
    found = {}
    for path in sorted(entry for entry in folder.rglob("*") if entry.is_file()):
        name, held = path.relative_to(folder).as_posix(), path.read_bytes()
        if name == "result.json" or name.startswith("cells/"):
            held = json.dumps(timeless(json.loads(held))).encode()
        elif name == "report.html":
            held = str(held.rstrip().endswith(b"</html>")).encode()
        elif name.startswith("audit.jsonl") or name == "cost.json":
            held = b""
        found[name] = hashlib.sha256(held).hexdigest()
    return found


def logged_cells(folder: Path) -> Counter[tuple[str, int]]:
    """How often the audit log says that a cell was finished."""
    entries = AuditLog(folder / "audit.jsonl").entries()
    return Counter((entry["cell"], entry["seed"]) for entry in entries if entry["event"] == "cell finished")


def differences(folder: Path, reference: Path, temporary: Path) -> list[str]:
    """Where a pilot that was killed is not the one that was not."""
    here, there = content(folder), content(reference)
    found = [f"{name} is missing" for name in sorted(there.keys() - here.keys())]
    found += [f"{name} is left over" for name in sorted(here.keys() - there.keys())]
    found += [f"{name} differs" for name in sorted(here.keys() & there.keys()) if here[name] != there[name]]
    left = sorted(path.relative_to(temporary).as_posix() for path in temporary.rglob("*") if path.is_file())
    found += [f"{name} is left in the temporary folder" for name in left]
    found += AuditLog(folder / "audit.jsonl").verify().problems
    once = dict.fromkeys(logged_cells(reference), 1)
    if (cells := dict(logged_cells(folder))) != once:
        odd = sorted(cell for cell in cells.keys() | once.keys() if cells.get(cell) != once.get(cell))
        found.append(f"the audit log does not name these cells once: {odd}")
    return found


def stage_of(folder: Path) -> dict[str, Any]:
    """How far a pilot had come when it was killed."""
    unfinished = sorted((folder / "checkpoints").glob("*/*.safetensors"))
    newest = {path.parent.name: path.stem for path in sorted(unfinished, key=lambda path: path.stat().st_mtime)}
    cells = list((folder / "cells").glob("*.json"))
    if not (folder / "run.json").is_file():
        place = "before the run folder"
    elif newest:
        place = "in training"
    else:
        place = "between cells" if cells else "before the first cell"
    torn = [path.name for path in folder.rglob(".*") if path.is_file()]
    return {"place": place, "cells": len(cells), "unfinished": newest, "half-written": len(torn)}


# Starting and killing -------------------------------------------------------------------------------------------------


@dataclass
class Pilot:
    """A pilot that may be killed: its command, its folders, and what happened to it."""

    name: str
    folder: Path
    temporary: Path
    more: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    started: int = 0
    kills: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @classmethod
    def in_empty_folder(cls, name: str, root: Path, more: tuple[str, ...]) -> Pilot:
        """Not yet started."""
        shutil.rmtree(root, ignore_errors=True)
        temporary = root / "temporary"
        temporary.mkdir(parents=True)
        return cls(name, root / "run", temporary, more)

    def start(self) -> None:
        """Run the command, in a group of processes of its own."""
        config = self.temporary.parent / "pilot.yaml"
        config.write_text(yaml.safe_dump({"name": self.name, **PILOTS[self.name]}))
        command = [sys.executable, "-m", "limbeck", "pilot", str(config), "--output", str(self.folder), "--quiet"]
        command += ["--metrics", "csv", *self.more]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(self.temporary)}
        self.starts, self.started = self.starts + 1, time.time_ns()
        with (self.temporary.parent / "output.txt").open("wb") as output:
            self.process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, process_group=0)

    def until_at_work(self) -> bool:
        """Wait until a cell has been written to since it was started; False where it ends before."""
        until = time.monotonic() + PATIENCE
        while self.running and time.monotonic() < until:
            written = (self.folder / kind for kind in ("checkpoints", "cells"))
            if any(self._since_start(path) for folder in written for path in folder.rglob("*")):
                return True
            time.sleep(0.005)
        return self.running

    def _since_start(self, path: Path) -> bool:
        try:
            return path.stat().st_mtime_ns > self.started
        except FileNotFoundError:  # renamed or removed meanwhile
            return False

    @property
    def running(self) -> bool:
        """Whether it is at work."""
        return self.process is not None and self.process.poll() is None

    def wait(self, seconds: float) -> bool:
        """Let it work so long; False where it ends before."""
        assert self.process is not None
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    def kill(self, *, alone: bool = False) -> None:
        """`kill -9`, for all its processes or only the one that was started."""
        assert self.process is not None
        (os.kill if alone else os.killpg)(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def finish(self) -> None:
        """Wait until it ends by itself, and say where it does not as it should."""
        if self.wait(PATIENCE):
            self.kill()
            self.problems.append(f"it did not end within {PATIENCE} s")
        assert self.process is not None
        if self.process.returncode != 0:
            said = (self.temporary.parent / "output.txt").read_text(errors="replace")
            self.problems.append(f"exit code {self.process.returncode}: {said[-2000:]}")

    def summary(self, reference: Path) -> dict[str, Any]:
        """What came of it, the processes that are left among its problems."""
        if not self.problems:
            self.problems += differences(self.folder, reference, self.temporary)
        return {"pilot": self.name, "starts": self.starts, "kills": self.kills, "problems": self.problems}


def uninterrupted(name: str, root: Path, more: tuple[str, ...]) -> tuple[Path, float, float]:
    """The run folder of a pilot that nobody kills, the seconds until it is at work, and those that it works.

    Raises:
        SystemExit: where two of them differ, so that nothing could be said of one that was killed.
    """
    before, works = [], []
    for number in range(2):
        pilot = Pilot.in_empty_folder(name, root / f"{name}-{number}", more)
        started = time.monotonic()
        pilot.start()
        pilot.until_at_work()
        before.append(time.monotonic() - started)
        pilot.finish()
        works.append(time.monotonic() - started - before[-1])
        if found := pilot.summary(root / f"{name}-0" / "run")["problems"]:
            sys.exit(f"{name}, uninterrupted: {found}")
    return root / f"{name}-0" / "run", min(before), min(works)


def killed_locally(pilot: Pilot, begins: float, works: float, left: int, number: int, rng: random.Random) -> None:
    """Kill it at least once and at most `left` times, then let it end; `number` is that of the next kill."""
    while left and (not pilot.kills or rng.random() < AGAIN):
        early, alone = number % AT_START == 0, number % ALONE == ALONE - 2
        delay = rng.uniform(0, begins if early else works)
        pilot.start()
        if not ((early or pilot.until_at_work()) and pilot.wait(delay)):
            break
        pilot.kill(alone=alone)
        drawn = "before it is at work" if early else "while it works"
        who = "the process that was started" if alone else "all processes"
        pilot.kills.append({"drawn": drawn, "after": round(delay, 3), "killed": who, **stage_of(pilot.folder)})
        left, number = left - 1, number + 1
    if not pilot.running:
        # A kill that came too late leaves a pilot that ended by itself; another start must change nothing.
        pilot.start()
    pilot.finish()


# Each write -----------------------------------------------------------------------------------------------------------

CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.link", "shutil.rmtree")
"""What Python's audit events call what is done to files, beside opening them to write and making folders."""


class Step:
    """Ends this process, by `kill -9`, before the n-th thing that it does to a file of a folder."""

    def __init__(self, folder: Path, number: int) -> None:
        self._folder, self._left, self._before = str(folder), number, ""

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Told of every event by the interpreter."""
        path = str(arguments[0]) if arguments else ""
        if not path.startswith(self._folder):
            return
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        makes = event == "os.mkdir" and not os.path.isdir(path)
        if writes or makes or event in CHANGES:
            self._left -= 1
            if not self._left:
                Path(f"{self._folder}.killed").write_text(f"{event} {os.path.relpath(path, self._folder)}")
                os.kill(os.getpid(), signal.SIGKILL)


def step_by_step(folder: Path, number: int | None) -> int:
    """Run the pilot in a copy of this process, killed before the n-th step; its exit code, or minus its signal."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        if number is not None:
            sys.addaudithook(Step(folder, number))
        run_pilot(config_from_dict({"name": "step-by-step", **STEP_BY_STEP}), output=folder)
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def each_write(every: int, root: Path, kept: dict[str, Any]) -> None:
    """Kill a pilot before its first write, before its second (or only every N-th), and so on, until it has no more."""
    reference, folder = root / "reference", root / "run"
    shutil.rmtree(root, ignore_errors=True)
    if step_by_step(reference, None):
        sys.exit("the pilot that nobody kills fails")
    nothing = root / "nothing"
    nothing.mkdir()
    found = kept["writes"] = {"every": every, "killed": 0, "whole": False, "problems": []}
    for number in itertools.count(1, every):
        shutil.rmtree(folder, ignore_errors=True)
        if step_by_step(folder, number) != -signal.SIGKILL:
            found["whole"] = True
            keep(kept)
            break
        before = Path(f"{folder}.killed").read_text()
        code = step_by_step(folder, None)
        problems = [f"exit code {code}"] if code else differences(folder, reference, nothing)
        found["killed"] += 1
        found["problems"] += [f"before step {number} ({before}): {problem}" for problem in problems]
        if problems or found["killed"] % 10 == 0:
            print(f"{number:3d} steps, {before}: {problems or 'as uninterrupted'}", flush=True)
        keep(kept)


# Ray ------------------------------------------------------------------------------------------------------------------


class Nodes:
    """A local Ray cluster of two nodes with one core each."""

    def __init__(self) -> None:
        os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # a busy machine takes its time
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        self._second = self._cluster.add_node(num_cpus=1)

    @property
    def address(self) -> str:
        """For `--address`."""
        return str(self._cluster.address)

    def kill_second(self) -> None:
        """End all processes of the node that is not the head at once."""
        self._cluster.remove_node(self._second, allow_graceful=False)

    def replace_second(self) -> None:
        """Start a node in its place."""
        self._second = self._cluster.add_node(num_cpus=1)

    def close(self) -> None:
        """End the cluster."""
        self._cluster.shutdown()  # type: ignore[no-untyped-call]


@contextmanager
def nodes() -> Iterator[Nodes]:
    """A cluster, while inside."""
    found = Nodes()
    try:
        yield found
    finally:
        found.close()


def killed_on_ray(pilot: Pilot, cluster: Nodes, works: float, node: bool, rng: random.Random) -> None:
    """Kill the driver, and start it again, or a node, and wait for the end."""
    pilot.start()
    delay = rng.uniform(0, works)
    if not (pilot.until_at_work() and pilot.wait(delay)):
        pilot.finish()
        return
    if node:
        cluster.kill_second()
    else:
        pilot.kill()
    who = "a node" if node else "the driver"
    drawn = {"drawn": "while it works", "after": round(delay, 3), "killed": who}
    pilot.kills.append(drawn | stage_of(pilot.folder))
    if not node:
        pilot.start()
    pilot.finish()
    if node:
        cluster.replace_second()


# The whole ------------------------------------------------------------------------------------------------------------


def local(kills: int, seed: int, root: Path, kept: dict[str, Any]) -> None:
    """Kill pilots in processes of this machine."""
    rng, more = random.Random(seed), ("--workers", "2")
    references = {name: uninterrupted(name, root, more) for name in PILOTS}
    found = kept["processes"] = {"uninterrupted": described(references), "pilots": []}
    done = 0
    while done < kills:
        name = IN_TURN[len(found["pilots"]) % len(IN_TURN)]
        folder, begins, works = references[name]
        pilot = Pilot.in_empty_folder(name, root / "killed", more)
        killed_locally(pilot, begins, works, kills - done, done, rng)
        done += len(pilot.kills)
        if not pilot.kills:
            references[name] = folder, begins, QUICKER * works
        tell(pilot, folder, found, kept)


def on_ray(kills: int, seed: int, root: Path, kept: dict[str, Any]) -> None:
    """Kill drivers and nodes by turns."""
    rng = random.Random(seed)
    with nodes() as cluster:
        more = ("--backend", "ray", "--address", cluster.address)
        references = {"stages": uninterrupted("stages", root, more)}
        found = kept["ray"] = {"uninterrupted": described(references), "pilots": []}
        done = 0
        while done < kills:
            folder, begins, works = references["stages"]
            pilot = Pilot.in_empty_folder("stages", root / "killed", more)
            killed_on_ray(pilot, cluster, works, node=done % 2 == 1, rng=rng)
            done += len(pilot.kills)
            if not pilot.kills:
                references["stages"] = folder, begins, QUICKER * works
            tell(pilot, folder, found, kept)


def described(references: Mapping[str, tuple[Path, float, float]]) -> dict[str, Any]:
    """The uninterrupted runs."""
    return {
        name: {
            "files": len(content(folder)),
            "cells": len(list((folder / "cells").iterdir())),
            "seconds before it is at work": round(begins, 1),
            "seconds it works": round(works, 1),
        }
        for name, (folder, begins, works) in references.items()
    }


def tell(pilot: Pilot, reference: Path, found: dict[str, Any], kept: Mapping[str, Any]) -> None:
    """Keep and print what came of a pilot."""
    summary = pilot.summary(reference)
    found["pilots"].append(summary)
    keep(kept)
    places = ", ".join(f"{kill['place']} ({kill['killed']})" for kill in pilot.kills) or "not killed"
    state = "as uninterrupted" if not summary["problems"] else f"DIFFERENT: {summary['problems']}"
    print(f"{sum(len(one['kills']) for one in found['pilots']):3d} kills  {pilot.name}: {places}: {state}", flush=True)


def keep(kept: Mapping[str, Any]) -> None:
    """Write what was found so far."""
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def table(kept: Mapping[str, Any]) -> str:
    """What was measured, in Markdown."""
    lines = ["| where | killed | kills | in training | between cells | before the first cell | pilots | different |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for where, title in (("processes", "two processes"), ("ray", "Ray, two nodes")):
        pilots = kept.get(where, {}).get("pilots", [])
        for who in sorted({kill["killed"] for pilot in pilots for kill in pilot["kills"]}):
            hit = [pilot for pilot in pilots if any(kill["killed"] == who for kill in pilot["kills"])]
            places = Counter(kill["place"] for pilot in pilots for kill in pilot["kills"] if kill["killed"] == who)
            early = places["before the first cell"] + places["before the run folder"]
            counts = [places.total(), places["in training"], places["between cells"], early, len(hit)]
            different = sum(bool(pilot["problems"]) for pilot in hit)
            lines.append(f"| {title} | {who} | {' | '.join(map(str, [*counts, different]))} |")
    writes = kept.get("writes", {"every": 1, "killed": 0, "whole": True, "problems": []})
    which = "each write" if writes["every"] == 1 else f"one write in {writes['every']}"
    rest = "" if writes["whole"] else ", not to the end"
    killed = writes["killed"]
    lines.append(
        f"| one process | before {which}{rest} | {killed} | – | – | – | {killed} | {len(writes['problems'])} |"
    )
    return "\n".join(lines)


def main() -> int:
    """Kill, compare, and say so; 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="of pilots in processes")
    parser.add_argument("--ray-kills", type=int, default=10, help="of pilots on a Ray cluster")
    parser.add_argument(
        "--writes", type=int, default=1, help="kill a pilot at each write (1), at every N-th, or at none (0)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work there, and leave it")
    parser.add_argument("--table", type=Path, metavar="FILE.md", help="only write the table of the results there")
    arguments = parser.parse_args()
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    if arguments.table:
        marks = r"(<!-- crashes: begin .*? -->\n).*?(<!-- crashes: end -->)"
        text = arguments.table.read_text(encoding="utf-8")
        text = re.sub(marks, lambda found: f"{found[1]}{table(kept)}\n{found[2]}", text, flags=re.DOTALL)
        arguments.table.write_text(text, encoding="utf-8")
        return 0
    kept["versions"] = {name: metadata.version(name) for name in ("limbeck", "torch", "numpy", "pyarrow", "ray")}
    kept["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    kept["seed"] = arguments.seed
    root = arguments.keep or Path(tempfile.mkdtemp(prefix="limbeck-crashes-"))
    try:
        if arguments.writes:
            each_write(arguments.writes, root / "writes", kept)
        if arguments.kills:
            local(arguments.kills, arguments.seed, root / "processes", kept)
        if arguments.ray_kills:
            on_ray(arguments.ray_kills, arguments.seed, root / "ray", kept)
    finally:
        if arguments.keep is None:
            shutil.rmtree(root, ignore_errors=True)
    print(table(kept))
    pilots = [pilot for where in ("processes", "ray") for pilot in kept.get(where, {}).get("pilots", [])]
    return int(any(pilot["problems"] for pilot in (*pilots, kept.get("writes", {"problems": []}))))


if __name__ == "__main__":
    sys.exit(main())
