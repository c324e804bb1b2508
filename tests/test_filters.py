import math

import pytest
import torch

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
