"""Whole episodes: generate images with a policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from genenv.protocols import Actor, Observation
from genenv.schedules import ScheduleParam
from genenv.vector_env import GenVectorEnv

PER_DECISION = ("observations", "actions", "schedule")
"""Fields of an episode whose first axis is the decision; the images' axis is the second there."""


@dataclasses.dataclass(frozen=True)
class Episode:
    """One episode of N images.

    Attributes:
        observations: {name: (T, N, ...)}, what the policy saw before each decision.
        actions: (T, N, A).
        schedule: {name: (T, N)}, the parameters in physical units.
        rewards: (N,), paid at the end.
        images: (N, C, H, W) in [0, 1].
        context: (N,).
        diagnostics: {name: (N,)} of the last step, with each reward component.
    """

    observations: Observation
    actions: Tensor
    schedule: dict[str, Tensor]
    rewards: Tensor
    images: Tensor
    context: Tensor
    diagnostics: dict[str, Tensor]

    def first(self, number: int) -> Episode:
        """Returns the episode of the first images alone."""

        def cut(name: str) -> Any:
            value = getattr(self, name)
            rows = (slice(None), slice(number)) if name in PER_DECISION else slice(number)
            return {k: v[rows] for k, v in value.items()} if isinstance(value, dict) else value[rows]

        return Episode(**{f.name: cut(f.name) for f in dataclasses.fields(self)})

    @staticmethod
    def concatenate(episodes: list[Episode]) -> Episode:
        """Returns episodes of the same environment as one of all their images."""
        first = episodes[0]

        def join(name: str) -> Any:
            axis = int(name in PER_DECISION)
            values = [getattr(e, name) for e in episodes]
            if isinstance(values[0], dict):
                return {k: torch.cat([v[k] for v in values], axis) for k in values[0]}
            return torch.cat(values, axis)

        return Episode(**{f.name: join(f.name) for f in dataclasses.fields(first)})


def static_actor(env: VectorEnv) -> Actor:
    """Returns the actor of the hand-crafted schedule: zero, always (residual actions only)."""
    shape = (env.num_envs, len(unwrapped(env).sampler.params))
    zeros = torch.zeros(shape, device=unwrapped(env).device)
    return lambda observation: zeros


def handcrafted(params: Sequence[ScheduleParam]) -> Tensor:
    """Returns the hand-crafted schedule (T, A) float64 in physical units."""
    return torch.stack([param.static.double() for param in params], dim=1)


def schedule_actor(table: Tensor) -> Actor:
    """Returns the actor that plays a schedule, in an environment with `action_mode="physical"` that observes the step.

    Args:
        table: (T, A) float64 in physical units, or (N, T, A), one for each image.
    """

    def act(observation: Observation) -> Tensor:
        step = observation["step"]
        rows = table.to(step.device).expand(len(step), *table.shape[-2:])
        return rows[torch.arange(len(step), device=step.device), step]

    return act


@torch.no_grad()
def run_episode(
    env: VectorEnv, actor: Actor, seed: int | Sequence[int] | None = None, keep_observations: bool = True
) -> Episode:
    """Plays one episode from reset to end in every environment.

    Args:
        env: a torch GenVectorEnv or wrappers around one, in any autoreset mode.
        actor: maps observations to actions (N, A).
        seed: of `env.reset`; without one the next episode of the current seeds is played.
        keep_observations: leave out where memory matters.
    """
    observation, _ = env.reset(seed=seed)  # type: ignore[arg-type]
    observations, actions, infos = [], [], []
    reward = torch.zeros(env.num_envs)
    for _ in range(unwrapped(env).sampler.horizon):
        if keep_observations:
            observations.append(observation)
        actions.append(actor(observation))
        observation, reward, _, _, info = env.step(actions[-1])
        infos.append(info.get("final_info", info))
    final = infos[-1]
    names = [name for name in final if name.startswith("schedule/")]
    diagnostics = {
        name: value
        for name, value in final.items()
        if not name.startswith(("_", "schedule/")) and name not in ("image", "context")
    }
    return Episode(
        observations={k: torch.stack([o[k] for o in observations]) for k in (observations or [{}])[0]},
        actions=torch.stack(actions),
        schedule={n.removeprefix("schedule/"): torch.stack([info[n] for info in infos]) for n in names},
        rewards=reward,
        images=final["image"],
        context=final["context"],
        diagnostics=diagnostics,
    )


def generate(env: VectorEnv, actor: Actor, num_images: int, seed: int = 0) -> Episode:
    """Returns `num_images` images with the seeds seed ... seed + num_images - 1, whatever the batch size.

    The last batch may be larger than what is left of it; the surplus is cut off.
    """
    if num_images < 1:
        raise ValueError(f"num_images must be at least 1, got {num_images}")
    episodes = [
        run_episode(env, actor, seed + start, keep_observations=False)
        for start in range(0, num_images, env.num_envs)
    ]
    whole = Episode.concatenate(episodes)
    return Episode(
        observations=whole.observations,
        actions=whole.actions[:, :num_images],
        schedule={k: v[:, :num_images] for k, v in whole.schedule.items()},
        rewards=whole.rewards[:num_images],
        images=whole.images[:num_images],
        context=whole.context[:num_images],
        diagnostics={k: v[:num_images] for k, v in whole.diagnostics.items()},
    )


def unwrapped(env: VectorEnv) -> GenVectorEnv:
    """Returns the GenVectorEnv inside wrappers."""
    inner = env.unwrapped
    assert isinstance(inner, GenVectorEnv), f"expected a GenVectorEnv inside, got {type(inner).__name__}"
    return inner
