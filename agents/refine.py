"""AdaGen's inference-time refinement: repeated sampling and lookahead with the networks that training leaves behind.

python -m agents.refine --run runs/demo --repeats 3 --candidates 2
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import gymnasium as gym
import torch
import tyro
from gymnasium.vector import VectorEnv
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from agents.adagen import Networks, load_networks
from agents.console import CONSOLE, Rows, cell
from genenv.console import exit_status, print_table
from genenv.evaluation import first_seed
from genenv.metrics.judge import Judge
from genenv.metrics.names import SUMMARY
from genenv.progress import progress
from genenv.protocols import Context, ForgetfulReward, Reward
from genenv.ranges import AT_LEAST_1, check
from genenv.rewards.mixture import Mixture
from genenv.rng import BatchRng, Stream
from genenv.states import choose
from genenv.vector_env import unwrapped


@dataclasses.dataclass(frozen=True)
class Refined:
    """Images chosen from several attempts.

    Attributes:
        images: (N, C, H, W).
        context: (N,).
        nfe: network evaluations of each image, all attempts counted.
    """

    images: Tensor
    context: Context
    nfe: float


@torch.no_grad()
def refine(
    env: VectorEnv,
    networks: Networks,
    repeats: int,
    candidates: int,
    seed: int,
    stream: Stream = Stream.TRAINING,
) -> Refined:
    """Generates every image of a batch `repeats` times and keeps the one with the highest reward (see `alone`).

    Each attempt looks ahead: a decision is drawn `candidates` times and goes on from the state that the critic values
    most, the last one from the image with the highest reward. This needs a stochastic transition.

    Args:
        env: the environment of the networks, without reward.
        networks: of a finished run.
        repeats: attempts for each image.
        candidates: next states for each decision; 1 of both is plain sampling, the environment's images.
        seed: of the first image.
        stream: what the images are made for.

    Raises:
        ValueError: if a number is below 1, or lookahead is asked of deterministic transitions.
    """
    for name, value in (("repeats", repeats), ("candidates", candidates)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    inner = unwrapped(env)
    if candidates > 1 and not inner.sampler.stochastic:
        raise ValueError(f"candidates must be 1 where transitions are deterministic, got {candidates}")
    seeds = torch.arange(seed, seed + env.num_envs, device=inner.device)
    context = inner.contexts.draw(BatchRng(seeds, stream=stream))
    reward = alone(networks.reward)
    attempts = [
        _lookahead(
            env,
            networks,
            reward,
            context,
            [BatchRng(seeds, r * candidates + k, stream=stream) for k in range(candidates)],
        )
        for r in range(repeats)
    ]
    rewards = torch.stack([reward(images, context) for images, _ in attempts])
    images = torch.stack([images for images, _ in attempts])
    chosen = images[rewards.argmax(0), torch.arange(env.num_envs, device=images.device)]
    return Refined(chosen, context, sum(nfe for _, nfe in attempts))


def _lookahead(
    env: VectorEnv, networks: Networks, reward: Mixture, context: Context, streams: list[BatchRng]
) -> tuple[Tensor, float]:
    """Returns images and the network evaluations spent on each; one candidate for each stream of random numbers."""
    inner, smoothing = unwrapped(env), networks.config.smoothing
    sampler = inner.sampler
    state = sampler.start(context, streams[0])
    average, nfe = None, _nfe(sampler, state)
    for t in range(sampler.horizon):
        action = networks.policy(_observation(sampler, state, t, context))
        average = action if average is None else torch.lerp(action, average, smoothing)
        params = inner.actions(average, t)
        before = _nfe(sampler, state)
        states = [sampler.advance(state, params, stream) for stream in streams]
        nfe += sum(_nfe(sampler, s) - before for s in states)
        if len(states) == 1:
            state = states[0]
            continue
        if t + 1 < sampler.horizon:
            values = [networks.critic(_observation(sampler, s, t + 1, context))[:, 0] for s in states]
        else:
            values = [reward(sampler.decode(s), context) for s in states]
        state = choose(states, torch.stack(values).argmax(0))
    return sampler.decode(state), nfe


def _observation(sampler: Any, state: Any, t: int, context: Context) -> dict[str, Tensor]:
    observation = sampler.observe(state, ("features",))
    return observation | {"step": torch.full_like(context, t), "context": context}


def _nfe(sampler: Any, state: Any) -> float:
    return sampler.diagnostics(state)["nfe"].float().mean().item()


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to refine, and how hard."""

    run: Path
    """Run directory of `agents.adagen`."""
    repeats: Annotated[int, AT_LEAST_1] = 3
    """Attempts for each image; the highest reward wins."""
    candidates: Annotated[int, AT_LEAST_1] = 2
    """Next states to choose from at each decision."""
    num_images: Annotated[int, AT_LEAST_1] = 2000
    """Held-out images for each row."""
    batch_size: Annotated[int, AT_LEAST_1] = 250
    """Images at once."""
    out: Path | None = None
    """JSON file for the rows; each is saved as soon as it is known."""
    trust_modules: bool = False
    """Let the run's configuration name Python modules, whose code then runs."""

    def __post_init__(self):
        check(self)


