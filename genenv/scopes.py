"""Which decisions of a trajectory count (AdaScope, arXiv 2605.15855): all, some fixed ones, or those found on the way.

While an image is made, judges may look at a preview of it before each decision: `semantic` says how well it shows what
was asked for, `reward` what is to be maximised. Point k of a curve is judged before decision k, and whether decision k
counts follows from points 0 ... k alone, so that a scope serves a loop that is still running as well as a finished
trajectory.

Axes: T decisions (the horizon), K <= T points so far, N images.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Annotated, Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from genenv.ranges import AT_LEAST_1, FRACTION, Range, check
from genenv.rng import BatchRng, Purpose

SHARE = Range(0, 1, included=True)


@dataclasses.dataclass(frozen=True)
class Window:
    """The decisions [start, end) of each image.

    Attributes:
        start, end: (N,) int64.
    """

    start: Tensor
    end: Tensor

    def contains(self, step: int) -> Tensor:
        """Returns whether a decision is inside, (N,) bool."""
        return (self.start <= step) & (step < self.end)


@dataclasses.dataclass(frozen=True)
class Detector:
    """Finds each image's window [t_start, t_end): from where its structure has settled to where its reward saturates.

    A curve c is the moving average of its points. Its change at k is c_k - c_(k-1) and its bend the change of that,
    c_k - 2 c_(k-1) + c_(k-2), both known at decision k. Either is small where its size is at most the threshold's share
    of the largest that the image's curve has had so far; each is compared with its own, since they differ in size. A
    curve without any bend is straight from the start.

    - start: the first decision with small bends of the semantic curve, `start_patience` in a row, where the curve has
      gone somewhere: its net change is at least the share `straightness` of all its changes. A curve that only trembles
      has no structure that could have settled;
    - end: the first decision, `shortest` or more behind the start, with small bends and small changes of the reward
      curve, `end_patience` in a row. A steady rise has no bends, and does not end a window.

    An image that goes on bending begins and ends its window at the latest decisions: the upper ends of the ranges 5
    +- 5 and 35 +- 5 of 50 decisions that the paper tries out. It says that the bends go to 0 and gives no threshold,
    but windows from 5.3 to 31.8 on the average. The defaults come near on digits, whose curves are rough: in 50
    decisions of `AdaScope/Denoising-v0`, judged by "clip" and "adversarial", windows go from 7 to 35 with the DiT,
    from 6 to 29 with the SiT.

    Raises:
        ValueError: if a value is outside its range, or the latest end before the latest start.
    """

    start_threshold: Annotated[float, FRACTION] = 0.6
    """Bends of the semantic curve that are small, as a share of its largest."""
    end_threshold: Annotated[float, FRACTION] = 0.4
    """Bends and changes of the reward curve that are small, as shares of its largest."""
    start_patience: Annotated[int, AT_LEAST_1] = 2
    """Decisions in a row with small bends that begin a window."""
    end_patience: Annotated[int, AT_LEAST_1] = 3
    """Decisions in a row with small bends and changes that end it."""
    straightness: Annotated[float, SHARE] = 0.0
    """Net change of the semantic curve, as a share of the sum of its changes, from which on it may settle; 0 asks for
    none."""
    smoothing: Annotated[float, FRACTION] = 0.5
    """Decay of the moving average over the points of a curve; 0 takes them as they are."""
    latest_start: Annotated[float, SHARE] = 0.2
    """Where a window begins at the latest, as a share of the horizon."""
    latest_end: Annotated[float, SHARE] = 0.8
    """Where it ends at the latest, unless it were shorter than `shortest`."""
    shortest: Annotated[float, SHARE] = 0.1
    """Its least length, as a share of the horizon, unless the horizon comes first."""

    def __post_init__(self):
        check(self)
        if self.latest_end < self.latest_start:
            raise ValueError(
                f"latest_end must be at least latest_start, {self.latest_start}, got {self.latest_end}"
            )

    def check_room(self, horizon: int) -> None:
        """Raises a ValueError for a horizon in which every window begins at its latest start: none could be found.

        A latest start of 0 wants that.
        """
        soonest = self.start_patience + 2  # the first bend is the largest so far
        if self.latest_start and round(self.latest_start * horizon) <= soonest:
            raise ValueError(
                f"latest_start must leave room to find a start, which takes {soonest} decisions, got "
                f"{self.latest_start} of {horizon}; or use more num_steps"
            )

    def window(self, semantic: Tensor, reward: Tensor, horizon: int) -> Window:
        """Returns the windows of N images as far as they are known.

        What further points may still change lies behind the last one: decision K - 1 is inside this window if and only
        if it is inside that of the whole curves.

        Args:
            semantic: (K, N), the first K points of its curve, 1 <= K <= T.
            reward: (K, N), those of its own.
            horizon: T.

        Raises:
            ValueError: if the curves are not of this shape.
        """
        _check_curves(semantic, reward, range(1, horizon + 1))
        latest_start, latest_end, shortest = (
            round(share * horizon) for share in (self.latest_start, self.latest_end, self.shortest)
        )
        decision = torch.arange(len(semantic), device=semantic.device)[:, None]  # (K, 1)
        smooth = self._smooth(semantic)
        settled = _steady(smooth, self.start_threshold, self.start_patience, level=False)
        settled &= _straight(smooth) >= self.straightness
        start = torch.where(settled, decision, latest_start).amin(0)
        saturated = _steady(self._smooth(reward), self.end_threshold, self.end_patience, level=True)
        end = torch.where(saturated & (decision >= start + shortest), decision, horizon).amin(0)
        return Window(start, end.minimum((start + shortest).clamp(min=latest_end)).clamp(max=horizon))

    def _smooth(self, curve: Tensor) -> Tensor:
        smooth = [curve[0]]
        for point in curve[1:]:  # point by point, so that later ones change no bit of what was decided
            smooth.append(torch.lerp(point, smooth[-1], self.smoothing))
        return torch.stack(smooth)


def _steady(curve: Tensor, threshold: float, patience: int, level: bool) -> Tensor:
    """Returns where the last `patience` bends of a curve (K, N) are small, its changes too if `level`: (K, N) bool."""
    change = curve[1:] - curve[:-1]
    small = _small(change[1:] - change[:-1], threshold)  # (K - 2, N), at points 2, 3 ...
    if level:
        small &= _small(change, threshold)[1:]
    before = small.new_zeros(min(2, len(curve)) + patience - 1, curve.shape[1])
    return torch.cat([before, small]).unfold(0, patience, 1).all(-1)


def _straight(curve: Tensor) -> Tensor:
    """Returns the net change of a curve (K, N) over the sum of its changes, up to each point; 1 where there is none."""
    way = torch.cat([torch.zeros_like(curve[:1]), (curve[1:] - curve[:-1]).abs().cumsum(0)])
    return torch.where(way > 0, (curve - curve[0]).abs() / way, 1.0)


def _small(size: Tensor, threshold: float) -> Tensor:
    """Returns where numbers (K, N) are at most a share of the largest up to there, regardless of their signs."""
    size = size.abs()
    return size <= threshold * size.cummax(0).values if len(size) else size.bool()


def _check_curves(semantic: Tensor | None, reward: Tensor | None, points: range) -> None:
    """Raises a ValueError unless both are curves of N images with such a number of points."""
    shapes = [None if curve is None else tuple(curve.shape) for curve in (semantic, reward)]
    if semantic is None or shapes[0] != shapes[1] or semantic.ndim != 2 or len(semantic) not in points:
        number = f"{points[0]} to {points[-1]}" if len(points) > 1 else f"{points[0]}"
        raise ValueError(
            f"semantic and reward must be curves (K, N) of the same images with K = {number}, "
            f"got {shapes[0]} and {shapes[1]}"
        )


@runtime_checkable
class Scope(Protocol):
    """Says which decisions count, image by image.

    Attributes:
        needs_curves: whether `inside` takes the curves that judges give.
    """

    needs_curves: ClassVar[bool]

    def check(self, horizon: int) -> None:
        """Raises a ValueError unless the scope fits into a horizon."""
        ...

    def inside(
        self,
        step: int,
        horizon: int,
        rng: BatchRng,
        semantic: Tensor | None = None,
        reward: Tensor | None = None,
    ) -> Tensor:
        """Returns whether a decision counts, (N,) bool.

        Args:
            step: the decision, from 0.
            horizon: decisions T.
            rng: of the images.
            semantic: (step + 1, N), its curve up to this decision; None where curves are not needed.
            reward: (step + 1, N), its curve likewise.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Full:
    """Every decision."""

    needs_curves: ClassVar[bool] = False

    def check(self, horizon: int) -> None:
        """Fits into every horizon."""

    def inside(
        self,
        step: int,
        horizon: int,
        rng: BatchRng,
        semantic: Tensor | None = None,
        reward: Tensor | None = None,
    ) -> Tensor:
        """Returns that it counts, (N,) bool."""
        return torch.ones_like(rng.seeds, dtype=torch.bool)


