import gymnasium as gym
import numpy as np
import pytest
import torch
from choices import Choices
from episodes import SHORT, TOKENS, compared

from genenv.contexts import Contexts
from genenv.rollout import default_actor, run_episode
from genenv.scopes import Adaptive, Detector, Fixed, Full, Random, mask
from genenv.vector_env import GenVectorEnv, unwrapped
from genenv.wrappers.vector import EMAActionSmoothing, InterventionWindow, TerminalReward

MASKGIT = "AdaGen/MaskGIT-v0"
CASES = [(env_id, "residual") for env_id in SHORT]
CASES += [(env_id, "physical") for env_id in SHORT if env_id not in TOKENS]
EAGER = Detector(
    start_threshold=0.6,
    end_threshold=0.8,
    start_patience=1,
    end_patience=1,
    latest_start=0.7,
    latest_end=1.0,
    shortest=0.2,
)


def make(env_id=MASKGIT, mode="residual", num_envs=3, **kwargs):
    kwargs = SHORT[env_id] | compared(env_id, mode) | {"reward": "none", "action_mode": mode} | kwargs
    return gym.make_vec(env_id, num_envs=num_envs, **kwargs)


def sampled(env, seed=0):
    """Returns random actions of the whole space (T, N, ...)."""
    env.action_space.seed(seed)
    return torch.stack(
        [torch.as_tensor(env.action_space.sample()) for _ in range(unwrapped(env).sampler.horizon)]
    )


def play(env, actions, seed=3):
    """Returns the episode with given actions (T, N, ...)."""
    each = iter(actions)
    return run_episode(env, lambda observation: next(each), seed=seed)


def assert_same(one, other):
    assert torch.equal(one.images, other.images)
    for found, expected in ((one.observations, other.observations), (one.diagnostics, other.diagnostics)):
        assert found.keys() == expected.keys()
        for name in found:
            assert torch.equal(found[name], expected[name]), name


@pytest.mark.parametrize(("env_id", "mode"), CASES)
def test_what_an_agent_wants_outside_changes_nothing_and_inside_it_does(env_id, mode):
    env = InterventionWindow(make(env_id, mode), Fixed(1, 2))
    actions, others = sampled(env), sampled(env, seed=1)
    outside, inside = others.clone(), actions.clone()
    outside[1], inside[1] = actions[1], others[1]
    episode = play(env, actions)
    assert_same(play(env, outside), episode)
    assert not torch.equal(play(env, inside).images, episode.images)
    horizon = unwrapped(env).sampler.horizon
    assert episode.diagnostics["intervened"].tolist() == [[k == 1] * 3 for k in range(horizon)]


@pytest.mark.parametrize(("env_id", "mode"), CASES)
def test_a_full_scope_is_the_environment_itself(env_id, mode):
    env = make(env_id, mode)
    actions = sampled(env)
    wrapped, plain = play(InterventionWindow(env, Full()), actions), play(env, actions)
    assert wrapped.diagnostics.pop("intervened").all()
    assert_same(wrapped, plain)


@pytest.mark.parametrize(("env_id", "mode"), CASES)
def test_an_empty_scope_is_the_default_actor(env_id, mode):
    env = make(env_id, mode)
    wrapped = play(InterventionWindow(env, "fixed:0:0"), sampled(env))
    assert not wrapped.diagnostics.pop("intervened").any()
    assert_same(wrapped, run_episode(env, default_actor(env), seed=3))


@pytest.mark.parametrize("env_id", [MASKGIT, *TOKENS])
def test_each_image_has_a_scope_of_its_own(env_id):
    env = make(env_id, num_envs=8)
    actions, horizon = sampled(env), unwrapped(env).sampler.horizon
    wrapped = play(InterventionWindow(env, Random(2)), actions)
    inside = mask(Random(2), horizon, unwrapped(env).rng)  # of the next episode: the last step has reset
    assert not torch.equal(wrapped.diagnostics["intervened"], inside)
    env.reset(seed=3)
    inside = mask(Random(2), horizon, unwrapped(env).rng)
    assert torch.equal(wrapped.diagnostics["intervened"], inside)
    name = "token" if env_id in TOKENS else "schedule/mask_ratio"
    found, wanted = (wrapped.diagnostics[name], play(env, actions).diagnostics[name])
    assert torch.equal(found[inside], wanted[inside])
    assert not torch.equal(found, wanted)


def test_it_is_known_whose_actions_were_played_in_every_mode(player):
    env = InterventionWindow(make(num_envs=2, **player.kwargs), Fixed(1, 3))
    found = []
    for _, _, _, _, info in player.steps(env, episodes=2):
        info = info.get("final_info", info)
        if not info:
            found.append("reset")
            continue
        kind = torch.Tensor if player.output == "torch" else np.ndarray
        assert isinstance(info["intervened"], kind)
        assert isinstance(info["_intervened"], kind)
        assert info["_intervened"].tolist() == [True] * 2
        assert info["intervened"].tolist() == [bool(info["intervened"][0])] * 2
        found.append(bool(info["intervened"][0]))
    episode = [False, True, True]
    assert found == (episode + ["reset"] * (player.mode == "NextStep") + episode)


