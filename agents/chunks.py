"""Many images through an environment of few: memory is bounded by the environment's images times one decision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from genenv.protocols import Actor, Observation
from genenv.rollout import Episode, replay, run_episode, unwrapped


def play(env: VectorEnv, actor: Actor, seeds: Sequence[int]) -> Episode:
    """Returns the episode of the images with these seeds, played as many at once as the environment holds.

    Observations are kept where it holds them all; otherwise `decisions` finds them again.
    """
    if len(seeds) == env.num_envs:
        return run_episode(env, actor, seeds)
    parts = []
    for start in range(0, len(seeds), env.num_envs):
        part = seeds[start : start + env.num_envs]
        episode = run_episode(
            env, actor, _filled(part, env.num_envs), keep_observations=len(seeds) == len(part)
        )
        parts.append(episode.first(len(part)))
    return Episode.concatenate(parts)


def decisions(
    env: VectorEnv, episode: Episode, seeds: Sequence[int], images: Tensor
) -> Iterator[tuple[Observation, Tensor, Tensor]]:
    """Yields what a policy saw before the decisions of some images of an episode, in parts of bounded size.

    Where the episode kept its observations there is one part with all decisions; otherwise the images are generated
    again with the actions that were played, and each part is one decision of as many images as the environment holds.

    Args:
        env: that the episode was played in.
        episode: of `play`.
        seeds: of its images.
        images: (M,) int64, numbers of images in the episode.

    Yields:
        Observations {name: (B, ...)}, and the decision (B,) and the image (B,) that each row is of: x[t, i] are the
        rows' entries of (T, N, ...).
    """
    horizon, device = len(episode.actions), episode.actions.device
    images = images.to(device)
    if not len(images):
        return
    if episode.observations:
        t = torch.arange(horizon, device=device).repeat_interleave(len(images))
        i = images.repeat(horizon)
        yield {name: value[t, i] for name, value in episode.observations.items()}, t, i
        return
    for part in images.split(env.num_envs):
        rows = torch.tensor(_filled(part.tolist(), env.num_envs), device=device)
        again = replay(env, episode.actions[:, rows], [seeds[row] for row in rows.tolist()])
        for step, observation in enumerate(again):
            yield {n: v[: len(part)] for n, v in observation.items()}, torch.full_like(part, step), part


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
