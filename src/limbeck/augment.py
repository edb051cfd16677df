"""Training on augmented images: views of a data set, what the teacher says of them, and the loss of mixed samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import ConfigError, RecipeError, StoreError, TeacherError
from limbeck.recipe import TEACHER_FIELDS, Objective, Recipe
from limbeck.teachers import Source, StoredTeacher, Teacher
from limbeck.teachers.asking import Column
from limbeck.teachers.base import describe, reads_inputs
from limbeck.views import BoundViews, Pixels, Seen, Views

if TYPE_CHECKING:
    from limbeck.data import Data

Fields = dict[str, Tensor]


def bind(views: Views | Mapping[str, Any], data: Data, *, seed: int = 0) -> BoundViews:
    """Views of the samples of `data`: what `limbeck.fit` trains on, and what `Store.write(augment=…)` takes.

    Args:
        views: what happens to images, and how often.
        data: the training samples, `data.train`; partners to mix with are drawn from them.
        seed: of the random numbers, where the views have none of their own; that of the fit.

    Raises:
        ConfigError: where the samples are no images, or such as these augmentations cannot change.
    """
    chosen = Views.of(views)
    if chosen is None:
        raise ConfigError("views is None: expected Views, or a mapping with the key 'augment'")
    pixels = Pixels() if data.normalise is None else Pixels(*data.normalise)
    return BoundViews(chosen, _reader(data), torch.from_numpy(data.ids), seed=seed, pixels=pixels)


def _reader(data: Data) -> Callable[[Tensor], Any]:
    """From rows to images as they are kept."""
    if isinstance(data.x, np.ndarray) and data.x.flags.writeable:
        source = torch.from_numpy(data.x)
        return lambda rows: source.index_select(0, rows)

    def read(rows: Tensor) -> Any:
        found = data.inputs(rows.numpy())
        return found if isinstance(found, Mapping) else torch.from_numpy(np.ascontiguousarray(found))

    return read


def views_for(
    recipe: Recipe, views: Views | Mapping[str, Any] | None, train: Data, *, seed: int = 0
) -> BoundViews | None:
    """The views of a fit, None where there is no augmentation; refuses what does not fit, before any training.

    Raises:
        ConfigError: see `bind`.
        RecipeError: see `check_mixing`.
    """
    if views is None:
        return None
    bound = bind(views, train, seed=seed)
    check_mixing(recipe, bound.views)
    return bound


# What the teacher says of them ----------------------------------------------------------------------------------------


class TeacherInView(Source):
    """A teacher that is asked about samples and answers about what they are in one view.

    Args:
        teacher: one that looks at inputs.
        views: of the samples that will be asked about.
        view: which.
    """

    def __init__(self, teacher: Teacher, views: BoundViews, view: int) -> None:
        self._teacher, self._views, self._view = teacher, views, view
        self.description = f"{describe(teacher)} in view {view}"

    @property
    def supplies(self) -> frozenset[str]:
        return self._teacher.supplies

    @property
    def classes(self) -> int:
        return self._teacher.classes

    def outputs(self, x: Any, ids: Any, want: Sequence[str]) -> Fields:
        return self._teacher.outputs(self._views(x, ids, self._view), ids, want)


def check_teacher_views(teacher: Teacher, views: BoundViews | None) -> None:
    """Refuse a teacher that cannot know the pixels that the student will see, before any training.

    Raises:
        StoreError: for a store of other views than these.
        TeacherError: for a teacher that goes by id.
    """
    changed = views is not None and views.views.teacher_sees_changed
    if isinstance(teacher, StoredTeacher):
        transform = teacher.store.manifest["transform"] or {}
        if transform.get("augment") != (views.fingerprint() if views is not None and changed else None):
            wanted = "augmented as this run's" if changed else "as the data have them"
            found = "of another augmentation" if transform.get("augment") else "of images without augmentation"
            raise StoreError(
                f"the store {teacher.store.path} holds outputs {found}, and the student sees images {wanted}: an "
                "output belongs to one view; write a store of these with Store.write(…, augment=bind(views, "
                "data.train, seed=seed)) of limbeck.augment"
            )
        if views is not None and changed and views.views.online:
            raise StoreError(
                f"the store {teacher.store.path} holds {teacher.store.views} views, and views: online asks for a new "
                f"one each epoch: train on those stored (views: {teacher.store.views}), or give the teacher itself"
            )
    elif changed and not reads_inputs(teacher):
        raise TeacherError(
            f"{describe(teacher)} goes by id and knows each sample as it is, and the student would see it augmented: "
            "leave the augmentation out, only mix and state teacher: mixed, or give a teacher that looks at images"
        )


def teacher_by_view(teacher: Teacher, views: BoundViews | None) -> list[Teacher]:
    """The teacher as it is to be asked about each view; a single one where it sees the data's own pixels in all."""
    if views is None or not views.views.teacher_sees_changed:
        return [teacher]
    count = views.views.count
    if isinstance(teacher, StoredTeacher):
        return [StoredTeacher(teacher.store, view) for view in range(count)]
    return [TeacherInView(teacher, views, view) for view in range(count)]


