import pytest
import torch

from genenv.evaluation import Evaluation
from genenv.guard import change_noise, verdict
from genenv.rewards.loo_fid import LeaveOneOutFID
from genenv.rewards.mixture import Mixture
from genenv.rollout import Episode

METRICS = {"fid": 3.0, "recall": 0.5, "accuracy": 0.9}


def evaluation(brightness, intervals=None, num_images=4, **metrics):
    images = torch.ones(num_images, 1, 8, 8) * torch.as_tensor(brightness).view(-1, 1, 1, 1)
    context = torch.zeros(num_images).long()
    nothing = torch.zeros(1, num_images)
    episode = Episode({}, nothing, nothing, {}, {}, {}, images, context, context)
    return Evaluation(
        metrics={name: value for name, value in (METRICS | metrics).items() if value is not None},
        episode=episode,
        protocol="digits",
        judge_sha256="",
        reference_sha256="",
        num_images=num_images,
        label_plan="cycle",
        seeds=(0, num_images - 1),
        intervals=intervals or {},
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
    old, new = evaluation(0.5, num_images=400), evaluation(0.6, num_images=400, **change)
    assert verdict(brightness(), old, new).endswith(warning)


@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_a_reward_that_rises_by_noise_is_no_rise(scale):
    noise = scale * torch.randn(2, 500, generator=torch.Generator().manual_seed(0))
    bad = {"fid": 4.0, "recall": 0.1}
    old = evaluation(noise[0], num_images=500)
    for rise, warned in ((0.0, False), (0.3 * scale, True)):  # 4.7 standard errors
        told = verdict(brightness(), old, evaluation(noise[1] + rise, num_images=500, **bad))
        assert ("Warning" in told) == warned


def test_a_standardised_reward_does_not_rise_from_nothing_to_nothing():
    noise = torch.rand(2, 200, generator=torch.Generator().manual_seed(1))
    reward = Mixture({"bright": lambda images, context: images.mean((1, 2, 3))}, normalise=True)
    old, new = (evaluation(row - row.mean() + 0.5, num_images=200) for row in noise)
    new.metrics["fid"] = 9.0
    told = verdict(reward, old, new)
    assert told.startswith("reward 0.000 -> 0.000, ")
    assert "Warning" not in told


def test_images_that_are_paid_as_a_group_count_as_one():
    """Groups of 32 with a reward each, as the FID of a batch pays: 64 numbers, however many images."""
    groups = torch.randn(2, 64, generator=torch.Generator().manual_seed(4)).repeat_interleave(32, 1)
    alone = torch.randn(2, 2048, generator=torch.Generator().manual_seed(4))
    assert change_noise(*groups) > 4 * change_noise(*alone)  # the square root of 32


def test_the_noise_of_a_change_holds_it_in_19_of_20_cases():
    rewards = torch.randn(2, 1000, 300, generator=torch.Generator().manual_seed(0))
    held = [abs((new - old).mean()) <= change_noise(old, new) for old, new in zip(*rewards, strict=True)]
    assert 0.93 < sum(held) / len(held) < 0.97


@pytest.mark.parametrize(("ends", "warned"), [((2.7, 3.3), False), ((2.95, 3.05), True)])
def test_a_metric_that_falls_within_its_interval_is_not_warned_of(ends, warned):
    old = evaluation(0.5, {"fid": ends})
    new = evaluation(0.6, {"fid": ends}, fid=3.2)  # the change has 1.41 times the half-width: 0.42 or 0.07
    assert ("Warning" in verdict(brightness(), old, new)) == warned


@pytest.mark.parametrize(("num_images", "warned"), [(100, False), (2000, True)])
def test_recall_without_an_interval_may_fall_as_a_share_of_the_images_does(num_images, warned):
    old, new = evaluation(0.5, num_images=num_images), evaluation(0.6, num_images=num_images, recall=0.45)
    assert ("recall fell" in verdict(brightness(), old, new)) == warned


def test_evaluations_of_other_seeds_are_not_compared():
    with pytest.raises(ValueError, match=r"the same seeds, got \(0, 3\) and \(0, 5\)"):
        verdict(brightness(), evaluation(0.5), evaluation(0.5, num_images=6))


def test_a_single_image_rises_by_nothing_that_can_be_told():
    old, new = evaluation(0.5, num_images=1), evaluation(0.6, num_images=1, fid=9.0)
    assert "Warning" not in verdict(brightness(), old, new)


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
