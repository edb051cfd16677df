"""Augmentation as a function of (seed, id, view): the draws, the pixels, and whom a sample is mixed with."""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

import limbeck.views.views
from limbeck.augment import bind
from limbeck.data import Data
from limbeck.data.seeding import uniform
from limbeck.errors import ConfigError
from limbeck.predict import InputReader
from limbeck.views import BoundViews, ColourJitter, Crop, CutMix, Cutout, Draws, Flip, Mixup, Views
from limbeck.views.mixing import blend
from limbeck.views.steps import select

EVERYTHING = {
    "views": 4,
    "augment": [
        {"name": "crop", "padding": 2},
        "flip",
        {"name": "cutout", "size": 3, "probability": 0.5},
        {"name": "colour_jitter", "hue": 0.1},
        {"name": "mixup", "alpha": 0.4},
        {"name": "cutmix"},
    ],
}


def images(count: int = 24, size: int = 9, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def bound(x: Tensor, ids: Tensor | None = None, plain: Any = EVERYTHING, seed: int = 7, **more: Any) -> BoundViews:
    ids = torch.arange(len(x)) * 3 + 1 if ids is None else ids
    views = Views.of(plain)
    assert views is not None
    return BoundViews(views, lambda rows: x.index_select(0, rows), ids, seed=seed, **more)


def draws(count: int = 6, view: int = 0, seed: int = 0) -> Draws:
    return Draws(seed, view, torch.arange(count))


# The random numbers ---------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=9), st.integers(), st.integers(0, 99))
def test_draws_are_those_of_the_data_room_number_for_number(ids: list[int], seed: int, view: int) -> None:
    found = Draws(seed, view, torch.tensor(ids), "crop").uniform("up", "left")
    for row, use in zip(found, ("up", "left"), strict=True):
        wanted = uniform(seed, f"view {view}, crop: {use}", np.array(ids, np.int64))
        assert row.tolist() == wanted.tolist()


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0, 3.0])
def test_shares_follow_the_beta_distribution(alpha: float) -> None:
    shares = draws(20_000).beta("share", alpha).numpy()
    assert np.isfinite(shares).all()
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_a_tiny_alpha_overflows_nothing() -> None:
    shares = draws(1000).beta("share", 1e-4)
    assert torch.isfinite(shares).all()
    assert ((shares < 1e-3) | (shares > 1 - 1e-3)).float().mean() > 0.98
    assert 0.4 < (shares > 0.5).float().mean() < 0.6


def test_integers_are_even_over_all_values() -> None:
    counts = torch.bincount(draws(90_000).integers("row", 9), minlength=9)
    assert stats.chisquare(counts.numpy()).pvalue > 0.001


# A function of (seed, id, view) ---------------------------------------------------------------------------------------


def test_pixels_depend_on_neither_batch_nor_order_nor_the_order_of_the_data() -> None:
    x = (255 * images()).to(torch.uint8)
    views = bound(x)
    whole = views.batch(torch.arange(24), 2)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    shuffled = views.batch(order, 2)
    assert torch.equal(shuffled.inputs, whole.inputs[order])
    assert shuffled.mix is not None
    assert whole.mix is not None
    assert torch.equal(shuffled.mix.share, whole.mix.share[order])
    for row in range(24):
        assert torch.equal(views.batch(torch.tensor([row]), 2).inputs[0], whole.inputs[row])
    permuted = bound(x[order], torch.arange(24)[order] * 3 + 1)
    assert torch.equal(permuted.batch(torch.arange(24), 2).inputs, whole.inputs[order])


def test_torchs_own_generator_is_neither_read_nor_moved() -> None:
    views = bound((255 * images()).to(torch.uint8))
    torch.manual_seed(0)
    first, state = views.batch(torch.arange(5), 0).inputs, torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(views.batch(torch.arange(5), 0).inputs, first)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("step", EVERYTHING["augment"])
def test_view_seed_and_id_each_change_the_pixels_and_inputs_stay(step: Any) -> None:
    x = images(1).expand(24, -1, -1, -1).contiguous() if step != "flip" else images()
    x = images() if isinstance(step, dict) and step["name"] in ("mixup", "cutmix") else x
    x = (255 * x).to(torch.uint8)
    before, rows = x.clone(), torch.arange(24)
    views = bound(x, plain={"augment": [step]})
    first = views.batch(rows, 0).inputs
    assert torch.equal(x, before)
    assert not torch.equal(first, x / 255)
    assert torch.equal(views.batch(rows, 0).inputs, first)
    assert not torch.equal(views.batch(rows, 1).inputs, first)
    assert not torch.equal(bound(x, plain={"augment": [step]}, seed=8).batch(rows, 0).inputs, first)
    if step != "flip":
        assert len({image.numpy().tobytes() for image in first}) > 6


