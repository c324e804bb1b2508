import math

import pytest
import torch

from genenv.rng import BatchRng, categorical, philox4x32


def rng(*seeds, **kwargs):
    return BatchRng(torch.tensor(seeds), **kwargs)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, expected):
    def words(text):
        return torch.tensor([int(word, 16) for word in text.split()])

    assert philox4x32(words(counter), words(key)).tolist() == words(expected).tolist()


def test_philox_of_many_counters_is_that_of_each():
    counters = torch.arange(24).view(6, 4)
    together = philox4x32(counters, torch.tensor([7, 9]))
    for counter, block in zip(counters, together, strict=True):
        assert torch.equal(philox4x32(counter, torch.tensor([7, 9])), block)


def test_uniform_numbers_are_uniform_inside_the_open_interval():
    x = rng(*range(50)).uniform(4000)
    assert x.shape == (50, 4000)
    assert x.dtype == torch.float64
    assert 0 < x.min() < 1e-4
    assert 1 - 1e-4 < x.max() < 1
    # Five standard errors of 200,000 numbers.
    assert abs(x.mean().item() - 1 / 2) < 5 * math.sqrt(1 / 12 / x.numel())
    assert abs(x.var().item() - 1 / 12) < 5 * math.sqrt(1 / 180 / x.numel())


def test_streams_of_neighbouring_seeds_are_uncorrelated():
    correlation = torch.corrcoef(rng(*range(20)).uniform(5000))
    assert (correlation - torch.eye(20)).abs().max() < 5 / math.sqrt(5000)


def test_normal_numbers_are_normal():
    x = rng(*range(20)).normal(5000)
    assert abs(x.mean().item()) < 5 / math.sqrt(x.numel())
    assert abs(x.var().item() - 1) < 5 * math.sqrt(2 / x.numel())
    assert abs((x.abs() < 1).double().mean().item() - math.erf(1 / math.sqrt(2))) < 0.01


def test_gumbel_numbers_follow_the_gumbel_distribution():
    x = rng(*range(20)).gumbel(5000)
    assert abs(x.mean().item() - 0.5772156649) < 0.02
    assert abs((x < 0).double().mean().item() - math.exp(-1)) < 0.01  # F(x) = exp(-exp(-x))


def test_a_stream_does_not_depend_on_the_batch_around_it():
    seeds = [3, 10**12, 5, 8]
    together = rng(*seeds).uniform(3, 7)
    for i, seed in enumerate(seeds):
        assert torch.equal(rng(seed).uniform(3, 7)[0], together[i])
    assert torch.equal(rng(*seeds[::-1]).uniform(3, 7), together.flip(0))


def test_a_shorter_draw_is_the_beginning_of_a_longer_one():
    assert torch.equal(rng(4).uniform(5), rng(4).uniform(11)[:, :5])


@pytest.mark.parametrize(
    "other",
    [rng(1), rng(2**32), rng(0, episode=1), rng(0, step=1)],
    ids=["seed", "seed beyond 32 bits", "episode", "step"],
)
def test_seed_episode_and_step_each_change_every_number(other):
    assert (rng(0).uniform(100) != other.uniform(100)).all()


def test_purposes_of_one_step_draw_different_numbers():
    assert (rng(0).uniform(100) != rng(0).uniform(100, purpose=1)).all()


def test_an_earlier_step_draws_the_same_numbers_again():
    stream = rng(5, 6)
    first = stream.at(2).uniform(9)
    stream.at(3).uniform(9)
    assert torch.equal(stream.at(2).uniform(9), first)


def test_a_categorical_draw_is_the_inverse_of_the_cumulative_distribution():
    logits = torch.randn(40, 9, generator=torch.Generator().manual_seed(0))
    uniform = rng(0).uniform(40)[0]
    drawn = categorical(logits, uniform)
    for row, u, token in zip(
        logits.softmax(-1).double().tolist(), uniform.tolist(), drawn.tolist(), strict=True
    ):
        cumulative = [sum(row[: k + 1]) for k in range(len(row))]
        assert token == sum(c <= u * cumulative[-1] for c in cumulative)


def test_a_number_on_the_edge_of_an_entry_draws_the_next_one():
    edge = torch.tensor([0.5], dtype=torch.float64)
    assert categorical(torch.zeros(1, 2), edge).item() == 1


def test_a_categorical_draw_has_the_probabilities_of_its_logits():
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.2])
    drawn = categorical(probabilities.log().expand(20000, 4), rng(1).uniform(20000)[0])
    counts = torch.bincount(drawn, minlength=4) / 20000
    assert counts[1] == 0
    torch.testing.assert_close(counts, probabilities, atol=0.02, rtol=0)


@pytest.mark.parametrize("uniform", [2.0**-33, 1 - 2.0**-33])
def test_the_extreme_uniform_numbers_draw_entries_that_exist(uniform):
    logits = torch.tensor([[-math.inf, 0.0, 0.0, -math.inf]])
    assert categorical(logits, torch.tensor([uniform], dtype=torch.float64)).item() in (1, 2)
