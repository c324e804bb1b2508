import numpy as np
import pytest

from genenv.metrics.intervals import student
from genenv.viz import frontier
from genenv.viz.frontier import save_frontier

LINE = {"0": ([0.95, 0.97], [0.3, 0.5]), "0.5": ([0.98, 0.99], [0.6, 0.8]), "2": ([0.99, 0.995], [3.0, 3.4])}
POINTS = {"tuned": ([0.985, 0.99], [0.4, 0.5])}


@pytest.fixture
def drawn(monkeypatch):
    """Returns the figures that are drawn instead of saved."""
    figures = []
    monkeypatch.setattr(frontier, "save_figure", lambda figure, path: figures.append(figure))
    return figures


@pytest.mark.parametrize("metrics", [("accuracy", "fid"), ("recall", "precision"), ("fid", "hpsv2")])
def test_the_line_goes_through_the_means_in_order_and_the_points_lie_at_theirs(drawn, metrics):
    save_frontier("f.png", metrics, LINE, POINTS)
    [axes] = drawn[0].axes
    line, *points = (each for each in axes.lines if each.get_marker() in ("o", *frontier.MARKERS))
    assert line.get_xydata() == pytest.approx(np.array([[0.96, 0.4], [0.985, 0.7], [0.9925, 3.2]]))
    assert points[0].get_xydata() == pytest.approx(np.array([[0.9875, 0.45]]))
    assert points[0].get_label() == "tuned"
    assert [text.get_text() for text in axes.texts] == list(LINE)
    assert (axes.get_xscale(), axes.get_yscale()) == tuple(
        "log" if name == "fid" else "linear" for name in metrics
    )


def test_bars_are_the_intervals_of_the_means(drawn):
    save_frontier("f.png", ("recall", "precision"), {"0": LINE["0"]}, {})
    segments = [part for group in drawn[0].axes[0].collections for part in group.get_segments()]
    ends = np.array(segments)
    for axis, values in enumerate(LINE["0"]):
        low, high = student(values)
        assert any(part[:, axis] == pytest.approx([low, high]) for part in ends)


def test_a_single_seed_has_no_bars_and_the_axes_say_which_way_is_better(drawn):
    save_frontier("f.png", ("accuracy", "fid"), {"1": ([0.9], [0.5])}, {"tuned": ([0.95], [0.4])})
    [axes] = drawn[0].axes
    assert not axes.collections
    assert axes.get_xlabel() == "accuracy (higher is better)"
    assert axes.get_ylabel() == "FID (lower is better)"


def test_a_picture_is_written(tmp_path):
    save_frontier(tmp_path / "f.png", ("accuracy", "fid"), LINE, POINTS)
    assert (tmp_path / "f.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("line", "points", "message"),
    [
        ({}, POINTS, "a line and at most 4 points are drawn, got 0 and 1 points"),
        (LINE, {str(i): ([1.0], [1.0]) for i in range(5)}, "got 3 and 5 points"),
        ({"0": ([0.9], [])}, {}, "0 must have as many finite values of both metrics"),
        ({"0": ([], [])}, {}, "0 must have as many finite values"),
        (LINE, {"t": ([float("nan")], [0.1])}, "t must have as many finite values"),
    ],
)
def test_what_cannot_be_drawn_is_refused(line, points, message):
    with pytest.raises(ValueError, match=message):
        save_frontier("f.png", ("accuracy", "fid"), line, points)
