"""Random numbers that belong to a sample and a view: functions of (seed, use, view, id) and of nothing else.

A batch's numbers are made in one go by a counter-based generator: they depend neither on the other samples of the
batch nor on its order, on how many processes share the work, or on torch's own generator.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

_BITS = 64


def _signed(value: int) -> int:
    """An unsigned 64-bit number as the int64 of the same bits."""
    return value - (1 << _BITS) if value >> (_BITS - 1) else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


class Draws:
    """The random numbers of some samples in one view.

    The generator is that of `limbeck.data.seeding`, number for number: the finaliser of SplitMix64 twice over the id,
    offset by keys made from (seed, use) (Steele, Lea & Flood 2014, figure 16).

    Args:
        seed: any integer.
        view: the view of the samples.
        ids: the samples' ids `[B]`, int64.
        step: names the part of a pipeline that draws, so that two parts are independent.
    """

    def __init__(self, seed: int, view: int, ids: Tensor, step: str = "") -> None:
        self.seed, self.view, self.ids, self.step = seed, view, ids, step
        self._made: dict[tuple[str, ...], Tensor] = {}
        self._part = slice(None)

    def of(self, step: str) -> Draws:
        """The numbers of another part, independent of these."""
        return self._like(step, self._part)

    def only(self, part: slice) -> Draws:
        """The numbers of some of these samples; what is drawn is drawn once for all of them."""
        return self._like(self.step, part)

    def _like(self, step: str, part: slice) -> Draws:
        other = Draws(self.seed, self.view, self.ids, step)
        other._made, other._part = self._made, part
        return other

    def uniform(self, *uses: str) -> Tensor:
        """Numbers in (0, 1), float64 `[uses, B]`: one row a use, rows independent of each other."""
        return self._drawn(uses)[:, self._part]

    def _drawn(self, uses: tuple[str, ...]) -> Tensor:
        name = (self.step, *uses)
        if name not in self._made:
            self._made[name] = self._draw(uses)
        return self._made[name]

    def _draw(self, uses: tuple[str, ...]) -> Tensor:
        keys = [_keys(self.seed, f"view {self.view}, {self.step}: {use}") for use in uses]
        first, second = torch.tensor(keys, device=self.ids.device).T.unsqueeze(2)
        state = _mix(_mix(self.ids * _GOLDEN + first) + second)
        return (_shifted(state, 11).double() + 0.5) * 2.0**-53

    def integers(self, use: str, count: int) -> Tensor:
        """One of 0..count-1 for each sample, each as likely, int64 `[B]`."""
        return (self.uniform(use)[0] * count).long().clamp_(max=count - 1)

    def chosen(self, share: float) -> Tensor:
        """Which samples something happens to, bool `[B]`; `share` of all."""
        return self.uniform("whether")[0] < share

    def beta(self, use: str, alpha: float) -> Tensor:
        """Beta(alpha, alpha) for each sample, float64 `[B]`.

        In closed form, so that every sample takes the same two numbers whatever it draws: Devroye (1996), "Random
        variate generation in one line of code", section 4, from Bailey's polar method for t with 2·alpha degrees.
        """
        radius, angle = self.uniform(f"{use} radius", f"{use} angle")
        # Written so that no power overflows however small alpha is.
        power, side = radius.pow(1 / alpha), (2 * math.pi * angle).cos()
        spread = (1 - power) * side.square()
        leaning: Tensor = side.sign() * (spread / (power + spread).clamp_min_(1e-300)).sqrt()
        return 0.5 + 0.5 * leaning


def _keys(seed: int, stream: str) -> list[int]:
    digest = hashlib.blake2b(f"{int(seed)}|{stream}".encode(), digest_size=16).digest()
    return [int.from_bytes(part, "little", signed=True) for part in (digest[:8], digest[8:])]


def _shifted(state: Tensor, bits: int) -> Tensor:
    """A shift to the right that fills with zeros: torch's own keeps the sign."""
    return (state >> bits) & ((1 << (_BITS - bits)) - 1)


def _mix(state: Tensor) -> Tensor:
    state = (state ^ _shifted(state, 30)) * _FIRST
    state = (state ^ _shifted(state, 27)) * _SECOND
    return state ^ _shifted(state, 31)
