import copy
import importlib
import pickle
import sys

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch
from episodes import compared

import genenv
from genenv.conditions import Labels
from genenv.envs import maskgit
from genenv.registration import defaults
from genenv.rewards import REWARDS, Named, available, make_reward
from genenv.rewards.adversarial import AdversarialReward
from genenv.rewards.classifier import ClassifierReward
from genenv.rewards.clip import PromptScore
from genenv.rewards.fid import FIDReward
from genenv.rewards.loo_fid import LeaveOneOutFID
from genenv.rewards.png_size import PNGSize
from genenv.rollout import default_actor, run_episode
from genenv.wrappers import TerminalReward
from genenv.wrappers.vector import TerminalReward as VectorTerminalReward

ENV_ID = "AdaGen/MaskGIT-v0"
TYPES = {
    "adversarial": AdversarialReward,
    "classifier": ClassifierReward,
    "clip": PromptScore,
    "fid": FIDReward,
    "hpsv2": PromptScore,
    "loo_fid": LeaveOneOutFID,
    "loo_fid_full": LeaveOneOutFID,
    "png_size": PNGSize,
}
WEIGHTS = {"loo_fid": 0.5, "classifier": 2.0}


def brightness(backbone, device):
    assert (backbone, device) == ("digits", "cpu")
    return lambda images, context: images.mean((1, 2, 3))


@pytest.mark.parametrize("name", TYPES)
def test_a_name_makes_its_reward(name):
    mixture = make_reward(name, "digits", "cpu")
    assert type(mixture.rewards[name]) is TYPES[name]
    assert mixture.weights == {name: 1.0}
    assert mixture.rewards[name].name == name
    paid = mixture(torch.rand(4, 1, 8, 8), torch.arange(4))
    assert paid.shape == (4,)
    assert paid.dtype == torch.float32


def test_none_is_no_reward():
    assert make_reward("none", "digits", "cpu") is None


def test_the_default_is_the_discriminator_and_nothing_where_there_is_none():
    assert list(make_reward("default", "digits", "cpu").rewards) == ["adversarial"]
    assert make_reward("default", "imagenet256-maskgit-l", "cpu") is None


def test_a_mapping_weighs_its_rewards():
    mixture = make_reward(WEIGHTS, "digits", "cpu")
    assert mixture.weights == WEIGHTS
    total, parts = mixture.judge(torch.rand(4, 1, 8, 8), torch.arange(4))
    torch.testing.assert_close(total, 0.5 * parts["loo_fid"] + 2 * parts["classifier"])


def test_a_mapping_may_standardise_its_rewards():
    mixture = make_reward({"classifier": 3.0, "normalise": True}, "digits", "cpu")
    total = mixture(torch.rand(4, 1, 8, 8), torch.tensor([1, 1, 2, 2])).view(2, 2)
    torch.testing.assert_close(total.sum(1), torch.zeros(2), rtol=0, atol=1e-4)
    torch.testing.assert_close(total.abs(), torch.full((2, 2), 3.0), rtol=0.1, atol=0)


def test_a_reward_of_ones_own_replaces_that_of_the_same_name():
    own = ClassifierReward(torch.nn.Identity())
    mixture = make_reward({"adversarial": 1.0, "fid": 1.0}, "digits", "cpu", own={"adversarial": lambda: own})
    assert mixture.rewards["adversarial"] is own


def test_every_name_stands_for_a_factory():
    for reward in REWARDS.values():
        module, _, name = reward.factory.partition(":")
        assert callable(getattr(importlib.import_module(module), name))


def test_a_path_names_a_factory(monkeypatch):
    monkeypatch.setitem(sys.modules, "my_rewards", sys.modules[__name__])
    images = torch.rand(4, 1, 8, 8)
    paid = make_reward("my_rewards:brightness", "digits", "cpu")(images, torch.arange(4))
    torch.testing.assert_close(paid, images.mean((1, 2, 3)))


