import pytest
import torch

from genenv.data import digits
from genenv.metrics.frechet import frechet_distance
from genenv.rewards import loo_fid
from genenv.rewards.loo_fid import LeaveOneOutFID, loo_fid_from_features, make


class Pixels:
    """The pixels of an image as its features."""

    def features(self, images):
        return images.flatten(1)


def pixel_reward(dim=4, **kwargs):
    return LeaveOneOutFID(Pixels(), (torch.zeros(dim), torch.ones(dim)), **kwargs)


def batch(n, dim=4, seed=0, shift=0.0):
    return torch.randn(n, 1, 1, dim, generator=torch.Generator().manual_seed(seed)) + shift


def problem(n, dim=5, seed=0):
    """Returns features, old moments and reference moments, all different."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, dim, generator=generator) + 0.3
    mean = torch.randn(dim, generator=generator)
    ema = (mean, mean.square() + 0.5 + torch.rand(dim, generator=generator))
    return features, ema, (torch.randn(dim, generator=generator), 1 + torch.rand(dim, generator=generator))


def distance(first, second, reference):
    """The diagonal Frechet distance of moments to a mean and standard deviation, one dimension at a time."""
    total = 0.0
    for m1, m2, mean, std in zip(
        first.tolist(), second.tolist(), *(r.tolist() for r in reference), strict=True
    ):
        total += (mean - m1) ** 2 + (std - max(m2 - m1**2, 0.0) ** 0.5) ** 2
    return total


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("n", [2, 7])
def test_every_sample_is_really_left_out(beta, n):
    features, (old1, old2), reference = problem(n)

    def moved(samples):
        first = beta * old1 + (1 - beta) * samples.mean(0)
        return distance(first, beta * old2 + (1 - beta) * samples.square().mean(0), reference)

    expected = [moved(features[torch.arange(n) != i]) - moved(features) for i in range(n)]
    found = loo_fid_from_features(features, (old1, old2), reference, beta)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-5)  # `moved` averages in float32


def test_a_lone_sample_is_compared_with_the_moments_before_it():
    features, (old1, old2), reference = problem(1)
    new = (0.5 * old1 + 0.5 * features[0], 0.5 * old2 + 0.5 * features[0].square())
    expected = distance(old1, old2, reference) - distance(*new, reference)
    found = loo_fid_from_features(features, (old1, old2), reference, 0.5)
    assert found.tolist() == pytest.approx([expected], rel=1e-5)


def test_rewards_follow_their_images_through_a_permutation():
    images, order = batch(16), torch.randperm(16, generator=torch.Generator().manual_seed(1))
    context = torch.zeros(16, dtype=torch.int64)
    one, other = pixel_reward(), pixel_reward()
    torch.testing.assert_close(other(images[order], context), one(images, context)[order])


@pytest.mark.parametrize("old_batches", [0, 1])
def test_the_reward_is_the_linear_witness_of_a_large_batch(old_batches):
    n, h = 20_000, 15_000.0
    images, old = batch(n, shift=0.5, seed=1), batch(n, shift=-0.8, seed=2)
    beta = 0.0
    mean = images.flatten(1).mean(0)
    first, second = mean, images.flatten(1).square().mean(0)
    if old_batches:
        decay = 0.5 ** (n / h)
        beta = decay / (1 + decay)
        first = beta * old.flatten(1).mean(0) + (1 - beta) * first
        second = beta * old.flatten(1).square().mean(0) + (1 - beta) * second
    # With the moments' spread for the reference's, the spread's part vanishes to first order. A unit is a real std.
    spread = (second - first.square()).sqrt()
    reward = LeaveOneOutFID(Pixels(), (torch.zeros(4), spread), half_life=h)
    for _ in range(old_batches):
        reward(old, None)
    witness = ((images.flatten(1) - mean) / spread) @ (-first / spread)
    torch.testing.assert_close(
        reward(images, None), witness, rtol=2e-3, atol=5e-3
    )  # the second order falls as 1 / n


def test_the_reward_is_scaled_by_the_batch_and_the_weight_of_its_past():
    reward, old, new = pixel_reward(half_life=8.0), batch(8), batch(4, seed=1)
    reward(old, None)
    moments = (reward.first.clone(), reward.second.clone())
    beta = 0.5**0.5 * 0.5 / (0.5**0.5 * 0.5 + 1 - 0.5**0.5)  # half of a weight of 1, after half a half-life
    change = loo_fid_from_features(new.flatten(1), moments, (torch.zeros(4), torch.ones(4)), beta)
    torch.testing.assert_close(reward(new, None), (4 / (2 * (1 - beta)) * change).float())


def test_a_batch_moves_the_moments_as_its_halves_do():
    half = batch(8, seed=1)
    whole, halves = pixel_reward(half_life=10.0), pixel_reward(half_life=10.0)
    for reward in (whole, halves):
        reward(batch(8, shift=2.0), None)
    whole(torch.cat([half, half]), None)
    halves(half, None)
    halves(half, None)
    torch.testing.assert_close(whole.first, halves.first)
    torch.testing.assert_close(whole.second, halves.second)
    assert whole.seen == pytest.approx(halves.seen)


def test_old_moments_weigh_half_after_the_half_life():
    reward = pixel_reward(half_life=5.0)
    for value in (0.0, 1.0):
        reward(torch.full((5, 1, 1, 4), value), None)
    torch.testing.assert_close(reward.first, torch.full((4,), 2 / 3, dtype=torch.float64))  # weights 1 and 2


def test_a_restored_reward_goes_on_as_the_saved_one():
    reward, other, fresh = pixel_reward(), pixel_reward(), pixel_reward()
    reward(batch(8, shift=1.0), None)
    other(batch(3, seed=5), None)
    other.load_state_dict(reward.state_dict())
    for seed in (1, 2):
        images = batch(6, seed=seed)
        paid = reward(images, None)
        assert torch.equal(other(images, None), paid)
        assert not torch.allclose(fresh(images, None), paid)


def test_a_saved_state_stays_as_it_was():
    reward = pixel_reward()
    reward(batch(8), None)
    state = reward.state_dict()
    first = state["first"].clone()
    reward(batch(8, seed=1), None)
    assert torch.equal(state["first"], first)
    assert not torch.equal(reward.first, first)


def test_a_reset_reward_starts_anew():
    reward, images = pixel_reward(), batch(8)
    paid = reward(images, None)
    assert not torch.equal(reward(images, None), paid)
    reward.reset()
    assert torch.equal(reward(images, None), paid)


def test_only_the_first_of_lone_images_is_paid_nothing():
    reward = pixel_reward()
    assert reward(batch(1), None).tolist() == [0.0]
    assert reward(batch(1, seed=1), None).item() != 0.0


def test_an_outlier_is_fined():
    images = batch(64)
    images[9] = 12.0
    paid = pixel_reward()(images, None)
    assert paid.dtype == torch.float32
    assert paid.argmin() == 9
    assert paid[9] < 0


def test_the_shipped_reward_fines_the_noise_among_digits():
    generator = torch.Generator().manual_seed(0)
    images = digits()[0][torch.randperm(1797, generator=generator)[:256]]  # neighbours share a writer
    images[:26] = torch.rand(26, 1, 8, 8, generator=generator)
    paid = make("digits", "cpu")(images, torch.zeros(256, dtype=torch.int64))
    assert paid[:26].mean() < 0 < paid[26:].mean()
    assert (paid[:26, None] < paid[26:]).float().mean() > 0.85


@pytest.mark.parametrize("half_life", [0.0, -1.0, float("nan")])
def test_moments_without_memory_are_refused(half_life):
    with pytest.raises(ValueError, match=f"half_life must be above 0, got {half_life}"):
        pixel_reward(half_life=half_life)


def covariance_problem(n, dim=4):
    features, (old1, _), _ = problem(n, dim)
    generator = torch.Generator().manual_seed(9)
    root = torch.randn(2, dim, dim, generator=generator).double()
    spread = root @ root.mT + torch.eye(dim)
    return features, (old1, spread[0] + torch.outer(old1, old1)), (torch.zeros(dim), spread[1])


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_with_covariances_the_distance_is_the_full_one(beta):
    features, (old1, old2), (mean, covariance) = covariance_problem(12)
    features, old1 = features.double(), old1.double()

    def moved(samples):
        first = beta * old1 + (1 - beta) * samples.mean(0)
        second = beta * old2 + (1 - beta) * samples.T @ samples / len(samples)
        return frechet_distance(first, second - torch.outer(first, first), mean, covariance)

    expected = [moved(features[torch.arange(12) != i]) - moved(features) for i in range(12)]
    found = loo_fid_from_features(features, (old1, old2), (mean, covariance), beta)
    assert found.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_covariances_are_taken_apart_in_pieces(monkeypatch):
    features, ema, reference = covariance_problem(12)
    whole = loo_fid_from_features(features, ema, reference, 0.5)
    monkeypatch.setattr(loo_fid, "CHUNK", 5 * 16)
    torch.testing.assert_close(loo_fid_from_features(features, ema, reference, 0.5), whole)


def test_the_reward_takes_a_covariance_and_measures_in_real_standard_deviations():
    covariance = torch.tensor([[4.0, 1.0], [1.0, 1.0]]).double()
    reward = LeaveOneOutFID(Pixels(), (torch.zeros(2), covariance))
    images = batch(16, dim=2)
    features = images.flatten(1).double() / torch.tensor([2.0, 1.0]).double()
    unit = torch.tensor([[1.0, 0.5], [0.5, 1.0]]).double()
    expected = loo_fid_from_features(
        features, (torch.zeros(2), torch.zeros(2, 2)), (torch.zeros(2), unit), 0.0
    )
    torch.testing.assert_close(reward(images, None), (16 / 2 * expected).float())


def test_loo_batch_forgets_the_batches_before():
    reward, ema, images = pixel_reward(mode="loo_batch"), pixel_reward(), batch(8, seed=1)
    for other in (reward, ema):
        other(batch(8, shift=3.0), None)
    paid = reward(images, None)
    torch.testing.assert_close(paid, pixel_reward()(images, None))
    assert not torch.allclose(paid, ema(images, None))
    with pytest.raises(ValueError, match="'loo_batch' needs at least 2 images at once, got 1"):
        reward(images[:1], None)


def test_ema_scalar_pays_all_what_the_batch_did():
    reward, new = pixel_reward(mode="ema_scalar", half_life=8.0), batch(4, seed=1)
    assert reward(batch(8, shift=1.0), None).tolist() == [0.0] * 8  # there is nothing to compare with
    old = (reward.first.clone(), reward.second.clone())
    paid = reward(new, None)
    reference = (torch.zeros(4), torch.ones(4))
    beta = 0.5**0.5 * 0.5 / (0.5**0.5 * 0.5 + 1 - 0.5**0.5)
    change = distance(*old, reference) - distance(reward.first, reward.second, reference)
    assert change > 0
    assert paid.tolist() == pytest.approx([change / (2 * (1 - beta))] * 4, rel=1e-5)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="mode must be one of ema, loo_batch, ema_scalar, got 'loo'"):
        pixel_reward(mode="loo")


def test_as_published_old_moments_keep_their_weight_and_features_stay_as_they_are():
    reference = (torch.full((4,), 0.2), torch.full((4,), 3.0))
    reward = LeaveOneOutFID(Pixels(), reference, beta=0.5, standardise=False)
    reward(batch(8, shift=1.0), None)
    moments, images = (reward.first.clone(), reward.second.clone()), batch(6, seed=1)
    beta = 0.5 * 0.5 / (0.5 * 0.5 + 0.5)  # the first batch, halved, against the second: debiased
    centre = torch.full((4,), 0.2)
    expected = loo_fid_from_features(images.flatten(1) - centre, moments, (0 * centre, reference[1]), beta)
    torch.testing.assert_close(reward(images, None), (6 / (2 * (1 - beta)) * expected).float())
    with pytest.raises(ValueError, match=r"beta must be in \[0, 1\), got 1.0"):
        LeaveOneOutFID(Pixels(), reference, beta=1.0)


def test_moments_of_two_kinds_are_refused():
    features, ema, reference = problem(4)
    with pytest.raises(ValueError, match=r"both be diagonal or both hold matrices, got \(5,\) and \(5, 5\)"):
        loo_fid_from_features(features, ema, (reference[0], torch.eye(5)), 0.5)
