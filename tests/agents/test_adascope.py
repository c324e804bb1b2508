"""AdaScope: densities against the sampling, every host against its plain algorithm, scopes, and exact runs."""

import copy
import dataclasses
import json
import math

import gymnasium as gym
import pytest
import torch

from agents import adascope
from agents.adascope import Config, Trainer, mean_window, sampler_of, saturated, train
from agents.hosts import HOSTS
from agents.runs import read_config
from genenv.rollout import generator_policy, run_episode
from genenv.scopes import Detector
from genenv.tiers import load_part
from genenv.vector_env import unwrapped

SMALL = Config(
    num_groups=3,
    group_size=4,
    chunk_size=12,
    num_steps=4,
    num_iterations=3,
    num_updates=1,
    scope="full",
    reward='{"classifier": 1.0}',
    semantic="classifier",
    learning_rate=((0, 1e-3),),
    eval_interval=2,
    eval_images=70,
    checkpoint_interval=1,
)
every_host = pytest.mark.parametrize("host", HOSTS)


def change(config=SMALL, **fields):
    return dataclasses.replace(config, **fields)


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.parameters])


@pytest.mark.parametrize(("network", "transition"), [("dit", "ddim"), ("sit", "ddim"), ("sit", "flow-sde")])
@pytest.mark.parametrize("weight", [0.0, 1.5])
def test_recomputed_densities_are_those_of_the_sampling(network, transition, weight):
    config = change(network=network, transition=transition, guidance_weight=weight, num_steps=10)
    trainer = Trainer(config)
    rollout = trainer._rollout(trainer._next_seeds())
    step, image = rollout.inside.nonzero(as_tuple=True)
    assert len(step) == 10 * 12
    found = trainer.sampler.predicted(rollout.latents[step, image], step, rollout.context[image])
    densities = found.log_prob(rollout.latents[step + 1, image])
    torch.testing.assert_close(densities, rollout.old[step, image], atol=1e-5, rtol=0)


def test_a_rollout_is_the_generators_own():
    trainer = Trainer(SMALL)
    seeds = trainer._next_seeds()
    rollout = trainer._rollout(seeds)
    env = adascope.make_env(SMALL)
    episode = run_episode(env, generator_policy(env), seeds)
    assert torch.equal(rollout.images, episode.images)
    assert torch.equal(rollout.latents[:-1], episode.observations["latents"])
    assert torch.equal(sampler_of(env).decoder(rollout.latents[-1]), episode.images)


def disturbed(network):
    """Moves the weights a little, so that the policy is no longer the one that sampled."""
    generator = torch.Generator().manual_seed(5)
    for parameter in network.parameters():
        parameter.data += 0.01 * torch.randn(parameter.shape, generator=generator)


def plain_step(trainer, rollout, host):
    """Returns the weights after a gradient step of the plain algorithm from disturbed ones, decision by decision."""
    config, reward = trainer.config, trainer.reward(rollout.images, rollout.context)
    if host in ("ddpo", "ddpo-sf", "dpok", "tdpo"):  # no context has enough rewards yet
        advantage = (reward - reward.mean()) / (reward.std(correction=0) + 1e-8)
    else:
        groups = reward.view(3, 4)
        spread = groups.std(1, correction=0, keepdim=True) + 1e-4
        advantage = ((groups - groups.mean(1, True)) / spread).flatten()
    advantage = advantage.clamp(-config.advantage_clip, config.advantage_clip)
    network, before, sampled = trainer.network, load_part("dit", "digits"), copy.deepcopy(trainer.network)
    disturbed(network)
    sampler, losses, clip = trainer.sampler, [], config.clip

    def density(i, k, net):
        sampler.use(net)
        row = slice(i, i + 1)
        found = sampler.predicted(rollout.latents[k, row], torch.tensor([k]), rollout.context[row])
        distance = rollout.latents[k + 1, row] - found.mean
        log_prob = (
            -(distance / found.std).square().mean() / 2 - found.std.log()[0] - math.log(2 * math.pi) / 2
        )
        return log_prob, found

    for k in range(config.num_steps):
        pairs = [(2 * p, 2 * p + 1) for p in range(6)] if host == "d3po" else [(i,) for i in range(12)]
        for unit in pairs:
            if host == "d3po":
                winner, loser = sorted(unit, key=lambda i: -reward[i])
                if reward[winner] == reward[loser]:
                    continue
                gaps = [
                    density(i, k, network)[0] - density(i, k, before)[0].detach() for i in (winner, loser)
                ]
                logs = [ratio.clamp(1 - clip, 1 + clip).log() for ratio in (gap.exp() for gap in gaps)]
                losses.append(-torch.nn.functional.logsigmoid(config.beta * (logs[0] - logs[1])))
                continue
            (i,) = unit
            now, found = density(i, k, network)
            if host == "ddpo-sf":
                losses.append(-advantage[i] * now)
                continue
            ratio = (now - density(i, k, sampled)[0].detach()).exp()
            losses.append(
                -torch.minimum(ratio * advantage[i], ratio.clamp(1 - clip, 1 + clip) * advantage[i])
            )
            if host in ("dpok", "flow-grpo"):
                other = density(i, k, before)[1]
                kl = ((found.mean - other.mean.detach()) / found.std).square().mean() / 2
                losses[-1] = losses[-1] + config.kl_weight * kl
    trainer.optimiser.zero_grad()
    torch.stack(losses).mean().backward()
    torch.nn.utils.clip_grad_norm_(trainer.parameters, config.max_gradient)
    torch.optim.AdamW(trainer.parameters, lr=1e-3, weight_decay=config.weight_decay).step()
    return weights(trainer)


