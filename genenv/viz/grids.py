"""Pictures of grids of noise levels: the clocks they stand for, where their steps are, and how well they sample.

A grid is one of `genenv.grids`: (K+1,) noise levels sigma that fall from sigma_max to exactly 0. Axes with a 0 are
logarithmic down to a power of ten, which they name, and linear from there on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.interpolate import make_interp_spline
from torch import Tensor

from genenv.metrics.intervals import student
from genenv.metrics.names import METRICS
from genenv.solvers import noise_levels
from genenv.viz.plots import INK, LEARNED, SERIES, SOFT_INK, STYLE, fitted, save_figure, subplots

# isort: split
# After plots, which says what to install where matplotlib is missing.
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator, StrMethodFormatter

LINES: tuple[dict[str, Any], ...] = (
    {"color": LEARNED, "linestyle": "-"},
    {"color": SERIES[1], "linestyle": "--"},
    {"color": INK, "linestyle": "-."},
    {"color": SERIES[2], "linestyle": ":"},
    {"color": "#56b4e9", "linestyle": (0, (6, 1.5, 1, 1.5, 1, 1.5))},
    {"color": SOFT_INK, "linestyle": (0, (8, 2))},
    {"color": "#7a1f1f", "linestyle": (0, (1, 1))},
    {"color": "#a0aab4", "linestyle": (0, (3, 1))},
)
MARKERS = "os^DvPX*"
"""Lines, and markers on them, that stay apart for colour-blind readers; the first are the learned one's."""
DECADES = 4
"""Powers of ten that an axis with a 0 goes down logarithmically, at most."""
NAME_WIDTH = 300
"""The widest name, in pixels."""
POINTS = 600
"""Times, at least, for which the noise levels of a clock are drawn."""


def save_clock(path: str | Path, speeds: Tensor, grids: Mapping[str, Tensor], period: float) -> None:
    """Writes a learned clock over its time t in [0, T], beside those that grids stand for (ART, arXiv 2601.18681).

    One panel has the speed theta = d psi / dt, which each decision holds until the next, the other the noise level
    sigma = T - psi. Each of the K steps of a grid takes T / K, so that its speed is (sigma_k - sigma_{k+1}) / (T / K).
    The band holds 99 % of the trajectories at each time, or more if they are few. Levels below 0, of a clock that
    overshoots, run out of the picture.

    Args:
        path: of the PNG file.
        speeds: (K, N), theta of N trajectories as executed, at K decisions evenly spaced in [0, T].
        grids: {name: levels (K_i+1,)}, falling from T to 0, 7 at most; each has its own K.
        period: T, the clock's last time and the first noise level.

    Raises:
        ValueError: if the speeds are not of this shape or not finite, T is not above 0, there are no grids or too many,
            or one does not fall from T to 0.
    """
    theta = speeds.detach().cpu().double().numpy()
    if theta.ndim != 2 or not theta.size:
        raise ValueError(f"speeds must have shape (K, N) with K, N > 0, got {theta.shape}")
    if not np.isfinite(theta).all():
        raise ValueError(f"speeds must be finite, got {theta[~np.isfinite(theta)][0]}")
    if not 0 < period < math.inf:
        raise ValueError(f"period must be a number above 0, got {period}")
    levels = _checked(grids, len(LINES) - 1)
    for name, grid in levels.items():
        if not math.isclose(grid[0], period, rel_tol=1e-6):
            raise ValueError(f"{name} must fall from the period {period:g}, got {grid[0]:g}")
    sigma = period - np.insert(theta, 0, 0, axis=0).cumsum(axis=0) * period / len(theta)  # (K+1, N)
    means = [sigma.mean(axis=1), *levels.values()]
    with matplotlib.style.context(["default", STYLE]):
        figure, (left, right) = subplots(2, 2)
        handles = []
        for axes, title, curve in ((left, "speed of the clock", _speeds), (right, "noise level", _levels)):
            # The learned line is thick and lies below, so that one that equals it is seen as well.
            lines = [
                axes.plot(*curve(mean, period), **style, linewidth=1.3 if i else 3)[0]
                for i, (mean, style) in enumerate(zip(means, LINES, strict=False))
            ]
            time, learned = curve(sigma, period)
            low = np.quantile(learned, 0.005, axis=1, method="lower")
            high = np.quantile(learned, 0.995, axis=1, method="higher")
            band = axes.fill_between(time, low, high, color=LEARNED, alpha=0.25, linewidth=0)
            handles = [lines[0], band, *lines[1:]]
            axes.set_title(title)
            axes.set_xlabel("time t of the clock")
        slowest, fastest = theta.mean(axis=1).min(), max(_speeds(mean, period)[1].max() for mean in means)
        _log_axis(left, "y", "theta", slowest / 2 if slowest > 0 else 1, fastest)
        linear = _log_axis(right, "y", "sigma", min(grid[-2] for grid in levels.values()), period)
        right.set_ylim(bottom=max(right.get_ylim()[0], -linear))
        names = ["learned, mean", "learned, 99 % of trajectories", *levels]
        _legend(figure, handles, names, loc="outside upper left", ncols=4)
        save_figure(figure, path)


