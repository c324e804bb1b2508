"""AdaGen: PPO learns a schedule for each image against a discriminator that learns in turn (arXiv 2603.06993).

python -m agents.adagen --env-id AdaGen/MaskGIT-v0 --out runs/maskgit
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from agents import chunks, policy, processes, results, runs
from agents.adversary import Adversary
from agents.command_line import main
from agents.console import say
from agents.loop import Parts, Stateful, check_finite, learn
from agents.losses import gaussian_log_prob, ppo_policy_loss
from agents.policy import OBSERVE, Networks, make_network, make_reward, training_env
from genenv.distributed import sum_over_ranks
from genenv.evaluation import Evaluation, Evaluator
from genenv.make import has_own_schedule
from genenv.models.policy import PolicyBackbone
from genenv.policies import PolicyActor, save_policy
from genenv.protocols import Decision, Observation
from genenv.ranges import (
    ABOVE_ZERO,
    AT_LEAST_1,
    AT_LEAST_2,
    FRACTION,
    NOT_NEGATIVE,
    Range,
    Steps,
    check,
    value_at,
)
from genenv.registration import DEFAULT_ID
from genenv.rewards.adversarial import AdversarialReward
from genenv.rewards.classifier import make as make_classifier_reward
from genenv.rewards.mixture import as_mixture
from genenv.rng import MAX_SEED, Purpose, training_seed
from genenv.rollout import Episode, schedule_actions, static_actor
from genenv.tiers import PUBLISHED, tier_of
from genenv.vector_env import unwrapped

POLICY = "policy.safetensors"
"""The trained policy in a run directory, for `genenv.load_policy`."""
LOWEST_RATE, LOWEST_STD = 0.02, 0.25
"""What annealing ends at, in parts of the learning rate and of the exploration noise."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run is made of. The defaults are tuned for the digits on two processor cores."""

    agent: ClassVar[str] = "adagen"
    resumable: ClassVar[tuple[str, ...]] = (*runs.RESUMABLE, "chunk_size")
    reward_fields: ClassVar[tuple[str, ...]] = runs.REWARD_FIELDS

    env_id: str = DEFAULT_ID
    """Registered environment."""
    backbone: str = "digits"
    """Weights of the generator."""
    num_steps: Annotated[int, AT_LEAST_1] = 4
    """Generation steps of each image."""
    smoothing: Annotated[float, FRACTION] = 0.0
    """Decay of the moving average over actions; the paper smooths where T > 10."""
    schedule: str | None = None
    """The hand-crafted schedule that a policy starts from: "published", or by default the tier's own."""
    reward: str = '{"adversarial": 1.0, "loo_fid_full": 2.0, "normalise": true}'
    """What the policy maximises: a reward's name, or JSON for a mixture, as here. "adversarial" is a discriminator that
    learns in turn, the published reward; every other one stays as it is."""
    name: str | None = None
    """Of the run, in tables that compare runs; by default the agent's."""
    seed: Annotated[int, NOT_NEGATIVE] = 0
    """Decides the networks' first weights, the exploration, and which images are generated."""
    device: str = "cpu"
    """Where everything runs."""
    num_envs: Annotated[int, AT_LEAST_2] = 256
    """Images for each iteration."""
    chunk_size: Annotated[int, AT_LEAST_1] = 256
    """Images at once. It bounds the memory and changes no number; where it is below `num_envs`, each gradient step
    generates its images again to see their features."""
    num_iterations: Annotated[int, AT_LEAST_1] = 200
    """Policy updates."""
    hidden_dim: Annotated[int, Range(4)] = 64
    """Width of policy and critic."""
    action_std: Annotated[Steps, ABOVE_ZERO] = ((0, 0.2),)
    """Exploration noise: (first iteration, standard deviation in units of the action) in order."""
    learning_rate: Annotated[Steps, ABOVE_ZERO] = ((0, 1e-3),)
    """Adam's, for policy and critic: (first iteration, rate) in order."""
    anneal: bool = True
    """Let the learning rate fall along a half-cosine over `num_iterations` to a fiftieth, and the noise, evenly in its
    logarithm, to a quarter."""
    table_rate: Annotated[float, NOT_NEGATIVE] = 5.0
    """Learning rate of the policy's table, the part of the schedule that is the same for every image, in parts of the
    network's; 0 for a policy without one."""
    adaptive: bool = True
    """Let the network see the image; else the policy is its table alone, a learned static schedule."""
    average_decay: Annotated[float, FRACTION] = 0.9
    """Weight, at each iteration, of the old moving average of the policy's weights, which is evaluated and kept; 0 for
    the last weights."""
    num_epochs: Annotated[int, AT_LEAST_1] = 5
    """Passes over an iteration's images (K)."""
    num_minibatches: Annotated[int, AT_LEAST_1] = 4
    """Gradient steps for each pass, each on its part of all images' decisions, mixed."""
    clip: Annotated[float, ABOVE_ZERO] = 0.2
    """Trust region of the probability ratio (epsilon)."""
    value_weight: Annotated[float, NOT_NEGATIVE] = 0.5
    """Weight of the critic's squared error."""
    discriminator_steps: Annotated[int, NOT_NEGATIVE] = 5
    """Discriminator updates after each policy update."""
    discriminator_batch: Annotated[int, AT_LEAST_2] = 256
    """Generated images, and as many real ones, for each of them, all at once."""
    discriminator_learning_rate: Annotated[float, ABOVE_ZERO] = 3e-3
    """Adam's, with betas (0.5, 0.999)."""
    discriminator_warmup: Annotated[int, NOT_NEGATIVE] = 100
    """Discriminator updates before the first policy update, on a batch of the untrained policy."""
    fresh_fakes: bool = False
    """Generate new images for each discriminator update, as published, rather than use the iteration's."""
    diversity_run: str | None = None
    """Run directory of a trained policy. It is kept as it is, and this run trains the fidelity-oriented second policy
    that is blended with it: a = (1 - lambda) a_diversity + lambda a_fidelity, rewarded in the same proportion."""
    eval_interval: Annotated[int, AT_LEAST_1] = 25
    """Iterations between held-out evaluations."""
    eval_images: Annotated[int, AT_LEAST_1] = 2000
    """Images for each of them."""
    checkpoint_interval: Annotated[int, AT_LEAST_1] = 5
    """Iterations between checkpoints."""

    def __post_init__(self):
        check(self)
        if self.num_envs < self.num_minibatches:
            raise ValueError(f"num_minibatches must not exceed num_envs, got {self.num_minibatches}")
        if not self.adaptive and not self.table_rate:
            raise ValueError("table_rate must be above 0 for a policy that is not adaptive, got 0")

    def learning_rate_at(self, iteration: int) -> float:
        """Returns the learning rate of an iteration, counted from 0."""
        rate = value_at(self.learning_rate, iteration)
        if not self.anneal:
            return rate
        return rate * max(LOWEST_RATE, 0.5 + 0.5 * math.cos(math.pi * self._done(iteration)))

    def action_std_at(self, iteration: int) -> float:
        """Returns the exploration noise of an iteration, counted from 0."""
        std = value_at(self.action_std, iteration)
        return std * LOWEST_STD ** self._done(iteration) if self.anneal else std

    def _done(self, iteration: int) -> float:
        return min(iteration / self.num_iterations, 1.0)

    @property
    def env_kwargs(self) -> dict[str, Any]:
        """What `gymnasium.make_vec` needs so that a policy sees what this run trains on."""
        return {
            "backbone": self.backbone,
            "num_steps": self.num_steps,
            "smoothing": self.smoothing,
            "observe": list(OBSERVE),
            "device": self.device,
            **({} if self.schedule is None else {"schedule": self.schedule}),
        }


