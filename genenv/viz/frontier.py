"""A picture of two metrics against each other: what a knob trades, and what lies off its line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from genenv.metrics.intervals import student
from genenv.metrics.names import METRICS
from genenv.viz.plots import INK, LEARNED, SERIES, SOFT_INK, STYLE, save_figure, subplots

# isort: split
# After plots, which says what to install where matplotlib is missing.
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

Values = tuple[Sequence[float], Sequence[float]]
"""Those of two metrics, of independent seeds."""
COLOURS = (LEARNED, SERIES[1], SERIES[2], INK)
MARKERS = "s^D*"
MOST_POINTS = len(COLOURS)


def save_frontier(
    path: str | Path, metrics: tuple[str, str], line: Mapping[str, Values], points: Mapping[str, Values]
) -> None:
    """Writes one metric over another: means over seeds, with Student's 95 % intervals as bars.

    Args:
        path: of the PNG file.
        metrics: keys in `genenv.metrics.names.METRICS`, that of the horizontal axis first. FID is logarithmic.
        line: {value of the knob: (values, values)}, joined in order.
        points: {name: (values, values)}, at most 4.

    Raises:
        ValueError: if there is no line, too many points, or values are missing or not finite.
    """
    if not line or len(points) > MOST_POINTS:
        raise ValueError(
            f"a line and at most {MOST_POINTS} points are drawn, got {len(line)} and {len(points)} points"
        )
    for name, values in {**line, **points}.items():
        sizes = [len(each) for each in values]
        if sizes[0] != sizes[1] or not sizes[0] or not all(np.isfinite(each).all() for each in values):
            raise ValueError(f"{name} must have as many finite values of both metrics, got {values}")
    with matplotlib.style.context(["default", STYLE]):
        figure, [axes] = subplots(1, 1)
        figure.set_size_inches(7.2, 4.6)
        means = np.array([[np.mean(each) for each in values] for values in line.values()])
        axes.plot(*means.T, color=SOFT_INK, marker="o", markersize=4, label="guidance weight")
        for (name, values), mean in zip(line.items(), means, strict=True):
            _bars(axes, values, SOFT_INK)
            axes.annotate(name, mean, xytext=(5, 5), textcoords="offset points", color=INK, fontsize=8)
        for (name, values), colour, marker in zip(points.items(), COLOURS, MARKERS, strict=False):
            mean = [np.mean(each) for each in values]
            axes.plot(*mean, color=colour, marker=marker, markersize=8, linestyle="", label=name)
            _bars(axes, values, colour)
        for axis, name, set_label, set_scale in (
            (axes.xaxis, metrics[0], axes.set_xlabel, axes.set_xscale),
            (axes.yaxis, metrics[1], axes.set_ylabel, axes.set_yscale),
        ):
            known = METRICS[name]
            set_label(f"{known.title} ({'lower' if known.better < 0 else 'higher'} is better)")
            if name == "fid":
                set_scale("log")
                axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
                axis.set_minor_locator(NullLocator())
                axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.legend()
        save_figure(figure, path)


def _bars(axes: Axes, values: Values, colour: str) -> None:
    means = [float(np.mean(each)) for each in values]
    if len(values[0]) < 2:
        return
    (left, right), (low, high) = (student(list(each)) for each in values)
    axes.errorbar(
        means[0],
        means[1],
        xerr=[[means[0] - left], [right - means[0]]],
        yerr=[[means[1] - low], [high - means[1]]],
        color=colour,
        linewidth=0.8,
    )
