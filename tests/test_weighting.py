"""Weightings against float64 derivations, closed forms, identities and the published algorithms."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from limbeck.errors import RecipeError
from limbeck.weighting import (
    WEIGHTINGS,
    Agre,
    ClassBalanced,
    Dedier,
    GroupBalanced,
    GroupDRO,
    LfF,
    Uniform,
    Upweight,
    build_weighting,
    find_weighting,
    sampling_weights,
)

torch.set_num_threads(1)


def batch_of(size: int, groups: int, seed: int = 0, unknown: bool = True) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    losses = torch.rand(size, generator=generator) * 3
    return losses, torch.randint(-1 if unknown else 0, groups, (size,), generator=generator)


@st.composite
def batches(draw: st.DrawFn) -> tuple[int, list[list[tuple[float, int]]]]:
    """A number of groups, and batches of (loss, group) in which any group, or all, may be missing or unknown."""
    groups = draw(st.integers(1, 6))
    sample = st.tuples(st.floats(0, 30, width=32), st.integers(-1, groups - 1))
    return groups, draw(st.lists(st.lists(sample, min_size=1, max_size=12), min_size=1, max_size=5))


def reference_means(batch: list[tuple[float, int]], groups: int) -> dict[int, float]:
    held = {g: [loss for loss, group in batch if group == g] for g in range(groups)}
    return {g: math.fsum(values) / len(values) for g, values in held.items() if values}


# ------------------------------------------------------------------------------------------------ uniform and balanced


def test_uniform_is_the_mean_and_takes_a_batch_statistic() -> None:
    losses, _ = batch_of(9, 2)
    assert torch.equal(Uniform()(losses), losses.mean())
    assert Uniform()(torch.tensor(2.5)).item() == 2.5


@given(batches())
@settings(max_examples=80, deadline=None)
def test_balanced_against_sums_written_out(case: tuple[int, list[list[tuple[float, int]]]]) -> None:
    groups, drawn = case
    for batch in drawn:
        means = reference_means(batch, groups)
        losses = torch.tensor([loss for loss, _ in batch])
        index = torch.tensor([group for _, group in batch])
        skip = math.fsum(means.values()) / len(means) if means else 0.0
        assert GroupBalanced(groups)(losses, index).item() == pytest.approx(skip, rel=1e-5, abs=1e-5)
        zero = math.fsum(means.values()) / groups
        assert GroupBalanced(groups, absent="zero")(losses, index).item() == pytest.approx(zero, rel=1e-5, abs=1e-5)


def test_expected_balance_is_exact_over_an_epoch_however_groups_fall_into_batches() -> None:
    losses, groups = batch_of(60, 4, unknown=False)
    counts = torch.bincount(groups, minlength=4)
    weighting = GroupBalanced(4, counts, absent="expected")
    whole = GroupBalanced(4)(losses, groups)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    parts = torch.stack([weighting(losses[rows], groups[rows]) for rows in order.split(5)])
    torch.testing.assert_close(parts.mean(), whole)
    torch.testing.assert_close(weighting(losses, groups), whole)


def test_groups_without_training_samples_do_not_count() -> None:
    losses, groups = torch.tensor([1.0, 3.0]), torch.tensor([0, 2])
    counts = torch.tensor([5, 0, 5])
    assert GroupBalanced(3, counts, absent="zero")(losses, groups).item() == pytest.approx(2.0)
    assert GroupBalanced(3, counts, absent="expected")(losses, groups).item() == pytest.approx(2.0)


def test_class_balanced_is_group_balanced_on_the_labels() -> None:
    losses, labels = batch_of(20, 3, unknown=False)
    assert torch.equal(ClassBalanced(3)(losses, labels), GroupBalanced(3)(losses, labels))


def test_sampling_weights_draw_every_group_equally_often() -> None:
    groups = torch.tensor([0] * 90 + [1] * 9 + [3] + [-1] * 10)
    weights = sampling_weights("group_balanced", groups)
    assert weights.dtype == torch.float64
    assert weights[0].item() == pytest.approx(100 / 90)
    assert weights[99].item() == pytest.approx(100.0)
    assert weights[100:].abs().max().item() == 0
    shares = torch.zeros(4, dtype=torch.float64).index_add(0, groups[:100], weights[:100]) / weights.sum()
    torch.testing.assert_close(shares, torch.tensor([1 / 3, 1 / 3, 0, 1 / 3], dtype=torch.float64))
    assert torch.equal(sampling_weights("uniform", groups), torch.ones(110, dtype=torch.float64))


def test_sampling_weights_refuse_what_they_cannot_do() -> None:
    with pytest.raises(RecipeError, match="'balanced' is not known: one of 'uniform'"):
        sampling_weights("balanced", torch.zeros(3, dtype=torch.long))
    with pytest.raises(RecipeError, match="all 2 samples have none"):
        sampling_weights("group_balanced", torch.tensor([-1, -1]))


# ----------------------------------------------------------------------------------------------------------- group DRO


def reference_dro(
    drawn: list[list[tuple[float, int]]],
    groups: int,
    step: float,
    adjustment: float,
    counts: list[int],
    absent: str,
    normalise: bool,
) -> tuple[list[float], np.ndarray]:
    """Algorithm 1 in float64, as it is printed: multiply by the exponential, then normalise."""
    q, losses = np.full(groups, 1 / groups), []
    for batch in drawn:
        means = reference_means(batch, groups)
        risk = np.zeros(groups)
        for g in range(groups):
            if g in means or absent == "zero":
                risk[g] = means.get(g, 0.0) + adjustment / math.sqrt(counts[g])
        if normalise and risk.sum() > 0:
            risk = risk / risk.sum()
        q = q * np.exp(step * risk)
        q = q / q.sum()
        losses.append(math.fsum(q[g] * mean for g, mean in means.items()))
    return losses, q


@given(
    batches(),
    st.sampled_from([0.0, 0.01, 0.5]),
    st.sampled_from([0.0, 2.0]),
    st.sampled_from(["keep", "zero"]),
    st.booleans(),
)
@settings(max_examples=120, deadline=None)
def test_group_dro_against_the_printed_algorithm(
    case: tuple[int, list[list[tuple[float, int]]]], step: float, adjustment: float, absent: str, normalise: bool
) -> None:
    groups, drawn = case
    counts = [7 * g + 3 for g in range(groups)]
    weighting = GroupDRO(groups, step, adjustment, torch.tensor(counts), absent, normalise)
    expected, q = reference_dro(drawn, groups, step, adjustment, counts, absent, normalise)
    for batch, value in zip(drawn, expected, strict=True):
        found = weighting(torch.tensor([loss for loss, _ in batch]), torch.tensor([group for _, group in batch]))
        assert found.item() == pytest.approx(value, rel=1e-4, abs=1e-5)
    np.testing.assert_allclose(weighting.q.numpy(), q, rtol=1e-4, atol=1e-6)


def test_one_group_is_the_mean_and_no_step_is_group_balanced() -> None:
    losses, groups = batch_of(40, 5)
    known = losses[groups >= 0]
    torch.testing.assert_close(GroupDRO(1, step=1.0)(known, torch.zeros(len(known), dtype=torch.long)), known.mean())
    torch.testing.assert_close(GroupDRO(5, step=0.0)(losses, groups), GroupBalanced(5, absent="zero")(losses, groups))


def test_q_is_updated_before_the_loss_and_carries_no_gradient() -> None:
    losses = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    weighting = GroupDRO(2, step=1.0)
    weighting(losses, torch.tensor([0, 0, 1])).backward()
    q = torch.tensor([1.5, 4.0]).exp()
    q = q / q.sum()
    torch.testing.assert_close(weighting.q, q)
    assert losses.grad is not None
    torch.testing.assert_close(losses.grad, torch.stack((q[0] / 2, q[0] / 2, q[1])))


def test_gradient_against_finite_differences() -> None:
    weighting = GroupDRO(3, step=0.7)
    weighting(*batch_of(12, 3))
    weighting.eval()  # q stands still, so that the loss is a function of the losses alone
    losses, groups = batch_of(12, 3, seed=3)
    assert torch.autograd.gradcheck(lambda values: weighting(values, groups), losses.double().requires_grad_())


def test_absent_groups_keep_q_or_enter_with_zero() -> None:
    counts, losses, groups = torch.tensor([100, 4]), torch.tensor([1.0]), torch.tensor([0])
    keep, zero = (GroupDRO(2, 1.0, 2.0, counts, absent=absent) for absent in ("keep", "zero"))
    keep(losses, groups)
    zero(losses, groups)
    ratio = (keep.q[1] / keep.q[0]).log().item(), (zero.q[1] / zero.q[0]).log().item()
    assert ratio[0] == pytest.approx(-1.2, rel=1e-5)  # C / sqrt(100) = .2 for the present one alone
    assert ratio[1] == pytest.approx(-0.2, rel=1e-5)  # and C / sqrt(4) = 1 for the absent one


@pytest.mark.parametrize("normalise", [False, True])
def test_enormous_losses_leave_everything_finite(normalise: bool) -> None:
    weighting = GroupDRO(3, step=10.0, normalise_losses=normalise)
    for seed in range(5):
        losses, groups = batch_of(30, 3, seed)
        loss = weighting(losses * 1e4, groups)
        assert torch.isfinite(loss)
    assert torch.isfinite(weighting.q).all()
    assert weighting.q.sum().item() == pytest.approx(1.0)
    recovered = weighting.q.max().item()
    for _ in range(20):
        weighting(torch.tensor([1e4, 0.0, 0.0]), torch.tensor([0, 1, 2]))
    assert weighting.q[0].item() > 0.99 or recovered > 0.99


def test_zero_losses_do_not_move_normalised_weights() -> None:
    weighting = GroupDRO(2, step=1.0, normalise_losses=True)
    assert weighting(torch.zeros(4), torch.tensor([0, 1, 0, 1])).item() == 0
    torch.testing.assert_close(weighting.q, torch.tensor([0.5, 0.5]))


def test_a_long_run_does_not_drift_from_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    weighting, log_q = GroupDRO(50, step=0.01), np.zeros(50)
    for _ in range(2000):
        losses = 1000 + torch.rand(50, generator=generator)  # what all groups share must not swallow the difference
        weighting(losses, torch.arange(50))
        log_q += 0.01 * losses.double().numpy()
    q = np.exp(log_q - log_q.max())
    np.testing.assert_allclose(weighting.q.numpy(), q / q.sum(), rtol=1e-3)


def test_ten_thousand_groups() -> None:
    weighting = GroupDRO(10_000, step=1.0)
    losses, groups = batch_of(256, 10_000)
    assert torch.isfinite(weighting(losses, groups))
    assert weighting.q.shape == (10_000,)
    assert weighting.q.sum().item() == pytest.approx(1.0, abs=1e-4)


def test_unknown_groups_are_left_out_and_all_unknown_is_zero() -> None:
    losses = torch.tensor([5.0, 1.0, 9.0], requires_grad=True)
    for weighting in (GroupDRO(2), GroupBalanced(2), GroupBalanced(2, torch.tensor([3, 3]), "expected")):
        found = weighting(losses, torch.tensor([-1, 1, -1]))
        (gradient,) = torch.autograd.grad(found, losses)
        assert gradient[0].item() == gradient[2].item() == 0
        assert gradient[1].item() > 0
        nothing = weighting(losses, torch.tensor([-1, -1, -7]))
        assert nothing.item() == 0
        assert torch.autograd.grad(nothing, losses)[0].abs().max().item() == 0


@pytest.mark.parametrize("index", [2, 3, 100])
def test_a_group_out_of_range_is_an_error_and_nobody_elses_loss(index: int) -> None:
    with pytest.raises((IndexError, RuntimeError)):
        GroupDRO(2)(torch.ones(2), torch.tensor([0, index]))
    with pytest.raises((IndexError, RuntimeError)):
        GroupBalanced(2)(torch.ones(2), torch.tensor([0, index]))


def test_a_group_without_training_samples_has_no_weight() -> None:
    weighting = GroupDRO(3, 1.0, 1.0, torch.tensor([4, 0, 4]), absent="zero")
    weighting(torch.tensor([1.0, 1.0]), torch.tensor([0, 2]))
    torch.testing.assert_close(weighting.q, torch.tensor([0.5, 0.0, 0.5]))


def test_evaluation_mode_leaves_q_alone() -> None:
    weighting = GroupDRO(3, step=1.0).eval()
    weighting(*batch_of(20, 3))
    torch.testing.assert_close(weighting.q, torch.full((3,), 1 / 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_losses_are_summed_in_single(dtype: torch.dtype) -> None:
    losses, groups = torch.full((4000,), 30.0, dtype=dtype), torch.zeros(4000, dtype=torch.long)
    for weighting in (GroupDRO(1), GroupBalanced(1)):
        found = weighting(losses, groups)
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(30.0, rel=1e-4)  # the sum, 120,000, does not fit half precision


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GroupDRO(3, absent="drop"), "absent='drop' is not known"),
        (lambda: GroupDRO(3, adjustment=1.0), "give group_counts"),
        (lambda: GroupDRO(3, group_counts=torch.ones(2)), r"shape \[2\].*\[3\]"),
        (lambda: GroupDRO(2, group_counts=torch.tensor([-1, 3])), "counts of training samples"),
        (lambda: GroupDRO(2, group_counts=torch.zeros(2)), "at least one above zero"),
        (lambda: GroupDRO(0), "at least one group"),
        (lambda: GroupDRO(2, step=-1.0), "step=-1.0"),
        (lambda: GroupBalanced(2, absent="expected"), "give group_counts"),
        (lambda: GroupBalanced(2)(torch.tensor(1.0), torch.tensor([0])), "only be reduced by 'uniform'"),
        (lambda: GroupDRO(2)(torch.ones(3), torch.zeros(2, dtype=torch.long)), r"\[3\] losses and \[2\]"),
        (lambda: Upweight(torch.zeros(3)), "one bool per training sample"),
        (lambda: Upweight(torch.zeros(3, dtype=torch.bool), -1.0), "upweight=-1.0"),
        (lambda: Upweight(torch.zeros(3, dtype=torch.bool), reduction="sum"), "reduction='sum' is not known"),
    ],
)
def test_impossible_settings_say_why(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build()


# ---------------------------------------------------------------------------------------------------------- error sets


def test_duplicates_are_the_mean_over_the_set_with_its_errors_repeated() -> None:
    losses, _ = batch_of(30, 1)
    errors = torch.arange(30) % 7 == 0
    repeated = torch.cat((losses, *[losses[errors]] * 50))
    weighting = Upweight(errors, upweight=50, reduction="duplicates")
    torch.testing.assert_close(weighting(losses, torch.arange(30)), repeated.mean())
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    parts = torch.stack([weighting(losses[rows], rows) for rows in order.split(5)])
    torch.testing.assert_close(parts.mean(), repeated.mean())


def test_the_mean_reduction_multiplies_and_does_not_renormalise() -> None:
    losses, errors = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([False, True, False])
    weighting = Upweight(errors, upweight=20)
    assert weighting(losses, torch.tensor([0, 1, 2])).item() == pytest.approx((1 + 40 + 3) / 3)
    assert weighting(losses[:2], torch.tensor([1, 1])).item() == pytest.approx(20 * 1.5)


@pytest.mark.parametrize(("reduction", "neutral"), [("mean", 1.0), ("duplicates", 0.0)])
def test_neutral_upweights_and_empty_error_sets_are_the_mean(reduction: str, neutral: float) -> None:
    losses, _ = batch_of(16, 1)
    rows = torch.arange(16)
    none = torch.zeros(16, dtype=torch.bool)
    # DeTT at lambda = 1 is SimKD: the same weighting as none at all
    torch.testing.assert_close(Upweight(rows % 2 == 0, neutral, reduction)(losses, rows), Uniform()(losses))
    torch.testing.assert_close(Upweight(none, 20.0, reduction)(losses, rows), Uniform()(losses))


def test_rows_outside_the_training_set_are_an_error() -> None:
    weighting = Upweight(torch.zeros(4, dtype=torch.bool))
    for row in (4, -1):
        with pytest.raises((IndexError, RuntimeError)):
            weighting(torch.ones(1), torch.tensor([row]))


# ----------------------------------------------------------------------------------------------------------------- LfF


def small_network(seed: int, batch_norm: bool = True) -> nn.Sequential:
    torch.manual_seed(seed)
    first = nn.Linear(4, 6, bias=not batch_norm)  # batch norm would leave its bias nothing but rounding as a gradient
    return nn.Sequential(first, nn.BatchNorm1d(6) if batch_norm else nn.ReLU(), nn.ReLU(), nn.Linear(6, 3))


class ReferenceLfF:
    """The released training loop, with torch's own optimisers and arrays of averages."""

    def __init__(self, network: nn.Module, labels: Tensor, optimiser: torch.optim.Optimizer) -> None:
        self.network, self.labels, self.optimiser = network, labels, optimiser
        self.averages = {"b": torch.zeros(len(labels)), "d": torch.zeros(len(labels))}
        self.updated = torch.zeros(len(labels))

    def step(self, losses: Tensor, x: Tensor, labels: Tensor, rows: Tensor, student_logits: Tensor) -> Tensor:
        logits = self.network(x)
        scaled = {}
        for name, values in (("b", logits.detach()), ("d", student_logits.detach())):
            loss, average = F.cross_entropy(values, labels, reduction="none"), self.averages[name]
            average[rows] = 0.7 * average[rows] + (1 - 0.7 * self.updated[rows]) * loss
            scaled[name] = average[rows].clone()
            for c in range(3):
                scaled[name][labels == c] /= average[self.labels == c].max()
        self.updated[rows] = 1
        probability = logits.softmax(dim=1).gather(1, labels[:, None]).squeeze(1)
        self.optimiser.zero_grad()
        ((1 - probability**0.7) / 0.7).mean().backward()
        self.optimiser.step()
        return (scaled["b"] / (scaled["b"] + scaled["d"] + 1e-8) * losses).mean()


