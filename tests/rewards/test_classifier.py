import torch

from genenv.data import digits
from genenv.rewards.classifier import ClassifierReward, make


def test_the_reward_is_the_probability_of_the_label():
    logits = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    paid = ClassifierReward(lambda images: logits)(torch.zeros(2, 1, 8, 8), torch.tensor([1, 2]))
    expected = [torch.e**2 / (torch.e + torch.e**2 + 1), 1 / 3]
    torch.testing.assert_close(paid, torch.tensor(expected))


def test_right_labels_are_paid_more_than_wrong_ones():
    images, labels = digits()
    reward = make("digits", "cpu")
    right, wrong = reward(images[:200], labels[:200]), reward(images[:200], (labels[:200] + 1) % 10)
    assert right.shape == (200,)
    for paid in (right, wrong):
        assert paid.min() > 0
        assert paid.max() < 1
    assert (right > wrong).float().mean() > 0.95
    assert right.mean() > wrong.mean() + 0.5
