import gymnasium as gym
import pytest
import torch

import genenv
from genenv.check import check
from genenv.rollout import run_episode

VARIANTS = {
    "default": {},
    "features": {"observe": ["features", "step", "context", "prev_action"]},
    "smoothed": {"smoothing": 0.8},
    "grouped": {"contexts": "grouped:1"},
}
SHORTEST = {
    "AdaGen/MaskGIT-v0": {"num_steps": 1},
    "AdaGen/VAR-v0": {"num_steps": 4},
    "AdaGen/LlamaGen-v0": {"tokens_per_decision": 16},
    "AdaGen/DiT-v0": {"num_steps": 1, "solver": "euler"},
    "AdaGen/SiT-v0": {"num_steps": 1, "solver": "euler"},
}
"""Environment id -> keyword arguments of its shortest episode."""


@pytest.mark.parametrize("env_id", genenv.env_ids())
def test_the_shortest_episode_keeps_every_promise(env_id):
    broken = {promise: found for promise, found in check(env_id, **SHORTEST[env_id]) if found is not None}
    assert not broken


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("env_id", genenv.env_ids())
def test_every_id_keeps_every_promise(env_id, variant):
    broken = {promise: found for promise, found in check(env_id, **VARIANTS[variant]) if found is not None}
    assert not broken


@pytest.mark.parametrize("env_id", genenv.env_ids())
def test_two_copies_of_an_environment_agree(env_id):
    episodes = []
    for _ in range(2):
        env = gym.make_vec(env_id, num_envs=4)
        generator = torch.Generator().manual_seed(0)
        shape = env.action_space.shape
        episodes.append(run_episode(env, lambda _, g=generator, s=shape: torch.randn(s, generator=g), seed=3))
    assert torch.equal(episodes[0].images, episodes[1].images)
    assert torch.equal(episodes[0].rewards, episodes[1].rewards)


def test_a_broken_promise_is_found(monkeypatch):
    from genenv.actions import ScheduleActions
    from genenv.rng import BatchRng

    class Crooked(ScheduleActions):
        def __call__(self, action, t):
            return super().__call__(action.nan_to_num(posinf=1.0) + 0.1, t)

    monkeypatch.setattr("genenv.envs.maskgit.ScheduleActions", Crooked)
    uniform = BatchRng.uniform
    monkeypatch.setattr(
        BatchRng,
        "uniform",
        lambda self, *shape, purpose=0: uniform(self, *shape, purpose=purpose).roll(len(self.seeds) // 2, 0),
    )
    broken = {promise for promise, found in check("AdaGen/MaskGIT-v0") if found is not None}
    assert broken == {
        "an image depends on its seed and actions, not on its batch",
        "a zero action is the hand-crafted schedule",
        "an action that is not finite is refused",
    }
