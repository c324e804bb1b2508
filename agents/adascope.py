"""AdaScope: RL fine-tuning of a diffusion model's weights, at the decisions that count alone (arXiv 2605.15855).

A host (DDPO, DPOK, D3PO, TDPO or Flow-GRPO) credits every denoising step of an image with the reward of what came of
it. A scope lets gradients through at some of them: from where the structure of the image has settled to where its
reward saturates, found while it is sampled, by what the network expects the finished image to be. Decisions outside
cost nothing in the update.

The paper has no public code, and gives no thresholds: `genenv.scopes.Detector` says what is assumed. Images of one
group, which show one class or prompt, share a window: a few of them are looked at before each decision (`num_probes`),
since looking at all of them costs as much as sampling where the generator is as small as the digits'.

Images are sampled without gradients, and a decision's log-density is computed again, with gradients, where it is in the
scope. Both are the same number (`genenv.envs.denoising`).
"""

from __future__ import annotations

import copy
import dataclasses
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import gymnasium as gym
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from agents import processes, results, runs
from agents.command_line import main
from agents.critic import ContextStatistics, TemporalCritic
from agents.hosts import HOSTS, Terms
from agents.loop import Parts, Stateful, learn
from agents.policy import training_env
from agents.tuned import PRECISIONS, add_lora, autocast, save_lora, write_generator
from genenv import rewards
from genenv.actions import DeviationActions
from genenv.distributed import sum_over_ranks
from genenv.envs.denoising import NETWORKS, DenoisingSampler, log_density
from genenv.evaluation import Evaluation, Evaluator
from genenv.export import GENERATOR
from genenv.metrics.cost import flops
from genenv.pipelines import NoisePredictor
from genenv.protocols import Actor, Decision, Observation, StatefulReward
from genenv.ranges import (
    ABOVE_ZERO,
    AT_LEAST_1,
    FRACTION,
    NOT_NEGATIVE,
    Steps,
    check,
    value_at,
)
from genenv.rewards.mixture import Mixture, standardise_groups
from genenv.rng import MAX_SEED
from genenv.rollout import generator_policy, run_episode
from genenv.scopes import Detector, Scope, parse_scope
from genenv.tiers import choose_part
from genenv.vector_env import unwrapped

