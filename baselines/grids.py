"""Grids of noise levels against each other: made by hand, in closed form, and learned, under one solver.

python -m baselines.grids --env-kwargs '{"network": "sit"}' --solver heun --nfe 3 5 9 --runs runs/sit-*
python -m baselines.grids --env-id ART/GaussianMixture-v0 --env-kwargs '{"backbone": "mixture-2d"}' --solver euler

Images are judged like those of any other baseline. Points of a mixture are compared with those to which the exact flow
takes the same noise, by W2, so that the two samples differ by the grid's error alone.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal

import gymnasium as gym
import torch
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from baselines.common import Result, Task, main, read_summary
from genenv.cli import known_id
from genenv.envs.clock import as_clock
from genenv.envs.gaussian_mixture import PointSampler
from genenv.evaluation import first_seed
from genenv.export import at_steps, read_schedule
from genenv.grids import GRIDS, ClosedForm, edm, named
from genenv.metrics.intervals import interval
from genenv.metrics.judge import Judge
from genenv.metrics.names import METRICS
from genenv.metrics.points import PointExtractor
from genenv.metrics.wasserstein import normal_grid_error, wasserstein
from genenv.progress import progress
from genenv.ranges import AT_LEAST_1, AT_LEAST_2
from genenv.registration import defaults
from genenv.rng import BatchRng, Stream
from genenv.solvers import EVALUATIONS, evaluations, sample
from genenv.vector_env import unwrapped
from genenv.viz.grids import MARKERS, save_metric, save_steps

TUNED, TO_0 = "edm_tuned", "edm_to_0"
CLOSED_FORMS = {"closed_form": "euler", "closed_form_heun": "heun"}
"""Closed forms -> the solver whose errors they make least: Euler's, as in ART, or Heun's."""
NAMES = (*GRIDS, TO_0, TUNED, *CLOSED_FORMS)
"""Those of `genenv.grids`, EDM's that falls to 0 by itself, EDM's with rho and sigma_min tuned, and closed forms."""
FINE = 200
"""Steps of the exact flow of mixtures."""
TUNING = tuple((rho, share) for rho in (3.0, 7.0) for share in (0.0, 1e-3, 3e-3, 1e-2, 3e-2, 0.1))
"""What `edm_tuned` chooses from: rho, and sigma_min over sigma_max."""
BATCH = 500
"""Images at once."""


@dataclasses.dataclass(frozen=True)
class Config(Task):
    """What grids are compared on."""

    env_id: str = "ART/Clock-v0"
    """An id with a clock."""
    solver: Literal["euler", "heun", "rk4", "dpmpp2m"] = "heun"
    """The rule of a step."""
    nfe: tuple[int, ...] = ()
    """Numbers of solver evaluations of an image; by default those of 2, 3, 5, 7, 10 and 18 steps."""
    grids: tuple[str, ...] = ("edm", TUNED, "log_snr", "flow_time", "closed_form")
    """Of `NAMES`."""
    runs: tuple[Path, ...] = ()
    """Run directories of agents.art, each measured on the images of its own seed, or schedule.json files."""
    flow_images: Annotated[int, AT_LEAST_1] = 256
    """Images along whose way closed forms measure the flow, on seeds that are not held out."""
    tuning_images: Annotated[int, AT_LEAST_2] = 500
    """Images for each candidate of `edm_tuned`, likewise."""
    pictures: Path | None = None
    """Folder for metric.png, the metric against solver evaluations, and steps.png, where grids put their steps."""

    def __post_init__(self):
        super().__post_init__()
        unknown = [name for name in self.grids if name not in NAMES]
        if unknown:
            raise ValueError(f"grids must be of {', '.join(NAMES)}, got {unknown[0]!r}")
        if not self.grids and not self.runs:
            raise ValueError("there must be grids or runs to compare, got none")
        if self.pictures is not None and len(self.grids) + len(self.runs) > len(MARKERS):
            raise ValueError(
                f"pictures hold at most {len(MARKERS)} grids, got {len(self.grids)} and {len(self.runs)} runs"
            )
        for nfe in self.nfe:
            if nfe < 1 or (nfe - 1) % EVALUATIONS[self.solver]:
                per_step = EVALUATIONS[self.solver]
                raise ValueError(
                    f"nfe of {self.solver} must be {per_step} (K - 1) + 1 for K steps, got {nfe}"
                )

    @property
    def steps(self) -> list[int]:
        """The numbers of steps K, in order."""
        if not self.nfe:
            return [2, 3, 5, 7, 10, 18]
        return sorted({(nfe - 1) // EVALUATIONS[self.solver] + 1 for nfe in self.nfe})


class Flow:
    """The probability flow of an environment with a clock, along any grid.

    Args:
        config: what to measure.

    Raises:
        ValueError: if the environment has no clock.
    """

    def __init__(self, config: Config):
        self.config = config
        env_id = known_id(config.env_id)
        kwargs: dict[str, Any] = defaults(env_id) | config.env_kwargs | {"reward": "none", "output": "torch"}
        inner = unwrapped(gym.make_vec(env_id, num_envs=1, **kwargs))
        self.sampler, self.device = as_clock(inner.sampler, config.env_id), inner.device
        self.backbone = str(kwargs["backbone"])
        self.sigma_max, self.sigma_min = self.sampler.flow.sigma_max, self.sampler.flow.sigma_min
        self._closed_forms: dict[int, ClosedForm] = {}

    def rng(self, seeds: range, stream: Stream) -> tuple[Tensor, BatchRng]:
        """Returns contexts (N,) and random streams of seeds; consecutive ones have balanced contexts."""
        rng = BatchRng(torch.tensor(list(seeds), device=self.device), stream=stream)
        return rng.seeds % self.sampler.num_contexts, rng

    def closed_form(self, seed: int) -> ClosedForm:
        """Returns the closed forms of a repetition, measured once on its tuning images."""
        if seed not in self._closed_forms:
            images = self.rng(seeds_of(seed, self.config.flow_images), Stream.TUNING)
            self._closed_forms = {seed: self.sampler.closed_form(*images)}
        return self._closed_forms[seed]

    @torch.no_grad()
    def data(self, levels: Tensor, seeds: range, stream: Stream) -> tuple[Tensor, Tensor]:
        """Returns what a grid makes of the noise of seeds, (N, ...), and the contexts (N,)."""
        parts = []
        for first in range(0, len(seeds), BATCH):
            context, rng = self.rng(seeds[first : first + BATCH], stream)
            x = self.sampler.noise(context, rng)
            parts.append((sample(self.sampler.denoiser(context), x, levels, self.config.solver)[0], context))
        data, context = (torch.cat(each) for each in zip(*parts, strict=True))
        return data, context


class ImageScore:
    """The held-out metrics of images; `key` is what tells grids apart."""

    key = "fid"

    def __init__(self, flow: Flow):
        self.flow, self.judge = flow, Judge(flow.backbone, device=flow.device)
        self.protocol = self.judge.extractor.protocol

    def __call__(self, levels: Tensor, seeds: range, stream: Stream) -> dict[str, float]:
        """Returns what a grid's images are worth."""
        data, context = self.flow.data(levels, seeds, stream)
        return self.judge.measure(self.flow.sampler.decoder(data).float(), context)


