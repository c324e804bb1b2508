"""Grids of noise levels: where a sampler of K steps evaluates its network.

A grid is (K+1,) float64, EDM's sigma (x = data + sigma noise), falling strictly from sigma_max to exactly 0. The
solvers of `genenv.solvers.sample` take it, and any path turns it into times (`NoisePath.time_of`).

Hand-made grids are functions of K, sigma_max and their own settings. Those with a smallest level have K levels from
sigma_max to sigma_min and the 0 behind them, as their papers have it for images; `edm` may fall to 0 by itself instead.
`closed_form` and `heun_form` follow the generator.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from genenv.solvers import Denoiser, NoisePath, flow_acceleration, noise_levels, reverse_flow

FINE = 200
"""Noise levels at which |Q| is measured along the way of some points."""
SPAN = 0.25
"""Share of sigma over which the change of Q is measured."""
PLACES = 20
"""Levels tried for the last of `heun_form`, in each span between two that were measured."""


def uniform(steps: int, sigma_max: float) -> Tensor:
    """Returns levels evenly spaced in sigma."""
    _check(steps, sigma_max)
    return _ending_at_0(sigma_max * _falling(steps))


def edm(steps: int, sigma_max: float = 80.0, sigma_min: float = 0.002, rho: float = 7.0) -> Tensor:
    """Returns levels evenly spaced in sigma^(1/rho) (Karras et al. 2022, eq. 5).

    Args:
        steps: K.
        sigma_max: the first level.
        sigma_min: the last level above 0; with a sigma_min of 0 the K steps end there.
        rho: how much shorter the steps near the data are; a tuned variant has another (ART's: 3).

    Raises:
        ValueError: if steps < 1, not 0 <= sigma_min < sigma_max, or rho is not above 0.
    """
    _check(steps, sigma_max, sigma_min or None)
    if not 0 < rho < math.inf:
        raise ValueError(f"rho must be a number above 0, got {rho}")
    if sigma_min == 0:
        return _ending_at_0(sigma_max * _falling(steps) ** rho)
    first, last = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return _behind(steps, sigma_max, lambda share: (first + share * (last - first)) ** rho)


def log_snr(steps: int, sigma_max: float = 80.0, sigma_min: float = 0.002) -> Tensor:
    """Returns levels evenly spaced in log sigma, that is in the log signal-to-noise ratio (Lu et al. 2022, DPM-Solver).

    Raises:
        ValueError: if steps < 1, or not 0 < sigma_min < sigma_max.
    """
    _check(steps, sigma_max, sigma_min)
    return _behind(steps, sigma_max, lambda share: sigma_max * (sigma_min / sigma_max) ** share)


def cosine(steps: int, sigma_max: float) -> Tensor:
    """Returns levels evenly spaced in arctan sigma: uniform times of the cosine path (Nichol and Dhariwal 2021).

    For standard normal data these are the best levels there are for Euler's rule, by KL (Sabour et al. 2024) and by W2.
    """
    _check(steps, sigma_max)
    return _ending_at_0((math.atan(sigma_max) * _falling(steps)).tan())


def flow_time(steps: int, sigma_max: float) -> Tensor:
    """Returns levels evenly spaced in the time t = 1 / (1 + sigma) of the straight path: SiT's own (Ma et al. 2024)."""
    _check(steps, sigma_max)
    time = 1 - sigma_max / (1 + sigma_max) * _falling(steps)
    return _ending_at_0(1 / time - 1)


GRIDS: dict[str, Callable[[int, float, float], Tensor]] = {
    "uniform": lambda steps, sigma_max, sigma_min: uniform(steps, sigma_max),
    "edm": edm,
    "log_snr": log_snr,
    "cosine": lambda steps, sigma_max, sigma_min: cosine(steps, sigma_max),
    "flow_time": lambda steps, sigma_max, sigma_min: flow_time(steps, sigma_max),
}
"""Names of the hand-made grids -> (K, sigma_max, sigma_min) -> levels (K+1,); some have no sigma_min."""


def named(name: str, steps: int, sigma_max: float, sigma_min: float) -> Tensor:
    """Returns a hand-made grid by its name in `GRIDS`; ValueError for another."""
    if name not in GRIDS:
        raise ValueError(f"grid must be one of {', '.join(GRIDS)}, or a list of noise levels, got {name!r}")
    return GRIDS[name](steps, sigma_max, sigma_min)


ALIGN_YOUR_STEPS = {
    "stable-diffusion-1.5": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.0),
    "deepfloyd-if-stage-1": (160.41, 8.081, 3.315, 1.885, 1.207, 0.785, 0.553, 0.293, 0.186, 0.030, 0.0),
    "stable-video-diffusion": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.0),
}
"""Published grids of 10 steps (Sabour et al. 2024, table 3); their smallest level, 0.002 to 0.029, is 0 here."""