FROM_PUBLISHED = Config(
    schedule=PUBLISHED,
    reward="adversarial",
    num_iterations=120,
    action_std=((0, 0.4), (60, 0.2)),
    learning_rate=((0, 1e-3), (60, 3e-4)),
    anneal=False,
    table_rate=0.0,
    average_decay=0.0,
)
PRESETS = {
    "digits": Config(),
    "demo": dataclasses.replace(
        FROM_PUBLISHED,
        num_iterations=200,
        action_std=((0, 0.4), (100, 0.2)),
        learning_rate=((0, 1e-3), (100, 3e-4)),
        eval_interval=100,
    ),
    "var": Config(env_id="AdaGen/VAR-v0"),
    "llamagen": Config(env_id="AdaGen/LlamaGen-v0"),
    "vqgan": Config(env_id="AdaGen/VQGAN-v0"),
    "dit": Config(env_id="AdaGen/DiT-v0", num_steps=8),
    "sit": Config(env_id="AdaGen/SiT-v0", num_steps=8),
    "from-published": FROM_PUBLISHED,
    "paper": Config(
        reward="adversarial",
        num_steps=16,
        smoothing=0.8,
        num_envs=4096,
        num_iterations=1000,
        hidden_dim=512,
        action_std=((0, 0.6), (500, 0.3)),
        learning_rate=((0, 1e-5),),
        anneal=False,
        table_rate=0.0,
        average_decay=0.0,
        num_epochs=5,
        num_minibatches=1,
        discriminator_steps=5,
        discriminator_batch=1024,
        discriminator_learning_rate=1e-4,
        discriminator_warmup=0,
        fresh_fakes=True,
    ),
}
"""Named configurations: the digits of each paradigm, all with the same values; the discriminator alone as the reward,
with the published schedule to start from; and the published hyper-parameters (AdaGen and AdaNAT's code). The last two
go with any `--env-id` that takes their `--num-steps`."""