def test_what_the_teacher_is_shown_is_what_the_student_sees() -> None:
    x = (255 * images()).to(torch.uint8)
    views, rows = bound(x), torch.arange(24)
    assert torch.equal(views(None, rows[3:9] * 3 + 1, 1), views.batch(rows[3:9], 1).inputs)
    before = bound(x, plain={"augment": ["flip", {"name": "mixup", "teacher": "mixed"}]})
    assert torch.equal(before(None, rows * 3 + 1, 1), before.before_mixing(rows, 1))
    for unknown in (0, 2, 99):
        with pytest.raises(ConfigError, match=f"id {unknown} is not among them"):
            views(None, torch.tensor([4, unknown]), 1)


# Each augmentation against its definition, sample by sample -----------------------------------------------------------


def test_crop_moves_and_fills() -> None:
    x, numbers = images(30), draws(30)
    found = Crop(padding=2, fill=-1.0).apply(x, numbers)
    up, left = numbers.integers("up", 5).tolist(), numbers.integers("left", 5).tolist()
    assert {*up} == {*left} == set(range(5))
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), constant_values=-1.0)
    for b in range(30):
        assert np.array_equal(found[b].numpy(), padded[b, :, up[b] : up[b] + 9, left[b] : left[b] + 9])


def test_flip_mirrors_its_share_of_samples() -> None:
    x = images(400, 4)
    found = Flip(probability=0.3).apply(x, draws(400))
    mirrored = (found == x.flip(3)).flatten(1).all(1)
    kept = (found == x).flatten(1).all(1)
    assert (mirrored ^ kept).all()
    assert 0.2 < mirrored.float().mean() < 0.4


def test_cutout_covers_a_square_up_to_the_edge() -> None:
    x, numbers = images(50), draws(50)
    found = Cutout(size=4, fill=9.0).apply(x, numbers)
    rows, columns = numbers.integers("row", 9).tolist(), numbers.integers("column", 9).tolist()
    for b in range(50):
        wanted = x[b].clone()
        top, left = rows[b] - 2, columns[b] - 2
        wanted[:, max(top, 0) : top + 4, max(left, 0) : left + 4] = 9.0
        assert torch.equal(found[b], wanted)


def test_colour_jitter_is_brightness_then_contrast_then_saturation() -> None:
    pixels, numbers = 0.3 + 0.4 * images(8).double(), draws(8)
    found = ColourJitter(0.2, 0.3, 0.4).apply(pixels.float(), numbers)
    drawn = 2 * numbers.uniform("brightness", "contrast", "saturation", "hue") - 1
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(3, 1, 1)
    for b in range(8):
        wanted = pixels[b] * (1 + 0.2 * drawn[0, b])
        grey = (wanted * luma).sum(0).mean()
        wanted = grey + (wanted - grey) * (1 + 0.3 * drawn[1, b])
        grey = (wanted * luma).sum(0)
        wanted = (grey + (wanted - grey) * (1 + 0.4 * drawn[2, b])).clamp(0, 1)
        assert torch.allclose(found[b].double(), wanted, atol=2e-6)


def test_hue_turns_colours_and_leaves_luma_and_grey() -> None:
    numbers = draws(40)
    numbers_up = 0.5 * (2 * numbers.uniform("brightness", "contrast", "saturation", "hue")[3] - 1)
    red = torch.tensor([0.55, 0.45, 0.45]).view(1, 3, 1, 1).expand(40, 3, 2, 2)
    found = ColourJitter(0, 0, 0, hue=0.5).apply(red, numbers)
    luma = torch.tensor([0.299, 0.587, 0.114])
    assert torch.allclose((found[:, :, 0, 0] * luma).sum(1), (red[:, :, 0, 0] * luma).sum(1), atol=1e-5)
    assert torch.allclose(ColourJitter(0, 0, 0, hue=0.5).apply(torch.full_like(red, 0.3), numbers), torch.tensor(0.3))
    turned = np.array([colorsys.rgb_to_hsv(*pixel.tolist())[0] for pixel in found[:, :, 0, 0]])
    distance = np.abs((turned + 0.5) % 1 - 0.5)
    assert stats.spearmanr(distance, numbers_up.abs().numpy()).statistic > 0.95


def test_jitter_stays_within_black_and_white_and_spares_its_share() -> None:
    x = images(200)
    found = ColourJitter(1.0, 1.0, 1.0, 0.5, probability=0.4).apply(x, draws(200))
    assert found.min() >= 0
    assert found.max() <= 1
    same = (found == x).flatten(1).all(1)
    assert 0.5 < same.float().mean() < 0.7


