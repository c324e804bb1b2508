"""The settings of the hand-crafted schedules, as arguments of `schedule_params` and as keyword arguments of the ids."""

import math

import gymnasium as gym
import pytest
import torch
from episodes import SHORT
from gymnasium.envs.registration import EnvSpec

import genenv  # noqa: F401
from baselines.random import random_actor
from genenv.check import check
from genenv.envs import diffusion, flow, maskgit, raster_ar, var
from genenv.evaluation import Evaluator
from genenv.make import has_own_schedule
from genenv.rollout import run_episode, schedule_actions, static_actor
from genenv.schedules import POSITIVE, setting
from genenv.tiers import schedule_settings, tiers
from genenv.tiers.digits import DIGITS
from genenv.vector_env import unwrapped

SETTINGS = {
    "AdaGen/MaskGIT-v0": {"guidance_weight": 2.5, "mask_temperature": 4.5, "token_temperature": 0.7},
    "AdaGen/VAR-v0": {
        "guidance_weight": 0.8,
        "top_k": 0.4,
        "top_p": 0.5,
        "token_temperature": 2,
        "top_k_rule": "released",
    },
    "AdaGen/LlamaGen-v0": {"guidance_weight": 3.0, "top_k": 7, "top_p": 0.9, "token_temperature": 1.3},
    "AdaGen/VQGAN-v0": {"guidance_weight": 2.0, "top_k": 30, "top_p": 0.8, "token_temperature": 0.9},
    "AdaGen/DiT-v0": {"guidance_weight": 0.3, "grid": "edm"},
    "AdaGen/SiT-v0": {"guidance_weight": 4.0, "grid": [60, 8.5, 3, 2, 1, 0.5, 0.1, 0.02, 0]},
}


ENDS = {
    "AdaGen/MaskGIT-v0": [{"guidance_weight": 0, "mask_temperature": 0}, {"token_temperature": 0.0}],
    "AdaGen/VAR-v0": [
        {"guidance_weight": 0, "top_p": 1.0, "top_k": 128},
        {"top_k": 0, "top_p": 0, "token_temperature": 0},
        {"top_k": 0, "top_p": 1, "top_k_rule": "released"},
    ],
    "AdaGen/LlamaGen-v0": [
        {"guidance_weight": 0.0, "top_k": 0, "top_p": 1.0},
        {"top_k": 256, "top_p": 0, "token_temperature": 0},
    ],
    "AdaGen/VQGAN-v0": [
        {"guidance_weight": 0, "top_k": 256, "top_p": 0},
        {"token_temperature": 0, "top_p": 1},
    ],
    "AdaGen/DiT-v0": [{"guidance_weight": 0}],
    "AdaGen/SiT-v0": [{"guidance_weight": 0.0, "solver": "heun"}],
}
"""Settings at the ends of their ranges."""
AT_AN_END = [(env_id, settings) for env_id in ENDS for settings in ENDS[env_id]]


def schedules(env_id, **kwargs):
    env = gym.make_vec(env_id, num_envs=1, reward="none", **kwargs)
    return {param.name: param.static for param in unwrapped(env).sampler.params}


def expected(env_id, name, value, horizon):
    """Returns the hand-crafted schedule that a setting stands for, a list of numbers."""
    if env_id == "AdaGen/MaskGIT-v0" and name == "mask_temperature":
        return [value * (1 - (t + 0.999) / horizon) for t in range(horizon)]
    if env_id == "AdaGen/MaskGIT-v0" and name == "guidance_weight":
        return [value * (t + 0.001) / horizon for t in range(horizon)]
    return [value] * horizon


@pytest.mark.parametrize(
    ("env_id", "name"),
    [
        (env_id, name)
        for env_id, settings in SETTINGS.items()
        for name in settings
        if name not in ("top_k_rule", "grid")
    ],
)
def test_a_setting_changes_its_own_parameter_and_no_other(env_id, name):
    value = SETTINGS[env_id][name]
    usual, found = schedules(env_id), schedules(env_id, **{name: value})
    horizon = len(usual[name])
    assert found[name].tolist() == pytest.approx(expected(env_id, name, value, horizon))
    assert not torch.equal(found[name], usual[name])
    for other in usual.keys() - {name}:
        assert torch.equal(found[other], usual[other])


@pytest.mark.parametrize("env_id", SETTINGS)
def test_none_is_the_setting_of_the_hand_crafted_schedule(env_id):
    settings = dict.fromkeys(SETTINGS[env_id].keys() - {"top_k_rule"})
    usual, found = schedules(env_id), schedules(env_id, **settings)
    assert all(torch.equal(found[name], usual[name]) for name in usual)


@pytest.mark.parametrize(("env_id", "settings"), SETTINGS.items())
def test_every_promise_is_kept_with_other_settings(env_id, settings):
    few = {} if isinstance(settings.get("grid"), list) else SHORT[env_id]
    assert [
        (promise, found) for promise, found in check(env_id, **few, **settings) if found is not None
    ] == []


