"""Many images through an environment of few."""

import gymnasium as gym
import pytest
import torch

import genenv  # noqa: F401
from agents import chunks
from genenv.protocols import Decision
from genenv.rng import Purpose
from genenv.rollout import schedule_actions
from genenv.vector_env import unwrapped

SEEDS = [7, 2**40, 3, 11, 12, 5, 9, 1, 100, 2**62 + 1]
IDS = ("AdaGen/MaskGIT-v0", "AdaGen/VAR-v0", "AdaGen/SiT-v0")


def make(num_envs, env_id="AdaGen/MaskGIT-v0", **kwargs):
    return gym.make_vec(
        env_id,
        num_envs=num_envs,
        num_steps=4,
        reward="none",
        observe=["features", "step", "context"],
        autoreset_mode="Disabled",
        **kwargs,
    )


def explorer(env):
    """Draws actions from the images' own streams, and hands them out."""
    inner = unwrapped(env)
    size = len(schedule_actions(env).params)

    def act(observation):
        noise = inner.rng.at(inner.current_step).normal(size, purpose=Purpose.POLICY).float()
        return Decision(0.3 * noise, {"noise": noise})

    return act


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("size", [1, 3, 4, 10, 16])
def test_images_are_the_same_in_chunks_of_any_size(env_id, size):
    whole_env, env = make(len(SEEDS), env_id), make(size, env_id)
    whole = chunks.play(whole_env, explorer(whole_env), SEEDS)
    parts = chunks.play(env, explorer(env), SEEDS)
    torch.testing.assert_close(parts.images, whole.images)
    torch.testing.assert_close(parts.extras["noise"], whole.extras["noise"])
    assert parts.context.tolist() == whole.context.tolist()
    assert bool(parts.observations) == (size >= len(SEEDS))


@pytest.mark.parametrize("kwargs", [{}, {"smoothing": 0.8}])
@pytest.mark.parametrize("env_id", IDS)
def test_what_was_seen_is_found_again(env_id, kwargs):
    whole_env, env = make(len(SEEDS), env_id, **kwargs), make(3, env_id, **kwargs)
    whole = chunks.play(whole_env, explorer(whole_env), SEEDS)
    parts = chunks.play(env, explorer(env), SEEDS)
    number, seen = len(SEEDS), set()
    rows = torch.randperm(len(whole.actions) * number, generator=torch.Generator().manual_seed(0))[:17]
    for observation, t, i in chunks.decisions(env, parts, SEEDS, rows):
        assert len(t) <= 3
        for name, value in whole.observations.items():
            torch.testing.assert_close(observation[name], value[t, i], rtol=1e-4, atol=1e-4)
        seen |= set(zip(t.tolist(), i.tolist(), strict=True))
    assert seen == {(row // number, row % number) for row in rows.tolist()}
    observation, t, i = next(iter(chunks.decisions(whole_env, whole, SEEDS, rows)))
    assert torch.equal(t * number + i, rows)
    for name, value in whole.observations.items():
        assert torch.equal(observation[name], value[t, i])


def test_no_images_are_no_parts():
    env = make(3)
    episode = chunks.play(env, explorer(env), SEEDS)
    assert list(chunks.decisions(env, episode, SEEDS, torch.zeros(0, dtype=torch.int64))) == []