class PointScore:
    """W2 from where the exact flow takes the same noise; of N(0, 1) under Euler's rule the exact W2."""

    key, protocol = "w2", PointExtractor.protocol

    def __init__(self, flow: Flow):
        self.flow = flow
        self.has_formula = flow.backbone == "normal" and flow.config.solver == "euler"
        self._exact: dict[tuple[range, Stream], Tensor] = {}

    def __call__(self, levels: Tensor, seeds: range, stream: Stream) -> dict[str, float]:
        """Returns {"w2": distance}."""
        if self.has_formula:
            return {"w2": normal_grid_error(levels)}
        if (seeds, stream) not in self._exact:
            context, rng = self.flow.rng(seeds, stream)
            x, fine = self.flow.sampler.noise(context, rng), edm(FINE, self.flow.sigma_max, sigma_min=0.0)
            self._exact = {(seeds, stream): sample(self.flow.sampler.denoiser(context), x, fine, "rk4")[0]}
        return {"w2": wasserstein(self.flow.data(levels, seeds, stream)[0], self._exact[seeds, stream])}


@dataclasses.dataclass(frozen=True)
class Learned:
    """A schedule that a run has left.

    Attributes:
        name: of the run, or its path.
        seed: the run's, None of a file without one.
        images, seconds: spent on it.
        grids: {K: (K + 1,)}.
    """

    name: str
    seed: int | None
    images: int
    seconds: float
    grids: Mapping[int, Tensor]


def read_run(path: Path) -> Learned:
    """Returns the schedule of a finished run's directory, or of a file.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged, or the directory that of an unfinished run.
    """
    grids = read_schedule(path)
    if not path.is_dir():
        return Learned(path.stem, None, 0, 0.0, grids)
    run = read_summary(path)
    return Learned(f"{run.name}, learned", run.seed, run.images, run.seconds, grids)


def run(config: Config) -> Iterator[Result]:
    """Yields the result of each grid at each number of steps, repetition by repetition."""
    flow = Flow(config)
    score = PointScore(flow) if isinstance(flow.sampler, PointSampler) else ImageScore(flow)
    learned = [read_run(path) for path in config.runs]
    for run in learned:
        first = next(iter(run.grids.values()))[0].item()
        if not math.isclose(first, flow.sigma_max, rel_tol=1e-3):
            raise ValueError(
                f"runs must start at the noise level {flow.sigma_max:g}, got {run.name}, which starts at {first:g}; "
                "set sigma_max in --env-kwargs"
            )
    found: list[Result] = []
    for seed in config.seeds:
        held_out = seeds_of(seed, config.num_images)
        makers = {name: _maker(name, flow, score, seed) for name in config.grids}
        with progress(f"grids, seed {seed}") as report:
            for done, steps in enumerate(config.steps):
                made = {name: (*maker(steps), 0.0) for name, maker in makers.items()}
                for run in learned:
                    if run.seed in (None, seed):
                        made[run.name] = (at_steps(run.grids, steps), run.images, run.seconds)
                for name, (levels, images, seconds) in made.items():
                    result = Result(
                        method=", ".join([name, config.solver] + ([config.name] if config.name else [])),
                        env_id=config.env_id,
                        env_kwargs={"backbone": flow.backbone} | config.env_kwargs,
                        seed=seed,
                        decisions=steps,
                        num_images=config.num_images,
                        protocol=score.protocol,
                        metrics=score(levels, held_out, Stream.HELD_OUT),
                        images=images,
                        seconds=seconds,
                        schedule={"sigma": levels.tolist()},
                    )
                    found.append(result)
                    yield result
                report(done + 1, len(config.steps), f"{steps} steps")
    if config.pictures is not None:
        draw(found, config.solver, config.pictures)


