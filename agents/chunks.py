"""Many images through an environment of few: memory is bounded by the environment's images times one decision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from genenv.protocols import Actor, Observation
from genenv.rollout import Episode, replay, run_episode
from genenv.vector_env import unwrapped


def play(env: VectorEnv, actor: Actor, seeds: Sequence[int], keep_observations: bool = True) -> Episode:
    """Returns the episode of the images with these seeds, played as many at once as the environment holds.

    Observations are kept, if they are wanted, where it holds them all; otherwise `decisions` finds them again.
    """
    if len(seeds) == env.num_envs:
        return run_episode(env, actor, seeds, keep_observations=keep_observations)
    parts = []
    for start in range(0, len(seeds), env.num_envs):
        part = seeds[start : start + env.num_envs]
        whole = keep_observations and len(seeds) == len(part)
        episode = run_episode(env, actor, _filled(part, env.num_envs), keep_observations=whole)
        parts.append(episode.first(len(part)))
    return Episode.concatenate(parts)


def decisions(
    env: VectorEnv, episode: Episode, seeds: Sequence[int], rows: Tensor
) -> Iterator[tuple[Observation, Tensor, Tensor]]:
    """Yields what a policy saw before some decisions of an episode, in parts of bounded size.

    Where the episode kept its observations there is one part; otherwise the images concerned are generated again with
    the actions that were played, and each part holds decisions at one step of as many images as the environment holds.

    Args:
        env: that the episode was played in.
        episode: of `play`, of N images.
        seeds: of its images.
        rows: (M,) int64, the decisions: t * N + i is that of image i at step t.

    Yields:
        Observations {name: (B, ...)}, and the step (B,) and the image (B,) that each row is of: x[t, i] are the rows'
        entries of (T, N, ...).
    """
    if not len(rows):  # of the images of this process
        return
    number, device = len(seeds), episode.actions.device
    rows = rows.to(device)
    t, i = rows // number, rows % number
    if episode.observations:
        yield {name: value[t, i] for name, value in episode.observations.items()}, t, i
        return
    for part in i.unique().split(env.num_envs):
        images = torch.tensor(_filled(part.tolist(), env.num_envs), device=device)
        again = replay(env, episode.actions[:, images], [seeds[image] for image in images.tolist()])
        for step, observation in enumerate(again):
            wanted = torch.isin(part, i[t == step])
            if bool(wanted.any()):
                seen = {name: value[: len(part)][wanted] for name, value in observation.items()}
                yield seen, torch.full_like(part[wanted], step), part[wanted]


def observations(env: VectorEnv, episode: Episode, seeds: Sequence[int], images: Tensor) -> Observation:
    """Returns what a policy saw of some images before each decision, {name: (T, M, ...)}: kept, or generated again.

    Args:
        env: that the episode was played in.
        episode: of `play`, of N images.
        seeds: of its images.
        images: (M,) int64, no more than the environment holds.
    """
    if episode.observations:
        return {name: value[:, images] for name, value in episode.observations.items()}
    numbers = _filled(images.tolist(), env.num_envs)
    again = list(replay(env, episode.actions[:, numbers], [seeds[number] for number in numbers]))
    return {name: torch.stack([seen[name][: len(images)] for seen in again]) for name in again[0]}


def needs(env: VectorEnv, number: int, generated: int) -> str:
    """Returns what training on an environment takes, in one line.

    Args:
        env: of as many images as are played at once.
        number: images of an episode that a process keeps.
        generated: images of the whole run, each again whenever it is replayed.
    """
    sampler, whole = unwrapped(env).sampler, number <= env.num_envs
    places, dim = sampler.fields["features"].shape
    features = 4 * env.num_envs * places * dim * (sampler.horizon if whole else 1)  # float32
    images = 4 * number * torch.Size(sampler.image_shape).numel()
    return (
        f"needs {features / 2**20:,.1f} MiB for features ({env.num_envs:,} images at once, {places} x {dim}, "
        f"{'all decisions' if whole else 'one decision'}), {images / 2**20:,.1f} MiB for {number:,} images, "
        f"{generated * sampler.horizon:,} decisions, each at least one network evaluation"
    )


def _filled(items: Sequence[int], size: int) -> list[int]:
    """Returns items, repeated up to a size: the environment always plays a whole batch."""
    return [items[i % len(items)] for i in range(size)]
