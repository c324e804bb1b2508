"""What the baselines share: their task, their result, and images under static schedules."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

import gymnasium as gym
import torch
import tyro
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from genenv.checkpoints import write_text
from genenv.cli import USER_ERRORS
from genenv.evaluation import Evaluator, first_seed
from genenv.metrics.intervals import interval
from genenv.protocols import Actor
from genenv.rng import Stream
from genenv.rollout import run_episode, schedule_actions, schedule_actor
from genenv.schedules import ScheduleParam

Report = Callable[[int, int, float], None]
"""Called as report(step, num_steps, best value)."""

METRICS = ("fid", "precision", "recall", "coverage", "accuracy")
"""The columns of a table; the results hold all metrics."""


def parse_json(text: str) -> dict[str, Any]:
    """Returns the keyword arguments that a JSON object on the command line describes."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"env_kwargs must be a JSON object, got {text!r} ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"env_kwargs must be a JSON object, got {text!r}")
    return value


JSON_OBJECT = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="JSON",
    instance_from_str=lambda words: parse_json(words[0]),
    is_instance=lambda value: isinstance(value, dict),
    str_from_instance=lambda value: [json.dumps(value)],
)
"""Tells tyro how to read `Task.env_kwargs`."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What a baseline is measured on; each baseline's Config adds its own fields."""

    env_id: str = "AdaGen/MaskGIT-v0"
    """Environment id."""
    env_kwargs: Annotated[dict[str, Any], JSON_OBJECT] = dataclasses.field(default_factory=dict)
    """Keyword arguments of the environment, such as '{"num_steps": 8}'."""
    seeds: int = 3
    """Repetitions, each on its own held-out images."""
    num_images: int = 2000
    """Held-out images of a repetition."""
    out: Path | None = None
    """JSON file for the results."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What one repetition of a baseline came to."""

    method: str
    """The baseline's name."""
    env_id: str
    """Environment id."""
    env_kwargs: dict[str, Any]
    """Keyword arguments it was evaluated with."""
    seed: int
    """Repetition."""
    metrics: dict[str, float]
    """Held-out metrics: fid, kid, precision, recall, density, coverage, accuracy."""
    images: int
    """Images generated to find the policy; the held-out ones are not counted."""
    seconds: float
    """Wall clock spent on finding it."""
    schedule: dict[str, list[float]]
    """Each parameter at each decision in physical units, the mean over the images where they differ."""


class Bench:
    """Evaluates actors on the held-out images of each repetition.

    Args:
        task: what to measure on.
        env_kwargs: in place of the task's, where the actors need other ones.
    """

    def __init__(self, task: Task, env_kwargs: Mapping[str, Any] | None = None):
        self.task = task
        self.env_kwargs = dict(task.env_kwargs if env_kwargs is None else env_kwargs)
        self.evaluator = Evaluator(task.env_id, self.env_kwargs, task.num_images)

    @property
    def params(self) -> tuple[ScheduleParam, ...]:
        """The environment's schedule parameters."""
        return schedule_actions(self.evaluator.env).params

    def result(
        self,
        method: str,
        seed: int,
        actor: Actor,
        images: int = 0,
        seconds: float = 0.0,
        table: Tensor | None = None,
    ) -> Result:
        """Returns the result of an actor found with `images` images; `table` (T, A) is its exact static schedule."""
        evaluation = self.evaluator(actor, first_seed(seed, self.task.num_images))
        if table is None:
            schedule = {name: value.mean(1).tolist() for name, value in evaluation.episode.schedule.items()}
        else:
            schedule = {param.name: table[:, i].tolist() for i, param in enumerate(self.params)}
        return Result(
            method,
            self.task.env_id,
            self.env_kwargs,
            seed,
            evaluation.metrics,
            images,
            round(seconds, 1),
            schedule,
        )


