"""What a teacher said, on disk: written once, read memory-mapped by sample id and view.

The format is described in docs/store-format.md and needs nothing of this library to be read.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.errors import StoreError, unknown_name
from limbeck.predict import InputReader
from limbeck.teachers.base import (
    BY_CLASS,
    Source,
    Teacher,
    as_names,
    batch_axis,
    checked_outputs,
    describe,
    reads_inputs,
    shown,
)
from limbeck.teachers.fingerprints import fingerprint_of
from limbeck.teachers.ids import IdIndex
from limbeck.teachers.layout import Layout
from limbeck.teachers.writing import (
    FORMAT,
    MANIFEST,
    OUTPUTS,
    VERSION,
    Augment,
    Forecast,
    Job,
    Plan,
    Report,
    Rows,
    await_shards,
    await_store,
    checksum,
    difference,
    encodings,
    finish,
    input_digests,
    partial_folder,
    process_of,
    samples_first,
    state_of,
    transform_of,
    write_shards,
    write_share,
)

if TYPE_CHECKING:
    from limbeck.data import Data

_LAZY_SAMPLE = 256
_KEPT = (
    "format",
    "version",
    "samples",
    "views",
    "dtype",
    "fields",
    "classes",
    "class_names",
    "teacher",
    "data",
    "transform",
)


class Store:
    """Outputs of one teacher for one data set, read memory-mapped; made by `Store.write` and `Store.open`.

    Any number of processes may read one store at a time.

    Attributes:
        path: its folder.
        manifest: what the store says about itself, plain data.
        ids: the samples' ids in the order written, int64 `[N]`.
        fields: the outputs it holds, such as `logits`.
        views: how many views of each sample.
        dtype: `float32`, `float16` or `topk:K`.
        classes, class_names: of the teacher.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any], layout: Layout) -> None:
        self.path = path
        self.manifest = manifest
        self.views = int(manifest["views"])
        self.dtype = str(manifest["dtype"])
        self.classes = int(manifest["classes"])
        self.class_names = None if manifest["class_names"] is None else tuple(manifest["class_names"])
        self.fields: tuple[str, ...] = tuple(manifest["fields"])
        self._arrays = layout.map(path / OUTPUTS)
        self._encodings = encodings(self.dtype, manifest["fields"])
        self._suffixes = {
            name: tuple(encoding.parts(manifest["fields"][name]["shape"])) for name, encoding in self._encodings.items()
        }
        self.ids: Rows = np.array(self._arrays["ids"])
        self._index = IdIndex(self.ids)
        self._order: Rows | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        held = ", ".join(self.fields)
        return f"Store({str(self.path)!r}: {held} of {len(self)} samples, {self.views} view(s), {self.dtype})"

    # Writing ----------------------------------------------------------------------------------------------------------

    @classmethod
    def forecast(
        cls, teacher: Teacher, data: Data, want: Sequence[str] = ("logits",), *, dtype: str = "float32", views: int = 1
    ) -> Forecast:
        """What a store would take on disk, from two samples of the teacher."""
        return Plan.of(Job(teacher, data, as_names(want), dtype, views)).forecast()

    @classmethod
    def write(
        cls,
        path: str | Path,
        teacher: Teacher,
        data: Data,
        want: Sequence[str] = ("logits",),
        *,
        dtype: str = "float32",
        views: int = 1,
        augment: Augment | None = None,
        batch_size: int = 1024,
        progress: bool | Report | None = None,
        resume: bool = True,
        shard_bytes: int = 64 << 20,
    ) -> Store:
        """Ask the teacher for every sample and view, once, and keep what it says.

        Written in a folder beside `path` that takes this name when it is complete; memory stays bounded by a batch.
        Where writing broke off, the same call goes on from the last finished shard, to the same bytes. A complete
        store of the same teacher and data is opened instead. Under `torchrun` every process makes this call, writes
        its share of the shards, and waits until the store is whole.

        Args:
            path: the folder to make.
            want: what to keep, names of `SUPPLIES`; `head` keeps the last layer too.
            dtype: `float32`, `float16`, or `topk:K` for the K largest classes (other outputs are then float16).
            views: how many views of each sample; more than one needs `augment`.
            augment: how inputs change from view to view.
            batch_size: samples a call of the teacher.
            progress: True for a bar, False for none, by default where a person looks on; or a function of
                (samples done, samples in all).
            resume: False throws away what an interrupted call left.
            shard_bytes: how much is written between two points from which writing can go on.

        Raises:
            TeacherError: where the teacher cannot supply these outputs for these data.
            StoreError: where the folder holds something else, the disk is too small, or another process of several
                stopped writing.
        """
        path = Path(path)
        job = Job(teacher, data, as_names(want), dtype, views, augment, batch_size, shard_bytes)
        if path.exists():
            return cls._existing(path, job)
        rank, processes = process_of()
        if not resume and processes > 1:
            raise StoreError(
                f"resume=False would delete what other processes write to {path}: delete the folder beforehand"
            )
        if not resume and partial_folder(path).exists():
            shutil.rmtree(partial_folder(path))
        if rank == 0:
            write_shards(path, job, progress, (rank, processes))
            await_shards(path)
            finish(path)
        else:
            write_share(path, job, (rank, processes))
            await_store(path)
        return cls.open(path, teacher, data, augment=augment)

    @staticmethod
    def write_part(
        path: str | Path,
        teacher: Teacher,
        data: Data,
        want: Sequence[str] = ("logits",),
        *,
        part: tuple[int, int],
        dtype: str = "float32",
        views: int = 1,
        augment: Augment | None = None,
        batch_size: int = 1024,
        progress: bool | Report | None = None,
        shard_bytes: int = 64 << 20,
    ) -> None:
        """Write every n-th shard, for n processes that share the work; `part` is (which, n), counted from 0.

        When all have returned, one of them calls `Store.write` with the same arguments, which makes the store complete.
        """
        if not 0 <= part[0] < part[1]:
            raise StoreError(f"part is (which, of how many), counted from 0: found {part}")
        if not Path(path).exists():
            job = Job(teacher, data, as_names(want), dtype, views, augment, batch_size, shard_bytes)
            write_shards(Path(path), job, progress, part)

    @classmethod
    def _existing(cls, path: Path, job: Job) -> Store:
        store = cls.open(path, job.teacher, job.data, augment=job.augment)
        found = [
            *difference("dtype", store.dtype, job.dtype),
            *difference("views", store.views, job.views),
            *difference("samples", len(store), len(job.data)),
        ]
        lacking = [name for name in job.want if not store.holds(name)]
        if lacking:
            found.append(f"outputs: {', '.join(lacking)} not among {', '.join(store.fields)}")
        if found:
            raise StoreError(
                f"the store {path} is another one ({'; '.join(found)}): write to another folder, or delete it"
            )
        return store

    # Opening ----------------------------------------------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        path: str | Path,
        teacher: Teacher | None = None,
        data: Data | None = None,
        *,
        check: int = 32,
        augment: Augment | None = None,
        tolerance: float | None = None,
        seed: int | None = None,
    ) -> Store:
        """A complete store, compared with the teacher and data it is to be used with.

        Args:
            teacher: refused where its fingerprint is another one, or where it answers otherwise than what is stored.
            data: the data written, or any part of them (`data.train`), with the same inputs; labels and attributes
                may have changed. Rows of `gather` are then rows of these data. Refused where an id is missing or an
                input differs.
            check: how many samples, chosen at random, are recomputed with the teacher.
            augment: as at writing.
            tolerance: how far a recomputed value may be off, as a share of the sample's largest; by default .001 for
                float32 and .003 for narrower types. A teacher in bfloat16 may need .02.
            seed: of the random choice; by default another one each time.

        Raises:
            StoreError: naming all that differs: teacher, data, transform, classes, size.
        """
        path = Path(path)
        store = cls(path, *_read_folder(path))
        manifest, found = store.manifest, []
        if teacher is not None:
            found += difference("teacher", manifest["teacher"]["fingerprint"], teacher.fingerprint())
        if data is not None:
            if manifest["transform"] is not None:
                found += difference("transform", manifest["transform"], transform_of(data, augment))
            if any(store.holds(name) for name in BY_CLASS):
                found += difference("number of classes", store.classes, data.num_classes)
                for index, (own, wanted) in enumerate(zip(store.class_names or (), map(str, data.classes))):
                    found += difference(f"class {index}", own, wanted)
            places, problems = store._located(data)
            found += problems
            in_order = len(places) == len(store) and bool((places == np.arange(len(places))).all())
            store._order = None if in_order else places
        if found:
            raise StoreError(
                f"the store {path} is not the one wanted ({'; '.join(found)}): write it anew in another folder"
            )
        if teacher is not None and data is not None and check > 0:
            store._compare(teacher, data, augment, check, tolerance, seed)
        return store

    def gather(
        self, rows: Any = None, *, ids: Any = None, view: int = 0, want: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """What the teacher said of some samples, as `Teacher.outputs` returns it: float32, on the CPU.

        Args:
            rows: positions `[B]` in the data given at opening, else in the order written.
            ids: sample ids `[B]`, instead of rows.
            view: which view of the samples.
            want: which outputs; all by default.

        Raises:
            StoreError: for a view, id, row or output that is not stored.
        """
        if not 0 <= view < self.views:
            kept = "view 0" if self.views == 1 else f"views 0..{self.views - 1}"
            raise StoreError(f"view {view} was asked of {self.path}, which holds {kept}: an output belongs to one view")
        if (rows is None) == (ids is None):
            raise StoreError("give rows or ids, one of the two")
        places = (
            self._places(np.asarray(ids, np.int64)) if rows is None else self._positions(np.asarray(rows, np.int64))
        )
        names = self.fields if want is None else self._named(want)
        return {name: self._read(name, places, view) for name in names}

    def holds(self, name: str) -> bool:
        """Whether an output, or the head, is stored."""
        if name == "head":
            return "head.weight" in self._arrays
        return any(field == name or field.startswith(f"{name}.") for field in self.fields)

    def head(self) -> tuple[Tensor, Tensor]:
        """Weight `[C, D]` and bias `[C]` of the teacher's last layer.

        Raises:
            StoreError: where the store was written without `head`.
        """
        if "head.weight" not in self._arrays:
            raise StoreError(f"{self.path} was written without the last layer: write it with want=(..., 'head')")
        weight, bias = (torch.from_numpy(np.array(self._arrays[f"head.{name}"])) for name in ("weight", "bias"))
        return weight, bias

    def verify(self) -> None:
        """Read every byte and compare with the checksums of the manifest; for a store that was copied.

        Raises:
            StoreError: naming output, view and rows of the first shard that differs.
        """
        for name, written in self.manifest["crc32"].items():
            if checksum(self._arrays[name]) != written:
                raise StoreError(f"{self.path}: {name} is not what was written: copy the store again, or write it anew")
        for shard in self.manifest["shards"]:
            view, (start, end) = shard["view"], shard["rows"]
            for name, written in shard["crc32"].items():
                found = 0
                for first in range(start, end, 4096):
                    found = checksum(self._arrays[name][view, first : min(first + 4096, end)], found)
                if found != written:
                    raise StoreError(
                        f"{self.path}: {name} of view {view}, rows {start}..{end - 1}, is not what was written: "
                        "copy the store again, or write it anew"
                    )

    # Inside -----------------------------------------------------------------------------------------------------------

    def _named(self, want: Sequence[str]) -> list[str]:
        for name in want:
            if not self.holds(name) or name == "head":
                raise StoreError(f"{self.path}: " + unknown_name("stored output", name, self.fields))
        return [field for field in self.fields if field in want or field.split(".")[0] in want]

    def _places(self, ids: Rows) -> Rows:
        places = self._index.rows(ids)
        if len(places) and int(places.min()) < 0:
            raise StoreError(
                f"{self.path} holds nothing for ids {shown(ids[places < 0])}: write a store of all the data"
            )
        return places

    def _positions(self, rows: Rows) -> Rows:
        count = len(self.ids) if self._order is None else len(self._order)
        if len(rows) and not (int(rows.min()) >= 0 and int(rows.max()) < count):
            raise StoreError(f"rows {rows.min()}..{rows.max()} were asked of {self.path}, which has 0..{count - 1}")
        return rows if self._order is None else self._order[rows]

    def _parts(self, name: str, places: Rows, view: int) -> dict[str, NDArray[Any]]:
        return {suffix: self._arrays[name + suffix][view][places] for suffix in self._suffixes[name]}

    def _read(self, name: str, places: Rows, view: int) -> Tensor:
        values = self._encodings[name].decode(self._parts(name, places, view))
        axis = batch_axis(name)
        return values.movedim(0, axis).contiguous() if axis else values

    def _located(self, data: Data) -> tuple[Rows, list[str]]:
        """Where each of these samples is stored, and what speaks against these being the data written."""
        ids = np.asarray(data.ids, np.int64)
        places = self._index.rows(ids)
        lacking = ids[places < 0]
        if len(lacking):
            return places, [
                f"data: {len(lacking)} of {len(ids)} ids of {data.name!r} are not stored ({shown(lacking)})"
            ]
        written = self.manifest["data"]
        # Labels, attributes and splits may have changed: only the inputs decide what the teacher says.
        if "inputs" in self._arrays and written["fingerprint"] != data.fingerprint():
            changed = self._changed_inputs(data, places)
            if len(changed):
                return places, [
                    f"data: inputs of {data.name!r} are not those of {written['name']!r} (ids {shown(changed)})"
                ]
        return places, []

    def _changed_inputs(self, data: Data, places: Rows) -> Rows:
        """Ids whose inputs are not those written; of a lazy reader a sample is looked at."""
        rows = np.arange(len(data))
        if not isinstance(data.x, np.ndarray | Mapping) and len(rows) > _LAZY_SAMPLE:
            rows = np.sort(np.random.default_rng().choice(rows, _LAZY_SAMPLE, replace=False))
        reader, changed = InputReader(data), []
        for start in range(0, len(rows), 4096):
            part = rows[start : start + 4096]
            digests = input_digests(reader(torch.from_numpy(part)))
            changed.append(part[digests != self._arrays["inputs"][places[part]]])
        return np.asarray(data.ids)[np.concatenate(changed)] if changed else rows

    def _compare(
        self,
        teacher: Teacher,
        data: Data,
        augment: Augment | None,
        check: int,
        tolerance: float | None,
        seed: int | None,
    ) -> None:
        generator = np.random.default_rng(seed)
        count = len(data)
        rows = np.sort(generator.choice(count, min(check, count), replace=False)).astype(np.int64)
        view = int(generator.integers(self.views))
        ids = np.asarray(data.ids, np.int64)[rows]
        want = list(dict.fromkeys(field.split(".")[0] for field in self.fields))
        x = None
        if reads_inputs(teacher):
            x = InputReader(data)(torch.from_numpy(rows))
            x = x if augment is None else augment(x, torch.from_numpy(ids), view)
        live = checked_outputs(teacher, x, torch.from_numpy(ids), want)
        for name in self.fields:
            encoding = self._encodings[name]
            stored = self._parts(name, self._positions(rows), view)
            agree = encoding.agrees(stored, samples_first(name, live[name]), tolerance or encoding.tolerance)
            if not agree.all():
                raise StoreError(
                    f"the store {self.path} does not say what {describe(teacher)} says now, though its fingerprint "
                    f"is the same: {name} of view {view} differ for {int((~agree).sum())} of {len(rows)} samples "
                    f"tried (ids {shown(ids[~agree])}): code outside its weights has changed, or its arithmetic is "
                    "less exact (tolerance=...); otherwise write the store anew"
                )


class StoredTeacher(Source):
    """A store as a teacher, for where the model itself is out of reach.

    Args:
        store: an open store.
        view: which view of the samples it answers with.
    """

    reads_inputs = False
    advice: Mapping[str, str] = MappingProxyType(
        dict.fromkeys(
            ("logits", "probabilities", "features", "maps", "head", "teachers_logits"),
            "write the store with it, Store.write(path, teacher, data, want=(...)), or give the teacher itself",
        )
    )

    def __init__(self, store: Store, view: int = 0) -> None:
        self.store = store
        self.view = view
        self.description = f"the store {store.path.name!r} of {store.manifest['teacher']['description']}"

    @property
    def supplies(self) -> frozenset[str]:
        found = {field.split(".")[0] for field in self.store.fields}
        if "logits" in found:
            found.add("probabilities")
        if self.store.holds("head"):
            found.add("head")
        return frozenset(found)

    @property
    def shortened(self) -> bool:
        """Whether its logits are the largest ones and one number for all others: no last layer makes those."""
        return self.store.dtype.startswith("topk")

    @property
    def classes(self) -> int:
        return self.store.classes

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self.store.class_names

    def fingerprint(self) -> str:
        return fingerprint_of("store", self.store.manifest, self.view)

    def outputs(self, x: Any, ids: Any, want: Sequence[str]) -> dict[str, Tensor]:
        kept = [name for name in want if self.store.holds(name)]
        found = self.store.gather(ids=ids, view=self.view, want=kept) if kept else {}
        if "probabilities" in want and "probabilities" not in found:
            found["probabilities"] = self.store.gather(ids=ids, view=self.view, want=["logits"])["logits"].softmax(1)
        return found

    def head(self) -> tuple[Tensor, Tensor]:
        return self.store.head() if "head" in self.supplies else super().head()

    def accepts(self, data: Data) -> None:
        """Raise `StoreError` unless the store holds these ids, with these inputs."""
        _, found = self.store._located(data)
        if found:
            raise StoreError(f"{self.description} cannot teach {data.name!r}: {'; '.join(found)}")


def _read_folder(path: Path) -> tuple[dict[str, Any], Layout]:
    """Manifest and layout of a complete store."""
    if not path.is_dir():
        partial = partial_folder(path)
        if partial.is_dir():
            raise StoreError(
                f"the store {path} is half-written ({state_of(partial)}): call Store.write again with the same "
                "arguments, it goes on from there"
            )
        raise StoreError(f"there is no store {path}: make one with Store.write")
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path} is not a store of teacher outputs: its {MANIFEST} cannot be read ({error})"
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise StoreError(f"{path} is not a store of teacher outputs: its {MANIFEST} is of another format")
    if manifest.get("version") != VERSION:
        raise StoreError(f"{path} has version {manifest.get('version')}, this release reads {VERSION}: write it anew")
    lacking = [key for key in (*_KEPT, "bytes", "crc32", "shards") if key not in manifest]
    if lacking:
        raise StoreError(f"{path / MANIFEST} lacks {', '.join(lacking)}: copy the store again, or write it anew")
    layout = Layout.read(path / OUTPUTS)
    if layout.size != manifest["bytes"]:
        raise StoreError(
            f"{path / OUTPUTS} has {layout.size} bytes, {MANIFEST} says {manifest['bytes']}: the two do not belong "
            "together; copy the store again, or write it anew"
        )
    return manifest, layout
