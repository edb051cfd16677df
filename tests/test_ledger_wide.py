"""Operations on tables of few classes: the same results as torch's own, whatever lies where."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from limbeck.ledgers import wide

SIZE = 300


def table(classes: int, seed: int = 0) -> Tensor:
    """Values of which many are equal, some of them the largest of their row."""
    generator = torch.Generator().manual_seed(seed)
    found = 3 * torch.randn(SIZE, classes, generator=generator)
    found[: SIZE // 2].round_()
    found[-5:] = -1.5
    return found


@pytest.mark.parametrize("classes", [2, 3, 10, wide.SHORT, wide.SHORT + 1, 200])
def test_operations_are_those_of_torch_whatever_the_layout(classes: int) -> None:
    values = table(classes)
    labels = torch.arange(SIZE) % classes
    label = labels.unsqueeze(1)
    for given_ in (values, wide.by_class(values)):
        largest, place = wide.first_choice(given_)
        assert torch.equal(largest, values.amax(1, keepdim=True))
        first = [row.index(max(row)) for row in values.tolist()]
        assert place.squeeze(1).tolist() == first
        own = values.gather(1, label)
        kept = wide.below(given_, own)
        assert torch.equal(kept, values < own)
        for others in (-torch.inf, 0.0, own, values.flip(1)):
            expected = torch.where(kept, values, torch.as_tensor(others))
            assert torch.equal(wide.choose(kept, given_, others), expected)
        torch.testing.assert_close(wide.softmax(given_), values.double().softmax(1).float())
        assert torch.equal(given_, values)  # nothing was changed on the way
    onehot = wide.onehot(labels, classes)
    assert torch.equal(onehot, torch.nn.functional.one_hot(labels, classes).float())
    assert wide.by_class(values).t().is_contiguous() == (classes <= wide.SHORT)


@given(st.lists(st.floats(-3000, 3000, width=32), min_size=2, max_size=12), st.data())
def test_the_log_of_a_sum_holds_for_any_logits_and_leaves_out_what_is_minus_infinite(
    row: list[float], data: st.DataObject
) -> None:
    values = torch.tensor([row], dtype=torch.float32)
    silent = data.draw(
        st.lists(st.booleans(), min_size=len(row), max_size=len(row)).filter(lambda found: not all(found))
    )
    values[0, torch.tensor(silent)] = -torch.inf
    torch.testing.assert_close(wide.logsumexp(values), values.double().logsumexp(1, keepdim=True).float())


def test_rows_without_a_number_do_not_disturb_the_others() -> None:
    values = wide.by_class(table(4))
    values[3] = torch.nan
    largest, place = wide.first_choice(values)
    assert largest[3].isnan()
    assert 0 <= place[3] < 4
    others = torch.arange(SIZE) != 3
    assert torch.equal(values.gather(1, place)[others], values.amax(1, keepdim=True)[others])


def test_choices_of_whole_numbers_are_exact() -> None:
    mask = torch.tensor([True, False, True])
    found = wide.choose(
        mask, torch.tensor([1, 2, 3], dtype=torch.int32), torch.tensor([-7, 2**30, 0], dtype=torch.int32)
    )
    assert found.tolist() == [1, 2**30, 3]
