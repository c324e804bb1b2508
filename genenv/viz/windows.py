"""Which decisions of a trajectory count: what each is worth, what judges say on the way, and the windows found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from genenv.metrics.intervals import student
from genenv.viz.plots import INK, LEARNED, RULE, SERIES, SOFT_INK, STYLE, save_figure, subplots

# isort: split
# After plots, which says what to install where matplotlib is missing.
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

MOST = len(SERIES)


def save_windows(
    path: str | Path,
    gains: Mapping[tuple[int, int], Sequence[float]],
    curves: Mapping[str, Tensor],
    windows: Mapping[str, Tensor],
) -> None:
    """Writes three panels over the decisions of a trajectory.

    What training on some decisions alone gains, means over seeds with Student's 95 % intervals; the mean curves of
    judges' opinions of the previews, each brought to [0, 1]; and the share of images whose window holds a decision.

    Args:
        path: of the PNG file.
        gains: {(start, end): gains of independent seeds}, of the decisions start <= k < end; none leave the panel out.
        curves: {name: (T,)}, at most 3.
        windows: {name: (T,) share of images}, at most 3.

    Raises:
        ValueError: if there are no curves or windows, too many, or curves that differ in length.
    """
    for what, found in (("curves", curves), ("windows", windows)):
        if not 0 < len(found) <= MOST:
            raise ValueError(f"{what} must be 1 to {MOST}, got {len(found)}")
    lengths = {len(each) for each in (*curves.values(), *windows.values())}
    if len(lengths) > 1:
        raise ValueError(f"curves and windows must be of as many decisions, got {sorted(lengths)}")
    (horizon,) = lengths
    with matplotlib.style.context(["default", STYLE]):
        figure, panels = subplots(2 + bool(gains), 1)
        if gains:
            _draw_gains(panels[0], gains)
        _draw_lines(
            panels[-2],
            "judges of the previews",
            "0 = least, 1 = most",
            {n: _unit(c) for n, c in curves.items()},
        )
        _draw_lines(
            panels[-1], "windows", "share of images", {n: w.numpy() for n, w in windows.items()}, steps=True
        )
        for axes in panels:
            axes.set_xlim(0, horizon)
            axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        panels[-1].set_ylim(0, 1.03)
        panels[-1].set_xlabel("decision, from noise to image")
        save_figure(figure, path)


def _draw_gains(axes: Axes, gains: Mapping[tuple[int, int], Sequence[float]]) -> None:
    axes.set_title("gain of training on these decisions alone", pad=24)
    axes.set_ylabel("held-out reward")
    axes.axhline(0, color=RULE)
    for (start, end), values in sorted(gains.items()):
        mean = float(np.mean(values))
        axes.bar((start + end) / 2, mean, width=end - start, color=LEARNED, edgecolor="white")
        if len(values) > 1:
            low, high = student(list(values))
            axes.errorbar((start + end) / 2, mean, (high - low) / 2, color=INK, elinewidth=1.1, capsize=3)


def _draw_lines(
    axes: Axes, title: str, unit: str, lines: Mapping[str, np.ndarray], steps: bool = False
) -> None:
    axes.set_title(title, pad=24)
    axes.set_ylabel(unit)
    for (name, values), colour in zip(lines.items(), SERIES, strict=False):
        if steps:
            axes.stairs(values, color=colour, label=name, linewidth=2)
        else:
            axes.plot(
                np.arange(len(values)) + 0.5, values, color=colour, label=name, marker="o", markersize=3
            )
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.01), ncols=4, borderaxespad=0)
    axes.tick_params(colors=SOFT_INK)


def _unit(curve: Tensor) -> np.ndarray:
    """Returns a curve brought to [0, 1]; 0 where it is flat."""
    values = curve.double().numpy()
    return (values - values.min()) / max(values.max() - values.min(), 1e-12)
