import math

import gymnasium as gym
import pytest
import torch

from genenv.evaluation import Evaluator
from genenv.metrics.judge import Judge
from genenv.models.gaussian_mixture import MIXTURES, GaussianMixture, load_mixture, picture
from genenv.rollout import run_episode, static_actor
from genenv.tiers import tier_of
from genenv.vector_env import unwrapped

ENV_ID = "ART/GaussianMixture-v0"
every_mixture = pytest.mark.parametrize("name", MIXTURES)


def pair():
    """A user's own mixture, in three dimensions."""
    return GaussianMixture(
        torch.tensor([0.25, 0.75]), torch.tensor([[1.0, 0, 0], [0, 2, 0]]), torch.tensor([0.5, 1.0])
    )


def nothing():
    return None


OWN = f"{__name__}:pair"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Makes this file's functions reachable under its name, however the tests are started."""
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or __import__(__name__))


@pytest.mark.parametrize("level", [0.1, 0.7, 3.0])
@every_mixture
def test_the_denoiser_is_the_posterior_mean(name, level):
    mixture = MIXTURES[name]
    data = mixture.sample(400_000, seed=1)
    x = data[:5] + level * torch.tensor([[0.5], [-1.0], [0.0], [1.5], [-0.3]])
    weight = (-(x[:, None] - data).square().sum(-1) / (2 * level**2)).softmax(1)  # Bayes, by Monte Carlo
    expected, spread = weight @ data, (weight @ data.square() - (weight @ data).square()).clamp(min=0).sqrt()
    effective = 1 / weight.square().sum(1, keepdim=True)
    found = mixture.denoise(x, torch.full((5,), level, dtype=torch.float64))
    assert bool(((found - expected).abs() < 5 * spread / effective.sqrt() + 1e-6).all())


def test_the_papers_problem_has_its_closed_form():
    env = gym.make_vec(ENV_ID, num_envs=200, num_steps=7)
    episode = run_episode(env, static_actor(env), seed=0)
    x, h = episode.observations["point"][:, :, 0].double(), 3 / 7
    sigma = 3 - h * torch.arange(7, dtype=torch.float64)[:, None]
    found = {name: value.double() for name, value in episode.diagnostics.items()}
    torch.testing.assert_close(found["slope_norm"], sigma * x.abs() / (1 + sigma**2), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["derivative_norm"], x.abs() / (1 + sigma**2) ** 2, rtol=1e-4, atol=1e-5)
    shrunk = x[0] * (1 - h * sigma / (1 + sigma**2)).prod()  # Euler's rule is linear here
    torch.testing.assert_close(found["x0"][-1], shrunk, rtol=1e-4, atol=1e-5)


@every_mixture
def test_episodes_start_from_the_true_marginal(name):
    mixture = MIXTURES[name]
    env = gym.make_vec(ENV_ID, num_envs=20_000, backbone=name, num_steps=1)
    sigma = unwrapped(env).sampler.period
    assert sigma == pytest.approx(3 * mixture.spread)
    points = env.reset(seed=0)[0]["point"].double()
    covariance = mixture.covariance + sigma**2 * torch.eye(mixture.dim)
    error = covariance.diagonal().sqrt() / math.sqrt(len(points))
    assert bool(((points.mean(0) - mixture.mean).abs() < 4 * error).all())
    torch.testing.assert_close(
        points.T.cov().view_as(covariance), covariance, rtol=0.05, atol=0.05 * sigma**2
    )


@every_mixture
def test_many_steps_give_the_data(name):
    mixture = MIXTURES[name]
    kwargs = {"num_steps": 300, "derivative": "finite-difference"}  # which moves no point
    env = gym.make_vec(ENV_ID, num_envs=4000, backbone=name, **kwargs)
    images = run_episode(env, static_actor(env), seed=1, keep_observations=False).images
    points = picture(mixture).points(images)
    torch.testing.assert_close(points.mean(0), mixture.mean, rtol=0, atol=0.1)
    torch.testing.assert_close(
        points.T.cov().view_as(mixture.covariance), mixture.covariance, rtol=0.1, atol=0.1
    )