COPIES = {
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "cloudpickle": lambda x: cloudpickle.loads(cloudpickle.dumps(x)),
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", TYPES)
def test_a_reward_and_what_it_remembers_survive_a_copy(name, how):
    reward = make_reward({name: 2.0}, "digits", "cpu")
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 6, 1, 8, 8, generator=generator)
    labels = torch.arange(6)
    reward(first, labels)
    copied = COPIES[how](reward)
    assert torch.equal(copied(second, labels), reward(second, labels))


def test_the_rewards_of_a_backbone_are_those_that_can_be_made():
    assert available("digits") == sorted(TYPES)
    assert available("imagenet256-var-d16") == [
        "clip",
        "fid",
        "hpsv2",
        "hpsv2.0",
        "loo_fid",
        "pickscore",
        "png_size",
    ]
    with pytest.raises(ValueError, match="backbone must be"):
        available("cifar")


def test_a_reward_may_be_given_a_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "my_rewards", sys.modules[__name__])
    monkeypatch.setitem(REWARDS, "brightness", Named("my_rewards:brightness"))
    assert "brightness" in available("digits")
    images = torch.rand(4, 1, 8, 8)
    paid = make_reward("brightness", "digits", "cpu")(images, torch.arange(4))
    torch.testing.assert_close(paid, images.mean((1, 2, 3)))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("dino", "reward must be one of none, default, adversarial, .* or 'module:factory', got 'dino'"),
        ({"loo_fid": 1.0, "dino": 1.0}, "reward must be one of .*, got 'dino'"),
        ("math:pi", "reward 'math:pi' must name a function .* -> reward, got 3.14"),
        ("math:sqrt", "reward 'math:sqrt' must name a function"),
        ({"loo_fid": True}, "the weight of reward 'loo_fid' must be a number, got True"),
        ({"loo_fid": 1.0, "normalise": 1}, "normalise must be True or False, got 1"),
        ({"normalise": True}, "reward must name at least one reward"),
        ("pickscore", "reward 'pickscore' has no network for digits"),
        ("hpsv2.0", "reward 'hpsv2.0' has no network for digits"),
        ({}, "reward must name at least one reward, got {}; use reward='none'"),
    ],
)
def test_what_describes_no_reward_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        make_reward(spec, "digits", "cpu")


def play(env, actions, seed=None):
    """Returns the rewards of an episode's steps and the last info."""
    env.reset(seed=seed)
    paid = []
    for _ in range(4):
        _, reward, _, _, info = env.step(actions)
        paid.append(reward)
    return paid, info.get("final_info", info)


VECTOR = {
    "keyword": lambda: gym.make_vec(ENV_ID, num_envs=6, reward=WEIGHTS),
    "wrapper": lambda: VectorTerminalReward(
        gym.make_vec(ENV_ID, num_envs=6, reward="none"), make_reward(WEIGHTS, "digits", "cpu")
    ),
}
SINGLE = {
    "keyword": lambda: gym.make(ENV_ID, reward=WEIGHTS),
    "wrapper": lambda: TerminalReward(gym.make(ENV_ID, reward="none"), make_reward(WEIGHTS, "digits", "cpu")),
}


@pytest.mark.parametrize("form", VECTOR)
def test_images_are_paid_once_and_again_the_same_for_their_seed(form):
    env = VECTOR[form]()
    (*before, last), info = play(env, torch.zeros(6, 4), seed=3)
    assert not torch.stack(before).any()
    torch.testing.assert_close(last, 0.5 * info["reward/loo_fid"] + 2 * info["reward/classifier"])
    (*_, going_on), further = play(env, torch.zeros(6, 4))
    assert further["reward/loo_fid"].any()
    assert not torch.equal(going_on, last)
    (*_, again), info_again = play(env, torch.zeros(6, 4), seed=3)
    assert torch.equal(again, last)
    assert torch.equal(info_again["reward/loo_fid"], info["reward/loo_fid"])


@pytest.mark.parametrize("form", SINGLE)
def test_an_image_is_paid_once_and_again_the_same_for_its_seed(form):
    env, zero = SINGLE[form](), np.zeros(4, np.float32)
    (*before, last), info = play(env, zero, seed=3)
    assert before == [0.0] * 3
    assert info["reward/loo_fid"] == 0.0  # a lone first image
    assert last == pytest.approx(2 * info["reward/classifier"])
    assert last > 0
    _, second = play(env, zero)
    assert second["reward/loo_fid"] != 0.0
    (*_, again), _ = play(env, zero, seed=3)
    assert again == last