class Trainer(Parts):
    """Everything of a run that changes while it trains, and nothing else.

    With several processes each generates its part of the images; networks and random order are the same in all.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        if config.num_envs < processes.num_ranks():
            raise ValueError(
                f"num_envs must be at least the {processes.num_ranks()} processes, got {config.num_envs}"
            )
        largest_part = -(-config.num_envs // processes.num_ranks())
        self.env = training_env(config, min(config.chunk_size, largest_part))
        self.tier = tier_of(config.backbone)  # which the environment's module may register
        self.num_params = len(schedule_actions(self.env).params)
        self.device = unwrapped(self.env).device
        self.generator = torch.Generator().manual_seed(config.seed % MAX_SEED)
        with torch.random.fork_rng():
            torch.manual_seed(config.seed % MAX_SEED)
            self.policy = make_network(
                self.env, config.hidden_dim, self.num_params, table=config.table_rate > 0
            )
            self.critic = make_network(self.env, config.hidden_dim, 1)
            self.reward = make_reward(config, self.env, self.generator)
        adversarial = self.reward.rewards.get("adversarial")
        self.adversary = (
            Adversary(adversarial, self.tier, config, self.generator)
            if isinstance(adversarial, AdversarialReward)
            else None
        )
        self.diversity = None
        if config.diversity_run is not None:
            first = load_networks(config.diversity_run, config.device)
            first.check_same_task(config)
            self.diversity = first.policy
            self.fidelity_reward = make_classifier_reward(config.backbone, str(self.device))
        table = [] if self.policy.table is None else [self.policy.table]
        others = [p for name, p in self.policy.named_parameters() if name != "table" and config.adaptive]
        self.parameters = [*table, *others, *self.critic.parameters()]
        groups = [{"params": self.parameters[len(table) :], "rate": 1.0}]
        if table:
            groups.append({"params": table, "rate": config.table_rate})
        self.optimiser = torch.optim.Adam(groups, lr=config.learning_rate_at(0))
        self.average = None
        if config.average_decay:
            self.average = AveragedModel(self.policy, multi_avg_fn=get_ema_multi_avg_fn(config.average_decay))
            self.average.update_parameters(self.policy)  # it starts there

    @property
    def parts(self) -> dict[str, Stateful | torch.Generator | None]:
        """What training changes, by name."""
        return {
            "policy": self.policy,
            "average": self.average,
            "critic": self.critic,
            "diversity": self.diversity,
            "reward": self.reward,
            "optimiser": self.optimiser,
            "discriminator_optimiser": None if self.adversary is None else self.adversary.optimiser,
            "generator": self.generator,
        }

    def act(self, observation: Observation) -> Tensor:
        """Returns the mean action (N, A) of the policy that is kept."""
        return self.kept(observation)

    @property
    def kept(self) -> PolicyBackbone:
        """The policy that is evaluated and kept: the moving average of the weights, where there is one."""
        kept = self.policy if self.average is None else self.average.module
        assert isinstance(kept, PolicyBackbone)
        return kept

    def step(self) -> dict[str, float]:
        """Runs one iteration: rollout, policy updates, discriminator updates."""
        config, started = self.config, time.perf_counter()
        if self.iteration == 0 and config.discriminator_warmup and self.adversary is not None:
            episode, _ = self.rollout(config.num_envs)
            for _ in range(config.discriminator_warmup):
                self.adversary.update(episode, config.num_envs)
        episode, seeds = self.rollout(config.num_envs)
        reward, parts = self._judge(episode)
        losses = self._update_policy(episode, seeds, reward)
        if self.adversary is not None:
            number = config.num_envs
            for _ in range(config.discriminator_steps):
                if config.fresh_fakes:
                    number = config.discriminator_batch
                    episode, _ = self.rollout(number)
                losses["discriminator_loss"] = self.adversary.update(episode, number)
        self.iteration += 1
        self.seconds += time.perf_counter() - started
        return {
            "iteration": self.iteration,
            "images": self.images,
            "reward": processes.mean(reward).item(),
            **{f"reward/{name}": processes.mean(value).item() for name, value in parts.items()},
            "action_std": config.action_std_at(self.iteration - 1),
            **losses,
        }

    def rollout(self, number: int) -> tuple[Episode, list[int]]:
        """Returns this process's part of a number of new images, and its seeds; no image is generated twice."""
        seeds = [training_seed(self.config.seed, self.images + i) for i in processes.own(number)]
        self.images += number
        return chunks.play(self.env, self._explore, seeds), seeds

    def _explore(self, observation: Observation) -> Decision:
        """Returns a random action, with what the update asks about the policy's own one."""
        inner, std = unwrapped(self.env), self.config.action_std_at(self.iteration)
        mean, streams = self.policy(observation), inner.rng
        noise = streams.at(inner.current_step).normal(self.num_params, purpose=Purpose.POLICY)
        own = mean + std * noise.float()
        extra = {
            "action": own,
            "log_prob": gaussian_log_prob(own, mean, std),
            "value": self.critic(observation)[:, 0],
        }
        if self.diversity is None:
            return Decision(own, extra)
        # One lambda an image, at the step after the last, where no noise is drawn.
        blend = streams.at(inner.sampler.horizon).uniform(purpose=Purpose.POLICY).float()
        blended = torch.lerp(self.diversity(observation), own, blend[:, None])
        return Decision(blended, extra | {"blend": blend})

    def _judge(self, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the reward (N,) of all images of a rollout together, and its components."""
        reward, parts = self.reward.judge(episode.images, episode.context, episode.group)
        if self.diversity is not None:
            fidelity = self.fidelity_reward(episode.images, episode.context)
            reward = torch.lerp(reward, fidelity, episode.extras["blend"][0])
        return reward, parts

    def _update_policy(self, episode: Episode, seeds: list[int], reward: Tensor) -> dict[str, float]:
        """PPO with the terminal reward as the return of every step: no discount, no GAE.

        A loss is a sum over the minibatch's decisions, part by part, divided by their number in all processes.
        """
        config, std = self.config, self.config.action_std_at(self.iteration)
        actions, old_log_prob = episode.extras["action"], episode.extras["log_prob"]
        returns = processes.standardise(reward)  # (N,)
        advantage = returns - episode.extras["value"]  # (T, N)
        losses: dict[str, float] = {}
        for group in self.optimiser.param_groups:
            group["lr"] = group["rate"] * config.learning_rate_at(self.iteration)
        for _ in range(config.num_epochs):
            # Decisions of one image share their return: mixed well, a minibatch holds more images.
            order = torch.randperm(len(actions) * config.num_envs, generator=self.generator)
            for rows in order.chunk(config.num_minibatches):
                mine = processes.own_decisions(rows, config.num_envs)
                total = torch.zeros(2, device=self.device)
                self.optimiser.zero_grad()
                for observation, t, i in chunks.decisions(self.env, episode, seeds, mine):
                    log_prob = gaussian_log_prob(actions[t, i], self.policy(observation), std)
                    policy_loss = ppo_policy_loss(log_prob, old_log_prob[t, i], advantage[t, i], config.clip)
                    value_loss = (self.critic(observation)[:, 0] - returns[i]).square()
                    loss = torch.stack([policy_loss.sum(), value_loss.sum()]) / len(rows)
                    (loss[0] + config.value_weight * loss[1]).backward()
                    total += loss.detach()
                processes.sum_gradients(self.parameters)
                of_policy, of_critic = sum_over_ranks(total).tolist()
                losses = {"policy_loss": of_policy, "value_loss": of_critic}
                check_finite(losses)
                self.optimiser.step()
        check_finite(dict(self.policy.named_parameters()))
        if self.average is not None:
            self.average.update_parameters(self.policy)
        return losses

    def needs(self) -> str:
        """Returns what training will take, in one line."""
        config, part = self.config, len(processes.own(self.config.num_envs))
        replays = 0 if part <= self.env.num_envs else config.num_epochs * config.num_minibatches
        generated, first = config.num_envs * (1 + replays), 0
        if self.adversary is not None:
            first = config.num_envs if config.discriminator_warmup else 0
            if config.fresh_fakes:
                generated += config.discriminator_steps * config.discriminator_batch
        return chunks.needs(self.env, part, config.num_iterations * generated + first)


def train(config: Config, out: Path, resume: bool = False) -> results.RunResult | None:
    """Trains a policy and writes the run directory.

    Args:
        config: the run.
        out: its directory; must not hold a run already, unless it is resumed.
        resume: continue from the directory's checkpoint, exactly as if it had never stopped.

    Returns:
        What was found; None in the other ones of several processes.
    """
    if processes.is_first() and not resume:
        runs.check_free(out)
    trainer = Trainer(config)
    if processes.is_first():
        say(trainer.needs())
    evaluator = Evaluator(config.env_id, config.env_kwargs, config.eval_images)
    evaluate = functools.partial(evaluator.repetition, seed=config.seed, intervals=True)
    with runs.open_run(config, out, trainer, resume) as run:
        handcrafted = run.evaluated_once(
            lambda: evaluate(static_actor(evaluator.env), what="the hand-crafted schedule")
        )
        start, others = _compared(config, run)
        learned = learn(
            trainer,
            run,
            lambda: evaluate(torch.no_grad()(trainer.act), what="the policy"),
            config.num_iterations,
            config.eval_interval,
            config.checkpoint_interval,
        )
        processes.stop()
        if handcrafted is None or learned is None:
            return None
        env_id = config.env_id.rpartition(":")[2]
        save_policy(trainer.kept, env_id, config.env_kwargs, out / POLICY, run.command)
        # The second policy of a fidelity run is paid by the classifier where it acts alone, as here.
        reward = trainer.reward if trainer.diversity is None else as_mixture(trainer.fidelity_reward)
        return results.finish(
            run,
            trainer.env,
            reward,
            handcrafted,
            learned,
            floor=evaluator.floor(),
            images=trainer.images,
            seconds=trainer.seconds,
            names=(start, results.NAMES[1]),
            others=others,
        )


def _compared(config: Config, run: runs.Run) -> tuple[str, dict[str, Evaluation]]:
    """Returns what the schedule is called that a run starts from, and the evaluation of the other hand-crafted one.

    There are two where the tier has one of its own beside the published one.
    """
    kwargs = {name: value for name, value in config.env_kwargs.items() if name != "schedule"}
    if not has_own_schedule(config.env_id, kwargs):
        return results.NAMES[0], {}
    names = {None: results.NAMES[0], PUBLISHED: PUBLISHED}
    other = PUBLISHED if config.schedule is None else None

    def evaluate() -> Evaluation:
        evaluator = Evaluator(config.env_id, kwargs | {"schedule": other}, config.eval_images)
        what = f"the {names[other]} schedule"
        return evaluator.repetition(static_actor(evaluator.env), config.seed, what)

    found = run.evaluated_once(evaluate, "other")
    return names[config.schedule], {} if found is None else {names[other]: found}


def load_networks(run_dir: Path | str, device: str = "cpu", trust_modules: bool = False) -> Networks[Config]:
    """Returns what a run has trained; see `agents.policy.load_networks`."""
    return policy.load_networks(Config, run_dir, device, trust_modules)


def load_policy(
    run_dir: Path | str, fidelity: float = 1.0, device: str = "cpu", trust_modules: bool = False
) -> PolicyActor:
    """Returns a run's policy as an actor.

    Args:
        run_dir: the run directory.
        fidelity: lambda in [0, 1] for a run that was trained on top of another (`diversity_run`): 0 is the other
            run's policy, the most diverse; 1 is this run's. Without such a run it must stay 1.
        device: where the policy and its environment run.
        trust_modules: see `agents.runs.read_config`.
    """
    return load_networks(run_dir, device, trust_modules).actor(fidelity)


if __name__ == "__main__":
    main(Config, PRESETS, train)
