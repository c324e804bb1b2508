"""Checks that an id keeps what every environment of the suite promises (`genenv check`)."""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils.env_checker import check_env
from torch import Tensor

from genenv.actions import ScheduleActions
from genenv.protocols import Actor
from genenv.rewards.mixture import TooFewImagesError
from genenv.rollout import Episode, run_episode, schedule_actions, static_actor
from genenv.vector_env import unwrapped
from genenv.wrappers.vector.ema_action_smoothing import smoothing_of

SEED = 21
NUM_ENVS = 4
IMAGE_TOLERANCE = 0.5 / 255
"""Largest difference of one image in batches of different sizes: half a level of a picture of 8 bits.

Matrix products round by the size of the batch, and guidance enlarges what they round; with a network in float64 no
difference is left. Whether an image depends on its neighbours is asked in batches of one size, where none is allowed
as long as as much is computed for it.
"""

Make = Callable[..., Any]
"""Makes the vector environment under test; its arguments are those of `gymnasium.make_vec`."""


class CheckFailed(Exception):
    """An environment breaks a promise."""


def check(env_id: str, **env_kwargs: Any) -> Iterator[tuple[str, str | None]]:
    """Yields each promise with None where it is kept, or with what was found instead, in one line.

    Args:
        env_id: a registered id.
        env_kwargs: keyword arguments of the environment; each promise chooses its own output and autoreset mode.
    """
    given: dict[str, Any] = {"reward": "none"} | env_kwargs
    env = gym.make_vec(env_id, num_envs=NUM_ENVS, **given)  # raises what the user has mistaken
    env_kwargs = {k: v for k, v in env_kwargs.items() if k not in ("output", "autoreset_mode")}

    def make(num_envs: int = NUM_ENVS, **kwargs: Any) -> Any:
        merged: dict[str, Any] = {"reward": "none"} | env_kwargs | kwargs
        return gym.make_vec(env_id, num_envs=num_envs, **merged)

    actions = unwrapped(env).actions
    refused = "finite" if actions.field.dtype.is_floating_point else "legal"
    promises: dict[str, Callable[[], None]] = {
        "Gymnasium's check_env passes without a warning": lambda: _gymnasium(env_id, env_kwargs),
        "shapes, types and bounds are those of the spaces": lambda: _spaces(make),
        "an image depends on its seed and actions, not on its batch": lambda: _batch(make),
        "every autoreset mode hands out the same finished images": lambda: _autoreset(make),
        f"an action that is not {refused} is refused": lambda: _not_legal(make),
    }
    averaged = bool(smoothing_of(env))  # then no physical actions play a schedule to the last bit
    if isinstance(actions, ScheduleActions) and not (averaged and actions.mode == "physical"):
        which = "a zero action is" if actions.mode == "residual" else "there is an action for"
        promises[f"{which} the hand-crafted schedule"] = lambda: _hand_crafted(make)
    for name, promise in promises.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                promise()
        except CheckFailed as broken:
            yield name, str(broken)
        except (
            Exception
        ) as error:  # whatever a new environment does: the other promises are tried all the same
            yield name, " ".join(f"{type(error).__name__}: {error}".split())
        else:
            yield name, None


def _require(kept: bool, otherwise: str) -> None:
    if not kept:
        raise CheckFailed(otherwise)


def _gymnasium(env_id: str, env_kwargs: dict[str, Any]) -> None:
    drawable = importlib.util.find_spec("matplotlib") is not None  # what render_mode="human" needs
    try:
        env = gym.make(env_id, **env_kwargs)
    except TooFewImagesError:
        env_kwargs = env_kwargs | {"reward": "none"}
        env = gym.make(env_id, **env_kwargs)
    with warnings.catch_warnings():
        if env_kwargs.get("action_mode") == "physical":  # physical units are what was asked for
            warnings.filterwarnings("ignore", message=".*we recommend using a symmetric and normalized space")
        check_env(env.unwrapped, skip_render_check=not drawable)


def _spaces(make: Make) -> None:
    env = make(output="numpy")
    observation, _ = env.reset(seed=SEED)
    _require(observation in env.observation_space, "the first observation is outside its space")
    steps = [env.step(action.cpu().numpy()) for action in _random_actions(env)]
    for t, (observation, reward, terminated, truncated, _) in enumerate(steps):
        _require(observation in env.observation_space, f"the observation after step {t} is outside its space")
        for name, array, dtype in (
            ("reward", reward, np.float32),
            ("terminated", terminated, np.bool_),
            ("truncated", truncated, np.bool_),
        ):
            _require(
                array.shape == (env.num_envs,) and array.dtype == dtype,
                f"{name} must be ({env.num_envs},) {np.dtype(dtype)}, got {array.shape} {array.dtype}",
            )
        _require(not truncated.any(), f"step {t} is truncated")
        _require(bool((terminated == (t == len(steps) - 1)).all()), f"step {t}: terminated is {terminated}")
    info = steps[-1][-1]
    image, shape = info["final_info"]["image"], env.unwrapped.sampler.image_shape
    _require(
        image.shape == (env.num_envs, *shape) and image.dtype == np.float32,
        f"the images must be (N, {', '.join(map(str, shape))}) float32, got {image.shape} {image.dtype}",
    )
    _require(bool((image >= 0).all() and (image <= 1).all()), "an image leaves [0, 1] or is not a number")


