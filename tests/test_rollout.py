import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch
from choices import Choices

from genenv.actions import LatentActions
from genenv.contexts import Contexts
from genenv.protocols import Decision
from genenv.rng import Stream
from genenv.rollout import (
    Episode,
    default_actor,
    generate,
    generator_policy,
    replay,
    run_episode,
    schedule_actions,
    schedule_actor,
    static_actor,
    token_draws,
)
from genenv.schedules import handcrafted
from genenv.vector_env import GenVectorEnv, unwrapped
from genenv.wrappers.vector import EMAActionSmoothing, RunningCost


def make(num_envs=3, **kwargs):
    return gym.make_vec("AdaGen/MaskGIT-v0", num_envs=num_envs, **({"reward": "none"} | kwargs))


def by_context(observation):
    """An actor whose action depends on the label alone."""
    return (observation["context"][:, None] / 10 - 0.5) * torch.tensor([0.5, -0.5, 0.3, 1.0])


@pytest.mark.parametrize("reward", ["none", "loo_fid"])
def test_an_episode_is_the_same_in_every_autoreset_mode(reward):
    modes = ("Disabled", "SameStep", "NextStep")
    one, *others = (run_episode(make(autoreset_mode=m, reward=reward), by_context, seed=4) for m in modes)
    for other in others:
        for field in dataclasses.fields(Episode):
            torch.testing.assert_close(getattr(other, field.name), getattr(one, field.name), rtol=0, atol=0)


def test_an_episode_holds_what_the_policy_saw_and_did():
    env = make(num_steps=5)
    episode = run_episode(env, by_context, seed=4)
    assert episode.observations["tokens"].shape == (5, 3, 4, 4)
    assert episode.observations["step"].tolist() == [[t] * 3 for t in range(5)]
    assert torch.equal(episode.actions[2], by_context({"context": episode.context}))
    assert set(episode.schedule) == {param.name for param in unwrapped(env).sampler.params}
    assert episode.schedule["mask_ratio"].shape == (5, 3)
    assert episode.images.shape == (3, 1, 8, 8)
    assert episode.rewards.tolist() == [[0.0] * 3] * 5
    names = {"nfe", "num_masked", "confidence"} | {f"schedule/{name}" for name in episode.schedule}
    assert set(episode.diagnostics) == names
    assert episode.diagnostics["nfe"].tolist() == [[2 * t] * 3 for t in range(1, 6)]


def test_rewards_and_their_components_are_kept():
    episode = run_episode(make(reward={"loo_fid": 2.0}), by_context, seed=4)
    assert episode.rewards.any()
    assert not episode.rewards[:-1].any()
    torch.testing.assert_close(episode.returns, 2 * episode.components["loo_fid"])


def test_observations_can_be_left_out():
    assert run_episode(make(), by_context, seed=4, keep_observations=False).observations == {}


def test_an_episode_without_a_seed_is_the_next_one():
    env = make()
    first = run_episode(env, by_context, seed=4)
    assert not torch.equal(run_episode(env, by_context).images, first.images)
    assert torch.equal(run_episode(env, by_context, seed=4).images, first.images)


@pytest.mark.parametrize("num_envs", [1, 4, 16])
def test_generated_images_do_not_depend_on_the_batch_size(num_envs):
    expected = generate(make(7), by_context, 7, seed=30)
    found = generate(make(num_envs), by_context, 7, seed=30)
    assert len(found.images) == len(found.context) == len(found.returns) == 7
    assert found.rewards.shape == found.diagnostics["nfe"].shape == (4, 7)
    assert found.actions.shape == (4, 7, 4)
    assert found.schedule["mask_ratio"].shape == (4, 7)
    assert torch.equal(found.context, expected.context)
    torch.testing.assert_close(found.images, expected.images)


@pytest.mark.parametrize("num_images", [0, -3])
def test_no_images_cannot_be_generated(num_images):
    with pytest.raises(ValueError, match=f"num_images must be at least 1, got {num_images}"):
        generate(make(), by_context, num_images)


def test_the_static_actor_plays_zeros():
    env = make(2, smoothing=0.5)
    assert torch.equal(static_actor(env)({}), torch.zeros(2, 4))


def test_the_environment_inside_wrappers_is_found():
    env = make(reward="loo_fid", smoothing=0.5)
    assert unwrapped(env) is env.env.env


def test_the_first_images_of_an_episode_are_an_episode():
    whole = run_episode(make(), by_context, seed=0)
    part, few = whole.first(2), run_episode(make(2), by_context, seed=0)
    assert torch.equal(part.images, whole.images[:2])
    for field in dataclasses.fields(Episode):
        torch.testing.assert_close(getattr(part, field.name), getattr(few, field.name))


