import gc
import weakref

import gymnasium as gym
import pytest
import torch
from choices import Choices

from genenv import bench
from genenv.actions import LatentActions, TokenActions
from genenv.contexts import Contexts
from genenv.rollout import run_episode, static_actor
from genenv.tiers.digits import DIGITS
from genenv.vector_env import GenVectorEnv, unwrapped

MASKGIT = "AdaGen/MaskGIT-v0"


def random_network(part, backbone):
    torch.manual_seed(0)
    return DIGITS.parts[part]().eval().requires_grad_(False)


@pytest.fixture
def make(monkeypatch):
    """Returns what makes an environment of random networks of the digits' size."""
    for module in ("maskgit", "var", "raster_ar", "ode"):
        monkeypatch.setattr(f"genenv.envs.{module}.load_part", random_network)
    return lambda env_id: gym.make_vec(env_id, num_envs=3, reward="none", schedule="published")


def test_everything_is_measured_at_the_numbers_of_images_that_were_asked_for(monkeypatch):
    monkeypatch.setattr(bench, "RATIO_ENVS", 3)
    monkeypatch.setattr(bench, "LOOP_ENVS", 2)
    made, make_vec = [], gym.make_vec
    monkeypatch.setattr(
        gym, "make_vec", lambda *args, **kwargs: made.append(kwargs) or make_vec(*args, **kwargs)
    )
    found = bench.measure(MASKGIT, repeats=1, batch_sizes=(1, 4), num_steps=2, dtype="bfloat16")
    assert [kwargs["num_envs"] for kwargs in made] == [3, 2, 1, 4]
    assert {kwargs["dtype"] for kwargs in made} == {"bfloat16"}
    assert (found.env_id, found.device, found.peak_memory) == (MASKGIT, "cpu", {})
    for speeds in found.images_per_second.values():
        assert list(speeds) == [1, 4]
        assert min(speeds.values()) > 0
    assert min(found.ratio, found.closed_loop_speedup, found.env_steps_per_second) > 0


def test_the_ratios_are_medians_of_the_repeats(monkeypatch):
    times = {"_native_episode": [2.0, 4.0, 2.0], "_sampler_episode": [2.0, 3.0, 1.0]}
    times |= {"_network_replay": [1.0, 1.0, 1.5], "_closed_loop_episode": [3.0, 2.0, 5.0]}
    times |= {"_separate_loop_episode": [4.0, 4.0, 6.0]}
    for name, seconds in times.items():
        monkeypatch.setattr(bench, name, lambda env, seconds=seconds: iter([0.0, *seconds]))
    monkeypatch.setattr(bench, "_seconds", lambda run, device: next(run))
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    found = bench.measure(MASKGIT, repeats=3, batch_sizes=(8,), num_steps=2)
    assert (found.ratio, found.overhead, found.closed_loop_speedup) == (0.75, 0.5, 1.5)
    assert found.separate_loop_speedup == 2.0
    assert found.env_steps_per_second == bench.RATIO_ENVS * 2 / 2.0
    assert found.sampler_steps_per_second == bench.RATIO_ENVS * 2 / 2.0
    assert found.images_per_second == {"native": {8: 8 / 2.0}}


@pytest.mark.parametrize(
    ("env_id", "network", "count"),
    [
        ("AdaGen/MaskGIT-v0", "network", 4),
        ("AdaGen/VAR-v0", "transformer", 4),
        ("AdaGen/LlamaGen-v0", "read", 16),
        ("AdaGen/VQGAN-v0", "read", 16),
        ("AdaGen/DiT-v0", "network", 8),
        ("AdaGen/SiT-v0", "network", 8),
    ],
)
def test_the_network_calls_of_an_episode_can_be_made_again(make, env_id, network, count):
    env = make(env_id)
    sampler = unwrapped(env).sampler
    networks = dict(vars(sampler))
    calls = bench.network_calls(env)
    assert vars(sampler) == networks  # nothing is left behind
    own = [call for call in calls if call.func == getattr(sampler, network)]
    assert len(own) == count
    # Both halves of the guidance; MaskGIT's first call has one row for all that have no class.
    rows = [len(call()[0]) for call in own]
    assert rows == [4 if env_id == "AdaGen/MaskGIT-v0" else 6, *[6] * (count - 1)]
    torch.testing.assert_close(calls[-1](), run_episode(env, static_actor(env), seed=0).images)


@pytest.mark.parametrize("number", [1, 4])
@pytest.mark.parametrize("actions", [TokenActions(5), LatentActions((2, 3, 3), 5.0)])
def test_actions_that_are_no_schedule_are_zero(actions, number):
    sampler, played = Choices(), []
    sampler.actions = lambda mode, device: actions
    sampler.advance = lambda state, command, rng: played.append(command) or state
    env = GenVectorEnv(sampler, Contexts(["a", "b"]), number)
    bench._native_episode(env)()
    assert len(played) == sampler.horizon
    for command in played:
        assert torch.equal(command, actions.field.zeros(number, command.device))


def test_an_environment_is_gone_when_the_next_one_is_measured(make):
    env = make("AdaGen/VAR-v0")
    paths = {"native": bench._native_episode, "network": bench._network_replay}
    gc.disable()  # memory is measured without waiting for it
    try:
        bench._interleaved(env, paths, repeats=1)
        left = weakref.ref(unwrapped(env).sampler.transformer)
        del env
        assert left() is None
    finally:
        gc.enable()


def test_the_measurements_are_reported(monkeypatch):
    monkeypatch.setattr(bench, "RATIO_ENVS", 2)
    monkeypatch.setattr(bench, "LOOP_ENVS", 3)
    reported = []
    report = lambda *step: reported.append(step)  # noqa: E731
    bench.measure("AdaGen/MaskGIT-v0", repeats=1, batch_sizes=(1, 4), report=report, num_steps=1)
    assert reported == [
        (0, 4, "2 images at once"),
        (1, 4, "plain loops, 3 images at once"),
        (2, 4, "1 images at once"),
        (3, 4, "4 images at once"),
    ]


def test_a_schedule_that_is_not_the_hand_crafted_one_is_not_measured():
    with pytest.raises(ValueError, match="smoothing must be 0 where the hand-crafted schedule is played by"):
        bench.measure(MASKGIT, repeats=1, num_steps=1, action_mode="physical", smoothing=0.5)
