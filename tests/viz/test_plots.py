import importlib
import math
import os
import sys

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from genenv.data import digits
from genenv.viz import plots

STATIC = {"mask_ratio": torch.tensor([0.9, 0.5, 0.1]), "guidance_weight": torch.tensor([0.0, 0.5, 1.0])}
LEARNED = {name: line[:, None] + torch.linspace(-0.2, 0.2, 40) for name, line in STATIC.items()}
HELD_OUT = {f"held_out/{name}": 0.5 for name in ("fid", "precision", "recall", "coverage", "accuracy")}
RECORDS = [{"iteration": i, "images": 8 * i, "reward": i / 60} | HELD_OUT for i in range(60)]


def read(path) -> np.ndarray:
    """Returns a picture (H, W, 3) uint8, checking that it is a PNG file."""
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    return (imread(path)[..., :3] * 255).round().astype(np.uint8)


def enlarged(image: torch.Tensor) -> np.ndarray:
    """Returns one digit as it must appear: each of its pixels 12 x 12 of the same grey."""
    grey = (image[0] * 255).round().byte().numpy().repeat(12, 0).repeat(12, 1)
    return np.stack([grey] * 3, axis=-1)


def places(picture: np.ndarray, image: torch.Tensor) -> list[tuple[int, int]]:
    """Returns (top, left) of every exact appearance of a digit in a picture."""
    wanted = enlarged(image)
    height, width = (side - 95 for side in picture.shape[:2])
    found = np.argwhere((picture[:height, :width] == wanted[0, 0]).all(-1))
    for y, x in ((50, 40), (20, 60), (95, 95), (70, 30), (36, 48)):
        found = found[(picture[found[:, 0] + y, found[:, 1] + x] == wanted[y, x]).all(-1)]
    return [
        (top, left)
        for top, left in found.tolist()
        if (picture[top : top + 96, left : left + 96] == wanted).all()
    ]


def near(picture: np.ndarray, colour: str) -> np.ndarray:
    """Returns where a picture has a colour."""
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return (np.abs(picture.astype(int) - rgb) <= 3).all(-1)


def test_samples_stand_below_their_class_and_at_the_same_place_of_every_block(tmp_path):
    images = digits()[0][:60]
    labels = [f"class {i % 3}" for i in range(30)]
    plots.save_samples(tmp_path / "s.png", {"hand-crafted": images[:30], "learned": images[30:]}, labels)
    picture = read(tmp_path / "s.png")
    [(top, left)], [(other, same_left)] = places(picture, images[0]), places(picture, images[30])
    assert same_left == left
    assert other > top + 396  # below four lines of the first block
    for i, image in enumerate(images):
        line, column = divmod(i % 30, 3)
        expected = (top if i < 30 else other) + 100 * line, left + 100 * column  # 96 pixels and a gap
        assert places(picture, image) == ([expected] if line < 4 else [])


