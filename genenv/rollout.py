"""Whole episodes: generate images with a policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from genenv.actions import ScheduleActions
from genenv.protocols import Actor, Decision, Observation
from genenv.rng import Stream
from genenv.schedules import handcrafted
from genenv.vector_env import unwrapped
from genenv.wrappers.vector.ema_action_smoothing import smoothing_of

COMPONENT, SCHEDULE = "reward/", "schedule/"
"""How the names of a reward's components, and of schedule parameters, begin in `info`."""
FINAL = ("image", "context", "group")
"""What `info` holds of finished images alone."""
PER_DECISION = ("observations", "actions", "rewards", "diagnostics", "extras")
"""Fields of an episode whose first axis is the decision; the images' axis is the second there."""


@dataclasses.dataclass(frozen=True)
class Episode:
    """One episode of N images.

    Attributes:
        observations: {name: (T, N, ...)}, what the policy saw before each decision; empty where not kept.
        actions: (T, N, ...).
        rewards: (T, N), paid after each decision.
        diagnostics: {name: (T, N)}, what the environment says of each decision, parameters as "schedule/<name>".
        extras: {name: (T, N, ...)}, what the actor handed out beside its actions.
        components: {name: (N,)}, each component of the terminal reward.
        images: (N, C, H, W) in [0, 1].
        context: (N,).
        group: (N,), which images a group-relative reward compares.
    """

    observations: Observation
    actions: Tensor
    rewards: Tensor
    diagnostics: dict[str, Tensor]
    extras: dict[str, Tensor]
    components: dict[str, Tensor]
    images: Tensor
    context: Tensor
    group: Tensor

    @property
    def returns(self) -> Tensor:
        """The sum of each image's rewards, (N,)."""
        return self.rewards.sum(0)

    @property
    def schedule(self) -> dict[str, Tensor]:
        """The parameters in physical units, {name: (T, N)}; empty where the actions are no schedule."""
        named = {name: value for name, value in self.diagnostics.items() if name.startswith(SCHEDULE)}
        return {name.removeprefix(SCHEDULE): value for name, value in named.items()}

    def first(self, number: int) -> Episode:
        """Returns the episode of the first images alone."""

        def cut(name: str) -> Any:
            value = getattr(self, name)
            rows = (slice(None), slice(number)) if name in PER_DECISION else slice(number)
            return {k: v[rows] for k, v in value.items()} if isinstance(value, dict) else value[rows]

        return Episode(**{f.name: cut(f.name) for f in dataclasses.fields(self)})

    @staticmethod
    def concatenate(episodes: Sequence[Episode]) -> Episode:
        """Returns episodes of the same environment as one of all their images."""
        first = episodes[0]

        def join(name: str) -> Any:
            axis = int(name in PER_DECISION)
            values = [getattr(e, name) for e in episodes]
            if isinstance(values[0], dict):
                return {k: torch.cat([v[k] for v in values], axis) for k in values[0]}
            return torch.cat(values, axis)

        return Episode(**{f.name: join(f.name) for f in dataclasses.fields(first)})


def schedule_actions(env: VectorEnv) -> ScheduleActions:
    """Returns how the actions of an environment become schedule parameters.

    Raises:
        ValueError: if its actions are no schedule.
    """
    actions = unwrapped(env).actions
    if not isinstance(actions, ScheduleActions):
        raise ValueError(
            f"the actions of {env} are no schedule but {type(actions).__name__}: they have no parameters"
        )
    return actions


def static_actor(env: VectorEnv) -> Actor:
    """Returns the actor of the hand-crafted schedule; residual actions need no observation, physical ones "step".

    Raises:
        ValueError: if the actions of the environment are no schedule, are physical and smoothed, or it does not
            observe what they need.
    """
    actions, number = schedule_actions(env), env.num_envs
    if actions.mode == "residual":
        zeros = actions.handcrafted(number, 0)
        return lambda observation: zeros
    check_not_smoothed(env)
    _need_step(unwrapped(env).observe)
    return schedule_actor(handcrafted(actions.params))


def token_draws(env: VectorEnv) -> Callable[[Tensor], Tensor]:
    """Returns what draws tokens (N,) from logits (N, V), with the images' own random numbers of the decision."""
    inner = unwrapped(env)
    return lambda logits: inner.actions.default({"logits": logits}, inner.rng.at(inner.current_step))


def generator_policy(env: VectorEnv) -> Actor:
    """Returns the actor that plays the frozen generator where actions are tokens or latents: it draws as that does.

    Raises:
        ValueError: if what it draws from is not observed, or the actions are a schedule.
    """
    inner = unwrapped(env)
    if isinstance(inner.actions, ScheduleActions):
        raise ValueError(f"the actions of {env} are a schedule, of which the generator draws nothing")
    inner.check_default()
    return lambda observation: inner.actions.default(observation, inner.rng.at(inner.current_step))


