"""What a teacher said, shared by all cells of a pilot: written once, in a store beside the teacher's own files.

A cell that finds no store (it is on a machine with another disk, or somebody deleted it) asks the teacher, to the same
student.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from limbeck.augment import views_for
from limbeck.errors import StoreError
from limbeck.fitting import COLLECTED
from limbeck.pilots.arms import Arm
from limbeck.pilots.choices import frozen_ways
from limbeck.predict import InputReader
from limbeck.teachers import Store, StoredTeacher, Teacher, as_teacher
from limbeck.teachers.base import accept, describe, reads_inputs
from limbeck.teachers.fingerprints import fingerprint_of
from limbeck.teachers.ids import IdIndex
from limbeck.training import Training
from limbeck.tuning import computed
from limbeck.views import BoundViews, Views

if TYPE_CHECKING:
    from limbeck.data import Data

STORES = "stores"
LOGITS = ("logits",)


class SharedTeacher(StoredTeacher):
    """A teacher that answers from stores of its own outputs, and by itself where these hold too little.

    Args:
        teacher: the teacher.
        stores: what it said of samples as they are.
        data: all samples that it may be asked about.
        seen: what it said of augmented training samples, by view; None where the student sees them as they are.
    """

    def __init__(self, teacher: Teacher, stores: Sequence[Store], data: Data, seen: Store | None = None) -> None:
        super().__init__(stores[0] if seen is None else seen)
        self.teacher = teacher
        self.description = describe(teacher)
        self.advice: Mapping[str, str] = getattr(teacher, "advice", {})
        self._stores = [(store, IdIndex(store.ids)) for store in stores]
        self._data = data

    def __getattr__(self, name: str) -> Any:
        # What a teacher has beside its outputs, such as the module that a transplant takes its last layer from.
        if name.startswith("_") or name == "teacher":
            raise AttributeError(name)
        return getattr(self.teacher, name)

    @property
    def supplies(self) -> frozenset[str]:
        return self.teacher.supplies

    @property
    def shortened(self) -> bool:
        return bool(getattr(self.teacher, "shortened", False))

    @property
    def classes(self) -> int:
        return self.teacher.classes

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self.teacher.class_names

    def fingerprint(self) -> str:
        return self.teacher.fingerprint()

    def head(self) -> tuple[Tensor, Tensor]:
        return self.teacher.head()

    def accepts(self, data: Data) -> None:
        accept(self.teacher, data)

    def outputs(self, x: Any, ids: Any, want: Sequence[str]) -> dict[str, Tensor]:
        asked = np.asarray(ids, np.int64)
        for store, index in self._stores:
            if all(map(store.holds, want)) and int(index.rows(asked).min(initial=0)) >= 0:
                return store.gather(ids=asked, want=want)
        rows = IdIndex(np.asarray(self._data.ids, np.int64)).rows(asked)
        inputs = InputReader(self._data)(torch.from_numpy(rows)) if reads_inputs(self.teacher) else None
        return self.teacher.outputs(inputs, torch.from_numpy(asked), want)


@dataclass(frozen=True)
class Sharing:
    """The stores of a pilot's teachers.

    Args:
        folder: where they are.
        data: of the pilot.
    """

    folder: Path
    data: Data

    def write(self, arm: Arm, seed: int, teacher: Any, arms: Iterable[Arm]) -> list[str]:
        """Ask a teacher, once, all that its students will ask; what is there already is kept.

        Args:
            arm: the teacher's.
            seed: of the cell, from which augmented views come.
            teacher: what it trained, or what it came as.
            arms: of the pilot, its students among them.

        Returns:
            A warning where it cannot be kept: each student then asks for itself.
        """
        source, students = as_teacher(teacher), _students(arm, arms)
        if not reads_inputs(source):
            return []
        try:
            if arm.source is not None:
                # A finished teacher is judged with every seed, and is the same each time.
                for part in (self.data.validation, self.data.test):
                    self._write(self._path(arm, source, part), source, part)
            if students:
                want, train = _wanted(source, students), self.data.train
                self._write(self._path(arm, source, train, want), source, train, want, students[0].training)
                for views in _views(students, train, seed):
                    path = self._path(arm, source, train, want, views)
                    self._write(path, source, train, want, students[0].training, views)
        except (StoreError, OSError) as error:
            return [f"{arm.label}: what it says is not kept, so that each student asks it again: {error}"]
        return []

    def judged(self, arm: Arm, teacher: Any) -> Any:
        """A finished teacher, as it is asked about validation and test samples."""
        source = as_teacher(teacher)
        parts = (self.data.validation, self.data.test)
        stores = [self._open(self._path(arm, source, part), source, part) for part in parts]
        found = [store for store in stores if store is not None]
        return SharedTeacher(source, found, self.data) if found else source

    def open(self, arm: Arm, seed: int, teacher: Any, student: Arm, arms: Iterable[Arm]) -> Any:
        """A teacher as one of its students asks it: from its store, where there is one.

        Args:
            arm: the teacher's.
            seed: of the student.
            teacher: the teacher itself.
            student: who asks.
            arms: of the pilot.
        """
        source, students = as_teacher(teacher), _students(arm, arms)
        if not reads_inputs(source) or student.key not in (one.key for one in students):
            return teacher
        want, train = _wanted(source, students), self.data.train
        plain = self._open(self._path(arm, source, train, want), source, train)
        if plain is None:
            return teacher
        own = _changed_views(student, train, seed)
        if own is None:
            return SharedTeacher(source, [plain], self.data)
        seen = None if own.views.online else self._open(self._path(arm, source, train, want, own), source, train, own)
        # Of several teachers at once each is asked about the images of the batch.
        return teacher if seen is None or len(student.teachers) > 1 else SharedTeacher(source, [plain], self.data, seen)

    def _path(
        self, arm: Arm, teacher: Teacher, part: Data, want: Sequence[str] = LOGITS, views: BoundViews | None = None
    ) -> Path:
        augment = None if views is None else (views.fingerprint(), views.views.count)
        digest = fingerprint_of(teacher.fingerprint(), part.fingerprint(), tuple(want), augment)
        return self.folder / f"{arm.key}-{digest[:16]}"

    def _write(
        self,
        path: Path,
        teacher: Teacher,
        part: Data,
        want: Sequence[str] = LOGITS,
        training: Training | None = None,
        views: BoundViews | None = None,
    ) -> None:
        if path.exists():
            return
        if training is not None:
            ways = frozen_ways(teacher, want, self.data, training)
            teacher = computed(teacher, ways, InputReader(part)(torch.arange(min(2, len(part)))))
        count = 1 if views is None else views.views.count
        options: dict[str, Any] = {"views": count, "augment": views, "batch_size": COLLECTED, "progress": False}
        Store.write(path, teacher, part, want, **options)

    def _open(self, path: Path, teacher: Teacher, part: Data, views: BoundViews | None = None) -> Store | None:
        if not path.is_dir():
            return None
        try:
            return Store.open(path, teacher, part, check=0, augment=views)
        except StoreError as error:
            raise StoreError(f"{error}; delete {path}, and the teacher is asked again") from error


def _students(teacher: Arm, arms: Iterable[Arm]) -> list[Arm]:
    """Those that listen to a teacher."""
    return [
        arm for arm in arms if teacher.key in arm.teachers and arm.recipe is not None and arm.recipe.teacher_outputs
    ]


def spoken(teacher: Arm, source: Teacher, arms: Iterable[Arm]) -> tuple[tuple[str, ...], int]:
    """What of a teacher is kept, and of how many views of each training sample, those as they are included.

    Nothing where nobody listens.
    """
    students = _students(teacher, arms)
    if not students:
        return (), 0
    kept: dict[str, int] = {}
    for arm in students:
        assert arm.training is not None
        views = Views.of(arm.training.views)
        if views is not None and views.teacher_sees_changed and not views.online and len(arm.teachers) == 1:
            kept[repr(views.to_dict())] = views.count
    return _wanted(source, students), 1 + sum(kept.values())


def _wanted(teacher: Teacher, students: Sequence[Arm]) -> tuple[str, ...]:
    """All that any of them asks, and what the ledger shows."""
    found = set(LOGITS)
    for arm in students:
        assert arm.recipe is not None
        candidates = () if arm.recipe.choose is None else arm.recipe.choose.candidates
        for recipe in (arm.recipe, *candidates):
            found |= recipe.teacher_outputs
    return tuple(sorted(found & teacher.supplies - {"head", "teachers_logits"}))


def _changed_views(student: Arm, train: Data, seed: int) -> BoundViews | None:
    """The views in which a student's teacher sees augmented images; None where it sees them as they are."""
    assert student.recipe is not None
    assert student.training is not None
    views = views_for(student.recipe, student.training.views, train, seed=seed)
    return views if views is not None and views.views.teacher_sees_changed else None


def _views(students: Sequence[Arm], train: Data, seed: int) -> list[BoundViews]:
    """Each once, those without end left out: no store holds them."""
    found: dict[str, BoundViews] = {}
    for arm in students:
        views = _changed_views(arm, train, seed)
        if views is not None and not views.views.online and len(arm.teachers) == 1:
            found.setdefault(views.fingerprint(), views)
    return list(found.values())