@pytest.mark.parametrize("clip", [1e-3, 1.0])
@every_host
def test_with_the_full_scope_a_host_is_the_plain_algorithm(host, clip):
    config = change(host=host, num_steps=2, clip=clip, kl_weight=2.0)
    trainer, plain = Trainer(config), Trainer(config)
    seeds = trainer._next_seeds()
    rollout = trainer._rollout(seeds)
    reward = trainer.reward(rollout.images, rollout.context)
    credit = trainer._credit(reward, rollout)
    disturbed(trainer.network)
    start = weights(trainer)
    told = trainer._update(rollout, reward, credit)
    if "clipped" in told:
        assert (told["clipped"] > 0.5) == (clip == 1e-3)
    expected = plain_step(plain, rollout, host)
    # Adam divides gradients by their size: of those that are nearly 0 the sign is rounding
    torch.testing.assert_close(weights(trainer), expected, atol=2.1e-3, rtol=0)
    moved, wanted = weights(trainer) - start, expected - start
    assert torch.nn.functional.cosine_similarity(moved, wanted, dim=0) > 0.99


def test_the_average_is_that_of_the_weights_of_each_iteration():
    trainer = Trainer(change(average_decay=0.75))
    average = weights(trainer)
    for _ in range(2):
        trainer.step()
        average = 0.75 * average + 0.25 * weights(trainer)
    found = torch.cat([p.flatten() for p in trainer.kept.parameters()])
    torch.testing.assert_close(found, average)


