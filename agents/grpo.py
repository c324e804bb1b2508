"""GRPO: policy gradients from rewards that are compared within groups of images of one class.

The policy is an autoregressive generator itself, whose tokens are the actions (policy tuning, arXiv 2603.23086), or on
the AdaGen ids the small network that steers a frozen generator, whose schedule parameters are.

Instance-level rewards (CLIP, HPSv2) and distribution-level ones (leave-one-out FID) are standardised within each group
for themselves, and each has its own clipped objective. Where the paper's released code is open to doubt:

1. The clip is PPO's, -min(r A, clip(r) A); the code takes the minimum of the negated terms, which is its inverse.
2. The reference of the KL is the pretrained generator throughout; the code declares a moving one and never moves it.
   `reference="moving"` does.
3. Log-probabilities have no dropout, of labels neither: recomputed, they are those of the sampling.
4. The moving moments of leave-one-out FID start without bias (`genenv.rewards.loo_fid`); the code's start too small.
5. Generated and real images pass through one preprocessing.
6. Gradients are summed over all processes, whatever the weights.
7. The loss is a mean over images, not a sum over groups of means, which with AdamW differs by `max_gradient` alone.

Samples come from guided rollouts in the paper, while the ratio is that of the conditional network alone: biased, much
like a distillation of guidance, and held by the KL. `guidance_weight=0` is the unbiased variant.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol

import gymnasium as gym
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from agents import chunks, processes, results, runs
from agents.command_line import main
from agents.loop import Parts, Stateful, learn
from agents.losses import categorical_entropy, gaussian_log_prob, k3, ppo_policy_loss
from agents.policy import OBSERVE, averaged, load_run, make_network, training_env
from agents.tuned import PRECISIONS, add_lora, autocast, plain_state, write_generator
from genenv import rewards
from genenv.distributed import sum_over_ranks
from genenv.envs.tokens import NETWORKS
from genenv.evaluation import Evaluator
from genenv.export import GENERATOR
from genenv.policies import PolicyActor
from genenv.protocols import Actor, Observation, Reward
from genenv.ranges import (
    ABOVE_ZERO,
    AT_LEAST_1,
    AT_LEAST_2,
    FRACTION,
    NOT_NEGATIVE,
    Steps,
    check,
    value_at,
)
from genenv.rewards.features import reward_features
from genenv.rewards.loo_fid import LeaveOneOutFID
from genenv.rewards.mixture import Mixture, centre_groups, standardise_groups
from genenv.rng import MAX_SEED, Purpose
from genenv.rollout import Episode, default_actor, generator_policy, schedule_actions
from genenv.tiers import PUBLISHED, load_part
from genenv.vector_env import unwrapped

TOKENS = "PolicyTuning/Tokens-v0"
REFERENCES, RATIOS, ENTROPIES = ("frozen", "moving"), ("sequence", "token"), ("adaptive", "fixed")
SCALES = ("group", "batch", "none")
OBJECTIVES = ("instance", "distribution")
"""Rewards of single images, and rewards that compare those of a batch."""
NONE = "none"


def _weights(field: str, spec: str) -> dict[str, float]:
    """Returns {reward: weight} of a field: a name, a JSON object, or "none".

    Raises:
        ValueError: if it is none of them, naming the field.
    """
    if spec == NONE:
        return {}
    try:
        given = runs.reward_spec(spec)
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from None
    weights = {given: 1.0} if isinstance(given, str) else given
    numbers = [w for w in weights.values() if isinstance(w, int | float) and not isinstance(w, bool)]
    if not weights or len(numbers) < len(weights) or not all(w and math.isfinite(w) for w in numbers):
        raise ValueError(
            f"{field} must be the name of a reward, weights other than 0 such as "
            f'{{"clip": 1.0}}, or "none", got {spec!r}'
        )
    return weights


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run is made of. The defaults are tuned for the digits on one processor core."""

    agent: ClassVar[str] = "grpo"
    resumable: ClassVar[tuple[str, ...]] = (*runs.RESUMABLE, "chunk_size")
    reward_fields: ClassVar[tuple[str, ...]] = runs.REWARD_FIELDS

    env_id: str = TOKENS
    """Tokens as actions tune the generator; an id of schedules trains a policy for it."""
    backbone: str = "digits"
    """Weights of the generator."""
    network: str = "llamagen"
    """Which of a backbone's token generators; only with tokens."""
    schedule: str | None = None
    """The hand-crafted schedule that a policy for a schedule starts from: "published", or by default the tier's own."""
    name: str | None = None
    """Of the run, in tables that compare runs; by default the agent's."""
    seed: Annotated[int, NOT_NEGATIVE] = 0
    """Decides the networks' first weights, and which images are generated."""
    device: str = "cpu"
    """Where everything runs."""
    precision: str = "float32"
    """"bfloat16" runs rollouts and updates in it, where that is safe (autocast); the weights stay as they are."""
    num_groups: Annotated[int, AT_LEAST_1] = 40
    """Groups of images of one class in an iteration (B)."""
    group_size: Annotated[int, AT_LEAST_2] = 12
    """Images of a group (G)."""
    chunk_size: Annotated[int, AT_LEAST_1] = 480
    """Images at once. It bounds the memory and changes no number."""
    num_iterations: Annotated[int, AT_LEAST_1] = 350
    """Rollouts, each followed by updates."""
    num_epochs: Annotated[int, AT_LEAST_1] = 1
    """Passes over an iteration's images (K), one gradient step each. With a single one every ratio is 1, and `clip` has
    no effect."""
    guidance_weight: Annotated[float, NOT_NEGATIVE] = 0.0
    """Weight of classifier-free guidance while sampling for tuning; evaluation has none. Only with tokens."""
    instance: str = '{"clip": 2.0, "hpsv2": 1.0}'
    """Rewards of single images: a name, weights in JSON, or "none"; their weighted sum is standardised."""
    distribution: str = "loo_fid"
    """Rewards that compare images of a batch, likewise."""
    instance_weight: Annotated[float, NOT_NEGATIVE] = 1.0
    """Weight of the objective of the first."""
    distribution_weight: Annotated[float, NOT_NEGATIVE] = 0.5
    """Weight of the objective of the second."""
    fid_beta: Annotated[float, FRACTION] = 0.95
    """Weight of the old moments of leave-one-out FID at each batch; 0 for the batch alone. Few images are off by chance
    more than the generator is."""
    fid_standardised: bool = True
    """Whether leave-one-out FID tells features in standard deviations of the real ones, as the paper does not."""
    scale: str = "batch"
    """Whose standard deviation an advantage is told in: its "group"'s, as published, the whole "batch"'s, or "none"'s.
    The first makes as much of a group in which all images are good as of one in which some are bad, and both make as
    much of a distribution that is nearly right as of one that is wrong."""
    ratio: str = "sequence"
    """Probability ratio of a whole image, exp of the mean difference over its actions, or of each "token"."""
    clip: Annotated[float, ABOVE_ZERO] = 0.2
    """Trust region of the ratio (epsilon)."""
    kl_weight: Annotated[float, NOT_NEGATIVE] = 10.0
    """Weight of the KL to the reference, by the estimator k3 of the same probabilities as the ratio."""
    reference: str = "frozen"
    """"frozen", the policy before training, or "moving", an average of it over iterations."""
    reference_decay: Annotated[float, FRACTION] = 0.999
    """Weight of the old average, with "moving"."""
    entropy: str = "adaptive"
    """Weight of the entropy bonus: "fixed", or "adaptive" to the entropy and to the share of `num_iterations` that is
    done; see `entropy_weight`. Only with tokens."""
    entropy_weight: Annotated[float, NOT_NEGATIVE] = 2.2e-3
    """That weight, before it is adapted (c0); 0 for no bonus."""
    entropy_target: Annotated[float, FRACTION] | None = None
    """Wanted entropy of a token over ln V (H*); by default that of the first rollout."""
    entropy_tolerance: Annotated[float, NOT_NEGATIVE] = 0.015
    """Distance from the target within which nothing is adapted (delta)."""
    entropy_gain: Annotated[float, NOT_NEGATIVE] = 3.0
    """How strongly the weight answers to the distance (k)."""
    entropy_limits: tuple[float, float] = (7e-5, 4e-3)
    """Least and greatest weight, once it is adapted."""
    learning_rate: Annotated[Steps, ABOVE_ZERO] = ((0, 1e-4),)
    """AdamW's, with betas (0.9, 0.95): (first iteration, rate) in order."""
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.01
    """AdamW's."""
    max_gradient: Annotated[float, ABOVE_ZERO] = 1.0
    """Largest norm of a gradient."""
    average_decay: Annotated[float, FRACTION] = 0.98
    """Weight, at each iteration, of the old moving average of the weights, which is what is evaluated and kept; 0 for
    the last weights. Of low-rank changes it is the average of each factor."""
    lora_rank: Annotated[int, NOT_NEGATIVE] = 0
    """Rank of low-rank changes of the generator's linear layers (peft); 0 tunes all weights. Only with tokens."""
    num_steps: Annotated[int, AT_LEAST_1] | None = None
    """Generation steps; only with schedules."""
    hidden_dim: Annotated[int, AT_LEAST_1] = 64
    """Width of a schedule's policy."""
    action_std: Annotated[Steps, ABOVE_ZERO] = ((0, 0.4),)
    """Exploration noise of a schedule: (first iteration, standard deviation in units of the action) in order."""
    eval_interval: Annotated[int, AT_LEAST_1] = 50
    """Iterations between held-out evaluations."""
    eval_images: Annotated[int, AT_LEAST_1] = 2000
    """Images for each of them."""
    checkpoint_interval: Annotated[int, AT_LEAST_1] = 10
    """Iterations between checkpoints."""

    def __post_init__(self):
        check(self)
        choices = {
            "reference": REFERENCES,
            "ratio": RATIOS,
            "entropy": ENTROPIES,
            "scale": SCALES,
            "precision": PRECISIONS,
        }
        if self.tunes_generator:
            choices["network"] = NETWORKS
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        names = [name for _, names in self.objectives for name in names]
        if not names:
            raise ValueError("there must be a reward with a weight, got none of instance and distribution")
        if len(set(names)) < len(names):
            raise ValueError(
                f"a reward must be either in instance or in distribution, got {', '.join(names)}"
            )
        if self.reference == "moving" and not self.kl_weight:
            raise ValueError("reference must be frozen where kl_weight is 0, got 'moving'")
        low, high = self.entropy_limits
        if not 0 <= low <= high:
            raise ValueError(
                f"entropy_limits must be two rising numbers from 0 on, got {self.entropy_limits}"
            )
        if self.tunes_generator:
            for name in ("num_steps", "schedule"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name} must be None with {self.env_id}, whose decisions are tokens, got {getattr(self, name)}"
                    )
            return
        for name in ("guidance_weight", "entropy_weight", "entropy_target", "lora_rank"):
            if getattr(self, name):
                raise ValueError(
                    f"{name} must be 0 with {self.env_id}, where no generator is tuned, got {getattr(self, name)}"
                )

    @property
    def tunes_generator(self) -> bool:
        """Whether the generator is the policy."""
        return self.env_id.rpartition(":")[2] == TOKENS

    @property
    def objectives(self) -> list[tuple[float, dict[str, float]]]:
        """(weight, {reward: weight in the sum that is standardised}) of each clipped objective that counts."""
        pairs = [
            (getattr(self, f"{field}_weight"), _weights(field, getattr(self, field))) for field in OBJECTIVES
        ]
        return [(weight, names) for weight, names in pairs if weight and names]

    @property
    def reward(self) -> str:
        """All rewards and their weights, as JSON: what is logged as the reward, and told of in the verdict.

        What is maximised is the same but for the scale of its parts: each objective in its own standard deviations.
        """
        return json.dumps({name: w * each for w, names in self.objectives for name, each in names.items()})

    @property
    def env_kwargs(self) -> dict[str, Any]:
        """What `gymnasium.make_vec` needs for what a policy is evaluated on."""
        common = {"backbone": self.backbone, "device": self.device}
        if self.tunes_generator:
            return common | {"network": self.network, "observe": ["logits"]}
        own = {} if self.schedule is None else {"schedule": self.schedule}
        return common | {"num_steps": self.num_steps, "observe": list(OBSERVE)} | own