@pytest.mark.parametrize(("env_id", "settings"), AT_AN_END)
@pytest.mark.parametrize("mode", ["residual", "physical"])
def test_a_setting_at_an_end_of_its_range_is_played_exactly(env_id, settings, mode):
    env = gym.make_vec(env_id, num_envs=2, reward="none", action_mode=mode, **settings)
    actions = schedule_actions(env)
    for t in range(actions.horizon):
        played = actions(actions.handcrafted(2, t), t)
        for name in settings.keys() & played.keys():
            value = (
                128
                if (env_id, name, settings[name]) == ("AdaGen/LlamaGen-v0", "top_k", 0)
                else settings[name]
            )
            assert played[name].tolist() == [expected(env_id, name, value, actions.horizon)[t]] * 2
    moved = actions(torch.full((2, len(actions.params)), 0.5), t)
    assert all(value.isfinite().all() for value in moved.values())


@pytest.mark.parametrize(("env_id", "settings"), AT_AN_END)
def test_every_promise_is_kept_at_the_ends_of_the_ranges(env_id, settings):
    found = check(env_id, **SHORT[env_id] | settings)
    assert [(promise, what) for promise, what in found if what is not None] == []


def images(env_id, settings):
    env = gym.make_vec(env_id, num_envs=16, reward="none", **settings)
    return run_episode(env, static_actor(env), seed=5).images


@pytest.mark.parametrize(
    ("env_id", "settings", "same", "other"),
    [
        ("AdaGen/LlamaGen-v0", {"top_k": 0, "top_p": 1.0}, {"top_k": 256, "top_p": 1}, {"top_k": 1}),
        ("AdaGen/VAR-v0", {"top_k": 0}, {"top_k": 1, "top_p": 1}, {"top_k": 128}),
        (
            "AdaGen/VAR-v0",
            {"top_k": 0, "top_p": 1, "top_k_rule": "released"},
            {"top_k": 128, "top_p": 1.0},
            {"top_k": 1, "top_p": 1},
        ),
    ],
)
def test_filters_at_an_end_keep_all_tokens_or_one(env_id, settings, same, other):
    found = images(env_id, settings)
    assert torch.equal(found, images(env_id, same))
    assert not torch.equal(found, images(env_id, other))


@pytest.mark.parametrize(("env_id", "settings"), SETTINGS.items())
def test_settings_survive_json(env_id, settings):
    spec = gym.make(env_id, reward="none", **settings).spec
    assert spec is not None
    spec = EnvSpec.from_json(spec.to_json())
    assert {name: spec.kwargs[name] for name in settings} == settings
    env = gym.make_vec(spec, num_envs=1, vectorization_mode="vector_entry_point")
    expected = schedules(env_id, **settings)
    assert all(torch.equal(param.static, expected[param.name]) for param in unwrapped(env).sampler.params)


@pytest.mark.parametrize(
    ("env_id", "settings", "message"),
    [
        ("AdaGen/MaskGIT-v0", {"mask_temperature": -0.1}, r"mask_temperature .* in \[0, inf\), got -0.1"),
        ("AdaGen/MaskGIT-v0", {"token_temperature": -1.0}, r"token_temperature .* got -1.0"),
        ("AdaGen/MaskGIT-v0", {"guidance_weight": math.inf}, "guidance_weight .* got inf"),
        ("AdaGen/DiT-v0", {"guidance_weight": math.nan}, "guidance_weight .* got nan"),
        ("AdaGen/SiT-v0", {"guidance_weight": -1e-9}, "guidance_weight .* got -1e-09"),
        ("AdaGen/SiT-v0", {"guidance_weight": "1"}, "guidance_weight must be a number, .* got '1'"),
        ("AdaGen/VAR-v0", {"top_p": 1.5}, r"top_p must be a finite number in \[0, 1\], got 1.5"),
        ("AdaGen/VAR-v0", {"top_p": True}, "top_p must be a number, .* got True"),
        ("AdaGen/VAR-v0", {"top_k": 129}, r"top_k must be a finite number in \[0, 128\], got 129"),
        (
            "AdaGen/VAR-v0",
            {"top_k_rule": "strict"},
            "top_k_rule must be one of monotone, released, got 'strict'",
        ),
        ("AdaGen/VAR-v0", {"top_k_rule": None}, "top_k_rule must be 'monotone' or 'released', got None"),
        ("AdaGen/LlamaGen-v0", {"top_k": 257}, r"top_k must be a finite number in \[0, 256\], got 257"),
        ("AdaGen/LlamaGen-v0", {"token_temperature": -1}, "token_temperature .* got -1"),
    ],
)
def test_a_setting_outside_its_range_is_refused_by_name(env_id, settings, message):
    with pytest.raises(ValueError, match=message):
        gym.make_vec(env_id, num_envs=1, **settings)