class Recorder:
    """A judge that keeps what it saw and said."""

    def __init__(self, judge):
        self.judge, self.images, self.said, self.resets = judge, [], [], 0

    def __call__(self, images, context):
        self.images.append(images)
        self.said.append(self.judge(images, context))
        return self.said[-1]

    def reset(self):
        self.resets += 1


def brightness(images, context):
    return images.mean((1, 2, 3)) + 0 * context


def upper_half(images, context):
    return images[:, :, :4].mean((1, 2, 3)) + context


def test_adaptive_windows_follow_the_previews_of_their_own_episode(player):
    semantic, reward = Recorder(brightness), Recorder(upper_half)
    inner = make(num_envs=6, num_steps=9, **player.kwargs)
    env = InterventionWindow(inner, Adaptive(EAGER), semantic, reward)
    found = [info.get("final_info", info) for _, _, _, _, info in player.steps(env, episodes=2)]
    found = [torch.as_tensor(info["intervened"]) for info in found if info]
    assert len(found) == len(semantic.said) == 18
    for episode in (slice(9), slice(9, 18)):
        curves = (torch.stack(judge.said[episode]) for judge in (semantic, reward))
        expected = mask(Adaptive(EAGER), 9, unwrapped(env).rng, *curves)
        assert torch.equal(torch.stack(found[episode]), expected)
        assert len(expected.unique(dim=1).T) > 1


@pytest.mark.parametrize(("env_id", "shown"), [(MASKGIT, "decode"), ("AdaScope/Denoising-v0", "preview")])
def test_a_preview_is_what_the_sampler_expects_or_has_made_so_far(env_id, shown):
    env = make(env_id)
    judges = Recorder(brightness), Recorder(brightness)
    wrapped = InterventionWindow(env, "adaptive", *judges)
    show, actions = getattr(unwrapped(env).sampler, shown), sampled(env)
    wrapped.reset(seed=3)
    for action in actions[:2]:
        expected = show(unwrapped(env).state)
        wrapped.step(action)
        for judge in judges:
            assert torch.equal(judge.images[-1], expected)


def test_a_refused_action_leaves_no_point_in_the_curves():
    env = InterventionWindow(make(num_envs=1, num_steps=9), Adaptive(EAGER), brightness, upper_half)
    actions = sampled(env)
    undisturbed = play(env, actions).diagnostics["intervened"]
    assert 0 < undisturbed.sum() < 9
    env.reset(seed=3)
    for k, action in enumerate(actions):
        if undisturbed[k]:
            with pytest.raises(ValueError, match="must be finite"):
                env.step(torch.full_like(action, torch.nan))
        info = env.step(action)[-1]
        assert torch.equal(info.get("final_info", info)["intervened"], undisturbed[k])


def test_illegal_actions_that_are_not_played_do_no_harm():
    env = InterventionWindow(make(), "fixed:0:0")
    env.reset(seed=3)
    env.step(torch.full((3, 4), torch.nan))


def test_judges_forget_with_a_seed():
    judges = Recorder(brightness), Recorder(brightness)
    env = InterventionWindow(make(), "adaptive", *judges)
    env.reset(seed=1)
    env.reset()
    assert [judge.resets for judge in judges] == [1, 1]


def test_the_judges_are_clip_and_the_backbones_own_unless_others_are_named():
    env = InterventionWindow(make(), "adaptive")
    assert [list(judge.rewards) for judge in env.judges] == [["clip"], ["adversarial"]]
    assert play(env, sampled(env)).diagnostics["intervened"].dtype == torch.bool
    env = InterventionWindow(make(), "adaptive", "classifier", {"clip": 1.0, "classifier": 2.0})
    assert [list(judge.rewards) for judge in env.judges] == [["classifier"], ["clip", "classifier"]]
    assert InterventionWindow(make(), "full", "nothing", "of the kind").judges == []


@pytest.mark.parametrize("network", ["dit", "sit"])
def test_the_usual_windows_are_about_the_published_ones(network):
    env = make("AdaScope/Denoising-v0", num_envs=32, num_steps=50, network=network, observe=["mean"])
    inside = run_episode(InterventionWindow(env, "adaptive"), default_actor(env), seed=0).diagnostics
    inside = inside["intervened"].float()
    start, length = inside.argmax(0).float(), inside.sum(0)
    assert start.mean().item() == pytest.approx(5.3, abs=2.5)
    assert (start + length).mean().item() == pytest.approx(31.8, abs=4)
    assert (start < 10).float().mean() > 0.5  # most are found, and not only the latest