def default_actor(env: VectorEnv) -> Actor:
    """Returns what a policy is compared with: the hand-crafted schedule, or, of other actions, the frozen generator.

    Raises:
        ValueError: if the environment does not observe what it takes.
    """
    scheduled = isinstance(unwrapped(env).actions, ScheduleActions)
    return static_actor(env) if scheduled else generator_policy(env)


def check_not_smoothed(env: VectorEnv) -> None:
    """Raises a ValueError if the averages of the hand-crafted schedule's own actions would take its place.

    Those of residual actions, which are all 0, are 0.
    """
    smoothing = smoothing_of(env)
    if smoothing and schedule_actions(env).mode == "physical":
        raise ValueError(
            "smoothing must be 0 where the hand-crafted schedule is played by physical actions, got "
            f"{smoothing[0].decay}; or use action_mode='residual'"
        )


def schedule_actor(table: Tensor) -> Actor:
    """Returns the actor that plays a schedule, in an environment with `action_mode="physical"` that observes the step.

    Args:
        table: (T, A) float64 in physical units, or (N, T, A), one for each image.
    """

    def act(observation: Observation) -> Tensor:
        _need_step(observation)
        step = observation["step"]
        rows = table.to(step.device).expand(len(step), *table.shape[-2:])
        return rows[torch.arange(len(step), device=step.device), step]

    return act


def _need_step(observed: Iterable[str]) -> None:
    """Raises a ValueError unless the step is among the entries of an observation."""
    names = list(observed)
    if "step" not in names:
        raise ValueError(
            f"a schedule in physical units needs 'step' in the environment's observe, got observe={names}"
        )


@torch.no_grad()
def run_episode(
    env: VectorEnv,
    actor: Actor,
    seed: int | Sequence[int] | None = None,
    stream: Stream = Stream.TRAINING,
    keep_observations: bool = True,
) -> Episode:
    """Plays one episode from reset to end in every environment.

    Args:
        env: a torch GenVectorEnv or wrappers around one, in any autoreset mode.
        actor: maps observations to actions (N, ...), or to a `Decision` with extras to be kept.
        seed: of `env.reset`; without one the next episode of the current seeds is played. With "SameStep" that is not
            the one which the end of the last episode has begun, but the one after it: a reset leaves out what it finds.
        stream: what the images are made for; only with a seed.
        keep_observations: leave out where memory matters.
    """
    observation = _reset(env, seed, stream)
    observations, decisions, rewards, infos = [], [], [], []
    for _ in range(unwrapped(env).sampler.horizon):
        if keep_observations:
            observations.append(observation)
        chosen = actor(observation)
        decisions.append(chosen if isinstance(chosen, Decision) else Decision(chosen))
        observation, reward, _, _, info = env.step(decisions[-1].action)
        rewards.append(reward)
        infos.append(info.get("final_info", info))
    final = infos[-1]
    names = [
        name
        for name, value in infos[0].items()
        if isinstance(value, Tensor) and not name.startswith(("_", COMPONENT)) and name not in FINAL
    ]
    components = {n.removeprefix(COMPONENT): final[n] for n in final if n.startswith(COMPONENT)}
    return Episode(
        observations=_stack(observations),
        actions=torch.stack([decision.action for decision in decisions]),
        rewards=torch.stack(rewards),
        diagnostics=_stack([{name: info[name] for name in names} for info in infos]),
        extras=_stack([decision.extra for decision in decisions]),
        components=components,
        images=final["image"],
        context=final["context"],
        group=final["group"],
    )


def _stack(steps: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([step[name] for step in steps]) for name in (steps[0] if steps else {})}


def _reset(env: VectorEnv, seed: int | Sequence[int] | None, stream: Stream) -> Observation:
    options = None if seed is None else {"stream": stream}
    return env.reset(seed=seed, options=options)[0]  # type: ignore[arg-type]


@torch.no_grad()
def replay(
    env: VectorEnv, actions: Tensor, seed: int | Sequence[int], stream: Stream = Stream.TRAINING
) -> Iterator[Observation]:
    """Yields what a policy saw before each decision of an episode whose actions are known.

    Observations with features are large; here only one decision's are held at a time.

    Args:
        env: as of `run_episode`.
        actions: (T, N, ...), those that were played.
        seed: of the episode.
        stream: of the episode.
    """
    observation = _reset(env, seed, stream)
    for t, action in enumerate(actions):
        yield observation
        if t + 1 < len(actions):
            observation = env.step(action)[0]


def generate(
    env: VectorEnv, actor: Actor, num_images: int, seed: int = 0, stream: Stream = Stream.TRAINING
) -> Episode:
    """Returns `num_images` images with the seeds seed ... seed + num_images - 1, whatever the batch size.

    The last batch may be larger than what is left of it; the surplus is cut off. Observations are not kept.
    """
    if num_images < 1:
        raise ValueError(f"num_images must be at least 1, got {num_images}")
    episodes = [
        run_episode(env, actor, seed + start, stream, keep_observations=False)
        for start in range(0, num_images, env.num_envs)
    ]
    return Episode.concatenate(episodes).first(num_images)