def main(arguments: Arguments) -> None:
    """Prints the held-out metrics of plain sampling, of each refinement that the environment allows, and of both."""
    rows = Rows(arguments.out)
    networks = load_networks(arguments.run, trust_modules=arguments.trust_modules)
    config = networks.config
    alone(networks.reward)  # before anything is made
    env = gym.make_vec(
        config.env_id, num_envs=arguments.batch_size, reward="none", contexts="cycle", **config.env_kwargs
    )
    judge = Judge(config.backbone)
    first = first_seed(config.seed, arguments.num_images)
    table = Table(title=escape(f"refinement of {arguments.run}, {arguments.num_images:,} held-out images"))
    for column in ("sampling", *SUMMARY, "network evaluations an image"):
        table.add_column(column, justify="left" if column == "sampling" else "right")
    repeats = arguments.repeats
    candidates = arguments.candidates if unwrapped(env).sampler.stochastic else 1
    for r, k in dict.fromkeys(((1, 1), (repeats, 1), (1, candidates), (repeats, candidates))):
        name, parts, total = f"{r} x, {k} candidates", list[Refined](), arguments.num_images
        with progress(f"held-out images of {name}") as report:
            for start in range(0, total, arguments.batch_size):
                parts.append(refine(env, networks, r, k, first + start, Stream.HELD_OUT))
                report(min(start + arguments.batch_size, total), total)
        images, context = torch.cat([p.images for p in parts]), torch.cat([p.context for p in parts])
        metrics = judge.measure(images[:total], context[:total])
        rows.add(name, metrics | {"nfe": parts[0].nfe})
        values = [cell(metrics, name) for name in SUMMARY]
        table.add_row(name, *values, f"{parts[0].nfe:.0f}")
    print_table(CONSOLE, table)


def alone(reward: Mixture) -> Mixture:
    """Returns the components of a run's reward that judge each image by itself: others cannot choose among attempts.

    Raises:
        ValueError: if there are none, or several whose scales the run has evened out.
    """
    found = {name: each for name, each in reward.rewards.items() if _judges_alone(each)}
    if not found or (reward.normalise and len(found) > 1):
        raise ValueError(
            "refinement needs a reward with one part that judges each image by itself, or a plain sum of such, got "
            f"{' + '.join(reward.rewards)}"
        )
    return Mixture(found, {name: reward.weights[name] for name in found})


def _judges_alone(reward: Reward) -> bool:
    return not isinstance(reward, ForgetfulReward) and getattr(reward, "min_images", 1) == 1


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(tyro.cli(Arguments, description=__doc__))))