def static_kwargs(env_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns keyword arguments under which an actor sets a static schedule in physical units."""
    return dict(env_kwargs) | {"action_mode": "physical", "observe": ["step"], "smoothing": 0.0}


class StaticSchedules:
    """Generates images under many static schedules, as many at once as fit into a batch.

    Args:
        env_id: a registered id.
        env_kwargs: of the task; labels are balanced and no reward is paid.
        batch_size: images at once; they may belong to different schedules.
    """

    def __init__(self, env_id: str, env_kwargs: Mapping[str, Any], batch_size: int = 512):
        kwargs = static_kwargs(env_kwargs)
        kwargs |= {"contexts": "cycle", "reward": "none", "autoreset_mode": "Disabled", "output": "torch"}
        self.env = gym.make_vec(env_id, num_envs=batch_size, **kwargs)
        self.params = schedule_actions(self.env).params

    def __call__(self, tables: Tensor, num_images: int, seed: int, stream: Stream) -> Tensor:
        """Returns images (P, num_images, C, H, W) of schedules (P, T, A) in physical units.

        Every schedule gets the same seeds, seed ... seed + num_images - 1, so that they differ by nothing else.
        """
        total, batch_size = len(tables) * num_images, self.env.num_envs
        images = []
        for start in range(0, total, batch_size):
            index = (
                torch.arange(start, start + batch_size) % total
            )  # the surplus of the last batch is cut off
            actor = schedule_actor(tables[index // num_images])
            seeds = (seed + index % num_images).tolist()
            images.append(run_episode(self.env, actor, seeds, stream, keep_observations=False).images)
        return torch.cat(images)[:total].unflatten(0, (len(tables), num_images))


@contextmanager
def progress_bar(description: str) -> Iterator[Report]:
    """Shows a bar for as long as the context lasts; gives what reports to it."""
    with Progress(console=Console(stderr=True), transient=True) as bar:
        job = bar.add_task(description, total=None)

        def update(step: int, num_steps: int, value: float) -> None:
            bar.update(job, completed=step, total=num_steps, description=f"{description} {value:.2f}")

        yield update


class Arguments(Protocol):
    """A command line that may ask for a file."""

    @property
    def out(self) -> Path | None:
        """The file, None for none."""
        ...


ArgumentsT = TypeVar("ArgumentsT", bound=Arguments)


def finish(results: Sequence[Result], out: Path | None) -> None:
    """Prints the table of the results and writes them where `out` says."""
    console = Console()
    console.width = max(console.width, 130)  # a cell that is wrapped cannot be read
    console.print(table_of(results))
    if out is not None:
        write_results(out, results)


def main(
    arguments_type: type[ArgumentsT],
    run: Callable[[ArgumentsT], Sequence[Result]],
    description: str | None,
    finish: Callable[[Sequence[Result], Path | None], None] = finish,
) -> int:
    """Runs a baseline's command and returns its exit status: 0, or 2 for a user's mistake, told in one line.

    Args:
        arguments_type: dataclass of the command line.
        run: gives the results.
        description: the module's docstring, for --help.
        finish: what becomes of the results, given `out`.
    """
    try:
        arguments = tyro.cli(arguments_type, description=description)
        finish(run(arguments), arguments.out)
    except USER_ERRORS as error:
        print(f"{Path(sys.argv[0]).stem}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def write_results(path: Path, results: Sequence[Result]) -> None:
    """Writes results as JSON, whole or not at all."""
    write_text(path, json.dumps([dataclasses.asdict(result) for result in results], indent=2) + "\n")


def read_results(path: Path) -> list[Result]:
    """Returns the results that `write_results` wrote.

    Raises:
        ValueError: if the file holds anything else.
    """
    try:
        return [Result(**entry) for entry in json.loads(path.read_text())]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} must hold the results of a baseline, got {error}") from None


def table_of(results: Sequence[Result]) -> Table:
    """Returns a table with one row a method: the mean over its repetitions and the 95 % t interval's half-width."""
    table = Table("method", *METRICS, "images", "seconds", box=SIMPLE)
    for method in dict.fromkeys(result.method for result in results):
        rows = [result for result in results if result.method == method]
        cells = [
            interval([row.metrics[name] for row in rows]) if name in rows[0].metrics else "-"
            for name in METRICS
        ]
        images = sum(row.images for row in rows) / len(rows)
        seconds = sum(row.seconds for row in rows) / len(rows)
        table.add_row(method, *cells, f"{images:,.0f}", f"{seconds:.0f}")
    return table
