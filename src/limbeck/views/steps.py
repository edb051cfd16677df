"""What may happen to images, whole batches at a time."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import ConfigError
from limbeck.views.draws import Draws

LUMA = (0.299, 0.587, 0.114)
"""What red, green and blue contribute to brightness (ITU-R BT.601)."""


@dataclass(frozen=True)
class Pixels:
    """How a model's inputs are made of images: bytes are scaled to [0, 1] and normalised by channel.

    Args:
        mean, std: one number a channel; none where pixels are not normalised.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def numbers(self, x: Tensor) -> Tensor:
        """Bytes as numbers in [0, 1], a new tensor; numbers as they are."""
        return x.float().div_(255.0) if x.dtype is torch.uint8 else x

    def finish(self, x: Tensor, out: Tensor) -> None:
        """Write what the model sees of images `[B, C, H, W]` into `out`, as `limbeck.predict` makes it of bytes."""
        x = self.numbers(x)
        if not self.mean:
            out.copy_(x)
            return
        mean, std = (torch.tensor(part).view(-1, 1, 1) for part in (self.mean, self.std))
        torch.div(x - mean, std, out=out)


@dataclass(frozen=True)
class Augmentation:
    """A random change of images: a value, whose fields are its settings.

    A subclass of your own is a frozen dataclass with a `name` and `apply`. What it does to a sample may depend on that
    sample and its draws alone: no number of its own, no statistic of the batch.

    Attributes:
        name: as plain data call it.
        on_bytes: whether it takes uint8 images; where not, uint8 images become numbers in [0, 1] first.
        needs_pixels: whether it needs images that were uint8, and not numbers of a scale of their own.
    """

    name: ClassVar[str] = ""
    mixes: ClassVar[bool] = False
    on_bytes: ClassVar[bool] = False
    needs_pixels: ClassVar[bool] = False

    def apply(self, x: Tensor, draws: Draws) -> Tensor:
        """The changed images, a new tensor of the same type.

        Args:
            x: images `[B, C, H, W]`, uint8 or float; never changed.
            draws: the samples' random numbers.
        """
        raise TypeError(f"{type(self).__name__} does not say what it does to images")

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise `ConfigError` where images `[C, H, W]` of this shape cannot be changed so."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data: the name and every setting."""
        return {"name": self.name} | dataclasses.asdict(self)

    def _require(self, condition: bool, what: str) -> None:
        if not condition:
            raise ConfigError(f"augment: {self.name}: {what}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_share(value: object) -> bool:
    return _is_number(value) and 0 <= value <= 1  # type: ignore[operator]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


@dataclass(frozen=True)
class Crop(Augmentation):
    """Move the image by up to `padding` pixels each way.

    Args:
        padding: the farthest move; every whole number of pixels up to it is as likely.
        fill: what comes in from outside: 0 (black) to 1 (white) for uint8 images, any number for others.
    """

    name: ClassVar[str] = "crop"
    on_bytes: ClassVar[bool] = True
    padding: int = 4
    fill: float = 0.0

    def __post_init__(self) -> None:
        self._require(_is_count(self.padding), f"padding is {self.padding!r}, expected a whole number of pixels")
        self._require(_is_number(self.fill), f"fill is {self.fill!r}, expected a number")

    def check(self, shape: tuple[int, ...]) -> None:
        self._require(
            self.padding < min(shape[1:]),
            f"padding {self.padding} moves images of {shape[1]}×{shape[2]} out of sight: use less",
        )

    def apply(self, x: Tensor, draws: Draws) -> Tensor:
        (batch, channels, height, width), pad = x.shape, self.padding
        up = draws.integers("up", 2 * pad + 1).view(batch, 1, 1)
        left = draws.integers("left", 2 * pad + 1).view(batch, 1, 1)
        padded = F.pad(x, (pad, pad, pad, pad), value=_filling(self.fill, x)).contiguous()
        tall, wide = padded.shape[2:]
        # A row of the result is a run of the padded images' memory: each is found by where it begins, and copied whole.
        image = torch.arange(batch * channels, device=x.device).view(batch, channels, 1)
        row = torch.arange(height, device=x.device)
        starts = ((image * tall + up + row) * wide + left).flatten()
        runs = padded.as_strided((padded.numel() - width + 1, width), (1, 1))
        return runs.index_select(0, starts).view(batch, channels, height, width)


@dataclass(frozen=True)
class Flip(Augmentation):
    """Mirror left and right.

    Args:
        probability: the share of samples mirrored.
    """

    name: ClassVar[str] = "flip"
    on_bytes: ClassVar[bool] = True
    probability: float = 0.5

    def __post_init__(self) -> None:
        self._require(_is_share(self.probability), f"probability is {self.probability!r}, expected a number in 0..1")

    def apply(self, x: Tensor, draws: Draws) -> Tensor:
        return select(draws.chosen(self.probability)[:, None, None, None], x.flip(3), x)


@dataclass(frozen=True)
class Cutout(Augmentation):
    """Cover a square, which may reach over the edge (DeVries & Taylor, arXiv 1708.04552).

    Args:
        size: the side in pixels.
        probability: the share of samples covered.
        fill: what covers; see `Crop`.
    """

    name: ClassVar[str] = "cutout"
    on_bytes: ClassVar[bool] = True
    size: int = 8
    probability: float = 1.0
    fill: float = 0.0

    def __post_init__(self) -> None:
        self._require(_is_count(self.size), f"size is {self.size!r}, expected a whole number of pixels")
        self._require(_is_share(self.probability), f"probability is {self.probability!r}, expected a number in 0..1")
        self._require(_is_number(self.fill), f"fill is {self.fill!r}, expected a number")

    def apply(self, x: Tensor, draws: Draws) -> Tensor:
        height, width = x.shape[2:]
        top = draws.integers("row", height) - self.size // 2
        left = draws.integers("column", width) - self.size // 2
        inside = box(top, top + self.size, left, left + self.size, height, width)
        inside &= draws.chosen(self.probability)[:, None, None]
        return select(inside[:, None], x.new_tensor(_filling(self.fill, x)), x)


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def select(mask: Tensor, x: Tensor, other: Tensor) -> Tensor:
    """`torch.where(mask, x, other)` for a mask that is broadcast over images, bit by bit: many times as fast."""
    kind = _INTEGERS[x.element_size()]
    bits = -mask.to(torch.int8) if kind is torch.uint8 else -mask.to(kind)
    own, rest = x.contiguous().view(kind), other.contiguous().view(kind)
    return (own ^ rest).bitwise_and_(bits.view(kind)).bitwise_xor_(rest).view(x.dtype)


def _filling(fill: float, x: Tensor) -> float:
    return round(255 * fill) if x.dtype is torch.uint8 else fill


def box(top: Tensor, bottom: Tensor, left: Tensor, right: Tensor, height: int, width: int) -> Tensor:
    """Which pixels lie in a sample's rectangle, bool `[B, height, width]`; its ends are not part of it."""
    row = torch.arange(height, device=top.device)
    column = torch.arange(width, device=top.device)
    rows = (row >= top[:, None]) & (row < bottom[:, None])
    columns = (column >= left[:, None]) & (column < right[:, None])
    return rows[:, :, None] & columns[:, None, :]


@dataclass(frozen=True)
class ColourJitter(Augmentation):
    """Change brightness, contrast, saturation and hue, as one affine map of a sample's colours.

    Brightness, contrast and saturation are multiplied by numbers from 1-s to 1+s, hue turned by up to ±s of a full turn
    (in the plane of YIQ, which leaves brightness as it is); the result is kept within [0, 1]. Grey images have
    brightness and contrast only.

    Args:
        brightness, contrast, saturation: s, 0 for none.
        hue: s, at most .5.
        probability: the share of samples changed.
    """

    name: ClassVar[str] = "colour_jitter"
    needs_pixels: ClassVar[bool] = True
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.0
    probability: float = 1.0

    def __post_init__(self) -> None:
        for key, most in (("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 0.5)):
            value = getattr(self, key)
            self._require(
                _is_number(value) and 0 <= value <= most, f"{key} is {value!r}, expected a number in 0..{most}"
            )
        self._require(_is_share(self.probability), f"probability is {self.probability!r}, expected a number in 0..1")

    def check(self, shape: tuple[int, ...]) -> None:
        self._require(
            shape[0] in (1, 3), f"images of {shape[0]} channels have no colours it knows: expected 1 (grey) or 3 (RGB)"
        )

    def apply(self, x: Tensor, draws: Draws) -> Tensor:
        channels = x.shape[1]
        drawn = 2 * draws.uniform("brightness", "contrast", "saturation", "hue") - 1
        brightness, contrast, saturation = (
            1 + strength * value
            for strength, value in zip((self.brightness, self.contrast, self.saturation), drawn, strict=False)
        )
        # Of the average luma nothing but rounding depends on the order of summing: float64 keeps it from being seen.
        means = x.mean((2, 3), dtype=torch.float64)
        luma = means @ means.new_tensor(LUMA) if channels == 3 else means[:, 0]
        turned = _turned(saturation, 2 * math.pi * self.hue * drawn[3], channels)
        matrix = ((brightness * contrast)[:, None, None] * turned).to(x.dtype)[..., None, None]
        offset = ((1 - contrast) * brightness * luma).to(x.dtype)[:, None, None]
        changed = torch.empty_like(x)
        for out in range(channels):
            plane = torch.mul(x[:, 0], matrix[:, out, 0], out=changed[:, out])
            for source in range(1, channels):
                plane += x[:, source] * matrix[:, out, source]
            plane.add_(offset).clamp_(0.0, 1.0)
        if self.probability < 1:
            changed = select(draws.chosen(self.probability)[:, None, None, None], changed, x)
        return changed


def _turned(saturation: Tensor, angle: Tensor, channels: int) -> Tensor:
    """Saturation and hue as matrices on RGB `[B, 3, 3]`; grey stays grey."""
    if channels == 1:
        return torch.ones(len(saturation), 1, 1, dtype=saturation.dtype, device=saturation.device)
    to_yiq = saturation.new_tensor([LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)])
    side, up = saturation * angle.cos(), saturation * angle.sin()
    zero, one = torch.zeros_like(side), torch.ones_like(side)
    rows = [torch.stack(row, 1) for row in ((one, zero, zero), (zero, side, -up), (zero, up, side))]
    turned: Tensor = torch.linalg.inv(to_yiq) @ torch.stack(rows, 1) @ to_yiq
    return turned
