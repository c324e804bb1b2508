import pytest
import torch

from genenv.evaluation import Evaluation
from genenv.guard import verdict
from genenv.rewards.loo_fid import LeaveOneOutFID
from genenv.rewards.mixture import Mixture
from genenv.rollout import Episode

METRICS = {"fid": 3.0, "recall": 0.5, "accuracy": 0.9}


def evaluation(brightness, **metrics):
    images = torch.full((4, 1, 8, 8), brightness)
    nothing, context = torch.zeros(1, 4), torch.zeros(4).long()
    episode = Episode({}, nothing, nothing, {}, {}, {}, images, context, context)
    return Evaluation(
        metrics={name: value for name, value in (METRICS | metrics).items() if value is not None},
        episode=episode,
        protocol="digits",
        judge_sha256="",
        reference_sha256="",
        num_images=4,
        label_plan="cycle",
        seeds=(0, 3),
        intervals={},
        nfe=None,
        images_per_second=1.0,
        class_accuracy=[],
    )


def brightness():
    return Mixture({"bright": lambda images, context: images.mean((1, 2, 3))})


def test_reward_and_held_out_metrics_are_told_before_and_after():
    told = verdict(brightness(), evaluation(0.5), evaluation(0.6, fid=2.0, recall=0.625, accuracy=1.0))
    assert told == (
        "reward +20.0% (0.500 -> 0.600), held-out FID 3.00 -> 2.00, recall 0.500 -> 0.625, "
        "label accuracy 90.0% -> 100.0%"
    )


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ({"fid": 3.1}, "Warning: FID rose while the reward rose"),
        ({"recall": 0.4}, "Warning: recall fell while the reward rose"),
        ({"fid": 3.1, "recall": 0.4}, "Warning: FID rose and recall fell while the reward rose"),
    ],
)
def test_a_reward_that_rises_while_quality_falls_is_warned_of(change, warning):
    assert verdict(brightness(), evaluation(0.5), evaluation(0.6, **change)).endswith(warning)


def test_nothing_is_warned_of_where_the_reward_fell_too():
    assert "Warning" not in verdict(brightness(), evaluation(0.5), evaluation(0.4, fid=4.0, recall=0.1))


def test_a_reward_of_nothing_or_less_has_no_percentage():
    assert verdict(brightness(), evaluation(0.0), evaluation(0.6)).startswith("reward 0.000 -> 0.600, ")


def test_a_reward_that_remembers_judges_both_together_and_is_left_as_it_was():
    class Pixels:
        def features(self, images):
            return images.flatten(1)

    loo = LeaveOneOutFID(Pixels(), (torch.full((64,), 0.9), torch.ones(64)))
    loo(torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)), None)
    before = {name: value.clone() for name, value in loo.state_dict().items()}
    told = verdict(Mixture({"loo_fid": loo}), evaluation(0.5), evaluation(0.6))
    assert told.startswith("reward -")  # of the two together, the images that are further away hurt
    assert "-> -" not in told
    torch.testing.assert_close(loo.state_dict(), before)


def test_metrics_that_a_judge_does_not_have_are_left_out():
    told = verdict(brightness(), *(evaluation(b, recall=None, accuracy=None) for b in (0.5, 0.6)))
    assert told == "reward +20.0% (0.500 -> 0.600), held-out FID 3.00 -> 3.00"