def test_what_an_actor_hands_out_beside_its_action_is_kept():
    def act(observation):
        action = by_context(observation)
        return Decision(action, {"mean": action / 2, "t": observation["step"]})

    env = make()
    episode = run_episode(env, act, seed=4)
    assert torch.equal(episode.extras["mean"], episode.actions / 2)
    assert episode.extras["t"].tolist() == [[t] * 3 for t in range(4)]
    assert generate(env, act, 5).extras["mean"].shape == (4, 5, 4)
    assert run_episode(env, by_context, seed=4).extras == {}


def test_a_running_cost_is_paid_at_every_decision():
    env = RunningCost(make(reward="classifier"), "num_masked", weight=0.5)
    episode = run_episode(env, by_context, seed=4)
    expected = -0.5 * episode.diagnostics["num_masked"]
    torch.testing.assert_close(episode.rewards[:-1], expected[:-1])
    torch.testing.assert_close(episode.rewards[-1], expected[-1] + episode.components["classifier"])
    torch.testing.assert_close(episode.returns, episode.rewards.sum(0))


@pytest.mark.parametrize("autoreset_mode", ["SameStep", "NextStep", "Disabled"])
@pytest.mark.parametrize("observe", [["features", "step"], ["tokens", "prev_action"]])
@pytest.mark.parametrize("smoothing", [0.0, 0.7])
def test_an_episode_is_seen_again_from_its_actions_alone(autoreset_mode, observe, smoothing):
    env = make(autoreset_mode=autoreset_mode, observe=observe, smoothing=smoothing)
    actions = iter(0.5 * torch.randn(4, 3, 4, generator=torch.Generator().manual_seed(1)))
    episode = run_episode(env, lambda _: next(actions), seed=9, stream=Stream.TUNING)
    seen = list(replay(env, episode.actions, 9, Stream.TUNING))
    assert len(seen) == 4
    for t, observation in enumerate(seen):
        for name in observe:
            assert torch.equal(observation[name], episode.observations[name][t])


def test_the_static_actor_plays_the_schedule_in_physical_units_too():
    residual, physical = make(), make(action_mode="physical")
    one, other = (run_episode(env, static_actor(env), seed=2) for env in (residual, physical))
    assert torch.equal(one.images, other.images)


@pytest.mark.parametrize(
    ("mode", "played"), [("Disabled", [0, 1, 2]), ("NextStep", [0, 1, 2]), ("SameStep", [0, 2, 4])]
)
def test_without_a_seed_the_episode_after_the_current_one_is_played(mode, played):
    env = make(autoreset_mode=mode)
    numbers = []

    def actor(observation):
        numbers.append(unwrapped(env).rng.episode)
        return static_actor(env)(observation)

    for seed in (7, None, None):
        run_episode(env, actor, seed)
    horizon = unwrapped(env).sampler.horizon
    assert numbers == [number for number in played for _ in range(horizon)]


def test_a_schedule_in_physical_units_is_not_averaged():
    averaged = make(action_mode="physical", smoothing=0.5)
    with pytest.raises(ValueError, match=r"smoothing must be 0 where .* physical actions, got 0\.5; or use"):
        static_actor(averaged)
    one, other = (run_episode(env, static_actor(env), seed=2) for env in (make(), make(smoothing=0.5)))
    assert torch.equal(one.images, other.images)


def test_a_schedule_in_physical_units_misses_the_step_by_name():
    message = (
        r"a schedule in physical units needs 'step' in the environment's observe, got observe=\['tokens'\]"
    )
    env = make(action_mode="physical", observe=["tokens"])
    with pytest.raises(ValueError, match=message):
        static_actor(env)
    table = handcrafted(schedule_actions(env).params)
    with pytest.raises(ValueError, match=message):
        run_episode(env, schedule_actor(table), seed=2)
    residual = make(observe=["tokens"])
    assert run_episode(residual, static_actor(residual), seed=2).images.shape == (3, 1, 8, 8)


