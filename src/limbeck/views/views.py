"""Augmentation as a function of (seed, id, view), so that what a teacher said belongs to the pixels a student sees."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import ConfigError, unknown_name
from limbeck.views.draws import Draws
from limbeck.views.mixing import CutMix, Mixing, Mixup, blend
from limbeck.views.steps import Augmentation, ColourJitter, Crop, Cutout, Flip, Pixels

AUGMENTATIONS: Mapping[str, type[Augmentation]] = MappingProxyType(
    {kind.name: kind for kind in (Crop, Flip, Cutout, ColourJitter, Mixup, CutMix)}
)
"""The augmentations that plain data can name."""

ONLINE = "online"

PART = 1 << 20
"""Numbers of a batch that are augmented at a time."""


@dataclass(frozen=True)
class Views:
    """What happens to training images, and how many ways there are to see each: a value.

    Augmentations apply in the order given; those that mix come last, and where there are several of them each sample
    takes one, all as likely. Validation and test images are never augmented.

    Args:
        augment: augmentations, their names, or mappings with the key `name` and their settings.
        views: `online`, a new view each epoch, of which the teacher must then be asked batch by batch; or k, and epoch
            e (from 0) sees view e mod k, of which the teacher is asked once.
        seed: of the random numbers; that of the run where it is None.

    Raises:
        ConfigError: for an unknown augmentation or setting, or an order that makes no sense.
    """

    augment: Sequence[Augmentation | Mapping[str, Any] | str]
    views: int | str = ONLINE
    seed: int | None = None

    def __post_init__(self) -> None:
        given = (self.augment,) if isinstance(self.augment, str | Mapping | Augmentation) else tuple(self.augment)
        object.__setattr__(self, "augment", tuple(map(_augmentation, given)))
        counted = isinstance(self.views, int) and not isinstance(self.views, bool)
        if self.views != ONLINE and not (counted and int(self.views) >= 1):
            raise ConfigError(f"views is {self.views!r}: expected 'online', or how many views of each sample (1, 2, …)")
        if not self.steps and not self.mixing:
            raise ConfigError("views without an augmentation would all be alike: name one, such as augment: [flip]")
        mixing = [step.mixes for step in self._all]
        if mixing != sorted(mixing):
            late = next(step for step in self._all[mixing.index(True) :] if not step.mixes)
            raise ConfigError(
                f"augment: {late.name} comes after {self.mixing[0].name}: what mixes comes last, so that each of the "
                "two images is changed on its own"
            )
        stated = {step.teacher for step in self.mixing}
        if len(stated) > 1:
            raise ConfigError(
                f"augment: {self.mixing[0].name} and {self.mixing[1].name} state different teachers "
                f"({' and '.join(sorted(stated))}): state the same"
            )

    @classmethod
    def of(cls, value: Views | Mapping[str, Any] | None) -> Views | None:
        """Views from plain data such as `{"views": 4, "augment": [{"name": "crop", "padding": 4}, "flip"]}`.

        Raises:
            ConfigError: naming the key or value that cannot be used.
        """
        if value is None or isinstance(value, Views):
            return value
        if not isinstance(value, Mapping):
            raise ConfigError(f"views is a {type(value).__name__}: expected Views, or a mapping with the key 'augment'")
        known = [entry.name for entry in dataclasses.fields(cls)]
        for key in value:
            if key not in known:
                raise ConfigError("views: " + unknown_name("key", key, known))
        if "augment" not in value:
            raise ConfigError("views without an augmentation would all be alike: name one, such as augment: [flip]")
        return cls(**value)

    @property
    def _all(self) -> tuple[Augmentation, ...]:
        return self.augment  # type: ignore[return-value]

    @property
    def steps(self) -> tuple[Augmentation, ...]:
        """The augmentations of each image on its own."""
        return tuple(step for step in self._all if not step.mixes)

    @property
    def mixing(self) -> tuple[Mixing, ...]:
        """Those that mix two images."""
        return tuple(step for step in self._all if isinstance(step, Mixing))

    @property
    def online(self) -> bool:
        """Whether every epoch has a view of its own."""
        return self.views == ONLINE

    @property
    def count(self) -> int:
        """How many views of each sample there are.

        Raises:
            ConfigError: where there is no end of them (`online`).
        """
        if self.online:
            raise ConfigError("views: online has no end of views: say how many (views: 4)")
        return int(self.views)

    @property
    def teacher_before_mixing(self) -> bool:
        """Whether the teacher is asked about a sample and its partner each on its own (`teacher: mixed`)."""
        return bool(self.mixing) and self.mixing[0].teacher == "mixed"

    @property
    def teacher_sees_changed(self) -> bool:
        """Whether what the teacher is asked about are other pixels than the data's own."""
        return bool(self.steps) or not self.teacher_before_mixing

    def of_epoch(self, epoch: int) -> int:
        """The view of an epoch, counted from 0."""
        return epoch if self.online else epoch % self.count

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `Views.of` turns back into equal views."""
        plain: dict[str, Any] = {"views": self.views, "augment": [step.to_dict() for step in self._all]}
        return plain if self.seed is None else plain | {"seed": self.seed}


@dataclass(frozen=True)
class Mix:
    """With whom the samples of a batch are mixed.

    Attributes:
        partners: the partners' rows `[B]`.
        share: the share of the sample itself `[B]`, 1 where it is not mixed.
    """

    partners: Tensor
    share: Tensor


@dataclass(frozen=True)
class Seen:
    """What a student sees of a batch: images `[B, C, H, W]`, and how they were mixed, if they were."""

    inputs: Tensor
    mix: Mix | None = None


class BoundViews:
    """Views of given samples: reads and augments whole batches.

    Called as `limbeck.teachers.Store` calls it, it returns the pixels that the teacher is to see.

    Args:
        views: what happens.
        read: from rows `[B]` to images `[B, C, H, W]`, uint8, or float numbers of any scale.
        ids: the samples' ids by row `[N]`, unique.
        seed: of the random numbers, where the views have none of their own.
        pixels: how uint8 images are normalised.

    Raises:
        ConfigError: where the samples are no images, or such as these augmentations cannot change.
    """

    def __init__(
        self, views: Views, read: Callable[[Tensor], Any], ids: Tensor, *, seed: int = 0, pixels: Pixels | None = None
    ) -> None:
        self.views = views
        self.seed = seed if views.seed is None else views.seed
        self._read, self._ids = read, ids.long()
        self._pixels = Pixels() if pixels is None else pixels
        # By id, so that nothing depends on the order of rows.
        self._sorted, self._rows = self._ids.sort()
        self._check(read(torch.zeros(1, dtype=torch.int64)))

    def _check(self, example: Any) -> None:
        kinds = ", ".join(step.name for step in self.views._all)
        if not isinstance(example, Tensor):
            raise ConfigError(f"augment ({kinds}) is for images, and the inputs are named arrays: leave it out")
        if example.ndim != 4:
            raise ConfigError(
                f"augment ({kinds}) is for images [C, H, W], and a sample has the shape {list(example.shape[1:])}: "
                "leave it out"
            )
        for step in self.views._all:
            if step.needs_pixels and example.dtype is not torch.uint8:
                raise ConfigError(
                    f"augment: {step.name} needs to know what black and white are: give images as uint8 [N, C, H, W]"
                )
            step.check(tuple(example.shape[1:]))

    def fingerprint(self) -> str:
        """32 hexadecimal digits of all that decides which pixels the teacher sees of a sample and view."""
        told: dict[str, Any] = {"augment": [step.to_dict() for step in self.views.steps], "seed": self.seed}
        digest = hashlib.blake2b(digest_size=16)
        if not self.views.teacher_before_mixing and self.views.mixing:
            told["mixing"] = [step.to_dict() for step in self.views.mixing]
            digest.update(self._sorted.cpu().numpy().tobytes())
        digest.update(json.dumps(told, sort_keys=True).encode())
        return digest.hexdigest()

    def batch(self, rows: Tensor, view: int) -> Seen:
        """What the student sees of these rows `[B]` in this view."""
        return self._seen(rows, view, mixing=bool(self.views.mixing))

    def before_mixing(self, rows: Tensor, view: int) -> Tensor:
        """What it would see without mixing `[B, C, H, W]`."""
        return self._seen(rows, view, mixing=False).inputs

    def __call__(self, x: Any, ids: Tensor, view: int) -> Tensor:
        """What the teacher sees of these samples in this view `[B, C, H, W]`, to the bit what the student sees.

        Args:
            x: the samples' inputs, which are not looked at: they are read anew.
            ids: their ids `[B]`.

        Raises:
            ConfigError: for an id that is not among the samples.
        """
        place = torch.searchsorted(self._sorted, ids).clamp_(max=len(self._sorted) - 1)
        unknown = self._sorted.index_select(0, place) != ids
        if bool(unknown.any()):
            raise ConfigError(
                f"the views are of {len(self._ids)} samples, and id {int(ids[unknown][0])} is not among them: bind "
                "them to the data they are used with"
            )
        return self._seen(
            self._rows[place], view, bool(self.views.mixing) and not self.views.teacher_before_mixing
        ).inputs

    def _seen(self, rows: Tensor, view: int, mixing: bool) -> Seen:
        draws = Draws(self.seed, view, self._ids.index_select(0, rows))
        x = self._read(rows)
        inputs = torch.empty(x.shape, dtype=torch.float32 if x.dtype is torch.uint8 else x.dtype)
        if not mixing:
            for part in _parts(x):
                self._pixels.finish(self._changed(x[part], draws.only(part)), inputs[part])
            return Seen(inputs)
        place = draws.of("mixing").integers("partner", len(self._ids))
        partners = self._rows.index_select(0, place)
        theirs, other = Draws(self.seed, view, self._sorted.index_select(0, place)), self._read(partners)
        shares = []
        for part in _parts(x):
            weights, share = self._weights(draws.only(part), *x.shape[2:])
            own, its = self._changed(x[part], draws.only(part)), self._changed(other[part], theirs.only(part))
            if weights.dtype is not torch.bool:
                own, its = self._pixels.numbers(own), self._pixels.numbers(its)
            self._pixels.finish(blend(own, its, weights), inputs[part])
            shares.append(share)
        return Seen(inputs, Mix(partners, torch.cat(shares)))

    def _changed(self, x: Tensor, draws: Draws) -> Tensor:
        for index, step in enumerate(self.views.steps):
            x = step.apply(x if step.on_bytes else self._pixels.numbers(x), draws.of(f"{index} {step.name}"))
        return x

    def _weights(self, draws: Draws, height: int, width: int) -> tuple[Tensor, Tensor]:
        kinds = self.views.mixing
        weights, share = kinds[0].weights(draws.of(kinds[0].name), height, width)
        if len(kinds) > 1:
            chosen = draws.of("mixing").integers("kind", len(kinds))
            for index, kind in enumerate(kinds[1:], start=1):
                its_weights, its_share = kind.weights(draws.of(kind.name), height, width)
                weights = torch.where((chosen == index)[:, None, None, None], its_weights.float(), weights.float())
                share = torch.where(chosen == index, its_share, share)
        return weights, share


def _parts(x: Tensor) -> list[slice]:
    """A batch in parts that stay in a processor's cache through all steps."""
    size = max(1, PART * len(x) // max(1, x.numel()))
    return [slice(start, start + size) for start in range(0, len(x), size)]


def _augmentation(value: Augmentation | Mapping[str, Any] | str) -> Augmentation:
    if isinstance(value, Augmentation):
        return value
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise ConfigError(
            f"augment: found {value!r}, expected the name of an augmentation ({', '.join(AUGMENTATIONS)}), or a "
            "mapping with its name and settings"
        )
    name = value["name"]
    if name not in AUGMENTATIONS:
        raise ConfigError("augment: " + unknown_name("augmentation", name, AUGMENTATIONS))
    settings = {key: setting for key, setting in value.items() if key != "name"}
    known = list(inspect.signature(AUGMENTATIONS[name]).parameters)
    for key in settings:
        if key not in known:
            raise ConfigError(f"augment: {name}: " + unknown_name("setting", key, known))
    return AUGMENTATIONS[name](**settings)