def test_grey_images_have_brightness_and_contrast() -> None:
    x, numbers = images(6)[:, :1], draws(6)
    found = ColourJitter(0.1, 0.0, 1.0, 0.5).apply(x * 0.8, numbers)
    factor = 1 + 0.1 * (2 * numbers.uniform("brightness")[0] - 1)
    assert torch.allclose(found, (x * 0.8 * factor.float().view(-1, 1, 1, 1)).clamp(0, 1), atol=1e-6)


def test_mixup_and_cutmix_against_their_definitions() -> None:
    x, other, numbers = images(60), images(60, seed=5), draws(60)
    weights, share = Mixup(alpha=1.0).weights(numbers, 9, 9)
    mixed = blend(x, other, weights)
    for b in range(60):
        assert torch.allclose(mixed[b], share[b] * x[b] + (1 - share[b]) * other[b], atol=1e-6)
    weights, share = CutMix().weights(numbers, 9, 9)
    cut = blend(x, other, weights)
    from_other = (cut == other).all(1)
    assert ((cut == x).all(1) ^ from_other).all()
    assert torch.allclose(1 - share, from_other.float().mean((1, 2)))
    for mask in from_other:
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        assert int(mask.sum()) == len(rows) * len(columns)
        assert len(rows) == 0 or int(rows[-1] - rows[0]) + 1 == len(rows)
    for kind in (Mixup(probability=0.0), CutMix(probability=0.0)):
        weights, share = kind.weights(numbers, 9, 9)
        assert torch.equal(blend(x, other, weights), x)
        assert torch.equal(share, torch.ones(60))


@pytest.mark.parametrize("kind", [torch.uint8, torch.float16, torch.float32, torch.float64])
def test_selecting_bit_by_bit_is_where(kind: torch.dtype) -> None:
    x, other = (255 * images()).to(kind), (255 * images(seed=3)).to(kind)
    mask = images(seed=4)[:, :1] < 0.5
    assert torch.equal(select(mask, x, other), torch.where(mask, x, other))
    one = torch.tensor(7, dtype=kind)
    assert torch.equal(select(mask, one, x), torch.where(mask, one, x))


def test_partners_are_all_samples_alike_and_change_with_the_view() -> None:
    x = torch.zeros(50, 3, 4, 4)
    views = bound(x, plain={"augment": ["mixup"]})
    partners = [views.batch(torch.arange(50), view).mix.partners for view in range(200)]  # type: ignore[union-attr]
    counts = torch.bincount(torch.cat(partners), minlength=50).numpy()
    assert stats.chisquare(counts).pvalue > 0.001
    assert not torch.equal(partners[0], partners[1])


def test_of_two_ways_to_mix_a_sample_takes_one() -> None:
    x, rows = images(200, 6), torch.arange(200)
    views = bound(x, plain={"augment": ["mixup", "cutmix"]})
    seen = views.batch(rows, 0)
    assert seen.mix is not None
    assert torch.equal(views.before_mixing(rows, 0), x)
    whole = (seen.inputs == x) | (seen.inputs == x[seen.mix.partners])
    cut = whole.all(1).flatten(1).all(1)
    assert 0.35 < cut.float().mean() < 0.65


def test_mixed_images_are_made_of_both_as_they_were_before() -> None:
    x, rows = images(40), torch.arange(40)
    views = bound(x, plain={"augment": ["crop", "flip", {"name": "mixup", "alpha": 1.0}]})
    seen = views.batch(rows, 3)
    assert seen.mix is not None
    share = seen.mix.share.view(-1, 1, 1, 1)
    own, other = views.before_mixing(rows, 3), views.before_mixing(seen.mix.partners, 3)
    assert torch.allclose(seen.inputs, share * own + (1 - share) * other, atol=1e-6)


def test_bytes_are_changed_as_bytes_and_normalised_as_everywhere() -> None:
    x = np.random.default_rng(0).integers(0, 256, (20, 3, 9, 9), dtype=np.uint8)
    normalise = ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    data = Data(x, np.arange(20) % 2, normalise=normalise, split="train", fractions=None)
    read, rows = InputReader(data), torch.arange(20)
    still = bind({"augment": [{"name": "flip", "probability": 0.0}]}, data)
    assert torch.equal(still.batch(rows, 0).inputs, read(rows))
    flipped = bind({"augment": [{"name": "flip", "probability": 1.0}]}, data)
    assert torch.equal(flipped.batch(rows, 0).inputs, read(rows).flip(3))
    filled = bind({"augment": [{"name": "cutout", "size": 99, "fill": 0.2}]}, data).batch(rows, 0).inputs
    assert torch.allclose(filled[:, :, 4, 4], (0.2 - torch.tensor(normalise[0])) / torch.tensor(normalise[1]))
    mixed = bind({"augment": [{"name": "mixup", "alpha": 1.0}]}, data).batch(rows, 0)
    assert mixed.mix is not None
    share = mixed.mix.share.view(-1, 1, 1, 1)
    assert torch.allclose(mixed.inputs, share * read(rows) + (1 - share) * read(mixed.mix.partners), atol=1e-5)