@pytest.mark.parametrize("value", ["1", True, [1.0], float("-inf")])
def test_a_setting_must_be_a_number(value):
    with pytest.raises(ValueError, match="x must be a finite number"):
        setting("x", value, 1.0, POSITIVE)


@pytest.mark.parametrize("horizon", [1, 3, 7, 17])
@pytest.mark.parametrize("peak", [0.3, 1.0, 4.5])
def test_schedules_of_any_length_keep_their_ends(horizon, peak):
    params = {p.name: p.static for p in maskgit.schedule_params(horizon, peak, 2 * peak, 3 * peak)}
    assert params["mask_temperature"][0].item() == pytest.approx(2 * peak * (1 - 0.999 / horizon))
    assert params["mask_temperature"][-1].item() == pytest.approx(2 * peak * 0.001 / horizon)
    assert params["guidance_weight"][0].item() == pytest.approx(peak * 0.001 / horizon)
    assert params["guidance_weight"][-1].item() == pytest.approx(peak * (horizon - 0.999) / horizon)
    assert params["token_temperature"].tolist() == pytest.approx([3 * peak] * horizon)
    for schedule, first in ((diffusion.schedule_params, 0.9), (flow.schedule_params, 0.01)):
        time, guidance = schedule(horizon, peak)
        assert time.static[0] == first
        assert guidance.static.tolist() == [peak] * horizon


@pytest.mark.parametrize("vocab_size", [12, 64, 4096])
def test_the_usual_top_k_grows_with_the_vocabulary(vocab_size):
    top_k = {p.name: p.static for p in var.schedule_params(2, vocab_size)}["top_k"]
    assert top_k.tolist() == [vocab_size * 900 / 4096] * 2
    top_k = {p.name: p.static for p in raster_ar.schedule_params(2, vocab_size)}["top_k"]
    assert top_k.tolist() == [vocab_size] * 2


OWN = {
    "AdaGen/MaskGIT-v0": "maskgit",
    "AdaGen/VAR-v0": "var",
    "AdaGen/LlamaGen-v0": "llamagen",
    "AdaGen/DiT-v0": "dit",
    "AdaGen/SiT-v0": "sit",
}


@pytest.mark.parametrize("env_id", OWN)
def test_a_tier_s_own_schedule_has_its_settings_and_the_published_one_has_none(env_id):
    own = DIGITS.schedules[OWN[env_id]]
    usual, by_name = schedules(env_id), schedules(env_id, **own)
    published = schedules(env_id, schedule="published")
    for name, values in usual.items():
        assert torch.equal(values, by_name[name])
        assert torch.equal(values, published[name]) == (name not in own)
    assert schedules(env_id, schedule=None).keys() == usual.keys()


@pytest.mark.parametrize("env_id", OWN)
def test_a_setting_that_is_given_stands_and_leaves_the_others_to_the_schedule(env_id):
    given = {"guidance_weight": 0.7}
    usual, changed = schedules(env_id), schedules(env_id, **given)
    assert (changed.pop("guidance_weight") != usual.pop("guidance_weight")).any()
    assert all(torch.equal(changed[name], usual[name]) for name in usual)
    both = schedules(env_id, schedule="published", **given)["guidance_weight"]
    assert torch.equal(both, schedules(env_id, **given)["guidance_weight"])


@pytest.mark.parametrize("env_id", ["AdaGen/DiT-v0", "AdaGen/MaskGIT-v0", "AdaGen/LlamaGen-v0"])
def test_a_schedule_that_does_not_exist_is_refused(env_id):
    with pytest.raises(
        ValueError, match="schedule must be 'published', or None for the tier's own, got 'own'"
    ):
        gym.make_vec(env_id, schedule="own")
    with pytest.raises(ValueError, match="schedule must be 'published', or None"):
        gym.make_vec(env_id, schedule=3)


def test_released_backbones_keep_the_published_schedule():
    for name, part in (("imagenet256-dit-xl-2", "dit"), ("imagenet256-maskgit-l", "maskgit")):
        assert schedule_settings(name, part, None, guidance_weight=None) == {"guidance_weight": None}
    assert not any(tier.schedules for name, tier in tiers().items() if name != "digits")
    assert has_own_schedule("AdaGen/DiT-v0", {})
    assert not has_own_schedule("AdaGen/DiT-v0", {"schedule": "published"})
    assert not has_own_schedule("AdaGen/DiT-v0", {"backbone": "imagenet256-dit-xl-2"})
    assert not has_own_schedule("AdaScope/Denoising-v0", {})


@pytest.mark.parametrize("env_id", [env_id for env_id in OWN if "VAR" not in env_id])
def test_random_actions_are_worse_than_the_hand_crafted_schedule(env_id):
    """So a score of 0 for random actions and 1 for the hand-crafted schedule means something; VAR hardly minds."""
    evaluator = Evaluator(env_id, num_images=500)
    by_hand, random = (
        evaluator(actor, 10**6).metrics["fid"]
        for actor in (static_actor(evaluator.env), random_actor(evaluator.env))
    )
    assert by_hand < random
