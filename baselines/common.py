"""What the baselines share: their task, their result, and images under static schedules."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import gymnasium as gym
import torch
import tyro
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from genenv.checkpoints import prepare_file, write_text
from genenv.cli import json_object, known_id
from genenv.console import exit_status, print_table
from genenv.evaluation import Evaluation, Evaluator
from genenv.json_text import read_object
from genenv.metrics.intervals import interval
from genenv.metrics.names import SUMMARY, in_a_line
from genenv.protocols import Actor
from genenv.ranges import AT_LEAST_1, check
from genenv.registration import DEFAULT_ID
from genenv.rng import Stream
from genenv.rollout import run_episode, schedule_actions, schedule_actor
from genenv.schedules import ScheduleParam
from genenv.vector_env import unwrapped

JSON_OBJECT = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="JSON",
    instance_from_str=lambda words: json_object("env_kwargs", words[0]),
    is_instance=lambda value: isinstance(value, dict),
    str_from_instance=lambda value: [json.dumps(value)],
)
"""Tells tyro how to read `Task.env_kwargs`."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What a baseline is measured on; each baseline's Config adds its own fields."""

    env_id: str = DEFAULT_ID
    """Environment id, or "my_module:My/Env-v0" for one that my_module registers."""
    env_kwargs: Annotated[dict[str, Any], JSON_OBJECT] = dataclasses.field(default_factory=dict)
    """Keyword arguments of the environment, such as '{"num_steps": 8}'."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Repetitions: seed S decides what is random, and has the held-out images of an agent's run with --seed S."""
    num_images: Annotated[int, AT_LEAST_1] = 2000
    """Held-out images of a repetition."""
    name: str | None = None
    """Told beside the method in every table, so that two configurations of it can be told apart."""
    out: Path | None = None
    """JSON file for the results; every row is saved as soon as it is known."""

    def __post_init__(self):
        legal = all(isinstance(seed, int) and seed >= 0 for seed in self.seeds)
        if not legal or not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(
                f"seeds must be different whole numbers from 0 on, such as 0 1 2, got {self.seeds}"
            )
        check(self)


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
    decisions: int
    """Decisions of an image."""
    num_images: int
    """Held-out images."""
    protocol: str
    """How they were judged; numbers of different protocols cannot be compared."""
    metrics: dict[str, float]
    """Held-out metrics: fid, kid, precision, recall, density, coverage, accuracy, and those of the baseline itself."""
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
        self.env_id = known_id(task.env_id)
        self.env_kwargs = dict(task.env_kwargs if env_kwargs is None else env_kwargs)
        self.evaluator = Evaluator(self.env_id, self.env_kwargs, task.num_images)

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
        further: Callable[[Evaluation], Mapping[str, float]] | None = None,
    ) -> Result:
        """Returns the result of an actor found with `images` images.

        Args:
            method: the actor's name.
            seed: of the repetition.
            actor: maps observations to actions (N, ...).
            images: generated to find it.
            seconds: spent on finding it.
            table: (T, A), its exact static schedule.
            further: metrics of an evaluation, beside its own.
        """
        method = method if self.task.name is None else f"{method}, {self.task.name}"
        evaluation = self.evaluator.repetition(actor, seed, f"{method}, seed {seed}")
        if table is None:
            schedule = {name: value.mean(1).tolist() for name, value in evaluation.episode.schedule.items()}
        else:
            schedule = {param.name: table[:, i].tolist() for i, param in enumerate(self.params)}
        return Result(
            method=method,
            env_id=self.env_id,
            env_kwargs={"backbone": self.evaluator.backbone} | self.env_kwargs,
            seed=seed,
            decisions=unwrapped(self.evaluator.env).sampler.horizon,
            num_images=self.task.num_images,
            protocol=evaluation.protocol,
            metrics=evaluation.metrics | dict(further(evaluation) if further else {}),
            images=images,
            seconds=round(seconds, 1),
            schedule=schedule,
        )


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """What the summary of an agent's run says of it.

    Attributes:
        name: of the run, by default its agent's.
        seed: of its images.
        images: generated for training.
        seconds: spent on training.
        env_kwargs: what its policy is evaluated on, as far as it is told.
    """

    name: str
    seed: int
    images: int
    seconds: float
    env_kwargs: dict[str, Any]