@pytest.mark.parametrize(
    ("options", "make"),
    [
        ({"learning_rate": 1e-2}, lambda p: torch.optim.Adam(p, lr=1e-2)),
        ({"learning_rate": 1e-2, "weight_decay": 0.1}, lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=0.1)),
        (
            {"optimiser": "sgd", "learning_rate": 0.1, "weight_decay": 0.01},
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
        ),
    ],
)
def test_lff_against_the_released_loop(options: dict[str, Any], make: Callable[..., torch.optim.Optimizer]) -> None:
    labels = torch.arange(24) % 3
    x = torch.randn(24, 4, generator=torch.Generator().manual_seed(1))
    network = small_network(5)
    weighting = LfF(copy.deepcopy(network), 24, 3, labels, **options)
    reference = ReferenceLfF(network, labels, make(network.parameters()))
    generator = torch.Generator().manual_seed(2)
    for _ in range(9):
        rows = torch.randperm(24, generator=generator)[:8]
        logits, losses = torch.randn(8, 3, generator=generator) * 2, torch.rand(8, generator=generator)
        expected = reference.step(losses, x[rows], labels[rows], rows, logits)
        found = weighting(losses, x[rows], labels[rows], rows, logits)
        torch.testing.assert_close(found, expected, rtol=2e-4, atol=1e-6)
    for (name, value), other in zip(weighting.biased.state_dict().items(), network.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, rtol=2e-4, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}")
    torch.testing.assert_close(weighting.student_losses, reference.averages["d"])