def save_steps(path: str | Path, grids: Mapping[str, Tensor], learned: str | None = None) -> None:
    """Writes where grids put their steps: a row for each grid, with a tick at each of its noise levels.

    Args:
        path: of the PNG file.
        grids: {name: levels (K_i+1,)}, falling to 0; each has its own K.
        learned: the grid that stands out.

    Raises:
        ValueError: if there are no grids, one does not fall to 0, or `learned` is none of them.
    """
    levels = _checked(grids, learned=learned)
    with matplotlib.style.context(["default", STYLE]):
        figure, [axes] = subplots(1, 1)
        figure.set_figheight(1.2 + 0.4 * len(levels))
        smallest, largest = (edge(grid[k] for grid in levels.values()) for edge, k in ((min, -2), (max, 0)))
        _log_axis(axes, "x", "noise level sigma", smallest, largest)
        for row, (name, grid) in enumerate(levels.items()):
            colour, width = (LEARNED, 2.0) if name == learned else (INK, 1.4)
            width = width if len(grid) <= 40 else width / 2
            axes.plot(grid, [row] * len(grid), "|", color=colour, markersize=15, markeredgewidth=width)
        names = [f"{fitted(name, NAME_WIDTH, 9.5)}, K = {len(grid) - 1}" for name, grid in levels.items()]
        axes.set_yticks(range(len(names)), names, parse_math=False)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_title("steps of the grids")
        save_figure(figure, path)


def save_metric(
    path: str | Path,
    metric: str,
    series: Mapping[str, Mapping[int, Sequence[float]]],
    learned: str | None = None,
) -> None:
    """Writes a metric over the solver evaluations: means over seeds, with Student's 95 % intervals as bars.

    Both axes are logarithmic, unless a mean is not above 0: then the metric's is linear. On a logarithmic axis, bars
    that reach below half of the least mean run out of the picture.

    Args:
        path: of the PNG file.
        metric: its key in `genenv.metrics.names.METRICS`, or another name.
        series: {grid: {solver evaluations: values of independent seeds}}, 8 grids at most; one value has no bar.
        learned: the grid that stands out.

    Raises:
        ValueError: if there are no grids or too many, one has no values or some that are not finite, less than one
            evaluation was spent, or `learned` is none of them.
    """
    _check(series, len(LINES), learned)
    for name, points in series.items():
        if not points:
            raise ValueError(f"{name} must have values of {metric}, got none")
        for evaluations, values in points.items():
            if evaluations < 1 or not len(values) or not np.isfinite(values).all():
                raise ValueError(
                    f"{name} must have finite values of {metric} at 1 solver evaluation or more, "
                    f"got {list(values)} at {evaluations}"
                )
    means = {name: {n: float(np.mean(points[n])) for n in sorted(points)} for name, points in series.items()}
    least = min(min(line.values()) for line in means.values())
    known, others = METRICS.get(metric), itertools.count(int(learned is not None))
    with matplotlib.style.context(["default", STYLE]):
        figure, [axes] = subplots(1, 1)
        figure.set_size_inches(9, 4.4)
        axes.set_title(known.title if known else metric, parse_math=False)
        axes.set_ylabel({-1: "lower is better", 1: "higher is better"}.get(known.better if known else 0, ""))
        axes.set_xlabel("solver evaluations")
        _evaluations_axis(axes, sorted({n for points in series.values() for n in points}))
        if least > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        handles = []
        for name, line in means.items():
            place, width = (0, 3) if name == learned else (next(others), 1.4)
            look = LINES[place] | {"marker": MARKERS[place], "linewidth": width}
            seeds = [series[name][n] for n in line]
            ends = [student(values)[1] if len(values) > 1 else values[0] for values in seeds]
            bars = np.subtract(ends, [*line.values()])
            handles.append(axes.errorbar([*line], [*line.values()], bars, elinewidth=1.1, capsize=3, **look))
        if least > 0:
            axes.set_ylim(bottom=max(axes.get_ylim()[0], least / 2))
        _legend(figure, handles, list(series), loc="outside right upper")
        save_figure(figure, path)


