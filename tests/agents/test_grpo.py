"""GRPO: its parts against oracles of a few lines, its log-probabilities against the sampling, and exact runs."""

import dataclasses
import itertools
import json
import math

import gymnasium as gym
import pytest
import torch

from agents import chunks, grpo
from agents.grpo import PRESETS, Config, Trainer, entropy_weight, load_policy, train
from agents.loop import Diverged
from agents.runs import load_checkpoint, read_config
from genenv.evaluation import Evaluator
from genenv.rollout import run_episode
from genenv.tiers import load_part
from genenv.vector_env import unwrapped

SMALL = Config(
    num_epochs=2,
    scale="group",
    fid_beta=0.5,
    kl_weight=0.1,
    average_decay=0.0,
    instance='{"clip": 1.0, "hpsv2": 1.0}',
    distribution_weight=2.0,
    num_groups=4,
    group_size=3,
    chunk_size=12,
    num_iterations=3,
    learning_rate=((0, 1e-3),),
    eval_interval=2,
    eval_images=70,
    checkpoint_interval=1,
)
SCHEDULE = dataclasses.replace(
    SMALL, env_id="AdaGen/MaskGIT-v0", num_steps=2, entropy_weight=0.0, hidden_dim=16, instance="clip"
)


def change(config, **fields):
    return dataclasses.replace(config, **fields)


def rollout(trainer, number=12, first=0):
    seeds = list(range(first, first + number))
    return chunks.play(trainer.policy.env, trainer.policy.act, seeds), seeds


@pytest.mark.parametrize("network", ["llamagen", "vqgan"])
def test_recomputed_log_probabilities_are_those_of_the_sampling(network):
    trainer = Trainer(change(SMALL, network=network))
    episode, seeds = rollout(trainer)
    found, entropies = trainer.policy.log_prob(trainer.policy.network, episode, seeds, torch.arange(12))
    shown = episode.observations["logits"]  # (L, N, V), from the attention cache, before each token
    expected = shown.gather(-1, episode.actions[..., None])[..., 0].T
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    by_hand = -(shown.exp() * shown).sum(-1).T
    torch.testing.assert_close(entropies, by_hand, rtol=0, atol=1e-5)


def test_guided_rollouts_are_judged_by_the_conditional_network():
    plain, guided = Trainer(SMALL), Trainer(change(SMALL, guidance_weight=2.0))
    episodes = [rollout(trainer)[0] for trainer in (plain, guided)]
    assert not torch.equal(episodes[0].actions, episodes[1].actions)
    images = torch.arange(12)
    found = guided.policy.log_prob(guided.policy.network, episodes[1], [], images)[0]
    base = load_part("llamagen", "digits")
    expected = base.log_prob(episodes[1].actions.T, episodes[1].context)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 2, 11, 2**63 - 1, 10**30])