def lff_steps(weighting: LfF, labels: Tensor, first: int, last: int) -> list[Tensor]:
    found = []
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        rows = torch.randperm(len(labels), generator=generator)[:6]
        x, logits = torch.randn(6, 4, generator=generator), torch.randn(6, 3, generator=generator)
        found.append(weighting(torch.rand(6, generator=generator), x, labels[rows], rows, logits))
    return found


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_lff_resumes_bit_for_bit_from_its_state_dict(optimiser: str) -> None:
    labels = torch.arange(15) % 3
    straight = LfF(small_network(0), 15, 3, labels, optimiser=optimiser)
    expected = lff_steps(straight, labels, 0, 8)
    first = LfF(small_network(0), 15, 3, labels, optimiser=optimiser)
    lff_steps(first, labels, 0, 4)
    stored = load(save({name: value.contiguous() for name, value in first.state_dict().items()}))
    resumed = LfF(small_network(9), 15, 3, labels, optimiser=optimiser)
    resumed.load_state_dict(stored)
    for found, value in zip(lff_steps(resumed, labels, 4, 8), expected[4:], strict=True):
        assert torch.equal(found, value)
    for name, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_no_other_optimiser_moves_the_biased_network_and_it_moves_nobody_else() -> None:
    labels = torch.arange(12) % 3
    student = small_network(3)
    weighting = LfF(copy.deepcopy(student), 12, 3, labels)
    before = copy.deepcopy(weighting.biased.state_dict())
    optimiser = torch.optim.SGD([*student.parameters(), *weighting.parameters()], lr=0.5, weight_decay=0.1)
    x, rows = torch.randn(12, 4), torch.arange(12)
    logits = student(x)
    loss = weighting(F.cross_entropy(logits, labels, reduction="none"), x, labels, rows, logits)
    after_step = copy.deepcopy(weighting.biased.state_dict())
    loss.backward()
    optimiser.step()
    assert not torch.equal(before["0.weight"], after_step["0.weight"])
    for name, value in weighting.biased.state_dict().items():
        assert torch.equal(value, after_step[name]), name
    assert all(parameter.grad is None for parameter in weighting.parameters())
    weights = torch.autograd.grad(
        weighting(torch.ones(12, requires_grad=True), x, labels, rows, student(x)),
        list(student.parameters()),
        allow_unused=True,
    )
    assert all(gradient is None for gradient in weights)  # W itself sends no gradient into the student


