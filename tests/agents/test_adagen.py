"""AdaGen on the shipped generator: it learns, it resumes exactly, and its files hold what they promise."""

import copy
import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import pytest
import torch
import tyro

from agents.adagen import (
    PRESETS,
    Config,
    Trainer,
    command,
    load_networks,
    load_policy,
    main,
    read_config,
    train,
    value_at,
)
from agents.checkpointing import save_checkpoint
from agents.refine import Arguments, refine
from agents.refine import main as refine_run
from genenv.checkpoints import CheckpointError
from genenv.rewards.mixture import Mixture
from genenv.rng import Stream
from genenv.rollout import generate, run_episode, static_actor, unwrapped

ROOT = Path(__file__).parents[2]
TINY = Config(
    num_envs=16,
    num_steps=2,
    num_iterations=4,
    hidden_dim=16,
    discriminator_warmup=2,
    discriminator_batch=16,
    eval_interval=4,
    eval_images=100,
    checkpoint_interval=2,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted tiny run."""
    out = tmp_path_factory.mktemp("run") / "whole"
    return train(TINY, out)


def records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_an_untrained_policy_generates_the_hand_crafted_tokens():
    trainer = Trainer(TINY)
    learned = run_episode(trainer.env, torch.no_grad()(trainer.act), seed=3)
    static = run_episode(trainer.env, static_actor(trainer.env), seed=3)
    assert torch.equal(learned.images, static.images)


def test_ppo_learns_to_raise_the_contrast(monkeypatch):
    config = dataclasses.replace(
        TINY,
        num_envs=64,
        discriminator_steps=0,
        discriminator_warmup=0,
        learning_rate=((0, 5e-3),),
        action_std=((0, 0.5),),
        num_minibatches=2,
    )
    trainer = Trainer(config)
    contrast_reward = Mixture({"contrast": lambda images, context: images.var((1, 2, 3))})
    monkeypatch.setattr(trainer, "reward", contrast_reward)

    def contrast() -> float:
        episodes = [
            run_episode(trainer.env, torch.no_grad()(trainer.act), seed=10**6 * k) for k in range(1, 6)
        ]
        return torch.cat([episode.images for episode in episodes]).var((1, 2, 3)).mean().item()

    before = contrast()
    for _ in range(25):
        trainer.step()
    assert contrast() > 1.02 * before  # 1.045 was reached


def test_the_discriminator_learns_to_tell_noise_from_digits():
    trainer = Trainer(TINY)
    images, context = torch.rand(64, 1, 8, 8), torch.arange(64) % 10
    losses = [trainer._update_discriminator(images, context) for _ in range(60)]
    assert losses[-1] < 0.8 * losses[0]


def test_a_killed_run_continues_to_the_same_numbers(finished, tmp_path):
    out = tmp_path / "killed"
    arguments = shlex.split(command(TINY, out))[3:]
    started = [sys.executable, "-m", "agents.adagen", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(started, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (out / "metrics.jsonl").exists() and len(records(out)) >= 3:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "report.html").exists(), "the run ended before it could be killed"
    resumed = train(read_config(out), out, resume=True)
    assert resumed.learned.metrics == finished.learned.metrics
    whole, continued = records(finished.out), records(out)
    assert [r["iteration"] for r in continued] == [1, 2, 3, 4]
    assert continued == whole
    first, second = (load_networks(run.out) for run in (finished, resumed))
    for name, value in first.policy.state_dict().items():
        assert torch.equal(value, second.policy.state_dict()[name])


MIXTURE = '{"adversarial": 1.0, "hpsv2": 1.0, "loo_fid": 2.0, "normalise": true}'


def test_a_mixture_is_maximised_and_resumed_with_its_discriminator_and_moments():
    trainer, other = (Trainer(dataclasses.replace(TINY, reward=MIXTURE)) for _ in range(2))
    before = trainer.step()
    assert {"reward/adversarial", "reward/hpsv2", "reward/loo_fid", "discriminator_loss"} <= before.keys()
    assert trainer.reward.rewards["adversarial"] is trainer.adversary
    other.load_state_dict(copy.deepcopy(trainer.state_dict()))
    assert trainer.step() == other.step()


def test_a_reward_that_does_not_learn_needs_no_discriminator():
    trainer = Trainer(dataclasses.replace(TINY, reward="clip"))
    found = trainer.step()
    assert trainer.adversary is None
    assert "discriminator_loss" not in found
    assert found["reward"] == found["reward/clip"]


def test_a_run_directory_holds_what_is_promised(finished):
    for name in (
        "config.json",
        "metrics.jsonl",
        "checkpoint.pt",
        "samples.png",
        "schedule.png",
        "report.html",
    ):
        assert (finished.out / name).stat().st_size > 0
    assert list((finished.out / "tensorboard").glob("events*"))
    assert not list(finished.out.glob("*.partial"))
    last = records(finished.out)[-1]
    assert last["held_out/fid"] == finished.learned.metrics["fid"]
    assert "held-out FID" in json.loads((finished.out / "summary.json").read_text())["verdict"]


def test_a_loaded_policy_plays_what_was_evaluated(finished):
    actor = load_policy(finished.out)
    env = gym.make_vec(
        actor.env_id,
        num_envs=50,
        contexts="cycle",
        reward="none",
        autoreset_mode="Disabled",
        **actor.env_kwargs,
    )
    episode = generate(env, actor, 100, stream=Stream.HELD_OUT)
    torch.testing.assert_close(episode.images, finished.learned.episode.images)


def test_plain_refinement_is_plain_sampling_and_more_attempts_raise_the_reward(finished):
    networks = load_networks(finished.out)
    env = gym.make_vec(
        TINY.env_id,
        num_envs=64,
        contexts="cycle",
        reward="none",
        autoreset_mode="Disabled",
        **TINY.env_kwargs,
    )
    sampled = run_episode(env, load_policy(finished.out), seed=5)
    plain = refine(env, networks, repeats=1, candidates=1, seed=5)
    assert torch.equal(plain.images, sampled.images)
    best = refine(env, networks, repeats=3, candidates=1, seed=5)
    ahead = refine(env, networks, repeats=1, candidates=3, seed=5)
    reward = networks.reward
    for refined in (best, ahead):
        assert reward(refined.images, refined.context).mean() > reward(plain.images, plain.context).mean()
    assert best.nfe == 3 * plain.nfe
    with pytest.raises(ValueError, match="candidates must be at least 1, got 0"):
        refine(env, networks, repeats=1, candidates=0, seed=5)


def test_lookahead_is_refused_where_transitions_are_deterministic(finished):
    env = gym.make_vec("AdaGen/SiT-v0", num_envs=2, num_steps=2, reward="none")
    with pytest.raises(ValueError, match="candidates must be 1 where transitions are deterministic, got 2"):
        refine(env, load_networks(finished.out), repeats=1, candidates=2, seed=5)


def test_a_second_policy_is_blended_with_the_first(finished, tmp_path):
    config = dataclasses.replace(TINY, num_iterations=2, diversity_run=str(finished.out), seed=1)
    result = train(config, tmp_path / "fidelity")
    env = gym.make_vec(config.env_id, num_envs=8, reward="none", **config.env_kwargs)
    observation, _ = env.reset(seed=0)
    diverse, half, faithful = (load_policy(result.out, fidelity)(observation) for fidelity in (0.0, 0.5, 1.0))
    torch.testing.assert_close(diverse, load_policy(finished.out)(observation))
    torch.testing.assert_close(half, (diverse + faithful) / 2)
    assert not torch.allclose(diverse, faithful)


def test_blending_needs_two_policies(finished):
    with pytest.raises(ValueError, match="has one policy only"):
        load_policy(finished.out, fidelity=0.5)
    with pytest.raises(ValueError, match=r"fidelity must be in \[0, 1\], got 2"):
        load_policy(finished.out, fidelity=2)


def test_a_run_is_never_overwritten(finished):
    with pytest.raises(ValueError, match="already holds a run; continue it with --resume"):
        train(TINY, finished.out)


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--resume", str(tmp_path)])
    assert stop.value.code == 2
    assert "is not a run directory" in " ".join(capsys.readouterr().err.split())


def test_a_damaged_checkpoint_is_refused(finished, tmp_path):
    (tmp_path / "config.json").write_text((finished.out / "config.json").read_text())
    (tmp_path / "checkpoint.pt").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt is damaged"):
        load_policy(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_steps", 0, "num_steps must be at least 1, got 0"),
        ("num_envs", 1, "num_envs must be at least 2, got 1"),
        ("eval_images", 0, "eval_images must be at least 1, got 0"),
        ("num_minibatches", 10**6, "num_minibatches must not exceed"),
        ("seed", 500, r"seed must be in 0\.\.499, got 500"),
        ("action_std", ((5, 0.4),), "action_std must start at iteration 0"),
        ("learning_rate", ((0, 1e-3), (5, 0.0)), "learning_rate must start at iteration 0 and stay above 0"),
    ],
)
def test_an_impossible_configuration_is_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **{field: value})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-steps", "8"], "num_steps of a run that is continued must stay 2, got 8"),
        (["--seed", "3"], "seed of a run that is continued must stay 0, got 3"),
    ],
)
def test_a_continued_run_keeps_its_task(finished, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main(["--resume", str(finished.out), *arguments])
    assert stop.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_doomed_run_leaves_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match="more images than the 64 feature dimensions, got 10"):
        train(dataclasses.replace(TINY, eval_images=10), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env-id", "AdaGen/Nope"], "`Nope`"),
        (["--reward", "dino"], "rewardmustbeoneofnone,default,adversarial"),
        (["--reward", "{clip: 1}"], "rewardmustbeanameoraJSONobject,got{clip:1}"),
        (["--reward", "none"], "rewardmustnamearewardtolearnfrom,got'none'"),
        (["--out", "/dev/null/run"], "/dev/null/run"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(capsys, arguments, message):
    flags = ["--num-envs", "2", "--num-minibatches", "1", "--eval-images", "70", "--num-steps", "1"]
    with pytest.raises(SystemExit) as stop:
        main([*flags, *arguments])
    assert stop.value.code == 2
    assert message in "".join(capsys.readouterr().err.split())


def test_the_second_policy_needs_the_task_of_the_first(finished):
    with pytest.raises(ValueError, match=r"num_steps must be that of .*, 2, got 3"):
        Trainer(dataclasses.replace(TINY, diversity_run=str(finished.out), num_steps=3))


def test_the_command_in_the_summary_makes_the_same_configuration():
    config = dataclasses.replace(TINY, fresh_fakes=True, action_std=((0, 0.5), (3, 0.25)))
    words = shlex.split(command(config, Path("runs/x")))
    assert words[:3] == ["python", "-m", "agents.adagen"]
    assert words[-2:] == ["--out", "runs/x"]
    assert tyro.cli(Config, args=words[3:-2]) == config


def test_the_paper_preset_smooths_and_steps_down_its_exploration():
    paper = PRESETS["paper"]
    assert paper.smoothing == 0.8
    assert [value_at(paper.action_std, i) for i in (0, 499, 500, 999)] == [0.6, 0.6, 0.3, 0.3]


def test_training_seeds_never_reach_the_held_out_ones():
    trainer = Trainer(dataclasses.replace(TINY, seed=5))
    seeds = [trainer._next_seed() for _ in range(3)]
    assert seeds == [5 * 10**9 + 16 * i for i in range(3)]
    assert unwrapped(trainer.env).num_envs == 16


def test_refinement_is_refused_with_a_reward_that_compares_images(tmp_path):
    config = dataclasses.replace(TINY, reward="loo_fid")
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    save_checkpoint(Trainer(config).state_dict(), tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="a reward that judges each image by itself, got loo_fid"):
        refine_run(Arguments(tmp_path))