def seeds_of(seed: int, number: int) -> range:
    """Returns the seeds of a repetition's images."""
    first = first_seed(seed, number)
    return range(first, first + number)


def _maker(
    name: str, flow: Flow, score: ImageScore | PointScore, seed: int
) -> Callable[[int], tuple[Tensor, int]]:
    """Returns K -> a grid (K + 1,), and the images spent on it."""
    highest, lowest = flow.sigma_max, flow.sigma_min
    if name in CLOSED_FORMS:
        return lambda steps: (flow.closed_form(seed)(steps, CLOSED_FORMS[name]), flow.config.flow_images)
    if name == TUNED:
        return lambda steps: tuned(steps, flow, score, seed)
    if name == TO_0:
        return lambda steps: (edm(steps, highest, sigma_min=0.0), 0)
    return lambda steps: (named(name, steps, highest, lowest), 0)


def tuned(steps: int, flow: Flow, score: ImageScore | PointScore, seed: int) -> tuple[Tensor, int]:
    """Returns the best of EDM's grids in `TUNING` at K steps, on tuning images of a repetition, and their number."""
    number = flow.config.tuning_images
    seeds = seeds_of(seed, number)
    candidates = [
        edm(steps, flow.sigma_max, share * flow.sigma_max, rho)
        for rho, share in TUNING
        if rho == TUNING[0][0] or share == 0 or steps > 2  # at two steps rho makes no difference but there
    ]
    scores = [score(levels, seeds, Stream.TUNING)[score.key] for levels in candidates]
    return candidates[scores.index(min(scores))], number * len(candidates)


def _by_method(results: Sequence[Result]) -> tuple[str, dict[str, dict[int, list[float]]]]:
    """Returns the metric that tells grids apart, and its values {method: {K: one a seed}}."""
    key = PointScore.key if PointScore.key in results[0].metrics else ImageScore.key
    values: dict[str, dict[int, list[float]]] = {}
    for result in results:
        at = values.setdefault(result.method, {}).setdefault(result.decisions, [])
        at.append(result.metrics[key])
    return key, values


def table_of(results: Sequence[Result]) -> Table:
    """Returns FID, or W2, of each grid at each number of evaluations: the mean over seeds and its 95 % interval.

    Below it stands at how many of them a learned grid has a better mean than each other one.
    """
    key, values = _by_method(results)
    steps = sorted({result.decisions for result in results})
    table = Table("grid", *(f"K = {k}" for k in steps), title=METRICS[key].title, box=SIMPLE)
    for method, cells in values.items():
        table.add_row(escape(method), *(interval(cells[k]) if k in cells else "-" for k in steps))
    means = {method: {k: fmean(cells[k]) for k in cells} for method, cells in values.items()}
    lines = []
    for method in filter(_is_learned, means):
        others = [name for name in means if not _is_learned(name)]
        ahead = [f"{name} at {_wins(means[method], means[name])}" for name in others]
        if ahead:
            lines.append(f"{method} is ahead of {'; '.join(ahead)}")
    table.caption = escape("\n".join(lines)) or None
    return table


def _wins(ours: Mapping[int, float], theirs: Mapping[int, float]) -> str:
    """Returns at how many numbers of steps that both have ours is lower."""
    both = ours.keys() & theirs.keys()
    return f"{sum(ours[k] < theirs[k] for k in both)} of {len(both)}"


def _is_learned(method: str) -> bool:
    return ", learned, " in method


def draw(results: Sequence[Result], solver: str, folder: Path) -> None:
    """Writes metric.png and, of the first seed at the middle number of steps, steps.png."""
    key, values = _by_method(results)
    series = {
        method: {evaluations(solver, steps): found for steps, found in cells.items()}
        for method, cells in values.items()
    }
    steps = sorted({result.decisions for result in results})
    shown = steps[len(steps) // 2]
    grids: dict[str, Tensor] = {}
    for result in results:
        if result.decisions == shown:
            grids.setdefault(result.method, torch.tensor(result.schedule["sigma"], dtype=torch.float64))
    learned = next(filter(_is_learned, series), None)
    folder.mkdir(parents=True, exist_ok=True)
    save_metric(folder / "metric.png", key, series, learned)
    save_steps(folder / "steps.png", grids, learned)


if __name__ == "__main__":
    sys.exit(main(Config, run, __doc__, table_of))
