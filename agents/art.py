"""ART: a continuous-time actor-critic learns the speed of the diffusion clock, and leaves a grid (arXiv 2601.18681).

python -m agents.art --preset normal --out runs/normal

Two ways to meet the budget psi(T) = T:

- "multiplier", as published: the critic is V = N_c + lambda t with the known V(T) = gamma T + lambda T, the policy's
  mean is N_a, and the multiplier gamma follows psi(T). `--preset paper` has the published settings.
- "projection": the last decision takes what is left, so that psi(T) = T on every trajectory. What is left, T - psi, and
  the pace at which it would be used up, (T - psi) / (T - t), then tell the scale of both networks:
  V = lambda t - (T - psi)^2 / (T - t) exp(N_c), and a mean of (T - psi) / (T - t) exp(N_a). A decision costs what
  its whole step does (`genenv.envs.clock`, "secant_cost"): with |Q| at its start alone, one long step from where |Q| is
  small would be all but free. lambda follows the cost, so that speeds vary by a third or so everywhere.

Either run ends in `schedule.json`: the trained policy's speeds, averaged over trajectories, as grids of noise levels.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar

import gymnasium as gym
import torch
from torch import Tensor, nn

from agents import processes, results, runs
from agents.command_line import main
from agents.console import say
from agents.loop import Parts, Stateful, check_finite, learn
from agents.losses import gaussian_log_prob, traced
from agents.policy import load_run, training_env
from genenv.envs.clock import SMALLEST_NORM, ClockSampler, as_clock
from genenv.evaluation import Evaluator
from genenv.export import SCHEDULE, read_schedule, schedule_text, write_schedule
from genenv.grids import named, resampled
from genenv.policies import PolicyActor
from genenv.protocols import Decision, Observation
from genenv.ranges import (
    ABOVE_ZERO,
    AT_LEAST_1,
    AT_LEAST_2,
    NOT_NEGATIVE,
    Range,
    Steps,
    check,
    value_at,
)
from genenv.rng import MAX_SEED, BatchRng, Purpose, training_seed
from genenv.rollout import Episode, run_episode, schedule_actions, schedule_actor, static_actor
from genenv.vector_env import unwrapped
from genenv.viz.grids import save_clock

MIXTURE = "ART/GaussianMixture-v0"
BUDGETS = ("projection", "multiplier")
TIME = ("clock", "psi")
"""What every network sees."""
CLOSED_FORM = "closed form"
HAND_MADE = ("uniform", "edm", "log_snr", "flow_time")
"""Grids that the learned clock is drawn beside."""
ENDS = 0.05
"""Share of the clock at either end that a comparison of speeds leaves out: a speed there has little effect."""
SLOWEST = 1e-3
"""Least speed, over the uniform clock's, with a projected budget and in a distilled schedule, whose levels fall."""
LARGEST_NOISE = 0.5
"""Most standard deviation of a speed over its mean, with a projected budget."""
MEASURED_AT_ONCE = 64
"""Trajectories at once, at the least, for what is measured after training: distillation, and the closed form's cost."""
SHARE_OF_BUDGET = 0.1
"""Least share of psi that a trajectory of a distilled schedule has used."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run is made of. The defaults are those of the preset "normal"."""

    agent: ClassVar[str] = "art"
    resumable: ClassVar[tuple[str, ...]] = runs.RESUMABLE
    reward_fields: ClassVar[tuple[str, ...]] = runs.REWARD_FIELDS

    env_id: str = MIXTURE
    """Registered environment with a clock."""
    backbone: str = "normal"
    """Mixture, or weights of the generator."""
    network: str | None = None
    """"sit" or "dit" of a backbone that has both."""
    sigma_max: float | None = None
    """First noise level T; by default the environment's own."""
    guidance_weight: Annotated[float, NOT_NEGATIVE] = 0.0
    """Weight of classifier-free guidance; 0 for none."""
    derivative: str = "jvp"
    """How |Q| is found: "jvp" or "finite-difference"."""
    num_steps: Annotated[int, AT_LEAST_2] = 50
    """Decisions K of a trajectory; the other grids are resampled from this one."""
    name: str | None = None
    """Of the run, in tables that compare runs; by default the agent's."""
    seed: Annotated[int, NOT_NEGATIVE] = 0
    """Decides the networks' first weights, the exploration, and which trajectories are made."""
    device: str = "cpu"
    """Where everything runs."""
    budget: str = "projection"
    """How psi(T) = T is met: "projection", or "multiplier" as published."""
    num_envs: Annotated[int, AT_LEAST_1] = 256
    """Trajectories for each iteration."""
    num_iterations: Annotated[int, AT_LEAST_1] = 300
    """Updates."""
    hidden_dim: Annotated[int, AT_LEAST_1] = 128
    """Width of policy and critic."""
    actor_sees_state: bool = False
    """Show the policy the latents' features (a mixture's point too) beside t and psi, as published; the critic sees
    them always. Without, the policy is the best of those that know the time alone."""
    temperature: Annotated[float, ABOVE_ZERO] = 0.1
    """Variance of the policy times |Q| (lambda); with "projection" in units of the present cost over T."""
    smallest_derivative: Annotated[float, ABOVE_ZERO] = 5e-3
    """|Q| is taken to be at least that in the policy's variance (epsilon)."""
    learning_rate: Annotated[Steps, ABOVE_ZERO] = ((0, 2e-3), (120, 1e-3), (200, 3e-4), (260, 5e-5))
    """Adam's, for policy and critic: (first iteration, rate) in order."""
    multiplier_rate: Annotated[float, ABOVE_ZERO] = 1e-4
    """Step of gamma, with "multiplier"."""
    critic_steps: Annotated[int, AT_LEAST_1] = 4
    """Critic updates for each policy update."""
    trace: Annotated[float, Range(0, 1, included=True)] = 1.0
    """Decay, from 0 to 1, of the traces that test the martingale: a decision is credited with its own increment and, so
    much less each time, with those that follow. 0 as published; at 1 the critic is no more than a baseline."""
    distilled_trajectories: Annotated[int, AT_LEAST_1] = 10_000
    """Trajectories of the trained policy that are averaged into the schedule."""
    largest_grid: Annotated[int, AT_LEAST_2] = 100
    """Steps of the finest grid in the schedule."""
    eval_interval: Annotated[int, AT_LEAST_1] = 150
    """Iterations between held-out evaluations."""
    eval_images: Annotated[int, AT_LEAST_1] = 2000
    """Images for each of them."""
    checkpoint_interval: Annotated[int, AT_LEAST_1] = 10
    """Iterations between checkpoints."""

    def __post_init__(self):
        check(self)
        if self.budget not in BUDGETS:
            raise ValueError(f"budget must be one of {', '.join(BUDGETS)}, got {self.budget!r}")

    @property
    def reward(self) -> str:
        """There is none but the running cost."""
        return "none"

    @property
    def env_kwargs(self) -> dict[str, Any]:
        """What `gymnasium.make_vec` needs so that a policy sees what this run trains on."""
        of_networks = {"network": self.network, "guidance_weight": self.guidance_weight}
        state = ["point", "features"] if self.env_id == MIXTURE else ["features"]
        return {
            "backbone": self.backbone,
            "num_steps": self.num_steps,
            "sigma_max": self.sigma_max,
            "derivative": self.derivative,
            "budget": "multiplier",  # the agent projects: its policy may take any speed on the way
            "observe": [*TIME, *state, "step"],
            "device": self.device,
        } | {name: value for name, value in of_networks.items() if value}