def test_parts_of_a_batch_are_no_part_of_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    views, rows = bound((255 * images()).to(torch.uint8)), torch.arange(24)
    whole = views.batch(rows, 1)
    monkeypatch.setattr(limbeck.views.views, "PART", 1000)
    parts = views.batch(rows, 1)
    assert torch.equal(parts.inputs, whole.inputs)
    assert parts.mix is not None
    assert whole.mix is not None
    assert torch.equal(parts.mix.share, whole.mix.share)


# Values and refusals --------------------------------------------------------------------------------------------------


def test_views_are_values_that_plain_data_gives_back() -> None:
    views = Views.of(EVERYTHING)
    assert views is not None
    assert Views.of(views.to_dict()) == views
    assert Views([Crop(padding=2), "flip"], views=4) == Views.of(
        {"augment": [{"name": "crop", "padding": 2}, Flip()], "views": 4}
    )
    assert [Views("flip", views=3).of_epoch(epoch) for epoch in range(5)] == [0, 1, 2, 0, 1]
    assert [Views("flip", views=1).of_epoch(epoch) for epoch in range(3)] == [0, 0, 0]
    assert [Views("flip").of_epoch(epoch) for epoch in range(3)] == [0, 1, 2]


def test_the_fingerprint_tells_what_the_teacher_sees() -> None:
    x = images()
    plain = {"augment": ["flip", {"name": "mixup", "teacher": "recomputed"}]}
    own = bound(x, plain=plain).fingerprint()
    assert own == bound(x, plain={**plain, "views": 4}).fingerprint()
    assert own != bound(x, plain=plain, seed=8).fingerprint()
    assert own != bound(x, torch.arange(24), plain=plain).fingerprint()
    assert own != bound(x, plain={"augment": ["flip", "cutmix"]}).fingerprint()
    mixed = {"augment": ["flip", {"name": "mixup", "teacher": "mixed"}]}
    assert bound(x, plain=mixed).fingerprint() == bound(x, plain={"augment": ["flip"]}).fingerprint()


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"augment": ["crpo"]}, "did you mean 'crop'"),
        ({"augment": [{"name": "crop", "pading": 3}]}, "did you mean 'padding'"),
        ({"augment": [{"name": "crop", "padding": -1}]}, "padding is -1"),
        ({"augment": [{"name": "flip", "probability": 2}]}, "0..1"),
        ({"augment": [{"name": "cutout", "size": 2.5}]}, "whole number"),
        ({"augment": [{"name": "colour_jitter", "hue": 0.7}]}, "0..0.5"),
        ({"augment": [{"name": "mixup", "alpha": 0}]}, "above 0"),
        ({"augment": [{"name": "mixup", "teacher": "mix"}]}, "did you mean 'mixed'"),
        ({"augment": ["mixup", "flip"]}, "flip comes after mixup"),
        ({"augment": [{"name": "mixup", "teacher": "mixed"}, "cutmix"]}, "different teachers"),
        ({"augment": []}, "all be alike"),
        ({"views": 4}, "all be alike"),
        ({"augment": ["flip"], "views": 0}, "views is 0"),
        ({"augment": ["flip"], "views": "onlin"}, "'online'"),
        ({"augment": ["flip"], "view": 2}, "did you mean 'views'"),
        ({"augment": [3]}, "found 3"),
        (["flip"], "expected Views"),
    ],
)
def test_what_makes_no_sense_is_one_clear_error(plain: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        Views.of(plain)


@pytest.mark.parametrize(
    ("shape", "step", "kind", "message"),
    [
        ((4, 12), "flip", torch.uint8, "is for images"),
        ((4, 3, 4, 4), {"name": "crop", "padding": 4}, torch.uint8, "out of sight"),
        ((4, 2, 4, 4), "colour_jitter", torch.uint8, "2 channels"),
        ((4, 3, 4, 4), "colour_jitter", torch.float32, "uint8"),
    ],
)
def test_samples_that_cannot_be_changed_so_are_refused(
    shape: tuple[int, ...], step: Any, kind: torch.dtype, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        bound(torch.zeros(shape, dtype=kind), plain={"augment": [step]})


def test_named_inputs_are_refused() -> None:
    views = Views("flip")
    with pytest.raises(ConfigError, match="named arrays"):
        BoundViews(views, lambda rows: {"tokens": rows}, torch.arange(4))
