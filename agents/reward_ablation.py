"""What each reward makes of a policy: AdaGen's reward ablation, on metrics that no policy was trained for.

    for reward in fid classifier clip hpsv2 adversarial loo_fid; do for seed in 0 1 2; do
      python -m agents.adagen --reward $reward --seed $seed --out runs/ablation/$reward-$seed
    done; done
    python -m agents.reward_ablation --runs runs/ablation/* --out runs/ablation.png

A row is a reward, with means and 95 % intervals over its runs.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import Annotated

import tyro
from rich.box import SIMPLE
from rich.table import Table
from torch import Tensor

from agents.adagen import Config, load_policy
from agents.console import CONSOLE, Rows
from agents.runs import read_config, reward_spec
from genenv.checkpoints import torch_device
from genenv.console import exit_status, print_table
from genenv.evaluation import Evaluator
from genenv.metrics.intervals import interval
from genenv.metrics.names import SUMMARY
from genenv.protocols import Actor
from genenv.ranges import AT_LEAST_1, check
from genenv.rewards.clip import make_hpsv2
from genenv.rollout import static_actor
from genenv.viz.plots import save_samples

HANDCRAFTED = "hand-crafted"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Which runs to compare."""

    runs: tuple[Path, ...]
    """Run directories of `agents.adagen` on one task, several seeds for each reward."""
    num_images: Annotated[int, AT_LEAST_1] = 2000
    """Held-out images of each run."""
    out: Path | None = None
    """PNG file for samples of each reward's first run, same seeds and classes in every row."""
    trust_modules: bool = False
    """Let the runs' configurations name Python modules, whose code then runs."""

    def __post_init__(self):
        check(self)


def main(arguments: Arguments) -> None:
    """Prints one row a reward: held-out metrics and the fixed scorer's value, mean and 95 % interval over the seeds."""
    trust = arguments.trust_modules
    configs = {run: read_config(Config, run, trust) for run in arguments.runs}
    if not configs:
        raise ValueError("runs must name at least one run directory, got none")
    configs = dict(sorted(configs.items(), key=lambda item: item[1].seed))  # samples are of the first seed
    first = next(iter(configs.values()))
    for run, config in configs.items():
        if config.env_id != first.env_id or config.env_kwargs | {"device": first.device} != first.env_kwargs:
            raise ValueError(f"{run} is of another task than {next(iter(configs))}: compare runs of one task")
    evaluator = Evaluator(first.env_id, first.env_kwargs, arguments.num_images)
    scorer = make_hpsv2(first.backbone, str(torch_device(first.device)))
    values: dict[str, dict[str, list[float]]] = {}
    samples: dict[str, Tensor] = {}
    rows = Rows()

    def add(name: str, actor: Actor, seed: int) -> list[str]:
        what = f"{name}, seed {seed}"
        evaluation = evaluator.repetition(actor, seed, what)
        score = scorer(evaluation.episode.images, evaluation.episode.context).mean().item()
        row = {metric: evaluation.metrics.get(metric, math.nan) for metric in SUMMARY} | {"hpsv2": score}
        rows.add(what, row)
        for metric, value in row.items():
            values.setdefault(name, {}).setdefault(metric, []).append(value)
        samples.setdefault(name, evaluation.episode.images[:40])
        return [str(label) for label in evaluation.episode.context[:40].tolist()]

    labels = []
    for seed in sorted({config.seed for config in configs.values()}):
        labels = add(HANDCRAFTED, static_actor(evaluator.env), seed)
    for run, config in configs.items():
        policy = load_policy(run, device=first.device, trust_modules=trust)
        add(_title(config.reward), policy, config.seed)
    table = Table("reward", *SUMMARY, "hpsv2", "seeds", box=SIMPLE)
    for name, columns in values.items():
        cells = [interval(column) for column in columns.values()]
        table.add_row(name, *cells, str(len(columns["fid"])))
    print_table(CONSOLE, table)
    if arguments.out is not None:
        save_samples(arguments.out, samples, labels)


def _title(reward: str) -> str:
    """Returns "hpsv2 + 2 loo_fid, normalised" for a mixture."""
    weights = reward_spec(reward)
    if isinstance(weights, str):
        return weights
    suffix = ", normalised" if weights.pop("normalise", False) else ""
    return (
        " + ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in weights.items()) + suffix
    )


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(tyro.cli(Arguments, description=__doc__))))
