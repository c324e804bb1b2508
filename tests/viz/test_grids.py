import importlib
import itertools
import math
import os
import sys

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg

from genenv import grids as noise
from genenv.metrics.intervals import student
from genenv.viz import grids, plots
from tests.viz.test_plots import full_disk, near, read


def hand_made(steps, sigma_max):
    """Returns all named grids."""
    return {name: noise.named(name, steps, sigma_max, 0.01) for name in noise.GRIDS}


def speeds_of(levels, trajectories=1, spread=0.0, seed=0):
    """Returns the speeds (K, N) on an even clock that fall by some levels, and vary."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(levels) - 1, trajectories, generator=generator, dtype=torch.float64)
    return -levels.diff()[:, None] * (len(levels) - 1) / levels[0] * (1 + spread * noise)


@pytest.fixture
def drawn(monkeypatch):
    """Returns the figures that are drawn instead of saved."""
    figures = []
    monkeypatch.setattr(grids, "save_figure", lambda figure, path: figures.append(figure))
    return figures


def clock_panels(drawn, speeds, named, period):
    """Returns the panels of the speed and of the noise level."""
    grids.save_clock("clock.png", speeds, named, period)
    return drawn[-1].axes


def boxes(figure):
    """Returns the places of a figure's legend, of the panels, and of the tick labels of each axis, as drawn."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    labels = []
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        shown = [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        labels.append([text.get_window_extent() for text in shown if text.get_text()])
    legends = [legend.get_window_extent() for legend in figure.legends]
    return legends, [axes.get_window_extent() for axes in figure.axes], labels


def assert_nothing_covers_another(figure):
    legends, panels, labels = boxes(figure)
    page = figure.bbox
    for legend, panel in itertools.product(legends, panels):
        assert not legend.overlaps(panel)
    for axis in labels:
        assert len(axis) >= 1
        assert not any(a.overlaps(b) for a, b in itertools.combinations(axis, 2))
    for box in [*legends, *itertools.chain(*labels)]:
        assert page.x0 <= box.x0
        assert box.x1 <= page.x1
        assert page.y0 <= box.y0
        assert box.y1 <= page.y1


@pytest.mark.parametrize("colours", [[line["color"] for line in grids.LINES], plots.SERIES])
def test_lines_stay_apart_for_colour_blind_readers(colours):
    # Machado et al. 2009: protanopia, deuteranopia, tritanopia, on linear RGB; distance in CIELAB.
    seen = {
        "all": np.eye(3),
        "protan": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
        "deutan": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
        "tritan": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
    }
    to_xyz = [[0.4339, 0.3762, 0.1899], [0.2127, 0.7152, 0.0722], [0.0178, 0.1095, 0.8728]]  # white = 1
    to_lab = np.array([[0, 116, 0], [500, -500, 0], [0, 200, -200]])
    rgb = np.array([[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for colour in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    for matrix in seen.values():
        xyz = np.clip(linear @ np.transpose(matrix), 0, 1) @ np.transpose(to_xyz)
        lab = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116) @ to_lab.T
        assert min(math.dist(a, b) for a, b in itertools.combinations(lab, 2)) > 20
        assert (lab[:, 0] - 16 < 75).all()  # dark enough to be seen on white


def test_lines_and_markers_differ_without_colours():
    assert len(set(grids.MARKERS)) == len({line["linestyle"] for line in grids.LINES}) == 8


@pytest.mark.parametrize(("steps", "period", "trajectories"), [(1, 3.0, 1), (4, 20.0, 3), (30, 80.0, 50)])
def test_a_clock_shows_the_speed_of_each_decision_until_the_next(drawn, steps, period, trajectories):
    speeds = speeds_of(noise.edm(steps, period, 0.01, rho=3.0), trajectories, 0.2)
    left, _ = clock_panels(
        drawn, speeds.float().requires_grad_(), {"uniform": noise.uniform(7, period)}, period
    )
    x, y = left.lines[0].get_data()
    for k in range(steps):
        assert y[2 * k] == y[2 * k + 1] == pytest.approx(speeds[k].mean().item(), rel=1e-5, abs=1e-6)
        assert x[2 * k : 2 * k + 2] == pytest.approx([k * period / steps, (k + 1) * period / steps])
    assert len(y) == 2 * steps


@pytest.mark.parametrize(("steps", "period"), [(3, 3.0), (18, 20.0)])
def test_a_clock_shows_the_noise_level_that_is_left(drawn, steps, period):
    speeds = speeds_of(noise.cosine(steps, period), 9, 0.1)
    _, right = clock_panels(drawn, speeds, {"uniform": noise.uniform(7, period)}, period)
    x, y = right.lines[0].get_data()
    for k in range(steps + 1):
        left = period - speeds[:k].sum(0).mean().item() * period / steps
        assert np.interp(k * period / steps, x, y) == pytest.approx(left, abs=1e-9 * period)


@pytest.mark.parametrize("period", [3.0, 20.0])
@pytest.mark.parametrize("steps", [1, 5, 50])
def test_each_grid_has_the_speeds_that_lead_through_its_levels(drawn, steps, period):
    named = hand_made(steps, period)
    left, right = clock_panels(drawn, torch.ones(8, 2), named, period)
    assert len(left.lines) == len(right.lines) == 1 + len(named)
    for levels, speed, sigma in zip(named.values(), left.lines[1:], right.lines[1:], strict=True):
        times = np.linspace(0, period, steps + 1)
        assert sigma.get_ydata() == pytest.approx(np.interp(sigma.get_xdata(), times, levels), abs=1e-9)
        assert len(sigma.get_xdata()) > 600  # straight in time, so that it bends on the logarithmic axis
        assert set(times.round(9)) <= set(sigma.get_xdata().round(9))
        x, y = speed.get_data()
        assert np.trapezoid(y, x) == pytest.approx(period)
        passed = [np.trapezoid(y[: 2 * k], x[: 2 * k]) for k in range(1, steps + 1)]
        assert passed == pytest.approx((period - levels[1:]).tolist())


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_the_uniform_grid_is_the_clock_of_speed_1_at_any_number_of_steps(drawn, steps):
    left, right = clock_panels(drawn, torch.ones(20, 3), {"u": noise.uniform(steps, 5.0)}, 5.0)
    assert left.lines[1].get_ydata() == pytest.approx(1)
    for line in right.lines:
        assert line.get_ydata() == pytest.approx(5 - line.get_xdata(), abs=1e-9)


@pytest.mark.parametrize("trajectories", [1, 40, 199, 1000])
def test_the_band_of_a_clock_holds_99_percent_of_the_trajectories(drawn, monkeypatch, trajectories):
    bands, fill = [], Axes.fill_between
    monkeypatch.setattr(Axes, "fill_between", lambda *a, **how: bands.append(a[1:]) or fill(*a, **how))
    speeds = speeds_of(noise.cosine(6, 3.0), trajectories, 0.2, seed=trajectories).numpy()
    clock_panels(drawn, torch.from_numpy(speeds), {"u": noise.uniform(4, 3.0)}, 3.0)
    levels = 3 - np.insert(speeds, 0, 0, axis=0).cumsum(0) / 2
    for (time, low, high), values, at in zip(bands, (speeds, levels), (0.25, 0.0), strict=True):
        for k, row in enumerate(values):
            lower, upper = (np.interp(k / 2 + at, time, edge) for edge in (low, high))
            held = ((row >= lower - 1e-9) & (row <= upper + 1e-9)).mean()
            assert held >= 0.99
            if trajectories == 1000 and np.ptp(row):
                assert held <= 0.995


def test_trajectories_that_part_make_a_wide_band(tmp_path):
    levels = noise.cosine(12, 20.0)
    for name, spread in (("spread", 0.3), ("alike", 0.0)):
        grids.save_clock(
            tmp_path / f"{name}.png", speeds_of(levels, 60, spread), {"u": noise.uniform(5, 20.0)}, 20.0
        )
    spread, alike = (
        near(read(tmp_path / f"{name}.png")[120:], "#c2dbe8").sum() for name in ("spread", "alike")
    )
    assert spread > 10_000
    assert alike < 0.02 * spread


def test_the_legend_of_a_clock_names_its_lines_and_the_band(drawn):
    named = hand_made(4, 3.0)
    left, _ = clock_panels(drawn, torch.ones(3, 2), named, 3.0)
    [legend] = drawn[0].legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["learned, mean", "learned, 99 % of trajectories", *named]
    mean, band, *others = legend.legend_handles
    assert [line.get_color() for line in (mean, *others)] == [line.get_color() for line in left.lines]
    assert band.get_facecolor()[-1] < 0.5


def test_the_learned_clock_is_thickest_and_lies_below_one_that_equals_it(drawn):
    levels = noise.cosine(6, 3.0)
    for axes in clock_panels(
        drawn, speeds_of(levels), {"closed form": levels, "edm": noise.edm(6, 3.0)}, 3.0
    ):
        learned, *others = axes.lines
        assert all(learned.get_linewidth() > 2 * line.get_linewidth() for line in others)
        assert all(learned.get_zorder() <= line.get_zorder() for line in others)
        assert learned.get_color() == plots.LEARNED
        assert len({line.get_color() for line in axes.lines}) == 3


@pytest.mark.parametrize("period", [3.0, 20.0, 80.0])
def test_the_axes_of_a_clock_reach_from_0_to_the_first_level(drawn, period):
    named = hand_made(10, period)
    left, right = clock_panels(drawn, speeds_of(named["cosine"], 5, 0.01), named, period)
    for axes in (left, right):
        threshold = axes.yaxis.get_transform().linthresh
        assert axes.get_ylabel().endswith(f"linear below {threshold:g}")
        assert math.log10(threshold) == pytest.approx(round(math.log10(threshold)))
        low, high = axes.get_ylim()
        for line in axes.lines:
            assert low <= line.get_ydata().min()
            assert line.get_ydata().max() <= high
    assert 0 in right.get_yticks()
    assert right.yaxis.get_transform().linthresh == 0.01
    assert left.yaxis.get_transform().linthresh <= left.lines[0].get_ydata().min() / 2


def test_a_clock_that_overshoots_runs_out_of_the_picture_below_0(drawn):
    speeds = 1.1 * speeds_of(noise.cosine(8, 20.0), 3)
    _, right = clock_panels(drawn, speeds, {"u": noise.uniform(500, 20.0)}, 20.0)
    assert right.lines[0].get_ydata()[-1] == pytest.approx(-2)
    assert right.get_ylim()[0] == -right.yaxis.get_transform().linthresh == -0.01
    assert_nothing_covers_another(drawn[0])


def test_a_clock_that_stands_still_or_runs_back_can_be_drawn(drawn):
    speeds = torch.tensor([[2.5], [0.0], [-0.5], [2.0]])
    left, _ = clock_panels(drawn, speeds, {"u": noise.uniform(5, 3.0)}, 3.0)
    assert left.lines[0].get_ydata()[::2] == pytest.approx([2.5, 0, -0.5, 2])
    assert left.get_ylim()[0] < -0.5
    assert_nothing_covers_another(drawn[0])


@pytest.mark.parametrize(
    ("speeds", "named", "period", "message"),
    [
        (torch.ones(3), {"u": noise.uniform(3, 3.0)}, 3.0, r"shape \(K, N\) with K, N > 0, got \(3,\)"),
        (torch.ones(3, 0), {"u": noise.uniform(3, 3.0)}, 3.0, r"K, N > 0, got \(3, 0\)"),
        (torch.tensor([[1.0], [math.nan]]), {"u": noise.uniform(3, 3.0)}, 3.0, "finite, got nan"),
        (torch.ones(3, 1), {"u": noise.uniform(3, 3.0)}, 0.0, "period must be a number above 0, got 0.0"),
        (
            torch.ones(3, 1),
            {"u": noise.uniform(3, 3.0)},
            math.inf,
            "period must be a number above 0, got inf",
        ),
        (torch.ones(3, 1), {"u": noise.uniform(3, 4.0)}, 3.0, "u must fall from the period 3, got 4"),
        (torch.ones(3, 1), {"bad": [3.0, 1.0]}, 3.0, r"bad: a grid must .* end at 0, got \[3.0, 1.0\]"),
        (torch.ones(3, 1), {"bad": [3.0, 4.0, 0.0]}, 3.0, "bad: a grid must fall, got 3 before 4"),
        (torch.ones(3, 1), {"bad": [[3.0, 0.0]]}, 3.0, "bad: a grid must be a list"),
        (torch.ones(3, 1), {}, 3.0, "grids must be 1 or more, 7 at most, got 0"),
        (torch.ones(3, 1), {str(i): [3.0, 0.0] for i in range(8)}, 3.0, "7 at most, got 8"),
    ],
)
def test_a_clock_that_cannot_be_drawn_is_refused(tmp_path, speeds, named, period, message):
    with pytest.raises(ValueError, match=message):
        grids.save_clock(tmp_path / "c.png", speeds, named, period)
    assert list(tmp_path.iterdir()) == []


def steps_of(drawn, named, **told):
    """Returns the panel of steps."""
    grids.save_steps("steps.png", named, **told)
    [axes] = drawn[-1].axes
    return axes


@pytest.mark.parametrize("period", [3.0, 20.0, 80.0])
def test_steps_stand_at_the_levels_of_each_grid_in_its_row(drawn, period):
    named = {f"{name} {steps}": grid for steps in (1, 6) for name, grid in hand_made(steps, period).items()}
    axes = steps_of(drawn, named)
    low, high = axes.get_xlim()
    names = [text.get_text() for text in axes.get_yticklabels()]
    for row, (name, levels) in enumerate(named.items()):
        x, y = axes.lines[row].get_data()
        assert x == pytest.approx(levels.tolist())
        assert set(y) == {axes.get_yticks()[row]}
        assert names[row] == f"{name}, K = {len(levels) - 1}"
        assert low < x.min()
        assert x.max() < high
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first row on top


@pytest.mark.parametrize("steps", [2, 7, 20])
def test_the_ticks_of_a_row_can_be_counted(tmp_path, steps):
    grids.save_steps(tmp_path / "s.png", {"mine": noise.log_snr(steps, 20.0, 0.02)}, learned="mine")
    picture = near(read(tmp_path / "s.png"), plots.LEARNED)
    row = picture[picture.sum(1).argmax()].astype(int)
    assert (np.diff(row, prepend=0) == 1).sum() == steps + 1
    gaps = np.diff(np.flatnonzero(np.diff(row, prepend=0) == 1))[1:]  # behind the one from 0
    assert np.ptp(gaps) <= 2  # even in the logarithm


@pytest.mark.parametrize(
    ("grid", "threshold"),
    [
        (noise.uniform(10, 3.0), 0.1),
        (noise.edm(10, 80.0, 0.002), 0.001),
        (noise.edm(50, 80.0, 0.0), 0.001),  # its last step is of 1e-10
        (noise.uniform(1, 0.5), 0.1),
    ],
)
def test_the_axis_of_steps_is_logarithmic_down_to_the_smallest_level_or_four_decades(drawn, grid, threshold):
    axes = steps_of(drawn, {"g": grid})
    assert axes.xaxis.get_transform().linthresh == pytest.approx(threshold)
    assert axes.get_xlabel() == f"noise level sigma, linear below {threshold:g}"
    assert {0, threshold} <= set(axes.get_xticks().round(12))
    place = axes.transData.transform([(x, 0) for x in grid])[:, 0]
    assert np.isfinite(place).all()
    assert (np.diff(place) <= 0).all()


def test_steps_show_that_edm_crowds_near_0(drawn):
    axes = steps_of(drawn, {"edm": noise.edm(20, 20.0, 0.0), "uniform": noise.uniform(20, 20.0)})
    edm, uniform = (axes.transData.transform([(x, 0) for x in line.get_xdata()])[:, 0] for line in axes.lines)
    middle = (edm[0] + edm[-1]) / 2
    assert (edm < middle).sum() == 9
    assert (uniform < middle).sum() == 1


def test_steps_of_the_learned_grid_stand_out(drawn):
    axes = steps_of(drawn, hand_made(5, 3.0), learned="cosine")
    for name, line in zip(noise.GRIDS, axes.lines, strict=True):
        assert line.get_color() == (plots.LEARNED if name == "cosine" else plots.INK)


@pytest.mark.parametrize(
    ("named", "told", "message"),
    [
        ({}, {}, "grids must be 1 or more, got 0"),
        ({"a": [1.0]}, {}, r"a: a grid must be a list of at least 2 noise levels, got \[1.0\]"),
        ({"a": [1.0, math.nan, 0.0]}, {}, "a: a grid must hold finite noise levels"),
        ({"a": [1.0, 0.0], "b": [2.0, 0.0]}, {"learned": "c"}, "learned must be one of a, b, got 'c'"),
    ],
)
def test_steps_that_cannot_be_drawn_are_refused(tmp_path, named, told, message):
    with pytest.raises(ValueError, match=message):
        grids.save_steps(tmp_path / "s.png", named, **told)
    assert list(tmp_path.iterdir()) == []


SERIES = {
    "edm": {9: [0.84, 0.80, 0.90], 3: [52.0, 50.0, 49.0], 5: [9.2, 9.1, 9.4]},
    "mine": {3: [1.3, 1.2, 1.4, 1.5], 9: [0.27]},
}


def metric_panel(drawn, series, metric="fid", **told):
    """Returns the panel of a metric."""
    grids.save_metric("metric.png", metric, series, **told)
    [axes] = drawn[-1].axes
    return axes


@pytest.mark.parametrize("learned", [None, "mine"])
def test_a_metric_shows_means_and_intervals_over_the_evaluations(drawn, learned):
    axes = metric_panel(drawn, SERIES, learned=learned)
    for container, points in zip(axes.containers, SERIES.values(), strict=True):
        line, _, [bars] = container.lines
        assert line.get_xdata().tolist() == sorted(points)
        assert line.get_ydata() == pytest.approx([np.mean(points[n]) for n in sorted(points)])
        for n, bar in zip(sorted(points), bars.get_segments(), strict=True):
            ends = student(points[n]) if len(points[n]) > 1 else points[n] * 2
            assert bar[:, 1] == pytest.approx(ends)
            assert set(bar[:, 0]) == {n}


@pytest.mark.parametrize("place", [0, 3, 7])
def test_eight_grids_have_looks_of_their_own_and_the_learned_one_is_thickest(drawn, place):
    series = {f"g{i}": {2: [1.0 + i], 4: [0.5 + i]} for i in range(8)}
    axes = metric_panel(drawn, series, learned=f"g{place}")
    lines = [container.lines[0] for container in axes.containers]
    for look in ("get_color", "get_marker", "get_linestyle"):
        looks = [getattr(line, look)() for line in lines]
        assert look == "get_linestyle" or len(set(looks)) == 8  # dashes of one's own are all called "--"
    assert [line.get_color() for line in lines].index(plots.LEARNED) == place
    widths = [line.get_linewidth() for line in lines]
    assert widths.index(max(widths)) == place
    assert max(widths) > 2 * sorted(widths)[-2]
    names = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert names == list(series)


def test_both_axes_of_a_metric_are_logarithmic(drawn):
    axes = metric_panel(drawn, SERIES)
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


@pytest.mark.parametrize("value", [0.0, -0.01])
def test_a_metric_with_a_mean_that_has_no_logarithm_has_an_even_axis(drawn, value):
    axes = metric_panel(drawn, {"a": {4: [value, value], 8: [0.02, 0.04]}}, "kid")
    assert axes.get_yscale() == "linear"
    assert axes.get_ylim()[0] < value


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_a_bar_that_reaches_below_0_leaves_the_means_their_room(drawn, scale):
    values = {2: [4.0, 4.1, 4.2], 8: [0.1, 1.0, 3.0], 16: [0.6, 1.0, 1.4]}
    axes = metric_panel(drawn, {"a": {n: [scale * v for v in row] for n, row in values.items()}})
    low, high = axes.get_ylim()
    assert student(values[8])[0] < 0
    assert scale / 2 == pytest.approx(low)
    assert student(values[8])[1] * scale < high


@pytest.mark.parametrize(
    ("metric", "title", "better"),
    [
        ("fid", "FID", "lower is better"),
        ("inception_score", "Inception Score", "higher is better"),
        ("w2", "W2", "lower is better"),
        ("seconds", "seconds", ""),
        ("$w_2$", "$w_2$", ""),
    ],
)
def test_a_metric_has_its_title_and_says_which_way_it_gets_better(drawn, metric, title, better):
    axes = metric_panel(drawn, SERIES, metric)
    assert axes.get_title("left") == title
    assert axes.get_ylabel() == better
    assert axes.get_xlabel() == "solver evaluations"
    assert not axes._left_title.get_parse_math()


def test_numbers_of_evaluations_are_marked_all_and_named_where_there_is_room(drawn):
    numbers = [2, 3, 5, 8, 9, 12, 13, 19, 20, 35, 49, 50, 51, 100]
    axes = metric_panel(drawn, {"a": {n: [1 / n] for n in numbers}})
    marked = sorted({*axes.get_xticks(), *axes.get_xticks(minor=True)})
    assert marked == numbers
    named = axes.get_xticks().tolist()
    assert len(named) > 7
    assert {2, 3, 5, 8, 12, 19, 35} <= set(named)
    assert_nothing_covers_another(drawn[0])


@pytest.mark.parametrize(
    ("series", "told", "message"),
    [
        ({}, {}, "grids must be 1 or more, 8 at most, got 0"),
        ({str(i): {1: [1.0]} for i in range(9)}, {}, "8 at most, got 9"),
        ({"a": {}}, {}, "a must have values of fid, got none"),
        ({"a": {3: []}}, {}, r"a must have finite values of fid .*, got \[\] at 3"),
        ({"a": {3: [1.0, math.nan]}}, {}, r"got \[1.0, nan\] at 3"),
        ({"a": {0: [1.0]}}, {}, r"at 1 solver evaluation or more, got \[1.0\] at 0"),
        ({"a": {3: [1.0]}}, {"learned": "b"}, "learned must be one of a, got 'b'"),
    ],
)
def test_metrics_that_cannot_be_drawn_are_refused(tmp_path, series, told, message):
    with pytest.raises(ValueError, match=message):
        grids.save_metric(tmp_path / "m.png", "fid", series, **told)
    assert list(tmp_path.iterdir()) == []


LONG = "$x_1$ and a very long name that nobody would ever want to give to a grid of noise levels"


@pytest.mark.parametrize(("steps", "period"), [(1, 3.0), (18, 80.0), (100, 14.6)])
def test_nothing_covers_another_in_the_pictures_of_grids(drawn, steps, period):
    named = {**hand_made(steps, period), LONG: noise.uniform(2, period)}
    grids.save_clock("c.png", speeds_of(named["flow_time"], 20, 0.1), named, period)
    grids.save_steps("s.png", named, LONG)
    for figure in drawn:
        assert_nothing_covers_another(figure)


@pytest.mark.parametrize(
    ("numbers", "scale"), [((5,), 0.1), ((3, 5, 9), 300.0), ((2, 3, 5, 8, 12, 20, 50), 1.0)]
)
def test_nothing_covers_another_in_the_picture_of_a_metric(drawn, numbers, scale):
    series = {f"g{i}": {n: [scale / n + i, scale + i] for n in numbers} for i in range(1, 8)}
    axes = metric_panel(drawn, series | {LONG: {5: [scale]}}, learned=LONG)
    assert_nothing_covers_another(drawn[0])
    assert len(axes.get_yticks()) >= 2


def test_names_are_no_formulas_and_cut_short(drawn):
    levels = noise.uniform(3, 3.0)
    clock_panels(drawn, torch.ones(3, 1), {LONG: levels, "_hidden": levels}, 3.0)
    metric_panel(drawn, {LONG: {3: [1.0]}, "_hidden": {3: [1.0]}})
    steps = steps_of(drawn, {LONG: levels, "_hidden": levels}).get_yticklabels()
    for texts in (*(figure.legends[0].get_texts() for figure in drawn[:2]), steps):
        long, hidden = texts[-2:]
        assert long.get_text().startswith("$x_1$ and a very")
        assert "\N{HORIZONTAL ELLIPSIS}" in long.get_text()
        assert not long.get_parse_math()
        assert hidden.get_text().startswith("_hidden")


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: grids.save_clock(path, torch.ones(3, 2), {"u": noise.uniform(3, 3.0)}, 3.0),
        lambda path: grids.save_steps(path, {"u": noise.uniform(3, 3.0)}),
        lambda path: grids.save_metric(path, "fid", SERIES),
    ],
    ids=["clock", "steps", "metric"],
)
def test_a_failed_write_leaves_the_old_picture_and_nothing_else(tmp_path, monkeypatch, draw):
    (tmp_path / "p.png").write_text("old")
    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        draw(tmp_path / "p.png")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("p.png", "old")]


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.style", None)
    for module in ("genenv.viz.plots", "genenv.viz.grids"):
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(ImportError, match=r"pip install 'genenv\[viz\]'"):
        importlib.import_module("genenv.viz.grids")
