import functools

import gymnasium as gym
import pytest
import torch
from choices import Choices
from episodes import SHORT, SHORTEST, TOKENS, compared

import genenv
from genenv.actions import TokenActions
from genenv.check import CheckFailed, _not_legal, check
from genenv.contexts import Contexts
from genenv.rollout import default_actor, run_episode
from genenv.vector_env import GenVectorEnv

MIXTURE = {"classifier": 1.0, "loo_fid": 2.0, "normalise": True}
VARIANTS = {
    "default": {},
    "features, cycle": {"observe": ["features", "step", "context", "prev_action"], "contexts": "cycle"},
    "smoothed, listed": {"smoothing": 0.8, "contexts": [7, 1, 1, 4, 0]},
    "physical, grouped by 3": {"action_mode": "physical", "contexts": "grouped:3"},
    "physical, smoothed": {"action_mode": "physical", "smoothing": 0.5},
    "bfloat16": {"dtype": "bfloat16"},
    "float16": {"dtype": "float16", "observe": ["features", "step"]},
    "mixture of groups": {"reward": MIXTURE, "contexts": "grouped:2"},
}
SOLVERS = ("dpm2s", "euler", "heun", "dpmpp2m")
ODE = ("AdaGen/DiT-v0", "AdaGen/SiT-v0")


def broken(env_id, kwargs):
    return {promise: found for promise, found in check(env_id, **kwargs) if found is not None}


@pytest.mark.parametrize("env_id", SHORTEST)
def test_the_shortest_episode_keeps_every_promise(env_id):
    assert not broken(env_id, SHORTEST[env_id])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("env_id", SHORTEST)
def test_every_id_keeps_every_promise(env_id, variant):
    kwargs = {} if variant == "default" else SHORT[env_id] | VARIANTS[variant]
    if env_id in TOKENS:
        kwargs = {name: value for name, value in kwargs.items() if name not in ("smoothing", "action_mode")}
    if (
        env_id == "AdaGen/MaskGIT-v0" and "dtype" in kwargs
    ):  # a token may flip by rounding, of likely ones seldom
        kwargs = kwargs | {"schedule": "published"}
    if env_id == "ART/GaussianMixture-v0":  # points have no labels, and no rewards that compare them
        kwargs = kwargs | {"contexts": "uniform", "reward": "none"}
    if env_id == "ART/Clock-v0" and "dtype" in kwargs:  # forward mode has rules of its own for each type
        kwargs = kwargs | {"derivative": "jvp", "num_steps": 2}
    assert not broken(env_id, kwargs)


class Lenient(TokenActions):
    """Takes what does not exist for a token that does."""

    def __init__(self, low, high):
        super().__init__(5)
        self.taken = low, high

    def __call__(self, action, t):
        low, high = self.taken
        return super().__call__(
            torch.where((action >= low) & (action <= high), action.clamp(0, 4), action), t
        )


@pytest.mark.parametrize(
    ("actions", "found"),
    [
        (TokenActions(5), None),
        (Lenient(-1, 4), "an action of -1 is accepted"),
        (Lenient(0, 5), "an action of 5 is accepted"),
    ],
)
@pytest.mark.parametrize("output", ["torch", "numpy"])
def test_tokens_that_do_not_exist_must_be_refused(actions, found, output):
    sampler = Choices()
    sampler.actions = lambda mode, device: actions
    make = lambda: GenVectorEnv(sampler, Contexts(["a", "b"]), 4, output=output)  # noqa: E731
    if found is None:
        _not_legal(make)
        return
    with pytest.raises(CheckFailed, match=found):
        _not_legal(make)


@pytest.mark.parametrize("budget", ["projection", "multiplier"])
@pytest.mark.parametrize("derivative", ["jvp", "finite-difference"])
@pytest.mark.parametrize(
    ("env_id", "kwargs"),
    [
        ("ART/Clock-v0", {"network": "dit", "guidance_weight": 1.5}),
        ("ART/Clock-v0", {"network": "sit", "sigma_max": 9, "sigma_min": 0.1, "action_mode": "physical"}),
        ("ART/GaussianMixture-v0", {"backbone": "mixture-1d", "observe": ["point", "psi", "features"]}),
        ("ART/GaussianMixture-v0", {"backbone": "mixture-2d", "sigma_max": 4.0}),
    ],
)
def test_every_clock_keeps_every_promise(env_id, kwargs, budget, derivative):
    assert not broken(env_id, kwargs | {"num_steps": 2, "budget": budget, "derivative": derivative})


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("env_id", ODE)
def test_every_solver_keeps_every_promise(env_id, solver):
    kwargs = {"solver": solver, "num_steps": 4, "contexts": "grouped:3", "observe": ["latents", "features"]}
    assert not broken(env_id, kwargs)


@pytest.mark.parametrize("env_id", SHORTEST)
def test_a_compiled_network_makes_the_same_images(env_id, monkeypatch):
    # Without code generation, which takes minutes: what is traced is the same.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    plain, compiled = (
        run_episode(env, default_actor(env), seed=3).images
        for env in (
            gym.make_vec(env_id, num_envs=3, reward="none", compile=c, **compared(env_id))
            for c in (False, True)
        )
    )
    torch.testing.assert_close(compiled, plain, atol=1e-4, rtol=0)


