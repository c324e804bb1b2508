import numpy as np
import pytest
import torch

from baselines.common import StaticSchedules
from baselines.search import (
    REACH,
    Config,
    RewardFeatureDistance,
    minimise_by_cma,
    minimise_by_gp,
    objective,
    run,
    search,
)
from genenv.data import digits
from genenv.envs.maskgit import schedule_params
from genenv.evaluation import Evaluator
from genenv.progress import ignore
from genenv.rng import MAX_SEED, Stream
from genenv.schedules import handcrafted

QUIET = ignore


def noisy_sphere(seed):
    noise = np.random.default_rng(seed)
    return lambda points: (
        np.square(points - 0.7).sum(1) + 0.01 * noise.standard_normal(len(points))
    ).tolist()


def test_cma_finds_the_minimum_of_a_noisy_sphere_and_leaves_global_randomness_alone():
    np.random.seed(3)
    untouched = np.random.get_state()[1].copy()
    reports = []
    finalists = minimise_by_cma(
        noisy_sphere(0), 6, 40, 10, 0.3, np.random.default_rng(0), lambda *report: reports.append(report[:2])
    )
    assert np.abs(finalists - 0.7).max() < 0.2  # it starts 0.7 away in each of 6 dimensions
    assert reports[-1] == (40, 40)
    assert np.array_equal(np.random.get_state()[1], untouched)


def test_cma_repeats_with_its_generator():
    first, again, other = (
        minimise_by_cma(noisy_sphere(0), 4, 5, 6, 0.3, np.random.default_rng(seed), QUIET)
        for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_gaussian_process_finds_the_minimum_of_a_noisy_sphere_and_leaves_global_randomness_alone():
    np.random.seed(3)
    untouched = np.random.get_state()[1].copy()
    torch.manual_seed(3)
    before, tried, value = torch.get_rng_state(), [], noisy_sphere(0)

    def evaluate(points):
        tried.extend(points)
        return value(points)

    found, again, other = (
        minimise_by_gp(evaluate, 3, 25, np.random.default_rng(seed), QUIET) for seed in (0, 0, 1)
    )
    assert found.shape == (2, 3)
    assert np.abs(found - 0.7).max() < 0.5
    assert not np.array_equal(found, other)
    assert np.array_equal(tried[0], np.zeros(3))  # the hand-crafted schedule comes first
    assert np.array_equal(tried[:10], tried[25:35])  # the random ones
    assert np.abs(np.stack(tried)).max() <= REACH
    assert np.array_equal(np.random.get_state()[1], untouched)
    assert torch.equal(torch.get_rng_state(), before)
    assert again.shape == found.shape


@pytest.mark.parametrize("trials", [1, 2])
def test_a_short_search_has_two_finalists(trials):
    found = minimise_by_gp(noisy_sphere(0), 2, trials, np.random.default_rng(0), QUIET)
    assert found.shape == (2, 2)


@pytest.mark.parametrize(("algorithm", "rounds"), [("cma", 15 * 8), ("gp", 40)])
def test_search_improves_its_own_objective_on_fresh_images(toy, algorithm, rounds):
    config = Config(
        env_kwargs=toy,
        algorithm=algorithm,
        budget=rounds * 100 + 400,
        images_per_candidate=100,
        popsize=8,
        tuning_images=200,
    )
    generate = StaticSchedules(config.env_id, toy, batch_size=400)
    score = RewardFeatureDistance("digits")
    found, images = search(config, 0, generate, score, QUIET)
    assert images == config.budget
    assert found[:, 0].min() > 0.6  # brightness, 0.5 by hand; the optimum is 1
    before, after = (
        score(generate(table[None], 200, 1400, Stream.TUNING)[0], generate.contexts(200, 1400))
        for table in (handcrafted(generate.params), found)
    )
    assert after < 0.6 * before


def test_no_generation_sees_an_image_of_another_nor_of_another_repetition():
    seen, config = [], Config(budget=3 * 4 * 50 + 20, images_per_candidate=50, popsize=4, tuning_images=10)

    class Toy:
        params = schedule_params(2, guidance_weight=1.0)

        def __call__(self, tables, num_images, first, stream):
            assert 0 <= first <= MAX_SEED - num_images
            seen.append([(stream, seed) for seed in range(first, first + num_images)])
            return tables

        def contexts(self, num_images, first):
            return torch.arange(num_images)

    for seed in (0, 1, 700, 10**10, 10**18):
        search(config, seed, Toy(), lambda table, context: table.sum().item(), QUIET)
    assert [len(images) for images in seen] == 5 * [50, 50, 50, 10]
    assert [images[0][0] for images in seen] == 5 * [*3 * [Stream.TRAINING], Stream.TUNING]
    assert len(set().union(*seen)) == 5 * 160


@pytest.mark.parametrize("env_id", ["AdaGen/MaskGIT-v0", "AdaGen/VAR-v0"])
def test_a_wide_search_stays_inside_the_action_space(env_id):
    config = Config(env_id=env_id, budget=60, sigma=40.0, images_per_candidate=4, popsize=4, tuning_images=10)
    generate = StaticSchedules(env_id, {}, batch_size=16)
    found, _ = search(config, 0, generate, lambda images, context: images.mean().item(), QUIET)
    for i, param in enumerate(generate.params):
        low, high = param.limits
        assert low <= found[:, i].min() <= found[:, i].max() <= high


@pytest.mark.parametrize(
    ("goal", "algorithm"), [("reward_features", "cma"), ("judge", "cma"), ("classifier", "gp")]
)
def test_a_repetition_is_reproducible(toy, goal, algorithm):
    config = Config(
        env_kwargs=toy,
        objective=goal,
        algorithm=algorithm,
        seeds=(0,),
        num_images=100,
        budget=2 * 4 * 70 + 200,
        images_per_candidate=70,
        popsize=4,
        tuning_images=100,
    )
    (first,), (again,) = run(config), run(config)
    assert first.schedule == again.schedule
    assert first.metrics == again.metrics
    assert first.images == 760
    assert goal in first.method


def test_real_images_are_at_distance_zero():
    score = RewardFeatureDistance("digits")
    images, labels = digits()
    assert score(images, labels) == pytest.approx(0, abs=1e-3)
    assert score(images * 0.5, labels) > 1


def test_a_reward_is_maximised_with_the_labels_that_the_images_have():
    evaluator, generate = (
        Evaluator("AdaGen/MaskGIT-v0", num_images=100),
        StaticSchedules("AdaGen/MaskGIT-v0", {}, 20),
    )
    images = generate(handcrafted(generate.params)[None], 20, 7, Stream.TUNING)[0]
    score, context = objective("classifier", evaluator), generate.contexts(20, 7)
    assert score(images, context) < -0.8
    assert score(images, context.roll(1)) > -0.4


@pytest.mark.parametrize("name", ["none", "nothing"])
def test_an_objective_that_is_no_reward_is_refused(name):
    with pytest.raises(ValueError, match=name):
        objective(name, Evaluator("AdaGen/MaskGIT-v0", num_images=100))


@pytest.mark.parametrize(("algorithm", "least"), [("cma", 4304), ("gp", 2192)])
def test_a_budget_below_one_round_is_refused(algorithm, least):
    with pytest.raises(ValueError, match=f"budget must be at least {least} images for one round, got 1000"):
        run(Config(budget=1000, algorithm=algorithm))
