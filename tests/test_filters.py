import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from genenv.filters import keep_top_k, keep_top_p

SIZE = 12


def kept(logits):
    """Returns the indices that a filter left, a set for each row."""
    return [set(row.isfinite().nonzero()[:, 0].tolist()) for row in logits.flatten(0, -2)]


def best_first(row):
    return sorted(range(len(row)), key=lambda i: -row[i].item())


def smallest_nucleus(row, p):
    """Returns the most likely entries, taken until their probability exceeds p."""
    probability, taken, mass = row.double().softmax(-1), set(), 0.0
    for i in best_first(row):
        if taken and mass > p:
            break
        taken.add(i)
        mass += probability[i].item()
    return taken


@pytest.fixture
def logits():
    return 2 * torch.randn(50, SIZE, generator=torch.Generator().manual_seed(0))


def test_top_k_keeps_the_k_largest_of_each_image(logits):
    k = torch.arange(50) % SIZE + 1
    expected = [set(best_first(row)[:n]) for row, n in zip(logits, k.tolist(), strict=True)]
    assert kept(keep_top_k(logits, k)) == expected


def test_top_p_keeps_the_smallest_set_that_reaches_p(logits):
    p = torch.linspace(0.01, 0.99, 50)
    expected = [smallest_nucleus(row, x) for row, x in zip(logits, p.tolist(), strict=True)]
    assert kept(keep_top_p(logits, p)) == expected
    assert len({len(s) for s in expected}) > 4  # the case is not trivial


@pytest.mark.parametrize("keep", [keep_top_k, keep_top_p])
def test_what_a_filter_keeps_is_unchanged(keep, logits):
    filtered = keep(logits, torch.full((50,), 0.7) if keep is keep_top_p else torch.full((50,), 5))
    left = filtered.isfinite()
    assert torch.equal(filtered[left], logits[left])
    assert (filtered[~left] == -math.inf).all()


@pytest.mark.parametrize("k", [-1, 0, 0.9, SIZE, SIZE + 1, 10**6])
def test_top_k_is_off_at_none_and_at_all(k, logits):
    assert torch.equal(keep_top_k(logits, torch.full((50,), k)), logits)


def test_top_k_cuts_fractions_off(logits):
    assert torch.equal(keep_top_k(logits, torch.full((50,), 3.99)), keep_top_k(logits, torch.full((50,), 3)))


def test_entries_that_tie_with_the_last_one_kept_stay():
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0]])
    assert kept(keep_top_k(logits, torch.tensor([2]))) == [{1, 2, 3}]


def test_the_extremes_of_top_p_keep_one_entry_and_all(logits):
    assert kept(keep_top_p(logits, torch.zeros(50))) == [{best_first(row)[0]} for row in logits]
    assert torch.equal(keep_top_p(logits, torch.ones(50)), logits)


def test_the_entry_that_crosses_p_stays():
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    for p, expected in ((0.49, {0}), (0.51, {0, 1}), (0.79, {0, 1}), (0.81, {0, 1, 2})):
        assert kept(keep_top_p(logits, torch.tensor([p]))) == [expected]


def test_top_p_leaves_out_what_top_k_removed(logits):
    filtered = keep_top_p(keep_top_k(logits, torch.full((50,), 3)), torch.full((50,), 0.999))
    assert all(found <= set(best_first(row)[:3]) for found, row in zip(kept(filtered), logits, strict=True))


@pytest.mark.parametrize("keep", [keep_top_k, keep_top_p])
def test_every_place_of_an_image_takes_the_setting_of_the_image(keep, logits):
    grid = logits.view(5, 10, SIZE)
    setting = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]) * (SIZE if keep is keep_top_k else 1)
    assert torch.equal(keep(grid, setting).view(50, SIZE), keep(logits, setting.repeat_interleave(10)))


values = st.floats(-30, 30, width=16) | st.integers(-3, 3).map(float)  # coarse, so that ties are common
rows = st.integers(1, 9).flatmap(
    lambda size: st.lists(values | st.just(-math.inf), min_size=size, max_size=size).filter(
        lambda row: max(row) > -math.inf
    )
)


@given(rows, st.floats(-2, 12) | st.sampled_from([0.0, 1.0, 1e30]))
def test_top_k_is_sorting_with_ties_and_entries_that_are_gone(row, k):
    count = int(k) if 1 <= k < len(row) else len(row)
    cutoff = sorted(row, reverse=True)[count - 1]
    expected = [x if x >= cutoff else -math.inf for x in row]
    assert keep_top_k(torch.tensor([row]), torch.tensor([k]))[0].tolist() == expected


@given(rows, st.floats(0, 1) | st.sampled_from([0.0, 0.5, 1.0]))
def test_top_p_is_the_shortest_run_of_sorted_entries_that_exceeds_p(row, p):
    left = keep_top_p(torch.tensor([row]), torch.tensor([p]))[0].tolist()
    assert all(x in (-math.inf, original) for x, original in zip(left, row, strict=True))
    chosen = [x for x in left if x > -math.inf]
    dropped = list(row)
    for x in chosen:
        dropped.remove(x)
    assert min(chosen) >= max(dropped, default=-math.inf)  # which of several equal ones stays is free
    total = math.fsum(math.exp(x - max(row)) for x in row)
    mass = [math.exp(x - max(row)) / total for x in sorted(chosen, reverse=True)]
    assert len(mass) == 1 or math.fsum(mass[:-1]) <= p + 1e-6  # the last one was needed
    assert math.fsum(mass) >= p - 1e-6 or max(dropped) == -math.inf


@example(torch.tensor([[0.0, 0.0, 17.0]]))  # whose probabilities, rounded, exceed 1
@given(rows.map(lambda row: torch.tensor([row])))
def test_top_p_of_1_keeps_every_entry_and_of_0_the_likeliest(logits):
    assert torch.equal(keep_top_p(logits, torch.ones(1)), logits)
    assert keep_top_p(logits, torch.zeros(1)).isfinite().sum() == 1


@given(
    st.lists(st.integers(1, 3), max_size=2),
    st.integers(1, 3),
    st.integers(1, 6),
    st.integers(0, 2**31),
)
@pytest.mark.parametrize("keep", [keep_top_k, keep_top_p])
def test_a_batch_is_filtered_as_its_rows_are_one_by_one(keep, inner, batch, size, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, *inner, size, generator=generator).half().float()
    setting = torch.rand(batch, generator=generator) * (size + 1 if keep is keep_top_k else 1)
    together = keep(logits, setting)
    assert together.shape == logits.shape
    for grid, value, found in zip(logits, setting, together, strict=True):
        for row, left in zip(grid.view(-1, size), found.view(-1, size), strict=True):
            assert torch.equal(keep(row[None], value[None])[0], left)