@pytest.mark.parametrize("size", [3, 12])
def test_groups_are_whole_whatever_the_seed(seed, size):
    trainer = Trainer(change(SMALL, seed=seed, group_size=size, chunk_size=4 * size))
    iterations = [trainer._next_seeds() for _ in range(2)]
    assert trainer.images == 8 * size
    assert len({*iterations[0], *iterations[1]}) == 8 * size
    for seeds in iterations:
        groups = [seeds[i : i + size] for i in range(0, len(seeds), size)]
        assert all(len({seed // size for seed in group}) == 1 for group in groups)
        env = trainer.policy.env
        episode = chunks.play(env, trainer.policy.act, seeds)
        assert episode.group.unique(return_counts=True)[1].tolist() == [size] * 4


def test_groups_share_their_class_and_differ_in_their_tokens():
    trainer = Trainer(SMALL)
    episode = chunks.play(trainer.policy.env, trainer.policy.act, trainer._next_seeds())
    for group in episode.group.unique():
        assert len(episode.context[episode.group == group].unique()) == 1
    assert len(episode.actions.T.unique(dim=0)) == 12


def oracle(trainer, config, episode, seeds, advantages, old, reference, bonus):
    """The loss written down image by image."""
    log_prob, entropies = trainer.policy.log_prob(
        trainer.policy.network, episode, seeds, torch.arange(len(seeds))
    )
    total = 0.0
    for i in range(len(seeds)):
        if config.ratio == "sequence":
            ratios = [math.exp((log_prob[i].mean() - old[i].mean()).item())]
            gaps = [(reference[i].mean() - log_prob[i].mean()).item()]
        else:
            ratios = (log_prob[i] - old[i]).exp().tolist()
            gaps = (reference[i] - log_prob[i]).tolist()
        for weight, advantage in advantages:
            a = advantage[i].item()
            clipped = [min(max(r, 1 - config.clip), 1 + config.clip) for r in ratios]
            gains = [min(r * a, c * a) for r, c in zip(ratios, clipped, strict=True)]
            total -= weight * sum(gains) / len(gains)
        total += config.kl_weight * sum(math.exp(d) - d - 1 for d in gaps) / len(gaps)
        total -= bonus * entropies[i].mean().item()
    return total / len(seeds)


@pytest.mark.parametrize("ratio", ["sequence", "token"])
@pytest.mark.parametrize("num_epochs", [1, 2])
def test_the_loss_is_the_one_of_the_paper(ratio, num_epochs):
    config = change(
        SMALL,
        ratio=ratio,
        num_epochs=num_epochs,
        kl_weight=0.7,
        entropy="fixed",
        entropy_weight=0.05,
        clip=0.05,
    )
    trainer, before = Trainer(config), Trainer(config)
    record = trainer.step()
    if num_epochs == 2:  # the second is that of the policy after one step
        ahead = Trainer(change(config, num_epochs=1))
        ahead.step()
        before.policy.network.load_state_dict(ahead.policy.network.state_dict())
    frozen = Trainer(config)
    episode, seeds = rollout(frozen)
    parts = frozen.reward.judge(episode.images, episode.context, episode.group)[1]
    advantages = []
    for weight, value in ((1.0, parts["clip"] + parts["hpsv2"]), (2.0, parts["loo_fid"])):
        groups = value.view(4, 3)
        mean, std = groups.mean(1, keepdim=True), groups.std(1, correction=0, keepdim=True)
        advantages.append((weight, ((groups - mean) / (std + 1e-4)).flatten()))
    with torch.no_grad():
        old = frozen.policy.log_prob(frozen.policy.network, episode, seeds, torch.arange(12))[0]
        expected = oracle(before, config, episode, seeds, advantages, old, old, 0.05)
    assert record["loss"] == pytest.approx(expected, rel=1e-4, abs=2e-5)
    assert (record["kl"] > 0) == (num_epochs == 2)


@pytest.mark.parametrize("config", [SMALL, SCHEDULE], ids=["tokens", "schedule"])
def test_the_chunk_changes_no_number(config):
    whole, parts = Trainer(config), Trainer(change(config, chunk_size=5))
    for _ in range(2):
        ours, theirs = whole.step(), parts.step()
    assert ours == pytest.approx(theirs, rel=2e-3, abs=2e-4)


def test_entropy_is_held_by_its_weight():
    def by_hand(entropy, progress):
        schedule = (
            min(1.0, progress / 0.05)
            if progress <= 0.85
            else (1 + math.cos(math.pi * (progress - 0.85) / 0.15)) / 2
        )
        weight = 2e-3 * schedule
        if abs(0.5 - entropy) > 0.02:
            weight *= math.exp(4 * (0.5 - entropy))
        return min(max(weight, 7e-5), 4e-3)

    for entropy, progress in itertools.product((0.1, 0.45, 0.485, 0.5, 0.515, 0.7), (0, 0.02, 0.5, 0.9, 1.0)):
        found = entropy_weight(entropy, progress, 2e-3, 0.5, tolerance=0.02, gain=4.0)
        assert found == pytest.approx(by_hand(entropy, progress))
    assert (
        entropy_weight(0.2, 0.5, 2e-3, 0.5)
        > entropy_weight(0.5, 0.5, 2e-3, 0.5)
        > entropy_weight(0.8, 0.5, 2e-3, 0.5)
    )


def test_the_frozen_reference_is_frozen_and_the_moving_one_moves():
    for kind in ("frozen", "moving"):
        trainer = Trainer(change(SMALL, reference=kind, reference_decay=0.75))
        start = {name: value.clone() for name, value in trainer.policy.reference.state_dict().items()}
        trainer.step()
        after, now = trainer.policy.reference.state_dict(), trainer.policy.network.state_dict()
        assert not torch.equal(now["output.weight"], start["output.weight"])
        for name, value in start.items():
            expected = value if kind == "frozen" else 0.75 * value + 0.25 * now[name]
            torch.testing.assert_close(after[name], expected)


def test_the_average_of_the_weights_is_what_is_kept():
    trainer = Trainer(change(SMALL, average_decay=0.75))
    name = "output.weight"
    expected = trainer.policy.network.state_dict()[name].clone()
    assert torch.equal(trainer.kept.state_dict()[name], expected)
    for _ in range(2):
        trainer.step()
        expected = 0.75 * expected + 0.25 * trainer.policy.network.state_dict()[name]
    torch.testing.assert_close(trainer.kept.state_dict()[name], expected)
    assert not torch.equal(trainer.policy.network.state_dict()[name], expected)
    plain = Trainer(SMALL)
    assert plain.kept is plain.policy.network


def test_low_rank_changes_leave_the_weights_and_come_out_as_plain_ones(tmp_path):
    trainer = Trainer(change(SMALL, lora_rank=2))
    base = load_part("llamagen", "digits")
    count = sum(p.numel() for p in trainer.parameters)
    assert count < 0.2 * sum(p.numel() for p in base.parameters())
    trainer.step()
    grpo.write_generator(trainer.policy.network, "llamagen", "digits", tmp_path / "generator")
    tuned = load_part("llamagen", str(tmp_path / "generator"))
    tokens, labels = torch.randint(128, (5, 16)), torch.arange(5)
    torch.testing.assert_close(
        tuned.log_prob(tokens, labels), trainer.policy.network.log_prob(tokens, labels).detach()
    )
    assert not torch.allclose(tuned.log_prob(tokens, labels), base.log_prob(tokens, labels), atol=1e-4)


def test_half_precision_runs_near_full_precision():
    full, half = Trainer(SMALL), Trainer(change(SMALL, precision="bfloat16"))
    episode, seeds = rollout(full)
    images = torch.arange(12)
    expected = full.policy.log_prob(full.policy.network, episode, seeds, images)[0]
    found = half._of_chunks(half.policy.network, episode, seeds, [images])[0]
    assert (found - expected).abs().max() < 0.1
    assert not torch.equal(found, expected)
    assert math.isfinite(half.step()["loss"])


def states(value):
    if isinstance(value, dict):
        return [pair for key, each in value.items() if key != "seconds" for pair in states(each)]
    if isinstance(value, list):
        return [pair for each in value for pair in states(each)]
    return [value]


@pytest.mark.parametrize(
    "config",
    [
        change(SMALL, reference="moving"),
        change(SMALL, lora_rank=2, average_decay=0.5),
        change(SCHEDULE, average_decay=0.5),
    ],
    ids=["moving", "lora", "schedule"],
)
def test_a_run_that_was_killed_goes_on_to_the_same_numbers(config, tmp_path, monkeypatch, undrawn):
    class Killed(Exception):
        pass

    train(config, tmp_path / "whole")
    steps, step = itertools.count(), Trainer.step

    def dying(self):
        if next(steps) == 1:
            raise Killed
        return step(self)

    monkeypatch.setattr(Trainer, "step", dying)
    with pytest.raises(Killed):
        train(config, tmp_path / "parts")
    monkeypatch.setattr(Trainer, "step", step)
    train(config, tmp_path / "parts", resume=True)
    ours, theirs = (states(load_checkpoint(tmp_path / name / "checkpoint.pt")) for name in ("whole", "parts"))
    assert len(ours) == len(theirs) > 10
    for value, other in zip(ours, theirs, strict=True):
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("grpo") / "run"
    train(SMALL, out)
    return out


def test_a_run_leaves_a_generator_that_every_id_of_it_takes(run):
    config, summary = read_config(Config, run), json.loads((run / "summary.json").read_text())
    assert [row["name"] for row in summary["rows"]] == ["base", "tuned"]
    folder = str(run / "generator")
    trainer = Trainer(config)
    trainer.load_state_dict(load_checkpoint(run / "checkpoint.pt"))
    tuned = load_part("llamagen", folder).state_dict()
    for name, value in trainer.policy.network.state_dict().items():
        assert torch.equal(tuned[name], value)
    env = gym.make_vec("AdaGen/LlamaGen-v0", num_envs=3, backbone=folder)
    assert env.reset(seed=0)[0]["tokens"].shape == (3, 4, 4)
    evaluator = Evaluator(config.env_id, config.env_kwargs | {"backbone": folder}, 70)
    again = evaluator(grpo.generator_policy(evaluator.env), seed=0)
    assert again.metrics["fid"] == pytest.approx(summary["rows"][1]["fid"], rel=1e-3)
    for name in ("report.html", "samples.png", "curves.png"):
        assert (run / name).stat().st_size > 500
    assert not (run / "schedule.png").exists()
    with pytest.raises(ValueError, match="has tuned a generator: use backbone="):
        load_policy(run)


def test_the_base_of_a_run_stays_the_base_when_it_is_evaluated_again(tmp_path, undrawn):
    first = train(change(SMALL, num_iterations=2), tmp_path / "run")
    (tmp_path / "run" / "handcrafted.pt").unlink()
    again = train(change(SMALL, num_iterations=3), tmp_path / "run", resume=True)
    assert again.handcrafted.metrics == pytest.approx(first.handcrafted.metrics)
    assert first.learned.metrics["fid"] != pytest.approx(first.handcrafted.metrics["fid"])


def test_a_tuned_generator_can_be_tuned_again(tmp_path):
    backbone = "digits"
    for network in ("llamagen", "vqgan"):
        trainer = Trainer(change(SMALL, network=network, backbone=backbone))
        trainer.step()
        folder = tmp_path / network
        for _ in range(2):  # the second takes the place of the first
            grpo.write_generator(trainer.kept, network, backbone, folder)
        backbone = str(folder)
    base, first, second = ("digits", str(tmp_path / "llamagen"), backbone)
    names = {
        part: [load_part(part, each).state_dict() for each in (base, first, second)]
        for part in ("llamagen", "vqgan", "vq")
    }

    def same(part, one, other):
        a, b = names[part][one], names[part][other]
        return all(torch.equal(a[name], b[name]) for name in a)

    assert not same("llamagen", 0, 1)
    assert same("llamagen", 1, 2)
    assert same("vqgan", 0, 1)
    assert not same("vqgan", 1, 2)
    assert same("vq", 0, 2)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_a_schedules_policy_is_an_actor(decay, tmp_path, undrawn):
    result = train(change(SCHEDULE, average_decay=decay), tmp_path / "run")
    actor = load_policy(tmp_path / "run")
    found = Evaluator(actor.env_id, actor.env_kwargs, 70)(actor, seed=0)
    assert found.metrics == pytest.approx(result.learned.metrics)
    env = gym.make_vec(actor.env_id, num_envs=6, reward="none", **actor.env_kwargs)
    episode = run_episode(env, actor, seed=0)
    assert episode.actions.shape == (2, 6, len(unwrapped(env).actions.params))
    assert episode.actions.abs().max() > 0


def test_a_loss_that_is_not_finite_stops_the_run_with_its_checkpoint_kept(tmp_path, monkeypatch):
    step = Trainer.step

    def broken(self):
        if self.iteration == 1:
            with torch.no_grad():
                next(self.policy.network.parameters()).fill_(math.nan)
        return step(self)

    monkeypatch.setattr(Trainer, "step", broken)
    with pytest.raises(Diverged, match=r"iteration 2: .* is nan; the last checkpoint of .* is kept"):
        train(SMALL, tmp_path / "run")
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["iteration"] == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"network": "gpt"}, "network must be one of llamagen"),
        ({"ratio": "word"}, "ratio must be one of sequence, token, got 'word'"),
        ({"reference": "old"}, "reference must be one of frozen, moving, got 'old'"),
        ({"entropy": "off"}, "entropy must be one of adaptive, fixed, got 'off'"),
        ({"precision": "half"}, "precision must be one of float32, bfloat16, got 'half'"),
        ({"instance": "none", "distribution": "none"}, "there must be a reward with a weight"),
        ({"instance_weight": 0.0, "distribution": "none"}, "there must be a reward with a weight"),
        ({"num_steps": 4}, "num_steps must be None with PolicyTuning/Tokens-v0"),
        ({"env_id": "AdaGen/MaskGIT-v0"}, "entropy_weight must be 0 with AdaGen/MaskGIT-v0"),
        ({"env_id": "AdaGen/MaskGIT-v0", "entropy_weight": 0.0, "lora_rank": 2}, "lora_rank must be 0 with"),
        ({"group_size": 1}, "group_size must be finite and at least 2, got 1"),
        ({"clip": math.nan}, "clip must be finite and above 0, got nan"),
        ({"instance": "{"}, "instance: reward must be a name or a JSON object"),
        ({"distribution": "{}"}, "distribution must be the name of a reward, weights other than 0"),
        ({"instance": '{"clip": 0}'}, "instance must be the name of a reward, weights other than 0"),
        ({"instance": '{"clip": true}'}, "instance must be the name of a reward, weights other than 0"),
        (
            {"instance": "loo_fid"},
            "a reward must be either in instance or in distribution, got loo_fid, loo_fid",
        ),
        (
            {"reference": "moving", "kl_weight": 0.0},
            "reference must be frozen where kl_weight is 0, got 'moving'",
        ),
        ({"entropy_target": math.nan}, r"entropy_target must be in \[0, 1\), got nan"),
        ({"entropy_limits": (1e-3, 1e-4)}, "entropy_limits must be two rising numbers from 0 on"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        change(SMALL, **fields)


def test_the_published_settings():
    paper = PRESETS["paper"]
    assert (paper.num_groups, paper.group_size, paper.num_iterations, paper.num_epochs) == (12, 12, 600, 2)
    assert (paper.clip, paper.kl_weight, paper.fid_beta, paper.guidance_weight) == (0.2, 3.0, 0.5, 0.5)
    assert (paper.instance_weight, paper.distribution_weight) == (1.0, 2.0)
    assert json.loads(paper.instance) == {"clip": 1.0, "hpsv2": 1.0}
    assert not paper.fid_standardised
    assert (paper.distribution, paper.scale, paper.ratio, paper.entropy) == (
        *("loo_fid", "group", "sequence", "adaptive"),
    )
    assert (paper.average_decay, paper.reference) == (0.0, "frozen")
    assert (paper.entropy_weight, paper.entropy_target, paper.entropy_tolerance, paper.entropy_gain) == (
        *(2.2e-3, 0.78, 0.015, 3.0),
    )
    assert (paper.learning_rate, paper.weight_decay, paper.max_gradient) == (((0, 1e-5),), 0.01, 1.0)


def test_advantages_are_told_in_the_deviations_of_the_group_or_of_the_batch():
    group = torch.tensor([0, 0, 0, 7, 7, 7])
    reward = torch.tensor([1.0, 2.0, 6.0, 1.0, 1.001, 1.002])
    deviation = torch.tensor([-2.0, -1.0, 3.0, -0.001, 0.0, 0.001])
    per_group = Trainer(SMALL)._advantage(reward, group)
    for part in (slice(0, 3), slice(3, 6)):
        std = deviation[part].square().mean().sqrt()
        torch.testing.assert_close(per_group[part], deviation[part] / (std + 1e-4), rtol=1e-3, atol=1e-3)
    whole = Trainer(change(SMALL, scale="batch"))._advantage(reward, group)
    std = deviation.square().mean().sqrt()
    torch.testing.assert_close(whole, deviation / (std + 1e-4), rtol=1e-3, atol=1e-3)


def test_a_policy_that_collapses_raises_the_guards_warning(tmp_path, undrawn):
    config = change(
        SMALL,
        num_groups=10,
        group_size=8,
        chunk_size=80,
        num_iterations=24,
        instance="hpsv2",
        distribution="none",
        kl_weight=0.0,
        learning_rate=((0, 4e-4),),
        entropy_weight=0.0,
        eval_interval=24,
        eval_images=600,
    )
    result = train(config, tmp_path / "run")
    assert result.learned.metrics["recall"] < result.handcrafted.metrics["recall"] - 0.2
    assert "Warning: FID rose and recall fell while the reward rose" in result.verdict