@dataclasses.dataclass(frozen=True)
class Fixed:
    """The decisions start <= k < end of every image; none where they are equal.

    Raises:
        ValueError: unless 0 <= start <= end.
    """

    start: int
    end: int
    needs_curves: ClassVar[bool] = False

    def __post_init__(self):
        if not 0 <= self.start <= self.end:
            raise ValueError(
                f"a fixed scope must have 0 <= start <= end, got start {self.start} and end {self.end}"
            )

    def check(self, horizon: int) -> None:
        """Raises a ValueError if the window is not inside the horizon."""
        if self.end > horizon:
            raise ValueError(
                f"a fixed scope must end within the horizon of {horizon} decisions, got end {self.end}"
            )

    def inside(
        self,
        step: int,
        horizon: int,
        rng: BatchRng,
        semantic: Tensor | None = None,
        reward: Tensor | None = None,
    ) -> Tensor:
        """Returns whether a decision is in the window, (N,) bool."""
        return torch.full_like(rng.seeds, self.start <= step < self.end, dtype=torch.bool)


@dataclasses.dataclass(frozen=True)
class Adaptive:
    """The window that a detector finds for each image while it is made."""

    detector: Detector = dataclasses.field(default_factory=Detector)
    needs_curves: ClassVar[bool] = True

    def check(self, horizon: int) -> None:
        """Fits into every horizon."""

    def inside(
        self,
        step: int,
        horizon: int,
        rng: BatchRng,
        semantic: Tensor | None = None,
        reward: Tensor | None = None,
    ) -> Tensor:
        """Returns whether a decision is in the window, (N,) bool; ValueError for curves of another length."""
        _check_curves(semantic, reward, range(step + 1, step + 2))
        assert semantic is not None
        assert reward is not None
        return self.detector.window(semantic, reward, horizon).contains(step)


