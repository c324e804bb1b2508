"""Pictures of samples, schedules and learning curves, as PNG files.

Figures are made without pyplot, so nothing here opens a window or touches a caller's own figures.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genenv.checkpoints import replacing
from genenv.viz.frames import OPEN

try:
    import matplotlib.style
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator, StrMethodFormatter
except ImportError:
    raise ImportError("the pictures of genenv need matplotlib: pip install 'genenv[viz]'") from None

INK, SOFT_INK, RULE = "#1d2329", "#68727d", "#d9dee3"
LEARNED = "#0b6fa4"
SERIES = ("#0b6fa4", "#c2410c", "#e69f00")
"""Colours that stay apart for colour-blind readers."""
STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": RULE,
    "axes.grid": True,
    "axes.labelcolor": SOFT_INK,
    "axes.labelsize": 9.5,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.1,
    "grid.color": "#edf0f2",
    "legend.borderpad": 0,
    "legend.columnspacing": 1.4,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "xtick.color": RULE,
    "xtick.labelcolor": SOFT_INK,
    "ytick.color": RULE,
    "ytick.labelcolor": SOFT_INK,
}

UNITS = {
    "mask_ratio": "share of tokens left open",
    "mask_temperature": "scale of the noise on confidence",
    "token_temperature": "1 = as trained",
    "guidance_weight": "0 = no guidance",
    "top_k": "tokens kept",
    "top_p": "probability kept",
}
"""Schedule parameter -> what its numbers mean."""


@dataclasses.dataclass(frozen=True)
class Panel:
    """A panel of the learning curves: the records' keys in it, and the format of its numbers."""

    title: str
    unit: str
    keys: tuple[str, ...]
    ticks: str = "{x:g}"


PANELS = (
    Panel("reward", "mean of the images", ("reward",)),
    Panel("held-out FID", "lower is better", ("held_out/fid",)),
    Panel(
        "held-out precision, recall, coverage",
        "higher is better",
        ("held_out/precision", "held_out/recall", "held_out/coverage"),
    ),
    Panel("held-out label accuracy", "higher is better", ("held_out/accuracy",), "{x:.1%}"),
    Panel("entropy of the policy", "1 = uniform", ("entropy",)),
    Panel("KL to the reference", "of an action", ("kl",)),
)
PART = "reward/"
"""What keys of a reward's parts begin with; each has its own panel."""

DPI = 128  # a power of two, so that pixels / DPI * DPI are the same pixels again
CELL, GAP, MARGIN, LINE = 96, 4, 24, 34
"""In pixels: an enlarged image, between images, around the page, a line of text."""
SMALL_LINE, MAX_GUTTER = 20, 260
"""A line of small text, and the widest names before the rows of a film strip."""
MIN_WIDTH, MAX_WIDTH = 600, 2600
MAX_STEPS_SHOWN = 17
MAX_SINGLE_LINES = 30
DAMAGED = torch.tensor([0.85, 0.1, 0.45])
"""Colour of pixels that are not finite."""


