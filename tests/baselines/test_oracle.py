import pytest
import torch

from baselines.common import Bench
from baselines.oracle import Config, NearestReal, Oracle, run
from genenv.data import digits
from genenv.evaluation import first_seed
from genenv.rng import Stream
from genenv.rollout import generate, static_actor


def brightness(images, context):
    return images.mean((1, 2, 3))


def bench_of(toy, num_images=120):
    config = Config(env_kwargs=toy, num_images=num_images, candidates=4, std=0.5)
    return Bench(config, toy | {"action_mode": "residual", "observe": ["step"]}), config


def test_each_image_gets_the_best_of_its_candidates_and_never_less_than_by_hand(toy):
    bench, config = bench_of(toy)
    env = bench.evaluator.env
    plain = generate(env, static_actor(env), 120, 0, Stream.HELD_OUT)
    oracle = Oracle(bench, config, 0, brightness)
    best = generate(env, oracle, 120, 0, Stream.HELD_OUT)
    gain = brightness(best.images, None) - brightness(plain.images, None)
    assert gain.min() >= -1e-6
    assert (gain > 1e-3).float().mean() > 0.8
    kept = (best.actions == 0).all(-1).all(0)  # by hand was best
    assert torch.equal(best.images[kept], plain.images[kept])
    assert oracle.images == 4 * 120


def test_what_is_played_has_the_score_that_it_was_chosen_for(toy):
    bench, config = bench_of(toy)
    seen = []

    def score(images, context):
        seen.append(brightness(images, context))
        return seen[-1]

    episode = generate(bench.evaluator.env, Oracle(bench, config, 3, score), 120, 0, Stream.HELD_OUT)
    torch.testing.assert_close(brightness(episode.images, None), torch.stack(seen).amax(0))


def test_the_nearest_real_image_is_of_the_same_class():
    images, labels = digits()
    score = NearestReal("digits")
    assert torch.allclose(score(images[:50], labels[:50]), torch.zeros(50), atol=1e-2)
    assert (score(images[:50], (labels[:50] + 1) % 10) < -1).all()
    assert score(images[:1] * 0.5, labels[:1]) < -0.5


def test_a_command_gives_a_row_for_every_choice(toy):
    config = Config(
        env_kwargs=toy, seeds=(2,), num_images=100, candidates=2, by=("classifier", "nearest-real")
    )
    rows = list(run(config))
    assert [row.method for row in rows] == ["best of 2 by classifier", "best of 2 by nearest-real"]
    assert all(row.images == 200 and row.seed == 2 for row in rows)
    assert first_seed(2, 100) == 200


@pytest.mark.parametrize("by", ["none", "nothing"])
def test_a_choice_that_is_no_reward_is_refused(toy, by):
    with pytest.raises(ValueError, match=by):
        next(iter(run(Config(env_kwargs=toy, num_images=100, by=(by,)))))