def test_lff_keeps_frozen_parameters_frozen_and_evaluates_without_moving() -> None:
    labels = torch.arange(6) % 3
    network = small_network(0)
    network[3].requires_grad_(False)
    weighting = LfF(network, 6, 3, labels)
    head = weighting.biased.state_dict()["3.weight"].clone()
    lff_steps(weighting, labels, 0, 2)
    assert torch.equal(weighting.biased.state_dict()["3.weight"], head)
    state = copy.deepcopy(weighting.state_dict())
    lff_steps(weighting.eval(), labels, 2, 4)
    for name, value in weighting.state_dict().items():
        assert torch.equal(value, state[name]), name


class Wrapped(nn.Module):
    """A student that takes its inputs by keyword and returns its logits in some package."""

    def __init__(self, inner: nn.Module, kind: str) -> None:
        super().__init__()
        self.inner, self.kind = inner, kind

    def forward(self, *, left: Tensor, right: Tensor) -> Any:
        logits = self.inner(left + right)
        packages = {
            "tuple": (logits, left),
            "dict": {"logits": logits},
            "object": SimpleNamespace(logits=logits),
            "nothing": {"hidden": logits},
        }
        return packages[self.kind]


@pytest.mark.parametrize("kind", ["tuple", "dict", "object"])
def test_lff_takes_any_student(kind: str) -> None:
    labels, x = torch.arange(6) % 3, torch.randn(6, 4)
    plain = LfF(small_network(0), 6, 3, labels)
    packed = LfF(Wrapped(small_network(0), kind), 6, 3, labels)
    given = (labels, torch.arange(6), torch.randn(6, 3))
    for _ in range(2):
        found = packed(torch.ones(6), {"left": x - 1, "right": torch.ones(6, 4)}, *given)
        torch.testing.assert_close(found, plain(torch.ones(6), x, *given))
    with pytest.raises(RecipeError, match="returned dict, without logits"):
        LfF(Wrapped(small_network(0), "nothing"), 6, 3, labels)(torch.ones(6), {"left": x, "right": x}, *given)