def align_your_steps(model: str, steps: int = 10) -> Tensor:
    """Returns the published grid of a model in `ALIGN_YOUR_STEPS`, resampled where it is not 10 steps."""
    if model not in ALIGN_YOUR_STEPS:
        raise ValueError(f"model must be one of {', '.join(ALIGN_YOUR_STEPS)}, got {model!r}")
    return resampled(noise_levels(ALIGN_YOUR_STEPS[model]), steps)


def resampled(levels: Tensor, steps: int) -> Tensor:
    """Returns a grid (K+1,) at another number of steps, on the same clock k / K.

    Between two levels log sigma is linear in the clock; between the last and 0, where it has no end, sigma is.

    Raises:
        ValueError: if steps < 1, or the levels do not fall to 0.
    """
    _check_steps(steps)
    grid = noise_levels(levels)
    place = torch.arange(steps + 1, dtype=torch.float64) * (len(grid) - 1) / steps
    before = place.long().clamp(max=len(grid) - 2)
    share, first, second = place - before, grid[before], grid[before + 1]
    return torch.where(second > 0, first ** (1 - share) * second**share, first * (1 - share))


def of_times(path: NoisePath, times: Tensor) -> Tensor:
    """Returns the grid that times (T,) of a path stand for, T - 1 steps or fewer: the last ends at 0.

    Times at which nothing moves are left out.
    """
    levels = path.noise_level(times.double())
    inner = levels[1:-1]
    return torch.cat([levels[:1], inner[inner < levels[:-2]], levels.new_zeros(1)])


