"""AdaGen: PPO learns a schedule for each image against a discriminator that learns in turn (arXiv 2603.06993).

python -m agents.adagen --env-id AdaGen/MaskGIT-v0 --out runs/maskgit
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
import tyro
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

import genenv
from agents.checkpointing import MetricsLog, load_checkpoint, save_checkpoint
from agents.command_line import cell, plain_errors
from agents.losses import gaussian_log_prob, ppo_policy_loss, standardise
from genenv.checkpoints import read_state_dict, torch_device, write_text
from genenv.envs import diffusion, flow, maskgit, var
from genenv.evaluation import Evaluation, Evaluator, first_seed
from genenv.guard import verdict
from genenv.models.policy import PolicyBackbone, released_network
from genenv.protocols import Observation
from genenv.releases import RELEASES
from genenv.rewards import make_reward
from genenv.rewards.adversarial import AdversarialReward, discriminator
from genenv.rewards.classifier import make as make_classifier_reward
from genenv.rewards.mixture import Mixture, as_mixture
from genenv.rollout import run_episode, schedule_actions, static_actor, unwrapped
from genenv.schedules import ScheduleParam
from genenv.tiers import tier_of
from genenv.viz.plots import save_curves, save_samples, save_schedule
from genenv.viz.report import write_report

OBSERVE = ("features", "step", "context")
IMAGES_PER_SEED = 10**9
"""Image seeds that a run has for itself."""
MAX_SEED = 500
"""Runs whose images all lie below the tuning and the held-out seeds."""
RESUMABLE = ("num_iterations", "device", "eval_interval", "checkpoint_interval")
"""Fields that may change when a run is continued."""
SCHEDULED = ("action_std", "learning_rate")
"""Fields that change while a run goes on."""
Steps = tuple[tuple[int, float], ...]
CONSOLE = Console()


def value_at(steps: Steps, iteration: int) -> float:
    """Returns the value of an iteration, of ((first iteration, value), ...) in order."""
    return [value for first, value in steps if first <= iteration][-1]


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run is made of. The defaults are tuned for the digits on two processor cores."""

    env_id: str = "AdaGen/MaskGIT-v0"
    """Registered environment."""
    backbone: str = "digits"
    """Weights of the generator."""
    num_steps: int = 4
    """Generation steps of each image."""
    smoothing: float = 0.0
    """Decay of the moving average over actions; the paper smooths where T > 10."""
    reward: str = "adversarial"
    """What the policy maximises: a reward's name, or JSON such as '{"hpsv2": 1.0, "loo_fid": 2.0}' for a mixture.
    "adversarial" is a discriminator that learns in turn; every other reward stays as it is."""
    seed: int = 0
    """Decides the networks' first weights, the exploration, and which images are generated."""
    device: str = "cpu"
    """Where everything runs."""
    num_envs: int = 256
    """Images for each iteration."""
    num_iterations: int = 120
    """Policy updates."""
    hidden_dim: int = 64
    """Width of policy and critic."""
    action_std: Steps = ((0, 0.4), (60, 0.2))
    """Exploration noise: (first iteration, standard deviation in units of the action) in order."""
    learning_rate: Steps = ((0, 1e-3), (60, 3e-4))
    """Adam's, for policy and critic: (first iteration, rate) in order."""
    num_epochs: int = 5
    """Passes over an iteration's images (K)."""
    num_minibatches: int = 4
    """Gradient steps for each pass."""
    clip: float = 0.2
    """Trust region of the probability ratio (epsilon)."""
    value_weight: float = 0.5
    """Weight of the critic's squared error."""
    discriminator_steps: int = 5
    """Discriminator updates after each policy update."""
    discriminator_batch: int = 256
    """Generated images, and as many real ones, for each of them."""
    discriminator_learning_rate: float = 3e-3
    """Adam's, with betas (0.5, 0.999)."""
    discriminator_warmup: int = 100
    """Discriminator updates before the first policy update, on a batch of the untrained policy."""
    fresh_fakes: bool = False
    """Generate new images for each discriminator update, as published, rather than use the iteration's."""
    diversity_run: str | None = None
    """Run directory of a trained policy. It is kept as it is, and this run trains the fidelity-oriented second policy
    that is blended with it: a = (1 - lambda) a_diversity + lambda a_fidelity, rewarded in the same proportion."""
    eval_interval: int = 25
    """Iterations between held-out evaluations."""
    eval_images: int = 2000
    """Images for each of them."""
    checkpoint_interval: int = 5
    """Iterations between checkpoints."""

    def __post_init__(self):
        least = {
            "num_steps": 1,
            "num_envs": 2,
            "num_iterations": 1,
            "hidden_dim": 4,
            "num_epochs": 1,
            "num_minibatches": 1,
            "eval_interval": 1,
            "eval_images": 1,
            "checkpoint_interval": 1,
        }
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"{name} must be at least {smallest}, got {getattr(self, name)}")
        if self.num_envs < self.num_minibatches:
            raise ValueError(f"num_minibatches must not exceed num_envs, got {self.num_minibatches}")
        if not 0 <= self.seed < MAX_SEED:
            raise ValueError(f"seed must be in 0..{MAX_SEED - 1}, got {self.seed}")
        for name in SCHEDULED:
            steps = getattr(self, name)
            if not steps or steps[0][0] != 0 or min(value for _, value in steps) <= 0:
                raise ValueError(f"{name} must start at iteration 0 and stay above 0, got {steps}")

    @property
    def env_kwargs(self) -> dict[str, Any]:
        """What `gymnasium.make_vec` needs so that a policy sees what this run trains on."""
        return {
            "backbone": self.backbone,
            "num_steps": self.num_steps,
            "smoothing": self.smoothing,
            "observe": list(OBSERVE),
            "device": self.device,
        }