def test_lff_leaves_the_given_network_alone() -> None:
    network, labels = small_network(0), torch.arange(15) % 3
    before = copy.deepcopy(network.state_dict())
    lff_steps(LfF(network, 15, 3, labels), labels, 0, 3)
    assert all(parameter.requires_grad for parameter in network.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("size", [0.0, 1e4])
def test_lff_stays_finite_at_extreme_logits(size: float) -> None:
    labels = torch.arange(6) % 3
    network = small_network(0, batch_norm=False)
    with torch.no_grad():
        network[3].weight.mul_(size)
        network[3].bias.mul_(size)
    weighting = LfF(network, 6, 3, labels)
    logits = size * F.one_hot(labels, 3).float()
    for _ in range(3):
        found = weighting(torch.ones(6), torch.randn(6, 4), labels, torch.arange(6), logits)
        assert 0 <= found.item() <= 1
    assert all(torch.isfinite(value.float()).all() for value in weighting.state_dict().values())


def test_lff_prefers_the_samples_that_the_biased_network_finds_hard() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2
    shortcut = torch.where(torch.arange(200) < 180, labels, 1 - labels)  # the last twenty contradict the shortcut
    x = torch.stack((shortcut * 4.0 - 2, torch.randn(200, generator=generator)), dim=1)
    torch.manual_seed(0)
    weighting = LfF(nn.Linear(2, 2), 200, 2, labels, learning_rate=0.1)
    rows = torch.arange(200)
    for _ in range(60):
        losses = torch.ones(200, requires_grad=True)
        (weights,) = torch.autograd.grad(weighting(losses, x, labels, rows, torch.zeros(200, 2)), losses)
    assert weights[180:].mean().item() > 5 * weights[:180].mean().item()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels_all": torch.zeros(4, dtype=torch.long)}, r"shape \[4\]"),
        ({"q": 0.0}, "q=0.0"),
        ({"optimiser": "adagrad"}, "optimiser='adagrad' is not known"),
        ({"student_copy": nn.Identity()}, "no trainable parameter"),
    ],
)
def test_lff_says_what_does_not_fit(options: dict[str, Any], message: str) -> None:
    settings = {"student_copy": small_network(0), "samples": 5, "classes": 3, "labels_all": torch.zeros(5).long()}
    with pytest.raises(RecipeError, match=message):
        LfF(**(settings | options))


