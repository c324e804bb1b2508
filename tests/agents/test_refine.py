"""Refinement of a trained policy's images."""

import dataclasses
import json

import gymnasium as gym
import pytest
import torch

from agents.adagen import Config, Networks, Trainer, load_networks
from agents.config import as_json
from agents.refine import Arguments, alone, refine
from agents.refine import main as refine_run
from agents.runs import save_checkpoint
from genenv.rewards import make_reward
from genenv.rewards.mixture import Mixture
from genenv.rng import BatchRng
from genenv.rollout import run_episode
from genenv.vector_env import unwrapped

STOCHASTIC = ("AdaGen/MaskGIT-v0", "AdaGen/VAR-v0", "AdaGen/LlamaGen-v0")
CONFIG = Config(reward="adversarial", num_envs=4, num_minibatches=1, hidden_dim=16)


def networks(config: Config) -> Networks:
    """Networks of an untrained run whose policy and critic are not constant."""
    trainer = Trainer(config)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for network in (trainer.policy, trainer.critic):
            torch.nn.init.normal_(network.linear3.weight, std=0.05)
    return Networks("untrained", config, trainer.policy, trainer.critic, None, lambda: trainer.reward)


def make(config: Config, num_envs: int, **kwargs):
    return gym.make_vec(config.env_id, num_envs=num_envs, reward="none", **kwargs, **config.env_kwargs)


@pytest.mark.parametrize("env_id", STOCHASTIC)
def test_plain_refinement_is_plain_sampling_and_more_attempts_raise_the_reward(env_id):
    config = dataclasses.replace(CONFIG, env_id=env_id, smoothing=0.3)
    trained = networks(config)
    env = make(config, 48, contexts="cycle", autoreset_mode="Disabled")
    sampled = run_episode(env, torch.no_grad()(trained.policy), seed=5)
    plain = refine(env, trained, repeats=1, candidates=1, seed=5)
    assert torch.equal(plain.images, sampled.images)
    best = refine(env, trained, repeats=3, candidates=1, seed=5)
    reward = trained.reward
    assert reward(best.images, best.context).mean() > reward(plain.images, plain.context).mean()
    assert best.nfe == 3 * plain.nfe


@pytest.mark.parametrize("env_id", STOCHASTIC)
def test_lookahead_keeps_the_candidate_that_it_chose(env_id):
    """A critic that always favours one candidate must leave the images of that candidate's stream alone."""
    config = dataclasses.replace(CONFIG, env_id=env_id)
    trained = networks(config)
    env = make(config, 6, autoreset_mode="Disabled")
    calls = iter(range(10**6))

    def favours_the_last(observation):
        return torch.full((6, 1), float(next(calls) % 3))

    def rewards_the_last(images, context):
        return torch.full((6,), float(next(calls) % 3))

    biased = Networks(
        "biased", config, trained.policy, favours_the_last, None, lambda: Mixture({"last": rewards_the_last})
    )  # type: ignore[arg-type]
    ahead = refine(env, biased, repeats=1, candidates=3, seed=5)
    # The last candidate of the only attempt draws as episode 2 of the seeds, after the start of episode 0.
    inner = unwrapped(env)
    seeds = torch.arange(5, 11)
    context = inner.contexts.draw(BatchRng(seeds))
    state = inner.sampler.start(context, BatchRng(seeds))
    for t in range(inner.sampler.horizon):
        observation = inner.sampler.observe(state, ("features",))
        observation |= {"step": torch.full_like(context, t), "context": context}
        with torch.no_grad():
            command = inner.actions(trained.policy(observation), t)
            state = inner.sampler.advance(state, command, BatchRng(seeds, episode=2))
    torch.testing.assert_close(ahead.images, inner.sampler.decode(state))


def test_numbers_below_one_and_deterministic_transitions_are_refused():
    trained = networks(CONFIG)
    with pytest.raises(ValueError, match="candidates must be at least 1, got 0"):
        refine(make(CONFIG, 2), trained, repeats=1, candidates=0, seed=5)
    env = gym.make_vec("AdaGen/SiT-v0", num_envs=2, num_steps=2, reward="none")
    with pytest.raises(ValueError, match="candidates must be 1 where transitions are deterministic, got 2"):
        refine(env, trained, repeats=1, candidates=2, seed=5)
    with pytest.raises(ValueError, match="batch_size must be finite and at least 1, got 0"):
        Arguments(run=None, batch_size=0)  # type: ignore[arg-type]


@pytest.mark.parametrize(("candidates", "rows"), [(1, 2), (2, 4)])
def test_each_refinement_is_told_and_saved(tmp_path, capsys, candidates, rows):
    config = dataclasses.replace(CONFIG, reward="classifier", num_steps=2)
    (tmp_path / "config.json").write_text(as_json(config))
    save_checkpoint(Trainer(config).state_dict(), tmp_path / "checkpoint.pt")
    out = tmp_path / "rows.json"
    refine_run(Arguments(tmp_path, repeats=2, candidates=candidates, num_images=80, batch_size=50, out=out))
    shown, saved = capsys.readouterr(), json.loads(out.read_text())
    assert (
        list(saved)
        == ["1 x, 1 candidates", "2 x, 1 candidates", "1 x, 2 candidates", "2 x, 2 candidates"][:rows]
    )
    assert [line.partition(": fid ")[0] for line in shown.err.splitlines()] == list(saved)
    assert saved["2 x, 1 candidates"]["nfe"] == 2 * saved["1 x, 1 candidates"]["nfe"]
    assert all(name in shown.out for name in saved)


def test_refinement_is_refused_with_a_reward_that_compares_images(tmp_path):
    config = dataclasses.replace(CONFIG, reward="loo_fid")
    (tmp_path / "config.json").write_text(as_json(config))
    save_checkpoint(Trainer(config).state_dict(), tmp_path / "checkpoint.pt")
    assert load_networks(tmp_path).config == config
    with pytest.raises(ValueError, match=r"one part that judges each image by itself, or .*, got loo_fid"):
        refine_run(Arguments(tmp_path))


def test_of_a_mixture_the_part_that_judges_alone_chooses():
    def brightness(images, context):
        return images.mean((1, 2, 3))

    loo = make_reward("loo_fid", "digits", "cpu").rewards["loo_fid"]
    mixture = Mixture({"loo_fid": loo, "bright": brightness}, {"bright": 2.0}, normalise=True)
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(alone(mixture)(images, torch.arange(3)), 2 * brightness(images, None))
    both = {"bright": brightness, "dark": lambda images, context: -brightness(images, None)}
    assert alone(Mixture(both)).weights == {"bright": 1.0, "dark": 1.0}
    with pytest.raises(ValueError, match=r"or a plain sum of such, got bright \+ dark"):
        alone(Mixture(both, normalise=True))
