"""AdaGen's fidelity-diversity knob: the held-out metrics of two policies blended by lambda.

python -m agents.adagen --diversity-run runs/demo --out runs/faithful
python -m agents.blend --run runs/faithful
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from agents.adagen import load_policy, read_config
from agents.command_line import cell, plain_errors
from genenv.evaluation import Evaluator, first_seed

METRICS = ("fid", "precision", "recall", "density", "coverage", "accuracy")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to blend."""

    run: Path
    """Run directory of a second policy, trained with `--diversity-run`."""
    fidelity: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Values of lambda: 0 is the first policy, 1 the second."""
    num_images: int = 2000
    """Held-out images for each of them."""


def main(arguments: Arguments) -> None:
    """Prints the held-out metrics of each blend, on the same seeds."""
    config = read_config(arguments.run)
    evaluator = Evaluator(config.env_id, config.env_kwargs, arguments.num_images)
    first = first_seed(config.seed, arguments.num_images)
    table = Table("lambda", *METRICS, title=f"fidelity of {arguments.run}")
    for fidelity in arguments.fidelity:
        metrics = evaluator(load_policy(arguments.run, fidelity), first).metrics
        table.add_row(f"{fidelity:g}", *(cell(metrics, name) for name in METRICS))
    Console().print(table)


if __name__ == "__main__":
    with plain_errors():
        main(tyro.cli(Arguments, description=__doc__))
