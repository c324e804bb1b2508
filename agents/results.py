"""What a finished run shows: pictures, a summary and a report, what was learned beside what was there before."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector import VectorEnv
from rich.box import SIMPLE
from rich.table import Table

import genenv
from agents.console import CONSOLE, cell, say
from agents.runs import Run, in_8_bits
from genenv.actions import ScheduleActions
from genenv.checkpoints import write_text
from genenv.envs.ode import ODESampler
from genenv.evaluation import Evaluation
from genenv.export import SCHEDULE, write_schedule
from genenv.grids import of_times
from genenv.guard import verdict
from genenv.metrics.names import SUMMARY
from genenv.rewards.mixture import Mixture
from genenv.rollout import schedule_actions
from genenv.tiers import tier_of
from genenv.vector_env import unwrapped
from genenv.viz.plots import save_curves, save_samples, save_schedule
from genenv.viz.report import write_report

NAMES = ("hand-crafted", "learned")
"""What an agent started from, and what it found."""


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What a finished run found.

    Attributes:
        out: the run directory.
        handcrafted: held-out evaluation before training, of the hand-crafted schedule or the generator as it was.
        learned: held-out evaluation of the learned policy, on the same seeds.
        verdict: reward and held-out metrics before and after, in one sentence.
        names: what the two are called.
        others: {name: evaluation} of what they are compared with besides, on the same seeds.
    """

    out: Path
    handcrafted: Evaluation
    learned: Evaluation
    verdict: str
    names: tuple[str, str] = NAMES
    others: Mapping[str, Evaluation] = dataclasses.field(default_factory=dict)

    @property
    def evaluations(self) -> dict[str, Evaluation]:
        """All of them by their names, what was learned last."""
        return {**self.others, self.names[0]: self.handcrafted, self.names[1]: self.learned}


def finish(
    run: Run,
    env: VectorEnv,
    reward: Mixture | str,
    handcrafted: Evaluation,
    learned: Evaluation,
    *,
    floor: Mapping[str, float],
    images: int,
    seconds: float,
    beside: Mapping[str, Any] | None = None,
    names: tuple[str, str] = NAMES,
    others: Mapping[str, Evaluation] | None = None,
) -> RunResult:
    """Writes the pictures, the summary and the report of a run.

    Args:
        run: its directory.
        env: what it was trained on.
        reward: what it maximised, or the name of the running cost that it minimised.
        handcrafted: held-out evaluation before training; its images have 8 bits.
        learned: after training, on the same seeds.
        floor: what real images reach among themselves, as of `genenv.metrics.judge.Judge.floor`.
        images: generated for training.
        seconds: spent on training.
        beside: what else the agent has found, for the summary.
        names: what the two evaluations are called.
        others: {name: evaluation} of what they are compared with besides, on the same seeds.
    """
    config = run.config
    line = verdict(reward, handcrafted, in_8_bits(learned))
    result = RunResult(run.out, handcrafted, learned, line, names, others or {})
    classes, tier = unwrapped(env).contexts.names, tier_of(config.env_kwargs["backbone"])
    labels, real = [str(classes[label]) for label in learned.episode.context.tolist()], None
    if tier.real_images is not None:
        images_of, context = tier.real_images()
        real = (images_of, [str(classes[label]) for label in context.tolist()])
    rows = {name: evaluation.episode.images for name, evaluation in result.evaluations.items()}
    save_samples(run.out / "samples.png", rows, labels, real)
    if isinstance(unwrapped(env).actions, ScheduleActions):
        static = {param.name: param.static for param in schedule_actions(env).params}
        save_schedule(run.out / "schedule.png", static, learned.episode.schedule)
    sampler = unwrapped(env).sampler
    if isinstance(sampler, ODESampler):  # distilled: one grid for all images
        levels = of_times(sampler.path, learned.episode.diagnostics["time"].double().mean(1).cpu())
        write_schedule(run.out / SCHEDULE, {len(levels) - 1: levels})
    save_curves(
        run.out / "curves.png", run.log.read(), baseline=handcrafted.metrics, floor=floor, before=names[0]
    )
    summary = {
        "name": config.name,
        "agent": config.agent,
        "env_id": config.env_id,
        "env_kwargs": config.env_kwargs,
        "decisions": unwrapped(env).sampler.horizon,
        "num_images": learned.num_images,
        "seed": config.seed,
        "seconds": round(seconds, 1),
        "verdict": line,
        "rows": [
            {"name": name, **evaluation.metrics, "images": images if evaluation is learned else 0}
            for name, evaluation in result.evaluations.items()
        ],
        "evaluations": {name: evaluation.record() for name, evaluation in result.evaluations.items()},
        **(beside or {}),
        "command": run.command,
        "versions": {"genenv": genenv.__version__, "torch": torch.__version__, "gymnasium": gym.__version__},
    }
    write_text(run.out / "summary.json", json.dumps(summary, indent=2) + "\n")
    write_report(run.out, f"{config.name or config.agent} on {config.env_id}")
    return result


def print_result(result: RunResult) -> None:
    """Prints what a run started from beside what it found."""
    table = Table("", *SUMMARY, title="held-out metrics, same seeds", box=SIMPLE)
    for name, evaluation in result.evaluations.items():
        table.add_row(name, *(cell(evaluation.metrics, metric) for metric in SUMMARY))
    CONSOLE.print(table)
    say(result.verdict)
    say(f"report: {result.out / 'report.html'}")
