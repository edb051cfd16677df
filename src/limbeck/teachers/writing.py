"""Writing a store: a plan, shards that can be finished in any order, and a rename at the end."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor

from limbeck.checkpoint import write_atomically
from limbeck.errors import StoreError
from limbeck.predict import InputReader
from limbeck.teachers.base import Teacher, batch_axis, checked_outputs, describe, reads_inputs, require
from limbeck.teachers.encoding import Encoding, check_dtype, encoding_for
from limbeck.teachers.layout import Layout, sync_folder, write_at

if TYPE_CHECKING:
    from limbeck.data import Data

FORMAT, VERSION = "limbeck-store", 1
MANIFEST, OUTPUTS = "manifest.json", "outputs.safetensors"
_PLAN, _DONE = "plan.json", "done"
PATIENCE = 1800.0
"""Seconds that a process waits for others that finish no shard."""
_PAUSE, _SETTLED = 0.05, 5.0

Rows = NDArray[np.int64]
Report = Callable[[int, int], None]


class Augment(Protocol):
    """A random change of inputs, a function of (its seed, sample id, view): an output belongs to its pixels."""

    def __call__(self, x: Any, ids: Tensor, view: int) -> Any: ...

    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class Forecast:
    """What a store will take on disk.

    Attributes:
        fields: bytes per sample and view of each output.
        bytes: of `outputs.safetensors`, exactly; the manifest adds a few thousand.
    """

    samples: int
    views: int
    fields: Mapping[str, int]
    bytes: int

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size:,} bytes" for name, size in self.fields.items())
        views = "1 view" if self.views == 1 else f"{self.views} views"
        return f"{self.bytes / 1e6:,.1f} MB: {self.samples:,} samples, {views}, {parts} each"


@dataclass(frozen=True)
class Job:
    """What is to be stored, and how; see `Store.write` for the fields."""

    teacher: Teacher
    data: Data
    want: tuple[str, ...]
    dtype: str = "float32"
    views: int = 1
    augment: Augment | None = None
    batch_size: int = 1024
    shard_bytes: int = 64 << 20

    def check(self) -> None:
        """Refuse what cannot be stored, before any folder is made."""
        require(self.teacher, self.want, by="the store")
        check_dtype(self.dtype)
        if len(self.data) == 0 or self.views < 1 or self.batch_size < 1 or not set(self.want) - {"head"}:
            raise StoreError(
                f"nothing to store: {len(self.data)} samples, {self.views} views, batches of {self.batch_size}, "
                f"want={self.want!r}"
            )
        if self.views > 1 and self.augment is None:
            raise StoreError(f"{self.views} views of the same inputs are all alike: give augment=, or views=1")
        if self.augment is not None and not reads_inputs(self.teacher):
            raise StoreError(
                f"{describe(self.teacher)} goes by id and knows one view of each sample: augmented views need a "
                "teacher that looks at them"
            )


@dataclass(frozen=True)
class Plan:
    """What a job comes to: the manifest so far, where everything lies in the file, and the steps.

    Rows of a shard are a multiple of the batch size, so that a resumed writer forms the batches a straight one does.
    """

    manifest: dict[str, Any]
    layout: Layout
    batch_size: int
    shard_rows: int

    @classmethod
    def of(cls, job: Job) -> Plan:
        """Ask the teacher for two samples, to know its shapes."""
        teacher, data, count = job.teacher, job.data, len(job.data)
        rows = np.arange(min(2, count))
        ids = torch.from_numpy(np.asarray(data.ids, np.int64)[rows])
        x = InputReader(data)(torch.from_numpy(rows)) if reads_inputs(teacher) else None
        found = checked_outputs(teacher, x, ids, [name for name in job.want if name != "head"])
        fields = {name: {"shape": list(samples_first(name, value).shape[1:])} for name, value in found.items()}
        tensors: dict[str, tuple[Any, tuple[int, ...]]] = {"ids": (np.int64, (count,))}
        if reads_inputs(teacher):
            tensors["inputs"] = (np.uint64, (count,))
        for name, encoding in encodings(job.dtype, fields).items():
            for suffix, (dtype, shape) in encoding.parts(fields[name]["shape"]).items():
                tensors[name + suffix] = (dtype, (job.views, count, *shape))
        if "head" in job.want:
            weight, bias = teacher.head()
            tensors |= {"head.weight": (np.float32, tuple(weight.shape)), "head.bias": (np.float32, tuple(bias.shape))}
        layout = Layout.plan(tensors)
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "samples": count,
            "views": job.views,
            "dtype": job.dtype,
            "fields": fields,
            "classes": teacher.classes,
            "class_names": None if teacher.class_names is None else list(teacher.class_names),
            "teacher": {"fingerprint": teacher.fingerprint(), "description": describe(teacher)},
            "data": {"fingerprint": data.fingerprint(), "name": data.name},
            "transform": transform_of(data, job.augment) if reads_inputs(teacher) else None,
            "bytes": layout.size,
        }
        per_row = max(1, sum(bytes_per_sample(job.dtype, fields).values()))
        shard_rows = max(1, job.shard_bytes // per_row // job.batch_size) * job.batch_size
        return cls(manifest, layout, job.batch_size, shard_rows)

    @classmethod
    def read(cls, partial: Path) -> Plan:
        """The plan of a folder in which writing broke off."""
        try:
            found = json.loads((partial / _PLAN).read_text(encoding="utf-8"))
            return cls(found["manifest"], Layout.read(partial / OUTPUTS), found["batch_size"], found["shard_rows"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{partial} cannot be continued ({error}): delete it, or start over with resume=False"
            ) from error

    def forecast(self) -> Forecast:
        fields = bytes_per_sample(self.manifest["dtype"], self.manifest["fields"])
        return Forecast(self.manifest["samples"], self.manifest["views"], fields, self.layout.size)

    def shards(self) -> list[tuple[int, int, int]]:
        """(view, first row, last row + 1) of every shard, in order."""
        count, views = self.manifest["samples"], self.manifest["views"]
        starts = range(0, count, self.shard_rows)
        return [(view, start, min(start + self.shard_rows, count)) for view in range(views) for start in starts]

    def to_json(self) -> str:
        found = {"manifest": self.manifest, "batch_size": self.batch_size, "shard_rows": self.shard_rows}
        return json.dumps(found, indent=1) + "\n"


def write_shards(path: Path, job: Job, progress: bool | Report | None, part: tuple[int, int] = (0, 1)) -> None:
    """Write those shards of this part (which, of how many) that are not finished yet, in the folder beside `path`."""
    job.check()
    job.teacher.check(job.data, job.want)
    partial = partial_folder(path)
    if (partial / MANIFEST).exists():
        return
    plan = _continued(partial, job) if partial.exists() else _begun(path, partial, job)
    mine = plan.shards()[part[0] :: part[1]]
    missing = [shard for shard in mine if not _marker(partial, shard).exists()]
    total = sum(end - start for _, start, end in mine)
    done = total - sum(end - start for _, start, end in missing)
    writer = _ShardWriter(partial / OUTPUTS, plan, job)
    try:
        with _reporting(progress, f"storing {', '.join(plan.manifest['fields'])}") as report:
            report(done, total)
            for shard in missing:
                for samples in writer.batches(shard):
                    done += samples
                    report(done, total)
                write_atomically(_marker(partial, shard), json.dumps(writer.finish(shard)).encode())
    finally:
        writer.close()


def process_of() -> tuple[int, int]:
    """Which process this is, and of how many that share the work, as `torchrun` tells them."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def write_share(path: Path, job: Job, part: tuple[int, int]) -> None:
    """`write_shards` of a process that is not the first, which may find nothing left to do and the store whole."""
    try:
        write_shards(path, job, False, part)
    except (StoreError, OSError):
        # Where nothing was left, the first process may clear the folder away while this one looks into it.
        until = time.monotonic() + _SETTLED
        while not path.exists():
            if time.monotonic() > until:
                raise
            time.sleep(_PAUSE)