def test_every_id_of_the_package_is_tried():
    assert set(SHORTEST) == set(SHORT) == set(genenv.registration.PARADIGMS)


@pytest.mark.parametrize("env_id", SHORTEST)
def test_two_copies_of_an_environment_agree(env_id):
    episodes = []
    for _ in range(2):
        env = gym.make_vec(env_id, num_envs=4)
        env.action_space.seed(0)
        episodes.append(run_episode(env, lambda _, s=env.action_space: torch.as_tensor(s.sample()), seed=3))
    assert torch.equal(episodes[0].images, episodes[1].images)
    assert torch.equal(episodes[0].rewards, episodes[1].rewards)


def test_a_broken_promise_is_found(monkeypatch):
    from genenv.actions import ScheduleActions
    from genenv.rng import BatchRng, Purpose

    class Crooked(ScheduleActions):
        def __call__(self, action, t):
            return super().__call__(action.nan_to_num(posinf=1.0) + 0.1, t)

    monkeypatch.setattr("genenv.envs.maskgit.ScheduleActions", Crooked)
    uniform = BatchRng.uniform

    def rolled(self, *shape, purpose=Purpose.TRANSITION):
        return uniform(self, *shape, purpose=purpose).roll(len(self.seeds) // 2, 0)

    monkeypatch.setattr(BatchRng, "uniform", rolled)
    assert broken("AdaGen/MaskGIT-v0", {}).keys() == {
        "an image depends on its seed and actions, not on its batch",
        "a zero action is the hand-crafted schedule",
        "an action that is not finite is refused",
    }


@pytest.mark.parametrize("num_steps", [2, 4])
def test_rounding_that_strong_guidance_enlarges_breaks_no_promise(num_steps):
    assert not broken("AdaGen/DiT-v0", {"action_mode": "physical", "num_steps": num_steps})


@pytest.mark.parametrize("kwargs", [{"output": "numpy"}, {"autoreset_mode": "NextStep"}])
def test_the_promises_choose_what_they_are_about_themselves(kwargs):
    assert not broken("AdaGen/MaskGIT-v0", {"num_steps": 1} | kwargs)


LEAKS = {
    "the mean of the batch": lambda x: x + 1e-6 * x.mean(0, keepdim=True),
    "the neighbour": lambda x: x + 1e-6 * x.roll(1, 0),
    "the first image": lambda x: x + 1e-6 * x[:1],
    "the place": lambda x: x * (1 + 0.01 * torch.arange(len(x)).view(-1, 1, 1, 1)),
    "the number": lambda x: x * (1 - 0.01 * len(x)),
}


@pytest.mark.parametrize("leak", LEAKS.values(), ids=LEAKS.keys())
@pytest.mark.parametrize("env_id", ["AdaGen/MaskGIT-v0", "AdaGen/DiT-v0"])
def test_an_image_that_sees_its_batch_is_found_however_little_it_sees(monkeypatch, env_id, leak):
    from genenv.vector_env import GenVectorEnv

    images = GenVectorEnv._images
    monkeypatch.setattr(GenVectorEnv, "_images", lambda env: leak(images(env)).clamp(0, 1))
    promise = "an image depends on its seed and actions, not on its batch"
    assert broken(env_id, {"num_steps": 2}).keys() == {promise}


@pytest.mark.parametrize(
    "error", [ValueError, RuntimeError, KeyError, ZeroDivisionError, NotImplementedError]
)
def test_an_environment_that_fails_breaks_the_promises_it_fails_in(monkeypatch, error):
    from genenv.envs.maskgit import MaskGITSampler

    advance = MaskGITSampler.advance

    def failing(self, state, command, rng):
        if len(state.tokens) == 2:
            raise error("two\nare too many")
        return advance(self, state, command, rng)

    monkeypatch.setattr(MaskGITSampler, "advance", failing)
    (found,) = broken("AdaGen/MaskGIT-v0", {"num_steps": 2}).items()
    assert found[0] == "an image depends on its seed and actions, not on its batch"
    assert found[1].startswith(f"{error.__name__}: ")
    assert "\n" not in found[1]


@pytest.mark.parametrize("reward", ["fid", {"classifier": 1.0, "normalise": True}])
def test_a_single_image_is_checked_without_a_reward_that_compares_images(reward):
    kwargs = {"num_steps": 1, "contexts": "grouped:2", "reward": reward}
    assert not broken("AdaGen/MaskGIT-v0", kwargs)


def test_a_single_environment_that_cannot_be_made_is_found(monkeypatch):
    from genenv.single_env import GenEnv

    made = []

    def refused_once(env):
        made.append(env)
        if len(made) == 1:
            raise ValueError("the first one is refused")
        return GenEnv(env)

    monkeypatch.setattr("genenv.make.GenEnv", refused_once)
    assert broken("AdaGen/MaskGIT-v0", {"num_steps": 1}) == {
        "Gymnasium's check_env passes without a warning": "ValueError: the first one is refused"
    }