def test_moments_go_on_from_episode_to_episode_without_a_seed():
    env = gym.make_vec(ENV_ID, num_envs=6, reward="loo_fid")
    play(env, torch.zeros(6, 4), seed=3)
    (*_, unseeded), info = play(env, torch.zeros(6, 4))
    fresh = make_reward("loo_fid", "digits", "cpu")(info["image"], info["context"])
    assert not torch.allclose(unseeded, fresh)


@pytest.mark.parametrize(
    "env_id", [env_id for env_id in genenv.env_ids() if defaults(env_id)["backbone"] == "digits"]
)
def test_every_environment_takes_every_judge_of_its_images(env_id):
    weights = {name: 1.0 for name in TYPES if name != "fid"}
    env = gym.make_vec(env_id, num_envs=4, reward=weights | {"fid": 0.5}, **compared(env_id))
    episode = run_episode(env, default_actor(env), seed=0)
    parts = episode.components
    assert parts.keys() == TYPES.keys()
    assert all(part.shape == (4,) for part in parts.values())
    total = sum(weights.get(name, 0.5) * part for name, part in parts.items())
    torch.testing.assert_close(episode.returns, total)
    single = gym.make(env_id, reward=weights)
    single.reset(seed=0)
    paid, info = 0.0, {}
    for action in episode.actions[:, 0]:
        _, paid, _, _, info = single.step(action.numpy())
    assert paid == pytest.approx(sum(info[f"reward/{name}"] for name in weights), rel=1e-5)
    assert info["reward/clip"] == pytest.approx(parts["clip"][0].item(), abs=1e-3)


TEXTS = ("a handwritten three", "seven", "a handwritten seven")


def count_letters(backbone, device, prompts=("none",)):
    return lambda images, context: torch.tensor([float(len(prompts[label])) for label in context.tolist()])


def prompted(backbone, num_steps, device, dtype, needs_features, compile, prompts=None):
    sampler = maskgit.make_sampler(backbone, num_steps, device, dtype, needs_features, compile)
    sampler.condition = Labels(len(prompts))
    return sampler


def test_prompts_of_an_environment_take_the_place_of_its_tiers():
    reward = make_reward({"clip": 1.0, f"{__name__}:count_letters": 2.0}, "digits", "cpu", prompts=TEXTS)
    images, context = torch.rand(3, 1, 8, 8), torch.tensor([2, 0, 1])
    score = make_reward("clip", "digits", "cpu").rewards["clip"]
    texts = score.encoder.encode_texts(TEXTS)
    expected = score.encoder.cosines(images, texts[context])
    torch.testing.assert_close(reward.rewards["clip"](images, context), expected)
    assert reward.rewards[f"{__name__}:count_letters"](images, context).tolist() == [19, 19, 5]
    plain = make_reward(f"{__name__}:count_letters", "digits", "cpu")
    assert plain(images, torch.zeros(3, dtype=torch.int64)).tolist() == [4, 4, 4]


def test_prompts_of_an_environment_are_its_contexts_and_reach_its_rewards(monkeypatch):
    monkeypatch.setitem(sys.modules, "prompted_digits", sys.modules[__name__])
    genenv.register("Test/Prompted-v0", "prompted_digits:prompted", backbone="digits")
    try:
        env = gym.make_vec(
            "Test/Prompted-v0", num_envs=6, prompts=list(TEXTS), reward="clip", contexts="cycle"
        )
        assert list(env.unwrapped.contexts.names) == list(TEXTS)
        episode = run_episode(env, default_actor(env), seed=0)
        reward = make_reward("clip", "digits", "cpu", prompts=TEXTS)
        torch.testing.assert_close(episode.rewards[-1], reward(episode.images, episode.context))
        assert episode.context.tolist() == [0, 1, 2] * 2
        with pytest.raises(ValueError, match=r"prompts must be a list of texts, such as .*, got 'seven'"):
            gym.make_vec("Test/Prompted-v0", prompts="seven")
    finally:
        gym.registry.pop("Test/Prompted-v0")