@pytest.mark.parametrize(
    ("classes", "per_class", "shown"), [(10, 4, 20), (2, 4, 8), (5, 2, 10), (10, 30, 40)]
)
def test_the_classes_that_come_first_are_shown(tmp_path, classes, per_class, shown):
    images = digits()[0][:40]
    labels = [str(i // 8) for i in range(40)]
    plots.save_samples(tmp_path / "s.png", {"a": images}, labels, classes=classes, per_class=per_class)
    picture = read(tmp_path / "s.png")
    found = [i for i, image in enumerate(images) if places(picture, image)]
    assert len(found) == shown
    assert found == [i for i in range(40) if i // 8 < classes and i % 8 < per_class]


def test_real_images_of_the_same_classes_stand_above(tmp_path):
    images, labels = digits()
    names = [f"number {label}" for label in labels.tolist()]
    shown = {"hand-crafted": torch.zeros(6, 1, 8, 8), "learned": torch.zeros(6, 1, 8, 8)}
    classes = ["number 7", "number 2", "number 7", "number 2", "number 7", "number 11"]
    plots.save_samples(tmp_path / "s.png", shown, classes, (images, names))
    picture = read(tmp_path / "s.png")
    for column, wanted in enumerate((7, 2)):
        for line, i in enumerate((labels == wanted).nonzero()[:4, 0].tolist()):
            found = [left for top, left in places(picture, images[i]) if top < 500]
            # as many as the deepest column of the others, three of the sevens
            assert found == ([plots.MARGIN + 100 * column] if line < 3 else [])
    with pytest.raises(ValueError, match="real must name each of its 1797 images, got 2"):
        plots.save_samples(tmp_path / "s.png", shown, classes, (images, names[:2]))


def test_without_labels_the_first_images_stand_in_reading_order(tmp_path):
    images = digits()[0][:50]
    plots.save_samples(tmp_path / "s.png", {"learned": images})
    picture = read(tmp_path / "s.png")
    [(top, left)] = places(picture, images[0])
    for i, image in enumerate(images):
        expected = [(top + 100 * (i // 10), left + 100 * (i % 10))]
        assert places(picture, image) == (expected if i < 40 else [])


def test_long_class_names_are_cut_short(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(plots._Page, "write", lambda page, text, *where, **how: written.append(text))
    names = ["great white shark, white death", "six"]
    plots.save_samples(tmp_path / "s.png", {"a": torch.zeros(2, 1, 8, 8)}, names)
    cut, whole = written[1:]
    assert whole == "six"
    assert cut.endswith("\N{HORIZONTAL ELLIPSIS}")
    assert len(cut) < 10
    assert names[0].startswith(cut[:-1])


def test_a_single_image_makes_a_picture_wide_enough_for_its_title(tmp_path):
    image = digits()[0][:1]
    plots.save_samples(tmp_path / "s.png", {"hand-crafted": image})
    picture = read(tmp_path / "s.png")
    assert len(places(picture, image[0])) == 1
    assert picture.shape[1] == plots.MIN_WIDTH


def test_samples_keep_colours_and_paint_pixels_that_are_not_finite(tmp_path):
    images = torch.tensor([0.2, 0.4, 0.6])[None, :, None, None].repeat(2, 1, 8, 8)
    images[1] = math.nan
    plots.save_samples(tmp_path / "s.png", {"a": images})
    picture = read(tmp_path / "s.png")
    assert (picture == [51, 102, 153]).all(-1).sum() == 96 * 96
    assert (picture == (plots.DAMAGED * 255).round().byte().numpy()).all(-1).sum() == 96 * 96


@pytest.mark.parametrize("side", [16, 100, 256])
def test_the_sample_grid_of_any_image_size_stays_within_the_width_limit(tmp_path, side):
    plots.save_samples(tmp_path / "s.png", {"a": torch.zeros(20, 3, side, side)})
    width = read(tmp_path / "s.png").shape[1]
    assert 400 < width <= plots.MAX_WIDTH + 2 * plots.MARGIN


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        ({}, None, "at least one block"),
        ({"a": torch.zeros(0, 1, 8, 8)}, None, r"images must have shape .*got \(0, 1, 8, 8\)"),
        ({"a": torch.zeros(2, 4, 8, 8)}, None, r"images must have shape .*got \(2, 4, 8, 8\)"),
        ({"a": torch.zeros(2, 1, 8, 8), "b": torch.zeros(3, 1, 8, 8)}, None, "same number and size"),
        ({"a": torch.zeros(2, 1, 8, 8)}, ["1"], "labels must name each of the 2 images, got 1"),
    ],
)
def test_samples_that_do_not_fit_together_are_refused(tmp_path, rows, labels, message):
    with pytest.raises(ValueError, match=message):
        plots.save_samples(tmp_path / "s.png", rows, labels)
    assert list(tmp_path.iterdir()) == []


def test_a_film_strip_tints_open_places_and_leaves_finished_images_alone(tmp_path):
    image = digits()[0][:2]
    undecided = torch.zeros(3, 2, 4, 4)
    undecided[0] = 1
    undecided[1, :, :, :2] = 1  # the left half
    plots.save_film_strip(tmp_path / "f.png", image.expand(3, -1, -1, -1, -1), undecided)
    picture = read(tmp_path / "f.png")
    for k in range(2):
        [(top, left)] = places(picture, image[k])
        whole = enlarged(image[k])
        halfway = picture[top : top + 96, left - 100 : left - 4]
        assert (halfway[:, 48:] == whole[:, 48:]).all()
        assert (halfway[:, :48, 0].astype(int) - halfway[:, :48, 2] > 60).all()  # amber
        start = picture[top : top + 96, left - 200 : left - 104]
        assert (start[:, :, 0].astype(int) - start[:, :, 2] > 60).all()


def test_a_film_strip_of_many_steps_keeps_the_first_and_the_last(tmp_path):
    images = torch.linspace(0, 1, 41)[:, None, None, None, None].expand(41, 1, 1, 8, 8)
    plots.save_film_strip(tmp_path / "f.png", images, torch.zeros(41, 1, 4, 4))
    picture = read(tmp_path / "f.png")
    assert picture.shape[1] == plots.MAX_STEPS_SHOWN * 100 - 4 + 2 * plots.MARGIN
    row = picture[plots.MARGIN + plots.LINE + 48, :, 0]
    assert row[plots.MARGIN] == 0
    assert row[-plots.MARGIN - 1] == 255
    assert row[plots.MARGIN + 48] < row[plots.MARGIN + 148] < row[plots.MARGIN + 248]


def strip_texts(monkeypatch, tmp_path, **told):
    """Returns the texts of a strip of 2 decisions and 2 images, with their places."""
    written = []
    monkeypatch.setattr(plots._Page, "write", lambda page, text, x, y, **how: written.append((text, x, y)))
    plots.save_film_strip(tmp_path / "f.png", torch.zeros(3, 2, 1, 8, 8), torch.zeros(3, 2, 4, 4), **told)
    return written


def test_a_film_strip_names_the_class_of_each_row_and_the_parameters_of_each_step(monkeypatch, tmp_path):
    values = {
        "mask_ratio": torch.tensor([[0.5, 0.25], [0.125, 0.75]]),
        "top_k": torch.tensor([[9, 8], [7, 6]]),
    }
    written = strip_texts(monkeypatch, tmp_path, labels=["three", "four"], values=values)
    at = {text: (x, y) for text, x, y in written}
    assert at["three"][1] < at["four"][1]
    for name, row in (("0.5", "three"), ("0.125", "three"), ("0.25", "four"), ("0.75", "four")):
        assert at[row][1] < at[name][1] < at[row][1] + 100
    assert at["0.5"][0] == at["step 1"][0] == at["9"][0]
    assert at["0.75"][0] == at["step 2"][0] == at["6"][0]
    assert at["9"][1] > at["0.5"][1]
    assert [text for text, *_ in written].count("mask ratio") == 2


def test_a_schedule_that_all_images_share_is_written_once(monkeypatch, tmp_path):
    values = {"mask_ratio": torch.tensor([[0.5, 0.5], [0.125, 0.125]])}
    written = strip_texts(monkeypatch, tmp_path, values=values)
    assert [text for text, *_ in written if text in ("mask ratio", "0.5", "0.125")] == [
        "mask ratio",
        "0.5",
        "0.125",
    ]


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"labels": ["1"]}, "labels must name each of the 2 images, got 1"),
        (
            {"values": {"p": torch.zeros(3, 2)}},
            r"values of p must have shape \(T, K\) = \(2, 2\), got \(3, 2\)",
        ),
    ],
)
def test_a_film_strip_refuses_what_does_not_belong_to_it(monkeypatch, tmp_path, told, message):
    with pytest.raises(ValueError, match=message):
        strip_texts(monkeypatch, tmp_path, **told)


def test_a_film_strip_of_other_shapes_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"undecided \(T \+ 1, K, h, w\), got \(3, 2, 1, 8, 8\) and \(2, 2, 4, 4\)"
    ):
        plots.save_film_strip(tmp_path / "f.png", torch.zeros(3, 2, 1, 8, 8), torch.zeros(2, 2, 4, 4))