# In the loop ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Augmented:
    """Views of the training samples in the loop.

    Args:
        views: of the training samples.
        live: for views without end: from images and ids of a batch to the teacher's fields.
    """

    views: BoundViews
    live: Callable[[Tensor, Tensor], Fields] | None = None

    def fields(
        self, seen: Seen, rows: Tensor, view: int, columns: Mapping[str, Column], needed: Sequence[str]
    ) -> dict[str, Any]:
        """What a batch has beside its columns: what a live teacher says, and `mixed`, the partners' fields with the
        samples' own shares `[B]`."""
        ids, mix, before = columns["ids"], seen.mix, self.views.views.teacher_before_mixing
        found: dict[str, Any] = {}
        if self.live is not None:
            own = self.views.before_mixing(rows, view) if before else seen.inputs
            found.update(self.live(own, ids.index_select(0, rows)))
        if mix is not None:
            swapped = {"labels", *(TEACHER_FIELDS if before else ())}
            names = [name for name in {"labels", *needed} if name in swapped]
            partner = {name: columns[name].index_select(0, mix.partners) for name in names}
            if self.live is not None and before:
                other = self.views.before_mixing(mix.partners, view)
                partner.update(self.live(other, ids.index_select(0, mix.partners)))
            found["mixed"] = (partner, mix.share)
        return found


class MixedObjective(Objective):
    """A recipe over mixed samples: share·loss(own target) + (1-share)·loss(the partner's target), per sample."""

    explicit = False

    def _terms(self, batch: Mapping[str, Any]) -> tuple[Tensor | None, Tensor | None]:
        partner, share = batch["mixed"]
        own, beside = super()._terms(batch)
        other, _ = super()._terms({**batch, **partner})
        if own is None or other is None:
            return own, beside
        return own * share + other * (1 - share), beside


def check_mixing(recipe: Recipe, views: Views) -> None:
    """Refuse recipes that have no meaning for a sample that is two samples.

    Raises:
        RecipeError: naming the part and what to use instead.
    """
    if not views.mixing:
        return
    how = " and ".join(step.name for step in views.mixing)
    swapped = {"labels", *(TEACHER_FIELDS if views.teacher_before_mixing else ())}
    single = {"ids", "rows", "groups", "targets"}
    refuse = f"recipe {recipe.name!r} cannot learn from images mixed by {how}: "
    instead = "leave the mixing out (crop, flip, cutout and colour_jitter go with everything), or use "
    for term in recipe.terms:
        reads = set(term.needs)
        if reads & single:
            raise RecipeError(
                f"{refuse}the term {term.name!r} reads {_named(reads & single)}, of which a mixed sample has two; "
                f"{instead}terms without"
            )
        if reads & swapped and not (term.per_sample and term.weighted):
            raise RecipeError(
                f"{refuse}the term {term.name!r} is one number a batch and reads {_named(reads & swapped)}, of which "
                f"a mixed sample has two; {instead}per-sample terms"
            )
    reads = set(recipe.weighting.needs) & (swapped | single)
    if reads or recipe.weighting.per_teacher:
        raise RecipeError(
            f"{refuse}the weighting {recipe.weighting.name!r} reads {_named(reads or {'teachers_logits'})}, of which a "
            f"mixed sample has two; {instead}the weighting 'uniform'"
        )
    if recipe.sampling != "shuffle":
        raise RecipeError(
            f"{refuse}it draws samples {recipe.sampling.replace('_', ' ')}, and partners come from all training "
            f"samples alike; {instead}sampling 'shuffle'"
        )


def _named(fields: set[str]) -> str:
    return ", ".join(sorted(fields))
