"""AdaGen on the shipped generator: it learns, it resumes exactly, and no number depends on chunks or processes."""

import copy
import dataclasses
import itertools
import json
import shlex
import signal
import subprocess
import sys
import time
import typing
from pathlib import Path

import gymnasium as gym
import pytest
import torch

import genenv
from agents import chunks
from agents.adagen import PRESETS, Config, Trainer, load_networks, load_policy, train
from agents.adagen import main as command_line
from agents.blend import Arguments as Blend
from agents.blend import main as blend
from agents.config import command
from agents.loop import Diverged
from agents.reward_ablation import Arguments as Ablation
from agents.reward_ablation import main as ablate
from agents.runs import load_checkpoint, read_config, save_checkpoint
from genenv.checkpoints import CheckpointError
from genenv.evaluation import Evaluator, first_seed
from genenv.export import read_schedule
from genenv.ranges import Range, Steps, value_at
from genenv.rewards.mixture import Mixture
from genenv.rng import Stream
from genenv.rollout import generate, run_episode, static_actor
from genenv.vector_env import unwrapped

ROOT = Path(__file__).parents[2]
TINY = Config(
    num_envs=16,
    num_steps=2,
    num_iterations=4,
    anneal=False,
    hidden_dim=16,
    discriminator_warmup=2,
    discriminator_steps=2,
    discriminator_batch=16,
    eval_interval=4,
    eval_images=100,
    checkpoint_interval=2,
)
FLAGS = ("--num-envs", "4", "--num-minibatches", "1", "--eval-images", "70", "--num-steps", "1")


def changed(**fields) -> Config:
    return dataclasses.replace(TINY, **fields)