def await_shards(path: Path) -> None:
    """Wait until every shard is finished, by whichever process.

    Raises:
        StoreError: where none was finished for `PATIENCE` seconds.
    """
    partial = partial_folder(path)
    shards = [] if (partial / MANIFEST).exists() else Plan.read(partial).shards()
    _await(lambda: sum(_marker(partial, shard).exists() for shard in shards), len(shards), path)


def await_store(path: Path) -> None:
    """Wait until the first process has made the store `path`; raises as `await_shards` does."""
    done = partial_folder(path) / _DONE
    whole = 1 << 60
    _await(lambda: whole if path.exists() else len(list(done.glob("*.json"))), whole, path)


def _await(count: Callable[[], int], wanted: int, path: Path) -> None:
    """Wait for others, as long as their work goes on: they share a disk and perhaps nothing else."""
    before, since = count(), time.monotonic()
    while before < wanted:
        time.sleep(_PAUSE)
        now = count()
        if now != before:
            before, since = now, time.monotonic()
        elif time.monotonic() - since > PATIENCE:
            raise StoreError(
                f"another process stopped writing {partial_folder(path)} ({PATIENCE:.0f} s without a finished shard): "
                "see its messages, and call Store.write again, it goes on from there"
            )


def finish(path: Path) -> None:
    """Make a folder whose shards are all written the store `path`, by one rename."""
    partial = partial_folder(path)
    if not (partial / MANIFEST).exists():
        plan = Plan.read(partial)
        shards = [json.loads(_marker(partial, shard).read_text(encoding="utf-8")) for shard in plan.shards()]
        arrays = plan.layout.map(partial / OUTPUTS)
        others = {name: checksum(arrays[name]) for name in arrays if name not in shards[0]["crc32"]}
        manifest = {**plan.manifest, "crc32": others, "shards": shards}
        write_atomically(partial / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
    shutil.rmtree(partial / _DONE, ignore_errors=True)
    (partial / _PLAN).unlink(missing_ok=True)
    for left in partial.glob("*.json.*"):  # of a writer that was killed inside a write
        left.unlink(missing_ok=True)
    sync_folder(partial)
    os.rename(partial, path)
    sync_folder(path.parent)


def partial_folder(path: Path) -> Path:
    """Where a store is while it is being written."""
    return path.with_name(f"{path.name}.partial")


def state_of(partial: Path) -> str:
    """How far a folder in which writing broke off has come, for a message."""
    shards = len(Plan.read(partial).shards()) if (partial / _PLAN).exists() else 0
    return f"{len(list((partial / _DONE).glob('*.json')))} of {shards} shards" if shards else "its last step missing"


def encodings(dtype: str, fields: Mapping[str, Any]) -> dict[str, Encoding]:
    """How each output is kept."""
    return {name: encoding_for(dtype, name, part["shape"]) for name, part in fields.items()}


def bytes_per_sample(dtype: str, fields: Mapping[str, Any]) -> dict[str, int]:
    """What one sample of one view takes, by output."""
    return {
        name: sum(kind.itemsize * math.prod(shape) for kind, shape in encoding.parts(fields[name]["shape"]).values())
        for name, encoding in encodings(dtype, fields).items()
    }


def samples_first(name: str, value: Tensor) -> Tensor:
    """An output on the CPU, samples along the first axis, as it is stored."""
    return value.detach().cpu().movedim(batch_axis(name), 0).contiguous()


def transform_of(data: Data, augment: Augment | None) -> dict[str, Any]:
    """What happens to the data's inputs before the teacher sees them, as plain data."""
    normalise = getattr(data, "normalise", None)
    return {
        "normalise": None if normalise is None else [[float(value) for value in part] for part in normalise],
        "augment": None if augment is None else augment.fingerprint(),
    }


def input_digests(x: Any) -> NDArray[np.uint64]:
    """BLAKE2b-64 of each sample's inputs as a model sees them before augmentation, little-endian `[B]`."""
    parts = [x[name] for name in sorted(x)] if isinstance(x, Mapping) else [x]
    rows = [np.ascontiguousarray(part.cpu().numpy()).reshape(len(part), -1).view(np.uint8) for part in parts]
    found = np.empty(len(rows[0]), np.dtype("<u8"))
    for row in range(len(found)):
        digest = hashlib.blake2b(digest_size=8)
        for part in rows:
            digest.update(part[row])
        found[row] = int.from_bytes(digest.digest(), "little")
    return found


def checksum(values: NDArray[Any], before: int = 0) -> int:
    """CRC-32 of an array's bytes, going on from that of what came before."""
    return zlib.crc32(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data, before)


def difference(what: str, stored: object, wanted: object) -> list[str]:
    """What a message says where two values differ; nothing where they do not."""
    if stored == wanted:
        return []
    return [
        f"{what}: {stored if stored is not None else 'none'} stored, {wanted if wanted is not None else 'none'} wanted"
    ]


class _ShardWriter:
    """Writes shards batch by batch into the open file; holds no more than a batch."""

    def __init__(self, file: Path, plan: Plan, job: Job) -> None:
        self._file = file.open("r+b", buffering=0)
        self._plan, self._job = plan, job
        self._encodings = encodings(job.dtype, plan.manifest["fields"])
        self._reader = InputReader(job.data) if reads_inputs(job.teacher) else None
        self._ids: Rows = np.asarray(job.data.ids, np.int64)
        self._checksums: dict[str, int] = {}

    def batches(self, shard: tuple[int, int, int]) -> Iterator[int]:
        """Write one shard; yields the size of each batch once it is written."""
        view, first, last = shard
        self._checksums = {}
        for start in range(first, last, self._plan.batch_size):
            rows = np.arange(start, min(start + self._plan.batch_size, last))
            self._write(view, rows, self._outputs(view, rows))
            yield len(rows)

    def finish(self, shard: tuple[int, int, int]) -> dict[str, Any]:
        """Bring what was written to the disk itself; the record of the shard."""
        os.fsync(self._file.fileno())
        return {"view": shard[0], "rows": list(shard[1:]), "crc32": self._checksums}

    def close(self) -> None:
        self._file.close()

    def _outputs(self, view: int, rows: Rows) -> dict[str, Tensor]:
        job, ids, x = self._job, torch.from_numpy(self._ids[rows]), None
        if self._reader is not None:
            x = self._reader(torch.from_numpy(rows))
            if view == 0:
                write_at(self._file, input_digests(x), self._plan.layout.entries["inputs"].offset(int(rows[0])))
            x = x if job.augment is None else job.augment(x, ids, view)
        return checked_outputs(job.teacher, x, ids, [name for name in job.want if name != "head"])

    def _write(self, view: int, rows: Rows, found: Mapping[str, Tensor]) -> None:
        for name, encoding in self._encodings.items():
            for suffix, values in encoding.encode(samples_first(name, found[name])).items():
                entry = self._plan.layout.entries[name + suffix]
                write_at(self._file, values, entry.offset(view, int(rows[0])))
                self._checksums[name + suffix] = checksum(values, self._checksums.get(name + suffix, 0))


def _begun(path: Path, partial: Path, job: Job) -> Plan:
    """Make the folder in which the store is written: it appears with its plan, or not at all."""
    plan = Plan.of(job)
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if plan.layout.size > free:
        raise StoreError(
            f"the store takes {plan.forecast()}; {free / 1e6:,.1f} MB are free in {path.parent}: choose "
            "dtype='float16' or 'topk:10', fewer views, or another disk"
        )
    preparing = path.with_name(f"{path.name}.preparing-{os.getpid()}")
    shutil.rmtree(preparing, ignore_errors=True)
    (preparing / _DONE).mkdir(parents=True)
    plan.layout.create(preparing / OUTPUTS)
    fixed: dict[str, NDArray[Any]] = {"ids": np.asarray(job.data.ids, np.int64)}
    if "head" in job.want:
        fixed["head.weight"], fixed["head.bias"] = (part.detach().cpu().float().numpy() for part in job.teacher.head())
    with (preparing / OUTPUTS).open("r+b", buffering=0) as file:
        for name, values in fixed.items():
            write_at(file, values, plan.layout.entries[name].start)
        os.fsync(file.fileno())
    write_atomically(preparing / _PLAN, plan.to_json().encode())
    if path.exists():
        # Another process has made the store whole meanwhile, and its folder has this name now.
        shutil.rmtree(preparing, ignore_errors=True)
        raise StoreError(f"the store {path} exists by now: open it")
    try:
        os.rename(preparing, partial)
    except OSError:
        # Another process that shares the work was faster; its folder is as good.
        shutil.rmtree(preparing, ignore_errors=True)
        return _continued(partial, job)
    return plan


def _continued(partial: Path, job: Job) -> Plan:
    """The plan of a broken-off store, which must be of the same job."""
    begun, wanted = Plan.read(partial), Plan.of(job)
    found = [text for key, value in wanted.manifest.items() for text in difference(key, begun.manifest.get(key), value)]
    if not found and begun.layout.header != wanted.layout.header:
        found = ["layout of the file"]
    if found:
        raise StoreError(
            f"{partial} is the beginning of another store ({'; '.join(found)}): delete it, or start over with "
            "resume=False"
        )
    return begun


def _marker(partial: Path, shard: tuple[int, int, int]) -> Path:
    """The file that says that a shard is finished, written after the shard has reached the disk."""
    return partial / _DONE / f"{shard[0]:04d}-{shard[1]:012d}.json"


@contextmanager
def _reporting(progress: bool | Report | None, text: str) -> Iterator[Report]:
    if callable(progress):
        yield progress
        return
    console = Console(stderr=True)
    visible = console.is_terminal if progress is None else progress
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not visible) as bar:
        task = bar.add_task(text, total=None)

        def report(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield report
