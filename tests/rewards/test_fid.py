import pytest
import torch

from genenv.data import digits
from genenv.metrics.frechet import frechet_distance, moments
from genenv.rewards.fid import FIDReward, make


class Pixels:
    """The pixels of an image as its features."""

    def features(self, images):
        return images.flatten(1)


def images(n, dim=4, seed=0):
    return torch.randn(n, 1, 1, dim, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("group_size", [3, 16])  # 3: fewer images than dimensions
def test_a_group_earns_its_negative_frechet_distance(group_size):
    root = images(4, seed=5).flatten(1)
    mean, covariance = torch.ones(4).double(), root @ root.T + torch.eye(4)
    reward = FIDReward(Pixels(), (mean, covariance), group_size)
    batch = images(2 * group_size)
    std = covariance.diagonal().sqrt()
    unit = covariance / torch.outer(std, std)
    expected = []
    for group in batch.split(group_size):
        found = moments((group.flatten(1) - mean) / std)
        expected += [-frechet_distance(*found, torch.zeros(4), unit)] * group_size
    paid = reward(batch, torch.zeros(len(batch)))
    assert paid.dtype == torch.float32
    assert paid.tolist() == pytest.approx(expected, rel=1e-5)
    assert paid[0] != paid[-1]


def test_a_rest_is_spread_over_the_groups():
    reward = FIDReward(Pixels(), (torch.zeros(4), torch.eye(4)), group_size=4)
    paid = reward(images(11), torch.zeros(11))
    assert [len(set(part.tolist())) for part in paid.split([6, 5])] == [1, 1]
    assert len(reward(images(3), torch.zeros(3))) == 3


def test_a_lone_image_and_a_group_of_one_are_refused():
    with pytest.raises(ValueError, match="at least 2 images at once, got 1"):
        FIDReward(Pixels(), (torch.zeros(4), torch.eye(4)))(images(1), torch.zeros(1))
    with pytest.raises(ValueError, match="group_size must be at least 2, got 1"):
        FIDReward(Pixels(), (torch.zeros(4), torch.eye(4)), group_size=1)


def test_real_digits_earn_more_than_noise():
    reward = make("digits", "cpu")
    real = digits()[0][:64]
    noise = torch.rand(real.shape, generator=torch.Generator().manual_seed(0))
    context = torch.zeros(64, dtype=torch.int64)
    assert reward(real, context).min() > reward(noise, context).max()