_DIGITS = Config(
    env_id="ART/Clock-v0",
    backbone="digits",
    network="sit",
    derivative="finite-difference",
    num_steps=18,
    num_envs=64,
    num_iterations=200,
    smallest_derivative=SMALLEST_NORM,
    learning_rate=((0, 1e-3), (80, 5e-4), (140, 2e-4), (180, 5e-5)),
    distilled_trajectories=512,
    largest_grid=50,
    eval_interval=100,
    eval_images=1000,
)
PRESETS = {
    "normal": Config(),
    "mixture-1d": Config(backbone="mixture-1d", smallest_derivative=1e-3),
    "pair-1d": Config(backbone="pair-1d", smallest_derivative=1e-3),
    "mixture-2d": Config(backbone="mixture-2d", smallest_derivative=1e-3, largest_grid=50),
    "digits-sit": _DIGITS,
    "digits-dit": dataclasses.replace(_DIGITS, network="dit"),
    "paper": Config(
        num_steps=100,
        budget="multiplier",
        num_envs=1,
        num_iterations=5000,
        actor_sees_state=True,
        smallest_derivative=1e-6,
        learning_rate=((0, 1e-4),),
        critic_steps=1,
        trace=0.0,
        eval_interval=2500,
        checkpoint_interval=250,
    ),
}
"""Named configurations: the mixtures and the digits, and the published settings on the paper's problem."""