@dataclasses.dataclass(frozen=True)
class Random:
    """As many decisions of each image, drawn from its own stream: what a window of this size is compared with.

    Raises:
        ValueError: if the number is negative.
    """

    size: int
    needs_curves: ClassVar[bool] = False

    def __post_init__(self):
        if self.size < 0:
            raise ValueError(f"a random scope must have a size of at least 0, got {self.size}")

    def check(self, horizon: int) -> None:
        """Raises a ValueError if there are fewer decisions."""
        if self.size > horizon:
            raise ValueError(
                f"a random scope must have a size of at most the horizon's {horizon} decisions, got {self.size}"
            )

    def inside(
        self,
        step: int,
        horizon: int,
        rng: BatchRng,
        semantic: Tensor | None = None,
        reward: Tensor | None = None,
    ) -> Tensor:
        """Returns whether a decision was drawn, (N,) bool."""
        # the numbers of the step behind the last, which no decision draws from
        drawn = rng.at(horizon).uniform(horizon, purpose=Purpose.POLICY)  # (N, T)
        return drawn.argsort(1).argsort(1)[:, step] < self.size


SPELLING = re.compile(r"full|adaptive|fixed:(?P<start>\d+):(?P<end>\d+)|random:(?P<size>\d+)")


def parse_scope(spec: Any, detector: Detector | None = None) -> Scope:
    """Returns the scope that a string names: "full", "adaptive", "fixed:START:END" or "random:SIZE".

    Args:
        spec: the string.
        detector: of an adaptive scope; None for the usual one.

    Raises:
        ValueError: if it names none.
    """
    found = SPELLING.fullmatch(spec) if isinstance(spec, str) else None
    if found is None:
        raise ValueError(
            "scope must be 'full', 'adaptive', 'fixed:START:END' with the decisions START <= k < END, or "
            f"'random:SIZE', got {spec!r}"
        )
    numbers = {name: int(number) for name, number in found.groupdict().items() if number is not None}
    kind = spec.partition(":")[0]
    if kind == "adaptive":
        return Adaptive(detector or Detector())
    return {"full": Full, "fixed": Fixed, "random": Random}[kind](**numbers)


def mask(
    scope: Scope,
    horizon: int,
    rng: BatchRng,
    semantic: Tensor | None = None,
    reward: Tensor | None = None,
) -> Tensor:
    """Returns which decisions of whole trajectories count, (T, N) bool.

    Args:
        scope: the rule.
        horizon: decisions T.
        rng: of the images.
        semantic: (T, N), its curve, where the scope needs curves.
        reward: (T, N), its curve likewise.

    Raises:
        ValueError: if the scope does not fit into the horizon, or the curves are not of this shape.
    """
    scope.check(horizon)

    def known(curve: Tensor | None, step: int) -> Tensor | None:
        return None if curve is None else curve[: step + 1]

    steps = [scope.inside(k, horizon, rng, known(semantic, k), known(reward, k)) for k in range(horizon)]
    return torch.stack(steps)
