"""The policy network that steers a frozen generator, and what a run leaves behind of it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import gymnasium as gym
import torch
from torch import Tensor

from agents import runs
from genenv import rewards
from genenv.models.policy import PolicyBackbone
from genenv.policies import PolicyActor
from genenv.protocols import Observation
from genenv.registration import defaults
from genenv.rewards.adversarial import AdversarialReward, discriminator
from genenv.rewards.mixture import Mixture
from genenv.tiers import tier_of
from genenv.vector_env import unwrapped

OBSERVE = ("features", "step", "context")
"""What the network sees."""


class PolicyConfig(runs.RunConfig, Protocol):
    """What the networks of a run follow from, beside what every run has.

    Attributes:
        backbone: weights of the generator.
        hidden_dim: width of policy and critic.
        device: where they run.
    """

    @property
    def backbone(self) -> str: ...  # noqa: D102
    @property
    def hidden_dim(self) -> int: ...  # noqa: D102
    @property
    def device(self) -> str: ...  # noqa: D102


C = TypeVar("C", bound=PolicyConfig)
D = TypeVar("D", bound=runs.RunConfig)


def training_env(config: runs.RunConfig, num_envs: int, **further: Any) -> gym.vector.VectorEnv:
    """Returns the environment that a run is trained on, which pays nothing: the agent judges whole rollouts.

    Args:
        config: of the run.
        num_envs: images at once.
        further: keyword arguments that are those of training alone.

    Raises:
        gymnasium.error.Error: if there is no such id; it says what is alike.
        ValueError: if the id is not one of this suite.
        TypeError: if the environment does not take what the configuration sets.
    """
    if config.env_id in gym.registry:  # of others Gymnasium says what is alike
        defaults(config.env_id)  # names an id that is not ours
    return gym.make_vec(
        config.env_id,
        num_envs=num_envs,
        reward="none",
        autoreset_mode="Disabled",
        **config.env_kwargs | further,
    )


def make_network(
    env: gym.vector.VectorEnv, hidden_dim: int, num_outputs: int, table: bool = False
) -> PolicyBackbone:
    """Returns an untrained policy or critic for an environment that observes features.

    Args:
        env: what it acts in.
        hidden_dim: its width.
        num_outputs: A, or 1 for a critic.
        table: whether it holds the part of the schedule that is the same for every image.

    Raises:
        ValueError: if the features are no square map.
    """
    inner = unwrapped(env)
    length, feature_dim = inner.sampler.fields["features"].shape
    side = round(length**0.5)
    if side**2 != length:
        raise ValueError(f"features must be a square map of places, got {length} of them")
    return PolicyBackbone(
        feature_dim,
        grid_size=side,
        num_outputs=num_outputs,
        hidden_dim=hidden_dim,
        head_dims=(hidden_dim // 4, 2 * hidden_dim, hidden_dim),
        num_classes=inner.sampler.num_contexts,
        num_steps=inner.sampler.horizon if table else 0,
    ).to(inner.device)


def make_reward(config: PolicyConfig, env: gym.vector.VectorEnv, generator: torch.Generator) -> Mixture:
    """Returns what a run's policy maximises; its "adversarial" is a new discriminator.

    Args:
        config: of the run.
        env: what it is trained on.
        generator: draws the discriminator's crops, where it has some.
    """

    def adversarial() -> AdversarialReward:
        tier_of(config.backbone).need("real_images")  # that the discriminator learns from
        network = discriminator(config.backbone, unwrapped(env).sampler.num_contexts, generator)
        return AdversarialReward(network.to(unwrapped(env).device))

    spec, device = runs.reward_spec(config.reward), str(unwrapped(env).device)
    reward = rewards.make_reward(spec, config.backbone, device, own={"adversarial": adversarial})
    if reward is None:
        raise ValueError(f"reward must name a reward to learn from, got {config.reward!r}")
    return reward


@dataclasses.dataclass(frozen=True)
class Networks(Generic[C]):
    """The frozen networks of a run: policy, critic, the policy it refines, and its reward, made when asked for."""

    run_dir: Path | str
    config: C
    policy: PolicyBackbone
    critic: PolicyBackbone
    diversity: PolicyBackbone | None
    _make_reward: Callable[[], Mixture]

    @functools.cached_property
    def reward(self) -> Mixture:
        """What the run maximised, with what it had learned and remembered."""
        return self._make_reward()

    def actor(self, fidelity: float = 1.0) -> PolicyActor:
        """Returns the policy as an actor.

        Args:
            fidelity: weight in [0, 1] of this run's policy against the one that it refines; 1 where there is none.
        """
        if not 0.0 <= fidelity <= 1.0:
            raise ValueError(f"fidelity must be in [0, 1], got {fidelity}")
        config, act, diversity = self.config, self.policy, self.diversity
        if diversity is None:
            if fidelity != 1.0:
                raise ValueError(
                    f"{self.run_dir} has one policy only; train a second with --diversity-run {self.run_dir}"
                )
            return PolicyActor(config.env_id, config.env_kwargs, act)

        def blended(observation: Observation) -> Tensor:
            return torch.lerp(diversity(observation), act(observation), fidelity)

        return PolicyActor(config.env_id, config.env_kwargs, blended)

    def check_same_task(self, config: C) -> None:
        """Raises a ValueError if a run cannot refine this one's policy: it must be of the same task and shape."""
        for name in ("env_id", "backbone", "num_steps", "smoothing", "hidden_dim"):
            of_this, found = getattr(self.config, name), getattr(config, name)
            if found != of_this:
                raise ValueError(f"{name} must be that of {self.run_dir}, {of_this!r}, got {found!r}")


def load_run(
    kind: type[D], run_dir: Path | str, device: str = "cpu", trust_modules: bool = False
) -> tuple[D, dict[str, Any], gym.vector.VectorEnv]:
    """Returns a run's configuration on a device, its checkpoint, and a single environment of what it was trained on.

    Args:
        kind: class of the run's configuration.
        run_dir: the run directory.
        device: where its networks and environment run.
        trust_modules: see `agents.runs.read_config`.
    """
    config = dataclasses.replace(runs.read_config(kind, run_dir, trust_modules), device=device)  # type: ignore[type-var]
    state = runs.load_checkpoint(Path(run_dir) / "checkpoint.pt")
    return config, state, gym.make_vec(config.env_id, num_envs=1, reward="none", **config.env_kwargs)


def load_networks(
    kind: type[C], run_dir: Path | str, device: str = "cpu", trust_modules: bool = False
) -> Networks[C]:
    """Returns the networks of a run directory in eval mode, without gradients.

    Args:
        kind: class of the run's configuration.
        run_dir: the run directory.
        device: where they run.
        trust_modules: see `agents.runs.read_config`.
    """
    config, state, env = load_run(kind, run_dir, device, trust_modules)

    def network(weights: dict[str, Tensor]) -> PolicyBackbone:
        model = make_network(env, config.hidden_dim, len(weights["linear3.bias"]), table="table" in weights)
        model.load_state_dict(weights)
        return model.eval().requires_grad_(False)

    def reward() -> Mixture:
        made = make_reward(config, env, torch.Generator())
        made.load_state_dict(state["reward"])
        return made

    diversity = None if state["diversity"] is None else network(state["diversity"])
    acting = averaged(state["average"]) or state["policy"]
    return Networks(run_dir, config, network(acting), network(state["critic"]), diversity, reward)


def averaged(state: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """Returns the weights in the state of an `AveragedModel`, under the network's own names; {} where there is none."""
    prefix = "module."
    return {n.removeprefix(prefix): v for n, v in (state or {}).items() if n.startswith(prefix)}