@pytest.mark.parametrize("output", ["torch", "numpy"])
def test_actions_may_be_tokens(output):
    env = GenVectorEnv(Choices(), Contexts(["a", "b"]), 4, output=output, observe=["total", "prev_action"])
    assert env.single_action_space == gym.spaces.Discrete(5)
    assert env.single_observation_space["prev_action"] == gym.spaces.Discrete(5)
    observation, _ = env.reset(seed=0)
    assert list(observation["prev_action"]) == [0] * 4
    for t in range(3):
        observation, _, _, _, info = env.step(env.action_space.sample() * 0 + np.array([0, 1, 2, 4]))
        if t < 2:
            assert list(observation["total"]) == [0, t + 1, 2 * (t + 1), 4 * (t + 1)]
            assert list(info["token"]) == list(observation["prev_action"]) == [0, 1, 2, 4]
    assert info["final_info"]["image"][:, 0, 0, 0].tolist() == pytest.approx([0, 0.25, 0.5, 1])
    with pytest.raises(ValueError, match=r"action of env 3: the token must lie in \[0, 4\], got 5"):
        env.step(np.array([0, 1, 2, 5]))
    with pytest.raises(ValueError, match=r"actions must be whole numbers, got torch\.float64"):
        env.step(np.array([0.0, 1, 2, 3]))


def test_a_schedule_is_not_asked_of_tokens():
    env = GenVectorEnv(Choices(), Contexts(["a", "b"]), 4)
    with pytest.raises(ValueError, match="are no schedule but TokenActions"):
        static_actor(env)
    with pytest.raises(ValueError, match="choices, which have no moving average"):
        EMAActionSmoothing(env, 0.5)
    episode = run_episode(env, lambda observation: torch.full((4,), 2), seed=1)
    assert episode.schedule == {}
    assert episode.diagnostics["token"].tolist() == [[2] * 4] * 3


def tokens_env(**kwargs):
    kwargs = {"num_envs": 6, "reward": "none", "autoreset_mode": "Disabled"} | kwargs
    return gym.make_vec("PolicyTuning/Tokens-v0", **kwargs)


def test_the_generators_tokens_are_drawn_from_the_images_own_streams():
    env, half = tokens_env(observe=["logits"]), tokens_env(num_envs=3, observe=["logits", "step"])
    together = run_episode(env, generator_policy(env), seed=4)
    assert torch.equal(run_episode(env, generator_policy(env), seed=4).actions, together.actions)
    for seeds in ([4, 5, 6], [9, 8, 7]):
        episode = run_episode(half, generator_policy(half), seeds)
        assert torch.equal(episode.actions, together.actions[:, [seed - 4 for seed in seeds]])
    for other in (
        run_episode(env, generator_policy(env), seed=4, stream=Stream.HELD_OUT),
        run_episode(env, generator_policy(env)),
    ):
        assert (other.actions != together.actions).float().mean() > 0.3


def test_each_token_is_drawn_as_often_as_its_probability_says():
    env = tokens_env(num_envs=20_000, observe=["step"])
    env.reset(seed=0)
    logits = torch.tensor([0.5, 0.3, 0.2, 0.0]).log().expand(20_000, 4)
    shares = token_draws(env)(logits).bincount(minlength=4) / 20_000
    assert shares.tolist() == pytest.approx([0.5, 0.3, 0.2, 0.0], abs=0.015)


def test_the_generators_policy_misses_the_logits_by_name():
    message = r"must observe, as with observe=\['logits'\], got observe=\['tokens', 'step', 'context'\]"
    for actor in (generator_policy, default_actor):
        with pytest.raises(ValueError, match=message):
            actor(tokens_env())


def test_a_schedule_is_not_drawn_by_the_generator():
    with pytest.raises(ValueError, match="are a schedule, of which the generator draws nothing"):
        generator_policy(make())


def test_latents_miss_their_mean_and_standard_deviation_by_name():
    sampler = Choices()
    sampler.actions = lambda mode, device: LatentActions((1, 2, 2), 5.0)
    env = GenVectorEnv(sampler, Contexts(["a", "b"]), 4)
    with pytest.raises(ValueError, match=r"drawn from 'mean' and 'std', .* observe=\['mean', 'std'\], got"):
        default_actor(env)


def test_a_policy_is_compared_with_the_schedule_or_with_the_generator():
    env = make()
    one, other = (run_episode(env, actor(env), seed=3) for actor in (default_actor, static_actor))
    assert torch.equal(one.images, other.images)
    env = tokens_env(observe=["logits"])
    one, other = (run_episode(env, actor(env), seed=3) for actor in (default_actor, generator_policy))
    assert torch.equal(one.images, other.images)


def test_a_generator_and_its_contexts_must_agree():
    with pytest.raises(ValueError, match="contexts must have a name for each of the generator's 2, got 3"):
        GenVectorEnv(Choices(), Contexts(["a", "b", "c"]), 4)