PRESETS = {
    "digits": Config(),
    "demo": Config(num_iterations=100, eval_interval=50),
    "var": Config(env_id="AdaGen/VAR-v0"),
    "llamagen": Config(env_id="AdaGen/LlamaGen-v0"),
    "dit": Config(env_id="AdaGen/DiT-v0", num_steps=8, num_iterations=80),
    "sit": Config(env_id="AdaGen/SiT-v0", num_steps=8, num_iterations=80),
    "paper": Config(
        num_steps=16,
        smoothing=0.8,
        num_envs=4096,
        num_iterations=1000,
        hidden_dim=512,
        action_std=((0, 0.6), (500, 0.3)),
        learning_rate=((0, 1e-5),),
        num_epochs=5,
        num_minibatches=1,
        discriminator_steps=5,
        discriminator_batch=1024,
        discriminator_learning_rate=1e-4,
        discriminator_warmup=0,
        fresh_fakes=True,
    ),
}
"""Named configurations: the digits of each paradigm, and the published hyper-parameters (AdaGen and AdaNAT's released
training code), which go with any `--env-id` that takes their `--num-steps`."""


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What a finished run found.

    Attributes:
        out: the run directory.
        handcrafted: held-out evaluation of the hand-crafted schedule.
        learned: held-out evaluation of the learned policy, on the same seeds.
        verdict: reward and held-out metrics before and after, in one sentence.
    """

    out: Path
    handcrafted: Evaluation
    learned: Evaluation
    verdict: str


class PolicyActor:
    """A trained policy as an actor: observations to actions (N, A), without exploration.

    Attributes:
        env_id, env_kwargs: what it was trained on, for `gymnasium.make_vec(env_id, **env_kwargs)`.
    """

    def __init__(self, env_id: str, env_kwargs: dict[str, Any], act: Callable[[Observation], Tensor]):
        self.env_id, self.env_kwargs = env_id, env_kwargs
        self._act = act

    @torch.no_grad()
    def __call__(self, observation: Observation) -> Tensor:
        """Returns (N, A)."""
        return self._act(observation)


class Trainer:
    """Everything of a run that changes while it trains, and nothing else."""

    def __init__(self, config: Config):
        self.config, self.tier = config, tier_of(config.backbone)
        self.env = gym.make_vec(
            config.env_id,
            num_envs=config.num_envs,
            reward="none",
            autoreset_mode="Disabled",
            **config.env_kwargs,
        )
        self.device = unwrapped(self.env).device
        self.generator = torch.Generator().manual_seed(config.seed)
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.policy = make_network(self.env, config.hidden_dim, len(schedule_actions(self.env).params))
            self.critic = make_network(self.env, config.hidden_dim, 1)
            self.reward = _make_reward(config, self.env, self.generator)
        self.adversary = self.reward.rewards.get("adversarial")
        self.diversity: PolicyBackbone | None = None
        if config.diversity_run is not None:
            self.diversity = _diversity_policy(config)
            self.fidelity_reward = make_classifier_reward(config.backbone, str(self.device))
        parameters = [*self.policy.parameters(), *self.critic.parameters()]
        self.optimiser = torch.optim.Adam(parameters, lr=value_at(config.learning_rate, 0))
        self.discriminator_optimiser: torch.optim.Optimizer | None = None
        if isinstance(self.adversary, AdversarialReward):
            self.discriminator_optimiser = torch.optim.Adam(
                self.adversary.discriminator.parameters(),
                lr=config.discriminator_learning_rate,
                betas=(0.5, 0.999),
            )
        self.iteration = 0
        self.batches = 0
        self.seconds = 0.0

    def act(self, observation: Observation) -> Tensor:
        """Returns the policy's mean action (N, A)."""
        return self.policy(observation)

    def step(self) -> dict[str, float]:
        """Runs one iteration: rollout, policy updates, discriminator updates."""
        config, started = self.config, time.perf_counter()
        discriminator_steps = config.discriminator_steps if self.adversary is not None else 0
        if self.iteration == 0 and config.discriminator_warmup and self.adversary is not None:
            images, context = self._fresh_images()
            for _ in range(config.discriminator_warmup):
                self._update_discriminator(images, context)
        observations, actions, images, context, reward, parts = self._rollout()
        losses = self._update_policy(observations, actions, reward)
        for _ in range(discriminator_steps):
            if config.fresh_fakes:
                images, context = self._fresh_images()
            losses["discriminator_loss"] = self._update_discriminator(images, context)
        self.iteration += 1
        self.seconds += time.perf_counter() - started
        return {
            "iteration": self.iteration,
            "images": self.batches * config.num_envs,
            "reward": reward.mean().item(),
            **{f"reward/{name}": value.mean().item() for name, value in parts.items()},
            "action_std": value_at(config.action_std, self.iteration - 1),
            **losses,
        }

    def _next_seed(self) -> int:
        """Returns the first seed of a batch; no image is generated twice, and none is held out."""
        self.batches += 1
        return self.config.seed * IMAGES_PER_SEED + (self.batches - 1) * self.config.num_envs

    def _noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.device)

    def _fresh_images(self) -> tuple[Tensor, Tensor]:
        act, _ = self._behaviour(self._blend())
        episode = run_episode(self.env, act, self._next_seed(), keep_observations=False)
        return episode.images, episode.context

    def _blend(self) -> Tensor | None:
        """Returns a random lambda (N,) for each image of a fidelity run."""
        if self.diversity is None:
            return None
        return torch.rand(self.config.num_envs, generator=self.generator).to(self.device)

    def _behaviour(self, blend: Tensor | None) -> tuple[Callable[[Observation], Tensor], list[Tensor]]:
        """Returns an exploring actor, and the list into which it puts the policy's own actions (N, A)."""
        std, own = value_at(self.config.action_std, self.iteration), []

        def act(observation: Observation) -> Tensor:
            mean = self.policy(observation)
            own.append(mean + std * self._noise(*mean.shape))
            if self.diversity is None or blend is None:
                return own[-1]
            return torch.lerp(self.diversity(observation), own[-1], blend[:, None])

        return act, own

    def _rollout(self) -> tuple[Observation, Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        blend = self._blend()
        act, own = self._behaviour(blend)
        episode = run_episode(self.env, act, self._next_seed())
        reward, parts = self.reward.judge(episode.images, episode.context)
        if blend is not None:
            reward = torch.lerp(reward, self.fidelity_reward(episode.images, episode.context), blend)
        return episode.observations, torch.stack(own), episode.images, episode.context, reward, parts

    def _update_policy(self, observations: Observation, actions: Tensor, reward: Tensor) -> dict[str, float]:
        """PPO with the terminal reward as the return of every step: no discount, no GAE."""
        config, std = self.config, value_at(self.config.action_std, self.iteration)
        batch = {name: value.flatten(0, 1) for name, value in observations.items()}  # (T * N, ...)
        actions = actions.flatten(0, 1)
        returns = standardise(reward).repeat(len(actions) // len(reward))
        with torch.no_grad():
            old_log_prob = gaussian_log_prob(actions, self.policy(batch), std)
            advantage = returns - self.critic(batch)[:, 0]
        policy_loss = value_loss = torch.zeros(())
        for group in self.optimiser.param_groups:
            group["lr"] = value_at(config.learning_rate, self.iteration)
        for _ in range(config.num_epochs):
            order = torch.randperm(len(actions), generator=self.generator).to(self.device)
            for index in order.chunk(config.num_minibatches):
                minibatch = {name: value[index] for name, value in batch.items()}
                log_prob = gaussian_log_prob(actions[index], self.policy(minibatch), std)
                policy_loss = ppo_policy_loss(log_prob, old_log_prob[index], advantage[index], config.clip)
                value_loss = (self.critic(minibatch)[:, 0] - returns[index]).square().mean()
                self.optimiser.zero_grad()
                (policy_loss + config.value_weight * value_loss).backward()
                self.optimiser.step()
        return {"policy_loss": policy_loss.item(), "value_loss": value_loss.item()}

    def _update_discriminator(self, images: Tensor, context: Tensor) -> float:
        assert isinstance(self.adversary, AdversarialReward)
        assert self.discriminator_optimiser is not None
        choice = torch.randperm(len(images), generator=self.generator)[: self.config.discriminator_batch]
        choice = choice.to(images.device)
        fake, labels = images[choice], context[choice]
        loss = self.adversary.loss(fake, self.tier.real_like(labels, self.generator), labels)
        self.discriminator_optimiser.zero_grad()
        loss.backward()
        self.discriminator_optimiser.step()
        return loss.item()

    def state_dict(self) -> dict[str, Any]:
        """Returns all that an exact continuation needs; the environment's streams follow from `batches`."""
        return {
            "iteration": self.iteration,
            "batches": self.batches,
            "seconds": self.seconds,
            "policy": self.policy.state_dict(),
            "critic": self.critic.state_dict(),
            "diversity": None if self.diversity is None else self.diversity.state_dict(),
            "reward": self.reward.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "discriminator_optimiser": None
            if self.discriminator_optimiser is None
            else self.discriminator_optimiser.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.iteration, self.batches = state["iteration"], state["batches"]
        self.seconds = state["seconds"]
        self.policy.load_state_dict(state["policy"])
        self.critic.load_state_dict(state["critic"])
        if self.diversity is not None:
            self.diversity.load_state_dict(state["diversity"])
        self.reward.load_state_dict(state["reward"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.discriminator_optimiser is not None:
            self.discriminator_optimiser.load_state_dict(state["discriminator_optimiser"])
        self.generator.set_state(state["generator"])


def make_network(env: gym.vector.VectorEnv, hidden_dim: int, num_outputs: int) -> PolicyBackbone:
    """Returns an untrained policy or critic for an environment that observes features."""
    length, feature_dim = unwrapped(env).sampler.fields["features"].shape
    return PolicyBackbone(
        feature_dim,
        grid_size=round(length**0.5),
        num_outputs=num_outputs,
        hidden_dim=hidden_dim,
        head_dims=(hidden_dim // 4, 2 * hidden_dim, hidden_dim),
        num_classes=unwrapped(env).sampler.num_contexts,
    ).to(unwrapped(env).device)


def _make_reward(config: Config, env: gym.vector.VectorEnv, generator: torch.Generator) -> Mixture:
    """Returns what the policy maximises; its "adversarial" is a new discriminator."""

    def adversarial() -> AdversarialReward:
        if tier_of(config.backbone).real_images is None:
            raise ValueError(
                "a discriminator learns from real images, which agents.adagen has of the digits only, "
                f"got backbone {config.backbone!r}: use another reward"
            )
        network = discriminator(config.backbone, unwrapped(env).sampler.num_contexts, generator)
        return AdversarialReward(network.to(unwrapped(env).device))

    spec: Any = config.reward
    if spec.lstrip().startswith("{"):
        try:
            spec = json.loads(spec)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"reward must be a name or a JSON object, got {config.reward}: {error}"
            ) from None
    reward = make_reward(spec, config.backbone, str(unwrapped(env).device), own={"adversarial": adversarial})
    if reward is None:
        raise ValueError(f"reward must name a reward to learn from, got {config.reward!r}")
    return reward


def _diversity_policy(config: Config) -> PolicyBackbone:
    """Returns the frozen first policy of a fidelity run, which must have been trained on the same task."""
    networks = load_networks(config.diversity_run or "", config.device)
    first = networks.config
    for name in ("env_id", "backbone", "num_steps", "smoothing", "hidden_dim"):
        if getattr(first, name) != getattr(config, name):
            raise ValueError(
                f"{name} must be that of {config.diversity_run}, {getattr(first, name)!r}, "
                f"got {getattr(config, name)!r}"
            )
    return networks.policy


def train(config: Config, out: Path, resume: bool = False) -> RunResult:
    """Trains a policy and writes the run directory.

    Args:
        config: the run.
        out: its directory; must not hold a run already, unless it is resumed.
        resume: continue from the directory's checkpoint, exactly as if it had never stopped.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("agents.adagen runs as one process, got WORLD_SIZE > 1: start it without torchrun")
    if not resume and (out / "checkpoint.pt").exists():
        raise ValueError(
            f"{out} already holds a run; continue it with --resume {out}, or choose another --out"
        )
    trainer = Trainer(config)
    evaluator = Evaluator(config.env_id, config.env_kwargs, config.eval_images)
    first = first_seed(config.seed, config.eval_images)
    handcrafted = evaluator(static_actor(evaluator.env), first)
    log = MetricsLog(out / "metrics.jsonl")
    if resume:
        trainer.load_state_dict(load_checkpoint(out / "checkpoint.pt"))
        log.cut_after(trainer.iteration)
    write_text(out / "config.json", json.dumps(dataclasses.asdict(config), indent=2) + "\n")
    if not resume:
        save_checkpoint(trainer.state_dict(), out / "checkpoint.pt")
    writer = SummaryWriter(str(out / "tensorboard"), purge_step=trainer.iteration + 1)
    learned, held_out = None, handcrafted.metrics
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=CONSOLE,
        disable=not CONSOLE.is_terminal,
    ) as bar:
        task = bar.add_task("AdaGen", total=config.num_iterations, completed=trainer.iteration)
        while trainer.iteration < config.num_iterations:
            record = trainer.step()
            last = trainer.iteration == config.num_iterations
            if last or trainer.iteration % config.eval_interval == 0:
                learned = evaluator(torch.no_grad()(trainer.act), first)
                held_out = learned.metrics
                record |= {f"held_out/{name}": value for name, value in held_out.items()}
                if not CONSOLE.is_terminal:  # a log file gets lines instead of the bar
                    CONSOLE.print(
                        f"iteration {trainer.iteration} of {config.num_iterations}: held-out FID "
                        f"{held_out['fid']:.2f}, recall {cell(held_out, 'recall')}, "
                        f"accuracy {cell(held_out, 'accuracy', '.1%')}",
                        highlight=False,
                        soft_wrap=True,
                    )
            log.append(record)
            for name, value in record.items():
                writer.add_scalar(name, value, trainer.iteration)
            if last or trainer.iteration % config.checkpoint_interval == 0:
                save_checkpoint(trainer.state_dict(), out / "checkpoint.pt")
            description = f"AdaGen  reward {record['reward']:.3f}  held-out FID {held_out['fid']:.2f}"
            bar.update(task, completed=trainer.iteration, description=description)
    writer.close()
    if learned is None:  # the run that is resumed was complete
        learned = evaluator(torch.no_grad()(trainer.act), first)
    return _finish(trainer, handcrafted, learned, log, out)


def _finish(
    trainer: Trainer, handcrafted: Evaluation, learned: Evaluation, log: MetricsLog, out: Path
) -> RunResult:
    """Writes the pictures, the summary and the report."""
    config = trainer.config
    # The second policy of a fidelity run is paid by the classifier where it acts alone, as here.
    reward = trainer.reward if trainer.diversity is None else as_mixture(trainer.fidelity_reward)
    line = verdict(reward, handcrafted, learned)
    columns = 40
    save_samples(
        out / "samples.png",
        {"hand-crafted": handcrafted.episode.images[:columns], "learned": learned.episode.images[:columns]},
        [str(label) for label in learned.episode.context[:columns].tolist()],
    )
    static = {p.name: p.static for p in schedule_actions(trainer.env).params}
    save_schedule(out / "schedule.png", static, learned.episode.schedule)
    save_curves(out / "curves.png", log.read(), baseline=handcrafted.metrics)
    images = trainer.batches * config.num_envs
    rows = [
        {"name": "hand-crafted", **handcrafted.metrics, "images": 0},
        {"name": "learned", **learned.metrics, "images": images},
    ]
    summary = {
        "env_id": config.env_id,
        "seed": config.seed,
        "seconds": round(trainer.seconds, 1),
        "verdict": line,
        "rows": rows,
        "evaluations": {"hand-crafted": handcrafted.record(), "learned": learned.record()},
        "agent": "adagen",
        "command": command(config, out),
        "versions": {"genenv": genenv.__version__, "torch": torch.__version__, "gymnasium": gym.__version__},
    }
    write_text(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    write_report(out, f"AdaGen on {config.env_id}")
    return RunResult(out, handcrafted, learned, line)


def command(config: Config, out: Path) -> str:
    """Returns the command line that makes a run from nothing."""
    words = ["python", "-m", "agents.adagen"]
    for field in dataclasses.fields(Config):
        value = getattr(config, field.name)
        if value == field.default:
            continue
        flag = "--" + field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, tuple):
            words += [flag, *(str(number) for pair in value for number in pair)]
        else:
            words += [flag, str(value)]
    return shlex.join([*words, "--out", str(out)])


def read_config(run_dir: Path) -> Config:
    """Returns the configuration of a run."""
    path = run_dir / "config.json"
    if not path.is_file():
        raise ValueError(f"{run_dir} is not a run directory: it has no config.json")
    values = json.loads(path.read_text())
    for name in SCHEDULED:
        values[name] = tuple((int(first), float(value)) for first, value in values[name])
    return Config(**values)


@dataclasses.dataclass(frozen=True)
class Networks:
    """The frozen networks of a run: policy, critic, the policy it refines, and its reward, made when asked for."""

    config: Config
    policy: PolicyBackbone
    critic: PolicyBackbone
    diversity: PolicyBackbone | None
    _make_reward: Callable[[], Mixture]

    @functools.cached_property
    def reward(self) -> Mixture:
        """What the run maximised, with what it had learned and remembered."""
        return self._make_reward()


def load_networks(run_dir: Path | str, device: str = "cpu") -> Networks:
    """Returns the networks of a run directory in eval mode."""
    config = dataclasses.replace(read_config(Path(run_dir)), device=device)
    state = load_checkpoint(Path(run_dir) / "checkpoint.pt")
    env = gym.make_vec(config.env_id, num_envs=1, reward="none", **config.env_kwargs)
    num_params = len(schedule_actions(env).params)

    def network(name: str, num_outputs: int) -> PolicyBackbone:
        model = make_network(env, config.hidden_dim, num_outputs)
        model.load_state_dict(state[name])
        return model.eval().requires_grad_(False)

    def reward() -> Mixture:
        made = _make_reward(config, env, torch.Generator())
        made.load_state_dict(state["reward"])
        return made

    return Networks(
        config,
        network("policy", num_params),
        network("critic", 1),
        None if state["diversity"] is None else network("diversity", num_params),
        reward,
    )


def load_policy(run_dir: Path | str, fidelity: float = 1.0, device: str = "cpu") -> PolicyActor:
    """Returns a run's policy as an actor.

    Args:
        run_dir: the run directory.
        fidelity: lambda in [0, 1] for a run that was trained on top of another (`diversity_run`): 0 is the other
            run's policy, the most diverse; 1 is this run's. Without such a run it must stay 1.
        device: where the policy and its environment run.
    """
    if not 0.0 <= fidelity <= 1.0:
        raise ValueError(f"fidelity must be in [0, 1], got {fidelity}")
    networks = load_networks(run_dir, device)
    diversity = networks.diversity
    if diversity is None:
        if fidelity != 1.0:
            raise ValueError(f"{run_dir} has one policy only; train a second with --diversity-run {run_dir}")
        return PolicyActor(networks.config.env_id, networks.config.env_kwargs, networks.policy)

    def blended(observation: Observation) -> Tensor:
        return torch.lerp(diversity(observation), networks.policy(observation), fidelity)

    return PolicyActor(networks.config.env_id, networks.config.env_kwargs, blended)


@dataclasses.dataclass(frozen=True)
class ReleasedPolicy:
    """What one of AdaGen's released policies was trained on.

    Attributes:
        env_id, env_kwargs: its task; `observe` and `device` are added.
        params: the schedule parameters, whose spans turn its raw outputs into actions.
    """

    env_id: str
    env_kwargs: dict[str, Any]
    params: tuple[ScheduleParam, ...]


RELEASED_POLICIES = {
    "maskgit_policy": ReleasedPolicy(
        "AdaGen/MaskGIT-v0",
        {"backbone": "imagenet256-maskgit-l", "num_steps": 16, "smoothing": 0.8},
        maskgit.schedule(16, guidance_weight=1.0),
    ),
    "dit_policy": ReleasedPolicy(
        "AdaGen/DiT-v0",
        {"backbone": "imagenet256-dit-xl-2", "num_steps": 16, "smoothing": 0.4},
        diffusion.schedule(17),
    ),
    "sit_policy": ReleasedPolicy(
        "AdaGen/SiT-v0",
        {"backbone": "imagenet256-sit-xl-2", "num_steps": 16, "smoothing": 0.8},
        flow.schedule(17),
    ),
    "var_d16_policy": ReleasedPolicy(
        "AdaGen/VAR-v0",
        {"backbone": "imagenet256-var-d16", "num_steps": 10, "top_k_rule": "released"},
        var.schedule(10, 4096),
    ),
    "var_d30_policy": ReleasedPolicy(
        "AdaGen/VAR-v0",
        {"backbone": "imagenet256-var-d30", "num_steps": 10, "top_k_rule": "released"},
        var.schedule(10, 4096),
    ),
}


def load_official_policy(path: Path | str, name: str | None = None, device: str = "cpu") -> PolicyActor:
    """Returns a released AdaGen policy as an actor: its raw outputs, unbounded, in the units of our actions.

    The released networks answer in the bijectors' unbounded space before smoothing, so an action is the output over
    the parameter's span. They see the features and the step, not the class.

    Args:
        path: the released file, or a training checkpoint of AdaNAT with the same network inside.
        name: one of `RELEASED_POLICIES`; by default the file's own name.
        device: where the policy and its environment run.
    """
    path = Path(path)
    name = path.stem if name is None else name
    if name not in RELEASED_POLICIES:
        raise ValueError(f"name must be one of {', '.join(RELEASED_POLICIES)}, got {name!r}")
    if not path.is_file():
        raise ValueError(f"{path} is missing; download it from {RELEASES[name].page}")
    released = RELEASED_POLICIES[name]
    place = torch_device(device)
    policy = released_network(read_state_dict(path)).to(place)
    spans = torch.tensor([param.span for param in released.params], device=place)
    env_kwargs = released.env_kwargs | {"observe": ["features", "step"], "device": device}
    return PolicyActor(released.env_id, env_kwargs, lambda observation: policy(observation) / spans)


def main(arguments: list[str] | None = None) -> None:
    """The command line: `--preset`, `--out`, `--resume`, and every field of `Config`."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--preset", choices=PRESETS, default="digits")
    parser.add_argument("--out", type=Path, default=Path("runs/adagen"))
    parser.add_argument("--resume", type=Path)
    known, rest = parser.parse_known_args(arguments)
    out = known.out if known.resume is None else known.resume
    try:
        with plain_errors():
            default = PRESETS[known.preset] if known.resume is None else read_config(known.resume)
            description = f"{__doc__}\n\nAlso: --preset {{{', '.join(PRESETS)}}}, --out DIR, --resume DIR."
            config = tyro.cli(Config, default=default, args=rest, description=description)
            if known.resume is not None:
                _check_continuation(default, config)
            result = train(config, out, resume=known.resume is not None)
    except KeyboardInterrupt:
        CONSOLE.print(f"stopped; continue with: python -m agents.adagen --resume {out}")
        raise SystemExit(130) from None
    print_result(result)


def _check_continuation(saved: Config, config: Config) -> None:
    for field in dataclasses.fields(Config):
        before, after = getattr(saved, field.name), getattr(config, field.name)
        if before != after and field.name not in RESUMABLE:
            raise ValueError(
                f"{field.name} of a run that is continued must stay {before!r}, got {after!r}; "
                f"only {', '.join(RESUMABLE)} may change"
            )


def print_result(result: RunResult) -> None:
    """Prints the hand-crafted schedule beside the learned one."""
    columns = ("fid", "precision", "recall", "coverage", "accuracy")
    table = Table("schedule", *columns, title="held-out metrics, same seeds", box=SIMPLE)
    for name, evaluation in (("hand-crafted", result.handcrafted), ("learned", result.learned)):
        table.add_row(name, *(cell(evaluation.metrics, column) for column in columns))
    CONSOLE.print(table)
    CONSOLE.print(result.verdict, highlight=False, soft_wrap=True)
    CONSOLE.print(f"report: {result.out / 'report.html'}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
