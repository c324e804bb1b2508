import re

import gymnasium as gym
import numpy as np
import pytest
import torch

from genenv.protocols import StatefulReward
from genenv.rewards.mixture import Mixture, as_mixture, standardise_groups
from genenv.wrappers import TerminalReward

IMAGES, CONTEXT = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 2, 4])


def brightness(images, context):
    return images.mean((1, 2, 3))


def label(images, context):
    return context.double()


class Count:
    """Pays the number of batches that it has seen."""

    name = "count"

    def __init__(self):
        self.seen = 0

    def __call__(self, images, context):
        self.seen += 1
        return torch.full((len(images),), float(self.seen))

    def reset(self):
        self.seen = 0

    def state_dict(self):
        return {"seen": torch.tensor(self.seen)}

    def load_state_dict(self, state):
        self.seen = int(state["seen"])


def test_components_are_weighted_and_kept():
    total, parts = Mixture({"bright": brightness, "label": label}, {"label": -0.5}).judge(IMAGES, CONTEXT)
    torch.testing.assert_close(total, IMAGES.mean((1, 2, 3)) - torch.tensor([0.5, 1.0, 2.0]))
    torch.testing.assert_close(
        parts, {"bright": IMAGES.mean((1, 2, 3)), "label": torch.tensor([1.0, 2.0, 4.0])}
    )
    assert total.dtype == parts["label"].dtype == torch.float32


def test_a_call_returns_the_sum_alone():
    mixture = Mixture({"bright": brightness, "label": label})
    torch.testing.assert_close(mixture(IMAGES, CONTEXT), mixture.judge(IMAGES, CONTEXT)[0])


def test_a_weight_without_a_reward_is_refused():
    with pytest.raises(ValueError, match=r"weights name no reward: \['brigth'\]; rewards are \['bright'\]"):
        Mixture({"bright": brightness}, {"brigth": 1.0})


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), 1e39, -3.5e38])
def test_a_weight_that_is_not_finite_is_refused(weight):
    message = re.escape(f"the weight of reward 'bright' must be finite, got {weight}")
    with pytest.raises(ValueError, match=message):
        Mixture({"bright": brightness}, {"bright": weight})


@pytest.mark.parametrize(
    ("weights", "named"), [({"label": 3e38}, "label"), ({"bright": 3e38, "label": 3e38}, "label")]
)
def test_a_weight_that_makes_the_sum_infinite_is_named(weights, named):
    mixture = Mixture({"bright": brightness, "label": label}, weights)
    with pytest.raises(ValueError, match=f"the weight of reward '{named}' must keep the weighted sum finite"):
        mixture(IMAGES, CONTEXT)


CONTRACT = r"reward 'odd' must return one number for each image, \(3,\), as a tensor, array or list, got "


@pytest.mark.parametrize(
    ("value", "found"),
    [
        *(
            (torch.zeros(shape), rf"Tensor of shape \({shape[0] if shape else ''}")
            for shape in [(), (1,), (3, 1), (2,)]
        ),
        (0.5, r"float of shape \(\)"),
        ([0.5, 1.0], r"list of shape \(2,\)"),
        ([[0.5], [1.0, 2.0], [3.0]], r"\[\[0.5\]"),
        (None, "None"),
        ("good", "'good'"),
        (["a", "b", "c"], r"\['a', 'b', 'c'\]"),
        (np.array([None] * 3), "array"),
        (np.zeros((3, 2)), r"ndarray of shape \(3, 2\)"),
        ({"odd": 1.0}, "{'odd': 1.0}"),
        (torch.zeros(3, dtype=torch.complex64), "Tensor of shape"),
    ],
)
def test_a_component_that_is_no_number_for_each_image_is_named(value, found):
    mixture = Mixture({"bright": brightness, "odd": lambda images, context: value})
    with pytest.raises(ValueError, match=CONTRACT + found):
        mixture(IMAGES, CONTEXT)


@pytest.mark.parametrize(
    "value",
    [
        [0.25, 1, True],
        (0.25, 1.0, 1.0),
        np.array([0.25, 1.0, 1.0]),
        np.array([0.25, 1.0, 1.0], dtype=np.float16),
        torch.tensor([0.25, 1.0, 1.0], dtype=torch.float64),
        [torch.tensor(0.25), torch.tensor(1.0), torch.tensor(1.0)],
        [np.float32(0.25), np.float32(1), np.float32(1)],
    ],
)
def test_a_component_may_be_whatever_converts_to_a_number_for_each_image(value):
    total, parts = Mixture({"odd": lambda images, context: value}, {"odd": 2.0}).judge(IMAGES, CONTEXT)
    assert parts["odd"].dtype == total.dtype == torch.float32
    assert total.tolist() == [0.5, 2.0, 2.0]