def main(*arguments: str) -> None:
    command_line(Config, PRESETS, train, list(arguments))


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(*arguments)
    assert stop.value.code == 2
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    return " ".join(shown.split())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted tiny run."""
    out = tmp_path_factory.mktemp("run") / "whole"
    result = train(TINY, out)
    assert result is not None
    return result


def records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_an_untrained_policy_generates_the_hand_crafted_tokens():
    trainer = Trainer(TINY)
    learned = run_episode(trainer.env, torch.no_grad()(trainer.act), seed=3)
    static = run_episode(trainer.env, static_actor(trainer.env), seed=3)
    assert torch.equal(learned.images, static.images)


def test_ppo_learns_to_raise_the_contrast(monkeypatch):
    config = changed(
        num_envs=64,
        num_iterations=25,
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
        images = generate(
            trainer.env, torch.no_grad()(trainer.act), 320, seed=10**6, stream=Stream.TUNING
        ).images
        return images.var((1, 2, 3)).mean().item()

    before = contrast()
    for _ in range(25):
        trainer.step()
    assert contrast() > 1.02 * before


def test_the_discriminator_learns_to_tell_noise_from_digits():
    trainer = Trainer(changed(num_envs=64, discriminator_batch=64))
    episode, _ = trainer.rollout(64)
    noise = dataclasses.replace(episode, images=torch.rand(64, 1, 8, 8))
    losses = [trainer.adversary.update(noise, 64) for _ in range(60)]
    assert losses[-1] < 0.8 * losses[0]


MIXTURE = '{"adversarial": 1.0, "hpsv2": 1.0, "loo_fid": 2.0, "normalise": true}'


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"reward": MIXTURE, "num_envs": 24},
        {"reward": "fid", "num_minibatches": 3, "smoothing": 0.5, "num_steps": 3},
        {"env_id": "AdaGen/SiT-v0", "num_envs": 10, "seed": 2**50, "fresh_fakes": True},
        {"env_id": "AdaGen/VAR-v0", "num_steps": 4, "reward": "loo_fid"},
    ],
)
def test_the_size_of_a_chunk_changes_no_number(fields):
    config = changed(**{"discriminator_batch": 8, "num_epochs": 2, "num_minibatches": 2} | fields)
    trainers = [Trainer(dataclasses.replace(config, chunk_size=size)) for size in (256, 7, 4)]
    for _ in range(2):
        first, *others = [trainer.step() for trainer in trainers]
        for other in others:
            assert other == pytest.approx(first, rel=2e-3, abs=2e-4)
    whole, *parts = [trainer.policy.state_dict() for trainer in trainers]
    for part in parts:
        for name, value in whole.items():
            torch.testing.assert_close(part[name], value, rtol=1e-2, atol=2e-4)


def test_an_epoch_sees_every_decision_once_and_a_minibatch_mixes_images(monkeypatch):
    trainer, seen = Trainer(changed(num_minibatches=3, num_epochs=2)), []
    played = chunks.decisions

    def watched(env, episode, seeds, rows):
        seen.append(rows.tolist())
        return played(env, episode, seeds, rows)

    monkeypatch.setattr(chunks, "decisions", watched)
    trainer.step()
    assert len(seen) == 6
    for epoch in (seen[:3], seen[3:]):
        assert sorted(row for rows in epoch for row in rows) == list(range(2 * 16))
        assert all(len({row % 16 for row in rows}) > len(rows) // 2 for rows in epoch)


@pytest.mark.parametrize("seed", [0, 7, 499, 500, 2**33 + 1, 10**20])
def test_any_seed_has_images_of_its_own(seed):
    trainer, other = (Trainer(changed(seed=s)) for s in (seed, seed + 1))
    seeds = [trainer.rollout(n)[1] for n in (16, 5)]
    assert seeds[0] + seeds[1] == [(seed * 10**9 + i) % 2**63 for i in range(21)]
    assert not set(seeds[0] + seeds[1]) & set(other.rollout(16)[1])
    assert unwrapped(trainer.env).rng.stream is Stream.TRAINING


def test_exploration_is_the_images_own():
    trainer = Trainer(TINY)
    episode, _ = trainer.rollout(16)
    noise = episode.extras["action"] / value_at(TINY.action_std, 0)  # the mean of an untrained policy is 0
    assert 0.6 < noise.std().item() < 1.4
    again = Trainer(changed(num_envs=2, num_minibatches=1))
    pairs = torch.cat([again.rollout(2)[0].extras["action"] for _ in range(8)], dim=1)
    torch.testing.assert_close(pairs, episode.extras["action"])


def test_a_killed_run_continues_to_the_same_numbers(finished, tmp_path, undrawn):
    out = tmp_path / "killed"
    started = [sys.executable, *shlex.split(command("adagen", TINY, out))[1:]]
    process = subprocess.Popen(started, cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (out / "metrics.jsonl").exists() and len(records(out)) >= 4:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "report.html").exists(), "the run ended before it could be killed"
    resumed = train(read_config(Config, out), out, resume=True)
    assert resumed is not None
    assert resumed.learned.metrics == finished.learned.metrics
    assert resumed.verdict == finished.verdict
    whole, continued = records(finished.out), records(out)
    assert [r["iteration"] for r in continued] == [0, 1, 2, 3, 4]
    assert continued == whole
    first, second = (load_networks(run.out) for run in (finished, resumed))
    for name, value in first.policy.state_dict().items():
        assert torch.equal(value, second.policy.state_dict()[name])


def test_a_continued_run_keeps_the_evaluation_of_the_hand_crafted_schedule(
    finished, tmp_path, monkeypatch, undrawn
):
    out = tmp_path / "run"
    train(changed(num_iterations=2), out)
    evaluate, calls = Evaluator.__call__, []

    def counted(self, *arguments, **keywords):
        calls.append(arguments)
        return evaluate(self, *arguments, **keywords)

    monkeypatch.setattr(Evaluator, "__call__", counted)
    resumed = train(changed(name="mine"), out, resume=True)
    assert resumed is not None
    assert len(calls) == 1, "the learned policy alone is evaluated"
    assert json.loads((out / "summary.json").read_text())["name"] == "mine"
    assert resumed.handcrafted.metrics == finished.handcrafted.metrics
    assert torch.equal(resumed.handcrafted.episode.images, finished.handcrafted.episode.images)
    assert resumed.verdict == finished.verdict


def test_a_mixture_is_maximised_and_resumed_with_its_discriminator_and_moments():
    trainer, other = (Trainer(changed(reward=MIXTURE)) for _ in range(2))
    before = trainer.step()
    assert {"reward/adversarial", "reward/hpsv2", "reward/loo_fid", "discriminator_loss"} <= before.keys()
    assert trainer.reward.rewards["adversarial"] is trainer.adversary.reward
    other.load_state_dict(copy.deepcopy(trainer.state_dict()))
    assert trainer.step() == other.step()


def test_a_reward_that_does_not_learn_needs_no_discriminator():
    trainer = Trainer(changed(reward="clip"))
    found = trainer.step()
    assert trainer.adversary is None
    assert "discriminator_loss" not in found
    assert found["reward"] == pytest.approx(found["reward/clip"])


def test_a_run_directory_holds_what_is_promised(finished):
    for name in (
        "config.json",
        "metrics.jsonl",
        "checkpoint.pt",
        "handcrafted.pt",
        "samples.png",
        "schedule.png",
        "curves.png",
        "report.html",
    ):
        assert (finished.out / name).stat().st_size > 0
    assert not (finished.out / "schedule.json").exists()  # MaskGIT has no noise levels
    assert list((finished.out / "tensorboard").glob("events*"))
    assert not list(finished.out.glob("*.partial"))
    first, *_, last = records(finished.out)
    assert first["iteration"] == first["images"] == 0
    assert first["held_out/fid"] == finished.handcrafted.metrics["fid"]
    assert last["held_out/fid"] == finished.learned.metrics["fid"]


def test_a_run_on_noise_levels_is_distilled_to_one_grid_for_all_images(tmp_path):
    config = changed(env_id="AdaGen/SiT-v0", num_steps=4, num_iterations=1, eval_images=70)
    result = train(config, tmp_path / "run")
    assert result is not None
    (steps, levels), *others = read_schedule(tmp_path / "run").items()
    assert (steps, others) == (4, [])
    mean = result.learned.episode.diagnostics["time"].double().mean(1)
    torch.testing.assert_close(1 / (1 + levels[:-1]), mean[:-1])


def test_the_summary_says_what_was_run_and_judged(finished):
    summary = json.loads((finished.out / "summary.json").read_text())
    assert "held-out FID" in summary["verdict"]
    assert summary["name"] is None
    assert summary["agent"] == "adagen"
    assert summary["decisions"] == 2
    assert summary["env_id"] == "AdaGen/MaskGIT-v0"
    assert summary["env_kwargs"] == TINY.env_kwargs
    assert summary["num_images"] == 100
    assert summary["command"] == command("adagen", TINY, finished.out)
    assert summary["rows"][-1]["images"] == 16 * 5  # the discriminator's first batch counts


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
    episode = generate(env, actor, 100, seed=first_seed(TINY.seed, 100), stream=Stream.HELD_OUT)
    torch.testing.assert_close(episode.images, finished.learned.episode.images)


def test_a_second_policy_is_blended_with_the_first(finished, tmp_path, capsys, undrawn):
    config = changed(num_iterations=2, diversity_run=str(finished.out), seed=1)
    result = train(config, tmp_path / "fidelity[/b]")
    assert result is not None
    env = gym.make_vec(config.env_id, num_envs=8, reward="none", **config.env_kwargs)
    observation, _ = env.reset(seed=0)
    diverse, half, faithful = (load_policy(result.out, fidelity)(observation) for fidelity in (0.0, 0.5, 1.0))
    torch.testing.assert_close(diverse, load_policy(finished.out)(observation))
    torch.testing.assert_close(half, (diverse + faithful) / 2)
    assert not torch.allclose(diverse, faithful)
    capsys.readouterr()
    blend(Blend(result.out, fidelity=(0.0, 1.0), num_images=80, out=tmp_path / "rows.json"))
    shown = capsys.readouterr()
    assert "fidelity[/b]" in "".join(shown.out.split())
    assert [line.partition(": fid ")[0] for line in shown.err.splitlines()] == ["lambda 0", "lambda 1"]
    assert list(json.loads((tmp_path / "rows.json").read_text())) == ["lambda 0", "lambda 1"]


def test_each_row_of_a_reward_ablation_is_told(finished, tmp_path, capsys):
    ablate(Ablation((finished.out,), num_images=80, out=tmp_path / "samples.png"))
    shown = capsys.readouterr()
    assert [line.partition(": fid ")[0] for line in shown.err.splitlines()] == [
        f"{name}, seed 0" for name in ("hand-crafted", "adversarial + 2 loo_fid_full, normalised")
    ]
    assert "2 loo_fid_full" in shown.out
    assert (tmp_path / "samples.png").is_file()


def test_lambda_is_the_images_own_and_no_exploration_noise(finished):
    config = changed(diversity_run=str(finished.out), num_envs=64)
    whole = Trainer(config).rollout(64)[0].extras
    parts = Trainer(dataclasses.replace(config, chunk_size=5)).rollout(64)[0].extras
    torch.testing.assert_close(parts["blend"], whole["blend"])
    assert torch.equal(whole["blend"][0], whole["blend"][-1])
    assert whole["blend"].min() < 0.1
    assert whole["blend"].max() > 0.9
    noise = (whole["action"] - whole["action"].mean((0, 1))).flatten(2).transpose(0, 1).flatten(1)
    related = torch.corrcoef(torch.cat([whole["blend"][:1], noise.T]))[0, 1:]
    assert related.abs().max() < 0.5


def test_blending_needs_two_policies(finished, capsys):
    with pytest.raises(
        ValueError, match=rf"{finished.out} has one policy only; .* --diversity-run {finished.out}"
    ):
        load_policy(finished.out, fidelity=0.5)
    with pytest.raises(ValueError, match=r"fidelity must be in \[0, 1\], got 2"):
        load_policy(finished.out, fidelity=2)
    with pytest.raises(ValueError, match="has one policy only"):
        blend(Blend(finished.out))


def test_a_run_is_never_overwritten(finished):
    with pytest.raises(ValueError, match="already holds a run; continue it with --resume"):
        train(TINY, finished.out)


def test_a_damaged_checkpoint_is_refused(finished, tmp_path):
    (tmp_path / "config.json").write_text((finished.out / "config.json").read_text())
    content = bytearray((finished.out / "checkpoint.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt is damaged"):
        load_policy(tmp_path)


def test_a_policy_that_leaves_the_numbers_is_not_saved(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(
        Diverged, match=r"iteration [1-4]: .*(is nan|is inf|not finite); the last checkpoint of .* is kept"
    ):
        train(changed(learning_rate=((0, 1e30),), checkpoint_interval=1), out)
    kept = load_checkpoint(out / "checkpoint.pt")
    for name in ("policy", "critic"):
        assert all(value.isfinite().all() for value in kept[name].values())
    with pytest.raises(Diverged):  # it goes on from there, and says the same again
        train(read_config(Config, out), out, resume=True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--clip", "nan"], "clip must be finite and above 0, got nan"),
        (["--value-weight", "-5"], "value_weight must be finite and at least 0, got -5"),
        (["--discriminator-batch", "0"], "discriminator_batch must be finite and at least 2, got 0"),
        (
            ["--discriminator-learning-rate", "-1e-3"],
            "discriminator_learning_rate must be finite and above 0",
        ),
        (["--discriminator-steps", "-1"], "discriminator_steps must be finite and at least 0, got -1"),
        (["--smoothing", "1"], r"smoothing must be in [0, 1), got 1"),
        (["--chunk-size", "0"], "chunk_size must be finite and at least 1, got 0"),
        (["--seed", "-1"], "seed must be finite and at least 0, got -1"),
        (["--action-std", "0", "0.4", "60", "0.3", "30", "0.2"], "action_std must start at iteration 0"),
        (["--learning-rate", "0", "1e-3", "5", "inf"], "learning_rate must be finite and above 0, got inf"),
        (["--num-minibatches", "5000"], "num_minibatches must not exceed num_envs"),
        (["--re", "clip"], "Unrecognized options"),
    ],
)
def test_nonsense_on_the_command_line_is_refused_by_name(capsys, flags, message):
    shown = refused(capsys, *flags).replace("│ ", "")
    assert message in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-steps", "8"], "num_steps of a run that is continued must stay 2, got 8"),
        (["--seed", "3"], "seed of a run that is continued must stay 0, got 3"),
        (["--num-iterations", "3"], "num_iterations must be at least the 4 that"),
    ],
)
def test_a_continued_run_keeps_its_task_and_its_iterations(finished, capsys, arguments, message):
    before = (finished.out / "config.json").read_bytes()
    assert message in refused(capsys, "--resume", str(finished.out), *arguments)
    assert (finished.out / "config.json").read_bytes() == before


def test_every_number_of_the_configuration_has_a_range():
    for name, hint in typing.get_type_hints(Config, include_extras=True).items():
        kind = typing.get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
        if kind in (int, float, Steps):
            assert any(isinstance(m, Range) for m in getattr(hint, "__metadata__", ())), name


def test_a_doomed_run_leaves_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match="more images than the 64 feature dimensions, got 10"):
        train(changed(eval_images=10), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env-id", "AdaGen/Nope"], "`Nope`"),
        (["--reward", "{clip: 1}"], "reward must be a name or a JSON object, got {clip: 1}"),
        (["--reward", "none"], "reward must name a reward to learn from, got 'none'"),
        (["--out", "/dev/null/run"], "/dev/null/run"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(capsys, tmp_path, arguments, message):
    if "--out" not in arguments:
        arguments = [*arguments, "--out", str(tmp_path / "run")]
    assert message in refused(capsys, *FLAGS, *arguments)
    assert not (tmp_path / "run").exists()


def test_the_second_policy_needs_the_task_of_the_first(finished):
    with pytest.raises(ValueError, match=r"num_steps must be that of .*, 2, got 3"):
        Trainer(changed(diversity_run=str(finished.out), num_steps=3))


def test_a_directory_that_names_a_module_is_refused_by_every_reader(finished, tmp_path, monkeypatch, capsys):
    (tmp_path / "bad_module.py").write_text("raise SystemExit('this code has run')")
    monkeypatch.syspath_prepend(tmp_path)
    bad = tmp_path / "bad"
    bad.mkdir()
    config = json.loads((finished.out / "config.json").read_text())
    (bad / "config.json").write_text(json.dumps(config | {"env_id": "bad_module:AdaGen/MaskGIT-v0"}))
    for name in ("checkpoint.pt", "metrics.jsonl"):
        (bad / name).write_bytes((finished.out / name).read_bytes())
    with pytest.raises(ValueError, match="would run the code of a module"):
        load_policy(bad)
    with pytest.raises(ValueError, match="would run the code of a module"):
        Trainer(changed(diversity_run=str(bad)))
    assert "would run the code of a module" in refused(capsys, "--resume", str(bad))
    with pytest.raises(SystemExit, match="this code has run"):
        load_policy(bad, trust_modules=True)


def test_steps_and_noise_are_annealed_over_a_run():
    config = Config(num_iterations=10, learning_rate=((0, 0.2), (5, 0.1)), action_std=((0, 0.8),))
    rates = [config.learning_rate_at(i) for i in range(12)]
    assert rates[0] == 0.2
    assert rates[5] == pytest.approx(0.05)
    assert rates[10] == rates[11] == pytest.approx(0.1 * 0.02)
    assert all(later < before for before, later in itertools.pairwise(rates[:11]))
    stds = [config.action_std_at(i) for i in (0, 5, 10, 20)]
    assert stds == pytest.approx([0.8, 0.4, 0.2, 0.2])
    plain = dataclasses.replace(config, anneal=False)
    assert [plain.learning_rate_at(i) for i in (4, 5, 9)] == [0.2, 0.1, 0.1]
    assert plain.action_std_at(9) == 0.8


def test_the_table_learns_faster_than_the_network_and_a_static_policy_is_its_table_alone():
    trainer = Trainer(changed(table_rate=50.0, learning_rate=((0, 1e-3),)))
    trainer.step()
    table, network = trainer.policy.table.abs(), trainer.policy.linear3.bias.abs()
    assert table.max() > 10 * network.max() > 0
    static = Trainer(changed(adaptive=False))
    static.step()
    assert static.policy.table.abs().max() > 0
    episode = run_episode(static.env, torch.no_grad()(static.act), seed=3)
    assert (episode.actions == episode.actions[:, :1]).all(), "every image has the same schedule"
    assert Trainer(changed(table_rate=0.0)).policy.table is None
    with pytest.raises(ValueError, match="table_rate must be above 0 for a policy that is not adaptive"):
        changed(adaptive=False, table_rate=0.0)


def test_the_policy_that_is_kept_is_the_average_of_those_of_the_iterations():
    trainer, seen = Trainer(changed(average_decay=0.5)), []
    seen.append(trainer.policy.table.detach().clone())
    for _ in range(2):
        trainer.step()
        seen.append(trainer.policy.table.detach().clone())
    torch.testing.assert_close(trainer.kept.table, 0.25 * seen[0] + 0.25 * seen[1] + 0.5 * seen[2])
    last = Trainer(changed(average_decay=0.0))
    assert last.kept is last.policy


def test_a_finished_run_leaves_its_policy_in_one_file_and_the_published_schedule_beside_its_own(finished):
    actor, loaded = genenv.load_policy(finished.out / "policy.safetensors"), load_policy(finished.out)
    assert actor.env_kwargs == loaded.env_kwargs
    env = gym.make_vec(actor.env_id, num_envs=4, reward="none", autoreset_mode="Disabled", **actor.env_kwargs)
    assert torch.equal(run_episode(env, actor, 5).actions, run_episode(env, loaded, 5).actions)
    rows = json.loads((finished.out / "summary.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["published", "hand-crafted", "learned"]
    assert len({row["fid"] for row in rows}) == 3


def test_a_run_from_the_published_schedule_has_the_tier_s_own_beside_it(finished, tmp_path, undrawn):
    result = train(changed(schedule="published", num_iterations=1), tmp_path / "run")
    assert list(result.evaluations) == ["hand-crafted", "published", "learned"]
    assert result.evaluations["published"].metrics == finished.others["published"].metrics
    assert result.others["hand-crafted"].metrics == finished.handcrafted.metrics


def test_the_paper_preset_smooths_steps_down_its_exploration_and_says_what_it_needs():
    paper = PRESETS["paper"]
    assert paper.smoothing == 0.8
    assert [value_at(paper.action_std, i) for i in (0, 499, 500, 999)] == [0.6, 0.6, 0.3, 0.3]
    # 256 images of 16 x 96 features; a rollout, 5 replays and 5 batches of fresh fakes
    decisions = 1000 * 16 * (6 * 4096 + 5 * 1024)
    assert Trainer(paper).needs() == (
        "needs 1.5 MiB for features (256 images at once, 16 x 96, one decision), 1.0 MiB for 4,096 images, "
        f"{decisions:,} decisions, each at least one network evaluation"
    )


@pytest.mark.parametrize(
    ("env_id", "message"), [("CartPole-v1", "got 'CartPole-v1'"), ("Foo/Bar-v0", "Namespace Foo not found")]
)
def test_an_environment_that_is_not_ours_is_one_line(env_id, message, tmp_path, capsys):
    assert message in refused(capsys, "--env-id", env_id, "--out", str(tmp_path / "run"))


def test_a_run_of_another_agent_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"env_id": "AdaGen/MaskGIT-v0", "group_size": 4}')
    save_checkpoint({"iteration": 0}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"config\.json has no field backbone, num_steps"):
        load_policy(tmp_path)