def save_samples(
    path: str | Path,
    rows: Mapping[str, Tensor],
    labels: Sequence[str] | None = None,
    real: tuple[Tensor, Sequence[str]] | None = None,
    *,
    classes: int = 10,
    per_class: int = 4,
) -> None:
    """Writes images of several schedules, a block for each: a column for each class, several images below each other.

    The same place of every block holds the same image of `rows`, so that schedules are compared image by image; several
    of one class show how much they are alike.

    Args:
        path: of the PNG file.
        rows: {title of the block: images (K, C, H, W) in [0, 1]}, of the same K seeds.
        labels: K class names, written above the columns. Without them the first images stand in reading order.
        real: real images (R, C, H, W) and their R class names, for a first block.
        classes: columns at most: the classes that come first. They are wrapped where the page is too narrow.
        per_class: images at most of each class: those that come first.

    Raises:
        ValueError: if there is no image, or the blocks or the labels differ in number.
    """
    if not rows:
        raise ValueError("rows must hold at least one block of images, got none")
    shapes = {name: tuple(images.shape) for name, images in rows.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"rows must hold images of the same number and size, got {shapes}")
    count = next(iter(shapes.values()))[0]
    if labels is not None and len(labels) != count:
        raise ValueError(f"labels must name each of the {count} images, got {len(labels)}")
    if labels is None:
        names = [""] * min(classes, count)
        places = [list(range(i, min(count, classes * per_class), classes)) for i in range(len(names))]
    else:
        names = list(dict.fromkeys(labels))[:classes]
        places = _first_of(names, labels, per_class)
    blocks = {name: _chosen(images, places) for name, images in rows.items()}
    height, width, _ = next(iter(next(iter(blocks.values())).values())).shape
    shown: list[tuple[str, Any, list[list[int]]]] = [(n, pictures, places) for n, pictures in blocks.items()]
    if real is not None:
        images, their_labels = real
        if len(their_labels) != len(images):
            raise ValueError(f"real must name each of its {len(images)} images, got {len(their_labels)}")
        theirs = places if labels is None else _first_of(names, their_labels, max(map(len, places)))
        theirs = [[i for i in column if i < len(images)] for column in theirs]
        if any(theirs):
            shown.insert(0, ("real images", _chosen(images, theirs), theirs))

    depth = max(len(column) for column in places)
    columns = max(1, min(len(names), MAX_WIDTH // (width + GAP)))
    lines = [range(start, min(start + columns, len(names))) for start in range(0, len(names), columns)]
    heading = LINE if labels is not None else 0
    line_height = heading + depth * (height + GAP)
    page = _Page(
        max(columns * (width + GAP) - GAP + 2 * MARGIN, MIN_WIDTH),
        len(shown) * (LINE + 8 + len(lines) * line_height + MARGIN) + MARGIN,
    )
    top = MARGIN
    for name, pictures, where in shown:
        page.write(fitted(name, page.width - 2 * MARGIN, 17), MARGIN, top + LINE / 2, size=17, weight="bold")
        if len(blocks) > 1 and name == next(iter(blocks)):
            page.write(
                "same place = same seed", page.width - MARGIN, top + LINE / 2, color=SOFT_INK, align="right"
            )
        top += LINE + 8
        for line in lines:
            for column in line:
                left = MARGIN + (column - line.start) * (width + GAP)
                label = fitted(str(names[column]), width, 13)
                page.write(label, left + width / 2, top + LINE / 2, color=SOFT_INK, align="center")
                for n, i in enumerate(where[column]):
                    page.paste(pictures[i], left, top + heading + n * (height + GAP))
            top += line_height
        top += MARGIN
    page.save(path)


def _chosen(images: Tensor, places: Sequence[Sequence[int]]) -> dict[int, np.ndarray]:
    """Returns {place: picture} of the images at some places; only those are enlarged."""
    used = sorted({i for column in places for i in column})
    pictures = _pixels(images[torch.tensor(used, dtype=torch.int64, device=images.device)])
    return dict(zip(used, pictures, strict=True))


def _first_of(names: Sequence[str], labels: Sequence[str], number: int) -> list[list[int]]:
    """Returns the places of the first labels of each name, so many at most."""
    return [[i for i, label in enumerate(labels) if label == name][:number] for name in names]


def save_film_strip(
    path: str | Path,
    images: Tensor,
    undecided: Tensor,
    labels: Sequence[str] | None = None,
    values: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes K episodes as rows, from the start to the finished image, with the open places in amber.

    Of more than 16 steps, 17 columns at even distances are shown.

    Args:
        path: of the PNG file.
        images: (T + 1, K, C, H, W) in [0, 1], the partial result before each decision and the finished image.
        undecided: (T + 1, K, h, w) in [0, 1], how open each place still is.
        labels: K class names, written before the rows.
        values: {parameter: (T, K)}, what each decision was, written below the image it led to; in one place for all
            rows where they are alike.
    """
    values = dict(values or {})
    count = images.shape[1] if images.ndim == 5 else 0
    if images.ndim != 5 or undecided.ndim != 4 or images.shape[:2] != undecided.shape[:2]:
        raise ValueError(
            "images must have shape (T + 1, K, C, H, W) and undecided (T + 1, K, h, w), "
            f"got {tuple(images.shape)} and {tuple(undecided.shape)}"
        )
    if labels is not None and len(labels) != count:
        raise ValueError(f"labels must name each of the {count} images, got {len(labels)}")
    for name, value in values.items():
        if tuple(value.shape) != (len(images) - 1, count):
            raise ValueError(
                f"values of {name} must have shape (T, K) = {(len(images) - 1, count)}, got {tuple(value.shape)}"
            )
    last = len(images) - 1
    steps = torch.linspace(0, last, min(last + 1, MAX_STEPS_SHOWN)).round().long()
    pictures = torch.from_numpy(_pixels(images[steps].flatten(0, 1))).float()  # (S K, H', W', 3)
    height, width = pictures.shape[1:3]
    cover = F.interpolate(
        undecided[steps].flatten(0, 1)[:, None].float().cpu(), (height, width), mode="nearest"
    )
    cover = 0.7 * cover.nan_to_num().permute(0, 2, 3, 1)  # (S K, H', W', 1)
    tinted = (pictures * (1 - cover) + 255 * OPEN * cover).round().byte().numpy()

    alike = all(bool((value == value[:, :1]).all()) for value in values.values())
    table = len(values) * SMALL_LINE  # height of a decision's numbers
    above, below = (table + 8, 0) if alike and values else (0, table and table + 10)
    # On the left of the pictures: classes and the parameters' names.
    texts = [
        *((name.replace("_", " "), 10) for name in values),
        *((str(label), 13) for label in labels or ()),
    ]
    gutter = min(max((_text_width(*text) for text in texts), default=0) + 16 * bool(texts), MAX_GUTTER)
    edge = MARGIN + gutter
    page = _Page(
        max(edge + len(steps) * (width + GAP) - GAP + MARGIN, MIN_WIDTH),
        2 * MARGIN + 2 * LINE + 8 + above + count * (height + GAP + below),
    )

    def write_values(column: int, step: int, row: int, top: float) -> None:
        for n, (name, value) in enumerate(values.items()):
            y = top + (n + 0.5) * SMALL_LINE
            if column == 0:
                text = fitted(name.replace("_", " "), gutter - 12, 10)
                page.write(text, edge - 12, y, size=10, color=SOFT_INK, align="right")
            if step > 0:
                text = f"{value[step - 1, row].item():.3g}"
                page.write(text, edge + column * (width + GAP) + width / 2, y, size=10, align="center")

    for column, step in enumerate(steps.tolist()):
        left = edge + column * (width + GAP)
        title = "start" if step == 0 else f"step {step}" if width > 60 else str(step)
        page.write(title, left + width / 2, MARGIN + LINE / 2, color=SOFT_INK, align="center")
        if above:
            write_values(column, step, 0, MARGIN + LINE)
        for row in range(count):
            top = MARGIN + LINE + above + row * (height + GAP + below)
            page.paste(tinted[column * count + row], left, top)
            if below:
                write_values(column, step, row, top + height + 4)
    for row, label in enumerate(labels or ()):
        y = MARGIN + LINE + above + row * (height + GAP + below) + height / 2
        page.write(fitted(str(label), gutter - 12, 13), edge - 12, y, align="right")
    page.write("amber: not decided yet", edge, page.height - MARGIN - LINE / 2, color=SOFT_INK)
    page.save(path)


def save_schedule(path: str | Path, static: Mapping[str, Tensor], learned: Mapping[str, Tensor]) -> None:
    """Writes each schedule parameter over the steps: hand-crafted, and as a policy chose it for N images.

    Args:
        path: of the PNG file.
        static: {name: (T,)}, the hand-crafted schedule in physical units.
        learned: {name: (T, N)}, the chosen one. Values that are not finite are left out.

    Raises:
        ValueError: if names or shapes of the two differ.
    """
    if not static or static.keys() != learned.keys():
        raise ValueError(
            f"static and learned must hold the same parameters, got {list(static)} and {list(learned)}"
        )
    with matplotlib.style.context(["default", STYLE]):
        columns = _columns(len(static))
        figure, panels = subplots(len(static), columns)
        for axes, (name, line) in zip(panels, static.items(), strict=True):
            values = learned[name]
            if values.ndim != 2 or line.shape != values.shape[:1] or not values.numel():
                raise ValueError(
                    f"{name}: static must have shape (T,) and learned (T, N), "
                    f"got {tuple(line.shape)} and {tuple(values.shape)}"
                )
            _draw_schedule(axes, line.detach().cpu().double().numpy(), values.detach().cpu().double().numpy())
            axes.set_title(name.replace("_", " "))
            axes.set_ylabel(UNITS.get(name, ""))
        for axes in panels[-columns:]:
            axes.set_xlabel("step")
        handles, titles = panels[0].get_legend_handles_labels()
        figure.legend(handles, titles, loc="outside upper left", ncols=len(titles), borderpad=0.5)
        save_figure(figure, path)


def _draw_schedule(axes: Axes, static: np.ndarray, learned: np.ndarray) -> None:
    horizon, count = learned.shape
    steps = np.arange(1, horizon + 1)
    # A line through one step has no length: there, each value is drawn as a short bar.
    x = steps if horizon > 1 else np.array([0.8, 1.2])
    bar = learned if horizon > 1 else learned.repeat(2, axis=0)
    finite = [row[np.isfinite(row)] for row in bar]
    low, high = np.array([np.percentile(row, (10, 90)) if row.size else (np.nan, np.nan) for row in finite]).T
    mean = [row.mean() if row.size else np.nan for row in finite]
    some = np.linspace(0, count - 1, min(count, MAX_SINGLE_LINES)).round().astype(int)
    singles = axes.plot(x, bar[:, some], color=LEARNED, alpha=0.14, linewidth=0.8)
    singles[0].set_label("learned, single images")
    axes.fill_between(
        x, low, high, color=LEARNED, alpha=0.18, linewidth=0, label="learned, 10 to 90 % of images"
    )
    axes.plot(x, mean, color=LEARNED, linewidth=2.2, label="learned, mean")
    size = 4.5 if horizon <= 16 else 2.5
    axes.plot(steps, static, "--o", color=INK, linewidth=1.3, markersize=size, label="hand-crafted")
    if horizon <= 16:
        axes.set_xticks(steps)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if horizon == 1:
        axes.set_xlim(0.4, 1.6)
    axes.ticklabel_format(axis="y", useOffset=False)


def save_curves(
    path: str | Path,
    records: Sequence[Mapping[str, float]],
    baseline: Mapping[str, float] | None = None,
    floor: Mapping[str, float] | None = None,
    before: str = "hand-crafted",
) -> None:
    """Writes the learning curves of a run: its reward and held-out metrics, and what else its agent logs.

    The panels are the reward, its parts where there are several, FID, precision, recall and coverage, label accuracy,
    entropy and KL. Those without a finite value are left out. The curves start with the first record, before the first
    update where there is one of iteration 0.

    Args:
        path: of the PNG file.
        records: one for each iteration, with "iteration", "images" (generated so far), "reward", and now and then
            "held_out/fid", "held_out/precision" ...; "reward/clip" is a part of the reward.
        baseline: {"fid": ..., "precision": ...}, held-out values before training, as dashed lines.
        floor: {"fid": 0.76}, what real images reach against each other, as dotted lines.
        before: what `baseline` is called.

    Raises:
        ValueError: if there are no records.
    """
    if not records:
        raise ValueError("records must hold at least one iteration, got none")
    references = {before: ("--", baseline or {}), "real images": (":", floor or {})}
    clock = "images" if all("images" in record for record in records) else "iteration"
    names = sorted({key for record in records for key in record if key.startswith(PART)})
    parts = [Panel(f"reward: {key.removeprefix(PART)}", "mean of the images", (key,)) for key in names]
    panels_of = (PANELS[0], *(parts if len(parts) > 1 else ()), *PANELS[1:])
    curves = {key: _curve(records, clock, key) for panel in panels_of for key in panel.keys}
    shown = [panel for panel in panels_of if any(curves[key][0].size for key in panel.keys)] or [PANELS[0]]
    with matplotlib.style.context(["default", STYLE]):
        columns = min(2, len(shown))  # three side by side would have no room for their legends
        figure, panels = subplots(len(shown), columns)
        for axes, panel in zip(panels, shown, strict=True):
            axes.set_title(panel.title, pad=24)
            axes.set_ylabel(panel.unit)
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
            axes.yaxis.set_major_formatter(StrMethodFormatter(panel.ticks))
            for colour, key in zip(SERIES, panel.keys, strict=False):
                if curves[key][0].size:
                    _draw_curve(axes, *curves[key], key, colour)
            for name, (style, values) in references.items():
                _draw_reference(axes, panel, name, style, values)
            if panel.keys == ("held_out/fid",):
                axes.set_ylim(0, 1.06 * axes.get_ylim()[1])
            if axes.has_data():
                # Between title and panel the legend covers nothing.
                axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.01), ncols=4, borderaxespad=0)
            else:
                axes.text(0.5, 0.5, "no finite value", transform=axes.transAxes, ha="center", color=SOFT_INK)
        first, last = (edge([record[clock] for record in records]) for edge in (min, max))
        if last > first:  # all panels tell the same time
            for axes in panels:
                axes.set_xlim(first - 0.03 * (last - first), last + 0.03 * (last - first))
        for axes in panels[-columns:]:
            axes.set_xlabel("images generated in training" if clock == "images" else "iteration")
        save_figure(figure, path)


def _curve(records: Sequence[Mapping[str, float]], clock: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns when and how large the finite values of a key were."""
    points = [(record[clock], record[key]) for record in records if key in record]
    x, y = np.array(points, dtype=float).reshape(-1, 2).T
    kept = np.isfinite(x) & np.isfinite(y)
    return x[kept], y[kept]


def _draw_curve(axes: Axes, x: np.ndarray, y: np.ndarray, key: str, colour: str) -> None:
    width, held_out = len(y) // 20, key.startswith("held_out/")
    if not held_out and width > 1:
        axes.plot(x, y, color=colour, alpha=0.3, linewidth=0.9, label="each iteration")
        window, ones = np.ones(width), np.ones(len(y))
        smooth = np.convolve(y, window, "same") / np.convolve(ones, window, "same")
        axes.plot(x, smooth, color=colour, linewidth=2, label=f"running mean of {width}")
    else:
        label = key.removeprefix("held_out/").replace("fid", "learned") if held_out else "each iteration"
        axes.plot(x, y, "-o", color=colour, linewidth=2, markersize=3.5, label=label)


def _draw_reference(axes: Axes, panel: Panel, name: str, style: str, values: Mapping[str, float]) -> None:
    """Draws lines across a panel, in the colours of the curves they are for where there are several."""
    several, drawn = len(panel.keys) > 1, False
    for colour, key in zip(SERIES, panel.keys, strict=False):
        value = values.get(key.removeprefix("held_out/"), math.nan)
        if math.isfinite(value):
            axes.axhline(value, color=colour if several else INK, linestyle=style, linewidth=1.2)
            drawn = True
    if drawn:
        axes.plot([], [], style, color=INK, linewidth=1.2, label=name)


class _Page:
    """A white page measured in pixels from its top left corner: pictures keep their pixels, texts lie over them."""

    def __init__(self, width: int, height: int):
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
        self.pixels = np.full((height, width, 3), 255, np.uint8)

    def paste(self, picture: np.ndarray, left: int, top: int) -> None:
        self.pixels[top : top + picture.shape[0], left : left + picture.shape[1]] = picture

    def write(
        self,
        text: str,
        x: float,
        y: float,
        *,
        size: float = 13,
        color: str = INK,
        align: str = "left",
        weight: str = "normal",
    ) -> None:
        # Class names and prompts are data: "$" in them is no formula.
        self.figure.text(
            x / self.width,
            1 - y / self.height,
            text,
            fontsize=size,
            color=color,
            ha=align,
            va="center",
            weight=weight,
            family="DejaVu Sans",
            parse_math=False,
        )

    def save(self, path: str | Path) -> None:
        self.figure.figimage(self.pixels, origin="upper")
        save_figure(self.figure, path)


def _pixels(images: Tensor) -> np.ndarray:
    """Returns images (K, C, H, W) in [0, 1] enlarged by a whole factor, (K, H', W', 3) uint8."""
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.numel():
        raise ValueError(f"images must have shape (K, 1 or 3, H, W) with K > 0, got {tuple(images.shape)}")
    rgb = images.detach().cpu().float().expand(-1, 3, -1, -1)
    rgb = torch.where(rgb.isfinite(), rgb.clamp(0, 1), DAMAGED[:, None, None])
    factor = max(1, CELL // max(images.shape[2:]))
    enlarged = rgb.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    return (enlarged * 255).round().byte().permute(0, 2, 3, 1).numpy()


def _text_width(text: str, size: float) -> int:
    """Returns about how many pixels a text takes."""
    return math.ceil(0.6 * len(text) * size * DPI / 72)


def fitted(text: str, width: float, size: float) -> str:
    """Returns a text, cut short where it is wider than so many pixels."""
    if _text_width(text, size) <= width:
        return text
    return text[: max(1, int(len(text) * width / _text_width(text, size)) - 1)] + "\N{HORIZONTAL ELLIPSIS}"


def _columns(panels: int) -> int:
    return {1: 1, 2: 2, 4: 2}.get(panels, 3)


def subplots(count: int, columns: int) -> tuple[Figure, list[Axes]]:
    """Returns a figure of panels in reading order; make, fill and save it within STYLE."""
    rows = -(-count // columns)
    size = (10.5 if columns > 1 else 7.5, 3.1 * rows + 0.4)
    figure = Figure(figsize=size, dpi=170, layout="constrained")
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(count)]


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes a figure as a PNG file, whole or not at all."""
    with replacing(Path(path)) as partial:
        figure.savefig(partial, format="png")