@every_mixture
def test_the_moments_are_those_of_exact_points(name):
    mixture = MIXTURES[name]
    points = mixture.sample(200_000, seed=3)
    torch.testing.assert_close(points.mean(0), mixture.mean, rtol=0, atol=0.03)
    torch.testing.assert_close(
        points.T.cov().view_as(mixture.covariance), mixture.covariance, rtol=0.02, atol=0.02
    )
    assert mixture.spread == pytest.approx(points.square().mean().sqrt().item(), rel=0.01)


@every_mixture
def test_an_image_is_its_point(name):
    mixture = MIXTURES[name]
    points = mixture.sample(50)
    images = picture(mixture)(points)
    assert images.shape == (50, *tier_of(name).image_shape)
    torch.testing.assert_close(picture(mixture).points(images), points, rtol=0, atol=1e-5)
    far = torch.full((1, mixture.dim), 1e6, dtype=torch.float64)
    assert torch.equal(picture(mixture)(far), torch.ones(1, 1, 1, mixture.dim))


@every_mixture
def test_the_judge_sees_points(name):
    mixture, judge = MIXTURES[name], Judge(name)
    shifted = mixture.sample(20_000, seed=5) + 0.3
    found = judge.fid(picture(mixture)(shifted))
    assert found == pytest.approx(0.09 * mixture.dim, rel=0.1)
    assert judge.fid(picture(mixture)(mixture.sample(20_000, seed=5))) < 2e-3
    assert judge.extractor.sha256 != Judge("mixture-1d" if name == "normal" else "normal").extractor.sha256


def test_a_clock_is_evaluated():
    found = {k: Evaluator(ENV_ID, {"num_steps": k}, 500)(lambda seen: torch.zeros(250, 1)) for k in (2, 20)}
    assert found[2].nfe == 2
    # sampled W2^2 of Gaussians; the published uniform grid has 0.465 and 0.057
    assert found[2].metrics["fid"] == pytest.approx(0.465**2, abs=0.05)
    assert found[20].metrics["fid"] < 0.02


def test_a_mixture_of_ones_own_is_a_backbone():
    tier = tier_of(OWN)
    assert tier.image_shape == (1, 1, 3)
    env = gym.make_vec(ENV_ID, num_envs=3, backbone=OWN, reward="default")
    episode = run_episode(env, static_actor(env), seed=0)
    assert episode.images.shape == (3, 1, 1, 3)
    assert set(episode.components) == {"loo_fid"}
    assert len(Judge(OWN).features(episode.images)[0]) == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gaussian", "backbone must be 'normal', 'mixture-1d', 'pair-1d', 'mixture-2d' or 'module:factory'"),
        ("nowhere:mixture", "No module named 'nowhere'"),
        (f"{__name__}:lost", "has no attribute 'lost'"),
        (f"{__name__}:nothing", "must return a GaussianMixture, got NoneType"),
    ],
)
def test_a_mixture_that_does_not_exist_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        load_mixture(name)
    with pytest.raises(ValueError, match=message):
        gym.make_vec(ENV_ID, backbone=name)


@pytest.mark.parametrize(
    ("weights", "means", "stds", "message"),
    [
        ([0.5, 0.4], [[0.0], [1.0]], [1.0, 1.0], "weights must be positive with the sum 1"),
        ([1.5, -0.5], [[0.0], [1.0]], [1.0, 1.0], "weights must be positive with the sum 1"),
        ([0.5, 0.5], [[0.0], [1.0]], [1.0, 0.0], "stds must be positive"),
        ([0.5, 0.5], [0.0, 1.0], [1.0, 1.0], r"must be \(M,\), \(M, d\) and \(M,\)"),
        ([1.0], [[0.0], [1.0]], [1.0, 1.0], r"must be \(M,\), \(M, d\) and \(M,\)"),
    ],
)
def test_what_is_no_mixture_is_refused(weights, means, stds, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(*map(torch.tensor, (weights, means, stds)))
