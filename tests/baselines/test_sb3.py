import math
import re

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

from baselines.sb3 import (
    Config,
    OneHotExtractor,
    TimeBudget,
    actor_from,
    make_model,
    rollout_steps,
    run,
    save,
)
from genenv.integrations.sb3 import GenVecEnv
from genenv.rollout import generate, run_episode, static_actor

TOKENS = "PolicyTuning/Tokens-v0"


@pytest.mark.parametrize(
    ("num_envs", "horizon", "steps"), [(256, 4, 8), (64, 4, 32), (1, 4, 2048), (4096, 4, 4), (10, 7, 203)]
)
def test_a_rollout_is_whole_episodes_near_the_default_size(num_envs, horizon, steps):
    assert rollout_steps(num_envs, horizon) == steps
    assert steps % horizon == 0


def test_ppo_at_default_settings_learns_to_brighten_the_toy(toy):
    """The hand-crafted schedule exposes the digits to 0.25, the best action in the box to about 0.85."""
    model = make_model(Config(env_kwargs=toy, num_envs=128), seed=0)
    env = gym.make_vec("AdaGen/MaskGIT-v0", num_envs=200, autoreset_mode="Disabled", **toy)
    before = generate(env, static_actor(env), 200, seed=10_000).returns.mean()
    model.learn(2 * 2048)
    after = generate(env, actor_from(model, env), 200, seed=10_000).returns.mean()
    assert after > 1.5 * before


def test_one_hot_tokens_tell_the_policy_which_token_it_is():
    space = gym.spaces.Dict(
        {"level": gym.spaces.Box(0, 1, (1,)), "tokens": gym.spaces.Box(0, 2, (1, 2), np.int64)}
    )
    extractor = OneHotExtractor(space)
    features = extractor({"level": torch.tensor([[0.5]]), "tokens": torch.tensor([[[2.0, 0.0]]])})
    assert features.tolist() == [[0.5, 0, 0, 1, 1, 0, 0]]
    assert extractor.features_dim == 7
    model = make_model(Config(num_envs=4, one_hot_tokens=True), seed=0)
    assert isinstance(model.policy.features_extractor, OneHotExtractor)


def test_the_time_budget_ends_the_training(toy):
    model = make_model(Config(env_kwargs=toy, num_envs=16), seed=0)
    model.learn(10**9, callback=TimeBudget(0.0))
    assert model.num_timesteps == 16


def test_the_time_spent_is_reported(toy):
    reports = []
    model = make_model(Config(env_kwargs=toy, num_envs=16), seed=0)
    model.learn(10**9, callback=TimeBudget(0.6, lambda *report: reports.append(report)))
    assert reports[0] == (0, 1, "16 steps")
    assert reports[-1][:2] == (1, 1)


def test_actions_are_clipped_to_the_box(toy):
    env = gym.make_vec("AdaGen/MaskGIT-v0", num_envs=4, **toy)
    model = PPO("MultiInputPolicy", GenVecEnv(env), n_steps=2, batch_size=8)
    torch.nn.init.constant_(model.policy.action_net.bias, 5.0)
    observation, _ = env.reset(seed=0)
    assert actor_from(model, env)(observation).tolist() == [[1.0, 1.0]] * 4


@pytest.mark.parametrize("guess", [0.0, 3.0])
def test_tokens_are_drawn_from_the_policy_with_the_images_own_random_numbers(guess):
    kwargs = {"reward": "none", "autoreset_mode": "Disabled"}
    env, few = (gym.make_vec(TOKENS, num_envs=n, **kwargs) for n in (400, 3))
    model = make_model(Config(env_id=TOKENS, num_envs=4), seed=0)
    torch.nn.init.zeros_(model.policy.action_net.weight)
    model.policy.action_net.bias.data = guess * (torch.arange(128) == 5).float()
    episode = run_episode(env, actor_from(model, env), seed=0)
    share = (episode.actions == 5).float().mean().item()
    assert share == pytest.approx(math.exp(guess) / (math.exp(guess) + 127), abs=0.01)
    one = run_episode(few, actor_from(model, few), seed=1)
    assert torch.equal(one.actions, episode.actions[:, 1:4])


@pytest.mark.parametrize("algo", ["ppo", "trpo"])
def test_a_run_on_tokens_leaves_results(algo):
    config = Config(env_id=TOKENS, algo=algo, seeds=(0,), num_images=100, minutes=0.0, num_envs=16)
    results = list(run(config))
    assert [result.decisions for result in results] == [16, 16]
    assert [result.schedule for result in results] == [{}, {}]


@pytest.mark.parametrize("algo", ["ppo", "trpo"])
def test_a_run_leaves_results_and_models(toy, tmp_path, algo):
    out = tmp_path / "runs" / "sb3.json"
    config = Config(env_kwargs=toy, algo=algo, seeds=(0,), num_images=100, minutes=0.0, num_envs=16, out=out)
    results = list(run(config))
    assert [result.method for result in results] == [f"{algo}, untrained", algo]
    assert results[1].images == 8  # 16 steps of episodes of 2
    assert [path.name for path in out.parent.iterdir()] == ["sb3-0.zip"]


def test_a_model_that_does_not_fit_on_the_disk_is_told_in_one_line(tmp_path, full_disk):
    path = tmp_path / "sb3-0.zip"
    path.write_text("old")
    path.with_name(f"{path.name}.{2**22 + 1}.partial").touch()  # of a process that is no more
    model = make_model(Config(num_envs=2, one_hot_tokens=True), seed=0)
    with pytest.raises(OSError, match=f"^{re.escape(str(path))} could not be written: [^\n]+$"):
        save(model, path)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(path.name, "old")]


def test_a_model_is_read_as_it_was_saved(toy, tmp_path):
    model = make_model(Config(env_kwargs=toy, num_envs=2), seed=0)
    save(model, tmp_path / "runs" / "sb3-0.zip")
    loaded = PPO.load(tmp_path / "runs" / "sb3-0.zip")
    assert all(map(torch.equal, loaded.policy.parameters(), model.policy.parameters()))
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["sb3-0.zip"]