DENOISING = "AdaScope/Denoising-v0"
LORA = "lora"
"""The folder of a run with the low-rank changes of a Stable Diffusion, for `load_lora_weights` of diffusers."""
DIGITS = Detector(start_threshold=0.4, straightness=0.9, latest_start=0.7, latest_end=1.0)
"""For the digits, whose preference rises from the middle to the very end."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run is made of. The defaults are tuned for the digits on one processor core."""

    agent: ClassVar[str] = "adascope"
    resumable: ClassVar[tuple[str, ...]] = (*runs.RESUMABLE, "chunk_size")
    reward_fields: ClassVar[tuple[str, ...]] = (*runs.REWARD_FIELDS, "semantic")

    env_id: str = DENOISING
    """Where the generator is tuned; its actions are deviations of latents."""
    backbone: str = "digits"
    """Weights of the generator."""
    network: str | None = None
    """Which of a backbone's networks, such as "dit" or "sit"; by default the first."""
    prompts: tuple[str, ...] | None = None
    """What there is to show, for a pipeline of diffusers that takes texts."""
    num_steps: Annotated[int, AT_LEAST_1] = 20
    """Decisions of an image (T)."""
    transition: str | None = None
    """"ddim" or "flow-sde"; by default that of the network."""
    eta: Annotated[float, ABOVE_ZERO] | None = None
    """Strength of the transition's noise; by default the transition's usual one."""
    guidance_weight: Annotated[float, NOT_NEGATIVE] = 0.0
    """Of classifier-free guidance, in sampling, tuning and evaluation."""
    name: str | None = None
    """Of the run, in tables that compare runs; by default the agent's."""
    seed: Annotated[int, NOT_NEGATIVE] = 0
    """Decides which images are generated, and all that is drawn."""
    device: str = "cpu"
    """Where everything runs."""
    precision: str = "float32"
    """"bfloat16" runs sampling and updates in it, where that is safe (autocast); the weights stay as they are."""
    host: str = "ddpo"
    """"ddpo" (importance-sampled), "ddpo-sf" (score function), "dpok", "d3po", "tdpo" or "flow-grpo"."""
    scope: str = "adaptive"
    """Which decisions receive gradient: "full", "adaptive", "fixed:START:END" or "random:SIZE"."""
    detector: Detector = dataclasses.field(default_factory=lambda: DIGITS)
    """What finds the window of an adaptive scope."""
    semantic: str = "hpsv2"
    """The reward whose curve says whether the structure has settled. CLIP's does not move on the digits, whose first
    previews are the mean image of their class."""
    num_probes: Annotated[int, AT_LEAST_1] | None = 2
    """Images of a group that are looked at; their mean curves give the group's window. None for a window of each
    image."""
    reward: str = "hpsv2"
    """What is maximised: a name, or weights in JSON."""
    num_groups: Annotated[int, AT_LEAST_1] = 16
    """Groups of images of one class or prompt in an iteration."""
    group_size: Annotated[int, AT_LEAST_1] = 16
    """Images of a group."""
    chunk_size: Annotated[int, AT_LEAST_1] = 256
    """Images, or decisions, at once; at least those of a group. It bounds the memory and changes no number."""
    num_iterations: Annotated[int, AT_LEAST_1] = 60
    """Rollouts, each followed by updates."""
    num_updates: Annotated[int, AT_LEAST_1] = 2
    """Gradient steps over an iteration's images, of as many each, in random order."""
    num_epochs: Annotated[int, AT_LEAST_1] = 1
    """Times that they are gone through."""
    clip: Annotated[float, ABOVE_ZERO] = 1e-2
    """Trust region of a ratio of densities per number."""
    advantage_clip: Annotated[float, ABOVE_ZERO] = 5.0
    """Largest advantage."""
    statistics_size: Annotated[int, AT_LEAST_1] = 32
    """Rewards that are remembered of each context, and standardise its rewards."""
    statistics_least: Annotated[int, AT_LEAST_1] = 16
    """With fewer of them all contexts' rewards do."""
    kl_weight: Annotated[float, NOT_NEGATIVE] = 0.1
    """Of the KL to the policy before training (DPOK, Flow-GRPO)."""
    beta: Annotated[float, ABOVE_ZERO] = 1.0
    """How strongly preferences move log-densities (D3PO)."""
    critic_rate: Annotated[float, ABOVE_ZERO] = 1e-3
    """Learning rate of the critic (TDPO)."""
    critic_clip: Annotated[float, ABOVE_ZERO] = 0.2
    """Largest change of the critic's values in an iteration (TDPO)."""
    wake_interval: Annotated[int, AT_LEAST_1] = 10
    """Iterations between looks for the critic's dormant units (TDPO)."""
    wake_threshold: Annotated[float, FRACTION] = 0.025
    """Share of its layer's mean activation below which a unit is dormant."""
    learning_rate: Annotated[Steps, ABOVE_ZERO] = ((0, 1e-4),)
    """AdamW's: (first iteration, rate) in order."""
    weight_decay: Annotated[float, NOT_NEGATIVE] = 1e-4
    """AdamW's."""
    max_gradient: Annotated[float, ABOVE_ZERO] = 1.0
    """Largest norm of a gradient."""
    average_decay: Annotated[float, FRACTION] = 0.0
    """Weight, at each iteration, of the old moving average of the weights, which is what is evaluated and kept; 0 for
    the last weights."""
    lora_rank: Annotated[int, NOT_NEGATIVE] = 0
    """Rank of low-rank changes of the network's linear layers (peft); 0 tunes all weights."""
    saturation_window: Annotated[int, NOT_NEGATIVE] = 0
    """The run ends early where the mean reward of so many iterations exceeds that of as many before them by less than
    `saturation_gain` of what has been gained; 0 runs to the end."""
    saturation_gain: Annotated[float, FRACTION] = 0.02
    """See there."""
    eval_interval: Annotated[int, AT_LEAST_1] = 10
    """Iterations between held-out evaluations."""
    eval_images: Annotated[int, AT_LEAST_1] = 2000
    """Images for each of them."""
    checkpoint_interval: Annotated[int, AT_LEAST_1] = 10
    """Iterations between checkpoints."""

    def __post_init__(self):
        check(self)
        for name, known in {"host": HOSTS, "precision": PRECISIONS}.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        self.parsed_scope.check(self.num_steps)
        if self.parsed_scope.needs_curves:
            self.detector.check_room(self.num_steps)
        if self.num_probes is not None and self.num_probes > self.group_size:
            raise ValueError(
                f"num_probes must be at most group_size, {self.group_size}, or None, got {self.num_probes}"
            )
        if self.chunk_size < self.group_size:
            raise ValueError(
                f"chunk_size must be at least group_size, {self.group_size}, got {self.chunk_size}"
            )
        if self.statistics_least > self.statistics_size:
            raise ValueError(
                f"statistics_least must be at most statistics_size, {self.statistics_size}, got {self.statistics_least}"
            )
        if self.host == "ddpo-sf" and (self.num_updates, self.num_epochs) != (1, 1):
            raise ValueError(
                f"num_updates and num_epochs must be 1 with host 'ddpo-sf' (--num-updates 1), whose loss is that of "
                f"new samples, got {self.num_updates} and {self.num_epochs}"
            )
        for text in self.prompts or ():
            if text.startswith("--") or text == "None":
                raise ValueError(f"prompts must be texts, which {text!r} is not on a command line")
        in_pairs, by_groups = HOSTS[self.host].in_pairs, HOSTS[self.host].baseline == "group"
        if in_pairs and self.group_size % 2:
            raise ValueError(
                f"group_size must be even with host {self.host!r}, which compares pairs, got {self.group_size}"
            )
        if by_groups and self.group_size < 2:
            raise ValueError(f"group_size must be at least 2 with host {self.host!r}, got {self.group_size}")
        units = self.num_groups * self.group_size // (1 + in_pairs)
        if self.num_updates > units:
            what = "pairs" if in_pairs else "images"
            raise ValueError(f"num_updates must be at most the {units} {what}, got {self.num_updates}")

    @property
    def parsed_scope(self) -> Scope:
        """The scope."""
        return parse_scope(self.scope, self.detector)

    @property
    def env_kwargs(self) -> dict[str, Any]:
        """What `gymnasium.make_vec` needs for what the generator is evaluated on."""
        names = ("backbone", "network", "num_steps", "transition", "eta", "guidance_weight", "device")
        texts = {} if self.prompts is None else {"prompts": list(self.prompts)}
        return {name: getattr(self, name) for name in names} | texts | {"observe": ["latents"]}