def test_the_critic_moves_towards_the_credit_of_each_image():
    config = change(host="tdpo", critic_clip=0.05, critic_rate=1e-2)
    trainer = Trainer(config)
    trainer.critic.output.weight.data.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    rollout = trainer._rollout(trainer._next_seeds())
    credit = torch.linspace(-2, 2, 12)
    critic, expected = copy.deepcopy(trainer.critic), trainer.critic(rollout.features).detach()
    critic.output.bias.data += 0.04  # the values have moved meanwhile, some beyond the clip
    trainer.critic.load_state_dict(critic.state_dict())
    steps, images = rollout.inside.nonzero(as_tuple=True)
    trainer._update_critic(rollout, credit, expected, steps, images, float(len(steps)))
    losses = []
    for k, i in zip(steps.tolist(), images.tolist(), strict=True):
        value, before, goal = critic(rollout.features[k, i]), expected[k, i], credit[i]
        bounded = before + (value - before).clamp(-0.05, 0.05)
        losses.append(torch.maximum((value - goal) ** 2, (bounded - goal) ** 2) / 2)
    torch.stack(losses).mean().backward()
    torch.nn.utils.clip_grad_norm_(critic.parameters(), config.max_gradient)
    torch.optim.Adam(critic.parameters(), lr=1e-2).step()
    for found, wanted in zip(trainer.critic.parameters(), critic.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


@every_host
def test_with_an_empty_scope_nothing_changes(host):
    trainer = Trainer(change(host=host, scope="fixed:2:2", num_updates=1 if host == "ddpo-sf" else 2))
    before = weights(trainer)
    record = trainer.step()
    assert torch.equal(weights(trainer), before)
    assert record["scope/share"] == 0
    assert record["loss"] == 0
    assert all(math.isfinite(value) for value in record.values())


@every_host
def test_decisions_outside_the_scope_have_no_say(host, monkeypatch):
    config = change(host=host, scope="fixed:1:3")
    trainers = [Trainer(config) for _ in range(2)]
    spoiled = trainers[1]._rollout

    def rollout(seeds):
        found = spoiled(seeds)
        latents = found.latents.clone()
        latents[0] += 100  # before the first decision, which does not count
        return dataclasses.replace(found, latents=latents)

    monkeypatch.setattr(trainers[1], "_rollout", rollout)
    for trainer in trainers:
        trainer.step()
    assert torch.equal(weights(trainers[0]), weights(trainers[1]))
    assert not torch.equal(weights(trainers[0]), weights(Trainer(config)))


@every_host
def test_the_size_of_a_chunk_changes_no_number(host):
    config = change(host=host, num_updates=1 if host == "ddpo-sf" else 2, num_steps=3)
    found = []
    for chunk_size in (12, 5, 4):
        trainer = Trainer(change(config, chunk_size=chunk_size))
        record = trainer.step()
        found.append((record["reward"], record["loss"], weights(trainer)))
    for other in found[1:]:
        assert other[:2] == pytest.approx(found[0][:2], abs=1e-5)
        torch.testing.assert_close(
            other[2], found[0][2], atol=1e-3, rtol=0
        )  # one step of Adam, where nothing is felt


def test_the_frozen_policy_is_frozen():
    trainer = Trainer(change(host="dpok", kl_weight=5.0))
    before = {name: value.clone() for name, value in trainer.reference.state_dict().items()}
    records = [trainer.step() for _ in range(2)]
    assert records[0]["kl"] == 0
    assert records[1]["kl"] > 0
    for name, value in trainer.reference.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("num_probes", [1, 3, None])
def test_a_few_images_give_a_group_its_window(num_probes):
    detector = Detector(start_threshold=0.3, end_threshold=0.3, latest_start=0.5, latest_end=1.0)
    config = change(
        scope="adaptive", num_steps=12, num_probes=num_probes, num_groups=5, chunk_size=20, detector=detector
    )
    trainer = Trainer(config)
    rollout = trainer._rollout(trainer._next_seeds())
    groups = rollout.inside.view(12, 5, 4)
    shared = bool((groups == groups[..., :1]).all())
    assert shared == (num_probes is not None)
    assert trainer.probe.looks <= 12 * 5 * (num_probes or 4)
    assert trainer.probe.looks % (5 * (num_probes or 4)) == 0
    share = rollout.inside.double().mean()
    assert 0 < share < 1


def test_the_windows_are_those_of_the_curves():
    config = change(scope="adaptive", num_steps=12, num_probes=2)
    trainer = Trainer(config)
    seeds = trainer._next_seeds()
    rollout = trainer._rollout(seeds)
    env = adascope.make_env(config)
    episode = run_episode(env, generator_policy(env), seeds)
    images = sampler_of(env).decoder(episode.observations["denoised"].flatten(0, 1))
    context = episode.context.repeat(12)
    curve = trainer.reward(images, context).view(12, 3, 4)[..., :2].mean(-1)
    window = config.detector.window(curve, curve, 12)
    for k in range(12):
        assert torch.equal(rollout.inside[k].view(3, 4)[:, 0], window.contains(k))


def test_nobody_looks_any_more_once_every_window_is_behind():
    early = Detector(latest_start=0.0, latest_end=0.25, shortest=0.0)
    trainer = Trainer(change(scope="adaptive", num_steps=12, detector=early))
    rollout = trainer._rollout(trainer._next_seeds())
    assert not rollout.inside[4:].any()
    assert trainer.probe.looks < 12 * 3 * 2


def test_a_decision_counts_where_the_scope_says():
    trainer = Trainer(change(scope="random:2", num_steps=7))
    rollout = trainer._rollout(trainer._next_seeds())
    assert rollout.inside.sum(0).tolist() == [2] * 12
    assert mean_window(Trainer(SMALL)._rollout(list(range(12))).inside) == {
        "scope/start": 0.0,
        "scope/end": 4.0,
    }


def test_the_critic_learns_and_is_subtracted():
    trainer = Trainer(change(host="tdpo", num_updates=2, wake_interval=1, critic_rate=1e-2))
    first = trainer.step()
    assert trainer.critic.output.weight.any()
    assert "woken" in first
    rollout = trainer._rollout(trainer._next_seeds())
    assert rollout.features.shape == (4, 12, 96)
    assert trainer.critic(rollout.features).std() > 0


@pytest.mark.parametrize("saved", [1, 2])
@pytest.mark.parametrize(
    "fields",
    [
        {"host": "ddpo", "scope": "adaptive", "num_steps": 8, "num_updates": 2, "average_decay": 0.5},
        {"host": "tdpo", "num_updates": 3, "wake_interval": 2},
        {"host": "flow-grpo", "network": "sit", "lora_rank": 2},
    ],
)
def test_a_run_continues_exactly(tmp_path, fields, saved):
    config = change(**fields)
    whole, parts = Trainer(config), Trainer(config)
    records = [whole.step() for _ in range(3)]
    for _ in range(saved):
        parts.step()
    again = Trainer(config)
    again.load_state_dict(parts.state_dict())
    continued = [again.step() for _ in range(3 - saved)]
    for record, other in zip(records[saved:], continued, strict=True):
        names = [name for name in record if not name.startswith("seconds/")]
        assert {n: record[n] for n in names} == {n: other[n] for n in names}
    assert torch.equal(weights(whole), weights(again))


def test_a_run_leaves_a_generator_that_is_a_backbone(tmp_path):
    config = change(host="ddpo", lora_rank=2, num_iterations=2, average_decay=0.5)
    result = train(config, tmp_path / "run")
    assert result.names == ("base", "tuned")
    backbone = str(tmp_path / "run" / "generator")
    kwargs = {"num_envs": 3, "reward": "none", "num_steps": 4, "autoreset_mode": "Disabled"}
    tuned, base = (gym.make_vec("AdaScope/Denoising-v0", backbone=b, **kwargs) for b in (backbone, "digits"))
    images = [run_episode(env, generator_policy(env), seed=3).images for env in (tuned, base)]
    assert not torch.equal(*images)
    assert gym.make_vec("AdaGen/DiT-v0", backbone=backbone, num_envs=2).reset(seed=0)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [row["name"] for row in summary["rows"]] == ["base", "tuned"]
    assert read_config(Config, tmp_path / "run") == config
    assert (tmp_path / "run" / "curves.png").is_file()


@pytest.mark.parametrize(
    ("history", "window", "expected"),
    [
        ([0, 1, 2, 3, 4, 5], 0, False),
        ([0, 1, 2, 3, 4, 5], 2, False),
        ([0, 0, 5, 5, 5, 5], 2, True),
        ([0, 0, 5, 5], 2, False),  # too short to tell
        ([0, 0, 5, 5, 5.3, 5.3], 2, False),
        ([0, 0, 5, 5, 5.05, 5.05], 2, True),
        ([0, 0, 5, 5, 4, 4], 2, True),
    ],
)
def test_a_reward_that_rises_no_more_is_saturated(history, window, expected):
    assert saturated(history, window, 0.02) is expected


def test_a_run_ends_where_its_reward_saturates(tmp_path, monkeypatch):
    monkeypatch.setattr(adascope, "saturated", lambda history, window, gain: len(history) >= 2)
    train(change(num_iterations=50), tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [0, 1, 2]


def test_operations_follow_the_scope():
    full, part = (Trainer(change(scope=scope)).step()["flops"] for scope in ("full", "fixed:0:1"))
    trainer = Trainer(SMALL)
    rows = 4 * 12
    assert full == pytest.approx(rows * (trainer.cost.forward + trainer.cost.update))
    assert part == pytest.approx(rows * trainer.cost.forward + 12 * trainer.cost.update)
    assert 2.5 < trainer.cost.update / trainer.cost.forward < 3.2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"host": "ppo"}, "host must be one of ddpo, .*, got 'ppo'"),
        ({"scope": "half"}, "scope must be 'full', .*, got 'half'"),
        ({"scope": "fixed:2:5"}, "within the horizon of 4 decisions, got end 5"),
        ({"precision": "float16"}, "precision must be one of"),
        ({"num_probes": 5}, "num_probes must be at most group_size, 4, or None, got 5"),
        ({"host": "d3po", "group_size": 3, "num_probes": 1}, "group_size must be even with host 'd3po'"),
        ({"host": "flow-grpo", "group_size": 1, "num_probes": 1}, "group_size must be at least 2"),
        ({"num_updates": 13}, "num_updates must be at most the 12 images, got 13"),
        ({"num_updates": 7, "host": "d3po"}, "num_updates must be at most the 6 pairs, got 7"),
        ({"num_updates": 2, "host": "ddpo-sf"}, "num_updates and num_epochs must be 1 with host 'ddpo-sf'"),
        ({"chunk_size": 3}, "chunk_size must be at least group_size, 4, got 3"),
        ({"statistics_least": 40}, "statistics_least must be at most statistics_size, 32, got 40"),
        ({"scope": "adaptive"}, "latest_start must leave room to find a start"),
        ({"prompts": ("a", "--out")}, "prompts must be texts, which '--out' is not"),
        ({"learning_rate": ((0, 0.0),)}, "learning_rate"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        change(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reward": "none"}, "reward must name a reward, got 'none'"),
        (
            {"semantic": "none", "scope": "adaptive", "num_steps": 8},
            "semantic must name a reward, got 'none'",
        ),
        (
            {"reward": "loo_fid", "scope": "adaptive", "num_steps": 8},
            "reward must judge each image for itself .* got 'loo_fid'",
        ),
        (
            {"semantic": "fid", "scope": "adaptive", "num_steps": 8},
            "semantic must judge each image for itself .* got 'fid'",
        ),
        ({"network": "unet"}, "network must be one of dit, sit, got 'unet'"),
    ],
)
def test_a_run_that_cannot_be_is_refused_before_it_starts(fields, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(change(**fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_reward_that_compares_images_is_taken_with_a_fixed_scope():
    record = Trainer(change(reward='{"loo_fid": 1.0}', scope="fixed:1:2")).step()
    assert record["scope/share"] == 0.25


def test_another_environment_is_refused():
    with pytest.raises(ValueError, match=r"and action_mode 'residual', got one of MaskGITSampler"):
        sampler_of(gym.make_vec("AdaGen/MaskGIT-v0", num_envs=2))
    assert unwrapped(adascope.make_env(SMALL)).num_envs == 12


PROMPTS = ("a handwritten three", "seven", "a four")


def brightness(backbone, device):
    return lambda images, context: images.mean((1, 2, 3))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    pytest.importorskip("diffusers")
    from pipeline_folders import prompt_pipeline

    folder = tmp_path_factory.mktemp("pipelines") / "prompts"
    prompt_pipeline(folder)
    return str(folder)


def test_a_stable_diffusion_is_tuned_and_read_by_plain_diffusers(pipeline, tmp_path):
    from diffusers import StableDiffusionPipeline

    name = f"{__name__}:brightness"
    config = change(
        backbone=pipeline,
        prompts=PROMPTS,
        reward=name,
        semantic=name,
        guidance_weight=4.0,
        lora_rank=2,
        scope="adaptive",
        num_steps=8,
        num_iterations=2,
        eval_interval=1,
        eval_images=6,
        host="dpok",
        learning_rate=((0, 1e-2),),
    )
    result = train(config, tmp_path / "run")
    assert result.learned.metrics.keys() == {"reward"}
    assert result.learned.episode.images.shape == (6, 3, 16, 16)
    assert not torch.equal(result.learned.episode.images, result.handcrafted.episode.images)
    trainer = Trainer(config)
    trainer.load_state_dict(torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True))
    assert {"lora_A", "lora_B"} == {
        n.split(".")[-3] for n, p in trainer.network.named_parameters() if p.requires_grad
    }
    latents, time = torch.randn(3, 4, 8, 8), torch.tensor([900.0, 500.0, 3.0])
    states = trainer.sampler.generator.condition.given(torch.arange(3))
    with torch.no_grad():
        expected = trainer.network(latents, time, states)[0]
        plain = StableDiffusionPipeline.from_pretrained(tmp_path / "run" / "generator")
        torch.testing.assert_close(plain.unet(latents, time, states).sample, expected, atol=1e-5, rtol=1e-4)
        base = StableDiffusionPipeline.from_pretrained(pipeline)
        assert not torch.allclose(base.unet(latents, time, states).sample, expected, atol=1e-4)
        base.load_lora_weights(tmp_path / "run" / "lora")
        torch.testing.assert_close(base.unet(latents, time, states).sample, expected, atol=1e-5, rtol=1e-4)
    again = gym.make_vec(
        "AdaScope/Denoising-v0",
        backbone=str(tmp_path / "run" / "generator"),
        prompts=list(PROMPTS),
        reward="none",
    )
    assert unwrapped(again).sampler.horizon == 50


def test_a_critic_sees_the_middle_of_a_unet(pipeline):
    name = f"{__name__}:brightness"
    fields = {"host": "tdpo", "backbone": pipeline, "prompts": PROMPTS, "reward": name, "group_size": 2}
    trainer = Trainer(change(num_probes=1, lora_rank=1, **fields))
    record = trainer.step()
    assert math.isfinite(record["loss"])
    assert trainer._rollout(trainer._next_seeds()).features.shape == (4, 6, 16)


def test_a_critic_needs_hidden_states(pipeline, monkeypatch):
    monkeypatch.setattr("genenv.pipelines.NoisePredictor.features_of", None)
    with pytest.raises(ValueError, match=r"host must be another than 'tdpo' .* shows no hidden states"):
        Trainer(change(host="tdpo", backbone=pipeline, prompts=PROMPTS))
