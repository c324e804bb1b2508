"""Which decisions matter: what training on each part of the trajectory gains, beside the windows that are found.

    for k in 0 2 4 6 8 10 12 14 16 18; do for seed in 0 1 2; do
      python -m agents.adascope --scope fixed:$k:$((k+2)) --seed $seed --out runs/part-$k-$seed
    done; done
    python -m agents.scope_windows --run runs/adaptive-0 --parts runs/part-* --out windows.png

A gain is the held-out reward after training less that before. Every image is looked at for itself here, also where the
run looked at a few of each group.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.box import SIMPLE
from rich.table import Table
from torch import Tensor

from agents.adascope import Config, Trainer, ends
from agents.console import CONSOLE, say
from agents.runs import load_checkpoint, read_config
from agents.scope_table import read_curve
from genenv.console import exit_status, print_table
from genenv.metrics.intervals import interval
from genenv.ranges import AT_LEAST_1, check
from genenv.scopes import Detector, Fixed, parse_scope
from genenv.vector_env import unwrapped
from genenv.viz.windows import save_windows

SEEDS = 10**8
"""The first training seed of the images that are looked at, behind those that a run trains on."""
NEVER = Detector(start_threshold=0.0, end_threshold=0.0, latest_start=0.0, latest_end=1.0)
"""Finds no end, so that every decision is looked at."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Which run to look into, and what to set beside it."""

    run: Path
    """Run directory of `agents.adascope`, whose generator is looked at before and after training."""
    parts: tuple[Path, ...] = ()
    """Finished runs with fixed scopes, which say what their decisions are worth."""
    num_images: Annotated[int, AT_LEAST_1] = 1000
    """Images that are looked at."""
    thresholds: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    """Thresholds, of start and end alike, that windows are told for."""
    out: Path | None = None
    """PNG file of gains, curves and windows."""
    trust_modules: bool = False
    """Let the runs' configurations name Python modules, whose code then runs."""

    def __post_init__(self):
        check(self)


@dataclasses.dataclass(frozen=True)
class Looked:
    """What judges said of N images before each decision.

    Attributes:
        semantic, reward: (T, N).
        context: (N,).
    """

    semantic: Tensor
    reward: Tensor
    context: Tensor

    def inside(self, detector: Detector) -> Tensor:
        """Returns whether each decision is in the window of its image, (T, N) bool."""
        horizon = len(self.semantic)
        window = detector.window(self.semantic, self.reward, horizon)
        return torch.stack([window.contains(step) for step in range(horizon)])


def look(trainer: Trainer, num_images: int) -> Looked:
    """Returns what the judges of a run say of its generator's images, each for itself."""
    size, found = trainer.env.num_envs, []
    for first in range(0, num_images, size):
        trainer._rollout(list(range(SEEDS + first, SEEDS + first + size)))
        context = unwrapped(trainer.env).context
        found.append((*(torch.stack(curve) for curve in trainer.probe.curves), context))
    semantic, reward, context = (torch.cat(parts, -1)[..., :num_images] for parts in zip(*found, strict=True))
    return Looked(semantic, reward, context)


def spread(inside: Tensor) -> dict[str, str]:
    """Returns how many images there are, and mean and standard deviation of start, end and share of their windows."""
    start, end = (each.double() for each in ends(inside))
    share = inside.double().mean(0)
    return {"images": str(len(share))} | {
        name: f"{value.mean():.2f} ({value.std():.2f})"
        for name, value in {"start": start, "end": end, "share": share}.items()
    }


def curves_of(config: Config, looked: Looked) -> dict[str, Tensor]:
    """Returns {what a curve is: (T,), its mean over the images}; one where both judges are one."""
    if config.semantic == config.reward:
        return {f"semantic and reward: {config.reward}": looked.reward.mean(1)}
    return {
        f"semantic: {config.semantic}": looked.semantic.mean(1),
        f"reward: {config.reward}": looked.reward.mean(1),
    }


def main(arguments: Arguments) -> None:
    """Prints the windows before and after training, by class and by threshold, and draws the picture."""
    gains = _gains(arguments)
    config = read_config(Config, arguments.run, arguments.trust_modules)
    trainer = Trainer(dataclasses.replace(config, scope="adaptive", num_probes=None, detector=NEVER))
    looked = {"before training": look(trainer, arguments.num_images)}
    trainer.load_state_dict(load_checkpoint(arguments.run / "checkpoint.pt"))
    trainer.sampler.use(trainer.kept)
    looked["after training"] = look(trainer, arguments.num_images)
    names = unwrapped(trainer.env).contexts.names
    table = Table(
        "", "of", "images", "start", "end", "share", title="windows, mean (standard deviation)", box=SIMPLE
    )
    inside = {when: images.inside(config.detector) for when, images in looked.items()}
    for when, found in inside.items():
        table.add_row(when, "all", *spread(found).values())
    before = looked["before training"]
    for label in before.context.unique().tolist():
        found = inside["before training"][:, before.context == label]
        table.add_row("before training", str(names[label]), *spread(found).values())
    for threshold in arguments.thresholds:
        detector = dataclasses.replace(config.detector, start_threshold=threshold, end_threshold=threshold)
        table.add_row(
            "before training", f"thresholds {threshold:g}", *spread(before.inside(detector)).values()
        )
    print_table(CONSOLE, table)
    if arguments.out is not None:
        windows = {when: found.double().mean(1) for when, found in inside.items()}
        save_windows(arguments.out, gains, curves_of(config, before), windows)
        say(f"picture: {arguments.out}")


def _gains(arguments: Arguments) -> dict[tuple[int, int], list[float]]:
    """Returns {(start, end): held-out gains} of the runs on parts, after printing them."""
    gains: dict[tuple[int, int], list[float]] = {}
    for run in arguments.parts:
        curve = read_curve(run, 1, arguments.trust_modules)
        scope = parse_scope(curve.config.scope)
        if not isinstance(scope, Fixed):
            raise ValueError(f"{run} must have a fixed scope, got {curve.config.scope!r}")
        if "reward" not in curve.last:
            raise ValueError(f"{run} has no held-out reward to tell a gain by")
        gain = curve.last["reward"] - curve.base["reward"]
        gains.setdefault((scope.start, scope.end), []).append(gain)
    if gains:
        table = Table("decisions", "gain of the held-out reward", "runs", box=SIMPLE)
        for (start, end), values in sorted(gains.items()):
            table.add_row(f"{start} to {end - 1}", interval(values), str(len(values)))
        print_table(CONSOLE, table)
    return gains


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(tyro.cli(Arguments, description=__doc__))))