PUBLISHED = Config(
    backbone="stable-diffusion-v1-5",
    num_steps=50,
    guidance_weight=4.0,
    precision="bfloat16",
    detector=Detector(),
    semantic="clip",
    num_probes=None,
    reward="pickscore",
    num_groups=256,
    group_size=1,
    chunk_size=8,
    num_iterations=100,
    clip=1e-4,
    learning_rate=((0, 3e-4),),
    lora_rank=4,
    eval_interval=100,
    eval_images=64,
)
"""DDPO's values for Stable Diffusion, with a window of each image."""
PRESETS = {
    "digits": Config(),
    "digits-flow": Config(network="sit", host="flow-grpo"),
    "ddpo": PUBLISHED,
    "dpok": dataclasses.replace(
        PUBLISHED,
        host="dpok",
        guidance_weight=6.5,
        learning_rate=((0, 1e-5),),
        weight_decay=0.0,
        max_gradient=0.1,
        kl_weight=0.01,
    ),
    "d3po": dataclasses.replace(
        PUBLISHED,
        host="d3po",
        num_steps=20,
        clip=0.1,
        beta=0.1,
        learning_rate=((0, 3e-5),),
        num_groups=10,
        group_size=2,
        num_iterations=400,
        detector=Detector(start_patience=1, end_patience=2, latest_start=0.3),
    ),
    "tdpo": dataclasses.replace(PUBLISHED, host="tdpo", learning_rate=((0, 1e-4),), critic_rate=1e-4),
}
"""Named configurations: the digits', and the published ones of four hosts, for the folder of a Stable Diffusion, which
--backbone names, and texts, which --prompts gives."""


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Images of one iteration, N of this process, and how they were made.

    Attributes:
        latents: (T + 1, N, C, h, w), before each decision and after the last.
        old: (T, N), the log-density of each decision, per number.
        inside: (T, N) bool, which decisions count.
        features: (T, N, D), the generator's mean hidden state before each decision; empty where nobody asks for them.
        images: (N, C, H, W) in [0, 1].
        context: (N,).
        group: (N,).
    """

    latents: Tensor
    old: Tensor
    inside: Tensor
    features: Tensor
    images: Tensor
    context: Tensor
    group: Tensor


PER_DECISION = ("latents", "old", "inside", "features")
"""Fields of a rollout whose second axis is the images'."""