class ActorCritic(nn.Module):
    """Policy and critic, with what they need to be turned into speeds and values.

    Args:
        config: of the run.
        sampler: the clock.
        state_size: numbers that tell the state, beside the time.

    Attributes:
        gamma: () float64, the multiplier.
        temperature: () float64, lambda.
        speeds: (K,) float64, the clock of the latest iteration, distilled; the uniform one before the first.
    """

    def __init__(self, config: Config, sampler: ClockSampler, state_size: int):
        super().__init__()
        self.config, self.sampler = config, sampler
        self.projected = config.budget == "projection"
        self.cost = "secant_cost" if self.projected else "cost"
        self.time_size = len(TIME) + self.projected
        size = self.time_size + state_size
        self.actor = _mlp(size if config.actor_sees_state else self.time_size, config.hidden_dim)
        self.critic = _mlp(size, config.hidden_dim)
        self.gamma: Tensor
        self.temperature: Tensor
        self.speeds: Tensor
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("gamma", torch.zeros((), dtype=torch.float64))
        self.register_buffer("temperature", torch.tensor(config.temperature, dtype=torch.float64))
        self.register_buffer("speeds", torch.ones(config.num_steps, dtype=torch.float64))
        self.register_buffer("shift", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        if self.projected:  # the uniform clock, and a value that `measure` sets
            for network in (self.actor, self.critic):
                nn.init.zeros_(network[-1].weight)  # type: ignore[arg-type]
                nn.init.zeros_(network[-1].bias)  # type: ignore[arg-type]

    def measure(self, episode: Episode) -> None:
        """Takes the scales of inputs, cost and exploration from an episode of the uniform clock."""
        if not self.projected:
            return  # as published
        seen = self._seen(episode.observations).flatten(0, 1)
        self.shift, self.scale = seen.mean(0), seen.std(0).clamp(min=1e-6)
        rate = episode.diagnostics[self.cost].sum(0).mean().double() / self.sampler.period
        check_finite({"the cost of the uniform clock": rate.item()})
        self.temperature = self.config.temperature * rate
        nn.init.constant_(self.critic[-1].bias, math.log(rate.item()))  # type: ignore[arg-type]

    def mean(self, observation: Observation) -> Tensor:
        """Returns the policy's mean speeds (...) for an observation (..., ·)."""
        inputs = self._inputs(observation)
        output = self.actor(inputs if self.config.actor_sees_state else inputs[..., : self.time_size])[..., 0]
        return (
            self._left(observation) / self._time_left(observation) * output.exp()
            if self.projected
            else output
        )

    def value(self, observation: Observation) -> Tensor:
        """Returns the critic's V - lambda t (...) for an observation (..., ·)."""
        output = self.critic(self._inputs(observation))[..., 0]
        if not self.projected:
            return output
        return -self._left(observation).square() / self._time_left(observation) * output.exp()

    @property
    def final_value(self) -> Tensor:
        """V - lambda t at the end of the clock, ()."""
        return torch.zeros_like(self.gamma) if self.projected else self.gamma * self.sampler.period

    def std(self, observation: Observation, mean: Tensor) -> Tensor:
        """Returns the policy's standard deviation (...): sqrt(lambda / (|Q| v epsilon)).

        With a projected budget epsilon is raised where the speed would vary by more than `LARGEST_NOISE` of its mean.
        """
        std = (self.temperature.float() / self.derivative_norm(observation)).sqrt()
        return std.minimum(LARGEST_NOISE * mean) if self.projected else std

    def derivative_norm(self, observation: Observation) -> Tensor:
        """Returns |Q| v epsilon (...)."""
        return observation["features"][..., 0, 0].exp().clamp(min=self.config.smallest_derivative)

    def executed(self, observation: Observation, speeds: Tensor) -> Tensor:
        """Returns the speeds (N,) that are taken for wanted ones.

        With a projected budget the clock never runs slower than `SLOWEST`, leaves as much for what follows, and the
        last decision takes what is left.
        """
        if not self.projected:
            return speeds
        left, step = self._left(observation), self.sampler.time_step
        most = (left - SLOWEST * (self._time_left(observation) - step)) / step
        return torch.where(
            observation["step"] == self.sampler.horizon - 1,
            left / step,
            speeds.clamp(min=SLOWEST).minimum(most),
        )

    def _left(self, observation: Observation) -> Tensor:
        return self.sampler.period - observation["psi"][..., 0]

    def _time_left(self, observation: Observation) -> Tensor:
        return self.sampler.period - observation["clock"][..., 0]

    def _inputs(self, observation: Observation) -> Tensor:
        return (self._seen(observation) - self.shift) / self.scale

    def _seen(self, observation: Observation) -> Tensor:
        """Returns the time (t, psi and, with a projected budget, log sigma), then the state, (..., size).

        As published the state is a mixture's point, or the features of latents; else it is both.
        """
        columns = [observation[name] for name in TIME]
        features = observation["features"][..., 0, :]
        if self.projected:
            columns.append(self._left(observation).clamp(min=self.sampler.flow.sigma_min).log()[..., None])
            columns += [self.derivative_norm(observation).log()[..., None], features[..., 1:]]
        elif "point" not in observation:
            columns.append(features)
        if "point" in observation:
            columns.append(observation["point"])
        return torch.cat(columns, dim=-1)


def _mlp(size: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(size, width), nn.Softplus(), nn.Linear(width, width), nn.Softplus(), nn.Linear(width, 1)
    )


class Trainer(Parts):
    """Everything of a run that changes while it trains, and nothing else."""

    def __init__(self, config: Config):
        super().__init__()
        if processes.num_ranks() > 1:
            raise ValueError("the clock is learned in one process; start it without torchrun")
        self.config = config
        self.env = training_env(config, config.num_envs)
        wide = config.num_envs >= MEASURED_AT_ONCE
        self.measured_env = self.env if wide else training_env(config, MEASURED_AT_ONCE)
        with torch.random.fork_rng():
            torch.manual_seed(config.seed % MAX_SEED)
            self.model = make_model(config, self.env)
        self.sampler = self.model.sampler
        self.optimisers = {
            name: torch.optim.Adam(network.parameters(), lr=value_at(config.learning_rate, 0))
            for name, network in (("actor", self.model.actor), ("critic", self.model.critic))
        }

    @property
    def parts(self) -> dict[str, Stateful | torch.Generator | None]:
        """What training changes, by name."""
        return {
            "model": self.model,
            "actor_optimiser": self.optimisers["actor"],
            "critic_optimiser": self.optimisers["critic"],
        }

    def step(self) -> dict[str, float]:
        """Runs one iteration of algorithm 1: trajectories, critic (22a), actor (22b) and multiplier (23)."""
        started, model, dt = time.perf_counter(), self.model, self.sampler.time_step
        if self.iteration == 0:
            model.measure(run_episode(self.env, static_actor(self.env), self._next_seeds()))
        episode = run_episode(self.env, self._explorer(self.env), self._next_seeds())
        seen, speeds = episode.observations, episode.extras["speed"]
        for optimiser in self.optimisers.values():
            optimiser.param_groups[0]["lr"] = value_at(self.config.learning_rate, self.iteration)
        # The policy is judged by the critic that it met; what all trajectories have in common is no merit of a speed.
        increments = self.increments(episode)
        credit = traced(increments, self.config.trace)
        if model.projected:
            credit = credit - credit.mean(1, keepdim=True)
        for _ in range(self.config.critic_steps):
            value = model.value(seen)
            squares = value.detach().square().mean(1, keepdim=True)
            # Relative at every time, but for where next to nothing is left.
            scale = squares.clamp(min=1e-6 * squares.max()) if model.projected else 1.0
            self._ascend("critic", value * traced(self.increments(episode), self.config.trace) / scale)
        random = slice(None, -1) if model.projected else slice(None)
        mean, std = model.mean(seen)[random], episode.extras["std"][random]
        log_prob = gaussian_log_prob(
            episode.extras["wanted"][random, :, None], mean[..., None], std[..., None]
        )
        cost = episode.diagnostics[model.cost].sum(0).mean()
        rate = cost.double() / self.sampler.period
        scale = 2 * dt * rate.item() if model.projected else 1.0
        self._ascend("actor", log_prob * credit[random] / scale)
        used = episode.diagnostics["psi"][-1].double()
        if model.projected:
            model.temperature = self.config.temperature * rate
        else:
            model.gamma += self.config.multiplier_rate * (used - self.sampler.period).mean()
        if bool(_used_enough(speeds).any()):  # else, as early on with one trajectory, the last ones stay
            model.speeds = distilled(speeds, self.sampler.period)
        self.iteration += 1
        self.seconds += time.perf_counter() - started
        return {
            "iteration": self.iteration,
            "images": self.images,
            "reward": -cost.item(),
            "cost": cost.item(),
            "psi": used.mean().item(),
            "psi_std": used.std(correction=0).item(),
            "gamma": self.multiplier(episode),
            "martingale_residual": martingale_residual(increments, episode),
            "speed_std": (speeds[random] - mean).std(correction=0).item(),
        }

    def increments(self, episode: Episode) -> Tensor:
        """Returns delta (K, N), the increments of what is a martingale where the critic is right (paper, algorithm 1).

        delta_k = V_{k+1} - V_k - gamma theta_k dt - |Q_k| theta_k^2 dt. A projected budget has no gamma; its lambda dt
        is |Q| dt times the policy's variance, the same but where that is bounded, and 0 at the last decision, which is
        not random.
        """
        model, dt = self.model, self.sampler.time_step
        with torch.no_grad():
            values = model.value(episode.observations)
        last = model.final_value.to(values).expand_as(values[:1])
        if model.projected:
            randomness = episode.diagnostics["derivative_norm"] * episode.extras["std"].square() * dt
            randomness[-1] = 0
        else:
            randomness = model.temperature.float() * dt
        price = model.gamma.float() * episode.extras["speed"] * dt
        return torch.cat([values, last]).diff(dim=0) + randomness - price - episode.diagnostics[model.cost]

    def multiplier(self, episode: Episode) -> float:
        """Returns gamma: the agent's own, or with a projected budget what the last decision implies, -2 |Q| theta.

        At the end of the clock V does not depend on the state, and the best speed is -gamma / (2 |Q|) (theorem 3.2).
        """
        if not self.model.projected:
            return self.model.gamma.item()
        last = episode.diagnostics["derivative_norm"][-1] * episode.extras["speed"][-1]
        return -2 * last.mean().item()

    def distil(self) -> Tensor:
        """Returns the speeds (K,) of the policy as it is, over `distilled_trajectories` new trajectories."""
        env = self.measured_env
        batches, explore = -(-self.config.distilled_trajectories // env.num_envs), self._explorer(env)
        episodes = (
            run_episode(env, explore, self._seeds(env, batch), keep_observations=False)
            for batch in range(batches)
        )
        return distilled(torch.cat([episode.extras["speed"] for episode in episodes], 1), self.sampler.period)

    def clocks(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the policy's mean speeds (K, N) on new trajectories, and grids {name: (K + 1,)} beside them."""
        sampler, steps, env = self.sampler, self.config.num_steps, self.measured_env
        seeds = self._seeds(env)

        def act(observation: Observation) -> Decision:
            return _decision(env, self.model.executed(observation, self.model.mean(observation)))

        with torch.no_grad():
            episode = run_episode(env, act, seeds, keep_observations=False)
            rng = BatchRng(torch.tensor(seeds, device=episode.context.device))
            found = sampler.closed_form(episode.context, rng)(steps)
        flow = sampler.flow
        made = {name: named(name, steps, flow.sigma_max, flow.sigma_min) for name in HAND_MADE}
        return episode.extras["speed"], {CLOSED_FORM: found} | made

    def cost_of(self, speeds: Tensor) -> float:
        """Returns the mean cost of speeds (K,) on new trajectories, the same for all."""
        env = self.measured_env
        wanted = speeds.float().to(unwrapped(env).device)

        def act(observation: Observation) -> Decision:
            return _decision(env, wanted[unwrapped(env).current_step].expand(env.num_envs))

        episode = run_episode(env, act, self._seeds(env), keep_observations=False)
        return episode.diagnostics[self.model.cost].sum(0).mean().item()

    def _seeds(self, env: gym.vector.VectorEnv, batch: int = 0) -> list[int]:
        """Returns the seeds of a batch of trajectories behind those that are trained on so far."""
        first = self.images + batch * env.num_envs
        return [training_seed(self.config.seed, first + i) for i in range(env.num_envs)]

    def _next_seeds(self) -> list[int]:
        seeds = self._seeds(self.env)
        self.images += len(seeds)
        return seeds

    def _explorer(self, env: gym.vector.VectorEnv) -> Callable[[Observation], Decision]:
        """Returns what gives random speeds as actions, and themselves."""
        inner = unwrapped(env)

        def act(observation: Observation) -> Decision:
            noise = inner.rng.at(inner.current_step).normal(purpose=Purpose.POLICY).float()
            mean = self.model.mean(observation)
            std = self.model.std(observation, mean)
            wanted = mean + std * noise
            decision = _decision(env, self.model.executed(observation, wanted))
            wanted = wanted if self.model.projected else decision.extra["speed"]
            return Decision(decision.action, {**decision.extra, "wanted": wanted, "std": std})

        return act

    def _ascend(self, name: str, objective: Tensor) -> None:
        """Takes one step of an optimiser up an objective (K, N): a sum over decisions, a mean over trajectories."""
        optimiser = self.optimisers[name]
        optimiser.zero_grad()
        (-objective.sum(0).mean()).backward()
        optimiser.step()


def make_model(config: Config, env: gym.vector.VectorEnv) -> ActorCritic:
    """Returns untrained networks for an environment with a clock.

    Raises:
        ValueError: if the environment has none.
    """
    inner = unwrapped(env)
    sampler = as_clock(inner.sampler, config.env_id)
    point = sampler.fields[sampler.name].shape[0] if "point" in inner.observe else 0
    shown = 3 if config.budget == "projection" or not point else 0
    return ActorCritic(config, sampler, point + shown).to(inner.device)


def _decision(env: gym.vector.VectorEnv, speeds: Tensor) -> Decision:
    """Returns speeds (N,) as actions (N, 1), no further than the environment takes, and the speeds that these are."""
    actions, step = schedule_actions(env), unwrapped(env).current_step
    limit = float(torch.as_tensor(actions.legal.high).max())
    action = actions.encode(speeds[:, None], step).clamp(-limit, limit)
    return Decision(action, {"speed": actions(action, step)["clock_speed"].float()})


def martingale_residual(increments: Tensor, episode: Episode) -> float:
    """Returns the mean size of the increments' means (K,) over the mean cost of a decision; 0 for an exact critic."""
    return (increments.mean(1).abs().mean() / episode.diagnostics["cost"].mean()).item()


def distilled(speeds: Tensor, period: float) -> Tensor:
    """Returns the mean (K,) float64 of speeds (K, N), each trajectory scaled so that sum_k theta_k dt = T.

    So does the paper (sec. 4). A speed is at least a thousandth of the mean one, so that noise levels fall.
    Trajectories that have used less than a tenth of the budget are left out.

    Raises:
        ValueError: if all are.
    """
    used, kept = speeds.double().mean(0), _used_enough(speeds)  # psi(T) / T
    if not bool(kept.any()):
        raise ValueError(
            f"psi(T) must have come to some of T = {period:g}, got {used.max().item() * period:.3g} at the most: "
            "train longer"
        )
    mean = (speeds[:, kept] / used[kept]).mean(1).clamp(min=SLOWEST)
    return mean / mean.mean()


def _used_enough(speeds: Tensor) -> Tensor:
    """Returns which trajectories (N,) of speeds (K, N) count in a distilled schedule."""
    return speeds.double().mean(0) > SHARE_OF_BUDGET


def deviation(speeds: Tensor, others: Tensor) -> float:
    """Returns by how much speeds (K,) differ from others at most, in parts of those, `ENDS` of the clock aside."""
    aside = min(math.ceil(ENDS * len(speeds)), (len(speeds) - 1) // 2)
    return (speeds.cpu() / others - 1)[aside : len(speeds) - aside].abs().max().item()


def grid(speeds: Tensor, period: float) -> Tensor:
    """Returns the noise levels (K + 1,) of speeds (K,) whose mean is 1: from T down to exactly 0."""
    levels = period * (1 - torch.cat([torch.zeros(1, dtype=torch.float64), speeds.cumsum(0)]) / len(speeds))
    levels[-1] = 0
    return levels


def load_schedule(run_dir: Path | str) -> dict[str, Any]:
    """Returns the distilled schedule of a run directory.

    Returns:
        {"sigma_max": T, "sigmas": {"K": [K + 1 noise levels, falling, the last one 0]}} for K = 2, 3 ...

    Raises:
        FileNotFoundError: if the run is not finished.
        ValueError: if the file is not such a schedule.
    """
    return json.loads(schedule_text(read_schedule(Path(run_dir))))


def load_policy(run_dir: Path | str, device: str = "cpu", trust_modules: bool = False) -> PolicyActor:
    """Returns a run's policy as an actor that takes its mean speeds, for the environment it was trained on.

    Args:
        run_dir: the run directory.
        device: where the policy and its environment run.
        trust_modules: see `agents.runs.read_config`.
    """
    config, state, env = load_run(Config, run_dir, device, trust_modules)
    model = make_model(config, env)
    model.load_state_dict(state["model"])
    actions = schedule_actions(env)

    def act(observation: Observation) -> Tensor:
        speeds = model.executed(observation, model.mean(observation))
        return actions.encode(speeds[:, None], 0)  # the uniform clock is the same at every decision

    return PolicyActor(config.env_id, config.env_kwargs, act)


def train(config: Config, out: Path, resume: bool = False) -> results.RunResult | None:
    """Learns a clock and writes the run directory, with `schedule.json` at its end.

    Args:
        config: the run.
        out: its directory; must not hold a run already, unless it is resumed.
        resume: continue from the directory's checkpoint, exactly as if it had never stopped.
    """
    if not resume:
        runs.check_free(out)
    trainer = Trainer(config)
    evaluator = Evaluator(config.env_id, _of_a_grid(config), config.eval_images)
    evaluate = functools.partial(evaluator.repetition, seed=config.seed, intervals=True)
    uniform = torch.ones(config.num_steps, 1, dtype=torch.float64)
    with runs.open_run(config, out, trainer, resume) as run:
        handcrafted = run.evaluated_once(lambda: evaluate(schedule_actor(uniform), what="the uniform clock"))
        learn(
            trainer,
            run,
            lambda: evaluate(schedule_actor(trainer.model.speeds[:, None]), what="the policy"),
            config.num_iterations,
            config.eval_interval,
            config.checkpoint_interval,
        )
        speeds = trainer.distil()
        levels = grid(speeds, trainer.sampler.period)
        write_schedule(out / SCHEDULE, {k: resampled(levels, k) for k in range(2, config.largest_grid + 1)})
        beside = {CLOSED_FORM: beside_closed_form(trainer, speeds, out / "clock.png")}
        assert handcrafted is not None
        return results.finish(
            run,
            evaluator.env,
            trainer.model.cost,
            handcrafted,
            evaluate(schedule_actor(speeds[:, None]), what="the distilled clock"),
            floor=evaluator.floor(),
            images=trainer.images,
            seconds=trainer.seconds,
            beside=beside,
        )


def beside_closed_form(trainer: Trainer, speeds: Tensor, picture: Path) -> dict[str, float]:
    """Draws the learned clock beside other grids' and returns how near distilled speeds (K,) are to the closed form.

    Returns:
        "cost_ratio", the cost of the speeds over that of the closed form, on the same trajectories; "speed_error", the
        greatest difference of the speeds in parts of the closed form's, `ENDS` of the clock aside.
    """
    period = trainer.sampler.period
    drawn, grids = trainer.clocks()
    save_clock(picture, drawn, grids, period)
    best = -grids[CLOSED_FORM].diff() * len(speeds) / period
    ratio, error = trainer.cost_of(speeds) / trainer.cost_of(best), deviation(speeds, best)
    say(
        f"the learned clock costs {ratio:.4f} times the closed form; speeds differ by up to {error:.1%}, ends aside"
    )
    return {"cost_ratio": ratio, "speed_error": error}


def _of_a_grid(config: Config) -> dict[str, Any]:
    """Returns the keyword arguments of an environment that plays speeds of a grid."""
    return config.env_kwargs | {"budget": "projection", "action_mode": "physical", "observe": ["step"]}


if __name__ == "__main__":
    main(Config, PRESETS, train)