PRESETS = {
    "digits-llamagen": Config(),
    "digits-vqgan": Config(network="vqgan"),
    "schedule": Config(
        env_id="AdaGen/MaskGIT-v0",
        schedule=PUBLISHED,
        num_steps=4,
        entropy_weight=0.0,
        learning_rate=((0, 1e-3),),
        kl_weight=0.0,
        num_groups=20,
        chunk_size=240,
        num_epochs=2,
        num_iterations=60,
        average_decay=0.9,
    ),
    "paper": Config(
        backbone="imagenet256-llamagen-l",
        precision="bfloat16",
        num_groups=12,
        chunk_size=12,
        num_iterations=600,
        num_epochs=2,
        guidance_weight=0.5,
        instance='{"clip": 1.0, "hpsv2": 1.0}',
        distribution_weight=2.0,
        fid_beta=0.5,
        fid_standardised=False,
        scale="group",
        kl_weight=3.0,
        average_decay=0.0,
        entropy_target=0.78,
        learning_rate=((0, 1e-5),),
        eval_images=10_000,
    ),
}
"""Named configurations: the digits' generators, a schedule of MaskGIT's, and the published values of a process."""


class Policy(Protocol):
    """What GRPO trains, and what it asks of it.

    Attributes:
        env: where it samples, for training.
        network: what is trained.
        reference: what the KL is to; None without one.
        looks_back: whether `log_prob` needs what was observed.
        most_entropy: that of the uniform distribution over actions, in nats; None where entropies are not of interest.
    """

    env: gym.vector.VectorEnv
    looks_back: bool

    @property
    def most_entropy(self) -> float | None: ...  # noqa: D102
    @property
    def network(self) -> nn.Module: ...  # noqa: D102
    @property
    def reference(self) -> nn.Module | None: ...  # noqa: D102

    @property
    def act(self) -> Actor:
        """Gives random actions (N, ...)."""
        ...

    def log_prob(
        self, network: nn.Module, episode: Episode, seeds: Sequence[int], images: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns the log-probability of each action of some images (M,), and its entropy in nats: (M, T) each."""
        ...

    def actor(self, network: nn.Module, env: gym.vector.VectorEnv) -> Actor:
        """Returns what acts by a network, as it is at the time, on an environment of the run's `env_kwargs`."""
        ...


class Generator:
    """A token generator that is the policy itself. Its own attention cache samples; teacher forcing updates."""

    looks_back = False

    def __init__(self, config: Config):
        self.network = load_part(config.network, config.backbone, trainable=True).to(config.device)
        self.reference = frozen_copy(self.network) if config.kl_weight else None
        if config.lora_rank:
            add_lora(self.network, config.lora_rank)
        self.most_entropy = math.log(self.network.codebook_size)
        self.env = make_env(config, guidance_weight=config.guidance_weight)
        self.act = self.actor(self.network, self.env)

    def log_prob(
        self, network: nn.Module, episode: Episode, seeds: Sequence[int], images: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns those of the conditional network, (M, L) each."""
        tokens = episode.actions[:, images].T
        log_prob = network(tokens[:, :-1], episode.context[images])[0].float().log_softmax(-1)
        return log_prob.gather(-1, tokens[..., None])[..., 0], categorical_entropy(log_prob)

    def actor(self, network: nn.Module, env: gym.vector.VectorEnv) -> Actor:
        """Returns what draws tokens from a network, which takes the place of the environment's own."""
        sampler: Any = unwrapped(env).sampler
        sampler.use(network)
        return generator_policy(env)


class Steering:
    """A Gaussian policy over the schedule of a frozen generator; its last layer starts at the hand-crafted one."""

    looks_back, most_entropy = True, None

    def __init__(self, config: Config, std: Callable[[], float]):
        self.config, self.std = config, std
        self.env = make_env(config)
        self.num_params = len(schedule_actions(self.env).params)
        self.network = make_network(self.env, config.hidden_dim, self.num_params)
        self.reference = frozen_copy(self.network) if config.kl_weight else None

    def act(self, observation: Observation) -> Tensor:
        """Returns random actions (N, A) around the network's means."""
        inner = unwrapped(self.env)
        noise = inner.rng.at(inner.current_step).normal(self.num_params, purpose=Purpose.POLICY).float()
        return self.network(observation) + self.std() * noise

    def log_prob(
        self, network: nn.Module, episode: Episode, seeds: Sequence[int], images: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns the log-densities (M, T), and entropies that no parameter changes."""
        actions = episode.actions[:, images]
        seen = chunks.observations(self.env, episode, seeds, images)
        mean = network({name: value.flatten(0, 1) for name, value in seen.items()}).view_as(actions)
        log_prob = gaussian_log_prob(actions, mean, self.std()).T
        return log_prob, torch.zeros_like(log_prob)

    def actor(self, network: nn.Module, env: gym.vector.VectorEnv) -> Actor:
        """Returns the actor of the means."""
        return PolicyActor(self.config.env_id, self.config.env_kwargs, network)


class Trainer(Parts):
    """Everything of a run that changes while it trains, and nothing else.

    With several processes each has its own groups; networks are the same in all.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config, self.entropy_target = config, config.entropy_target
        if config.num_groups < processes.num_ranks():
            raise ValueError(
                f"num_groups must be at least the {processes.num_ranks()} processes, got {config.num_groups}"
            )
        with torch.random.fork_rng():
            torch.manual_seed(config.seed % MAX_SEED)
            self.policy: Policy = (
                Generator(config)
                if config.tunes_generator
                else Steering(config, lambda: value_at(config.action_std, self.iteration))
            )
        self.device = unwrapped(self.policy.env).device
        self.reward = make_reward(config, str(self.device))
        self.average = None
        if config.average_decay:
            self.average = AveragedModel(
                self.policy.network, multi_avg_fn=get_ema_multi_avg_fn(config.average_decay)
            )
            self.average.update_parameters(self.policy.network)  # it starts there
        self.parameters = [p for p in self.policy.network.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=0.0, betas=(0.9, 0.95), weight_decay=config.weight_decay
        )

    @property
    def kept(self) -> nn.Module:
        """The network that is evaluated and kept."""
        return self.policy.network if self.average is None else self.average.module

    @property
    def parts(self) -> dict[str, Stateful | torch.Generator | None]:
        """What training changes, by name."""
        moving = self.policy.reference if self.config.reference == "moving" else None
        return {
            "network": self.policy.network,
            "average": self.average,
            "reference": moving,
            "reward": self.reward,
            "optimiser": self.optimiser,
        }

    def state_dict(self) -> dict[str, Any]:
        """Returns all that an exact continuation needs."""
        return super().state_dict() | {"entropy_target": self.entropy_target}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        super().load_state_dict(state)
        self.entropy_target = state["entropy_target"]

    def step(self) -> dict[str, float]:
        """Runs one iteration: rollout, rewards, advantages, updates."""
        started, config, policy = time.perf_counter(), self.config, self.policy
        seeds = self._next_seeds()
        with self._autocast():
            episode = chunks.play(policy.env, policy.act, seeds, policy.looks_back)
        total, parts = self.reward.judge(episode.images, episode.context, episode.group)
        advantages = [
            (weight, self._advantage(_weighted(parts, names), episode.group))
            for weight, names in config.objectives
        ]
        everything = torch.arange(len(seeds), device=self.device).split(config.chunk_size)
        with torch.no_grad():
            old, entropies = self._of_chunks(policy.network, episode, seeds, everything)
            reference = (
                old
                if policy.reference is None
                else self._of_chunks(policy.reference, episode, seeds, everything)[0]
            )
        bonus, told = 0.0, {}
        if policy.most_entropy is not None:
            entropy = processes.mean(entropies).item() / policy.most_entropy
            if self.entropy_target is None:
                self.entropy_target = entropy
            bonus = self._entropy_weight(entropy)
            told = {"entropy": entropy, "entropy_weight": bonus}
        for group in self.optimiser.param_groups:
            group["lr"] = value_at(config.learning_rate, self.iteration)
        number = config.num_groups * config.group_size
        sums = torch.zeros(3, device=self.device, dtype=torch.float64)
        norm = torch.zeros(())
        for _ in range(config.num_epochs):
            self.optimiser.zero_grad()
            sums.zero_()
            for images in everything:
                with self._autocast():
                    log_prob, entropies = policy.log_prob(policy.network, episode, seeds, images)
                now, before, fixed = (self._unit(each) for each in (log_prob, old[images], reference[images]))
                objective = torch.stack(
                    [
                        weight * ppo_policy_loss(now, before, advantage[images, None], config.clip).mean(1)
                        for weight, advantage in advantages
                    ]
                ).sum(0)
                kl = k3(now, fixed).mean(1)
                loss = objective + config.kl_weight * kl - bonus * entropies.mean(1)
                (loss.sum() / number).backward()
                outside = ((now - before).exp() - 1).abs() > config.clip
                sums += torch.stack([loss.sum(), kl.sum(), outside.double().mean(1).sum()]).detach() / number
            processes.sum_gradients(self.parameters)
            norm = nn.utils.clip_grad_norm_(self.parameters, config.max_gradient)
            self.optimiser.step()
        if config.reference == "moving":
            self._move_reference()
        if self.average is not None:
            self.average.update_parameters(policy.network)
        self.iteration += 1
        self.seconds += time.perf_counter() - started
        loss, kl, outside = sum_over_ranks(sums).tolist()
        return {
            "iteration": self.iteration,
            "images": self.images,
            "reward": processes.mean(total).item(),
            **{f"reward/{name}": processes.mean(value).item() for name, value in parts.items()},
            **told,
            "kl": kl,
            "clipped": outside,
            "loss": loss,
            "gradient_norm": norm.item(),
        }

    def _next_seeds(self) -> list[int]:
        """Returns the seeds of the images of this process's next groups."""
        groups, size = self.config.num_groups, self.config.group_size
        seeds = processes.group_seeds(self.config.seed, self.images, groups, size)
        self.images += groups * size
        return seeds

    def _advantage(self, reward: Tensor, group: Tensor) -> Tensor:
        """Returns rewards (N,) less the mean of their group, in standard deviations."""
        if self.config.scale == "group":
            return standardise_groups(reward, group)
        deviation = centre_groups(reward, group)
        if self.config.scale == "none":
            return deviation
        return deviation / (processes.mean(deviation.square()).sqrt().to(deviation) + 1e-4)

    def _of_chunks(
        self, network: nn.Module, episode: Episode, seeds: Sequence[int], parts: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Returns log-probabilities and entropies (N, T) under a network."""
        with self._autocast():
            pairs = [self.policy.log_prob(network, episode, seeds, images) for images in parts]
        log_prob, entropies = (torch.cat(each) for each in zip(*pairs, strict=True))
        return log_prob, entropies

    def _unit(self, log_prob: Tensor) -> Tensor:
        """Returns log-probabilities (M, T) of what a ratio is of: every action, or the whole, (M, 1), by their mean."""
        return log_prob.mean(1, keepdim=True) if self.config.ratio == "sequence" else log_prob

    def _entropy_weight(self, entropy: float) -> float:
        config = self.config
        if not config.entropy_weight or config.entropy == "fixed":
            return config.entropy_weight
        assert self.entropy_target is not None
        return entropy_weight(
            entropy,
            self.iteration / config.num_iterations,
            config.entropy_weight,
            self.entropy_target,
            config.entropy_tolerance,
            config.entropy_gain,
            config.entropy_limits,
        )

    @torch.no_grad()
    def _move_reference(self) -> None:
        assert self.policy.reference is not None
        now = plain_state(self.policy.network)
        for name, old in self.policy.reference.state_dict().items():
            if old.is_floating_point():
                old.lerp_(now[name], 1 - self.config.reference_decay)

    def _autocast(self) -> torch.autocast:
        return autocast(self.device, self.config.precision)


def _weighted(parts: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    return torch.stack([weight * parts[name] for name, weight in weights.items()]).sum(0)


def entropy_weight(
    entropy: float,
    progress: float,
    weight: float,
    target: float,
    tolerance: float = 0.015,
    gain: float = 3.0,
    limits: tuple[float, float] = (7e-5, 4e-3),
) -> float:
    """Returns the weight of the entropy bonus: greater below the wanted entropy, smaller above (arXiv 2603.23086).

    c = c0 s(p) exp(k (H* - H)) where H is further than delta from H*, else c0 s(p), within limits. The schedule s rises
    over the first 5 % of a run, and falls from 85 % on along a cosine.

    Args:
        entropy: H, mean entropy of a token over ln V.
        progress: p, share of the run that is done.
        weight: c0.
        target: H*.
        tolerance: delta.
        gain: k.
        limits: of the result.
    """
    schedule = min(1.0, progress / 0.05)
    if progress > 0.85:
        schedule = (1 + math.cos(math.pi * (progress - 0.85) / 0.15)) / 2
    gap = target - entropy
    adapted = weight * schedule * (math.exp(gain * gap) if abs(gap) > tolerance else 1.0)
    return min(max(adapted, limits[0]), limits[1])


def make_env(config: Config, **further: Any) -> gym.vector.VectorEnv:
    """Returns the environment that a run samples from: groups of images of one class, at most a chunk at once."""
    own = len(processes.own(config.num_groups)) * config.group_size
    contexts = f"grouped:{config.group_size}"
    return training_env(config, min(config.chunk_size, own), contexts=contexts, **further)


def make_reward(config: Config, device: str) -> Mixture:
    """Returns all rewards of a run, with a diagonal leave-one-out FID of the run's own settings."""

    def loo_fid() -> Reward:
        extractor, mean, covariance = reward_features(config.backbone, device)
        spread = covariance.diagonal().sqrt()
        standardise = config.fid_standardised
        return LeaveOneOutFID(extractor, (mean, spread), beta=config.fid_beta, standardise=standardise)

    made = rewards.make_reward(
        runs.reward_spec(config.reward), config.backbone, device, own={"loo_fid": loo_fid}
    )
    assert made is not None
    return made


def frozen_copy(network: nn.Module) -> nn.Module:
    """Returns a copy that is not trained."""
    return copy.deepcopy(network).requires_grad_(False)


def load_policy(run_dir: Path | str, device: str = "cpu", trust_modules: bool = False) -> PolicyActor:
    """Returns the policy of a run on a schedule as an actor, without exploration.

    Args:
        run_dir: the run directory.
        device: where the policy and its environment run.
        trust_modules: see `agents.runs.read_config`.

    Raises:
        ValueError: if the run has tuned a generator, which is a backbone.
    """
    config, state, env = load_run(Config, run_dir, device, trust_modules)
    if config.tunes_generator:
        raise ValueError(f"{run_dir} has tuned a generator: use backbone={str(Path(run_dir) / GENERATOR)!r}")
    network = make_network(env, config.hidden_dim, len(schedule_actions(env).params))
    network.load_state_dict(averaged(state["average"]) or state["network"])
    return PolicyActor(config.env_id, config.env_kwargs, network.eval().requires_grad_(False))


def train(config: Config, out: Path, resume: bool = False) -> results.RunResult | None:
    """Tunes a generator, or trains a policy for its schedule, and writes the run directory.

    Args:
        config: the run.
        out: its directory; must not hold a run already, unless it is resumed.
        resume: continue from the directory's checkpoint, exactly as if it had never stopped.
    """
    if processes.is_first() and not resume:
        runs.check_free(out)
    trainer = Trainer(config)
    evaluator = Evaluator(config.env_id, config.env_kwargs, config.eval_images)
    evaluate = functools.partial(evaluator.repetition, seed=config.seed, intervals=True)
    with runs.open_run(config, out, trainer, resume) as run:
        before = run.evaluated_once(
            lambda: evaluate(default_actor(evaluator.env), what="what there was before")
        )
        actor = trainer.policy.actor(
            trainer.kept, evaluator.env
        )  # from here on: it takes the generator's place
        learned = learn(
            trainer,
            run,
            lambda: evaluate(actor, what="the policy"),
            config.num_iterations,
            config.eval_interval,
            config.checkpoint_interval,
        )
        processes.stop()
        if before is None or learned is None:
            return None
        if config.tunes_generator:
            write_generator(trainer.kept, config.network, config.backbone, out / GENERATOR)
        return results.finish(
            run,
            evaluator.env,
            trainer.reward,
            before,
            learned,
            floor=evaluator.floor(),
            images=trainer.images,
            seconds=trainer.seconds,
            names=("base", "tuned") if config.tunes_generator else results.NAMES,
        )


if __name__ == "__main__":
    main(Config, PRESETS, train)