def test_actions_may_be_smoothed_outside_and_the_image_may_be_paid_inside_or_out():
    env = TerminalReward(make(), brightness)
    paid = [
        play(wrapped, sampled(env)).returns
        for wrapped in (
            InterventionWindow(env, "fixed:1:2"),
            TerminalReward(InterventionWindow(make(), "fixed:1:2"), brightness),
        )
    ]
    assert torch.equal(*paid)
    smooth = EMAActionSmoothing(InterventionWindow(make(), "fixed:0:0"), 0.5)
    assert torch.equal(
        play(smooth, sampled(env)).images, run_episode(make(), default_actor(make()), seed=3).images
    )


@pytest.mark.parametrize(
    ("kwargs", "arguments", "message"),
    [
        ({}, ["fixed:1:4"], "within the horizon of 3 decisions, got end 4"),
        ({}, ["random:4"], "at most the horizon's 3 decisions, got 4"),
        ({}, ["sometimes"], "scope must be 'full', .*, got 'sometimes'"),
        (
            {},
            ["adaptive", "none"],
            "semantic must be a reward, which 'none' is not for the backbone 'digits'",
        ),
        ({}, ["adaptive", "clip", "beauty"], "reward must be one of none, default, .*, got 'beauty'"),
        (
            {"num_envs": 1},
            ["adaptive", {"clip": 1.0, "normalise": True}],
            "'normalise' compares at least 2 images",
        ),
        (
            {"smoothing": 0.5},
            ["full"],
            r"smoothing must be 0 inside an InterventionWindow, got 0\.5; .*\(InterventionWindow\(env",
        ),
        (
            {"env_id": "PolicyTuning/Tokens-v0", "observe": ["tokens"]},
            ["full"],
            r"actions are drawn from 'logits', .* observe=\['logits'\], got observe=\['tokens'\]",
        ),
        ({"env_id": "ART/GaussianMixture-v0"}, ["adaptive"], "'normal' has no scorer of prompts"),
    ],
)
def test_what_cannot_be_is_refused_by_name(kwargs, arguments, message):
    with pytest.raises(ValueError, match=message):
        InterventionWindow(make(**kwargs), *arguments)


def test_judges_by_name_need_to_know_the_backbone():
    env = GenVectorEnv(unwrapped(make()).sampler, unwrapped(make()).contexts, 2)
    with pytest.raises(
        ValueError, match=r"semantic must be a reward .* gymnasium did not make .*, got 'clip'"
    ):
        InterventionWindow(env, "adaptive")
    with pytest.raises(
        ValueError, match=r"reward must be a reward .* gymnasium did not make .*, got 'default'"
    ):
        InterventionWindow(env, "adaptive", brightness)
    InterventionWindow(env, "adaptive", brightness, brightness)


def test_an_adaptive_window_sees_its_episodes_from_the_start():
    inner = make()
    env = InterventionWindow(inner, "adaptive", brightness, brightness)
    inner.reset(seed=0)
    inner.step(torch.zeros(3, 4))
    with pytest.raises(gym.error.ResetNeeded, match="began without its InterventionWindow"):
        env.step(torch.zeros(3, 4))


def test_nothing_is_decided_before_the_first_reset():
    env = InterventionWindow(make(), "full")
    with pytest.raises(gym.error.ResetNeeded, match=r"call reset\(\) before step"):
        env.step(torch.zeros(3, 4))


@pytest.mark.parametrize("scope", ["full", "fixed:0:0", "adaptive"])
def test_wrong_actions_are_refused_in_the_environments_words(scope):
    env = InterventionWindow(make(), scope)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions must have shape \(3, 4\), got \(2, 4\)"):
        env.step(torch.zeros(2, 4))


def test_tokens_are_drawn_as_they_are_asked_for_by_another_environment():
    with pytest.raises(ValueError, match="drawn from 'logits'"):
        InterventionWindow(GenVectorEnv(Choices(), Contexts(["a", "b"]), 4), "full")


class Halved(gym.wrappers.vector.TransformAction):
    def __init__(self, env):
        super().__init__(env, lambda action: action / 2, env.action_space)


def test_wrappers_that_change_actions_must_stand_outside():
    env = Halved(gym.make_vec(MASKGIT, num_envs=2, reward="none"))
    with pytest.raises(ValueError, match=r"Halved must stand outside of an InterventionWindow, .* as Halved"):
        InterventionWindow(env, "full")
    Halved(InterventionWindow(env.env, "full"))


def test_points_of_an_episode_begun_elsewhere_are_not_taken():
    env = InterventionWindow(
        gym.make_vec(MASKGIT, num_envs=2, num_steps=4, autoreset_mode="Disabled"), "adaptive"
    )
    zeros = torch.zeros(2, 4)
    env.reset(seed=0)
    for _ in range(4):
        env.step(zeros)
    env.unwrapped.reset(seed=1)
    env.unwrapped.step(zeros)
    with pytest.raises(gym.error.ResetNeeded, match="the episode began without its InterventionWindow"):
        env.step(zeros)


def test_a_scope_must_be_one():
    with pytest.raises(ValueError, match=r"scope must be 'full', .*, got None"):
        InterventionWindow(gym.make_vec(MASKGIT, num_envs=2), None)
