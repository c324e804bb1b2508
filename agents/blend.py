"""AdaGen's fidelity-diversity knob: the held-out metrics of two policies blended by lambda.

python -m agents.adagen --diversity-run runs/demo --out runs/faithful
python -m agents.blend --run runs/faithful
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro
from rich.markup import escape
from rich.table import Table

from agents.adagen import Config, load_policy
from agents.console import CONSOLE, Rows, cell
from agents.runs import read_config
from genenv.console import exit_status, print_table
from genenv.evaluation import Evaluator
from genenv.metrics.names import SUMMARY
from genenv.ranges import AT_LEAST_1, check


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to blend."""

    run: Path
    """Run directory of a second policy, trained with `--diversity-run`."""
    fidelity: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Values of lambda: 0 is the first policy, 1 the second."""
    num_images: Annotated[int, AT_LEAST_1] = 2000
    """Held-out images for each of them."""
    out: Path | None = None
    """JSON file for the rows; each is saved as soon as it is known."""
    trust_modules: bool = False
    """Let the run's configuration name Python modules, whose code then runs."""

    def __post_init__(self):
        check(self)


def main(arguments: Arguments) -> None:
    """Prints the held-out metrics of each blend, on the same seeds."""
    run, trust, rows = arguments.run, arguments.trust_modules, Rows(arguments.out)
    config = read_config(Config, run, trust)
    policies = {value: load_policy(run, value, trust_modules=trust) for value in arguments.fidelity}
    evaluator = Evaluator(config.env_id, config.env_kwargs, arguments.num_images)
    table = Table("lambda", *SUMMARY, title=escape(f"fidelity of {run}"))
    for fidelity, policy in policies.items():
        name = f"lambda {fidelity:g}"
        metrics = evaluator.repetition(policy, config.seed, name).metrics
        rows.add(name, metrics)
        table.add_row(f"{fidelity:g}", *(cell(metrics, name) for name in SUMMARY))
    print_table(CONSOLE, table)


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(tyro.cli(Arguments, description=__doc__))))