@pytest.mark.parametrize("value", [0.5, np.float64(0.5), torch.tensor(0.5), [0.5]])
def test_one_number_will_do_for_one_image(value):
    assert Mixture({"odd": lambda images, context: value})(IMAGES[:1], CONTEXT[:1]).tolist() == [0.5]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_component_that_is_not_finite_is_named(value):
    mixture = Mixture({"bright": brightness, "odd": lambda images, context: torch.tensor([0.0, value, 0.0])})
    with pytest.raises(ValueError, match=f"reward 'odd' must be finite, got {value}"):
        mixture(IMAGES, CONTEXT)


def test_the_components_that_remember_are_saved_and_restored():
    mixture, other = (Mixture({"bright": brightness, "count": Count()}) for _ in range(2))
    assert isinstance(mixture, StatefulReward)
    mixture(IMAGES, CONTEXT)
    mixture(IMAGES, CONTEXT)
    state = mixture.state_dict()
    assert set(state) == {"count"}
    other.load_state_dict(state)
    assert other.judge(IMAGES, CONTEXT)[1]["count"].tolist() == [3.0] * 3


def test_the_components_that_remember_are_reset():
    mixture = Mixture({"bright": brightness, "count": Count()})
    assert [mixture.judge(IMAGES, CONTEXT)[1]["count"][0].item() for _ in range(2)] == [1.0, 2.0]
    mixture.reset()
    assert mixture.judge(IMAGES, CONTEXT)[1]["count"][0].item() == 1.0


@pytest.mark.parametrize(("reward", "name"), [(Count(), "count"), (brightness, "function")])
def test_a_lone_reward_becomes_the_only_component(reward, name):
    mixture = as_mixture(reward)
    assert mixture.rewards == {name: reward}
    assert mixture.weights == {name: 1.0}


def test_a_mixture_stays_itself():
    mixture = Mixture({"bright": brightness})
    assert as_mixture(mixture) is mixture


def test_normalised_components_are_standardised_among_the_images_of_a_context():
    value, context = torch.tensor([1.0, 10.0, 3.0, 30.0, 7.0]), torch.tensor([0, 1, 0, 1, 2])
    mixture = Mixture({"a": lambda images, labels: value}, {"a": 2.0}, normalise=True)
    total, parts = mixture.judge(torch.zeros(5, 1, 8, 8), context)
    assert total.tolist() == pytest.approx([-2.0, -2.0, 2.0, 2.0, 0.0], rel=1e-3)
    assert torch.equal(parts["a"], value)


def test_two_groups_of_one_context_stay_two():
    value = torch.tensor([1.0, 3.0, 10.0, 30.0])
    mixture = Mixture({"a": lambda images, labels: value}, normalise=True)
    images, context = torch.zeros(4, 1, 8, 8), torch.full((4,), 7)
    apart, _ = mixture.judge(images, context, group=torch.tensor([5, 5, 9, 9]))
    assert apart.tolist() == pytest.approx([-1.0, 1.0, -1.0, 1.0], rel=1e-3)
    order = torch.tensor([2, 0, 3, 1])
    value = value[order]
    moved, _ = mixture.judge(images, context, group=torch.tensor([5, 5, 9, 9])[order])
    torch.testing.assert_close(moved, apart[order])
    together, _ = mixture.judge(images, context)
    assert together.tolist() != pytest.approx(moved.tolist(), rel=0.1)


def test_groups_are_those_of_vector_contexts_too():
    context = torch.tensor([[0.0, 1.0], [0.5, 0.5], [0.0, 1.0]])
    found = standardise_groups(torch.tensor([1.0, 2.0, 3.0]), context)
    assert found.tolist() == pytest.approx([-1.0, 0.0, 1.0], rel=1e-3)


def test_a_lone_image_has_nothing_to_be_normalised_with():
    with pytest.raises(
        ValueError, match="all contexts of the batch differ: use contexts='grouped:G' or more"
    ):
        Mixture({"bright": brightness}, normalise=True)(IMAGES[:1], CONTEXT[:1])


def test_the_state_of_other_rewards_is_refused():
    with pytest.raises(ValueError, match=r"the state must be of the rewards \['count'\], got that of \[\]"):
        Mixture({"bright": brightness, "count": Count()}).load_state_dict({})


def test_an_environment_of_too_few_images_is_refused():
    batch = Mixture({"bright": brightness}, normalise=True)
    with pytest.raises(
        ValueError, match="reward 'normalise' compares at least 2 images with each other, got 1"
    ):
        gym.make("AdaGen/MaskGIT-v0", reward={"loo_fid": 1.0, "normalise": True})
    with pytest.raises(ValueError, match="reward 'fid' compares at least 2 images"):
        gym.make_vec("AdaGen/MaskGIT-v0", num_envs=1, reward="fid")
    with pytest.raises(ValueError, match="reward 'normalise' compares"):
        TerminalReward(gym.make("AdaGen/MaskGIT-v0", reward="none"), batch)