def accelerations(
    denoiser: Denoiser, x: Tensor, levels: Tensor, difference: float | None = None
) -> tuple[Tensor, Tensor]:
    """Returns the norms |Q| (M, N) float64 along Euler's flow of N points, and those of dQ/d sigma, likewise.

    `closed_form` is made of the first, which Euler's errors are in proportion to, and `heun_form` of both.

    The second are differences of Q over a fall of sigma by `SPAN`, or over all levels where these fall by less: steps
    pass over what trembles more finely.

    Args:
        denoiser: D(x; sigma).
        x: (N, ...) at the first level; a few hundred points.
        levels: (M,), at least two, that fall and stay above 0; fine, for the flow to be followed.
        difference: of `genenv.solvers.flow_acceleration`.

    Raises:
        ValueError: if there are fewer levels.
    """
    grid = levels.double().to(x.device)
    if len(grid) < 2:
        raise ValueError(f"levels must be two or more, got {len(grid)}")
    span = min(SPAN, 1 - (grid[-1] / grid[0]).item())
    steps = torch.cat([-grid.diff(), grid.new_zeros(1)])  # none from the last level
    first: list[Tensor] = []
    second: list[Tensor] = []
    places: list[int] = []
    above: collections.deque[tuple[int, Tensor]] = collections.deque()
    with torch.no_grad():
        for place, (level, step) in enumerate(zip(grid, steps, strict=True)):
            sigma = level.expand(len(x))
            flow = reverse_flow(denoiser, x, sigma)
            change = flow_acceleration(denoiser, x, sigma, flow, difference)
            first.append(_norm(change))
            above.append((place, change))
            while len(above) > 1 and grid[above[1][0]] * (1 - span) >= level:
                above.popleft()
            start, before = above[0]
            if place > start and (grid[start] * (1 - span) >= level or place == len(grid) - 1):
                second.append(_norm(change - before) / (grid[start] - level))
                places.append((start + place) // 2)
            x = x + step.to(x.dtype) * flow
    nearest = (torch.arange(len(grid))[:, None] - torch.tensor(places)).abs().argmin(1)
    return torch.stack(first), torch.stack(second)[nearest.to(x.device)]


def closed_form(steps: int, levels: Tensor, acceleration: Tensor) -> Tensor:
    """Returns the levels that divide the integral of sqrt(mean |Q|) over sigma into K equal parts.

    The mean over points is the only approximation: on one trajectory, speed in proportion to |Q|^(-1/2) minimises the
    accumulated error of Euler's steps (ART, arXiv 2601.18681, sec. 4.1 with |Q| theta^2 constant).

    Args:
        steps: K.
        levels: (M,) where |Q| was measured, falling from sigma_max, above 0; below the last it is held constant.
        acceleration: (M, N), |Q| of N points, as of `accelerations`.

    Raises:
        ValueError: if steps < 1, the levels do not fall, or |Q| is not finite, negative or 0 throughout.
    """
    _check_steps(steps)
    nodes, mean = _means(levels, acceleration, "acceleration")
    return _even(steps, nodes, _integral(nodes, mean.sqrt()))


def heun_form(steps: int, levels: Tensor, acceleration: Tensor, second: Tensor) -> Tensor:
    """Returns the levels that make the sum of Heun's local errors least, as `closed_form` does with Euler's.

    A Heun step of length h errs by h^3 |dQ/d sigma| / 12, so K - 1 of them divide the integral of the cube root of its
    mean evenly, down to a level s: there the error is the integral's cube / (12 (K - 1)^2). The last step, from s to 0,
    is one of Euler's, which errs by the integral of sigma |Q|. Of all s the one with the least sum is taken.

    Args:
        steps: K.
        levels: (M,), as of `closed_form`.
        acceleration: (M, N), |Q| of N points, the first of `accelerations`.
        second: (M, N), |dQ/d sigma|, the second.

    Raises:
        ValueError: as `closed_form`, of both.
    """
    _check_steps(steps)
    nodes, mean = _means(levels, acceleration, "acceleration")
    if steps == 1:
        return nodes[[0, -1]]
    root = _integral(nodes, _means(levels, second, "second")[1] ** (1 / 3))
    below = _integral(nodes, mean * nodes)
    place = torch.arange(1, PLACES * (len(nodes) - 1), dtype=torch.float64) / PLACES
    fine = [_between(place, values) for values in (nodes, root, below)]
    error = fine[1] ** 3 / (12 * (steps - 1) ** 2) + below[-1] - fine[2]
    # Where all above is straight there is nothing to divide.
    least = error.where(fine[1] > 0, math.inf).argmin()
    return torch.cat([_even(steps - 1, nodes, root, fine[1][least])[:-1], fine[0][least, None], nodes[-1:]])


class ClosedForm(Protocol):
    """What `measured_closed_form` gives."""

    def __call__(self, steps: int, solver: str = "euler") -> Tensor:
        """Returns the grid (K + 1,) that makes the errors of a solver's steps least; ValueError for another solver."""
        ...


def measured_closed_form(
    denoiser: Denoiser, x: Tensor, sigma_max: float, sigma_min: float, difference: float | None = None
) -> ClosedForm:
    """Returns `closed_form` and `heun_form` at any K, from `accelerations` at `FINE` levels along the way of N points.

    Args:
        denoiser: D(x; sigma).
        x: (N, ...) at the noise level sigma_max; a few hundred points.
        sigma_max: the noise level of the points.
        sigma_min: the flow is measured down to it.
        difference: of `genenv.solvers.flow_acceleration`.
    """
    levels = edm(FINE, sigma_max, sigma_min)[:-1]
    first, second = accelerations(denoiser, x, levels, difference)

    def of(steps: int, solver: str = "euler") -> Tensor:
        if solver == "euler":
            return closed_form(steps, levels, first)
        if solver == "heun":
            return heun_form(steps, levels, first, second)
        raise ValueError(f"closed forms are of the solvers euler and heun, got {solver!r}")

    return of


def _means(levels: Tensor, norms: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Returns levels and the mean norms at them, (M + 1,) each: down to 0, where it is that of the last level.

    Raises:
        ValueError: if the levels do not fall, or the norms, called `name`, are not finite, negative or 0 throughout.
    """
    nodes = noise_levels(torch.cat([levels.double().cpu(), torch.zeros(1, dtype=torch.float64)]))
    if len(norms) != len(levels):
        raise ValueError(f"{name} must have a row for each of {len(levels)} levels, got {len(norms)}")
    mean = norms.double().cpu().mean(1)
    if not bool((mean.isfinite() & (mean >= 0)).all()) or not bool(mean.any()):
        raise ValueError(
            f"{name} must be finite, not negative and not 0 throughout, got means {mean.tolist()}"
        )
    return nodes, torch.cat([mean, mean[-1:]])


def _integral(nodes: Tensor, density: Tensor) -> Tensor:
    """Returns the integral (M,) of a density (M,) from the first level (M,), which is the highest, to each."""
    parts = -nodes.diff() * (density[1:] + density[:-1]) / 2
    return torch.cat([parts.new_zeros(1), parts.cumsum(0)])


def _even(steps: int, nodes: Tensor, integral: Tensor, end: Tensor | None = None) -> Tensor:
    """Returns the levels (K + 1,) that divide an integral (M,) evenly, up to its end or to another value."""
    targets = (integral[-1] if end is None else end) * torch.arange(1, steps, dtype=torch.float64) / steps
    after = torch.searchsorted(integral, targets).clamp(1, len(nodes) - 1)
    share = (targets - integral[after - 1]) / (integral[after] - integral[after - 1])
    return torch.cat([nodes[:1], nodes[after - 1] + share * nodes.diff()[after - 1], nodes[-1:]])


def _between(place: Tensor, values: Tensor) -> Tensor:
    """Returns values (M,) at places 0 ... M - 1 that need not be whole, linear in between."""
    before = place.long().clamp(max=len(values) - 2)
    return values[before] + (place - before) * values.diff()[before]


def _norm(x: Tensor) -> Tensor:
    """Returns the norms (N,) float64 of x (N, ...)."""
    return x.flatten(1).norm(dim=1).double()


def _falling(steps: int) -> Tensor:
    """Returns 1 - k / K for k = 0 ... K."""
    return 1 - torch.arange(steps + 1, dtype=torch.float64) / steps


def _ending_at_0(levels: Tensor) -> Tensor:
    """Returns levels (K+1,) whose last, which rounding may have left beside it, is 0."""
    return torch.cat([levels[:-1], levels.new_zeros(1)])


def _behind(steps: int, sigma_max: float, level: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns `level` at K shares 0 ... 1 of the way, the first being exactly sigma_max, and 0 behind them."""
    share = torch.arange(1, steps, dtype=torch.float64) / max(steps - 1, 1)
    return torch.cat([torch.tensor([sigma_max]).double(), level(share), torch.zeros(1).double()])


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")


def _check(steps: int, sigma_max: float, sigma_min: float | None = None) -> None:
    """Raises a ValueError for a number of steps or a range of levels that no grid has."""
    _check_steps(steps)
    if not 0 < sigma_max < math.inf:
        raise ValueError(f"sigma_max must be a number above 0, got {sigma_max}")
    if sigma_min is not None and not 0 < sigma_min < sigma_max:
        raise ValueError(f"sigma_min must lie above 0 and below sigma_max = {sigma_max:g}, got {sigma_min}")