def read_summary(run_dir: Path) -> FinishedRun:
    """Returns what a run directory's summary.json says.

    Raises:
        FileNotFoundError: if the run is not finished.
        ValueError: if it is damaged.
    """
    summary = read_object(run_dir / "summary.json")
    try:
        name, images = summary["name"] or summary["agent"], summary["rows"][-1]["images"]
        kwargs = dict(summary.get("env_kwargs", {}))
        return FinishedRun(name, summary["seed"], images, summary["seconds"], kwargs)
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"{run_dir}/summary.json must be that of a finished run, but lacks {error}"
        ) from None


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

    def contexts(self, num_images: int, seed: int) -> Tensor:
        """Returns what the images of the seeds seed ... seed + num_images - 1 show, (num_images,)."""
        return torch.arange(seed, seed + num_images) % unwrapped(self.env).sampler.num_contexts


TaskT = TypeVar("TaskT", bound=Task)


def main(
    task_type: type[TaskT],
    run: Callable[[TaskT], Iterable[Result]],
    description: str | None,
    table: Callable[[Sequence[Result]], Table] | None = None,
) -> int:
    """Runs a baseline's command and returns its exit status; see `exit_status`.

    Every result is told and saved as soon as it is known, and the table of all printed at the end.

    Args:
        task_type: dataclass of the command line.
        run: yields the results.
        description: the module's docstring, for --help.
        table: makes the table of all, by default `table_of`.
    """
    results: list[Result] = []
    saved: list[str] = []

    def work() -> None:
        task = tyro.cli(task_type, description=description)
        if task.out is not None:
            prepare_file(task.out)
        for result in run(task):
            results.append(result)
            print(_in_a_line(result), file=sys.stderr, flush=True)
            if task.out is not None:
                write_results(task.out, results)
                saved[:] = [f"; {task.out} holds what was finished"]
        print_table(Console(), (table or table_of)(results))

    return exit_status(work, left=lambda: "".join(saved))


def write_results(path: Path, results: Sequence[Result]) -> None:
    """Writes results as JSON, whole or not at all."""
    write_text(path, json.dumps([dataclasses.asdict(result) for result in results], indent=2) + "\n")


def parse_results(content: Any, path: Path) -> list[Result]:
    """Returns the results that `write_results` wrote to a file, from its JSON.

    Raises:
        ValueError: if it holds anything else.
    """
    fields = {field.name for field in dataclasses.fields(Result)}
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise ValueError(f"{path} must hold a list of a baseline's results, got {str(content)[:60]}")
    for n, entry in enumerate(content):
        if entry.keys() != fields:
            odd = sorted(entry.keys() ^ fields)
            what = "has no" if odd[0] in fields else "has an unknown"
            raise ValueError(
                f"{path} must hold the results of a baseline: entry {n} {what} {odd[0]!r}; run it again"
            )
    return [Result(**entry) for entry in content]


def table_of(results: Sequence[Result], names: Sequence[str] = SUMMARY) -> Table:
    """Returns a table with one row a method: the mean over its repetitions and the 95 % t interval's half-width."""
    table = Table("method", *names, "images", "seconds", box=SIMPLE)
    for method in dict.fromkeys(result.method for result in results):
        rows = [result for result in results if result.method == method]
        cells = [
            interval([row.metrics[name] for row in rows]) if name in rows[0].metrics else "-"
            for name in names
        ]
        images = sum(row.images for row in rows) / len(rows)
        seconds = sum(row.seconds for row in rows) / len(rows)
        table.add_row(escape(method), *cells, f"{images:,.0f}", f"{seconds:.0f}")
    return table


def _in_a_line(result: Result) -> str:
    return f"{result.method}, seed {result.seed}: {in_a_line(result.metrics)}"