def _batch(make: Make) -> None:
    env_of = functools.cache(lambda num_envs: make(num_envs, reward="none"))
    env, number = env_of(NUM_ENVS), NUM_ENVS
    actions, others = _random_actions(env), _random_actions(env, SEED + 1)
    together = run_episode(env, _replay(actions), SEED)
    for i in range(number):  # the same arithmetic for image i, beside other images
        seeds = [SEED + j + number * (j != i) for j in range(number)]
        mixed = others.clone()
        mixed[:, i] = actions[:, i]
        apart = run_episode(env, _replay(mixed), seeds)
        # Where guidance is computed because a neighbour wants it, the network's products have other sizes.
        same_work = _work(together, i) == _work(apart, i)
        _require_same(together, i, apart, i, 0.0 if same_work else IMAGE_TOLERANCE, "neighbours")
    half, order = number // 2, list(reversed(range(number)))
    batches = [[i] for i in range(number)] + [order[:half], order[half:], order]
    for batch in batches:
        episode = run_episode(env_of(len(batch)), _replay(actions[:, batch]), [SEED + i for i in batch])
        for place, i in enumerate(batch):
            _require_same(together, i, episode, place, IMAGE_TOLERANCE, "batch")


def _work(episode: Episode, i: int) -> list[float]:
    """Returns the network evaluations of an image after each decision; [] where they are not counted."""
    counted = episode.diagnostics.get("nfe")
    return [] if counted is None else counted[:, i].tolist()


def _require_same(one: Episode, i: int, other: Episode, place: int, tolerance: float, changed: str) -> None:
    """Requires that image i of an episode is the one at a place of another."""
    for name in ("context", "group"):
        same = bool(getattr(one, name)[i] == getattr(other, name)[place])
        _require(same, f"{name} of image {i} changes with its {changed}")
    difference = (one.images[i] - other.images[place]).abs().max().item()
    _require(difference <= tolerance, f"image {i} changes with its {changed}, by {difference:.1e}")


def _autoreset(make: Make) -> None:
    disabled = make(autoreset_mode="Disabled")
    actions = _random_actions(disabled)
    expected = [run_episode(disabled, _replay(actions), seed).images for seed in (SEED, None)]
    for mode, pause in (("SameStep", 0), ("NextStep", 1)):
        env = make(autoreset_mode=mode)
        env.reset(seed=SEED)
        found = []
        for _ in range(len(expected)):
            *_, (_, _, terminated, _, info) = [env.step(action) for action in actions]
            _require(bool(terminated.all()), f"{mode}: an episode does not end after {len(actions)} steps")
            found.append(info.get("final_info", info)["image"])
            for _ in range(pause):
                _, reward, terminated, _, _ = env.step(actions[0])
                _require(not (reward.any() or terminated.any()), f"{mode}: the reset step is not a plain one")
        for episode, (image, other) in enumerate(zip(found, expected, strict=True)):
            _require(
                torch.equal(image, other), f"{mode}: the images of episode {episode} differ from Disabled"
            )


def _hand_crafted(make: Make) -> None:
    env = make(observe=["step"])  # all that its actor needs
    schedule = run_episode(env, static_actor(env), SEED).schedule
    for param in schedule_actions(env).params:
        wanted = param.static.float()[:, None].to(schedule[param.name].device)
        _require(
            bool((schedule[param.name] == wanted).all()), f"{param.name} differs from its static schedule"
        )


def _not_legal(make: Make) -> None:
    env = make()
    field = unwrapped(env).actions.field
    continuous = field.dtype.is_floating_point
    for bad in (
        (float("nan"), float("inf")) if continuous else (-1, torch.as_tensor(field.high).max().item() + 1)
    ):
        env.reset(seed=SEED)
        action = _random_actions(env)[0]
        action[-1].view(-1)[0] = bad
        try:
            env.step(action)
        except ValueError:
            continue
        raise CheckFailed(f"an action of {bad} is accepted")


def _random_actions(env: Any, seed: int = SEED) -> Tensor:
    """Returns actions (T, N, ...) from the action space."""
    env.action_space.seed(seed)
    actions = [env.action_space.sample() for _ in range(env.unwrapped.sampler.horizon)]
    return torch.as_tensor(np.stack(actions), device=env.unwrapped.device)


def _replay(actions: Tensor) -> Actor:
    """Returns an actor that plays actions (T, N, ...) one after the other."""
    steps = iter(actions)
    return lambda observation: next(steps)
