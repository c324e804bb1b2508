"""What each reward costs: images judged a second, AdaGen's training iteration with it, and its share of that.

python -m agents.reward_speed
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from typing import Annotated

import tyro
from rich.box import SIMPLE
from rich.table import Table

from agents.adagen import Config, Trainer
from agents.console import CONSOLE
from genenv.console import exit_status
from genenv.ranges import AT_LEAST_1, check
from genenv.registration import DEFAULT_ID
from genenv.rollout import run_episode, static_actor


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to measure."""

    env_id: str = DEFAULT_ID
    """Registered environment."""
    rewards: tuple[str, ...] = ("adversarial", "classifier", "clip", "hpsv2", "fid", "loo_fid")
    """Names as for `agents.adagen --reward`."""
    num_images: tuple[int, ...] = (64, 256)
    """Images at once."""
    device: str = "cpu"
    """Where everything runs."""
    repeats: Annotated[int, AT_LEAST_1] = 9
    """Timings of each quantity; the median counts."""

    def __post_init__(self):
        check(self)


def main(arguments: Arguments) -> None:
    """Prints one row a reward; an iteration of "adversarial" holds the discriminator's updates too."""
    table = Table("reward", box=SIMPLE)
    for n in arguments.num_images:
        table.add_column(f"images/s, {n} at once", justify="right")
        table.add_column("iteration, s", justify="right")
        table.add_column("share", justify="right")
    for reward in arguments.rewards:
        cells = []
        for n in arguments.num_images:
            judge, iteration = _seconds(arguments, reward, n)
            cells += [f"{n / judge:,.0f}", f"{iteration:.2f}", f"{judge / iteration:.1%}"]
        table.add_row(reward, *cells)
    CONSOLE.width = max(CONSOLE.width, 110)  # a cell that is wrapped cannot be read
    CONSOLE.print(table)


def _seconds(arguments: Arguments, reward: str, num_images: int) -> tuple[float, float]:
    """Returns the median seconds of a call of the reward, and of an iteration of training on it."""
    config = Config(
        env_id=arguments.env_id,
        reward=reward,
        device=arguments.device,
        num_envs=num_images,
        chunk_size=num_images,
        discriminator_batch=num_images,
        discriminator_warmup=0,
    )
    trainer = Trainer(config)
    episode = run_episode(trainer.env, static_actor(trainer.env), seed=0, keep_observations=False)

    def judge() -> None:
        trainer.reward(episode.images, episode.context).sum().item()  # waits for the device

    judge()
    trainer.step()
    calls, iterations = [], []
    for _ in range(arguments.repeats):
        for function, seconds in ((judge, calls), (trainer.step, iterations)):
            start = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - start)
    return statistics.median(calls), statistics.median(iterations)


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(tyro.cli(Arguments, description=__doc__))))