def _checked(
    grids: Mapping[str, Tensor], most: float = math.inf, learned: str | None = None
) -> dict[str, np.ndarray]:
    """Returns the levels (K_i+1,) of some grids."""
    _check(grids, most, learned)
    levels = {}
    for name, grid in grids.items():
        try:
            levels[name] = noise_levels(grid).detach().cpu().numpy()
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return levels


def _check(grids: Mapping[str, object], most: float, learned: str | None) -> None:
    if not 0 < len(grids) <= most:
        raise ValueError(
            f"grids must be 1 or more{f', {most} at most' * (most < math.inf)}, got {len(grids)}"
        )
    if learned is not None and learned not in grids:
        raise ValueError(f"learned must be one of {', '.join(grids)}, got {learned!r}")


def _levels(levels: np.ndarray, period: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns times (M,) and what the clock that levels (K+1, ...) stand for shows then, (M, ...).

    Speed is constant between levels, which is no straight line on a logarithmic axis.
    """
    steps = len(levels) - 1
    known, time = (np.linspace(0, period, parts * steps + 1) for parts in (1, -(-POINTS // steps)))
    return time, make_interp_spline(known, levels, k=1)(time)


def _speeds(levels: np.ndarray, period: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the corners of a staircase, times (2K,) and speeds (2K, ...), that levels (K+1, ...) stand for."""
    speeds = -np.diff(levels, axis=0) * (len(levels) - 1) / period
    return np.linspace(0, period, len(levels)).repeat(2)[1:-1], speeds.repeat(2, axis=0)


def _log_axis(axes: Axes, which: str, name: str, smallest: float, largest: float) -> float:
    """Makes an axis logarithmic down to a power of ten below the smallest value, and returns that."""
    lowest = math.floor(math.log10(max(smallest, largest / 10**DECADES)))
    powers = 10.0 ** np.arange(lowest, math.floor(math.log10(largest)) + 1)
    major = np.outer([1] if len(powers) > 2 else [1, 2, 5], powers).ravel()
    minor = np.outer(range(2, 10), powers).ravel()
    getattr(axes, f"set_{which}scale")("symlog", linthresh=powers[0], linscale=0.5)
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(FixedLocator([*-major, 0, *major]))
    axis.set_minor_locator(FixedLocator([*-minor, *minor]))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_label_text(f"{name}, linear below {powers[0]:g}")
    return powers[0]


def _evaluations_axis(axes: Axes, evaluations: Sequence[int]) -> None:
    """Makes an axis logarithmic with a tick at each of some rising numbers, named where there is room."""
    first, last = evaluations[0], evaluations[-1]
    named = [first]
    for n in evaluations:
        if n > named[-1] * (last / first) ** (1 / 18):
            named.append(n)
    axes.set_xscale("log")
    axes.set_xlim(first / 1.15, last * 1.15)
    axes.xaxis.set_major_locator(FixedLocator(named))
    axes.xaxis.set_minor_locator(FixedLocator(evaluations))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, handles: Sequence[Any], names: Sequence[str], **where: Any) -> None:
    legend = figure.legend(handles, [fitted(name, NAME_WIDTH, 9.5) for name in names], borderpad=0.5, **where)
    for text in legend.get_texts():
        text.set_parse_math(False)  # "$" in a name is no formula