class Probe:
    """Looks at what is expected of the images before each decision, and says which decisions count.

    Images that share a window are its group, or one image; nobody looks at them any more once it is behind.

    Args:
        config: of the run.
        env: whose images come in whole groups.
        reward: what is maximised.
    """

    def __init__(self, config: Config, env: gym.vector.VectorEnv, reward: Mixture):
        self.scope, self.env, self.reward = config.parsed_scope, env, reward
        self.semantic: Mixture | None = None
        self.sharing = 1 if config.num_probes is None else config.group_size
        rows = torch.arange(env.num_envs, device=unwrapped(env).device)
        self.rows = rows.view(-1, self.sharing)[:, : config.num_probes or 1]  # (windows, images looked at)
        self.looks, self.seconds = 0, 0.0  # images looked at so far, and how long it took
        if self.scope.needs_curves:
            self.semantic = make_reward("semantic", config, str(rows.device))
            for field, judge in (("reward", reward), ("semantic", self.semantic)):
                check_single(judge, field)
        self.begin(env.num_envs)

    def begin(self, number: int) -> None:
        """Forgets the images before; the first `number` of the new ones count, the others fill up the batch."""
        self.curves: tuple[list[Tensor], list[Tensor]] = ([], [])
        self.behind = self.opened = self.rows[:, 0] >= number

    def __call__(self, observation: Observation) -> Tensor:
        """Returns whether the decision that follows an observation counts, (N,) bool."""
        inner = unwrapped(self.env)
        step, horizon = inner.current_step, inner.sampler.horizon
        if not self.scope.needs_curves:
            return self.scope.inside(step, horizon, inner.rng)
        started = time.perf_counter()
        open_ = (~self.behind).nonzero()[:, 0]
        inside = torch.zeros_like(self.behind)
        if len(open_):
            rows = self.rows[open_].flatten()
            images = sampler_of(self.env).decoder(observation["denoised"][rows]).float()
            for curve, value in zip(
                self.curves, self.judge(images, observation["context"][rows]), strict=True
            ):
                point = curve[-1].clone() if curve else torch.zeros(len(self.rows), device=rows.device)
                point[open_] = value.view(len(open_), -1).mean(1)
                curve.append(point)
            semantic, reward = (torch.stack(curve) for curve in self.curves)
            inside = self.scope.inside(step, horizon, inner.rng, semantic, reward) & ~self.behind
            self.opened = self.opened | inside
            self.behind = self.opened & ~inside
            self.looks += len(rows)
        self.seconds += time.perf_counter() - started
        return inside.repeat_interleave(self.sharing)

    def judge(self, images: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the points of both curves, (M,) each, of previews (M, C, H, W); nobody is asked twice."""
        assert self.semantic is not None
        total, parts = self.reward.judge(images, context)
        names = list(self.semantic.weights.items())
        known = len(names) == 1 and names[0][1] == 1 and names[0][0] in parts
        return (parts[names[0][0]] if known else self.semantic(images, context)), total


@dataclasses.dataclass(frozen=True)
class Cost:
    """Floating point operations, as torch counts them: of one row of a network's call, and of one look at an image.

    Attributes:
        forward: of a prediction.
        update: of a prediction and its gradients.
        look: of decoding and judging an image.
    """

    forward: float
    update: float
    look: float


class Trainer(Parts):
    """Everything of a run that changes while it trains, and nothing else.

    With several processes each has its own groups; networks are the same in all.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config, self.host = config, HOSTS[config.host]
        if config.num_groups < processes.num_ranks():
            raise ValueError(
                f"num_groups must be at least the {processes.num_ranks()} processes, got {config.num_groups}"
            )
        self.env = make_env(config)
        inner = unwrapped(self.env)
        self.device, self.sampler = inner.device, sampler_of(self.env)
        self.generator = torch.Generator().manual_seed(config.seed % MAX_SEED)
        with torch.random.fork_rng():
            torch.manual_seed(config.seed % MAX_SEED)
            frozen = self.sampler.generator.network
            assert isinstance(frozen, nn.Module)
            self.network = copy.deepcopy(frozen).requires_grad_(True)
            self.reference = frozen if self.host.has_reference else None
            if config.lora_rank:
                add_lora(self.network, config.lora_rank)
            self.critic = None
            if self.host.has_critic:
                if not self.sampler.fields["features"].shape[0]:
                    raise ValueError(
                        f"host must be another than {config.host!r} for {config.backbone!r}, whose network shows no "
                        "hidden states to its critic"
                    )
                self.critic = TemporalCritic(self.sampler.fields["features"].shape[-1]).to(self.device)
        self.reward = make_reward("reward", config, str(self.device))
        self.probe = Probe(config, self.env, self.reward)
        self.statistics = ContextStatistics(
            inner.sampler.num_contexts, config.statistics_size, config.statistics_least
        )
        self.average = None
        if config.average_decay:
            self.average = AveragedModel(
                self.network, multi_avg_fn=get_ema_multi_avg_fn(config.average_decay)
            )
            self.average.update_parameters(self.network)  # it starts there
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=0.0, weight_decay=config.weight_decay)
        self.critic_optimiser = (
            None if self.critic is None else torch.optim.Adam(self.critic.parameters(), lr=config.critic_rate)
        )
        self.history: list[float] = []  # of the mean reward
        self.flops = 0.0
        self.cost = self._cost()

    @property
    def kept(self) -> nn.Module:
        """The network that is evaluated and kept."""
        return self.network if self.average is None else self.average.module

    @property
    def finished(self) -> bool:
        """Whether the reward has saturated."""
        return saturated(self.history, self.config.saturation_window, self.config.saturation_gain)

    @property
    def parts(self) -> dict[str, Stateful | torch.Generator | None]:
        """What training changes, by name."""
        return {
            "network": self.network,
            "average": self.average,
            "critic": self.critic,
            "reward": self.reward,
            "statistics": self.statistics,
            "optimiser": self.optimiser,
            "critic_optimiser": self.critic_optimiser,
            "generator": self.generator,
        }

    def state_dict(self) -> dict[str, Any]:
        """Returns all that an exact continuation needs."""
        return super().state_dict() | {"history": list(self.history), "flops": self.flops}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        super().load_state_dict(state)
        self.history, self.flops = list(state["history"]), state["flops"]

    def step(self) -> dict[str, float]:
        """Runs one iteration: rollout, rewards, updates."""
        started, config = time.perf_counter(), self.config
        looks, looking = self.probe.looks, self.probe.seconds
        self.sampler.use(self.network)
        rollout = self._rollout(self._next_seeds())
        sampled = time.perf_counter()
        total, parts = self.reward.judge(rollout.images, rollout.context, rollout.group)
        credit = self._credit(total, rollout)
        judged = time.perf_counter()
        told = self._update(rollout, total, credit)
        if self.critic is not None and (self.iteration + 1) % config.wake_interval == 0:
            told["woken"] = self.critic.wake(
                rollout.features.flatten(0, 1), config.wake_threshold, self.generator
            )
        if self.average is not None:
            self.average.update_parameters(self.network)
        done = time.perf_counter()
        self.iteration += 1
        self.seconds += done - started
        reward = processes.mean(total).item()
        self.history.append(reward)
        looks, looking = self.probe.looks - looks, self.probe.seconds - looking
        rows = rollout.inside.numel() * (1 + (config.guidance_weight > 0))
        flops = rows * self.cost.forward + looks * self.cost.look + told.pop("flops")
        self.flops += sum_over_ranks(torch.tensor(flops, dtype=torch.float64)).item()
        return {
            "iteration": self.iteration,
            "images": self.images,
            "reward": reward,
            **{f"reward/{name}": processes.mean(value).item() for name, value in parts.items()},
            "scope/share": processes.mean(rollout.inside.double()).item(),
            **mean_window(rollout.inside),
            **told,
            "flops": self.flops,
            "seconds/sampling": sampled - started - looking,
            "seconds/probing": looking,
            "seconds/judging": judged - sampled,
            "seconds/updating": done - judged,
        }

    def _next_seeds(self) -> list[int]:
        """Returns the seeds of the images of this process's next groups."""
        groups, size = self.config.num_groups, self.config.group_size
        seeds = processes.group_seeds(self.config.seed, self.images, groups, size)
        self.images += groups * size
        return seeds

    def _rollout(self, seeds: Sequence[int]) -> Rollout:
        """Samples images, as many at once as the environment holds."""
        act, number = generator_policy(self.env), self.env.num_envs
        parts: dict[str, list[Tensor]] = {field.name: [] for field in dataclasses.fields(Rollout)}
        for first in range(0, len(seeds), number):
            batch = [seeds[(first + i) % len(seeds)] for i in range(number)]  # the last one is filled up
            kept = min(number, len(seeds) - first)
            self.probe.begin(kept)
            with self._autocast():
                episode = run_episode(self.env, self._acting(act), batch, keep_observations=False)
            found = {name: getattr(episode, name) for name in ("images", "context", "group")} | episode.extras
            found["latents"] = torch.cat([found["latents"], unwrapped(self.env).state.latents[None]])
            for name, value in found.items():
                parts[name].append(value[:, :kept] if name in PER_DECISION else value[:kept])
        return Rollout(**{n: torch.cat(each, int(n in PER_DECISION)) for n, each in parts.items()})

    def _acting(self, act: Actor) -> Actor:
        """Returns what draws the generator's own deviations, and keeps what the update needs beside them."""

        def decide(observation: Observation) -> Decision:
            action = act(observation)
            assert isinstance(action, Tensor)
            inside = self.probe(observation)
            density = log_density(action, observation["std"][:, 0])
            hidden = (
                observation["features"].mean(1)
                if self.critic is not None
                else action.new_zeros(len(action), 0)
            )
            kept = {"latents": observation["latents"], "old": density, "inside": inside, "features": hidden}
            return Decision(action, kept)

        return decide

    def _credit(self, reward: Tensor, rollout: Rollout) -> Tensor:
        """Returns what each image is credited with, (N,)."""
        if self.host.baseline == "context":
            credit = self.statistics.standardise(reward, rollout.context)
        elif self.host.baseline == "group":
            credit = standardise_groups(reward, rollout.group)
        else:
            return reward
        return credit.clamp(-self.config.advantage_clip, self.config.advantage_clip)

    def _update(self, rollout: Rollout, reward: Tensor, credit: Tensor) -> dict[str, float]:
        """Makes the gradient steps of an iteration; returns what is logged, and its floating point operations."""
        config = self.config
        advantage, expected = credit.expand_as(rollout.old), None  # (T, N)
        if self.critic is not None:
            with torch.no_grad():
                expected = self.critic(rollout.features)
            advantage = advantage - expected
        steps, images = self._units(rollout, reward)  # (M,), (M, k)
        sums = torch.zeros(4, device=self.device, dtype=torch.float64)  # loss, KL, clipped, units
        size, rows, norm = max(1, config.chunk_size // images.shape[1]), 0, torch.zeros(())
        for options in self.optimiser.param_groups:
            options["lr"] = value_at(config.learning_rate, self.iteration)
        for _ in range(config.num_epochs):
            for chosen in self._minibatches(images):
                number = sum_over_ranks(torch.tensor(float(len(chosen)), dtype=torch.float64)).item()
                if not number:
                    continue
                self.optimiser.zero_grad()
                for units in chosen.split(size) if len(chosen) else ():  # this process may have none
                    terms = self._terms(rollout, advantage, steps[units], images[units])
                    loss = self.host.loss(terms, config)
                    (loss.sum() / number).backward()
                    sums += torch.stack([*self._told(terms, loss), sums.new_tensor(float(len(units)))])
                    rows += images.shape[1] * len(units)
                processes.sum_gradients(self.parameters)
                norm = nn.utils.clip_grad_norm_(self.parameters, config.max_gradient)
                self.optimiser.step()
                if expected is not None:
                    self._update_critic(rollout, credit, expected, steps[chosen], images[chosen, 0], number)
        *means, count = sum_over_ranks(sums).tolist()
        mean_loss, kl, clipped = (mean / max(count, 1.0) for mean in means)
        guided = 1 + (config.guidance_weight > 0)
        per_row = self.cost.update + (self.cost.forward if self.reference is not None else 0.0)
        told = {"loss": mean_loss, "gradient_norm": norm.item(), "flops": rows * guided * per_row}
        told |= {"clipped": clipped} if self.host.clips else {}
        return told | ({} if self.reference is None else {"kl": kl})

    @torch.no_grad()
    def _told(self, terms: Terms, loss: Tensor) -> list[Tensor]:
        """Returns what is logged of units, summed: loss, KL, and how many ratios are beyond the clip."""
        outside = ((terms.log_prob - terms.old).exp() - 1).abs() > self.config.clip
        kl = loss.new_zeros(()) if terms.kl is None else terms.kl.mean(1).sum()
        return [each.double() for each in (loss.sum(), kl, outside.double().mean(1).sum())]

    def _units(self, rollout: Rollout, reward: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the units in the scope: their decisions (M,) and images (M, k), the preferred one first."""
        if not self.host.in_pairs:
            steps, images = rollout.inside.nonzero(as_tuple=True)
            return steps, images[:, None]
        first, second = torch.arange(len(reward), device=self.device).view(-1, 2).T
        better = reward[first] >= reward[second]
        winner, loser = torch.where(better, first, second), torch.where(better, second, first)
        both = rollout.inside[:, winner] & rollout.inside[:, loser] & (reward[winner] != reward[loser])
        steps, pair = both.nonzero(as_tuple=True)
        return steps, torch.stack([winner[pair], loser[pair]], 1)

    def _minibatches(self, images: Tensor) -> Iterator[Tensor]:
        """Yields the numbers of units, in parts of as many images or pairs each, in random order."""
        width = 1 + self.host.in_pairs
        total = self.config.num_groups * self.config.group_size // width
        order = torch.randperm(total, generator=self.generator)  # the same in every process
        own = processes.own(self.config.num_groups)
        first = own.start * self.config.group_size // width
        place = images.min(1).values // width + first  # of the image, or the pair, among all
        part = torch.empty(total, dtype=torch.int64)
        part[order] = torch.arange(total) * self.config.num_updates // total
        of = part.to(place.device)[place]
        for update in range(self.config.num_updates):
            yield (of == update).nonzero()[:, 0]

    def _terms(self, rollout: Rollout, advantage: Tensor, steps: Tensor, images: Tensor) -> Terms:
        """Returns what the host is told of units: decisions (M,) of images (M, k)."""
        step, image = steps[:, None].expand_as(images).flatten(), images.flatten()
        latents, following = rollout.latents[step, image], rollout.latents[step + 1, image]
        context, shape = rollout.context[image], images.shape
        with self._autocast():
            now = self.sampler.predicted(latents, step, context)
        reference = kl = None
        if self.reference is not None:
            self.sampler.use(self.reference)
            with torch.no_grad(), self._autocast():
                before = self.sampler.predicted(latents, step, context)
            self.sampler.use(self.network)
            reference, kl = before.log_prob(following).view(shape), now.kl(before).view(shape)
        return Terms(
            now.log_prob(following).view(shape),
            rollout.old[step, image].view(shape),
            reference,
            kl,
            advantage[step, image].view(shape),
        )

    def _update_critic(
        self, rollout: Rollout, credit: Tensor, expected: Tensor, steps: Tensor, images: Tensor, number: float
    ) -> None:
        """Moves the critic's values towards the credit of the images, no further than its clip (TDPO)."""
        assert self.critic is not None
        assert self.critic_optimiser is not None
        self.critic_optimiser.zero_grad()
        value, before, goal = (
            self.critic(rollout.features[steps, images]),
            expected[steps, images],
            credit[images],
        )
        clipped = before + (value - before).clamp(-self.config.critic_clip, self.config.critic_clip)
        error = torch.maximum((value - goal).square(), (clipped - goal).square())
        (error.sum() / 2 / number).backward()
        processes.sum_gradients(self.critic.parameters())
        nn.utils.clip_grad_norm_(self.critic.parameters(), self.config.max_gradient)
        self.critic_optimiser.step()

    def _cost(self) -> Cost:
        """Counts operations, on one image of noise."""
        zeros = torch.zeros(1, dtype=torch.int64, device=self.device)
        latents = torch.zeros(1, *self.sampler.shape, device=self.device)
        self.sampler.use(self.network)
        rows = 1 + (self.config.guidance_weight > 0)

        def update() -> None:
            self.sampler.predicted(latents, zeros, zeros).log_prob(latents).sum().backward()

        def look() -> None:
            self.probe.judge(self.sampler.decoder(latents).float(), zeros)

        with torch.no_grad():
            forward = flops(lambda: self.sampler.predicted(latents, zeros, zeros))
            looked = flops(look) if self.probe.scope.needs_curves else 0.0
        cost = Cost(forward / rows, flops(update) / rows, looked)
        self.optimiser.zero_grad()
        return cost

    def _autocast(self) -> torch.autocast:
        return autocast(self.device, self.config.precision)


def ends(inside: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the first decision that counts and the first one behind the last, (N,) each; T and 0 where none does."""
    steps = torch.arange(len(inside), device=inside.device)[:, None]
    return torch.where(inside, steps, len(inside)).amin(0), torch.where(inside, steps + 1, 0).amax(0)


def mean_window(inside: Tensor) -> dict[str, float]:
    """Returns the mean of both ends, of the images with some decisions that count."""
    some = inside.any(0)
    start, end = (processes.mean(each[some]).item() for each in ends(inside))
    means = {"scope/start": start, "scope/end": end}
    return {name: value for name, value in means.items() if not math.isnan(value)}


def saturated(history: Sequence[float], window: int, gain: float) -> bool:
    """Returns whether a reward has stopped rising: see `Config.saturation_window`.

    Args:
        history: the mean reward of each iteration.
        window: iterations that are compared with as many before; 0 for never.
        gain: least gain, as a share of that since the first `window` iterations.
    """
    if not window or len(history) < 3 * window:
        return False
    first, before, now = (
        statistics.fmean(part)
        for part in (history[:window], history[-2 * window : -window], history[-window:])
    )
    return now - before < gain * abs(now - first)


def make_env(config: Config) -> gym.vector.VectorEnv:
    """Returns the environment that a run samples from: whole groups of images of one context, about a chunk at once."""
    own, size = len(processes.own(config.num_groups)), config.group_size
    batches = -(-own // max(1, config.chunk_size // size))
    groups = -(-own // batches)  # as even as can be: the last batch is filled up
    observe = ["latents", "std", "denoised", "context"]
    if HOSTS[config.host].has_critic:
        observe.append("features")
    return training_env(config, groups * size, contexts=f"grouped:{size}", observe=observe)


def sampler_of(env: gym.vector.VectorEnv) -> DenoisingSampler:
    """Returns the sampler of an environment whose actions are deviations of latents.

    Raises:
        ValueError: if they are not.
    """
    inner = unwrapped(env)
    if not isinstance(inner.actions, DeviationActions) or not isinstance(inner.sampler, DenoisingSampler):
        raise ValueError(
            f"env_id must be {DENOISING!r}, or an id with its sampler and action_mode 'residual', got one of "
            f"{type(inner.sampler).__name__}"
        )
    return inner.sampler


def make_reward(field: str, config: Config, device: str) -> Mixture:
    """Returns the reward that a field of a configuration names; ValueError that names the field, if it is none."""
    spec = getattr(config, field)
    made = rewards.make_reward(runs.reward_spec(spec), config.backbone, device, prompts=config.prompts)
    if made is None:
        raise ValueError(f"{field} must name a reward, got {spec!r}")
    return made


def compared(reward: Mixture) -> str | None:
    """Returns the name of a component that compares images with each other, or with earlier ones; None without one."""
    for name, component in reward.rewards.items():
        if isinstance(component, StatefulReward) or getattr(component, "min_images", 1) > 1:
            return name
    return None


def check_single(reward: Mixture, field: str) -> None:
    """Raises a ValueError for a reward that cannot look at a few unfinished images."""
    name = compared(reward)
    if name is not None:
        raise ValueError(
            f"{field} must judge each image for itself with an adaptive scope, which looks at a few before they are "
            f"finished, got {name!r}; use scope='full' or 'fixed:START:END'"
        )


def with_reward(evaluation: Evaluation, reward: Mixture) -> Evaluation:
    """Returns an evaluation with the mean reward of its kept images, where they are not compared with each other."""
    if compared(reward) is not None:
        return evaluation
    episode = evaluation.episode
    mean = reward(episode.images, episode.context).double().mean().item()
    return dataclasses.replace(evaluation, metrics=evaluation.metrics | {"reward": mean})


def write(network: nn.Module, config: Config, out: Path) -> None:
    """Writes a tuned network into a run directory: as a backbone, and the low-rank changes of a Stable Diffusion alone.

    Args:
        network: the network.
        config: of the run.
        out: the run directory.
    """
    if not isinstance(network, NoisePredictor):
        part = choose_part(config.backbone, config.network, NETWORKS, "diffusion transformer")
        write_generator(network, part, config.backbone, out / GENERATOR)
        return
    write_generator(network, network.part, config.backbone, out / GENERATOR)
    if config.lora_rank and network.part == "unet":
        (out / LORA).mkdir(exist_ok=True)
        save_lora(network, out / LORA)


def train(config: Config, out: Path, resume: bool = False) -> results.RunResult | None:
    """Tunes a diffusion model, and writes the run directory.

    Args:
        config: the run.
        out: its directory; must not hold a run already, unless it is resumed.
        resume: continue from the directory's checkpoint, exactly as if it had never stopped.
    """
    if processes.is_first() and not resume:
        runs.check_free(out)
    trainer = Trainer(config)
    evaluator = Evaluator(config.env_id, config.env_kwargs, config.eval_images, needs_judge=False)
    actor = generator_policy(evaluator.env)

    def evaluate(what: str) -> Evaluation:
        evaluation = evaluator.repetition(actor, config.seed, what, intervals=True)
        return with_reward(evaluation, trainer.reward)

    with runs.open_run(config, out, trainer, resume) as run:
        before = run.evaluated_once(lambda: evaluate("what there was before"))
        sampler_of(evaluator.env).use(trainer.kept)
        learned = learn(
            trainer,
            run,
            lambda: evaluate("what there is"),
            config.num_iterations,
            config.eval_interval,
            config.checkpoint_interval,
        )
        processes.stop()
        if before is None or learned is None:
            return None
        write(trainer.kept, config, out)
        return results.finish(
            run,
            evaluator.env,
            trainer.reward,
            before,
            learned,
            floor=evaluator.floor(),
            images=trainer.images,
            seconds=trainer.seconds,
            names=("base", "tuned"),
        )


if __name__ == "__main__":
    main(Config, PRESETS, train)