def band(picture: np.ndarray) -> int:
    """Returns the number of pixels in the pale blue of the band, below the legend."""
    return int(near(picture[120:], "#d3e5ef").sum())


@pytest.mark.parametrize("horizon", [1, 3])
def test_a_schedule_shows_the_band_of_the_images(tmp_path, horizon):
    static = {name: line[:horizon] for name, line in STATIC.items()}
    spread = {name: values[:horizon] for name, values in LEARNED.items()}
    alike = {name: line[:, None].expand(-1, 40) for name, line in static.items()}
    plots.save_schedule(tmp_path / "spread.png", static, spread)
    plots.save_schedule(tmp_path / "alike.png", static, alike)
    pixels = band(read(tmp_path / "spread.png"))
    assert pixels > 10_000
    assert band(read(tmp_path / "alike.png")) < 0.05 * pixels


def right_quarter(picture: np.ndarray) -> np.ndarray:
    """Returns the part of a picture of one panel that holds lines but no title and no legend."""
    return picture[60:, picture.shape[1] * 3 // 4 :]


@pytest.mark.parametrize("level", [1.0, 3.0])
def test_a_schedule_shows_the_hand_crafted_line_at_its_height(tmp_path, level):
    learned = torch.linspace(0, 4, 11).expand(3, 11)
    plots.save_schedule(tmp_path / "s.png", {"p": torch.full((3,), level)}, {"p": learned})
    picture = right_quarter(read(tmp_path / "s.png"))
    rows = near(picture, plots.INK).sum(axis=1)
    mean = near(picture, plots.LEARNED).sum(axis=1)  # at 2
    assert rows.max() > 50
    assert (rows.argmax() > mean.argmax()) == (level < 2)


def test_a_schedule_leaves_out_values_that_are_not_finite(tmp_path):
    learned = {name: values.clone() for name, values in LEARNED.items()}
    learned["mask_ratio"][1] = math.nan
    learned["guidance_weight"][0, :5] = math.inf
    plots.save_schedule(tmp_path / "s.png", STATIC, LEARNED)
    plots.save_schedule(tmp_path / "nan.png", STATIC, learned)
    assert 0 < band(read(tmp_path / "nan.png")) < 0.8 * band(read(tmp_path / "s.png"))


@pytest.mark.parametrize("count", [1, 3, 4])
def test_a_schedule_has_room_for_every_number_of_parameters(tmp_path, count):
    static = {f"p{i}": torch.ones(20) for i in range(count)}
    plots.save_schedule(tmp_path / "s.png", static, {name: line[:, None] for name, line in static.items()})
    height, width, _ = read(tmp_path / "s.png").shape
    rows = {1: 1, 3: 1, 4: 2}[count]
    assert height == pytest.approx(170 * (3.1 * rows + 0.4), abs=1)
    assert width == pytest.approx(170 * (7.5 if count == 1 else 10.5), abs=1)


@pytest.mark.parametrize(
    ("static", "learned", "message"),
    [
        ({}, {}, "must hold the same parameters"),
        (STATIC, {"mask_ratio": LEARNED["mask_ratio"]}, "must hold the same parameters"),
        (
            {"p": torch.ones(3)},
            {"p": torch.ones(4, 2)},
            r"p: static must have shape .*got \(3,\) and \(4, 2\)",
        ),
        (
            {"p": torch.ones(3)},
            {"p": torch.ones(3, 0)},
            r"p: static must have shape .*got \(3,\) and \(3, 0\)",
        ),
    ],
)
def test_schedules_that_do_not_fit_together_are_refused(tmp_path, static, learned, message):
    with pytest.raises(ValueError, match=message):
        plots.save_schedule(tmp_path / "s.png", static, learned)


def test_curves_draw_a_panel_for_each_kind_of_value_there_is(tmp_path):
    rewards = [{"iteration": r["iteration"], "images": r["images"], "reward": r["reward"]} for r in RECORDS]
    plots.save_curves(tmp_path / "all.png", RECORDS)
    plots.save_curves(tmp_path / "reward.png", rewards)
    everything, reward = read(tmp_path / "all.png"), read(tmp_path / "reward.png")
    assert everything.shape[0] > 1.5 * reward.shape[0]
    recall, coverage = plots.SERIES[1:]
    assert near(everything, recall).any()
    assert near(everything, coverage).any()
    assert not near(reward, recall).any()
    assert near(reward, plots.SERIES[0]).sum() > 1000


def test_curves_show_the_hand_crafted_values_as_lines_across_the_panel(tmp_path):
    records = [{"iteration": i, "held_out/fid": 50.0 - i} for i in range(20)]
    for name, baseline in (("without", None), ("with", {"fid": 64.1, "recall": 1.0})):
        plots.save_curves(tmp_path / f"{name}.png", records, baseline)
    assert not near(right_quarter(read(tmp_path / "without.png")), plots.INK).any()
    assert near(right_quarter(read(tmp_path / "with.png")), plots.INK).sum(axis=1).max() > 50


def curve_panels(monkeypatch, tmp_path, *args, **kwargs):
    """Returns the panels of the curves by title."""
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    plots.save_curves(tmp_path / "c.png", *args, **kwargs)
    return {axes.get_title("left"): axes for axes in figures[0].axes}


def test_curves_show_the_parts_of_a_reward_that_has_several(monkeypatch, tmp_path):
    records = [
        {"iteration": i, "reward": i, "reward/b": 2.0 * i, "entropy": 0.3, "kl": 0.1 * i} for i in range(44)
    ]
    several = [record | {"reward/a": 1.0 - i} for i, record in enumerate(records)]
    found = curve_panels(monkeypatch, tmp_path, several, baseline={"fid": 3.0}, before="base")
    names = ["reward", "reward: a", "reward: b", "entropy of the policy", "KL to the reference"]
    assert list(found) == names
    for name, last in (("reward: a", -42.0), ("KL to the reference", 4.3)):
        each, mean = found[name].lines
        assert each.get_ydata()[-1] == pytest.approx(last)
        assert mean.get_label() == "running mean of 2"
    assert list(curve_panels(monkeypatch, tmp_path, records)) == [names[0], *names[3:]]


def test_curves_call_what_was_before_by_its_name(monkeypatch, tmp_path):
    records = [{"iteration": i, "reward": i, "held_out/fid": 3.0 - i} for i in range(3)]
    found = curve_panels(monkeypatch, tmp_path, records, baseline={"fid": 3.5}, before="base")
    labels = [text.get_text() for text in found["held-out FID"].get_legend().get_texts()]
    assert "base" in labels
    assert "hand-crafted" not in labels


@pytest.mark.parametrize(
    "left_out", [(), ("accuracy",), ("accuracy", "fid"), ("accuracy", "precision", "recall", "coverage")]
)
def test_panels_of_curves_have_room_beside_their_legends(left_out, monkeypatch, tmp_path):
    names = {f"held_out/{name}" for name in left_out}
    records = [{key: value for key, value in record.items() if key not in names} for record in RECORDS]
    panels = curve_panels(monkeypatch, tmp_path, records, {"fid": 3.0, "recall": 0.5}, {"fid": 0.7})
    for axes in panels.values():
        axes.figure.draw_without_rendering()
        assert axes.get_position().width > 0.35


def test_curves_start_before_the_first_update(monkeypatch, tmp_path):
    start = {"iteration": 0, "images": 0, "held_out/fid": 3.0}
    records = [start] + [{"iteration": i, "images": 100 * i, "reward": 0.5} for i in (1, 2, 3)]
    records[-1]["held_out/fid"] = 1.0
    panels = curve_panels(monkeypatch, tmp_path, records)
    assert panels["held-out FID"].lines[0].get_xydata().tolist() == [[0, 3], [300, 1]]
    assert panels["reward"].lines[0].get_xdata().tolist() == [100, 200, 300]
    assert panels["reward"].get_xlim() == panels["held-out FID"].get_xlim()


@pytest.mark.parametrize("floor", [0.76, 0.2])
def test_curves_show_what_real_images_reach(monkeypatch, tmp_path, floor):
    panels = curve_panels(monkeypatch, tmp_path, RECORDS, {"fid": 3.0}, {"fid": floor, "kid": 1.0})
    axes = panels["held-out FID"]
    drawn = {line.get_linestyle(): line.get_ydata()[0] for line in axes.lines if len(line.get_ydata()) == 2}
    assert drawn == {"--": 3.0, ":": floor}
    assert axes.get_legend_handles_labels()[1] == ["learned", "hand-crafted", "real images"]
    assert "real images" not in panels["reward"].get_legend_handles_labels()[1]


@pytest.mark.parametrize("value", [0.5, math.nan, math.inf])
def test_curves_of_a_single_iteration_can_be_drawn(tmp_path, value):
    plots.save_curves(tmp_path / "c.png", [{"iteration": 0, "reward": value}])
    drawn = near(read(tmp_path / "c.png"), plots.SERIES[0]).any()
    assert drawn == math.isfinite(value)


def test_curves_without_records_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one iteration"):
        plots.save_curves(tmp_path / "c.png", [])


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: plots.save_samples(path, {"a": torch.zeros(1, 1, 8, 8)}),
        lambda path: plots.save_schedule(path, STATIC, LEARNED),
    ],
    ids=["samples", "schedule"],
)
def test_a_failed_write_leaves_the_old_picture_and_nothing_else(tmp_path, monkeypatch, draw):
    (tmp_path / "p.png").write_text("old")
    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        draw(tmp_path / "p.png")
    assert [p.name for p in tmp_path.iterdir()] == ["p.png"]
    assert (tmp_path / "p.png").read_text() == "old"


def full_disk(*_):
    raise OSError("No space left on device")


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.style", None)
    monkeypatch.delitem(sys.modules, "genenv.viz.plots")
    with pytest.raises(ImportError, match=r"pip install 'genenv\[viz\]'"):
        importlib.import_module("genenv.viz.plots")