# -------------------------------------------------------------------------------------------------------------- DEDIER


def test_dedier_weighs_confident_mistakes_by_their_margin() -> None:
    weighting = Dedier(2, 3, beta=2.0, alpha=1.5)
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.4, 0.35, 0.25]])
    found = weighting.weights(probabilities.log(), torch.tensor([0, 1, 2]))
    expected = torch.tensor([1.0, math.exp(2 * 0.5**1.5), math.exp(2 * 0.05**1.5)])
    torch.testing.assert_close(found, expected)


def test_dedier_starts_as_the_mean_and_returns_the_weighted_loss_alone() -> None:
    losses, features, labels = torch.rand(7), torch.randn(7, 4), torch.arange(7) % 3
    weighting = Dedier(4, 3)
    torch.testing.assert_close(weighting(losses, features, labels), losses.mean())
    nn.init.normal_(weighting.readout.weight)
    weights = weighting.weights(weighting.readout(features), labels)
    torch.testing.assert_close(weighting(losses, features, labels), (weights * losses).mean())


def test_dedier_trains_its_readout_with_the_student_and_leaves_the_student_to_the_losses() -> None:
    torch.manual_seed(0)
    features, labels = torch.randn(60, 4, requires_grad=True), torch.arange(60) % 3
    with torch.no_grad():
        features[:, 0] += labels
    losses = torch.rand(60, requires_grad=True)
    weighting = Dedier(4, 3)
    optimiser = torch.optim.Adam(weighting.parameters(), lr=0.1)
    before = F.cross_entropy(weighting.readout(features), labels).item()
    for _ in range(40):
        optimiser.zero_grad()
        loss = weighting(losses, features, labels)
        loss.backward()
        optimiser.step()
    assert F.cross_entropy(weighting.readout(features), labels).item() < 0.8 * before
    assert features.grad is None
    expected = torch.autograd.grad(F.cross_entropy(weighting.readout(features), labels), weighting.readout.weight)
    found = torch.autograd.grad(weighting(losses, features, labels), weighting.readout.weight)
    torch.testing.assert_close(found, expected)


# ------------------------------------------------------------------------------------------------------------- AGRE-KD


def divergence(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    log_p = (student / temperature).log_softmax(dim=-1)
    return temperature**2 * F.kl_div(log_p, (teacher / temperature).softmax(dim=-1), reduction="none").sum(dim=-1)


def test_agre_weights_are_one_minus_the_cosine_of_autograd_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(6, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    teachers = 3 * torch.randn(4, 6, 5, generator=generator, dtype=torch.float64)
    biased = 3 * torch.randn(6, 5, generator=generator, dtype=torch.float64)
    (pull,) = torch.autograd.grad(divergence(student, biased).sum(), student)
    expected = torch.empty(4, 6, dtype=torch.float64)
    for t, teacher in enumerate(teachers):
        (gradient,) = torch.autograd.grad(divergence(student, teacher).sum(), student)
        expected[t] = 1 - (gradient * pull).sum(dim=1) / gradient.norm(dim=1) / pull.norm(dim=1)
    found = Agre(normalise=False).weights(student.detach(), teachers, biased)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    found = Agre().weights(student.detach(), teachers, biased)
    torch.testing.assert_close(found.double(), expected / expected.sum(dim=0), rtol=1e-4, atol=1e-5)


def test_agre_is_the_published_loss_and_a_shared_cross_entropy_keeps_its_weight() -> None:
    generator = torch.Generator().manual_seed(1)
    student, teachers = torch.randn(8, 4, generator=generator), torch.randn(3, 8, 4, generator=generator)
    biased, labels = torch.randn(8, 4, generator=generator), torch.arange(8) % 4
    kl = torch.stack([divergence(student, teacher) for teacher in teachers])
    supervised = F.cross_entropy(student, labels, reduction="none")
    raw = Agre(normalise=False).weights(student, teachers, biased)
    published = ((raw * kl).sum(dim=0) / raw.sum(dim=0)).mean()
    torch.testing.assert_close(Agre()(kl, student, teachers, biased), published)
    mixed = Agre()(0.9 * kl + 0.1 * supervised, student, teachers, biased)
    torch.testing.assert_close(mixed, 0.9 * published + 0.1 * supervised.mean())


def test_agre_never_learns_from_the_biased_teacher() -> None:
    generator = torch.Generator().manual_seed(2)
    student, teachers = torch.randn(5, 3, generator=generator), torch.randn(3, 5, 3, generator=generator)
    inside = Agre(biased=1).weights(student, teachers)
    assert inside[1].abs().max().item() == 0
    outside = Agre().weights(student, teachers[[0, 2]], teachers[1])
    torch.testing.assert_close(inside[[0, 2]], outside, rtol=1e-4, atol=1e-5)
    agreed = teachers[1].expand(3, -1, -1)  # every teacher is the biased one: still only the other two are heard
    torch.testing.assert_close(Agre(biased=1).weights(student, agreed), torch.tensor([[0.5], [0], [0.5]]).expand(3, 5))


def test_agre_at_two_classes_hears_who_contradicts_the_biased_pull() -> None:
    student, biased = torch.zeros(2, 2), torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    teachers = torch.tensor([[[5.0, 0.0], [5.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])
    expected = torch.tensor([[0.5, 0.0], [0.5, 1.0]])  # all aligned: alike; otherwise the one that differs
    torch.testing.assert_close(Agre().weights(student, teachers, biased), expected)


def test_agre_sends_no_gradient_through_its_weights() -> None:
    student = torch.randn(4, 3, requires_grad=True)
    losses = torch.ones(2, 4, requires_grad=True)
    loss = Agre()(losses, student, torch.randn(2, 4, 3), torch.randn(4, 3))
    assert torch.autograd.grad(loss, student, allow_unused=True)[0] is None
    (gradient,) = torch.autograd.grad(Agre()(losses, student, torch.randn(2, 4, 3), torch.randn(4, 3)), losses)
    torch.testing.assert_close(gradient.sum(dim=0), torch.full((4,), 0.25))


def test_agre_stays_finite_where_student_teacher_and_biased_model_agree() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]])
    weights = Agre().weights(logits, logits.expand(2, 1, 3), logits)
    torch.testing.assert_close(weights, torch.full((2, 1), 0.5))


def test_agre_says_what_is_missing() -> None:
    student, teachers = torch.zeros(4, 3), torch.zeros(2, 4, 3)
    with pytest.raises(RecipeError, match="needs a biased model"):
        Agre()(torch.zeros(2, 4), student, teachers)
    with pytest.raises(RecipeError, match="biased=2 is not the place"):
        Agre(biased=2)(torch.zeros(2, 4), student, teachers)
    with pytest.raises(RecipeError, match=r"one loss per teacher and sample, \[2, 4\]"):
        Agre(biased=0)(torch.zeros(4), student, teachers)


# ---------------------------------------------------------------------------------------------- all of them, catalogue


def context() -> dict[str, Any]:
    return {
        "classes": 3,
        "samples": 12,
        "groups": 4,
        "group_counts": torch.tensor([5, 4, 2, 1]),
        "class_counts": torch.tensor([4, 4, 4]),
        "labels_all": torch.arange(12) % 3,
        "error_set": torch.arange(12) % 4 == 0,
        "early_width": 4,
        "student_copy": small_network(0),
        "epochs": 2,
    }


def fields(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(12, generator=generator)[:6]
    return {
        "groups": torch.randint(-1, 4, (6,), generator=generator),
        "rows": rows,
        "labels": rows % 3,
        "x": torch.randn(6, 4, generator=generator),
        "student_logits": torch.randn(6, 3, generator=generator),
        "teachers_logits": torch.randn(2, 6, 3, generator=generator),
        "biased_logits": torch.randn(6, 3, generator=generator),
        "early_features": torch.randn(6, 4, generator=generator),
    }


def losses_for(name: str, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 100)
    return torch.rand((2, 6) if WEIGHTINGS[name].per_teacher else (6,), generator=generator)


def call(weighting: Any, name: str, losses: Tensor, given: dict[str, Tensor]) -> Tensor:
    info = WEIGHTINGS[name]
    found = weighting(losses, **{field: given[field] for field in (*info.fields, *info.optional_fields)})
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_catalogue_matches_the_signatures(name: str) -> None:
    info = WEIGHTINGS[name]
    required, optional = [], []
    for key, parameter in list(inspect.signature(info.factory.forward).parameters.items())[2:]:
        (required if parameter.default is inspect.Parameter.empty else optional).append(key)
    assert tuple(required) == info.fields
    assert tuple(optional) == info.optional_fields
    built = inspect.signature(info.factory.__init__).parameters
    needed = [key for key, parameter in built.items() if key != "self" and parameter.default is parameter.empty]
    assert [key for key in needed if key not in ("args", "kwargs")] == list(info.context)
    assert set(info.optional_context) <= set(built)
    assert info.name == name
    assert info.needs_groups == ("groups" in info.fields)
    assert info.source
    assert info.summary


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_every_weighting_gives_a_finite_scalar_with_a_gradient(name: str) -> None:
    weighting = build_weighting(name, context())
    losses = losses_for(name).requires_grad_()
    loss = call(weighting, name, losses, fields())
    assert loss.shape == ()
    (gradient,) = torch.autograd.grad(loss, losses)
    assert torch.isfinite(gradient).all()
    assert (gradient >= 0).all()
    assert gradient.sum().item() > 0


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_a_step_never_reads_a_value_on_the_host(name: str) -> None:
    """Fake tensors have no values: reading one, or a shape that depends on one, is an error."""
    weighting = build_weighting(name, context())
    call(weighting, name, losses_for(name), fields())  # the first step may differ from later ones
    mode = FakeTensorMode()
    for part in weighting.modules():
        for store in (part._parameters, part._buffers):
            for key, value in store.items():
                if isinstance(value, nn.Parameter):
                    store[key] = nn.Parameter(mode.from_tensor(value.detach()), value.requires_grad)
                elif value is not None:
                    store[key] = mode.from_tensor(value)
    with mode:
        losses = mode.from_tensor(losses_for(name)).requires_grad_()
        loss = call(weighting, name, losses, {key: mode.from_tensor(value) for key, value in fields(1).items()})
        loss.backward()
    assert loss.shape == ()


def test_the_host_check_can_fail() -> None:
    mode = FakeTensorMode()
    with mode, pytest.raises(DataDependentOutputException):
        bool(mode.from_tensor(torch.ones(2)).sum() > 0)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_every_state_resumes_bit_for_bit(name: str) -> None:
    options = {"step": 0.5} if name == "group_dro" else {}
    straight = build_weighting(name, context(), options)
    resumed = build_weighting(name, context(), options)
    for step in range(3):
        call(straight, name, losses_for(name, step), fields(step))
    stored = save({key: value.contiguous() for key, value in straight.state_dict().items()})
    resumed.load_state_dict(load(stored))
    for step in range(3, 6):
        found = call(resumed, name, losses_for(name, step), fields(step))
        assert torch.equal(found, call(straight, name, losses_for(name, step), fields(step)))


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_inputs_are_never_changed(name: str) -> None:
    weighting, given, losses = build_weighting(name, context()), fields(), losses_for(name)
    before, before_losses = {key: value.clone() for key, value in given.items()}, losses.clone()
    call(weighting, name, losses, given)
    assert torch.equal(losses, before_losses)
    for key, value in given.items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", [name for name, info in WEIGHTINGS.items() if info.per_sample])
def test_a_batch_statistic_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="one loss per"):
        call(build_weighting(name, context()), name, torch.tensor(1.0), fields())


def test_building_by_name() -> None:
    assert isinstance(build_weighting("upweight", context(), {"upweight": 5.0}), Upweight)
    assert build_weighting("group_dro", {"groups": 3}).q.shape == (3,)
    with pytest.raises(RecipeError, match="did you mean 'group_dro'"):
        find_weighting("grup_dro")
    with pytest.raises(RecipeError, match="needs error_set from the fit"):
        build_weighting("upweight", {"groups": 3})
    with pytest.raises(RecipeError, match="'group_dro' cannot be built with"):
        build_weighting("group_dro", context(), {"stepp": 1.0})
